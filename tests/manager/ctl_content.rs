//! Verbs of orlopctl that change content, beside ctr's.

use std::fs;
use std::io::Read;

use orlop_tests::image::digest;
use orlop_tests::{Daemon, Image, Orlopd, Root, poll_until, pretender};

use crate::ctl::DEADLINE;

const IMAGE: &str = "registry.test/two:1";

fn start(root: &Root) -> Orlopd {
    let daemon = Orlopd::start(root);
    let archive = root.join("image.tar");
    Image::two_layers().oci_archive(&archive, IMAGE);
    daemon.ctr(["images", "import"]).arg(&archive).run().success();
    daemon
}

#[test]
fn a_blob_is_edited_and_layers_are_let_go_of() {
    let root = Root::new();
    let mut daemon = start(&root);
    let blob = digest(b"before\n");
    // The import's collection may come between the two.
    poll_until(DEADLINE, "the blob is kept", || {
        let ingest = ["content", "ingest", "--expected-digest", &blob, "r"];
        daemon.orlopctl(ingest).input("before\n").run().success();
        daemon.orlopctl(["content", "label", &blob, "containerd.io/gc.root=1"]).run().status.success()
    });
    let editor = "sed -i s/before/after/";
    let made = daemon.orlopctl(["content", "edit", "--editor", editor, &blob]).run().success().stdout;
    assert_eq!(made.trim(), digest(b"after\n"));
    for bad in [
        vec!["content", "edit", "--editor", "false", &blob],
        vec!["content", "edit", "--editor", "true", "sha256:x"],
    ] {
        daemon.orlopctl(bad).run().failure();
    }
    let none = daemon.orlopctl(["content", "edit", &blob]).without_env("EDITOR").run().failure();
    assert!(none.stderr.contains("no editor"), "{none}");

    let layers: Vec<String> = Image::two_layers().layers().iter().map(|layer| layer.digest.clone()).collect();
    let kept = |daemon: &Orlopd| {
        let listed = daemon.orlopctl(["content", "ls", "-q"]).run().success().stdout;
        layers.iter().filter(|layer| listed.contains(layer.as_str())).count()
    };
    let dry = daemon.orlopctl(["content", "prune", "references", "--dry"]).run().success().stdout;
    assert!(layers.iter().all(|_| dry.contains("gc.ref.content.l.")), "{dry}");
    assert_eq!(kept(&daemon), 2);
    daemon.orlopctl(["content", "prune", "references"]).run().success();
    assert_eq!(kept(&daemon), 0);
    let run = ["run", "--rm", IMAGE, "c", "cat", "/etc/changed"];
    assert_eq!(daemon.orlopctl(run).run().success().stdout, "two\n");
    daemon.stop();
    root.assert_clean();
}

#[test]
fn a_snapshots_difference_is_a_layer() {
    let root = Root::new();
    let mut daemon = start(&root);
    let script = "echo new > /new; rm /etc/kept";
    daemon.orlopctl(["run", IMAGE, "c", "sh", "-c", script]).run().success();
    daemon.orlopctl(["snapshots", "commit", "made", "c"]).run().success();
    // Both clients have it made by the same service.
    for client in ["ctr", "orlopctl"] {
        let words = ["snapshots", "diff", "--media-type", "application/vnd.oci.image.layer.v1.tar", "made"];
        let path = root.join(client);
        let command = if client == "ctr" { daemon.ctr(words) } else { daemon.orlopctl(words) };
        let output = fs::File::create(&path).unwrap();
        let into_file = |command: &mut std::process::Command| {
            command.stdout(output);
        };
        command.with(into_file).keep_stdio().run().success();
        let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            names.push(entry.path().unwrap().display().to_string());
            if names.last().is_some_and(|name| name == "new") {
                let mut text = String::new();
                entry.read_to_string(&mut text).unwrap();
                assert_eq!(text, "new\n");
            }
        }
        assert!(names.contains(&"new".to_owned()) && names.contains(&"etc/.wh.kept".to_owned()), "{names:?}");
    }
    let left = daemon.ctr(["snapshots", "ls"]).run().success().stdout;
    assert!(!left.contains("view"), "{left}");
    daemon.stop();
    root.assert_clean();
}

