//! The mount API by descriptor (`fsopen(2)`, `open_tree(2)`, `move_mount(2)`, `mount_setattr(2)`), and what is left
//! of the older one.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::{c_path, c_text, check, check_fd};

/// `MOUNT_ATTR_RDONLY`.
pub const ATTR_RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NOSUID`.
pub const ATTR_NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_NODEV`.
pub const ATTR_NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOEXEC`.
pub const ATTR_NOEXEC: u64 = 0x8;
/// The bits in which the access time policy is a number; cleared means `relatime`.
pub const ATTR_ATIME: u64 = 0x70;
/// `MOUNT_ATTR_NOATIME`.
pub const ATTR_NOATIME: u64 = 0x10;
/// `MOUNT_ATTR_STRICTATIME`.
pub const ATTR_STRICTATIME: u64 = 0x20;
/// `MOUNT_ATTR_NODIRATIME`.
pub const ATTR_NODIRATIME: u64 = 0x80;
/// `MOUNT_ATTR_IDMAP`.
pub const ATTR_IDMAP: u64 = 0x0010_0000;
/// `MOUNT_ATTR_NOSYMFOLLOW`.
pub const ATTR_NOSYMFOLLOW: u64 = 0x0020_0000;

const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_SET_FD: libc::c_uint = 5;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSCONFIG_CMD_RECONFIGURE: libc::c_uint = 7;
const FSPICK_CLOEXEC: libc::c_uint = 0x1;
const FSPICK_EMPTY_PATH: libc::c_uint = 0x8;

/// A file system that is being configured (`fsopen(2)`).
pub struct FsContext(OwnedFd);

impl FsContext {
    /// Starts with a file system type such as `tmpfs`; an unknown type is `ENODEV`.
    pub fn open(kind: &str) -> io::Result<FsContext> {
        let kind = c_text(kind)?;
        // SAFETY: `kind` is a NUL-terminated string that outlives the call.
        let fd = check_fd(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
        Ok(FsContext(fd))
    }

    /// Starts with the file system that is mounted at what `target` refers to (`fspick(2)`).
    pub fn pick(target: BorrowedFd) -> io::Result<FsContext> {
        let flags = FSPICK_CLOEXEC | FSPICK_EMPTY_PATH;
        // SAFETY: the path is the static empty string.
        let fd =
            check_fd(unsafe { libc::syscall(libc::SYS_fspick, target.as_raw_fd(), c"".as_ptr(), flags) })?;
        Ok(FsContext(fd))
    }

    /// Changes a file system that was picked.
    pub fn reconfigure(&self) -> io::Result<()> {
        self.config(FSCONFIG_CMD_RECONFIGURE, None, None)
    }

    fn config(&self, command: libc::c_uint, key: Option<&str>, value: Option<&str>) -> io::Result<()> {
        let key = key.map(c_text).transpose()?;
        let value = value.map(c_text).transpose()?;
        let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |t| t.as_ptr());
        // SAFETY: each pointer is null or leads to a NUL-terminated string that outlives the call.
        check(unsafe {
            libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, pointer(&key), pointer(&value), 0)
        })?;
        Ok(())
    }

    /// An option without a value, such as `newinstance`.
    pub fn flag(&self, key: &str) -> io::Result<()> {
        self.config(FSCONFIG_SET_FLAG, Some(key), None)
    }

    /// An option with a value, such as `size=64m`, or `source`.
    pub fn string(&self, key: &str, value: &str) -> io::Result<()> {
        self.config(FSCONFIG_SET_STRING, Some(key), Some(value))
    }

    /// An option whose value is a descriptor, such as overlay's `lowerdir+`.
    pub fn fd(&self, key: &str, value: BorrowedFd) -> io::Result<()> {
        let key = c_text(key)?;
        // SAFETY: `key` is a NUL-terminated string that outlives the call; the kernel takes no value pointer here.
        check(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                FSCONFIG_SET_FD,
                key.as_ptr(),
                std::ptr::null::<libc::c_char>(),
                value.as_raw_fd(),
            )
        })?;
        Ok(())
    }

    /// Makes the file system and a detached mount of it with the given `ATTR_…` bits.
    pub fn mount(&self, attributes: u64) -> io::Result<OwnedFd> {
        self.config(FSCONFIG_CMD_CREATE, None, None)?;
        // SAFETY: the call takes no pointers.
        check_fd(unsafe {
            libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes as libc::c_uint)
        })
    }

    /// What the kernel says went wrong, for file systems that explain themselves; empty for the others.
    pub fn explanation(&self) -> String {
        let mut text = String::new();
        let mut buffer = [0u8; 512];
        while let Ok(length) = nix::unistd::read(&self.0, &mut buffer) {
            if length == 0 {
                break;
            }
            // Each message starts with its severity: "e ", "w " or "i ".
            let message = String::from_utf8_lossy(&buffer[..length]);
            let message = message.get(2..).unwrap_or_default().trim();
            if !text.is_empty() {
                text.push_str("; ");
            }
            text.push_str(message);
        }
        text
    }
}

/// A detached copy of the mount at a path, below `directory` if the path is relative.
pub fn clone_tree(directory: BorrowedFd, path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as libc::c_uint;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: `path` is a NUL-terminated string that outlives the call.
    check_fd(unsafe { libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), path.as_ptr(), flags) })
}

/// A detached copy of the mount that a descriptor leads to.
pub fn clone_tree_of(target: BorrowedFd, recursive: bool) -> io::Result<OwnedFd> {
    clone_tree(target, Path::new(""), recursive)
}

/// Attaches a detached mount on top of what `target` refers to.
pub fn attach(mount: BorrowedFd, target: BorrowedFd) -> io::Result<()> {
    let empty = c"";
    // SAFETY: both paths are the static empty string.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            empty.as_ptr(),
            target.as_raw_fd(),
            empty.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// Attaches a detached mount on top of an entry of a directory, which may be no link.
pub fn attach_at(mount: BorrowedFd, directory: BorrowedFd, name: &Path) -> io::Result<()> {
    let name = c_path(name)?;
    // SAFETY: the first path is the static empty string, the second a NUL-terminated string that outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            directory.as_raw_fd(),
            name.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// What [`set_attributes`] changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `ATTR_…` bits to set.
    pub set: u64,
    /// `ATTR_…` bits to clear.
    pub clear: u64,
    /// `MS_SHARED`, `MS_PRIVATE`, `MS_SLAVE`, `MS_UNBINDABLE`, or 0.
    pub propagation: u64,
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

fn mount_setattr(mount: BorrowedFd, recursive: bool, attributes: &MountAttr) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH as libc::c_uint;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: the path is the static empty string and `attributes` outlives the call, with its true size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const *attributes,
            std::mem::size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// Whether the kernel has the last of these calls, mount_setattr(2) (Linux 5.12), and nothing around this process takes it away.
pub fn is_available() -> bool {
    // SAFETY: of a structure of no size nothing is read; the path is the static empty string.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, std::ptr::null::<MountAttr>(), 0)
    };
    // A structure of no size is refused as such where the call is known.
    !check(result).is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS))
}

/// Changes a mount's attributes, or those of the whole tree below it.
pub fn set_attributes(mount: BorrowedFd, recursive: bool, attributes: Attributes) -> io::Result<()> {
    let Attributes { set, clear, propagation } = attributes;
    mount_setattr(mount, recursive, &MountAttr { set, clear, propagation, userns_fd: 0 })
}

/// Maps the owners of a detached mount by a user namespace.
pub fn set_idmap(mount: BorrowedFd, recursive: bool, user_namespace: BorrowedFd) -> io::Result<()> {
    let userns_fd = user_namespace.as_raw_fd() as u64;
    mount_setattr(mount, recursive, &MountAttr { set: ATTR_IDMAP, clear: 0, propagation: 0, userns_fd })
}
