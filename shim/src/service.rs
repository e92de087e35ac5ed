//! ttrpc requests into commands and replies into responses: the Task service in its packages v2 and v3, whose messages
//! are the same on the wire, and the Sandbox service.

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::CheckpointOptions;
use orlop_proto::containerd::runtime::sandbox::v1::sandbox_ttrpc;
use orlop_proto::containerd::task::v2 as api;
use orlop_proto::containerd::task::v2::task_ttrpc as method;
use orlop_proto::containerd::task::v3::task_ttrpc as v3;
use orlop_proto::containerd::v1::types::Status;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::ttrpc;
use prost::Message;
use serde_json::Value;

use crate::sandbox;
use crate::task::{Checkpoint, Command, Reply, State, Stdio};

/// What a client asks the shim for.
pub enum Request {
    /// Make a container.
    Create(Box<api::CreateTaskRequest>),
    /// Something about an existing container.
    Task {
        /// The container's id.
        id: String,
        /// What.
        command: Command,
    },
    /// Who is there?
    Connect {
        /// The container's id.
        id: String,
    },
    /// End, if no container is left.
    Shutdown,
    /// Something about the pod that the shim's containers make.
    Sandbox(sandbox::Command),
}

/// Reads a request.
pub fn decode(request: &ttrpc::Request) -> Result<Request> {
    if request.service == sandbox_ttrpc::SERVICE {
        return sandbox::decode(&request.method, &request.payload).map(Request::Sandbox);
    }
    if request.service != method::SERVICE && request.service != v3::SERVICE {
        let text = format!("service {}", request.service);
        return Err(Error::new(Kind::Unimplemented, text, ""));
    }
    let payload = request.payload.as_slice();
    let (id, command) = match request.method.as_str() {
        method::CREATE => return Ok(Request::Create(Box::new(message(payload)?))),
        method::CONNECT => {
            let api::ConnectRequest { id } = message(payload)?;
            return Ok(Request::Connect { id });
        }
        method::SHUTDOWN => return Ok(Request::Shutdown),
        method::START => {
            let api::StartRequest { id, exec_id: exec } = message(payload)?;
            (id, Command::Start { exec })
        }
        method::DELETE => {
            let api::DeleteRequest { id, exec_id: exec } = message(payload)?;
            (id, Command::Delete { exec })
        }
        method::EXEC => exec(message(payload)?)?,
        method::STATE => {
            let api::StateRequest { id, exec_id: exec } = message(payload)?;
            (id, Command::State { exec })
        }
        method::KILL => {
            let api::KillRequest { id, exec_id: exec, signal, all } = message(payload)?;
            (id, Command::Kill { exec, signal: signal as i32, all })
        }
        method::WAIT => {
            let api::WaitRequest { id, exec_id: exec } = message(payload)?;
            (id, Command::Wait { exec })
        }
        method::PIDS => (message::<api::PidsRequest>(payload)?.id, Command::Pids),
        method::STATS => (message::<api::StatsRequest>(payload)?.id, Command::Stats),
        method::PAUSE => (message::<api::PauseRequest>(payload)?.id, Command::Pause),
        method::RESUME => (message::<api::ResumeRequest>(payload)?.id, Command::Resume),
        method::CHECKPOINT => checkpoint(message(payload)?)?,
        method::RESIZE_PTY => {
            let api::ResizePtyRequest { id, exec_id: exec, width, height } = message(payload)?;
            (id, Command::ResizePty { exec, rows: height as u16, columns: width as u16 })
        }
        method::CLOSE_IO => {
            let api::CloseIoRequest { id, exec_id: exec, .. } = message(payload)?;
            (id, Command::CloseStdin { exec })
        }
        method::UPDATE => {
            let api::UpdateTaskRequest { id, resources, .. } = message(payload)?;
            let resources = resources.unwrap_or_default().value;
            let _: serde::de::IgnoredAny = serde_json::from_slice(&resources)
                .map_err(|e| Error::because(Kind::InvalidArgument, "decode resources", "", e))?;
            (id, Command::Update { resources })
        }
        other => return Err(Error::new(Kind::Unimplemented, format!("method {other}"), "")),
    };
    Ok(Request::Task { id, command })
}

/// Decodes a request's message.
pub fn message<M: Message + Default>(payload: &[u8]) -> Result<M> {
    M::decode(payload).map_err(|e| Error::because(Kind::InvalidArgument, "decode request", "", e))
}

/// A checkpoint, whose options are the runtime's flags.
fn checkpoint(request: api::CheckpointTaskRequest) -> Result<(String, Command)> {
    let options: CheckpointOptions = match &request.options {
        Some(any) if any::is::<CheckpointOptions>(any) => any::unpack(any)?,
        _ => CheckpointOptions::default(),
    };
    let switches = [
        (options.open_tcp, "--tcp-established"),
        (options.external_unix_sockets, "--ext-unix-sk"),
        (options.terminal, "--shell-job"),
        (options.file_locks, "--file-locks"),
    ];
    let switches = switches.into_iter().filter_map(|(is_set, flag)| is_set.then_some(flag.to_owned()));
    let mut flags: Vec<String> = switches.collect();
    for namespace in options.empty_namespaces {
        flags.extend(["--empty-ns".to_owned(), namespace]);
    }
    if !options.cgroups_mode.is_empty() {
        flags.extend(["--manage-cgroups-mode".to_owned(), options.cgroups_mode]);
    }
    let images = if request.path.is_empty() { options.image_path } else { request.path };
    let checkpoint = Checkpoint { images, work: options.work_path, exit: options.exit, flags };
    Ok((request.id, Command::Checkpoint(checkpoint)))
}

