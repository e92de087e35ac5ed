//! The reduction of device rules, which must mean the same on both cgroup versions.
//!
//! Follows the kernel's device whitelist controller (admin-guide/cgroup-v1/devices.rst); as in runc, a rule that would punch a hole
//! into a wider one is refused, since version 1 would ignore it.

use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

/// Block or character device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cgroup) enum Type {
    Block,
    Character,
}

/// A set of the accesses read, write and make a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::cgroup) struct Access(u8);

impl Access {
    /// The bits as the kernel gives them to a device program (`BPF_DEVCG_ACC_…`).
    pub(in crate::cgroup) const MAKE_NODE: u8 = 1;
    pub(in crate::cgroup) const READ: u8 = 2;
    pub(in crate::cgroup) const WRITE: u8 = 4;

    fn parse(text: &str) -> Option<Access> {
        let mut bits = 0;
        for letter in text.chars() {
            bits |= match letter {
                'r' => Access::READ,
                'w' => Access::WRITE,
                'm' => Access::MAKE_NODE,
                _ => return None,
            };
        }
        (bits != 0).then_some(Access(bits))
    }

    pub(in crate::cgroup) fn bits(self) -> u8 {
        self.0
    }

    pub(in crate::cgroup) fn is_all(self) -> bool {
        self.0 == Access::MAKE_NODE | Access::READ | Access::WRITE
    }

    /// As control files and systemd write it.
    pub(in crate::cgroup) fn letters(self) -> String {
        [('r', Access::READ), ('w', Access::WRITE), ('m', Access::MAKE_NODE)]
            .into_iter()
            .filter(|(_, bit)| self.0 & bit != 0)
            .map(|(letter, _)| letter)
            .collect()
    }
}

/// The devices of a rule; no number means every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cgroup) struct Devices {
    pub(in crate::cgroup) kind: Type,
    pub(in crate::cgroup) major: Option<u32>,
    pub(in crate::cgroup) minor: Option<u32>,
}

/// What remains of a list of rules: everything is allowed, or nothing, except these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::cgroup) struct Policy {
    /// What holds for a device that is no exception.
    pub(in crate::cgroup) allows: bool,
    /// The accesses for which the opposite holds, in the order of the rules.
    pub(in crate::cgroup) exceptions: Vec<(Devices, Access)>,
}

impl Policy {
    /// Reduces rules in their order; without any, nothing is allowed.
    ///
    /// # Errors
    /// `InvalidArgument` for a rule without access or with an unknown one, for a type that has no devices, and for a rule
    /// that takes from a wider one.
    pub(in crate::cgroup) fn reduce<'a>(
        rules: impl IntoIterator<Item = &'a LinuxDeviceCgroup>,
    ) -> Result<Policy> {
        let mut policy = Policy::default();
        for (index, rule) in rules.into_iter().enumerate() {
            policy.add(index, rule)?;
        }
        Ok(policy)
    }

    fn add(&mut self, index: usize, rule: &LinuxDeviceCgroup) -> Result<()> {
        let refuse =
            |why: String| Err(Error::because(Kind::InvalidArgument, "set", "linux.resources.devices", why));
        let text = rule.access().as_deref().unwrap_or_default();
        if text.is_empty() {
            return refuse(format!("device access at {index} field cannot be empty"));
        }
        let Some(access) = Access::parse(text) else {
            return refuse(format!("invalid device access {text:?} at {index}"));
        };
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => {
                // As in the kernel, a rule for all types is one for all numbers and accesses.
                *self = Policy { allows: rule.allow(), exceptions: Vec::new() };
                return Ok(());
            }
            LinuxDeviceType::B => Type::Block,
            LinuxDeviceType::C | LinuxDeviceType::U => Type::Character,
            LinuxDeviceType::P => return refuse(format!("invalid device type 'p' at {index}")),
        };
        let (Some(major), Some(minor)) = (number(rule.major()), number(rule.minor())) else {
            return refuse(format!("invalid device number at {index}"));
        };
        let devices = Devices { kind, major, minor };
        if rule.allow() == self.allows {
            return self.narrow(devices, access);
        }
        match self.exception(&devices) {
            Some(known) => known.0 |= access.0,
            None => self.exceptions.push((devices, access)),
        }
        Ok(())
    }

    /// The accesses of an exception.
    fn exception(&mut self, devices: &Devices) -> Option<&mut Access> {
        self.exceptions.iter_mut().find(|(known, _)| known == devices).map(|(_, access)| access)
    }

    /// Takes accesses back from the exceptions.
    fn narrow(&mut self, devices: Devices, access: Access) -> Result<()> {
        let wider = [
            Devices { major: None, ..devices },
            Devices { minor: None, ..devices },
            Devices { major: None, minor: None, ..devices },
        ];
        for wide in wider {
            let overlaps = self.exception(&wide).is_some_and(|other| other.0 & access.0 != 0);
            if wide != devices && overlaps {
                let why = format!(
                    "requested rule [{} {}] not supported by devices cgroupv1 (cannot punch hole in existing wildcard rule [{}])",
                    name(&devices),
                    access.letters(),
                    name(&wide),
                );
                return Err(Error::because(Kind::InvalidArgument, "set", "linux.resources.devices", why));
            }
        }
        if let Some(known) = self.exception(&devices) {
            known.0 &= !access.0;
        }
        self.exceptions.retain(|(_, access)| access.0 != 0);
        Ok(())
    }
}

