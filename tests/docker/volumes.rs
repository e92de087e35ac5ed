//! Volumes, as a person types them: on orlopd and on Debian's dockerd.

use super::side::{Line, Side, clients, compare};

/// Lines that say and do the same on dockerd.
const LINES: &[Line] = &[
    (0, "$docker volume create --label a=b data"),
    (0, "$docker volume create data"),
    (0, "$docker volume ls --filter label=a=b"),
    (0, "$docker volume inspect --format '{{.Name}} {{.Driver}} {{.Scope}} {{json .Labels}} ' data"),
    (
        0,
        "$run --rm --volume data:/d bb sh -c 'echo kept > /d/file'; $run --rm --volume data:/e:ro bb cat /e/file",
    ),
    (1, "$run --rm --volume data:/e:ro bb touch /e/x"),
    (0, "$run --rm --volume fresh:/bin bb ls /bin/busybox; $run --rm --volume fresh:/f bb ls /f/busybox"),
    (1, "$run --rm --mount type=volume,src=bare,dst=/etc,volume-nocopy bb ls /etc/passwd"),
    (0, "$run --name uses --volume data:/d --volume /anonymous bb true; $docker volume ls --quiet | wc -l"),
    (1, "$docker volume rm data"),
    (0, "$run --rm --volumes-from uses bb cat /d/file"),
    (0, "$docker volume ls --quiet --filter dangling=true | sort"),
    (0, "$docker rm --volumes uses; $docker volume ls --quiet | sort"),
    (0, "$docker volume create -o type=tmpfs -o device=tmpfs -o o=size=1m,noexec small"),
    (0, "$run --rm --volume small:/s bb grep -c '/s tmpfs rw,noexec,relatime,size=1024k' /proc/mounts"),
    (0, "grep -c $dir/.*small/_data /proc/self/mounts || true"),
    (1, "$docker volume create -o nope=1 wrong"),
    (1, "$docker volume create -o type=tmpfs wrong"),
    (1, "$docker volume create -d nope wrong"),
    (1, "$docker volume create a/b"),
    (1, "$docker volume rm nosuch"),
    (1, "$docker volume inspect nosuch"),
    (125, "$run --rm --volume data:relative bb true"),
    (125, "$run --rm --volume data:/d:bogus bb true"),
    (125, "$run --rm --volume data:/d --volume fresh:/d bb true"),
    (0, "$docker volume rm data fresh bare small; $docker volume ls --quiet"),
];

/// Words of errors that both have.
const WORDS: &[(&str, &str)] = &[
    ("$docker volume create -d nope v2", "error looking up volume plugin nope: plugin \"nope\" not found"),
    ("$docker volume create -o foo=bar v3", "create v3: invalid option: \"foo\""),
    ("$docker volume create a/b", "includes invalid characters for a local volume name"),
    (
        "$docker volume create held; $run --name holds -v held:/h bb true; $docker volume rm held",
        "remove held: volume is in use - [",
    ),
    (
        "$docker volume create -o type=none -o device=/no/such -o o=bind gone; $run --rm -v gone:/x bb true",
        "no such file or directory",
    ),
];

#[test]
fn volumes_do_as_under_dockerd() {
    let debian = clients().pop().expect("a client");
    let (ours, reference) = (Side::orlopd_for(debian.clone()), Side::dockerd(debian));
    compare(&ours, &reference, LINES);
    for (line, words) in WORDS {
        for side in [&ours, &reference] {
            let out = side.run(line);
            assert!(out.stderr.contains(words), "{line}: {out}");
        }
    }
    for side in [&ours, &reference] {
        side.says("$docker rm --volumes holds; $docker volume rm held gone");
    }
    ours.finish();
    reference.finish();
}
