//! Pods through containerd's CRI with our shim as their runtime handler, by `crictl`, which `make newest` builds from Go's module
//! proxy: on Debian's containerd, where a pod is a container that pauses, and on the newest one, with that and with the shim's
//! Sandbox service in its place. `make test` leaves it out and says so.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_tests::{Cmd, Containerd, Daemon, Image, Root, Variant, binaries, go, host, poll_until};
use serde_json::{Value, json};

use crate::newest;
use crate::workload::DEADLINE;

const MODULE: &str = "sigs.k8s.io/cri-tools";
/// The one place that says which `crictl`.
const VERSION: &str = "v1.34.0";
/// What Go's checksum database says of the module.
const SUM: &str = "h1:KqL9EJ+WgHtz1HR1exezm91n+o8O2uMLs/eHzHJHAWw=";
/// Both of a pod's images are this one.
const IMAGE: &str = "example.org/stack/pod:1";

/// Builds `crictl` once.
fn build() -> PathBuf {
    let directory = binaries::target_dir().join("newest").join(format!("crictl-{VERSION}"));
    let program = directory.join("crictl");
    if program.exists() {
        return program;
    }
    let part = directory.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).unwrap();
    let answer = go(&part).args(["mod", "download", "-json", &format!("{MODULE}@{VERSION}")]).run().success();
    let answer: Value = serde_json::from_str(&answer.stdout).expect("JSON from go");
    assert_eq!(answer["Sum"], SUM, "the module is another one");
    let package = format!("{MODULE}/cmd/crictl@{VERSION}");
    let install = go(&part).args(["install", "-trimpath", "-ldflags", "-s -w", &package]);
    install.env("GOBIN", &part).run().success();
    fs::rename(&part, &directory).unwrap();
    program
}

/// `crictl` on a containerd.
struct Cri<'a> {
    program: &'a Path,
    daemon: &'a Containerd,
}

impl Cri<'_> {
    fn cmd(&self, args: &[&str]) -> Cmd {
        let address = format!("unix://{}", self.daemon.address().display());
        Cmd::new(self.program)
            .args(["-c", "/dev/null", "-t", "60s", "-r", &address, "-i", &address])
            .args(args)
    }

    /// What it prints, without the end of the line.
    fn say(&self, args: &[&str]) -> String {
        let output = self.cmd(args).run();
        assert!(output.status.success(), "{output}\n{}", self.daemon.log());
        output.stdout.trim().to_owned()
    }

    fn inspect(&self, container: &str) -> Value {
        serde_json::from_str(&self.say(&["inspect", container])).expect("JSON")
    }

    fn state(&self, container: &str) -> String {
        self.inspect(container)["status"]["state"].as_str().unwrap_or_default().to_owned()
    }
}

/// The address of a pod with a network of its own.
const ADDRESS: &str = "10.213.7.2";

/// A network plugin (CNI) that needs nothing of the host: both ends of a pair of devices lie in the pod's namespace. As `loopback`
/// it does what containerd asks for in every pod.
const PLUGIN: &str = r#"#!/bin/sh
if [ "$CNI_COMMAND" = VERSION ]; then
  echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}'
  exit
fi
version=$(sed -n 's/.*"cniVersion" *: *"\([^"]*\)".*/\1/p')
[ "$CNI_COMMAND" = ADD ] || exit 0
inside() { nsenter "--net=$CNI_NETNS" ip "$@" >&2 || exit 1; }
place="\"sandbox\":\"$CNI_NETNS\""
case $0 in
*/loopback)
  inside link set lo up
  echo "{\"cniVersion\":\"$version\",\"interfaces\":[{\"name\":\"lo\",$place}]}";;
*)
  inside link add eth0 type veth peer name eth1
  inside addr add ADDRESS/24 dev eth0
  inside link set eth0 up
  echo "{\"cniVersion\":\"$version\",\"interfaces\":[{\"name\":\"eth0\",$place}],
    \"ips\":[{\"version\":\"4\",\"interface\":0,\"address\":\"ADDRESS/24\"}]}";;
esac
"#;

