//! Making and removing a cgroup's directories.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkdir;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::group::Group;
use super::hierarchies::{Hierarchies, Hierarchy};
use super::paths::CgroupPaths;
use crate::file;

/// How long removal waits for processes that were killed to leave.
const REMOVAL: Duration = Duration::from_secs(2);
/// The first and the longest pause between attempts at removal.
const PAUSES: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(20));

/// Groups by directory: controllers that are mounted together share one.
pub(super) fn by_directory(paths: &CgroupPaths) -> Vec<(Vec<String>, &Path)> {
    let mut all: Vec<(Vec<String>, &Path)> = Vec::new();
    for (controller, path) in paths.iter() {
        let names = if controller.is_empty() { Vec::new() } else { vec![controller.to_owned()] };
        match all.iter_mut().find(|(_, known)| *known == path) {
            Some((known, _)) => known.extend(names),
            None => all.push((names, path)),
        }
    }
    all
}

/// What happens to directories that the caller may not make or use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Forbidden {
    /// They are an error.
    Refused,
    /// They are left out.
    LeftOut,
}

/// Which hierarchies are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    Whole,
    /// Version 2, into which a process is cloned.
    Unified,
    /// Version 1, which a process enters by itself.
    Legacy,
}

impl Part {
    fn has(self, is_unified: bool) -> bool {
        match self {
            Part::Whole => true,
            Part::Unified => is_unified,
            Part::Legacy => !is_unified,
        }
    }
}

/// Makes the directories; what was made is pushed to `made`, parents first, even if a later one fails. The process `inside`
/// is ours and may be there already.
pub(super) fn create(
    hierarchies: &Hierarchies,
    paths: &CgroupPaths,
    part: Part,
    forbidden: Forbidden,
    inside: Option<i32>,
    made: &mut Vec<PathBuf>,
) -> Result<Vec<Group>> {
    let mut groups = Vec::new();
    for (controllers, path) in by_directory(paths) {
        if !part.has(controllers.is_empty()) {
            continue;
        }
        let before = made.len();
        match create_one(hierarchies, controllers, path, inside, made) {
            Err(error) if forbidden == Forbidden::LeftOut && error.kind() == Kind::PermissionDenied => {
                remove(made[before..].iter().rev().map(PathBuf::as_path))?;
                made.truncate(before);
            }
            group => groups.push(group?),
        }
    }
    Ok(groups)
}

/// Makes the directory of one hierarchy.
fn create_one(
    hierarchies: &Hierarchies,
    controllers: Vec<String>,
    path: &Path,
    inside: Option<i32>,
    made: &mut Vec<PathBuf>,
) -> Result<Group> {
    let name = controllers.first().map(String::as_str).unwrap_or_default();
    let Some(hierarchy) = hierarchies.find(name) else {
        return Err(Error::new(Kind::NotFound, "find the cgroup hierarchy of", name));
    };
    let is_new = make(hierarchy, path, made)?;
    let group = if is_new { Group::made(controllers, path) } else { Group::open(controllers, path)? };
    if group.is_unified() && hierarchies.legacy.is_empty() {
        hand_down(&hierarchy.mountpoint, path)?;
        refuse_invalid(&group)?;
    }
    if group.has("cpuset") {
        inherit_cpuset(&hierarchy.mountpoint, path, is_new)?;
    }
    refuse_frozen(&group, is_new)?;
    if !is_new && (group.has("devices") || hierarchies.legacy.is_empty()) {
        refuse_processes(&group, inside)?;
    }
    Ok(group)
}

/// Makes one directory with its parents below the mount point; says whether it is new.
fn make(hierarchy: &Hierarchy, path: &Path, made: &mut Vec<PathBuf>) -> Result<bool> {
    let mut missing = vec![path];
    loop {
        let Some(next) = missing.last().copied() else { return Ok(true) };
        match mkdir(next, Mode::from_bits_truncate(0o755)) {
            Ok(()) => {
                made.push(next.to_owned());
                missing.pop();
            }
            Err(Errno::EEXIST) => {
                missing.pop();
                if next == path {
                    return Ok(false);
                }
            }
            Err(Errno::ENOENT) if next != hierarchy.mountpoint => match next.parent() {
                Some(parent) => missing.push(parent),
                None => return Err(Error::io("make cgroup", next.to_string_lossy(), Errno::ENOENT.into())),
            },
            Err(error) => return Err(Error::io("make cgroup", next.to_string_lossy(), error.into())),
        }
    }
}

/// Enables every controller of a version 2 hierarchy for the children of each directory between the mount point and `path`.
///
/// Reads before it writes: a write waits for controllers of removed groups to be gone, even if it changes nothing.
/// Controllers that cannot be enabled are left out here; setting a limit of theirs says so.
fn hand_down(mountpoint: &Path, path: &Path) -> Result<()> {
    enable(mountpoint, path, &words(mountpoint, "cgroup.controllers")?)
}

