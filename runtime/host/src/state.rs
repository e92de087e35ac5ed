//! The runtime's state directory: `<root>/<id>/state.json` and `exec.fifo`.
//!
//! The directory's existence reserves the id; the file is replaced in one step, so a reader never sees half of it.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use orlop_proto::contract::runc_text::RuncError;
use orlop_proto::contract::state::StoredState;
use orlop_proto::contract::{EXEC_FIFO, STATE_FILE};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::file;
use crate::process::Stat;

/// How often a root that vanishes again at once is made.
const ROOT_ATTEMPTS: u32 = 100;
/// By how much longer each of them waits than the one before; the first does not.
const ROOT_PAUSE: Duration = Duration::from_micros(10);

/// The directory of one container.
#[derive(Clone, Debug)]
pub struct StateDirectory {
    path: PathBuf,
}

/// Checks an id as runc does: letters, digits, `_+-.`, at most 1024 bytes, no `.` or `..`.
pub fn check_id(id: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if id.is_empty() {
        return Err(RuncError::EmptyId.into());
    }
    if id.len() > 1024 || !id.bytes().all(allowed) || id == "." || id == ".." {
        return Err(RuncError::InvalidId.into());
    }
    Ok(())
}

impl StateDirectory {
    /// Reserves an id: makes its directory, or says that it is taken.
    pub fn reserve(root: &Path, id: &str) -> Result<StateDirectory> {
        check_id(id)?;
        let path = root.join(id);
        let builder = {
            let mut builder = fs::DirBuilder::new();
            builder.mode(0o711);
            builder
        };
        let mut made = builder.create(&path);
        for attempt in 0..ROOT_ATTEMPTS {
            // The root is not there yet, or whoever deleted the last container of it has just taken it away.
            if !made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                break;
            }
            // Whoever deletes one container after the other comes between the same two calls again: get out of step with it.
            thread::sleep(ROOT_PAUSE * attempt);
            let mut parents = fs::DirBuilder::new();
            // Sticky, since below XDG_RUNTIME_DIR the rest may be cleaned away (XDG Base Directory specification).
            match parents.recursive(true).mode(0o1700).create(root) {
                // It came and went between two looks.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.context("create", root.to_string_lossy())?,
            }
            made = builder.create(&path);
        }
        match made {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(RuncError::IdExists.into()),
            other => other.context("create", path.to_string_lossy()).map(|()| StateDirectory { path }),
        }
    }

    /// The directory of a container that is there.
    pub fn open(root: &Path, id: &str) -> Result<StateDirectory> {
        check_id(id)?;
        let path = root.join(id);
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => Ok(StateDirectory { path }),
            Ok(_) => Err(RuncError::ContainerNotExist.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(RuncError::ContainerNotExist.into()),
            Err(error) => Err(Error::io("open", path.to_string_lossy(), error)),
        }
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the FIFO that init waits on is.
    pub fn fifo(&self) -> PathBuf {
        self.path.join(EXEC_FIFO)
    }

    /// Lets a created container's init go on: takes the FIFO away, so that only one `start` can, and writes into it.
    pub fn release(&self) -> Result<Released> {
        let path = self.fifo();
        let shown = || path.to_string_lossy();
        let opened = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let mut fifo = match opened {
            // Nobody has it open for reading: init has ended.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                return Err(RuncError::StartStopped.into());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RuncError::AlreadyRunning.into());
            }
            other => other.context("open", shown())?,
        };
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RuncError::AlreadyRunning.into());
            }
            other => other.context("remove", shown())?,
        }
        fifo.write_all(b"0").context("write", shown())?;
        Ok(Released(fifo))
    }

    /// Reads `state.json`; a directory without it is a container that is still being made, or a leftover.
    pub fn load(&self) -> Result<StoredState> {
        let path = self.path.join(STATE_FILE);
        let text = match file::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RuncError::ContainerNotExist.into());
            }
            other => other.context("read", path.to_string_lossy())?,
        };
        serde_json::from_slice(&text)
            .map_err(|error| Error::because(Kind::DataLoss, "parse", path.to_string_lossy(), error))
    }

    /// Replaces `state.json` in one step.
    pub fn save(&self, state: &StoredState) -> Result<()> {
        let text = serde_json::to_vec(state)
            .map_err(|error| Error::because(Kind::Internal, "encode", STATE_FILE, error))?;
        let temporary = self.path.join(".state.json.new");
        let path = self.path.join(STATE_FILE);
        let written = file::create(&temporary, &text).and_then(|()| fs::rename(&temporary, &path));
        written.context("write", path.to_string_lossy())
    }

    /// Removes the directory; one that is gone already is no error.
    pub fn remove(&self) -> Result<()> {
        // Most hold one file, which need not be looked for.
        let _ = fs::remove_file(self.path.join(STATE_FILE));
        if fs::remove_dir(&self.path).is_ok() {
            return Ok(());
        }
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", self.path.to_string_lossy(), error))
            }
            _ => Ok(()),
        }
    }
}

