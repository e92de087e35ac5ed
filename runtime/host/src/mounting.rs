//! Sets of mounts as snapshotters give them, made at one place and undone there.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::fchdir;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::mapped::{self, Mapping, Owners};
use crate::mounts::{MountOptions, propagation};
use crate::sys::loop_device;
use crate::sys::mount::{self as calls, Attributes, FsContext};

/// What `mount(2)` takes as options: one page, its end included.
const PAGE: usize = 4096;
/// What `fsconfig(2)` takes as one value, its end included.
const VALUE: usize = 256;
/// How often and how long to wait for a busy mount.
const BUSY: (u32, Duration) = (100, Duration::from_millis(20));

/// Something to be mounted, in the terms of mount(2) and fstab(5).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// File system type; `bind` for bind mounts.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Where, relative to where the whole set is mounted; usually nothing.
    pub target: String,
    /// Options, in order.
    pub options: Vec<String>,
}

/// Mounts all, one over the other, and undoes those already made if one fails.
///
/// Mounting may wait for a disk or a network, and goes to another working directory for a while where paths are long: the work of a
/// helper, or of a thread with a working directory of its own.
///
/// # Errors
///
/// The kernel's, with its explanation where there is one, and what could not be undone.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    let here =
        open(".", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).context("open", "working directory")?;
    let made = mounts.iter().try_for_each(|one| mount_one(one, target));
    let returned = fchdir(&here).context("return to", "working directory");
    let Err(error) = made.and(returned) else { return Ok(()) };
    match unmount_all(target) {
        Ok(()) => Err(error),
        Err(undo) => {
            let why = format!("cleaning up failed too: {undo}");
            Err(Error::because(error.kind(), error.to_string(), "", why))
        }
    }
}

fn mount_one(one: &Mount, root: &Path) -> Result<()> {
    let mut one = one.clone();
    match Mapping::take(&mut one.options)? {
        None => mount_plain(&one, root, None),
        Some(mapping) => mount_plain(&one, root, Some(&mapping.owners()?)),
    }
}

/// One mount, with its owners shifted.
fn mount_plain(one: &Mount, root: &Path, owners: Option<&Owners>) -> Result<()> {
    let target = below(root, &one.target)?;
    let shown = target.display().to_string();
    let options = MountOptions::parse(&one.options);
    let is_bind = options.bind || one.kind == "bind";
    let is_loop = options.flags.iter().any(|flag| flag == "loop");
    if owners.is_some() && (is_loop || !is_bind && one.kind != "overlay") {
        let why = "owners are shifted in bind mounts and overlays alone";
        return Err(Error::because(Kind::Unimplemented, "mount", one.kind.clone(), why));
    }
    if is_loop {
        return mount_loop(one, root);
    }
    let mount = if is_bind {
        let tree = calls::clone_tree(nix::fcntl::AT_FDCWD, Path::new(&one.source), options.recursive_bind)
            .context("bind", &one.source)?;
        if let Some(owners) = owners {
            calls::set_idmap(tree.as_fd(), options.recursive_bind, owners.namespace())
                .context("shift owners of", &one.source)?;
        }
        tree
    } else if let Some(owners) = owners {
        return mapped::mount_overlay(one, &options, owners, &target);
    } else if fits(&one.options) {
        return mount_classic(one, &one.options, &options, &target);
    } else if let Some((directory, words)) = shorten(&one.options).filter(|(_, words)| fits(words)) {
        std::env::set_current_dir(&directory).context("enter", directory.display().to_string())?;
        return mount_classic(one, &words, &options, &target);
    } else {
        mount_long(one, &options)?
    };
    set(&mount, &options).context("set attributes of", &shown)?;
    let target = fs::File::open(&target).context("open", &shown)?;
    calls::attach(mount.as_fd(), target.as_fd()).context("mount", shown)
}

/// Mounts a file by way of a loop device, which goes with the mount, or at once if mounting fails.
fn mount_loop(one: &Mount, root: &Path) -> Result<()> {
    let read_only = one.options.iter().any(|word| word == "ro");
    let file =
        fs::File::options().read(true).write(!read_only).open(&one.source).context("open", &one.source)?;
    let (device, _open) =
        loop_device::attach(file.as_fd(), read_only).context("make a loop device of", &one.source)?;
    let options = one.options.iter().filter(|word| *word != "loop").cloned().collect();
    let mount = Mount { source: device.display().to_string(), options, ..one.clone() };
    mount_one(&mount, root)
}

/// A mount's place below the root; anything that leads out of it is refused.
fn below(root: &Path, target: &str) -> Result<PathBuf> {
    let mut path = root.to_owned();
    for part in Path::new(target).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::RootDir | Component::CurDir => {}
            _ => return Err(Error::because(Kind::InvalidArgument, "mount", target, "leaves the root")),
        }
    }
    Ok(path)
}

/// Whether the options are short enough for `mount(2)`.
fn fits(options: &[String]) -> bool {
    options.iter().map(|word| word.len() + 1).sum::<usize>() < PAGE
}

