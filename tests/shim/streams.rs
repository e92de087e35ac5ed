//! Standard streams: FIFOs, terminals, files, logging programs, and readers that misbehave.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use orlop_proto::containerd::task::v2::*;
use orlop_tests::{Bundle, Root, poll_until};

use orlop_tests::shim::{DEADLINE, Fifos, Shim, read_available, read_to_end, reader, runtime, writer};

#[test]
fn all_three_streams_reach_their_ends() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "cat; echo complaint >&2; exit 6");
    let stdio = Fifos::make(&root, "c");
    let (out, err) = (reader(&stdio.stdout), reader(&stdio.stderr));
    shim.create(&stdio);
    shim.start_process("").unwrap();
    let mut input = writer(&stdio.stdin);
    input.write_all(b"through stdin\n").unwrap();
    drop(input);
    let close = CloseIoRequest { id: shim.id.clone(), exec_id: String::new(), stdin: true };
    shim.client.call::<()>("CloseIO", &close).unwrap();
    assert_eq!(read_to_end(out), "through stdin\n");
    assert_eq!(read_to_end(err), "complaint\n");
    assert_eq!(shim.wait(""), 6);
    shim.finish();
    root.assert_clean();
}

#[test]
fn stdin_ends_only_when_the_client_says_so() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    shim.run();
    let stdio = Fifos::make(&root, "e");
    let mut out = reader(&stdio.stdout);
    shim.exec("e", "cat", &stdio);
    shim.start_process("e").unwrap();
    let mut all = Vec::new();
    for line in ["one\n", "two\n"] {
        // Each writer goes away, which is no end of input.
        writer(&stdio.stdin).write_all(line.as_bytes()).unwrap();
        poll_until(DEADLINE, "the line comes back", || {
            read_available(&mut out, &mut all);
            all.ends_with(line.as_bytes())
        });
    }
    let close = CloseIoRequest { id: shim.id.clone(), exec_id: "e".into(), stdin: true };
    shim.client.call::<()>("CloseIO", &close).unwrap();
    assert_eq!(shim.wait("e"), 0);
    shim.finish();
    root.assert_clean();
}

fn terminal(name: &str) {
    let root = Root::new();
    let mut shim = Shim::start_with(&root, "c", &runtime(name), asking);
    let stdio = Fifos::terminal(&root, "c");
    let out = reader(&stdio.stdout);
    shim.create(&stdio);
    shim.start_process("").unwrap();
    sizes(&mut shim, writer(&stdio.stdin), out);
    // An exec has a terminal of its own.
    let stdio = Fifos::terminal(&root, "e");
    let output = reader(&stdio.stdout);
    shim.exec("e", "tty; exit 4", &stdio);
    shim.start_process("e").unwrap();
    assert_eq!(shim.wait("e"), 4);
    assert!(read_to_end(output).contains("/dev/pts/"));
    shim.finish();
    root.assert_clean();
}

/// Says the size of its terminal for each line that it reads.
pub fn asking(bundle: Bundle) -> Bundle {
    bundle
        .sh("while read line; do stty size; done")
        .edit(|config| config["process"]["terminal"] = true.into())
}

/// Sets the size of the terminal of a container that is [`asking`], which says it.
pub fn sizes(shim: &mut Shim, mut input: File, mut out: File) {
    let mut all = Vec::new();
    for (rows, columns) in [(24, 80), (50, 132)] {
        let resize =
            ResizePtyRequest { id: shim.id.clone(), exec_id: String::new(), width: columns, height: rows };
        shim.client.call::<()>("ResizePty", &resize).unwrap();
        input.write_all(b"\n").unwrap();
        let wanted = format!("{rows} {columns}");
        poll_until(DEADLINE, &format!("the terminal has {wanted}"), || {
            read_available(&mut out, &mut all);
            String::from_utf8_lossy(&all).contains(&wanted)
        });
    }
}

#[test]
fn terminals_are_resized_through_runc() {
    terminal("runc");
}

#[test]
fn terminals_are_resized_through_orlop() {
    terminal("orlop");
}

