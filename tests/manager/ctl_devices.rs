//! Devices by the files of their vendors (CDI), made up here.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use orlop_tests::{Daemon, Orlopd, Root, busybox_rootfs};

#[test]
fn a_vendors_device_mount_variable_and_hook_are_seen_inside() {
    let root = Root::new();
    let daemon = Orlopd::start(&root);
    let rootfs = root.join("rootfs");
    busybox_rootfs(&rootfs);
    let (first, second, library) = (root.join("cdi1"), root.join("cdi2"), root.join("library"));
    for directory in [&first, &second, &library] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(library.join("libtoy"), "from the vendor\n").unwrap();
    let hook = root.join("hook");
    fs::write(&hook, format!("#!/bin/sh\necho \"$@ $TOLD\" > {}\n", root.join("called").display())).unwrap();
    fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).unwrap();
    let toy = format!(
        "cdiVersion: 0.6.0\nkind: vendor.test/toy\ncontainerEdits:\n  env: [CLASS=toy]\ndevices:\n- name: one\n  \
         containerEdits:\n    env: [TOY=one]\n    deviceNodes:\n    - {{path: /dev/toy, hostPath: /dev/null}}\n    mounts:\n    \
         - {{hostPath: {library:?}, containerPath: /toy, options: [ro, rbind]}}\n    hooks:\n    \
         - {{hookName: createRuntime, path: {hook:?}, args: [toy, word], env: [TOLD=told]}}\n"
    );
    fs::write(first.join("toy.yaml"), toy).unwrap();
    fs::write(first.join("broken.json"), "{").unwrap();
    let gpu = r#"{"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","devices":[
        {"name":"0","containerEdits":{"env":["GPU=0"]}},{"name":"all","containerEdits":{"env":["GPU=every"]}}]}"#;
    fs::write(second.join("gpu.json"), gpu).unwrap();

    let run = |flags: &[&str], script: &str| {
        let words = daemon.orlopctl(["run", "--rm", "--rootfs"]);
        let words = words.arg("--cdi-spec-dir").arg(&first).arg("--cdi-spec-dir").arg(&second);
        words.args(flags).arg(&rootfs).args(["c", "sh", "-c", script]).run()
    };
    let script = "echo $TOY $CLASS; cat /toy/libtoy; echo x > /dev/toy && stat -c '%t %T' /dev/toy; touch /toy/x || echo ro";
    let seen = run(&["--device", "vendor.test/toy=one"], script).success();
    assert_eq!(seen.stdout, "one toy\nfrom the vendor\n1 3\nro\n", "{seen}");
    assert!(seen.stderr.contains("broken.json"), "{seen}");
    assert_eq!(fs::read_to_string(root.join("called")).unwrap(), "word told\n");
    assert_eq!(run(&["--gpus", "0"], "echo $GPU").success().stdout, "0\n");
    assert_eq!(run(&["--gpus", "all"], "echo $GPU").success().stdout, "every\n");
    let missing = run(&["--device", "vendor.test/toy=two", "--device", "/dev/zero"], "true").failure();
    let expected = "CDI device injection failed: unresolvable CDI devices vendor.test/toy=two";
    assert!(missing.stderr.contains(expected), "{missing}");
    let left = daemon.orlopctl(["containers", "ls", "-q"]).run().success();
    assert_eq!(left.stdout, "");
}
