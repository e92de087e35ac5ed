//! The runtimes beside the floor: what only the unavoidable system calls cost.

use std::path::{Path, PathBuf};

use orlop_tests::{Bundle, Cmd, Root, binaries, poll_until};

use crate::{Plan, Samples, print_table};

/// Runs a command whose time is measured: it waits in the kernel, and its output goes nowhere.
fn call(program: &Path, args: &[&str]) {
    use std::process::{Command, Stdio};
    let status = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    assert!(status.success(), "{} {args:?}: {status}", program.display());
}

struct Runtime {
    name: &'static str,
    program: PathBuf,
    state: String,
    sleeper: String,
    samples: [Samples; 3],
}

/// Measures run, create + start + delete, and exec for each runtime.
pub fn bench(plan: Plan) {
    let root = Root::new();
    let floor = root.join("floor");
    let source = binaries::source_root().join("tests/perf/floor.c");
    Cmd::new("cc").args(["-O2", "-static", "-o"]).arg(&floor).arg(source).run().success();
    let short = Bundle::new(&root, "short").args(["/bin/true"]).save();
    let long = Bundle::new(&root, "long").args(["/bin/sleep", "100000"]).save();
    let (short_path, long_path) = (short.path().display().to_string(), long.path().display().to_string());
    let rootfs = short.rootfs("/").display().to_string();

    let mut runtimes: Vec<Runtime> = [
        ("orlop", Some(binaries::orlop())),
        ("runc", binaries::find("runc")),
        ("crun", binaries::find("crun")),
    ]
    .into_iter()
    .filter_map(|(name, program)| {
        let state = root.join(format!("state-{name}")).display().to_string();
        let sleeper = format!("{}-sleep-{name}", root.tag());
        Some(Runtime { name, program: program?, state, sleeper, samples: Default::default() })
    })
    .collect();
    for runtime in &runtimes {
        let long = long
            .clone()
            .edit(|config| config["linux"]["cgroupsPath"] = root.cgroups_path(&runtime.sleeper).into())
            .save();
        drop(long);
        call(
            &runtime.program,
            &["--root", &runtime.state, "run", "-d", "--bundle", &long_path, &runtime.sleeper],
        );
    }

    let (mut floor_samples, mut spawn_samples) = (Samples::default(), Samples::default());
    let mut number = 0;
    // The first two rounds warm caches and are not counted.
    for round in 0..plan.rounds + 2 {
        if round == 2 {
            floor_samples = Samples::default();
            spawn_samples = Samples::default();
            runtimes.iter_mut().for_each(|runtime| runtime.samples = Default::default());
        }
        plan.sample(&mut spawn_samples, || call(Path::new("/bin/true"), &[]));
        plan.sample(&mut floor_samples, || call(&floor, &[&rootfs, &format!("{}f{round}", root.tag())]));
        for runtime in &mut runtimes {
            let Runtime { program, state, sleeper, samples: [run, life, exec], .. } = runtime;
            number += 1;
            let id = format!("{}-{number}", root.tag());
            plan.sample(run, || call(program, &["--root", state, "run", "--bundle", &short_path, &id]));
            plan.sample(life, || {
                call(program, &["--root", state, "create", "--bundle", &short_path, &id]);
                call(program, &["--root", state, "start", &id]);
                // The container may still be ending.
                poll_until(std::time::Duration::from_secs(10), "the container is deleted", || {
                    Cmd::new(&*program).args(["--root", state, "delete", &id]).run().status.success()
                });
            });
            plan.sample(exec, || call(program, &["--root", state, "exec", sleeper, "/bin/true"]));
        }
    }
    let mut rows = vec![("floor".to_owned(), vec![floor_samples, Samples::default(), Samples::default()])];
    for runtime in runtimes {
        call(&runtime.program, &["--root", &runtime.state, "delete", "-f", &runtime.sleeper]);
        rows.push((runtime.name.to_owned(), runtime.samples.to_vec()));
    }
    print_table("Runtimes, from the command line (first row: the floor)", &["run"], &columns(&rows, 0..1));
    rows.remove(0);
    print_table(
        "Runtimes, from the command line (first row: orlop)",
        &["run", "create+start+delete", "exec"],
        &rows,
    );
    println!("spawning /bin/true: {:.2} ms", spawn_samples.median().unwrap_or_default());
    root.assert_clean();
}

fn columns(rows: &[(String, Vec<Samples>)], range: std::ops::Range<usize>) -> Vec<(String, Vec<Samples>)> {
    rows.iter().map(|(name, samples)| (name.clone(), samples[range.clone()].to_vec())).collect()
}
