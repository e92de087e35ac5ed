//! What a start costs, as counts: stable on a noisy machine, unlike times.

use orlop_tests::{Bundle, Cmd, Root, binaries};

/// Calls per system call in `strace -fc`'s table.
fn calls(table: &str, name: &str) -> u64 {
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|row| row.last() == Some(&name) && row.len() >= 5)
        .and_then(|row| row[3].parse().ok())
        .unwrap_or(0)
}

/// The most system calls that a `run` of /bin/true may take, and an `exec` of it: measured on a host with ten cgroup
/// hierarchies, and a tenth more. Where there are fewer it takes fewer.
const MOST_CALLS: [u64; 2] = [562, 281];

/// Runs a command of orlop under strace, with its children, and returns the table of its system calls.
fn traced(root: &Root, args: &[&str]) -> String {
    let table = root.join("strace");
    Cmd::new(binaries::system("strace"))
        .args(["-f", "-c", "-o"])
        .arg(&table)
        .arg(binaries::orlop())
        .arg("--root")
        .arg(root.join("state"))
        .args(args)
        .run()
        .success();
    std::fs::read_to_string(table).unwrap()
}

/// One clone, no threads, and no more programs than the runtime, once more from its sealed binary, and the container's.
#[track_caller]
fn check(table: &str, most: u64) {
    assert_eq!(calls(table, "clone3"), 1, "{table}");
    for other in ["clone", "fork", "vfork"] {
        assert_eq!(calls(table, other), 0, "{other}\n{table}");
    }
    assert!(calls(table, "execve") + calls(table, "execveat") <= 3, "{table}");
    assert!(!is_release() || calls(table, "total") <= most, "{table}");
}

/// A debug build checks its descriptors by system calls of its own, and is no measure of memory either.
fn is_release() -> bool {
    binaries::is_release(&binaries::orlop())
}

#[test]
fn a_run_takes_one_clone_and_no_threads() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "b").args(["true"]).save();
    let path = bundle.path().display().to_string();
    check(&traced(&root, &["run", "--bundle", &path, "c1"]), MOST_CALLS[0]);
    root.assert_clean();
}

#[test]
fn an_exec_takes_one_clone_and_no_threads() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "b").args(["sleep", "1000"]).save();
    let state = root.join("state");
    let orlop =
        |args: &[&str]| Cmd::new(binaries::orlop()).arg("--root").arg(&state).args(args).run().success();
    orlop(&["run", "-d", "--bundle", &bundle.path().display().to_string(), "c1"]);
    check(&traced(&root, &["exec", "c1", "true"]), MOST_CALLS[1]);
    orlop(&["delete", "--force", "c1"]);
    root.assert_clean();
}

#[test]
fn a_create_stays_below_two_mebibytes_of_memory() {
    let root = Root::new();
    let peak = root.join("peak");
    // A hook's parent is the runtime, which has done most of its work by then.
    let script = format!("grep VmHWM /proc/$PPID/status >{}", peak.display());
    let hook = serde_json::json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    let bundle = Bundle::new(&root, "b")
        .args(["true"])
        .edit(|config| config["hooks"] = serde_json::json!({"createRuntime": hook}))
        .save();
    let state = root.join("state");
    let orlop =
        |args: &[&str]| Cmd::new(binaries::orlop()).arg("--root").arg(&state).args(args).run().success();
    orlop(&["create", "--bundle", &bundle.path().display().to_string(), "c1"]);
    let text = std::fs::read_to_string(&peak).unwrap();
    let kibibytes: u64 =
        text.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number");
    orlop(&["delete", "--force", "c1"]);
    root.assert_clean();
    assert!(!is_release() || kibibytes <= 2048, "{kibibytes} KiB");
    assert!(kibibytes > 100, "{kibibytes} KiB is too little to be true");
}

#[test]
fn a_traced_count_is_read_from_its_column() {
    let table = "% time     seconds  usecs/call     calls    errors syscall\n 50.00    0.000010          10         1           clone3\n \
                 50.00    0.000010           3         3         2 execve\n";
    assert_eq!((calls(table, "clone3"), calls(table, "execve"), calls(table, "fork")), (1, 3, 0));
}
