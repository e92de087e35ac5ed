//! What a person does with containers, by Debian's `ctr`, with every answer checked. The same on every combination of
//! manager, shim and runtime.

use std::fs;
use std::time::Duration;

use orlop_tests::{Daemon, Image, Root, poll_until};

pub const DEADLINE: Duration = Duration::from_secs(30);

/// Makes the two-layer image and imports it; returns its name.
pub fn import_image(root: &Root, daemon: &impl Daemon) -> String {
    let (archive, name) = (root.join("image.tar"), "example.org/stack/two:1");
    Image::two_layers().oci_archive(&archive, name);
    daemon.ctr(["images", "import"]).arg(archive).run().success();
    name.to_owned()
}

/// The column STATUS of `ctr tasks ls` for a container, or nothing where it has no task.
pub fn status(daemon: &impl Daemon, container: &str) -> String {
    let out = daemon.ctr(["tasks", "ls"]).run().success();
    let row = out
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|row| row.first() == Some(&container));
    row.and_then(|row| row.get(2).map(|status| (*status).to_owned())).unwrap_or_default()
}

/// The column PID of `ctr tasks ls`.
pub fn pid(daemon: &impl Daemon, container: &str) -> i32 {
    let out = daemon.ctr(["tasks", "ls"]).run().success();
    let row = out
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|row| row.first() == Some(&container));
    row.and_then(|row| row.get(1)?.parse().ok()).unwrap_or_else(|| panic!("no task {container}: {out}"))
}

/// Runs one container in the foreground, and one in the background through its whole life. `flags` choose the runtime.
pub fn exercise(root: &Root, daemon: &impl Daemon, image: &str, flags: &[&str]) {
    foreground(daemon, image, flags);
    detached(root, daemon, image, flags);
}

fn foreground(daemon: &impl Daemon, image: &str, flags: &[&str]) {
    let script = "cat /etc/changed; ls /etc/deleted 2>/dev/null || echo gone; echo complaint >&2; exit 7";
    let out = daemon.ctr(["run", "--rm"]).args(flags).args([image, "fg", "sh", "-c", script]).run();
    assert_eq!((out.code(), out.stdout.as_str()), (7, "two\ngone\n"), "{out}");
    assert!(out.stderr.contains("complaint"), "{out}");
    let left = daemon.ctr(["containers", "ls", "-q"]).run().success();
    assert_eq!(left.stdout, "", "run --rm leaves no container");
}

fn detached(root: &Root, daemon: &impl Daemon, image: &str, flags: &[&str]) {
    let shared = root.join("shared");
    fs::create_dir_all(&shared).unwrap();
    fs::write(shared.join("from-host"), "from the host\n").unwrap();
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:rw", shared.display());
    daemon
        .ctr([
            "run",
            "-d",
            "--null-io",
            "--env",
            "GREETING=hello",
            "--memory-limit",
            "67108864",
            "--mount",
            &mount,
        ])
        .args(flags)
        .args([image, "bg", "sleep", "1000"])
        .run()
        .success();
    assert_eq!(status(daemon, "bg"), "RUNNING");

    let script = "echo $GREETING; cat /mnt/from-host; echo from the container >/mnt/from-container; exit 3";
    let out = daemon.ctr(["tasks", "exec", "--exec-id", "e1", "bg", "sh", "-c", script]).run();
    assert_eq!((out.code(), out.stdout.as_str()), (3, "hello\nfrom the host\n"), "{out}");
    assert_eq!(fs::read_to_string(shared.join("from-container")).unwrap(), "from the container\n");

    let metrics = daemon.ctr(["tasks", "metrics", "bg"]).run().success();
    assert!(
        metrics.stdout.contains("memory.usage_in_bytes") || metrics.stdout.contains("memory.usage"),
        "{metrics}"
    );
    let ps = daemon.ctr(["tasks", "ps", "bg"]).run().success();
    assert!(ps.stdout.contains(&pid(daemon, "bg").to_string()), "{ps}");

    daemon.ctr(["tasks", "pause", "bg"]).run().success();
    assert_eq!(status(daemon, "bg"), "PAUSED");
    daemon.ctr(["tasks", "resume", "bg"]).run().success();
    assert_eq!(status(daemon, "bg"), "RUNNING");

    daemon.ctr(["tasks", "kill", "-s", "KILL", "bg"]).run().success();
    poll_until(DEADLINE, "the container has stopped", || status(daemon, "bg") == "STOPPED");
    let delete = daemon.ctr(["tasks", "delete", "bg"]).run();
    assert!(delete.stderr.contains("exit code 137"), "{delete}");
    assert_eq!(status(daemon, "bg"), "");
    daemon.ctr(["containers", "rm", "bg"]).run().success();
    let snapshots = daemon.ctr(["snapshots", "ls"]).run().success();
    assert!(!snapshots.stdout.contains("bg"), "{snapshots}");
}
