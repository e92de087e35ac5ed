//! The runtimes beside the floor: what only the unavoidable system calls cost.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use orlop_proto::spec::default_profile;
use orlop_tests::{Bundle, Cmd, Root, binaries, poll_until};

use crate::{Plan, Samples, peers, print_table};

/// How many containers are started as fast as the machine goes, and how many at a time.
const CROWD: usize = 200;
const AT_A_TIME: usize = 8;

/// A command whose time is measured: its output goes nowhere.
fn quiet(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Runs a command whose time is measured, and waits for it in the kernel.
fn call(program: &Path, args: &[&str]) {
    let status =
        quiet(program, args).status().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(status.success(), "{} {args:?}: {status}", program.display());
}

#[derive(Clone)]
struct Runtime {
    name: String,
    program: PathBuf,
    state: String,
    sleeper: String,
    samples: [Samples; 3],
}

impl Runtime {
    fn run(&self, bundle: &str, id: &str) {
        call(&self.program, &["--root", &self.state, "run", "--bundle", bundle, id]);
    }
}

/// The bundles and programs that are measured.
struct Bench {
    root: Root,
    floor: PathBuf,
    rootfs: String,
    short: String,
    runtimes: Vec<Runtime>,
    number: usize,
}

/// Measures the runtimes: one start after another and back to back, with a seccomp filter, and many at once.
pub fn bench(plan: Plan) {
    let mut bench = Bench::new();
    bench.starts(plan, &format!("single starts, {} ms apart", plan.pause.as_millis()));
    let tight = Plan { pause: Duration::ZERO, ..plan };
    bench.starts(tight, "back to back");
    bench.filtered(plan);
    bench.crowd(plan);
    bench.end();
}

impl Bench {
    fn new() -> Bench {
        let root = Root::new();
        let floor = root.join("floor");
        let source = binaries::source_root().join("tests/perf/floor.c");
        Cmd::new("cc").args(["-O2", "-static", "-o"]).arg(&floor).arg(source).run().success();
        let short = Bundle::new(&root, "short").args(["/bin/true"]).save();
        let long = Bundle::new(&root, "long").args(["/bin/sleep", "100000"]).save();
        let rootfs = short.rootfs("/").display().to_string();
        let mut runtimes = Vec::new();
        for (name, program) in peers::all() {
            let state = root.join(format!("state-{name}")).display().to_string();
            let sleeper = format!("{}-sleep-{name}", root.tag());
            let long = long
                .clone()
                .edit(|config| config["linux"]["cgroupsPath"] = root.cgroups_path(&sleeper).into());
            let long = long.save().path().display().to_string();
            let started =
                quiet(&program, &["--root", &state, "run", "-d", "--bundle", &long, &sleeper]).status();
            if started.is_ok_and(|status| status.success()) {
                runtimes.push(Runtime { name, program, state, sleeper, samples: Default::default() });
            } else {
                println!("not run: {name}, which starts no container on this host");
                let _ = quiet(&program, &["--root", &state, "delete", "-f", &sleeper]).status();
            }
        }
        Bench { short: short.path().display().to_string(), root, floor, rootfs, runtimes, number: 0 }
    }

    fn next_id(&mut self) -> String {
        self.number += 1;
        format!("{}-{}", self.root.tag(), self.number)
    }

    /// Run, create + start + delete, and exec of each runtime.
    fn starts(&mut self, plan: Plan, title: &str) {
        let (mut floor, mut spawn) = (Samples::default(), Samples::default());
        let mut runtimes = self.runtimes.clone();
        // The first two rounds warm caches and are not counted.
        for round in 0..plan.rounds + 2 {
            if round == 2 {
                (floor, spawn) = Default::default();
                runtimes.iter_mut().for_each(|runtime| runtime.samples = Default::default());
            }
            plan.sample(&mut spawn, || call(Path::new("/bin/true"), &[]));
            let id = self.next_id();
            plan.sample(&mut floor, || call(&self.floor, &[&self.rootfs, &id]));
            for runtime in &mut runtimes {
                let id = self.next_id();
                let (short, id) = (&*self.short, &*id);
                let Runtime { program, state, sleeper, samples: [run, life, exec], .. } = runtime;
                plan.sample(run, || call(program, &["--root", state, "run", "--bundle", short, id]));
                plan.sample(life, || {
                    call(program, &["--root", state, "create", "--bundle", short, id]);
                    call(program, &["--root", state, "start", id]);
                    // The container may still be ending.
                    poll_until(Duration::from_secs(10), "the container is deleted", || {
                        quiet(program, &["--root", state, "delete", id])
                            .status()
                            .is_ok_and(|status| status.success())
                    });
                });
                plan.sample(exec, || call(program, &["--root", state, "exec", sleeper, "/bin/true"]));
            }
        }
        let mut rows = vec![("floor".to_owned(), vec![floor, Samples::default(), Samples::default()])];
        rows.extend(runtimes.into_iter().map(|runtime| (runtime.name, runtime.samples.to_vec())));
        print_table(&format!("Runtimes, {title} (first row: the floor)"), &["run"], &columns(&rows, 0..1));
        rows.remove(0);
        let names = ["run", "create+start+delete", "exec"];
        print_table(&format!("Runtimes, {title} (first row: orlop)"), &names, &rows);
        println!("spawning /bin/true: {:.2} ms", spawn.median().unwrap_or_default());
    }

    /// A run without and with Docker's seccomp profile, for every runtime by itself.
    fn filtered(&mut self, plan: Plan) {
        let profile =
            serde_json::to_value(default_profile(&[], std::env::consts::ARCH)).expect("a profile is JSON");
        let bundle = Bundle::new(&self.root, "filtered").args(["/bin/true"]);
        let bundle = bundle.edit(|config| config["linux"]["seccomp"] = profile).save();
        let filtered = bundle.path().display().to_string();
        for runtime in self.runtimes.clone() {
            let words = ["--root", &runtime.state, "run", "--bundle", &filtered, &self.next_id()];
            if !quiet(&runtime.program, &words).status().is_ok_and(|status| status.success()) {
                println!("\nnot run: {} with Docker's seccomp profile, which it does not take", runtime.name);
                continue;
            }
            let mut rows = ["without", "with"]
                .map(|name| (format!("{}, {name}", runtime.name), vec![Samples::default()]));
            for round in 0..plan.rounds + 1 {
                for (bundle, (_, samples)) in [self.short.clone(), filtered.clone()].iter().zip(&mut rows) {
                    let id = self.next_id();
                    // The first of each may fill a cache.
                    let mut first = Samples::default();
                    plan.sample(if round == 0 { &mut first } else { &mut samples[0] }, || {
                        runtime.run(bundle, &id)
                    });
                }
            }
            print_table("Docker's seccomp profile, second run on", &["run"], &rows);
        }
    }

    /// Many containers as fast as the machine goes.
    fn crowd(&mut self, plan: Plan) {
        // A cgroup holds one container at a time, so that each of those at work has its own.
        let bundles: Vec<String> = (0..AT_A_TIME)
            .map(|number| Bundle::new(&self.root, &format!("crowd{number}")).args(["/bin/true"]).save())
            .map(|bundle| bundle.path().display().to_string())
            .collect();
        let mut rows = vec![("floor".to_owned(), vec![Samples::default()])];
        rows.extend(self.runtimes.iter().map(|runtime| (runtime.name.clone(), vec![Samples::default()])));
        rows.rotate_left(1);
        for _ in 0..plan.rounds.div_ceil(5) {
            for (number, row) in rows.iter_mut().enumerate() {
                let mut running: Vec<Child> = Vec::new();
                let mut failed = 0;
                let begin = Instant::now();
                for start in 0..CROWD {
                    if running.len() == AT_A_TIME {
                        failed += u32::from(!has_ended_well(running.remove(0)));
                    }
                    let id = self.next_id();
                    let command = match self.runtimes.get(number) {
                        Some(runtime) => quiet(
                            &runtime.program,
                            &["--root", &runtime.state, "run", "--bundle", &bundles[start % AT_A_TIME], &id],
                        ),
                        None => quiet(&self.floor, &[&self.rootfs, &id]),
                    };
                    running.push({ command }.spawn().expect("a runtime starts"));
                }
                failed += running.into_iter().map(has_ended_well).map(|well| u32::from(!well)).sum::<u32>();
                if failed == 0 {
                    row.1[0].add(begin.elapsed());
                } else {
                    println!(
                        "\n{failed} of {CROWD} starts of {} failed, and their round does not count",
                        row.0
                    );
                }
            }
        }
        print_table(
            &format!("{CROWD} containers, {AT_A_TIME} at a time (first row: orlop)"),
            &["all"],
            &rows,
        );
    }

    fn end(self) {
        for runtime in &self.runtimes {
            call(&runtime.program, &["--root", &runtime.state, "delete", "-f", &runtime.sleeper]);
        }
        self.root.assert_clean();
    }
}

fn has_ended_well(mut child: Child) -> bool {
    child.wait().expect("a child can be waited for").success()
}

fn columns(rows: &[(String, Vec<Samples>)], range: std::ops::Range<usize>) -> Vec<(String, Vec<Samples>)> {
    rows.iter().map(|(name, samples)| (name.clone(), samples[range.clone()].to_vec())).collect()
}
