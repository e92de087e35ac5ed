//! A unit's properties for what is written to control files, so that systemd, which writes them too, does not undo it. Pure.
//!
//! Follows systemd.resource-control(5) and org.freedesktop.systemd1(5), and runc where these are silent.

use std::borrow::Cow;

use super::super::devices::{Devices, Policy, Type};
use super::super::limits::Setting;
use super::unit::Unit;
use super::value::Value;

/// A property's name and value.
pub(in crate::cgroup) type Property = (Cow<'static, str>, Value);

/// A property of ours.
fn property(name: &'static str, value: Value) -> Property {
    (name.into(), value)
}

/// systemd's word for no limit.
const INFINITY: u64 = u64::MAX;
/// systemd keeps a CPU quota in steps of this many microseconds per second.
const QUOTA_STEP: u64 = 10_000;

/// What a new unit starts with: `placeholder` is the process that it holds first, as no scope is without one.
pub(super) fn new_unit(unit: &Unit, id: &str, placeholder: i32) -> Vec<Property> {
    let mut all = vec![property("Description", Value::text(format!("orlop container {id}")))];
    if unit.is_slice() {
        all.push(property("Wants", Value::Array("s".into(), vec![Value::text(&*unit.slice)])));
    } else {
        all.push(property("Slice", Value::text(&*unit.slice)));
        // What is below it is ours.
        all.push(property("Delegate", Value::Bool(true)));
        all.push(property("PIDs", Value::Array("u".into(), vec![Value::U32(placeholder as u32)])));
    }
    for name in ["MemoryAccounting", "CPUAccounting", "IOAccounting", "TasksAccounting"] {
        all.push(property(name, Value::Bool(true)));
    }
    // Neither ordering after the system's start nor a stop at its shutdown by anybody else's rules.
    all.push(property("DefaultDependencies", Value::Bool(false)));
    all
}

/// The properties for settings of either version. A file that systemd does not know is only written.
pub(in crate::cgroup) fn of_settings<'a>(
    settings: impl Iterator<Item = &'a Setting> + Clone,
) -> Vec<Property> {
    let value = |file: &str| settings.clone().find(|one| one.file == file).map(|one| one.value.trim());
    let mut all: Vec<Property> =
        settings.clone().flat_map(|setting| of_file(&setting.file, setting.value.trim())).collect();
    // Version 1 has two files for what is one property's worth.
    if let (Some(limit), Some(period)) = (value("cpu.cfs_quota_us"), value("cpu.cfs_period_us")) {
        let limit = if limit.starts_with('-') { "max" } else { limit };
        all.extend(quota(&format!("{limit} {period}")));
    }
    all
}

fn of_file(file: &str, value: &str) -> Vec<Property> {
    let number = || match value {
        "max" | "-1" => Some(INFINITY),
        value => value.parse().ok(),
    };
    let limit = |name| number().map(|number| property(name, Value::U64(number))).into_iter().collect();
    match file {
        "memory.max" => limit("MemoryMax"),
        "memory.limit_in_bytes" => limit("MemoryLimit"),
        "memory.high" => limit("MemoryHigh"),
        "memory.low" => limit("MemoryLow"),
        "memory.min" => limit("MemoryMin"),
        "memory.swap.max" => limit("MemorySwapMax"),
        "pids.max" => limit("TasksMax"),
        "cpu.weight" => limit("CPUWeight"),
        "cpu.shares" => limit("CPUShares"),
        "io.weight" => limit("IOWeight"),
        // A weight of 0 is how systemd says idle.
        "cpu.idle" if value == "1" => vec![property("CPUWeight", Value::U64(0))],
        "cpu.max" => quota(value),
        "cpuset.cpus" => mask(value).map(|mask| property("AllowedCPUs", mask)).into_iter().collect(),
        "cpuset.mems" => mask(value).map(|mask| property("AllowedMemoryNodes", mask)).into_iter().collect(),
        _ => Vec::new(),
    }
}

