//! Mutated configurations for the runtime: it runs the container or refuses it with one error, and leaves nothing either way.

use std::time::Duration;

use orlop_tests::{Bundle, Cmd, Root, binaries};
use serde_json::json;

use crate::for_a_while;

#[test]
fn a_mutated_configuration_is_run_or_refused() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "b").args(["true"]);
    let state = root.join("state");
    // A mount namespace of its own in which the host's file systems are read-only: a mutated mount must not reach them.
    let fence =
        "mount --make-rprivate / && mount -o bind \"$0\" \"$0\" && mount -o remount,ro,bind / && exec \"$@\"";
    for_a_while("config.json", |random| {
        let mut config = bundle.config().clone();
        for _ in 0..=random.below(4) {
            random.mutate_json(&mut config);
        }
        // What would let a container out of the fence, or on for ever, stays as it was.
        if !config.is_object() {
            config = json!({});
        }
        for part in ["root", "hooks"] {
            config[part] = bundle.config()[part].clone();
        }
        if config["process"].is_object() {
            config["process"]["args"] = json!(["true"]);
            config["process"]["terminal"] = json!(false);
        }
        if config["linux"].is_object() {
            for part in ["cgroupsPath", "namespaces"] {
                config["linux"][part] = bundle.config()["linux"][part].clone();
            }
            // A group without processor time would never end.
            config["linux"]["resources"] = bundle.config()["linux"]["resources"].clone();
        } else {
            config["linux"] = bundle.config()["linux"].clone();
        }
        let saved = bundle.clone().edit(|old| *old = config).save();
        let out = Cmd::new("unshare")
            .args(["-m", "sh", "-c", fence])
            .arg(root.path())
            .arg(binaries::orlop())
            .arg("--root")
            .arg(&state)
            .args(["run", "--bundle"])
            .arg(saved.path())
            .arg("c1")
            .deadline(Duration::from_secs(20))
            .run();
        assert!(out.status.code().is_some(), "ended by a signal: {out}");
        assert!(!out.stderr.contains("panicked"), "{out}");
        assert!(out.status.success() || !out.stderr.trim().is_empty(), "failed without a word: {out}");
        let left: Vec<_> = std::fs::read_dir(&state).map(|dir| dir.flatten().collect()).unwrap_or_default();
        assert!(left.is_empty(), "state left behind: {left:?}, {out}");
    });
    root.assert_clean();
}

#[test]
fn mutated_json_is_refused_or_run() {
    let root = Root::new();
    let bundle = Bundle::new(&root, "b").args(["true"]).save();
    let text = serde_json::to_vec(bundle.config()).unwrap();
    for_a_while("config.json, bytes", |random| {
        let mut bytes = text.clone();
        random.mutate_bytes(&mut bytes);
        // Only what is no JSON any more: bytes that still are could name anything.
        if serde_json::from_slice::<serde_json::Value>(&bytes).is_ok() {
            return;
        }
        std::fs::write(bundle.path().join("config.json"), &bytes).unwrap();
        let out = Cmd::new(binaries::orlop())
            .arg("--root")
            .arg(root.join("state"))
            .args(["run", "--bundle"])
            .arg(bundle.path())
            .arg("c1")
            .run();
        // runc takes what follows the closing brace for nothing.
        assert!(out.status.success() || (out.code() == 1 && !out.stderr.is_empty()), "{out}");
        assert!(!out.stderr.contains("panicked"), "{out}");
    });
    root.assert_clean();
}
