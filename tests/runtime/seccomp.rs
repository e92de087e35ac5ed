//! Seccomp filters in force.

use std::io::Read;
use std::os::unix::net::UnixListener;

use serde_json::json;

use super::support::Runtime;

fn with(runtime: &Runtime, script: &str, seccomp: serde_json::Value) -> orlop_tests::Bundle {
    runtime.sh(script).edit(|config| config["linux"]["seccomp"] = seccomp).save()
}

#[test]
fn calls_are_refused_with_the_chosen_error() {
    let runtime = Runtime::new();
    let seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": ["mkdir", "mkdirat", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO"}]});
    let bundle =
        with(&runtime, "grep Seccomp: /proc/self/status; mkdir /tmp/d; chmod 700 /tmp; echo done", seccomp);
    let out = runtime.run(&bundle).success();
    assert_eq!(out.stdout, "Seccomp:\t2\ndone\n");
    assert!(out.stderr.contains("No space left on device"), "{out}");
    assert!(out.stderr.contains("Operation not permitted"), "{out}");
    runtime.assert_clean();
}

#[test]
fn a_call_can_kill() {
    let runtime = Runtime::new();
    for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
        let seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": action}]});
        let bundle = with(&runtime, "mkdir /tmp/d; echo $?", seccomp);
        assert_eq!(runtime.output(&bundle), "159\n", "{action}");
    }
    runtime.assert_clean();
}

#[test]
fn a_filter_holds_for_exec_too_and_without_no_new_privileges() {
    let runtime = Runtime::new();
    let seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]});
    for no_new_privileges in [true, false] {
        let bundle = runtime
            .sleeper()
            .edit(|config| {
                config["linux"]["seccomp"] = seccomp.clone();
                config["process"]["noNewPrivileges"] = json!(no_new_privileges);
            })
            .save();
        runtime.detach(&bundle, "c1");
        let out = runtime.exec("c1", &["mkdir", "/tmp/d"]).failure();
        assert!(out.stderr.contains("Operation not permitted"), "{out}");
        runtime.finish("c1");
    }
}

#[test]
fn a_list_that_lacks_what_the_runtime_itself_needs_is_the_programs_affair() {
    let runtime = Runtime::new();
    let seccomp = json!({"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [{"action": "SCMP_ACT_ALLOW", "names":
        ["execve", "exit_group", "exit", "write", "read", "close", "brk", "mmap", "munmap", "arch_prctl", "fstat", "readlink", "prctl", "futex",
        "getuid", "mprotect", "uname", "set_tid_address", "set_robust_list", "rseq", "prlimit64", "getrandom", "rt_sigreturn", "ioctl"]}]});
    let bundle =
        runtime.sh("").args(["echo", "lives"]).edit(|config| config["linux"]["seccomp"] = seccomp).save();
    let out = runtime.run(&bundle);
    // runc's own init needs more than its program once the filter is there.
    if !runtime.is_reference() {
        assert_eq!(out.success().stdout, "lives\n");
    }
    runtime.assert_clean();
}

#[test]
fn a_filter_that_is_early_and_old_hinders_no_start() {
    let runtime = Runtime::new();
    // Without no_new_privileges the filter is installed while the runtime still has work to do.
    let seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO", "names":
        ["faccessat", "faccessat2", "access", "openat2", "close_range", "statx", "pidfd_open", "clone3", "getcwd", "io_uring_setup"]}]});
    let bundle = runtime.sh("").args(["echo", "lives"]).edit(|config| {
        config["linux"]["seccomp"] = seccomp;
        config["process"]["noNewPrivileges"] = json!(false);
    });
    assert_eq!(runtime.output(&bundle.save()), "lives\n");
    runtime.assert_clean();
}

#[test]
fn what_seccomp_cannot_do_is_refused() {
    let runtime = Runtime::new();
    for seccomp in [
        json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
        json!({"defaultAction": "SCMP_ACT_NO_SUCH"}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NO_SUCH"}]}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/no/such", "syscalls": [{"names": ["write"], "action": "SCMP_ACT_NOTIFY"}]}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_NO_SUCH"]}),
    ] {
        runtime.run(&with(&runtime, "echo ran", seccomp)).failure();
        runtime.assert_clean();
    }
}

#[test]
fn notifications_go_to_the_listener_with_the_containers_state() {
    use std::os::fd::AsRawFd;
    let runtime = Runtime::new();
    let path = runtime.root.join("notify");
    let listener = UnixListener::bind(&path).unwrap();
    let seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path, "listenerMetadata": "some text",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]});
    let bundle = with(&runtime, "while [ ! -e /go ]; do sleep 0.01; done", seccomp);
    let process = runtime.cmd().args(["run", "-b"]).arg(bundle.path()).arg("c1").spawn();
    let (mut stream, _) = listener.accept().unwrap();
    // The state comes as one message with the descriptor.
    let mut bytes = vec![0; 65536];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 4]);
    let (length, descriptors) = {
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let flags = nix::sys::socket::MsgFlags::MSG_CMSG_CLOEXEC;
        let message =
            nix::sys::socket::recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
        let found: Vec<i32> = message
            .cmsgs()
            .unwrap()
            .filter_map(|one| match one {
                nix::sys::socket::ControlMessageOwned::ScmRights(list) => Some(list),
                _ => None,
            })
            .flatten()
            .collect();
        (message.bytes, found)
    };
    assert_eq!(descriptors.len(), 1);
    let mut rest = Vec::new();
    stream.set_nonblocking(true).unwrap();
    let _ = stream.read_to_end(&mut rest);
    let mut text = bytes[..length].to_vec();
    text.extend(rest);
    let state: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(state["fds"], json!(["seccompFd"]));
    assert_eq!(state["metadata"], "some text");
    assert_eq!(state["state"]["id"], "c1");
    assert!(state["pid"].as_i64().unwrap() > 1);
    let target = std::fs::read_link(format!("/proc/self/fd/{}", descriptors[0])).unwrap();
    assert!(target.to_string_lossy().contains("seccomp notify"), "{}", target.display());
    std::fs::write(bundle.rootfs("/go"), "").unwrap();
    assert_eq!(process.wait(super::support::PATIENCE).code(), 0);
    nix::unistd::close(descriptors[0]).unwrap();
    drop((stream, listener));
    runtime.assert_clean();
}
