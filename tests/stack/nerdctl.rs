//! nerdctl 2.x on orlopd, and on the newest containerd with our shim, built from Go's module proxy by `make newest`: its usual
//! commands, with no network and the host's. `make test` leaves it out and says so. Later versions need a module that the proxy
//! does not have (docs/known-gaps.md).

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use orlop_tests::{
    Cmd, Containerd, Daemon, Image, Orlopd, Output, Registry, Root, Variant, binaries, go, poll_until,
};

use crate::newest;

const MODULE: &str = "github.com/containerd/nerdctl/v2";
/// The one place that says which nerdctl.
const VERSION: &str = "v2.1.2";
/// What Go's checksum database says of the module.
const SUM: &str = "h1:ykM+PtsTUWplav2vmf/YxyMwiAdEsaLM0FgkM4d95+c=";
const DEADLINE: Duration = Duration::from_secs(60);

/// Builds it once, as a tool of an empty module: its own go.mod has lines that only count for the main module.
fn build() -> PathBuf {
    let directory = binaries::target_dir().join("newest").join(format!("nerdctl-{VERSION}"));
    let program = directory.join("nerdctl");
    if program.exists() {
        return program;
    }
    let part = directory.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).unwrap();
    fs::write(part.join("go.mod"), "module build\n\ngo 1.24\n").unwrap();
    let answer = go(&part).args(["mod", "download", "-json", &format!("{MODULE}@{VERSION}")]).run().success();
    let answer: serde_json::Value = serde_json::from_str(&answer.stdout).expect("JSON from go");
    assert_eq!(answer["Sum"], SUM, "the module is another one");
    let package = format!("{MODULE}/cmd/nerdctl");
    go(&part).args(["get", &format!("{package}@{VERSION}")]).run().success();
    go(&part).args(["build", "-trimpath", "-ldflags", "-s -w", "-o", "nerdctl", &package]).run().success();
    let _ = fs::remove_dir_all(&directory);
    fs::rename(&part, &directory).unwrap();
    program
}

struct Nerdctl<'a, D> {
    program: PathBuf,
    daemon: &'a D,
    root: &'a Root,
}

impl<D: Daemon> Nerdctl<'_, D> {
    fn run(&self, words: &[&str]) -> Output {
        Cmd::new(&self.program)
            .arg("--address")
            .arg(self.daemon.address())
            .args([
                "--namespace",
                self.daemon.namespace(),
                "--insecure-registry",
                "--cgroup-manager",
                "cgroupfs",
            ])
            .arg("--data-root")
            .arg(self.root.join("nerdctl"))
            .arg("--cni-netconfpath")
            .arg(self.root.join("cni"))
            .args(words)
            .run()
    }

    /// What a command that succeeds prints.
    fn print(&self, words: &[&str]) -> String {
        self.run(words).success().stdout.trim().to_owned()
    }
}

#[test]
fn newest_nerdctl_pulls_runs_and_removes_on_orlopd() {
    if std::env::var_os("ORLOP_NEWEST").is_none() {
        println!("not run: nerdctl {VERSION}; `make newest` runs it");
        return;
    }
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    walk(&root, &daemon);
    daemon.stop();
    root.assert_clean();
}

#[test]
fn newest_nerdctl_pulls_runs_and_removes_on_the_newest_containerd_with_our_shim() {
    if std::env::var_os("ORLOP_NEWEST").is_none() {
        println!("not run: nerdctl {VERSION}; `make newest` runs it");
        return;
    }
    let root = Root::new();
    let programs = newest::build();
    let mut daemon = Containerd::start_as(
        &root,
        &Variant {
            containerd: Some(programs.join("containerd")),
            client: Some(programs.join("ctr")),
            links: vec![(binaries::shim(), "containerd-shim-runc-v2".to_owned())],
            ..Variant::default()
        },
    );
    walk(&root, &daemon);
    daemon.stop();
    root.assert_clean();
}

