//! libseccomp(3), which makes seccomp programs: a safe binding of what the runtime uses.
//!
//! Numbers and structures follow seccomp.h of libseccomp 2.6.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::io;
use std::ptr::NonNull;

/// How an argument is compared (`enum scmp_compare`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Operator {
    /// Not equal.
    NotEqual = 1,
    /// Less.
    Less = 2,
    /// Less or equal.
    LessOrEqual = 3,
    /// Equal.
    Equal = 4,
    /// Greater or equal.
    GreaterOrEqual = 5,
    /// Greater.
    Greater = 6,
    /// Equal under a mask, which is the first value; the second one is compared.
    MaskedEqual = 7,
}

/// One comparison of a system call's argument (`struct scmp_arg_cmp`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Comparison {
    /// Which argument, from 0 to 5.
    pub argument: c_uint,
    /// How it is compared.
    pub operator: Operator,
    /// With what.
    pub value: u64,
    /// The second value, which only [`Operator::MaskedEqual`] has.
    pub second: u64,
}

/// What a filter does besides its rules (`enum scmp_filter_attr`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub enum Attribute {
    /// How the program is laid out: 1 by priority, 2 as a binary tree.
    Optimize = 8,
}

const ERROR: c_int = -1; // __NR_SCMP_ERROR

// SAFETY: the declarations repeat those of seccomp.h.
unsafe extern "C" {
    fn seccomp_init(default_action: u32) -> *mut c_void;
    fn seccomp_release(filter: *mut c_void);
    fn seccomp_arch_native() -> u32;

    fn seccomp_arch_add(filter: *mut c_void, architecture: u32) -> c_int;
    fn seccomp_attr_set(filter: *mut c_void, attribute: Attribute, value: u32) -> c_int;
    fn seccomp_syscall_resolve_name(name: *const c_char) -> c_int;
    fn seccomp_syscall_resolve_name_arch(architecture: u32, name: *const c_char) -> c_int;
    fn seccomp_rule_add_array(
        filter: *mut c_void,
        action: u32,
        call: c_int,
        count: c_uint,
        comparisons: *const Comparison,
    ) -> c_int;
    fn seccomp_export_bpf_mem(filter: *mut c_void, buffer: *mut c_void, length: *mut usize) -> c_int;
}

/// A filter in the making.
#[derive(Debug)]
pub struct Filter(NonNull<c_void>);

impl Filter {
    /// A filter for the native architecture that does `default_action` (`SECCOMP_RET_…`) with every call.
    pub fn new(default_action: u32) -> io::Result<Filter> {
        // SAFETY: takes and gives plain values; the result is ours to release.
        let filter = unsafe { seccomp_init(default_action) };
        NonNull::new(filter).map(Filter).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))
    }

    /// Covers one more architecture (`SCMP_ARCH_…`); one that is covered already is fine.
    pub fn add_architecture(&mut self, architecture: u32) -> io::Result<()> {
        // SAFETY: the filter is valid until it is dropped.
        check(unsafe { seccomp_arch_add(self.0.as_ptr(), architecture) })
    }

    /// Sets an attribute.
    pub fn set(&mut self, attribute: Attribute, value: u32) -> io::Result<()> {
        // SAFETY: the filter is valid until it is dropped, and the attribute is one that the library knows.
        check(unsafe { seccomp_attr_set(self.0.as_ptr(), attribute, value) })
    }

    /// Does `action` with a call, by the number that [`resolve`] gave, where all comparisons hold; a rule that is there already is fine.
    pub fn add_rule(&mut self, action: u32, call: i32, comparisons: &[Comparison]) -> io::Result<()> {
        let count = c_uint::try_from(comparisons.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the filter is valid until it is dropped; `count` comparisons are read and not kept.
        check(unsafe { seccomp_rule_add_array(self.0.as_ptr(), action, call, count, comparisons.as_ptr()) })
    }

    /// The program: instructions of eight bytes (`struct sock_filter`).
    pub fn program(&mut self) -> io::Result<Vec<u64>> {
        let mut length = 0;
        // SAFETY: the filter is valid until it is dropped; without a buffer only the length is written.
        check(unsafe { seccomp_export_bpf_mem(self.0.as_ptr(), std::ptr::null_mut(), &mut length) })?;
        let mut program = vec![0u64; length.div_ceil(size_of::<u64>())];
        // SAFETY: as above, and the buffer has at least the length that the library has just asked for.
        check(unsafe { seccomp_export_bpf_mem(self.0.as_ptr(), program.as_mut_ptr().cast(), &mut length) })?;
        Ok(program)
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        // SAFETY: the filter came from seccomp_init, and nothing uses it afterwards.
        unsafe { seccomp_release(self.0.as_ptr()) }
    }
}

/// The architecture of this program (`SCMP_ARCH_…`).
pub fn native_architecture() -> u32 {
    // SAFETY: takes nothing and gives a number.
    unsafe { seccomp_arch_native() }
}

/// A call's number on the native architecture, negative for a call that only others have; `None` for an unknown name.
pub fn resolve(name: &str) -> Option<i32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name is a C string that outlives the call.
    let number = unsafe { seccomp_syscall_resolve_name(name.as_ptr()) };
    (number != ERROR).then_some(number)
}

/// A call's number on an architecture, negative for a call that only others have; `None` for an unknown name.
pub fn resolve_on(architecture: u32, name: &str) -> Option<i32> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name is a C string that outlives the call.
    let number = unsafe { seccomp_syscall_resolve_name_arch(architecture, name.as_ptr()) };
    (number != ERROR).then_some(number)
}

/// A library result, which is a negative error number on failure.
fn check(result: c_int) -> io::Result<()> {
    match -result {
        0 => Ok(()),
        libc::EEXIST => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
