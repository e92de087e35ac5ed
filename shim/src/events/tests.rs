use std::os::unix::net::UnixListener;

use super::*;

const ID: &str = "c";

fn publish(publisher: &mut Publisher, poller: &Poller, event: Event) {
    let stdio = Stdio::default();
    let subject = Subject { container: ID, bundle: "/b", stdio: &stdio, rootfs: &[], checkpoint: "" };
    let (topic, any) = encode(&event, subject);
    publisher.publish(poller, topic, any);
}

/// Reads one request and answers it.
fn serve_one(stream: &mut UnixStream, answer: Result<Vec<u8>>) -> Envelope {
    let mut bytes = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        if let Some((header, payload, _)) = ttrpc::next_frame(&bytes).unwrap() {
            let request = Request::decode(payload).unwrap();
            assert_eq!(
                (request.service.as_str(), request.method.as_str()),
                (events_ttrpc::SERVICE, "Forward")
            );
            assert_eq!(request.metadata[0].key, "containerd-namespace-ttrpc");
            let frame = ttrpc::frame(header.stream_id, FrameType::Response, &Response::of(answer));
            stream.write_all(&frame).unwrap();
            return ForwardRequest::decode(request.payload.as_slice()).unwrap().envelope.unwrap();
        }
        let length = stream.read(&mut chunk).unwrap();
        assert!(length > 0, "the publisher hung up");
        bytes.extend_from_slice(&chunk[..length]);
    }
}

#[test]
fn delivers_in_order_over_one_connection() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let poller = Poller::new().unwrap();
    let mut publisher = Publisher::new(&format!("unix://{}", path.display()), "ns");
    publish(&mut publisher, &poller, Event::Start { pid: 7 });
    let exit = crate::task::Exit { status: 3, at: SystemTime::UNIX_EPOCH };
    publish(&mut publisher, &poller, Event::Exit { exec: "e".into(), pid: 8, exit });
    let (mut stream, _) = listener.accept().unwrap();
    let first = serve_one(&mut stream, Ok(Vec::new()));
    assert_eq!((first.topic.as_str(), first.namespace.as_str()), ("/tasks/start", "ns"));
    assert!(first.timestamp.is_some());
    let start: messages::TaskStart = any::unpack(&first.event.unwrap()).unwrap();
    assert_eq!((start.container_id.as_str(), start.pid), (ID, 7));
    publisher.advance(&poller);
    let second = serve_one(&mut stream, Ok(Vec::new()));
    let exit: messages::TaskExit = any::unpack(&second.event.unwrap()).unwrap();
    assert_eq!((exit.id.as_str(), exit.exit_status), ("e", 3));
    publisher.advance(&poller);
    assert!(publisher.is_idle() && publisher.wakes_at().is_none());
}

#[test]
fn a_manager_that_is_away_costs_no_event() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let poller = Poller::new().unwrap();
    let mut publisher = Publisher::new(path.to_str().unwrap(), "ns");
    publish(&mut publisher, &poller, Event::Paused);
    for _ in 0..2 * ATTEMPTS {
        publisher.not_before = None;
        publisher.advance(&poller);
    }
    assert!(publisher.wakes_at().is_some());
    let listener = UnixListener::bind(&path).unwrap();
    publisher.not_before = None;
    publisher.advance(&poller);
    let (mut stream, _) = listener.accept().unwrap();
    assert_eq!(serve_one(&mut stream, Ok(Vec::new())).topic, "/tasks/paused");
    publisher.advance(&poller);
    assert!(publisher.is_idle());
}

#[test]
fn a_manager_that_refuses_is_asked_a_few_times() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let poller = Poller::new().unwrap();
    let mut publisher = Publisher::new(path.to_str().unwrap(), "ns");
    publish(&mut publisher, &poller, Event::Resumed);
    for _ in 0..ATTEMPTS {
        let (mut stream, _) = listener.accept().unwrap();
        serve_one(&mut stream, Err(Error::new(Kind::Unimplemented, "Forward", "")));
        publisher.advance(&poller);
        publisher.not_before = None;
        publisher.advance(&poller);
    }
    assert!(publisher.is_idle());
}

#[test]
fn the_queue_is_bounded() {
    let poller = Poller::new().unwrap();
    let mut publisher = Publisher::new("/nonexistent/socket", "ns");
    for _ in 0..QUEUE_LIMIT + 10 {
        publish(&mut publisher, &poller, Event::Paused);
    }
    assert_eq!((publisher.queue.len(), publisher.lost), (QUEUE_LIMIT, 10));
}
