//! A WebSocket (RFC 6455) as a stream of bytes.

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// How many bytes may wait in each direction.
const WAITING: usize = 16 << 10;
/// How long a client may take to close its direction.
const GOODBYE: std::time::Duration = std::time::Duration::from_secs(5);
/// The largest message that a client may send, in bytes.
const MAX_MESSAGE: usize = 1 << 20;

/// Which end takes or gives no more.
enum Ended {
    Client,
    Process,
}

/// What a client sends in messages, as bytes; what is written goes to it in binary messages. Closing either end closes the other
/// (a client that closes hears nothing more: RFC 6455, section 1.4).
pub async fn messages(connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> DuplexStream {
    let limits = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE));
    let socket = WebSocketStream::from_raw_socket(connection, Role::Server, Some(limits)).await;
    let (near, far) = tokio::io::duplex(WAITING);
    let (mut to_client, mut from_client) = socket.split();
    let (mut from_near, mut to_near) = tokio::io::split(far);
    tokio::spawn(async move {
        let send = async {
            let mut buffer = vec![0; WAITING];
            loop {
                match from_near.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(length) => {
                        let message = Message::binary(buffer[..length].to_vec());
                        if to_client.send(message).await.is_err() {
                            return;
                        }
                    }
                }
            }
            // Ignoring: the client may be gone.
            let _ = to_client.close().await;
        };
        let receive = async {
            while let Some(Ok(message)) = from_client.next().await {
                let written = match message {
                    Message::Binary(data) => to_near.write_all(&data).await,
                    Message::Text(text) => to_near.write_all(text.as_bytes()).await,
                    // Answered by the library as the next message is asked for, of which there is none.
                    _ => Ok(()),
                };
                if written.is_err() {
                    return Ended::Process;
                }
            }
            Ended::Client
        };
        let (mut send, mut receive) = (std::pin::pin!(send), std::pin::pin!(receive));
        tokio::select! {
            () = &mut send => {
                // Ignoring: one that does not say goodbye is left.
                let _ = tokio::time::timeout(GOODBYE, &mut receive).await;
            }
            ended = &mut receive => match ended {
                // The connection goes at once, however long there is nothing to say that could fail.
                Ended::Client => {}
                // What it said last still goes out.
                Ended::Process => send.await,
            },
        }
    });
    near
}
