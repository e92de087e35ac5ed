//! Looks up on the host what a configuration needs: devices, capabilities, programs.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use orlop_proto::error::{Context, Error};
use orlop_proto::kind::Kind;
use orlop_proto::spec::types::Device;
use rustix::fs::{major, minor};

use super::config::DeviceMapping;
use crate::docker::failure::{Failure, Result};

/// Directories of /dev that hold no devices of the host's own, or another instance's.
const SKIPPED: [&str; 8] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "hugepages"];
/// Names of the init program that `--init` runs.
const INITS: [&str; 3] = ["docker-init", "tini", "tini-static"];

/// The devices of a mapping: one, or those below a directory.
///
/// # Errors
///
/// 500 in dockerd's words for what is no device.
pub fn mapped(mapping: &DeviceMapping) -> Result<Vec<(Device, String)>> {
    let access = if mapping.cgroup_permissions.is_empty() { "rwm" } else { &mapping.cgroup_permissions };
    if access.chars().any(|letter| !"rwm".contains(letter)) {
        return Err(Failure::invalid(format!("invalid device mode: {access}")));
    }
    let source = Path::new(&mapping.path_on_host);
    let target =
        if mapping.path_in_container.is_empty() { &mapping.path_on_host } else { &mapping.path_in_container };
    let wrong = |why: String| {
        Failure::internal(format!(
            "error gathering device information while adding custom device {:?}: {why}",
            mapping.path_on_host
        ))
    };
    let data = std::fs::metadata(source).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => wrong("no such file or directory".to_owned()),
        _ => wrong(error.to_string()),
    })?;
    let mut found = Vec::new();
    if data.is_dir() {
        collect(source, &mut found);
        for device in &mut found {
            let below = Path::new(&device.path).strip_prefix(source).unwrap_or(Path::new("")).to_owned();
            device.path = Path::new(target).join(below).display().to_string();
        }
    } else {
        let mut device = device(source, &data).ok_or_else(|| wrong("not a device node".to_owned()))?;
        device.path.clone_from(target);
        found.push(device);
    }
    Ok(found.into_iter().map(|device| (device, access.to_owned())).collect())
}

/// The device at a path of the host.
///
/// # Errors
///
/// `NotFound` for what is not there, `InvalidArgument` for what is no device.
pub fn node(path: &str) -> orlop_proto::error::Result<Device> {
    let data = std::fs::metadata(path).context("read device", path)?;
    device(Path::new(path), &data)
        .ok_or_else(|| Error::because(Kind::InvalidArgument, "read device", path, "not a device node"))
}

/// Every device of the host.
pub fn all() -> Vec<Device> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), &mut found);
    found
}

fn collect(directory: &Path, found: &mut Vec<Device>) {
    // Directories come and go; one that cannot be read has nothing to give.
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let Ok(data) = std::fs::symlink_metadata(&path) else { continue };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if data.is_dir() {
            if !SKIPPED.contains(&name) {
                collect(&path, found);
            }
        } else if name != "console" {
            found.extend(device(&path, &data));
        }
    }
}

fn device(path: &Path, data: &Metadata) -> Option<Device> {
    let kind = match data.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return None,
    };
    Some(Device {
        path: path.to_string_lossy().into_owned(),
        kind: kind.to_owned(),
        major: i64::from(major(data.rdev())),
        minor: i64::from(minor(data.rdev())),
        file_mode: Some(data.mode() & 0o777),
        uid: Some(data.uid()),
        gid: Some(data.gid()),
    })
}

/// Numbers of a block device.
pub fn block_numbers(path: &str) -> Option<(u64, u64)> {
    let data = std::fs::metadata(path).ok().filter(|data| data.file_type().is_block_device())?;
    Some((u64::from(major(data.rdev())), u64::from(minor(data.rdev()))))
}

/// The capabilities that this daemon has.
pub fn capabilities() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or_default();
    orlop_proto::spec::capabilities_of(mask)
}

/// The init program that `--init` runs: the given one, or one from the daemon's PATH.
pub fn init_program(given: &str) -> Option<String> {
    if given.starts_with('/') {
        return Some(given.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    let directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let names: &[&str] = if given.is_empty() { &INITS } else { &[given] };
    let candidates =
        names.iter().flat_map(|name| directories.iter().map(move |directory| directory.join(name)));
    let mut found = candidates.filter(|path| path.is_file());
    found.next().map(|path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(from: &str, to: &str, access: &str) -> DeviceMapping {
        DeviceMapping {
            path_on_host: from.to_owned(),
            path_in_container: to.to_owned(),
            cgroup_permissions: access.to_owned(),
        }
    }

    #[test]
    fn a_mapping_has_another_path() {
        let found = mapped(&mapping("/dev/null", "/dev/nothing", "r")).unwrap();
        assert_eq!((found[0].0.path.as_str(), found[0].0.major, found[0].0.minor), ("/dev/nothing", 1, 3));
        assert_eq!(found[0].1, "r");
        assert!(mapped(&mapping("/dev/null", "", "x")).is_err());
        assert!(
            mapped(&mapping("/dev/no-such", "", ""))
                .unwrap_err()
                .message
                .ends_with("no such file or directory")
        );
    }

    #[test]
    fn consoles_and_terminals_are_left_out() {
        let paths: Vec<String> = all().into_iter().map(|device| device.path).collect();
        assert!(paths.iter().any(|path| path == "/dev/zero"));
        assert!(!paths.iter().any(|path| path.starts_with("/dev/pts/") || path == "/dev/console"));
    }
}
