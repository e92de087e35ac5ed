//! The same layers by other unpackers: GNU tar for one layer, umoci for several with whiteouts. The trees are the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use orlop_tests::image::Blob;
use orlop_tests::{Cmd, Compression, Daemon, Image, Layer, Orlopd, Root, binaries};
use tar::EntryType;

use crate::ctl::DEADLINE;
use crate::image::listing;

const NAME: &str = "example.org/random:1";

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Directory,
    Other,
}

/// A layer of entries by chance, each name once, every directory named before what is in it.
fn layer(random: &mut Random, with_whiteouts: bool) -> Layer {
    const NAMES: [&str; 5] = ["a", "b", "grüße", "-c d", "e.f"];
    let long = "l".repeat(180);
    let mut made: BTreeMap<String, Kind> = BTreeMap::new();
    let mut files: Vec<String> = Vec::new();
    let mut layer = Layer::new();
    for _ in 0..6 + random.below(20) {
        let mut path = String::new();
        for _ in 0..random.below(3) {
            let parent = format!("{path}{}", NAMES[random.below(5) as usize]);
            match made.get(&parent) {
                Some(Kind::Other) => break,
                Some(Kind::Directory) => {}
                None => {
                    layer = owned(layer, &parent, EntryType::Directory, random, b"");
                    made.insert(parent.clone(), Kind::Directory);
                }
            }
            path = format!("{parent}/");
        }
        let name = if random.below(12) == 0 { &long } else { NAMES[random.below(5) as usize] };
        let full = format!("{path}{name}");
        if made.contains_key(&full) {
            continue;
        }
        let kind = random.below(if with_whiteouts { 10 } else { 8 });
        layer = match kind {
            0 | 1 => owned(layer, &full, EntryType::Directory, random, b""),
            2..=4 => {
                let content = vec![b'a' + random.below(26) as u8; random.below(5000) as usize];
                // Of a hard link's own metadata, GNU tar takes none and containerd all: those that are linked have the usual.
                if random.below(2) == 0 {
                    files.push(full.clone());
                    layer.file(&full, &content, 0o644)
                } else {
                    owned(layer, &full, EntryType::Regular, random, &content)
                }
            }
            5 => layer
                .symlink(&full, ["a", "../b", "/e.f", "/nowhere", "../../../../x"][random.below(5) as usize]),
            6 if !files.is_empty() => {
                layer.hardlink(&full, &files[random.below(files.len() as u64) as usize])
            }
            7 => owned(layer, &full, EntryType::Fifo, random, b""),
            8 => layer.whiteout(&full),
            9 if !path.is_empty() && !made.contains_key(&format!("{path}.wh..wh..opq")) => {
                let directory = path.trim_end_matches('/').to_owned();
                made.insert(format!("{path}.wh..wh..opq"), Kind::Other);
                layer.opaque(&directory)
            }
            _ => continue,
        };
        if kind != 9 {
            made.insert(full, if kind < 2 { Kind::Directory } else { Kind::Other });
        }
    }
    layer
}

fn owned(layer: Layer, path: &str, kind: EntryType, random: &mut Random, content: &[u8]) -> Layer {
    let mode = [0o644, 0o755, 0o600, 0o4711, 0o2755, 0o1777, 0o000][random.below(7) as usize];
    // A directory below one with the set-group-ID bit gets it too, where GNU tar makes it.
    let mode = if kind == EntryType::Directory { mode & !0o2000 } else { mode };
    let (uid, gid) = (random.below(3) * 1000, random.below(3) * 33);
    let path = if kind == EntryType::Directory { format!("{path}/") } else { path.to_owned() };
    let change = move |header: &mut tar::Header| {
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_cksum();
    };
    layer.entry(&path, kind, mode, change, content)
}

/// A tree as a listing, without the times of directories: unpackers change them as they make what is in them.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut lines = listing(root);
    for line in lines.values_mut().filter(|line| line.starts_with('4')) {
        *line = line.replace(" 1700000000 ", " 0 ");
    }
    lines
}

