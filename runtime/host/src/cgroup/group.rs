//! One directory of a cgroup hierarchy, held by a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{read, write};
use orlop_proto::error::{Context, Error, Result};

/// A cgroup's directory in one hierarchy.
#[derive(Debug)]
pub(super) struct Group {
    /// The version 1 controllers and names in it; empty for version 2.
    pub(super) controllers: Vec<String>,
    /// Where it is, for messages and removal.
    pub(super) path: PathBuf,
    directory: OwnedFd,
}

impl Group {
    /// Opens an existing directory.
    pub(super) fn open(controllers: Vec<String>, path: &Path) -> Result<Group> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(path, flags, Mode::empty()).context("open cgroup", path.to_string_lossy())?;
        Ok(Group { controllers, path: path.to_owned(), directory })
    }

    /// Whether this is a version 2 group.
    pub(super) fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }

    /// Whether the version 1 controller lives here.
    pub(super) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|one| one == controller)
    }

    /// The directory itself.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Opens one of its files.
    pub(super) fn file(&self, name: &str, flags: OFlag) -> io::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        Ok(openat(&self.directory, name, flags, Mode::empty())?)
    }

    /// Reads one of its files.
    pub(super) fn read(&self, name: &str) -> Result<String> {
        self.try_read(name).map_err(|error| self.error("read", name, error))
    }

    /// Reads one of its files, leaving the error bare for callers that act on it.
    pub(super) fn try_read(&self, name: &str) -> io::Result<String> {
        let file = self.file(name, OFlag::O_RDONLY)?;
        read_all(file.as_fd())
    }

    /// Writes one of its files.
    pub(super) fn write(&self, name: &str, value: &str) -> Result<()> {
        self.try_write(name, value).map_err(|error| self.error(format!("write {value:?} to"), name, error))
    }

    /// Writes one of its files, leaving the error bare for callers that act on it.
    pub(super) fn try_write(&self, name: &str, value: &str) -> io::Result<()> {
        let file = self.file(name, OFlag::O_WRONLY)?;
        write_all(file.as_fd(), value)
    }

    /// An error that names the file.
    pub(super) fn error(
        &self,
        operation: impl Into<std::borrow::Cow<'static, str>>,
        name: &str,
        error: io::Error,
    ) -> Error {
        Error::io(operation, self.path.join(name).to_string_lossy(), error)
    }
}

/// Writes a value with one call, as the kernel wants it: a control file sees each write as a whole value.
pub(super) fn write_all(file: BorrowedFd<'_>, value: &str) -> io::Result<()> {
    loop {
        match write(file, value.as_bytes()) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads from the start of a file to its end.
fn read_all(file: BorrowedFd<'_>) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match read(file, &mut chunk) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    String::from_utf8(bytes).map_err(io::Error::other)
}
