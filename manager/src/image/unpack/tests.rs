//! Layers that are as they should be, and layers that are not.
//!
//! One file although long: each case is a few lines over the same builder of layers, and together they are the list of what an
//! unpacker must stand.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tar::{EntryType, Header};

use super::*;

/// A layer being made, block by block.
#[derive(Clone, Default)]
pub struct Layer(Vec<u8>);

impl Layer {
    pub fn new() -> Self {
        Layer::default()
    }

    /// Adds an entry whose header is changed at will before its checksum is made.
    pub fn add(mut self, kind: EntryType, name: &str, data: &[u8], change: impl FnOnce(&mut Header)) -> Self {
        let mut header = Header::new_gnu();
        let bytes = name.as_bytes();
        header.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
        header.set_entry_type(kind);
        header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        change(&mut header);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.add(EntryType::Regular, name, data, |_| {})
    }

    pub fn directory(self, name: &str) -> Self {
        self.add(EntryType::Directory, name, b"", |_| {})
    }

    pub fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        self.add(kind, name, b"", |header| header.set_link_name_literal(target).unwrap())
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let mut length = body + 1;
            while length.to_string().len() + body != length {
                length += 1;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.add(EntryType::XHeader, "pax", &data, |_| {})
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A place outside of which nothing may change: the root is `root` within it.
pub struct Place {
    place: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("root")).unwrap();
        fs::create_dir(place.path().join("outside")).unwrap();
        fs::write(place.path().join("outside/secret"), "untouched").unwrap();
        Place { place }
    }

    fn root(&self) -> std::path::PathBuf {
        self.place.path().join("root")
    }

    pub fn apply_with(&self, layer: &[u8], whiteouts: Whiteouts, lowers: &[&Path]) -> Result<Applied> {
        let open = |path: &Path| OwnedFd::from(fs::File::open(path).unwrap());
        let lowers = lowers.iter().map(|path| open(path)).collect();
        let result = apply(layer, Target { root: open(&self.root()), lowers, whiteouts });
        let outside: Vec<_> = fs::read_dir(self.place.path().join("outside")).unwrap().collect();
        assert_eq!(outside.len(), 1);
        assert_eq!(fs::read(self.place.path().join("outside/secret")).unwrap(), b"untouched");
        assert_eq!(fs::read_dir(self.place.path()).unwrap().count(), 2);
        result
    }

    fn apply(&self, layer: &[u8]) -> Result<Applied> {
        self.apply_with(layer, Whiteouts::Overlay { userxattr: false }, &[])
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn stat(&self, name: &str) -> fs::Metadata {
        fs::symlink_metadata(self.root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn exists(&self, name: &str) -> bool {
        fs::symlink_metadata(self.root().join(name)).is_ok()
    }

    fn xattr(&self, name: &str, attribute: &str) -> Option<Vec<u8>> {
        let mut value = vec![0; 1024];
        let length = rustix::fs::lgetxattr(self.root().join(name), attribute, value.as_mut_slice()).ok()?;
        value.truncate(length);
        Some(value)
    }
}

/// Ownership, devices and trusted attributes are root's business; without root there is nothing to see.
pub fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        println!("not run: needs root");
    }
    is_root
}

#[test]
fn writes_every_kind_of_entry() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let layer = Layer::new()
        .directory("dir/")
        .add(EntryType::Regular, "dir/file", b"content", |header| {
            header.set_mode(0o4751);
            header.set_uid(1000);
            header.set_gid(3_000_000_000);
            header.set_mtime(1_234_567_890);
        })
        .add(EntryType::Link, "dir/hard", b"", |header| {
            header.set_link_name_literal("dir/file").unwrap();
            header.set_mode(0o4751);
            header.set_uid(1000);
            header.set_gid(3_000_000_000);
            header.set_mtime(1_234_567_890);
        })
        .link(EntryType::Symlink, "dir/soft", "../../etc/passwd")
        .add(EntryType::Fifo, "dir/fifo", b"", |header| header.set_mode(0o622))
        .add(EntryType::Char, "dir/null", b"", |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
            header.set_mode(0o666);
        })
        .add(EntryType::Block, "dir/disk", b"", |header| header.set_device_major(259).unwrap())
        .add(EntryType::Directory, "dir", b"", |header| {
            header.set_mode(0o1777);
            header.set_mtime(1_111_111_111);
        })
        .end();
    let applied = place.apply(&layer).unwrap();
    assert_eq!(applied.size, layer.len() as u64);
    assert_eq!(applied.diff_id, format!("sha256:{}", hex(&Sha256::digest(&layer))));
    let file = place.stat("dir/file");
    assert_eq!((file.mode() & 0o7777, file.uid(), file.gid()), (0o4751, 1000, 3_000_000_000));
    assert_eq!((file.mtime(), file.nlink(), file.size()), (1_234_567_890, 2, 7));
    assert_eq!(file.ino(), place.stat("dir/hard").ino());
    assert_eq!(fs::read_link(place.root().join("dir/soft")).unwrap(), Path::new("../../etc/passwd"));
    assert_eq!(place.stat("dir/soft").mtime(), 1_000_000_000);
    assert!(place.stat("dir/fifo").file_type().is_fifo());
    assert_eq!(place.stat("dir/fifo").permissions().mode() & 0o7777, 0o622);
    let null = place.stat("dir/null");
    assert!(null.file_type().is_char_device());
    assert_eq!((null.rdev(), null.mode() & 0o7777), (rustix::fs::makedev(1, 3), 0o666));
    assert!(place.stat("dir/disk").file_type().is_block_device());
    let directory = place.stat("dir");
    assert_eq!((directory.mode() & 0o7777, directory.mtime()), (0o1777, 1_111_111_111));
}

