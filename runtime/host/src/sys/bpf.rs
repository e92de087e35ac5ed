//! bpf(2): device programs of version 2 cgroups.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use super::{check, check_fd};

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_DETACH: libc::c_int = 9;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const PROG_QUERY: libc::c_int = 16;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_TYPE_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 1 << 1;
const REPLACE: u32 = 1 << 2;
/// More programs than the kernel attaches to one group (`BPF_CGROUP_MAX_PROGS`).
const MOST_PROGRAMS: usize = 64;

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to the last field used.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// `union bpf_attr` for `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

/// `union bpf_attr` for `BPF_PROG_QUERY`, up to the last field used.
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
}

/// `union bpf_attr` for `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    open_flags: u32,
}

/// Loads a device program of 8-byte instructions. Programs need no licence of the kernel's for the little that they call.
pub fn load_device_program(instructions: &[[u8; 8]]) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    name[..12].copy_from_slice(b"orlop_device");
    let mut attributes = Load {
        program_type: PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name,
    };
    // SAFETY: the instructions and the licence outlive the call, and the count is that of the slice.
    check_fd(unsafe { bpf(PROG_LOAD, &mut attributes) })
}

/// Makes the program the only device program attached to the group.
///
/// A single old program is replaced in one step; several ones are detached after the new one has taken effect, so that
/// there is no moment without a policy.
pub fn attach_device_program(group: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let old = device_programs(group)?;
    let mut attributes = Attach {
        target: number(group),
        program: number(program),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
        replaced: 0,
    };
    if let [only] = old.as_slice() {
        use std::os::fd::AsFd;
        attributes.flags |= REPLACE;
        attributes.replaced = number(only.as_fd());
    }
    // SAFETY: the structure holds numbers alone.
    check(unsafe { bpf(PROG_ATTACH, &mut attributes) })?;
    if old.len() > 1 {
        for program in old {
            use std::os::fd::AsFd;
            let mut attributes = Attach {
                target: number(group),
                program: number(program.as_fd()),
                attach_type: ATTACH_TYPE_CGROUP_DEVICE,
                flags: 0,
                replaced: 0,
            };
            // SAFETY: the structure holds numbers alone.
            check(unsafe { bpf(PROG_DETACH, &mut attributes) })?;
        }
    }
    Ok(())
}

/// The device programs attached to the group.
fn device_programs(group: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; MOST_PROGRAMS];
    let mut attributes = Query {
        target: number(group),
        attach_type: ATTACH_TYPE_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        programs: ids.as_mut_ptr() as u64,
        count: MOST_PROGRAMS as u32,
        padding: 0,
    };
    // SAFETY: the kernel writes at most `count` numbers, which is the length of `ids`.
    check(unsafe { bpf(PROG_QUERY, &mut attributes) })?;
    let count = (attributes.count as usize).min(MOST_PROGRAMS);
    let mut programs = Vec::with_capacity(count);
    for id in &ids[..count] {
        let mut attributes = ById { id: *id, next: 0, open_flags: 0 };
        // SAFETY: the structure holds numbers alone.
        programs.push(check_fd(unsafe { bpf(PROG_GET_FD_BY_ID, &mut attributes) })?);
    }
    Ok(programs)
}

fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd() as u32
}

/// The call itself.
///
/// # Safety
/// Addresses in `attributes` must be valid for what the command reads and writes there.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> libc::c_long {
    // SAFETY: the attributes are valid for their size, and the caller vouches for the addresses in them.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *mut T, size_of::<T>()) }
}
