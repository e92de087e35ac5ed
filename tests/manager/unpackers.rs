//! The same layers by other unpackers: GNU tar for one layer, umoci for several with whiteouts. The trees are the same.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

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
