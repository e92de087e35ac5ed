//! Images show through the kernel what the same layers show unpacked file by file, and erofs-utils find no fault.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::Mode;
use tar::EntryType;

use super::*;
use crate::image::unpack::tests::{Layer, is_root};
use crate::image::unpack::{Place, Whiteouts, unpack};
use crate::snapshot::image_mounts;

/// Whether images can be mounted here.
fn can_mount() -> bool {
    let can = is_root() && image_mounts::is_supported();
    if !can {
        println!("not run: needs root and EROFS");
    }
    can
}

/// A layer unpacked both ways on top of others.
struct Both {
    place: tempfile::TempDir,
    image: OwnedFd,
}

impl Both {
    fn new(layer: &[u8], lowers: &[&Both]) -> Both {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("root");
        fs::create_dir(&path).unwrap();
        let open = |path: &Path| OwnedFd::from(File::open(path).unwrap());
        let whiteouts = Whiteouts::Overlay { userxattr: false };
        let directories: Vec<OwnedFd> = lowers.iter().map(|lower| open(&lower.root())).collect();
        let images: Vec<OwnedFd> = lowers.iter().map(|lower| lower.image.try_clone().unwrap()).collect();
        let place_of = Place::Directory { root: open(&path), whiteouts, owners: None };
        unpack(layer, place_of).unwrap().finish(&directories).unwrap();
        let file = place.path().join("image");
        make(layer, &file, &images).unwrap();
        let image = image_mounts::root(&file).unwrap();
        Both { place, image }
    }

    fn root(&self) -> PathBuf {
        self.place.path().join("root")
    }

    fn mounted(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.image.as_raw_fd()))
    }

    /// Both trees are the same, also by a loop device, and fsck.erofs agrees.
    fn check(&self) -> BTreeMap<PathBuf, String> {
        let expected = listing(&self.root());
        let found = listing(&self.mounted());
        let image = self.place.path().join("image");
        let by_device = image_mounts::mount_by_loop_device(&image).unwrap();
        let by_device = image_mounts::root_of(&by_device, &image).unwrap();
        assert_eq!(listing(Path::new(&format!("/proc/self/fd/{}", by_device.as_raw_fd()))), found);
        for (path, line) in &expected {
            assert_eq!(found.get(path), Some(line), "{}", path.display());
        }
        assert_eq!(found.len(), expected.len(), "{found:?}");
        fsck(&self.place.path().join("image"));
        expected
    }
}

/// Unpacks a layer as an image.
fn make(layer: &[u8], path: &Path, lowers: &[OwnedFd]) -> Result<()> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    unpack(layer, Place::Image(file.try_clone().unwrap()))?.finish(lowers)?;
    // What we make is what we would take from others.
    super::check(&file)
}

fn fsck(image: &Path) {
    match Command::new("fsck.erofs").arg(image).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && !text.to_lowercase().contains("error:"), "{text}");
        }
        Err(error) => println!("fsck.erofs is not here: {error}"),
    }
}

/// What a tree holds, in words: one line per file.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    fn visit(path: &Path, name: &Path, lines: &mut BTreeMap<PathBuf, String>) {
        let stat = if name.as_os_str().is_empty() { fs::metadata(path) } else { fs::symlink_metadata(path) };
        let stat = stat.unwrap();
        let kind = stat.file_type();
        let content = match () {
            () if kind.is_symlink() => format!("-> {}", fs::read_link(path).unwrap().display()),
            () if kind.is_file() => {
                format!("{:?}", crate::image::unpack::hex(&sum(&fs::read(path).unwrap())))
            }
            () if kind.is_char_device() || kind.is_block_device() => format!("device {}", stat.rdev()),
            () => String::new(),
        };
        let mut xattrs = Vec::new();
        let mut names = vec![0; 4096];
        let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap_or(0);
        for attribute in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let attribute = String::from_utf8_lossy(attribute).into_owned();
            let mut value = vec![0; 1 << 16];
            let length = rustix::fs::lgetxattr(path, attribute.as_str(), value.as_mut_slice()).unwrap();
            xattrs.push(format!("{attribute}={:x?}", &value[..length]));
        }
        xattrs.sort();
        // A whiteout has no metadata that anybody looks at, and a directory no size of its own.
        let is_whiteout = kind.is_char_device() && stat.rdev() == 0;
        let is_implied = kind.is_dir() && stat.mtime() != 1_000_000_000 && stat.mtime() != 1_200_000_000;
        let line = match () {
            () if is_whiteout => "whiteout".to_owned(),
            () => format!(
                "{:o} {}:{} {}.{:09} size {} links {} {content} {xattrs:?}",
                stat.mode(),
                stat.uid(),
                stat.gid(),
                if is_implied { 0 } else { stat.mtime() },
                if is_implied { 0 } else { stat.mtime_nsec() },
                if kind.is_dir() { 0 } else { stat.size() },
                stat.nlink(),
            ),
        };
        lines.insert(name.to_owned(), line);
        if kind.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                let entry = entry.unwrap().file_name();
                visit(&path.join(&entry), &name.join(&entry), lines);
            }
        }
    }
    let mut lines = BTreeMap::new();
    visit(root, Path::new(""), &mut lines);
    lines
}