/// A created container's init that has been let go on: the end of the FIFO that says when its program has taken over.
#[derive(Debug)]
pub struct Released(fs::File);

impl Released {
    /// Waits until the program has taken init's place, or init has ended: either closes init's end of the FIFO.
    pub fn await_program(&self) -> Result<()> {
        loop {
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::empty())], PollTimeout::NONE) {
                Err(nix::Error::EINTR) => {}
                other => return other.map(drop).context("wait for", "the start of the program"),
            }
        }
    }
}

/// The ids below a root, sorted; a root that does not exist has none.
pub fn list(root: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.context("read", root.to_string_lossy())?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let entry = entry.context("read", root.to_string_lossy())?;
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        match entry.file_name().into_string() {
            Ok(name) if is_directory && check_id(&name).is_ok() => ids.push(name),
            _ => {}
        }
    }
    ids.sort();
    Ok(ids)
}

/// Whether the recorded init is still alive: the same process, and not merely one with its pid.
pub fn init_is_alive(state: &StoredState) -> bool {
    living_init(state).is_some()
}

/// The recorded init if it is still alive.
pub fn living_init(state: &StoredState) -> Option<Stat> {
    let stat = Stat::of(state.init_process_pid).ok()?;
    (stat.start_time == state.init_process_start && !stat.has_ended()).then_some(stat)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_what_runc_allows() {
        for good in ["a", "a.b", "A-_+9", "..."] {
            check_id(good).unwrap();
        }
        assert_eq!(check_id("").unwrap_err().to_string(), "container id cannot be empty");
        for bad in [".", "..", "a/b", "a b", "ä", "a\n"] {
            assert_eq!(check_id(bad).unwrap_err().to_string(), "invalid container ID format");
        }
    }

    #[test]
    fn a_root_that_others_take_away_is_made_again() {
        let root = std::env::temp_dir().join(format!("orlop-state-vanishing-{}", std::process::id()));
        let come_and_go = |id: &str| -> Result<()> {
            for _ in 0..200 {
                StateDirectory::reserve(&root, id)?.remove()?;
                let _ = fs::remove_dir(&root);
            }
            Ok(())
        };
        thread::scope(|scope| {
            let other = scope.spawn(|| come_and_go("a"));
            come_and_go("b").unwrap();
            other.join().unwrap().unwrap();
        });
        let _ = fs::remove_dir(&root);
    }

    #[test]
    fn reserves_once_and_removes() {
        let root = std::env::temp_dir().join(format!("orlop-state-{}", std::process::id()));
        let directory = StateDirectory::reserve(&root, "x").unwrap();
        assert_eq!(StateDirectory::reserve(&root, "x").unwrap_err().kind(), Kind::AlreadyExists);
        assert_eq!(directory.load().unwrap_err().kind(), Kind::NotFound);
        assert_eq!(list(&root).unwrap(), ["x"]);
        directory.remove().unwrap();
        directory.remove().unwrap();
        assert_eq!(StateDirectory::open(&root, "x").unwrap_err().to_string(), "container does not exist");
        fs::remove_dir(&root).unwrap();
    }
}
