//! Network devices that move into a container. The devices are pairs of virtual ones in a network namespace of the test's.

use orlop_tests::{Bundle, Cmd, Output, binaries};
use serde_json::{Value, json};

use super::support::Runtime;

/// A network namespace by a test's name, gone when dropped.
struct Network<'a> {
    runtime: &'a Runtime,
    name: String,
}

impl<'a> Network<'a> {
    fn new(runtime: &'a Runtime, suffix: &str) -> Network<'a> {
        let name = format!("{}{suffix}", runtime.root.tag());
        Cmd::new(binaries::system("ip")).args(["netns", "add", &name]).run().success();
        Network { runtime, name }
    }

    /// Runs `ip` with these words in it.
    #[track_caller]
    fn ip(&self, words: &str) -> String {
        let ip = Cmd::new(binaries::system("ip")).args(["-n", &self.name]);
        ip.args(words.split(' ')).run().success().stdout
    }

    /// The runtime, called from within it.
    fn call(&self, verb: &[&str], bundle: Option<&Bundle>, id: &str) -> Output {
        let mut cmd = Cmd::new(binaries::system("nsenter"))
            .arg(format!("--net={}", self.path()))
            .arg(binaries::orlop())
            .arg("--root")
            .arg(self.runtime.state_dir())
            .args(verb);
        if let Some(bundle) = bundle {
            cmd = cmd.arg("--bundle").arg(bundle.path());
        }
        cmd.arg(id).run()
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }
}

impl Drop for Network<'_> {
    fn drop(&mut self) {
        // A test that failed halfway may have none.
        let _ = Cmd::new(binaries::system("ip")).args(["netns", "delete", &self.name]).run();
    }
}

fn moving(runtime: &Runtime, script: &str, devices: Value) -> Bundle {
    runtime.sh(script).edit(|config| config["linux"]["netDevices"] = devices)
}

#[test]
fn a_device_moves_with_its_lasting_addresses_and_is_up() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let host = Network::new(&runtime, "-h");
    host.ip("link add veth0 type veth peer name veth1");
    host.ip("link set veth0 mtu 1400");
    host.ip("link set veth0 address 0a:00:00:00:00:07");
    host.ip("link set veth0 up");
    host.ip("link set veth1 up");
    host.ip("addr add 10.7.0.2/24 brd 10.7.0.255 dev veth0");
    host.ip("addr add 10.8.0.1 peer 10.8.0.2/32 dev veth0");
    host.ip("addr add fd00:7::2/64 dev veth0 nodad");
    host.ip("addr add 169.254.7.7/16 scope link dev veth0");
    host.ip("addr add 10.9.0.2/24 valid_lft 600 preferred_lft 600 dev veth0");
    let script = "ip addr show dev eth7; cat /sys/class/net/eth7/mtu";
    let bundle = moving(&runtime, script, json!({"veth0": {"name": "eth7"}})).save();
    let out = host.call(&["run"], Some(&bundle), "c1").success().stdout;
    for words in [
        "10.7.0.2/24",
        "brd 10.7.0.255",
        "10.8.0.1 peer 10.8.0.2/32",
        "fd00:7::2/64",
        "0a:00:00:00:00:07",
        ",UP",
        "\n1400",
    ] {
        assert!(out.contains(words), "{words}: {out}");
    }
    // Neither what is valid on one link alone nor what is leased.
    assert!(!out.contains("169.254") && !out.contains("10.9.0"), "{out}");
    // The device has gone with the container's namespace.
    assert!(!host.ip("link show").contains("veth0"));
    drop(host);
    runtime.assert_clean();
}

#[test]
fn names_in_the_container() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let host = Network::new(&runtime, "-h");
    for number in [0, 2, 4] {
        host.ip(&format!("link add veth{number} type veth peer name veth{}", number + 1));
    }
    let devices = json!({"veth0": {}, "veth2": {"name": "eth%d"}, "veth4": {"name": "eth%d"}});
    let bundle = moving(&runtime, "ls /sys/class/net", devices).save();
    assert_eq!(host.call(&["run"], Some(&bundle), "c1").success().stdout, "eth0\neth1\nlo\nveth0\n");
    drop(host);
    runtime.assert_clean();
}

