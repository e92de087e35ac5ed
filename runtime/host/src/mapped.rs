//! Mounts whose owners are shifted: the options `uidmap` and `gidmap` of containerd's snapshotters, and one of our own,
//! [`UPPER`], by which what is written is shifted too.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::mounting::{Mount, layers, mount_classic};
use crate::mounts::MountOptions;
use crate::sys::creds::{NO_SETUID_FIXUP, secure_bits, set_secure_bits};
use crate::sys::mount::{ATTR_RDONLY, Attributes, attach, clone_tree, set_attributes, set_idmap};
use crate::userns::user_namespace;

/// The option by which an overlay's upper directory holds the owners as the container sees them, like the layers below it. Without
/// it, it holds those of the host, which is what other shims and clients make of `uidmap`.
pub const UPPER: &str = "upperidmap";

/// Mappings as the kernel takes them, of users and of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    uids: String,
    gids: String,
    /// Whether it holds for what is written, too.
    has_upper: bool,
}

/// A mapping that is ready for mounts.
pub struct Owners {
    namespace: OwnedFd,
    /// The container's root on the host, where what is written is shifted too.
    writer: Option<(Uid, Gid)>,
}

impl Owners {
    /// A user namespace that has the mapping.
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl Mapping {
    /// Takes the mapping out of a mount's options; nothing where users or groups are not mapped.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for what is no mapping.
    pub fn take(options: &mut Vec<String>) -> Result<Option<Mapping>> {
        let mut found = [None, None];
        let mut has_upper = false;
        let mut result = Ok(());
        options.retain(|option| {
            if option == UPPER {
                has_upper = true;
                return false;
            }
            for (place, name) in found.iter_mut().zip(["uidmap=", "gidmap="]) {
                if let Some(value) = option.strip_prefix(name) {
                    match lines(value) {
                        Some(lines) => *place = Some(lines),
                        None => {
                            let why = "not CONTAINER:HOST:LENGTH";
                            result = Err(Error::because(
                                Kind::InvalidArgument,
                                "read option",
                                option.clone(),
                                why,
                            ));
                        }
                    }
                    return false;
                }
            }
            true
        });
        result?;
        let [uids, gids] = found;
        Ok(uids.zip(gids).map(|(uids, gids)| Mapping { uids, gids, has_upper }))
    }

    /// Makes it ready for mounts.
    ///
    /// # Errors
    ///
    /// The kernel's; `InvalidArgument` for one without the container's root, where that is to write.
    pub fn owners(&self) -> Result<Owners> {
        let writer = match self.has_upper {
            true => Some((Uid::from_raw(root(&self.uids)?), Gid::from_raw(root(&self.gids)?))),
            false => None,
        };
        let namespace = user_namespace(|pid| {
            for (file, text) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
                let path = format!("/proc/{pid}/{file}");
                fs::write(&path, text).context("write", path)?;
            }
            Ok(())
        })?;
        Ok(Owners { namespace, writer })
    }
}

/// What the root of a mapping is outside.
fn root(lines: &str) -> Result<u32> {
    let outside = |line: &str| line.strip_prefix("0 ")?.split(' ').next()?.parse().ok();
    let found = lines.lines().find_map(outside);
    found
        .ok_or_else(|| Error::because(Kind::InvalidArgument, "read option", UPPER, "the mapping has no root"))
}

/// The lines of a `uid_map`, from `CONTAINER:HOST:LENGTH` with commas between several.
fn lines(value: &str) -> Option<String> {
    let line = |entry: &str| {
        let numbers: Vec<u32> = entry.split(':').map(|word| word.parse().ok()).collect::<Option<_>>()?;
        let [inside, outside, length] = numbers[..] else { return None };
        (length > 0).then(|| format!("{inside} {outside} {length}\n"))
    };
    value.split(',').map(line).collect()
}

/// Mounts an overlay over layers whose owners are shifted; the directory that is written to keeps its own, unless [`UPPER`] is said.
/// The caller's mount namespace and working directory must be its own to change.
///
/// The shifted layers are mounted in a mount namespace that goes at the end, so that nothing of them is ever seen outside: an
/// overlay keeps what it needs of them.
///
/// # Errors
///
/// The kernel's.
pub fn mount_overlay(one: &Mount, options: &MountOptions, owners: &Owners, target: &Path) -> Result<()> {
    let home = File::open("/proc/thread-self/ns/mnt").context("open", "the mount namespace")?;
    unshare(CloneFlags::CLONE_NEWNS).context("unshare", "mounts")?;
    let made = make(one, options, owners, target);
    setns(&home, CloneFlags::CLONE_NEWNS).context("return to", "the mount namespace")?;
    let shown = target.display().to_string();
    let place = File::open(target).context("open", &shown)?;
    attach(made?.as_fd(), place.as_fd()).context("mount", shown)
}

