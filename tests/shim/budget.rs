//! What a shim may cost.

use std::fs;
use std::process::Command;

use orlop_tests::{Root, binaries};

use crate::fixture::{Fifos, Shim};

/// Anonymous memory of a process, in KiB.
pub fn anonymous(pid: i32) -> u64 {
    figure(pid, "Anonymous:")
}

fn figure(pid: i32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process is there");
    let line = text.lines().find(|line| line.starts_with(name)).expect("the figure is there");
    line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
}

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is there").count()
}

#[test]
fn one_thread_and_nothing_left_after_execs() {
    let root = Root::new();
    let mut shim = Shim::start(&root, "sleep 1000");
    let stdio = Fifos::output(&root, "c");
    shim.create(&stdio);
    shim.start_process("").unwrap();
    let pid = shim.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Threads:\t1\n"), "{status}");
    println!("one container: {} KiB PSS, {} KiB anonymous", figure(pid, "Pss:"), anonymous(pid));
    let round = |shim: &mut Shim, number: u32| {
        let exec = format!("e{number}");
        shim.exec(&exec, "exit 0", &Fifos::default());
        shim.start_process(&exec).unwrap();
        shim.wait(&exec);
        shim.delete(&exec).unwrap();
    };
    round(&mut shim, 0);
    let (memory, open) = (anonymous(pid), descriptors(pid));
    for number in 1..40 {
        round(&mut shim, number);
    }
    let growth = anonymous(pid).saturating_sub(memory);
    assert!(growth <= 64, "{growth} KiB more");
    assert_eq!(descriptors(pid), open);
    shim.finish();
    root.assert_clean();
}

#[test]
fn the_release_binary_is_small_and_static() {
    let shim = binaries::shim();
    if !shim.to_string_lossy().contains("x86_64-unknown-linux-musl/release") {
        println!("{} is no release build: not measured", shim.display());
        return;
    }
    let size = fs::metadata(&shim).unwrap().len();
    assert!(size <= 2 << 20, "{size} bytes");
    let needed = Command::new("readelf").arg("-d").arg(&shim).output().expect("readelf");
    assert!(!String::from_utf8_lossy(&needed.stdout).contains("NEEDED"), "it is linked to a library");
}
