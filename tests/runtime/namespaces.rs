//! Namespaces: new ones, the host's, and joined ones.

use std::fs;

use orlop_tests::Bundle;
use serde_json::json;

use super::support::Runtime;

fn link(pid: &str, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap().to_string_lossy().into_owned()
}

#[test]
fn new_ones_and_the_hosts() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().save();
    runtime.detach(&bundle, "c1");
    let pid = runtime.pid("c1").to_string();
    for kind in ["pid", "net", "ipc", "uts", "mnt", "cgroup"] {
        assert_ne!(link(&pid, kind), link("self", kind), "{kind}");
    }
    for kind in ["user", "time"] {
        assert_eq!(link(&pid, kind), link("self", kind), "{kind}");
    }
    runtime.finish("c1");
}

#[test]
fn without_namespaces_the_hosts_are_used() {
    let runtime = Runtime::new();
    let bundle = runtime.sleeper().edit(|config| {
        config["linux"]["namespaces"] = json!([{"type": "mount"}]);
        config.as_object_mut().unwrap().remove("hostname");
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !["mqueue", "cgroup", "sysfs"].contains(&mount["type"].as_str().unwrap()));
    });
    runtime.detach(&bundle.save(), "c1");
    let pid = runtime.pid("c1").to_string();
    assert_ne!(link(&pid, "mnt"), link("self", "mnt"));
    for kind in ["pid", "net", "ipc", "uts", "cgroup", "user"] {
        assert_eq!(link(&pid, kind), link("self", kind), "{kind}");
    }
    runtime.finish("c1");
}

#[test]
fn joined_by_path() {
    let runtime = Runtime::new();
    let first = Bundle::new(&runtime.root, "first").args(["sleep", "1000"]).save();
    runtime.detach(&first, "c1");
    let pid = runtime.pid("c1").to_string();
    let second = Bundle::new(&runtime.root, "second").args(["sleep", "1000"]).edit(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        for namespace in namespaces.iter_mut() {
            let (kind, file) = match namespace["type"].as_str().unwrap() {
                "network" => ("network", "net"),
                "ipc" => ("ipc", "ipc"),
                "uts" => ("uts", "uts"),
                "pid" => ("pid", "pid"),
                _ => continue,
            };
            *namespace = json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")});
        }
        config.as_object_mut().unwrap().remove("hostname");
    });
    runtime.detach(&second.save(), "c2");
    let other = runtime.pid("c2").to_string();
    for kind in ["net", "ipc", "uts", "pid"] {
        assert_eq!(link(&other, kind), link(&pid, kind), "{kind}");
    }
    assert_ne!(link(&other, "mnt"), link(&pid, "mnt"));
    runtime.call(&["delete", "-f", "c2"]).success();
    runtime.finish("c1");
}

#[test]
fn the_hostname_is_set_in_a_namespace_of_ones_own() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("hostname").edit(|config| config["hostname"] = json!("a-name"));
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    assert_eq!(runtime.output(&bundle.save()), "a-name\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
    runtime.assert_clean();
}

#[test]
fn the_network_is_empty_but_for_a_working_loopback() {
    let runtime = Runtime::new();
    let bundle =
        runtime.sh("ls /sys/class/net; cat /sys/class/net/lo/operstate; ifconfig lo | grep -c UP").save();
    let out = runtime.output(&bundle);
    assert!(out.starts_with("lo\n") && out.ends_with("1\n"), "{out}");
    runtime.assert_clean();
}

#[test]
fn sysctls() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax").edit(|config| {
        config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "12345"});
    });
    assert_eq!(runtime.output(&bundle.save()), "1\n12345\n");
    runtime.assert_clean();
}

#[test]
fn the_cgroup_namespace_has_the_container_as_its_root() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("cut -d: -f3 /proc/self/cgroup | sort -u").save();
    assert_eq!(runtime.output(&bundle), "/\n");
    runtime.assert_clean();
}

#[test]
fn a_user_namespace() {
    let runtime = Runtime::new();
    let bundle = runtime
        .sh("cat /proc/self/uid_map /proc/self/gid_map; id -u; touch /made; stat -c %u:%g /made")
        .edit(|config| {
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
            config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
            config["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
            config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "sysfs");
        });
    let bundle = bundle.save();
    for path in ["", "tmp", "bin", "etc", "dev", "proc", "sys"] {
        std::os::unix::fs::chown(bundle.rootfs(path), Some(100_000), Some(200_000)).unwrap();
    }
    // The mapped root must get to the root file system.
    let out = runtime.output(&bundle);
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "200000", "65536", "0", "0:0"]);
    use std::os::unix::fs::MetadataExt;
    let made = fs::metadata(bundle.rootfs("/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (100_000, 200_000));
    runtime.assert_clean();
}
