//! Containers in user namespaces (`userns-remap`): root there is nobody here.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use orlop_tests::binaries;

use super::side::{Line, Side, clients, compare};

/// An image with files of several owners, one of them a program with a capability in the container's eyes.
const IMAGE: &str = "mkdir $dir/owned && cd $dir/owned && printf 'FROM bb\nRUN mkdir -p /data && echo five > /data/five && chown -R 5:6 \
                     /data && id -u\nCOPY --chown=7:8 file /seven\nCOPY file /root-s\nWORKDIR /w/x\nRUN touch here && stat -c %%u:%%g . \
                     /seven /root-s /data/five\n' > Dockerfile && echo file > file && $docker build --quiet=false -t owned . | grep \
                     -v -e '^ --->' -e ^Removing -e ^Successfully -e '^Sending'";

/// Lines that say and do the same on dockerd.
const LINES: &[Line] = &[
    (0, IMAGE),
    (
        0,
        "$docker run --rm owned sh -c 'id -u; cat /proc/self/uid_map /proc/self/gid_map; stat -c \"%u:%g %a %n\" / /data /data/five \
         /seven /root-s /w/x /w/x/here /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /dev/null /proc /sys; echo a >> \
         /etc/hosts; touch /new && chown 5:6 /new && stat -c %u:%g /new; echo out > /dev/stdout; echo err > /dev/stderr; cat \
         /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range; rm /data/five && ls /data'",
    ),
    (
        0,
        "$docker run --rm --user 5:6 owned sh -c 'id; echo own > /data/own && stat -c %u:%g /data/own; echo x > /dev/stdout'",
    ),
    (0, "echo in | $docker run --rm --interactive bb sh -c 'cat /dev/stdin; ls /sys/class/net'"),
    (
        0,
        "$docker run --detach --name kept --volume vol:/data --volume fresh:/fresh --volume $dir/made/deep:/made --tmpfs /t --device \
         /dev/full --sysctl net.core.somaxconn=77 --ulimit nofile=100:200 owned sh -c 'echo logged; exec sleep 10000' >/dev/null; \
         $docker exec kept sh -c 'touch /data/new /fresh/new /made/new /t/new /dev/shm/new; stat -c \"%u:%g %a %n\" /data /data/* /fresh \
         /fresh/* /made /made/* /t /t/* /dev/shm/new /dev/full; cat /proc/sys/net/core/somaxconn; ulimit -H -n'; $docker exec --user \
         5 kept id; $docker exec --tty kept stat -c %u:%g /proc/self/fd/0; $docker logs kept",
    ),
    (
        0,
        "cd $dir; stat -c '%u:%g %n' made made/deep made/deep/new; stat -c %u:%g $($docker volume inspect --format '{{.Mountpoint}}' vol \
         fresh); $docker top kept -o pid,uid,comm | awk '{print $2}'",
    ),
    (
        0,
        "mkdir $dir/copied && echo x > $dir/copied/file && chown -R 7:8 $dir/copied; $docker cp $dir/copied kept:/; $docker cp $dir/copied \
         kept:/data/; $docker exec kept stat -c '%u:%g %n' /copied /copied/file /data/copied/file; $docker exec kept sh -c 'echo y >> \
         /copied/file && chown 9 /copied/file && cat /copied/file'",
    ),
    (
        1,
        "mkdir $dir/far && echo x > $dir/far/file && chown 70000 $dir/far/file; tar -C $dir/far -c file | $docker cp - kept:/",
    ),
    (
        0,
        "$docker export kept | tar -t --verbose --numeric-owner | awk '{print $2, $6}' | grep -e ' copied/' -e ' root-s' -e ' seven' -e ' \
         data/$'; $docker commit kept again >/dev/null; $docker run --rm again stat -c '%u:%g %n' /copied /copied/file /seven",
    ),
    (
        0,
        "$docker stop --time 1 kept; $docker cp $dir/copied/file kept:/later; $docker start kept; $docker exec kept stat -c '%u:%g %n' \
         /later /copied/file; $docker run --rm --network container:kept bb cat /proc/self/uid_map; $docker run --rm --pid container:kept \
         bb cat /proc/self/uid_map; $docker rm --force kept",
    ),
    (125, "$docker run --rm --privileged bb true"),
    (125, "$docker run --rm --network host bb true"),
    (125, "$docker run --rm --pid host bb true"),
    (125, "$docker run --rm --user 70000 bb true"),
    (0, "$docker run --rm --userns host bb cat /proc/self/uid_map /proc/sys/net/ipv4/ping_group_range"),
    (0, "$docker info --format '{{json .SecurityOptions}}' | grep -o name=userns"),
    (0, "printf 'FROM bb\nRUN true\n' | $docker build --network host - 2>&1 | tail -1"),
];

