//! The matrix with the newest containerd, its shim and its client, built from Go's module proxy by `make newest`: Go 1.25 or
//! newer, a network and some minutes. `make test` leaves it out and says so.

use std::fs;
use std::path::PathBuf;

use orlop_tests::{Containerd, Daemon, Orlopd, Root, Variant, binaries, go};

use crate::workload::{exercise, import_image};

const MODULE: &str = "github.com/containerd/containerd/v2";
/// The one place that says which containerd is the newest.
const VERSION: &str = "v2.4.2";
/// What Go's checksum database says of the module.
const SUM: &str = "h1:p6Qg+xbEz8lvwdhHDx0U469xENvp4LgGBx+E7djXkGw=";
/// Its programs.
const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];
/// What needs C libraries, or hardware that is not here.
const WITHOUT: &str = "no_btrfs no_devmapper no_zfs";

/// Builds the programs once; the directory that they are in.
pub fn build() -> PathBuf {
    let directory = binaries::target_dir().join("newest").join(VERSION);
    if PROGRAMS.iter().all(|name| directory.join(name).exists()) {
        return directory;
    }
    let part = directory.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).unwrap();
    let module = format!("{MODULE}@{VERSION}");
    let answer = go(&part).args(["mod", "download", "-json", &module]).run().success();
    let answer: serde_json::Value = serde_json::from_str(&answer.stdout).expect("JSON from go");
    assert_eq!(answer["Sum"], SUM, "the module is another one");
    let packages = PROGRAMS.map(|name| format!("{MODULE}/cmd/{name}@{VERSION}"));
    let install =
        go(&part).args(["install", "-trimpath", "-ldflags", "-s -w", "-tags", WITHOUT]).args(packages);
    install.env("GOBIN", &part).run().success();
    let _ = fs::remove_dir_all(&directory);
    fs::rename(&part, &directory).unwrap();
    directory
}

fn check(daemon: &impl Daemon, root: &Root, runtime: &str) {
    let program = if runtime == "orlop" { binaries::orlop() } else { binaries::system(runtime) };
    let image = import_image(root, daemon);
    exercise(root, daemon, &image, &["--runc-binary", program.to_str().expect("paths here are UTF-8")]);
}

#[test]
fn the_newest_containerd_its_shim_and_its_client() {
    if std::env::var_os("ORLOP_NEWEST").is_none() {
        println!("not run: containerd {VERSION}; `make newest` runs it");
        return;
    }
    let programs = build();
    let shim = "containerd-shim-runc-v2";
    let [containerd, theirs, client] = PROGRAMS.map(|name| programs.join(name));
    // Debian's crun refuses the version of the specification that this client writes.
    for runtime in ["orlop", "runc"] {
        let variant = Variant { client: Some(client.clone()), ..Variant::default() };
        for (whose, program) in [("our shim", binaries::shim()), ("its shim", theirs.clone())] {
            println!("{runtime} under {whose} under containerd {VERSION}");
            let root = Root::new();
            let links = vec![(program, shim.to_owned())];
            let variant = Variant { containerd: Some(containerd.clone()), links, ..variant.clone() };
            let mut daemon = Containerd::start_as(&root, &variant);
            check(&daemon, &root, runtime);
            daemon.stop();
            root.assert_clean();
        }
        for (whose, config) in [
            ("our shim", String::new()),
            ("its shim", format!("[runtimes.\"io.containerd.runc.v2\"]\nshim = {theirs:?}\n")),
        ] {
            println!("{runtime} under {whose} under orlopd, by ctr {VERSION}");
            let root = Root::new();
            let mut daemon = Orlopd::start_as(&root, &config, &variant);
            check(&daemon, &root, runtime);
            daemon.stop();
            root.assert_clean();
        }
    }
}
