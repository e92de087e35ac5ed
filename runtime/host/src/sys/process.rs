//! Scheduling, I/O priority, memory policy, personality, names of the machine.

use std::io;

use super::check;

/// Sets the I/O priority of this thread: class in the upper bits, level in the lower 13 (`ioprio_set(2)`).
pub fn set_io_priority(class: u32, level: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const CLASS_SHIFT: u32 = 13;
    // SAFETY: the call takes no pointers.
    check(unsafe {
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, (class << CLASS_SHIFT) | level)
    })?;
    Ok(())
}

/// The arguments of `sched_setattr(2)`, in the units of the manual page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// `SCHED_…`.
    pub policy: u32,
    /// `SCHED_FLAG_…`.
    pub flags: u64,
    /// Nice value of `SCHED_OTHER` and `SCHED_BATCH`.
    pub nice: i32,
    /// Static priority of `SCHED_FIFO` and `SCHED_RR`.
    pub priority: u32,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub runtime: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub deadline: u64,
    /// Nanoseconds, for `SCHED_DEADLINE`.
    pub period: u64,
}

/// Sets the scheduling policy of this thread.
pub fn set_scheduling(scheduling: Scheduling) -> io::Result<()> {
    // Its last two members came with these flags (Linux 5.3), and the kernel wants them then.
    const UTIL_CLAMP: u64 = 0x20 | 0x40;
    const SIZE_WITHOUT_CLAMPS: u32 = 48;
    #[repr(C)]
    struct SchedAttr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
        util_min: u32,
        util_max: u32,
    }
    let Scheduling { policy, flags, nice, priority, runtime, deadline, period } = scheduling;
    let clamps = flags & UTIL_CLAMP != 0;
    let size = if clamps { std::mem::size_of::<SchedAttr>() as u32 } else { SIZE_WITHOUT_CLAMPS };
    let attributes = SchedAttr {
        size,
        policy,
        flags,
        nice,
        priority,
        runtime,
        deadline,
        period,
        util_min: 0,
        util_max: 0,
    };
    // SAFETY: the structure is at least as long as the size in it and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })?;
    Ok(())
}

/// Lets this thread run on these CPUs (`sched_setaffinity(2)`), of those that its cgroup has.
pub fn set_affinity(numbers: &[u32]) -> io::Result<()> {
    set_affinity_mask(&bit_mask(numbers))
}

/// Lets this thread run on every CPU that its cgroup has or gets.
pub fn reset_affinity() -> io::Result<()> {
    // More than any kernel is built for (`NR_CPUS`); the kernel cuts it.
    set_affinity_mask(&[libc::c_ulong::MAX; 8192 / libc::c_ulong::BITS as usize])
}

fn set_affinity_mask(mask: &[libc::c_ulong]) -> io::Result<()> {
    // SAFETY: the pointer leads to as many bytes as are told, which outlive the call.
    check(unsafe {
        libc::syscall(libc::SYS_sched_setaffinity, 0, std::mem::size_of_val(mask), mask.as_ptr())
    })?;
    Ok(())
}

/// Numbers as a mask in the kernel's form, as long as the highest takes.
fn bit_mask(numbers: &[u32]) -> Vec<libc::c_ulong> {
    const BITS: usize = libc::c_ulong::BITS as usize;
    let words = numbers.iter().max().map_or(0, |&highest| highest as usize / BITS + 1);
    let mut mask = vec![0 as libc::c_ulong; words];
    for &number in numbers {
        mask[number as usize / BITS] |= 1 << (number as usize % BITS);
    }
    mask
}

/// Sets the NUMA memory policy of this thread (`set_mempolicy(2)`): mode with flags, and the node numbers.
pub fn set_memory_policy(mode: i32, nodes: &[u32]) -> io::Result<()> {
    const BITS: usize = libc::c_ulong::BITS as usize;
    let mask = bit_mask(nodes);
    let pointer = if mask.is_empty() { std::ptr::null() } else { mask.as_ptr() };
    // The kernel takes one bit fewer than the number that it is told.
    let bits = if mask.is_empty() { 0 } else { mask.len() * BITS + 1 };
    // SAFETY: the mask holds at least `bits - 1` bits and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, pointer, bits) })?;
    Ok(())
}

/// Sets the execution domain (`personality(2)`).
pub fn set_personality(persona: u64) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(i64::from(unsafe { libc::personality(persona as libc::c_ulong) }))?;
    Ok(())
}

/// Sets the NIS domain name of this UTS namespace.
pub fn set_domain_name(name: &str) -> io::Result<()> {
    // SAFETY: the pointer leads to `name.len()` bytes that outlive the call.
    check(unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) })?;
    Ok(())
}

/// Sets the soft and hard limit of a resource of a process (`prlimit(2)`).
pub fn set_limit(pid: i32, resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the new limit outlives the call and the pointer for the old one is null.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid,
            resource,
            &raw const limit,
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    })?;
    Ok(())
}

/// Gives signals their default meaning again and unblocks them, for a program that is about to be executed: the
/// standard library ignores `SIGPIPE`, and a foreground runtime blocks what it forwards.
pub fn restore_signals() -> io::Result<()> {
    // SAFETY: SIG_DFL is no function of ours, so no handler can run in a wrong state.
    if unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    nix::sys::signal::SigSet::empty().thread_set_mask().map_err(io::Error::from)
}
