//! Accepts connections and hands each request to [`super::route`].

use std::convert::Infallible;
use std::future::Future;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};

use super::{Engine, route};

/// The least buffer that hyper takes: most connections carry one small request.
const BUFFER: usize = 8 << 10;

/// Serves the API on a socket until told to stop; connections that are open then end with the daemon.
pub async fn serve(listener: UnixListener, engine: Engine, until: impl Future<Output = ()>) {
    let mut until = std::pin::pin!(until);
    loop {
        tokio::select! {
            () = &mut until => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(connection(stream, engine.clone()))),
                Err(error) => {
                    tracing::warn!("accept: {error}");
                    // Out of descriptors, as a rule: others end before long.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
        }
    }
}

async fn connection(stream: UnixStream, engine: Engine) {
    let service = service_fn(move |request| {
        let engine = engine.clone();
        async move { Ok::<_, Infallible>(route::answer(engine, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!("connection: {error}");
    }
}
