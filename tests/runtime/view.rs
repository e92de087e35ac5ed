//! The whole view from inside, compared with that in Debian's runc, line by line.

use serde_json::{Value, json};

use super::support::Runtime;

/// Prints what a container can see of itself, without what changes from run to run.
const SCRIPT: &str = r#"
exec 2>&1
echo "== process"; grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:|Umask)' /proc/self/status
cat /proc/self/limits /proc/self/oom_score_adj /proc/self/comm; pwd; env | sort
echo "== mounts"; awk '{ print $5, $6 }' /proc/self/mountinfo
echo "== devices"; cd /dev; find . | sort | while read f; do echo "$f $(stat -c '%F %t:%T %a %u:%g' $f) $(readlink $f)"; done
echo "== files"; ls -lA / | awk '{ print $1, $3, $4, $9, $10, $11 }'
echo "== masks"; for f in /proc/kcore /proc/keys /proc/timer_list /proc/sysrq-trigger /proc/sys /sys/firmware /proc/bus /proc/scsi; do
  stat -c '%n %F %t:%T %a' $f; done
echo "== kernel"; hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmax; ls /sys/class/net
echo "== descriptors"; ls -l /proc/self/fd | awk '{ print $9 }' | sort
echo "== tree"; ls /proc | grep -E '^[0-9]+$' | sort -n | head -1; ls -d /sys/fs/cgroup/* 2>/dev/null
"#;

fn compare(change: impl Fn(&mut Value)) {
    let view = |runtime: &Runtime| {
        let bundle = runtime.sh(SCRIPT).edit(&change).save();
        let out = runtime.run(&bundle).success();
        runtime.assert_clean();
        plain(&out.stdout.replace(runtime.root.tag(), "TAG"))
    };
    let (ours, theirs) = (view(&Runtime::new()), view(&Runtime::reference()));
    let difference: Vec<String> = diff(&theirs, &ours);
    assert!(difference.is_empty(), "runc (-) and we (+) differ:\n{}", difference.join("\n"));
}

/// Where our mounts are stricter on purpose: read-only and masked paths, and the directory of the cgroup hierarchies, keep or
/// get the flags nosuid, nodev and noexec, and a masked directory is not writable for anybody.
const STRICTER: [&str; 9] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
    "/proc/acpi",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/fs/cgroup",
];

/// The text without what may differ.
fn plain(text: &str) -> String {
    let line = |line: &str| match line.split_once(' ') {
        Some((path, _)) if STRICTER.contains(&path) => path.to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Lines of one text alone, marked.
fn diff(old: &str, new: &str) -> Vec<String> {
    let gone = old.lines().filter(|line| !new.lines().any(|one| one == *line)).map(|line| format!("-{line}"));
    let come = new.lines().filter(|line| !old.lines().any(|one| one == *line)).map(|line| format!("+{line}"));
    let mut all: Vec<String> = gone.chain(come).collect();
    if all.is_empty() && old != new {
        all.push("the same lines in another order".to_owned());
    }
    all
}

#[test]
fn of_a_default_container() {
    compare(|_| {});
}

#[test]
fn of_a_read_only_container() {
    compare(|config| config["root"]["readonly"] = json!(true));
}

#[test]
fn of_an_ordinary_user() {
    compare(|config| {
        config["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [5, 2000]});
        config["process"]["capabilities"]["ambient"] = json!(["CAP_KILL"]);
        config["process"]["capabilities"]["inheritable"] = json!(["CAP_KILL"]);
    });
}

#[test]
fn of_a_privileged_container() {
    compare(|config| {
        config["linux"]["maskedPaths"] = json!([]);
        config["linux"]["readonlyPaths"] = json!([]);
        config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
        config["process"]["noNewPrivileges"] = json!(false);
        for mount in config["mounts"].as_array_mut().unwrap() {
            if let Some(options) = mount["options"].as_array_mut() {
                options.retain(|option| option != "ro");
            }
        }
    });
}

#[test]
fn of_a_container_with_a_docker_like_configuration() {
    compare(|config| {
        let capabilities = json!([
            "CAP_CHOWN",
            "CAP_DAC_OVERRIDE",
            "CAP_FSETID",
            "CAP_FOWNER",
            "CAP_MKNOD",
            "CAP_NET_RAW",
            "CAP_SETGID",
            "CAP_SETUID",
            "CAP_SETFCAP",
            "CAP_SETPCAP",
            "CAP_NET_BIND_SERVICE",
            "CAP_SYS_CHROOT",
            "CAP_KILL",
            "CAP_AUDIT_WRITE"
        ]);
        config["process"]["capabilities"] =
            json!({"bounding": capabilities, "effective": capabilities, "permitted": capabilities});
        config["process"]["noNewPrivileges"] = json!(false);
        config["process"].as_object_mut().unwrap().remove("rlimits");
        config["linux"]["sysctl"] =
            json!({"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"});
        config["linux"]["resources"] = json!({"blockIO": {}, "memory": {}, "cpu": {"shares": 0}, "pids": {}, "devices": [
            {"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}, {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"}]});
        config["linux"]["resources"]["pids"] = json!({"limit": 0});
        config["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}]});
    });
}
