//! buildah with our runtime beside runc (`--runtime`): the same commands, the same answers.

use orlop_tests::binaries;

use super::callers::{Line, Side, compare};

const LINES: &[Line] = &[
    (0, "$buildah from --name work --pull-never localhost/bb:1"),
    (7, "$run work sh -c 'echo out; echo err >&2; exit 7'"),
    (
        0,
        "$run --env A=b --user 1000:5 --workingdir /tmp --hostname h work sh -c 'id; pwd; echo $A; hostname'",
    ),
    (0, "$run --cap-drop ALL work grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status"),
    (0, "$run --cap-add CAP_SYS_PTRACE work grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status"),
    (
        0,
        "$run --volume \"$dir/rootfs:/m:ro\" --mount type=tmpfs,dst=/t work sh -c 'ls /m; touch /t/x; touch /m/x || true'",
    ),
    (1, "$run work no-such-program"),
    (1, "$run work /etc/passwd"),
    (0, "script --quiet --return --command \"$run --tty work tty\" /dev/null | tr -d ^@"),
    (0, "$run work sh -c 'echo kept >/kept'"),
    (
        0,
        "printf 'FROM localhost/bb:1\\nRUN id -u >/user && cat /proc/1/comm\\nUSER 1000\\nRUN test $(id -u) = 1000\\n' >\"$dir/Containerfile\"; \
         $buildah build --quiet $isolation --memory 64m --ulimit nofile=64:64 --file \"$dir/Containerfile\" --pull-never --tag made \"$dir/context\" | wc -c",
    ),
    (0, "$buildah from --name next --pull-never localhost/made; $run next cat /user"),
    (0, "$buildah rm --all | wc -l; $buildah rmi --all --force >/dev/null"),
];

/// Gives the lines what they need, with everything that buildah writes below the side's root.
fn prepare(side: &mut Side) {
    let path = |name: &str| side.root.join(name).display().to_string();
    let buildah = format!(
        "{} --root {} --runroot {} --storage-driver overlay",
        binaries::system("buildah").display(),
        path("storage"),
        path("run")
    );
    // A root without CAP_SYS_RESOURCE cannot have the limits that containers/common would give.
    let configuration = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n";
    std::fs::write(path("containers.conf"), configuration).unwrap();
    let settings = [("CONTAINERS_CONF", path("containers.conf")), ("XDG_RUNTIME_DIR", path("xdg"))];
    let isolation = format!(
        "--isolation oci --runtime {} --network none --cgroup-parent /{}",
        side.binary().display(),
        side.root.tag()
    );
    for directory in ["xdg", "context"] {
        std::fs::create_dir(path(directory)).unwrap();
    }
    for (name, value) in settings {
        side.set(name, value);
    }
    side.set(
        "run",
        format!("{buildah} run --isolation oci --runtime {} --network none", side.binary().display()),
    );
    side.set("isolation", isolation);
    side.set("buildah", buildah);
    let archive = side.archive();
    let import = format!(
        "$buildah from --name first scratch && $buildah add --quiet first '{}' / && $buildah commit --quiet first localhost/bb:1 && $buildah rm first",
        archive.display()
    );
    side.run(&import).success();
}

#[test]
fn buildah_runs_and_builds_by_orlop_as_by_runc() {
    let (mut ours, mut reference) = (Side::new("orlop"), Side::new("runc"));
    prepare(&mut ours);
    prepare(&mut reference);
    compare(&ours, &reference, LINES);
    for side in [&ours, &reference] {
        super::podman::unmount_storage(&side.root.join("storage/overlay"));
        side.root.assert_clean();
    }
}
