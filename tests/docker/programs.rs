//! Programs that people use Docker by: compose and the Python SDK, both as Debian has them.

use std::time::Duration;

use orlop_tests::{binaries, poll_until};

use super::side::{Side, clients};

/// A place of these programs' files.
fn file(name: &str) -> String {
    format!("{}/docker/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn compose_brings_up_and_down() {
    binaries::system("docker-compose");
    let side = Side::orlopd_alone(clients().swap_remove(0));
    side.says(&format!(
        "mkdir -p $dir/project/web && cp {} $dir/project/docker-compose.yml && cp {} {} $dir/project/web/",
        file("compose.yml"),
        file("Dockerfile"),
        file("serve")
    ));
    let compose = |line: &str| {
        // Its own client builds; the command line's would need BuildKit.
        side.says(&format!(
            "cd $dir/project && COMPOSE_DOCKER_CLI_BUILD=0 docker-compose --ansi never {line} 2>&1"
        ))
    };
    let page = |path: &str| {
        side.run(&format!("nsenter --net=/proc/$host/ns/net busybox wget -qO- http://127.0.0.1:8080/{path}"))
    };
    let said = compose("up --detach");
    assert!(said.contains("Successfully tagged compose-web:latest"), "{said}");
    poll_until(Duration::from_secs(30), "the page", || page("index.html").stdout == "first\n");
    let said = compose("ps");
    assert!(said.contains("127.0.0.1:8080->80/tcp") && said.matches(" Up ").count() == 2, "{said}");
    let said = compose("logs");
    assert!(said.contains("store is up") && said.contains("web is up"), "{said}");
    assert_eq!(page("store").stdout.trim().len(), 12, "the store's name, by which it was asked");
    assert_eq!(compose("exec -T web sh -c 'echo second > /pages/index.html; echo $STORE'"), "store");
    let said = compose("restart web");
    assert!(said.contains("done"), "{said}");
    poll_until(Duration::from_secs(30), "the page", || page("index.html").stdout == "second\n");
    compose("down");
    assert_eq!(side.says("$docker ps --all --quiet"), "");
    // The volume outlives the project.
    compose("up --detach");
    poll_until(Duration::from_secs(30), "the page", || page("index.html").stdout == "second\n");
    compose("down --volumes --rmi all");
    assert_eq!(side.says("$docker volume ls --quiet; $docker network ls --quiet --filter type=custom"), "");
    side.finish();
}

#[test]
fn the_python_sdk_does_what_it_does_elsewhere() {
    let side = Side::orlopd_alone(clients().swap_remove(0));
    let said = side.says(&format!("{} {}", binaries::system("python3").display(), file("sdk.py")));
    assert_eq!(said, "done");
    side.finish();
}
