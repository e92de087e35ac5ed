//! Children of a program with one thread: another program with chosen descriptors, or a helper of our own code.
//!
//! Between clone and exec the child allocates nothing, so [`spawn`] would even do with more threads.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;

use super::check;
use super::clone::{CloneRequest, Cloned, clone3};
use super::exec::{execve_pointers, pointers};

/// Exit code of a child whose program could not be executed; what was wrong is on [`Spawn::report`].
pub const CANNOT_EXECUTE: i32 = 127;
/// Exit code of a child that could not do what comes before its program.
pub const CANNOT_BEGIN: i32 = 126;

/// Where copies of descriptors are kept while their final numbers are filled.
const PARKING: RawFd = 64;
/// Where the child keeps [`Spawn::report`].
const REPORT: RawFd = PARKING - 1;
/// Where the child keeps [`Spawn::after`].
const AFTER: RawFd = PARKING - 2;
/// Where the child keeps [`Spawn::executable`].
const EXECUTABLE: RawFd = PARKING - 3;

/// What a child does before it executes its program. It is told what to say on [`Spawn::report`], and whether to go on.
pub type First<'a> = &'a dyn Fn() -> Result<Vec<u8>, Vec<u8>>;

/// A program to be started.
pub struct Spawn<'a> {
    /// The program's path.
    pub program: &'a CString,
    /// The same by descriptor, which is tried first.
    pub executable: Option<BorrowedFd<'a>>,
    /// Its arguments, the first being its name.
    pub arguments: &'a [CString],
    /// Its environment.
    pub environment: &'a [CString],
    /// Its descriptors, in order from 0; it gets no others.
    pub descriptors: &'a [BorrowedFd<'a>],
    /// Where the child says why its program could not be executed.
    pub report: BorrowedFd<'a>,
    /// Done by the child first, without any descriptor but those above.
    pub first: Option<First<'a>>,
    /// Execute it only when this can be read or has ended.
    pub after: Option<BorrowedFd<'a>>,
    /// Make it the leader of a process group of its own, so that a terminal's signals do not reach it.
    pub process_group: bool,
    /// Kill it when this program ends.
    pub dies_with_us: bool,
}

/// Starts a program and returns its pid. The child starts with an empty signal mask.
pub fn spawn(spawn: &Spawn) -> io::Result<i32> {
    let (arguments, environment) = (pointers(spawn.arguments), pointers(spawn.environment));
    let parent = spawn.dies_with_us.then(std::process::id);
    match clone3(CloneRequest::default())? {
        Cloned::Parent { pid, .. } => Ok(pid),
        Cloned::Child => {
            let kept = [(Some(spawn.report), REPORT), (spawn.after, AFTER), (spawn.executable, EXECUTABLE)];
            let error = match prepare(spawn.descriptors, kept, parent) {
                Ok(()) => {
                    let first_kept = spawn.descriptors.len() as u32;
                    if spawn.after.is_some() || spawn.first.is_some() {
                        close_all_but_kept(first_kept);
                    }
                    if let Some(first) = spawn.first {
                        let told = first();
                        let (Ok(text) | Err(text)) = &told;
                        say(text);
                        if told.is_err() {
                            exit(CANNOT_BEGIN);
                        }
                    }
                    if spawn.after.is_some() {
                        await_readable(AFTER);
                    }
                    // Also those that we got ourselves from a careless parent. What fails here fails for none of ours.
                    let _ = super::fd::close_on_exec_from(first_kept);
                    if spawn.process_group {
                        // SAFETY: the call takes no pointers.
                        unsafe { libc::setpgid(0, 0) };
                    }
                    let executable = spawn.executable.map(|_| EXECUTABLE);
                    execve_pointers(executable, spawn.program, &arguments, &environment)
                }
                Err(error) => error,
            };
            let reason = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EINVAL)).desc();
            for text in [b"exec ", spawn.program.as_bytes(), b": ", reason.as_bytes()] {
                say(text);
            }
            exit(CANNOT_EXECUTE)
        }
    }
}

/// Runs a function in a child of its own, with these three standard streams and no other descriptor, and returns the
/// child's pid. The child ends with the function's number as its exit code, and with us.
///
/// The function must not use descriptors that it captured: they are closed.
pub fn helper(streams: [BorrowedFd; 3], work: impl FnOnce() -> i32) -> io::Result<i32> {
    let parent = Some(std::process::id());
    match clone3(CloneRequest::default())? {
        Cloned::Parent { pid, .. } => Ok(pid),
        Cloned::Child => {
            if prepare(&streams, [(Some(streams[2]), REPORT)], parent).is_err() {
                exit(CANNOT_EXECUTE);
            }
            // SAFETY: the call takes no pointers. Owners of these numbers exist in this copy of the memory, but none
            // is used or dropped: the function was told so, and `_exit` runs no destructor.
            unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
            exit(work())
        }
    }
}

