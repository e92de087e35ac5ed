//! ttrpc on tokio: the client that speaks to shims, and the server that shims send their events to.
//!
//! The framing is `orlop_proto::ttrpc`; only unary calls exist in either direction.

mod client;
mod server;
#[cfg(test)]
mod tests;

pub use client::{Client, connect};
pub use server::serve;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::ttrpc::{HEADER_LEN, Header};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads one frame; nothing when the other side closed the connection between two frames.
async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<(Header, Vec<u8>)>> {
    let mut head = [0; HEADER_LEN];
    let failed = |error| Error::io("read", "ttrpc frame", error);
    if stream.read(&mut head[..1]).await.map_err(failed)? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[1..]).await.map_err(failed)?;
    let header = Header::decode(&head)?;
    let mut payload = vec![0; header.length as usize];
    stream.read_exact(&mut payload).await.map_err(failed)?;
    Ok(Some((header, payload)))
}

/// The error of a call whose connection has ended.
pub fn closed() -> Error {
    Error::new(Kind::Unavailable, "ttrpc: closed", "")
}
