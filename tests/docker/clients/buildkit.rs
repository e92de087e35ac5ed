//! Debian's docker 20.10 with a buildkitd that the engine has: it has no part of BuildKit in itself but its session.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_tests::{Output, Process, patient, poll_until};

use super::go_programs::{BUILDKIT, build, buildkitd};
use super::wanted;
use crate::side::{Side, clients};

/// What the classic builder cannot do, with an argument and a stage that need not be built.
const DOCKERFILE: &str = "FROM bb AS made\nARG WORD=unsaid\nRUN --mount=type=cache,target=/cache --mount=type=secret,id=key mkdir /made && echo \
                          $WORD $(cat /run/secrets/key) > /made/word\nCOPY file /made/file\nFROM bb AS unneeded\nRUN exit 9\nFROM bb AS \
                          last\nCOPY --from=made /made /made\nCMD [\"cat\", \"/made/file\", \"/made/word\"]\n";

/// An engine with a buildkitd, and a context.
fn side() -> Option<(Side, Process)> {
    if !wanted("docker 20.10 with a buildkitd") {
        return None;
    }
    build(&BUILDKIT);
    let mut side = Side::orlopd_with_buildkit(clients().pop().unwrap());
    side.says("mkdir $dir/context && echo a secret > $dir/key && echo from the context > $dir/context/file");
    fs::write(side.root.join("context/Dockerfile"), DOCKERFILE).unwrap();
    let buildkitd = buildkitd(&mut side);
    Some((side, buildkitd))
}

fn run(side: &Side, line: &str) -> Output {
    let line = format!("cd $dir/context && unset DOCKER_BUILDKIT && $docker {line}");
    side.shell(&line).deadline(patient(Duration::from_secs(300))).run()
}

fn finish(side: Side, buildkitd: Process) {
    buildkitd.signal(Signal::SIGTERM);
    buildkitd.wait(Duration::from_secs(60));
    side.finish();
}

#[test]
fn docker_20_builds_by_a_buildkitd() {
    let Some((side, buildkitd)) = side() else { return };
    let build = "build --progress plain --secret id=key,src=$dir/key";

    // The engine has one, so that it is asked without more.
    let first = "--iidfile $dir/id --build-arg WORD=said --label l=v --target last --platform linux/amd64 -t built -t other:1 .";
    let said = run(&side, &format!("{build} {first}")).success().stderr;
    assert!(said.contains("naming to docker.io/library/built:latest"), "{said}");
    let id = side.says("cat $dir/id");
    assert_eq!(side.says("$docker images --quiet --no-trunc built"), id);
    assert_eq!(side.says("$docker images --quiet --no-trunc other:1"), id);
    assert_eq!(side.says("$docker images --quiet --filter dangling=true"), "");
    assert_eq!(side.says("$docker image inspect --format '{{.Config.Labels.l}}' built"), "v");
    assert_eq!(side.says("$run --rm built"), "from the context\nsaid a secret");
    let again = run(&side, &format!("{build} {first}")).success().stderr;
    assert!(again.contains("CACHED"), "{again}");
    let anew = run(&side, &format!("{build} --no-cache {first}")).success().stderr;
    // What is left is the base.
    assert!(anew.matches("CACHED").count() < again.matches("CACHED").count(), "{anew}");

    // An image that loses its name is kept without one; a quiet build says its image alone.
    let quiet = run(&side, "build --quiet --secret id=key,src=$dir/key -t built .");
    let new = quiet.success().stdout.trim().to_owned();
    assert_eq!(side.says("$docker images --quiet --no-trunc built"), new);
    assert_ne!(id, new);
    side.says("$docker rmi other:1");
    let nameless = run(&side, "build --quiet --secret id=key,src=$dir/key --build-arg WORD=third -t built .");
    assert_ne!(nameless.success().stdout.trim(), new);
    let dangling = side.says("$docker images --quiet --no-trunc --filter dangling=true");
    assert!(dangling.lines().any(|line| line == new), "{dangling}");

    // What buildkitd keeps for later is seen, and goes; the images stay.
    let images = side.says("$docker images --all --quiet --no-trunc");
    let kept = || side.says("$docker system df --format '{{.Type}} {{.TotalCount}}' | grep Build");
    assert_ne!(kept(), "Build Cache 0");
    assert_eq!(side.says("$docker builder prune --force --filter until=1000h"), "Total reclaimed space: 0B");
    let said = side.says("$docker builder prune --all --force");
    assert!(said.contains("Deleted build cache objects:") && !said.contains("space: 0B"), "{said}");
    assert_eq!(kept(), "Build Cache 0");
    assert_eq!(side.says("$docker images --all --quiet --no-trunc"), images);

    // To somewhere else.
    run(&side, &format!("{build} --output type=local,dest=$dir/out .")).success();
    assert_eq!(fs::read_to_string(side.root.join("out/made/file")).unwrap(), "from the context\n");
    finish(side, buildkitd);
}

