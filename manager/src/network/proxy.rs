//! Carries connections to published ports that the kernel cannot: from the host's `::1`, whose packets may not be sent elsewhere,
//! and from addresses of version 6 to containers that have none. Everything else goes by the firewall's rules and not through here.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use orlop_proto::error::{Context, Result};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::held::Protocol;

/// How long a client of a datagram port is remembered after its last datagram.
const IDLE: Duration = Duration::from_secs(90);
/// The largest datagram.
const DATAGRAM: usize = 65_536;

/// A proxy; it ends, with its connections, when this is dropped.
pub type Proxy = AbortOnDropHandle<()>;

/// Where proxies of a container lead: its address, which changes with its networks.
pub type Target = watch::Receiver<Option<IpAddr>>;

/// Starts to carry what comes to a socket to a port of a container. Nothing for protocols that it does not know.
pub fn start(protocol: Protocol, socket: OwnedFd, target: Target, port: u16) -> Result<Option<Proxy>> {
    let name = || format!("connections to port {port}");
    let task = match protocol {
        Protocol::Tcp => {
            let listener = TcpListener::from_std(socket.into()).context("wait for", name())?;
            tokio::spawn(streams(listener, target, port))
        }
        Protocol::Udp => {
            let socket = UdpSocket::from_std(socket.into()).context("wait for", name())?;
            tokio::spawn(datagrams(Arc::new(socket), target, port))
        }
        Protocol::Sctp => return Ok(None),
    };
    Ok(Some(AbortOnDropHandle::new(task)))
}

fn now(target: &Target, port: u16) -> Option<SocketAddr> {
    target.borrow().map(|address| SocketAddr::new(address, port))
}

async fn streams(listener: TcpListener, target: Target, port: u16) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    // Nobody is there while the container is on no network.
                    if let Some(to) = now(&target, port) {
                        open.spawn(stream(client, to));
                    }
                }
                // Out of descriptors, most likely: those that are open have to end first.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = open.join_next() => {}
        }
    }
}

async fn stream(mut client: TcpStream, to: SocketAddr) {
    // A client whose other side does not answer sees its connection end, as it would without us.
    if let Ok(mut server) = TcpStream::connect(to).await {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    }
}

async fn datagrams(socket: Arc<UdpSocket>, target: Target, port: u16) {
    let mut clients: HashMap<SocketAddr, (Arc<UdpSocket>, AbortOnDropHandle<()>)> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(to) = now(&target, port) else { continue };
        clients.retain(|_, (server, answers)| {
            !answers.is_finished() && server.peer_addr().is_ok_and(|peer| peer == to)
        });
        let server = match clients.get(&client) {
            Some((server, _)) => server.clone(),
            None => {
                let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
                let Ok(server) = UdpSocket::bind(any).await else { continue };
                if server.connect(to).await.is_err() {
                    continue;
                }
                let server = Arc::new(server);
                let answers = tokio::spawn(answers(server.clone(), socket.clone(), client));
                clients.insert(client, (server.clone(), AbortOnDropHandle::new(answers)));
                server
            }
        };
        // A datagram may be lost.
        let _ = server.send(&buffer[..length]).await;
    }
}

/// Carries the answers to one client, until none comes for a while.
async fn answers(server: Arc<UdpSocket>, socket: Arc<UdpSocket>, client: SocketAddr) {
    let mut buffer = vec![0; DATAGRAM];
    while let Ok(Ok(length)) = tokio::time::timeout(IDLE, server.recv(&mut buffer)).await {
        let _ = socket.send_to(&buffer[..length], client).await;
    }
}
