//! A full disk: a clear error, nothing half named, and everything goes on once there is room.

use std::fs;

use nix::mount::{MsFlags, mount};
use orlop_tests::image::digest;
use orlop_tests::{Daemon, Orlopd, Root};
use tonic::Code;

use crate::client::{Client, Put};

/// Size of the disk in bytes.
const DISK: usize = 6 << 20;

/// A daemon whose root is a small file system of its own.
fn on_a_small_disk(root: &Root) -> Orlopd {
    let data = root.join("disk");
    fs::create_dir(&data).unwrap();
    let options = format!("size={DISK}");
    mount(Some("tmpfs"), &data, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
    Orlopd::start_on(root, &data.join("root"))
}

fn fill(root: &Root) {
    let file = fs::File::create(root.join("disk/fill")).unwrap();
    let mut file = std::io::BufWriter::with_capacity(1, file);
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
}

#[test]
fn a_blob_that_does_not_fit_is_refused_and_the_write_goes_on_later() {
    let root = Root::new();
    let mut daemon = on_a_small_disk(&root);
    let client = Client::new(daemon.address(), "one");
    let bytes = vec![3; 2 << 20];
    let name = digest(&bytes);
    let put =
        Put { reference: "r", expected: &name, labels: &[("containerd.io/gc.root", "x")], ..Put::default() };
    fs::write(root.join("disk/fill"), vec![0; 4 << 20]).unwrap();
    let error = client.put(&put, &bytes, 256 << 10).unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    assert_eq!(error.message(), "write content: no space left on device");
    assert!(client.digests().unwrap().is_empty());
    let offset = client.status("r").unwrap().offset;
    assert!(offset > 0 && offset % (256 << 10) == 0, "whole messages remain: {offset}");
    fs::remove_file(root.join("disk/fill")).unwrap();
    client.put(&put, &bytes, 256 << 10).unwrap();
    daemon.kill();
    daemon.restart();
    assert_eq!(Client::new(daemon.address(), "one").blob(&name).unwrap(), bytes);
}

#[test]
fn a_change_that_does_not_fit_has_not_happened() {
    let root = Root::new();
    let mut daemon = on_a_small_disk(&root);
    let client = Client::new(daemon.address(), "one");
    let target = digest(b"anything");
    client.create_image("before", &target, 1).unwrap();
    fill(&root);
    let long = "x".repeat(3000);
    let mut made = vec!["before".to_owned()];
    let error = (0..3000)
        .find_map(|index| {
            let name = format!("i{index}-{long}");
            match client.create_image(&name, &target, 1) {
                Ok(()) => {
                    made.push(name);
                    None
                }
                Err(error) => Some(error),
            }
        })
        .expect("the disk is full");
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    let names = |client: &Client| {
        let mut names: Vec<String> = client.images().unwrap().into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    };
    made.sort();
    assert_eq!(names(&client), made, "what was acknowledged, and nothing else");
    assert_eq!(client.prepare("overlayfs", "s", "").unwrap_err().code(), Code::ResourceExhausted);
    assert!(client.snapshots("overlayfs").unwrap().is_empty());
    client.delete_image("before", false).expect("on a full disk one can still delete");
    made.retain(|name| name != "before");
    assert_eq!(names(&client), made);
    daemon.kill();
    daemon.restart();
    let client = Client::new(daemon.address(), "one");
    assert_eq!(names(&client), made, "a full disk keeps nobody from starting again");
    fs::remove_file(root.join("disk/fill")).unwrap();
    client.create_image("later", &target, 1).unwrap();
    made.push("later".to_owned());
    made.sort();
    daemon.kill();
    daemon.restart();
    assert_eq!(names(&Client::new(daemon.address(), "one")), made);
}
