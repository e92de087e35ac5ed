//! Quotas of projects: what the files that carry a project's number may take together (quotactl(2); kernel:
//! Documentation/filesystems/xfs/xfs-admin-guide.rst, fs/quota/quota.c).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// `<linux/fs.h>`: `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`.
const GET_ATTRIBUTES: u32 = 0x801c_581f;
const SET_ATTRIBUTES: u32 = 0x401c_5820;
/// `FS_XFLAG_PROJINHERIT`: what is made in a directory gets its project.
const INHERIT: u32 = 0x200;
/// `<linux/quota.h>`: `Q_GETQUOTA`, `Q_SETQUOTA`, and `<linux/dqblk_xfs.h>`: `Q_XGETQSTAT`; all know ext4 and XFS alike.
const GET: u32 = of_projects(0x80_0007);
const SET: u32 = of_projects(0x80_0008);
const STATE: u32 = of_projects(0x5805);
/// `FS_QUOTA_PDQ_ENFD`: limits of projects are enforced.
const ENFORCED: u16 = 1 << 5;
/// `QIF_BLIMITS`: of a quota, the limits of space are set.
const SPACE_LIMITS: u32 = 1;
/// The unit of limits, in bytes (`QIF_DQBLKSIZE`).
const BLOCK: u64 = 1024;

/// `QCMD` for `PRJQUOTA`.
const fn of_projects(command: u32) -> u32 {
    command << 8 | 2
}

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    reserved: [u8; 8],
}

/// `struct if_dqblk`.
#[repr(C)]
#[derive(Default)]
struct Block {
    space_hard: u64,
    space_soft: u64,
    space: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    inodes: u64,
    space_time: u64,
    inode_time: u64,
    valid: u32,
}

/// The start of `struct fs_quota_stat`, and room for the rest.
#[repr(C)]
#[derive(Default)]
struct State {
    version: i8,
    flags: u16,
    rest: [u64; 15],
}

/// A project's limit and what counts against it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// The most that its files may take, in bytes; 0 where nothing bounds them.
    pub limit: u64,
    /// What they take, in bytes.
    pub space: u64,
    /// Number of its files and directories.
    pub inodes: u64,
}

/// Whether the file system of a directory keeps projects to their limits.
pub fn is_enforced(directory: BorrowedFd<'_>) -> bool {
    let mut state = State::default();
    // SAFETY: the request writes a structure of 80 bytes at most, for which there is room, and nobody else sees it.
    let asked = unsafe { request(directory, STATE, 0, (&raw mut state).cast()) };
    asked.is_ok() && state.flags & ENFORCED != 0
}

/// The project that a file or directory belongs to.
///
/// # Errors
///
/// Those of the request: `ENOTTY` and `EOPNOTSUPP` where the file system knows no projects.
pub fn project(file: BorrowedFd<'_>) -> io::Result<u32> {
    attributes(file).map(|attributes| attributes.project)
}

/// Has a directory and all that will be made in it belong to a project.
///
/// # Errors
///
/// As of [`project`]; `EINVAL` in a user namespace, `EPERM` for somebody else's.
pub fn set_project(directory: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    let mut wanted = attributes(directory)?;
    wanted.flags |= INHERIT;
    wanted.project = project;
    // SAFETY: the request reads a structure of this layout, which outlives the call.
    let set = unsafe { libc::ioctl(directory.as_raw_fd(), SET_ATTRIBUTES as _, &raw const wanted) };
    check(i64::from(set)).map(drop)
}

fn attributes(file: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut found = Attributes::default();
    // SAFETY: the request writes a structure of this layout, which outlives the call.
    let asked = unsafe { libc::ioctl(file.as_raw_fd(), GET_ATTRIBUTES as _, &raw mut found) };
    check(i64::from(asked)).map(|_| found)
}

/// A project's quota on the file system of a directory.
///
/// # Errors
///
/// Those of the request: `ENOSYS` and `ESRCH` without quotas of projects.
pub fn quota(directory: BorrowedFd<'_>, project: u32) -> io::Result<Quota> {
    let mut block = Block::default();
    // SAFETY: the request writes a structure of this layout, which outlives the call.
    match unsafe { request(directory, GET, project, (&raw mut block).cast()) } {
        // XFS knows only projects that something belongs to.
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        _ => {}
    }
    let limit = block.space_hard.saturating_mul(BLOCK);
    Ok(Quota { limit, space: block.space, inodes: block.inodes })
}

