//! One runtime with a state directory of its own.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use orlop_tests::{Bundle, Cmd, Output, Root, binaries, poll_until, poll_value};
use serde_json::Value;

/// How long anything may take before a test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A runtime binary, its state below a test's root.
pub struct Runtime {
    pub root: Root,
    binary: PathBuf,
    bundles: AtomicU32,
}

impl Runtime {
    pub fn new() -> Runtime {
        Runtime { root: Root::new(), binary: binaries::orlop(), bundles: AtomicU32::new(0) }
    }

    /// Debian's runc, for comparison.
    pub fn reference() -> Runtime {
        Runtime { root: Root::new(), binary: binaries::system("runc"), bundles: AtomicU32::new(0) }
    }

    /// Whether the runtime under test is the reference itself.
    pub fn is_reference(&self) -> bool {
        self.binary.file_name().is_some_and(|name| name == "runc")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.root.join("state")
    }

    /// A bundle with busybox that runs a script.
    pub fn sh(&self, script: &str) -> Bundle {
        self.bundle().sh(script)
    }

    /// A bundle whose container lasts until it is killed.
    pub fn sleeper(&self) -> Bundle {
        self.bundle().args(["sleep", "1000"])
    }

    fn bundle(&self) -> Bundle {
        Bundle::new(&self.root, &format!("bundle{}", self.bundles.fetch_add(1, Ordering::Relaxed)))
    }

    /// A call with the global flags.
    pub fn cmd(&self) -> Cmd {
        Cmd::new(&self.binary).arg("--root").arg(self.state_dir())
    }

    pub fn call(&self, args: &[&str]) -> Output {
        self.cmd().args(args).run()
    }

    /// Runs a container in the foreground to its end.
    pub fn run(&self, bundle: &Bundle) -> Output {
        self.cmd().args(["run", "--bundle"]).arg(bundle.path()).arg("c1").run()
    }

    /// What a container prints, checked to succeed.
    #[track_caller]
    pub fn output(&self, bundle: &Bundle) -> String {
        self.run(bundle).success().stdout
    }

    /// Starts a container in the background.
    #[track_caller]
    pub fn detach(&self, bundle: &Bundle, id: &str) {
        self.cmd().args(["run", "--detach", "--bundle"]).arg(bundle.path()).arg(id).run().success();
    }

    #[track_caller]
    pub fn create(&self, bundle: &Bundle, id: &str) {
        self.cmd().args(["create", "--bundle"]).arg(bundle.path()).arg(id).run().success();
    }

    #[track_caller]
    pub fn state(&self, id: &str) -> Value {
        let out = self.call(&["state", id]).success();
        serde_json::from_str(&out.stdout).expect("state is JSON")
    }

    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap_or_default().to_owned()
    }

    pub fn pid(&self, id: &str) -> i32 {
        self.state(id)["pid"].as_i64().expect("a pid") as i32
    }

    pub fn wait_for(&self, id: &str, status: &str) {
        poll_until(PATIENCE, &format!("{id} becomes {status}"), || self.status(id) == status);
    }

    #[track_caller]
    pub fn exec(&self, id: &str, args: &[&str]) -> Output {
        self.cmd().args(["exec", id]).args(args).run()
    }

    /// Kills and deletes a container, and proves that nothing is left.
    #[track_caller]
    pub fn finish(&self, id: &str) {
        self.call(&["delete", "--force", id]).success();
        self.assert_clean();
    }

    /// Proves that neither processes, mounts, cgroups nor state are left.
    #[track_caller]
    pub fn assert_clean(&self) {
        self.root.assert_clean();
        let left: Vec<_> = std::fs::read_dir(self.state_dir())
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "state is left: {left:?}");
    }
}

/// Waits for a file to have content, and returns it.
pub fn content(path: &Path) -> String {
    poll_value(PATIENCE, &format!("{} has content", path.display()), || {
        std::fs::read_to_string(path).ok().filter(|text| !text.is_empty())
    })
}

/// The container's directory in a version 1 hierarchy, or in the version 2 one.
pub fn cgroup_file(bundle: &Bundle, controller: &str, file: &str) -> PathBuf {
    let path = bundle.config()["linux"]["cgroupsPath"].as_str().expect("a cgroups path");
    let hierarchy = if orlop_tests::host::cgroup_unified() { "" } else { controller };
    Path::new("/sys/fs/cgroup").join(hierarchy).join(path.trim_start_matches('/')).join(file)
}
