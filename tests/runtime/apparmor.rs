//! AppArmor profiles: applied where the kernel has AppArmor (in the virtual machine of `make test-vm`), refused where not.

use std::fs;
use std::path::Path;

use orlop_tests::{Cmd, Root, binaries};
use serde_json::json;

use super::support::Runtime;

fn kernel_has_apparmor() -> bool {
    fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

/// A profile that allows everything but reading `/secret`, gone at the end.
struct Profile {
    name: String,
    text: String,
}

impl Profile {
    fn load(root: &Root) -> Profile {
        let name = format!("{}-profile", root.tag());
        let text = format!(
            "profile {name} flags=(attach_disconnected, mediate_deleted) {{\n  file,\n  capability,\n  network,\n  \
             mount,\n  umount,\n  signal,\n  ptrace,\n  deny /secret r,\n}}\n"
        );
        parser("--replace", &text);
        Profile { name, text }
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            parser("--remove", &self.text);
        }
    }
}

fn parser(action: &str, text: &str) {
    Cmd::new(binaries::system("apparmor_parser")).args(["--skip-cache", action]).input(text).run().success();
}

#[test]
fn a_profile_confines_the_container_and_its_execs() {
    let runtime = Runtime::new();
    if !kernel_has_apparmor() {
        let bundle =
            runtime.sh("echo ran").edit(|config| config["process"]["apparmorProfile"] = json!("some"));
        let out = runtime.run(&bundle.save()).failure();
        assert!(out.stderr.contains("unable to apply apparmor profile") && out.stdout.is_empty(), "{out}");
        runtime.assert_clean();
        return;
    }
    let profile = Profile::load(&runtime.root);
    let script =
        "cat /proc/self/attr/current >/seen; cat /secret >>/seen 2>&1; mv /seen /ready; exec sleep 1000";
    let bundle = runtime.sh(script).edit(|config| config["process"]["apparmorProfile"] = json!(profile.name));
    fs::write(bundle.rootfs("/secret"), "told\n").unwrap();
    let bundle = bundle.save();
    runtime.detach(&bundle, "c1");
    let seen = super::support::content(&bundle.rootfs("/ready"));
    let confined = format!("{} (enforce)\n", profile.name);
    assert!(seen.starts_with(&confined) && seen.contains("Permission denied"), "{seen}");

    let out = runtime.exec("c1", &["sh", "-c", "cat /proc/self/attr/current; cat /secret"]);
    assert_eq!(out.stdout, confined, "as the container's own process is: {out}");
    assert!(out.stderr.contains("Permission denied"), "{out}");
    let exec = |profile: &str| {
        let command = ["c1", "sh", "-c", "cat /proc/self/attr/current; cat /secret"];
        runtime.cmd().args(["exec", "--apparmor", profile]).args(command).run()
    };
    let free = exec("unconfined").success();
    assert_eq!(free.stdout, "unconfined\ntold\n");
    let missing = exec("no-such-profile").failure();
    assert!(missing.stderr.contains("unable to apply apparmor profile"), "{missing}");
    assert!(missing.stdout.is_empty(), "{missing}");
    runtime.finish("c1");
}

#[test]
fn a_profile_that_is_not_loaded_stops_the_start() {
    let runtime = Runtime::new();
    let bundle = runtime.sh("echo ran");
    let bundle = bundle.edit(|config| config["process"]["apparmorProfile"] = json!("no-such-profile")).save();
    let out = runtime.run(&bundle).failure();
    assert!(out.stderr.contains("unable to apply apparmor profile") && out.stdout.is_empty(), "{out}");
    assert!(!Path::new(&runtime.state_dir()).join("c1").exists());
    runtime.assert_clean();
}