/// Sets what a project's files may take in bytes, rounded up to a kibibyte; 0 lifts the limit.
///
/// # Errors
///
/// As of [`quota`]; `EPERM` without `CAP_SYS_ADMIN`.
pub fn set_limit(directory: BorrowedFd<'_>, project: u32, bytes: u64) -> io::Result<()> {
    let blocks = bytes.div_ceil(BLOCK);
    let mut block = Block { space_hard: blocks, space_soft: blocks, valid: SPACE_LIMITS, ..Block::default() };
    // SAFETY: the request reads a structure of this layout, which outlives the call.
    unsafe { request(directory, SET, project, (&raw mut block).cast()) }
}

/// `quotactl_fd(2)`.
///
/// # Safety
///
/// `data` is what the command reads or writes.
unsafe fn request(
    directory: BorrowedFd<'_>,
    command: u32,
    project: u32,
    data: *mut libc::c_void,
) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the caller says that the data is the command's.
    let result =
        unsafe { libc::syscall(libc::SYS_quotactl_fd, directory.as_raw_fd(), command, project, data) };
    check(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use nix::mount::{MsFlags, mount, umount};

    use super::*;
    use crate::sys::loop_device;

    #[test]
    fn the_requests_have_the_kernels_sizes() {
        assert_eq!(size_of::<Attributes>(), (GET_ATTRIBUTES >> 16 & 0x3fff) as usize);
        assert_eq!(size_of::<Block>(), 72);
        assert!(size_of::<State>() >= 80);
    }

    #[test]
    fn where_there_are_no_quotas_nothing_is_enforced() {
        let proc = File::open("/proc").unwrap();
        assert!(!is_enforced(proc.as_fd()));
        assert!(project(proc.as_fd()).is_err() && quota(proc.as_fd(), 1).is_err());
    }

    #[test]
    fn a_project_takes_no_more_than_its_limit() {
        let place = std::env::temp_dir().join(format!("orlop-quota-{}", std::process::id()));
        fs::create_dir(&place).unwrap();
        let (disk, root) = (place.join("disk"), place.join("root"));
        File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(&root).unwrap();
        let made = Command::new("/sbin/mkfs.ext4")
            .args(["-q", "-O", "project,quota", "-E", "quotatype=prjquota"])
            .arg(&disk)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let file = File::options().read(true).write(true).open(&disk).unwrap();
        let (device, held) = loop_device::attach(file.as_fd(), false).unwrap();
        let mounted = |options| mount(Some(&device), &root, Some("ext4"), MsFlags::empty(), Some(options));
        if mounted("prjquota").is_err() {
            println!("not run: the kernel has no ext4, or no quotas on it");
            drop(held);
            fs::remove_dir_all(&place).unwrap();
            return;
        }
        let directory = root.join("limited");
        fs::create_dir(&directory).unwrap();
        let limited = File::open(&directory).unwrap();
        assert!(is_enforced(limited.as_fd()));
        assert_eq!(project(limited.as_fd()).unwrap(), 0);
        assert_eq!(quota(limited.as_fd(), 7).unwrap(), Quota::default());
        set_project(limited.as_fd(), 7).unwrap();
        set_limit(limited.as_fd(), 7, 1 << 20).unwrap();
        fs::write(directory.join("fits"), vec![1; 512 << 10]).unwrap();
        assert_eq!(project(File::open(directory.join("fits")).unwrap().as_fd()).unwrap(), 7);
        // Somebody without CAP_SYS_RESOURCE, who alone is bound.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        let written = || {
            let output = format!("of={}", directory.join("more").display());
            let somebody = ["--reuid=65534", "--regid=65534", "--clear-groups", "dd", "if=/dev/zero"];
            let done = Command::new("setpriv").args(somebody).args([&output, "bs=64k", "count=16"]).output();
            done.unwrap().status.success()
        };
        assert!(!written());
        let found = quota(limited.as_fd(), 7).unwrap();
        assert!(found.limit == 1 << 20 && found.inodes == 3 && found.space > 512 << 10, "{found:?}");
        set_limit(limited.as_fd(), 7, 0).unwrap();
        assert!(written());
        drop(limited);
        umount(&root).unwrap();

        // One that only counts keeps nobody to a limit.
        mount(Some(&device), &root, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
        assert!(!is_enforced(File::open(&root).unwrap().as_fd()));
        umount(&root).unwrap();
        drop(held);
        fs::remove_dir_all(&place).unwrap();
    }
}
