//! Loop devices: a file as a block device (loop(4)).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::check;

/// `<linux/loop.h>`: requests.
const LOOP_CTL_GET_FREE: u32 = 0x4c82;
const LOOP_CONFIGURE: u32 = 0x4c0a;
const LOOP_CLR_FD: u32 = 0x4c01;
/// `<linux/loop.h>`: flags.
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// How often another process may take the free device first.
const ATTEMPTS: usize = 100;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Default)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [[u8; 32]; 2],
    crypt_name: [[u8; 32]; 2],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
#[derive(Default)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// Makes a free loop device of a file. It is detached when the last of those that use it is gone: what has it open, the
/// returned descriptor to begin with, and what is mounted from it.
pub fn attach(file: BorrowedFd, read_only: bool) -> io::Result<(PathBuf, File)> {
    configure(file, LO_FLAGS_AUTOCLEAR | if read_only { LO_FLAGS_READ_ONLY } else { 0 })
}

/// The same, but the device stays until it is [detached](detach).
pub fn attach_lasting(file: BorrowedFd, read_only: bool) -> io::Result<(PathBuf, File)> {
    configure(file, if read_only { LO_FLAGS_READ_ONLY } else { 0 })
}

/// Takes a loop device's file away, at once or with its last user; says whether it had one.
pub fn detach(device: &Path) -> io::Result<bool> {
    let device = File::open(device)?;
    // SAFETY: LOOP_CLR_FD takes no argument.
    match check(i64::from(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD as _) })) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes a free loop device of a file.
fn configure(file: BorrowedFd, flags: u32) -> io::Result<(PathBuf, File)> {
    let read_only = flags & LO_FLAGS_READ_ONLY != 0;
    let control = File::options().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument.
        let number = check(i64::from(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) }))?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options().read(true).write(!read_only).open(&path)?;
        let info = Info { flags, ..Info::default() };
        let config = Config { fd: file.as_raw_fd() as u32, info, ..Config::default() };
        // SAFETY: LOOP_CONFIGURE reads one loop_config, which has the kernel's layout and outlives the call.
        let configured = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) };
        match check(i64::from(configured)) {
            Ok(_) => return Ok((path, device)),
            // Somebody else was faster.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!((size_of::<Info>(), size_of::<Config>()), (232, 304));
        assert_eq!(std::mem::offset_of!(Info, flags), 52);
    }
}