#[test]
fn docker_20_uploads_a_context_to_a_buildkitd() {
    let Some((side, buildkitd)) = side() else { return };
    // An archive that the client does not look into, a Dockerfile alone, and one beside a context.
    let upload = "tar -C $dir/context -c . | $docker build --progress plain --secret id=key,src=$dir/key -t uploaded -";
    let line = format!("unset DOCKER_BUILDKIT; {upload}");
    side.shell(&line).deadline(patient(Duration::from_secs(300))).run().success();
    assert_eq!(side.says("$run --rm uploaded"), "from the context\nunsaid a secret");
    for (context, command) in [("-", "echo alone"), ("-f - .", "cat file")] {
        let line = format!(
            "printf 'FROM bb\nRUN --network=none true\nCOPY . /\nCMD {command}\n' | $docker build -t piped {context}"
        );
        run(&side, &format!("version >/dev/null; {line}")).success();
        let said = side.says("$run --rm piped");
        assert_eq!(said, if context == "-" { "alone" } else { "from the context" });
    }
    // A program that speaks the API, with neither session nor a client of BuildKit.
    side.says(
        "printf 'FROM bb\nCOPY file /\nRUN --mount=type=cache,target=/c true\n' > $dir/context/Dockerfile",
    );
    let post = "tar -C $dir/context -c . | curl -s --unix-socket $dir/docker.sock -H 'Content-Type: application/x-tar' --data-binary @- \
                'http://d/build?version=2&t=api'";
    let said = side.says(post);
    assert!(said.contains("moby.buildkit.trace") && said.contains("moby.image.id"), "{said}");
    assert_eq!(side.says("$run --rm api cat file"), "from the context");
    finish(side, buildkitd);
}

#[test]
fn what_fails_or_is_given_up_of_a_buildkitds_builds() {
    let Some((side, buildkitd)) = side() else { return };
    for (dockerfile, words) in [
        ("FROM bb\nRUN echo wrong >&2; exit 7\n", "did not complete successfully: exit code: 7"),
        ("FROM bb\nNONSENSE\n", "unknown instruction: NONSENSE"),
        ("", "the Dockerfile cannot be empty"),
    ] {
        fs::write(side.root.join("context/Dockerfile"), dockerfile).unwrap();
        for how in ["--progress plain", "--quiet"] {
            let said = run(&side, &format!("build {how} -t failed ."));
            assert!(said.code() == 1 && said.stderr.contains(words), "{dockerfile:?} {how}: {said}");
        }
    }
    let said = run(&side, "build --network other .");
    assert!(said.stderr.contains("network mode \"other\" not supported by buildkit"), "{said}");

    // Given up: the step ends, and no image is made.
    let long = format!("1{:09}", std::process::id());
    let is_at_work = || side.run(&format!("pgrep -f '[s]leep {long}'")).status.success();
    let dockerfile = format!("FROM bb\nRUN echo begun; sleep {long}\n");
    fs::write(side.root.join("context/Dockerfile"), dockerfile).unwrap();
    let line = "cd $dir/context && unset DOCKER_BUILDKIT && exec $docker build --progress plain -t failed . 2> $dir/said";
    let client = side.shell(line).spawn();
    poll_until(Duration::from_secs(120), "the step", || {
        fs::read_to_string(side.root.join("said")).is_ok_and(|said| said.contains(" begun"))
    });
    assert!(is_at_work());
    client.signal(Signal::SIGINT);
    client.wait(Duration::from_secs(60));
    poll_until(Duration::from_secs(120), "the end of the step", || !is_at_work());
    assert_eq!(side.says("$docker images --quiet failed"), "");
    finish(side, buildkitd);
}
