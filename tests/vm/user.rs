//! The systemd cgroup driver with a user's manager: a container of somebody who is not root, with limits that hold.

use std::fs;
use std::io::Write;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use orlop_tests::{Cmd, binaries};
use serde_json::json;

use crate::support::Runtime;

const USER: u32 = 54321;

/// Lets the user's manager run; the machine is thrown away, so that nothing is taken back but its end.
struct Session;

impl Session {
    fn open() -> Session {
        let mut passwd = fs::File::options().append(true).open("/etc/passwd").unwrap();
        writeln!(passwd, "orlop-user:x:{USER}:{USER}::/tmp:/bin/sh").unwrap();
        let mut group = fs::File::options().append(true).open("/etc/group").unwrap();
        writeln!(group, "orlop-user:x:{USER}:").unwrap();
        // PAM lets nobody in without an entry.
        let mut shadow = fs::File::options().append(true).open("/etc/shadow").unwrap();
        writeln!(shadow, "orlop-user:*:19000:0:99999:7:::").unwrap();
        Cmd::new("systemctl").args(["start", &format!("user@{USER}.service")]).run().success();
        Session
    }

    /// A command that the user's manager runs as one of its services.
    fn cmd(&self, program: &Path) -> Cmd {
        Cmd::new("setpriv")
            .args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups", "--"])
            .args(["systemd-run", "--user", "--quiet", "--wait", "--pipe", "--collect", "--"])
            .arg(program)
            .env("XDG_RUNTIME_DIR", format!("/run/user/{USER}"))
            .env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path=/run/user/{USER}/bus"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        Cmd::new("systemctl").args(["stop", &format!("user@{USER}.service")]).run();
    }
}

#[test]
fn a_users_container_is_a_scope_of_the_users_manager() {
    let session = Session::open();
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().edit(|config| {
        let linux = &mut config["linux"];
        let map = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
        linux["uidMappings"] = map.clone();
        linux["gidMappings"] = map;
        linux["cgroupsPath"] = json!("user.slice:orlop:c1");
        linux["resources"] = json!({"memory": {"limit": 64 << 20}, "pids": {"limit": 17}});
        let namespaces = linux["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "user"}));
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !matches!(mount["destination"].as_str(), Some("/sys" | "/sys/fs/cgroup")));
        for mount in mounts {
            if let Some(options) = mount["options"].as_array_mut() {
                options.retain(|option| option != "gid=5");
            }
        }
    });
    let bundle = bundle.save();
    Cmd::new("chown").args(["--recursive", &format!("{USER}:{USER}")]).arg(bundle.path()).run().success();
    let state = runtime.root.join("users");
    fs::create_dir(&state).unwrap();
    chown(&state, Some(USER), Some(USER)).unwrap();
    let orlop = |words: &[&str]| {
        session.cmd(&binaries::orlop()).arg("--systemd-cgroup").arg("--root").arg(&state).args(words)
    };
    orlop(&["run", "--detach", "--bundle"]).arg(bundle.path()).arg("c1").run().success();
    let out = orlop(&["state", "c1"]).run().success();
    let shown: serde_json::Value = serde_json::from_str(&out.stdout).expect("state is JSON");
    let text = fs::read_to_string(format!("/proc/{}/cgroup", shown["pid"])).unwrap();
    let path = format!("user.slice/user-{USER}.slice/user@{USER}.service/user.slice/orlop-c1.scope");
    assert_eq!(text, format!("0::/{path}\n"));
    let group = PathBuf::from("/sys/fs/cgroup").join(path);
    let control = |file: &str| fs::read_to_string(group.join(file)).unwrap().trim().to_owned();
    assert_eq!((control("memory.max"), control("pids.max")), ("67108864".into(), "17".into()));
    let show = || {
        let systemctl = session.cmd(Path::new("systemctl"));
        systemctl
            .args(["--user", "show", "-p", "TasksMax,MemoryMax,LoadState", "orlop-c1.scope"])
            .run()
            .success()
            .stdout
    };
    assert!(show().contains("TasksMax=17\n") && show().contains("MemoryMax=67108864\n"), "{}", show());
    orlop(&["update", "--pids-limit", "23", "c1"]).run().success();
    assert_eq!(control("pids.max"), "23");
    assert!(show().contains("TasksMax=23\n"), "{}", show());
    let out = orlop(&["exec", "c1", "sh", "-c", "id -u; cat /proc/self/cgroup"]).run().success();
    assert!(out.stdout.starts_with("0\n"), "{out}");
    orlop(&["pause", "c1"]).run().success();
    assert_eq!(control("cgroup.freeze"), "1");
    orlop(&["delete", "--force", "c1"]).run().success();
    assert!(!group.exists());
    assert!(show().contains("LoadState=not-found"), "{}", show());
}
