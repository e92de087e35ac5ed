//! A full disk: a clear error, nothing half named, and everything goes on once there is room.

use std::fs;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use orlop_tests::image::{Blob, digest};
use orlop_tests::{Daemon, Image, Layer, Orlopd, Registry, Root, poll_until};
use tonic::Code;

use crate::client::{Client, Put};

/// Size of the disk in bytes, where little is stored.
const DISK: usize = 6 << 20;

/// A daemon whose root is a file system of its own with so many bytes.
fn on_a_small_disk(root: &Root, size: usize) -> Orlopd {
    let data = root.join("disk");
    fs::create_dir(&data).unwrap();
    let options = format!("size={size}");
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
    let mut daemon = on_a_small_disk(&root, DISK);
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
    let mut daemon = on_a_small_disk(&root, DISK);
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

/// Bytes that the layer below unpacks to.
const LAYER: usize = 8 << 20;

/// A small blob that unpacks to more than the disk has.
fn layer() -> Blob {
    let content: Vec<u8> = (0..LAYER / 16).flat_map(|number| format!("{number:016}").into_bytes()).collect();
    Layer::new()
        .file("etc/before", b"x", 0o644)
        .file("big", &content, 0o644)
        .file("etc/after", b"x", 0o644)
        .finish()
}

/// What lies in the snapshotter's directory besides the directory of what is being removed.
fn layers(daemon: &Orlopd) -> Vec<String> {
    let entries = fs::read_dir(daemon.root().join("overlayfs")).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join("fs").exists())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_layer_that_does_not_fit_leaves_nothing_of_itself() {
    let root = Root::new();
    let mut daemon = on_a_small_disk(&root, 24 << 20);
    let image = Image::busybox().blob(layer());
    let registry = Registry::start(&root);
    let name = image.push(&registry, "big", "1");
    let used =
        || rustix::fs::statvfs(root.join("disk")).map(|disk| disk.f_blocks - disk.f_bfree).unwrap() * 4096;
    fs::write(root.join("disk/fill"), vec![0; 18 << 20]).unwrap();

    // By the daemon's own pull, and by the service with which `ctr` unpacks.
    for pull in
        [daemon.orlopctl(["images", "pull", &name]), daemon.ctr(["images", "pull", "--plain-http", &name])]
    {
        let before = used();
        let failed = pull.run().failure();
        let said: Vec<&str> = failed
            .stderr
            .lines()
            .filter(|line| line.contains("ctl: ") || line.starts_with("ctr: "))
            .collect();
        assert!(matches!(said[..], [line] if line.contains("no space left on device")), "{failed}");
        // `ctr` names the image and keeps what it has fetched, as on containerd.
        daemon.ctr(["images", "rm", "--sync", &name]).run();
        daemon.orlopctl(["gc"]).run().success();
        assert_eq!(daemon.ctr(["images", "ls", "-q"]).run().success().stdout, "");
        assert_eq!(daemon.ctr(["content", "ls", "-q"]).run().success().stdout, "");
        assert_eq!(daemon.ctr(["snapshots", "ls"]).run().success().stdout.lines().count(), 1);
        assert_eq!(layers(&daemon), Vec::<String>::new());
        // Of a layer that had not come as a whole stays what came, for the next pull.
        assert!(Client::new(daemon.address(), daemon.namespace()).abort_all().unwrap() <= 1);
        // A file that a pull had open goes with its last user, a moment after the answer.
        poll_until(Duration::from_secs(10), "all but a mebibyte is free again", || {
            used().saturating_sub(before) < 1 << 20
        });
    }

    // The code, as any client of the API sees it.
    let client = Client::new(daemon.address(), daemon.namespace());
    client.create_lease("keep").unwrap();
    let client = client.with_lease("keep");
    let blob = layer();
    client
        .put(&Put { reference: "r", expected: &blob.digest, ..Put::default() }, &blob.bytes, 1 << 20)
        .unwrap();
    let mounts = client.prepare("overlayfs", "big", "").unwrap();
    let error = client.apply(&blob, mounts).unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    client.remove("overlayfs", "big").unwrap();
    client.delete_lease("keep").unwrap();

    daemon.kill();
    daemon.restart();
    assert_eq!(layers(&daemon), Vec::<String>::new());
    fs::remove_file(root.join("disk/fill")).unwrap();
    daemon.orlopctl(["images", "pull", &name]).run().success();
    let run = ["run", "--rm", &name, "c", "sh", "-c", "cat /etc/before /etc/after; wc -c </big"];
    assert_eq!(daemon.ctr(run).run().success().stdout, format!("xx{LAYER}\n"));
    daemon.stop();
}
