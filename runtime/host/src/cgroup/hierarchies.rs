//! What cgroup hierarchies this host has, and where in them the calling process is.
//!
//! Follows cgroups(7) and proc_pid_mountinfo(5).

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::file;

/// Where every distribution mounts cgroups.
const ROOT: &str = "/sys/fs/cgroup";

/// How the host's controllers are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Version 1 only: one hierarchy for each controller or group of controllers.
    Legacy,
    /// Version 1 with a version 2 hierarchy beside it.
    Hybrid,
    /// Version 2 only: one hierarchy with every controller.
    Unified,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// The version 1 controllers and names (`memory`, `name=systemd`) in it; empty for version 2.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The directory of the calling process's own cgroup, below the mount point.
    pub own: PathBuf,
}

/// The mounted hierarchies as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchies {
    /// The version 1 hierarchies.
    pub legacy: Vec<Hierarchy>,
    /// The version 2 hierarchy.
    pub unified: Option<Hierarchy>,
}

impl Hierarchies {
    /// Reads the hierarchies of the calling process.
    ///
    /// # Errors
    /// A system call's error; `FailedPrecondition` if no cgroup hierarchy is mounted.
    pub fn detect() -> Result<Hierarchies> {
        Hierarchies::detect_for("self")
    }

    /// As [`Hierarchies::detect`], with the cgroups of another process (a number or `self`) as the own ones.
    pub(super) fn detect_for(process: &str) -> Result<Hierarchies> {
        let own = read_own(process)?;
        if is_unified(Path::new(ROOT)) {
            return Ok(Hierarchies::unified_at(Path::new(ROOT), &own));
        }
        let text = file::read(Path::new("/proc/self/mountinfo")).context("read", "/proc/self/mountinfo")?;
        let found = Hierarchies::parse(&text, &own);
        if found.legacy.is_empty() && found.unified.is_none() {
            return Err(Error::because(
                Kind::FailedPrecondition,
                "find",
                "the cgroup hierarchies",
                "no cgroup file system is mounted",
            ));
        }
        Ok(found)
    }

    /// How the controllers are laid out.
    pub fn mode(&self) -> Mode {
        match (self.legacy.is_empty(), &self.unified) {
            (true, _) => Mode::Unified,
            (false, Some(_)) => Mode::Hybrid,
            (false, None) => Mode::Legacy,
        }
    }

    /// The version 1 hierarchy that holds `controller`, or the version 2 one for an empty name.
    pub fn find(&self, controller: &str) -> Option<&Hierarchy> {
        match controller {
            "" => self.unified.as_ref(),
            name => self.legacy.iter().find(|one| one.controllers.iter().any(|c| c == name)),
        }
    }

    /// The hierarchies of a host with version 2 alone, mounted at `mountpoint`.
    fn unified_at(mountpoint: &Path, own: &BTreeMap<String, PathBuf>) -> Hierarchies {
        let path = own.get("").map(PathBuf::as_path).unwrap_or(Path::new("/"));
        let unified = Hierarchy {
            controllers: Vec::new(),
            mountpoint: mountpoint.to_owned(),
            own: below(mountpoint, Path::new("/"), path),
        };
        Hierarchies { legacy: Vec::new(), unified: Some(unified) }
    }

    /// Understands the text of a `mountinfo` file; `own` maps controllers to the process's cgroup.
    fn parse(mountinfo: &[u8], own: &BTreeMap<String, PathBuf>) -> Hierarchies {
        let mut found = Hierarchies { legacy: Vec::new(), unified: None };
        for line in mountinfo.split(|byte| *byte == b'\n') {
            let Some(mount) = MountLine::parse(line) else { continue };
            let known = |one: &str| own.contains_key(one);
            if mount.kind == b"cgroup2" {
                let path = own.get("").map(PathBuf::as_path).unwrap_or(Path::new("/"));
                // The last mount on a mount point is the visible one, but a second mount elsewhere changes nothing.
                found.unified.get_or_insert_with(|| Hierarchy {
                    controllers: Vec::new(),
                    own: below(&mount.mountpoint, &mount.root, path),
                    mountpoint: mount.mountpoint.clone(),
                });
            } else if mount.kind == b"cgroup" {
                let options = String::from_utf8_lossy(mount.options).into_owned();
                let controllers: Vec<String> =
                    options.split(',').filter(|option| known(option)).map(str::to_owned).collect();
                let Some(first) = controllers.first() else { continue };
                if found.find(first).is_some() {
                    continue;
                }
                let own = below(&mount.mountpoint, &mount.root, &own[first]);
                found.legacy.push(Hierarchy { controllers, mountpoint: mount.mountpoint, own });
            }
        }
        found
    }
}

