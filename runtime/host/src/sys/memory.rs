//! An allocator for programs that live for milliseconds.
//!
//! musl's own takes a page from the kernel for each size it meets and gives it back at once: fifty system calls and as many
//! page faults of a container's start. This one hands out pieces of one static block, keeps freed pieces by size, and leaves
//! what is large, oddly aligned or too much to the C library.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// How much the block holds, in bytes; only what is touched takes memory.
const BLOCK: usize = 1 << 20;
/// Every piece begins at a multiple of this and is at least as long.
const STEP: usize = 16;
/// Pieces are 16 << 0 to 16 << 11 bytes long.
const CLASSES: usize = 12;

/// The allocator. One per program, as `#[global_allocator]`.
pub struct Arena {
    busy: AtomicBool,
    state: UnsafeCell<State>,
    /// Words as wide as a piece is aligned.
    block: UnsafeCell<[u128; BLOCK / STEP]>,
}

struct State {
    /// Where the untouched rest of the block begins.
    used: usize,
    /// Freed pieces of each class; each piece's first word leads to the next.
    free: [*mut u8; CLASSES],
}

// SAFETY: `state` and `block` are reached by `Arena::with` alone, which lets one thread in at a time.
unsafe impl Sync for Arena {}

impl Default for Arena {
    fn default() -> Self {
        Arena::new()
    }
}

impl Arena {
    /// An empty one.
    pub const fn new() -> Arena {
        Arena {
            busy: AtomicBool::new(false),
            state: UnsafeCell::new(State { used: 0, free: [ptr::null_mut(); CLASSES] }),
            block: UnsafeCell::new([0; BLOCK / STEP]),
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State, *mut u8) -> T) -> T {
        while self.busy.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            std::hint::spin_loop();
        }
        // SAFETY: `busy` was ours alone to set, so no other reference to the state exists until it is cleared.
        let done = work(unsafe { &mut *self.state.get() }, self.block.get().cast());
        self.busy.store(false, Ordering::Release);
        done
    }

    fn owns(&self, piece: *mut u8) -> bool {
        (piece as usize).wrapping_sub(self.block.get() as usize) < BLOCK
    }
}

/// The class of pieces for a layout; none if it is the C library's.
fn class(size: usize, align: usize) -> Option<usize> {
    let length = size.max(STEP).checked_next_power_of_two()?;
    let class = (length / STEP).trailing_zeros() as usize;
    (align <= STEP && class < CLASSES).then_some(class)
}

fn length(class: usize) -> usize {
    STEP << class
}

// SAFETY: a piece is handed out once until it is freed, as long as its class and aligned to `STEP`; freed pieces come
// back by their class, which follows from the layout alone; what is not in the block belongs to `System`.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let piece = class(layout.size(), layout.align()).and_then(|class| {
            self.with(|state, block| {
                let piece = state.free[class];
                if !piece.is_null() {
                    // SAFETY: a freed piece begins with the address of the next, written when it was freed.
                    state.free[class] = unsafe { piece.cast::<*mut u8>().read() };
                    return Some(piece);
                }
                let end = state.used.checked_add(length(class)).filter(|end| *end <= BLOCK)?;
                // SAFETY: `used` does not exceed the length of the block.
                let piece = unsafe { block.add(state.used) };
                state.used = end;
                Some(piece)
            })
        });
        // SAFETY: the caller's promises about the layout are those that `System` asks for.
        piece.unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        match class(layout.size(), layout.align()) {
            Some(class) if self.owns(piece) => self.with(|state, _| {
                // SAFETY: the piece is the caller's no longer, holds at least a word and is aligned for it.
                unsafe { piece.cast::<*mut u8>().write(state.free[class]) };
                state.free[class] = piece;
            }),
            // SAFETY: what lies outside of the block came from `System` with this layout.
            _ => unsafe { System.dealloc(piece, layout) },
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let old = class(layout.size(), layout.align());
        let Some(old) = old.filter(|_| self.owns(piece)) else {
            // SAFETY: what lies outside of the block came from `System` with this layout.
            return unsafe { System.realloc(piece, layout, size) };
        };
        let new = class(size, layout.align());
        if new == Some(old) {
            return piece;
        }
        let grown = new.filter(|new| *new > old).is_some_and(|new| {
            // The last piece handed out can grow where it is.
            self.with(|state, block| {
                let start = piece as usize - block as usize;
                let is_last = start + length(old) == state.used && start + length(new) <= BLOCK;
                if is_last {
                    state.used = start + length(new);
                }
                is_last
            })
        });
        if grown {
            return piece;
        }
        // SAFETY: the new layout has the old alignment and the size that the caller vouches for.
        let moved = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both pieces hold the smaller of the two sizes, and are different ones.
            unsafe {
                ptr::copy_nonoverlapping(piece, moved, layout.size().min(size));
                self.dealloc(piece, layout);
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static ARENA: Arena = Arena::new();

    /// A piece filled with a byte of its own.
    struct Piece(*mut u8, Layout, u8);

    impl Piece {
        fn new(size: usize, align: usize, fill: u8) -> Piece {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: the size is not zero.
            let piece = unsafe { ARENA.alloc(layout) };
            assert!(!piece.is_null() && (piece as usize).is_multiple_of(align));
            // SAFETY: the piece has that size.
            unsafe { piece.write_bytes(fill, size) };
            Piece(piece, layout, fill)
        }

        fn resize(&mut self, size: usize) {
            // SAFETY: the piece came from the arena with this layout, and the size is not zero.
            self.0 = unsafe { ARENA.realloc(self.0, self.1, size) };
            self.check(self.1.size().min(size));
            self.1 = Layout::from_size_align(size, self.1.align()).unwrap();
            // SAFETY: the piece has the new size.
            unsafe { self.0.write_bytes(self.2, size) };
        }

        fn check(&self, size: usize) {
            // SAFETY: the piece has at least that size and was filled.
            let bytes = unsafe { std::slice::from_raw_parts(self.0, size) };
            assert!(bytes.iter().all(|byte| *byte == self.2), "somebody else wrote into a piece");
        }
    }

    impl Drop for Piece {
        fn drop(&mut self) {
            self.check(self.1.size());
            // SAFETY: the piece came from the arena with this layout and is not used afterwards.
            unsafe { ARENA.dealloc(self.0, self.1) };
        }
    }

    #[test]
    fn pieces_never_overlap_whatever_is_asked_by_whomever() {
        let work = |seed: u64| {
            let mut random = seed;
            let mut next = move |bound: usize| {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (random >> 33) as usize % bound
            };
            let mut pieces: Vec<Piece> = Vec::new();
            for n in 0..4000 {
                let size = 1 + next(if n % 50 == 0 { 200_000 } else { 700 });
                match next(4) {
                    0 if !pieces.is_empty() => drop(pieces.swap_remove(next(pieces.len()))),
                    1 if !pieces.is_empty() => {
                        let at = next(pieces.len());
                        pieces[at].resize(size);
                    }
                    _ => pieces.push(Piece::new(size, 1 << next(8), n as u8)),
                }
                if pieces.len() > 300 {
                    pieces.drain(..150);
                }
            }
        };
        std::thread::scope(|scope| (1..5).for_each(|seed| drop(scope.spawn(move || work(seed)))));
    }

    #[test]
    fn sizes_have_classes() {
        assert_eq!(
            (class(0, 1), class(16, 16), class(17, 8), class(32768, 8)),
            (Some(0), Some(0), Some(1), Some(11))
        );
        assert_eq!((class(32769, 8), class(16, 32), class(usize::MAX, 1)), (None, None, None));
    }
}
