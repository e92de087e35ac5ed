//! A container that runs out of memory: who asked for events learns it before learning the end.

use orlop_tests::{Bundle, Root};
use serde_json::json;

use orlop_tests::shim::{Fifos, Shim, runtime};

/// A shell that takes 8 MiB and more, where it may have no more than that.
const GREEDY: &str = "x=x; while :; do x=$x$x; done";

fn with_little_memory(bundle: Bundle, script: &str) -> Bundle {
    bundle.sh(script).edit(|config| {
        config["linux"]["resources"]["memory"] = json!({"limit": 8 << 20, "swap": 8 << 20});
    })
}

fn init_runs_out(name: &str) {
    let root = Root::new();
    let mut shim = Shim::start_with(&root, "c", &runtime(name), |bundle| with_little_memory(bundle, GREEDY));
    let id = shim.id.clone();
    shim.run();
    assert_eq!(shim.wait(""), 137);
    let mut events = shim.events.until(&id, "exit init 137");
    events.dedup();
    // A start is told when the runtime says so, which may be after its process has already asked for too much.
    if let Some(at) = events.iter().position(|event| event == "oom") {
        events.remove(at);
        events.insert(events.len() - 1, "oom".to_owned());
        events.dedup();
        assert!(at < 3, "want of memory is told before the end");
    }
    assert_eq!(events, ["create", "start", "oom", "exit init 137"]);
    shim.finish();
    root.assert_clean();
}

#[test]
fn want_of_memory_is_published_before_the_end_with_orlop() {
    init_runs_out("orlop");
}

#[test]
fn want_of_memory_is_published_before_the_end_with_runc() {
    init_runs_out("runc");
}

#[test]
fn an_exec_that_wants_memory_ends_alone() {
    let root = Root::new();
    let mut shim =
        Shim::start_with(&root, "c", &runtime("orlop"), |bundle| with_little_memory(bundle, "sleep 1000"));
    let id = shim.id.clone();
    shim.run();
    shim.exec("e", GREEDY, &Fifos::default());
    shim.start_process("e").unwrap();
    assert_eq!(shim.wait("e"), 137);
    let mut events = shim.events.until(&id, "exit e 137");
    events.dedup();
    assert_eq!(events, ["create", "start", "exec-added e", "exec-started e", "oom", "exit e 137"]);
    assert!(shim.state("").is_ok());
    shim.finish();
    root.assert_clean();
}
