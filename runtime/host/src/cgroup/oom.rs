//! Being told when the kernel kills for want of memory.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::Cgroup;
use super::group::Group;
use crate::file;

/// A descriptor that becomes readable when memory ran out in a cgroup, or when the cgroup went away.
#[derive(Debug)]
pub struct OomWatch(Source);

#[derive(Debug)]
enum Source {
    /// Version 1: the kernel counts up an eventfd. The control file stays open, as the registration lasts as long.
    Legacy { events: EventFd, _control: OwnedFd, group: PathBuf },
    /// Version 2: `memory.events` changes.
    Unified { changes: Inotify, file: PathBuf, killed: u64 },
}

impl OomWatch {
    pub(super) fn new(cgroup: &Cgroup) -> Result<OomWatch> {
        if let Some(group) = cgroup.legacy("memory") {
            return OomWatch::legacy(group);
        }
        match cgroup.unified() {
            Some(group) if group.try_read("memory.events").is_ok() => OomWatch::unified(group),
            _ => {
                let why = "its cgroup has no memory controller";
                Err(Error::because(Kind::FailedPrecondition, "watch", "the container's memory", why))
            }
        }
    }

    fn legacy(group: &Group) -> Result<OomWatch> {
        let fail = |file: &'static str| move |error: io::Error| group.error("open", file, error);
        let events = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .context("make", "an event descriptor")?;
        let control =
            group.file("memory.oom_control", OFlag::O_RDONLY).map_err(fail("memory.oom_control"))?;
        let registry =
            group.file("cgroup.event_control", OFlag::O_WRONLY).map_err(fail("cgroup.event_control"))?;
        let line = format!("{} {}", events.as_fd().as_raw_fd(), control.as_raw_fd());
        file::write_value(registry, line.as_bytes())
            .map_err(|error| group.error("register with", "cgroup.event_control", error))?;
        Ok(OomWatch(Source::Legacy { events, _control: control, group: group.path.clone() }))
    }

    fn unified(group: &Group) -> Result<OomWatch> {
        let file = group.path.join("memory.events");
        let changes =
            Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("make", "a watch")?;
        changes
            .add_watch(&file, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE_SELF)
            .context("watch", file.to_string_lossy())?;
        let killed = kills(&group.read("memory.events")?);
        Ok(OomWatch(Source::Unified { changes, file, killed }))
    }

    /// Takes what has happened since the last call: whether memory ran out, even if the descriptor does not tell yet.
    /// `NotFound` once the cgroup is gone.
    pub fn take(&mut self) -> Result<bool> {
        match &mut self.0 {
            Source::Legacy { events, group, .. } => {
                let happened = match events.read() {
                    Ok(count) => count > 0,
                    Err(Errno::EAGAIN) => false,
                    Err(error) => return Err(Error::io("read", "an event descriptor", error.into())),
                };
                // The kernel counts up once more when the group is removed.
                if happened && !group.exists() {
                    return Err(Error::new(Kind::NotFound, "watch cgroup", group.to_string_lossy()));
                }
                Ok(happened)
            }
            Source::Unified { changes, file, killed } => {
                // The kernel tells of changes from a worker thread, so the figures may be ahead of it.
                match changes.read_events() {
                    Ok(_) | Err(Errno::EAGAIN) => {}
                    Err(error) => return Err(Error::io("read", "a watch", error.into())),
                }
                let text = std::fs::read_to_string(&*file).map_err(|error| match error.raw_os_error() {
                    Some(libc::ENODEV | libc::ENOENT) => {
                        Error::new(Kind::NotFound, "watch cgroup", file.to_string_lossy())
                    }
                    _ => Error::io("read", file.to_string_lossy(), error),
                })?;
                let before = std::mem::replace(killed, kills(&text));
                Ok(*killed > before)
            }
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Source::Legacy { events, .. } => events.as_fd(),
            Source::Unified { changes, .. } => changes.as_fd(),
        }
    }
}

/// How many processes the kernel has killed, from `memory.events`.
fn kills(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}
