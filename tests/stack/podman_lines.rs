//! More of what podman does with a runtime, pods and `kube play` included: the same commands, the same answers as on runc.

use orlop_tests::{binaries, host};

use super::callers::{Line, Side, compare};

const LINES: &[Line] = &[
    (
        0,
        "$run --rm --memory 64m --cpus 0.5 --pids-limit 20 localhost/bb:1 sh -c 'cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes \
         cpu/cpu.cfs_quota_us pids/pids.max || cat memory.max cpu.max pids.max'",
    ),
    (
        0,
        "$run --rm --user 1000:5 --hostname h --ulimit nofile=64:64 --ulimit nproc=4096:4096 localhost/bb:1 sh -c 'id; hostname; ulimit -n'",
    ),
    (
        0,
        "$run --rm --device /dev/fuse --sysctl net.ipv4.ip_forward=1 --shm-size 1m localhost/bb:1 \
         sh -c 'ls /dev/fuse; cat /proc/sys/net/ipv4/ip_forward; grep /dev/shm /proc/mounts'",
    ),
    (
        0,
        "$run --rm --read-only --tmpfs /scratch:size=1m,mode=1777 localhost/bb:1 \
         sh -c 'touch /x; touch /scratch/x; grep scratch /proc/mounts'",
    ),
    (
        0,
        "$run --rm --privileged localhost/bb:1 sh -c 'grep -E \"Cap|Seccomp:\" /proc/self/status; ls /dev | wc -l; ls -d /sys/fs/cgroup/*'",
    ),
    (0, "$run --rm --pid host --ipc host --uts host localhost/bb:1 sh -c 'test $$ -ne 1 && echo shared'"),
    (
        0,
        "$run --rm --uidmap 0:100000:5000 --gidmap 0:100000:5000 localhost/bb:1 sh -c 'cat /proc/self/uid_map; touch /x; stat -c %u /x'",
    ),
    (0, "$run --rm --userns host --cgroupns host localhost/bb:1 sh -c 'cat /proc/self/uid_map'"),
    (
        0,
        "$run --rm --security-opt no-new-privileges --security-opt seccomp=unconfined --cap-drop ALL localhost/bb:1 \
         sh -c 'grep -E \"Cap|NoNewPrivs|Seccomp:\" /proc/self/status'",
    ),
    (
        0,
        "$run --rm --security-opt mask=/etc --security-opt unmask=/proc/kcore localhost/bb:1 sh -c 'ls /etc | wc -l; ls -l /proc/kcore | cut -c1'",
    ),
    (
        0,
        "script --quiet --return --command \"$run --rm -t localhost/bb:1 sh -c 'tty; test -t 1 && echo yes'\" /dev/null | tr -d ^@",
    ),
    (
        0,
        "$run --name logs localhost/bb:1 sh -c 'echo out; echo err >&2'; $podman logs logs; $podman rm logs >/dev/null",
    ),
    (0, "$run --detach --name stays --memory 64m localhost/bb:1 sleep 1000 | wc -c"),
    (4, "$podman exec --user 1000 --workdir /tmp --env A=b stays sh -c 'id -u; pwd; echo $A; exit 4'"),
    (0, "$podman exec --privileged stays grep Cap /proc/self/status"),
    (0, "script --quiet --return --command \"$podman exec -t stays tty\" /dev/null | tr -d ^@"),
    (0, "$podman top stays comm user"),
    (0, "$podman pause stays; $podman inspect --format '{{.State.Status}}' stays; $podman unpause stays"),
    (
        0,
        "$podman update --memory 32m stays >/dev/null; $podman exec stays \
         sh -c 'cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes || cat memory.max'",
    ),
    (0, "$podman stats --no-stream --format '{{.Name}} {{.PIDs}}' stays"),
    (0, "$podman restart --time 0 stays >/dev/null; $podman inspect --format '{{.State.Status}}' stays"),
    (
        0,
        "$podman stop --time 0 stays; $podman inspect --format '{{.State.ExitCode}}' stays; $podman rm stays >/dev/null",
    ),
    (
        0,
        "$run --detach --name health --health-cmd 'test -f /ok' --health-interval disable localhost/bb:1 sleep 1000 >/dev/null; \
         $podman healthcheck run health; $podman exec health touch /ok; $podman healthcheck run health && echo healthy; \
         $podman kill health >/dev/null; $podman wait health; $podman rm health >/dev/null",
    ),
    (
        0,
        "$run --detach --restart on-failure:2 --name again localhost/bb:1 sh -c 'exit 3' >/dev/null; \
         until $podman inspect --format '{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}' again 2>/dev/null | grep '2 exited'; do sleep 0.2; done; \
         $podman rm again >/dev/null",
    ),
    (127, "$run --rm localhost/bb:1 no-such-program"),
    (126, "$run --rm localhost/bb:1 /etc/passwd"),
    // Pods: containers that share namespaces with one that only sleeps.
    (
        0,
        "$podman pod create --name pod --network none --cgroup-parent /$tag --infra-image localhost/bb:1 --share ipc,uts,net,pid \
         --hostname inpod >/dev/null; $inpod --detach --name first --pod pod localhost/bb:1 sleep 1000 | wc -c",
    ),
    (0, "$inpod --rm --pod pod localhost/bb:1 sh -c 'hostname; ps -o comm | grep -c sleep'"),
    (
        0,
        "$podman pod ps --format '{{.Name}} {{.Status}} {{.NumberOfContainers}}'; $podman pod pause pod >/dev/null; \
         $podman inspect --format '{{.State.Status}}' first; $podman pod unpause pod >/dev/null; $podman pod top pod comm",
    ),
    (
        0,
        "$podman pod stop --time 0 pod >/dev/null 2>&1; $podman pod rm --force pod >/dev/null 2>&1; $podman ps --all --quiet",
    ),
    (
        0,
        "$podman kube play --network none \"$dir/pod.yaml\" >/dev/null; $podman logs kube-one; \
         $podman exec kube-one sh -c 'hostname; cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max; \
         touch /x; id -u'",
    ),
    (
        0,
        "$podman kube down \"$dir/pod.yaml\" >/dev/null 2>&1; $podman ps --all --quiet; $podman rmi --all --force >/dev/null",
    ),
];