/// What people do with it, and what it says.
fn walk(root: &Root, daemon: &impl Daemon) {
    let registry = Registry::start(root);
    let image = Image::two_layers().push(&registry, "nerd", "1");
    let nerdctl = Nerdctl { program: build(), daemon, root };

    nerdctl.run(&["pull", "--quiet", &image]).success();
    assert!(nerdctl.print(&["images"]).contains("/nerd"));
    assert_eq!(nerdctl.print(&["run", "--rm", "--network", "none", &image, "cat", "/etc/changed"]), "two");
    let failed = nerdctl.run(&["run", "--rm", "--network", "none", &image, "sh", "-c", "exit 7"]);
    assert_eq!(failed.code(), 7, "{failed}");

    let script = "echo out; echo err >&2; exec sleep 1000";
    nerdctl.run(&["run", "-d", "--name", "long", "--network", "host", &image, "sh", "-c", script]).success();
    assert!(nerdctl.print(&["ps"]).contains("long"));
    poll_until(DEADLINE, "both lines are logged", || {
        let logs = nerdctl.run(&["logs", "long"]).success();
        logs.stdout.contains("out") && logs.stderr.contains("err")
    });
    assert_eq!(nerdctl.print(&["exec", "long", "cat", "/etc/changed"]), "two");
    assert!(nerdctl.run(&["exec", "long", "sh", "-c", "exit 3"]).failure().stderr.contains("exit code 3"));
    assert_eq!(nerdctl.print(&["inspect", "--format", "{{.State.Status}}", "long"]), "running");
    assert!(nerdctl.print(&["stats", "--no-stream", "long"]).contains("long"));
    assert!(nerdctl.print(&["top", "long"]).contains("sleep"));
    let copy = root.join("copy");
    nerdctl.run(&["cp", "long:/etc/kept", copy.to_str().unwrap()]).success();
    assert_eq!(fs::read_to_string(copy).unwrap(), "kept\n");
    for verb in ["pause", "unpause"] {
        nerdctl.run(&[verb, "long"]).success();
    }
    nerdctl.run(&["exec", "long", "sh", "-c", "echo mine > /mine"]).success();
    nerdctl.run(&["commit", "long", "made:1"]).success();
    assert_eq!(nerdctl.print(&["run", "--rm", "--network", "none", "made:1", "cat", "/mine"]), "mine");
    nerdctl.run(&["stop", "--time", "1", "long"]).success();
    assert!(nerdctl.print(&["ps", "-a"]).contains("Exited (137)"));
    nerdctl.run(&["start", "long"]).success();
    nerdctl.run(&["kill", "long"]).success();
    assert_eq!(nerdctl.print(&["wait", "long"]), "137");
    nerdctl.run(&["rm", "long"]).success();

    nerdctl.run(&["volume", "create", "shared"]).success();
    let volume = ["run", "--rm", "--network", "none", "-v", "shared:/shared", &image, "sh", "-c"];
    nerdctl.run(&[&volume[..], &["echo kept > /shared/file"]].concat()).success();
    assert_eq!(nerdctl.print(&[&volume[..], &["cat /shared/file"]].concat()), "kept");
    nerdctl.run(&["volume", "rm", "shared"]).success();

    let pushed = format!("{}/again:1", registry.address());
    nerdctl.run(&["tag", "made:1", &pushed]).success();
    nerdctl.run(&["push", &pushed]).success();
    let archive = root.join("saved.tar");
    nerdctl.run(&["save", "-o", archive.to_str().unwrap(), &pushed]).success();
    nerdctl.run(&["rmi", "-f", &pushed, "made:1"]).success();
    nerdctl.run(&["load", "-i", archive.to_str().unwrap()]).success();
    assert_eq!(nerdctl.print(&["run", "--rm", "--network", "none", &pushed, "cat", "/mine"]), "mine");
    nerdctl.run(&["rmi", "-f", &pushed, &image]).success();
    assert!(!nerdctl.print(&["images"]).contains("/nerd"));
}
