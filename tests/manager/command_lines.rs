//! What an operator of containerd types, with `orlopd` in its place.

use std::fs;

use orlop_tests::{Cmd, Output, Root, binaries};

#[test]
fn a_hook_gets_what_the_state_says_as_by_containerd() {
    let root = Root::new();
    fs::write(root.join("config.json"), r#"{"root":{"path":"files"}}"#).unwrap();
    let state = serde_json::json!({
        "ociVersion": "1.0.2", "id": "box", "status": "creating", "pid": 42,
        "bundle": root.path(), "annotations": { "a.b/c": "noted" },
    });
    let run = |daemon: &std::path::Path, words: &[&str]| -> Output {
        let hook = Cmd::new(daemon).args(["oci-hook", "--"]).args(words).env("FILLED", "of {{id}}");
        hook.input(state.to_string()).run()
    };
    let (ours, theirs) = (binaries::orlopd(), binaries::system("containerd"));
    let script = "echo \"$0 $1 $2 $3 $4 $FILLED\"; cat";
    let arguments =
        ["{{id}}:{{ status }}", "{{pid}}", "{{rootfs}}", "{{bundle}}", "x{{annotation \"a.b/c\"}}y"];
    let words = [&["/bin/sh", "-c", script][..], &arguments].concat();
    let told = run(&ours, &words).success();
    let bundle = root.path().display();
    assert_eq!(told.stdout, format!("box:creating 42 {bundle}/files {bundle} xnotedy of box\n"));
    assert_eq!(told.stdout, run(&theirs, &words).success().stdout);
    for wrong in ["{{nothing}}", "{{id"] {
        let refused = [run(&ours, &["/bin/echo", wrong]), run(&theirs, &["/bin/echo", wrong])];
        assert!(refused.iter().all(|refused| refused.code() == 1), "{}{}", refused[0], refused[1]);
    }
    assert_eq!(run(&ours, &["/bin/sh", "-c", "exit 3"]).code(), 3);
}

#[test]
fn the_configuration_is_migrated_by_printing_it() {
    let root = Root::new();
    let file = root.join("config.toml");
    fs::write(&file, "[gc]\nschedule_delay = 7\n").unwrap();
    let print = |verb: &str| {
        let words = Cmd::new(binaries::orlopd()).arg("-c").arg(&file).args(["config", verb]);
        words.run().success().stdout
    };
    assert!(print("migrate").contains("schedule_delay = 7"));
    assert_eq!(print("migrate"), print("dump"));
}
