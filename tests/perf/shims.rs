//! Our shim beside containerd-shim-runc-v2, driven by the same client, for the same runtimes: the time of each step, while
//! one container sleeps and while 200 do, and what they hold in memory then.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use orlop_tests::shim::{Events, Fifos, Manner, Prepared, Shim};
use orlop_tests::{Bundle, Root, binaries};

use crate::{Plan, Samples, print_table};

/// How many containers are many.
const MANY: usize = 200;
/// The steps that are measured.
const STEPS: [&str; 7] = ["start action", "Create", "Start", "Exec+Start", "Kill", "Pause+Resume", "Delete"];

struct Side {
    name: &'static str,
    program: PathBuf,
    steps: Vec<Samples>,
    sleeping: Vec<Shim>,
}

/// Measures both shims with each runtime.
pub fn bench(plan: Plan) {
    let Some(theirs) = binaries::find("containerd-shim-runc-v2") else { return };
    for runtime in ["orlop", "runc"] {
        let program = if runtime == "orlop" { binaries::orlop() } else { binaries::system(runtime) };
        let mut sides =
            [("containerd-shim-orlop-v1", binaries::shim()), ("containerd-shim-runc-v2", theirs.clone())]
                .map(|(name, program)| Side { name, program, steps: Vec::new(), sleeping: Vec::new() });
        for many in [1, MANY] {
            measure(plan, &mut sides, &program, runtime, many);
        }
    }
}

/// Measures while `many` containers sleep beside those that are measured.
fn measure(plan: Plan, sides: &mut [Side; 2], runtime: &Path, name: &str, many: usize) {
    let root = Root::new();
    let first = Bundle::new(&root, "rootfs");
    let bundle = |name: &str| Bundle::beside(&root, name, &first).args(["sleep", "100000"]).save();
    let prepare =
        |name: &str| Prepared::new(&root, name, bundle(name), runtime, Events::listen(Manner::Answering));
    let mut memory = Vec::new();
    for side in sides.iter_mut() {
        side.steps = vec![Samples::default(); STEPS.len()];
        let before = used();
        for n in 0..many {
            let mut shim = prepare(&format!("{}{n}", side.name)).start(&side.program);
            shim.run();
            side.sleeping.push(shim);
        }
        let shims = side.sleeping.iter_mut().map(|shim| proportional(shim.pid())).sum::<u64>();
        memory.push((used().saturating_sub(before), shims));
    }
    for n in 0..plan.rounds {
        for side in sides.iter_mut() {
            side.life(plan, prepare(&format!("{}-round{n}", side.name)));
        }
    }
    for side in sides.iter_mut() {
        side.sleeping.drain(..).for_each(Shim::finish);
    }
    let rows: Vec<_> = sides.iter().map(|side| (side.name.to_owned(), side.steps.clone())).collect();
    print_table(&format!("Shims with {name}, {many} sleeping (first row: ours)"), &STEPS, &rows);
    for (side, (machine, shims)) in sides.iter().zip(memory) {
        let each = |sum: u64| sum / many as u64;
        println!(
            "{:34}{:>9} kB proportional per shim; {} kB of the machine per container, its init included",
            side.name,
            each(shims),
            each(machine)
        );
    }
}

impl Side {
    /// The life of one container, step by step.
    fn life(&mut self, plan: Plan, prepared: Prepared) {
        let mut steps = self.steps.iter_mut();
        let mut next = || steps.next().expect("as many as there are names");
        let mut shim = None;
        plan.sample(next(), || shim = Some(prepared.start(&self.program)));
        let mut shim = shim.expect("it was started");
        plan.sample(next(), || {
            shim.create(&Fifos::default());
        });
        plan.sample(next(), || drop(shim.start_process("")));
        plan.sample(next(), || {
            shim.exec("e", "sleep 100000", &Fifos::default());
            shim.start_process("e").expect("the exec starts");
        });
        plan.sample(next(), || shim.kill("", Signal::SIGURG).expect("a signal that is ignored"));
        plan.sample(next(), || {
            shim.simple("Pause").expect("it is paused");
            shim.simple("Resume").expect("it goes on");
        });
        shim.kill("", Signal::SIGKILL).expect("it is killed");
        shim.wait("");
        plan.sample(next(), || {
            shim.delete("").expect("it is deleted");
        });
        shim.shut_down();
    }
}

/// Used memory of the machine in KiB, the kernel's own included.
fn used() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let figure = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).expect("the figure is there");
        line.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a number")
    };
    figure("MemTotal:") - figure("MemAvailable:")
}

/// Proportional memory of a process in KiB.
fn proportional(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
