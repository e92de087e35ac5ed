//! The user's program: where it starts, what it is, and the moment when it takes over.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat};
use nix::sys::stat::{Mode, fstat, stat};
use nix::unistd::{AccessFlags, faccessat};
use orlop_host::sys;
use orlop_proto::contract::runc_text::RuncError;
use orlop_proto::contract::state::{HookState, Status};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::Init;
use crate::hooks;
use crate::sync::Message;

/// What a program without a slash is looked for in when the configuration has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The largest `/etc/passwd` that is read for a home directory, in bytes.
const MAX_PASSWD: u64 = 1 << 20;

/// Changes to the working directory, which must lie inside the container: a descriptor that leads out of it could be
/// named as `/proc/self/fd/N` (CVE-2024-21626).
pub fn enter_directory(init: &mut Init) -> Result<()> {
    let cwd = &init.plan.process.cwd;
    let shown = || cwd.to_string_lossy().into_owned();
    if let Err(error) = nix::unistd::chdir(cwd.as_path()) {
        let why = Error::io("", "", error.into()).to_string();
        return Err(RuncError::Chdir(shown(), why.trim_start_matches(": ").to_owned()).into());
    }
    if crate::switches::is_off("cwd") {
        return Ok(());
    }
    // The kernel has no path from the root to a directory outside of it.
    let inside = nix::unistd::getcwd().is_ok_and(|path| path.is_absolute())
        || is_filtered(init) && climbs_to_root().unwrap_or(false);
    if !inside {
        let why = "current working directory is outside of container mount namespace root -- possible container breakout detected";
        return Err(Error::exactly(Kind::PermissionDenied, why));
    }
    Ok(())
}

/// Finds the program as the user that will run it, and a home directory if the configuration names none.
pub fn look_up(init: &mut Init) -> Result<()> {
    let process = &init.plan.process;
    let Some(program) = process.arguments.first() else { return Ok(()) };
    init.found.program = find(program, &process.environment)?;
    if variable(&process.environment, b"HOME").is_none() {
        let home = home_of(process.uid).unwrap_or_else(|| b"/".to_vec());
        init.found.home = CString::new([b"HOME=", home.as_slice()].concat()).ok();
    }
    Ok(())
}

fn variable<'a>(environment: &'a [CString], name: &[u8]) -> Option<&'a [u8]> {
    let value = |pair: &'a CString| pair.to_bytes().strip_prefix(name)?.strip_prefix(b"=");
    environment.iter().find_map(value)
}

fn find(program: &CStr, environment: &[CString]) -> Result<CString> {
    let name = program.to_bytes();
    let shown = || String::from_utf8_lossy(name).into_owned();
    if name.contains(&b'/') {
        return match check(program) {
            Ok(()) => Ok(program.to_owned()),
            Err(nix::Error::ENOENT) => Err(RuncError::NoSuchProgram(shown()).into()),
            Err(nix::Error::EACCES) => Err(RuncError::ProgramDenied(shown()).into()),
            Err(error) => {
                let why = Error::io("", "", error.into()).to_string();
                let path = shown();
                let text = format!("exec: {path:?}: stat {path}: {}", why.trim_start_matches(": "));
                Err(Error::exactly(Kind::Unknown, text))
            }
        };
    }
    let mut denied = false;
    for directory in variable(environment, b"PATH").unwrap_or(DEFAULT_PATH).split(|&byte| byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let Ok(path) = CString::new([directory, b"/", name].concat()) else { continue };
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(nix::Error::EACCES) => denied = true,
            Err(_) => {}
        }
    }
    Err(if denied { RuncError::ProgramDenied(shown()) } else { RuncError::NotInPath(shown()) }.into())
}

/// Whether this user may execute a file.
fn check(path: &CStr) -> nix::Result<()> {
    let found = stat(path)?;
    if found.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(nix::Error::EACCES);
    }
    match faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS) {
        // A seccomp filter that is in force already may not know the call; exec itself has the last word.
        Ok(()) | Err(nix::Error::EPERM | nix::Error::ENOSYS) => {}
        Err(error) => return Err(error),
    }
    // To root every file is executable by access(2) as soon as anybody may execute it; exec sees it the same way.
    if found.st_mode & 0o111 == 0 { Err(nix::Error::EACCES) } else { Ok(()) }
}

fn home_of(uid: u32) -> Option<Vec<u8>> {
    use std::io::Read;
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = std::fs::File::from(open("/etc/passwd", flags, Mode::empty()).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_PASSWD).read_to_end(&mut text).ok()?;
    home_in(&text, uid)
}

