use serde_json::json;

use super::machine::{Call, run};
use super::*;

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const X86: u32 = 0x4000_0003;
const X86_64: u32 = 0xc000_003e;
const X32_BIT: u32 = 0x4000_0000;

fn errno(number: i32) -> u32 {
    0x0005_0000 | number as u32
}

fn profile(value: serde_json::Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

fn filter(value: serde_json::Value) -> Filter {
    compile(&profile(value)).unwrap()
}

fn refusal(value: serde_json::Value) -> String {
    compile(&profile(value)).unwrap_err().to_string()
}

fn native(name: &str, arguments: [u64; 6]) -> Call {
    let number = library::resolve(name).unwrap() as u32;
    Call { number, architecture: library::native_architecture(), arguments }
}

fn verdict(filter: &Filter, name: &str, arguments: [u64; 6]) -> u32 {
    run(&filter.program, native(name, arguments))
}

#[test]
fn a_list_of_what_is_allowed() {
    let filter = filter(json!({"defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW"}]}));
    assert_eq!(verdict(&filter, "read", [0; 6]), ALLOW);
    assert_eq!(verdict(&filter, "write", [0; 6]), ALLOW);
    assert_eq!(verdict(&filter, "pread64", [0; 6]), errno(libc::ENOSYS), "newer than all of the list");
    assert_eq!((filter.flags, filter.listener), (0, None));
}

#[test]
fn every_action() {
    let filter = filter(
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x", "listenerMetadata": "m", "syscalls": [
        {"names": ["getpid"], "action": "SCMP_ACT_KILL"},
        {"names": ["getppid"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["gettid"], "action": "SCMP_ACT_KILL_THREAD"},
        {"names": ["mkdir"], "action": "SCMP_ACT_TRAP"},
        {"names": ["rmdir"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
        {"names": ["chown"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
        {"names": ["mount"], "action": "SCMP_ACT_NOTIFY"},
        {"names": ["umount2"], "action": "SCMP_ACT_LOG"},
        {"names": ["bpf"], "action": "SCMP_ACT_ALLOW"}]}),
    );
    for (name, expected) in [
        ("getpid", 0),
        ("getppid", KILL_PROCESS),
        ("gettid", 0),
        ("mkdir", 0x0003_0000),
        ("rmdir", errno(libc::EPERM)),
        ("chmod", errno(38)),
        ("chown", 0x7ff0_0007),
        ("mount", 0x7fc0_0000),
        ("umount2", 0x7ffc_0000),
        ("bpf", ALLOW),
        ("read", ALLOW),
    ] {
        assert_eq!(verdict(&filter, name, [0; 6]), expected, "{name}");
    }
    assert_eq!(filter.flags, FLAG_NEW_LISTENER);
    assert_eq!(filter.listener, Some(Listener { path: "/run/x".into(), metadata: "m".into() }));
    let mut call = native("read", [0; 6]);
    call.number = 5000;
    assert_eq!(run(&filter.program, call), ALLOW, "no ENOSYS where all is allowed");
}

#[test]
fn every_operator() {
    let big = 1u64 << 40;
    for (operator, two, holds, fails) in [
        ("SCMP_CMP_NE", 0, vec![0, big + 1], vec![big]),
        ("SCMP_CMP_LT", 0, vec![0, big - 1], vec![big, big + 1]),
        ("SCMP_CMP_LE", 0, vec![0, big], vec![big + 1]),
        ("SCMP_CMP_EQ", 0, vec![big], vec![0, big + 1]),
        ("SCMP_CMP_GE", 0, vec![big, u64::MAX], vec![big - 1]),
        ("SCMP_CMP_GT", 0, vec![big + 1], vec![big]),
        ("SCMP_CMP_MASKED_EQ", big, vec![big, big | 7], vec![0, 7]),
    ] {
        let filter = filter(
            json!({"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [{"names": ["mmap"],
            "action": "SCMP_ACT_ALLOW", "args": [{"index": 2, "value": big, "valueTwo": two, "op": operator}]}]}),
        );
        for value in holds {
            assert_eq!(verdict(&filter, "mmap", [0, 0, value, 0, 0, 0]), ALLOW, "{operator} {value:#x}");
        }
        for value in fails {
            assert_eq!(
                verdict(&filter, "mmap", [0, 0, value, 0, 0, 0]),
                KILL_PROCESS,
                "{operator} {value:#x}"
            );
        }
    }
}

