//! The Docker Engine API beside Debian's dockerd with its containerd and runc, both called by Debian's client.

use orlop_tests::{binaries, host};

use crate::side::{APPLICATION, Side};
use crate::{Plan, Samples, print_table};

/// Containers that are started one after the other to see what is left in memory.
const RUNS: usize = 100;
/// Containers with a published port that run at the same time.
const PUBLISHED: usize = 100;
/// How many of the first and of the last of them are looked at.
const EDGE: usize = 10;

/// Measures `docker run` on the default network and without one, memory after many runs, and starts among many.
pub fn bench(plan: Plan) {
    let client = binaries::system("docker");
    let (ours, theirs) = (Side::orlopd_alone(client.clone()), Side::dockerd_alone(client));
    let sides = [&ours, &theirs];
    let mut rows = [("orlopd", &ours), ("dockerd, containerd, runc", &theirs)]
        .map(|(name, _)| (name.to_owned(), vec![Samples::default(); 3]));
    let lines = ["$run --rm bb true", "$docker run --rm bb true", "$docker run --rm --publish 80 bb true"];
    for _ in 0..plan.rounds {
        for (side, (_, samples)) in sides.iter().zip(&mut rows) {
            for (line, samples) in lines.iter().zip(samples) {
                plan.sample(samples, || drop(side.says(line)));
            }
        }
    }
    print_table(
        "docker run --rm busybox true (first row: ours)",
        &["--network none", "bridge", "bridge, -p"],
        &rows,
    );
    println!(
        "\nmemory after {RUNS} more runs, and the start of one more container with a port beside others"
    );
    for (side, name) in sides.iter().zip(["orlopd", "dockerd, containerd, runc"]) {
        for _ in 0..RUNS {
            side.says("$docker run --rm bb true");
        }
        let resident: f64 = daemons(side).iter().filter_map(|pid| host::resident(*pid)).sum::<u64>() as f64;
        let mut starts = Vec::new();
        for number in 0..PUBLISHED {
            let begin = std::time::Instant::now();
            side.says(&format!("$docker run --detach --name many{number} --publish 80 bb sleep 100000"));
            starts.push(begin.elapsed());
        }
        let median = |times: &[std::time::Duration]| {
            let mut samples = Samples::default();
            times.iter().for_each(|time| samples.add(*time));
            samples.median().unwrap_or_default()
        };
        let (first, last) = (median(&starts[..EDGE]), median(&starts[PUBLISHED - EDGE..]));
        println!(
            "{name:34}{:>9.1} MiB resident; first {EDGE} of {PUBLISHED}: {first:.1} ms, last {EDGE}: {last:.1} ms ({:.2})",
            resident / f64::from(1 << 20),
            last / first
        );
        side.says("$docker rm --force $($docker ps --all --quiet)");
    }
    ours.finish();
    theirs.finish();
}

/// What is built: the directory and the Dockerfile of each.
const BUILDS: [(&str, &str); 3] = [
    ("sample", ""),
    ("COPY 2000 files", "FROM bb\nCOPY . /files\n"),
    ("RUN writes 64 MiB", "FROM bb\nRUN dd if=/dev/urandom of=/file bs=1M count=64 2>/dev/null\n"),
];

/// Measures `docker build` without a cache: the sample, many small files, and one large file.
pub fn bench_builds(plan: Plan) {
    let client = binaries::system("docker");
    let (ours, theirs) = (Side::orlopd_alone(client.clone()), Side::dockerd_alone(client));
    let sides = [&ours, &theirs];
    for side in sides {
        side.says(APPLICATION);
        for (number, (_, dockerfile)) in BUILDS.iter().enumerate().skip(1) {
            let directory = side.root.join(format!("app{number}"));
            std::fs::create_dir(&directory).expect("a directory to build");
            std::fs::write(directory.join("Dockerfile"), dockerfile).expect("a Dockerfile");
        }
        side.says("for n in $(seq 2000); do echo $n > $dir/app1/$n; done");
    }
    let mut rows = ["orlopd", "dockerd, containerd, runc"]
        .map(|name| (name.to_owned(), vec![Samples::default(); BUILDS.len()]));
    let lines = ["app", "app1", "app2"]
        .map(|place| format!("$docker build --no-cache --network none --tag {place} $dir/{place}"));
    for _ in 0..plan.rounds {
        for (side, (_, samples)) in sides.iter().zip(&mut rows) {
            for (line, samples) in lines.iter().zip(samples) {
                plan.sample(samples, || drop(side.says(line)));
            }
        }
    }
    print_table("docker build --no-cache (first row: ours)", &BUILDS.map(|(name, _)| name), &rows);
    ours.finish();
    theirs.finish();
}

/// The engine's own processes: those of its daemons, not of its shims.
fn daemons(side: &Side) -> Vec<i32> {
    let path = side.root.path().display().to_string();
    let is_daemon = |command: &str| {
        let program = command.split(' ').next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
        ["orlopd", "dockerd", "containerd"].contains(&program)
    };
    let all = host::processes().into_iter();
    all.filter(|task| task.command.contains(&path) && is_daemon(&task.command)).map(|task| task.pid).collect()
}
