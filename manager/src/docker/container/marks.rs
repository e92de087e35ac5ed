//! What dockerd puts into every container's file system, beside what it mounts: the file by which programs tell that they
//! are in a container of Docker's, and the list of mounts where older programs look for it.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Where they are: neither changes of a container nor parts of what its image becomes.
pub const PATHS: [&str; 2] = ["/.dockerenv", "/etc/mtab"];

/// Makes them where nothing else has their names.
///
/// # Errors
///
/// Those of openat2(2) and symlinkat(2).
pub fn make(root: &OwnedFd) -> rustix::io::Result<()> {
    let unless_there = |made: rustix::io::Result<()>| match made {
        Err(Errno::EXIST) => Ok(()),
        made => made,
    };
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o755);
    unless_there(
        rustix::fs::openat2(root, ".dockerenv", flags, mode, ResolveFlags::IN_ROOT)
            .and_then(|file| rustix::fs::fchmod(file, mode)),
    )?;
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // An image without the directory has no programs that look there.
    let etc = match rustix::fs::openat2(root, "etc", directory, Mode::empty(), ResolveFlags::IN_ROOT) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        etc => etc?,
    };
    match rustix::fs::statat(&etc, "mtab", AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => unless_there(rustix::fs::symlinkat("/proc/mounts", &etc, "mtab")),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn marks_are_made_once_and_replace_nothing() {
        let place = tempfile::tempdir().unwrap();
        let root = OwnedFd::from(fs::File::open(place.path()).unwrap());
        make(&root).unwrap();
        let mark = fs::metadata(place.path().join(".dockerenv")).unwrap();
        assert_eq!((mark.len(), mark.permissions().mode() & 0o777), (0, 0o755));
        assert!(!place.path().join("etc").exists());
        fs::create_dir(place.path().join("etc")).unwrap();
        make(&root).unwrap();
        assert_eq!(fs::read_link(place.path().join("etc/mtab")).unwrap().to_str(), Some("/proc/mounts"));
        fs::remove_file(place.path().join("etc/mtab")).unwrap();
        fs::write(place.path().join("etc/mtab"), "own").unwrap();
        make(&root).unwrap();
        assert_eq!(fs::read_to_string(place.path().join("etc/mtab")).unwrap(), "own");
    }

    #[test]
    fn links_lead_nowhere_else() {
        let place = tempfile::tempdir().unwrap();
        for name in ["root", "other"] {
            fs::create_dir(place.path().join(name)).unwrap();
        }
        let inside = place.path().join("root");
        std::os::unix::fs::symlink("../other", inside.join("etc")).unwrap();
        std::os::unix::fs::symlink("../other/made", inside.join(".dockerenv")).unwrap();
        make(&OwnedFd::from(fs::File::open(&inside).unwrap())).unwrap();
        assert_eq!(fs::read_dir(place.path().join("other")).unwrap().count(), 0);
    }
}
