//! Names, loopback, sysctls, scheduling, and the hooks before the root changes.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use orlop_host::sys;
use orlop_host::sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, FsContext};
use orlop_host::sys::path::{Resolve, open_below};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::{Init, namespaces};
use crate::hooks;
use crate::sync::Message;

/// Lets the parent run the hooks of the runtime's namespace, while the old root is still there for them.
pub fn await_runtime_hooks(init: &mut Init) -> Result<()> {
    if !init.container().runtime_hooks {
        return Ok(());
    }
    init.channel.send(&Message::Hooks)?;
    namespaces::await_go(init)
}

/// Hooks of the container's namespaces, found in the runtime's file system.
pub fn container_hooks(init: &mut Init) -> Result<()> {
    hooks::run(&init.container().create_container, &init.hook_state)
}

/// A new network namespace has its loopback interface down.
pub fn loopback(init: &mut Init) -> Result<()> {
    if init.plan.namespaces.at_clone & libc::CLONE_NEWNET as u64 == 0 {
        return Ok(());
    }
    sys::net::bring_loopback_up().context("bring up", "the loopback interface")
}

/// Host and domain name.
pub fn names(init: &mut Init) -> Result<()> {
    if let Some(name) = &init.container().hostname {
        nix::unistd::sethostname(name).context("set hostname", name)?;
    }
    if let Some(name) = &init.container().domainname {
        sys::process::set_domain_name(name).context("set domainname", name)?;
    }
    Ok(())
}

/// Sysctls, written through a procfs of our own: what the container has at `/proc` may be anything (CVE-2019-16884,
/// CVE-2025-52881).
pub fn sysctl(init: &mut Init) -> Result<()> {
    let sysctl = &init.container().sysctl;
    if sysctl.is_empty() {
        return Ok(());
    }
    let proc = Proc::open()?;
    for (name, value) in sysctl {
        proc.write(&Path::new("sys").join(name), value)?;
    }
    Ok(())
}

/// Resource limits, while the right to raise them is there; in a new user namespace it never was, and the parent sets them.
pub fn limits(init: &mut Init) -> Result<()> {
    let by_parent = init.plan.container.is_some() && init.plan.namespaces.has_user_namespace();
    if by_parent { Ok(()) } else { crate::launch::set_limits(0, &init.plan.process.limits) }
}

/// CPUs to run on, scheduling, I/O priority, personality and memory policy.
pub fn scheduling(init: &mut Init) -> Result<()> {
    let process = &init.plan.process;
    match (&process.affinity.initial, &process.affinity.last) {
        (_, Some(numbers)) => {
            sys::process::set_affinity(numbers).context("error setting", "final CPU affinity")?;
        }
        (Some(_), None) => {}
        // The caller's is its own: a container has the CPUs of its cgroup. One that cannot be changed is no reason not to run.
        (None, None) => drop(sys::process::reset_affinity()),
    }
    if let Some(scheduling) = process.scheduling {
        sys::process::set_scheduling(scheduling).context("error setting", "scheduler")?;
    }
    if let Some(priority) = process.io_priority {
        sys::process::set_io_priority(priority.0, priority.1).context("set", "the I/O priority")?;
    }
    if let Some(persona) = process.personality {
        sys::process::set_personality(persona).context("set", "the personality")?;
    }
    if let Some((mode, nodes)) = &process.memory_policy {
        sys::process::set_memory_policy(*mode, nodes).context("set", "the memory policy")?;
    }
    Ok(())
}

/// A procfs that the container has not touched.
pub struct Proc(OwnedFd);

impl Proc {
    /// A mount of our own, seen by nobody else; where that is not allowed, the one at `/proc`, if it is a procfs.
    pub fn open() -> Result<Proc> {
        #[cfg(feature = "test-switches")]
        if crate::switches::is_off("private-proc") {
            use nix::fcntl::{OFlag, open};
            let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
            return open("/proc", flags, nix::sys::stat::Mode::empty()).context("open", "/proc").map(Proc);
        }
        let private =
            FsContext::open("proc").and_then(|context| context.mount(ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC));
        match private {
            Ok(mount) => Ok(Proc(mount)),
            Err(_) => Proc::checked().context("open", "/proc").map(Proc),
        }
    }

    fn checked() -> io::Result<OwnedFd> {
        use nix::fcntl::{OFlag, open};
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let proc = open("/proc", flags, nix::sys::stat::Mode::empty())?;
        let kind = nix::sys::statfs::fstatfs(&proc)?.filesystem_type();
        if kind != nix::sys::statfs::PROC_SUPER_MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no procfs"));
        }
        Ok(proc)
    }

    /// Writes a file below it, through no link and into no other mount.
    pub fn write(&self, path: &Path, text: &str) -> Result<()> {
        let shown = || format!("/proc/{}", path.display());
        let resolve = if crate::switches::is_off("private-proc") { Resolve::InRoot } else { Resolve::Strict };
        let file =
            open_below(self.0.as_fd(), path, libc::O_WRONLY, 0, resolve).map_err(|error| {
                match error.raw_os_error() {
                    Some(libc::EXDEV | libc::ELOOP) => {
                        let why = "something is mounted over it";
                        Error::because(Kind::PermissionDenied, "write", shown(), why)
                    }
                    _ => Error::io("write", shown(), error),
                }
            })?;
        nix::unistd::write(&file, text.as_bytes()).context("write", shown())?;
        Ok(())
    }

    /// The directory of this process below it.
    pub fn own(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("{}/{path}", std::process::id()))
    }

    /// Whether a file is there.
    pub fn has(&self, path: &Path) -> bool {
        open_below(self.0.as_fd(), path, libc::O_PATH, 0, Resolve::Strict).is_ok()
    }
}
