//! What of a container lies outside of it, in CRIU's terms.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, stat};
use orlop_host::cgroup::{CgroupPaths, Hierarchies};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::rpc::Message;
use crate::init::paths::open_path;
use crate::plan::mounts::Source;
use crate::plan::namespaces::NAMES;
use crate::plan::{Container, Plan};

/// Field of `criu_opts` for a mount that is made from the host (`ext_mount_map`).
const EXTERNAL_MOUNT: u32 = 23;
/// Field of `criu_opts` for other things from outside.
const EXTERNAL: u32 = 37;
/// Field of `criu_opts` for a descriptor that stands for something from outside (`inherit_fd`).
const INHERITED: u32 = 27;
/// Field of `criu_opts` for a namespace to join (`join_namespace`).
const JOINED: u32 = 39;

/// The first descriptor that CRIU gets beside its streams and its socket.
const FIRST: usize = 4;

/// A mount from the host: where it is in the container, and what it shows.
#[derive(Debug, PartialEq, Eq)]
pub struct External {
    /// Where, with the links of the root file system resolved.
    pub destination: String,
    /// What of the host.
    pub source: String,
}

/// Every mount of a container that CRIU cannot make from what it saved: bind mounts, and cgroups of version 1 outside of a cgroup
/// namespace, which are bind mounts too.
pub fn mounts(
    plan: &Plan,
    container: &Container,
    hierarchies: &Hierarchies,
    cgroups: &CgroupPaths,
) -> Result<Vec<External>> {
    let root = open_directory(&container.rootfs)?;
    let place = |path: &Path| resolved(&root, &container.rootfs, path);
    let mut found = Vec::new();
    for mount in &container.mounts {
        match &mount.source {
            Source::Bind(source) => found.push(External {
                destination: place(&mount.destination),
                source: std::path::absolute(source)
                    .context("find", source.to_string_lossy())?
                    .to_string_lossy()
                    .into_owned(),
            }),
            Source::Cgroup if !plan.namespaces.is_new_or_joined(libc::CLONE_NEWCGROUP) => {
                for hierarchy in &hierarchies.legacy {
                    let Some(name) = hierarchy.mountpoint.file_name() else { continue };
                    let own = hierarchy.controllers.iter().find_map(|one| cgroups.get(one));
                    found.push(External {
                        destination: place(&mount.destination.join(name)),
                        source: own.unwrap_or(&hierarchy.own).to_string_lossy().into_owned(),
                    });
                }
            }
            Source::Cgroup | Source::FileSystem(..) => {}
        }
    }
    if container.bind_devices {
        for device in &container.devices {
            let path = place(&device.path);
            found.push(External { destination: path.clone(), source: path });
        }
    }
    Ok(found)
}

/// Tells CRIU of mounts: what it calls them in its images, and on the way back what they are.
pub fn tell<'a>(message: &mut Message, pairs: impl IntoIterator<Item = (&'a str, &'a str)>) {
    for (key, value) in pairs {
        let mut part = Message::default();
        part.text(1, key).text(2, value);
        message.part(EXTERNAL_MOUNT, &part);
    }
}

/// The path of a mount as the kernel shows it, if the root file system has it.
fn resolved(root: &OwnedFd, rootfs: &Path, path: &Path) -> String {
    let target = open_path(root.as_fd(), path)
        .and_then(|found| std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())));
    let inside = target.ok().and_then(|target| Some(Path::new("/").join(target.strip_prefix(rootfs).ok()?)));
    inside.unwrap_or_else(|| path.to_owned()).to_string_lossy().into_owned()
}

pub fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(path, flags, Mode::empty()).context("open", path.to_string_lossy())
}

/// Namespaces that CRIU leaves alone if they are somebody else's: what it calls them, and their `CLONE_NEW…` flag.
const FOREIGN: [(u64, &str, &str); 2] =
    [(libc::CLONE_NEWNET as u64, "net", "extRootNetNS"), (libc::CLONE_NEWPID as u64, "pid", "extRootPidNS")];

/// Tells CRIU which namespaces are not the container's to save.
pub fn tell_namespaces(message: &mut Message, plan: &Plan) -> Result<()> {
    for (flag, path) in &plan.namespaces.join {
        if let Some((_, name, key)) = FOREIGN.iter().find(|(foreign, ..)| foreign == flag) {
            let found = stat(path.as_path()).context("stat", path.to_string_lossy())?;
            message.text(EXTERNAL, &format!("{name}[{}]:{key}", found.st_ino));
        }
    }
    Ok(())
}

/// Tells CRIU which namespaces to restore into; returns the descriptors that it needs for that.
pub fn tell_joined(message: &mut Message, plan: &Plan) -> Result<Vec<OwnedFd>> {
    let mut opened = Vec::new();
    for (flag, path) in &plan.namespaces.join {
        if let Some((_, _, key)) = FOREIGN.iter().find(|(foreign, ..)| foreign == flag) {
            let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
            let namespace = open(path.as_path(), flags, Mode::empty())
                .context("open namespace", path.to_string_lossy())?;
            tell_inherited(message, key, FIRST + opened.len());
            opened.push(namespace);
        } else if *flag == libc::CLONE_NEWCGROUP as u64 {
            return Err(Error::new(Kind::Unimplemented, "restore into", "a joined cgroup namespace"));
        } else if let Some((_, _, name)) = NAMES.iter().find(|(known, ..)| known == flag) {
            let mut part = Message::default();
            part.text(1, name).text(2, &path.to_string_lossy());
            message.part(JOINED, &part);
        }
    }
    Ok(opened)
}

/// Tells CRIU that one of its descriptors is what was called `key` when it was saved.
pub fn tell_inherited(message: &mut Message, key: &str, number: usize) {
    let mut part = Message::default();
    part.text(1, key).number(2, number as u64);
    message.part(INHERITED, &part);
}

/// Masked files of a running container; masked directories are file systems of its own.
pub fn masked_files(container: &Container, pid: i32) -> Result<Vec<PathBuf>> {
    let root = open_directory(Path::new(&format!("/proc/{pid}/root")))?;
    let is_file = |path: &&PathBuf| {
        open_path(root.as_fd(), path).is_ok_and(|found| {
            nix::sys::stat::fstat(&found).is_ok_and(|stat| stat.st_mode & libc::S_IFMT != libc::S_IFDIR)
        })
    };
    Ok(container.masked.iter().filter(is_file).cloned().collect())
}