#[test]
fn reads_extended_headers() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let long_target = "t".repeat(300);
    let layer = Layer::new()
        .pax(&[
            ("path", "päx/name".as_bytes()),
            ("mtime", b"1700000000.987654321"),
            ("uid", b"70000"),
            ("SCHILY.xattr.user.note", b"a\0b"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/elsewhere"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ])
        .file("short", b"pax")
        .add(EntryType::GNULongName, "././@LongLink", format!("{long}\0").as_bytes(), |_| {})
        .file("short", b"gnu")
        .add(EntryType::GNULongLink, "././@LongLink", format!("{long_target}\0").as_bytes(), |_| {})
        .link(EntryType::Symlink, "soft", "short")
        .pax(&[("comment", b"global")])
        .file("plain", b"plain")
        .end();
    place.apply(&layer).unwrap();
    assert_eq!(place.read("päx/name"), "pax");
    let stat = place.stat("päx/name");
    assert_eq!((stat.mtime(), stat.mtime_nsec(), stat.uid()), (1_700_000_000, 987_654_321, 70000));
    assert_eq!(place.xattr("päx/name", "user.note"), Some(b"a\0b".to_vec()));
    assert_eq!(place.xattr("päx/name", "trusted.overlay.redirect"), None);
    assert_eq!(place.xattr("päx/name", "user.overlay.opaque"), None);
    assert_eq!(place.read(&long), "gnu");
    assert_eq!(fs::read_link(place.root().join("soft")).unwrap(), Path::new(&long_target));
    assert_eq!(place.read("plain"), "plain");
}

#[test]
fn reads_base_256_numbers_and_negative_times() {
    let place = Place::new();
    let layer = Layer::new()
        .add(EntryType::Regular, "big", b"x", |header| {
            let mtime = &mut header.as_old_mut().mtime;
            *mtime = [0; 12];
            mtime[0] = 0x80;
            mtime[4..].copy_from_slice(&10_000_000_000_i64.to_be_bytes());
        })
        .add(EntryType::Regular, "old", b"", |header| header.as_old_mut().mtime = [0xff; 12])
        .end();
    if is_root() {
        place.apply(&layer).unwrap();
        assert_eq!(place.stat("old").mtime(), 0);
    }
}

#[test]
fn keeps_holes() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let mut data = b"2\n0\n3\n1048576\n4\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"abcdefg");
    let old_gnu = |header: &mut Header| {
        let gnu = header.as_gnu_mut().unwrap();
        gnu.sparse[0].set_offset(0);
        gnu.sparse[0].set_length(3);
        gnu.sparse[1].set_offset(1 << 20);
        gnu.sparse[1].set_length(4);
        gnu.set_real_size((1 << 20) + 4);
    };
    let layer = Layer::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"one"),
            ("GNU.sparse.realsize", b"1048580"),
        ])
        .file("GNUSparseFile.0/one", &data)
        .pax(&[("GNU.sparse.map", b"0,3,1048576,4"), ("GNU.sparse.size", b"1048580")])
        .file("zero", b"abcdefg")
        .add(EntryType::GNUSparse, "gnu", b"abcdefg", old_gnu)
        .file("after", b"after")
        .end();
    place.apply(&layer).unwrap();
    for name in ["one", "zero", "gnu"] {
        let bytes = fs::read(place.root().join(name)).unwrap();
        assert_eq!(
            (bytes.len(), &bytes[..4], &bytes[1 << 20..]),
            ((1 << 20) + 4, &b"abc\0"[..], &b"defg"[..]),
            "{name}"
        );
        assert!(place.stat(name).blocks() < 64, "{name}");
    }
    assert_eq!(place.read("after"), "after");
}

