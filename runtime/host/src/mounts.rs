//! Mount options as words (mount(8), runtime-spec "Mounts"), turned into what the kernel takes.

use crate::sys::mount::{
    ATTR_ATIME, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID, ATTR_NOSYMFOLLOW,
    ATTR_RDONLY, ATTR_STRICTATIME,
};

/// What the options of one mount ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// `ATTR_…` bits to set on the mount.
    pub set: u64,
    /// `ATTR_…` bits to clear on the mount.
    pub clear: u64,
    /// Bits to set on the mount and everything below it (`rro`, …).
    pub recursive_set: u64,
    /// Bits to clear on the mount and everything below it (`rrw`, …).
    pub recursive_clear: u64,
    /// Options of the file system as a whole that every file system takes, such as `sync`.
    pub superblock: Vec<&'static str>,
    /// Options without value that the file system itself understands, such as `newinstance`.
    pub flags: Vec<String>,
    /// Options with value that the file system itself understands, such as `size=64m`.
    pub data: Vec<(String, String)>,
    /// Whether it is a bind mount.
    pub bind: bool,
    /// Whether a bind mount takes what is mounted below its source along.
    pub recursive_bind: bool,
    /// Propagation changes in order: `MS_…` and whether for the whole tree.
    pub propagation: Vec<(u64, bool)>,
    /// Copy what the image has at the destination into a new tmpfs.
    pub copy_up: bool,
    /// Map owners by the container's user namespace; `Some(true)` for the whole tree.
    pub idmap: Option<bool>,
    /// `remount`.
    pub remount: bool,
}

/// Words that change attributes of the mount: bits to set, bits to clear.
const ATTRIBUTES: &[(&str, u64, u64)] = &[
    ("ro", ATTR_RDONLY, 0),
    ("rw", 0, ATTR_RDONLY),
    ("nosuid", ATTR_NOSUID, 0),
    ("suid", 0, ATTR_NOSUID),
    ("nodev", ATTR_NODEV, 0),
    ("dev", 0, ATTR_NODEV),
    ("noexec", ATTR_NOEXEC, 0),
    ("exec", 0, ATTR_NOEXEC),
    ("noatime", ATTR_NOATIME, ATTR_ATIME),
    ("atime", 0, ATTR_NOATIME),
    ("relatime", 0, ATTR_ATIME),
    ("norelatime", 0, 0),
    ("strictatime", ATTR_STRICTATIME, ATTR_ATIME),
    ("nostrictatime", 0, ATTR_STRICTATIME),
    ("nodiratime", ATTR_NODIRATIME, 0),
    ("diratime", 0, ATTR_NODIRATIME),
    ("nosymfollow", ATTR_NOSYMFOLLOW, 0),
    ("symfollow", 0, ATTR_NOSYMFOLLOW),
];

/// Words for the file system as a whole, which the kernel takes under these names (`fs_context`).
const SUPERBLOCK: &[(&str, Option<&'static str>)] = &[
    ("sync", Some("sync")),
    ("async", Some("async")),
    ("dirsync", Some("dirsync")),
    ("lazytime", Some("lazytime")),
    ("nolazytime", Some("nolazytime")),
    ("mand", Some("mand")),
    ("nomand", None),
    // A file system that counts changes of inodes does so anyhow; the kernel has no name for it here.
    ("iversion", None),
    ("noiversion", None),
    ("silent", None),
    ("loud", None),
];

const PROPAGATION: &[(&str, u64)] = &[
    ("shared", libc::MS_SHARED),
    ("slave", libc::MS_SLAVE),
    ("private", libc::MS_PRIVATE),
    ("unbindable", libc::MS_UNBINDABLE),
];

/// Every option word that is understood without asking the file system, sorted, for `features`.
pub fn known_options() -> Vec<String> {
    let attributes = ATTRIBUTES.iter().flat_map(|(word, ..)| [(*word).to_owned(), format!("r{word}")]);
    let superblock = SUPERBLOCK.iter().map(|(word, _)| (*word).to_owned());
    let propagation = PROPAGATION.iter().flat_map(|(word, _)| [(*word).to_owned(), format!("r{word}")]);
    let others = ["bind", "rbind", "defaults", "remount", "tmpcopyup", "idmap", "ridmap"].map(str::to_owned);
    let mut all: Vec<String> = attributes.chain(superblock).chain(propagation).chain(others).collect();
    all.sort();
    all
}

/// The propagation that a word means (`rslave`): `MS_…` and whether for the whole tree.
pub fn propagation(word: &str) -> Option<(u64, bool)> {
    let find = |name: &str| PROPAGATION.iter().find(|(word, _)| *word == name).map(|(_, flag)| *flag);
    find(word).map(|flag| (flag, false)).or_else(|| Some((find(word.strip_prefix('r')?)?, true)))
}

impl MountOptions {
    /// Reads the words in order; a later one undoes an earlier one. Unknown words go to the file system.
    pub fn parse<S: AsRef<str>>(words: &[S]) -> MountOptions {
        let mut options = MountOptions::default();
        for word in words {
            options.add(word.as_ref());
        }
        options
    }

    fn add(&mut self, word: &str) {
        let attribute = |name: &str| ATTRIBUTES.iter().find(|(word, ..)| *word == name);
        match word {
            "" | "defaults" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive_bind) = (true, true),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            _ => {
                if let Some(&(_, set, clear)) = attribute(word) {
                    (self.set, self.clear) = change(self.set, self.clear, set, clear);
                } else if let Some(&(_, set, clear)) = word.strip_prefix('r').and_then(attribute) {
                    (self.recursive_set, self.recursive_clear) =
                        change(self.recursive_set, self.recursive_clear, set, clear);
                } else if let Some(change) = propagation(word) {
                    self.propagation.push(change);
                } else if let Some((_, name)) = SUPERBLOCK.iter().find(|(known, _)| *known == word) {
                    self.superblock.extend(*name);
                } else if let Some((name, value)) = word.split_once('=') {
                    self.data.push((name.to_owned(), value.to_owned()));
                } else {
                    self.flags.push(word.to_owned());
                }
            }
        }
    }
}