/// The lines for the version 1 controller, each with the control file that takes it.
///
/// A new group starts with its parent's rules, so the first line replaces these as a whole.
pub(in crate::cgroup) fn legacy_writes(policy: &Policy) -> Vec<(&'static str, String)> {
    let (all, exceptions) = match policy.allows {
        true => ("devices.allow", "devices.deny"),
        false => ("devices.deny", "devices.allow"),
    };
    let mut writes = vec![(all, "a".to_owned())];
    for (devices, access) in &policy.exceptions {
        writes.push((exceptions, format!("{} {}", name(devices), access.letters())));
    }
    writes
}

/// The devices that every container may use: the rules that runc appends to those of the configuration.
///
/// A device for which `is_replaced` holds, because the configuration makes its own at that path, gets no rule.
pub fn default_rules(is_replaced: impl Fn(&Path) -> bool) -> Vec<LinuxDeviceCgroup> {
    let mut rules = Vec::new();
    let mut allow = |typ, major, minor, access: &str| {
        let mut rule = LinuxDeviceCgroup::default();
        rule.set_allow(true).set_typ(Some(typ)).set_major(major).set_minor(minor);
        rule.set_access(Some(access.to_owned()));
        rules.push(rule);
    };
    // Nodes may be made of every device, since making one gives no access to it.
    allow(LinuxDeviceType::C, None, None, "m");
    allow(LinuxDeviceType::B, None, None, "m");
    for (path, major, minor) in [
        ("/dev/null", 1, 3),
        ("/dev/random", 1, 8),
        ("/dev/full", 1, 7),
        ("/dev/tty", 5, 0),
        ("/dev/zero", 1, 5),
        ("/dev/urandom", 1, 9),
    ] {
        if !is_replaced(Path::new(path)) {
            allow(LinuxDeviceType::C, Some(major), Some(minor), "rwm");
        }
    }
    // The slaves of the container's own pseudo terminals, and their multiplexer.
    allow(LinuxDeviceType::C, Some(136), None, "rwm");
    allow(LinuxDeviceType::C, Some(5), Some(2), "rwm");
    rules
}

/// A device number; the outer `None` is an impossible one, the inner one stands for all.
fn number(value: Option<i64>) -> Option<Option<u32>> {
    match value {
        None | Some(-1) => Some(None),
        Some(value) => u32::try_from(value).ok().map(Some),
    }
}

/// The devices of a rule as the version 1 controller writes them.
fn name(devices: &Devices) -> String {
    let kind = match devices.kind {
        Type::Block => 'b',
        Type::Character => 'c',
    };
    let number = |value: Option<u32>| value.map_or("*".to_owned(), |value| value.to_string());
    format!("{kind} {}:{}", number(devices.major), number(devices.minor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rules(value: serde_json::Value) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_value(value).unwrap()
    }

    fn lines(rules: &[LinuxDeviceCgroup]) -> Vec<String> {
        let policy = Policy::reduce(rules).unwrap();
        legacy_writes(&policy).into_iter().map(|(file, line)| format!("{file} {line}")).collect()
    }

    #[test]
    fn the_default_of_a_container() {
        let mut all = rules(json!([{"allow": false, "access": "rwm"}]));
        all.extend(default_rules(|path| path == Path::new("/dev/zero")));
        assert_eq!(
            lines(&all),
            [
                "devices.deny a",
                "devices.allow c *:* m",
                "devices.allow b *:* m",
                "devices.allow c 1:3 rwm",
                "devices.allow c 1:8 rwm",
                "devices.allow c 1:7 rwm",
                "devices.allow c 5:0 rwm",
                "devices.allow c 1:9 rwm",
                "devices.allow c 136:* rwm",
                "devices.allow c 5:2 rwm",
            ]
        );
    }

    #[test]
    fn all_allowed_swallows_the_defaults() {
        let mut all = rules(json!([{"allow": true, "access": "rwm"}]));
        all.extend(default_rules(|_| false));
        assert_eq!(lines(&all), ["devices.allow a"]);
    }

    #[test]
    fn later_rules_win() {
        let all = rules(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "m"},
            {"allow": false, "type": "c", "major": 1, "minor": 3, "access": "w"},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": false, "type": "b", "major": 8, "access": "r"},
        ]));
        assert_eq!(lines(&all), ["devices.deny a", "devices.allow c 1:3 rm"]);
    }

    #[test]
    fn exceptions_from_all() {
        let all = rules(json!([
            {"allow": true, "access": "rwm"},
            {"allow": false, "type": "b", "major": 8, "minor": 1, "access": "rwm"},
        ]));
        assert_eq!(lines(&all), ["devices.allow a", "devices.deny b 8:1 rwm"]);
    }

    #[test]
    fn no_hole_in_a_wider_rule() {
        let all = rules(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 1, "access": "rw"},
            {"allow": false, "type": "c", "major": 1, "minor": 3, "access": "w"},
        ]));
        let error = Policy::reduce(&all).unwrap_err();
        assert!(error.to_string().contains("cannot punch hole"), "{error}");
    }

    #[test]
    fn impossible_rules() {
        for (rule, why) in [
            (json!([{"allow": true, "type": "c"}]), "field cannot be empty"),
            (json!([{"allow": true, "type": "c", "access": "rx"}]), "invalid device access"),
            (json!([{"allow": true, "type": "p", "access": "r"}]), "invalid device type"),
            (json!([{"allow": true, "type": "c", "major": -2, "access": "r"}]), "invalid device number"),
        ] {
            let error = Policy::reduce(&rules(rule)).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
