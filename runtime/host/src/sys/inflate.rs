//! The inflate of ISA-L: streams of RFC 1951, at about half again the speed of others (docs/decisions/0512-inflate.md).
//!
//! Headers and sums of what is around a stream are the caller's.

use std::ffi::{c_int, c_uint};
use std::io;
use std::ptr::NonNull;

/// ISA-L's `struct inflate_state`, which only its own functions look into.
#[repr(C)]
struct State {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn orlop_inflate_new() -> *mut State;
    fn orlop_inflate_free(state: *mut State);
    fn orlop_inflate_reset(state: *mut State);
    fn orlop_inflate(
        state: *mut State,
        input: *const u8,
        input_length: *mut u32,
        output: *mut u8,
        output_length: *mut u32,
    ) -> c_int;
    fn orlop_inflate_behind(state: *const State, bytes: *mut [u8; 8]) -> c_uint;
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How many bytes of the input were read.
    pub read: usize,
    /// How many bytes of the output were written.
    pub written: usize,
    /// Whether the stream ended.
    pub is_end: bool,
}

/// A stream that is inflated. Takes some 90 KiB.
#[derive(Debug)]
pub struct Inflate(NonNull<State>);

// SAFETY: the state is on the heap, belongs to this value alone and refers to nothing of a thread's: between calls it holds no pointer
// that is used again (each call sets input and output anew).
unsafe impl Send for Inflate {}

impl Inflate {
    /// One at the start of a stream.
    pub fn new() -> Inflate {
        // SAFETY: takes nothing; the answer is checked.
        let state = unsafe { orlop_inflate_new() };
        Inflate(NonNull::new(state).expect("memory for the state of a stream"))
    }

    /// Goes back to the start of a stream.
    pub fn reset(&mut self) {
        // SAFETY: the state is a valid one, and nobody else has it.
        unsafe { orlop_inflate_reset(self.0.as_ptr()) };
    }

    /// Goes on: reads input and writes output until one of them is used up or the stream ends. Without input it writes what
    /// it had no room for. After the end, and after an error, [`Inflate::reset`] comes before the next.
    ///
    /// # Errors
    ///
    /// `InvalidData` where the stream is damaged.
    pub fn step(&mut self, input: &[u8], output: &mut [u8]) -> io::Result<Step> {
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let (mut read, mut written) = (length(input), length(output));
        let (all, room) = (read, written);
        // SAFETY: the state is a valid one, and nobody else has it. Both pointers are valid for the lengths beside them, which
        // are at most those of the slices, for the call, after which the library forgets them. It reads no more than the input's
        // length and writes no more than the output's; `damaged_streams_stay_within_their_pieces` looks for what would go beyond.
        let result = unsafe {
            let (input, output) = (input.as_ptr(), output.as_mut_ptr());
            orlop_inflate(self.0.as_ptr(), input, &raw mut read, output, &raw mut written)
        };
        // After an error the lengths mean nothing.
        if result < 0 || read > all || written > room {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "corrupt deflate stream"));
        }
        Ok(Step { read: read as usize, written: written as usize, is_end: result == 1 })
    }

    /// The bytes behind a stream that has ended that were read already, since some are read ahead: at most 8.
    pub fn behind(&self) -> ([u8; 8], usize) {
        let mut bytes = [0; 8];
        // SAFETY: the state is a valid one, and the array has room for the 8 bytes that are written at most.
        let length = unsafe { orlop_inflate_behind(self.0.as_ptr(), &raw mut bytes) };
        (bytes, length as usize)
    }
}

impl Default for Inflate {
    fn default() -> Self {
        Inflate::new()
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the state was made by the library's allocator, and nobody has it after this value.
        unsafe { orlop_inflate_free(self.0.as_ptr()) };
    }
}

#[cfg(test)]
mod fuzz {
    use std::io::Write;
    use std::ptr;

    use flate2::{Compression, Decompress, FlushDecompress, Status};

    use super::*;

    /// Streams of an ordinary run; `ORLOP_FUZZ_RUNS` says how many otherwise.
    const RUNS: u64 = 1000;
    /// Pieces of this size at most, in bytes: whole pages.
    const PIECE: usize = 8192;

    /// Memory that ends where nobody may touch anything.
    struct Fenced(*mut u8);