/// The overlay, detached.
fn make(one: &Mount, options: &MountOptions, owners: &Owners, target: &Path) -> Result<OwnedFd> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make private", "mounts")?;
    let value =
        |name: &str| options.data.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let lower = layers(value("lowerdir").unwrap_or_default());
    let shifted = |path: &Path| -> Result<OwnedFd> {
        let shown = || path.display().to_string();
        let tree = clone_tree(AT_FDCWD, path, false).context("bind", shown())?;
        set_idmap(tree.as_fd(), false, owners.namespace()).context("shift owners of", shown())?;
        Ok(tree)
    };
    let read_only = |path: &String| -> Result<OwnedFd> {
        let tree = shifted(Path::new(path))?;
        let protected = Attributes { set: ATTR_RDONLY, ..Attributes::default() };
        set_attributes(tree.as_fd(), false, protected).context("protect", path)?;
        Ok(tree)
    };
    let trees: Vec<OwnedFd> = lower.iter().map(read_only).collect::<Result<_>>()?;
    let written = match (owners.writer, value("upperdir"), value("workdir")) {
        (Some(_), Some(upper), Some(work)) => Some(Written::of(upper, work)?),
        _ => None,
    };
    let writable = written.as_ref().map(|written| shifted(written.parent)).transpose()?;
    let shown = target.display().to_string();
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), none).context("mount tmpfs on", &shown)?;
    std::env::set_current_dir(target).context("enter", &shown)?;
    for (number, tree) in trees.iter().enumerate() {
        let name = number.to_string();
        fs::create_dir(&name).context("create", &name)?;
        let place = File::open(&name).context("open", &name)?;
        attach(tree.as_fd(), place.as_fd()).context("mount", &name)?;
    }
    if let Some(tree) = &writable {
        fs::create_dir(WRITTEN).context("create", WRITTEN)?;
        let place = File::open(WRITTEN).context("open", WRITTEN)?;
        attach(tree.as_fd(), place.as_fd()).context("mount", WRITTEN)?;
    }
    let merged = Path::new("merged");
    fs::create_dir(merged).context("create", "merged")?;
    let numbers: Vec<String> = (0..trees.len()).map(|number| number.to_string()).collect();
    let words: Vec<String> = one
        .options
        .iter()
        .map(|word| match (word.split('=').next(), &written) {
            (Some("lowerdir"), _) => format!("lowerdir={}", numbers.join(":")),
            (Some("upperdir"), Some(written)) => format!("upperdir={WRITTEN}/{}", written.upper),
            (Some("workdir"), Some(written)) => format!("workdir={WRITTEN}/{}", written.work),
            _ => word.clone(),
        })
        .collect();
    let mount = || mount_classic(one, &words, options, merged);
    match owners.writer.filter(|_| written.is_some()) {
        Some((uid, gid)) => as_writer(uid, gid, mount)?,
        None => mount()?,
    }
    clone_tree(AT_FDCWD, merged, false).context("bind", "merged")
}

/// Where an overlay's directories to write to are mounted while it is made.
const WRITTEN: &str = "written";

/// An overlay's directories to write to: overlayfs wants both in one mount.
struct Written<'a> {
    parent: &'a Path,
    upper: &'a str,
    work: &'a str,
}

impl Written<'_> {
    fn of<'a>(upper: &'a str, work: &'a str) -> Result<Written<'a>> {
        let refuse = || {
            let why = format!("{upper} and {work} are not beside each other");
            Error::because(Kind::InvalidArgument, "shift owners of", "upperdir", why)
        };
        let (parent, upper_name) = upper.rsplit_once('/').ok_or_else(refuse)?;
        let (other, work_name) = work.rsplit_once('/').ok_or_else(refuse)?;
        if parent != other || [upper_name, work_name].iter().any(|name| ["", ".", ".."].contains(name)) {
            return Err(refuse());
        }
        Ok(Written { parent: Path::new(parent), upper: upper_name, work: work_name })
    }
}

/// Does something as another user with regard to files, with all that root may do. An overlay makes files as who mounted it before it
/// gives them to their owners, and the host's root is nobody where owners are shifted.
fn as_writer(uid: Uid, gid: Gid, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let (before, shown) = (secure_bits().context("read", "secure bits")?, "secure bits");
    set_secure_bits(before | NO_SETUID_FIXUP).context("set", shown)?;
    // Neither says whether it did anything; where it did not, the kernel refuses to make what an overlay needs.
    let (own_uid, own_gid) = (setfsuid(uid), setfsgid(gid));
    let done = work();
    setfsgid(own_gid);
    setfsuid(own_uid);
    done.and(set_secure_bits(before).context("set", shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_taken_out_of_the_options() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let mut options = words(&["uidmap=0:1000:1,1:100000:65535", "ro", "gidmap=0:5:10"]);
        let mapping = Mapping::take(&mut options).unwrap().unwrap();
        assert_eq!(mapping.uids, "0 1000 1\n1 100000 65535\n");
        assert_eq!(mapping.gids, "0 5 10\n");
        assert_eq!(options, ["ro"]);
        assert!(!mapping.has_upper);
        let mut options = words(&["uidmap=1:9:1,0:1000:1", "gidmap=0:5:10", "upperidmap"]);
        let mapping = Mapping::take(&mut options).unwrap().unwrap();
        assert_eq!(
            (mapping.has_upper, root(&mapping.uids).unwrap(), root(&mapping.gids).unwrap()),
            (true, 1000, 5)
        );
        assert!(options.is_empty() && root("1 2 3\n").is_err());
        // Both or none, as with containerd.
        assert_eq!(Mapping::take(&mut words(&["uidmap=0:1:1", "rw"])).unwrap(), None);
        for bad in ["uidmap=0:1", "gidmap=a:b:c", "uidmap=", "gidmap=0:1:0", "uidmap=0:1:1,", "uidmap=0:1:-1"]
        {
            assert!(Mapping::take(&mut words(&[bad])).is_err(), "{bad}");
        }
    }
    #[test]
    fn what_is_written_is_one_mount() {
        let written = Written::of("/a/7/fs", "/a/7/work").unwrap();
        assert_eq!((written.parent, written.upper, written.work), (Path::new("/a/7"), "fs", "work"));
        for (upper, work) in [("/a/7/fs", "/a/8/work"), ("/a/..", "/a/work"), ("fs", "work"), ("/a/", "/a/w")]
        {
            assert!(Written::of(upper, work).is_err(), "{upper} {work}");
        }
    }
}