/// The cgroup of a process in each hierarchy, by controller; version 2 has the empty name.
fn read_own(process: &str) -> Result<BTreeMap<String, PathBuf>> {
    let path = format!("/proc/{process}/cgroup");
    let text = file::read(Path::new(&path)).context("read", &path)?;
    Ok(parse_own(&text))
}

/// Understands the text of `/proc/PID/cgroup`.
fn parse_own(text: &[u8]) -> BTreeMap<String, PathBuf> {
    let mut own = BTreeMap::new();
    for line in text.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(3, |byte| *byte == b':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        for controller in String::from_utf8_lossy(controllers).split(',') {
            own.insert(controller.to_owned(), PathBuf::from(std::ffi::OsString::from_vec(path.to_vec())));
        }
    }
    own
}

/// Whether a version 2 hierarchy is mounted right at `path`.
fn is_unified(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// Where `cgroup`, a path from the hierarchy's root, is seen below a mount of `root`.
///
/// In a container without a cgroup namespace the mount shows only the container's own cgroup while
/// `/proc/self/cgroup` counts from the host's root, so the common part is taken off.
fn below(mountpoint: &Path, root: &Path, cgroup: &Path) -> PathBuf {
    let relative = cgroup.strip_prefix(root).unwrap_or(Path::new(""));
    let plain = relative.components().filter(|part| matches!(part, Component::Normal(_)));
    mountpoint.join(plain.collect::<PathBuf>())
}

/// The fields of one line of a `mountinfo` file that matter here.
struct MountLine<'a> {
    root: PathBuf,
    mountpoint: PathBuf,
    kind: &'a [u8],
    options: &'a [u8],
}

impl<'a> MountLine<'a> {
    fn parse(line: &'a [u8]) -> Option<MountLine<'a>> {
        let mut fields = line.split(|byte| *byte == b' ').skip(3);
        let root = fields.next()?;
        let mountpoint = fields.next()?;
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let kind = rest.next()?;
        let options = rest.nth(1)?;
        Some(MountLine { root: unescape(root), mountpoint: unescape(mountpoint), kind, options })
    }
}

/// Undoes the kernel's octal escapes for blanks and backslashes.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            let text = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(text, 8).ok()
        };
        match (first, tail.get(..3).and_then(octal)) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 /box /sys/fs/cgroup/my\\040memory rw,relatime - cgroup cgroup rw,memory\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
        99 31 0:37 / /elsewhere/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd\n";
    const OWN: &[u8] = b"5:name=systemd:/init.scope\n4:memory:/box/inner\n1:cpu,cpuacct:/\n0::/user\n";

    #[test]
    fn understands_a_hybrid_layout() {
        let found = Hierarchies::parse(HYBRID, &parse_own(OWN));
        assert_eq!(found.mode(), Mode::Hybrid);
        assert_eq!(found.legacy.len(), 3);
        let cpu = found.find("cpuacct").unwrap();
        assert_eq!(cpu.mountpoint, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(cpu.own, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found.find("").unwrap().own, Path::new("/sys/fs/cgroup/unified/user"));
        assert_eq!(found.find("name=systemd").unwrap().own, Path::new("/sys/fs/cgroup/systemd/init.scope"));
        assert!(found.find("xattr").is_none());
        assert!(found.find("hugetlb").is_none());
    }

    #[test]
    fn takes_the_mounts_root_off_the_own_path() {
        let found = Hierarchies::parse(HYBRID, &parse_own(OWN));
        assert_eq!(found.find("memory").unwrap().own, Path::new("/sys/fs/cgroup/my memory/inner"));
    }

    #[test]
    fn understands_a_unified_layout() {
        let text = b"41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = Hierarchies::parse(text, &parse_own(b"0::/system.slice/x.service\n"));
        assert_eq!(found.mode(), Mode::Unified);
        assert_eq!(found.unified.unwrap().own, Path::new("/sys/fs/cgroup/system.slice/x.service"));
    }

    #[test]
    fn a_process_outside_of_its_namespaces_root_stays_below_the_mount() {
        let own = parse_own(b"0::/../other\n");
        let found = Hierarchies::unified_at(Path::new("/sys/fs/cgroup"), &own);
        assert_eq!(found.unified.unwrap().own, Path::new("/sys/fs/cgroup/other"));
    }
}
