//! Every action, operator, flag and architecture that `features` names, in force; and a supervisor that answers.

use std::path::PathBuf;
use std::sync::OnceLock;

use orlop_tests::{Bundle, Cmd, binaries, poll_until};
use serde_json::{Value, json};

use super::support::{PATIENCE, Runtime};

fn with(runtime: &Runtime, script: &str, seccomp: Value) -> Bundle {
    runtime.sh(script).edit(|config| config["linux"]["seccomp"] = seccomp).save()
}

fn features(runtime: &Runtime) -> Value {
    let features: Value = serde_json::from_str(&runtime.call(&["features"]).success().stdout).unwrap();
    features["linux"]["seccomp"].clone()
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect()
}

#[test]
fn every_operator() {
    let runtime = Runtime::new();
    let pivot = 0o700;
    type Holds = fn(u64) -> bool;
    let operators: [(&str, Holds); 7] = [
        ("SCMP_CMP_EQ", |mode| mode == 0o700),
        ("SCMP_CMP_GE", |mode| mode >= 0o700),
        ("SCMP_CMP_GT", |mode| mode > 0o700),
        ("SCMP_CMP_LE", |mode| mode <= 0o700),
        ("SCMP_CMP_LT", |mode| mode < 0o700),
        ("SCMP_CMP_MASKED_EQ", |mode| mode & 0o111 == 0o100),
        ("SCMP_CMP_NE", |mode| mode != 0o700),
    ];
    if !runtime.is_reference() {
        assert_eq!(names(&features(&runtime)["operators"]), operators.map(|(name, _)| name));
    }
    let modes = [0o600, 0o700, 0o755];
    let script =
        "touch /f; for mode in 600 700 755; do chmod $mode /f 2>/dev/null && echo yes || echo no; done";
    for (operator, holds) in operators {
        let (value, second) = if operator == "SCMP_CMP_MASKED_EQ" { (0o111, 0o100) } else { (pivot, 0) };
        let rule = |call: &str, index: u32| {
            json!({"names": [call], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": index, "value": value, "valueTwo": second, "op": operator}]})
        };
        let rules = [rule("chmod", 1), rule("fchmodat", 2), rule("fchmodat2", 2)];
        let bundle = with(&runtime, script, json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}));
        let expected: Vec<_> = modes.map(|mode| if holds(mode) { "no" } else { "yes" }).into();
        assert_eq!(runtime.output(&bundle).lines().collect::<Vec<_>>(), expected, "{operator}");
    }
    runtime.assert_clean();
}

#[test]
fn every_action() {
    let runtime = Runtime::new();
    // What a shell says of `mkdir` for each; the notifying one has tests of its own.
    let actions = [
        ("SCMP_ACT_ALLOW", None, "0"),
        ("SCMP_ACT_ERRNO", Some(28), "1 No space left on device"),
        ("SCMP_ACT_KILL", None, "159"),
        ("SCMP_ACT_KILL_PROCESS", None, "159"),
        ("SCMP_ACT_KILL_THREAD", None, "159"),
        ("SCMP_ACT_LOG", None, "0"),
        // Nobody traces it.
        ("SCMP_ACT_TRACE", Some(7), "1 Function not implemented"),
        ("SCMP_ACT_TRAP", None, "159"),
    ];
    if !runtime.is_reference() {
        let seccomp = features(&runtime);
        let known = names(&seccomp["actions"]).into_iter().filter(|name| *name != "SCMP_ACT_NOTIFY");
        assert_eq!(known.collect::<Vec<_>>(), actions.map(|(name, ..)| name));
    }
    for (action, errno, expected) in actions {
        let mut rule = json!({"names": ["mkdir", "mkdirat"], "action": action});
        if let Some(errno) = errno {
            rule["errnoRet"] = json!(errno);
        }
        let default = if action == "SCMP_ACT_ALLOW" { "SCMP_ACT_LOG" } else { "SCMP_ACT_ALLOW" };
        let script = "said=$(mkdir /d 2>&1); echo $? ${said##*: }";
        let bundle = with(&runtime, script, json!({"defaultAction": default, "syscalls": [rule]}));
        let out = runtime.output(&bundle);
        assert!(out.trim().starts_with(expected), "{action}: {out}");
    }
    runtime.assert_clean();
}

#[test]
fn what_the_specification_forbids_in_a_profile_is_refused() {
    let runtime = Runtime::new();
    // runc passes over these.
    if runtime.is_reference() {
        return;
    }
    for seccomp in [
        json!({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_TRAP", "errnoRet": 1}]}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "text"}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_NO_SUCH"]}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_NO_SUCH"}]}]}),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]}),
    ] {
        let out = runtime.run(&with(&runtime, "echo ran", seccomp.clone())).failure();
        assert!(out.stdout.is_empty() && out.stderr.contains("level=error"), "{seccomp}: {out}");
        runtime.assert_clean();
    }
}

#[test]
fn every_architecture() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let seccomp = features(&runtime);
    let architectures = names(&seccomp["archs"]);
    assert!(architectures.contains(&"SCMP_ARCH_X86_64") && architectures.contains(&"SCMP_ARCH_LOONGARCH64"));
    let profile = |list: Value| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": list,
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]})
    };
    let big_endian = [
        "M68K",
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "PARISC",
        "PARISC64",
        "PPC",
        "PPC64",
        "S390",
        "S390X",
        "SHEB",
    ];
    for name in &architectures {
        let bundle = with(&runtime, "mkdir /d 2>/dev/null || echo refused", profile(json!([name])));
        let out = runtime.run(&bundle);
        if big_endian.iter().any(|other| name.strip_prefix("SCMP_ARCH_") == Some(other)) {
            // No program of such a machine runs here; that the name is known shows in what is said of it.
            assert!(out.failure().stderr.contains("another byte order"), "{name}");
        } else {
            assert_eq!(out.success().stdout, "refused\n", "{name}");
        }
    }
    // All that have the same byte order at once.
    let usual =
        ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_RISCV64"];
    let bundle = with(&runtime, "mkdir /d 2>/dev/null || echo refused", profile(json!(usual)));
    assert_eq!(runtime.output(&bundle), "refused\n");
    runtime.assert_clean();
}

