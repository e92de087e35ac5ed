//! Bundles: the directory of a running container, as containerd lays it out.
//!
//! `<state>/io.containerd.runtime.v2.task/<namespace>/<id>` holds `config.json`, `rootfs`, the fifo `log`,
//! `shim-binary-path`, `bootstrap.json`, and the link `work` to a directory of the same name below the root
//! directory, which is for what must survive a reboot.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use orlop_proto::error::{Context, Error, Result};
use serde::Deserialize;

use crate::db::blocking;
use crate::identifier;
use crate::request::Namespace;

/// Name of the directory of all bundles below the state directory, and of their work directories below the root.
pub const TASKS: &str = "io.containerd.runtime.v2.task";
/// The same of the bundles of sandboxes.
const SANDBOXES: &str = "io.containerd.sandbox.controller.v1.shim";
/// File that names the sandbox whose shim serves the container.
const SANDBOX: &str = "sandbox";
/// File that keeps the shim's binary for a restart.
const SHIM_BINARY: &str = "shim-binary-path";
/// File that keeps where the shim listens for a restart.
const BOOTSTRAP: &str = "bootstrap.json";
/// File in which shims themselves leave their address.
const ADDRESS: &str = "address";

/// Where bundles and their work directories are.
#[derive(Clone, Debug)]
pub struct Bundles {
    state: PathBuf,
    work: PathBuf,
}

/// One container's bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Namespace of the container.
    pub namespace: Namespace,
    /// Name of the container.
    pub id: String,
    /// The directory.
    pub path: PathBuf,
    work: PathBuf,
}

/// A directory for something that passes.
pub struct WorkDirectory(PathBuf);

impl WorkDirectory {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Takes it away.
    pub async fn remove(self) -> Result<()> {
        blocking(move || fs::remove_dir_all(&self.0).context("remove", show(&self.0))).await
    }
}

impl Bundles {
    /// Bundles below a state directory, with work directories below a root directory; both absolute.
    pub fn new(state: &Path, root: &Path) -> Bundles {
        Bundles { state: state.join(TASKS), work: root.join(TASKS) }
    }

    /// The bundles of sandboxes, below the same directories.
    pub fn of_sandboxes(state: &Path, root: &Path) -> Bundles {
        Bundles { state: state.join(SANDBOXES), work: root.join(SANDBOXES) }
    }

    /// The bundle of a container, whether it exists or not.
    pub fn of(&self, namespace: &Namespace, id: &str) -> Bundle {
        Bundle {
            namespace: namespace.clone(),
            id: id.to_owned(),
            path: self.state.join(namespace.as_str()).join(id),
            work: self.work.join(namespace.as_str()).join(id),
        }
    }

    /// Makes a container's bundle around its specification, whose bytes are not touched.
    ///
    /// # Errors
    ///
    /// `AlreadyExists` when there is one; nothing is left behind.
    pub fn create(&self, namespace: &Namespace, id: &str, spec: &[u8]) -> Result<Bundle> {
        identifier::validate(id)
            .map_err(|error| Error::because(error.kind(), "invalid task id", id.to_owned(), error))?;
        let bundle = self.of(namespace, id);
        let parent = self.state.join(namespace.as_str());
        directories(&parent)?;
        directories(&self.work.join(namespace.as_str()))?;
        directory(&bundle.path, 0o700)?;
        bundle.fill(spec).inspect_err(|_| {
            if let Err(error) = bundle.remove() {
                tracing::warn!(id, "{error}");
            }
        })?;
        Ok(bundle)
    }

    /// The bundles that exist, and what a kill left of those being removed, which goes.
    pub fn existing(&self) -> Result<Vec<Bundle>> {
        let mut bundles = Vec::new();
        for namespace in names(&self.state)? {
            let Ok(namespace) = Namespace::new(namespace) else { continue };
            for id in names(&self.state.join(namespace.as_str()))? {
                match id.strip_prefix('.') {
                    Some(_) => remove_tree(&self.state.join(namespace.as_str()).join(&id))?,
                    None => bundles.push(self.of(&namespace, &id)),
                }
            }
        }
        Ok(bundles)
    }

