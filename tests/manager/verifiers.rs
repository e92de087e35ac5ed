//! Programs that decide which images may be pulled.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use orlop_tests::{Daemon, Image, Orlopd, Registry, Root};

#[test]
fn a_verifier_that_refuses_stops_the_pull_before_anything_is_fetched() {
    let root = Root::new();
    let registry = Registry::start(&root);
    let programs = root.join("verifiers");
    fs::create_dir(&programs).unwrap();
    let daemon = Orlopd::start_with(&root, &format!("[image_verifier]\nbin_dir = {programs:?}\n"));
    let pull = |name: &str| daemon.orlopctl(["images", "pull", name]).run();
    let good = Image::two_layers().push(&registry, "good", "1");
    let bad = Image::two_layers().push(&registry, "bad", "1");
    pull(&bad).success();
    daemon.ctr(["images", "rm", "--sync", &bad]).run().success();

    let called = root.join("called");
    let script = format!(
        "#!/bin/sh\necho \"$@\" > {called:?}\ncat >> {called:?}\n\
         case \"$*\" in *bad*) echo unsigned; exit 4;; esac\n"
    );
    let program = programs.join("signed");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let refused = pull(&bad).failure();
    let expected = "for reason: verifier signed rejected image (exit code 4): unsigned";
    assert!(refused.stderr.contains(expected), "{refused}");
    let left = daemon.ctr(["content", "ls", "-q"]).run().success();
    assert_eq!(left.stdout.trim(), "");
    pull(&good).success();
    let told = fs::read_to_string(&called).unwrap();
    assert!(told.contains(&format!("-name {good} -digest sha256:")), "{told}");
    assert!(told.contains("-stdin-media-type application/vnd.oci.descriptor.v1+json"), "{told}");
    assert!(told.contains("\"mediaType\":\"application/vnd."), "{told}");
}
