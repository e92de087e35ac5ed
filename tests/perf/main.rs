//! Side-by-side benchmark (`make bench`): medians of wall time and ratios to the peers, measured in one run on one machine.
//!
//! `BENCH_ROUNDS` (20) samples of each, taken in turn, with `BENCH_PAUSE` (100) milliseconds before each sample: a lock of
//! the kernel stays cheap for a while after its first taker, so a tight loop hides what a single start pays. Nothing here
//! fails on a slow machine; counts and sizes that must hold are tests. `BENCH_ONLY` names the one part to be run.

mod docker;
mod manager;
mod peers;
mod pulls;
mod runtimes;
mod shims;
#[path = "../docker/side.rs"]
#[allow(dead_code, reason = "the benchmark needs less of it than the tests")]
mod side;
mod stack;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use orlop_tests::host;

/// Samples of one thing, in milliseconds.
#[derive(Default, Clone)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds a sample.
    pub fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e3);
    }

    /// The median, or nothing without samples.
    pub fn median(&self) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => None,
            length if length % 2 == 1 => Some(sorted[middle]),
            _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        }
    }
}

/// How often and how far apart.
#[derive(Clone, Copy)]
pub struct Plan {
    /// Samples of each.
    pub rounds: usize,
    /// Time to rest before each sample.
    pub pause: Duration,
}

impl Plan {
    fn from_environment() -> Plan {
        let number = |name: &str, default: u64| {
            std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
        };
        Plan {
            rounds: number("BENCH_ROUNDS", 20) as usize,
            pause: Duration::from_millis(number("BENCH_PAUSE", 100)),
        }
    }

    /// Rests, runs `work`, and keeps the time that it took.
    pub fn sample(self, samples: &mut Samples, work: impl FnOnce()) {
        std::thread::sleep(self.pause);
        let start = Instant::now();
        work();
        samples.add(start.elapsed());
    }
}

/// One row: a name, and for each column the median with its ratio to the first row.
pub fn print_table(title: &str, columns: &[&str], rows: &[(String, Vec<Samples>)]) {
    println!("\n{title}");
    print!("{:34}", "");
    for column in columns {
        print!("{:>22}", format!("{column} ms (ratio)"));
    }
    println!();
    for (name, samples) in rows {
        print!("{name:34}");
        for (n, samples) in samples.iter().enumerate() {
            let first = rows[0].1.get(n).and_then(Samples::median);
            let cell = match (samples.median(), first) {
                (Some(median), Some(first)) => format!("{median:.2} ({:.2})", median / first),
                (Some(median), None) => format!("{median:.2}"),
                _ => "–".to_owned(),
            };
            print!("{cell:>22}");
        }
        println!();
    }
}

/// Starts again in a mount namespace of its own without the unified hierarchy of a hybrid host, which crun refuses.
fn leave_hybrid_host() {
    const MARK: &str = "ORLOP_BENCH_IN_NAMESPACE";
    let hybrid = host::mounts().iter().any(|mount| mount.target == Path::new("/sys/fs/cgroup/unified"));
    if hybrid && std::env::var_os(MARK).is_none() {
        let error = Command::new("unshare")
            .args([
                "-m",
                "--propagation",
                "private",
                "sh",
                "-c",
                "umount /sys/fs/cgroup/unified && exec \"$@\"",
                "sh",
            ])
            .args(std::env::args_os())
            .env(MARK, "1")
            .exec();
        panic!("cannot start unshare: {error}");
    }
}

fn main() {
    if !host::is_root() {
        println!("not run without root: the benchmark");
        return;
    }
    leave_hybrid_host();
    let plan = Plan::from_environment();
    println!("{} samples of each, {} ms between", plan.rounds, plan.pause.as_millis());
    let only = std::env::var("BENCH_ONLY").ok();
    for (name, bench) in [
        ("runtimes", runtimes::bench as fn(Plan)),
        ("shims", shims::bench),
        ("stack", stack::bench),
        ("manager", manager::bench),
        ("pulls", pulls::bench),
        ("docker", docker::bench),
        ("docker-build", docker::bench_builds),
    ] {
        if only.as_deref().is_none_or(|only| only == name) {
            bench(plan);
        }
    }
}
