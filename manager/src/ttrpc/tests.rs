//! Client against server, and against peers that misbehave.

use std::path::Path;
use std::time::Duration;

use orlop_proto::containerd::types::Envelope;
use orlop_proto::ttrpc::{FrameType, Request, Response, frame};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;

use super::*;

fn listener(directory: &Path) -> (UnixListener, String) {
    let path = directory.join("s");
    (UnixListener::bind(&path).unwrap(), format!("unix://{}", path.display()))
}

fn envelope(topic: &str) -> Envelope {
    Envelope { topic: topic.to_owned(), ..Default::default() }
}

async fn call(client: &Client, topic: &str, deadline: Option<Duration>) -> Result<Envelope> {
    client.call("service", "Method", &envelope(topic), deadline).await
}

/// containerd's server ends a connection whose streams do not begin in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn streams_begin_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, address) = listener(directory.path());
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut last, mut ordered) = (0, true);
        while let Ok(Some((header, _))) = read_frame(&mut stream).await {
            ordered &= header.stream_id > last;
            last = header.stream_id;
            let answer = frame(header.stream_id, FrameType::Response, &Response::default());
            stream.write_all(&answer).await.unwrap();
        }
        ordered
    });
    let client = Client::connect(&address, "ns").await.unwrap();
    let calls: Vec<_> = (0..2000)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { call(&client, "x", None).await.unwrap() })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    drop(client);
    assert!(server.await.unwrap());
}

#[tokio::test]
async fn many_calls_at_once_and_errors_in_their_own_words() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, address) = listener(directory.path());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let handler = |request: &Request| {
        assert_eq!(request.metadata[0].value, "ns");
        let asked = Envelope::decode(request.payload.as_slice()).unwrap();
        match asked.topic.as_str() {
            "refuse" => Err(Error::new(Kind::NotFound, "process does not exist zz: not found", "")),
            _ => Ok(asked.encode_to_vec()),
        }
    };
    let server = tokio::spawn(serve(listener, handler, async move { stopped.await.unwrap() }));
    let client = Client::connect(&address, "ns").await.unwrap();
    let calls = (0..200).map(|n| {
        let client = client.clone();
        async move { (n, call(&client, &n.to_string(), None).await.unwrap()) }
    });
    for (n, answer) in futures_util::future::join_all(calls).await {
        assert_eq!(answer.topic, n.to_string());
    }
    let error = call(&client, "refuse", None).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(error.to_string(), "process does not exist zz: not found");

    assert!(!client.has_ended());
    stop.send(()).unwrap();
    server.await.unwrap();
    client.ended().await;
    assert_eq!(call(&client, "late", None).await.unwrap_err().kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_deaf_peer_costs_the_deadline_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, address) = listener(directory.path());
    let client = Client::connect(&address, "ns").await.unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();

    let error = call(&client, "a", Some(Duration::from_millis(20))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    // The first call's answer comes too late and must not be taken for the second's.
    let late = Response { payload: envelope("late").encode_to_vec(), ..Default::default() };
    let own = Response { payload: envelope("own").encode_to_vec(), ..Default::default() };
    let second = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "b", None).await }
    });
    peer.write_all(&frame(1, FrameType::Response, &late)).await.unwrap();
    for _ in 0..2 {
        read_frame(&mut peer).await.unwrap().unwrap();
    }
    peer.write_all(&frame(3, FrameType::Response, &own)).await.unwrap();
    assert_eq!(second.await.unwrap().unwrap().topic, "own");
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_no_torn_request() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, address) = listener(directory.path());
    let client = Client::connect(&address, "ns").await.unwrap();
    let (mut peer, _) = listener.accept().await.unwrap();
    // More than the kernel keeps for a peer that does not read.
    let large = "x".repeat(2 << 20);
    let error = call(&client, &large, Some(Duration::from_millis(20))).await.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    let second = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "b", None).await }
    });
    for (stream, topic) in [(1, large.as_str()), (3, "b")] {
        let (header, payload) = read_frame(&mut peer).await.unwrap().unwrap();
        let request = Request::decode(payload.as_slice()).unwrap();
        let sent = Envelope::decode(request.payload.as_slice()).unwrap();
        assert!(header.stream_id == stream && sent.topic == topic, "stream {}", header.stream_id);
    }
    let own = Response { payload: envelope("own").encode_to_vec(), ..Default::default() };
    peer.write_all(&frame(3, FrameType::Response, &own)).await.unwrap();
    assert_eq!(second.await.unwrap().unwrap().topic, "own");
}

#[tokio::test]
async fn garbage_and_hang_up_end_the_calls() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, address) = listener(directory.path());
    for reply in [&b"\xff\xff\xff\xff garbage, not a frame"[..], b""] {
        let client = Client::connect(&address, "ns").await.unwrap();
        let (mut peer, _) = listener.accept().await.unwrap();
        let waiting = tokio::spawn({
            let client = client.clone();
            async move { call(&client, "a", None).await }
        });
        read_frame(&mut peer).await.unwrap().unwrap();
        peer.write_all(reply).await.unwrap();
        drop(peer);
        assert_eq!(waiting.await.unwrap().unwrap_err().kind(), Kind::Unavailable);
        client.ended().await;
    }
    drop(listener);
    assert_eq!(Client::connect(&address, "ns").await.err().unwrap().kind(), Kind::Unavailable);
}
