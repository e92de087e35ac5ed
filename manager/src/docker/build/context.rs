//! The context of a build: the files that `COPY` and `ADD` take, unpacked in a directory that goes with the build.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use orlop_proto::error::Context as _;
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use super::pattern::left_out;
use crate::db::blocking;
use crate::docker::container::file_below;
use crate::docker::failure::{Failure, Result};
use crate::image::unpack::{Target, Whiteouts, apply};

/// The longest Dockerfile, in bytes.
pub const MAX_DOCKERFILE: u64 = 4 << 20;
/// Where the names of what is left out are.
const IGNORE: &str = ".dockerignore";

/// A directory that goes with its owner.
pub struct Workplace(PathBuf);

impl Workplace {
    /// Makes a directory of its own below another.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn new(above: &Path, name: &str) -> Result<Workplace> {
        let path = above.join(name);
        std::fs::create_dir_all(&path).context("create", path.display().to_string())?;
        Ok(Workplace(path))
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.0);
        // A context may have many files.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = std::fs::remove_dir_all(&path) {
                tracing::warn!("remove {}: {error}", path.display());
            }
        });
    }
}

/// Opens a directory that this engine made.
fn open(path: &Path) -> orlop_proto::error::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    opened.map_err(std::io::Error::from).context("open", path.display().to_string())
}

/// Unpacks an archive into a directory of the workplace; nothing in it leads out. What is compressed is decompressed.
///
/// # Errors
///
/// Those of the archive, in dockerd's words.
pub async fn unpacked(input: impl AsyncRead + Send + Unpin + 'static, work: &Workplace) -> Result<OwnedFd> {
    let path = work.join("context");
    let input = SyncIoBridge::new(input);
    let done = blocking(move || {
        std::fs::create_dir_all(&path).context("create", path.display().to_string())?;
        let root = open(&path)?;
        apply(input, Target { root, lowers: Vec::new(), whiteouts: Whiteouts::Literal })?;
        open(&path)
    });
    done.await.map_err(|error| Failure::from(error).within("Error processing tar file"))
}

/// A context of one file: the Dockerfile itself.
///
/// # Errors
///
/// Those of the file system.
pub fn of_dockerfile(text: &[u8], work: &Workplace) -> Result<OwnedFd> {
    let path = work.join("context");
    std::fs::create_dir_all(&path).context("create", path.display().to_string())?;
    let file = path.join("Dockerfile");
    std::fs::write(&file, text).context("write", file.display().to_string())?;
    Ok(open(&path)?)
}

/// Reads a file of a context, without following anything out of it.
fn read(root: &OwnedFd, path: &str) -> std::result::Result<String, Errno> {
    let mut bytes = Vec::new();
    let length = file_below(root, path)?.take(MAX_DOCKERFILE + 1).read_to_end(&mut bytes);
    let length = length.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    if length as u64 > MAX_DOCKERFILE {
        return Err(Errno::FBIG);
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The text of the Dockerfile. It is taken out of the context where `.dockerignore` says so, and `.dockerignore` too.
///
/// # Errors
///
/// 500 when it is not there, 400 when it is empty, both in dockerd's words.
pub fn dockerfile(root: &OwnedFd, path: &str) -> Result<String> {
    let found = match read(root, path) {
        Err(Errno::NOENT) if path == "Dockerfile" => read(root, "dockerfile"),
        found => found,
    };
    let text = found.map_err(|errno| match errno {
        Errno::NOENT => Failure::internal(format!("Cannot locate specified Dockerfile: {path}")),
        errno => {
            Failure::internal(format!("failed to read dockerfile: {path}: {}", std::io::Error::from(errno)))
        }
    })?;
    if text.trim().is_empty() {
        return Err(Failure::invalid(format!("the Dockerfile ({path}) cannot be empty")));
    }
    if let Ok(ignored) = read(root, IGNORE) {
        let names = [IGNORE, path];
        let left_out = left_out(&ignored, names.map(|name| name.trim_start_matches('/')))?;
        for name in names.iter().zip(left_out).filter_map(|(name, is_out)| is_out.then_some(name)) {
            // Ignoring: what was read is what counts.
            let _ = take_out(root, name);
        }
    }
    Ok(text)
}

/// Removes a file of a context, and nothing outside.
fn take_out(root: &OwnedFd, path: &str) -> std::result::Result<(), Errno> {
    let (directory, base) = path.rsplit_once('/').unwrap_or((".", path));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let above = if directory.is_empty() { "." } else { directory };
    let parent = rustix::fs::openat2(root, above, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    rustix::fs::unlinkat(&parent, base, AtFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(files: &[(&str, &str)]) -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let root = open(directory.path()).unwrap();
        (directory, root)
    }

    #[test]
    fn the_dockerfile_is_found_and_taken_out() {
        let (directory, root) = root(&[("dockerfile", "FROM x"), (".dockerignore", "*ocker*")]);
        assert_eq!(dockerfile(&root, "Dockerfile").unwrap(), "FROM x");
        assert!(!directory.path().join(".dockerignore").exists());
        assert_eq!(dockerfile(&root, "no").unwrap_err().message, "Cannot locate specified Dockerfile: no");
    }

    #[test]
    fn nothing_outside_is_read() {
        let (directory, root) = root(&[("empty", " \n")]);
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("way")).unwrap();
        assert!(dockerfile(&root, "way").unwrap_err().message.starts_with("Cannot locate"));
        assert!(dockerfile(&root, "../../../etc/passwd").unwrap_err().message.starts_with("Cannot locate"));
        assert_eq!(dockerfile(&root, "empty").unwrap_err().message, "the Dockerfile (empty) cannot be empty");
    }

    #[test]
    fn a_dockerfile_is_a_file_that_is_read_whole_or_not_at_all() {
        let (directory, root) = root(&[]);
        std::fs::create_dir(directory.path().join("directory")).unwrap();
        rustix::fs::mknodat(&root, "pipe", rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        for name in ["directory", "pipe"] {
            let said = dockerfile(&root, name).unwrap_err().message;
            assert!(said.starts_with(&format!("failed to read dockerfile: {name}: ")), "{said}");
        }
        let long = std::fs::File::create(directory.path().join("long")).unwrap();
        long.set_len(MAX_DOCKERFILE + 1).unwrap();
        let said = dockerfile(&root, "long").unwrap_err().message;
        assert!(said.starts_with("failed to read dockerfile: long: File too large"), "{said}");
    }
}
