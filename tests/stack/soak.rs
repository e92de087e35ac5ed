//! Many containers, one after the other and side by side: what the machine holds afterwards is what it held before.
//!
//! `make soak` sets `ORLOP_SOAK_SECONDS`; without it a few rounds show that the check itself works.

use std::time::{Duration, Instant};

use orlop_tests::{Daemon, Orlopd, Root};

use crate::workload::import_image;

/// Open descriptors, threads and resident kilobytes of a process.
fn weight(pid: i32) -> (usize, usize, u64) {
    let count = |name: &str| {
        std::fs::read_dir(format!("/proc/{pid}/{name}")).map(Iterator::count).unwrap_or_default()
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    (count("fd"), count("task"), resident.unwrap_or_default())
}

#[test]
fn soak_runs_containers_without_growing() {
    let seconds = std::env::var("ORLOP_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let end = Instant::now() + Duration::from_secs(seconds);
    let root = Root::new();
    let mut orlopd = Orlopd::start(&root);
    let image = import_image(&root, &orlopd);
    let pid = orlopd.pid().expect("it runs");
    let mut round = 0;
    let mut run_four = || {
        let processes: Vec<_> = (0..4)
            .map(|n| {
                round += 1;
                orlopd
                    .ctr(["run", "--rm", &image])
                    .arg(format!("c{round}"))
                    .args(["sh", "-c"])
                    .arg(format!("exit {n}"))
                    .spawn()
            })
            .collect();
        for (n, process) in processes.into_iter().enumerate() {
            let out = process.wait(Duration::from_secs(60));
            assert_eq!(out.code() as usize, n, "{out}");
        }
        round
    };
    for _ in 0..3 {
        run_four();
    }
    let before = weight(pid);
    let mut rounds = 0;
    while rounds < 5 || Instant::now() < end {
        rounds += 1;
        let containers = run_four();
        if rounds % 100 == 0 {
            println!("{containers} containers, descriptors, threads, resident kB: {:?}", weight(pid));
        }
    }
    let after = weight(pid);
    println!("before {before:?}, after {after:?} (descriptors, threads, resident kB)");
    assert!(after.0 <= before.0 + 8, "descriptors grew from {} to {}", before.0, after.0);
    assert!(after.1 <= before.1 + 8, "threads grew from {} to {}", before.1, after.1);
    assert!(after.2 <= before.2 + 32 * 1024, "memory grew from {} to {} kB", before.2, after.2);
    let left = orlopd.ctr(["containers", "ls", "-q"]).run().success();
    assert_eq!(left.stdout, "");
    orlopd.stop();
    root.assert_clean();
}
