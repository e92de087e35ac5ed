//! Mounting snapshots on this host (mount(2)).

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use orlop_proto::containerd::types::Mount;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::spec::Accounts;

/// mount(2) copies at most a page of options.
const MAX_DATA: usize = 4000;
/// The largest account file that is read.
const MAX_ACCOUNTS: u64 = 16 << 20;

/// Mount options apart: flags of mount(2), and the rest for the file system.
#[derive(Debug, PartialEq)]
struct Options {
    flags: MsFlags,
    data: Vec<String>,
}

/// Sorts options into flags and data (fstab(5) names).
fn options(names: &[String]) -> Options {
    let mut flags = MsFlags::empty();
    let mut data = Vec::new();
    for name in names {
        match name.as_str() {
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            "ro" => flags |= MsFlags::MS_RDONLY,
            "rw" => flags &= !MsFlags::MS_RDONLY,
            "nosuid" => flags |= MsFlags::MS_NOSUID,
            "nodev" => flags |= MsFlags::MS_NODEV,
            "noexec" => flags |= MsFlags::MS_NOEXEC,
            "noatime" => flags |= MsFlags::MS_NOATIME,
            "nodiratime" => flags |= MsFlags::MS_NODIRATIME,
            "relatime" => flags |= MsFlags::MS_RELATIME,
            "strictatime" => flags |= MsFlags::MS_STRICTATIME,
            "sync" => flags |= MsFlags::MS_SYNCHRONOUS,
            "loop" | "" => {}
            // Whoever only looks needs no owners.
            other if other.starts_with("uidmap=") || other.starts_with("gidmap=") => {}
            _ => data.push(name.clone()),
        }
    }
    Options { flags, data }
}

/// Shortens an overlay's layers to paths below their common directory, which is returned.
///
/// Upper and work directory stay absolute: they need no shortening.
fn compact(data: &[String]) -> Option<(String, String)> {
    let lower = data.iter().find_map(|option| option.strip_prefix("lowerdir="))?;
    let layers: Vec<&str> = lower.split(':').collect();
    let mut common = Path::new(layers[0]).parent()?;
    while !layers.iter().all(|layer| Path::new(layer).starts_with(common) && Path::new(layer) != common) {
        common = common.parent()?;
    }
    let common_text = common.to_str()?;
    let short = layers.iter().map(|layer| Path::new(layer).strip_prefix(common).ok()?.to_str());
    let short: Vec<&str> = short.collect::<Option<_>>()?;
    let rest = data.iter().filter(|option| !option.starts_with("lowerdir="));
    let text = rest.cloned().chain([format!("lowerdir={}", short.join(":"))]).collect::<Vec<_>>().join(",");
    Some((common_text.to_owned(), text))
}

/// Mounts a snapshot on a directory.
///
/// Where the options exceed a page, the calling thread's working directory is changed to shorten them.
///
/// # Errors
///
/// Those of mount(2); what was mounted before is unmounted again.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for (done, one) in mounts.iter().enumerate() {
        let place = if one.target.is_empty() {
            target.to_owned()
        } else {
            target.join(one.target.trim_start_matches('/'))
        };
        if let Err(error) = mount_one(one, &place) {
            for _ in 0..done {
                // The mount that failed is what is reported.
                let _ = umount2(target, MntFlags::MNT_DETACH);
            }
            return Err(error);
        }
    }
    Ok(())
}

