//! Debian's dockerd with our runtime beside runc (`--add-runtime`): the same commands, the same answers.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_tests::{Cmd, Daemon, Image, Orlopd, Process, Registry, binaries, poll_until};

use super::callers::{Line, Side, compare};

const LINES: &[Line] = &[
    (7, "$run --rm bb sh -c 'echo out; echo err >&2; exit 7'"),
    (
        0,
        "$run --rm --memory 64m --cpus 0.5 --pids-limit 20 bb sh -c 'cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes \
         cpu/cpu.cfs_quota_us pids/pids.max || cat memory.max cpu.max pids.max'",
    ),
    (0, "$run --rm --user 1000:5 --hostname h --ulimit nofile=64:64 bb sh -c 'id; hostname; ulimit -n'"),
    (
        0,
        "$run --rm --device /dev/fuse --sysctl net.ipv4.ip_forward=1 --shm-size 1m bb \
         sh -c 'ls /dev/fuse; cat /proc/sys/net/ipv4/ip_forward; grep /dev/shm /proc/mounts'",
    ),
    (
        1,
        "$run --rm --volume \"$dir/rootfs:/m:ro\" --mount type=tmpfs,dst=/t bb sh -c 'ls /m; touch /t/x; touch /m/x'",
    ),
    (
        0,
        "$run --rm --read-only --tmpfs /scratch:size=1m,mode=1777 bb sh -c 'touch /x; touch /scratch/x; grep scratch /proc/mounts'",
    ),
    (
        0,
        "$run --rm --pid host --ipc host --uts host --userns host --cgroupns host bb sh -c 'test $$ -ne 1 && echo shared'",
    ),
    (
        0,
        "$run --rm --security-opt no-new-privileges --security-opt seccomp=unconfined --cap-drop ALL bb \
         sh -c 'grep -E \"Cap|NoNewPrivs|Seccomp:\" /proc/self/status'",
    ),
    (0, "$run --rm --cap-add SYS_PTRACE bb sh -c 'grep -E \"Cap|NoNewPrivs|Seccomp:\" /proc/self/status'"),
    (0, "$run --rm --init --oom-score-adj 500 bb sh -c 'cat /proc/1/comm /proc/self/oom_score_adj'"),
    (
        0,
        "script --quiet --return --command \"$run --rm -t bb sh -c 'tty; test -t 1 && echo yes'\" /dev/null | tr -d ^@",
    ),
    (127, "$run --rm bb no-such-program"),
    (126, "$run --rm bb /etc/passwd"),
    (125, "$run --rm --workdir /etc/passwd bb true"),
    // A container that stays.
    (0, "$run --detach --name stays --memory 64m bb sleep 1000 | wc -c"),
    (4, "$docker exec --user 1000 --workdir /tmp --env A=b stays sh -c 'id -u; pwd; echo $A; exit 4'"),
    (0, "script --quiet --return --command \"$docker exec -t stays tty\" /dev/null | tr -d ^@"),
    (126, "$docker exec stays no-such-program"),
    (0, "$docker top stays -eo pid,comm | sed 's/[0-9]//g; s/^ *//'"),
    (0, "$docker pause stays; $docker inspect --format '{{.State.Status}}' stays; $docker unpause stays"),
    (
        0,
        "$docker update --memory 32m --memory-swap 32m --pids-limit 30 stays; $docker exec stays \
         sh -c 'cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max || cat memory.max pids.max'",
    ),
    (0, "$docker stats --no-stream --format '{{.Name}} {{.PIDs}}' stays"),
    (0, "$docker restart --time 0 stays; $docker inspect --format '{{.State.Status}}' stays"),
    (
        0,
        "$docker stop --time 0 stays; $docker inspect --format '{{.State.ExitCode}}' stays; $docker rm stays",
    ),
    (0, "$run --name logs bb sh -c 'echo out; echo err >&2'; $docker logs logs; $docker rm logs"),
    (
        0,
        "$run --detach --name waits bb sh -c 'sleep 0.5; echo end' >/dev/null; $docker attach --no-stdin waits; $docker wait waits; \
         $docker rm waits",
    ),
    (
        0,
        "$run --name oom --memory 16m --memory-swap 16m bb sh -c 'x=a; while :; do x=$x$x; done'; \
         $docker inspect --format '{{.State.OOMKilled}} {{.State.ExitCode}}' oom; $docker rm oom",
    ),
    (
        0,
        "$run --detach --restart on-failure:2 --name again bb sh -c 'exit 3' >/dev/null; \
         until $docker inspect --format '{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}' again | grep '2 exited'; do sleep 0.2; done; \
         $docker rm again",
    ),
    (
        0,
        "$run --detach --name health --health-cmd 'test -f /ok' --health-interval 0.5s --health-retries 1 bb sleep 1000 >/dev/null; \
         until $docker inspect --format '{{.State.Health.Status}}' health | grep unhealthy; do sleep 0.2; done; \
         $docker exec health touch /ok; \
         until $docker inspect --format '{{.State.Health.Status}}' health | grep ^healthy; do sleep 0.2; done; \
         $docker kill health; $docker wait health; $docker rm health",
    ),
    (0, "$docker ps --all --quiet"),
];

/// Lines on which Debian's runc fails, which cannot give capabilities that its caller lacks; what ours has to say is in the line.
const OURS: &[Line] = &[
    (
        0,
        "$run --rm --privileged bb sh -c 'test $(ls /dev | wc -l) -gt 30 && test -w /proc/sys/kernel/domainname && \
         grep Seccomp: /proc/self/status | grep 0'",
    ),
    (
        0,
        "$run --detach --name stays bb sleep 1000 >/dev/null; $docker exec --privileged stays grep CapEff /proc/self/status | \
         grep -v 00000000a80425fb; code=$?; $docker rm --force stays; exit $code",
    ),
];

