//! The Sandbox service of a pod's shim. The pod is no process of its own: what its containers share is made by whoever
//! makes their configurations, and the shim itself is what runs for it from its creation to its end, in the pod's namespaces.

mod place;

use std::time::SystemTime;

use orlop_proto::containerd::runtime::sandbox::v1 as api;
use orlop_proto::containerd::runtime::sandbox::v1::sandbox_ttrpc as method;
use orlop_proto::containerd::types::Platform;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;

pub use self::place::Place;
use crate::service::message;
use crate::task::Call;

/// What a client asks of the pod.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Make it.
    Create {
        /// Under this id.
        id: String,
        /// In these namespaces.
        place: Place,
    },
    /// Start it.
    Start(String),
    /// What may run in it?
    Platform,
    /// End it, leaving its containers to the Task service.
    Stop(String),
    /// Answer when it has ended.
    Wait(String),
    /// How is it?
    Status(String),
    /// Is the shim there?
    Ping,
    /// End the shim, if no container is left.
    Shutdown,
    /// What does it use? Its containers tell that themselves.
    Metrics,
}

/// Reads a request.
///
/// # Errors
///
/// `Unimplemented` for other methods; `InvalidArgument` for what is no such message.
pub fn decode(name: &str, payload: &[u8]) -> Result<Command> {
    Ok(match name {
        method::CREATE_SANDBOX => {
            let request: api::CreateSandboxRequest = message(payload)?;
            let place = Place::of(&request)?;
            Command::Create { id: request.sandbox_id, place }
        }
        method::START_SANDBOX => Command::Start(message::<api::StartSandboxRequest>(payload)?.sandbox_id),
        method::PLATFORM => Command::Platform,
        method::STOP_SANDBOX => Command::Stop(message::<api::StopSandboxRequest>(payload)?.sandbox_id),
        method::WAIT_SANDBOX => Command::Wait(message::<api::WaitSandboxRequest>(payload)?.sandbox_id),
        method::SANDBOX_STATUS => Command::Status(message::<api::SandboxStatusRequest>(payload)?.sandbox_id),
        method::PING_SANDBOX => Command::Ping,
        method::SHUTDOWN_SANDBOX => Command::Shutdown,
        method::SANDBOX_METRICS => Command::Metrics,
        other => return Err(Error::new(Kind::Unimplemented, format!("method {other}"), "")),
    })
}

/// An answer on its way to a caller.
type Answer = (Call, Result<Vec<u8>>);

/// The pod of a shim, if there is one.
#[derive(Default)]
pub struct Sandbox {
    pod: Option<Pod>,
    /// Who waits for the pod's end.
    waiting: Vec<Call>,
}

struct Pod {
    id: String,
    created: SystemTime,
    started: bool,
    stopped: Option<SystemTime>,
}

impl Sandbox {
    /// Takes a request; what is to be answered now, to this and earlier callers.
    pub fn step(&mut self, call: Call, command: Command, now: SystemTime) -> Vec<Answer> {
        let reply = match command {
            Command::Create { id, .. } => self.create(id, now).map(|()| Vec::new()),
            Command::Start(id) => self.pod(&id).map(|pod| {
                pod.started = true;
                let (pid, created_at) = (std::process::id(), Some(pod.created.into()));
                api::StartSandboxResponse { pid, created_at, ..Default::default() }.encode_to_vec()
            }),
            Command::Platform => {
                let (os, architecture) = ("linux".to_owned(), architecture().to_owned());
                let platform = Platform { os, architecture, ..Platform::default() };
                Ok(api::PlatformResponse { platform: Some(platform) }.encode_to_vec())
            }
            Command::Stop(id) => match self.pod(&id) {
                Ok(_) => return self.stop(now).into_iter().chain([(call, Ok(Vec::new()))]).collect(),
                Err(error) => Err(error),
            },
            Command::Wait(id) => match self.pod(&id) {
                Ok(Pod { stopped: Some(at), .. }) => Ok(waited(*at)),
                Ok(_) => {
                    self.waiting.push(call);
                    return Vec::new();
                }
                Err(error) => Err(error),
            },
            Command::Status(id) => self.pod(&id).map(|pod| pod.status().encode_to_vec()),
            Command::Ping | Command::Metrics => Ok(Vec::new()),
            Command::Shutdown => return self.stop(now).into_iter().chain([(call, Ok(Vec::new()))]).collect(),
        };
        vec![(call, reply)]
    }

