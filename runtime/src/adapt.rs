//! What the specification allows and the oci-spec crate's types do not read, put into words that they do.
//!
//! Looked at only when a configuration could not be read as it stands, so that it costs nothing otherwise.

use std::collections::BTreeSet;

use serde_json::Value;

/// Scheduler flags whose names the crate spells in its own way: the specification's name and the crate's.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// What was changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Adapted {
    /// Whether reading it again can end otherwise.
    pub changed: bool,
    /// What the user should know of.
    pub warnings: Vec<String>,
}

/// Adapts a configuration.
pub fn configuration(document: &mut Value) -> Adapted {
    let mut adapted = Adapted { changed: leave_out_nulls(document), ..Default::default() };
    if let Some(process) = document.get_mut("process") {
        adapt_process(process, &mut adapted);
    }
    let rules = document.pointer_mut("/linux/resources/devices").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten().filter_map(Value::as_object_mut) {
        // No type means every type.
        if rule.get("type").and_then(Value::as_str) == Some("") {
            rule.remove("type");
            adapted.changed = true;
        }
    }
    adapted
}

/// Adapts the process of an exec.
pub fn process(document: &mut Value) -> Adapted {
    let mut adapted = Adapted { changed: leave_out_nulls(document), ..Default::default() };
    adapt_process(document, &mut adapted);
    adapted
}

fn adapt_process(process: &mut Value, adapted: &mut Adapted) {
    let warnings = leave_out_unknown_capabilities(process.get_mut("capabilities"));
    adapted.changed |= !warnings.is_empty();
    adapted.warnings.extend(warnings);
    let flags = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        let known = SCHEDULER_FLAGS.iter().find(|(name, _)| flag.as_str() == Some(name));
        if let Some((_, crates)) = known {
            *flag = Value::from(*crates);
            adapted.changed = true;
        }
    }
}

/// A member that is null is one that is not there, as Go, in which configurations are written, has it.
fn leave_out_nulls(value: &mut Value) -> bool {
    match value {
        Value::Object(members) => {
            let before = members.len();
            members.retain(|_, member| !member.is_null());
            let below = members.values_mut().fold(false, |changed, member| leave_out_nulls(member) | changed);
            members.len() != before || below
        }
        Value::Array(items) => items.iter_mut().fold(false, |changed, item| leave_out_nulls(item) | changed),
        _ => false,
    }
}

/// Capabilities that nobody knows are left out with a warning, as in runc, since callers list those of newer kernels.
fn leave_out_unknown_capabilities(sets: Option<&mut Value>) -> Vec<String> {
    let mut unknown = BTreeSet::new();
    for set in sets.and_then(|sets| sets.as_object_mut()).into_iter().flat_map(|sets| sets.values_mut()) {
        let Some(names) = set.as_array_mut() else { continue };
        names.retain(|name| match name.as_str() {
            Some(name) if crate::plan::capabilities::bit(name).is_err() => {
                unknown.insert(name.to_owned());
                false
            }
            _ => true,
        });
    }
    unknown.into_iter().map(|name| format!("unknown capability {name:?} is left out")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_specifications_words_become_the_crates() {
        let mut document = json!({
            "process": {"user": null, "scheduler": {"flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM"]}},
            "linux": {"resources": {"devices": [{"allow": true, "type": ""}], "pids": {"limit": null}}},
        });
        let adapted = configuration(&mut document);
        assert_eq!(adapted, Adapted { changed: true, warnings: Vec::new() });
        assert_eq!(
            document,
            json!({
                "process": {"scheduler": {"flags": ["SCHED_RESET_ON_FORK", "SCHED_FLAG_RECLAIM"]}},
                "linux": {"resources": {"devices": [{"allow": true}], "pids": {}}},
            })
        );
        assert_eq!(configuration(&mut document), Adapted::default());
    }

    #[test]
    fn every_name_is_one_that_the_crate_reads() {
        for (_, name) in SCHEDULER_FLAGS {
            let text = format!("[{name:?}]");
            serde_json::from_slice::<Vec<oci_spec::runtime::LinuxSchedulerFlag>>(text.as_bytes()).unwrap();
        }
    }
}
