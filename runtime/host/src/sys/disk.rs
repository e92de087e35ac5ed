//! Writing back to disks without getting in anybody's way.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `IOPRIO_WHO_PROCESS` of ioprio_set(2), which with 0 means the calling thread.
const WHO_THREAD: libc::c_int = 1;
/// `IOPRIO_CLASS_IDLE`, shifted as ioprio_set(2) wants it.
const CLASS_IDLE: libc::c_int = 3 << 13;

/// Lets the calling thread use disks only when nobody else does.
///
/// # Errors
///
/// Those of ioprio_set(2).
pub fn use_idle_io_priority() -> io::Result<()> {
    // SAFETY: the call takes three integers and touches no memory of this process.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_THREAD, 0, CLASS_IDLE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Starts writing a file's dirty pages and does not wait for them.
///
/// # Errors
///
/// Those of sync_file_range(2).
pub fn start_write_back(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call, which takes integers alone otherwise.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_thread_yields_its_disk() {
        let path = std::env::temp_dir().join(format!("orlop-disk-{}", std::process::id()));
        std::thread::spawn(move || {
            use_idle_io_priority().unwrap();
            std::fs::write(&path, b"x").unwrap();
            start_write_back(std::fs::File::open(&path).unwrap().as_fd()).unwrap();
            std::fs::remove_file(&path).unwrap();
        })
        .join()
        .unwrap();
    }
}
