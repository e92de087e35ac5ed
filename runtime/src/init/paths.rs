//! Paths below the container's root, none of which is trusted: opened by descriptor with the root as the limit.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstatat, mkdirat, mknodat};
use orlop_host::sys;
use orlop_host::sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Attributes, FsContext};
use orlop_host::sys::path::{Resolve, open_below};
use orlop_proto::error::{Context, Error, Result};

use super::Init;

/// What is made where nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// How many symbolic links a path may lead through, as the kernel has it.
const MAX_LINKS: u32 = 40;

/// Opens what a path of the container means, without following it out of the root.
pub fn open_path(root: BorrowedFd, path: &Path) -> io::Result<OwnedFd> {
    open_below(root, path, libc::O_PATH, 0, Resolve::InRoot)
}

/// Opens what a path of the container means; makes it and the directories above it if they are missing.
pub fn ensure(root: BorrowedFd, path: &Path, kind: Kind) -> Result<OwnedFd> {
    #[cfg(feature = "test-switches")]
    if crate::switches::is_off("rootfs-paths") {
        return trusting(root, path, kind);
    }
    #[cfg(feature = "test-switches")]
    if crate::switches::is_off("descriptor-walk") {
        return resolving_first(root, path, kind);
    }
    match open_path(root, path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => create(root, path, kind),
        other => other.context("open in rootfs", path.to_string_lossy()),
    }
}

/// What a runtime without the guard does: joins strings and lets the kernel follow links from the host's root.
#[cfg(feature = "test-switches")]
fn trusting(root: BorrowedFd, path: &Path, kind: Kind) -> Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    use std::os::fd::AsRawFd;
    let joined = format!("/proc/self/fd/{}{}", root.as_raw_fd(), path.display());
    let made = match kind {
        Kind::Directory => std::fs::create_dir_all(&joined),
        Kind::File => std::fs::OpenOptions::new().append(true).create(true).open(&joined).map(drop),
    };
    made.context("create", &joined)?;
    open(joined.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).context("open", joined)
}

/// What runc did before 1.1.14: finds out safely what a path means, and then makes what is missing by that path.
#[cfg(feature = "test-switches")]
fn resolving_first(root: BorrowedFd, path: &Path, kind: Kind) -> Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let there = path.ancestors().find_map(|ancestor| Some((ancestor, open_path(root, ancestor).ok()?)));
    let (ancestor, found) = there.expect("the root itself is there");
    let name = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()));
    let meant = name.context("read", "the path of a descriptor")?;
    let meant = meant.join(path.strip_prefix(ancestor).expect("it is an ancestor"));
    let (root, relative) = ("/", meant.strip_prefix("/").unwrap_or(&meant));
    let root = nix::fcntl::open(root, nix::fcntl::OFlag::O_PATH, Mode::empty()).context("open", "/")?;
    trusting(root.as_fd(), &Path::new("/").join(relative), kind)
}

/// The slow way of [`ensure`]: walks the path as the kernel would, and makes what a step does not find.
fn create(root: BorrowedFd, path: &Path, kind: Kind) -> Result<OwnedFd> {
    let shown = || path.to_string_lossy();
    if let Some(made) = create_last(root, path, kind) {
        return made.context("open in rootfs", shown());
    }
    let mut left: VecDeque<OsString> = names(path);
    let mut reached: Vec<OsString> = Vec::new();
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            reached.pop();
            continue;
        }
        let directory = open_strict(root, &reached, libc::O_DIRECTORY).context("open in rootfs", shown())?;
        match fstatat(&directory, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFLNK => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP)).context("open in rootfs", shown());
                }
                let target = PathBuf::from(
                    readlinkat(&directory, name.as_os_str()).context("read link in rootfs", shown())?,
                );
                if target.is_absolute() {
                    reached.clear();
                }
                for name in names(&target).into_iter().rev() {
                    left.push_front(name);
                }
            }
            Ok(_) => reached.push(name),
            Err(nix::Error::ENOENT) => {
                let is_last = left.is_empty();
                make(&directory, &name, if is_last { kind } else { Kind::Directory })
                    .context("create in rootfs", shown())?;
                reached.push(name);
            }
            Err(error) => return Err(Error::io("look at in rootfs", shown(), error.into())),
        }
    }
    open_strict(root, &reached, 0).context("open in rootfs", shown())
}

/// Makes the last step of a path, if the others are there and none of them is a link: the most frequent case.
fn create_last(root: BorrowedFd, path: &Path, kind: Kind) -> Option<io::Result<OwnedFd>> {
    let mut names: Vec<OsString> = names(path).into();
    if names.iter().any(|name| name == "..") {
        return None;
    }
    let last = names.pop()?;
    let directory = open_strict(root, &names, libc::O_DIRECTORY).ok()?;
    make_new(&directory, &last, kind).ok()?;
    names.push(last);
    Some(open_strict(root, &names, 0))
}

