//! The ttrpc server on `<address>.ttrpc`, where shims deliver their events.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::ttrpc::{FrameType, Request, Response, frame};
use prost::Message;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::read_frame;

/// Pause after the process ran out of descriptors, in which some may be closed again.
const BREATH: Duration = Duration::from_millis(50);

/// Serves connections until told to stop. Each connection's calls are answered in order, one by one, so that a
/// shim's events keep theirs; `handler` answers a call and must not block.
pub async fn serve<H>(listener: UnixListener, handler: H, stop: impl Future<Output = ()>)
where
    H: Fn(&Request) -> Result<Vec<u8>> + Send + Sync + 'static,
{
    let handler = Arc::new(handler);
    let mut connections = JoinSet::new();
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(answer(stream, handler.clone()));
                }
                Err(error) => {
                    tracing::warn!("accept a shim's connection: {error}");
                    tokio::time::sleep(BREATH).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Ok(Err(error)) = ended {
                    tracing::debug!("a shim's connection ended: {error}");
                }
            }
        }
    }
}

async fn answer<H>(stream: UnixStream, handler: Arc<H>) -> Result<()>
where
    H: Fn(&Request) -> Result<Vec<u8>>,
{
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::with_capacity(1024, reader);
    while let Some((header, payload)) = read_frame(&mut reader).await? {
        if header.frame_type != FrameType::Request || header.stream_id.is_multiple_of(2) {
            let reason = "expected a request on an odd stream";
            return Err(Error::because(Kind::InvalidArgument, "read", "ttrpc frame", reason));
        }
        let result = Request::decode(payload.as_slice())
            .map_err(|error| Error::because(Kind::InvalidArgument, "decode", "ttrpc request", error))
            .and_then(|request| handler(&request));
        let answer = frame(header.stream_id, FrameType::Response, &Response::of(result));
        writer
            .write_all(&answer)
            .await
            .map_err(|error: io::Error| Error::io("answer", "ttrpc call", error))?;
    }
    Ok(())
}
