//! The usual introduction to Docker, typed as a person would, from an application in a directory to a registry.

use std::time::Duration;

use orlop_tests::{Cmd, Process, Terminal, binaries, poll_until};

use super::side::{APPLICATION, Side, clients};

/// What a registry on the loopback device is told.
const REGISTRY: &str =
    "version: 0.1\nstorage: {filesystem: {rootdirectory: ROOT}}\nhttp: {addr: '127.0.0.1:5000'}\n";

/// A page as the host of the engine sees it.
fn page(side: &Side, address: &str) -> String {
    side.run(&format!("nsenter --net=/proc/$host/ns/net busybox wget -qO- http://{address}")).stdout
}

/// Waits until a page says something.
#[track_caller]
fn shows(side: &Side, address: &str, text: &str) {
    poll_until(Duration::from_secs(30), text, || page(side, address).contains(text));
}

/// A registry on the loopback device of the engine's host.
fn registry(side: &Side) -> Process {
    let root = side.root.join("registry");
    std::fs::create_dir(&root).unwrap();
    let config = REGISTRY.replace("ROOT", &root.display().to_string());
    std::fs::write(side.root.join("registry.yml"), config).unwrap();
    let program = binaries::system("docker-registry").display().to_string();
    let line = format!("exec nsenter --net=/proc/$host/ns/net {program} serve $dir/registry.yml");
    let process = side.shell(&line).spawn();
    poll_until(Duration::from_secs(30), "the registry", || page(side, "127.0.0.1:5000/v2/").contains("{}"));
    process
}

#[test]
fn the_introduction_works_as_it_is_written() {
    let side = Side::orlopd_alone(clients().swap_remove(0));

    // An image from a Dockerfile, and a container in the background.
    side.says(APPLICATION);
    let said = side.says("cd $dir/app && $docker build -t getting-started .");
    assert!(said.contains("Successfully tagged getting-started:latest"), "{said}");
    side.says("$docker run -dp 127.0.0.1:3000:3000 --name todo getting-started");
    shows(&side, "127.0.0.1:3000", "You have no todo items yet!");
    assert!(side.says("$docker ps").contains("127.0.0.1:3000->3000/tcp"));

    // A change: built again, only what changed; the port is in use until the old one goes.
    side.says("echo 'Add one above!' > $dir/app/src/index.html");
    let said = side.says("cd $dir/app && $docker build -t getting-started .");
    assert_eq!(said.matches("Using cache").count(), 1, "{said}");
    let out = side.run("$docker run -dp 127.0.0.1:3000:3000 --name next getting-started");
    assert_eq!(out.code(), 125, "{out}");
    assert!(out.stderr.contains("port is already allocated"), "{out}");
    side.says("$docker rm next && $docker stop -t 1 todo && $docker rm todo");
    side.says("$docker run -dp 127.0.0.1:3000:3000 --name todo getting-started");
    shows(&side, "127.0.0.1:3000", "Add one above!");

    // To a registry and back.
    let mut registry = registry(&side);
    side.says("$docker tag getting-started 127.0.0.1:5000/me/getting-started");
    let said = side.says("$docker push 127.0.0.1:5000/me/getting-started");
    assert!(said.contains("latest: digest: sha256:"), "{said}");
    side.says("$docker rm -f todo && $docker rmi 127.0.0.1:5000/me/getting-started getting-started");
    side.says("$docker run -dp 127.0.0.1:3000:3000 --name todo 127.0.0.1:5000/me/getting-started");
    shows(&side, "127.0.0.1:3000", "Add one above!");
    registry.end();

    // A volume outlives its container; a directory of the host is seen at once.
    side.says("$docker volume create todo-db");
    side.says("$docker run --rm --mount type=volume,src=todo-db,target=/etc/todos bb sh -c 'echo milk > /etc/todos/list'");
    assert_eq!(
        side.says(
            "$docker run --rm --mount type=volume,src=todo-db,target=/etc/todos bb cat /etc/todos/list"
        ),
        "milk"
    );
    side.says("$docker run -dp 3001:3000 --name dev -w /app -v $dir/app:/app bb sh serve.sh");
    side.says("echo 'seen at once' > $dir/app/src/index.html");
    shows(&side, "127.0.0.1:3001", "seen at once");

    // A database on a network of its own, found by its alias; restarted when it ends.
    side.says("$docker network create todo-app");
    side.says(
        "$docker run -d --restart=always --name db --network todo-app --network-alias mysql -v todo-data:/var/lib -e \
         SECRET=secret bb sh -c 'echo $SECRET > /var/lib/answer; busybox nc -l -p 3306 < /var/lib/answer'",
    );
    let ask = "$docker run --rm --network todo-app bb busybox nc mysql 3306";
    poll_until(Duration::from_secs(30), "an answer", || side.run(ask).stdout == "secret\n");
    poll_until(Duration::from_secs(30), "an answer after the restart", || side.run(ask).stdout == "secret\n");

    in_terminals(&side);

    // Files in and out, and an image of what became of a container.
    side.says(
        "echo given > $dir/given && $docker cp $dir/given dev:/tmp/ && $docker cp dev:/tmp/given $dir/back",
    );
    assert_eq!(std::fs::read_to_string(side.root.join("back")).unwrap(), "given\n");
    side.says("$docker commit -m 'with a file' dev mine:1");
    assert_eq!(side.says("$docker run --rm mine:1 cat /tmp/given"), "given");
    assert!(side.says("$docker image history mine:1").contains("with a file"));

    side.says(
        "$docker rm -f todo dev db && $docker volume rm todo-db todo-data && $docker network rm todo-app",
    );
    side.says("$docker system prune -f >/dev/null && $docker images");
    side.finish();
}

/// `exec -it`, `attach` and `logs -f`, each at a terminal.
fn in_terminals(side: &Side) {
    let at = |args: &[&str]| -> Cmd { side.docker(args) };
    let terminal = Terminal::start(&at(&["exec", "-it", "dev", "sh"]), 24, 80);
    poll_until(Duration::from_secs(20), "a prompt", || terminal.shown().contains("# "));
    terminal.enter("echo $((6 * 7)); exit 5\n");
    poll_until(Duration::from_secs(20), "the answer", || terminal.shown().contains("42"));
    assert_eq!(terminal.wait(Duration::from_secs(20)), 5);
    side.says("$docker run -dit --name shell bb sh");
    let terminal = Terminal::start(&at(&["attach", "shell"]), 24, 80);
    poll_until(Duration::from_secs(20), "what was typed", || {
        terminal.enter("echo over and out > /said\n");
        side.run("$docker exec shell cat /said").stdout == "over and out\n"
    });
    terminal.enter("exit 6\n");
    assert_eq!(terminal.wait(Duration::from_secs(20)), 6);
    assert!(side.says("$docker logs shell").contains("over and out"));
    side.says("$docker rm shell");
}
