//! Containers, as a person types them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use orlop_tests::{Terminal, poll_until};

use super::side::{Line, Side, clients, compare};

/// Lines that say and do the same on dockerd.
const LINES: &[Line] = &[
    (7, "$run --rm bb sh -c 'echo out; echo err >&2; exit 7'"),
    (0, "echo given | $run --rm --interactive bb cat"),
    (
        0,
        "$run --rm --memory 64m --cpus 0.5 --pids-limit 20 bb sh -c 'cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes \
         cpu/cpu.cfs_quota_us pids/pids.max || cat memory.max cpu.max pids.max'",
    ),
    (
        0,
        "$run --rm --user 1000:5 --hostname h --ulimit nofile=64:64 bb sh -c 'id; hostname; ulimit -n; cat /etc/hostname'",
    ),
    (
        0,
        "$run --rm --device /dev/fuse --sysctl net.ipv4.ip_forward=1 --shm-size 1m bb \
         sh -c 'ls /dev/fuse; cat /proc/sys/net/ipv4/ip_forward; grep /dev/shm /proc/mounts'",
    ),
    (
        1,
        "mkdir -p $dir/m; touch $dir/m/f; $run --rm --volume \"$dir/m:/m:ro\" --mount type=tmpfs,dst=/t bb \
         sh -c 'ls /m; touch /t/x; touch /m/x'",
    ),
    (0, "$run --rm --volume $dir/new:/n bb touch /n/made; ls $dir/new"),
    (
        0,
        "$run --rm --read-only --tmpfs /s:size=1m,mode=1777 bb sh -c 'touch /x; touch /s/x; grep /s /proc/mounts | grep -c size=1024k'",
    ),
    (0, "$run --rm --pid host --ipc host --uts host --userns host bb sh -c 'test $$ -ne 1 && echo shared'"),
    (
        0,
        "$run --rm --security-opt no-new-privileges --security-opt seccomp=unconfined --cap-drop ALL bb \
         sh -c 'grep -E \"Cap|NoNewPrivs|Seccomp:\" /proc/self/status'",
    ),
    (0, "$run --rm --init --oom-score-adj 500 bb sh -c 'cat /proc/1/comm /proc/self/oom_score_adj'"),
    (0, "$run --rm --env A=1 --env B --workdir /tmp --entrypoint /bin/sh bb -c 'echo $A $HOME $PATH; pwd'"),
    (
        0,
        "script --quiet --return --command \"$run --rm -t bb sh -c 'tty; test -t 1 && echo yes'\" /dev/null | tr -d ^@",
    ),
    (0, "$run --rm bb sh -c 'stat -c \"%a %s\" /.dockerenv; readlink /etc/mtab; cat /etc/resolv.conf'"),
    (0, "$run --rm --dns 9.9.9.9 --dns-search s --dns-option ndots:3 bb cat /etc/resolv.conf"),
    (
        0,
        "$run --name marked bb touch /made; $docker diff marked; $docker export marked | tar t | grep -e dockerenv -e mtab; \
         $docker commit marked marked | wc -c; $docker save marked | tar x -C $dir; $docker rm marked; $docker rmi marked | head -1",
    ),
    (0, "$run --rm --user :5 bb id"),
    (0, "$run --rm --platform linux/amd64 bb echo own"),
    (127, "$run --rm bb no-such-program"),
    (126, "$run --rm bb /etc/passwd"),
    (125, "$run --rm --name -bad bb true"),
    (125, "$run --rm --memory 1m bb true"),
    (125, "$run --rm --user nobody-here bb true"),
    (125, "$run --rm --mount type=bind,src=/no/such,dst=/x bb true"),
    (125, "$run --rm --log-driver nope bb true"),
    (0, "$run --detach --name stays --memory 64m bb sleep 1000 | wc -c"),
    (125, "$run --name stays bb true"),
    (4, "$docker exec --user 1000 --workdir /tmp --env A=b stays sh -c 'id -u; pwd; echo $A; exit 4'"),
    (0, "echo given | $docker exec --interactive stays cat"),
    (0, "script --quiet --return --command \"$docker exec -t stays tty\" /dev/null | tr -d ^@"),
    (
        0,
        "$docker exec --detach stays touch /tmp/made; until $docker exec stays ls /tmp/made; do sleep 0.1; done",
    ),
    (1, "$docker rm stays"),
    (0, "$docker top stays -eo pid,comm | sed 's/[0-9]//g; s/^ *//'"),
    (
        0,
        "$docker pause stays; $docker inspect --format '{{.State.Status}} {{.State.Paused}}' stays; $docker unpause stays",
    ),
    (
        0,
        "$docker update --memory 32m --memory-swap 32m --pids-limit 30 stays >/dev/null; $docker exec stays \
         sh -c 'cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes pids/pids.max || cat memory.max pids.max'",
    ),
    (0, "$docker stats --no-stream --format '{{.Name}} {{.PIDs}}' stays"),
    (0, "$docker ps --format '{{.Names}} {{.Image}} {{.State}} {{.Command}}' --filter name=stays"),
    (0, "$docker ps --quiet --filter status=exited; $docker ps --quiet --filter label=nope"),
    (0, "$docker restart --time 0 stays; $docker inspect --format '{{.State.Status}}' stays"),
    (
        0,
        "$docker rename stays renamed; $docker rename renamed stays; $docker inspect --format '{{.Name}}' stays",
    ),
    (
        0,
        "$docker stop --time 0 stays; $docker inspect --format '{{.State.ExitCode}} {{.State.Running}}' stays; \
         $docker start stays; $docker kill stays; $docker wait stays; $docker rm stays",
    ),
    (1, "$docker inspect stays"),
    (0, "$run --name logs bb sh -c 'echo out; echo err >&2'; $docker logs logs; $docker rm logs"),
    (
        0,
        "$run --name logs bb seq 1 20; $docker logs --tail 2 logs; $docker logs --since 2020-01-01T00:00:00Z logs | wc -l; \
         $docker logs --until 2020-01-01T00:00:00Z logs | wc -l; $docker logs --timestamps logs | cut -c 11 | sort -u; \
         $docker logs --follow logs | wc -l; $docker rm logs",
    ),
    (
        0,
        "$run --name turns --log-opt max-size=1k --log-opt max-file=2 bb seq 1 200 >/dev/null; \
         $docker logs turns | tail -1; test $($docker logs turns | wc -l) -lt 60 && echo short; $docker rm turns",
    ),
    (
        0,
        "$run --detach --name waits bb sh -c 'until test -f /go; do echo waiting; sleep 0.1; done; echo end; exit 5' >/dev/null; mkdir -p $dir; \
         $docker attach --no-stdin waits >$dir/attached & until grep -q . $dir/attached; do sleep 0.1; done; \
         $docker exec waits touch /go; wait; tail -1 $dir/attached; $docker wait waits; $docker rm waits",
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
    (
        0,
        "$run --detach --ipc shareable --name other bb sleep 1000 >/dev/null; $docker run --rm --network container:other --pid container:other \
         --ipc container:other bb sh -c 'ps | grep -c \"[s]leep 1000\"'; $docker rm --force other",
    ),
    (
        0,
        "$docker create --name made --label a=b --network none bb true >/dev/null; $docker inspect --format '{{.State.Status}} \
         {{.Config.Labels.a}} {{.HostConfig.NetworkMode}} {{json .Config.Cmd}}' made; $docker start --attach made; \
         $docker ps --all --filter label=a=b --format '{{.Names}}'; $docker rm made",
    ),
    (
        0,
        "$docker create --name recent bb true >/dev/null; $docker container prune --force --filter until=24h; \
         $docker image prune --all --force --filter until=2000-01-01; $docker rm recent",
    ),
    (
        0,
        "$run --detach --name limited --memory 64m --oom-kill-disable --restart on-failure bb sleep 1000 | wc -c; \
         $docker update --memory-swap 128m --restart no limited; $docker top limited odd 2>&1; \
         $docker inspect --format '{{.HostConfig.MemorySwap}} {{.HostConfig.MemorySwappiness}} {{.HostConfig.PidsLimit}}' limited; \
         $docker rm --force limited",
    ),
    (
        0,
        "$run --detach --name prune bb true >/dev/null; $docker wait prune; $docker container prune --force | grep -c Deleted",
    ),
    (1, "$docker logs no-such"),
    (1, "$docker swarm leave"),
    (1, "$docker node ls"),
    (1, "$docker secret ls"),
    (0, "$docker ps --all --quiet"),
];

#[test]
fn containers_do_as_under_dockerd() {
    let debian = clients().pop().expect("a client");
    let (ours, reference) = (Side::orlopd_for(debian.clone()), Side::dockerd(debian));
    compare(&ours, &reference, LINES);
    ours.finish();
    reference.finish();
}

#[test]
fn each_client_is_understood() {
    for client in clients() {
        let side = Side::orlopd_for(client);
        assert_eq!(side.says("$run --rm bb echo hello"), "hello");
        assert_eq!(side.says("echo given | $run --rm -i bb cat"), "given");
        let versions = side.says("$docker version --format '{{.Server.APIVersion}} {{.Server.Os}}'");
        assert!(versions.ends_with(" linux"), "{versions}");
        assert_eq!(
            side.says("$docker info --format '{{.LoggingDriver}} {{.Swarm.LocalNodeState}}'"),
            "json-file inactive"
        );
        side.finish();
    }
}

#[test]
fn a_person_at_a_terminal() {
    let side = Side::orlopd();
    let terminal = Terminal::start(
        &side.docker(&["run", "-it", "--name", "term", "--network", "none", "bb", "sh"]),
        40,
        100,
    );
    poll_until(Duration::from_secs(20), "a prompt", || terminal.shown().contains("# "));
    terminal.enter("stty size; echo $TERM\n");
    poll_until(Duration::from_secs(10), "the size", || {
        terminal.shown().contains("40 100") && terminal.shown().contains("xterm")
    });
    terminal.resize(50, 120);
    poll_until(Duration::from_secs(10), "the new size", || {
        terminal.enter("stty size\n");
        terminal.shown().contains("50 120")
    });
    terminal.enter("\x10\x11");
    assert_eq!(terminal.wait(Duration::from_secs(10)), 0);
    assert_eq!(side.says("$docker inspect --format '{{.State.Running}}' term"), "true");
    let again = Terminal::start(&side.docker(&["attach", "term"]), 40, 100);
    again.enter("echo $((40 + 2))\n");
    poll_until(Duration::from_secs(10), "an answer", || again.shown().contains("42"));
    again.enter("exit 3\n");
    assert_eq!(again.wait(Duration::from_secs(10)), 3);
    side.finish();
}

#[test]
fn events_tell_a_life() {
    let side = Side::orlopd();
    side.says("$run --name lives --label a=b bb true; $docker rm lives");
    let mut told = String::new();
    // The client cuts its own time to seconds, so that the last one is not told of yet.
    poll_until(Duration::from_secs(10), "the end of a life", || {
        told = side.says(
            "$docker events --since 1h --until 0s --filter container=lives --filter event=create --filter event=start \
             --filter event=die --filter event=destroy --format '{{.Action}}' | tr '\\n' ' '",
        );
        told.contains("destroy")
    });
    assert_eq!(told.trim(), "create start die destroy");
    let none = side.says("$docker events --since 1h --until 0s --filter label=a=c");
    assert_eq!(none, "");
    side.finish();
}

#[test]
fn what_is_refused_leaves_nothing() {
    let side = Side::orlopd();
    for (line, words) in [
        ("$run --name n nope:1 true", "Unable to find image 'nope:1' locally"),
        ("$run --runtime nope bb true", "unknown or invalid runtime name: nope"),
        ("$run --cap-add NOPE bb true", "unknown capability: \"CAP_NOPE\""),
        ("$run -v a:b bb true", "invalid volume specification"),
        ("$run -v /a:/x -v /b:/x bb true", "Duplicate mount point: /x"),
        ("$run --rm --restart always bb true", "onflicting options"),
        (
            "$run -d --name donor bb sleep 1000 && $run --rm --ipc container:donor bb true; $docker rm -f donor; false",
            "non-shareable IPC",
        ),
        ("$docker kill nope", "No such container: nope"),
        ("$docker exec nope true", "No such container: nope"),
        ("$docker rmi nope", "No such image: nope:latest"),
        ("$docker start nope", "No such container: nope"),
    ] {
        let out = side.run(line);
        assert_ne!(out.code(), 0, "{line}");
        assert!(out.stderr.contains(words), "{line}: {}", out.stderr);
    }
    assert_eq!(side.says("$docker ps --all --quiet"), "");
    side.finish();
}

#[test]
fn both_apis_see_a_container() {
    use orlop_tests::Daemon;
    let mut side = Side::orlopd();
    let id = side.says("$run --detach bb sleep 1000");
    let address = side.manager().address().to_owned();
    let ctr = |args: &[&str]| {
        let cmd = orlop_tests::Cmd::new(orlop_tests::binaries::system("ctr"));
        cmd.arg("-a").arg(&address).args(["-n", "moby"]).args(args).run().success().stdout
    };
    assert!(ctr(&["containers", "ls", "-q"]).contains(&id));
    assert!(ctr(&["tasks", "ls"]).contains("RUNNING"));
    assert!(ctr(&["images", "ls", "-q"]).contains("docker.io/library/bb:latest"));
    ctr(&["tasks", "kill", "-s", "SIGKILL", &id]);
    assert_eq!(side.says(&format!("$docker wait {id}")), "137");
    side.finish();
}

/// Asks without a client in between, and returns the status.
fn post(side: &Side, path: &str) -> String {
    let mut stream = UnixStream::connect(side.root.join("docker.sock")).expect("connecting");
    let head = format!("POST {path} HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("asking");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer.get(9..12).expect("a status").to_owned()
}

/// Gives a container one name after the other, until something else is done or it is removed; the last one.
fn renamed_while(side: &Side, id: &str, line: &str) -> String {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let renames = scope.spawn(|| {
            let mut last = String::new();
            for name in (0..).map(|number| format!("{}-{number}", &id[..12])) {
                match post(side, &format!("/containers/{id}/rename?name={name}")).as_str() {
                    "204" => last = name,
                    status => {
                        assert_eq!(status, "404");
                        break;
                    }
                }
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            last
        });
        side.says(line);
        stop.store(true, Ordering::Relaxed);
        renames.join().expect("names")
    })
}

#[test]
fn an_end_is_noted_whatever_else_changes() {
    let mut side = Side::orlopd();
    for _ in 0..5 {
        let id = side.says("$run --detach bb sleep 1000");
        // Each new name is stored; an end that comes meanwhile is stored beside it.
        let last = renamed_while(&side, &id, &format!("$docker kill {id}; $docker wait {id}"));
        let shown = side.says(&format!(
            "$docker inspect --format '{{{{.Name}}}} {{{{.State.Status}}}} {{{{.State.ExitCode}}}}' {id}"
        ));
        assert_eq!(shown, format!("/{last} exited 137"));
        // What is removed stays so, whoever was about to change it.
        renamed_while(&side, &id, &format!("$docker rm {id}"));
    }
    side.manager().kill();
    side.manager().restart();
    assert_eq!(side.says("$docker ps --all --quiet"), "");
    side.finish();
}

#[test]
fn changes_are_told_while_garbage_goes() {
    let side = Side::orlopd();
    side.says("$run --name changed bb touch /made");
    std::thread::scope(|scope| {
        let removals = "for n in 1 2 3 4 5; do $docker rm $($docker create bb true); sleep 0.7; done";
        let garbage = scope.spawn(|| side.says(removals));
        while !garbage.is_finished() {
            assert_eq!(side.says("$docker diff changed"), "A /made");
        }
    });
    side.finish();
}
