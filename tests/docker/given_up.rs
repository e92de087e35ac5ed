//! Clients that go in the middle of something: it ends, and nothing is left of it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use orlop_tests::{Cmd, Daemon, binaries, poll_until};

use super::side::Side;

/// A request whose answer nobody has read yet.
fn ask(side: &Side, path: &str, length: usize) -> UnixStream {
    let mut stream = UnixStream::connect(side.root.join("docker.sock")).expect("connecting");
    let head = format!("POST {path} HTTP/1.1\r\nHost: docker\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("asking");
    stream
}

/// Waits until there is no lease, no file system of work in between and no file of a build.
fn leaves_nothing(side: &mut Side) {
    let (address, files) = (side.manager().address().to_owned(), side.manager().root().join("docker/build"));
    let list = |what: &[&str]| {
        let ctr = Cmd::new(binaries::system("ctr")).arg("-a").arg(&address);
        ctr.args(["-n", "moby"]).args(what).run().success().stdout
    };
    poll_until(Duration::from_secs(30), "nothing of what was given up", || {
        let snapshots = list(&["snapshots", "list"]);
        let is_between = ["build-", "import-", "-commit-"].iter().any(|part| snapshots.contains(part));
        let has_files = std::fs::read_dir(&files).is_ok_and(|mut entries| entries.next().is_some());
        !is_between && !has_files && list(&["leases", "list", "--quiet"]).is_empty()
    });
}

#[test]
fn a_commit_that_is_given_up_lets_its_container_go_on() {
    let mut side = Side::orlopd();
    // What takes a while to compress.
    side.says("$run --detach --name busy bb sh -c 'head -c 67108864 /dev/urandom >/big; exec sleep 1000'");
    poll_until(Duration::from_secs(60), "the file", || {
        side.run("$docker exec busy stat -c %s /big").stdout == "67108864\n"
    });
    let status = "$docker inspect --format '{{.State.Status}}' busy";
    let stream = ask(&side, "/commit?container=busy&repo=never", 0);
    poll_until(Duration::from_secs(30), "the pause", || side.says(status) == "paused");
    stream.shutdown(Shutdown::Both).expect("going");
    drop(stream);
    poll_until(Duration::from_secs(30), "the end of the pause", || side.says(status) == "running");
    leaves_nothing(&mut side);
    assert_eq!(side.says("$docker images --quiet never"), "");
    side.says("$docker rm --force busy");
    side.finish();
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    let mut side = Side::orlopd();
    side.says("mkdir $dir/up && head -c 100000 /dev/zero >$dir/up/a && echo 'FROM bb' >$dir/up/Dockerfile && tar -C $dir/up -cf $dir/up.tar .");
    let archive = std::fs::read(side.root.join("up.tar")).expect("the archive");
    for path in ["/build?t=never", "/images/create?fromSrc=-&repo=never"] {
        let mut stream = ask(&side, path, archive.len());
        stream.write_all(&archive[..50_000]).expect("sending");
        stream.shutdown(Shutdown::Both).expect("going");
        drop(stream);
        leaves_nothing(&mut side);
    }
    assert_eq!(side.says("$docker images --quiet never"), "");
    side.finish();
}

#[test]
fn a_build_that_waits_for_a_server_ends_with_its_client() {
    let mut side = Side::orlopd();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let begins = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx";
    for (is_source, answer) in [(true, ""), (true, begins), (false, ""), (false, begins)] {
        let line =
            format!("printf 'FROM bb\nADD http://{address}/x /x\n' | exec $docker build --network none -");
        let client: Box<dyn std::any::Any> = match is_source {
            true => Box::new(side.shell(&line).spawn()),
            false => Box::new(ask(&side, &format!("/build?remote=http://{address}/context.tar"), 0)),
        };
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a deadline");
        let mut request = [0; 512];
        assert_ne!(stream.read(&mut request).expect("a request"), 0);
        stream.write_all(answer.as_bytes()).expect("answering");
        drop(client);
        // The engine hangs up; what it had not read by then makes a reset of that.
        loop {
            match stream.read(&mut request) {
                Ok(0) => break,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                read => drop(read.expect("an end")),
            }
        }
        leaves_nothing(&mut side);
    }
    side.finish();
}
