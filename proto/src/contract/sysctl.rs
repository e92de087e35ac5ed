//! Sysctls that a namespace keeps to itself, by the rules of runc; other callers of the runtime keep to the same.

/// Those of IPC namespaces, and what is below them (ipc_namespaces(7)).
const IPC: [&str; 10] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
    "fs/mqueue",
    "kernel/msg_next_id",
];

/// The namespace that keeps a sysctl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Message queues, semaphores and shared memory.
    Ipc,
    /// The network.
    Network,
    /// The domain name.
    Uts,
    /// The host name, which has a way of its own to be set.
    HostName,
    /// Limits of a user namespace.
    User,
}

/// A sysctl's path below `/proc/sys`; nothing where the name leads anywhere else. The first separator says whether dots or slashes
/// divide (sysctl(8)).
pub fn path(name: &str) -> Option<String> {
    let path = match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'.' => {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            };
            name.chars().map(swap).collect()
        }
        _ => name.to_owned(),
    };
    path.split('/').all(|part| !matches!(part, "" | "." | "..")).then_some(path)
}

/// Whose a sysctl is, by its path below `/proc/sys`; nothing where it is the whole machine's.
pub fn owner(path: &str) -> Option<Owner> {
    let is_below = |known: &str| path.strip_prefix(known).is_some_and(|rest| rest.starts_with('/'));
    match path {
        "kernel/domainname" => Some(Owner::Uts),
        "kernel/hostname" => Some(Owner::HostName),
        _ if is_below("net") => Some(Owner::Network),
        _ if is_below("user") => Some(Owner::User),
        _ => IPC.iter().any(|known| path == *known || is_below(known)).then_some(Owner::Ipc),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths() {
        let path = |name| path(name).unwrap();
        assert_eq!(path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(path("net/ipv4/conf/eth0.1/x"), "net/ipv4/conf/eth0.1/x");
        assert_eq!(path("net.ipv4.conf.eth0/1.x"), "net/ipv4/conf/eth0.1/x");
        for name in ["", "net/../kernel/x", "net..x", "/net", "net/./x", "net.//.x"] {
            assert_eq!(super::path(name), None, "{name}");
        }
    }

    #[test]
    fn namespaces_have_their_own() {
        assert_eq!(owner("kernel/shmmax"), Some(Owner::Ipc));
        assert_eq!(owner("fs/mqueue/msg_max"), Some(Owner::Ipc));
        assert_eq!(owner("net/ipv4/x"), Some(Owner::Network));
        assert_eq!(owner("user/max_ipc_namespaces"), Some(Owner::User));
        assert_eq!(owner("kernel/domainname"), Some(Owner::Uts));
        for path in ["kernel/shmmaximum", "kernel/panic", "network/x", "vm/overcommit_memory"] {
            assert_eq!(owner(path), None, "{path}");
        }
    }
}
