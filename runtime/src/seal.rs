//! Keeps the runtime's own binary out of a container's reach (CVE-2019-5736).
//!
//! A process that enters a container shows the binary it runs through `/proc/PID/exe`, also as an entrypoint
//! `#!/proc/self/exe`, and whoever can open that for writing owns the host. So such a process runs from a read-only
//! detached mount of the binary: one re-exec, no copy, and none where it comes from a read-only mount already.

use std::ffi::{CString, OsString};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use orlop_host::file;
use orlop_host::sys::{self, mount};
use orlop_proto::error::{Context, Error, Result};

use crate::cli::Command;

const OWN_BINARY: &str = "/proc/self/exe";

/// Whether a process of ours enters a container for this command.
pub fn is_needed(command: &Command) -> bool {
    matches!(command, Command::Create(_) | Command::Run(_) | Command::Exec(_) | Command::Restore(_))
}

/// Sees to it that this process runs from a binary that nobody can write through `/proc/PID/exe`.
///
/// Returns if it does; otherwise the program starts again from the beginning.
pub fn ensure() -> Result<()> {
    if crate::switches::is_off("seal") {
        return Ok(());
    }
    let own = file::open(Path::new(OWN_BINARY), OFlag::O_PATH).context("open", OWN_BINARY)?;
    if is_sealed(&own)? {
        return Ok(());
    }
    let sealed = match read_only_mount(&own) {
        // Without the right to mount, or under a filter that knows no such call, there is still a copy.
        Err(_) => sealed_copy().context("seal", OWN_BINARY)?,
        Ok(mount) => mount,
    };
    let arguments = strings(std::env::args_os());
    let environment = strings(std::env::vars_os().map(|(mut name, value)| {
        name.push("=");
        name.push(value);
        name
    }));
    Err(Error::io("execute", OWN_BINARY, sys::exec::execve_fd(sealed.as_fd(), &arguments, &environment)))
}

fn is_sealed(own: &OwnedFd) -> Result<bool> {
    let flags = fstatvfs(own).context("look at", OWN_BINARY)?.flags();
    if flags.contains(FsFlags::ST_RDONLY) {
        return Ok(true);
    }
    let is_memory = |path: std::path::PathBuf| path.as_os_str().as_encoded_bytes().starts_with(b"/memfd:");
    if !Path::new(OWN_BINARY).read_link().is_ok_and(is_memory) {
        return Ok(false);
    }
    let copy = file::open(Path::new(OWN_BINARY), OFlag::O_RDONLY).context("open", OWN_BINARY)?;
    let seals = fcntl(&copy, FcntlArg::F_GET_SEALS).context("look at", OWN_BINARY)?;
    Ok(SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_WRITE))
}

fn read_only_mount(own: &OwnedFd) -> io::Result<OwnedFd> {
    if crate::switches::is_off("mount-api") {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let mount = mount::clone_tree_of(own.as_fd(), false)?;
    let attributes = mount::Attributes { set: mount::ATTR_RDONLY, ..Default::default() };
    mount::set_attributes(mount.as_fd(), false, attributes)?;
    Ok(mount)
}

fn sealed_copy() -> io::Result<OwnedFd> {
    let mut binary = std::fs::File::open(OWN_BINARY)?;
    let mut copy = std::fs::File::from(sys::fd::memory_file(c"orlop")?);
    io::copy(&mut binary, &mut copy)?;
    copy.flush()?;
    let copy = OwnedFd::from(copy);
    sys::fd::seal(copy.as_fd())?;
    Ok(copy)
}

fn strings(texts: impl Iterator<Item = OsString>) -> Vec<CString> {
    let bytes = texts.map(|text| text.into_vec());
    bytes.map(|bytes| CString::new(bytes).expect("strings from exec have no inner NUL")).collect()
}
