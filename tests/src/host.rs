//! What the machine looks like from outside: processes, mounts, cgroup hierarchies, sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Cmd, binaries};

/// Whether the suite runs as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether CRIU is here and says that it can work with this kernel.
pub fn criu_works() -> bool {
    binaries::find("criu").is_some_and(|criu| Cmd::new(criu).arg("check").run().status.success())
}

/// A process as `/proc` shows it.
#[derive(Debug, Clone)]
pub struct Task {
    /// Process id.
    pub pid: i32,
    /// Its parent's process id.
    pub parent: i32,
    /// One letter: `R`, `S`, `D`, `Z`, …
    pub state: char,
    /// Its command line, words joined by spaces; the name in brackets where it has none.
    pub command: String,
}

/// All processes, zombies included.
pub fn processes() -> Vec<Task> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).filter_map(process).collect()
}

/// One process, or `None` where there is none.
pub fn process(pid: i32) -> Option<Task> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&words).trim_end_matches('\0').replace('\0', " ");
    let command = if command.is_empty() { format!("[{name}]") } else { command };
    Some(Task { pid, parent, state, command })
}

/// Whether `pid` exists and is no zombie.
pub fn alive(pid: i32) -> bool {
    process(pid).is_some_and(|task| !matches!(task.state, 'Z' | 'X'))
}

/// All descendants of `pids`, the given ones included.
pub fn with_descendants(pids: impl IntoIterator<Item = i32>) -> BTreeSet<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for task in processes() {
        children.entry(task.parent).or_default().push(task.pid);
    }
    let mut found = BTreeSet::new();
    let mut queue: Vec<i32> = pids.into_iter().collect();
    while let Some(pid) = queue.pop() {
        if found.insert(pid) {
            queue.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone)]
pub struct MountPoint {
    /// Where it is mounted.
    pub target: PathBuf,
    /// The file system type.
    pub kind: String,
    /// The source that the file system names.
    pub source: String,
    /// Options of the mount and of the file system, joined by a comma.
    pub options: String,
}

/// Bytes of memory that a process has resident (proc_pid_status(5), `VmRSS`).
pub fn resident(pid: i32) -> Option<u64> {
    status(pid, "VmRSS:")
}

/// Bytes of memory that are a process's own: no other has them, and no file (`RssAnon`).
pub fn anonymous(pid: i32) -> Option<u64> {
    status(pid, "RssAnon:")
}

fn status(pid: i32, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

/// The mounts of this mount namespace, in order of mounting.
pub fn mounts() -> Vec<MountPoint> {
    mounts_in(Path::new("/proc/self/mountinfo"))
}

/// The mounts that the given `mountinfo` file lists; none where it cannot be read.
pub fn mounts_in(mountinfo: &Path) -> Vec<MountPoint> {
    let text = fs::read_to_string(mountinfo).unwrap_or_default();
    text.lines().filter_map(mount_point).collect()
}

fn mount_point(line: &str) -> Option<MountPoint> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mount: Vec<&str> = mount.split(' ').collect();
    let file_system: Vec<&str> = file_system.split(' ').collect();
    Some(MountPoint {
        target: unescape(mount.get(4)?).into(),
        kind: (*file_system.first()?).to_owned(),
        source: unescape(file_system.get(1)?),
        options: format!("{},{}", mount.get(5)?, file_system.get(2).unwrap_or(&"")),
    })
}

/// Undoes the octal escapes of proc(5) for space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

/// The mount points of all cgroup hierarchies, v1 and v2.
pub fn cgroup_hierarchies() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = mounts()
        .into_iter()
        .filter(|m| m.kind == "cgroup" || m.kind == "cgroup2")
        .map(|m| m.target)
        .collect();
    found.dedup();
    found
}

/// Whether this machine has the unified hierarchy alone (cgroup v2).
pub fn cgroup_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The directories called `name` at the top level of any hierarchy, or where this process's own group lies.
pub fn cgroups_named(name: &str) -> Vec<PathBuf> {
    let own: BTreeSet<String> = fs::read_to_string("/proc/self/cgroup")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| Some(line.splitn(3, ':').nth(2)?.trim_start_matches('/').to_owned()))
        .collect();
    let parents =
        |hierarchy: PathBuf| own.iter().map(move |own| hierarchy.join(own)).collect::<BTreeSet<_>>();
    cgroup_hierarchies()
        .into_iter()
        .flat_map(|hierarchy| {
            let mut parents = parents(hierarchy.clone());
            parents.insert(hierarchy);
            parents
        })
        .map(|parent| parent.join(name))
        .filter(|dir| dir.is_dir())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// The process ids in the cgroup `dir` and the groups below it.
pub fn cgroup_processes(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for child in child_directories(dir) {
        pids.extend(cgroup_processes(&child));
    }
    pids
}

/// Removes the cgroup `dir` and those below it, the deepest first.
pub fn remove_cgroup(dir: &Path) -> std::io::Result<()> {
    for child in child_directories(dir) {
        remove_cgroup(&child)?;
    }
    fs::remove_dir(dir)
}

/// The directories directly below `dir`; none where it cannot be read.
pub fn child_directories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .filter_map(|e| e.ok())
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

/// The names of the unix sockets that exist, abstract ones with a leading `@`.
pub fn unix_sockets() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    text.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().nth(7).map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_mountinfo_line_with_escapes_and_optional_fields() {
        let line =
            r"36 35 98:0 /a /mnt/with\040space rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        let mount = mount_point(line).unwrap();
        assert_eq!(mount.target, Path::new("/mnt/with space"));
        assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("ext3", "/dev/root"));
        assert_eq!(mount.options, "rw,noatime,rw,errors=continue");
    }

    #[test]
    fn finds_itself_among_the_processes() {
        let own = std::process::id() as i32;
        assert!(alive(own));
        assert!(with_descendants([process(own).unwrap().parent]).contains(&own));
    }
}
