//! Mounts whose owners are shifted: the options `uidmap` and `gidmap` of containerd's snapshotters.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::mounting::{Mount, layers, mount_classic};
use crate::mounts::MountOptions;
use crate::sys::mount::{ATTR_RDONLY, Attributes, attach, clone_tree, set_attributes, set_idmap};
use crate::userns::user_namespace;

/// Mappings as the kernel takes them, of users and of groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    uids: String,
    gids: String,
}

impl Mapping {
    /// Takes the mapping out of a mount's options; nothing where users or groups are not mapped.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for what is no mapping.
    pub fn take(options: &mut Vec<String>) -> Result<Option<Mapping>> {
        let mut found = [None, None];
        let mut result = Ok(());
        options.retain(|option| {
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
        Ok(uids.zip(gids).map(|(uids, gids)| Mapping { uids, gids }))
    }

    /// A user namespace that has it.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn namespace(&self) -> Result<OwnedFd> {
        user_namespace(|pid| {
            for (file, text) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
                let path = format!("/proc/{pid}/{file}");
                fs::write(&path, text).context("write", path)?;
            }
            Ok(())
        })
    }
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

/// Mounts an overlay over layers whose owners are shifted; the directory that is written to keeps its own. The caller's mount
/// namespace and working directory must be its own to change.
///
/// The shifted layers are mounted in a mount namespace that goes at the end, so that nothing of them is ever seen outside: an
/// overlay keeps what it needs of them.
///
/// # Errors
///
/// The kernel's.
pub fn mount_overlay(
    one: &Mount,
    options: &MountOptions,
    namespace: BorrowedFd,
    target: &Path,
) -> Result<()> {
    let home = File::open("/proc/thread-self/ns/mnt").context("open", "the mount namespace")?;
    unshare(CloneFlags::CLONE_NEWNS).context("unshare", "mounts")?;
    let made = make(one, options, namespace, target);
    setns(&home, CloneFlags::CLONE_NEWNS).context("return to", "the mount namespace")?;
    let shown = target.display().to_string();
    let place = File::open(target).context("open", &shown)?;
    attach(made?.as_fd(), place.as_fd()).context("mount", shown)
}

/// The overlay, detached.
fn make(one: &Mount, options: &MountOptions, namespace: BorrowedFd, target: &Path) -> Result<OwnedFd> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make private", "mounts")?;
    let lower = options.data.iter().find(|(key, _)| key == "lowerdir").map(|(_, value)| value.as_str());
    let lower = layers(lower.unwrap_or_default());
    let shifted = |path: &String| -> Result<OwnedFd> {
        let tree = clone_tree(AT_FDCWD, Path::new(path), false).context("bind", path)?;
        set_idmap(tree.as_fd(), false, namespace).context("shift owners of", path)?;
        let read_only = Attributes { set: ATTR_RDONLY, ..Attributes::default() };
        set_attributes(tree.as_fd(), false, read_only).context("protect", path)?;
        Ok(tree)
    };
    let trees: Vec<OwnedFd> = lower.iter().map(shifted).collect::<Result<_>>()?;
    let shown = target.display().to_string();
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), none).context("mount tmpfs on", &shown)?;
    std::env::set_current_dir(target).context("enter", &shown)?;
    for (number, tree) in trees.iter().enumerate() {
        let name = number.to_string();
        fs::create_dir(&name).context("create", &name)?;
        let place = File::open(&name).context("open", &name)?;
        attach(tree.as_fd(), place.as_fd()).context("mount", &name)?;
    }
    let merged = Path::new("merged");
    fs::create_dir(merged).context("create", "merged")?;
    let numbers: Vec<String> = (0..trees.len()).map(|number| number.to_string()).collect();
    let words: Vec<String> = one
        .options
        .iter()
        .map(|word| match word.starts_with("lowerdir=") {
            true => format!("lowerdir={}", numbers.join(":")),
            false => word.clone(),
        })
        .collect();
    mount_classic(one, &words, options, merged)?;
    clone_tree(AT_FDCWD, merged, false).context("bind", "merged")
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
        // Both or none, as with containerd.
        assert_eq!(Mapping::take(&mut words(&["uidmap=0:1:1", "rw"])).unwrap(), None);
        for bad in ["uidmap=0:1", "gidmap=a:b:c", "uidmap=", "gidmap=0:1:0", "uidmap=0:1:1,", "uidmap=0:1:-1"]
        {
            assert!(Mapping::take(&mut words(&[bad])).is_err(), "{bad}");
        }
    }
}
