//! testcontainers from PyPI and bollard from crates.io, as their users have them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use orlop_tests::{Cmd, binaries, patient};

use super::debian::{DATABASE, prepare};
use super::wanted;
use crate::side::{Side, clients};

/// Which testcontainers.
const TESTCONTAINERS: &str = "testcontainers[postgres]==4.15.0";
/// How long fetching and building may take.
const LONG: Duration = Duration::from_secs(600);

/// A Python with testcontainers, installed once.
fn python() -> PathBuf {
    let directory = binaries::target_dir().join("clients").join(TESTCONTAINERS);
    let python = directory.join("bin/python3");
    if !directory.join("done").exists() {
        let _ = fs::remove_dir_all(&directory);
        let make = Cmd::new(binaries::system("python3")).args(["-m", "venv"]).arg(&directory);
        make.deadline(patient(LONG)).run().success();
        let install = Cmd::new(&python).args(["-m", "pip", "install", "--quiet", TESTCONTAINERS]);
        install.deadline(patient(LONG)).run().success();
        fs::write(directory.join("done"), "").unwrap();
    }
    python
}

/// The program that uses bollard.
fn bollard() -> PathBuf {
    let target = binaries::target_dir().join("clients/bollard");
    let manifest = binaries::source_root().join("tests/docker/programs/bollard/Cargo.toml");
    let build = Cmd::new(env!("CARGO")).args(["build", "--quiet", "--manifest-path"]).arg(manifest);
    build.env("CARGO_TARGET_DIR", &target).deadline(patient(LONG)).run().success();
    target.join("debug/bollard-walk")
}

#[test]
fn testcontainers_has_servers_for_the_time_of_a_test() {
    if !wanted("testcontainers") {
        return;
    }
    let python = python();
    let side = Side::orlopd_alone(clients().swap_remove(0));
    prepare(&side, &[DATABASE]);
    let build = side.shell("$docker build --quiet --tag shop-database $dir/shop/database");
    build.deadline(patient(LONG)).run().success();
    let script = binaries::source_root().join("tests/docker/programs/testcontainers-walk.py");
    // Its reaper is an image of Docker's registry.
    let line = format!(
        "TESTCONTAINERS_RYUK_DISABLED=true exec nsenter --net=/proc/$host/ns/net {} {}",
        python.display(),
        script.display()
    );
    let out = side.shell(&line).deadline(patient(LONG)).run().success();
    assert!(out.stdout.ends_with("done\n"), "{out}");
    assert_eq!(side.says("$docker ps --all --quiet; $docker network ls --quiet --filter type=custom"), "");
    side.finish();
}

#[test]
fn bollard_does_what_it_does_elsewhere() {
    if !wanted("bollard") {
        return;
    }
    let program = bollard();
    let side = Side::orlopd_alone(clients().swap_remove(0));
    side.says("mkdir $dir/built && printf 'FROM bb\nRUN echo made > /made\n' > $dir/built/Dockerfile && tar -C $dir/built -cf $dir/built.tar .");
    let said = side.says(&format!("{} $dir/built.tar", program.display()));
    assert_eq!(said, "done");
    side.finish();
}
