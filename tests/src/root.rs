//! A test's own corner of the machine, and the proof that nothing of it is left.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::host;
use crate::poll::poll_for;

/// A temporary directory with a tag: `/tmp/ot-PID-N`, short because a unix socket's path holds 108 bytes.
///
/// The tag is the last component. Use it as namespace and as cgroup parent: then everything that a test causes can be
/// found by it. When dropped, processes, mounts and cgroups that carry it are removed, and the directory with them
/// (kept for reading where `ORLOP_TEST_KEEP` is set and the test failed).
#[derive(Debug)]
pub struct Root {
    dir: PathBuf,
    tag: String,
}

impl Root {
    /// Makes a new root below `ORLOP_TEST_DIR`, or `/tmp`.
    ///
    /// # Panics
    /// Without root rights: whoever runs a suite that needs them decides that once (`make test` does), not each test.
    #[allow(clippy::new_without_default, reason = "making a directory is no default")]
    pub fn new() -> Root {
        assert!(host::is_root(), "this suite needs root; `make test` leaves it out without");
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base = std::env::var_os("ORLOP_TEST_DIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
        loop {
            let tag = format!("ot-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let dir = base.join(&tag);
            match fs::create_dir(&dir) {
                Ok(()) => {
                    // Container users other than root must be able to reach the rootfs.
                    fs::set_permissions(&dir, fs::Permissions::from_mode(0o711))
                        .expect("opening the root for passage");
                    return Root { dir, tag };
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => panic!("cannot make {}: {error}", dir.display()),
            }
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A path below the directory.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.join(path)
    }

    /// The name that everything of this test carries.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// A cgroups path for an OCI configuration: `/TAG/NAME`.
    pub fn cgroups_path(&self, name: &str) -> String {
        format!("/{}/{name}", self.tag)
    }

    /// What of this test exists outside its directory, now. Daemons that it has started count too.
    pub fn leaks(&self) -> Leaks {
        Leaks {
            processes: processes_of(&self.dir, &self.tag).into_iter().map(describe).collect(),
            mounts: mounts_below(&self.dir),
            cgroups: nonempty_or_child_cgroups(&self.tag),
            network_namespaces: names_with(Path::new("/run/netns"), &self.tag),
            sockets: host::unix_sockets().into_iter().filter(|name| carries(name, &self.tag)).collect(),
            files: ["/run/orlop", "/run/orlopd", "/run/containerd", "/var/lib/orlopd"]
                .into_iter()
                .flat_map(|dir| names_with(Path::new(dir), &self.tag))
                .collect(),
        }
    }

    /// Waits until nothing is left of what the test has done. Stop daemons first.
    ///
    /// # Panics
    /// When something is still there after ten seconds; the message lists it.
    #[track_caller]
    pub fn assert_clean(&self) {
        let mut last = Leaks::default();
        let clean = poll_for(Duration::from_secs(10), || {
            last = self.leaks();
            last.is_empty().then_some(())
        });
        assert!(clean.is_some(), "left behind by {}:\n{last}", self.tag);
    }

    fn remove_everything(&self) {
        for _ in 0..3 {
            let mut pids = processes_of(&self.dir, &self.tag);
            pids.remove(&(std::process::id() as i32));
            thaw(&self.tag);
            for pid in &pids {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            let gone =
                poll_for(Duration::from_secs(5), || pids.iter().all(|pid| !host::alive(*pid)).then_some(()));
            if gone.is_some() {
                break;
            }
        }
        for mount in mounts_below(&self.dir).iter().rev() {
            let _ = umount2(mount.as_str(), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
        }
        for cgroup in host::cgroups_named(&self.tag) {
            poll_for(Duration::from_secs(5), || host::remove_cgroup(&cgroup).ok());
        }
        for name in names_with(Path::new("/run/netns"), &self.tag) {
            let _ = umount2(name.as_str(), MntFlags::MNT_DETACH);
            let _ = fs::remove_file(&name);
        }
        // Shims keep the runtime's state by namespace, and for runtimes other than ours an empty directory stays behind.
        let _ = fs::remove_dir(Path::new("/run/containerd/runc").join(&self.tag));
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.remove_everything();
        if std::thread::panicking() && std::env::var_os("ORLOP_TEST_KEEP").is_some() {
            eprintln!("kept for reading: {}", self.dir.display());
            return;
        }
        if mounts_below(&self.dir).is_empty() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// What was left behind, by kind.
#[derive(Debug, Default)]
pub struct Leaks {
    /// Processes that name the root, or that live in its cgroups, with their descendants.
    pub processes: BTreeSet<String>,
    /// Mount points below the root, in this mount namespace.
    pub mounts: Vec<String>,
    /// Cgroups below the tag's own (which itself may stay until the end).
    pub cgroups: BTreeSet<String>,
    /// Named network namespaces with the tag.
    pub network_namespaces: BTreeSet<String>,
    /// Unix sockets with the tag in their name.
    pub sockets: BTreeSet<String>,
    /// Entries of the system's own directories with the tag in their name.
    pub files: BTreeSet<String>,
}

impl Leaks {
    /// Whether nothing was left behind.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
            && self.mounts.is_empty()
            && self.cgroups.is_empty()
            && self.network_namespaces.is_empty()
            && self.sockets.is_empty()
            && self.files.is_empty()
    }
}

impl fmt::Display for Leaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = |kind: &str, items: Vec<&String>| {
            items.iter().try_for_each(|item| writeln!(f, "  {kind}: {item}"))
        };
        list("process", self.processes.iter().collect())?;
        list("mount", self.mounts.iter().collect())?;
        list("cgroup", self.cgroups.iter().collect())?;
        list("network namespace", self.network_namespaces.iter().collect())?;
        list("socket", self.sockets.iter().collect())?;
        list("file", self.files.iter().collect())
    }
}

/// Processes that have the root's path on their command line or are in its cgroups, and their descendants; never this
/// process, its ancestors, or zombies.
fn processes_of(dir: &Path, tag: &str) -> BTreeSet<i32> {
    let all = host::processes();
    let mut ancestors = BTreeSet::from([1]);
    let mut pid = std::process::id() as i32;
    while pid > 1 && ancestors.insert(pid) {
        pid = host::process(pid).map_or(0, |task| task.parent);
    }
    let path = format!("{}/", dir.display());
    let named = all.iter().filter(|task| task.command.contains(&path)).map(|task| task.pid);
    let in_groups = host::cgroups_named(tag).into_iter().flat_map(|group| host::cgroup_processes(&group));
    let first: BTreeSet<i32> = named.chain(in_groups).filter(|pid| !ancestors.contains(pid)).collect();
    host::with_descendants(first)
        .into_iter()
        .filter(|pid| !ancestors.contains(pid) && host::alive(*pid))
        .collect()
}

fn describe(pid: i32) -> String {
    host::process(pid).map_or_else(
        || format!("{pid} (gone)"),
        |task| format!("{} {} {}", task.pid, task.state, task.command),
    )
}

fn mounts_below(dir: &Path) -> Vec<String> {
    host::mounts()
        .into_iter()
        .filter(|mount| mount.target.starts_with(dir))
        .map(|mount| mount.target.to_string_lossy().into_owned())
        .collect()
}

fn nonempty_or_child_cgroups(tag: &str) -> BTreeSet<String> {
    host::cgroups_named(tag)
        .iter()
        .flat_map(|group| host::child_directories(group))
        .map(|dir| dir.to_string_lossy().into_owned())
        .collect()
}

/// A frozen group cannot be killed on v1.
fn thaw(tag: &str) {
    let mut queue = host::cgroups_named(tag);
    while let Some(group) = queue.pop() {
        let _ = fs::write(group.join("freezer.state"), "THAWED");
        let _ = fs::write(group.join("cgroup.freeze"), "0");
        queue.extend(host::child_directories(&group));
    }
}

fn names_with(dir: &Path, tag: &str) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(dir) else { return BTreeSet::new() };
    entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| carries(&entry.file_name().to_string_lossy(), tag))
        .map(|entry| entry.path().to_string_lossy().into_owned())
        .collect()
}

/// Whether a name has the tag in it, and not that of a later test which begins with it.
fn carries(name: &str, tag: &str) -> bool {
    let is_longer = |at: usize| name[at + tag.len()..].starts_with(|next: char| next.is_ascii_digit());
    name.match_indices(tag).any(|(at, _)| !is_longer(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_not_the_start_of_another() {
        for name in ["ot-7-1", "/tmp/ot-7-1/docker.sock", "ot-7-1_x", "ot-7-12 ot-7-1"] {
            assert!(carries(name, "ot-7-1"), "{name}");
        }
        for name in ["ot-7-12", "/tmp/ot-7-10/docker.sock", "ot-8-1"] {
            assert!(!carries(name, "ot-7-1"), "{name}");
        }
    }
}