#[test]
fn arguments_are_and_but_one_argument_twice_is_or() {
    let rule = |args: serde_json::Value| {
        filter(json!({"defaultAction": "SCMP_ACT_KILL_PROCESS",
            "syscalls": [{"names": ["mmap"], "action": "SCMP_ACT_ALLOW", "args": args}]}))
    };
    let both = rule(
        json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 1, "value": 2, "op": "SCMP_CMP_EQ"}]),
    );
    assert_eq!(verdict(&both, "mmap", [1, 2, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&both, "mmap", [1, 3, 0, 0, 0, 0]), KILL_PROCESS);
    let either = rule(
        json!([{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]),
    );
    for (value, expected) in [(1, ALLOW), (2, ALLOW), (3, KILL_PROCESS)] {
        assert_eq!(verdict(&either, "mmap", [value, 0, 0, 0, 0, 0]), expected);
    }
}

#[test]
fn newer_calls_get_enosys_unless_the_profile_decides() {
    let rules = json!([{"names": ["read", "statx"], "action": "SCMP_ACT_ALLOW"}]);
    let newest = library::resolve("statx").unwrap() as u32;
    let verdict = |profile: serde_json::Value, number: u32| {
        let mut call = native("read", [0; 6]);
        call.number = number;
        run(&filter(profile).program, call)
    };
    let denying = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": rules});
    assert_eq!(verdict(denying.clone(), newest), ALLOW);
    assert_eq!(verdict(denying.clone(), newest - 1), errno(libc::EPERM));
    assert_eq!(verdict(denying, newest + 1), errno(libc::ENOSYS));
    let killing = json!({"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": rules});
    assert_eq!(verdict(killing, newest + 1), errno(libc::ENOSYS));
    let logging = json!({"defaultAction": "SCMP_ACT_LOG", "syscalls": rules});
    assert_eq!(verdict(logging, newest + 1), 0x7ffc_0000);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn several_architectures() {
    let filter = filter(json!({"defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": ["read", "waitpid", "statx"], "action": "SCMP_ACT_ALLOW"}]}));
    let verdict =
        |architecture, number| run(&filter.program, Call { number, architecture, ..Call::default() });
    assert_eq!(verdict(X86_64, 0), ALLOW, "read");
    assert_eq!(verdict(X86, 3), ALLOW, "read on x86");
    assert_eq!(verdict(X86, 7), ALLOW, "waitpid, which only x86 has");
    assert_eq!(verdict(X86, 383), ALLOW, "statx on x86");
    assert_eq!(verdict(X86, 384), errno(libc::ENOSYS));
    assert_eq!(verdict(X86, 382), errno(libc::EPERM));
    assert_eq!(verdict(X86_64, X32_BIT), ALLOW, "read on x32");
    assert_eq!(verdict(X86_64, X32_BIT | 331), errno(libc::EPERM));
    assert_eq!(verdict(X86_64, X32_BIT | 600), errno(libc::ENOSYS));
    assert_eq!(verdict(X86_64, 333), errno(libc::ENOSYS));
    assert_eq!(verdict(0x1234, 0), 0, "a foreign architecture is killed");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn an_architecture_that_the_profile_leaves_out_is_killed() {
    let filter = filter(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}));
    let verdict =
        |architecture, number| run(&filter.program, Call { number, architecture, ..Call::default() });
    assert_eq!(verdict(X86_64, 0), ALLOW);
    assert_eq!(verdict(X86, 3), 0);
    assert_eq!(verdict(X86_64, X32_BIT), 0, "x32 is no part of x86-64 for libseccomp");
}

