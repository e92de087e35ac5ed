//! Garbage on the manager's sockets: connections are closed, the manager goes on serving.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use orlop_tests::{Daemon, Orlopd, Root};

use crate::for_a_while;

/// HTTP/2's connection preface and an empty SETTINGS frame: what comes after them is read as frames.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// A ttrpc request for stream 1 that claims 20 bytes.
const TTRPC: &[u8] = b"\0\0\0\x14\0\0\0\x01\x01\0\x0a\x08services\x12\x06method";

#[test]
fn garbage_on_a_socket_is_survived() {
    let root = Root::new();
    let mut orlopd = Orlopd::start(&root);
    let grpc = orlopd.address().to_owned();
    let mut ttrpc = grpc.clone().into_os_string();
    ttrpc.push(".ttrpc");
    for_a_while("sockets", |random| {
        let (path, seed) =
            if random.below(2) == 0 { (grpc.as_os_str(), PREFACE) } else { (ttrpc.as_os_str(), TTRPC) };
        let mut bytes = seed.to_vec();
        bytes.extend((0..random.below(200)).map(|_| random.next() as u8));
        random.mutate_bytes(&mut bytes);
        let mut stream = UnixStream::connect(path).expect("the manager takes connections");
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.read(&mut [0; 1024]);
    });
    orlopd.ctr(["namespaces", "ls"]).run().success();
    orlopd.stop();
    root.assert_clean();
}