#[test]
fn much_output_makes_the_shim_no_bigger() {
    const BYTES: u64 = 2 << 30;
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    shim.run();
    let stdio = Fifos::output(&root, "e");
    let mut out = reader(&stdio.stdout);
    shim.exec("e", &format!("dd if=/dev/zero bs=65536 count={} 2>/dev/null", BYTES / 65536), &stdio);
    let pid = shim.pid();
    let before = crate::budget::anonymous(pid);
    shim.start_process("e").unwrap();
    // The shim holds the FIFO now, so that its end is the end of the output.
    fcntl(&out, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let count = std::io::copy(&mut out, &mut std::io::sink()).unwrap();
    assert_eq!(count, BYTES);
    assert_eq!(shim.wait("e"), 0);
    let growth = crate::budget::anonymous(pid).saturating_sub(before);
    assert!(growth <= 64, "{growth} KiB more");
    shim.finish();
    root.assert_clean();
}

#[test]
fn a_reader_that_never_comes_or_goes_holds_nothing_up() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    shim.run();
    let script = "head -c 3000000 /dev/zero; echo the end; exit 9";
    let stdio = Fifos::output(&root, "never");
    shim.exec("never", script, &stdio);
    shim.start_process("never").unwrap();
    assert_eq!(shim.wait("never"), 9);

    let stdio = Fifos::output(&root, "goes");
    let mut out = reader(&stdio.stdout);
    shim.exec("goes", script, &stdio);
    shim.start_process("goes").unwrap();
    let mut all = Vec::new();
    poll_until(DEADLINE, "some output", || {
        read_available(&mut out, &mut all);
        !all.is_empty()
    });
    drop(out);
    assert_eq!(shim.wait("goes"), 9);
    shim.finish();
    root.assert_clean();
}

#[test]
fn output_goes_to_a_file() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "echo one; echo two >&2");
    let path = root.join("logs/c.log");
    let uri = format!("file://{}", path.display());
    let stdio = Fifos { stdout: uri.clone(), stderr: uri, ..Fifos::default() };
    shim.create(&stdio);
    shim.start_process("").unwrap();
    shim.wait("");
    poll_until(DEADLINE, "both lines", || {
        fs::read_to_string(&path).is_ok_and(|text| text.contains("one\n") && text.contains("two\n"))
    });
    shim.finish();
    root.assert_clean();
}

#[test]
fn without_streams_there_is_nothing_to_read_and_nobody_to_write_to() {
    for name in ["orlop", "runc"] {
        let root = Root::new();
        // Input ends at once, and what is written goes to the null device of the host.
        let script = "read line && exit 1; echo lost || exit 2; [ -c /proc/self/fd/1 ] && [ -c /proc/self/fd/2 ] && exit 5";
        let mut shim = Shim::start_with(&root, "c", &runtime(name), |bundle| bundle.sh(script));
        shim.run();
        assert_eq!(shim.wait(""), 5, "{name}");
        shim.finish();
        root.assert_clean();
    }
}

#[test]
fn fifos_that_are_taken_away_cost_the_stream_and_no_more() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    shim.run();
    // Before the exec starts: its input is at its end, its output goes nowhere.
    let stdio = Fifos::make(&root, "gone");
    shim.exec("gone", "cat; echo out; exit 4", &stdio);
    for path in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        fs::remove_file(path).unwrap();
    }
    let error = shim.start_process("gone").unwrap_err();
    assert!(error.to_string().contains("no such file"), "{error}");
    assert_eq!(shim.wait("gone"), 255);
    // While it runs: who has it open goes on, and a writer of input that vanishes is no end of input.
    let stdio = Fifos::make(&root, "later");
    let mut out = reader(&stdio.stdout);
    shim.exec("later", "read a; echo $a; read b; echo $b; exit 6", &stdio);
    shim.start_process("later").unwrap();
    let mut all = Vec::new();
    let mut input = writer(&stdio.stdin);
    for path in [&stdio.stdin, &stdio.stdout, &stdio.stderr] {
        fs::remove_file(path).unwrap();
    }
    for line in ["one\n", "two\n"] {
        input.write_all(line.as_bytes()).unwrap();
        poll_until(DEADLINE, "the line comes back", || {
            read_available(&mut out, &mut all);
            all.ends_with(line.as_bytes())
        });
    }
    drop((input, out));
    assert_eq!(shim.wait("later"), 6);
    shim.finish();
    root.assert_clean();
}

