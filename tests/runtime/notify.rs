//! sd_notify(3) from within a container.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_tests::{Bundle, Cmd};
use serde_json::json;

use super::support::Runtime;

/// The manager's side.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(runtime: &Runtime) -> Manager {
        let path = runtime.root.join("manager");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Manager { socket, path }
    }

    /// The next message. A descriptor that came with it is closed unseen, which answers a barrier.
    fn hear(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// Ends, and says whether nothing is left to hear.
    fn has_heard_all(self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        self.socket.recv(&mut [0; 16]).is_err()
    }
}

/// A container with the host's perl, whose program sends these messages to its socket and goes on.
fn bundle(runtime: &Runtime, messages: &[&str]) -> Bundle {
    let sends: Vec<_> =
        messages.iter().map(|text| format!("send($s, \"{text}\", 0, $to) or die $!;")).collect();
    let script = format!(
        "use Socket; socket(my $s, PF_UNIX, SOCK_DGRAM, 0) or die $!; my $to = sockaddr_un($ENV{{NOTIFY_SOCKET}}); {} sleep 1000",
        sends.join(" ")
    );
    let host = ["/usr", "/lib", "/lib64"].map(Path::new).into_iter().filter(|path| path.exists());
    host.fold(runtime.sleeper().args(["/usr/bin/perl", "-e", &script]), |bundle, path| {
        bundle.mount(json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]}))
    })
}

/// That the program is ready, among other things. runc finds it in the first line alone.
fn ready(runtime: &Runtime) -> String {
    let first = if runtime.is_reference() { "" } else { "STATUS=soon\\n" };
    format!("{first}READY=1\\nMAINPID=1")
}

/// Debian's runc has no barrier yet.
fn hear_barrier(runtime: &Runtime, manager: &Manager) {
    if !runtime.is_reference() {
        assert_eq!(manager.hear(), "BARRIER=1");
    }
}

fn with_manager(cmd: Cmd, manager: &Manager) -> Cmd {
    cmd.env("NOTIFY_SOCKET", &manager.path)
}

#[test]
fn start_passes_on_that_the_program_is_ready_and_who_it_is() {
    let runtime = Runtime::new();
    let manager = Manager::new(&runtime);
    // The manager believes its runtime, and a container may not say which process that is.
    let bundle = bundle(&runtime, &["MAINPID=1", &ready(&runtime)]).save();
    let path = bundle.path().display().to_string();
    with_manager(runtime.cmd(), &manager).args(["create", "--bundle", &path, "c1"]).run().success();
    let start = with_manager(runtime.cmd(), &manager).args(["start", "c1"]).spawn();
    assert_eq!(manager.hear(), "READY=1\n");
    assert_eq!(manager.hear(), format!("MAINPID={}\n", runtime.pid("c1")));
    hear_barrier(&runtime, &manager);
    start.wait(Duration::from_secs(60)).success();
    assert!(manager.has_heard_all());
    runtime.finish("c1");
}

#[test]
fn a_detached_run_does_so_too() {
    let runtime = Runtime::new();
    let manager = Manager::new(&runtime);
    let bundle = bundle(&runtime, &["READY=1"]).save();
    let path = bundle.path().display().to_string();
    let run = with_manager(runtime.cmd(), &manager).args(["run", "-d", "--bundle", &path, "c1"]).spawn();
    assert_eq!(manager.hear(), "READY=1\n");
    assert_eq!(manager.hear(), format!("MAINPID={}\n", runtime.pid("c1")));
    hear_barrier(&runtime, &manager);
    run.wait(Duration::from_secs(60)).success();
    assert!(manager.has_heard_all());
    runtime.finish("c1");
}

#[test]
fn a_run_that_stays_is_itself_the_managers_process() {
    let runtime = Runtime::new();
    // runc looks for a process 0 after a tenth of a second, finds none and listens no more.
    if runtime.is_reference() {
        return;
    }
    let manager = Manager::new(&runtime);
    let bundle = bundle(&runtime, &["STATUS=soon", "READY=1"]).save();
    let path = bundle.path().display().to_string();
    let run = with_manager(runtime.cmd(), &manager).args(["run", "--bundle", &path, "c1"]).spawn();
    assert_eq!(manager.hear(), "READY=1\n");
    runtime.call(&["kill", "c1", "KILL"]).success();
    assert_eq!(run.wait(Duration::from_secs(60)).code(), 137);
    assert!(manager.has_heard_all());
    runtime.assert_clean();
}

#[test]
fn a_program_that_ends_unready_is_not_waited_for() {
    let runtime = Runtime::new();
    // runc looks for the process in /proc, where it stays until its parent has waited for it.
    if runtime.is_reference() {
        return;
    }
    let manager = Manager::new(&runtime);
    let path = runtime.sh("ls -d /run/notify; echo $NOTIFY_SOCKET").save();
    let path = path.path().display().to_string();
    let out = with_manager(runtime.cmd(), &manager).args(["run", "--bundle", &path, "c1"]).run();
    assert_eq!(out.success().stdout, "/run/notify\n/run/notify/notify.sock\n");
    with_manager(runtime.cmd(), &manager)
        .args(["create", "--bundle", &path, "c1"])
        .keep_stdio()
        .run()
        .success();
    with_manager(runtime.cmd(), &manager).args(["start", "c1"]).run().success();
    runtime.call(&["delete", "--force", "c1"]).success();
    assert!(manager.has_heard_all());
    assert!(fs::read_dir(runtime.state_dir()).unwrap().next().is_none());
    runtime.assert_clean();
}

#[test]
fn a_container_made_without_a_manager_starts_under_one() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let manager = Manager::new(&runtime);
    runtime.create(&runtime.sleeper().save(), "c1");
    with_manager(runtime.cmd(), &manager).args(["start", "c1"]).run().success();
    assert!(manager.has_heard_all());
    runtime.finish("c1");
}
