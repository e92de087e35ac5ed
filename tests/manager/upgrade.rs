//! The daemon is replaced while containers run, and takes up what an older one left.
//!
//! `ORLOP_OLDER` names the older build; without it the present one takes its place, from a file of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_tests::{Cmd, Daemon, Image, Orlopd, Root, Variant, binaries, host, poll_until};

const DEADLINE: Duration = Duration::from_secs(60);

fn older() -> PathBuf {
    std::env::var_os("ORLOP_OLDER").map_or_else(binaries::orlopd, PathBuf::from)
}

/// Puts a program where another one is, as installing does: who runs the old file keeps it. A process of its own writes it: what this
/// one has open for writing, the children of other tests may have too, and nothing that is being written can be executed.
fn install(program: &Path, at: &Path) {
    let next = at.with_extension("next");
    Cmd::new("cp").args([program, &next]).run().success();
    fs::rename(next, at).unwrap();
}

#[test]
fn containers_go_on_while_orlopd_is_upgraded() {
    let root = Root::new();
    let program = root.join("orlopd");
    install(&older(), &program);
    let variant = Variant { program: Some(program.clone()), ..Variant::default() };
    let mut daemon = Orlopd::start_as(&root, "", &variant);
    let archive = root.join("image.tar");
    Image::busybox().oci_archive(&archive, "example.org/busybox:1");
    daemon.ctr(["images", "import"]).arg(archive).run().success();
    let shared = root.join("shared");
    fs::create_dir(&shared).unwrap();
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:rw", shared.display());
    let run = |id: &str, script: &str| {
        let args =
            ["run", "-d", "--null-io", "--mount", &mount, "example.org/busybox:1", id, "sh", "-c", script];
        daemon.ctr(args).run().success();
    };
    run("counts", "i=0; while :; do i=$((i+1)); echo $i >/mnt/count; sleep 0.05; done");
    run("ends", "while [ ! -e /mnt/end ]; do sleep 0.05; done; exit 7");
    let pid = |daemon: &Orlopd, id: &str| -> i32 {
        let tasks = daemon.ctr(["tasks", "ls"]).run().success().stdout;
        let row = tasks.lines().find(|line| line.starts_with(&format!("{id} "))).unwrap();
        row.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let (counts, ends) = (pid(&daemon, "counts"), pid(&daemon, "ends"));

    install(&binaries::orlopd(), &program);
    let stopped = daemon.stop().unwrap();
    assert_eq!(stopped.code(), 0, "{stopped}");
    // Nobody is there when it ends.
    fs::write(shared.join("end"), "").unwrap();
    poll_until(DEADLINE, "the container ends without a manager", || !host::alive(ends));
    let count = || fs::read_to_string(shared.join("count")).unwrap_or_default();
    let before = count();
    poll_until(DEADLINE, "the other one goes on", || count() != before);
    daemon.restart();

    let running = fs::read_link(format!("/proc/{}/exe", daemon.pid().unwrap())).unwrap();
    assert_eq!(running, program, "the new file runs");
    assert_eq!(pid(&daemon, "counts"), counts);
    let exec = daemon.ctr(["tasks", "exec", "--exec-id", "e", "counts", "sh", "-c", "echo in; exit 3"]).run();
    assert_eq!((exec.code(), exec.stdout.as_str()), (3, "in\n"), "{exec}");
    poll_until(DEADLINE, "the exit is known", || {
        let tasks = daemon.ctr(["tasks", "ls"]).run().success().stdout;
        tasks.lines().any(|line| line.starts_with("ends ") && line.contains("STOPPED"))
    });
    let deleted = daemon.ctr(["tasks", "delete", "ends"]).run();
    assert!(deleted.stderr.contains("exit code 7"), "{deleted}");
    daemon.orlopctl(["tasks", "rm", "-f", "counts"]).run().success();
    for id in ["counts", "ends"] {
        daemon.orlopctl(["containers", "rm", id]).run().success();
    }
    daemon.orlopctl(["run", "--rm", "example.org/busybox:1", "new", "true"]).run().success();
    daemon.stop();
    root.assert_clean();
}

/// A root directory as the first layout of the database had it: two images, one with a container, a lease that holds a blob, and
/// a volume and a network of the Docker API.
const VERSION_1: &[u8] = include_bytes!("fixtures/root-schema-1.tar.zst");

#[test]
fn the_root_of_an_older_version_is_taken_over() {
    let root = Root::new();
    let data = root.join("older");
    fs::create_dir(&data).unwrap();
    let mut archive = tar::Archive::new(zstd::Decoder::new(VERSION_1).unwrap());
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.unpack(&data).unwrap();
    let socket = root.join("docker.sock");
    let config = format!("[docker]\naddress = {socket:?}\n");
    let variant = Variant { data: Some(data), ..Variant::default() };
    let mut daemon = Orlopd::start_as(&root, &config, &variant);
    let ctl = |args: &[&str]| {
        let all = ["--address", &daemon.address().display().to_string(), "--namespace", "default"];
        Cmd::new(binaries::orlopctl()).args(all).args(args).run().success().stdout
    };
    let images = ctl(&["images", "ls", "-q"]);
    assert_eq!(images, "example.com/one:1\nexample.com/two:1\n");
    assert_eq!(ctl(&["containers", "ls", "-q"]), "kept\n");
    assert!(ctl(&["leases", "ls"]).contains("held"));
    let docker = |args: &[&str]| {
        let host = format!("unix://{}", socket.display());
        Cmd::new(binaries::system("docker")).args(["--host", &host]).args(args).run().success().stdout
    };
    assert!(docker(&["volume", "ls", "-q"]).lines().any(|name| name == "kept"));
    assert!(docker(&["network", "ls", "--format", "{{.Name}}"]).lines().any(|name| name == "kept"));
    assert_eq!(docker(&["ps", "-a", "--format", "{{.Names}}"]), "kept\n");
    let report: serde_json::Value = serde_json::from_str(&ctl(&["--format", "json", "fsck"])).unwrap();
    assert_eq!(report["damaged"], 0, "{report:#}");
    daemon.stop();
    root.assert_clean();
}
