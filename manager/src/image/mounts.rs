//! Where a snapshot's files are, from the mounts that a snapshotter or a client gives.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use rustix::fs::OFlags;

use super::media::Form;
use super::unpack::{self, Place, Target, Unpacked, Whiteouts};
use crate::snapshot::{Mount, UnpackPlace};

/// The place, in a mount namespace that nobody else sees, where something is mounted: every system has it.
const PLACE: &str = "/proc";

/// Where a layer is applied, so that the mounts show it afterwards.
///
/// The upper directory of an overlay is written directly, whose lower directories give what the layer leaves out;
/// everything else is used as it is mounted. Blocks.
pub fn target(mounts: &[Mount]) -> Result<Target> {
    if let [mount] = mounts
        && mount.kind == "overlay"
        && let Some(upper) = option(mount, "upperdir=")
    {
        let lowers = lower_directories(mount).iter().map(|path| directory(path)).collect::<Result<_>>()?;
        let userxattr = mount.options.iter().any(|option| option == "userxattr");
        return Ok(Target { root: directory(upper)?, lowers, whiteouts: Whiteouts::Overlay { userxattr } });
    }
    Ok(Target { root: root(mounts)?, lowers: Vec::new(), whiteouts: Whiteouts::Delete })
}

/// Unpacks a layer where a snapshotter wants it. Blocks.
///
/// # Errors
///
/// Those of unpacking; `Unimplemented` for an image that is to become files.
pub fn unpack(input: impl Read + Send, form: Form, place: &UnpackPlace) -> Result<Unpacked> {
    let place = match place {
        UnpackPlace::Directory { .. } if form == Form::Image => {
            return Err(Error::because(
                Kind::Unimplemented,
                "unpack",
                "EROFS image",
                "it is mounted as it is",
            ));
        }
        UnpackPlace::Directory { root, userxattr } => Place::Directory {
            root: directory(&root.display().to_string())?,
            whiteouts: Whiteouts::Overlay { userxattr: *userxattr },
            owners: None,
        },
        UnpackPlace::Image(path) => {
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path);
            let file = file.context("create", path.display().to_string())?;
            match form {
                Form::Archive => Place::Image(file),
                Form::Image => Place::Ready(file),
            }
        }
    };
    unpack::unpack(input, place)
}

/// The directory that a client's mounts are written to: an overlay's upper one, or a bind mount's source.
pub fn written(mounts: &[Mount]) -> Option<&Path> {
    let [mount] = mounts else { return None };
    match option(mount, "upperdir=") {
        Some(upper) => Some(Path::new(upper)),
        None => is_bind(mount).then(|| Path::new(&mount.source)),
    }
}

/// The root of what the mounts show, opened for reading. Blocks.
pub fn root(mounts: &[Mount]) -> Result<OwnedFd> {
    match mounts {
        [] => Err(Error::because(Kind::InvalidArgument, "use", "mounts", "there are none")),
        [mount] if is_bind(mount) => directory(&mount.source),
        [mount] => mount_unseen(mount),
        _ => {
            Err(Error::because(Kind::Unimplemented, "use", "mounts", "only one mount at a time is supported"))
        }
    }
}

/// The root of what the mounts show, for reading only. Blocks.
///
/// An overlay's upper directory becomes the nearest of its lower ones: it may be mounted elsewhere, and no two mounts
/// may write to it.
pub fn readable(mounts: &[Mount]) -> Result<OwnedFd> {
    let [mount] = mounts else { return root(mounts) };
    let Some(upper) = option(mount, "upperdir=") else { return root(mounts) };
    let escaped = upper.replace('\\', "\\\\").replace(':', "\\:");
    let mut reading = mount.clone();
    reading.options.retain(|option| !option.starts_with("upperdir=") && !option.starts_with("workdir="));
    for option in &mut reading.options {
        if let Some(lower) = option.strip_prefix("lowerdir=") {
            *option = format!("lowerdir={escaped}:{lower}");
        }
    }
    root(&[reading])
}

/// The upper directory of an overlay, where it is all that differs from what the other mounts show. Blocks.
pub fn upper_over(left: &[Mount], right: &[Mount]) -> Result<Option<OwnedFd>> {
    upper_path(left, right).map(directory).transpose()
}

fn upper_path<'a>(left: &[Mount], right: &'a [Mount]) -> Option<&'a str> {
    let [right] = right else { return None };
    let upper = option(right, "upperdir=")?;
    let below = lower_directories(right);
    let is_same = match left {
        [left] if left.kind == "overlay" => {
            option(left, "upperdir=").is_none() && lower_directories(left) == below
        }
        [left] if is_bind(left) => below.len() == 1 && left.source == below[0],
        _ => false,
    };
    is_same.then_some(upper)
}

fn is_bind(mount: &Mount) -> bool {
    mount.kind == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind")
}

