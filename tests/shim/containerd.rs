//! Our shim under Debian's containerd, which is killed and started again.

use orlop_tests::{Containerd, Daemon, Image, Root, host, poll_until};

use orlop_tests::shim::DEADLINE;

const IMAGE: &str = "example.org/shim/busybox:1";
const RUNTIME: [&str; 2] = ["--runtime", "io.containerd.orlop.v1"];

fn start(root: &Root) -> Containerd {
    let containerd = Containerd::start(root);
    let archive = root.join("image.tar");
    Image::busybox().oci_archive(&archive, IMAGE);
    containerd.ctr(["images", "import"]).arg(archive).run().success();
    containerd
}

fn pid(containerd: &Containerd, id: &str) -> Option<i32> {
    let out = containerd.ctr(["tasks", "ls"]).run().success();
    let rows = out.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.first() == Some(&id)).find_map(|row| row.get(1)?.parse().ok())
}

#[test]
fn the_reference_manager_runs_containers_through_our_shim() {
    let root = Root::new();
    let mut containerd = start(&root);
    let run = containerd.ctr(["run", "--rm"]).args(RUNTIME).args([IMAGE, "fg", "sh", "-c"]);
    let out = run.arg("cat; echo complaint >&2; exit 7").input("through stdin\n").run();
    assert_eq!((out.code(), out.stdout.as_str()), (7, "through stdin\n"), "{out}");
    assert!(out.stderr.contains("complaint"), "{out}");
    containerd.stop();
    root.assert_clean();
}

#[test]
fn containers_survive_a_kill_of_the_reference_manager() {
    let root = Root::new();
    let mut containerd = start(&root);
    let detached = |id: &str, script: &str| {
        containerd.ctr(["run", "-d"]).args(RUNTIME).args([IMAGE, id, "sh", "-c", script]).run().success();
    };
    detached("stays", "sleep 1000");
    detached("ends", "while ! test -e /go; do sleep 0.05; done; exit 21");
    let (stays, ends) = (pid(&containerd, "stays").unwrap(), pid(&containerd, "ends").unwrap());
    containerd.kill();
    std::fs::write(format!("/proc/{ends}/root/go"), "").unwrap();
    poll_until(DEADLINE, "the container ends without its manager", || !host::alive(ends));
    assert!(host::alive(stays));
    containerd.restart();
    assert_eq!(pid(&containerd, "stays"), Some(stays));
    let out = containerd.ctr(["tasks", "delete", "ends"]).run();
    assert!(out.stderr.contains("exit with non-zero exit code 21"), "{out}");
    containerd.ctr(["containers", "delete", "ends"]).run().success();
    containerd.ctr(["tasks", "kill", "-s", "KILL", "stays"]).run().success();
    poll_until(DEADLINE, "the other container ends", || !host::alive(stays));
    containerd.ctr(["tasks", "delete", "stays"]).run();
    containerd.ctr(["containers", "delete", "stays"]).run().success();
    containerd.stop();
    root.assert_clean();
}