fn sum(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

/// An access control list: a user beside the owner may read.
fn acl(mask: u8) -> Vec<u8> {
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1_u16, 7_u16, u32::MAX),
        (2, 4, 1234),
        (4, 5, u32::MAX),
        (0x10, mask.into(), u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        list.extend_from_slice(&tag.to_le_bytes());
        list.extend_from_slice(&permissions.to_le_bytes());
        list.extend_from_slice(&id.to_le_bytes());
    }
    list
}

#[test]
fn every_kind_of_entry() {
    if !can_mount() {
        return;
    }
    let device = |header: &mut tar::Header| {
        header.set_device_major(259).unwrap();
        header.set_device_minor(70_000).unwrap();
        header.set_mode(0o660);
    };
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut layer = Layer::new()
        .add(EntryType::Directory, "./", b"", |header| header.set_mode(0o751))
        .directory("d")
        .add(EntryType::Regular, "d/setuid", b"#!", |header| {
            header.set_mode(0o6755);
            header.set_uid(1000);
            header.set_gid(70_000);
        })
        .file("d/empty", b"")
        .link(EntryType::Link, "d/other", "d/setuid")
        .link(EntryType::Link, "third", "d/other")
        .link(EntryType::Symlink, "way", "d")
        .file("way/through", b"in d")
        .link(EntryType::Symlink, "dangling", "../../nowhere")
        .add(EntryType::Char, "char", b"", device)
        .add(EntryType::Block, "block", b"", device)
        .add(EntryType::Fifo, "fifo", b"", |_| {})
        .pax(&[("mtime", b"1000000000.123456789"), ("SCHILY.xattr.user.note", b"a\0b")])
        .file("noted", b"x")
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .file("capable", b"x")
        .pax(&[("SCHILY.xattr.system.posix_acl_access", &acl(7))])
        .add(EntryType::Regular, "listed", b"x", |header| header.set_mode(0o750))
        .pax(&[("SCHILY.xattr.system.posix_acl_default", &acl(5))])
        .directory("heirs")
        .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("SCHILY.xattr.user.big", &[7; 3000])])
        .directory("plain")
        .pax(&[("path", format!("long/{}/{}", "d".repeat(200), "f".repeat(255)).as_bytes())])
        .file("short", b"long")
        .add(EntryType::Directory, "sticky", b"", |header| header.set_mode(0o1777))
        .add(EntryType::Directory, "group", b"", |header| header.set_mode(0o2775))
        .file("group/member", b"x");
    // Data of every length around the edges: none inline, all inline, too long for the inode's block, whole blocks.
    for length in [1, 31, 3071, 3072, 3073, 4031, 4032, 4033, 4095, 4096, 4097, 8191, 8192, 300_001, 1 << 20]
    {
        let data: Vec<u8> = (0..length).map(|n: u32| (n % 251) as u8).collect();
        layer = layer.file(&format!("size-{length}"), &data);
    }
    for n in 0..600 {
        layer = layer.file(&format!("many/{n:04}{}", "n".repeat(n % 70)), n.to_string().as_bytes());
    }
    let layer = layer.end();
    let both = Both::new(&layer, &[]);
    let lines = both.check();
    assert!(lines[Path::new("noted")].contains("user.note"));
    assert!(lines[Path::new("listed")].contains("posix_acl_access"));
    assert!(lines[Path::new("third")].contains("links 3"));
    let again = both.place.path().join("again");
    make(&layer, &again, &[]).unwrap();
    assert!(
        fs::read(&again).unwrap() == fs::read(both.place.path().join("image")).unwrap(),
        "the same bytes"
    );
}

