//! Sound images pass, ours and those of erofs-utils; what would lead the kernel astray does not.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use rustix::fs::{CWD, Mode};

use super::*;
use crate::image::unpack::tests::Layer;
use crate::image::unpack::{Place, unpack};

/// The image of a layer, as bytes.
pub fn image(layer: Layer) -> Vec<u8> {
    let file = tempfile::tempfile().unwrap();
    let layer = layer.end();
    unpack(layer.as_slice(), Place::Image(file.try_clone().unwrap())).unwrap().finish(&[]).unwrap();
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn verdict(bytes: &[u8]) -> Result<()> {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    check(&file)
}

/// The same bytes with a text replaced wherever it is, and the checksum that goes with them.
fn patched(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let places: Vec<usize> =
        (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + from.len()].copy_from_slice(to);
    }
    summed(bytes)
}

pub fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[SUPERBLOCK + 4..SUPERBLOCK + 8].fill(0);
    let sum = crc32c(&bytes[SUPERBLOCK..BLOCK_LEN]);
    bytes[SUPERBLOCK + 4..SUPERBLOCK + 8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

fn sound() -> Vec<u8> {
    image(
        Layer::new()
            .directory("inner/")
            .file("inner/alpha", &[7; 5000])
            .file("inner/beta", b"short")
            .directory("other/")
            .file("other/gamma", b""),
    )
}

#[test]
fn what_leads_astray_is_refused() {
    let sound = sound();
    verdict(&sound).unwrap();
    let why = |bytes: &[u8]| verdict(bytes).unwrap_err().to_string();
    assert!(why(&sound[..BLOCK_LEN * 2]).contains("shorter than it says"));
    assert!(why(&sound[..100]).contains("cut short"));
    assert!(why(&patched(&sound, b"alpha", b"al/ha")).contains("name \"al/ha\" is none"));
    assert!(why(&patched(&sound, b"alpha", b"zlpha")).contains("out of order"));
    assert!(why(&patched(&sound, b"alpha", b"al\0ha")).contains("is none"));
    let mut unsummed = sound.clone();
    unsummed[SUPERBLOCK + 16] ^= 1;
    assert!(why(&unsummed).contains("checksum"));
    for (at, value, text) in [
        (0, 0, "no superblock"),
        (12, 9, "blocks of another size"),
        (80, 4, "features 0x4"),
        (80, 2, "features 0x2"),
        (8, 0xb, "compatible features 0x8"),
        (86, 1, "in other places"),
        (40, 0xff, "leads outside"),
    ] {
        let mut bytes = sound.clone();
        bytes[SUPERBLOCK + at] = value;
        assert!(why(&summed(bytes)).contains(text), "{text}");
    }
    let mut far = sound.clone();
    far[usize::from(u16_at(&sound[SUPERBLOCK..], 14)) * SLOT as usize + 6] = 1;
    assert!(why(&summed(far)).contains("more than 32 bits"));
    // Where entries of directories are, a number that leads back to the root.
    let root = u64::from(u16_at(&sound[SUPERBLOCK..], 14)).to_le_bytes();
    let names = sound.windows(5).position(|window| window == b"inner").unwrap();
    let block = names / BLOCK_LEN * BLOCK_LEN;
    let start = (block.max(SUPERBLOCK + SUPERBLOCK_LEN)..names).rev();
    // The third entry, after the directory itself and its parent.
    let first = start.clone().find(|at| sound[*at..].starts_with(&root) && sound[*at + 10] == 2).unwrap();
    let mut looped = sound.clone();
    looped[first + DIRENT..first + DIRENT + 8].copy_from_slice(&root);
    let text = why(&summed(looped));
    assert!(text.contains("has two names") || text.contains("leads elsewhere"), "{text}");
}

#[test]
fn attributes_of_overlayfs_are_refused_but_for_opaque_directories() {
    let with = |name: &str| {
        image(Layer::new().pax(&[(&format!("SCHILY.xattr.{name}"), b"target".as_slice())]).file("file", b"x"))
    };
    let sound = with("trusted.overlby.redirect");
    verdict(&sound).unwrap();
    let error = verdict(&patched(&sound, b"overlby", b"overlay")).unwrap_err().to_string();
    assert!(error.contains("\"overlay.redirect\" is overlayfs' own"), "{error}");
    // What is filled with zeros ends nothing.
    let names: [(&str, &[u8]); 2] =
        [("SCHILY.xattr.security.aaaa", b"bbbb"), ("SCHILY.xattr.trusted.overlby.redirect", b"target")];
    let sound =
        patched(&image(Layer::new().pax(&names).file("file", b"x")), b"\x04\x06\x04\0aaaabbbb", &[0; 12]);
    verdict(&sound).unwrap();
    let error = verdict(&patched(&sound, b"overlby", b"overlay")).unwrap_err().to_string();
    assert!(error.contains("\"overlay.redirect\" is overlayfs' own"), "{error}");
    let opaque = image(Layer::new().directory("d/").file("d/.wh..wh..opq", b""));
    verdict(&opaque).unwrap();
    assert!(opaque.windows(15).any(|window| window == b"overlay.opaquey"));
}

#[test]
fn attributes_that_many_share_have_an_end() {
    // A file that is, from its start on, as long an attribute as there can be.
    let mut shared = b"\x01\x01\xff\xffa".to_vec();
    shared.resize(70_000, 7);
    let mut layer = Layer::new().file("shared", &shared);
    for number in 0..70 {
        layer = layer.pax(&[("SCHILY.xattr.user.room", &[0; 1100])]).file(&format!("file{number}"), b"x");
    }
    let mut bytes = image(layer);
    let place = bytes.windows(5).position(|window| window == &shared[..5]).unwrap();
    let list = u32::try_from(place / 4).unwrap().to_le_bytes().repeat(255);
    let head = b"\x04\x01\x4c\x04room";
    let heads = bytes.windows(head.len()).enumerate().filter(|(_, window)| *window == head);
    let heads: Vec<usize> = heads.map(|(at, _)| at).collect();
    assert_eq!(heads.len(), 70);
    for (count, at) in heads.into_iter().enumerate() {
        bytes[at - XATTR_HEADER + 4] = 255;
        bytes[at..at + list.len()].copy_from_slice(&list);
        if count == 1 {
            verdict(&bytes).unwrap();
        }
    }
    let error = verdict(&bytes).unwrap_err();
    assert_eq!(error.kind(), Kind::Unimplemented, "{error}");
    assert!(error.to_string().contains("bytes of attributes"), "{error}");
}

#[test]
fn whatever_one_byte_is_changed_to_there_is_an_end() {
    let mut bytes = sound();
    // Without a checksum, or nothing behind the superblock would ever be looked at.
    bytes[SUPERBLOCK + 8] &= !1;
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&bytes, 0).unwrap();
    check(&file).unwrap();
    let superblock = SUPERBLOCK..SUPERBLOCK + SUPERBLOCK_LEN;
    for (at, byte) in bytes.iter().enumerate().skip(SUPERBLOCK) {
        // Data and what is empty are of no matter.
        if *byte == 7 || (*byte == 0 && !superblock.contains(&at)) {
            continue;
        }
        for value in [0, 0x7f, 0xff, byte ^ 1] {
            file.write_all_at(&[value], at as u64).unwrap();
            let _ = check(&file);
        }
        file.write_all_at(&[*byte], at as u64).unwrap();
    }
    check(&file).unwrap();
}

