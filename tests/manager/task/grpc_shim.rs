//! A shim that speaks gRPC: ours, behind a bridge that the test serves.

use std::convert::Infallible;
use std::fs;
use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_proto::ttrpc::{self, FrameType, Request, Response};
use orlop_tests::{binaries, host, poll_until};
use prost::Message;
use prost::bytes::{Buf, BufMut};
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Code, Status};

use super::{DEADLINE, Stage};
use crate::plugins::Plugin;

const TASK: &str = "containerd.task.v3.Task";

/// Hands calls on to the shim whose answer to `start` is in a file.
#[derive(Clone)]
struct Bridge {
    answer: PathBuf,
    method: String,
}

fn socket(answer: &Path) -> Option<PathBuf> {
    let answer: serde_json::Value = serde_json::from_slice(&fs::read(answer).ok()?).ok()?;
    answer["address"].as_str()?.strip_prefix("unix://").map(PathBuf::from)
}

/// Asks a shim by ttrpc, on a connection of its own.
fn ask(answer: &Path, method: &str, payload: Vec<u8>) -> Result<Vec<u8>, Status> {
    let gone = |error: std::io::Error| Status::unavailable(error.to_string());
    let socket = socket(answer).ok_or_else(|| Status::unavailable("not started"))?;
    let mut stream = UnixStream::connect(socket).map_err(gone)?;
    let request =
        Request { service: TASK.to_owned(), method: method.to_owned(), payload, ..Request::default() };
    stream.write_all(&ttrpc::frame(1, FrameType::Request, &request)).map_err(gone)?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        if let Some((_, payload, _)) = ttrpc::next_frame(&bytes).expect("a frame") {
            let response = Response::decode(payload).expect("a whole response");
            return match response.status {
                Some(status) if status.code != 0 => Err(Status::new(Code::from(status.code), status.message)),
                _ => Ok(response.payload),
            };
        }
        let length = stream.read(&mut chunk).map_err(gone)?;
        if length == 0 {
            return Err(Status::unavailable("the shim is gone"));
        }
        bytes.extend_from_slice(&chunk[..length]);
    }
}

impl NamedService for Bridge {
    const NAME: &'static str = TASK;
}

impl Service<http::Request<Body>> for Bridge {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let bridge = Bridge { method, ..self.clone() };
        Box::pin(async move { Ok(Grpc::new(Plain).unary(bridge, request).await) })
    }
}

impl UnaryService<Vec<u8>> for Bridge {
    type Response = Vec<u8>;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<Vec<u8>>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<Vec<u8>>) -> Self::Future {
        assert!(request.metadata().contains_key("containerd-namespace"));
        let Bridge { answer, method } = self.clone();
        Box::pin(async move {
            let asked = tokio::task::spawn_blocking(move || ask(&answer, &method, request.into_inner()));
            asked.await.expect("no panic").map(tonic::Response::new)
        })
    }
}

/// Messages as their bytes.
#[derive(Clone, Copy, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Plain;
    type Decoder = Plain;

    fn encoder(&mut self) -> Plain {
        Plain
    }

    fn decoder(&mut self) -> Plain {
        Plain
    }
}

impl Encoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining()).to_vec()))
    }
}

/// A bridge whose connections end with the shim behind it, and the program that starts both.
fn bridge(stage: &mut Stage, name: &str) -> Plugin {
    let (answer, place) =
        (stage.root.join(format!("{name}.answer")), stage.root.join(format!("{name}.sock")));
    let program = stage.root.join(format!("{name}.sh"));
    let script = format!(
        "#!/bin/sh\nfor last; do :; done\ncase $last in\n-info) exit 1;;\n\
         start) got=$({shim} \"$@\") || exit; echo \"$got\" >{answer}.part; mv {answer}.part {answer}\n\
         printf '{{\"version\":3,\"address\":\"unix://%s\",\"protocol\":\"grpc\"}}' {place};;\n\
         *) exec {shim} \"$@\";;\nesac\n",
        shim = binaries::shim().display(),
        answer = answer.display(),
        place = place.display(),
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    stage.flags = vec!["--runtime".to_owned(), program.display().to_string()];
    let service = Bridge { answer: answer.clone(), method: String::new() };
    let ended = async move {
        let listens = || socket(&answer).is_some_and(|socket| UnixStream::connect(socket).is_ok());
        let mut had_started = false;
        while !had_started || listens() {
            had_started |= listens();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    Plugin::serve_until(&place, |mut server| server.add_service(service), ended)
}

#[test]
fn a_shim_that_speaks_grpc_runs_containers_through_restarts_of_the_daemon() {
    let mut stage = Stage::new("");
    let plugin = bridge(&mut stage, "bridge");
    stage.start("c");
    assert_eq!(stage.exec("c", "echo inside").run().success().stdout, "inside\n");
    assert_eq!(stage.exec("c", "exit 7").run().code(), 7);
    let refused = stage.ctr(&["tasks", "delete", "c"]).run().failure();
    assert!(refused.stderr.contains("must be stopped"), "{refused}");
    stage.orlopd.kill();
    stage.orlopd.restart();
    assert_eq!(stage.status("c"), "RUNNING");
    assert_eq!(stage.exec("c", "echo again").run().success().stdout, "again\n");
    stage.remove("c");
    drop(plugin);
    stage.finish();
}

#[test]
fn a_shim_that_speaks_grpc_and_dies_is_cleaned_up_after() {
    let mut stage = Stage::new("");
    let plugin = bridge(&mut stage, "bridge");
    stage.start("c");
    let (pid, _) = stage.task("c").unwrap();
    let shim = host::processes().into_iter().find(|process| process.pid == pid).unwrap().parent;
    let events = stage.events(&[]);
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    events.wait("/tasks/exit", &["\"c\""]);
    poll_until(DEADLINE, "the task is gone", || stage.task("c").is_none());
    drop(events);
    stage.ctr(&["containers", "rm", "c"]).run().success();
    drop(plugin);
    stage.finish();
}