/// Writes the plugin and the network that uses it.
fn write_network(root: &Root) {
    let (programs, networks) = (root.join("cni/bin"), root.join("cni/net.d"));
    for directory in [&programs, &networks] {
        fs::create_dir_all(directory).unwrap();
    }
    for name in ["loopback", "inside"] {
        let program = programs.join(name);
        fs::write(&program, PLUGIN.replace("ADDRESS", ADDRESS)).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let network = json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "inside"}]});
    fs::write(networks.join("10-pods.conflist"), network.to_string()).unwrap();
}

/// A pod with two containers through their lives, in the host's network or one of its own.
fn pods(root: &Root, cri: &Cri, with_pause: bool, own_network: bool) {
    let log = root.join("logs");
    fs::create_dir_all(&log).unwrap();
    let write = |name: &str, value: Value| -> String {
        let path = root.join(name);
        fs::write(&path, value.to_string()).unwrap();
        path.display().to_string()
    };
    // POD and NODE.
    let network = if own_network { 0 } else { 2 };
    // Without a container that pauses there is no process that could be the first of a PID namespace.
    let processes = i32::from(!with_pause);
    let security = json!({"namespace_options": {"network": network, "pid": processes}});
    let pod = write(
        "pod.json",
        json!({
            "metadata": {"name": "pod", "namespace": root.tag(), "uid": "u1", "attempt": 1},
            "hostname": if own_network { "pod-1" } else { "" },
            "log_directory": log,
            "linux": {"cgroup_parent": format!("/{}", root.tag()), "security_context": security},
        }),
    );
    let container = |name: &str, script: &str| {
        write(
            &format!("{name}.json"),
            json!({
                "metadata": {"name": name},
                "image": {"image": IMAGE},
                "command": ["sh", "-c", script],
                "log_path": format!("{name}.log"),
                "linux": {"security_context": security},
            }),
        )
    };
    let sandbox = cri.say(&["runp", "--runtime", "orlop", &pod]);
    let long = cri.say(&["create", &sandbox, &container("long", "echo hello; exec sleep 100000"), &pod]);
    let short = cri.say(&["create", &sandbox, &container("short", "exit 7"), &pod]);
    cri.say(&["start", &long]);
    cri.say(&["start", &short]);
    poll_until(DEADLINE, "the short one has ended", || cri.state(&short) == "CONTAINER_EXITED");
    assert_eq!(cri.inspect(&short)["status"]["exitCode"], 7);
    poll_until(DEADLINE, "its log", || {
        fs::read_to_string(log.join("long.log")).is_ok_and(|text| text.contains("stdout F hello"))
    });
    assert_eq!(cri.say(&["exec", "--sync", &long, "echo", "in the pod"]), "in the pod");
    let addresses = cri.say(&["exec", "--sync", &long, "busybox", "ip", "-o", "addr"]);
    assert_eq!(addresses.contains(ADDRESS), own_network, "{addresses}");
    assert_eq!(cri.say(&["exec", "--sync", &long, "busybox", "hostname"]) == "pod-1", own_network);
    let ipc = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/ipc")).unwrap();
    let first = cri.inspect(&long)["info"]["pid"].to_string();
    assert_ne!(ipc(&first), ipc("self"));
    let told: Value = serde_json::from_str(&cri.say(&["inspectp", &sandbox])).expect("JSON");
    assert_eq!(told["status"]["network"]["ip"] == ADDRESS, own_network, "{told}");
    let exec = cri.cmd(&["exec", "--sync", &long, "sh", "-c", "exit 5"]).run();
    assert!(exec.stderr.contains("exited with 5"), "{exec}");
    cri.say(&["update", "--cpu-quota", "50000", "--cpu-period", "100000", &long]);
    assert!(cri.say(&["stats", "-o", "json", &long]).contains(&long));
    // One shim has the whole pod.
    let shims: Vec<i32> = host::processes()
        .into_iter()
        .filter(|task| task.command.contains("containerd-shim") && task.command.contains(root.tag()))
        .map(|task| task.pid)
        .collect();
    assert_eq!(shims.len(), 1, "{shims:?}");
    let pid = cri.inspect(&long)["info"]["pid"].as_i64().expect("a pid") as i32;
    assert_eq!(host::process(pid).expect("it runs").parent, shims[0]);
    assert!(cri.say(&["pods", "-q"]).contains(&sandbox[..13]));
    cri.say(&["stop", "--timeout", "0", &long]);
    assert_eq!(cri.state(&long), "CONTAINER_EXITED");
    cri.say(&["rm", &short]);
    if with_pause {
        // The pod's end takes what still runs in it.
        cri.say(&["start", &cri.say(&["create", &sandbox, &container("late", "exec sleep 100000"), &pod])]);
    }
    cri.say(&["stopp", &sandbox]);
    cri.say(&["rmp", "--force", &sandbox]);
    assert_eq!((cri.say(&["pods", "-q"]), cri.say(&["ps", "-a", "-q"])), (String::new(), String::new()));
}

