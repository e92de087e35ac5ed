//! What is refused, in the engine's own words, and that nothing is left of it.

use nix::mount::{MsFlags, mount};
use orlop_tests::{Compression, Image, Layer, Registry, Root, binaries};

use super::side::{Side, clients};

/// Exit code, line, and words of dockerd's that standard error must have on both sides.
const WORDS: &[(i32, &str, &str)] = &[
    (
        125,
        "$docker run --name taken bb true; $docker run --name taken bb true",
        "is already in use by container",
    ),
    (
        125,
        "$docker run --detach --publish 8080:80 --name first bb sleep 1000; $docker run --publish 8080:80 --name second bb true",
        "driver failed programming external connectivity on endpoint second",
    ),
    (125, "$docker run --publish 8080:80 --name third bb true", "port is already allocated"),
    (125, "$docker run nope:1 true", "Unable to find image 'nope:1' locally"),
    (1, "$docker create --pull never nope:1", "No such image: nope:1"),
    (1, "$docker tag nope:1 other", "No such image: nope:1"),
    (1, "$docker push nope:1", "An image does not exist locally with the tag: nope"),
    (1, "$docker rmi bb", "(must force)"),
    (
        1,
        "$docker volume create held >/dev/null; $docker create --name holds --volume held:/v bb true; $docker volume rm held",
        "volume is in use",
    ),
    (125, "$docker run --volumes-from nobody bb true", "No such container: nobody"),
    (125, "$docker run --name itself --volumes-from itself bb true", "No such container: itself"),
    (1, "$docker pull 127.0.0.1:1/nothing", "connection refused"),
    (125, "$docker run 127.0.0.1:1/nothing true", "connection refused"),
    (1, "$docker exec holds true", "is not running"),
    (1, "$docker start nobody", "No such container: nobody"),
    (1, "$docker network rm nothing", "No such network: nothing"),
    (1, "$docker volume rm nothing", "no such volume"),
    (125, "$docker run --network nothing bb true", "network nothing not found"),
    (125, "$docker run --memory 1k bb true", "Minimum memory limit allowed is 6MB"),
    (125, "$docker run --cpus 1000 bb true", "CPUs available"),
    (125, "$docker run --volume /a:/b:odd bb true", "invalid mode: odd"),
    (125, "$docker run --restart sometimes bb true", "restart policy"),
    (125, "$docker run --log-driver nothing bb true", "nothing"),
    (125, "$docker run --cap-add NOTHING bb true", "CAP_NOTHING"),
    (125, "$docker run --cap-add NOTHING bb true", "invalid CapAdd: unknown capability"),
    (125, "$docker run --cap-drop NOTHING bb true", "invalid CapDrop: unknown capability"),
    (125, "$docker run --security-opt seccomp=/nowhere bb true", "/nowhere"),
    (125, "$docker run --user 99999999999 bb true", "uids and gids must be in range 0-2147483647"),
    (
        125,
        "$docker run --network container: bb true",
        "nvalid network mode: invalid container format container:<name|id>",
    ),
    (
        125,
        "$docker run --network container:first --publish 90:90 bb true",
        "port publishing and the container type network mode",
    ),
    (125, "$docker run --network container:first --hostname h bb true", "hostname and the network mode"),
    (
        125,
        "$docker run --network container:first --add-host a:1.1.1.1 bb true",
        "custom host-to-IP mapping and the network mode",
    ),
    (125, "$docker run --network container:first --dns 1.1.1.1 bb true", "dns and the network mode"),
    (
        125,
        "$docker run --network container:first --expose 5 bb true",
        "port exposing and the container type network mode",
    ),
    (125, "$docker run --uts host --hostname h bb true", "hostname and the UTS mode"),
    (
        125,
        "$docker run --network host --ip 1.2.3.4 bb true",
        "user specified IP address is supported on user defined networks only",
    ),
    (125, "$docker run --isolation hyperv bb true", "linux only supports 'default'"),
    (125, "$docker run --log-opt mode=odd bb true", "logging mode not supported: odd"),
    (125, "$docker run --health-interval 1us bb true", "Interval in Healthcheck cannot be less than 1ms"),
    (125, "$docker run --volume /a:/b:ro,rw bb true", "invalid mode: ro,rw"),
    (
        125,
        "$docker run --volume rel:x bb true",
        "invalid mount config for type \"volume\": invalid mount path: 'x'",
    ),
    (
        125,
        "$docker run --mount type=odd,dst=/x bb true",
        "invalid mount config for type \"odd\": mount type unknown",
    ),
    (125, "$docker run --platform linux/arm64 bb true", "Unable to find image 'bb:latest' locally"),
    (1, "$docker kill nobody", "annot kill container: nobody: No such container: nobody"),
    (1, "$docker kill --signal 70 holds", "linux daemon does not support signal 70"),
    (1, "$docker unpause holds", "is not paused"),
    (1, "$docker update --memory 3m holds", "Minimum memory limit allowed is 6MB"),
    (1, "$docker update --cpus 1000 holds", "CPUs available"),
    (1, "$docker update --restart sometimes holds", "restart policy"),
    (1, "$docker ps --filter status=odd", "nvalid filter 'status=odd'"),
    (1, "$docker ps --filter exited=odd", "odd"),
    (1, "$docker ps --filter publish=odd", "odd"),
    (1, "$docker container prune --force --filter until=odd", "failed to parse value as time or duration"),
    (
        127,
        "$docker run nothing-to-run true; $docker run bb nothing-to-run",
        "executable file not found in $PATH",
    ),
];