#[test]
fn refuses_wrong_sparse_maps() {
    for map in ["0,3", "0,3,2,4", "0,7,1,0", "1048580,7", "18446744073709551615,7", "0,18446744073709551615"]
    {
        let place = Place::new();
        let records: [(&str, &[u8]); 2] =
            [("GNU.sparse.map", map.as_bytes()), ("GNU.sparse.size", b"1048580")];
        assert!(place.apply(&Layer::new().pax(&records).file("f", b"abcdefg").end()).is_err(), "{map}");
    }
}

#[test]
fn names_cannot_leave_the_root() {
    if !is_root() {
        return;
    }
    for name in
        ["../outside/new", "/../outside/new", "a/../../outside/new", "/outside/new", "./../../../outside/new"]
    {
        let place = Place::new();
        place.apply(&Layer::new().file(name, b"x").end()).unwrap();
        assert_eq!(place.read("outside/new"), "x", "{name}");
    }
}

#[test]
fn links_cannot_lead_out_of_the_root() {
    if !is_root() {
        return;
    }
    let outside = |place: &Place| place.place.path().join("outside").to_str().unwrap().to_owned();
    for target in ["../outside", "../../../../outside", "absolute", "/proc/self/cwd", "/proc/self/root"] {
        let place = Place::new();
        let target = if target == "absolute" { outside(&place) } else { target.to_owned() };
        // Written through a symbolic link, and over one.
        let layer = Layer::new()
            .link(EntryType::Symlink, "way", &target)
            .file("way/secret", b"changed")
            .link(EntryType::Symlink, "direct", &format!("{target}/secret"))
            .file("direct", b"changed")
            .end();
        place.apply(&layer).unwrap();
        assert_eq!(place.read("direct"), "changed");
        assert!(place.stat("direct").is_file());
        assert!(place.stat("way").is_symlink());
    }
}

#[test]
fn hard_links_cannot_lead_out_of_the_root() {
    let place = Place::new();
    symlink(place.place.path().join("outside"), place.root().join("way")).unwrap();
    for target in ["../outside/secret", "/../outside/secret", "way/secret", "missing", "", "/", ".."] {
        let error =
            place.apply(&Layer::new().link(EntryType::Link, "stolen", target).end()).expect_err(target);
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        assert!(error.to_string().contains("stolen"), "{error}");
    }
    // A link to a symbolic link is a link to the link, not to what it means.
    let layer = Layer::new()
        .link(EntryType::Symlink, "soft", "../outside/secret")
        .link(EntryType::Link, "hard", "soft")
        .file("hard", b"changed")
        .end();
    if is_root() {
        place.apply(&layer).unwrap();
        assert!(place.stat("soft").is_symlink());
        assert_eq!(place.read("hard"), "changed");
    }
}

#[test]
fn whiteouts_cannot_reach_parents() {
    for whiteouts in [Whiteouts::Overlay { userxattr: false }, Whiteouts::Delete] {
        for name in [".wh.", ".wh..", ".wh...", "a/.wh..", "a/.wh..."] {
            let place = Place::new();
            let error =
                place.apply_with(&Layer::new().file(name, b"").end(), whiteouts, &[]).expect_err(name);
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(place.root().exists());
        }
        let place = Place::new();
        symlink("../outside", place.root().join("way")).unwrap();
        let layer = Layer::new().file("way/.wh.secret", b"").file("way/.wh..wh..opq", b"").end();
        if is_root() {
            place.apply_with(&layer, whiteouts, &[]).unwrap();
        }
    }
}