/// In the child: tells the parent.
fn say(text: &[u8]) {
    // SAFETY: the pointer leads to `text.len()` readable bytes.
    unsafe { libc::write(REPORT, text.as_ptr().cast(), text.len()) };
}

/// In the child: closes all descriptors but the first ones and those that are kept. A copy of the other end of [`Spawn::after`]
/// would keep it from ending, and what comes first may take long.
fn close_all_but_kept(first: u32) {
    for (low, high) in [(first, EXECUTABLE as u32 - 1), (PARKING as u32, u32::MAX)] {
        // SAFETY: the call takes no pointers. Owners of these numbers exist in this copy of the memory, but none is used
        // or dropped: the child goes on to execve or `_exit`.
        unsafe { libc::syscall(libc::SYS_close_range, low, high, 0) };
    }
}

/// Waits until a descriptor can be read or has ended.
fn await_readable(fd: RawFd) {
    let mut look = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: the pointer leads to one pollfd that outlives the call. A signal that interrupts would kill or is ignored.
    while unsafe { libc::poll(&raw mut look, 1, -1) } < 0 && Errno::last() == Errno::EINTR {}
}

/// In the child: fills the descriptor numbers from 0, empties the signal mask, ties our end to that of a parent.
///
/// Leaves close-on-exec copies of what is to be kept at the given numbers, and nothing at those that keep nothing.
fn prepare<const N: usize>(
    descriptors: &[BorrowedFd],
    kept: [(Option<BorrowedFd>, RawFd); N],
    parent: Option<u32>,
) -> io::Result<()> {
    // SAFETY: no pointer but to the set, which sigemptyset initialises before sigprocmask reads it.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
    if let Some(parent) = parent {
        super::creds::set_parent_death_signal(libc::SIGKILL)?;
        // SAFETY: the call takes nothing and cannot fail.
        if unsafe { libc::getppid() } != parent as libc::pid_t {
            // It was gone before it could be asked for.
            return Err(Errno::ESRCH.into());
        }
    }
    let park = |source: RawFd, at_least: RawFd| {
        // SAFETY: F_DUPFD_CLOEXEC takes no pointer and closes nothing.
        check(i64::from(unsafe { libc::fcntl(source, libc::F_DUPFD_CLOEXEC, at_least) })).map(|n| n as RawFd)
    };
    // First all copies above every final number, so that filling one does not overwrite the source of another.
    let mut copies = [-1; N];
    for (slot, (source, _)) in copies.iter_mut().zip(&kept) {
        if let Some(source) = source {
            *slot = park(source.as_raw_fd(), PARKING)?;
        }
    }
    let mut parked = [-1; 8];
    for (slot, source) in parked.iter_mut().zip(descriptors) {
        *slot = park(source.as_raw_fd(), PARKING)?;
    }
    for (number, source) in parked.iter().take(descriptors.len()).enumerate() {
        // SAFETY: dup2 closes what the number meant in this child, where its owner is never used again: the child
        // only executes a program or a function that uses no captured descriptor.
        check(i64::from(unsafe { libc::dup2(*source, number as RawFd) }))?;
    }
    for (copy, (_, number)) in copies.into_iter().zip(kept) {
        if copy < 0 {
            // SAFETY: as above. Usually the number meant nothing.
            unsafe { libc::close(number) };
        } else {
            // SAFETY: as above.
            check(i64::from(unsafe { libc::dup3(copy, number, libc::O_CLOEXEC) }))?;
        }
    }
    Ok(())
}

