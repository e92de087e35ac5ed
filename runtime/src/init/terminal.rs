//! The container's terminal: a pair of its own devpts, opened without trusting a path.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{Gid, Uid, fchown};
use orlop_host::sys;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind as ErrorKind;

use super::Init;
use super::paths::{Kind, ensure, open_path, parent};
use crate::sync::Message;

/// `DEVPTS_SUPER_MAGIC` (statfs(2)).
const DEVPTS: i64 = 0x1cd1;

/// Opens a terminal, makes it the standard streams and the controlling terminal, and sends its master to the parent.
pub fn open(init: &mut Init) -> Result<()> {
    if !init.plan.process.terminal {
        return own_null(init);
    }
    let root = open_root()?;
    let found = open_path(root.as_fd(), Path::new("/dev/pts/ptmx"))
        .or_else(|_| open_path(root.as_fd(), Path::new("/dev/ptmx")));
    let found = found.context("open", "/dev/pts/ptmx of the container")?;
    // Anything else of that name could answer with a terminal of the host.
    if fstatfs(&found).context("look at", "/dev/pts/ptmx")?.filesystem_type() != FsType(DEVPTS as _) {
        return Err(Error::because(
            ErrorKind::FailedPrecondition,
            "open",
            "/dev/pts/ptmx",
            "it is on no devpts",
        ));
    }
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let root_relative = sys::path::open_below(
        root.as_fd(),
        Path::new("/dev/pts/ptmx"),
        flags,
        0,
        sys::path::Resolve::InRootNoLinks,
    );
    let master = root_relative
        .or_else(|_| {
            sys::path::open_below(root.as_fd(), Path::new("/dev/ptmx"), flags, 0, sys::path::Resolve::InRoot)
        })
        .context("open", "/dev/pts/ptmx of the container")?;
    sys::tty::unlock(master.as_fd()).context("unlock", "the terminal")?;
    // By the master, not by a path (CVE-2025-52565).
    let terminal = sys::tty::open_peer(master.as_fd()).context("open", "the terminal")?;
    prepare(init, terminal.as_fd())?;
    if init.plan.container.is_some() {
        #[cfg(feature = "test-switches")]
        let terminal = by_path(root.as_fd(), &terminal)?;
        console(root.as_fd(), terminal.as_fd())?;
    }
    init.channel.send_with(&Message::Console, master.as_fd())?;
    sys::tty::set_controlling(terminal.as_fd()).context("take", "the terminal")?;
    for number in 0..=2 {
        sys::fd::put_at_standard(terminal.as_fd(), number).context("set", "the standard streams")?;
    }
    Ok(())
}

/// Standard streams that are the host's null device become the container's: a checkpoint knows nothing outside of it, and the
/// program could not open the host's again. What is no true null device in the container is left alone.
fn own_null(init: &Init) -> Result<()> {
    if !init.plan.container.as_ref().is_some_and(|container| container.owns_dev) {
        return Ok(());
    }
    let is_null = |descriptor: BorrowedFd| {
        fstat(descriptor).is_ok_and(|stat| {
            stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(1, 3)
        })
    };
    let streams = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let mut own = None;
    for (number, stream) in [streams.0.as_fd(), streams.1.as_fd(), streams.2.as_fd()].into_iter().enumerate()
    {
        if !is_null(stream) {
            continue;
        }
        if own.is_none() {
            let resolve = sys::path::Resolve::InRoot;
            let path = Path::new("/dev/null");
            let Ok(found) = sys::path::open_below(init.root(), path, libc::O_RDWR, 0, resolve) else {
                return Ok(());
            };
            if !is_null(found.as_fd()) {
                return Ok(());
            }
            own = Some(found);
        }
        if let Some(own) = &own {
            sys::fd::put_at_standard(own.as_fd(), number as i32).context("set", "the standard streams")?;
        }
    }
    Ok(())
}

fn open_root() -> Result<std::os::fd::OwnedFd> {
    nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .context("open", "the root")
}

fn prepare(init: &Init, terminal: BorrowedFd) -> Result<()> {
    let process = &init.plan.process;
    if let Some((rows, columns)) = process.console_size {
        sys::tty::set_size(terminal, rows, columns).context("set size of", "the terminal")?;
    }
    // The group stays that of devpts.
    fchown(terminal, Some(Uid::from_raw(process.uid)), None::<Gid>).context("give away", "the terminal")
}

/// `/dev/console` is the terminal; a link of the image's in its place would have the terminal cover another file.
fn console(root: BorrowedFd, terminal: BorrowedFd) -> Result<()> {
    let path = Path::new("/dev/console");
    if !crate::switches::is_off("console-link") {
        let (directory, name) = parent(root, path)?;
        let found = fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        if found.is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFLNK) {
            let why = "it is a symbolic link";
            return Err(Error::because(ErrorKind::InvalidArgument, "mount", "/dev/console", why));
        }
    }
    let target = ensure(root, path, Kind::File)?;
    let tree = sys::mount::clone_tree_of(terminal, false).context("bind", "the terminal")?;
    sys::mount::attach(tree.as_fd(), target.as_fd()).context("attach", "/dev/console")
}

/// What a runtime without the guard mounts: whatever is found under the terminal's path.
#[cfg(feature = "test-switches")]
fn by_path(root: BorrowedFd, terminal: &std::os::fd::OwnedFd) -> Result<std::os::fd::OwnedFd> {
    use std::os::fd::AsRawFd;
    if !crate::switches::is_off("terminal-descriptor") {
        return terminal.try_clone().context("keep", "the terminal");
    }
    let name = std::fs::read_link(format!("/proc/self/fd/{}", terminal.as_raw_fd()));
    let name = name.context("read", "the terminal's path")?;
    let number = name.file_name().unwrap_or_default();
    open_path(root, &Path::new("/dev/pts").join(number)).context("open", "the terminal's path")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_opened_by_its_master() {
        let master =
            nix::fcntl::open("/dev/ptmx", OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC, Mode::empty())
                .unwrap();
        sys::tty::unlock(master.as_fd()).unwrap();
        let terminal = sys::tty::open_peer(master.as_fd()).unwrap();
        assert!(nix::unistd::isatty(&terminal).unwrap());
        sys::tty::set_size(terminal.as_fd(), 7, 9).unwrap();
        assert_eq!(sys::tty::size(terminal.as_fd()).unwrap(), (7, 9));
    }
}
