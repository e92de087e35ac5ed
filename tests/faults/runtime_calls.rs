//! Every system call that a start needs fails once, by strace's injection: the runtime says so, and what it had done before is
//! undone. Where it has another way, the container runs.

use std::path::Path;
use std::time::Duration;

use orlop_tests::{Bundle, Cmd, Output, Root, binaries};

/// Runs a container in which one call fails, in the runtime or in what becomes the container.
fn run_with(root: &Root, bundle: &Path, fault: &str) -> (Output, bool) {
    let trace = root.join("trace");
    let out = Cmd::new(binaries::system("strace"))
        // The filter lets calls that are not looked at run as they do without strace: some ways around are a million calls long.
        .args(["-f", "--seccomp-bpf", "-qq", "-e"])
        .arg(format!("trace={}", fault.split(':').next().unwrap_or_default()))
        .arg("-e")
        .arg(format!("inject={fault}"))
        .arg("-o")
        .arg(&trace)
        .arg(binaries::orlop())
        .arg("--root")
        .arg(root.join("state"))
        .args(["run", "--bundle"])
        .arg(bundle)
        .arg("c1")
        .deadline(Duration::from_secs(30))
        .run();
    let hit = std::fs::read_to_string(&trace).unwrap_or_default().contains("(INJECTED)");
    (out, hit)
}

/// Lets the first, second, third … call of a kind fail until there is none left.
fn each_call_fails_once(name: &str, errno: &str) {
    let root = Root::new();
    let bundle = Bundle::new(&root, "b").sh("echo ran").save();
    for number in 1..=40 {
        let fault = format!("{name}:error={errno}:when={number}");
        let (out, hit) = run_with(&root, bundle.path(), &fault);
        assert!(out.status.code().is_some() && !out.stderr.contains("panicked"), "{fault}: {out}");
        if out.status.success() {
            assert_eq!(out.stdout, "ran\n", "{fault}: {out}");
        } else {
            assert!(!out.stderr.trim().is_empty(), "{fault}: failed without a word: {out}");
        }
        let left: Vec<_> =
            std::fs::read_dir(root.join("state")).map(|dir| dir.flatten().collect()).unwrap_or_default();
        assert!(left.is_empty(), "{fault}: state left behind: {left:?}\n{out}");
        let leaks = root.leaks();
        assert!(leaks.cgroups.is_empty() && leaks.mounts.is_empty(), "{fault}: left behind:\n{leaks}\n{out}");
        if !hit {
            assert!(out.status.success(), "no call {number} of {name}, and yet: {out}");
            break;
        }
    }
    root.assert_clean();
}

macro_rules! calls {
    ($($test:ident: $name:literal $errno:literal;)*) => {
        $(#[test]
        fn $test() {
            each_call_fails_once($name, $errno);
        })*
    };
}

calls! {
    mount_fails: "mount" "EPERM";
    a_detached_mount_fails: "move_mount" "EPERM";
    opening_a_file_system_fails: "fsopen" "EPERM";
    pivoting_fails: "pivot_root" "EINVAL";
    cloning_fails: "clone3" "EAGAIN";
    making_namespaces_fails: "unshare" "ENOSPC";
    opening_a_file_fails: "openat" "EMFILE";
    sending_descriptors_fails: "sendmsg" "ETOOMANYREFS";
    making_a_directory_fails: "mkdir" "ENOSPC";
    making_a_device_fails: "mknodat" "EPERM";
    unmounting_fails: "umount2" "EBUSY";
    changing_the_user_fails: "setgroups" "EPERM";
    setting_capabilities_fails: "capset" "EPERM";
    naming_the_host_fails: "sethostname" "EPERM";
    starting_the_program_fails: "setsid" "EPERM";
}

/// A kernel older than the platform (Linux 5.15), or a filter that knows no such calls, is named as what is in the way, and nothing
/// has been done by then.
#[test]
fn a_kernel_without_the_mount_api_is_refused_by_name() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "b").sh("echo ran").save();
    let (out, hit) = run_with(&root, bundle.path(), "mount_setattr:error=ENOSYS");
    assert!(hit && out.code() == 1 && out.stdout.is_empty(), "{out}");
    assert!(out.stderr.contains("orlop needs Linux 5.15 or later"), "{out}");
    assert!(!root.join("state").join("c1").exists());
    root.assert_clean();
}

/// Newer calls that a kernel or a filter around the runtime may lack: the container runs all the same. The mount API is not
/// among them: every kernel of the platform (Linux 5.15) has it.
#[test]
fn older_kernels_have_other_ways() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "b").sh("echo ran").save();
    for name in ["close_range", "pidfd_open"] {
        let (out, _) = run_with(&root, bundle.path(), &format!("{name}:error=ENOSYS"));
        assert_eq!((out.code(), out.stdout.as_str()), (0, "ran\n"), "{name}: {out}");
        root.assert_clean();
    }
}
