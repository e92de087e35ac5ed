//! The mounts of a container, made detached and attached by descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use orlop_host::file;
use orlop_host::mounts::MountOptions;
use orlop_host::sys;
use orlop_host::sys::mount::{ATTR_RDONLY, Attributes, FsContext};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind as ErrorKind;

use super::Init;
use super::cgroup::mount_cgroup;
use super::copy_up::copy_up;
use super::paths::{Kind, ensure, open_path};
use super::rootfs::is_directory;
use crate::idmap::{Idmap, is_in};
use crate::plan::mounts::{Mount, Source};
use crate::switches::is_off;
use crate::sync::Message;

/// Opens the sources of bind mounts while the caller's rights are still there; but one in the container's own root may be what an
/// earlier mount puts there.
pub fn open_sources(init: &mut Init) -> Result<()> {
    let mut sources = Vec::new();
    let rootfs = &init.container().rootfs;
    for (mount, idmap) in init.container().mounts.iter().zip(&init.idmaps) {
        sources.push(match &mount.source {
            Source::Bind(_) if mount.options.remount || matches!(idmap, Some(Idmap::Tree(_))) => None,
            Source::Bind(path) if is_in(path, rootfs) => None,
            Source::Bind(path) => Some(open_source(path).map_err(|error| failed(mount, error))?),
            _ => None,
        });
    }
    init.found.sources = sources;
    Ok(())
}

fn open_source(path: &Path) -> Result<OwnedFd> {
    file::open(path, OFlag::O_PATH).context("stat", path.to_string_lossy())
}

/// Names the mount that failed, in runc's words.
fn failed(mount: &Mount, error: Error) -> Error {
    let source = match &mount.source {
        Source::Bind(path) => path.to_string_lossy().into_owned(),
        Source::Cgroup => "cgroup".to_owned(),
        Source::FileSystem(_, source) => source.clone(),
    };
    let destination = mount.destination.display();
    Error::exactly(error.kind(), format!("error mounting {source:?} to rootfs at \"{destination}\": {error}"))
}

/// Makes all mounts in order.
pub fn mount_all(init: &mut Init) -> Result<()> {
    let sources = std::mem::take(&mut init.found.sources);
    let mut late = Vec::new();
    let idmaps = std::mem::take(&mut init.idmaps);
    let mounts = init.container().mounts.iter().enumerate();
    for (((number, mount), source), idmap) in mounts.zip(sources).zip(idmaps) {
        let made = match (&mount.source, source, idmap) {
            _ if mount.options.remount => remount(init, mount),
            (Source::Bind(_), _, Some(Idmap::Tree(tree))) => bind_tree(init, mount, tree),
            (Source::Bind(_), _, Some(Idmap::Later)) => {
                ask_for(init, number).and_then(|tree| bind_tree(init, mount, tree))
            }
            (Source::Bind(_), Some(source), idmap) => bind(init, mount, &source, idmap),
            (Source::Bind(path), None, idmap) => {
                open_source(path).and_then(|source| bind(init, mount, &source, idmap))
            }
            (Source::FileSystem(kind, name), ..) => new_file_system(init, mount, kind, name, &mut late),
            (Source::Cgroup, ..) => mount_cgroup(init, mount),
        };
        made.map_err(|error| failed(mount, error))?;
    }
    init.found.late_readonly = late;
    Ok(())
}

/// A mount that only the parent can make, as the mounts are by now.
fn ask_for(init: &Init, number: usize) -> Result<OwnedFd> {
    init.channel.send(&Message::Tree(number as i32))?;
    match init.channel.receive()? {
        Some((Message::Tree(_), Some(tree))) => Ok(tree),
        _ => Err(Error::new(ErrorKind::Aborted, "hear", "the parent, which has gone")),
    }
}

fn bind(init: &Init, mount: &Mount, source: &OwnedFd, idmap: Option<Idmap>) -> Result<()> {
    let options = &mount.options;
    let tree = sys::mount::clone_tree_of(source.as_fd(), options.recursive_bind).context("bind", "it")?;
    if let Some(Idmap::Namespace(namespace)) = idmap {
        let recursive = options.idmap == Some(true);
        sys::mount::set_idmap(tree.as_fd(), recursive, namespace.as_fd()).context("map owners of", "it")?;
    }
    bind_tree(init, mount, tree)
}

