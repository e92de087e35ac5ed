//! What a shim may cost.

use std::fs;
use std::path::Path;
use std::process::Command;

use orlop_tests::{Root, binaries};

use orlop_tests::shim::{Fifos, Shim, runtime};

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

/// Whether a shim is what is installed: static, optimised for size, without tables that it never reads.
fn is_release(shim: &Path) -> bool {
    let release = shim.to_string_lossy().contains("x86_64-unknown-linux-musl/release");
    if !release {
        println!("{} is no release build: not measured", shim.display());
    }
    release
}

/// What may come and go between two looks, in KiB: some pages of stack and heap, by the order in which answers come (12 to 24 seen
/// after 250, 5,000, 10,000 and 30,000 execs alike). A leak of a word per exec is more after 10,000.
const SETTLING: u64 = 32;

#[test]
fn one_sleeping_container_costs_a_mebibyte() {
    let root = Root::new();
    let mut shim = Shim::start_with(&root, "c", &runtime("orlop"), |bundle| bundle.sh("exec sleep 1000"));
    shim.create(&Fifos::output(&root, "c"));
    shim.start_process("").unwrap();
    let pid = shim.pid();
    // Resident is PSS without anybody to share the program's pages with; the other tests' shims do.
    let (own, all) = (anonymous(pid), figure(pid, "Rss:"));
    println!("one container: {all} KiB resident, {own} KiB anonymous");
    if is_release(&binaries::shim()) {
        assert!(own <= 200, "{own} KiB anonymous");
        assert!(all <= 1024, "{all} KiB resident");
    }
    shim.finish();
    root.assert_clean();
}

#[test]
fn one_thread_and_nothing_left_after_execs() {
    let root = Root::new();
    let mut shim = Shim::start_with(&root, "c", &runtime("orlop"), |bundle| bundle.sh("exec sleep 1000"));
    let stdio = Fifos::output(&root, "c");
    shim.create(&stdio);
    shim.start_process("").unwrap();
    let pid = shim.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Threads:\t1\n"), "{status}");
    let round = |shim: &mut Shim, number: u32| {
        let exec = format!("e{number}");
        shim.exec(&exec, "exit 0", &Fifos::default());
        shim.start_process(&exec).unwrap();
        shim.wait(&exec);
        shim.delete(&exec).unwrap();
        // What waits to be published is the manager's pace, not growth.
        shim.events.contain(&shim.id, &format!("exit {exec} 0"));
    };
    round(&mut shim, 0);
    let (memory, open) = (anonymous(pid), descriptors(pid));
    for number in 1..=100 {
        round(&mut shim, number);
    }
    let after_100 = anonymous(pid);
    let growth = after_100.saturating_sub(memory);
    assert!(growth <= 64, "{growth} KiB more after 100 execs");
    let execs = std::env::var("ORLOP_SHIM_EXECS").ok().and_then(|text| text.parse().ok()).unwrap_or(250);
    for number in 101..=execs {
        round(&mut shim, number);
    }
    let growth = anonymous(pid).saturating_sub(after_100);
    println!(
        "{execs} execs: {memory} KiB anonymous after 1, {after_100} after 100, {growth} more at the end"
    );
    assert!(growth <= SETTLING, "{growth} KiB more after {execs} execs than after 100");
    assert_eq!(descriptors(pid), open);
    shim.finish();
    root.assert_clean();
}

#[test]
fn the_release_binary_is_small_and_static() {
    let shim = binaries::shim();
    if !is_release(&shim) {
        return;
    }
    let size = fs::metadata(&shim).unwrap().len();
    assert!(size <= 2 << 20, "{size} bytes");
    let needed = Command::new("readelf").arg("-d").arg(&shim).output().expect("readelf");
    assert!(!String::from_utf8_lossy(&needed.stdout).contains("NEEDED"), "it is linked to a library");
}
