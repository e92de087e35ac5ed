//! Options of the container's process: environment, arguments, terminal, capabilities, limits.

use super::types::*;

/// Capabilities by number (capabilities(7), linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The names of the capabilities in a mask, such as `CapEff` in /proc/PID/status (proc(5)).
pub fn capabilities_of(mask: u64) -> Vec<String> {
    let held = |number: &usize| mask & (1 << number) != 0;
    (0..CAPABILITIES.len()).filter(held).map(|number| CAPABILITIES[number].to_owned()).collect()
}

/// `base` with `changes` applied: `NAME=value` replaces or adds the variable, a bare `NAME` removes it.
pub fn merge_env(base: &[String], changes: &[String]) -> Vec<String> {
    let mut merged = base.to_vec();
    for change in changes {
        let name = change.split_once('=').map_or(change.as_str(), |(name, _)| name);
        let position = merged.iter().position(|entry| entry.split_once('=').is_some_and(|(n, _)| n == name));
        match (position, change.contains('=')) {
            (Some(at), true) => merged[at] = change.clone(),
            (Some(at), false) => drop(merged.remove(at)),
            (None, true) => merged.push(change.clone()),
            (None, false) => {}
        }
    }
    merged
}

impl Spec {
    /// Changes the environment as [`merge_env`] says.
    pub fn set_env(&mut self, changes: &[String]) {
        let process = self.process_mut();
        process.env = merge_env(&process.env, changes);
    }

    /// Attaches a terminal.
    pub fn set_terminal(&mut self) {
        self.process_mut().terminal = true;
        self.set_env(&["TERM=xterm".to_owned()]);
    }

    /// Gives the process exactly these capabilities.
    pub fn set_capabilities(&mut self, capabilities: &[String]) {
        let sets = self.process_mut().capabilities.get_or_insert_default();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            *set = capabilities.to_vec();
        }
    }

    /// Gives the process further capabilities.
    pub fn add_capabilities(&mut self, capabilities: &[String]) {
        let sets = self.process_mut().capabilities.get_or_insert_default();
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            for capability in capabilities {
                if !set.contains(capability) {
                    set.push(capability.clone());
                }
            }
        }
    }

    /// Takes capabilities from the process, out of every set.
    pub fn drop_capabilities(&mut self, capabilities: &[String]) {
        let Some(sets) = &mut self.process_mut().capabilities else { return };
        for set in [
            &mut sets.bounding,
            &mut sets.effective,
            &mut sets.inheritable,
            &mut sets.permitted,
            &mut sets.ambient,
        ] {
            set.retain(|held| !capabilities.contains(held));
        }
    }

    /// Sets a limit of setrlimit(2), in place of an earlier one of the kind.
    pub fn set_rlimit(&mut self, limit: Rlimit) {
        let rlimits = &mut self.process_mut().rlimits;
        match rlimits.iter_mut().find(|known| known.kind == limit.kind) {
            Some(known) => *known = limit,
            None => rlimits.push(limit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn environment_replaces_adds_and_removes() {
        let base = strings(&["A=1", "B=2", "C=3"]);
        let merged = merge_env(&base, &strings(&["B=x=y", "D=4", "C", "E"]));
        assert_eq!(merged, strings(&["A=1", "B=x=y", "D=4"]));
    }

    #[test]
    fn capabilities_follow_the_mask() {
        assert_eq!(capabilities_of(0b1001), strings(&["CAP_CHOWN", "CAP_FOWNER"]));
        assert_eq!(capabilities_of(u64::MAX).len(), CAPABILITIES.len());
        assert_eq!(capabilities_of(1 << 40), strings(&["CAP_CHECKPOINT_RESTORE"]));
    }

    #[test]
    fn capabilities_are_added_once_and_dropped_everywhere() {
        let mut spec = super::super::container("n", "i", false);
        spec.add_capabilities(&strings(&["CAP_CHOWN", "CAP_SYS_ADMIN"]));
        spec.drop_capabilities(&strings(&["CAP_KILL"]));
        let sets = spec.process.unwrap().capabilities.unwrap();
        for set in [&sets.bounding, &sets.effective, &sets.permitted] {
            assert_eq!(set.iter().filter(|name| *name == "CAP_CHOWN").count(), 1);
            assert_eq!(set.last().unwrap(), "CAP_SYS_ADMIN");
            assert!(!set.contains(&"CAP_KILL".to_owned()));
        }
        assert!(sets.inheritable.is_empty());
    }

    #[test]
    fn a_terminal_names_its_kind() {
        let mut spec = Spec::default();
        spec.set_terminal();
        assert!(spec.process_mut().terminal);
        assert_eq!(spec.process_mut().env, strings(&["TERM=xterm"]));
    }

    #[test]
    fn a_limit_replaces_the_one_of_its_kind() {
        let mut spec = super::super::container("n", "i", false);
        spec.set_rlimit(Rlimit { kind: "RLIMIT_NOFILE".to_owned(), hard: 5, soft: 4 });
        spec.set_rlimit(Rlimit { kind: "RLIMIT_CORE".to_owned(), hard: 0, soft: 0 });
        let kinds: Vec<_> =
            spec.process_mut().rlimits.iter().map(|limit| (&*limit.kind, limit.hard)).collect();
        assert_eq!(kinds, [("RLIMIT_NOFILE", 5), ("RLIMIT_CORE", 0)]);
    }
}
