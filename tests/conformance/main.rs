//! Foreign suites: the validation programs of github.com/opencontainers/runtime-tools, driving our runtime.
//!
//! `make conformance` fetches them through Go's module proxy and builds them, so it needs Go and a network; `make test` leaves them
//! out and says so. `expected.toml` lists what does not pass, with the cause; a listed program that passes must be taken off.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_tests::{Cmd, Output, Root, binaries, host};

const MODULE: &str = "github.com/opencontainers/runtime-tools";
const VERSION: &str = "v0.9.1-0.20251205004911-5e639034dcdc";
/// What Go's checksum database says of the module.
const SUM: &str = "h1:82NlZLiQEB6Wp+nmASMlkHsEXz3Q0pXJbK7QO6ck5lo=";
/// The suite's own helper, which runs inside containers.
const HELPER: &str = "runtimetest";
/// How often a program that loses races is tried.
const ATTEMPTS: usize = 5;

#[test]
fn runtime_tools() {
    if std::env::var_os("ORLOP_CONFORMANCE").is_none() {
        println!("not run: the foreign suites; `make conformance` runs them");
        return;
    }
    let expected: BTreeMap<String, BTreeMap<String, String>> =
        toml::from_str(include_str!("expected.toml")).expect("expected.toml is well formed");
    let section = |name: &str| expected.get(name).cloned().unwrap_or_default();
    let (failing, racy) = (section("failing"), section("racy"));
    let directory = build();
    let mut wrong = Vec::new();
    let mut programs: Vec<PathBuf> =
        fs::read_dir(directory.join("bin")).unwrap().map(|entry| entry.unwrap().path()).collect();
    programs.sort();
    programs.retain(|program| !program.ends_with(HELPER));
    assert!(programs.len() > 50, "{programs:?}");
    for program in &programs {
        let name = program.file_name().unwrap().to_string_lossy().into_owned();
        let attempts = if racy.contains_key(&name) { ATTEMPTS } else { 1 };
        let mut problem = None;
        for _ in 0..attempts {
            problem = judge(&run(&directory, program));
            if problem.is_none() {
                break;
            }
        }
        match (problem, failing.get(&name)) {
            (None, None) => println!("passed  {name}"),
            (Some(_), Some(cause)) => println!("known   {name}: {cause}"),
            (Some(_), None) if racy.contains_key(&name) => println!("raced   {name}: {}", racy[&name]),
            (None, Some(_)) => wrong.push(format!("{name} passes now: take it off expected.toml")),
            (Some(text), None) => wrong.push(format!("{name} fails:\n{text}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Fetches and builds the suite once; returns the directory that it runs in.
fn build() -> PathBuf {
    let directory = binaries::target_dir().join("conformance");
    let (source, programs) = (directory.join("source"), directory.join("bin"));
    if programs.join(HELPER).exists() {
        return directory;
    }
    fs::create_dir_all(&programs).unwrap();
    let go = |cwd: &Path| {
        let go = binaries::find("go")
            .or_else(|| Some("/usr/local/go/bin/go".into()).filter(|path: &PathBuf| path.exists()));
        let go = go.expect("Go is not installed; the foreign suites are built with it");
        Cmd::new(go)
            .env("GOFLAGS", "-mod=mod -buildvcs=false")
            .env("CGO_ENABLED", "0")
            .cwd(cwd)
            .deadline(Duration::from_secs(900))
    };
    let module = format!("{MODULE}@{VERSION}");
    let answer = go(&directory).args(["mod", "download", "-json", &module]).run().success();
    let answer: serde_json::Value = serde_json::from_str(&answer.stdout).expect("JSON from go");
    assert_eq!(answer["Sum"], SUM, "the module is another one");
    let _ = fs::remove_dir_all(&source);
    // The module cache is read-only, and its vendor directory holds a list alone.
    let copy = format!(
        "cp -r '{}' '{}' && chmod -R u+w '{1}' && rm -r '{1}/vendor'",
        answer["Dir"].as_str().unwrap(),
        source.display()
    );
    Cmd::new("/bin/sh").args(["-c", &copy]).run().success();
    go(&source).args(["build", "-o"]).arg(&programs).arg("./validation/...").run().success();
    go(&source).args(["build", "-o"]).arg(programs.join(HELPER)).arg("./cmd/runtimetest").run().success();
    for (from, to) in
        [(programs.join(HELPER), HELPER), (source.join("rootfs-amd64.tar.gz"), "rootfs-amd64.tar.gz")]
    {
        fs::copy(from, directory.join(to)).unwrap();
    }
    directory
}

/// Runs one program where neither mounts nor processes nor the runtime's state outlive it.
fn run(directory: &Path, program: &Path) -> Output {
    let root = Root::new();
    let script = "mount -t tmpfs tmpfs /run; \"$0\"; exit $?";
    let out = Cmd::new(binaries::system("unshare"))
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
        .args(["timeout", "60", "sh", "-c", script])
        .arg(program)
        .env("RUNTIME", binaries::orlop())
        .env("TMPDIR", root.path())
        .cwd(directory)
        .deadline(Duration::from_secs(90))
        .run();
    // The suite leaves the parents of its groups, and after a failure the groups.
    for name in ["cgrouptest", "testdir"] {
        for group in host::cgroups_named(name) {
            let _ = host::remove_cgroup(&group);
        }
    }
    out
}

/// What is wrong with a program's output, if anything.
fn judge(out: &Output) -> Option<String> {
    let denied = out.stdout.lines().any(|line| line.starts_with("not ok"));
    let is_good = out.status.success() && !denied;
    (!is_good).then(|| out.to_string())
}
