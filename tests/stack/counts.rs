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

#[test]
fn a_run_takes_one_clone_and_no_threads() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "b").args(["true"]).save();
    let table = root.join("strace");
    Cmd::new(binaries::system("strace"))
        .args(["-f", "-c", "-o"])
        .arg(&table)
        .arg(binaries::orlop())
        .arg("--root")
        .arg(root.join("state"))
        .args(["run", "--bundle"])
        .arg(bundle.path())
        .arg("c1")
        .run()
        .success();
    let table = std::fs::read_to_string(table).unwrap();
    assert_eq!(calls(&table, "clone3"), 1, "{table}");
    for other in ["clone", "fork", "vfork"] {
        assert_eq!(calls(&table, other), 0, "{other}\n{table}");
    }
    // At most one re-exec of the runtime, its first start, and the container's program.
    assert!(calls(&table, "execve") + calls(&table, "execveat") <= 3, "{table}");
    root.assert_clean();
}

#[test]
fn a_traced_count_is_read_from_its_column() {
    let table = "% time     seconds  usecs/call     calls    errors syscall\n 50.00    0.000010          10         1           clone3\n \
                 50.00    0.000010           3         3         2 execve\n";
    assert_eq!((calls(table, "clone3"), calls(table, "execve"), calls(table, "fork")), (1, 3, 0));
}
