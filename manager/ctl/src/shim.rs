//! The way to a shim: its address, and calls of the shim protocol over ttrpc, one at a time.

use std::path::{Path, PathBuf};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::ttrpc::{FrameType, HEADER_LEN, Header, KeyValue, NAMESPACE_KEY, Request, Response, frame};
use prost::Message;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Directory of the bundles of tasks below a manager's state directory.
const TASKS: &str = "io.containerd.runtime.v2.task";
/// Where containerd's shims have their sockets.
const CONTAINERD_SOCKETS: &str = "/run/containerd/s";
/// The versions of the protocol, the newest first.
const VERSIONS: [u32; 2] = [3, 2];

/// A connection to a shim.
pub struct Shim {
    stream: UnixStream,
    namespace: String,
    /// The version that the shim speaks; unknown before the first answer.
    version: Option<u32>,
    calls: u32,
}

/// The address that a manager has noted in a task's bundle.
fn noted(bundle: &Path) -> Option<String> {
    let bootstrap = std::fs::read(bundle.join("bootstrap.json")).ok();
    let bootstrap: Option<serde_json::Value> = bootstrap.and_then(|text| serde_json::from_slice(&text).ok());
    match bootstrap.as_ref().and_then(|bootstrap| bootstrap["address"].as_str()) {
        Some(address) => Some(address.to_owned()),
        // What containerd 1.6 notes.
        None => std::fs::read_to_string(bundle.join("address")).ok(),
    }
}

/// The socket of a container's shim where nobody has noted one: its name is made of the manager's address (containerd's
/// pkg/shim).
pub fn computed(manager: &Path, namespace: &str, id: &str, is_debug: bool) -> PathBuf {
    let mut path = manager.join(namespace).join(id);
    if is_debug {
        path.push("debug");
    }
    let hash = Sha256::digest(path.as_os_str().as_encoded_bytes());
    Path::new(CONTAINERD_SOCKETS).join(hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

impl Shim {
    /// Connects to an address, or to the shim of a container of the manager that serves at `manager` and has the state
    /// directory `state`, if that is known; otherwise it is taken for the socket's.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` where neither is given, `NotFound` where nobody listens.
    pub async fn connect(
        address: Option<&str>,
        id: Option<&str>,
        manager: &Path,
        state: Option<&Path>,
        namespace: &str,
    ) -> Result<Shim> {
        let mut places: Vec<String> = address.map(str::to_owned).into_iter().collect();
        if let Some(id) = id {
            let state = state.or(manager.parent()).unwrap_or(Path::new("/"));
            places.extend(noted(&state.join(TASKS).join(namespace).join(id)));
            places.push(computed(manager, namespace, id, false).display().to_string());
        }
        if places.is_empty() {
            let reason = "shim ID (--id) or address (--shim-address) must be specified";
            return Err(Error::because(Kind::InvalidArgument, "shim", "", reason));
        }
        for place in &places {
            let path = place.trim().strip_prefix("unix://").unwrap_or(place.trim());
            if let Ok(stream) = UnixStream::connect(path).await {
                return Ok(Shim { stream, namespace: namespace.to_owned(), version: None, calls: 0 });
            }
        }
        let reason = format!("fail to connect to container shim with sockets: [{}]", places.join(" "));
        Err(Error::exactly(Kind::NotFound, reason))
    }

    /// From now on this version of the protocol is spoken.
    pub fn speak(&mut self, version: Option<u32>) {
        self.version = version.or(self.version);
    }

    /// Calls a method of the service `Task`; in the newest version that the shim knows, where none was chosen.
    ///
    /// # Errors
    ///
    /// What the shim says.
    pub async fn call<A: Message + Default>(&mut self, method: &str, request: &impl Message) -> Result<A> {
        let versions = self.version.map_or(VERSIONS.to_vec(), |version| vec![version]);
        let payload = request.encode_to_vec();
        let mut refused = None;
        for version in versions {
            match self.ask(version, method, payload.clone()).await {
                Err(error) if error.kind() == Kind::Unimplemented => refused = Some(error),
                answer => {
                    self.version = Some(version);
                    return A::decode(answer?.as_slice())
                        .map_err(|error| Error::because(Kind::Internal, "decode answer to", method, error));
                }
            }
        }
        Err(refused.unwrap_or_else(|| Error::new(Kind::Unimplemented, "call", method)))
    }

    async fn ask(&mut self, version: u32, method: &str, payload: Vec<u8>) -> Result<Vec<u8>> {
        let request = Request {
            service: format!("containerd.task.v{version}.Task"),
            method: method.to_owned(),
            payload,
            metadata: vec![KeyValue { key: NAMESPACE_KEY.to_owned(), value: self.namespace.clone() }],
            ..Request::default()
        };
        // Clients have odd numbers.
        let stream_id = self.calls * 2 + 1;
        self.calls += 1;
        self.stream
            .write_all(&frame(stream_id, FrameType::Request, &request))
            .await
            .context("call", method)?;
        let mut head = [0; HEADER_LEN];
        self.stream.read_exact(&mut head).await.context("read answer to", method)?;
        let header = Header::decode(&head)?;
        let mut payload = vec![0; header.length as usize];
        self.stream.read_exact(&mut payload).await.context("read answer to", method)?;
        if header.frame_type != FrameType::Response || header.stream_id != stream_id {
            return Err(Error::because(
                Kind::Internal,
                "read answer to",
                method,
                "it answers something else",
            ));
        }
        let response = Response::decode(payload.as_slice())
            .map_err(|error| Error::because(Kind::Internal, "decode answer to", method, error))?;
        response.into_result(method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_where_managers_note_them() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(noted(bundle.path()), None);
        std::fs::write(bundle.path().join("address"), "unix:///old").unwrap();
        assert_eq!(noted(bundle.path()).unwrap(), "unix:///old");
        std::fs::write(bundle.path().join("bootstrap.json"), r#"{"version":3,"address":"unix:///new"}"#)
            .unwrap();
        assert_eq!(noted(bundle.path()).unwrap(), "unix:///new");
    }

    #[test]
    fn sockets_are_named_as_by_containerd() {
        let socket = computed(Path::new("/run/containerd/containerd.sock"), "default", "c", false);
        let hash = Sha256::digest(b"/run/containerd/containerd.sock/default/c");
        let name: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(socket, Path::new("/run/containerd/s").join(name));
        assert_ne!(socket, computed(Path::new("/run/containerd/containerd.sock"), "default", "c", true));
    }
}