#[test]
fn every_flag_reaches_the_kernel() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let seccomp = features(&runtime);
    let known = names(&seccomp["knownFlags"]);
    let supported = names(&seccomp["supportedFlags"]);
    assert_eq!(known.len(), 4);
    assert!(supported.iter().all(|flag| known.contains(flag)));
    let installed = |flags: Value, notify: bool| {
        let agent = notify.then(|| Agent::start(&runtime));
        let mut rule = json!({"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"});
        let mut profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags});
        if notify {
            rule["action"] = json!("SCMP_ACT_NOTIFY");
            profile["listenerPath"] = json!(runtime.root.join("agent"));
        }
        profile["syscalls"] = json!([rule]);
        let bundle = with(&runtime, "mkdir /d 2>/dev/null || echo refused", profile);
        let trace = runtime.root.join("trace");
        let out = Cmd::new(binaries::system("strace"))
            .args(["-f", "-e", "trace=seccomp", "-o"])
            .arg(&trace)
            .arg(binaries::orlop())
            .arg("--root")
            .arg(runtime.state_dir())
            .args(["run", "--bundle"])
            .arg(bundle.path())
            .arg("c1")
            .run()
            .success();
        assert_eq!(out.stdout, "refused\n");
        if let Some(agent) = agent {
            agent.finish();
        }
        let trace = std::fs::read_to_string(&trace).unwrap();
        let line =
            trace.lines().find(|line| line.contains("SECCOMP_SET_MODE_FILTER") && line.contains(" = "));
        line.unwrap_or_else(|| panic!("no filter is installed:\n{trace}")).to_owned()
    };
    assert!(installed(json!([]), false).contains("FILTER, 0, "));
    for flag in ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"] {
        assert!(installed(json!([flag]), false).contains(flag), "{flag}");
    }
    // There is one thread, which is synchronised with itself.
    installed(json!(["SECCOMP_FILTER_FLAG_TSYNC"]), false);
    let waits = installed(json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), true);
    // Debian's strace knows the number only.
    assert!(waits.contains("WAIT_KILLABLE_RECV") || waits.contains("0x20"), "{waits}");
    // Without a listener there is nothing to wait for.
    installed(json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), false);
    runtime.assert_clean();
}

/// The supervisor, built once.
fn agent() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let program = binaries::target_dir().join(format!("seccomp-agent-{}", std::process::id()));
        let source = binaries::source_root().join("tests/runtime/seccomp_agent.c");
        Cmd::new(binaries::system("cc")).args(["-O1", "-o"]).arg(&program).arg(source).run().success();
        let built = program.with_file_name("seccomp-agent");
        // Whole or not at all: several test processes may build it.
        std::fs::rename(&program, &built).unwrap();
        built
    })
}

/// A running supervisor.
struct Agent(orlop_tests::Process);

impl Agent {
    fn start(runtime: &Runtime) -> Agent {
        let socket = runtime.root.join("agent");
        let _ = std::fs::remove_file(&socket);
        let agent = Agent(Cmd::new(agent()).arg(&socket).spawn());
        poll_until(PATIENCE, "the supervisor listens", || socket.exists());
        agent
    }

    /// Waits for its end, which follows that of the container, and gives the state that it was sent.
    #[track_caller]
    fn finish(self) -> Value {
        serde_json::from_str(&self.0.wait(PATIENCE).success().stdout).unwrap()
    }
}

#[test]
fn a_supervisor_decides_for_the_container() {
    let runtime = Runtime::new();
    // Debian's runc does not get through this.
    if runtime.is_reference() {
        return;
    }
    for no_new_privileges in [true, false] {
        let agent = Agent::start(&runtime);
        let calls = ["mkdir", "mkdirat", "chmod", "fchmodat", "fchmodat2", "rename", "renameat2"];
        let script = "mkdir /d; touch /f && chmod 600 /f && stat -c %a /f; mv /f /g";
        let seccomp = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": runtime.root.join("agent"),
            "listenerMetadata": "some text", "syscalls": [{"names": calls, "action": "SCMP_ACT_NOTIFY"}]});
        let bundle = runtime.sh(script).edit(|config| {
            config["linux"]["seccomp"] = seccomp;
            config["process"]["noNewPrivileges"] = json!(no_new_privileges);
        });
        let out = runtime.run(&bundle.save());
        assert_eq!(out.stdout, "600\n", "{out}");
        assert!(out.stderr.contains("No space left on device"), "{out}");
        let state = agent.finish();
        assert_eq!((&state["fds"], &state["metadata"]), (&json!(["seccompFd"]), &json!("some text")));
        assert_eq!(state["pid"], state["state"]["pid"]);
        runtime.assert_clean();
    }
}

#[test]
fn without_a_supervisor_nothing_starts() {
    let runtime = Runtime::new();
    let notify = |path: Value| {
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": path,
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]})
    };
    for path in [json!("/no/such"), json!(runtime.root.join("nobody")), json!("")] {
        let out = runtime.run(&with(&runtime, "echo ran", notify(path))).failure();
        assert!(out.stdout.is_empty(), "{out}");
        runtime.assert_clean();
    }
    // A path for nobody means nothing.
    let unused = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/no/such"});
    assert_eq!(runtime.output(&with(&runtime, "echo ran", unused)), "ran\n");
    runtime.assert_clean();
}