/// `cpu.max`: quota and period in microseconds.
fn quota(value: &str) -> Vec<Property> {
    let mut words = value.split_whitespace();
    let quota = words.next().unwrap_or("max");
    let period: u64 =
        words.next().and_then(|period| period.parse().ok()).filter(|period| *period > 0).unwrap_or(100_000);
    let per_second = match quota.parse::<u64>() {
        Ok(quota) => quota.saturating_mul(1_000_000).div_ceil(period).next_multiple_of(QUOTA_STEP),
        Err(_) => INFINITY,
    };
    vec![
        property("CPUQuotaPeriodUSec", Value::U64(period)),
        property("CPUQuotaPerSecUSec", Value::U64(per_second)),
    ]
}

/// A list such as `0-2,5` as the bit mask that systemd takes, the lowest bits first.
fn mask(list: &str) -> Option<Value> {
    /// More processors or nodes than any kernel can have.
    const MOST: usize = 1 << 16;
    let mut bytes = Vec::new();
    for range in list.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last >= MOST {
            return None;
        }
        for bit in first..=last {
            if bytes.len() <= bit / 8 {
                bytes.resize(bit / 8 + 1, 0);
            }
            bytes[bit / 8] |= 1 << (bit % 8);
        }
    }
    Some(Value::Bytes(bytes))
}

/// The properties for device rules. systemd can say what is allowed besides nothing, not what is denied besides nothing.
pub(in crate::cgroup) fn of_devices(policy: &Policy) -> Vec<Property> {
    let list = |rules: Vec<Value>| property("DeviceAllow", Value::Array("(ss)".into(), rules));
    if policy.allows {
        return vec![property("DevicePolicy", Value::text("auto")), list(Vec::new())];
    }
    let rules = policy.exceptions.iter().map(|(devices, access)| {
        Value::Struct(vec![Value::text(device(devices)), Value::text(access.letters())])
    });
    // An empty list first: setting adds to what is there.
    vec![property("DevicePolicy", Value::text("strict")), list(Vec::new()), list(rules.collect())]
}