/// A listing without numbers of links: overlayfs counts those that an upper layer hides.
fn without_counts(mut lines: BTreeMap<PathBuf, String>) -> BTreeMap<PathBuf, String> {
    for line in lines.values_mut() {
        let words: Vec<&str> =
            line.split(' ').enumerate().filter(|(n, _)| *n != 3).map(|(_, word)| word).collect();
        *line = words.join(" ");
    }
    lines
}

/// What we make of it.
fn ours(orlopd: &Orlopd, root: &Root, image: &Image) -> BTreeMap<PathBuf, String> {
    let (archive, mounted) = (root.join("image.tar"), root.join("mounted"));
    fs::create_dir_all(&mounted).unwrap();
    image.oci_archive(&archive, NAME);
    let ctl = |words: &[&str]| orlopd.orlopctl(words.iter().copied()).deadline(DEADLINE).run().success();
    ctl(&["images", "import", &archive.display().to_string()]);
    ctl(&["images", "mount", NAME, &mounted.display().to_string()]);
    let lines = tree(&mounted);
    ctl(&["images", "unmount", "--rm", &mounted.display().to_string()]);
    ctl(&["images", "rm", "--sync", NAME]);
    lines
}

fn rounds() -> u64 {
    std::env::var("ORLOP_LAYERS").ok().and_then(|text| text.parse().ok()).unwrap_or(4)
}

#[test]
fn one_layer_is_what_gnu_tar_makes_of_it() {
    let root = Root::new();
    let mut orlopd = Orlopd::start(&root);
    for seed in 1..=rounds() {
        println!("seed {seed}");
        let blob = layer(&mut Random(seed * 0x9e37_79b9), false).compressed(Compression::None).finish();
        let (file, target) = (root.join("layer.tar"), root.join(format!("tar{seed}")));
        fs::write(&file, &blob.bytes).unwrap();
        fs::create_dir(&target).unwrap();
        let tar = Cmd::new(binaries::system("tar"))
            .args(["--numeric-owner", "-xpf"])
            .arg(&file)
            .arg("-C")
            .arg(&target);
        tar.run().success();
        assert_eq!(ours(&orlopd, &root, &Image::new().blob(blob)), tree(&target), "seed {seed}");
    }
    orlopd.stop();
}

/// Files of every kind that GNU tar writes: names longer than old headers hold, holes, attributes, an access control list,
/// a time in nanoseconds, numbers that take more than octal digits.
const RICH: &str = "
set -e; umask 022; mkdir -p tree/d tree/sticky; cd tree; chmod 1777 sticky
echo small > d/small; ln d/small hard; ln -s d/small soft; touch -d @1700000000.123456789 d/small
truncate -s 1500000 d/sparse; printf a | dd of=d/sparse conv=notrunc bs=1 seek=700000 status=none
truncate -s 900000 d/hole; printf end >> d/hole
head -c 70000 /dev/zero > d/zeros; chown 1000:2000 d/zeros; chmod 4755 d/zeros
";
const RICHER: &str = "
set -e; cd tree; mkfifo d/pipe; mknod d/null c 1 3
long=$(printf 'l%.0s' $(seq 200)); mkdir $long; echo long > $long/$long; ln -s $long/$long d/far; ln $long/$long d/$long
setfattr -n user.note -v text d/small; setfattr -n trusted.note -v text d
setfattr -n system.posix_acl_access -v \
  0x0200000001000600ffffffff020006002a00000004000400ffffffff10000600ffffffff20000400ffffffff d/zeros
chown 3000000:3000000 d/sparse
";