#[test]
fn refusals_are_worded_as_under_dockerd() {
    let debian = clients().pop().expect("a client");
    let (ours, reference) = (Side::orlopd_alone(debian.clone()), Side::dockerd_alone(debian));
    let mut wrong = Vec::new();
    for (code, line, words) in WORDS {
        for (name, side) in [("orlopd", &ours), ("dockerd", &reference)] {
            let out = side.run(line);
            if out.code() != *code || !out.stderr.to_lowercase().contains(&words.to_lowercase()) {
                wrong.push(format!("{line}\n  expected {code} and {words:?}\n  {name} {out}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What could not be started has neither a port nor an address; what could not be made is not there.
    let left = ours.says("$docker ps --all --format '{{.Names}} {{.Ports}}' | sort");
    let names: Vec<&str> = left.lines().filter_map(|line| line.split(' ').next()).collect();
    for made in ["first", "holds", "second", "taken", "third"] {
        assert!(names.contains(&made), "{left}");
    }
    assert!(!names.contains(&"itself"), "{left}");
    assert_eq!(left.matches("8080").count(), 2, "one port of both families: {left}");
    let line = "$docker network inspect --format '{{range .Containers}}{{.Name}} {{end}}' bridge";
    assert_eq!(ours.says(line).trim(), "first");
    ours.finish();
    reference.finish();
}

#[test]
fn a_full_disk_refuses_and_keeps_nothing() {
    let root = Root::new();
    let data = root.join("small");
    std::fs::create_dir(&data).expect("making a directory");
    mount(Some("tmpfs"), &data, Some("tmpfs"), MsFlags::empty(), Some("size=24m")).expect("a small disk");
    let side = Side::orlopd_on_disk(root, binaries::system("docker"), &data);
    let registry = Registry::start(&side.root);
    // What no compression makes smaller (xorshift).
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let noise: Vec<u8> = (0..16 << 20).map(|_| next()).collect();
    let layer = Layer::new().compressed(Compression::None).file("big", &noise, 0o644);
    Image::new().layer(layer).push(&registry, "big", "1");
    let line = format!("$docker pull {}/big:1", registry.address());
    for _ in 0..2 {
        let out = side.run(&line);
        assert!(out.code() != 0 && out.stderr.contains("no space left on device"), "{out}");
    }
    assert_eq!(side.says("$docker images --format '{{.Repository}}'"), "bb");
    assert_eq!(side.says("$run --rm bb echo still"), "still");
    drop(registry);
    side.finish_on_disk(&data);
}