#[test]
fn flags_are_those_that_mean_something() {
    let rules = json!([{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]);
    let all = json!([
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
    ]);
    let notifying = filter(
        json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": all, "listenerPath": "/x", "syscalls": rules}),
    );
    assert_eq!(notifying.flags, FLAG_LOG | FLAG_SPEC_ALLOW | FLAG_NEW_LISTENER | FLAG_WAIT_KILLABLE_RECV);
    let plain = filter(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": all, "listenerPath": "/x"}));
    assert_eq!((plain.flags, plain.listener), (FLAG_LOG | FLAG_SPEC_ALLOW, None));
}

#[test]
fn what_seccomp_cannot_do() {
    let rule =
        |rule: serde_json::Value| refusal(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}));
    assert!(refusal(json!({"defaultAction": "SCMP_ACT_NOTIFY"})).contains("as default action"));
    assert!(rule(json!({"names": ["write"], "action": "SCMP_ACT_NOTIFY"})).contains("for the write syscall"));
    assert!(rule(json!({"names": ["mount"], "action": "SCMP_ACT_NOTIFY"})).contains("listenerPath"));
    assert!(rule(json!({"names": [""], "action": "SCMP_ACT_ERRNO"})).contains("not a valid syscall"));
    assert!(
        rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}))
        .contains("invalid argument index 6")
    );
    assert!(
        rule(json!({"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 70000}))
            .contains("no error number")
    );
}

/// A filter holds for the thread that installs it, so that a thread of this test can be the judge's judge.
#[test]
fn the_kernel_agrees_on_the_default_profile() {
    let profile = default_profile();
    let filter = compile(&profile).unwrap();
    assert_eq!(verdict(&filter, "getpid", [0; 6]), ALLOW);
    assert_eq!(verdict(&filter, "add_key", [0; 6]), errno(libc::EPERM));
    assert_eq!(verdict(&filter, "personality", [0xffff_ffff, 0, 0, 0, 0, 0]), ALLOW);
    assert_eq!(verdict(&filter, "personality", [0x20, 0, 0, 0, 0, 0]), errno(libc::EPERM));
    let refused = std::thread::spawn(move || {
        use orlop_host::sys::creds;
        creds::no_new_privileges().unwrap();
        assert!(creds::install_seccomp(&filter.program, filter.flags).unwrap().is_none());
        (orlop_host::sys::process::set_personality(0x20), orlop_host::sys::process::set_personality(0))
    });
    let (refused, allowed) = refused.join().unwrap();
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
    allowed.unwrap();
}

fn default_profile() -> LinuxSeccomp {
    let profile = orlop_proto::spec::default_profile(&[], std::env::consts::ARCH);
    serde_json::from_value(serde_json::to_value(profile).unwrap()).unwrap()
}
/// Both ways of making a program, on every call of every architecture that we lay out and on arguments around the
/// rules' values.
#[cfg(target_arch = "x86_64")]
#[test]
fn our_programs_agree_with_libseccomps() {
    let mut profiles = vec![default_profile()];
    profiles.push(profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["clone"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
        {"names": ["socket", "shmat", "semop"], "action": "SCMP_ACT_KILL_PROCESS",
            "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
        {"names": ["bind", "accept", "recvmmsg", "msgget"], "action": "SCMP_ACT_TRAP"},
        {"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [
            {"index": 1, "value": 0x1_0000_0005u64, "op": "SCMP_CMP_GE"}, {"index": 2, "value": 7, "op": "SCMP_CMP_LT"}]}]})));
    for profile in &mut profiles {
        for architectures in [vec![], vec![Arch::ScmpArchX86], vec![Arch::ScmpArchX32, Arch::ScmpArchX86]] {
            profile.set_architectures(Some(architectures));
            let mut policy = Policy::read(profile).unwrap();
            // libseccomp itself knows no special answer to new calls.
            policy.newer = None;
            let ours = program::program(&calls::tables(&policy));
            let theirs = other::program(&policy).unwrap();
            let values =
                [0, 1, 5, 6, 7, 8, 40, 41, 0xffff_ffff, 0x1_0000_0004, 0x1_0000_0005, 0x7e02_0000, 0x20008];
            for architecture in [X86, X86_64, 0x1234] {
                for number in
                    (0..600).chain((0..600).map(|number| number | X32_BIT)).chain([u32::MAX, X32_BIT - 1])
                {
                    for value in values {
                        for second in [0, value] {
                            let arguments = [value, second, 6, 0, 0, 0];
                            let call = Call { number, architecture, arguments };
                            assert_eq!(
                                run(&ours, call),
                                run(&theirs, call),
                                "{architecture:#x} {number} {arguments:x?}"
                            );
                        }
                    }
                }
            }
        }
    }
}