#[test]
fn roots_files_are_those_of_a_user_of_the_host() {
    let debian = clients().pop().expect("a client");
    let ours = Side::orlopd_remapped(debian.clone(), "remapper:remapgrp");
    let reference = Side::dockerd_remapped(debian, "remapper:remapgrp");
    compare(&ours, &reference, LINES);
    // Of an exec by runc it is now and then the hard limit: Go raises the soft one.
    let limited = "$docker run --detach --name limited --ulimit nofile=100:200 bb sleep 1000 >/dev/null; $docker exec limited sh -c 'ulimit -S -n'";
    assert_eq!(ours.says(limited), "100");
    ours.finish();
    reference.finish();
}

/// Lines, and the words in which both engines refuse them.
const WORDS: &[(&str, &str)] = &[
    (
        "$docker run --rm --privileged bb true",
        "privileged mode is incompatible with user namespaces.  You must run the container in the host namespace when running privileged \
         mode",
    ),
    (
        "$docker run --rm --network host bb true",
        "cannot share the host's network namespace when user namespaces are enabled",
    ),
    (
        "$docker run --rm --pid host bb true",
        "cannot share the host PID namespace when user namespaces are enabled",
    ),
];

#[test]
fn the_account_is_made_and_refusals_are_worded_as_under_dockerd() {
    let debian = clients().pop().expect("a client");
    let (ours, reference) =
        (Side::orlopd_remapped(debian.clone(), "default"), Side::dockerd_remapped(debian, "default"));
    for side in [&ours, &reference] {
        for (line, words) in WORDS {
            let out = side.run(line);
            assert!(out.code() == 125 && out.stderr.contains(words), "{line}: {out}");
        }
        let status = "curl --silent --unix-socket $dir/docker.sock --json '{\"Image\": \"bb\", \"HostConfig\": {\"Privileged\": true}}' \
                      --output /dev/null --write-out '%{http_code}' http://d/v1.40/containers/create";
        assert_eq!(side.says(status), "400");
        assert_eq!(
            side.says("$docker run --rm bb cat /proc/self/uid_map").split_whitespace().nth(1),
            Some("100000")
        );
    }
    let accounts = |side: &Side| {
        side.says("cd $dir/etc && cat subuid subgid; grep -h ^dockremap passwd group shadow | cut -d: -f1,7")
    };
    assert_eq!(accounts(&ours), accounts(&reference));
    ours.finish();
    reference.finish();
}

