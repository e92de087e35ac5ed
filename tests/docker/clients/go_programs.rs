//! docker compose 2 and buildx from Go's module proxy, and a buildkitd for the latter.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_tests::{Cmd, Daemon, Process, binaries, go, patient, poll_until};

use super::{databases, wanted};
use crate::side::{Side, clients};

/// A program of a module.
pub struct Program {
    /// What it is called.
    name: &'static str,
    module: &'static str,
    version: &'static str,
    /// What Go's checksum database says of the module.
    sum: &'static str,
    package: &'static str,
}

pub const COMPOSE: Program = Program {
    name: "docker-compose",
    module: "github.com/docker/compose/v2",
    version: "v2.40.3",
    sum: "h1:XeYkQu1svDtyfZPv5nTwFryQ25ZJMkIlc4pz9HalMPI=",
    package: "./cmd",
};
pub const BUILDX: Program = Program {
    name: "docker-buildx",
    module: "github.com/docker/buildx",
    version: "v0.38.2",
    sum: "h1:TTn5GXRaZatKpvJ4l7xXuS/N8kTIkLFP0WvGRkbbW9U=",
    package: "./cmd/buildx",
};
pub const BUILDKIT: Program = Program {
    name: "buildkitd",
    module: "github.com/moby/buildkit",
    version: "v0.34.2",
    sum: "h1:fXgOe79JW5zJNDumRtwTemOklLX66otQokObUXuiGJo=",
    package: "./cmd/buildkitd",
};

/// Builds a program once; where it is. A module's go.mod may have lines that count only where it is the main one, so that it is
/// built within a copy of itself. It is told its version, which compose asks buildx for.
pub fn build(program: &Program) -> PathBuf {
    let directory =
        binaries::target_dir().join("clients").join(format!("{}@{}", program.name, program.version));
    let built = directory.join(program.name);
    if built.exists() {
        return built;
    }
    let part = directory.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).unwrap();
    let module = format!("{}@{}", program.module, program.version);
    let answer = go(&part).args(["mod", "download", "-json", &module]).run().success();
    let answer: serde_json::Value = serde_json::from_str(&answer.stdout).expect("JSON from go");
    assert_eq!(answer["Sum"], program.sum, "{module} is another one");
    let source = answer["Dir"].as_str().expect("a directory");
    Cmd::new("cp").args(["-r", "--no-preserve=mode", source]).arg(part.join("source")).run().success();
    let flags = format!("-s -w -X {}/version.Version={}", program.module, program.version);
    let build = go(&part.join("source")).args(["build", "-trimpath", "-ldflags", &flags, "-o"]);
    build.arg(part.join(program.name)).arg(program.package).run().success();
    fs::remove_dir_all(part.join("source")).unwrap();
    let _ = fs::remove_dir_all(&directory);
    fs::rename(&part, &directory).unwrap();
    built
}

#[test]
fn the_shop_by_compose_2() {
    if !wanted("docker compose 2") {
        return;
    }
    let compose = build(&COMPOSE);
    let mut side = Side::orlopd_alone(clients().swap_remove(0));
    databases::shop(&mut side, &compose.display().to_string());
    side.finish();
}

/// A buildkitd whose worker is on the engine's own namespace, in the network of the engine's host.
pub fn buildkitd(side: &mut Side) -> Process {
    let program = build(&BUILDKIT).display().to_string();
    let line = format!(
        "exec nsenter --net=/proc/$host/ns/net {program} --root $dir/buildkit --addr unix://$dir/buildkit.sock --oci-worker=false \
         --containerd-worker=true --containerd-worker-net host --containerd-worker-addr {} --containerd-worker-namespace moby",
        side.manager().address().display()
    );
    let process = side.shell(&line).spawn();
    let socket = side.root.join("buildkit.sock");
    poll_until(Duration::from_secs(60), "buildkitd's socket", || socket.exists());
    process
}

/// What the classic builder cannot do: a secret, a cache, and a file that is bound from the context.
const DOCKERFILE: &str = "FROM bb AS made\nRUN --mount=type=cache,target=/cache --mount=type=secret,id=word mkdir /made && cat \
                          /run/secrets/word > /made/word\nRUN --mount=type=bind,source=file,target=/file cat /file > \
                          /made/file\nFROM bb\nCOPY --link --from=made /made /made\nCMD [\"cat\", \"/made/file\", \"/made/word\"]\n";

