//! fs-verity: files that the kernel checks against a tree of hashes at each read, and lets nobody change (kernel:
//! Documentation/filesystems/fsverity.rst).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// `<linux/fsverity.h>`: `FS_IOC_ENABLE_VERITY`.
const ENABLE: u32 = 0x4080_6685;
const VERSION: u32 = 1;
const SHA256: u32 = 1;
/// What is hashed at a time, in bytes: before Linux 6.3 it must be a page and a block of the file system.
const BLOCK: u32 = 4096;

/// `struct fsverity_enable_arg`.
#[repr(C)]
struct Enable {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    more: [u64; 11],
}

/// Seals a file, which is open for reading and by nobody for writing. Reads all of it. One that is sealed stays so.
///
/// # Errors
///
/// Those of the request: `EOPNOTSUPP` and `ENOTTY` where file system or kernel have no such thing, `EINVAL` on
/// one with smaller blocks, `ETXTBSY` while somebody may write.
pub fn seal(file: BorrowedFd<'_>) -> io::Result<()> {
    let wanted = Enable {
        version: VERSION,
        hash_algorithm: SHA256,
        block_size: BLOCK,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved: 0,
        signature: 0,
        more: [0; 11],
    };
    // SAFETY: the request reads a structure of this layout, which outlives the call, and follows no pointer in it, since both
    // sizes are 0.
    match check(i64::from(unsafe { libc::ioctl(file.as_raw_fd(), ENABLE as _, &raw const wanted) })) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        result => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;

    use nix::mount::{MsFlags, mount, umount};

    use super::*;
    use crate::sys::loop_device;

    #[test]
    fn the_request_has_the_kernels_size() {
        assert_eq!(size_of::<Enable>(), (ENABLE >> 16 & 0x3fff) as usize);
    }

    #[test]
    fn where_there_is_no_such_thing_the_error_says_so() {
        let path = std::env::temp_dir().join(format!("orlop-verity-file-{}", std::process::id()));
        fs::write(&path, b"x").unwrap();
        if let Err(error) = seal(File::open(&path).unwrap().as_fd()) {
            let known = [libc::EOPNOTSUPP, libc::ENOTTY];
            assert!(error.raw_os_error().is_some_and(|number| known.contains(&number)), "{error}");
        }
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_sealed_file_is_changed_by_nobody_and_not_read_where_the_disk_changed_it() {
        if !Path::new("/sys/fs/ext4/features/verity").exists() {
            println!("not run: the kernel has no fs-verity, or ext4 is not loaded");
            return;
        }
        let place = std::env::temp_dir().join(format!("orlop-verity-{}", std::process::id()));
        fs::create_dir(&place).unwrap();
        let (disk, root) = (place.join("disk"), place.join("root"));
        File::create(&disk).unwrap().set_len(16 << 20).unwrap();
        fs::create_dir(&root).unwrap();
        let made = Command::new("/sbin/mkfs.ext4")
            .args(["-q", "-b", "4096", "-O", "verity"])
            .arg(&disk)
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let mounted = |work: &dyn Fn()| {
            let file = File::options().read(true).write(true).open(&disk).unwrap();
            let (device, _held) = loop_device::attach(file.as_fd(), false).unwrap();
            mount(Some(&device), &root, Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
            work();
            umount(&root).unwrap();
        };
        let path = root.join("file");
        mounted(&|| {
            fs::write(&path, [b'a'; 8192]).unwrap();
            let file = File::open(&path).unwrap();
            seal(file.as_fd()).unwrap();
            seal(file.as_fd()).unwrap();
            let refused = File::options().write(true).open(&path).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
        });
        let bytes = fs::read(&disk).unwrap();
        let is_there = |at: &usize| bytes[*at..].starts_with(&[b'a'; 8192]);
        let at = (0..bytes.len()).step_by(1024).find(is_there).unwrap();
        File::options().write(true).open(&disk).unwrap().write_all_at(b"b", at as u64).unwrap();
        mounted(&|| assert_eq!(fs::read(&path).unwrap_err().raw_os_error(), Some(libc::EIO)));
        fs::remove_dir_all(&place).unwrap();
    }
}
