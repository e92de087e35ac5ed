//! The documents made here against those of the installed runc.

use std::process::Command;

use orlop_proto::contract::OCI_VERSION;
use orlop_proto::spec;
use serde_json::Value;

/// `runc spec` in a directory of its own, or None where runc is not installed.
fn runc_spec(flags: &[&str]) -> Option<Value> {
    let bundle = tempfile::tempdir().unwrap();
    let status =
        Command::new("runc").arg("spec").args(flags).arg("--bundle").arg(bundle.path()).status().ok()?;
    assert!(status.success());
    let text = std::fs::read(bundle.path().join("config.json")).unwrap();
    Some(serde_json::from_slice(&text).unwrap())
}

/// Equal but for the version of the specification, which is each program's own.
fn same(ours: &spec::Spec, mut theirs: Value) {
    theirs["ociVersion"] = OCI_VERSION.into();
    assert_eq!(serde_json::to_value(ours).unwrap(), theirs);
}

fn unified() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

#[test]
fn the_example_is_what_runc_spec_writes() {
    let Some(theirs) = runc_spec(&[]) else {
        eprintln!("not compared: runc is not installed");
        return;
    };
    same(&spec::example(unified()), theirs);
}

#[test]
fn the_rootless_example_is_what_runc_spec_writes() {
    let Some(theirs) = runc_spec(&["--rootless"]) else {
        eprintln!("not compared: runc is not installed");
        return;
    };
    let process = std::fs::metadata("/proc/self").unwrap();
    let (uid, gid) =
        (std::os::unix::fs::MetadataExt::uid(&process), std::os::unix::fs::MetadataExt::gid(&process));
    same(&spec::rootless(spec::example(unified()), uid, gid), theirs);
}