#[test]
fn images_of_erofs_utils_are_known() {
    let place = tempfile::tempdir().unwrap();
    let tree = place.path().join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    for (name, length) in [("a/empty", 0), ("a/short", 10), ("a/b/long", 70_000), ("a/b/even", 8192)] {
        fs::write(tree.join(name), vec![5; length]).unwrap();
    }
    for number in 0..600 {
        fs::write(tree.join(format!("a/b/with a rather long name {number:04}")), b"x").unwrap();
    }
    symlink("b/long", tree.join("a/link")).unwrap();
    fs::hard_link(tree.join("a/short"), tree.join("a/again")).unwrap();
    rustix::fs::mkfifoat(CWD, tree.join("fifo"), Mode::from_raw_mode(0o600)).unwrap();
    let make = |words: &[&str]| {
        let path = place.path().join("image");
        let made = Command::new("mkfs.erofs").args(words).arg(&path).arg(&tree).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        check(&File::open(path).unwrap())
    };
    make(&[]).unwrap();
    make(&["-Eforce-inode-compact"]).unwrap();
    make(&["-Eforce-inode-extended,noinline_data"]).unwrap();
    for words in [&["-zlz4"][..], &["--chunksize=4096"]] {
        assert_eq!(make(words).unwrap_err().kind(), Kind::Unimplemented, "{words:?}");
    }
}
