//! The corpus of hostile layers: what unpackers have fallen for, made here, brought in through orlopd as a client would. Nothing
//! outside of a snapshot changes; what is refused names its entry and leaves nothing; what is taken stays inside.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use orlop_tests::image::Blob;
use orlop_tests::{Compression, Daemon, Image, Layer, Orlopd, Root};
use tar::EntryType;

use crate::ctl::DEADLINE;

const NAME: &str = "example.org/hostile:1";

/// A daemon, and a place that layers try to reach.
struct Stage {
    orlopd: Orlopd,
    outside: PathBuf,
    archive: PathBuf,
    mounted: PathBuf,
    root: Root,
}

impl Stage {
    fn new() -> Stage {
        let root = Root::new();
        let (outside, mounted) = (root.join("outside"), root.join("mounted"));
        for directory in [&outside, &mounted] {
            fs::create_dir(directory).unwrap();
        }
        fs::write(outside.join("secret"), "untouched").unwrap();
        fs::set_permissions(outside.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        Stage { orlopd: Orlopd::start(&root), outside, archive: root.join("image.tar"), mounted, root }
    }

    fn ctl(&self, words: &[&str]) -> orlop_tests::Output {
        self.orlopd.orlopctl(words.iter().copied()).deadline(DEADLINE).run()
    }

    /// Ways to the place outside: absolute, up from anywhere, and through what the kernel resolves by itself.
    fn ways(&self) -> [String; 4] {
        let absolute = self.outside.display().to_string();
        let up = "../".repeat(40);
        [
            absolute.clone(),
            format!("{up}{}", &absolute[1..]),
            format!("/proc/self/root{absolute}"),
            "/proc/self/cwd".into(),
        ]
    }

    fn import(&self, image: &Image) -> orlop_tests::Output {
        image.oci_archive(&self.archive, NAME);
        let out = self.ctl(&["images", "import", &self.archive.display().to_string()]);
        assert_eq!(fs::read_to_string(self.outside.join("secret")).unwrap(), "untouched");
        assert_eq!(fs::metadata(self.outside.join("secret")).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(&self.outside).unwrap().count(), 1, "something was made outside");
        out
    }

    /// Must be refused, with these words, and leave nothing.
    fn refused(&self, what: &str, image: Image, words: &[&str]) {
        let out = self.import(&image);
        assert_eq!(out.code(), 1, "{what}: {out}");
        assert!(!out.stderr.contains("panicked") && !out.stderr.contains("internal"), "{what}: {out}");
        for word in words {
            assert!(out.stderr.contains(word), "{what}: {word:?} in {out}");
        }
        self.ctl(&["gc"]).success();
        assert_eq!(self.ctl(&["images", "ls", "-q"]).success().stdout, "", "{what}");
        assert_eq!(self.ctl(&["snapshots", "ls"]).success().stdout.lines().count(), 1, "{what}");
    }

    /// Must be taken; the tree is looked at where it is mounted.
    fn taken(&self, what: &str, image: Image, look: impl FnOnce(&Path)) {
        println!("{what}");
        self.import(&image).success();
        let target = self.mounted.display().to_string();
        self.ctl(&["images", "mount", NAME, &target]).success();
        look(&self.mounted);
        self.ctl(&["images", "unmount", "--rm", &target]).success();
        self.ctl(&["images", "rm", "--sync", NAME]).success();
    }
}

fn layers(layers: impl IntoIterator<Item = Layer>) -> Image {
    layers.into_iter().fold(Image::new(), Image::layer)
}

fn file(path: &str, content: &[u8]) -> Layer {
    Layer::new().entry(path, EntryType::Regular, 0o644, |_| {}, content)
}

#[test]
fn names_and_links_stay_inside() {
    let stage = Stage::new();
    for way in stage.ways() {
        let inside = way.trim_start_matches("../").trim_start_matches('/').to_owned();
        if way.len() < 99 {
            stage.taken(&format!("a name: {way}"), layers([file(&format!("{way}/new"), b"x")]), |root| {
                assert_eq!(fs::read(root.join(&inside).join("new")).unwrap(), b"x");
            });
        }
        // A link in one layer, written through by the next, and by the one after that.
        let through = [
            Layer::new().symlink("way", &way),
            file("way/secret", b"changed"),
            file("way/new", b"x").whiteout("way/secret"),
        ];
        stage.taken(&format!("through a link: {way}"), layers(through), |root| {
            assert!(fs::symlink_metadata(root.join("way")).is_ok());
        });
        // A file becomes a link, and is written again; in one layer and in three.
        let secret = format!("{way}/secret");
        let steps = || [file("f", b"one"), Layer::new().symlink("f", &secret), file("f", b"three")];
        let at_once = Layer::new().file("f", b"one", 0o644).symlink("f", &secret).file("f", b"three", 0o644);
        for image in [layers(steps()), layers([at_once])] {
            stage.taken(&format!("replaced: {way}"), image, |root| {
                assert_eq!(fs::read(root.join("f")).unwrap(), b"three");
                assert!(fs::symlink_metadata(root.join("f")).unwrap().is_file());
            });
        }
        // A hard link to a link is one to the link itself.
        let hard = Layer::new().symlink("soft", &secret).hardlink("hard", "soft").file("hard", b"own", 0o644);
        stage.taken(&format!("a hard link to a link: {way}"), layers([hard]), |root| {
            assert!(fs::symlink_metadata(root.join("soft")).unwrap().is_symlink());
            assert_eq!(fs::read(root.join("hard")).unwrap(), b"own");
        });
        let below = [Layer::new().symlink("soft", &secret), Layer::new().hardlink("hard", "soft")];
        stage.refused("a hard link to a link below", layers(below), &["hard"]);
        // What a hard link names must be inside, whatever it goes through.
        let direct =
            Layer::new().entry("stolen", EntryType::Link, 0o644, |header| link(header, &secret), b"");
        stage.refused("a hard link", layers([direct]), &["stolen"]);
        let through = [Layer::new().symlink("way", &way), Layer::new().hardlink("stolen", "way/secret")];
        stage.refused("a hard link through a link", layers(through), &["stolen"]);
        // Permissions through a link.
        let chmod = [
            Layer::new().symlink("way", &way),
            Layer::new().dir("way", 0o777),
            Layer::new().entry("way/secret", EntryType::Regular, 0o4777, |_| {}, b"x"),
        ];
        stage.taken("a directory in place of a link", layers(chmod), |_| {});
    }
    stage.finish();
}

impl Stage {
    fn finish(mut self) {
        self.orlopd.stop();
        self.root.assert_clean();
    }
}

fn link(header: &mut tar::Header, target: &str) {
    let bytes = &target.as_bytes()[..target.len().min(100)];
    header.as_old_mut().linkname[..bytes.len()].copy_from_slice(bytes);
}

#[test]
fn special_files_modes_and_whiteouts_mean_what_they_say_and_no_more() {
    let stage = Stage::new();
    let device = |major: u32, minor: u32| {
        move |header: &mut tar::Header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
        }
    };
    let special = Layer::new()
        .special("null", EntryType::Char, 0o666, device(1, 3))
        .special("disk", EntryType::Block, 0o600, device(8, 0))
        .special("pipe", EntryType::Fifo, 0o644, |_| {})
        .file("suid", b"x", 0o6755)
        .dir("sticky", 0o7777)
        .file("sticky/suid", b"x", 0o7777)
        .symlink("suid-link", "suid");
    stage.taken("special files", layers([special]), |root| {
        let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
        assert!(stat("null").file_type().is_char_device() && stat("null").rdev() == 0x103);
        assert!(stat("disk").file_type().is_block_device() && stat("disk").rdev() == 0x800);
        assert_eq!(stat("suid").mode() & 0o7777, 0o6755);
        assert_eq!(stat("sticky").mode() & 0o7777, 0o7777);
        assert_eq!(stat("sticky/suid").mode() & 0o7777, 0o7777);
    });
    // Written over, never into.
    let over = [
        Layer::new().special("null", EntryType::Char, 0o666, device(1, 3)).special(
            "p",
            EntryType::Fifo,
            0o600,
            |_| {},
        ),
        Layer::new().file("null", b"a file", 0o644).file("p", b"a file", 0o644),
    ];
    stage.taken("over a device", layers(over), |root| {
        for name in ["null", "p"] {
            assert_eq!(fs::read(root.join(name)).unwrap(), b"a file");
        }
    });
    for name in [".wh.", ".wh..", ".wh...", "a/.wh..", "a/.wh...", "a/b/.wh."] {
        stage.refused("a forbidden whiteout", layers([file("a/b/c", b"x"), file(name, b"")]), &[name]);
    }
    let marks =
        [file("d/a/b", b"x"), file("d/.wh..wh..opq", b""), file("a/.wh..wh.plnk", b"").whiteout("a/never")];
    stage.taken("opaque", layers(marks), |root| assert!(!root.join("d/a").exists()));
    for way in &stage.ways()[..2] {
        let whiteouts = [
            Layer::new().symlink("way", way),
            file("way/.wh.secret", b"").entry("way/.wh..wh..opq", EntryType::Regular, 0o644, |_| {}, b""),
        ];
        stage.taken("whiteouts through a link", layers(whiteouts), |_| {});
    }
    // Every name again and again: the last one counts.
    let mut again = Layer::new();
    for n in 0..20 {
        again = match n % 4 {
            0 => again.dir("x", 0o755).file("x/y", b"in", 0o644),
            1 => again.file("x", b"file", 0o644),
            2 => again.symlink("x", "../../outside"),
            _ => again.special("x", EntryType::Fifo, 0o644, |_| {}),
        };
    }
    stage.taken("duplicates", layers([again.file("x", b"last", 0o600)]), |root| {
        assert_eq!(fs::read(root.join("x")).unwrap(), b"last");
    });
    // What steers overlayfs is not a layer's to say.
    let mount = Layer::new()
        .xattrs([("trusted.overlay.redirect", &b"/../../outside"[..]), ("trusted.overlay.opaque", b"y")])
        .dir("redirected", 0o755)
        .xattrs([("trusted.overlay.metacopy", &b""[..])])
        .file("metacopy", b"x", 0o644);
    stage.taken("attributes of overlayfs", layers([file("redirected/kept", b"k"), mount]), |root| {
        assert!(root.join("redirected/kept").exists());
        assert_eq!(fs::read(root.join("metacopy")).unwrap(), b"x");
    });
    stage.finish();
}

