//! Layers made of differences, and applied again.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::image::unpack::{Target, Whiteouts, apply};

fn open(path: &Path) -> std::os::fd::OwnedFd {
    fs::File::open(path).unwrap().into()
}

fn layer(left: Option<&Path>, right: &Path, upper: Option<&Path>, epoch: Option<i64>) -> Vec<u8> {
    let roots = walk::Roots { left: left.map(open), right: open(right), upper: upper.map(open) };
    archived(Vec::new(), roots, epoch, &Places::new(&[])).unwrap().0
}

fn names(layer: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(layer);
    archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect()
}

fn tree(root: &Path) {
    fs::create_dir_all(root.join("dir/sub")).unwrap();
    for (name, content) in [("same", "same"), ("changed", "before"), ("gone", "x"), ("dir/sub/deep", "x")] {
        fs::write(root.join(name), content).unwrap();
        let time = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        fs::File::options().write(true).open(root.join(name)).unwrap().set_times(time).unwrap();
    }
}

#[test]
fn holds_what_differs_and_nothing_else() {
    let place = tempfile::tempdir().unwrap();
    let (left, right) = (place.path().join("left"), place.path().join("right"));
    tree(&left);
    tree(&right);
    fs::write(right.join("changed"), "after!").unwrap();
    fs::remove_file(right.join("gone")).unwrap();
    fs::remove_dir_all(right.join("dir/sub")).unwrap();
    fs::write(right.join("dir/new"), "new").unwrap();
    fs::hard_link(right.join("dir/new"), right.join("dir/new2")).unwrap();
    symlink("target", right.join("soft")).unwrap();
    fs::set_permissions(right.join("same"), PermissionsExt::from_mode(0o600)).unwrap();
    let made = layer(Some(&left), &right, None, None);
    let expected = [".wh.gone", "changed", "dir/", "dir/.wh.sub", "dir/new", "dir/new2", "same", "soft"];
    let mut found = names(&made);
    found.sort();
    assert_eq!(found, expected);
    assert_eq!(made, layer(Some(&left), &right, None, None));
    assert!(names(&layer(Some(&right), &right, None, None)).is_empty());
}

#[test]
fn what_was_made_for_mounts_is_left_out() {
    let place = tempfile::tempdir().unwrap();
    let (left, right) = (place.path().join("left"), place.path().join("right"));
    for root in [&left, &right] {
        fs::create_dir_all(root.join("etc")).unwrap();
    }
    for (name, content) in [("etc/hosts", ""), ("etc/hostname", "own"), ("etc/other", "")] {
        fs::write(right.join(name), content).unwrap();
    }
    for name in ["proc", "dev/pts", "dev/own"] {
        fs::create_dir_all(right.join(name)).unwrap();
    }
    let names_with = |places: &[&str]| {
        let places: Vec<String> = places.iter().map(|&place| place.to_owned()).collect();
        let roots = walk::Roots { left: Some(open(&left)), right: open(&right), upper: None };
        let mut found = names(&archived(Vec::new(), roots, None, &Places::new(&places)).unwrap().0);
        found.sort();
        found
    };
    // What has something in it is somebody's own; a directory comes with what is in it.
    let places = ["/etc/hosts", "/etc/hostname", "/proc", "/dev/pts"];
    assert_eq!(names_with(&places), ["dev/", "dev/own/", "etc/", "etc/hostname", "etc/other"]);
    fs::remove_dir(right.join("dev/own")).unwrap();
    assert_eq!(names_with(&places), ["etc/", "etc/hostname", "etc/other"]);
    assert!(names_with(&[]).contains(&"dev/pts/".to_owned()));
}

#[test]
fn links_are_left_out_where_they_are_named_and_nowhere_above() {
    let place = tempfile::tempdir().unwrap();
    let (left, right) = (place.path().join("left"), place.path().join("right"));
    for root in [&left, &right] {
        fs::create_dir_all(root.join("etc")).unwrap();
    }
    for name in ["etc/mtab", "etc/own", "dev"] {
        std::os::unix::fs::symlink("/elsewhere", right.join(name)).unwrap();
    }
    let roots = walk::Roots { left: Some(open(&left)), right: open(&right), upper: None };
    let places = Places::new(&["/etc/mtab".to_owned(), "/dev/pts".to_owned()]);
    let mut found = names(&archived(Vec::new(), roots, None, &places).unwrap().0);
    found.sort();
    assert_eq!(found, ["dev", "etc/", "etc/own"]);
}

#[test]
fn whole_trees_survive_the_way_into_a_layer_and_back() {
    if !rustix::process::geteuid().is_root() {
        println!("not run: needs root");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (from, to) = (place.path().join("from"), place.path().join("to"));
    fs::create_dir(&to).unwrap();
    fs::create_dir(&from).unwrap();
    let long = format!("{}/{}", "d".repeat(120), "ü".repeat(100));
    fs::create_dir(from.join("d".repeat(120))).unwrap();
    fs::write(from.join(&long), "long").unwrap();
    let file = fs::File::create(from.join("owned")).unwrap();
    file.set_times(
        fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(7, 120)),
    )
    .unwrap();
    std::os::unix::fs::chown(from.join("owned"), Some(4_000_000_000), Some(5)).unwrap();
    fs::set_permissions(from.join("owned"), PermissionsExt::from_mode(0o4755)).unwrap();
    rustix::fs::setxattr(from.join("owned"), "user.k", b"v\0w", rustix::fs::XattrFlags::empty()).unwrap();
    let made = layer(None, &from, None, None);
    let target = Target { root: open(&to), lowers: Vec::new(), whiteouts: Whiteouts::Delete };
    apply(made.as_slice(), target).unwrap();
    assert_eq!(fs::read(to.join(&long)).unwrap(), b"long");
    let stat = fs::metadata(to.join("owned")).unwrap();
    assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o7777), (4_000_000_000, 5, 0o4755));
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (7, 120));
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(to.join("owned"), "user.k", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"v\0w");
    assert!(names(&layer(Some(&from), &to, None, None)).is_empty());
}

#[test]
fn an_epoch_bounds_every_time() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("new"), "x").unwrap();
    let made = layer(None, place.path(), None, Some(1_000_000_000));
    let mut archive = tar::Archive::new(made.as_slice());
    let entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.header().mtime().unwrap(), 1_000_000_000);
}

#[test]
fn only_the_upper_directory_is_looked_at() {
    let place = tempfile::tempdir().unwrap();
    let (left, right, upper) =
        (place.path().join("left"), place.path().join("right"), place.path().join("upper"));
    tree(&left);
    tree(&right);
    fs::write(right.join("changed"), "after!").unwrap();
    fs::write(right.join("dir/new"), "new").unwrap();
    // Of what differs, the upper directory has one part: the other cannot be seen through it.
    fs::create_dir_all(upper.join("dir")).unwrap();
    fs::write(upper.join("dir/new"), "new").unwrap();
    assert_eq!(names(&layer(Some(&left), &right, Some(&upper), None)), ["dir/", "dir/new"]);
}
