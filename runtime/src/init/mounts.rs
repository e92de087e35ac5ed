//! The mounts of a container, made detached and attached by descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use orlop_host::mounts::MountOptions;
use orlop_host::sys;
use orlop_host::sys::mount::{ATTR_RDONLY, Attributes, FsContext};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind as ErrorKind;

use super::Init;
use super::cgroup::mount_cgroup;
use super::copy_up::copy_up;
use super::paths::{Kind, ensure};
use super::rootfs::is_directory;
use crate::plan::mounts::{Mount, Source};
use crate::switches::is_off;

/// Opens the sources of bind mounts while the caller's rights are still there.
pub fn open_sources(init: &mut Init) -> Result<()> {
    let mut sources = Vec::new();
    for mount in &init.container().mounts {
        sources.push(match &mount.source {
            Source::Bind(path) => {
                let opened = open(path.as_path(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
                Some(opened.map_err(|error| {
                    failed(mount, Error::io("stat", path.to_string_lossy(), error.into()))
                })?)
            }
            _ => None,
        });
    }
    init.found.sources = sources;
    Ok(())
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
    for ((mount, source), idmap) in init.container().mounts.iter().zip(sources).zip(idmaps) {
        let made = match (&mount.source, source) {
            (Source::Bind(_), Some(source)) => bind(init, mount, &source, idmap),
            (Source::FileSystem(kind, name), _) => new_file_system(init, mount, kind, name, &mut late),
            (Source::Cgroup, _) => mount_cgroup(init, mount),
            (Source::Bind(_), None) => Err(Error::new(ErrorKind::Internal, "find", "the mount's source")),
        };
        made.map_err(|error| failed(mount, error))?;
    }
    init.found.late_readonly = late;
    Ok(())
}

fn bind(init: &Init, mount: &Mount, source: &OwnedFd, idmap: Option<OwnedFd>) -> Result<()> {
    let kind = if is_directory(source)? { Kind::Directory } else { Kind::File };
    if mount.is_bind_at(Path::new("/proc")) && !is_procfs(source)? {
        let why = "it cannot be mounted at /proc because it is not of type proc";
        return Err(Error::exactly(ErrorKind::InvalidArgument, why));
    }
    let options = &mount.options;
    let tree = sys::mount::clone_tree_of(source.as_fd(), options.recursive_bind).context("bind", "it")?;
    if let Some(namespace) = idmap {
        let recursive = options.idmap == Some(true);
        sys::mount::set_idmap(tree.as_fd(), recursive, namespace.as_fd()).context("map owners of", "it")?;
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

fn is_procfs(source: &OwnedFd) -> Result<bool> {
    if is_off("proc-mounts") {
        return Ok(true);
    }
    let found = nix::sys::statfs::fstatfs(source).context("look at", "the mount's source")?;
    Ok(found.filesystem_type() == nix::sys::statfs::PROC_SUPER_MAGIC)
}

/// Attributes of the mount itself and then of the tree below it.
pub fn apply_options(tree: BorrowedFd, options: &MountOptions) -> Result<()> {
    let own = Attributes { set: options.set, clear: options.clear, propagation: 0 };
    if own.set | own.clear != 0 {
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
    for &(propagation, recursive) in &options.propagation {
        let attributes = Attributes { propagation, ..Default::default() };
        sys::mount::set_attributes(tree.as_fd(), recursive, attributes)
            .context("set propagation of", "it")?;
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
    let target = if mount.is_kernel_interface() {
        ordinary_directory(init, mount)?
    } else {
        ensure(init.root(), &mount.destination, Kind::Directory)?
    };
    // A tmpfs is filled before it becomes read-only: with mount points, device nodes, what the image had there.
    let is_tmpfs = kind == "tmpfs";
    let late_read_only = is_tmpfs && mount.options.set & ATTR_RDONLY != 0;
    let attributes = if late_read_only { mount.options.set & !ATTR_RDONLY } else { mount.options.set };
    let label = init.container().mount_label.as_deref();
    let tree = make_file_system(kind, source, &mount.options, attributes, label)?;
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

/// procfs and sysfs go on a real directory of that very path, never through a link, which would put them where later
/// stages do not look (CVE-2019-19921, CVE-2023-27561).
fn ordinary_directory(init: &Init, mount: &Mount) -> Result<OwnedFd> {
    use orlop_host::sys::path::{Resolve, open_below};
    let target = ensure(init.root(), &mount.destination, Kind::Directory)?;
    if is_off("kernel-interface") {
        return Ok(target);
    }
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    open_below(init.root(), &mount.destination, flags, 0, Resolve::InRootNoLinks).map_err(|_| {
        let shown = mount.destination.display();
        Error::exactly(
            ErrorKind::InvalidArgument,
            format!("filesystem must be mounted on ordinary directory, which \"{shown}\" is not"),
        )
    })
}

/// A detached mount of a new file system.
fn make_file_system(
    kind: &str,
    source: &str,
    options: &MountOptions,
    attributes: u64,
    label: Option<&str>,
) -> Result<OwnedFd> {
    let context = FsContext::open(kind).map_err(|error| match error.raw_os_error() {
        Some(libc::ENODEV) => {
            Error::exactly(ErrorKind::InvalidArgument, format!("no such file system type: {kind:?}"))
        }
        _ => Error::io("open file system", kind, error),
    })?;
    let configure = || -> io::Result<()> {
        if !source.is_empty() {
            context.string("source", source)?;
        }
        for flag in &options.flags {
            context.flag(flag)?;
        }
        for (name, value) in &options.data {
            context.string(name, value)?;
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
    configure().and_then(|()| context.mount(attributes)).map_err(|error| match &*context.explanation() {
        "" => Error::io("mount file system", kind, error),
        words => {
            let kind_of_error = ErrorKind::from_io(&error);
            let error = Error::io("mount file system", kind, error);
            Error::exactly(kind_of_error, format!("{error}: {words}"))
        }
    })
}
