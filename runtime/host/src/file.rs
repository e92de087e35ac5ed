//! Small files in few system calls.
//!
//! The standard library asks for a file's size before it reads, and then reads files of the kernel, which say zero, in pieces
//! that grow from 32 bytes; musl's `open` marks a descriptor as close-on-exec that the kernel has marked already. A container's
//! start opens dozens of files, and feels that.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::read as read_some;

/// How much is read at once, in bytes: what files of `/proc` give at most, and no more memory than needed.
const PIECE: usize = 4 << 10;

/// Opens a path (`open(2)`), with `O_CLOEXEC` added.
pub fn open(path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
    Ok(openat(AT_FDCWD, path, flags | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Reads a whole file.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_all(open(path, OFlag::O_RDONLY)?)
}

/// Reads a whole file, which must be text.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Reads from where a file stands to its end.
pub fn read_all(file: impl AsFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let filled = bytes.len();
        bytes.resize(filled + PIECE, 0);
        match read_some(&file, &mut bytes[filled..]) {
            Ok(count) => {
                bytes.truncate(filled + count);
                if count == 0 {
                    return Ok(bytes);
                }
            }
            Err(Errno::EINTR) => bytes.truncate(filled),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes a file, or takes away what is in it, and writes it.
pub fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(AT_FDCWD, path, flags, Mode::from_bits_truncate(0o666))?);
    file.write_all(bytes)
}

/// Writes an existing file with one call, as the kernel's control files want it: each write is a whole value.
pub fn write_value(file: impl AsFd, value: &[u8]) -> io::Result<()> {
    loop {
        match nix::unistd::write(&file, value) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_any_size_are_read_whole() {
        let path = std::env::temp_dir().join(format!("orlop-file-{}", std::process::id()));
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE] {
            let text: Vec<u8> = (0..length).map(|n| n as u8).collect();
            std::fs::write(&path, &text).unwrap();
            assert_eq!(read(&path).unwrap(), text);
        }
        std::fs::write(&path, b"\xff").unwrap();
        assert_eq!(read_text(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        let status = read_text(Path::new("/proc/self/status")).unwrap();
        assert!(status.starts_with("Name:") && status.contains("nonvoluntary_ctxt_switches:"), "{status}");
    }

    #[test]
    fn what_is_opened_is_closed_on_exec() {
        let file = open(Path::new("/proc/self/status"), OFlag::O_RDONLY).unwrap();
        let flags = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
}