/// What a dockerd does with an image of a registry, and with a container that is started again.
const PULLED: &[Line] = &[
    (0, "$docker pull --quiet $registry/two:1; $run --rm $registry/two:1 sh -c 'cat /etc/changed'"),
    (
        0,
        "$run --detach --name daemon --restart always bb sh -c 'echo up; exec sleep 1000' >/dev/null; \
         until $docker logs daemon | grep up; do sleep 0.1; done; $docker exec daemon kill -9 1; \
         kill -9 $($docker inspect --format '{{.State.Pid}}' daemon); \
         until $docker inspect --format '{{.RestartCount}} {{.State.Status}}' daemon | grep '1 running'; do sleep 0.2; done; \
         $docker rm --force daemon",
    ),
    (0, "$docker commit daemon 2>&1 | grep -c daemon; $docker images --quiet | wc -l"),
];

/// A dockerd in network namespaces of its own, with everything that it writes below the side's root.
struct Dockerd(Process);

impl Dockerd {
    fn start(side: &mut Side) -> Dockerd {
        // A network namespace of its own: it is to touch nothing of the host's.
        Dockerd::start_by(
            side,
            &["unshare", "--net", "sh", "-c", "ip link set lo up; exec \"$0\" \"$@\""],
            &[],
        )
    }

    /// Starts one by other words, and with more arguments.
    fn start_by(side: &mut Side, by: &[&str], more: &[&str]) -> Dockerd {
        let root = side.root.path().to_owned();
        let path = |name: &str| root.join(name).display().to_string();
        fs::write(side.root.join("daemon.json"), "{}").unwrap();
        let socket = format!("unix://{}", path("socket"));
        let process = Cmd::new(binaries::system(by[0]))
            .args(&by[1..])
            .arg(binaries::system("dockerd"))
            .args(more)
            .args([
                "--config-file",
                &path("daemon.json"),
                "--data-root",
                &path("data"),
                "--exec-root",
                &path("exec"),
            ])
            .args(["--pidfile", &path("pid"), "--host", &socket, "--bridge=none", "--iptables=false"])
            .args(["--ip-forward=false", "--ip-masq=false", "--exec-opt", "native.cgroupdriver=cgroupfs"])
            .arg(format!("--cgroup-parent=/{}", side.root.tag()))
            // A root without CAP_SYS_RESOURCE cannot have docker's own limits.
            .args(["--default-ulimit", "nproc=4096:4096", "--default-ulimit", "nofile=1024:1024"])
            .arg(format!("--add-runtime=orlop={}", binaries::orlop().display()))
            .spawn();
        let docker = binaries::system("docker").display().to_string();
        side.set("DOCKER_HOST", socket);
        side.set("DOCKER_CONFIG", path("client"));
        side.set("run", format!("{docker} run --runtime {} --network none", side.name));
        side.set("docker", docker);
        poll_until(Duration::from_secs(30), "dockerd answers", || {
            side.run("$docker version").status.success()
        });
        let archive = side.archive();
        side.run(&format!("$docker import '{}' bb", archive.display())).success();
        Dockerd(process)
    }

    fn stop(self) {
        self.0.signal(Signal::SIGTERM);
        self.0.wait(Duration::from_secs(30));
    }
}

#[test]
fn dockerd_runs_containers_by_orlop_as_by_runc() {
    let (mut ours, mut reference) = (Side::new("orlop"), Side::new("runc"));
    let daemons = [Dockerd::start(&mut ours), Dockerd::start(&mut reference)];
    compare(&ours, &reference, LINES);
    for (code, line) in OURS {
        let out = ours.run(line);
        assert_eq!(out.code(), *code, "{line}: {out}");
    }
    daemons.into_iter().for_each(Dockerd::stop);
    ours.root.assert_clean();
    reference.root.assert_clean();
}

#[test]
fn dockerd_on_orlopd_does_what_it_does_on_its_own_containerd() {
    let (mut ours, mut reference) = (Side::new("orlop"), Side::new("orlop"));
    let registry = Registry::start(&reference.root);
    Image::two_layers().push(&registry, "two", "1");
    let mut orlopd = Orlopd::start(&ours.root);
    let socket = orlopd.address().display().to_string();
    // The registry is on the host's loopback; without a bridge and rules dockerd leaves the network alone.
    let by = ["env"];
    let daemons = [
        Dockerd::start_by(&mut ours, &by, &["--containerd", &socket]),
        Dockerd::start_by(&mut reference, &by, &[]),
    ];
    for side in [&mut ours, &mut reference] {
        side.set("registry", registry.address());
    }
    compare(&ours, &reference, PULLED);
    // What a container goes through that stays, and the last line, by which nothing is left.
    let stays = LINES.iter().position(|(_, line)| line.contains("--name stays")).expect("the lines have one");
    // A client that attaches may come too late for a container that ends soon, whoever runs it.
    let lines: Vec<Line> =
        LINES[stays..].iter().filter(|(_, line)| !line.contains("attach")).copied().collect();
    compare(&ours, &reference, &lines);
    daemons.into_iter().for_each(Dockerd::stop);
    orlopd.stop();
    drop(registry);
    ours.root.assert_clean();
    reference.root.assert_clean();
}