#[test]
fn a_task_is_saved_to_an_image() {
    let root = Root::new();
    let mut daemon = start(&root);
    let runtime = pretender(&root).display().to_string();
    daemon.orlopctl(["run", "-d", "--runc-binary", &runtime, IMAGE, "c", "sleep", "1000"]).run().success();
    let name = daemon.orlopctl(["tasks", "checkpoint", "c"]).run().success().stdout.trim().to_owned();
    assert!(name.starts_with("containerd.io/checkpoint/c:"), "{name}");
    let directory = root.join("images").display().to_string();
    daemon.orlopctl(["tasks", "checkpoint", "--image-path", &directory, "c"]).run().success();
    let calls = fs::read_to_string(root.join("calls")).unwrap();
    assert!(calls.lines().count() == 2 && calls.contains(&directory), "{calls}");
    daemon.orlopctl(["tasks", "rm", "--force", "c"]).run().success();
    daemon.orlopctl(["containers", "rm", "c"]).run().success();
    let listed = daemon.ctr(["images", "ls", &format!("name=={name}")]).run().success().stdout;
    let index = listed.split_whitespace().find(|word| word.starts_with("sha256:")).expect("its digest");
    let index = daemon.ctr(["content", "get", index]).run().success().stdout;
    for part in ["criu.checkpoint.criu.tar", "checkpoint.config.v1+proto", "image.layer.v1.tar+gzip", IMAGE] {
        assert!(index.contains(part), "{index}");
    }
    daemon.stop();
    root.assert_clean();
}

#[test]
fn a_container_is_saved_by_one_client_and_restored_by_another() {
    let root = Root::new();
    let mut daemon = start(&root);
    let runtime = pretender(&root).display().to_string();
    let client = |ours: bool, words: &[&str]| if ours { daemon.orlopctl(words) } else { daemon.ctr(words) };
    for (saver, restorer) in [(true, true), (true, false), (false, true)] {
        let run = ["run", "-d", "--null-io", "--runc-binary", &runtime, IMAGE, "c", "sleep", "1000"];
        daemon.orlopctl(run).run().success();
        let exec = |script| daemon.orlopctl(["tasks", "exec", "--exec-id", "e", "c", "sh", "-c", script]);
        exec("echo kept > /new").run().success();
        let save = ["containers", "checkpoint", "--rw", "--image", "--task", "c", "saved:1"];
        client(saver, &save).run().success();
        let listed = daemon.orlopctl(["tasks", "ls"]).run().success().stdout;
        assert!(listed.contains("RUNNING"), "{listed}");
        let remove = || {
            daemon.orlopctl(["tasks", "rm", "--force", "c"]).run().success();
            daemon.orlopctl(["containers", "rm", "c"]).run().success();
        };
        remove();
        client(restorer, &["containers", "restore", "--rw", "--live", "c", "saved:1"]).run().success();
        assert_eq!(exec("cat /new").run().success().stdout, "kept\n");
        let info = daemon.orlopctl(["containers", "info", "c"]).run().success().stdout;
        assert!(info.contains(&runtime) && info.contains(IMAGE), "{info}");
        remove();
        daemon.orlopctl(["images", "rm", "--sync", "saved:1"]).run().success();
    }
    let calls = fs::read_to_string(root.join("calls")).unwrap();
    let verbs: Vec<_> = calls.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(verbs, ["checkpoint", "restore"].repeat(3), "{calls}");

    // One that was saved without its processes can be neither made again nor restored.
    daemon.orlopctl(["containers", "create", IMAGE, "c"]).run().success();
    daemon.orlopctl(["containers", "checkpoint", "c", "saved:1"]).run().success();
    for words in [&["--live"][..], &["--rw"], &[]] {
        let restore = daemon.orlopctl(["containers", "restore"]).args(words).args(["d", "saved:1"]);
        let refused = restore.run().failure();
        assert!(refused.stderr.contains("was not saved in it"), "{refused}");
    }
    let refused = daemon.orlopctl(["containers", "restore", "d", IMAGE]).run().failure();
    assert!(refused.stderr.contains("no container was saved in it"), "{refused}");
    daemon.orlopctl(["containers", "rm", "c"]).run().success();
    assert_eq!(daemon.orlopctl(["containers", "ls", "-q"]).run().success().stdout, "");
    let left = daemon.orlopctl(["snapshots", "ls"]).run().success().stdout;
    assert!(!left.contains("Active"), "{left}");
    daemon.stop();
    root.assert_clean();
}