#[test]
fn archives_of_every_format_are_what_gnu_tar_makes_of_them() {
    let root = Root::new();
    let mut orlopd = Orlopd::start(&root);
    let sh = |script: &str| Cmd::new("sh").args(["-c", script]).cwd(root.path()).run().success();
    let tar = |words: &[&str]| {
        Cmd::new(binaries::system("tar"))
            .args(["--numeric-owner"])
            .args(words)
            .cwd(root.path())
            .run()
            .success()
    };
    let all = ["--xattrs", "--xattrs-include=*", "--acls"];
    sh(RICH);
    let plain: &[&[&str]] = &[&["--format=v7"], &["--format=ustar"], &["--format=oldgnu", "-S"]];
    let rich: &[&[&str]] = &[
        &["--format=gnu"],
        &["--format=gnu", "-S"],
        &["--format=posix"],
        &["--format=posix", "-S", "--sparse-version=0.0"],
        &["--format=posix", "-S", "--sparse-version=0.1"],
        &["--format=posix", "-S", "--sparse-version=1.0"],
    ];
    for (n, format) in plain.iter().chain(rich).enumerate() {
        if n == plain.len() {
            sh(RICHER);
        }
        let attributes: &[&str] = if format[0] == "--format=posix" { &all } else { &[] };
        tar(&[format, attributes, &["-cf", "layer.tar", "-C", "tree", "."]].concat());
        let target = format!("made{n}");
        fs::create_dir(root.join(&target)).unwrap();
        tar(&[&all[..], &["-xpf", "layer.tar", "-C", &target]].concat());
        let blob = Blob::from_tar(fs::read(root.join("layer.tar")).unwrap(), Compression::Gzip);
        assert_eq!(ours(&orlopd, &root, &Image::new().blob(blob)), tree(&root.join(&target)), "{format:?}");
    }
    orlopd.stop();
}

#[test]
fn a_layer_that_umoci_inserts_into_an_image() {
    let root = Root::new();
    let mut orlopd = Orlopd::start(&root);
    let archive = root.join("layout.tar");
    Image::two_layers().oci_archive(&archive, NAME);
    fs::create_dir(root.join("layout")).unwrap();
    fs::write(root.join("added"), b"of a length that fills no block").unwrap();
    let run = |program: &str, words: &[&str]| {
        Cmd::new(binaries::system(program)).args(words).cwd(root.path()).deadline(DEADLINE).run().success()
    };
    run("tar", &["-xf", "layout.tar", "-C", "layout"]);
    run("umoci", &["insert", "--image", "layout:1", "added", "/opt/added"]);
    orlopd.orlopctl(["images", "import"]).arg(root.join("layout")).deadline(DEADLINE).run().success();
    let name = orlopd.orlopctl(["images", "ls", "-q"]).run().success().stdout;
    let mounted = root.join("mounted");
    fs::create_dir(&mounted).unwrap();
    orlopd.orlopctl(["images", "mount", name.trim()]).arg(&mounted).deadline(DEADLINE).run().success();
    assert_eq!(fs::read(mounted.join("opt/added")).unwrap(), b"of a length that fills no block");
    orlopd.orlopctl(["images", "unmount", "--rm"]).arg(&mounted).run().success();
    orlopd.stop();
}

#[test]
fn several_layers_are_what_umoci_makes_of_them() {
    let root = Root::new();
    let mut orlopd = Orlopd::start(&root);
    for seed in 1..=rounds() {
        println!("seed {seed}");
        let mut random = Random(seed * 0x5851_f42d);
        let image = (0..4).fold(Image::new(), |image, n| image.layer(layer(&mut random, n > 0)));
        let (archive, layout) = (root.join("layout.tar"), root.join(format!("layout{seed}")));
        image.oci_archive(&archive, NAME);
        fs::create_dir(&layout).unwrap();
        Cmd::new(binaries::system("tar")).arg("-xf").arg(&archive).arg("-C").arg(&layout).run().success();
        let bundle = root.join(format!("bundle{seed}"));
        let source = format!("{}:1", layout.display());
        let unpack = Cmd::new(binaries::system("umoci")).args(["unpack", "--image", &source]).arg(&bundle);
        unpack.deadline(DEADLINE).run().success();
        assert_eq!(
            without_counts(ours(&orlopd, &root, &image)),
            without_counts(tree(&bundle.join("rootfs"))),
            "seed {seed}"
        );
    }
    orlopd.stop();
}
