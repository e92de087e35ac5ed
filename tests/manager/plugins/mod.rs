//! Proxy plugins: programs that do a part of orlopd's work, here threads of the test that serve on a unix socket.

mod differ;
mod remote_snapshotter;
mod sandboxer;

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::transport::server::Router;

/// A plugin, which serves until it is dropped.
pub struct Plugin {
    address: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Plugin {
    /// Serves on a socket of this name.
    fn serve(socket: &Path, services: impl FnOnce(Server) -> Router + Send + 'static) -> Plugin {
        Plugin::serve_until(socket, services, std::future::pending())
    }

    /// The same, but it stops by itself when something has come.
    pub fn serve_until(
        socket: &Path,
        services: impl FnOnce(Server) -> Router + Send + 'static,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> Plugin {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let address = socket.to_owned();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = UnixListener::bind(&address).expect("a socket");
                ready.send(()).unwrap();
                let serving =
                    services(Server::builder()).serve_with_incoming(UnixListenerStream::new(listener));
                // Connections of a daemon that runs on must not hold the test up.
                tokio::select! {
                    served = serving => served.expect("serving"),
                    _ = stopped => {}
                    () = end => {}
                }
            });
        });
        is_ready.recv().expect("the plugin serves");
        Plugin { address: socket.to_owned(), stop: Some(stop), thread: Some(thread) }
    }

    /// The configuration that makes orlopd use it.
    fn config(&self, name: &str, kind: &str) -> String {
        format!("[proxy_plugins.{name}]\ntype = {kind:?}\naddress = {:?}\n", self.address)
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed, and what the test asserts fails by itself.
            let _ = thread.join();
        }
    }
}