    /// Removes the work directories that belong to no bundle: after a reboot all of them.
    pub fn sweep_work(&self) -> Result<()> {
        for namespace in names(&self.work)? {
            for id in names(&self.work.join(&namespace))? {
                if id.starts_with('.') || !self.state.join(&namespace).join(&id).exists() {
                    remove_tree(&self.work.join(&namespace).join(&id))?;
                }
            }
        }
        Ok(())
    }
}

impl Bundle {
    fn fill(&self, spec: &[u8]) -> Result<()> {
        if let Some(group) = mapped_group(spec) {
            std::os::unix::fs::chown(&self.path, None, Some(group)).context("chown", show(&self.path))?;
            fs::set_permissions(&self.path, Permissions::from_mode(0o710))
                .context("chmod", show(&self.path))?;
        }
        directory(&self.path.join("rootfs"), 0o711)?;
        if self.work.exists() {
            remove_tree(&self.work)?;
        }
        directory(&self.work, 0o711)?;
        let link = self.path.join("work");
        symlink(&self.work, &link).context("symlink", show(&link))?;
        self.write("config.json", spec)
    }

    /// A new directory in the work directory, with a number after its name.
    pub fn work_directory(&self, name: &str) -> Result<WorkDirectory> {
        let mut number = 0;
        loop {
            let path = self.work.join(format!("{name}-{number}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                made => return made.context("mkdir", show(&path)).map(|()| WorkDirectory(path)),
            }
        }
    }

    /// Path of the fifo on which the shim logs.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Keeps the shim's binary, so that a restarted daemon can run its `delete`.
    pub fn save_shim(&self, shim: &Path) -> Result<()> {
        use std::os::unix::ffi::OsStrExt;
        self.write(SHIM_BINARY, shim.as_os_str().as_bytes())
    }

    /// The shim's binary.
    pub fn shim(&self) -> Result<PathBuf> {
        use std::os::unix::ffi::OsStrExt;
        Ok(OsStr::from_bytes(&self.read(SHIM_BINARY)?).into())
    }

    /// Keeps the name of the sandbox whose shim serves the container.
    pub fn save_sandbox(&self, sandbox: &str) -> Result<()> {
        self.write(SANDBOX, sandbox.as_bytes())
    }

    /// Whether the container's shim is a sandbox's.
    pub fn is_sandboxed(&self) -> bool {
        self.path.join(SANDBOX).exists()
    }

    /// Keeps the shim's answer to `start`.
    pub fn save_bootstrap(&self, bootstrap: &[u8]) -> Result<()> {
        self.write(BOOTSTRAP, bootstrap)
    }

    /// The shim's answer to `start`: as it was kept, or what the shim itself left; nothing when there is neither.
    pub fn bootstrap(&self) -> Option<Vec<u8>> {
        self.read(BOOTSTRAP).or_else(|_| self.read(ADDRESS)).ok().filter(|bytes| !bytes.is_empty())
    }

    /// Writes a file that is whole or absent, also after a kill.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, part) = (self.path.join(name), self.path.join(format!(".{name}.part")));
        fs::write(&part, bytes).context("write", show(&part))?;
        fs::rename(&part, &path).context("rename", show(&part))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let path = self.path.join(name);
        fs::read(&path).context("read", show(&path))
    }

    /// Unmounts the root file system and removes the bundle and its work directory. What is mounted or lies
    /// below `rootfs` is not ours and never removed: its directory must be empty by then.
    pub fn remove(&self) -> Result<()> {
        unmount_all(&self.path.join("rootfs"))?;
        let rootfs = self.path.join("rootfs");
        match fs::remove_dir(&rootfs) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("failed to remove bundle rootfs", show(&rootfs), error));
            }
            _ => {}
        }
        remove_tree(&self.path)?;
        remove_tree(&self.work)
    }
}

/// The host's group of the container's root, when the container has a user namespace: it must be able to pass.
fn mapped_group(spec: &[u8]) -> Option<u32> {
    #[derive(Deserialize)]
    struct Spec {
        linux: Option<Linux>,
    }
    #[derive(Deserialize)]
    struct Linux {
        #[serde(default, rename = "gidMappings")]
        gid_mappings: Vec<Mapping>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Mapping {
        #[serde(rename = "containerID")]
        container_id: u32,
        #[serde(rename = "hostID")]
        host_id: u32,
    }
    let spec: Spec = serde_json::from_slice(spec).ok()?;
    let mappings = spec.linux?.gid_mappings;
    mappings.iter().find(|m| m.container_id == 0).map(|m| m.host_id).filter(|group| *group != 0)
}

fn unmount_all(target: &Path) -> Result<()> {
    loop {
        match umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            // Whoever may not unmount has mounted nothing; were something there all the same, removing would fail.
            Err(Errno::EPERM) => return Ok(()),
            Err(errno) => return Err(errno).context("unmount rootfs", show(target)),
        }
    }
}

