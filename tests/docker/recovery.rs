//! Containers outlive the daemon.

use std::path::Path;
use std::time::Duration;

use orlop_tests::poll_until;

use super::side::Side;

/// Goes on until a file says otherwise.
const UNTIL_TOLD: &str = "until test -f /end/now; do sleep 0.1; done";

/// Kills the daemon, and has a container end while there is none.
fn end_without_daemon(side: &mut Side, name: &str) {
    let pid = side.says(&format!("$docker inspect --format '{{{{.State.Pid}}}}' {name}"));
    side.manager().kill();
    std::fs::write(side.root.join("end/now"), "").expect("a word to end");
    let process = Path::new("/proc").join(pid);
    poll_until(Duration::from_secs(20), "the end of the process", || !process.exists());
}

#[test]
fn a_running_container_outlives_the_daemon() {
    let mut side = Side::orlopd();
    side.says("$run -d --name counts bb sh -c 'i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done'");
    side.says(&format!(
        "mkdir $dir/end && $run -d --name ends -v $dir/end:/end bb sh -c '{UNTIL_TOLD}; exit 9'"
    ));
    side.says("$run -d --name reads -i bb sh -c 'read word; echo got $word'");
    poll_until(Duration::from_secs(10), "some lines", || {
        side.says("$docker logs counts").lines().count() > 3
    });
    end_without_daemon(&mut side, "ends");
    side.manager().restart();
    assert_eq!(side.says("$docker inspect --format '{{.State.Status}}' counts"), "running");
    let seen = side.says("$docker logs counts").lines().count();
    poll_until(Duration::from_secs(10), "more lines", || {
        side.says("$docker logs counts").lines().count() > seen
    });
    let lines = side.says("$docker logs counts");
    let numbers: Vec<usize> = lines.lines().map(|line| line.parse().expect("a number")).collect();
    let expected: Vec<usize> = (1..=numbers.len()).collect();
    assert_eq!(numbers, expected, "no line is lost, none comes twice");
    assert_eq!(side.says("$docker wait ends"), "9", "an exit that nobody was there to see");
    assert_eq!(side.says("echo hello | timeout 20 $docker attach reads"), "got hello");
    assert_eq!(side.says("$docker exec counts echo in"), "in");
    side.finish();
}

#[test]
fn policies_hold_across_restarts() {
    let mut side = Side::orlopd();
    side.says("$run -d --name always --restart always bb sleep 1000");
    side.says("$run -d --name stopped --restart unless-stopped bb sleep 1000");
    side.says(&format!(
        "mkdir $dir/end && $run -d --name gone --rm -v $dir/end:/end bb sh -c '{UNTIL_TOLD}'"
    ));
    side.says("$docker stop -t 0 stopped always");
    end_without_daemon(&mut side, "gone");
    side.manager().restart();
    poll_until(Duration::from_secs(10), "the restart", || {
        side.says("$docker ps --format '{{.Names}}'") == "always"
    });
    assert_eq!(side.says("$docker inspect --format '{{.State.Status}}' stopped"), "exited");
    poll_until(Duration::from_secs(10), "the removal", || side.run("$docker inspect gone").code() != 0);
    side.finish();
}

#[test]
fn every_kill_leaves_a_container_that_can_be_removed() {
    let mut side = Side::orlopd();
    for pause in [5, 20, 40, 60, 90] {
        let mut run =
            side.docker(&["run", "--name", "kill-me", "--network", "none", "bb", "sleep", "1000"]).spawn();
        std::thread::sleep(Duration::from_millis(pause));
        side.manager().kill();
        side.manager().restart();
        run.end();
        side.run("$docker rm --force kill-me");
        assert_eq!(side.says("$docker ps --all --quiet"), "", "after {pause} ms");
    }
    side.finish();
}
