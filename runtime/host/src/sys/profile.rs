//! Where the processor time of this process goes: stacks, taken by a signal as the time is spent (setitimer(2), `ITIMER_PROF`).

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Words for all stacks together, each after its length; what does not fit is left out.
const CAPACITY: usize = 1 << 18;
/// The deepest stack.
const DEPTH: usize = 64;

/// Where the handler writes. Static, so that a signal that comes late finds it.
static WORDS: [AtomicUsize; CAPACITY] = [const { AtomicUsize::new(0) }; CAPACITY];
/// How many of them are used, or would be.
static USED: AtomicUsize = AtomicUsize::new(0);
/// Whether somebody records.
static IS_BUSY: AtomicBool = AtomicBool::new(false);

/// What the unwinder knows of a frame; only it looks inside.
#[repr(C)]
struct UnwindContext {
    _private: [u8; 0],
}

type Trace = extern "C" fn(*mut UnwindContext, *mut libc::c_void) -> libc::c_int;

unsafe extern "C" {
    fn _Unwind_Backtrace(trace: Trace, data: *mut libc::c_void) -> libc::c_int;
    fn _Unwind_GetIP(context: *mut UnwindContext) -> libc::uintptr_t;
}

/// A stack that is being taken.
struct Stack {
    /// The instruction that was interrupted: what is above it is the handler's own.
    interrupted: usize,
    length: usize,
    addresses: [usize; DEPTH],
}

extern "C" fn add_frame(context: *mut UnwindContext, data: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `data` is the stack that `on_signal` lends for the length of the unwinding, to this thread alone.
    let stack = unsafe { &mut *data.cast::<Stack>() };
    // SAFETY: the context is the unwinder's own, for as long as it calls back.
    let address = unsafe { _Unwind_GetIP(context) };
    if stack.length == 0 && address != stack.interrupted {
        return 0;
    }
    if stack.length == DEPTH || address == 0 {
        // Any other word than "no reason" ends the unwinding (_URC_NORMAL_STOP).
        return 4;
    }
    stack.addresses[stack.length] = address;
    stack.length += 1;
    0
}

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let interrupted = interrupted(context);
    let mut stack = Stack { interrupted, length: 0, addresses: [0; DEPTH] };
    // SAFETY: errno is this thread's own and must be what it was when the interrupted code goes on; the unwinder finds frames
    // without a lock or memory (glibc 2.35, _dl_find_object) and calls back on this thread alone, before it returns.
    unsafe {
        let errno = libc::__errno_location();
        let saved = *errno;
        _Unwind_Backtrace(add_frame, ptr::from_mut(&mut stack).cast());
        *errno = saved;
    }
    if stack.length == 0 {
        // Code without unwind tables: where it was is known all the same.
        stack.addresses[0] = interrupted;
        stack.length = 1;
    }
    let start = USED.fetch_add(stack.length + 1, Ordering::Relaxed);
    let Some(place) = WORDS.get(start..start + stack.length + 1) else { return };
    for (word, address) in place[1..].iter().zip(stack.addresses) {
        word.store(address, Ordering::Relaxed);
    }
    // The length last: a stack without one is not there yet.
    place[0].store(stack.length, Ordering::Release);
}

/// The address of the instruction at which a signal came (sigaction(2), `SA_SIGINFO`).
fn interrupted(context: *mut libc::c_void) -> usize {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a ucontext_t, which is there until the handler returns.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    #[cfg(target_arch = "x86_64")]
    {
        context.uc_mcontext.gregs[libc::REG_RIP as usize] as usize
    }
    #[cfg(target_arch = "aarch64")]
    {
        context.uc_mcontext.pc as usize
    }
}

/// Takes the stack of whoever runs, each time that the process has used so much processor time, until it is dropped.
pub struct Recording(());

impl Recording {
    /// Begins to take stacks, one for each `period` of processor time.
    ///
    /// # Errors
    ///
    /// `ResourceBusy` while somebody else records; those of sigaction(2) and setitimer(2).
    pub fn start(period: Duration) -> io::Result<Recording> {
        if IS_BUSY.swap(true, Ordering::AcqRel) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let recording = Recording(());
        start(period).map(|()| recording)
    }

    /// The stacks so far: addresses of instructions, the innermost first; of all but the innermost, that to which the call returns.
    pub fn finish(self) -> Vec<Vec<usize>> {
        stop();
        collect()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        stop();
        IS_BUSY.store(false, Ordering::Release);
    }
}

fn stop() {
    // It fails for impossible times alone.
    let _ = set_timer(Duration::ZERO);
}

fn start(period: Duration) -> io::Result<()> {
    WORDS.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    USED.store(0, Ordering::Release);
    // SAFETY: all-zero is a sigaction without flags and with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: the handler stays for good, as a signal may still be on its way when the timer ends; it touches nothing but statics.
    let result = unsafe { libc::sigaction(libc::SIGPROF, &raw const action, ptr::null_mut()) };
    super::check(result.into())?;
    set_timer(period)
}

fn set_timer(period: Duration) -> io::Result<()> {
    let time = libc::timeval { tv_sec: 0, tv_usec: period.subsec_micros().into() };
    let timer = libc::itimerval { it_interval: time, it_value: time };
    // SAFETY: the timer is read during the call; no old one is asked for.
    let result = unsafe { libc::syscall(libc::SYS_setitimer, libc::ITIMER_PROF, &raw const timer, 0) };
    super::check(result).map(drop)
}

fn collect() -> Vec<Vec<usize>> {
    let used = USED.load(Ordering::Acquire).min(CAPACITY);
    let mut stacks = Vec::new();
    let mut at = 0;
    while at < used {
        let length = WORDS[at].load(Ordering::Acquire);
        if length == 0 || length > DEPTH || at + length >= used {
            break;
        }
        stacks.push(WORDS[at + 1..][..length].iter().map(|word| word.load(Ordering::Relaxed)).collect());
        at += length + 1;
    }
    stacks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn spin(until: &AtomicBool) -> u64 {
        let mut number = 1_u64;
        while !until.load(Ordering::Relaxed) {
            number = std::hint::black_box(number.wrapping_mul(31).rotate_left(7));
        }
        number
    }

    #[test]
    fn whoever_uses_the_processor_is_seen_and_one_at_a_time_may_look() {
        let end = AtomicBool::new(false);
        let period = Duration::from_millis(5);
        std::thread::scope(|scope| {
            let first = Recording::start(period).unwrap();
            let second = Recording::start(period);
            assert_eq!(second.err().unwrap().kind(), io::ErrorKind::ResourceBusy);
            scope.spawn(|| spin(&end));
            while USED.load(Ordering::Relaxed) < 50 * DEPTH {
                std::thread::yield_now();
            }
            end.store(true, Ordering::Relaxed);
            let stacks = first.finish();
            drop(Recording::start(period).unwrap());
            assert!(!stacks.is_empty());
            let place = spin as *const () as usize;
            let is_spin = |stack: &&Vec<usize>| stack.iter().any(|at| (place..place + 4096).contains(at));
            assert!(stacks.iter().any(|stack| is_spin(&stack)), "{place:x}: {stacks:x?}");
            assert!(stacks.iter().any(|stack| stack.len() > 3), "callers are seen too: {stacks:x?}");
        });
    }
}
