//! Where a shim listens: one socket for each container, or for each group of containers.

use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use orlop_proto::error::{Context, Result};
use sha2::{Digest, Sha256};

/// Where shims' sockets lie, whoever started them.
pub const SOCKETS: &str = "/run/containerd/s";
/// Annotations that put containers into one shim, the first found deciding.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// What decides on the socket's name: the container's group, or else its own id.
pub fn group<'a>(annotations: &'a std::collections::BTreeMap<String, String>, id: &'a str) -> &'a str {
    GROUPS.iter().find_map(|name| annotations.get(*name)).map_or(id, String::as_str)
}

/// The socket of a group of containers of one manager and namespace.
pub fn socket(directory: &Path, manager: &str, namespace: &str, group: &str) -> PathBuf {
    // Go's filepath.Join, whose result is what every shim of this protocol hashes.
    let joined = [manager, namespace, group].join("/");
    let mut clean = String::new();
    for part in joined.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            clean.truncate(clean.rfind('/').unwrap_or(0));
        } else {
            if !clean.is_empty() || joined.starts_with('/') {
                clean.push('/');
            }
            clean.push_str(part);
        }
    }
    let hash = Sha256::digest(clean.as_bytes());
    let name: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    directory.join(name)
}

/// A new socket, or the knowledge that a shim listens there already.
pub enum Bound {
    /// Nobody listened.
    Ours(UnixListener),
    /// A shim of the same group does.
    Taken,
}

/// Listens on a socket; one that a dead shim left is replaced.
pub fn bind(path: &Path) -> Result<Bound> {
    let shown = || path.display().to_string();
    if let Some(directory) = path.parent() {
        let mut builder = DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .context("make", directory.display().to_string())?;
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(Bound::Taken);
            }
            fs::remove_file(path).context("remove", shown())?;
            UnixListener::bind(path)
        }
        other => other,
    }
    .context("listen on", shown())?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).context("set permissions of", shown())?;
    Ok(Bound::Ours(listener))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sockets_as_the_reference_does() {
        // sha256 of "/run/containerd/containerd.sock/default/c1"
        let wanted = Sha256::digest(b"/run/containerd/containerd.sock/default/c1");
        let wanted: String = wanted.iter().map(|byte| format!("{byte:02x}")).collect();
        let path = socket(Path::new("/s"), "/run//containerd/./containerd.sock", "default", "c1");
        assert_eq!(path, Path::new("/s").join(wanted));
    }

    #[test]
    fn the_first_annotation_decides() {
        let all = [("io.kubernetes.cri.sandbox-id", "pod"), ("io.containerd.runc.v2.group", "group")];
        let annotations = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(group(&annotations(&all), "c"), "group");
        assert_eq!(group(&annotations(&all[..1]), "c"), "pod");
        assert_eq!(group(&annotations(&[]), "c"), "c");
    }

    #[test]
    fn a_socket_nobody_listens_on_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s/socket");
        let first = bind(&path).unwrap();
        assert!(matches!(first, Bound::Ours(_)));
        assert!(matches!(bind(&path).unwrap(), Bound::Taken));
        drop(first);
        assert!(matches!(bind(&path).unwrap(), Bound::Ours(_)));
    }
}