/// The configuration of CRI's plugins, whose names differ.
fn configuration(root: &Root, is_newest: bool, sandboxer: &str) -> String {
    let runtime = if is_newest { "io.containerd.cri.v1.runtime" } else { "io.containerd.grpc.v1.cri" };
    let pause = if is_newest {
        format!(
            "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = {IMAGE:?}\n[plugins.{runtime:?}]\n"
        )
    } else {
        format!("[plugins.{runtime:?}]\nsandbox_image = {IMAGE:?}\n")
    };
    // Not everybody who runs this may make processes less likely to be killed than their own.
    let pause = pause + "restrict_oom_score_adj = true\n";
    let pause = pause + "netns_mounts_under_state_dir = true\n";
    let sandboxer = if is_newest { format!("sandboxer = {sandboxer:?}\n") } else { String::new() };
    let programs = root.join("cni/bin");
    let programs =
        if is_newest { format!("bin_dirs = [{programs:?}]") } else { format!("bin_dir = {programs:?}") };
    format!(
        "{pause}[plugins.{runtime:?}.cni]\n{programs}\nconf_dir = {:?}\n\
         [plugins.{runtime:?}.containerd]\ndefault_runtime_name = \"orlop\"\n\
         [plugins.{runtime:?}.containerd.runtimes.orlop]\nruntime_type = \"io.containerd.orlop.v1\"\n{sandboxer}",
        root.join("cni/net.d")
    )
}

fn check(crictl: &Path, containerd: Option<PathBuf>, client: Option<PathBuf>, sandboxer: &str) {
    let root = Root::new();
    write_network(&root);
    let containerd_config = configuration(&root, containerd.is_some(), sandboxer);
    let variant = Variant { containerd, client, cri: true, containerd_config, ..Variant::default() };
    let mut daemon = Containerd::start_as(&root, &variant);
    let archive = root.join("image.tar");
    let image = Image::busybox().config(|config| config["Cmd"] = json!(["sleep", "1000000"]));
    image.oci_archive(&archive, IMAGE);
    let import = Cmd::new(daemon.client()).arg("-a").arg(daemon.address());
    import.args(["-n", "k8s.io", "images", "import"]).arg(&archive).run().success();
    let cri = Cri { program: crictl, daemon: &daemon };
    poll_until(Duration::from_secs(30), "CRI knows the image", || {
        cri.say(&["images", "-q"]).contains("sha256")
    });
    for own_network in [false, true] {
        pods(&root, &cri, sandboxer != "shim", own_network);
    }
    daemon.stop();
    root.assert_clean();
}

#[test]
fn newest_pods_run_in_our_shim() {
    if std::env::var_os("ORLOP_NEWEST").is_none() {
        println!("not run: crictl {VERSION}; `make newest` runs it");
        return;
    }
    let crictl = build();
    println!("pods under Debian's containerd");
    check(&crictl, None, None, "podsandbox");
    let programs = newest::build();
    for sandboxer in ["podsandbox", "shim"] {
        println!("pods under the newest containerd, sandboxer {sandboxer}");
        check(&crictl, Some(programs.join("containerd")), Some(programs.join("ctr")), sandboxer);
    }
}
