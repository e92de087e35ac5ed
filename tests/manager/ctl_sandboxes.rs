//! Sandboxes by orlopctl, with the words of ctr 2.

use std::fs;

use orlop_tests::{Daemon, Image, Orlopd, Root};
use serde_json::Value;

use crate::ctl::{DEADLINE, IMAGE, import};

#[test]
fn a_sandbox_is_made_shown_and_removed() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    import(&daemon, &root, &Image::busybox(), IMAGE);
    let config = root.join("pod.json");
    fs::write(&config, r#"{"metadata":{"name":"p"},"log_directory":"/tmp","hostname":"pod"}"#).unwrap();
    let config = config.display().to_string();
    let ctl = |words: &[&str]| daemon.orlopctl(words).deadline(DEADLINE).run();
    assert_eq!(ctl(&["sandboxes", "run", &config, "one"]).success().stdout, "one\n");
    let list = ctl(&["sandbox", "ls"]).success().stdout;
    let mut lines = list.lines();
    assert!(lines.next().is_some_and(|head| head.starts_with("ID  CREATED ")), "{list}");
    let row = lines.next().unwrap_or_default();
    assert!(row.starts_with("one ") && row.contains(" +0000 UTC io.containerd.runc.v2 "), "{list}");
    let none = ctl(&["s", "ls", "--filters", "id==other"]).success().stdout;
    assert_eq!(none.lines().count(), 1, "{none}");

    let info: Value = serde_json::from_str(&ctl(&["sb", "info", "one"]).success().stdout).unwrap();
    let runtime = serde_json::json!({
        "Name": "io.containerd.runc.v2", "Options": { "type_url": "google.protobuf.Empty" },
    });
    assert_eq!(
        (&info["ID"], &info["Sandboxer"], &info["Runtime"]),
        (&"one".into(), &"shim".into(), &runtime)
    );
    assert_eq!((&info["Labels"], info["CreatedAt"].is_string()), (&Value::Null, true));

    // A container in it.
    let run = daemon.orlopctl(["run", "--rm", "--sandbox", "one", IMAGE, "in", "echo", "inside"]);
    assert_eq!(run.deadline(DEADLINE).run().success().stdout, "inside\n");

    let again = ctl(&["sandboxes", "run", &config, "one"]).failure();
    assert!(again.stderr.contains("already exists"), "{again}");
    // One that fails leaves nothing, and the one that is there stays.
    let wrong = ctl(&["sandboxes", "run", "--runtime", "io.example.none.v1", &config, "two"]).failure();
    assert!(wrong.stderr.contains("containerd-shim-none-v1"), "{wrong}");
    assert_eq!(ctl(&["sandboxes", "ls"]).success().stdout.lines().count(), 2);

    // As by ctr an unknown one is said and is no failure.
    let removed = ctl(&["sandboxes", "rm", "--force", "unknown", "one"]);
    assert_eq!(removed.code(), 0, "{removed}");
    assert!(removed.stderr.contains("not found"), "{removed}");
    assert_eq!(ctl(&["sandboxes", "ls"]).success().stdout.lines().count(), 1);
    ctl(&["sandboxes", "info", "one"]).failure();
    daemon.stop();
    root.assert_clean();
}

#[test]
fn a_shim_says_what_it_is() {
    let root = Root::new();
    let mut daemon = Orlopd::start(&root);
    let told = daemon.orlopctl(["plugins", "inspect-runtime"]).deadline(DEADLINE).run().success().stdout;
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["Name"], "io.containerd.orlop.v1");
    assert!(told["Features"]["ociVersionMin"].is_string(), "{told}");
    let absent = daemon.orlopctl(["plugins", "inspect-runtime", "--runtime", "io.example.none.v1"]);
    let absent = absent.deadline(DEADLINE).run().failure();
    assert!(absent.stderr.contains("containerd-shim-none-v1"), "{absent}");
    // orlopd warns of nothing.
    assert_eq!(daemon.orlopctl(["deprecations", "list"]).run().success().stdout, "");
    daemon.stop();
}