/// The home directory of a user in the text of a passwd(5) file.
fn home_in(text: &[u8], uid: u32) -> Option<Vec<u8>> {
    let uid = uid.to_string();
    for line in text.split(|&byte| byte == b'\n') {
        let fields: Vec<_> = line.split(|&byte| byte == b':').collect();
        if fields.len() >= 6 && fields[2] == uid.as_bytes() {
            return (!fields[5].is_empty()).then(|| fields[5].to_vec());
        }
    }
    None
}

/// Tells the parent that all that can fail in the set-up has been done.
pub fn ready(init: &mut Init) -> Result<()> {
    init.channel.send(&Message::Ready)
}

/// Waits for the parent's word, and where there is a FIFO for a byte in it, which is `start`. A parent that was killed before it
/// noted the container gives no word, and nobody would ever find us. The FIFO stays open until the program takes over: that
/// it is closed then tells `start`.
pub fn await_start(init: &mut Init) -> Result<()> {
    super::namespaces::await_go(init)?;
    let Some(fifo) = &init.fifo else { return Ok(()) };
    let mut byte = [0u8; 1];
    loop {
        match nix::unistd::read(fifo, &mut byte) {
            Err(nix::Error::EINTR) => continue,
            other => return other.map(drop).context("wait for", "start"),
        }
    }
}

/// Hooks of the container's own file system, just before the program.
pub fn start_hooks(init: &mut Init) -> Result<()> {
    let state = HookState { status: Status::Created, ..init.hook_state.clone() };
    hooks::run_inside(&init.container().start_container, &state, &init.plan.process.environment)
}

/// Lets no descriptor but the promised ones reach the program, whoever opened it (CVE-2024-21626).
pub fn descriptors(init: &mut Init) -> Result<()> {
    let first = 3 + init.plan.preserved;
    if !crate::switches::is_off("descriptors") {
        match sys::fd::close_on_exec_from(first) {
            // A filter in force forbids the call; what had been inherited was marked before it was installed.
            Err(_) if is_filtered(init) => {}
            done => done.context("close", "descriptors")?,
        }
    }
    sys::fd::keep_over_exec(3, first as i32).context("pass on", "descriptors")?;
    sys::process::restore_signals().context("restore", "signals")
}

/// Whether a seccomp filter is in force while we still work: without no_new_privs it must be installed early. Any error of
/// a system call may then be the filter's.
fn is_filtered(init: &Init) -> bool {
    init.filter.is_some() && !init.plan.process.no_new_privileges
}

/// Whether the working directory lies below the root: going up from it ends there, and not in another tree.
fn climbs_to_root() -> nix::Result<bool> {
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let place =
        |descriptor: &std::os::fd::OwnedFd| fstat(descriptor).map(|found| (found.st_dev, found.st_ino));
    let root = place(&open("/", directory, Mode::empty())?)?;
    let mut current = open(".", directory, Mode::empty())?;
    loop {
        let parent = openat(&current, "..", directory, Mode::empty())?;
        let (here, above) = (place(&current)?, place(&parent)?);
        if here == above {
            return Ok(here == root);
        }
        current = parent;
    }
}

/// Becomes the user's program.
pub fn execute(init: &mut Init) -> Result<()> {
    let process = &init.plan.process;
    let mut environment = process.environment.clone();
    environment.extend(init.found.home.take());
    let error = sys::exec::execve(&init.found.program, &process.arguments, &environment);
    let program = Path::new(OsStr::from_bytes(init.found.program.to_bytes()));
    Err(Error::io("exec", program.to_string_lossy(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_programs_as_runc_does() {
        let environment = [c"PATH=/nonexistent:/bin:/usr/bin".to_owned()];
        assert_eq!(find(c"sh", &environment).unwrap(), c"/bin/sh".to_owned());
        let text = |name: &CStr| find(name, &environment).unwrap_err().to_string();
        assert_eq!(text(c"no-such-x"), "exec: \"no-such-x\": executable file not found in $PATH");
        assert_eq!(text(c"/no-such-x"), "exec: \"/no-such-x\": stat /no-such-x: no such file or directory");
        assert_eq!(text(c"/etc"), "exec: \"/etc\": permission denied");
    }

    #[test]
    fn homes_of_users() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nbroken\nu:x:7:7::/home/u:\nn:x:8:8:::\n";
        assert_eq!(home_in(passwd, 0).unwrap(), b"/root");
        assert_eq!(home_in(passwd, 7).unwrap(), b"/home/u");
        assert_eq!(home_in(passwd, 8), None);
        assert_eq!(home_in(passwd, 9), None);
    }
}
