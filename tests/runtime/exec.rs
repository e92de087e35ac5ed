//! More processes in a running container.

use std::fs;

use orlop_tests::poll_until;
use serde_json::json;

use super::support::{PATIENCE, Runtime};

#[test]
fn prints_and_returns_its_exit_code() {
    let runtime = Runtime::new();
    runtime.detach(&runtime.sleeper().save(), "c1");
    let out = runtime.exec("c1", &["sh", "-c", "echo out; echo err >&2; exit 9"]);
    assert_eq!((out.code(), out.stdout.as_str(), out.stderr.as_str()), (9, "out\n", "err\n"));
    assert_eq!(runtime.exec("c1", &["sh", "-c", "kill -KILL $$"]).code(), 137);
    let out = runtime.cmd().args(["exec", "c1", "cat"]).input("through\n").run().success();
    assert_eq!(out.stdout, "through\n");
    runtime.finish("c1");
}

#[test]
fn is_in_the_containers_namespaces_cgroup_and_limits() {
    let runtime = Runtime::new();
    runtime.detach(&runtime.sleeper().save(), "c1");
    let pid = runtime.pid("c1");
    let inside = runtime
        .exec(
            "c1",
            &["sh", "-c", "cd /proc/self/ns; for n in pid net ipc uts mnt cgroup; do readlink $n; done"],
        )
        .success();
    let inside: Vec<&str> = inside.stdout.lines().collect();
    let outside: Vec<String> = ["pid", "net", "ipc", "uts", "mnt", "cgroup"]
        .map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_string_lossy().into_owned())
        .into();
    assert_eq!(inside, outside);
    assert_eq!(
        runtime.exec("c1", &["sh", "-c", "cut -d: -f3 /proc/self/cgroup | sort -u"]).success().stdout,
        "/\n"
    );
    assert_eq!(runtime.exec("c1", &["sh", "-c", "ulimit -n; ulimit -Hn"]).success().stdout, "1024\n1024\n");
    let status = runtime.exec("c1", &["grep", "-E", "CapBnd|NoNewPrivs", "/proc/self/status"]).success();
    assert_eq!(status.stdout, "CapBnd:\t0000000020000420\nNoNewPrivs:\t1\n");
    runtime.finish("c1");
}

#[test]
fn flags_change_the_process() {
    let runtime = Runtime::new();
    runtime.detach(&runtime.sleeper().save(), "c1");
    let script = "pwd; id -u; id -g; id -G; echo $A; grep CapAmb /proc/self/status | cut -f2";
    let out = runtime
        .cmd()
        .args([
            "exec",
            "--cwd",
            "/tmp",
            "--user",
            "1000:1000",
            "--additional-gids",
            "7",
            "--env",
            "A=b",
            "--cap",
            "CAP_CHOWN",
            "c1",
        ])
        .args(["sh", "-c", script])
        .run()
        .success();
    let lines: Vec<&str> = out.stdout.lines().collect();
    assert_eq!(lines[..5], ["/tmp", "1000", "1000", "1000 7", "b"], "{out}");
    runtime.finish("c1");
}

#[test]
fn a_process_from_a_file() {
    let runtime = Runtime::new();
    runtime.detach(&runtime.sleeper().save(), "c1");
    let file = runtime.root.join("process.json");
    let process = json!({"terminal": false, "user": {"uid": 5, "gid": 6}, "args": ["sh", "-c", "id -u; id -g; pwd; echo $X"],
        "env": ["PATH=/bin", "X=y"], "cwd": "/var"});
    fs::write(&file, process.to_string()).unwrap();
    let out = runtime.cmd().args(["exec", "--process"]).arg(&file).arg("c1").run().success();
    assert_eq!(out.stdout, "5\n6\n/var\ny\n");
    runtime.finish("c1");
}

#[test]
fn detached_with_a_pid_file() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().save();
    runtime.detach(&bundle, "c1");
    let file = runtime.root.join("pid");
    runtime
        .cmd()
        .args(["exec", "-d", "--pid-file"])
        .arg(&file)
        .args(["c1", "sh", "-c", "touch /did; exec sleep 1000"])
        .run()
        .success();
    let pid: i32 = fs::read_to_string(&file).unwrap().parse().unwrap();
    poll_until(PATIENCE, "the process works", || bundle.rootfs("/did").exists());
    assert!(orlop_tests::host::alive(pid));
    runtime.finish("c1");
    assert!(!orlop_tests::host::alive(pid));
}

#[test]
fn a_program_that_is_not_there() {
    let runtime = Runtime::new();
    runtime.detach(&runtime.sleeper().save(), "c1");
    let out = runtime.exec("c1", &["no-such-program"]).failure();
    assert!(out.stderr.contains("executable file not found in $PATH"), "{out}");
    let out = runtime.exec("c1", &["/no/such/program"]).failure();
    assert!(out.stderr.contains("no such file or directory"), "{out}");
    let out = runtime.exec("c1", &["/etc/passwd"]).failure();
    assert!(out.stderr.contains("permission denied"), "{out}");
    assert_eq!(runtime.status("c1"), "running");
    runtime.finish("c1");
}

#[test]
fn only_into_running_containers() {
    let runtime = Runtime::new();
    runtime.detach(&runtime.sh("true").save(), "c1");
    runtime.wait_for("c1", "stopped");
    let out = runtime.exec("c1", &["true"]).failure();
    assert!(out.stderr.contains("cannot exec in a stopped container"), "{out}");
    runtime.finish("c1");
}

#[test]
fn many_at_once() {
    let runtime = Runtime::new();
    runtime.detach(&runtime.sleeper().save(), "c1");
    std::thread::scope(|scope| {
        for number in 0..8 {
            let runtime = &runtime;
            scope.spawn(move || {
                for _ in 0..3 {
                    let out = runtime.exec("c1", &["sh", "-c", &format!("echo {number}; exit {number}")]);
                    assert_eq!((out.code(), out.stdout), (number, format!("{number}\n")));
                }
            });
        }
    });
    runtime.finish("c1");
}
