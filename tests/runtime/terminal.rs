//! Terminals: the console socket, and a terminal of the caller's own.

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::json;

use super::support::{PATIENCE, Runtime};

/// The terminal's master that a runtime sends, with the name that it sends along.
fn receive(listener: &UnixListener) -> (File, String) {
    let (stream, _) = listener.accept().unwrap();
    let mut name = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut name)];
    let length = recvmsg(&stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut list) => list.next(),
        _ => None,
    });
    (descriptor.expect("a descriptor").into(), String::from_utf8_lossy(&name[..length]).into_owned())
}

/// Reads until the terminal's other side is closed.
fn read_all(master: &mut File) -> String {
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match master.read(&mut chunk) {
            Ok(0) | Err(_) => return String::from_utf8_lossy(&text).into_owned(),
            Ok(count) => text.extend_from_slice(&chunk[..count]),
        }
    }
}

#[test]
fn a_container_on_a_console_socket() {
    let runtime = Runtime::new();
    let path = runtime.root.join("console");
    let listener = UnixListener::bind(&path).unwrap();
    let script = "tty; stty size; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo tty; ls -l /dev/console | cut -c1; read line; echo \"got $line\"";
    let bundle = runtime.sh(script).edit(|config| {
        config["process"]["terminal"] = json!(true);
        config["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    });
    let bundle = bundle.save();
    let mut cmd = runtime.cmd().args(["create", "--console-socket"]).arg(&path);
    cmd = cmd.arg("-b").arg(bundle.path()).arg("c1");
    let process = cmd.spawn();
    let (mut master, name) = receive(&listener);
    assert!(process.wait(PATIENCE).status.success());
    assert!(name.starts_with("/dev/pts/") || name.starts_with("/dev/ptmx"), "{name}");
    runtime.call(&["start", "c1"]).success();
    master.write_all(b"word\n").unwrap();
    let text = read_all(&mut master);
    assert!(text.contains("tty\r\n"), "{text:?}");
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    assert!(lines.iter().any(|line| *line == "/dev/pts/0" || *line == "/dev/console"), "{text:?}");
    for line in ["33 77", "tty", "c", "got word"] {
        assert!(lines.contains(&line), "{line}: {text:?}");
    }
    runtime.wait_for("c1", "stopped");
    drop(listener);
    runtime.finish("c1");
}

#[test]
fn exec_on_a_console_socket() {
    let runtime = Runtime::new();
    runtime.detach(&runtime.sleeper().save(), "c1");
    let path = runtime.root.join("console");
    let listener = UnixListener::bind(&path).unwrap();
    let process = runtime
        .cmd()
        .args(["exec", "--tty", "--detach", "--console-socket"])
        .arg(&path)
        .args(["c1", "sh", "-c", "[ -t 1 ] && echo yes"])
        .spawn();
    let (mut master, _) = receive(&listener);
    assert!(process.wait(PATIENCE).status.success());
    // Whoever asked for the terminal gets its lines as terminals end them.
    assert!(read_all(&mut master).contains("yes\r\n"));
    drop(listener);
    runtime.finish("c1");
}

#[test]
fn run_on_the_callers_terminal() {
    let runtime = Runtime::new();
    let bundle =
        runtime.sh("[ -t 0 ] && [ -t 1 ] && echo both; stty size; read line; echo \"got $line\"; exit 5");
    let bundle = bundle.edit(|config| config["process"]["terminal"] = json!(true)).save();
    let size = nix::pty::Winsize { ws_row: 21, ws_col: 43, ws_xpixel: 0, ws_ypixel: 0 };
    let pair = nix::pty::openpty(&size, None).unwrap();
    let streams = [(); 3].map(|()| pair.slave.try_clone().unwrap());
    let process = runtime
        .cmd()
        .args(["run", "-b"])
        .arg(bundle.path())
        .arg("c1")
        .with(|command| {
            let [input, output, error] = streams;
            command.stdin(input).stdout(output).stderr(error);
        })
        .keep_stdio()
        .spawn();
    drop(pair.slave);
    let mut master = File::from(pair.master);
    master.write_all(b"word\n").unwrap();
    let reader = std::thread::spawn(move || read_all(&mut master));
    assert_eq!(process.wait(PATIENCE).code(), 5);
    let text = reader.join().unwrap();
    for word in ["both", "got word"] {
        assert!(text.contains(word), "{text:?}");
    }
    // The container's terminal does not turn line ends round once more: runc switches that off.
    assert!(!text.contains("\r\r\n"), "{text:?}");
    runtime.assert_clean();
}