    /// Where a request has the shim go first.
    pub fn wants_place<'a>(&self, command: &'a Command) -> Option<&'a Place> {
        match command {
            Command::Create { place, .. } if self.pod.is_none() => Some(place),
            _ => None,
        }
    }

    /// Nobody waits on a connection that has ended.
    pub fn forget(&mut self, connection: u64) {
        self.waiting.retain(|call| call.connection != connection);
    }

    fn create(&mut self, id: String, now: SystemTime) -> Result<()> {
        if let Some(pod) = &self.pod {
            return Err(Error::new(Kind::AlreadyExists, "sandbox", pod.id.clone()));
        }
        self.pod = Some(Pod { id, created: now, started: false, stopped: None });
        Ok(())
    }

    fn pod(&mut self, id: &str) -> Result<&mut Pod> {
        match &mut self.pod {
            Some(pod) if pod.id == id => Ok(pod),
            _ => Err(Error::new(Kind::NotFound, "sandbox", id)),
        }
    }

    fn stop(&mut self, now: SystemTime) -> Vec<Answer> {
        let Some(pod) = &mut self.pod else { return Vec::new() };
        let at = *pod.stopped.get_or_insert(now);
        self.waiting.drain(..).map(|call| (call, Ok(waited(at)))).collect()
    }
}

impl Pod {
    fn status(&self) -> api::SandboxStatusResponse {
        let runs = self.started && self.stopped.is_none();
        api::SandboxStatusResponse {
            sandbox_id: self.id.clone(),
            pid: std::process::id(),
            // The names of the Kubernetes CRI.
            state: if runs { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" }.to_owned(),
            created_at: Some(self.created.into()),
            exited_at: self.stopped.map(Into::into),
            ..Default::default()
        }
    }
}

fn waited(at: SystemTime) -> Vec<u8> {
    api::WaitSandboxResponse { exit_status: 0, exited_at: Some(at.into()) }.encode_to_vec()
}

/// This machine's architecture, as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn call(stream: u32) -> Call {
        Call { connection: 1, stream, deadline: None }
    }

    fn only(answers: Vec<Answer>) -> Result<Vec<u8>> {
        assert_eq!(answers.len(), 1);
        answers.into_iter().next().unwrap().1
    }

    #[test]
    fn waiters_hear_of_the_end_once() {
        let mut sandbox = Sandbox::default();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        only(sandbox.step(call(1), Command::Create { id: "p".into(), place: Place::default() }, now))
            .unwrap();
        only(sandbox.step(call(3), Command::Start("p".into()), now)).unwrap();
        assert!(sandbox.step(call(5), Command::Wait("p".into()), now).is_empty());
        let gone = Call { connection: 2, stream: 1, deadline: None };
        assert!(sandbox.step(gone, Command::Wait("p".into()), now).is_empty());
        sandbox.forget(2);
        let later = now + Duration::from_secs(1);
        let answers = sandbox.step(call(7), Command::Stop("p".into()), later);
        assert_eq!(answers.iter().map(|(call, _)| call.stream).collect::<Vec<_>>(), [5, 7]);
        let told =
            |reply: Result<Vec<u8>>| api::WaitSandboxResponse::decode(reply.unwrap().as_slice()).unwrap();
        let at = told(answers.into_iter().next().unwrap().1).exited_at.unwrap();
        assert_eq!(at.seconds, 6);
        // Whoever asks later hears the same.
        only(sandbox.step(call(9), Command::Stop("p".into()), later + Duration::from_secs(9))).unwrap();
        assert_eq!(told(only(sandbox.step(call(11), Command::Wait("p".into()), later))).exited_at, Some(at));
    }

    #[test]
    fn one_pod_and_no_other() {
        let mut sandbox = Sandbox::default();
        let now = SystemTime::now();
        let kind = |answers: Vec<Answer>| only(answers).unwrap_err().kind();
        assert_eq!(kind(sandbox.step(call(1), Command::Status("p".into()), now)), Kind::NotFound);
        only(sandbox.step(call(3), Command::Create { id: "p".into(), place: Place::default() }, now))
            .unwrap();
        assert_eq!(
            kind(sandbox.step(call(5), Command::Create { id: "p".into(), place: Place::default() }, now)),
            Kind::AlreadyExists
        );
        assert_eq!(kind(sandbox.step(call(7), Command::Wait("q".into()), now)), Kind::NotFound);
        assert_eq!(decode("Dance", &[]).unwrap_err().kind(), Kind::Unimplemented);
        assert_eq!(decode("CreateSandbox", &[0xff]).unwrap_err().kind(), Kind::InvalidArgument);
    }
}