fn names(path: &Path) -> VecDeque<OsString> {
    let parts = path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    parts.collect()
}

/// Opens names that have been found to be no links; if one has become one since, that is refused.
fn open_strict(root: BorrowedFd, names: &[OsString], flags: libc::c_int) -> io::Result<OwnedFd> {
    let path: PathBuf = names.iter().collect();
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { &path };
    let flags = libc::O_PATH | libc::O_NOFOLLOW | flags;
    open_below(root, path, flags, 0, Resolve::InRootNoLinks)
}

fn make_new(directory: &OwnedFd, name: &OsStr, kind: Kind) -> nix::Result<()> {
    match kind {
        Kind::Directory => mkdirat(directory, name, Mode::from_bits_truncate(0o755)),
        Kind::File => mknodat(directory, name, SFlag::S_IFREG, Mode::from_bits_truncate(0o644), 0),
    }
}

fn make(directory: &OwnedFd, name: &OsStr, kind: Kind) -> nix::Result<()> {
    match make_new(directory, name, kind) {
        Err(nix::Error::EEXIST) => Ok(()),
        other => other,
    }
}

/// Opens the directory that a new entry goes into, made if missing, and the entry's name.
pub fn parent<'a>(root: BorrowedFd, path: &'a Path) -> Result<(OwnedFd, &'a OsStr)> {
    let name = path.file_name().ok_or_else(|| {
        Error::new(orlop_proto::kind::Kind::InvalidArgument, "create", path.to_string_lossy())
    })?;
    Ok((ensure(root, path.parent().unwrap_or(Path::new("/")), Kind::Directory)?, name))
}

/// Makes the read-only paths of the configuration so; missing ones are left out.
pub fn make_readonly(init: &mut Init) -> Result<()> {
    for path in &init.container().readonly_paths {
        let shown = || path.to_string_lossy();
        let Some(target) = existing(init.root(), path)? else { continue };
        let tree = sys::mount::clone_tree_of(target.as_fd(), true).context("make read-only", shown())?;
        let attributes =
            Attributes { set: ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC, ..Default::default() };
        sys::mount::set_attributes(tree.as_fd(), false, attributes).context("make read-only", shown())?;
        sys::mount::attach(tree.as_fd(), target.as_fd()).context("make read-only", shown())?;
    }
    Ok(())
}

/// Hides the masked paths of the configuration: a directory under an empty read-only one, all under the same file
/// system, and anything else under the null device.
pub fn mask(init: &mut Init) -> Result<()> {
    let (mut empty, mut null): (Option<OwnedFd>, Option<OwnedFd>) = (None, None);
    for path in &init.container().masked {
        let shown = || path.to_string_lossy();
        let Some(target) = existing(init.root(), path)? else { continue };
        let is_directory = super::rootfs::is_directory(&target)?;
        let cover = match (is_directory, &empty, &null) {
            (true, None, _) => empty_directory(),
            (true, Some(model), _) | (false, _, Some(model)) => {
                sys::mount::clone_tree_of(model.as_fd(), false)
            }
            (false, _, None) => null_device(init.root()).and_then(|device| {
                let cover = sys::mount::clone_tree_of(device.as_fd(), false);
                null = Some(device);
                cover
            }),
        };
        let cover = cover.context("mask", shown())?;
        sys::mount::attach(cover.as_fd(), target.as_fd()).context("mask", shown())?;
        if is_directory && empty.is_none() {
            empty = Some(cover);
        }
    }
    Ok(())
}

/// What a path means, or nothing if it is missing or hidden.
fn existing(root: BorrowedFd, path: &Path) -> Result<Option<OwnedFd>> {
    match open_path(root, path) {
        Ok(target) => Ok(Some(target)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::EACCES)) => {
            Ok(None)
        }
        Err(error) => Err(Error::io("open in rootfs", path.to_string_lossy(), error)),
    }
}

fn empty_directory() -> io::Result<OwnedFd> {
    let context = FsContext::open("tmpfs")?;
    context.string("size", "0")?;
    context.string("nr_blocks", "1")?;
    context.string("mode", "755")?;
    context.mount(ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)
}

/// The container's null device, which must really be one (CVE-2025-31133): what an image puts there instead
/// would be mounted over a masked path.
fn null_device(root: BorrowedFd) -> io::Result<OwnedFd> {
    let null = open_path(root, Path::new("/dev/null"))?;
    let stat = fstatat(&null, "", AtFlags::AT_EMPTY_PATH)?;
    let is_null = stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == libc::makedev(1, 3);
    if !is_null && !crate::switches::is_off("null-device") {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "/dev/null of the container is no null device",
        ));
    }
    Ok(null)
}