fn bind_tree(init: &Init, mount: &Mount, tree: OwnedFd) -> Result<()> {
    let options = &mount.options;
    let kind = if is_directory(&tree)? { Kind::Directory } else { Kind::File };
    if mount.is_bind_at(Path::new("/proc")) && !is_procfs(&tree)? {
        let why = "it cannot be mounted at /proc because it is not of type proc";
        return Err(Error::exactly(ErrorKind::InvalidArgument, why));
    }
    apply_options(tree.as_fd(), options)?;
    let shows_cgroups = Path::new("/sys/fs/cgroup").starts_with(&mount.destination);
    if options.recursive_bind && options.set & ATTR_RDONLY != 0 && shows_cgroups && !is_off("cgroup-readonly")
    {
        // `ro` means the mount itself; the hierarchies below `/sys` would stay writable to whoever owns a group in them
        // (CVE-2023-25809).
        let attributes = Attributes { set: ATTR_RDONLY, ..Default::default() };
        sys::mount::set_attributes(tree.as_fd(), true, attributes).context("make read-only", "it")?;
    }
    let target = ensure(init.root(), &mount.destination, kind)?;
    attach(tree, target.as_fd(), options)
}

/// Changes a mount that is there already: the file system, unless only the mount of it is meant, and the mount.
fn remount(init: &Init, mount: &Mount) -> Result<()> {
    let options = &mount.options;
    let target = open_path(init.root(), &mount.destination).context("find", "the mount to change")?;
    let is_whole = !matches!(mount.source, Source::Bind(_));
    if is_whole && !(options.superblock.is_empty() && options.flags.is_empty() && options.data.is_empty()) {
        let change = || -> io::Result<()> {
            let context = FsContext::pick(target.as_fd())?;
            configure(&context, options)?;
            context.reconfigure()
        };
        change().context("change the file system of", "it")?;
    }
    apply_options(target.as_fd(), options)?;
    set_propagation(target.as_fd(), options)
}

fn is_procfs(source: &OwnedFd) -> Result<bool> {
    if is_off("proc-mounts") {
        return Ok(true);
    }
    let found = nix::sys::statfs::fstatfs(source).context("look at", "the mount's source")?;
    Ok(found.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}

/// Attributes of the mount itself and then of the tree below it.
pub fn apply_options(tree: BorrowedFd, options: &MountOptions) -> Result<()> {
    apply_with(tree, options, 0)
}

/// The same, and in the same call the propagation of the mount itself (`MS_…`); 0 leaves it.
pub fn apply_with(tree: BorrowedFd, options: &MountOptions, propagation: u64) -> Result<()> {
    let own = Attributes { set: options.set, clear: options.clear, propagation };
    if own.set | own.clear | own.propagation != 0 {
        set_attributes(tree, false, own).context("set options of", "it")?;
    }
    let all = Attributes { set: options.recursive_set, clear: options.recursive_clear, propagation: 0 };
    if all.set | all.clear != 0 {
        sys::mount::set_attributes(tree, true, all).context("set recursive options of", "it")?;
    }
    Ok(())
}

/// In a user namespace, attributes that the owner of the mount has set are locked: what cannot be cleared stays.
fn set_attributes(tree: BorrowedFd, recursive: bool, attributes: Attributes) -> io::Result<()> {
    match sys::mount::set_attributes(tree, recursive, attributes) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && attributes.clear != 0 => {
            sys::mount::set_attributes(tree, recursive, Attributes { clear: 0, ..attributes })
        }
        other => other,
    }
}

/// Puts a detached mount in its place; its propagation is set there, since a detached mount has no peers.
pub fn attach(tree: OwnedFd, target: BorrowedFd, options: &MountOptions) -> Result<()> {
    sys::mount::attach(tree.as_fd(), target).context("attach", "it")?;
    set_propagation(tree.as_fd(), options)
}

/// Gives a mount in its place the propagation that its options ask for.
pub fn set_propagation(mount: BorrowedFd, options: &MountOptions) -> Result<()> {
    for &(propagation, recursive) in &options.propagation {
        let attributes = Attributes { propagation, ..Default::default() };
        sys::mount::set_attributes(mount, recursive, attributes).context("set propagation of", "it")?;
    }
    Ok(())
}

