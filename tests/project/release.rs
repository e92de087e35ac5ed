//! What the release binaries are: static where they should be, and not larger than they need to be.

use std::fs;
use std::path::Path;

use orlop_tests::binaries;

/// Program header types of elf(5).
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;

/// The program header types of a 64-bit little-endian ELF file.
fn program_headers(path: &Path) -> Vec<u32> {
    let bytes = fs::read(path).expect("reading a binary");
    assert_eq!(&bytes[..6], b"\x7fELF\x02\x01", "{} is no 64-bit little-endian ELF file", path.display());
    let number = |at: usize, size: usize| {
        bytes[at..at + size].iter().rev().fold(0usize, |sum, byte| sum << 8 | *byte as usize)
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).map(|n| number(table + n * size, 4) as u32).collect()
}

/// Static means: no dynamic linker is asked for. A static PIE still has a dynamic section, for its own relocations.
fn is_static(path: &Path) -> bool {
    !program_headers(path).contains(&PT_INTERP)
}

#[test]
fn runtime_and_shim_are_static_where_the_toolchain_has_musl() {
    for path in [binaries::orlop(), binaries::shim()] {
        let musl = path.to_string_lossy().contains("-linux-musl/");
        assert!(!musl || is_static(&path), "{} asks for a dynamic linker", path.display());
    }
}

#[test]
fn a_dynamic_program_is_told_from_a_static_one() {
    let own = std::env::current_exe().expect("a test is a program");
    assert!(!is_static(&own) && program_headers(&own).contains(&PT_DYNAMIC));
}

#[test]
fn binaries_stay_within_their_size() {
    const MIB: u64 = 1 << 20;
    // The sizes measured when these bounds were set, and about a tenth more: the shim with what it does to orlop's containers
    // by itself (what of it is resident has a bound of its own), orlopd with the Docker Engine API.
    for (path, limit) in [
        (binaries::orlop(), 2 * MIB + MIB / 2),
        (binaries::shim(), MIB + MIB / 4),
        (binaries::orlopd(), 20 * MIB),
        (binaries::orlopctl(), 5 * MIB + MIB / 2),
    ] {
        if binaries::is_release(&path) {
            let size = fs::metadata(&path).expect("a binary has a size").len();
            assert!(size <= limit, "{} has {size} bytes, more than {limit}", path.display());
        }
    }
}