/// Applies one word's bits: what it sets is no longer cleared but for the number of the access time policy, whose
/// bits `mount_setattr(2)` wants cleared before they are set.
fn change(set: u64, clear: u64, adds: u64, removes: u64) -> (u64, u64) {
    let whole_field = |bits: u64| if bits & ATTR_ATIME != 0 { bits | ATTR_ATIME } else { bits };
    (set & !whole_field(removes) | adds, clear & !adds | whole_field(removes) & !(adds & !ATTR_ATIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_mounts_of_runc() {
        let dev = MountOptions::parse(&["nosuid", "strictatime", "mode=755", "size=65536k"]);
        assert_eq!(dev.set, ATTR_NOSUID | ATTR_STRICTATIME);
        assert_eq!(
            dev.data,
            [("mode".to_owned(), "755".to_owned()), ("size".to_owned(), "65536k".to_owned())]
        );
        let pts = MountOptions::parse(&["nosuid", "noexec", "newinstance", "ptmxmode=0666"]);
        assert_eq!(pts.flags, ["newinstance"]);
        let sys = MountOptions::parse(&["nosuid", "noexec", "nodev", "ro"]);
        assert_eq!(sys.set, ATTR_NOSUID | ATTR_NOEXEC | ATTR_NODEV | ATTR_RDONLY);
    }

    #[test]
    fn later_words_undo_earlier_ones() {
        let options = MountOptions::parse(&["ro", "nosuid", "rw"]);
        assert_eq!((options.set, options.clear), (ATTR_NOSUID, ATTR_RDONLY));
        let options = MountOptions::parse(&["rw", "ro"]);
        assert_eq!((options.set, options.clear), (ATTR_RDONLY, 0));
        let options = MountOptions::parse(&["noatime", "strictatime"]);
        assert_eq!((options.set, options.clear), (ATTR_STRICTATIME, ATTR_ATIME));
        let options = MountOptions::parse(&["noatime", "relatime"]);
        assert_eq!((options.set, options.clear), (0, ATTR_ATIME));
    }

    #[test]
    fn recursive_words_are_not_mixed_up_with_plain_ones() {
        let options = MountOptions::parse(&["rbind", "rro", "rnosuid", "rshared", "relatime", "rrelatime"]);
        assert!(options.bind && options.recursive_bind);
        assert_eq!(options.recursive_set, ATTR_RDONLY | ATTR_NOSUID);
        assert_eq!(options.propagation, [(libc::MS_SHARED, true)]);
        assert_eq!(options.clear, ATTR_ATIME);
        assert_eq!(options.recursive_clear, ATTR_ATIME);
    }

    #[test]
    fn unknown_words_go_to_the_file_system() {
        let options = MountOptions::parse(&["lowerdir=/a:/b", "userxattr", "idmap", "nomand", "sync"]);
        assert_eq!(options.superblock, ["sync"]);
        assert_eq!(options.data, [("lowerdir".to_owned(), "/a:/b".to_owned())]);
        assert_eq!(options.flags, ["userxattr"]);
        assert_eq!(options.idmap, Some(false));
    }

    #[test]
    fn features_list_is_sorted_and_without_doubles() {
        let all = known_options();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
        assert!(all.iter().any(|word| word == "rnosymfollow"));
    }
}
