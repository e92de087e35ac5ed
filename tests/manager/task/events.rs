//! Events: filters, and `orlopd publish` as foreign shims call it.

use orlop_proto::any;
use orlop_proto::containerd::events::TaskOom;
use orlop_tests::{Cmd, Daemon, Output, binaries};
use prost::Message;

use super::{Stage, foreign};

fn publish(stage: &Stage, namespace: &str, topic: &str) -> Output {
    let event = any::pack(&TaskOom { container_id: "c".into() });
    let mut cmd = Cmd::new(binaries::orlopd()).arg("--address").arg(stage.orlopd.address());
    cmd = cmd.args(["publish", "--topic", topic]);
    if !namespace.is_empty() {
        cmd = cmd.args(["--namespace", namespace]);
    }
    cmd.input(event.encode_to_vec()).run()
}

#[test]
fn published_events_reach_whom_their_filter_lets() {
    let stage = Stage::new(&foreign());
    let all = stage.events(&[]);
    publish(&stage, "one", "/tasks/oom").success();
    assert_eq!(all.wait("/tasks/oom", &[]), r#"/tasks/oom {"container_id":"c"}"#);

    let chosen = stage.events(&["namespace==two,topic~=|^/tasks/|", "event.container_id==d"]);
    // Its subscription stands when one that it chooses arrives; those that it does not choose never do.
    orlop_tests::poll_until(super::DEADLINE, "the filtered subscription stands", || {
        publish(&stage, "one", "/tasks/oom").success();
        publish(&stage, "two", "/tasks/oom").success();
        !chosen.0.stdout().is_empty()
    });
    let seen = chosen.0.stdout();
    assert!(seen.lines().all(|line| line.contains(" two /tasks/oom ")), "{seen}");
    drop((all, chosen));
    stage.finish();
}

#[test]
fn what_is_malformed_is_refused_in_containerds_words() {
    let stage = Stage::new(&foreign());
    for (namespace, topic, expected) in [
        ("", "/x/y", "namespace is required: failed precondition"),
        ("a/b", "/x/y", r#"identifier "a/b" must match"#),
        ("one", "x/y", r#"envelope topic "x/y": must start with '/': invalid argument"#),
        ("one", "/", r#"envelope topic "/": must have at least one component: invalid argument"#),
    ] {
        let out = publish(&stage, namespace, topic).failure();
        assert!(out.stderr.contains(expected), "{out}");
    }
    let out = stage.ctr(&["events", "a..b"]).run().failure();
    let expected = "subscription error: failed parsing subscription filters: filters: parse error: \
                    [a. >|.|< b]: expected field or quoted: invalid argument";
    assert!(out.stderr.contains(expected), "{out}");
    stage.finish();
}
