//! Which shim runs a container, and with which options: from the runtime's name, the configuration, and the
//! container's own options.
//!
//! Follows containerd's naming rule (`io.containerd.kata.v2` is served by `containerd-shim-kata-v2`), except that
//! the names which stock clients ask for by default are served as the configuration says.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use orlop_proto::any;
use orlop_proto::containerd::runc::v1::Options;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost_types::Any;
use rustix::fs::{Access, access};

use crate::config::{RUNC_V2, Runtime};

/// Older names of the runtime that is now called [`RUNC_V2`].
const RUNC_NAMES: [&str; 2] = ["io.containerd.runc.v1", "io.containerd.runtime.v1.linux"];

/// A shim binary and the options that it gets.
#[derive(Debug, PartialEq)]
pub struct Choice {
    /// Absolute path.
    pub shim: PathBuf,
    /// The container's own options, completed from the configuration.
    pub options: Option<Any>,
}

/// The configured runtimes, and where programs are looked for.
pub struct Runtimes {
    configured: RwLock<BTreeMap<String, Runtime>>,
    directories: Vec<PathBuf>,
}

impl Runtimes {
    /// Looks for programs beside this one, then among those that clients installed, then in `PATH`.
    pub fn new(configured: BTreeMap<String, Runtime>, installed: &Path) -> Runtimes {
        let beside = env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
        let path = env::var_os("PATH").unwrap_or_default();
        let directories = beside.into_iter().chain([installed.join("bin")]);
        let directories = directories.chain(env::split_paths(&path).filter(|dir| dir.is_absolute()));
        Runtimes { configured: RwLock::new(configured), directories: directories.collect() }
    }

    /// From now on these are configured.
    pub fn configure(&self, configured: BTreeMap<String, Runtime>) {
        *self.configured.write().unwrap_or_else(PoisonError::into_inner) = configured;
    }

    /// Chooses for a runtime name, or an absolute path of a shim.
    ///
    /// # Errors
    ///
    /// With containerd's words for a name that is no runtime's, and for a shim that is not installed.
    pub fn choose(&self, name: &str, options: Option<Any>) -> Result<Choice> {
        let all = self.configured.read().unwrap_or_else(PoisonError::into_inner);
        let configured =
            all.get(name).or_else(|| RUNC_NAMES.contains(&name).then(|| all.get(RUNC_V2)).flatten());
        let shim = match configured.and_then(|runtime| runtime.shim.as_deref()) {
            Some(shim) => self.find(name, shim)?,
            None => self.by_name(name)?,
        };
        let options = match configured {
            Some(runtime) => self.complete(options, runtime)?,
            None => options,
        };
        Ok(Choice { shim, options })
    }

    fn by_name(&self, name: &str) -> Result<PathBuf> {
        if name.is_empty() {
            return Err(unresolved("no runtime name"));
        }
        if Path::new(name).is_absolute() {
            return match Path::new(name).metadata() {
                Ok(_) => Ok(name.into()),
                Err(error) => {
                    let error = Error::io("stat", name, error);
                    Err(unresolved(format!("invalid custom binary path: {error}")))
                }
            };
        }
        let mut words = name.rsplit('.');
        let (version, kind) = (words.next(), words.next());
        match (kind, version) {
            (Some(kind), Some(version)) if !name.contains('/') && !name.starts_with('.') => {
                self.find(name, Path::new(&format!("containerd-shim-{kind}-{version}")))
            }
            _ => Err(unresolved(format!(
                "invalid runtime name {name}, correct runtime name should be either format like \
                 `io.containerd.runc.v1` or a full path to the binary"
            ))),
        }
    }

    fn find(&self, name: &str, shim: &Path) -> Result<PathBuf> {
        self.lookup(shim).ok_or_else(|| {
            unresolved(format!("runtime {name:?} binary not installed {shim:?}: file does not exist"))
        })
    }

    fn lookup(&self, program: &Path) -> Option<PathBuf> {
        let is_program = |path: &PathBuf| path.is_file() && access(path, Access::EXEC_OK).is_ok();
        // An absolute program replaces the directory it is joined to.
        self.directories.iter().map(|directory| directory.join(program)).find(is_program)
    }