/// A pod for `kube play`.
const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: kube}
spec:
  restartPolicy: Never
  containers:
  - name: one
    image: localhost/bb:1
    imagePullPolicy: Never
    env: [{name: PATH, value: /bin}]
    command: [sh, -c, echo from kube; sleep 1000]
    resources: {limits: {memory: 64Mi}}
    securityContext: {readOnlyRootFilesystem: true, runAsUser: 1000}
";

/// Gives the lines what they need, with everything that podman writes below the side's root.
fn prepare(side: &mut Side) {
    let root = side.root.path().to_owned();
    let path = |name: &str| root.join(name).display().to_string();
    // Only runtimes that are named here are asked for errors in JSON. A root without CAP_SYS_RESOURCE cannot have podman's own
    // limits.
    let configuration = "[engine]\nruntime_supports_json = [\"orlop\", \"runc\"]\ninfra_image = \"localhost/bb:1\"\n\
         [containers]\ncgroups = \"no-conmon\"\nbase_hosts_file = \"none\"\n\
         default_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n";
    std::fs::write(path("containers.conf"), configuration).unwrap();
    std::fs::write(path("pod.yaml"), POD).unwrap();
    std::fs::create_dir(path("xdg")).unwrap();
    let podman = format!(
        "{} --root {} --runroot {} --tmpdir {} --cgroup-manager cgroupfs --events-backend file --storage-driver overlay --runtime {}",
        binaries::system("podman").display(),
        path("storage"),
        path("run"),
        path("tmp"),
        side.binary().display()
    );
    side.set("CONTAINERS_CONF", path("containers.conf"));
    side.set("XDG_RUNTIME_DIR", path("xdg"));
    side.set("run", format!("{podman} run --network none --cgroup-parent /{}", side.root.tag()));
    side.set("inpod", format!("{podman} run"));
    side.set("podman", podman);
    let archive = side.archive();
    side.run(&format!(
        "$podman import --change 'CMD=[\"sleep\",\"1000\"]' '{}' localhost/bb:1",
        archive.display()
    ))
    .success();
}

#[test]
fn podman_answers_by_orlop_as_by_runc() {
    let _monitors = super::podman::Monitors::new();
    let (mut ours, mut reference) = (Side::new("orlop"), Side::new("runc"));
    prepare(&mut ours);
    prepare(&mut reference);
    compare(&ours, &reference, LINES);
    for side in [&ours, &reference] {
        super::podman::unmount_storage(&side.root.join("storage/overlay"));
        // podman makes a pod's group and takes it away from the hierarchies that it knows, which are not all.
        for group in host::cgroups_named(side.root.tag()) {
            host::child_directories(&group).iter().for_each(|pod| drop(host::remove_cgroup(pod)));
        }
        side.root.assert_clean();
    }
}