#[test]
fn a_container_waits_for_its_logging_program() {
    let root = Root::new();
    let program = root.join("logger");
    let (go, log) = (root.join("go"), root.join("log"));
    // It is ready when it says so, or has gone.
    let script = format!(
        "#!/bin/sh\nwhile [ ! -e {} ]; do sleep 0.02; done\nexec 5>&-\ncat <&3 >{}\n",
        go.display(),
        log.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut shim = Shim::start(&root, "echo one");
    let uri = format!("binary://{}", program.display());
    let stdio = Fifos { stdout: uri.clone(), stderr: uri, ..Fifos::default() };
    let request = shim.create_request(&stdio);
    // A caller who gives up before it is ready has no container.
    let patience = std::time::Duration::from_millis(300);
    let pending = shim.client.send_as("containerd.task.v2.Task", "Create", &request, patience);
    let error = shim.client.receive::<CreateTaskResponse>(pending).unwrap_err();
    assert_eq!(error.kind(), orlop_proto::kind::Kind::DeadlineExceeded, "{error}");
    assert!(!shim.bundle.path().join("init.pid").exists());
    let pending = shim.client.send("Create", &request);
    assert!(!shim.client.has_answered(pending));
    fs::write(&go, "").unwrap();
    shim.client.receive::<CreateTaskResponse>(pending).unwrap();
    shim.start_process("").unwrap();
    shim.wait("");
    poll_until(DEADLINE, "the log", || fs::read_to_string(&log).is_ok_and(|text| text == "one\n"));
    shim.finish();
    root.assert_clean();
}

#[test]
fn output_goes_to_a_logging_program() {
    let root = Root::new();
    let program = root.join("logger");
    let script = "#!/bin/sh\nexec 5>&-\n{ echo \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\"; cat <&3; cat <&4; } >\"$2\"\n";
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut shim = Shim::start(&root, "echo one; echo two >&2");
    let path = root.join("log");
    let uri = format!("binary://{}?to={}", program.display(), path.display());
    let stdio = Fifos { stdout: uri.clone(), stderr: uri, ..Fifos::default() };
    shim.create(&stdio);
    shim.start_process("").unwrap();
    shim.wait("");
    let wanted = format!("{} {} to {}\none\ntwo\n", shim.id, root.tag(), path.display());
    poll_until(DEADLINE, "all of the log", || fs::read_to_string(&path).is_ok_and(|text| text == wanted));
    shim.finish();
    root.assert_clean();
}

#[test]
fn a_terminals_output_goes_to_a_logging_program() {
    for name in ["orlop", "runc"] {
        let root = Root::new();
        let (program, path) = (root.join("logger"), root.join("log"));
        let script = format!("#!/bin/sh\nexec 5>&-\ncat <&3 >>{}\n", path.display());
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let mut shim = Shim::start_with(&root, "c", &runtime(name), |bundle| {
            bundle.sh("tty").edit(|config| config["process"]["terminal"] = true.into())
        });
        let stdout = format!("binary://{}", program.display());
        let stdio = Fifos { stdout: stdout.clone(), terminal: true, ..Fifos::default() };
        shim.create(&stdio);
        shim.start_process("").unwrap();
        assert_eq!(shim.wait(""), 0);
        let is = |wanted: &str| fs::read_to_string(&path).is_ok_and(|text| text == wanted);
        // Lines of a terminal end with two characters.
        poll_until(DEADLINE, "the terminal's name", || is("/dev/pts/0\r\n"));
        shim.finish();
        root.assert_clean();
    }
}