#[test]
fn a_container_keeps_its_users_and_groups() {
    let mut side = Side::orlopd_remapped(binaries::system("docker"), "remapper");
    side.says("$docker run --detach --name old --volume vol:/vol bb sh -c 'echo x > /own; while true; do sleep 1; done'");
    side.says("$docker create --name later bb stat -c %u:%g /own /proc/self");
    side.says("$docker exec old sh -c 'chown 5 /own'");
    side.manager().kill();
    side.manager().restart();
    let looks = "$docker exec old stat -c %u:%g /own; $docker cp old:/own - | tar -t --verbose --numeric-owner | awk '{print $2}'";
    assert_eq!(side.says(looks), "5:0\n5/0");
    // What is kept has the container's owners, as images have: commits and builds read it as it is.
    assert_eq!(side.says("find $dir -path '*/fs/own' -exec stat -c %u:%g {} +"), "5:0");

    // Another setting is for new containers; old ones stay what they were.
    fs::write(side.root.join("daemon.json"), "{}").expect("writing daemon.json");
    side.manager().restart();
    assert_eq!(side.says(looks), "5:0\n5/0");
    assert_eq!(side.says("$docker info --format '{{json .SecurityOptions}}' | grep -c userns || true"), "0");
    assert_eq!(side.says("$docker run --rm bb cat /proc/self/uid_map").split_whitespace().nth(1), Some("0"));
    side.says("$docker restart --time 1 old");
    assert_eq!(
        side.says("$docker exec old cat /proc/self/uid_map").split_whitespace().nth(1),
        Some("200000")
    );
    assert_eq!(side.says("$docker exec old stat -c %u:%g /own /vol"), "5:0\n0:0");
    let data = PathBuf::from(side.says("$docker volume inspect --format '{{.Mountpoint}}' vol"));
    let owner = fs::metadata(&data).map(|found| (found.uid(), found.gid())).expect("the volume");
    assert_eq!(owner, (200_000, 300_000));

    // What belongs to one user namespace is not shared with another.
    let out = side.run("$docker run --name odd --network container:old bb true");
    assert_eq!(out.code(), 0, "the host's root may: {out}");
    fs::write(side.root.join("daemon.json"), "{\"userns-remap\": \"remapper\"}")
        .expect("writing daemon.json");
    side.manager().restart();
    side.says("$docker run --detach --name hosts --userns host bb sleep 1000");
    let out = side.run("$docker run --network container:hosts bb true");
    assert!(
        out.code() == 125 && out.stderr.contains("which is not in a user namespace of the same users"),
        "{out}"
    );
    assert_eq!(
        side.says(
            "$docker run --rm --userns host bb sh -c 'touch /x; stat -c %u:%g /x /etc/hosts /bin/busybox'"
        ),
        "0:0\n0:0\n0:0"
    );
    side.says("$docker run --rm --privileged --userns host --network host --pid host bb true");
    side.finish();
}

/// Settings, and what the daemon says that cannot use them.
const WRONG: &[(&str, &str)] = &[
    (
        "no-such",
        "Error during uid lookup for \"no-such\": getent unable to find entry \"no-such\" in passwd database",
    ),
    (
        "99999",
        "Uid 99999 has no entry in /etc/passwd: getent unable to find entry \"99999\" in passwd database",
    ),
    (
        "7001:99999",
        "Gid 99999 has no entry in /etc/passwd: getent unable to find entry \"99999\" in group database",
    ),
    (
        "remapper:no-such",
        "Error during groupname lookup for \"no-such\": getent unable to find entry \"no-such\" in group database",
    ),
    ("a:b:c", "Invalid user/group specification in --userns-remap: \"a:b:c\""),
    ("games", "Can't create ID mappings: no subuid ranges found for user \"games\""),
];

#[test]
fn a_setting_that_means_nobody_is_refused_as_by_dockerd() {
    let mut side = Side::orlopd_remapped(binaries::system("docker"), "remapper");
    side.manager().stop();
    for (setting, words) in WRONG {
        fs::write(side.root.join("daemon.json"), format!("{{\"userns-remap\": {setting:?}}}"))
            .expect("writing daemon.json");
        side.manager().begin();
        let ours = side.manager().wait();
        assert!(!ours.status.success() && ours.stderr.contains(words), "{setting}: {ours}");
        let reference = side.run(
            "nsenter --net=/proc/$host/ns/net --mount=/proc/$host/ns/mnt dockerd --config-file $dir/daemon.json --data-root $dir/data \
             --exec-root $dir/exec --pidfile $dir/pid --host unix://$dir/reference.sock",
        );
        assert!(reference.code() == 1 && reference.stderr.contains(words), "{setting}: {reference}");
    }
    fs::write(side.root.join("daemon.json"), "{\"userns-remap\": \"7001:7002\"}")
        .expect("writing daemon.json");
    side.manager().restart();
    assert_eq!(
        side.says("$docker run --rm bb cat /proc/self/uid_map").split_whitespace().nth(1),
        Some("200000")
    );
    side.finish();
}
