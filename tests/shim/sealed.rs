//! orlop's binary, which the shim has executed from a read-only mount of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use orlop_tests::shim::{Fifos, Shim, read_to_end, reader};
use orlop_tests::{Cmd, Root, binaries};
use serde_json::{Value, json};

/// A copy of the runtime that a test may do anything to.
fn copied(root: &Root) -> PathBuf {
    let path = root.join("bin/orlop");
    fs::create_dir(root.join("bin")).expect("making a directory");
    // By a program: a file that another thread's child still has open for writing cannot be executed.
    Cmd::new("cp").arg(binaries::orlop()).arg(&path).run().success();
    path
}

fn write_program(path: &Path, text: &str) {
    fs::write(path, text).expect("writing a program");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("making it executable");
}

/// CVE-2019-5736, as in the runtime's own suite: an exec of `#!/proc/self/exe` runs the runtime's binary inside the container, where
/// another process gets hold of it and writes to it.
#[test]
fn it_cannot_be_overwritten_from_a_container() {
    let root = Root::new();
    let victim = copied(&root);
    let before = fs::read(&victim).unwrap();
    let mut shim = Shim::start_with(&root, "c", &victim, |mut bundle| {
        // A developer's build is not static: it finds its libraries in the container.
        for library in ["/lib", "/lib64", "/usr/lib"].into_iter().filter(|path| Path::new(path).exists()) {
            bundle =
                bundle.mount(json!({"destination": library, "source": library, "options": ["rbind", "ro"]}));
        }
        bundle.args(["sleep", "1000"])
    });
    // In the container the runtime's binary is made to wait for the state of a container that is a FIFO.
    fs::create_dir_all(shim.bundle.rootfs("/run/orlop/x")).unwrap();
    mkfifo(&shim.bundle.rootfs("/run/orlop/x/state.json"), Mode::S_IRWXU).unwrap();
    write_program(&shim.bundle.rootfs("/entry"), "#!/proc/self/exe --log\n");
    shim.run();

    let mut request = shim.exec_request("victim", "", &Fifos::default());
    let spec = request.spec.as_mut().unwrap();
    let mut process: Value = serde_json::from_slice(&spec.value).unwrap();
    process["args"] = json!(["/entry", "state", "x"]);
    spec.value = process.to_string().into_bytes();
    shim.client.call::<()>("Exec", &request).unwrap();
    shim.start_process("victim").unwrap();

    let stdio = Fifos::output(&root, "attacker");
    let (out, complaints) = (reader(&stdio.stdout), reader(&stdio.stderr));
    let script = "
        victim=$(grep -l '^/proc/self/exe' /proc/[0-9]*/cmdline | head -n1); victim=${victim%/cmdline}
        exec 3<$victim/exe
        echo >/run/orlop/x/state.json
        while [ -d $victim ]; do sleep 0.05; done
        head -c 4 <&3 | tail -c 3
        echo overwritten >/proc/self/fd/3";
    shim.exec("attacker", script, &stdio);
    shim.start_process("attacker").unwrap();
    shim.wait("attacker");
    // It has got hold of the program, and of nothing that can be written.
    assert_eq!(read_to_end(out), "ELF");
    let complaints = read_to_end(complaints);
    assert!(complaints.contains("Read-only file system"), "{complaints}");
    assert!(fs::read(&victim).unwrap() == before, "it was overwritten");
    for exec in ["attacker", "victim"] {
        shim.wait(exec);
        shim.delete(exec).unwrap();
    }
    shim.finish();
    root.assert_clean();
}

/// An upgrade while containers run.
#[test]
fn the_one_that_took_its_place_is_executed_next() {
    let root = Root::new();
    let (path, next) = (copied(&root), root.join("next"));
    let mut shim = Shim::start_with(&root, "c", &path, |bundle| bundle.args(["sleep", "1000"]));
    shim.run();
    let noted = root.join("noted");
    let script =
        format!("#!/bin/sh\necho new >>{}\nexec {} \"$@\"\n", noted.display(), binaries::orlop().display());
    write_program(&next, &script);
    fs::rename(&next, &path).unwrap();
    shim.exec("e", "exit 3", &Fifos::default());
    shim.start_process("e").unwrap();
    assert_eq!(shim.wait("e"), 3);
    assert_eq!(fs::read_to_string(noted).unwrap(), "new\n");
    shim.delete("e").unwrap();
    shim.finish();
    root.assert_clean();
}
