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

/// What is published of a container whose init asks for too much; memory may run out more than once in a row.
fn init_runs_out(name: &str) -> Vec<String> {
    let root = Root::new();
    let mut shim = Shim::start_with(&root, "c", &runtime(name), |bundle| with_little_memory(bundle, GREEDY));
    let id = shim.id.clone();
    shim.run();
    assert_eq!(shim.wait(""), 137);
    let mut events = shim.events.until(&id, "exit init 137");
    events.dedup();
    shim.finish();
    root.assert_clean();
    events
}

#[test]
fn want_of_memory_is_published_before_the_end_with_orlop() {
    assert_eq!(init_runs_out("orlop"), ["create", "start", "oom", "exit init 137"]);
}

#[test]
fn want_of_memory_is_published_before_the_end_with_runc() {
    let events = init_runs_out("runc");
    // The start is published when runc has ended, and by then the process may have asked for too much.
    let orders: [&[&str]; 3] = [
        &["create", "start", "oom", "exit init 137"],
        &["create", "oom", "start", "exit init 137"],
        &["create", "oom", "start", "oom", "exit init 137"],
    ];
    assert!(orders.iter().any(|order| events == *order), "{events:?}");
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
