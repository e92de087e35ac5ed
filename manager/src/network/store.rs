//! The files below the state directory that say what running containers have, and which bridges were made.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::held::Held;

/// The directory; cheap to clone.
#[derive(Clone, Debug)]
pub struct Files {
    containers: PathBuf,
    bridges: PathBuf,
}

impl Files {
    /// Opens or makes it.
    pub fn open(directory: &Path) -> Result<Files> {
        let files = Files { containers: directory.join("containers"), bridges: directory.join("bridges") };
        for path in [&files.containers, &files.bridges] {
            fs::create_dir_all(path).context("create", path.display().to_string())?;
        }
        Ok(files)
    }

    /// Writes what a container has; the file is there as a whole or as it was.
    pub fn write(&self, held: &Held) -> Result<()> {
        let path = self.containers.join(&held.container);
        let text = serde_json::to_vec(held)
            .map_err(|error| Error::because(Kind::Internal, "write", path.display().to_string(), error))?;
        let next = self.containers.join(format!(".{}", held.container));
        fs::write(&next, text).context("write", next.display().to_string())?;
        fs::rename(&next, &path).context("write", path.display().to_string())
    }

    /// Removes a container's file, if there is one.
    pub fn remove(&self, container: &str) -> Result<()> {
        remove(&self.containers.join(container))
    }

    /// What containers had. A file that cannot be read says nothing, and goes.
    pub fn read(&self) -> Result<Vec<Held>> {
        let mut found = Vec::new();
        for path in entries(&self.containers)? {
            let text = fs::read(&path).context("read", path.display().to_string())?;
            match serde_json::from_slice(&text) {
                Ok(held) => found.push(held),
                Err(_) => remove(&path)?,
            }
        }
        Ok(found)
    }

    /// Notes that the bridge of a network may be there.
    pub fn note_bridge(&self, name: &str, network: &str) -> Result<()> {
        let path = self.bridges.join(name);
        fs::write(&path, network).context("write", path.display().to_string())
    }

    /// Forgets a bridge.
    pub fn forget_bridge(&self, name: &str) -> Result<()> {
        remove(&self.bridges.join(name))
    }

    /// The bridges that may be there, and the ids of their networks.
    pub fn bridges(&self) -> Result<Vec<(String, String)>> {
        let read = |path: PathBuf| {
            let text = fs::read_to_string(&path).context("read", path.display().to_string())?;
            Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), text))
        };
        entries(&self.bridges)?.into_iter().map(read).collect()
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let name = || directory.display().to_string();
    let all = fs::read_dir(directory).context("read", name())?;
    all.map(|entry| Ok(entry.context("read", name())?.path())).collect()
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context("remove", path.display().to_string())
        }
        _ => Ok(()),
    }
}

/// A new identifier: 64 hexadecimal digits of chance.
pub fn identifier() -> Result<String> {
    let mut bytes = [0; 32];
    let mut random = fs::File::open("/dev/urandom").context("open", "/dev/urandom")?;
    random.read_exact(&mut bytes).context("read", "/dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_is_broken_goes() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path()).unwrap();
        let held = Held { container: "c".into(), name: "n".into(), ..Held::default() };
        files.write(&held).unwrap();
        fs::write(directory.path().join("containers/broken"), "{").unwrap();
        assert_eq!(files.read().unwrap(), [held]);
        assert!(!directory.path().join("containers/broken").exists());
        files.remove("c").unwrap();
        files.remove("c").unwrap();
        assert!(files.read().unwrap().is_empty());
        files.note_bridge("br-1", "id").unwrap();
        assert_eq!(files.bridges().unwrap(), [("br-1".to_owned(), "id".to_owned())]);
        assert_eq!(identifier().unwrap().len(), 64);
    }
}
