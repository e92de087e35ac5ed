//! What is different for a caller who is not root of the machine: a user, or the root of a user namespace.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use orlop_host::file;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

/// The line of `/proc/self/uid_map` in the first user namespace, which maps everybody to himself (user_namespaces(7)).
const EVERYBODY: [&str; 3] = ["0", "0", "4294967295"];

/// Whether the caller has another user's id than root's in its user namespace.
pub fn is_user() -> bool {
    !nix::unistd::geteuid().is_root()
}

/// Whether cgroups that the caller may not make can be left out: by the flag `--rootless`, else for everybody but the
/// machine's root, as in runc.
pub fn does_without_cgroup(flag: Option<bool>) -> bool {
    flag.unwrap_or_else(|| is_user() || is_in_user_namespace())
}

/// Whether the caller lives in another user namespace than the machine's first.
pub fn is_in_user_namespace() -> bool {
    let map = file::read_text(Path::new("/proc/self/uid_map")).unwrap_or_default();
    !map.split_whitespace().eq(EVERYBODY)
}

/// Where a user's containers have their state when no flag says it: below `XDG_RUNTIME_DIR`, as with runc.
///
/// The root of a user namespace has the machine's place, unless its environment says that it is another user's.
pub fn state_root() -> Option<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty())?;
    let user = std::env::var_os("USER");
    let is_honoured = is_user() || user.is_none_or(|user| user != "root") && is_in_user_namespace();
    is_honoured.then(|| Path::new(&runtime).join("orlop"))
}

/// Maps the ids of a process's new user namespace (user_namespaces(7)); what the caller may not map by itself is mapped
/// by the set-user-id helpers newuidmap(1) and newgidmap(1), which know the ranges that were lent to it.
pub fn write_mappings(pid: i32, uid_map: &str, gid_map: &str) -> Result<()> {
    if is_user() && is_own_alone(gid_map) {
        // One's own group can be mapped without help, once the process cannot leave its groups any more.
        let path = format!("/proc/{pid}/setgroups");
        std::fs::write(&path, "deny").context("write", path)?;
    }
    for (file, helper, map) in [("uid_map", "newuidmap", uid_map), ("gid_map", "newgidmap", gid_map)] {
        let path = format!("/proc/{pid}/{file}");
        match std::fs::write(&path, map) {
            Err(error) if is_user() && error.kind() == std::io::ErrorKind::PermissionDenied => {
                map_with(helper, pid, map)?;
            }
            other => other.context("write", path)?,
        }
    }
    Ok(())
}

/// Whether the map has only one id, the caller's own group.
fn is_own_alone(gid_map: &str) -> bool {
    let fields: Vec<_> = gid_map.split_whitespace().collect();
    matches!(fields[..], [_, outside, "1"] if outside == nix::unistd::getegid().to_string())
}

fn map_with(helper: &str, pid: i32, map: &str) -> Result<()> {
    let outcome = Command::new(helper)
        .arg(pid.to_string())
        .args(map.split_whitespace())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .context("execute", helper)?;
    if outcome.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&outcome.stderr).trim().to_owned();
    let shown = map.trim().replace('\n', ", ");
    Err(Error::because(Kind::PermissionDenied, "map ids", shown, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ones_own_group_needs_no_help() {
        let own = nix::unistd::getegid();
        assert!(is_own_alone(&format!("0 {own} 1\n")));
        assert!(!is_own_alone(&format!("0 {own} 2\n")));
        assert!(!is_own_alone(&format!("0 {} 1\n", own.as_raw() + 1)));
        assert!(!is_own_alone(&format!("0 {own} 1\n1 100000 65536\n")));
    }
}