fn mount_one(one: &Mount, place: &Path) -> Result<()> {
    let Options { flags, data } = options(&one.options);
    let mut text = data.join(",");
    if text.len() > MAX_DATA
        && let Some((directory, short)) = compact(&data)
    {
        nix::unistd::chdir(directory.as_str()).context("change directory to", &directory)?;
        text = short;
    }
    let kind = (one.r#type != "bind").then_some(one.r#type.as_str());
    let data = (!text.is_empty()).then_some(text.as_str());
    mount(Some(one.source.as_str()), place, kind, flags, data)
        .context(format!("mount {} on", one.source), place.display().to_string())?;
    if flags.contains(MsFlags::MS_BIND | MsFlags::MS_RDONLY) {
        // A bind mount takes its flags only in a second step.
        mount(None::<&str>, place, None::<&str>, flags | MsFlags::MS_REMOUNT, None::<&str>)
            .context("make read-only", place.display().to_string())?;
    }
    Ok(())
}

/// Unmounts whatever is mounted on a directory.
///
/// # Errors
///
/// Those of umount(2); a directory on which nothing is mounted is none.
pub fn unmount(target: &Path) -> Result<()> {
    match umount2(target, MntFlags::empty()) {
        Ok(()) | Err(nix::Error::EINVAL) => Ok(()),
        Err(error) => Err(error).context("unmount", target.display().to_string()),
    }
}

/// The account files inside a snapshot.
///
/// The snapshot is mounted in a mount namespace of a thread of its own over `cover`, any directory; nothing is ever
/// visible or left outside. Paths are resolved inside the snapshot (openat2(2), RESOLVE_IN_ROOT), so that its links
/// lead nowhere else.
///
/// # Errors
///
/// Those of mounting and reading; a file that does not exist is none.
pub fn accounts(mounts: Vec<Mount>, cover: &Path) -> Result<Accounts> {
    let cover = cover.to_owned();
    let reader = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).context("make", "mount namespace")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).context("make private", "/")?;
        mount_all(&mounts, &cover)?;
        accounts_below(&cover)
    });
    reader.join().map_err(|_| Error::new(Kind::Internal, "read", "account files"))?
}

/// The account files below a root directory.
///
/// # Errors
///
/// Those of reading; a file that does not exist is none.
pub fn accounts_below(root: &Path) -> Result<Accounts> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::open(root, flags, Mode::empty()).context("open", root.display().to_string())?;
    Ok(Accounts { passwd: text_in(&root, "etc/passwd")?, group: text_in(&root, "etc/group")? })
}

fn text_in(root: &OwnedFd, path: &str) -> Result<Option<String>> {
    // A FIFO under this name must not block the open.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let file = match openat2(root, path, how) {
        Ok(file) => std::fs::File::from(file),
        Err(nix::Error::ENOENT | nix::Error::ENOTDIR) => return Ok(None),
        Err(error) => return Err(error).context("open", format!("/{path} of the container")),
    };
    let mut text = String::new();
    let context = || format!("/{path} of the container");
    if !file.metadata().context("stat", context())?.is_file() {
        return Ok(None);
    }
    file.take(MAX_ACCOUNTS).read_to_string(&mut text).context("read", context())?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn options_are_flags_or_data() {
        let sorted = options(&strings(&["rbind", "ro", "lowerdir=/a:/b", "index=off"]));
        assert_eq!(sorted.flags, MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_RDONLY);
        assert_eq!(sorted.data, strings(&["lowerdir=/a:/b", "index=off"]));
    }

    #[test]
    fn layers_are_shortened_below_their_common_directory() {
        let data = strings(&["index=off", "lowerdir=/s/1/fs:/s/2/fs", "upperdir=/s/3/fs"]);
        let (directory, text) = compact(&data).unwrap();
        assert_eq!(directory, "/s");
        assert_eq!(text, "index=off,upperdir=/s/3/fs,lowerdir=1/fs:2/fs");
        assert_eq!(compact(&strings(&["index=off"])), None);
    }

    #[test]
    fn links_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("hidden"), "web:x:1:2::/:\n").unwrap();
        std::os::unix::fs::symlink("/hidden", root.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("../../../etc/group", root.path().join("etc/group")).unwrap();
        // A link that leads to itself inside, and to the host's file outside.
        let error = accounts_below(root.path()).unwrap_err();
        assert_eq!(error.operation(), "open");
        std::fs::remove_file(root.path().join("etc/group")).unwrap();
        let accounts = accounts_below(root.path()).unwrap();
        assert_eq!(accounts.passwd.as_deref(), Some("web:x:1:2::/:\n"));
        assert_eq!(accounts.group, None);
    }
}
