//! Credentials of the calling thread: ids, capabilities, the bits of `prctl(2)`, seccomp, keyrings.
//!
//! All calls are the kernel's own, which change the calling thread alone; callers have one thread.

use std::io;

use super::check;

/// `PR_CAP_AMBIENT` and its operations (`prctl(2)`).
const PR_CAP_AMBIENT: libc::c_int = 47;
const PR_CAP_AMBIENT_RAISE: libc::c_ulong = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: libc::c_ulong = 4;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// The bit of capabilities(7) by which another user id takes no capabilities (`SECBIT_NO_SETUID_FIXUP`).
pub const NO_SETUID_FIXUP: libc::c_ulong = 1 << 2;
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
const KEYCTL_SETPERM: libc::c_int = 5;
const KEYCTL_DESCRIBE: libc::c_int = 6;

fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<libc::c_long> {
    // SAFETY: only options whose arguments are numbers are passed here.
    check(i64::from(unsafe { libc::prctl(option, argument, 0, 0, 0) }))
}

/// Sets real, effective and saved user id.
pub fn set_uid(uid: u32) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}

/// Sets real, effective and saved group id.
pub fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    Ok(())
}

/// Sets the supplementary groups.
pub fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the pointer leads to `groups.len()` ids that outlive the call.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    Ok(())
}

/// Bit masks of capabilities, bit 0 being `CAP_CHOWN`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapabilityMasks {
    /// What the process may use now.
    pub effective: u64,
    /// What it may make effective.
    pub permitted: u64,
    /// What it keeps over an exec of a file with inheritable capabilities.
    pub inheritable: u64,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Sets this thread's capabilities (`capset(2)`).
pub fn set_capabilities(masks: CapabilityMasks) -> io::Result<()> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| CapData {
        effective: (masks.effective >> shift) as u32,
        permitted: (masks.permitted >> shift) as u32,
        inheritable: (masks.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads one header and two data elements, which outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// This thread's capabilities (`capget(2)`).
pub fn capabilities() -> io::Result<CapabilityMasks> {
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 reads one header and writes two data elements, which outlive the call.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(CapabilityMasks {
        effective: join(data[0].effective, data[1].effective),
        permitted: join(data[0].permitted, data[1].permitted),
        inheritable: join(data[0].inheritable, data[1].inheritable),
    })
}

/// Whether a capability is in the bounding set; `None` when the kernel does not know it.
pub fn bounding(capability: u8) -> Option<bool> {
    prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(capability)).ok().map(|set| set == 1)
}

/// Takes a capability out of the bounding set for ever.
pub fn drop_bounding(capability: u8) -> io::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability)).map(drop)
}

/// Empties the ambient set.
pub fn clear_ambient() -> io::Result<()> {
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL).map(drop)
}

/// Puts a capability into the ambient set.
pub fn raise_ambient(capability: u8) -> io::Result<()> {
    // SAFETY: this option's arguments are numbers.
    check(i64::from(unsafe {
        libc::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, libc::c_ulong::from(capability), 0, 0)
    }))?;
    Ok(())
}

/// Keeps permitted capabilities over the change to another user id.
pub fn keep_capabilities(keep: bool) -> io::Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep)).map(drop)
}

/// The bits of capabilities(7) that say what a change of user ids does to capabilities.
pub fn secure_bits() -> io::Result<libc::c_ulong> {
    prctl(libc::PR_GET_SECUREBITS, 0).map(libc::c_long::cast_unsigned)
}

/// Sets those bits.
pub fn set_secure_bits(bits: libc::c_ulong) -> io::Result<()> {
    prctl(libc::PR_SET_SECUREBITS, bits).map(drop)
}

/// Forbids this process and its children to gain privileges by exec.
pub fn no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map(drop)
}

/// Whether others may trace this process and look at its memory and descriptors.
pub fn set_dumpable(dumpable: bool) -> io::Result<()> {
    prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(dumpable)).map(drop)
}

/// Makes orphaned descendants our children.
pub fn set_child_subreaper() -> io::Result<()> {
    prctl(libc::PR_SET_CHILD_SUBREAPER, 1).map(drop)
}

/// The signal that this process gets when its parent ends.
pub fn set_parent_death_signal(signal: i32) -> io::Result<()> {
    prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong).map(drop)
}

/// The name that `ps` shows, cut to 15 bytes.
pub fn set_name(name: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: PR_SET_NAME reads a NUL-terminated string, which outlives the call.
    check(i64::from(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) }))?;
    Ok(())
}

/// Installs a seccomp filter, a program of 8-byte instructions; returns the listener if `flags` asks for one.
pub fn install_seccomp(program: &[u64], flags: u32) -> io::Result<Option<std::os::fd::OwnedFd>> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: sock_filter is 8 bytes, `filter` leads to `len` of them, and the kernel only reads them.
    let result = check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter)
    })?;
    if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 == 0 {
        return Ok(None);
    }
    super::check_fd(result).map(Some)
}

/// Whether the kernel takes these flags of a seccomp filter; nothing is installed (seccomp(2), "NOTES").
pub fn takes_seccomp_flags(flags: u32) -> bool {
    let none = std::ptr::null::<libc::sock_fprog>();
    // SAFETY: the kernel refuses a null program, by which flags that it does not know are told from those that it does.
    let result = check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, libc::c_ulong::from(flags), none)
    });
    result.is_err_and(|error| error.raw_os_error() == Some(libc::EFAULT))
}

/// Joins a new session keyring of this name and lets its owner search it, as runc does.
pub fn join_session_keyring(name: &str) -> io::Result<()> {
    let name = super::c_text(name)?;
    // SAFETY: the name is NUL-terminated and outlives the call.
    let key = check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    let mut description = [0u8; 256];
    // SAFETY: the kernel writes at most the given number of bytes into `description`.
    let length = check(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_DESCRIBE, key, description.as_mut_ptr(), description.len())
    })?;
    let description = String::from_utf8_lossy(&description[..(length as usize).min(description.len())]);
    // "type;uid;gid;permissions;description"
    let permissions =
        description.split(';').nth(3).and_then(|p| u32::from_str_radix(p, 16).ok()).unwrap_or(0x3f01_0000);
    // Allow the owner (bits 16 up) to search, whatever the session's default is.
    let permissions = permissions | 0x0008_0000;
    // SAFETY: the call takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, key, permissions) })?;
    Ok(())
}