/// The directory that all layers of an overlay have in common, and the options with paths from there.
fn shorten(options: &[String]) -> Option<(PathBuf, Vec<String>)> {
    let lower = options.iter().find_map(|word| word.strip_prefix("lowerdir="))?;
    let layers: Vec<&str> = lower.split(':').collect();
    let common = layers.iter().copied().reduce(|one, other| {
        let same = one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        &one[..one.floor_char_boundary(same)]
    })?;
    let (directory, _) = common.rsplit_once('/').filter(|(directory, _)| directory.starts_with('/'))?;
    if directory.contains('\\') || layers.iter().any(|layer| layer.len() <= directory.len() + 1) {
        return None;
    }
    let relative: Vec<&str> = layers.iter().map(|layer| &layer[directory.len() + 1..]).collect();
    let relative = format!("lowerdir={}", relative.join(":"));
    let words = options.iter().map(|word| match word.starts_with("lowerdir=") {
        true => relative.clone(),
        false => word.clone(),
    });
    Some((PathBuf::from(directory), words.collect()))
}

fn set(mount: &OwnedFd, options: &MountOptions) -> std::io::Result<()> {
    let (set, clear) = (options.set, options.clear);
    if (set, clear) != (0, 0) {
        calls::set_attributes(mount.as_fd(), false, Attributes { set, clear, propagation: 0 })?;
    }
    let (set, clear) = (options.recursive_set, options.recursive_clear);
    if (set, clear) != (0, 0) {
        calls::set_attributes(mount.as_fd(), true, Attributes { set, clear, propagation: 0 })?;
    }
    for &(propagation, recursive) in &options.propagation {
        calls::set_attributes(mount.as_fd(), recursive, Attributes { propagation, ..Attributes::default() })?;
    }
    Ok(())
}

/// `mount(2)`, which every kernel has and every file system's options were written for.
pub(crate) fn mount_classic(
    one: &Mount,
    words: &[String],
    options: &MountOptions,
    target: &Path,
) -> Result<()> {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for word in words {
        match flag(word) {
            Some((bits, true)) => flags |= bits,
            Some((bits, false)) => flags &= !bits,
            None if propagation(word).is_some() => {}
            None => data.push(word.as_str()),
        }
    }
    let data = data.join(",");
    let kind = Some(one.kind.as_str()).filter(|kind| !kind.is_empty());
    mount(Some(one.source.as_str()), target, kind, flags, Some(data.as_str()).filter(|d| !d.is_empty()))
        .context(format!("mount {}", one.kind), format!("{} on {}", one.source, target.display()))?;
    for &(propagation, recursive) in &options.propagation {
        let bits = MsFlags::from_bits_retain(propagation)
            | if recursive { MsFlags::MS_REC } else { MsFlags::empty() };
        mount(None::<&str>, target, None::<&str>, bits, None::<&str>)
            .context("set propagation of", target.display().to_string())?;
    }
    Ok(())
}

/// A word of `mount(8)` that is a flag of `mount(2)`, and whether it sets it.
fn flag(word: &str) -> Option<(MsFlags, bool)> {
    Some(match word {
        "defaults" | "" => (MsFlags::empty(), true),
        "ro" => (MsFlags::MS_RDONLY, true),
        "rw" => (MsFlags::MS_RDONLY, false),
        "nosuid" => (MsFlags::MS_NOSUID, true),
        "suid" => (MsFlags::MS_NOSUID, false),
        "nodev" => (MsFlags::MS_NODEV, true),
        "dev" => (MsFlags::MS_NODEV, false),
        "noexec" => (MsFlags::MS_NOEXEC, true),
        "exec" => (MsFlags::MS_NOEXEC, false),
        "sync" => (MsFlags::MS_SYNCHRONOUS, true),
        "async" => (MsFlags::MS_SYNCHRONOUS, false),
        "dirsync" => (MsFlags::MS_DIRSYNC, true),
        "mand" => (MsFlags::MS_MANDLOCK, true),
        "nomand" => (MsFlags::MS_MANDLOCK, false),
        "noatime" => (MsFlags::MS_NOATIME, true),
        "atime" => (MsFlags::MS_NOATIME, false),
        "nodiratime" => (MsFlags::MS_NODIRATIME, true),
        "diratime" => (MsFlags::MS_NODIRATIME, false),
        "relatime" => (MsFlags::MS_RELATIME, true),
        "norelatime" => (MsFlags::MS_RELATIME, false),
        "strictatime" => (MsFlags::MS_STRICTATIME, true),
        "nostrictatime" => (MsFlags::MS_STRICTATIME, false),
        _ => return None,
    })
}

