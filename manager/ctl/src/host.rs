//! What making a container needs to know about this host.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::sys::stat::{major, minor};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::spec::capabilities_of;
use orlop_proto::spec::types::Device;

/// Directories below /dev that hold no devices of the host's own.
const SKIPPED: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// Whether the host has cgroup v2 alone (cgroups(7)).
pub fn unified_cgroups() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The host's name.
///
/// # Errors
///
/// Those of reading it.
pub fn name() -> Result<String> {
    let path = "/proc/sys/kernel/hostname";
    Ok(std::fs::read_to_string(path).context("read", path)?.trim_end().to_owned())
}

/// The capabilities of this program.
///
/// # Errors
///
/// Those of reading /proc/self/status.
pub fn capabilities() -> Result<Vec<String>> {
    let path = "/proc/self/status";
    let text = std::fs::read_to_string(path).context("read", path)?;
    let mask = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.map(capabilities_of).ok_or_else(|| Error::because(Kind::Internal, "read", path, "no CapEff"))
}

/// The device at a path, or all devices in the directory there.
///
/// # Errors
///
/// `NotFound`, and `InvalidArgument` for another kind of file.
pub fn devices(path: &Path) -> Result<Vec<Device>> {
    let shown = path.display().to_string();
    let data = std::fs::metadata(path).context("stat device", &shown)?;
    if data.is_dir() {
        let mut found = Vec::new();
        collect(path, &mut found)?;
        return Ok(found);
    }
    Ok(vec![node(path)?])
}

/// The device node at a path.
///
/// # Errors
///
/// `NotFound`, and `InvalidArgument` for another kind of file.
pub fn node(path: &Path) -> Result<Device> {
    let shown = path.display().to_string();
    let data = std::fs::metadata(path).context("stat device", &shown)?;
    device(path, &data)
        .ok_or_else(|| Error::because(Kind::InvalidArgument, "device", shown, "not a device node"))
}

fn collect(directory: &Path, found: &mut Vec<Device>) -> Result<()> {
    let shown = directory.display().to_string();
    let entries = std::fs::read_dir(directory).context("read", &shown)?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.context("read", &shown)?.path());
    }
    paths.sort();
    for path in paths {
        let Ok(data) = std::fs::symlink_metadata(&path) else { continue };
        let name = path.file_name().unwrap_or_default();
        if data.is_dir() {
            if !SKIPPED.iter().any(|skipped| name == *skipped) {
                collect(&path, found)?;
            }
        } else if name != "console" {
            found.extend(device(&path, &data));
        }
    }
    Ok(())
}

fn device(path: &Path, data: &std::fs::Metadata) -> Option<Device> {
    let kind = match data.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return None,
    };
    Some(Device {
        path: path.to_string_lossy().into_owned(),
        kind: kind.to_owned(),
        major: major(data.rdev()) as i64,
        minor: minor(data.rdev()) as i64,
        file_mode: Some(data.mode() & 0o777),
        uid: Some(data.uid()),
        gid: Some(data.gid()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_what_the_host_says() {
        let null = devices(Path::new("/dev/null")).unwrap();
        assert_eq!((null[0].kind.as_str(), null[0].major, null[0].minor), ("c", 1, 3));
        assert_eq!(devices(Path::new("/etc/passwd")).unwrap_err().kind(), Kind::InvalidArgument);
        assert_eq!(devices(Path::new("/dev/no-such")).unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn directories_of_others_are_left_out() {
        let all = devices(Path::new("/dev")).unwrap();
        assert!(all.iter().any(|device| device.path == "/dev/zero"));
        assert!(
            !all.iter().any(|device| device.path.starts_with("/dev/pts/") || device.path == "/dev/console")
        );
    }
}
