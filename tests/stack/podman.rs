//! podman with our runtime. Each check runs on runc too: where it fails there, it says nothing about ours.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use orlop_tests::{Cmd, Output, Root, binaries, busybox_rootfs, host, poll_until};

struct Podman<'a> {
    root: &'a Root,
    runtime: &'a Path,
}

impl Podman<'_> {
    /// A call, with a word on its standard input: a container that ends before conmon has accepted its caller's connection would
    /// have written for nobody, and waits for the word.
    fn call(&self, args: &[&str]) -> Output {
        let dir = |name: &str| self.root.join("podman").join(name);
        Cmd::new(binaries::system("podman"))
            .arg("--root")
            .arg(dir("root"))
            .arg("--runroot")
            .arg(dir("run"))
            .arg("--tmpdir")
            .arg(dir("tmp"))
            .args(["--cgroup-manager", "cgroupfs", "--events-backend", "file", "--storage-driver", "overlay"])
            .arg("--runtime")
            .arg(self.runtime)
            .args(args)
            .env("XDG_RUNTIME_DIR", dir("xdg"))
            .input("go\n")
            .run()
    }

    /// `podman run` without a network and with cgroups that carry the root's tag. Its own limits of open files and processes
    /// are higher than a root without CAP_SYS_RESOURCE may set.
    fn run(&self, args: &[&str]) -> Output {
        let parent = format!("/{}", self.root.tag());
        let mut all = vec![
            "run",
            "--network",
            "none",
            "--cgroups",
            "no-conmon",
            "--cgroup-parent",
            &parent,
            "--ulimit",
            "nproc=4096:4096",
        ];
        if !args.contains(&"--ulimit") {
            all.extend(["--ulimit", "nofile=1024:1024"]);
        }
        all.extend(args);
        self.call(&all)
    }
}

/// The cgroup that podman makes for its monitors and keeps: taken away again, unless it was there before. One test at a time
/// may use podman meanwhile.
pub struct Monitors {
    before: Vec<PathBuf>,
    _turn: MutexGuard<'static, ()>,
}

impl Monitors {
    const NAME: &'static str = "libpod_parent";

    /// Waits for its turn.
    pub fn new() -> Monitors {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        Monitors { before: host::cgroups_named(Monitors::NAME), _turn: turn }
    }
}

impl Drop for Monitors {
    fn drop(&mut self) {
        for made in host::cgroups_named(Monitors::NAME).iter().filter(|group| !self.before.contains(group)) {
            // Somebody else's podman may be using it by now. Its own leaves groups of pods in hierarchies that it does not know.
            let _ = host::remove_cgroup(made);
        }
    }
}

/// Checks podman with a runtime: foreground, exit code, limits, volume, detached with exec and stop, and nothing left.
fn check(runtime: &Path) {
    let _monitors = Monitors::new();
    let root = Root::new();
    let rootfs = root.join("rootfs");
    busybox_rootfs(&rootfs);
    let archive = root.join("rootfs.tar");
    let file = std::fs::File::create(&archive).unwrap();
    let mut tar = tar::Builder::new(file);
    tar.follow_symlinks(false);
    tar.append_dir_all(".", &rootfs).unwrap();
    tar.finish().unwrap();

    let podman = Podman { root: &root, runtime };
    podman.call(&["import", archive.to_str().unwrap(), "localhost/bb:1"]).success();

    let out = podman.run(&[
        "--rm",
        "--interactive",
        "--hostname",
        "inside",
        "--env",
        "A=b",
        "localhost/bb:1",
        "sh",
        "-c",
        "read word; hostname; echo $A; exit 5",
    ]);
    assert_eq!((out.code(), out.stdout.as_str()), (5, "inside\nb\n"), "{out}");

    let volume = format!("{}:/mnt:rw", root.join("shared").display());
    std::fs::create_dir(root.join("shared")).unwrap();
    let script = "read word; id -u; ulimit -n; echo ok >/mnt/file; touch /new 2>/dev/null || echo read-only";
    let out = podman
        .run(&[
            "--rm",
            "--interactive",
            "--read-only",
            "--ulimit",
            "nofile=512:512",
            "--memory",
            "64m",
            "--pids-limit",
            "20",
            "-v",
            &volume,
            "localhost/bb:1",
            "sh",
            "-c",
            script,
        ])
        .success();
    assert_eq!(out.stdout, "0\n512\nread-only\n", "{out}");
    assert_eq!(std::fs::read_to_string(root.join("shared/file")).unwrap(), "ok\n");

    podman.run(&["-d", "--name", "bg", "localhost/bb:1", "sleep", "1000"]).success();
    let out = podman.call(&["exec", "--interactive", "bg", "sh", "-c", "read word; echo in exec; exit 4"]);
    assert_eq!((out.code(), out.stdout.as_str()), (4, "in exec\n"), "{out}");
    podman.call(&["pause", "bg"]).success();
    podman.call(&["unpause", "bg"]).success();
    podman.call(&["stop", "-t", "1", "bg"]).success();
    let state =
        podman.call(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "bg"]).success();
    assert_eq!(state.stdout, "exited 137\n", "{state}");
    podman.call(&["rm", "bg"]).success();

    let out = podman.run(&["--rm", "localhost/bb:1", "no-such-program"]);
    assert_eq!(out.code(), 127, "podman tells a missing program by the runtime's error text: {out}");
    let out = podman.run(&["--rm", "localhost/bb:1", "/etc/passwd"]);
    assert_eq!(
        out.code(),
        126,
        "podman tells a program that may not be run by the runtime's error text: {out}"
    );

    podman.call(&["rmi", "localhost/bb:1"]).success();
    unmount_storage(&root.join("podman/root/overlay"));
    root.assert_clean();
}

/// podman and buildah keep their overlay storage mounted on itself for good; two that start at once mount it twice.
///
/// What conmon starts when a container has ended mounts it again, and is waited for.
pub fn unmount_storage(storage: &Path) {
    let root = storage.parent().expect("the storage's root").display().to_string();
    poll_until(Duration::from_secs(30), "nobody uses the storage", || {
        !host::processes().iter().any(|process| process.command.contains(&root))
    });
    while nix::mount::umount2(storage, nix::mount::MntFlags::MNT_DETACH).is_ok() {}
}

#[test]
fn podman_runs_containers_by_runc() {
    check(&binaries::system("runc"));
}

#[test]
fn podman_runs_containers_by_orlop() {
    check(&binaries::orlop());
}
