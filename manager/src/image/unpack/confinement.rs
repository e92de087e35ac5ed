//! Takes from a thread what unpacking does not need: the rest of the file system (Landlock and chroot), capabilities,
//! and every system call but a few (seccomp).
//!
//! A thread never gets these back, so that each layer has threads of its own. What the kernel lacks is left out; the
//! guards in the code hold without any of this. Threads share their memory: this holds off a name that leads
//! somewhere else, and a parser that is talked into a system call, not machine code in the place of ours.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use nix::sched::CloneFlags;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use super::switches;

/// The newest Landlock whose rights are taken away; older kernels take what they know.
const LANDLOCK: ABI = ABI::V6;

/// What a thread of an unpack is for.
#[derive(Clone, Copy)]
pub enum Task<'a> {
    /// It turns bytes that it reads from descriptors into others.
    Compute,
    /// It makes files below a root, and reads those of the layers below.
    Files {
        /// The root.
        root: &'a OwnedFd,
        /// Roots of the layers below.
        lowers: &'a [OwnedFd],
    },
    /// It writes one file that is open, and reads those of the layers below.
    Image {
        /// Roots of the layers below.
        lowers: &'a [OwnedFd],
    },
}

/// What every thread needs: memory, locks, the descriptors it has, and its end.
const COMPUTE: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_pread64,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // An assertion of the C library that does not hold.
    libc::SYS_tgkill,
    // A stream processor has ended.
    libc::SYS_wait4,
    libc::SYS_waitid,
    // What a panic says.
    libc::SYS_write,
    libc::SYS_writev,
];

/// What writing one file and reading others takes on top.
const IMAGE: &[libc::c_long] = &[
    libc::SYS_copy_file_range,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pwrite64,
    libc::SYS_readlinkat,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
];

/// What making files takes on top of that.
const FILES: &[libc::c_long] = &[
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fsetxattr,
    libc::SYS_linkat,
    libc::SYS_lsetxattr,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_renameat2,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

/// Gives the calling thread a root, a working directory and a file mode mask of its own. The mask is 0, so that the
/// mode that a file is made with is its mode. Threads that it starts share all three.
///
/// # Errors
/// Those of unshare(2).
pub fn own_file_system_state(root: &OwnedFd) -> Result<()> {
    nix::sched::unshare(CloneFlags::CLONE_FS).context("unshare", "file mode mask")?;
    rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::fchdir(root).map_err(|error| Error::io("enter", "root of the layer", error.into()))?;
    if switches::is_off("confinement") {
        return Ok(());
    }
    match rustix::process::chroot(".") {
        // Whoever may not has no rights elsewhere either that would be worth taking.
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(error) => Err(Error::io("change root to", "root of the layer", error.into())),
    }
}

/// Takes from the calling thread, for good, what its task does not need.
///
/// # Errors
/// `Internal` where the kernel has a guard and refuses it.
pub fn confine(task: Task<'_>) -> Result<()> {
    if switches::is_off("confinement") {
        return Ok(());
    }
    let failed = |what: &str, why: &dyn std::fmt::Display| {
        Error::because(Kind::Internal, "confine", what, why.to_string())
    };
    drop_capabilities(task).map_err(|error| failed("capabilities", &error))?;
    restrict_paths(task).map_err(|error| failed("paths", &error))?;
    if rustix::thread::secure_computing_mode() == Err(Errno::INVAL) {
        // The kernel was built without seccomp (prctl(2)).
        return Ok(());
    }
    let program = program(task).map_err(|error| failed("system calls", &error))?;
    seccompiler::apply_filter(program).map_err(|error| failed("system calls", &error))
}

/// Keeps those capabilities that the task can need and the thread has.
fn drop_capabilities(task: Task<'_>) -> rustix::io::Result<()> {
    let kept = match task {
        Task::Compute => CapabilitySet::empty(),
        // Another owner's files are read.
        Task::Image { .. } => CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH,
        // SYS_ADMIN: attributes `trusted.*`, the opaque marks among them.
        Task::Files { .. } => {
            CapabilitySet::CHOWN
                | CapabilitySet::DAC_OVERRIDE
                | CapabilitySet::DAC_READ_SEARCH
                | CapabilitySet::FOWNER
                | CapabilitySet::FSETID
                | CapabilitySet::MKNOD
                | CapabilitySet::SETFCAP
                | CapabilitySet::SYS_ADMIN
        }
    };
    let has = rustix::thread::capabilities(None)?;
    let kept = kept & has.permitted;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: kept & has.effective,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// Leaves no paths but those of the task. A kernel whose Landlock cannot tell a hard link within the root from one
/// that leads out of it (before 5.19) is not asked.
fn restrict_paths(task: Task<'_>) -> std::result::Result<(), landlock::RulesetError> {
    let (root, lowers): (Option<&OwnedFd>, &[OwnedFd]) = match task {
        Task::Compute => (None, &[]),
        Task::Files { root, lowers } => (Some(root), lowers),
        Task::Image { lowers } => (None, lowers),
    };
    let all = AccessFs::from_all(LANDLOCK);
    let reading: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = Ruleset::default()
        // All or nothing; of the rest, what the kernel knows.
        .set_compatibility(CompatLevel::SoftRequirement)
        .handle_access(AccessFs::Refer)?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    if let Some(root) = root {
        rules = rules.add_rule(PathBeneath::new(root, all))?;
    }
    for lower in lowers {
        rules = rules.add_rule(PathBeneath::new(lower, reading))?;
    }
    rules.restrict_self().map(drop)
}

/// The filter of a task; made once.
fn program(task: Task<'_>) -> std::result::Result<&'static BpfProgram, &'static seccompiler::BackendError> {
    type Made = OnceLock<std::result::Result<BpfProgram, seccompiler::BackendError>>;
    static PROGRAMS: [Made; 3] = [const { OnceLock::new() }; 3];
    let (made, calls): (&Made, &[&[libc::c_long]]) = match task {
        Task::Compute => (&PROGRAMS[0], &[COMPUTE]),
        Task::Image { .. } => (&PROGRAMS[1], &[COMPUTE, IMAGE]),
        Task::Files { .. } => (&PROGRAMS[2], &[COMPUTE, IMAGE, FILES]),
    };
    let make = || {
        let allowed: BTreeMap<i64, Vec<_>> =
            calls.iter().flat_map(|calls| calls.iter()).map(|call| (*call, Vec::new())).collect();
        let refusal = SeccompAction::Errno(libc::EPERM.unsigned_abs());
        let architecture = std::env::consts::ARCH.try_into()?;
        SeccompFilter::new(allowed, refusal, SeccompAction::Allow, architecture)?.try_into()
    };
    made.get_or_init(make).as_ref()
}

#[cfg(test)]
#[path = "confinement_tests.rs"]
mod tests;
