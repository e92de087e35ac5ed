//! A judge that believes nobody: it knows what the daemon acknowledged, hashes every blob and reads every file of every
//! snapshot, without asking the daemon's own check.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use orlop_tests::image::digest;
use orlop_tests::{Daemon, Orlopd};

use crate::client::Client;

/// A tree of files in words, one line per file.
pub type Tree = BTreeMap<PathBuf, String>;

/// Reads every file below a directory.
pub fn tree(root: &Path) -> Tree {
    fn visit(directory: &Path, root: &Path, lines: &mut Tree) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let kind = stat.file_type();
            let content = match () {
                () if kind.is_symlink() => format!("-> {}", fs::read_link(&path).unwrap().display()),
                () if kind.is_file() => digest(&fs::read(&path).unwrap()),
                () if kind.is_char_device() => format!("device {}", stat.rdev()),
                () => String::new(),
            };
            // Those of directories and whiteouts are when they were made.
            let time = if kind.is_dir() || kind.is_char_device() { 0 } else { stat.mtime() };
            let line = format!("{:o} {}:{} {time} {content}", stat.mode(), stat.uid(), stat.gid());
            lines.insert(path.strip_prefix(root).unwrap().to_owned(), line);
            if kind.is_dir() {
                visit(&path, root, lines);
            }
        }
    }
    let mut lines = Tree::new();
    visit(root, root, &mut lines);
    lines
}

/// The trees of all layers of a root, by what they hold: two roots with the same image have the same.
pub fn layers(daemon: &Orlopd) -> Vec<Tree> {
    let mut layers: Vec<Tree> = fs::read_dir(daemon.root().join("overlayfs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("fs").exists())
        .map(|path| tree(&path.join("fs")))
        .collect();
    layers.sort();
    layers
}

/// Where a file lies that one layer has; layers are unpacked side by side, so that their numbers say nothing.
pub fn in_a_layer(daemon: &Orlopd, name: &str) -> PathBuf {
    let layers = fs::read_dir(daemon.root().join("overlayfs")).unwrap();
    let paths = layers.map(|layer| layer.unwrap().path().join("fs").join(name));
    paths.into_iter().find(|path| path.exists()).unwrap()
}

/// Names in a directory.
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Every blob that has a name has the bytes of that name, and there is a file for each record and the reverse.
pub fn check_blobs(daemon: &Orlopd, namespaces: &[&str]) {
    let mut recorded: Vec<String> = namespaces
        .iter()
        .flat_map(|namespace| Client::new(daemon.address(), namespace).digests().unwrap())
        .collect();
    recorded.sort();
    recorded.dedup();
    let directory = daemon.root().join("content/blobs/sha256");
    let mut found: Vec<String> = Vec::new();
    for name in names(&directory) {
        let actual = digest(&fs::read(directory.join(&name)).unwrap());
        assert_eq!(actual, format!("sha256:{name}"), "a blob is not what its name says");
        found.push(actual);
    }
    found.sort();
    assert_eq!(found, recorded, "blobs and their records");
}