/// Enables controllers for the children of each directory between the mount point and `path`.
fn enable(mountpoint: &Path, path: &Path, wanted: &BTreeSet<String>) -> Result<()> {
    let parent = path.parent().unwrap_or(mountpoint);
    if wanted.is_subset(&words(parent, "cgroup.subtree_control")?) {
        return Ok(());
    }
    let mut ancestors: Vec<&Path> =
        parent.ancestors().take_while(|one| one.starts_with(mountpoint)).collect();
    ancestors.reverse();
    for ancestor in ancestors {
        let enabled = words(ancestor, "cgroup.subtree_control")?;
        let missing: Vec<String> = wanted.difference(&enabled).map(|name| format!("+{name}")).collect();
        let file = ancestor.join("cgroup.subtree_control");
        if missing.is_empty() || fs::write(&file, missing.join(" ")).is_ok() {
            continue;
        }
        for one in missing {
            // One controller that is refused must not keep the others from the group.
            let _ = fs::write(&file, one);
        }
    }
    Ok(())
}

/// Enables single controllers of a hybrid host's version 2 hierarchy for the group at `path`.
pub(super) fn hand_down_single<'a>(path: &Path, controllers: impl Iterator<Item = &'a str>) -> Result<()> {
    let is_group = |one: &&Path| one.join("cgroup.controllers").exists();
    let Some(mountpoint) = path.ancestors().take_while(is_group).last() else { return Ok(()) };
    let available = words(mountpoint, "cgroup.controllers")?;
    let wanted = controllers.map(str::to_owned).filter(|name| available.contains(name)).collect();
    enable(mountpoint, path, &wanted)
}

/// The words in a control file.
fn words(directory: &Path, file: &str) -> Result<BTreeSet<String>> {
    let path = directory.join(file);
    let text = file::read_text(&path).context("read", path.to_string_lossy())?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// Refuses a version 2 group that can hold no process, because an ancestor with processes of its own is threaded.
fn refuse_invalid(group: &Group) -> Result<()> {
    if group.read("cgroup.type")?.trim() == "domain invalid" {
        let why = "cannot enter cgroupv2 with domain controllers -- it is in an invalid state";
        return Err(refuse(group, why));
    }
    Ok(())
}

/// Refuses a group that is frozen, itself or on version 1 through an ancestor: nobody could kill what hangs there.
fn refuse_frozen(group: &Group, is_new: bool) -> Result<()> {
    let frozen = if group.has("freezer") {
        group.read("freezer.state")?.trim() != "THAWED"
    } else if group.is_unified() && !is_new {
        group.read("cgroup.freeze")?.trim() == "1"
    } else {
        false
    };
    if frozen { Err(refuse(group, "container's cgroup unexpectedly frozen")) } else { Ok(()) }
}

/// Refuses a group that somebody else's processes are in.
fn refuse_processes(group: &Group, inside: Option<i32>) -> Result<()> {
    let text = group.read("cgroup.procs")?;
    let count = text.lines().filter(|line| line.parse().ok() != inside).count();
    if count == 0 {
        return Ok(());
    }
    Err(refuse(group, &format!("container's cgroup is not empty: {count} process(es) found")))
}

fn refuse(group: &Group, why: &str) -> Error {
    Error::because(Kind::FailedPrecondition, "use cgroup", group.path.to_string_lossy(), why)
}

/// Gives a version 1 cpuset its parent's processors and memory nodes, as a new one has none and takes no process.
fn inherit_cpuset(mountpoint: &Path, path: &Path, is_new: bool) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        match path.parent().filter(|_| is_new) {
            Some(parent) => {
                let value = inherit(mountpoint, parent, file)?;
                pass_down(&path.join(file), &value)?;
            }
            None => drop(inherit(mountpoint, path, file)?),
        }
    }
    Ok(())
}

/// The value of one file, inherited from the nearest ancestor that has one.
fn inherit(mountpoint: &Path, path: &Path, file: &str) -> Result<String> {
    let own = path.join(file);
    let value = file::read_text(&own).context("read", own.to_string_lossy())?;
    let Some(parent) = path.parent().filter(|_| value.trim().is_empty() && path != mountpoint) else {
        return Ok(value);
    };
    let value = inherit(mountpoint, parent, file)?;
    pass_down(&own, &value)?;
    Ok(value)
}

fn pass_down(own: &Path, value: &str) -> Result<()> {
    file::open(own, OFlag::O_WRONLY)
        .and_then(|file| file::write_value(file, value.as_bytes()))
        .context("write", own.to_string_lossy())
}

/// Removes directories with all groups below them. Waits for killed processes to leave, up to a limit.
///
/// # Errors
/// That of the first directory that could not be removed in time, after all others have been tried.
pub(super) fn remove<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    let deadline = Instant::now() + REMOVAL;
    let mut pause = PAUSES.0;
    let mut left: Vec<&Path> = paths.into_iter().collect();
    loop {
        let mut failure = None;
        left.retain(|path| match remove_tree(path) {
            Ok(()) => false,
            Err(error) => {
                failure.get_or_insert((path.to_string_lossy().into_owned(), error));
                true
            }
        });
        let Some((path, error)) = failure else { return Ok(()) };
        let may_pass = matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY));
        if !may_pass || Instant::now() > deadline {
            return Err(Error::io("remove cgroup", path, error));
        }
        thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Removes a directory without children, and says whether it is gone.
pub(super) fn is_removed(path: &Path) -> bool {
    fs::remove_dir(path).map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |()| true)
}

/// Removes a directory; if it will not go, its children first. The files in it belong to the kernel.
fn remove_tree(path: &Path) -> io::Result<()> {
    let first = match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => error,
        _ => return Ok(()),
    };
    let mut children = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children += 1;
            remove_tree(&entry.path())?;
        }
    }
    if children == 0 {
        return Err(first);
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