/// What the engine answers to one who asks for a connection to BuildKit.
fn asked(side: &Side, path: &str, protocol: &str) -> String {
    let mut stream = UnixStream::connect(side.root.join("docker.sock")).expect("connecting");
    let upgrade = format!("Connection: Upgrade, close\r\nUpgrade: {protocol}\r\nContent-Length: 0");
    write!(stream, "POST {path} HTTP/1.1\r\nHost: d\r\n{upgrade}\r\n\r\n").expect("asking");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn who_wants_buildkit_is_told_that_there_is_none() {
    let side = Side::orlopd();
    let answer = asked(&side, "/grpc", "h2c");
    assert!(answer.starts_with("HTTP/1.1 501") && answer.contains("BuildKit is not configured"), "{answer}");
    side.finish();
    let side = Side::orlopd_with_buildkit(clients().swap_remove(0));
    for path in ["/grpc", "/v1.51/session"] {
        let answer = asked(&side, path, "h2c");
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("connect to buildkitd"), "{answer}");
        let answer = asked(&side, path, "tcp");
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("protocol tcp not supported"),
            "{answer}"
        );
    }
    side.finish();
}

#[test]
fn buildx_builds_by_a_buildkitd_into_the_engine() {
    if !wanted("buildx with a buildkitd") {
        return;
    }
    let (buildx, docker) = (build(&BUILDX), clients().swap_remove(0));
    build(&BUILDKIT);
    let mut side = Side::orlopd_with_buildkit(docker);
    side.says("mkdir -p $dir/client/cli-plugins $dir/context && echo a secret > $dir/word && echo from the context > $dir/context/file");
    std::os::unix::fs::symlink(buildx, side.root.join("client/cli-plugins/docker-buildx")).unwrap();
    fs::write(side.root.join("context/Dockerfile"), DOCKERFILE).unwrap();
    let run = |side: &Side, line: &str| {
        let line = format!("cd $dir/context && $docker {line}");
        side.shell(&line).env("DOCKER_BUILDKIT", "1").deadline(patient(Duration::from_secs(300))).run()
    };
    let quiet = "build --quiet --secret id=word,src=$dir/word";
    let build = "build --progress plain --secret id=word,src=$dir/word";

    let buildkitd = buildkitd(&mut side);

    // Into the engine's store, with the ID that the engine has for it.
    run(&side, &format!("{build} --iidfile $dir/id --tag built .")).success();
    assert_eq!(side.says("cat $dir/id"), side.says("$docker images --quiet --no-trunc built"));
    assert_eq!(side.says("$run --rm built"), "from the context\na secret");
    let again = run(&side, &format!("{build} --tag again ."));
    assert!(again.success().stderr.contains("CACHED"), "nothing is made twice");

    // An image whose name is given to another is kept without, and its container goes on; the engine tells of names.
    let old = side.says("cat $dir/id");
    side.says(
        "$docker rmi again && $docker run --name held --network none built && echo changed >> $dir/word",
    );
    let since = side.says("date +%s");
    let said = run(&side, &format!("{build} --no-cache --tag built .")).success().stderr;
    assert!(said.contains("naming to docker.io/library/built:latest"), "{said}");
    assert_eq!(side.says("$docker images --quiet --no-trunc --filter dangling=true"), old);
    side.says("$docker commit held committed && $docker rmi committed && $docker rm held");
    let events =
        side.says(&format!("$docker events --since {since} --until $(date +%s.%N) --filter event=tag"));
    assert!(events.contains("name=built:latest"), "{events}");
    side.says("$docker image prune --force --filter until=1ms");
    assert_eq!(side.says("$docker images --quiet --no-trunc --filter dangling=true"), "");

    // Without a name, to somewhere else, and one that fails.
    let said = run(&side, &format!("{quiet} --label nameless=1 .")).success().stdout;
    assert_eq!(side.says("$docker images --quiet --no-trunc --filter dangling=true"), said.trim());
    run(&side, &format!("{build} --output type=local,dest=$dir/out .")).success();
    assert_eq!(fs::read_to_string(side.root.join("out/made/file")).unwrap(), "from the context\n");
    side.says("printf 'FROM built\nRUN echo wrong >&2; exit 7\n' > $dir/context/Dockerfile");
    let out = run(&side, &format!("{build} ."));
    assert!(out.code() != 0 && out.stderr.contains("wrong") && out.stderr.contains("exit code: 7"), "{out}");

    // buildkitd may go and come; the engine does not mind.
    let images = side.says("$docker images --quiet");
    buildkitd.signal(Signal::SIGTERM);
    buildkitd.wait(Duration::from_secs(60));
    assert_eq!(side.says("$docker images --quiet"), images);
    side.finish();
}
