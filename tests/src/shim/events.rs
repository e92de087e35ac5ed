//! A manager that takes events, does not answer, or is not there.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::poll_until;
use orlop_proto::any;
use orlop_proto::containerd::events as messages;
use orlop_proto::containerd::services::events::ttrpc::v1::ForwardRequest;
use orlop_proto::containerd::types::Envelope;
use orlop_proto::ttrpc::{self, FrameType, Request, Response};
use prost::Message;

/// How the manager answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// It takes every event.
    Answering,
    /// It takes the request and says nothing.
    Silent,
}

/// A manager's ttrpc socket, in a directory of its own: what listens there is no leak of the shim's.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    _directory: tempfile::TempDir,
    taken: Arc<Mutex<Vec<Envelope>>>,
}

impl Events {
    /// Listens on a socket.
    pub fn listen(manner: Manner) -> Events {
        let directory = tempfile::tempdir().expect("making a directory");
        let path = directory.path().join("manager.ttrpc");
        let listener = UnixListener::bind(&path).expect("binding the event socket");
        let taken = Arc::new(Mutex::new(Vec::new()));
        let events = Events { path, _directory: directory, taken: Arc::clone(&taken) };
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let taken = Arc::clone(&taken);
                thread::spawn(move || serve(stream, manner, &taken));
            }
        });
        events
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All events of a container, in the order of arrival, in short form: `exit e1 7`.
    pub fn of(&self, container: &str) -> Vec<String> {
        self.taken.lock().unwrap().iter().filter_map(|envelope| describe(envelope, container)).collect()
    }

    /// Waits until the last of a container's events is this one, and returns all.
    pub fn until(&self, container: &str, last: &str) -> Vec<String> {
        poll_until(Duration::from_secs(30), &format!("event {last:?} of {container}"), || {
            self.of(container).last().is_some_and(|event| event == last)
        });
        self.of(container)
    }

    /// Waits until an event has come, wherever it stands.
    pub fn contain(&self, container: &str, event: &str) {
        poll_until(Duration::from_secs(30), &format!("event {event:?} of {container}"), || {
            self.of(container).iter().any(|one| one == event)
        });
    }

    /// Every envelope that has come.
    pub fn envelopes(&self) -> Vec<Envelope> {
        self.taken.lock().unwrap().clone()
    }
}

fn serve(mut stream: UnixStream, manner: Manner, taken: &Mutex<Vec<Envelope>>) {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        while let Ok(Some((header, payload, used))) = ttrpc::next_frame(&bytes) {
            let request = Request::decode(payload).expect("a request");
            assert_eq!(request.method, "Forward");
            let forward = ForwardRequest::decode(request.payload.as_slice()).expect("a ForwardRequest");
            bytes.drain(..used);
            if manner == Manner::Silent {
                continue;
            }
            taken.lock().unwrap().push(forward.envelope.expect("an envelope"));
            let answer = ttrpc::frame(header.stream_id, FrameType::Response, &Response::of(Ok(Vec::new())));
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
        match stream.read(&mut chunk) {
            Ok(length) if length > 0 => bytes.extend_from_slice(&chunk[..length]),
            _ => return,
        }
    }
}

/// An event in short form, if it is this container's. Processes are named by exec id, init by `init`.
fn describe(envelope: &Envelope, container: &str) -> Option<String> {
    let event = envelope.event.as_ref()?;
    let (id, text) = match envelope.topic.as_str() {
        "/tasks/create" => {
            (any::unpack::<messages::TaskCreate>(event).ok()?.container_id, "create".to_owned())
        }
        "/tasks/start" => (any::unpack::<messages::TaskStart>(event).ok()?.container_id, "start".to_owned()),
        "/tasks/exec-added" => {
            let event: messages::TaskExecAdded = any::unpack(event).ok()?;
            (event.container_id, format!("exec-added {}", event.exec_id))
        }
        "/tasks/exec-started" => {
            let event: messages::TaskExecStarted = any::unpack(event).ok()?;
            (event.container_id, format!("exec-started {}", event.exec_id))
        }
        "/tasks/exit" => {
            let event: messages::TaskExit = any::unpack(event).ok()?;
            let name = if event.id == event.container_id { "init" } else { &event.id };
            let text = format!("exit {name} {}", event.exit_status);
            (event.container_id, text)
        }
        "/tasks/delete" => {
            let event: messages::TaskDelete = any::unpack(event).ok()?;
            (event.container_id, format!("delete {}", event.exit_status))
        }
        "/tasks/paused" => {
            (any::unpack::<messages::TaskPaused>(event).ok()?.container_id, "paused".to_owned())
        }
        "/tasks/resumed" => {
            (any::unpack::<messages::TaskResumed>(event).ok()?.container_id, "resumed".to_owned())
        }
        "/tasks/checkpointed" => {
            let event: messages::TaskCheckpointed = any::unpack(event).ok()?;
            (event.container_id, format!("checkpointed {}", event.checkpoint))
        }
        "/tasks/oom" => (any::unpack::<messages::TaskOom>(event).ok()?.container_id, "oom".to_owned()),
        other => panic!("unknown topic {other}"),
    };
    (id == container).then_some(text)
}