fn exit(code: i32) -> ! {
    // SAFETY: ends the child without running the parent's destructors and exit handlers.
    unsafe { libc::_exit(code) }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::File;
    use std::io::{Read, Seek};
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::fd::memory_file;

    fn wait(pid: i32) -> i32 {
        let mut status = 0;
        // SAFETY: the pointer leads to an int that outlives the call.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        libc::WEXITSTATUS(status)
    }

    fn text(file: &mut File) -> String {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    /// A program without arguments, which tells on its third descriptor what goes wrong.
    fn plain<'a>(program: &'a CString, descriptors: &'a [BorrowedFd<'a>]) -> Spawn<'a> {
        Spawn {
            program,
            executable: None,
            arguments: std::slice::from_ref(program),
            environment: &[],
            descriptors,
            report: descriptors[2],
            first: None,
            after: None,
            process_group: false,
            dies_with_us: true,
        }
    }

    #[test]
    fn gives_descriptors_in_order() {
        let null = File::open("/dev/null").unwrap();
        let mut out = File::from(memory_file(c"out").unwrap());
        let mut extra = File::from(memory_file(c"extra").unwrap());
        let program = CString::new("/bin/sh").unwrap();
        let arguments = ["sh", "-c", "echo out; echo three >&3; exit 7"].map(|a| CString::new(a).unwrap());
        let descriptors = [null.as_fd(), out.as_fd(), out.as_fd(), extra.as_fd()];
        let started = Spawn { arguments: &arguments, process_group: true, ..plain(&program, &descriptors) };
        assert_eq!(wait(spawn(&started).unwrap()), 7);
        assert_eq!((text(&mut out).as_str(), text(&mut extra).as_str()), ("out\n", "three\n"));
    }

    #[test]
    fn waits_for_the_word() {
        let null = File::open("/dev/null").unwrap();
        let (after, word) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        let program = CString::new("/bin/true").unwrap();
        let descriptors = [null.as_fd(); 3];
        let pid = spawn(&Spawn { after: Some(after.as_fd()), ..plain(&program, &descriptors) }).unwrap();
        let own = std::fs::read_link("/proc/self/exe").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/exe")).unwrap(), own);
        drop(word);
        assert_eq!(wait(pid), 0);
    }

    #[test]
    fn says_why_a_program_cannot_be_executed() {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let mut report = File::from(memory_file(c"report").unwrap());
        let program = CString::new("/nonexistent/program").unwrap();
        let descriptors = [null.as_fd(), null.as_fd(), report.as_fd()];
        assert_eq!(wait(spawn(&plain(&program, &descriptors)).unwrap()), CANNOT_EXECUTE);
        assert!(text(&mut report).starts_with("exec /nonexistent/program: No such file"));
    }

    #[test]
    fn something_is_done_first_or_the_program_is_not_executed() {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let program = CString::new("/bin/true").unwrap();
        for (told, code) in [(Ok(b"done".to_vec()), 0), (Err(b"failed".to_vec()), CANNOT_BEGIN)] {
            let mut report = File::from(memory_file(c"report").unwrap());
            let descriptors = [null.as_fd(), null.as_fd(), report.as_fd()];
            // Memory comes from before: what the other tests' threads have locked stays locked in the child.
            let told = Cell::new(told);
            let first = || told.replace(Ok(Vec::new()));
            let pid = spawn(&Spawn { first: Some(&first), ..plain(&program, &descriptors) }).unwrap();
            assert_eq!(wait(pid), code);
            assert_eq!(text(&mut report), if code == 0 { "done" } else { "failed" });
        }
    }

    #[test]
    fn what_is_done_first_has_no_other_descriptors() {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let mut report = File::from(memory_file(c"report").unwrap());
        // Enough that every number has one that the child keeps something at.
        let open: Vec<File> = (0..PARKING).map(|_| null.try_clone().unwrap()).collect();
        let program = CString::new("/bin/true").unwrap();
        let descriptors = [null.as_fd(), null.as_fd(), report.as_fd()];
        let room = Cell::new(Vec::with_capacity(256));
        let first = || -> Result<Vec<u8>, Vec<u8>> {
            let mut told = room.take();
            told.extend((0..=u8::MAX).filter(|&number| super::super::fd::is_open(number.into())));
            Ok(told)
        };
        let pid = spawn(&Spawn { first: Some(&first), ..plain(&program, &descriptors) }).unwrap();
        assert_eq!(wait(pid), 0);
        assert_eq!(text(&mut report).as_bytes(), [0, 1, 2, REPORT as u8]);
        drop(open);
    }

    #[test]
    fn a_program_is_executed_by_its_descriptor_and_else_by_its_path() {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let program = CString::new("/bin/false").unwrap();
        let descriptors = [null.as_fd(); 3];
        for (executable, code) in [("/bin/true", 0), ("/dev/null", 1)] {
            let executable = File::open(executable).unwrap();
            let started = Spawn { executable: Some(executable.as_fd()), ..plain(&program, &descriptors) };
            assert_eq!(wait(spawn(&started).unwrap()), code);
        }
    }

    #[test]
    fn a_helper_has_nothing_but_its_streams() {
        let null = File::open("/dev/null").unwrap();
        let out = File::from(memory_file(c"out").unwrap());
        let pid = helper([null.as_fd(), out.as_fd(), out.as_fd()], || {
            let open = (0..1024).filter(|&number| super::super::fd::is_open(number)).count();
            open as i32
        })
        .unwrap();
        assert_eq!(wait(pid), 3);
    }
}
