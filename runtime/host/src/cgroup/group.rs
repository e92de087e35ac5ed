//! One directory of a cgroup hierarchy.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use orlop_proto::error::{Context, Error, Result};

use crate::file;

/// A cgroup's directory in one hierarchy.
#[derive(Debug)]
pub(super) struct Group {
    /// The version 1 controllers and names in it; empty for version 2.
    pub(super) controllers: Vec<String>,
    /// Where it is, for messages and removal.
    pub(super) path: PathBuf,
    /// The directory, where it is held: files of one that is not are opened by their paths.
    directory: OnceCell<OwnedFd>,
}

impl Group {
    /// Opens an existing directory.
    pub(super) fn open(controllers: Vec<String>, path: &Path) -> Result<Group> {
        let group = Group::made(controllers, path);
        group.directory().context("open cgroup", path.to_string_lossy())?;
        Ok(group)
    }

    /// A directory that is known to be there, as it has just been made; it is opened when somebody asks for it.
    pub(super) fn made(controllers: Vec<String>, path: &Path) -> Group {
        Group { controllers, path: path.to_owned(), directory: OnceCell::new() }
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
    pub(super) fn directory(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(directory) = self.directory.get() {
            return Ok(directory.as_fd());
        }
        let directory = file::open(&self.path, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        Ok(self.directory.get_or_init(|| directory).as_fd())
    }

    /// Opens one of its files.
    pub(super) fn file(&self, name: &str, flags: OFlag) -> io::Result<OwnedFd> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        match self.directory.get() {
            Some(directory) => Ok(openat(directory, name, flags, Mode::empty())?),
            None => file::open(&self.path.join(name), flags),
        }
    }

    /// Reads one of its files.
    pub(super) fn read(&self, name: &str) -> Result<String> {
        self.try_read(name).map_err(|error| self.error("read", name, error))
    }

    /// Reads one of its files, leaving the error bare for callers that act on it.
    pub(super) fn try_read(&self, name: &str) -> io::Result<String> {
        let file = self.file(name, OFlag::O_RDONLY)?;
        String::from_utf8(file::read_all(file)?).map_err(io::Error::other)
    }

    /// Writes one of its files.
    pub(super) fn write(&self, name: &str, value: &str) -> Result<()> {
        self.try_write(name, value).map_err(|error| self.error(format!("write {value:?} to"), name, error))
    }

    /// Writes one of its files, leaving the error bare for callers that act on it.
    pub(super) fn try_write(&self, name: &str, value: &str) -> io::Result<()> {
        let file = self.file(name, OFlag::O_WRONLY)?;
        file::write_value(file, value.as_bytes())
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