/// A detached mount whose options are longer than a page: one call per option, and one per layer of an overlay.
fn mount_long(one: &Mount, options: &MountOptions) -> Result<OwnedFd> {
    let shown = || format!("{} {}", one.kind, one.source);
    let context = FsContext::open(&one.kind).context("open file system", &one.kind)?;
    let explain = |error: std::io::Error| {
        let why = context.explanation();
        if why.is_empty() {
            Error::io("mount", shown(), error)
        } else {
            Error::because(Kind::from_io(&error), "mount", shown(), why)
        }
    };
    let string = |key: &str, value: &str| {
        if value.len() >= VALUE {
            let text = format!("option {key} is longer than {VALUE} bytes");
            return Err(Error::because(Kind::InvalidArgument, "mount", shown(), text));
        }
        context.string(key, value).map_err(explain)
    };
    string("source", &one.source)?;
    for name in &options.flags {
        context.flag(name).map_err(explain)?;
    }
    for (key, value) in &options.data {
        if one.kind == "overlay" && key == "lowerdir" {
            for layer in layers(value) {
                string("lowerdir+", &layer)?;
            }
        } else {
            string(key, value)?;
        }
    }
    context.mount(0).map_err(explain)
}

/// An overlay's lower directories: separated by colons, which a backslash makes part of a name.
pub(crate) fn layers(value: &str) -> Vec<String> {
    let mut layers = vec![String::new()];
    let mut letters = value.chars();
    while let Some(letter) = letters.next() {
        match letter {
            ':' => layers.push(String::new()),
            '\\' => layers.last_mut().expect("never empty").extend(letters.next()),
            other => layers.last_mut().expect("never empty").push(other),
        }
    }
    layers
}

/// Unmounts whatever is mounted at a place and below it, the last mounted first.
///
/// # Errors
///
/// The kernel's; what is busy for long goes with its last user.
pub fn unmount_all(target: &Path) -> Result<()> {
    let Ok(target) = target.canonicalize() else { return Ok(()) };
    let table = fs::read_to_string("/proc/self/mountinfo").context("read", "/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let below: Vec<PathBuf> = points.filter(|point| point.starts_with(&target)).collect();
    for point in below.iter().rev() {
        unmount(point)?;
    }
    Ok(())
}

fn unmount(point: &Path) -> Result<()> {
    let (attempts, pause) = BUSY;
    for _ in 0..attempts {
        match umount2(point, MntFlags::UMOUNT_NOFOLLOW) {
            // Not mounted any more.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) => std::thread::sleep(pause),
            Err(error) => return Err(error).context("unmount", point.display().to_string()),
        }
    }
    umount2(point, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH)
        .context("unmount", point.display().to_string())
}

/// A path in mountinfo, where spaces and the like are octal (proc(5)).
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|three| std::str::from_utf8(three).ok());
        match (first, octal.and_then(|three| u8::from_str_radix(three, 8).ok())) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_stays_below_the_root() {
        assert_eq!(below(Path::new("/b/rootfs"), "").unwrap(), Path::new("/b/rootfs"));
        assert_eq!(below(Path::new("/b/rootfs"), "/etc/./x").unwrap(), Path::new("/b/rootfs/etc/x"));
        assert!(below(Path::new("/b/rootfs"), "../x").is_err());
    }

    #[test]
    fn owners_that_cannot_be_shifted_are_refused() {
        let mut options = vec!["uidmap=0:1:1".to_owned(), "gidmap=0:1:1".to_owned()];
        let Ok(owners) = Mapping::take(&mut options).unwrap().unwrap().owners() else {
            println!("not run: needs root");
            return;
        };
        for (kind, word) in [("ext4", "rw"), ("ext4", "loop"), ("bind", "loop")] {
            let one = Mount { kind: kind.into(), options: vec![word.into()], ..Mount::default() };
            let error = mount_plain(&one, Path::new("/nonexistent"), Some(&owners)).unwrap_err();
            assert_eq!(error.kind(), Kind::Unimplemented, "{kind} {word}: {error}");
        }
    }

    #[test]
    fn layers_may_have_colons_in_their_names() {
        assert_eq!(layers("/a:/b\\:c:/d\\\\e"), ["/a", "/b:c", "/d\\e"]);
    }

    #[test]
    fn mount_points_may_have_spaces_in_their_names() {
        assert_eq!(unescape("/a\\040b\\134c"), Path::new("/a b\\c"));
    }

    #[test]
    fn many_layers_are_named_from_the_directory_they_share() {
        let layers: Vec<String> = (100..300).map(|n| format!("/var/lib/snapshots/{n}/fs")).collect();
        let words = ["index=off".to_owned(), format!("lowerdir={}", layers.join(":"))];
        assert!(!fits(&words));
        let (directory, words) = shorten(&words).unwrap();
        assert_eq!(directory, Path::new("/var/lib/snapshots"));
        assert!(words[1].starts_with("lowerdir=100/fs:101/fs:"));
        assert!(fits(&words));
        assert!(shorten(&["lowerdir=/a/b:/c/d".to_owned()]).is_none());
        assert!(shorten(&["lowerdir=a:b".to_owned()]).is_none());
        assert!(shorten(&["upperdir=/u".to_owned()]).is_none());
    }
}