/// An exec, whose specification is an OCI process as JSON; the request decides on the terminal.
fn exec(request: api::ExecProcessRequest) -> Result<(String, Command)> {
    check_name("exec id", &request.exec_id)?;
    let invalid = |e| Error::because(Kind::InvalidArgument, "decode process", "", e);
    let spec = request.spec.unwrap_or_default().value;
    let mut spec: serde_json::Map<String, Value> = serde_json::from_slice(&spec).map_err(invalid)?;
    spec.insert("terminal".to_owned(), Value::Bool(request.terminal));
    let spec = serde_json::to_vec(&spec).map_err(invalid)?;
    let stdio = Stdio {
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
        terminal: request.terminal,
    };
    Ok((request.id, Command::Exec { exec: request.exec_id, stdio, spec }))
}

/// Refuses an id that is no plain file name: it becomes part of paths in the bundle.
pub fn check_name(what: &'static str, name: &str) -> Result<()> {
    let plain = !name.is_empty()
        && name.len() <= 255
        && name != "."
        && name != ".."
        && !name.contains(['/', '\0'])
        && !name.starts_with('-');
    if plain {
        return Ok(());
    }
    Err(Error::because(Kind::InvalidArgument, what, format!("{name:?}"), "not a valid identifier"))
}

/// A reply's bytes on the wire.
pub fn encode(reply: Reply) -> Vec<u8> {
    match reply {
        Reply::Empty => Vec::new(),
        Reply::Pid(pid) => api::StartResponse { pid: pid as u32 }.encode_to_vec(),
        Reply::Deleted { pid, exit } => api::DeleteResponse {
            pid: pid as u32,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| exit.at.into()),
        }
        .encode_to_vec(),
        Reply::Waited(exit) => {
            api::WaitResponse { exit_status: exit.status, exited_at: Some(exit.at.into()) }.encode_to_vec()
        }
        Reply::State(snapshot) => api::StateResponse {
            id: snapshot.id,
            exec_id: snapshot.exec,
            bundle: snapshot.bundle,
            pid: snapshot.pid as u32,
            status: match snapshot.state {
                State::Created => Status::Created,
                State::Running => Status::Running,
                State::Pausing => Status::Pausing,
                State::Paused => Status::Paused,
                State::Stopped => Status::Stopped,
            } as i32,
            stdin: snapshot.stdio.stdin,
            stdout: snapshot.stdio.stdout,
            stderr: snapshot.stdio.stderr,
            terminal: snapshot.stdio.terminal,
            exit_status: snapshot.exit.map_or(0, |exit| exit.status),
            exited_at: snapshot.exit.map(|exit| exit.at.into()),
        }
        .encode_to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use prost_types::Any;

    use super::*;

    fn request(service: &str, method: &str, payload: Vec<u8>) -> ttrpc::Request {
        ttrpc::Request { service: service.into(), method: method.into(), payload, ..Default::default() }
    }

    #[test]
    fn both_packages_are_served() {
        for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
            let payload = api::KillRequest { id: "c".into(), signal: 9, all: true, ..Default::default() };
            match decode(&request(service, "Kill", payload.encode_to_vec())).unwrap() {
                Request::Task { id, command } => {
                    assert_eq!(id, "c");
                    assert_eq!(command, Command::Kill { exec: String::new(), signal: 9, all: true });
                }
                _ => panic!("not a command"),
            }
        }
    }

    #[test]
    fn unknown_services_and_methods_are_unimplemented() {
        let kind = |service, method| decode(&request(service, method, Vec::new())).err().unwrap().kind();
        assert_eq!(kind("containerd.task.v1.Task", "Kill"), Kind::Unimplemented);
        assert_eq!(kind("containerd.task.v2.Task", "Dance"), Kind::Unimplemented);
    }

    #[test]
    fn a_checkpoints_options_are_flags() {
        let options = CheckpointOptions {
            exit: true,
            open_tcp: true,
            empty_namespaces: vec!["network".into()],
            work_path: "/w".into(),
            ..CheckpointOptions::default()
        };
        let asked = api::CheckpointTaskRequest {
            id: "c".into(),
            path: "/i".into(),
            options: Some(any::pack(&options)),
        };
        match decode(&request("containerd.task.v2.Task", "Checkpoint", asked.encode_to_vec())).unwrap() {
            Request::Task { command: Command::Checkpoint(checkpoint), .. } => {
                assert_eq!((checkpoint.images.as_str(), checkpoint.work.as_str()), ("/i", "/w"));
                assert_eq!(checkpoint.flags, ["--tcp-established", "--empty-ns", "network"]);
                assert!(checkpoint.exit);
            }
            _ => panic!("not a checkpoint"),
        }
    }

    #[test]
    fn the_request_decides_on_an_execs_terminal() {
        let spec =
            Any { type_url: any::PROCESS_URL.into(), value: br#"{"args":["sh"],"terminal":false}"#.to_vec() };
        let exec = api::ExecProcessRequest {
            id: "c".into(),
            exec_id: "e".into(),
            terminal: true,
            spec: Some(spec),
            ..Default::default()
        };
        match decode(&request("containerd.task.v2.Task", "Exec", exec.encode_to_vec())).unwrap() {
            Request::Task { command: Command::Exec { spec, .. }, .. } => {
                let spec: Value = serde_json::from_slice(&spec).unwrap();
                assert_eq!((&spec["terminal"], &spec["args"][0]), (&Value::Bool(true), &"sh".into()));
            }
            _ => panic!("not an exec"),
        }
    }

    #[test]
    fn names_that_could_leave_the_bundle_are_refused() {
        for name in ["", ".", "..", "a/b", "../x", "-x", "a\0b"] {
            assert_eq!(check_name("id", name).unwrap_err().kind(), Kind::InvalidArgument, "{name:?}");
        }
        assert!(check_name("id", "a.b_c-d").is_ok());
    }
}