fn new_file_system(
    init: &Init,
    mount: &Mount,
    kind: &str,
    source: &str,
    late: &mut Vec<OwnedFd>,
) -> Result<()> {
    let is_tmpfs = kind == "tmpfs";
    let mode = if is_tmpfs { covered_mode(init, mount) } else { None };
    let target = if mount.is_kernel_interface() {
        ordinary_directory(init, mount)?
    } else {
        ensure(init.root(), &mount.destination, Kind::Directory)?
    };
    // A tmpfs is filled before it becomes read-only: with mount points, device nodes, what the image had there.
    let late_read_only = is_tmpfs && mount.options.set & ATTR_RDONLY != 0;
    let attributes = if late_read_only { mount.options.set & !ATTR_RDONLY } else { mount.options.set };
    // The kernel labels the files of these by itself.
    let is_labelled = !["proc", "sysfs", "mqueue"].contains(&kind);
    let label = init.container().mount_label.as_deref().filter(|_| is_labelled);
    let tree = make_file_system(kind, source, &mount.options, mode, attributes, label)?;
    if let (Some(label), "mqueue") = (&init.container().mount_label, kind) {
        // It takes no option, but a label for its root, as with runc.
        sys::path::set_attribute(tree.as_fd(), c"security.selinux", label.as_bytes())
            .context("label", "it")?;
    }
    let recursive =
        Attributes { set: mount.options.recursive_set, clear: mount.options.recursive_clear, propagation: 0 };
    if recursive.set | recursive.clear != 0 {
        sys::mount::set_attributes(tree.as_fd(), true, recursive)
            .context("set recursive options of", "it")?;
    }
    if mount.options.copy_up && is_tmpfs {
        copy_up(init.root(), &mount.destination, tree.as_fd())?;
    }
    if late_read_only {
        late.push(tree.try_clone().context("keep", "it")?);
    }
    attach(tree, target.as_fd(), &mount.options)
}

/// The mode of the directory that a tmpfs covers, which it takes over unless it is told another one, as with runc.
fn covered_mode(init: &Init, mount: &Mount) -> Option<String> {
    if mount.options.data.iter().any(|(name, _)| name == "mode") {
        return None;
    }
    let covered = open_path(init.root(), &mount.destination).ok()?;
    let stat = nix::sys::stat::fstat(&covered).ok()?;
    Some(format!("{:o}", stat.st_mode & 0o7777))
}

/// procfs and sysfs go on a real directory of that very path, never through a link, which would put them where later
/// stages do not look (CVE-2019-19921, CVE-2023-27561).
fn ordinary_directory(init: &Init, mount: &Mount) -> Result<OwnedFd> {
    use orlop_host::sys::path::{Resolve, open_below};
    if is_off("kernel-interface") {
        return ensure(init.root(), &mount.destination, Kind::Directory);
    }
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let open = || open_below(init.root(), &mount.destination, flags, 0, Resolve::InRootNoLinks);
    if let Ok(there) = open() {
        return Ok(there);
    }
    ensure(init.root(), &mount.destination, Kind::Directory)?;
    open().map_err(|_| {
        let shown = mount.destination.display();
        Error::exactly(
            ErrorKind::InvalidArgument,
            format!("filesystem must be mounted on ordinary directory, which \"{shown}\" is not"),
        )
    })
}

/// Gives a file system the options that are its own to understand.
fn configure(context: &FsContext, options: &MountOptions) -> io::Result<()> {
    let own = options.flags.iter().map(String::as_str);
    options.superblock.iter().copied().chain(own).try_for_each(|flag| context.flag(flag))?;
    options.data.iter().try_for_each(|(name, value)| context.string(name, value))
}

/// A detached mount of a new file system.
fn make_file_system(
    kind: &str,
    source: &str,
    options: &MountOptions,
    mode: Option<String>,
    attributes: u64,
    label: Option<&str>,
) -> Result<OwnedFd> {
    let context = FsContext::open(kind).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => {
            Error::exactly(ErrorKind::InvalidArgument, format!("no such file system type: {kind:?}"))
        }
        _ => Error::io("open file system", kind, error),
    })?;
    let prepare = || -> io::Result<()> {
        if !source.is_empty() {
            context.string("source", source)?;
        }
        configure(&context, options)?;
        if let Some(mode) = &mode {
            context.string("mode", mode)?;
        }
        if let Some(label) = label {
            context.string("context", label)?;
        }
        // A file system on a device is opened read-only as a whole; for the kernel's own that would not be ours to say.
        let is_virtual = ["proc", "sysfs", "tmpfs", "devpts", "mqueue"].contains(&kind);
        if attributes & ATTR_RDONLY != 0 && !is_virtual {
            context.flag("ro")?;
        }
        Ok(())
    };
    prepare().and_then(|()| context.mount(attributes)).map_err(|error| match &*context.explanation() {
        "" => Error::io("mount file system", kind, error),
        words => {
            let kind_of_error = ErrorKind::from_io(&error);
            let error = Error::io("mount file system", kind, error);
            Error::exactly(kind_of_error, format!("{error}: {words}"))
        }
    })
}