#[test]
fn whiteouts_become_overlay_marks() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let layer = Layer::new()
        .file("a/.wh.gone", b"")
        .directory("b")
        .file("b/.wh..wh..opq", b"")
        .file("b/new", b"new")
        .file(".wh..wh.plnk/1.2", b"aufs")
        .file(".wh..wh.aufs", b"")
        // Hidden and made anew, in both orders.
        .file(".wh.c", b"")
        .directory("c")
        .file("c/x", b"x")
        .file(".wh.d", b"")
        .file("d/x", b"x")
        .directory("e")
        .file(".wh.e", b"")
        .file("f", b"own")
        .file(".wh.f", b"")
        .end();
    place.apply(&layer).unwrap();
    let gone = place.stat("a/gone");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for opaque in ["b", "c", "d", "e"] {
        assert_eq!(place.xattr(opaque, "trusted.overlay.opaque"), Some(b"y".to_vec()), "{opaque}");
    }
    assert_eq!(place.xattr("a", "trusted.overlay.opaque"), None);
    assert_eq!(place.read("b/new"), "new");
    assert_eq!(place.read("f"), "own");
    assert!(!place.exists(".wh..wh.aufs") && !place.exists(".wh..wh.plnk"));
    let place = Place::new();
    let user = Whiteouts::Overlay { userxattr: true };
    place.apply_with(&Layer::new().file("b/.wh..wh..opq", b"").end(), user, &[]).unwrap();
    assert_eq!(place.xattr("b", "user.overlay.opaque"), Some(b"y".to_vec()));
}

#[test]
fn whiteouts_delete_what_lower_layers_had() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let lower = Layer::new()
        .file("a/gone", b"")
        .file("a/kept", b"")
        .file("b/gone/deep/er", b"")
        .file("b/kept", b"")
        .file("c/gone", b"")
        .file("d", b"")
        .end();
    place.apply_with(&lower, Whiteouts::Delete, &[]).unwrap();
    let upper = Layer::new()
        .file("a/.wh.gone", b"")
        .file("b/new/file", b"new")
        .file("b/.wh..wh..opq", b"")
        .file("c/new", b"new")
        .file(".wh.c", b"")
        .file("d", b"new")
        .file(".wh.d", b"")
        .file(".wh.never", b"")
        .file("nowhere/.wh.x", b"")
        .end();
    place.apply_with(&upper, Whiteouts::Delete, &[]).unwrap();
    for name in ["a/gone", "b/gone", "b/kept", "c/gone", "nowhere"] {
        assert!(!place.exists(name), "{name}");
    }
    for name in ["a/kept", "b/new/file", "c/new", "d"] {
        assert!(place.exists(name), "{name}");
    }
}

#[test]
fn replaces_what_stands_in_the_way() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let layer = Layer::new()
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
    place.apply(&layer).unwrap();
    assert_eq!(place.read("file-then-directory/x"), "x");
    assert_eq!(place.read("directory-then-file"), "now a file");
    assert_eq!(place.read("twice"), "two");
    assert_eq!(place.read("link-then-file"), "a file");
    assert!(place.stat("link-then-directory").is_dir());
    assert!(!place.exists("real/x"));
}

#[test]
fn takes_parents_and_link_targets_from_lower_layers() {
    if !is_root() {
        return;
    }
    let lower = Place::new();
    let layer = Layer::new()
        .add(EntryType::Directory, "etc", b"", |header| {
            header.set_mode(0o2711);
            header.set_uid(7);
            header.set_mtime(1_200_000_000);
        })
        .add(EntryType::Regular, "etc/original", b"text", |header| header.set_mode(0o4755))
        .end();
    lower.apply(&layer).unwrap();
    let place = Place::new();
    let layer = Layer::new().file("etc/sub/new", b"").link(EntryType::Link, "other", "etc/original").end();
    place.apply_with(&layer, Whiteouts::Overlay { userxattr: false }, &[&lower.root()]).unwrap();
    let etc = place.stat("etc");
    assert_eq!((etc.mode() & 0o7777, etc.uid(), etc.mtime()), (0o2711, 7, 1_200_000_000));
    assert_eq!(place.read("other"), "text");
    assert_eq!(place.stat("other").mode() & 0o7777, 0o4755);
    assert!(!place.exists("etc/original"));
}

