//! Mutated images: whatever the bytes are, the check comes to an end with an error of ours that says what was wrong, or the
//! image passes; and what passes the kernel reads from end to end without a fault, and finds none of overlayfs' marks in it.
//!
//! Every input is made from a number, which a failure prints (`ORLOP_FUZZ_SEED`); `make soak` tries a million
//! (`ORLOP_FUZZ_RUNS`).

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::tests::{image, summed};
use super::*;
use crate::chance::Chance;
use crate::image::unpack::tests::{Layer, is_root};
use crate::snapshot::image_mounts;

/// Images of an ordinary test run; the kernel reads all of them that pass, and of further ones every sixteenth.
const SAMPLE: u64 = 3000;
/// What data is filled with, so that hardly any mutation is wasted on it.
const DATA: u8 = 7;

/// A layer with everything that an image of ours can have.
fn ours() -> Vec<u8> {
    let mut layer = Layer::new()
        .pax(&[("SCHILY.xattr.user.note", b"noted"), ("SCHILY.xattr.trusted.note", b"also")])
        .directory("inner/")
        .file("inner/long", &[DATA; 9000])
        .pax(&[("SCHILY.xattr.security.note", b"noted")])
        .file("inner/short", &[DATA; 100])
        .file("inner/empty", b"")
        .file("inner/.wh.gone", b"")
        .directory("opaque/")
        .file("opaque/.wh..wh..opq", b"")
        .link(tar::EntryType::Symlink, "way", "inner/short")
        .link(tar::EntryType::Link, "again", "inner/long")
        .add(tar::EntryType::Fifo, "fifo", b"", |_| {});
    for number in 0..90 {
        layer = layer.file(&format!("many/a name of some length, {number:050}"), b"");
    }
    image(layer)
}

/// The same kind of thing as erofs-utils make it: short inodes, and attributes that are shared.
fn theirs(words: &[&str]) -> Vec<u8> {
    let place = tempfile::tempdir().unwrap();
    let tree = place.path().join("tree");
    fs::create_dir_all(tree.join("inner")).unwrap();
    for (name, length) in [("inner/long", 9000), ("inner/short", 100), ("inner/empty", 0), ("other", 4096)] {
        let path = tree.join(name);
        fs::write(&path, vec![DATA; length]).unwrap();
        rustix::fs::setxattr(&path, "user.note", b"shared", rustix::fs::XattrFlags::empty()).unwrap();
    }
    for number in 0..90 {
        fs::write(tree.join(format!("inner/a name of some length, {number:050}")), b"").unwrap();
    }
    symlink("inner/short", tree.join("way")).unwrap();
    let path = place.path().join("image");
    let made = Command::new("mkfs.erofs").args(words).arg(&path).arg(&tree).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::read(path).unwrap()
}

/// A sound image, and where in it something is said.
struct Sound {
    bytes: Vec<u8>,
    places: Vec<usize>,
}

impl Sound {
    fn new(bytes: Vec<u8>) -> Sound {
        let superblock = SUPERBLOCK..SUPERBLOCK + SUPERBLOCK_LEN;
        let says = |at: &usize| superblock.contains(at) || !matches!(bytes[*at], 0 | DATA);
        let places = (SUPERBLOCK..bytes.len()).filter(says).collect();
        Sound { bytes, places }
    }

    /// The same with some of it changed.
    fn mutated(&self, chance: &mut Chance) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for _ in 0..=chance.below(3) {
            let at = *chance.pick(&self.places);
            // Numbers and what they are gathered in begin at multiples of four.
            let word = at / 4 * 4;
            match chance.below(6) {
                0 => bytes[at] ^= 1 << chance.below(8),
                1 => bytes[at] = *chance.pick(&[0, 1, 0x7f, 0x80, 0xff, b'/']),
                2 => bytes[at] = bytes[at].wrapping_add(*chance.pick(&[1, 2, 0xff, 0xfe])),
                3 => bytes[word..word + 4].copy_from_slice(&(chance.number() as u32).to_le_bytes()),
                // An entry, an attribute or an inode comes to lie elsewhere.
                4 => {
                    let from = *chance.pick(&self.places) / 4 * 4;
                    let length = *chance.pick(&[4, 8, 12, 32, 64]);
                    let length = length.min(bytes.len() - from.max(word));
                    bytes.copy_within(from..from + length, word);
                }
                _ if chance.below(8) == 0 => {
                    let length = bytes.len() - chance.below(bytes.len());
                    bytes.truncate(length.max(BLOCK_LEN));
                    return summed(bytes);
                }
                _ => bytes[word..word + 4].fill(0),
            }
        }
        // An attacker knows how to sum.
        if chance.below(8) == 0 { bytes } else { summed(bytes) }
    }
}

