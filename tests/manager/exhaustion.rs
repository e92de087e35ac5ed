//! A disk that is full, of bytes or of files, at each step of a pull, a run and a removal.
//!
//! `ORLOP_FULL_STEPS` says at how many steps (`make soak`: 100).

use std::fs;
use std::path::PathBuf;

use orlop_tests::{Cmd, Daemon, Image, Layer, Orlopd, Output, Registry, Root, number};
use serde_json::Value;

use crate::evidence;

/// Steps where nobody asks for more: with nothing left, with little, and with more than is needed.
const FEW: [u64; 7] = [0, 1, 3, 8, 20, 45, ENOUGH];
/// What a pull and a run need at most.
const ENOUGH: u64 = 200;
/// Bytes of a file that takes space away.
const PIECE: usize = 128 << 10;

/// What there is none of any more.
#[derive(Clone, Copy, Debug)]
enum Scarce {
    Files,
    Bytes,
}

/// A file system of its own with 400 inodes and 64 MiB.
struct Disk {
    place: PathBuf,
}

impl Disk {
    fn new(root: &Root) -> Disk {
        let (file, place) = (root.join("ext4"), root.join("disk"));
        fs::create_dir(&place).unwrap();
        fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
        Cmd::new("mkfs.ext4")
            .args(["-q", "-F", "-m", "0", "-N", "400", "-O", "^has_journal"])
            .arg(&file)
            .run()
            .success();
        Cmd::new("mount").args(["-o", "loop"]).args([&file, &place]).run().success();
        fs::create_dir(place.join("fill")).unwrap();
        Disk { place }
    }

    /// Takes everything but so many files, or pieces of so many bytes, away.
    fn fill(&self, scarce: Scarce, left: u64) {
        let bytes = match scarce {
            Scarce::Files => Vec::new(),
            Scarce::Bytes => vec![7; PIECE],
        };
        let name = |index: u64| self.place.join("fill").join(index.to_string());
        let full = (0..).find(|index| fs::write(name(*index), &bytes).is_err()).unwrap();
        // What was written in part is one of them.
        (full.saturating_sub(left)..=full).for_each(|index| drop(fs::remove_file(name(index))));
    }

    fn empty(&self) {
        fs::remove_dir_all(self.place.join("fill")).unwrap();
        fs::create_dir(self.place.join("fill")).unwrap();
    }
}

/// Whether it was done; if not, for want of room, and it says so.
fn done(output: &Output, what: &str) -> bool {
    let is_full = output.stderr.contains("no space left on device");
    assert!(output.status.success() || is_full, "{what}: {output}");
    output.status.success()
}

fn at_each_step(scarce: Scarce) {
    let root = Root::new();
    let disk = Disk::new(&root);
    let mut registry = Registry::start(&root);
    let image = Image::busybox()
        .layer(Layer::new().file("data/a", &[1; 50_000], 0o644).file("data/b", &[2; 50_000], 0o644))
        .push(&registry, "image", "1");
    let mut daemon = Orlopd::start_on(&root, &disk.place.join("root"));
    let steps: Vec<u64> = match number("ORLOP_FULL_STEPS", 0) {
        0 => FEW.to_vec(),
        count => (0..count).chain([ENOUGH]).collect(),
    };
    let (mut pulls, mut runs) = (0, 0);
    for left in steps {
        let context = |what: &str| format!("{what} with {left} {scarce:?} left");
        disk.fill(scarce, left);
        let pulled = done(&daemon.orlopctl(["images", "pull", &image]).run(), &context("pull"));
        pulls += u64::from(pulled);
        if pulled {
            let run = daemon.orlopctl(["run", "--rm", &image, "c", "cat", "/data/a", "/data/b"]).run();
            if done(&run, &context("run")) {
                runs += 1;
                assert_eq!(run.stdout.len(), 100_000, "{}", context("run"));
            }
            // With no room for more, what is there still goes.
            daemon.orlopctl(["images", "rm", &image]).run().success();
        }
        daemon.orlopctl(["gc"]).run().success();
        if left % 2 == 1 {
            daemon.kill();
            daemon.restart();
        }
        disk.empty();
        for args in [&["images", "ls", "-q"][..], &["containers", "ls", "-q"], &["content", "ls", "-q"]] {
            let rest = daemon.orlopctl(args).run().success().stdout;
            assert_eq!(rest, "", "{args:?} {}", context("afterwards"));
        }
        let report = daemon.orlopctl(["--format", "json", "fsck"]).run();
        let said: Value = serde_json::from_str(&report.stdout).unwrap();
        assert_eq!(said["damaged"], 0, "{report} {}", context("afterwards"));
        evidence::check_blobs(&daemon, &[daemon.namespace()]);
        assert!(evidence::layers(&daemon).is_empty(), "{}", context("afterwards"));
    }
    println!("{scarce:?}: {pulls} pulls and {runs} runs found room");
    assert!(runs > 0, "with everything left there is enough");
    daemon.stop();
    registry.stop();
    Cmd::new("umount").arg(&disk.place).run().success();
    root.assert_clean();
}

#[test]
fn without_files_left_each_step_fails_cleanly_or_not_at_all() {
    at_each_step(Scarce::Files);
}

#[test]
fn without_bytes_left_each_step_fails_cleanly_or_not_at_all() {
    at_each_step(Scarce::Bytes);
}