#[test]
fn whiteouts_and_what_takes_the_place_of_something() {
    if !can_mount() {
        return;
    }
    let layer = Layer::new()
        .file("a/.wh.gone", b"")
        .directory("b")
        .file("b/.wh..wh..opq", b"")
        .file("b/new", b"new")
        .file(".wh..wh.plnk/1.2", b"aufs")
        .file(".wh.c", b"")
        .directory("c")
        .file("c/x", b"x")
        .file(".wh.d", b"")
        .file("d/x", b"x")
        .directory("e")
        .file(".wh.e", b"")
        .file("f", b"own")
        .file(".wh.f", b"")
        .file("file-then-directory", b"")
        .directory("file-then-directory")
        .file("file-then-directory/x", b"x")
        .file("directory-then-file/a/b/c", b"")
        .file("directory-then-file", b"now a file")
        .file("twice", b"one, and longer")
        .file("twice", b"two")
        .link(EntryType::Symlink, "link-then-file", "twice")
        .file("link-then-file", b"a file")
        .file("real/file", b"")
        .link(EntryType::Symlink, "link-then-directory", "real")
        .directory("link-then-directory")
        .file("link-then-directory/x", b"x")
        .link(EntryType::Link, "twice", "twice")
        .end();
    let lines = Both::new(&layer, &[]).check();
    assert_eq!(lines[Path::new("a/gone")], "whiteout");
    assert!(lines[Path::new("b")].contains("trusted.overlay.opaque"));
}

#[test]
fn what_lower_layers_tell() {
    if !can_mount() {
        return;
    }
    let lower = Layer::new()
        .add(EntryType::Directory, "etc", b"", |header| {
            header.set_mode(0o2711);
            header.set_uid(7);
            header.set_mtime(1_200_000_000);
        })
        .add(EntryType::Regular, "etc/original", &[b'x'; 9000], |header| header.set_mode(0o4755))
        .end();
    let lower = Both::new(&lower, &[]);
    let upper = Layer::new()
        .file("etc/sub/new", b"")
        .link(EntryType::Link, "other", "etc/original")
        .link(EntryType::Link, "another", "other")
        .link(EntryType::Link, "replaced", "etc/original")
        .file("replaced", b"later")
        .end();
    let upper = Both::new(&upper, &[&lower]);
    let lines = upper.check();
    assert!(lines[Path::new("etc")].starts_with("42711 7:0 1200000000"), "{lines:?}");
    // The last entry's metadata is that of the file under all its names.
    assert!(lines[Path::new("other")].starts_with("100644") && lines[Path::new("other")].contains("links 2"));
    let missing = Layer::new().link(EntryType::Link, "other", "nowhere").end();
    let error = make(&missing, &upper.place.path().join("x"), &[]).unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[test]
fn sparse_files_keep_their_content_and_take_no_room() {
    if !can_mount() {
        return;
    }
    let layer = Layer::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"1099511627776"),
        ])
        .file("x", &{
            let mut data = b"2\n4096\n5\n1099511627771\n5\n".to_vec();
            data.resize(512, 0);
            data.extend_from_slice(b"helloworld");
            data
        })
        .file("after", b"after")
        .end();
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("image");
    make(&layer, &path, &[]).unwrap();
    let root = image_mounts::root(&path).unwrap();
    let open = |name| rustix::fs::openat(&root, name, OFlags::RDONLY, Mode::empty()).map(File::from).unwrap();
    let mut five = [1; 5];
    for (at, expected) in [(0, [0; 5]), (4096, *b"hello"), ((1 << 40) - 5, *b"world")] {
        open("sparse").read_exact_at(&mut five, at).unwrap();
        assert_eq!(five, expected, "{at}");
    }
    assert_eq!(std::io::read_to_string(open("after")).unwrap(), "after");
    assert!(path.metadata().unwrap().blocks() < 200, "the image has holes too");
}

#[test]
fn an_owner_is_told_without_a_mount() {
    let layer = Layer::new().add(EntryType::Directory, "./", b"", |header| {
        header.set_uid(70_000);
        header.set_gid(5);
    });
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("image");
    make(&layer.end(), &path, &[]).unwrap();
    assert_eq!(root_owner(&File::open(&path).unwrap()).unwrap(), (70_000, 5));
}