/// A tar stream of one entry whose header is changed after all is set, without a new checksum if that is what is wrong.
fn raw(change: impl FnOnce(&mut tar::Header), data: &[u8], right_checksum: bool) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_path("the-entry").unwrap();
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    header.set_cksum();
    change(&mut header);
    if right_checksum {
        header.set_cksum();
    }
    let mut tar = header.as_bytes().to_vec();
    tar.extend_from_slice(data);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

/// The daemon's peak of memory, in KiB.
fn peak(orlopd: &Orlopd) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", orlopd.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn wrong_sizes_giant_headers_and_bombs_meet_limits() {
    let stage = Stage::new();
    let count = std::cell::Cell::new(0);
    // Each case with another compression than the one before.
    let refused = |what: &str, tar: Vec<u8>, words: &[&str]| {
        let all = [Compression::None, Compression::Gzip, Compression::Zstd];
        let compression = all[count.replace(count.get() + 1) % all.len()];
        let image = Image::new().blob(Blob::from_tar(tar, compression));
        stage.refused(&format!("{what}, {compression:?}"), image, words);
    };
    refused("more than there is", raw(|header| header.set_size(1 << 20), b"x", true), &["truncated"]);
    refused(
        "more than anything",
        raw(|header| header.as_old_mut().size = [0xff; 12], b"x", true),
        &["apply layer"],
    );
    refused("a wrong checksum", raw(|header| header.as_old_mut().mode[3] ^= 1, b"x", false), &["checksum"]);
    let extension = |kind: u8| move |header: &mut tar::Header| header.set_entry_type(EntryType::new(kind));
    // Global ones mean nothing to a layer and are passed over.
    for kind in [b'x', b'L', b'K'] {
        refused("a giant header", raw(extension(kind), &vec![b'a'; 2 << 20], true), &["1 MiB"]);
    }
    let pax = |records: &[(&str, &[u8])]| {
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_pax_extensions(records.iter().map(|(key, value)| (*key, *value))).unwrap();
        let mut tar = tar.into_inner().unwrap();
        tar.truncate(tar.len() - 1024);
        tar.extend(raw(|_| {}, b"x", true));
        tar
    };
    refused("deep", pax(&[("path", "d/".repeat(3000).as_bytes())]), &["apply layer"]);
    refused("a long name", pax(&[("path", &[b'n'; 300])]), &["nnnn"]);
    refused("a NUL in a name", pax(&[("path", b"a\0b")]), &["apply layer"]);
    refused(
        "sparse beyond its end",
        pax(&[("GNU.sparse.map", b"0,4,8,4"), ("GNU.sparse.size", b"9")]),
        &["apply layer"],
    );

    // 32 MiB of zeros where a header is expected to end, in a few KiB.
    let mut bomb = raw(extension(b'x'), b"", true);
    let mut header = tar::Header::from_byte_slice(&bomb[..512]).clone();
    header.set_size(1 << 30);
    header.set_cksum();
    bomb[..512].copy_from_slice(header.as_bytes());
    bomb.resize(32 << 20, 0);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let image = Image::new().blob(Blob::from_tar(bomb.clone(), compression));
        stage.refused(&format!("a bomb, {compression:?}"), image, &["1 MiB"]);
    }
    // A frame that asks for a window of 2 GiB.
    let tar = file("f", b"x").compressed(Compression::None).finish();
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(31).unwrap();
    encoder.include_contentsize(false).unwrap();
    encoder.write_all(&tar.bytes).unwrap();
    let bytes = encoder.finish().unwrap();
    let blob =
        Blob { digest: orlop_tests::image::digest(&bytes), bytes, compression: Compression::Zstd, ..tar };
    stage.refused("a giant window", Image::new().blob(blob), &["apply layer"]);
    assert!(peak(&stage.orlopd) < 128 << 10, "{} KiB", peak(&stage.orlopd));

    // More layers than any image has.
    let same = file("f", b"x").finish();
    let many = |count: usize| (0..count).fold(Image::new(), |image, _| image.blob(same.clone()));
    stage.refused("too many layers", many(1025), &["1025 layers"]);
    many(1000).oci_archive(&stage.archive, NAME);
    stage.ctl(&["images", "import", "--no-unpack", &stage.archive.display().to_string()]).success();
    stage.ctl(&["images", "rm", "--sync", NAME]).success();
    stage.finish();
}

