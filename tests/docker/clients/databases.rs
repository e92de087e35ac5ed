//! PostgreSQL, Redis and MariaDB, as people run them.

use std::time::Duration;

use orlop_tests::{Terminal, patient, poll_until};

use super::debian::{CACHE, DATABASE, MARIADB, WEB, prepare};
use super::wanted;
use crate::side::{Side, clients};

/// How long images of this size may take to build, and servers to come up.
const LONG: Duration = Duration::from_secs(300);

/// A shop of three services under a compose.
pub fn shop(side: &mut Side, compose: &str) {
    prepare(side, &[WEB, DATABASE, CACHE]);
    let run = |side: &Side, line: &str| {
        let line = format!("cd $dir/shop && {compose} --ansi never {line} 2>&1");
        let out = side.shell(&line).deadline(patient(LONG)).run();
        assert_eq!(out.code(), 0, "{line}: {out}");
        out.stdout
    };
    let ask = |side: &Side, how: &str| {
        let address = "http://127.0.0.1:8080/";
        side.run(&format!("nsenter --net=/proc/$host/ns/net busybox wget -qO- {how} {address}")).stdout
    };
    let count =
        |side: &Side| run(side, "exec -T database psql -U postgres -tAc 'SELECT count(*) FROM orders' shop");

    run(side, "up --detach --build");
    poll_until(LONG, "an empty shop", || ask(side, "") == "0 orders, 0 clicks\n");
    for number in 1..=3 {
        assert_eq!(ask(side, "--post-data=x"), format!("{number} orders, {number} clicks\n"));
    }
    assert_eq!(count(side), "3\n");
    let said = run(side, "ps");
    assert!(said.contains("(healthy)") && said.contains("127.0.0.1:8080->80/tcp"), "{said}");
    assert!(run(side, "logs database").contains("database system is ready to accept connections"));

    // Taken down and up again: the database ends as it should, and the data is there.
    run(side, "stop database");
    let said = run(side, "logs database");
    assert!(said.contains("received fast shutdown request") && said.contains("is shut down"), "{said}");
    run(side, "down");
    assert_eq!(side.says("$docker ps --all --quiet"), "");
    run(side, "up --detach");
    poll_until(LONG, "the orders", || ask(side, "") == "3 orders, 3 clicks\n");

    // Killed: what was told is there.
    side.says("$docker kill $($docker ps --quiet --filter expose=5432)");
    run(side, "up --detach");
    poll_until(LONG, "the orders", || ask(side, "") == "3 orders, 3 clicks\n");
    assert!(
        run(side, "logs database").contains("was not properly shut down; automatic recovery in progress")
    );

    // The shop stays open without the daemon; the names of the others come back with it, as under dockerd.
    side.manager().kill();
    let open = "nsenter --net=/proc/$host/ns/net busybox wget -qO- http://127.0.0.1:8080/open";
    assert_eq!(side.says(open), "open");
    side.manager().restart();
    poll_until(LONG, "the names", || ask(side, "") == "3 orders, 3 clicks\n");
    assert_eq!(ask(side, "--post-data=x"), "4 orders, 4 clicks\n");
    assert_eq!(count(side), "4\n");

    run(side, "down --volumes --rmi all");
    assert_eq!(side.says("$docker volume ls --quiet; $docker network ls --quiet --filter type=custom"), "");
}

#[test]
fn a_shop_with_postgresql_and_redis() {
    if !wanted("a shop with PostgreSQL and Redis") {
        return;
    }
    let mut side = Side::orlopd_alone(clients().swap_remove(0));
    shop(&mut side, "COMPOSE_DOCKER_CLI_BUILD=0 docker-compose");
    side.finish();
}

#[test]
fn the_introduction_with_mariadb() {
    if !wanted("the introduction with MariaDB") {
        return;
    }
    let side = Side::orlopd_alone(clients().swap_remove(0));
    prepare(&side, &[MARIADB]);
    let built =
        side.shell("cd $dir/shop/mariadb && $docker build -t mariadb .").deadline(patient(LONG)).run();
    assert!(built.stdout.contains("Successfully tagged mariadb:latest"), "{built}");
    side.says("$docker network create todo-app");
    side.says(
        "$docker run -d --restart=always --name db --network todo-app --network-alias mysql -v \
         todo-mysql-data:/var/lib/mysql -e MARIADB_ROOT_PASSWORD=secret -e MARIADB_DATABASE=todos mariadb",
    );
    let client = "mariadb --host mysql --user root --password=secret --skip-column-names todos --execute";
    let ask = |words: &str| {
        side.run(&format!("$docker run --rm --network todo-app --entrypoint '' mariadb {client} '{words}'"))
    };
    poll_until(LONG, "the server", || ask("SELECT 6 * 7").stdout == "42\n");

    // At a terminal, as the introduction has it.
    let shell = side.docker(&["exec", "-it", "db", "mariadb", "-u", "root", "-p", "todos"]);
    let terminal = Terminal::start(&shell, 24, 80);
    for (shown, typed) in [
        ("Enter password:", "\n"),
        ("MariaDB [todos]>", "CREATE TABLE items (name text);\n"),
        ("Query OK, 0 rows affected", "INSERT INTO items VALUES ('milk');\n"),
        ("Query OK, 1 row affected", "SELECT * FROM items;\n"),
        ("1 row in set", "exit\n"),
    ] {
        poll_until(LONG, shown, || terminal.shown().contains(shown));
        terminal.enter(typed);
    }
    let shown = terminal.shown();
    assert_eq!(terminal.wait(LONG), 0);
    assert!(shown.contains("| milk"), "{shown}");
    assert_eq!(ask("SELECT * FROM items").stdout, "milk\n");

    // A server that dies comes back by itself, with what it had.
    side.says("kill -9 $($docker inspect --format '{{.State.Pid}}' db)");
    poll_until(LONG, "the server again", || ask("SELECT * FROM items").stdout == "milk\n");
    assert_eq!(side.says("$docker inspect --format '{{.RestartCount}}' db"), "1");

    // And after it is removed, since its data is a volume's.
    side.says("$docker rm -f db");
    assert_eq!(side.says("$docker volume ls --quiet"), "todo-mysql-data");
    side.says(
        "$docker run -d --name again --network todo-app --network-alias mysql -v todo-mysql-data:/var/lib/mysql -e \
         MARIADB_ROOT_PASSWORD=secret -e MARIADB_DATABASE=todos mariadb",
    );
    poll_until(LONG, "the same data", || ask("SELECT * FROM items").stdout == "milk\n");
    side.says("$docker rm -f again && $docker volume rm todo-mysql-data && $docker network rm todo-app");
    side.finish();
}