#[test]
fn into_a_namespace_that_is_joined_where_it_stays() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let (host, pod) = (Network::new(&runtime, "-h"), Network::new(&runtime, "-p"));
    host.ip("link add veth0 type veth peer name veth1");
    host.ip("addr add 10.7.0.2/24 dev veth0");
    pod.ip("link add taken type veth peer name other");
    let join = |devices: Value| {
        moving(&runtime, "ip -o -4 addr show dev eth0", devices)
            .edit(|config| {
                let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.retain(|namespace| namespace["type"] != "network");
                namespaces.push(json!({"type": "network", "path": pod.path()}));
            })
            .save()
    };
    let refused = host.call(&["run"], Some(&join(json!({"veth0": {"name": "taken"}}))), "c1").failure();
    assert!(refused.stderr.contains("taken"), "{refused}");
    assert!(host.ip("link show").contains("veth0"), "the device was moved before the refusal");
    let out = host.call(&["run"], Some(&join(json!({"veth0": {"name": "eth0"}}))), "c1").success();
    assert!(out.stdout.contains("10.7.0.2/24"), "{out}");
    // Whoever made the namespace has it from now on.
    assert!(pod.ip("addr show dev eth0").contains("10.7.0.2/24"));
    drop((host, pod));
    runtime.assert_clean();
}

#[test]
fn a_creation_that_fails_later_gives_devices_back() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let (host, pod) = (Network::new(&runtime, "-h"), Network::new(&runtime, "-p"));
    host.ip("link add veth0 type veth peer name veth1");
    host.ip("addr add 10.7.0.2/24 dev veth0");
    host.ip("link set veth0 up");
    for (joined, name) in [(true, "eth0"), (false, "eth0"), (true, "eth%d")] {
        let bundle =
            moving(&runtime, "", json!({"veth0": {"name": name}, "veth1": {}})).args(["/no-such-program"]);
        let bundle = bundle.edit(|config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            let namespace = namespaces.iter_mut().find(|namespace| namespace["type"] == "network").unwrap();
            if joined {
                namespace["path"] = json!(pod.path());
            }
        });
        let out = host.call(&["create"], Some(&bundle.save()), "c1").failure();
        assert!(out.stderr.contains("no-such-program") && !out.stderr.contains("undoing"), "{out}");
        let found = host.ip("addr show dev veth0");
        assert!(found.contains("10.7.0.2/24") && found.contains(",UP"), "{found}");
        let found = host.ip("addr show dev veth1");
        assert!(!found.contains(",UP"), "it was off: {found}");
        assert_eq!(pod.ip("-o link show").lines().count(), 1, "{}", pod.ip("-o link show"));
    }
    drop((host, pod));
    runtime.assert_clean();
}

#[test]
fn with_a_user_namespace() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    let host = Network::new(&runtime, "-h");
    host.ip("link add veth0 type veth peer name veth1");
    host.ip("addr add 10.7.0.2/24 dev veth0");
    let bundle =
        moving(&runtime, "ip -o -4 addr show dev eth0", json!({"veth0": {"name": "eth0"}})).edit(|config| {
            config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
            let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
            config["linux"]["uidMappings"] = map.clone();
            config["linux"]["gidMappings"] = map;
        });
    let bundle = bundle.save();
    for path in ["", "dev", "proc", "sys"] {
        std::os::unix::fs::chown(bundle.rootfs(path), Some(100_000), Some(100_000)).unwrap();
    }
    let out = host.call(&["run"], Some(&bundle), "c1").success();
    assert!(out.stdout.contains("10.7.0.2/24"), "{out}");
    drop(host);
    runtime.assert_clean();
}

#[test]
fn what_cannot_move_is_refused() {
    let runtime = Runtime::new();
    if runtime.is_reference() {
        return;
    }
    for (devices, words) in [
        (json!({"orlop-none": {}}), "orlop-none"),
        (json!({"lo": {"name": "a/b"}}), "invalid network device name"),
        (json!({"sixteen-letters0": {}}), "invalid network device name"),
    ] {
        let out = runtime.run(&moving(&runtime, "echo ran", devices).save()).failure();
        assert!(out.stderr.contains(words) && out.stdout.is_empty(), "{out}");
        runtime.assert_clean();
    }
    let bundle = moving(&runtime, "echo ran", json!({"lo": {}})).edit(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|one| one["type"] != "network");
    });
    let out = runtime.run(&bundle.save()).failure();
    assert!(out.stderr.contains("without a NET namespace"), "{out}");
    // Every namespace has a loopback device of its own, and goes on having it.
    let out = runtime.run(&moving(&runtime, "echo ran", json!({"lo": {}})).save()).failure();
    assert!(out.stderr.contains("move network device lo"), "{out}");
    let flags = std::fs::read_to_string("/sys/class/net/lo/flags").unwrap();
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap();
    assert_eq!(flags & 1, 1, "the host's loopback device is off");
    runtime.assert_clean();
}