#[test]
fn names_in_every_encoding_are_kept_byte_for_byte() {
    let stage = Stage::new();
    let names: Vec<Vec<u8>> = vec![
        "grüße".into(),
        "日本語".into(),
        "\u{202e}gpj.exe".into(),
        "e\u{301}".into(),
        "\u{e9}".into(),
        b"latin-\xe9".to_vec(),
        b"\xff\xfe\xfd".to_vec(),
        b"surrogate-\xed\xa0\x80".to_vec(),
        b"new\nline".to_vec(),
        b"\x1b[31mred\x07".to_vec(),
        b" leading and trailing ".to_vec(),
        b"-rf".to_vec(),
        b"a\\b".to_vec(),
        b"%2e%2e%2f".to_vec(),
        b"...".to_vec(),
        b"..\xc0\xafetc".to_vec(),
        vec![b'n'; 99],
    ];
    let mut tar = Vec::new();
    for name in &names {
        let mut entry = raw(
            |header| {
                let field = &mut header.as_old_mut().name;
                field.fill(0);
                field[..name.len()].copy_from_slice(name);
            },
            name,
            true,
        );
        entry.truncate(entry.len() - 1024);
        tar.extend(entry);
    }
    tar.resize(tar.len() + 1024, 0);
    stage.taken("encodings", Image::new().blob(Blob::from_tar(tar, Compression::Gzip)), |root| {
        for name in &names {
            let path = root.join(std::ffi::OsStr::from_bytes(name));
            assert_eq!(&fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())), name);
        }
        assert_eq!(fs::read_dir(root).unwrap().count(), names.len());
    });
    stage.finish();
}