    /// Fills in what the configuration says and the container's options leave open. Options of a type that is
    /// not runc's belong to another shim and stay as they are.
    fn complete(&self, options: Option<Any>, runtime: &Runtime) -> Result<Option<Any>> {
        let Runtime { binary, root, systemd_cgroup, .. } = runtime;
        if binary.is_none() && root.is_none() && !systemd_cgroup {
            return Ok(options);
        }
        let mut runc = match &options {
            Some(any) if any.type_url.is_empty() => Options::default(),
            Some(any) if any::is::<Options>(any) => any::unpack::<Options>(any)?,
            Some(_) => return Ok(options),
            None => Options::default(),
        };
        if let (Some(binary), true) = (binary, runc.binary_name.is_empty()) {
            let path = self.lookup(binary).unwrap_or_else(|| binary.clone());
            runc.binary_name = path.to_string_lossy().into_owned();
        }
        if let (Some(root), true) = (root, runc.root.is_empty()) {
            runc.root = root.to_string_lossy().into_owned();
        }
        runc.systemd_cgroup |= systemd_cgroup;
        Ok(Some(any::pack(&runc)))
    }
}

fn unresolved(reason: impl Into<String>) -> Error {
    Error::because(Kind::Unknown, "failed to resolve runtime path", "", reason.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn runtimes(directory: &Path, configured: &[(&str, Runtime)]) -> Runtimes {
        for name in ["containerd-shim-kata-v2", "containerd-shim-orlop-v1", "orlop", "plain"] {
            let path = directory.join(name);
            fs::write(&path, "").unwrap();
            let mode = if name == "plain" { 0o644 } else { 0o755 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let configured = configured.iter().map(|(name, runtime)| ((*name).to_owned(), runtime.clone()));
        Runtimes { configured: RwLock::new(configured.collect()), directories: vec![directory.to_owned()] }
    }

    fn ours() -> Runtime {
        Runtime {
            shim: Some("containerd-shim-orlop-v1".into()),
            binary: Some("orlop".into()),
            ..Runtime::default()
        }
    }

    #[test]
    fn follows_the_naming_rule() {
        let directory = tempfile::tempdir().unwrap();
        let runtimes = runtimes(directory.path(), &[]);
        let kata = directory.path().join("containerd-shim-kata-v2");
        assert_eq!(runtimes.choose("io.containerd.kata.v2", None).unwrap().shim, kata);
        assert_eq!(runtimes.choose(kata.to_str().unwrap(), None).unwrap().shim, kata);
        for (name, expected) in [
            (
                "io.containerd.nope.v1",
                r#"runtime "io.containerd.nope.v1" binary not installed "containerd-shim-nope-v1": file does not exist"#,
            ),
            (
                "bad",
                "invalid runtime name bad, correct runtime name should be either format like `io.containerd.runc.v1` or a full path to the binary",
            ),
            (
                "a/b.c.d",
                "invalid runtime name a/b.c.d, correct runtime name should be either format like `io.containerd.runc.v1` or a full path to the binary",
            ),
            ("/no/such", "invalid custom binary path: stat /no/such: no such file or directory"),
            ("", "no runtime name"),
        ] {
            let error = runtimes.choose(name, None).unwrap_err().to_string();
            assert_eq!(error, format!("failed to resolve runtime path: {expected}"));
        }
    }

    #[test]
    fn the_configuration_serves_runcs_names() {
        let directory = tempfile::tempdir().unwrap();
        let runtimes = runtimes(directory.path(), &[(RUNC_V2, ours())]);
        for name in [RUNC_V2, "io.containerd.runc.v1", "io.containerd.runtime.v1.linux"] {
            let choice = runtimes.choose(name, None).unwrap();
            assert_eq!(choice.shim, directory.path().join("containerd-shim-orlop-v1"));
            let options: Options = any::unpack(&choice.options.unwrap()).unwrap();
            assert_eq!(Path::new(&options.binary_name), directory.path().join("orlop"));
        }
        let absolute = Runtime { shim: Some("/no/such/shim".into()), ..Runtime::default() };
        let runtimes =
            Runtimes { configured: RwLock::new(BTreeMap::from([(RUNC_V2.into(), absolute)])), ..runtimes };
        assert!(runtimes.choose(RUNC_V2, None).unwrap_err().to_string().contains("/no/such/shim"));
    }

    #[test]
    fn the_containers_own_options_win() {
        let directory = tempfile::tempdir().unwrap();
        let runtime = Runtime { root: Some("/r".into()), systemd_cgroup: true, ..ours() };
        let runtimes = runtimes(directory.path(), &[(RUNC_V2, runtime)]);
        let own = Options { binary_name: "crun".into(), io_uid: 7, ..Default::default() };
        let choice = runtimes.choose(RUNC_V2, Some(any::pack(&own))).unwrap();
        let options: Options = any::unpack(&choice.options.unwrap()).unwrap();
        assert_eq!(options, Options { root: "/r".into(), systemd_cgroup: true, ..own });
        let foreign = Any { type_url: "runtimeoptions.v1.Options".into(), value: vec![1] };
        assert_eq!(runtimes.choose(RUNC_V2, Some(foreign.clone())).unwrap().options, Some(foreign));
    }
}
