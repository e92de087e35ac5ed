//! Mounts below the directory of one activation: `N` is the mount point of its mount number N, or a link to a device.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use orlop_host::mounting::{mount_all, unmount_all};
use orlop_host::sys::loop_device;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::plan::LOOP;
use crate::content::blobs::names;
use crate::snapshot::Mount;

/// Does one mount at a place that does not exist yet. Blocks.
pub fn perform(mount: &Mount, point: &Path) -> Result<()> {
    if mount.kind == LOOP {
        return attach(mount, point);
    }
    let shown = point.display().to_string();
    DirBuilder::new().mode(0o700).create(point).context("create", &shown)?;
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("mount".to_owned()).spawn_scoped(scope, || {
            // Long sets of layers are named from their directory, and shifted ones are made in a namespace of their own.
            unshare(CloneFlags::CLONE_FS).context("unshare", "working directory")?;
            mount_all(std::slice::from_ref(mount), point)
        });
        let result = thread.context("start", "thread")?.join();
        result.map_err(|_| Error::because(Kind::Internal, "mount", shown, "a thread panicked"))?
    })
}

/// Makes a file a block device, to which the place becomes a link.
fn attach(mount: &Mount, point: &Path) -> Result<()> {
    let read_only = mount.options.iter().any(|option| option == "ro");
    let file = File::options().read(true).write(!read_only).open(&mount.source);
    let file = file.context("open", &mount.source)?;
    let (device, open) = loop_device::attach_lasting(file.as_fd(), read_only)
        .context("make a loop device of", &mount.source)?;
    let linked = symlink(&device, point).context("link", point.display().to_string());
    drop(open);
    if linked.is_err() {
        // Ignoring: the first error is the one to tell.
        let _ = loop_device::detach(&device);
    }
    linked
}

/// Whether links still lead to the devices that were made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// They do.
    Valid,
    /// The machine was started again, and the same names may be devices of anybody's.
    Stale,
}

/// Undoes all mounts of a directory, the last one first, and removes it. What is not there is no error. Blocks.
pub fn undo(directory: &Path, links: Links) -> Result<()> {
    if !directory.exists() {
        return Ok(());
    }
    let mut numbers: Vec<u32> = names(directory)?.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    for number in numbers.iter().rev() {
        let point = directory.join(number.to_string());
        let shown = || point.display().to_string();
        if let Ok(device) = fs::read_link(&point) {
            if links == Links::Valid && is_loop_device(&device) {
                loop_device::detach(&device).context("detach", device.display().to_string())?;
            }
            fs::remove_file(&point).context("remove", shown())?;
        } else {
            unmount_all(&point)?;
            // Only ever empty ones: what is mounted is never removed.
            fs::remove_dir(&point).context("remove", shown())?;
        }
    }
    fs::remove_dir(directory).context("remove", directory.display().to_string())
}

fn is_loop_device(path: &Path) -> bool {
    let number = path.file_name().and_then(OsStr::to_str).and_then(|name| name.strip_prefix("loop"));
    path.parent() == Some(Path::new("/dev")) && number.is_some_and(|number| number.parse::<u32>().is_ok())
}
