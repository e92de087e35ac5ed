//! The runtimes that the suite drives, and the surroundings that they get.
//!
//! Each is called through a small script, the same for all but for the name, which takes accidents out of the comparison. The
//! suite signals programs and looks at them as soon as `start` returns, and has a poststart hook and the program append to the same
//! file, so that what it sees is who was quicker; and its configurations carry a version of the specification that older
//! references refuse.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_tests::{Cmd, Output, Root, binaries, host};

/// Calls the runtime. A poststart hook that writes waits a moment, in which the program that was started gets its turn. After
/// `start` the script waits, for at most five seconds, until the program has taken init's place and sleeps or has ended: a shell
/// then has set its traps.
const WRAPPER: &str = r#"#!/bin/sh
last=; bundle=
for word; do
    [ "$last" = --bundle ] && bundle=$word
    last=$word
done
[ -z "$bundle" ] || sed -i -e "s/\"echo 'post-start/\"sleep 0.2; echo 'post-start/" \
    -e 's/"ociVersion": *"1.3.0"/"ociVersion": "@VERSION@"/' "$bundle/config.json"
[ "$1" = start ] || exec @RUNTIME@ "$@"
pid=$(@RUNTIME@ state "$last" 2>/dev/null | sed -n 's/.*"pid": *\([0-9]*\).*/\1/p')
before=$(cat "/proc/$pid/comm" 2>/dev/null)
@RUNTIME@ "$@"
code=$?
[ $code = 0 ] || exit $code
for try in $(seq 250); do
    state=$(sed 's/.*) \(.\).*/\1/' "/proc/$pid/stat" 2>/dev/null)
    comm=$(cat "/proc/$pid/comm" 2>/dev/null)
    case $state in
        Z | '') break ;;
        S) [ "$comm" = "$before" ] || break ;;
    esac
    sleep 0.02
done
exit 0
"#;

/// A runtime as the suite calls it.
pub struct Runtime {
    /// What the table calls it.
    pub name: &'static str,
    wrapper: PathBuf,
    /// Shell commands that make its surroundings, in a mount namespace of the program's own.
    prepare: &'static str,
}

/// Ours first, then the references.
pub fn all(root: &Root) -> Vec<Runtime> {
    // crun refuses the layout of this machine if a controller sits on the hierarchy of version 2 beside those of version 1.
    let hide = "! grep -q ' /sys/fs/cgroup/unified ' /proc/self/mountinfo || umount /sys/fs/cgroup/unified";
    [
        ("orlop", binaries::orlop(), "1.3.0", "true"),
        ("runc", binaries::system("runc"), "1.3.0", "true"),
        ("crun", binaries::system("crun"), "1.0.2", hide),
    ]
    .into_iter()
    .map(|(name, program, version, prepare)| {
        let directory = root.join(name);
        fs::create_dir(&directory).unwrap();
        let wrapper = directory.join("runtime");
        let script = WRAPPER.replace("@RUNTIME@", &program.to_string_lossy()).replace("@VERSION@", version);
        fs::write(&wrapper, script).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        Runtime { name, wrapper, prepare }
    })
    .collect()
}

impl Runtime {
    /// Runs one program where neither mounts nor processes nor the runtime's state outlive it.
    pub fn run(&self, directory: &Path, program: &str) -> Output {
        let root = Root::new();
        let script = format!("mount -t tmpfs tmpfs /run; {}; \"$0\"; exit $?", self.prepare);
        let out = Cmd::new(binaries::system("unshare"))
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"])
            .args(["timeout", "60", "sh", "-c", &script])
            .arg(directory.join("bin").join(program))
            .env("RUNTIME", &self.wrapper)
            .env("TMPDIR", root.path())
            .cwd(directory)
            .deadline(Duration::from_secs(90))
            .run();
        if program.starts_with("linux_cgroups_") || program.starts_with("delete") {
            // The suite leaves the parents of its groups, and after a failure the groups.
            for name in ["cgrouptest", "testdir"] {
                for group in host::cgroups_named(name) {
                    let _ = host::remove_cgroup(&group);
                }
            }
        }
        out
    }
}
