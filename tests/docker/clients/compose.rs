//! docker compose 2 that builds by BuildKit, as it does unless it is told otherwise: by itself, and by the bake of buildx.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_tests::patient;

use super::go_programs::{BUILDKIT, BUILDX, COMPOSE, build, buildkitd};
use super::wanted;
use crate::side::{Side, clients};

/// Two services of one Dockerfile, and one whose Dockerfile is in the file itself.
const SERVICES: &str = r#"
services:
  first:
    build: {context: app, target: first, args: {WORD: said}, secrets: [key], labels: {of: compose}}
    network_mode: none
  second:
    build: {context: app}
    image: named:1
    network_mode: none
  inline:
    build:
      context: app
      dockerfile_inline: |
        FROM bb
        COPY file /inline
    command: [cat, /inline]
    network_mode: none
secrets:
  key: {file: ./key}
"#;
const DOCKERFILE: &str = "FROM bb AS first\nARG WORD=unsaid\nRUN --mount=type=secret,id=key echo $WORD $(cat /run/secrets/key) > /word\n\
                          CMD [\"cat\", \"/word\"]\nFROM bb\nRUN --mount=type=cache,target=/cache echo second > /word\n\
                          CMD [\"cat\", \"/word\"]\n";

#[test]
fn compose_2_builds_by_a_buildkitd() {
    builds(false);
}

#[test]
fn compose_2_builds_by_the_bake_of_buildx() {
    builds(true);
}

fn builds(by_bake: bool) {
    if !wanted("docker compose 2 with a buildkitd") {
        return;
    }
    let (compose, buildx) = (build(&COMPOSE), build(&BUILDX));
    build(&BUILDKIT);
    let mut side = Side::orlopd_with_buildkit(clients().swap_remove(0));
    side.says("mkdir -p $dir/client/cli-plugins $dir/shop/app && echo a key > $dir/shop/key && echo from the context > $dir/shop/app/file");
    fs::write(side.root.join("shop/compose.yml"), SERVICES).unwrap();
    fs::write(side.root.join("shop/app/Dockerfile"), DOCKERFILE).unwrap();
    // It bakes where it can.
    if by_bake {
        std::os::unix::fs::symlink(&buildx, side.root.join("client/cli-plugins/docker-buildx")).unwrap();
    }
    let buildkitd = buildkitd(&mut side);
    let compose = compose.display();
    let run = |words: &str| {
        let line = format!(
            "cd $dir/shop && unset DOCKER_BUILDKIT && {compose} --ansi never --progress plain {words} 2>&1"
        );
        let out = side.shell(&line).deadline(patient(Duration::from_secs(300))).run();
        assert_eq!(out.code(), 0, "by bake: {by_bake}: {out}");
        out.stdout
    };
    let said = run("build");
    assert_eq!(said.contains("[internal] load local bake definitions"), by_bake, "{said}");
    for name in ["shop-first", "named:1", "shop-inline"] {
        let label = "{{index .Config.Labels \"com.docker.compose.project\"}}";
        assert_eq!(side.says(&format!("$docker image inspect --format '{label}' {name}")), "shop");
    }
    assert_eq!(side.says("$docker image inspect --format '{{.Config.Labels.of}}' shop-first"), "compose");
    assert!(run("build").contains("CACHED"), "nothing is made twice");
    let said = run("up --build");
    for words in ["said a key", "second", "from the context"] {
        assert!(said.contains(words), "{words} in {said}");
    }
    let before = side.says("$docker images --quiet --no-trunc named:1");
    side.says("sed -i s/second/third/ $dir/shop/app/Dockerfile");
    let said = run("up --build second");
    assert!(said.contains("third"), "{said}");
    assert_ne!(side.says("$docker images --quiet --no-trunc named:1"), before);
    run("down --rmi all");
    buildkitd.signal(Signal::SIGTERM);
    buildkitd.wait(Duration::from_secs(60));
    side.finish();
}
