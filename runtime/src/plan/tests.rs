use super::*;

fn spec(json: serde_json::Value) -> Spec {
    let mut whole = serde_json::json!({
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}]},
    });
    merge(&mut whole, json);
    serde_json::from_value(whole).unwrap()
}

fn merge(whole: &mut serde_json::Value, part: serde_json::Value) {
    match (whole, part) {
        (serde_json::Value::Object(whole), serde_json::Value::Object(part)) => {
            for (name, value) in part {
                merge(whole.entry(name).or_insert(serde_json::Value::Null), value);
            }
        }
        (whole, part) => *whole = part,
    }
}

fn plan(json: serde_json::Value) -> Result<Plan> {
    let request = Request { id: "x".into(), bundle: "/b".into(), ..Default::default() };
    Plan::for_container(&spec(json), &request, &Host::default()).map(|(plan, _)| plan)
}

fn refusal(json: serde_json::Value) -> String {
    plan(json).unwrap_err().to_string()
}

#[test]
fn a_small_configuration_is_accepted() {
    let plan = plan(serde_json::json!({"hostname": "h"})).unwrap();
    let container = plan.container.unwrap();
    assert_eq!(container.rootfs, Path::new("/b/rootfs"));
    assert_eq!(container.propagation, (libc::MS_SLAVE, true));
    assert_eq!(container.devices.len(), 6);
    assert_eq!(plan.keyring.as_deref(), Some("_ses.x"));
}

#[test]
fn only_a_container_that_is_started_at_once_needs_a_process() {
    assert!(plan(serde_json::json!({"process": null})).unwrap().process.arguments.is_empty());
    let spec = spec(serde_json::json!({"process": null}));
    let request = Request { id: "x".into(), bundle: "/b".into(), starts: true, ..Default::default() };
    let refused = Plan::for_container(&spec, &request, &Host::default()).unwrap_err();
    assert_eq!(refused.to_string(), "process property must not be empty");
}

#[test]
fn refusals_name_what_is_wrong() {
    let cases = [
        (serde_json::json!({"root": null}), "root must be specified"),
        (serde_json::json!({"ociVersion": "2.0.0"}), "only 1.x is"),
        (serde_json::json!({"process": {"args": []}}), "args must not be empty"),
        (serde_json::json!({"process": {"cwd": "a"}}), "must be an absolute path"),
        (serde_json::json!({"hooks": {"poststop": [{"path": "x"}]}}), "is not absolute"),
        (serde_json::json!({"hooks": {"prestart": [{"path": "/x", "timeout": 0}]}}), "greater than zero"),
        (
            serde_json::json!({"hostname": "h", "linux": {"namespaces": [{"type": "mount"}]}}),
            "unable to set hostname without a private UTS namespace",
        ),
        (
            serde_json::json!({"linux": {"namespaces": [], "maskedPaths": ["/proc/kcore"]}}),
            "without a private MNT namespace",
        ),
        (serde_json::json!({"linux": {"rootfsPropagation": "odd"}}), "rootfsPropagation=odd"),
        (serde_json::json!({"linux": {"sysctl": {"net.x": "1"}}}), "in the hosts network namespace"),
        (serde_json::json!({"linux": {"sysctl": {"vm.swappiness": "1"}}}), "separate kernel namespace"),
        (serde_json::json!({"linux": {"sysctl": {"kernel.hostname": "1"}}}), "conflicts"),
        (serde_json::json!({"linux": {"namespaces": [{"type": "mount"}, {"type": "mount"}]}}), "duplicate"),
        (
            serde_json::json!({"linux": {"namespaces": [{"type": "network"}], "sysctl": {"net/../x": "1"}}}),
            "is not a name",
        ),
    ];
    for (json, words) in cases {
        let text = refusal(json.clone());
        assert!(text.contains(words), "{json}: {text}");
    }
}

#[test]
fn paths_are_cleaned() {
    assert_eq!(clean(Path::new("../a/./b//../c")), Path::new("/a/c"));
}