    impl Fenced {
        fn new() -> Fenced {
            let (length, end) = (PIECE + 4096, PIECE);
            let (kind, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            // SAFETY: a new mapping at an address that the kernel chooses.
            let start = unsafe { libc::mmap(ptr::null_mut(), length, kind, flags, -1, 0) };
            assert_ne!(start, libc::MAP_FAILED);
            // SAFETY: the last page of what was just mapped, which nobody has a reference to.
            let fenced = unsafe { libc::mprotect(start.byte_add(end), length - end, libc::PROT_NONE) };
            assert_eq!(fenced, 0);
            Fenced(start.cast())
        }

        /// The last so many bytes before the fence.
        fn last(&mut self, length: usize) -> &mut [u8] {
            assert!(length <= PIECE);
            // SAFETY: the bytes are mapped, initialised by the kernel and borrowed from this value alone.
            unsafe { std::slice::from_raw_parts_mut(self.0.add(PIECE - length), length) }
        }
    }

    impl Drop for Fenced {
        fn drop(&mut self) {
            // SAFETY: what `new` mapped; no slice of it outlives the value.
            unsafe { libc::munmap(self.0.cast(), PIECE + 4096) };
        }
    }

    /// Numbers that look like chance (xorshift*).
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16) as usize % limit.max(1)
        }
    }

    fn stream(chance: &mut Chance) -> Vec<u8> {
        let mut text = Vec::new();
        for _ in 0..chance.below(200) {
            match chance.below(2) {
                0 => text.extend((0..chance.below(60)).map(|_| chance.below(256) as u8)),
                _ => {
                    let from = text.len().saturating_sub(chance.below(20_000));
                    text.extend_from_within(from..(from + chance.below(300)).min(text.len()));
                }
            }
        }
        let level = Compression::new(chance.below(10) as u32);
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
        encoder.write_all(&text).unwrap();
        let mut stream = encoder.finish().unwrap();
        for _ in 0..chance.below(4) {
            let at = chance.below(stream.len());
            match chance.below(3) {
                0 => stream[at] ^= 1 << chance.below(8),
                1 => stream.truncate(at.max(1)),
                _ => stream[at] = chance.below(256) as u8,
            }
        }
        stream
    }

    /// What zlib makes of a stream: all of it and how much of it that took, or why it is refused; nothing where it is cut.
    fn by_zlib(stream: &[u8]) -> Option<Result<(Vec<u8>, usize), String>> {
        let mut decoder = Decompress::new(false);
        let mut out = Vec::with_capacity(1 << 20);
        match decoder.decompress_vec(stream, &mut out, FlushDecompress::Finish) {
            Ok(Status::StreamEnd) => Some(Ok((out, decoder.total_in() as usize))),
            Ok(_) => None,
            Err(error) => Some(Err(error.message().unwrap_or_default().to_owned())),
        }
    }

    #[test]
    fn damaged_streams_stay_within_their_pieces() {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let (runs, seed) =
            (number("ORLOP_FUZZ_RUNS").unwrap_or(RUNS), number("ORLOP_FUZZ_SEED").unwrap_or(1));
        let (mut input, mut output, mut inflate) = (Fenced::new(), Fenced::new(), Inflate::new());
        let mut whole = 0;
        for run in 0..runs {
            let mut chance = Chance(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(2 * run) | 1);
            let stream = stream(&mut chance);
            let (mut rest, mut found) = (&stream[..], Vec::new());
            inflate.reset();
            let is_whole = loop {
                let piece = rest.len().min(1 + chance.below(PIECE));
                let piece_in = input.last(piece);
                piece_in.copy_from_slice(&rest[..piece]);
                let room = output.last(1 + chance.below(PIECE));
                let Ok(step) = inflate.step(piece_in, room) else { break false };
                rest = &rest[step.read..];
                found.extend_from_slice(&room[..step.written]);
                if step.is_end {
                    break true;
                }
                if step.read == 0 && step.written == 0 {
                    break false;
                }
            };
            if !is_whole {
                continue;
            }
            whole += 1;
            match by_zlib(&stream) {
                Some(Ok((text, length))) => {
                    assert!(text == found, "seed {seed}, run {run}");
                    let (behind, ahead) = inflate.behind();
                    let used = stream.len() - rest.len() - ahead;
                    assert_eq!(used, length, "seed {seed}, run {run}");
                    assert_eq!(behind[..ahead], stream[used..used + ahead], "seed {seed}, run {run}");
                }
                // Codes that leave words without a meaning, of which none is used.
                Some(Err(why))
                    if ["invalid literal/lengths set", "invalid distances set"].contains(&&*why) => {}
                refused => panic!("seed {seed}, run {run}: zlib: {refused:?}"),
            }
        }
        println!("{whole} of {runs} were whole");
        assert!(whole * 3 > runs);
    }
}