/// systemd's name of a device or of a group of devices.
fn device(devices: &Devices) -> String {
    let kind = match devices.kind {
        Type::Block => "block",
        Type::Character => "char",
    };
    match (devices.major, devices.minor) {
        (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
        (Some(major), None) => format!("{kind}-{major}"),
        // A minor number alone cannot be said; the container's own rules hold besides.
        (None, _) => format!("{kind}-*"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::limits::{self, Missing};
    use super::*;

    fn of(file: &'static str, value: &str) -> Vec<Property> {
        let setting = Setting {
            controller: Cow::Borrowed(""),
            file: file.into(),
            value: value.to_owned(),
            missing: Missing::Fail,
        };
        of_settings([setting].iter())
    }

    fn number(name: &'static str, value: u64) -> Vec<Property> {
        vec![property(name, Value::U64(value))]
    }

    #[test]
    fn limits_by_their_files() {
        assert_eq!(of("memory.max", "1024"), number("MemoryMax", 1024));
        assert_eq!(of("memory.swap.max", "max"), number("MemorySwapMax", u64::MAX));
        assert_eq!(of("memory.low", "5"), number("MemoryLow", 5));
        assert_eq!(of("memory.high", "6"), number("MemoryHigh", 6));
        assert_eq!(of("memory.min", "7"), number("MemoryMin", 7));
        assert_eq!(of("pids.max", "17"), number("TasksMax", 17));
        assert_eq!(of("cpu.weight", "59"), number("CPUWeight", 59));
        assert_eq!(of("cpu.idle", "1"), number("CPUWeight", 0));
        assert!(of("cpu.idle", "0").is_empty());
        assert_eq!(of("io.weight", "200"), number("IOWeight", 200));
        assert!(of("hugetlb.2MB.max", "1").is_empty() && of("memory.oom.group", "1").is_empty());
        assert!(of("memory.max", "nonsense").is_empty());
    }

    #[test]
    fn a_quota_is_rounded_up_to_systemds_steps() {
        let pair = |period, quota| {
            vec![
                property("CPUQuotaPeriodUSec", Value::U64(period)),
                property("CPUQuotaPerSecUSec", Value::U64(quota)),
            ]
        };
        assert_eq!(of("cpu.max", "20000 50000"), pair(50_000, 400_000));
        assert_eq!(of("cpu.max", "50001 100000"), pair(100_000, 510_000));
        assert_eq!(of("cpu.max", "max 100000"), pair(100_000, u64::MAX));
        assert_eq!(of("cpu.max", "1000"), pair(100_000, 10_000));
        let resources = serde_json::from_value(json!({"cpu": {"quota": 20000, "period": 50000}})).unwrap();
        let limits = limits::plan(&resources, false, |_| true, |_| None).unwrap();
        assert_eq!(of_settings(limits.legacy.iter().flatten()), pair(50_000, 400_000));
    }

    #[test]
    fn sets_of_processors_are_masks() {
        assert_eq!(
            of("cpuset.cpus", "0-2,5, 9"),
            vec![property("AllowedCPUs", Value::Bytes(vec![0b10_0111, 0b10]))]
        );
        assert_eq!(of("cpuset.mems", "0"), vec![property("AllowedMemoryNodes", Value::Bytes(vec![1]))]);
        assert!(of("cpuset.cpus", "0-99999999").is_empty() && of("cpuset.cpus", "x").is_empty());
    }

    #[test]
    fn what_is_allowed_is_a_list_and_all_is_no_policy() {
        let rules = |value| serde_json::from_value::<Vec<_>>(value).unwrap();
        let policy = Policy::reduce(&rules(json!([{"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
            {"allow": true, "type": "c", "major": 136, "access": "rwm"},
            {"allow": true, "type": "b", "access": "m"}])))
        .unwrap();
        let pair = |device: &str, access: &str| Value::Struct(vec![Value::text(device), Value::text(access)]);
        let allowed = vec![pair("/dev/char/1:3", "rw"), pair("char-136", "rwm"), pair("block-*", "m")];
        assert_eq!(
            of_devices(&policy),
            [
                property("DevicePolicy", Value::text("strict")),
                property("DeviceAllow", Value::Array("(ss)".into(), Vec::new())),
                property("DeviceAllow", Value::Array("(ss)".into(), allowed)),
            ]
        );
        let all = Policy::reduce(&rules(json!([{"allow": true, "access": "rwm"}]))).unwrap();
        assert_eq!(of_devices(&all)[0], property("DevicePolicy", Value::text("auto")));
    }

    #[test]
    fn a_whole_configuration() {
        let resources = serde_json::from_value(json!({"memory": {"limit": 64, "swap": 96},
            "cpu": {"shares": 512, "quota": 1000, "period": 10000}, "pids": {"limit": 5}}))
        .unwrap();
        let limits = limits::plan(&resources, true, |_| false, |_| None).unwrap();
        let names: Vec<_> =
            of_settings(limits.unified.iter().flatten()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(
            names,
            [
                "TasksMax",
                "MemorySwapMax",
                "MemoryMax",
                "CPUWeight",
                "CPUQuotaPeriodUSec",
                "CPUQuotaPerSecUSec"
            ]
        );
    }

    #[test]
    fn a_new_scope_is_delegated_and_has_a_process() {
        let scope = Unit::plan("a.slice:p:n", "c1", false).unwrap();
        let all = new_unit(&scope, "c1", 42);
        assert!(all.contains(&property("Slice", Value::text("a.slice"))));
        assert!(all.contains(&property("Delegate", Value::Bool(true))));
        assert!(all.contains(&property("PIDs", Value::Array("u".into(), vec![Value::U32(42)]))));
        let slice = Unit::plan("a.slice:p:a-b.slice", "c1", false).unwrap();
        let all = new_unit(&slice, "c1", 42);
        assert!(all.iter().all(|(name, _)| name != "PIDs" && name != "Slice" && name != "Delegate"));
    }
}