#[test]
fn parents_may_lead_through_links() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let layer = Layer::new()
        .link(EntryType::Symlink, "bin", "usr/bin")
        .file("bin/tool", b"tool")
        .link(EntryType::Symlink, "usr/lib64", "/lib/../lib")
        .file("usr/lib64/so", b"so")
        .link(EntryType::Symlink, "loop", "loop")
        .end();
    place.apply(&layer).unwrap();
    assert_eq!(place.read("usr/bin/tool"), "tool");
    assert_eq!(place.read("lib/so"), "so");
    let error = place.apply(&Layer::new().file("loop/x", b"").end()).unwrap_err();
    assert!(error.to_string().contains("loop"), "{error}");
}

#[test]
fn refuses_broken_archives() {
    let whole =
        Layer::new().directory("d").file("d/f", &[7; 3000]).pax(&[("path", b"p")]).file("x", b"x").end();
    // Cut anywhere but between entries, where the format allows the end, or in the last one's padding.
    let end = whole.len() - 1024;
    let ends = [0, 512, 512 + 512 + 3072, end - 256, end, end + 512];
    for cut in (0..whole.len()).step_by(256) {
        let place = Place::new();
        if is_root() {
            assert_eq!(place.apply(&whole[..cut]).is_ok(), ends.contains(&cut), "cut at {cut}");
        }
    }
    let place = Place::new();
    let size = |header: &mut Header| header.as_old_mut().size = [0xff; 12];
    let huge = |header: &mut Header| {
        header.as_old_mut().size = [0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    };
    for (what, layer) in [
        ("negative size", Layer::new().add(EntryType::Regular, "f", b"", size).end()),
        ("huge size", Layer::new().add(EntryType::Regular, "f", b"", huge).end()),
        ("huge extension", Layer::new().add(EntryType::XHeader, "f", b"", huge).end()),
        ("huge long name", Layer::new().add(EntryType::GNULongName, "f", b"", huge).end()),
        ("unknown type", Layer::new().add(EntryType::new(b'D'), "f", b"", |_| {}).end()),
        ("extension at the end", Layer::new().pax(&[("path", b"x")]).end()),
        ("bad pax", Layer::new().add(EntryType::XHeader, "f", b"99 a=b\n", |_| {}).file("g", b"").end()),
        (
            "bad number",
            Layer::new().add(EntryType::Regular, "f", b"", |h| h.as_old_mut().uid = *b"12x45678").end(),
        ),
        ("largest size", Layer::new().pax(&[("size", b"18446744073709551615")]).file("f", b"").end()),
        ("uid -1", Layer::new().pax(&[("uid", b"4294967295")]).file("f", b"").end()),
        ("root as file", Layer::new().file("..", b"x").end()),
        ("empty link", Layer::new().link(EntryType::Symlink, "l", "").end()),
        ("long component", Layer::new().pax(&[("path", &[b'x'; 300])]).file("f", b"").end()),
        ("deep path", Layer::new().pax(&[("path", "d/".repeat(3000).as_bytes())]).file("f", b"").end()),
        ("not tar", vec![b'x'; 4096]),
    ] {
        let error = place.apply(&layer).expect_err(what);
        assert_ne!(error.kind(), Kind::Internal, "{what}: {error}");
        assert!(error.to_string().len() < 2_000, "{what}");
    }
}

#[test]
fn counts_what_follows_the_archive() {
    let place = Place::new();
    let mut layer = Layer::new().file("f", b"x").end();
    layer.extend_from_slice(&[9; 100_000]);
    if is_root() {
        let applied = place.apply(&layer).unwrap();
        assert_eq!(applied.diff_id, format!("sha256:{}", hex(&Sha256::digest(&layer))));
    }
}

#[test]
fn a_deep_tree_can_be_replaced() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let mut layer = Layer::new();
    let mut path = String::new();
    for depth in 0..1500 {
        path.push_str(if depth == 0 { "a" } else { "/a" });
    }
    layer = layer.pax(&[("path", format!("{path}/f").as_bytes())]).file("f", b"").file("a", b"flat");
    place.apply(&layer.end()).unwrap();
    assert_eq!(place.read("a"), "flat");
}