/// Removes a directory so that a kill in between leaves nothing under its name.
fn remove_tree(path: &Path) -> Result<()> {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let hidden = match name.starts_with('.') {
        true => path.to_owned(),
        false => path.with_file_name(format!(".{name}")),
    };
    if hidden != path {
        match fs::rename(path, &hidden) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
                fs::remove_dir_all(&hidden).context("remove", show(&hidden))?;
                fs::rename(path, &hidden).context("rename", show(path))?;
            }
            renamed => renamed.context("rename", show(path))?,
        }
    }
    fs::remove_dir_all(&hidden).context("remove", show(&hidden))
}

/// The names in a directory; none where it does not exist.
fn names(path: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("read", show(path))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.context("read", show(path))?.file_name().into_string());
    }
    names.sort_unstable();
    Ok(names)
}

fn directory(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().mode(mode).create(path).context("mkdir", show(path))
}

fn directories(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o711).create(path).context("mkdir", show(path))
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use orlop_proto::kind::Kind;

    use super::*;

    fn bundles(directory: &Path) -> (Bundles, Namespace) {
        let bundles = Bundles::new(&directory.join("state"), &directory.join("root"));
        (bundles, Namespace::new("default").unwrap())
    }

    #[test]
    fn is_laid_out_and_removed_whole() {
        let directory = tempfile::tempdir().unwrap();
        let (bundles, namespace) = bundles(directory.path());
        let bundle = bundles.create(&namespace, "c", b"{ \"a\" :1}").unwrap();
        assert_eq!(fs::read(bundle.path.join("config.json")).unwrap(), b"{ \"a\" :1}");
        assert_eq!(fs::read_link(bundle.path.join("work")).unwrap(), bundle.work);
        assert_eq!(bundle.path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        bundle.save_shim(Path::new("/x/shim")).unwrap();
        bundle.save_bootstrap(b"unix:///s").unwrap();
        let found = bundles.existing().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].shim().unwrap(), Path::new("/x/shim"));
        assert_eq!(found[0].bootstrap().as_deref(), Some(&b"unix:///s"[..]));

        let error = bundles.create(&namespace, "c", b"{}").unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists);
        assert!(bundle.path.join("config.json").exists());
        bundle.remove().unwrap();
        assert!(!bundle.path.exists() && !bundle.work.exists());
        bundle.remove().unwrap();
    }

    #[test]
    fn never_deletes_below_rootfs() {
        let directory = tempfile::tempdir().unwrap();
        let (bundles, namespace) = bundles(directory.path());
        let bundle = bundles.create(&namespace, "c", b"{}").unwrap();
        fs::write(bundle.path.join("rootfs/precious"), "").unwrap();
        assert!(bundle.remove().is_err());
        assert!(bundle.path.join("rootfs/precious").exists());
    }

    #[test]
    fn sweeps_what_a_kill_left() {
        let directory = tempfile::tempdir().unwrap();
        let (bundles, namespace) = bundles(directory.path());
        let bundle = bundles.create(&namespace, "c", b"{}").unwrap();
        let hidden = bundle.path.with_file_name(".gone");
        fs::create_dir(&hidden).unwrap();
        fs::write(hidden.join("f"), "").unwrap();
        let stale = bundle.work.with_file_name("stale");
        fs::create_dir(&stale).unwrap();
        assert_eq!(bundles.existing().unwrap().len(), 1);
        bundles.sweep_work().unwrap();
        assert!(!hidden.exists() && !stale.exists() && bundle.work.exists());
    }

    #[test]
    fn lets_a_mapped_root_pass() {
        let spec = br#"{"linux":{"gidMappings":[{"containerID":1,"hostID":5,"size":1},{"containerID":0,"hostID":1000,"size":10}]}}"#;
        assert_eq!(mapped_group(spec), Some(1000));
        assert_eq!(mapped_group(br#"{"linux":{}}"#), None);
        assert_eq!(mapped_group(b"{}"), None);
    }
}