/// What the kernel answers, which is no error.
fn sound<T>(result: std::result::Result<T, impl Into<std::io::Error>>, path: &Path) -> T {
    result.unwrap_or_else(|error| panic!("{}: {}", path.display(), error.into()))
}

/// Has the kernel read all that is in a directory.
fn read_all(directory: &Path) {
    read_attributes(directory);
    for entry in sound(fs::read_dir(directory), directory) {
        let path = sound(entry, directory).path();
        let stat = sound(fs::symlink_metadata(&path), &path);
        if stat.is_dir() {
            read_all(&path);
            continue;
        }
        read_attributes(&path);
        match () {
            () if stat.is_symlink() => drop(sound(fs::read_link(&path), &path)),
            // No file is longer than its image.
            () if stat.is_file() => drop(sound(fs::read(&path), &path)),
            () => {}
        }
    }
}

fn read_attributes(path: &Path) {
    use rustix::io::Errno;
    let mut list = vec![0; 1 << 16];
    let length = sound(rustix::fs::llistxattr(path, list.as_mut_slice()), path);
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 1 << 16];
        let shown = String::from_utf8_lossy(name).into_owned();
        let rest = name.splitn(2, |byte| *byte == b'.').nth(1).unwrap_or_default();
        match rustix::fs::lgetxattr(path, shown.as_str(), value.as_mut_slice()) {
            Ok(length) if rest.starts_with(OVERLAY) => {
                assert!(ALLOWED.contains(&(rest, &value[..length])), "{}: {shown}", path.display());
            }
            // What is no text is asked for by another name; others look into a value, and find it wrong.
            Ok(_) | Err(Errno::NODATA | Errno::INVAL | Errno::OPNOTSUPP) => {}
            Err(error) => panic!("{}: {shown}: {error}", path.display()),
        }
    }
}

#[test]
fn what_passes_is_sound_to_the_kernel() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, runs) = match number("ORLOP_FUZZ_SEED") {
        Some(seed) => (seed, 1),
        None => (0, number("ORLOP_FUZZ_RUNS").unwrap_or(SAMPLE)),
    };
    let can_mount = is_root() && image_mounts::is_supported();
    let all =
        [ours(), theirs(&["-x1"]), theirs(&["-x1", "-Eforce-inode-extended,noinline_data"])].map(Sound::new);
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("image");
    let (mut passed, mut mounted) = (0, 0);
    for seed in first..first + runs {
        let mut chance = Chance::of(1, seed);
        let bytes = chance.pick(&all).mutated(&mut chance);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let _shown = Shown(seed);
        match check(&file) {
            Err(error) => {
                assert!(matches!(error.kind(), Kind::InvalidArgument | Kind::Unimplemented), "{error}");
                assert!(error.to_string().len() < 2000, "{error}");
            }
            Ok(()) => {
                passed += 1;
                if can_mount && (seed < SAMPLE || seed % 16 == 0 || runs == 1) {
                    mounted += 1;
                    let root = image_mounts::root(&path).unwrap();
                    read_all(&PathBuf::from(format!("/proc/self/fd/{}/.", root.as_raw_fd())));
                }
            }
        }
    }
    println!("erofs: {runs} images, {passed} passed, {mounted} were read by the kernel");
    assert!(runs < SAMPLE || passed > runs / 50, "hardly any passes: {passed} of {runs}");
}

/// Prints the number of an image when it is dropped by a panic.
struct Shown(u64);

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("ORLOP_FUZZ_SEED={} makes this image again", self.0);
        }
    }
}
