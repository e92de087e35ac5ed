//! Accepts connections and hands each request to [`super::route`].

use std::convert::Infallible;
use std::future::Future;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_rustls::TlsAcceptor;

use super::{Engine, route};

/// The least buffer that hyper takes: most connections carry one small request.
const BUFFER: usize = 8 << 10;
/// The pause after a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a client may take to show its certificate.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The first byte of every TLS connection: a handshake record (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// What a client is told that does not speak TLS, as Go's servers do.
const NOT_TLS: &[u8] = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

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
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

/// Serves the API on TCP to clients that show a certificate, until told to stop.
pub async fn serve_tls(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    engine: Engine,
    until: impl Future<Output = ()>,
) {
    let mut until = std::pin::pin!(until);
    loop {
        tokio::select! {
            () = &mut until => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(tokio::spawn(secured(stream, acceptor.clone(), engine.clone()))),
                Err(error) => {
                    tracing::warn!("accept: {error}");
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

async fn secured(mut stream: TcpStream, acceptor: TlsAcceptor, engine: Engine) {
    let secure = async {
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first[0] != HANDSHAKE_RECORD {
            stream.write_all(NOT_TLS).await?;
            stream.shutdown().await?;
            // What is left unread would take the answer with it.
            let mut rest = [0; 4 << 10];
            while stream.read(&mut rest).await? > 0 {}
            return Err(std::io::Error::other("the client does not speak TLS"));
        }
        // What a person types goes out as it is typed.
        stream.set_nodelay(true)?;
        acceptor.accept(stream).await
    };
    match tokio::time::timeout(HANDSHAKE, secure).await {
        Ok(Ok(stream)) => connection(stream, engine).await,
        Ok(Err(error)) => tracing::info!("refused a connection: {error}"),
        Err(_) => tracing::info!("refused a connection: the client shows no certificate"),
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, engine: Engine) {
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