fn option<'a>(mount: &'a Mount, prefix: &str) -> Option<&'a str> {
    mount.options.iter().find_map(|option| option.strip_prefix(prefix))
}

/// The lower directories of an overlay, nearest first; a backslash keeps a colon in a name.
fn lower_directories(mount: &Mount) -> Vec<String> {
    let mut directories = vec![];
    let mut current = String::new();
    let mut letters = option(mount, "lowerdir=").unwrap_or_default().chars();
    while let Some(letter) = letters.next() {
        match letter {
            ':' => directories.push(std::mem::take(&mut current)),
            '\\' => current.extend(letters.next()),
            letter => current.push(letter),
        }
    }
    directories.push(current);
    directories.retain(|directory| !directory.is_empty());
    directories
}

/// Opens a directory that a snapshotter or a trusted client named.
fn directory(path: &str) -> Result<OwnedFd> {
    let flags = (OFlags::DIRECTORY | OFlags::CLOEXEC).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).context("open", path)?;
    Ok(file.into())
}

/// Mounts in a namespace of its own and gives the root. The namespace goes with the thread that made it, and the
/// mount with the last descriptor, so that nothing is left however the daemon ends.
fn mount_unseen(what: &Mount) -> Result<OwnedFd> {
    let name = format!("{} {}", what.kind, what.source);
    let (flags, data) = options(what);
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("mount".to_owned()).spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_NEWNS).context("unshare", "mounts")?;
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
                .context("make private", "mounts")?;
            let (source, kind) = (what.source.as_str(), what.kind.as_str());
            mount(Some(source), PLACE, Some(kind), flags, Some(data.as_str())).context("mount", &name)?;
            directory(PLACE)
        });
        let result = thread.context("start", "thread")?.join();
        result.map_err(|_| Error::because(Kind::Internal, "mount", name.clone(), "a thread panicked"))?
    })
}

/// Options as mount(2) takes them.
fn options(mount: &Mount) -> (MsFlags, String) {
    let mut flags = MsFlags::empty();
    let mut data: Vec<&str> = Vec::new();
    for option in &mount.options {
        match option.as_str() {
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" | "defaults" => {}
            // Owners are read and written as they are kept.
            other if other.starts_with("uidmap=") || other.starts_with("gidmap=") => {}
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            other => data.push(other),
        }
    }
    (flags, data.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Mount { kind: kind.to_owned(), source: source.to_owned(), options, ..Mount::default() }
    }

    #[test]
    fn an_overlay_is_written_in_its_upper_directory() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| {
            let path = place.path().join(name);
            std::fs::create_dir_all(&path).unwrap();
            path.display().to_string()
        };
        let lower = format!("lowerdir={}:{}", path("a"), path("b:c").replace(':', "\\:"));
        let upper = format!("upperdir={}", path("u"));
        let target =
            target(&[mount("overlay", "overlay", &["index=off", "userxattr", &lower, &upper])]).unwrap();
        assert_eq!(target.lowers.len(), 2);
        assert_eq!(target.whiteouts, Whiteouts::Overlay { userxattr: true });
    }

    #[test]
    fn a_bind_mount_is_written_itself() {
        let place = tempfile::tempdir().unwrap();
        let source = place.path().display().to_string();
        let bind = [mount("bind", &source, &["rw", "rbind"])];
        assert_eq!(target(&bind).unwrap().whiteouts, Whiteouts::Delete);
        assert_eq!(target(&[]).unwrap_err().kind(), Kind::InvalidArgument);
        let missing = [mount("bind", "/nonexistent", &["rbind"])];
        assert_eq!(target(&missing).unwrap_err().to_string(), "open /nonexistent: no such file or directory");
    }

    #[test]
    fn the_upper_directory_alone_differs_only_over_the_same_layers() {
        let right = [mount("overlay", "overlay", &["upperdir=/u", "workdir=/w", "lowerdir=/b:/a"])];
        let same = [mount("overlay", "overlay", &["lowerdir=/b:/a"])];
        let other = [mount("overlay", "overlay", &["lowerdir=/a"])];
        assert_eq!(upper_path(&same, &right), Some("/u"));
        assert_eq!(upper_path(&other, &right), None);
        let over_one = [mount("overlay", "overlay", &["upperdir=/u", "lowerdir=/a"])];
        assert_eq!(upper_path(&[mount("bind", "/a", &["ro"])], &over_one), Some("/u"));
        assert_eq!(upper_path(&[], &over_one), None);
    }

    #[test]
    fn other_mounts_are_made_where_nobody_sees_them() {
        if !rustix::process::geteuid().is_root() {
            println!("not run: needs root");
            return;
        }
        let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = root(&[mount("tmpfs", "tmpfs", &["size=1m", "nosuid"])]).unwrap();
        rustix::fs::mkdirat(&root, "d", rustix::fs::Mode::from_raw_mode(0o755)).unwrap();
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    }
}
