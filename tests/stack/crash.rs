//! The manager killed at a bad moment, and started again.

use std::fs;
use std::time::Duration;

use orlop_tests::{Compression, Daemon, Image, Layer, Orlopd, Proxy, Registry, Root, host, poll_until};

use crate::bad_input::noise;
use crate::workload::{DEADLINE, import_image, pid, status};

/// An image with a layer of 20 MB behind a network that stalls after 8 MB.
fn large_image_behind_a_stall(root: &Root) -> (Registry, Proxy, String, String) {
    let registry = Registry::start(root);
    let image = Image::busybox()
        .layer(Layer::new().file("big", &noise(20 << 20), 0o644).compressed(Compression::None));
    image.push(&registry, "large", "1");
    let digest = image.layers()[1].digest.clone();
    let proxy = Proxy::start(registry.address(), 8 << 20);
    let reference = format!("{}/large:1", proxy.address());
    (registry, proxy, reference, digest)
}

#[test]
fn a_pull_goes_on_where_a_killed_manager_left_it() {
    let root = Root::new();
    let (registry, proxy, reference, digest) = large_image_behind_a_stall(&root);
    let mut orlopd = Orlopd::start(&root);
    let pull = orlopd.orlopctl(["images", "pull", "--plain-http", &reference]).spawn();
    poll_until(DEADLINE, "the network stalls", || proxy.stalled());
    orlopd.kill();
    let out = pull.wait(DEADLINE);
    assert_ne!(out.code(), 0, "{out}");
    proxy.release();
    orlopd.restart();
    assert_eq!(
        orlopd.ctr(["images", "ls", "-q"]).run().success().stdout,
        "",
        "an image exists when it is complete"
    );
    orlopd.orlopctl(["images", "pull", "--plain-http", &reference]).run().success();
    let log = registry.access_log();
    let ranged = log.iter().filter(|line| line.contains(&digest) && line.contains("\" 206 ")).count();
    assert!(ranged >= 1, "the second pull fetched the layer from its start:\n{}", log.join("\n"));
    let out = orlopd.ctr(["run", "--rm", &reference, "c1", "wc", "-c", "/big"]).run().success();
    assert!(out.stdout.starts_with(&(20 << 20).to_string()), "{out}");
    orlopd.stop();
    drop((proxy, registry));
    root.assert_clean();
}

#[test]
fn ctrs_pull_goes_on_where_a_killed_manager_left_it() {
    let root = Root::new();
    let (registry, proxy, reference, digest) = large_image_behind_a_stall(&root);
    let mut orlopd = Orlopd::start(&root);
    let pull = orlopd.ctr(["images", "pull", "--plain-http", &reference]).spawn();
    poll_until(DEADLINE, "the network stalls", || proxy.stalled());
    poll_until(DEADLINE, "a part of the layer has arrived", || {
        let active = orlopd.ctr(["content", "active"]).run().success();
        active.stdout.lines().any(|line| line.contains(&digest) && line.contains("MB"))
    });
    orlopd.kill();
    proxy.release();
    let out = pull.wait(DEADLINE);
    assert_ne!(out.code(), 0, "{out}");
    orlopd.restart();
    orlopd.ctr(["images", "pull", "--plain-http", &reference]).run().success();
    let log = registry.access_log();
    let ranged = log.iter().filter(|line| line.contains(&digest) && line.contains("\" 206 ")).count();
    assert!(ranged >= 1, "the second pull fetched the layer from its start:\n{}", log.join("\n"));
    orlopd.stop();
    drop((proxy, registry));
    root.assert_clean();
}

#[test]
fn containers_and_their_exit_codes_outlive_a_killed_manager() {
    let root = Root::new();
    let mut orlopd = Orlopd::start(&root);
    let image = import_image(&root, &orlopd);
    let shared = root.join("shared");
    fs::create_dir(&shared).unwrap();
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:rw", shared.display());
    let run = ["run", "-d", "--null-io", "--mount", mount.as_str(), image.as_str()];
    orlopd.ctr(run).args(["stays", "sleep", "1000"]).run().success();
    orlopd
        .ctr(run)
        .args(["ends", "sh", "-c", "while [ ! -e /mnt/go ]; do sleep 0.05; done; exit 43"])
        .run()
        .success();
    let (stays, ends) = (pid(&orlopd, "stays"), pid(&orlopd, "ends"));
    orlopd.kill();
    // One ends while there is no manager to see it.
    fs::write(shared.join("go"), "").unwrap();
    poll_until(DEADLINE, "the container has ended", || !host::alive(ends));
    assert!(host::alive(stays));
    orlopd.restart();
    poll_until(DEADLINE, "the end is known", || status(&orlopd, "ends") == "STOPPED");
    assert_eq!((status(&orlopd, "stays").as_str(), pid(&orlopd, "stays")), ("RUNNING", stays));
    let delete = orlopd.ctr(["tasks", "delete", "ends"]).run();
    assert!(delete.stderr.contains("exit code 43"), "{delete}");
    let out = orlopd.ctr(["tasks", "exec", "--exec-id", "e1", "stays", "echo", "still here"]).run().success();
    assert_eq!(out.stdout, "still here\n");
    orlopd.ctr(["tasks", "kill", "-s", "KILL", "stays"]).run().success();
    poll_until(DEADLINE, "the container has stopped", || status(&orlopd, "stays") == "STOPPED");
    orlopd.ctr(["tasks", "delete", "stays"]).run();
    orlopd.ctr(["containers", "rm", "stays", "ends"]).run().success();
    orlopd.stop();
    root.assert_clean();
}

#[test]
fn a_manager_killed_again_and_again_still_knows_what_was_committed() {
    let root = Root::new();
    let mut orlopd = Orlopd::start(&root);
    let image = import_image(&root, &orlopd);
    for round in 0..5 {
        let name = format!("c{round}");
        // Killed while it answers: what was answered is there, what was not leaves no half container.
        let run = orlopd.ctr(["run", "-d", "--null-io", &image, &name, "sleep", "1000"]).spawn();
        std::thread::sleep(Duration::from_millis(40 * round));
        orlopd.kill();
        let answered = run.wait(DEADLINE).status.success();
        orlopd.restart();
        assert_eq!(orlopd.ctr(["images", "ls", "-q"]).run().success().stdout.trim(), image);
        if answered {
            assert_eq!(status(&orlopd, &name), "RUNNING", "round {round}");
        }
    }
    let tasks = orlopd.ctr(["tasks", "ls", "-q"]).run().success();
    for name in tasks.stdout.lines() {
        orlopd.ctr(["tasks", "kill", "-s", "KILL", name]).run();
        poll_until(DEADLINE, "the container has stopped", || {
            matches!(status(&orlopd, name).as_str(), "STOPPED" | "")
        });
        orlopd.ctr(["tasks", "delete", name]).run();
    }
    let containers = orlopd.ctr(["containers", "ls", "-q"]).run().success();
    for name in containers.stdout.lines() {
        orlopd.ctr(["containers", "rm", name]).run().success();
    }
    orlopd.stop();
    root.assert_clean();
}
