//! `make install` into a staging directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use orlop_tests::{Cmd, binaries};

const PROGRAMS: [&str; 4] = ["orlop", "containerd-shim-orlop-v1", "orlopd", "orlopctl"];

#[test]
fn installs_everything_below_destdir_and_nothing_else() {
    let stage = tempfile::tempdir().expect("a directory");
    Cmd::new("make")
        .args(["--no-print-directory", "install", "PREFIX=/opt/orlop"])
        .arg(format!("DESTDIR={}", stage.path().display()))
        .cwd(binaries::source_root())
        .without_env("MAKEFLAGS")
        .without_env("MAKELEVEL")
        // It compiles what is missing.
        .deadline(Duration::from_secs(1800))
        .run()
        .success();
    let prefix = stage.path().join("opt/orlop");
    for name in PROGRAMS {
        let mode = fs::metadata(prefix.join("bin").join(name))
            .unwrap_or_else(|e| panic!("bin/{name}: {e}"))
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755, "{name}");
    }
    for page in ["man8/orlop.8", "man8/orlopd.8", "man8/containerd-shim-orlop-v1.8", "man8/orlopctl.8"] {
        let text =
            fs::read_to_string(prefix.join("share/man").join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(text.contains(".TH") && text.contains("NAME"), "{page} is no man page");
    }
    for name in ["orlop", "orlopd", "orlopctl"] {
        for file in [
            format!("share/bash-completion/completions/{name}"),
            format!("share/zsh/site-functions/_{name}"),
            format!("share/fish/vendor_completions.d/{name}.fish"),
        ] {
            let text = fs::read_to_string(prefix.join(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            assert!(text.contains(name), "{file}");
        }
    }
    let unit = fs::read_to_string(prefix.join("lib/systemd/system/orlopd.service")).expect("the unit");
    assert!(unit.contains("ExecStart=/opt/orlop/bin/orlopd"), "{unit}");
    assert!(unit.contains("KillMode=process"), "stopping the manager must not end containers: {unit}");
    assert!(unit.contains("Type=notify"), "the manager says when it is ready: {unit}");
    assert!(prefix.join("lib/systemd/system/orlopd.socket").exists());
    let beside: Vec<_> =
        fs::read_dir(stage.path()).expect("listing").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(beside, ["opt"]);
}
