//! The content service over the wire.

use orlop_proto::containerd::services::content::v1 as content;
use orlop_tests::image::digest;
use orlop_tests::{Daemon, Orlopd, Root};
use tonic::Code;

use crate::client::{Client, Put, pieces};

fn start() -> (Root, Orlopd, Client) {
    let root = Root::new();
    let daemon = Orlopd::start(&root);
    let client = Client::new(daemon.address(), "one");
    (root, daemon, client)
}

fn stat(reference: &str, expected: &str) -> content::WriteContentRequest {
    content::WriteContentRequest { r#ref: reference.into(), expected: expected.into(), ..Default::default() }
}

#[test]
fn a_blob_is_written_and_read_in_ranges() {
    let (_root, _daemon, client) = start();
    let bytes: Vec<u8> = (0..1_500_000_u32).flat_map(u32::to_le_bytes).collect();
    let name = digest(&bytes);
    let put = Put {
        reference: "r",
        total: bytes.len() as i64,
        expected: &name,
        labels: &[("containerd.io/gc.root", "now")],
    };
    let answer = client.put(&put, &bytes, 3 << 20).unwrap();
    assert_eq!((answer.digest.as_str(), answer.offset), (name.as_str(), bytes.len() as i64));
    assert_eq!(client.blob(&name).unwrap(), bytes);
    let range = client.read(&name, 1000, 600_000).unwrap();
    assert_eq!(range[0].offset, 0, "offsets count from the start of the range");
    assert!(range.iter().all(|message| message.data.len() <= 1 << 20));
    assert_eq!(range.into_iter().flat_map(|message| message.data).collect::<Vec<_>>(), &bytes[1000..601_000]);
    let tail = client.read(&name, bytes.len() as i64 - 3, 100).unwrap();
    assert_eq!(tail[0].data, bytes[bytes.len() - 3..]);
    assert!(client.read(&name, bytes.len() as i64, 0).unwrap().is_empty());
    let error = client.read(&name, bytes.len() as i64 + 1, 0).unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::OutOfRange, "read past object length 6000000 bytes"));

    let error = client.put(&put, &bytes, 3 << 20).unwrap_err();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert_eq!(error.message(), format!("content {name}: already exists"));
}

#[test]
fn wrong_content_is_refused_and_leaves_no_blob() {
    let (_root, _daemon, client) = start();
    let other = digest(b"other");
    let put = Put { reference: "r", expected: &other, ..Put::default() };
    let error = client.put(&put, b"hello", 100).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let text =
        format!("unexpected commit digest {}, expected {other}: failed precondition", digest(b"hello"));
    assert_eq!(error.message(), text);
    let error = client.put(&Put { reference: "s", total: 4, ..Put::default() }, b"hello", 100).unwrap_err();
    assert_eq!(error.message(), "\"s\" failed size validation: 5 != 4: failed precondition");
    assert!(client.digests().unwrap().is_empty());
    let error = client.blob(&digest(b"hello")).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let error = client.write(vec![stat("", "")]).unwrap_err();
    assert_eq!(error.message(), "first message must have a reference");
    let error = client.write(vec![stat("t", "sha256:abc")]).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[test]
fn a_write_goes_on_after_a_kill() {
    let (_root, mut daemon, client) = start();
    let bytes = vec![7; 1 << 20];
    let name = digest(&bytes);
    let mut messages = vec![stat("r", &name)];
    messages.extend(pieces(0, &bytes[..700_000], 100_000));
    let answers = client.write(messages).unwrap();
    assert_eq!(answers.last().unwrap().offset, 700_000);
    daemon.kill();
    daemon.restart();
    let client = Client::new(daemon.address(), "one");
    let status = client.status("r").unwrap();
    assert_eq!((status.offset, status.expected.as_str()), (700_000, name.as_str()));
    let mut messages = vec![stat("r", &name)];
    messages.extend(pieces(700_000, &bytes[700_000..], 100_000));
    messages.push(content::WriteContentRequest {
        action: content::WriteAction::Commit.into(),
        offset: bytes.len() as i64,
        expected: name.clone(),
        ..Default::default()
    });
    let answers = client.write(messages).unwrap();
    assert_eq!(answers[0].offset, 700_000);
    assert_eq!(answers[0].digest, digest(&bytes[..700_000]));
    assert_eq!(client.blob(&name).unwrap(), bytes);
    assert_eq!(client.status("r").unwrap_err().code(), Code::NotFound);
}

#[test]
fn a_message_over_the_limit_is_refused_and_others_are_served() {
    let (_root, _daemon, client) = start();
    let bytes = vec![1; 17 << 20];
    let error = client.put(&Put { reference: "r", ..Put::default() }, &bytes, 17 << 20).unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange, "{error}");
    assert!(client.digests().unwrap().is_empty());
    client.put(&Put { reference: "s", ..Put::default() }, &bytes, 15 << 20).unwrap();
}
