//! Our whole stack beside containerd with its own shim and runc, both under Debian's `ctr`.

use std::fs;

use orlop_tests::{Containerd, Daemon, Image, Layer, Orlopd, Registry, Root, binaries, host, poll_until};

use crate::{Plan, Samples, print_table};

/// Measures run, exec and pull on both managers, and what they and their shims hold in memory.
pub fn bench(plan: Plan) {
    let root = Root::new();
    let registry = Registry::start(&root);
    let image = Image::two_layers().push(&registry, "two", "1");
    let many = many_files().push(&registry, "many", "1");
    let mut containerd = Containerd::start(&root);
    let mut orlopd = Orlopd::start(&root);
    let mut ours = Side::new(&orlopd, &image);
    let mut theirs = Side::new(&containerd, &image);
    for round in 0..plan.rounds {
        ours.round(plan, &orlopd, &image, round);
        theirs.round(plan, &containerd, &image, round);
    }
    for _ in 0..plan.rounds.div_ceil(4) {
        ours.pull(plan, &orlopd, &many);
        theirs.pull(plan, &containerd, &many);
    }
    let rows = [("orlopd, orlop", &ours), ("containerd, shim-runc-v2, runc", &theirs)].map(|(name, side)| {
        (name.to_owned(), vec![side.run.clone(), side.exec.clone(), side.list.clone(), side.pull.clone()])
    });
    print_table(
        "Whole stacks, by ctr (first row: ours)",
        &["run --rm", "tasks exec", "images ls", "pull"],
        &rows,
    );
    println!("pull: {} gzip MB, 6000 files, by ctr, which makes the client drive the unpacking", many_size());
    println!();
    print_memory("orlopd", orlopd.pid());
    print_memory("containerd", find(&root, "/usr/bin/containerd "));
    print_memory("containerd-shim-orlop-v1", shim_of(&root, "containerd-shim-orlop-v1", orlopd.address()));
    print_memory("containerd-shim-runc-v2", shim_of(&root, "containerd-shim-runc-v2", containerd.address()));
    for (name, path) in [
        ("orlop", Some(binaries::orlop())),
        ("runc", binaries::find("runc")),
        ("crun", binaries::find("crun")),
        ("containerd-shim-orlop-v1", Some(binaries::shim())),
        ("containerd-shim-runc-v2", binaries::find("containerd-shim-runc-v2")),
        ("orlopd", Some(binaries::orlopd())),
        ("containerd", binaries::find("containerd")),
        ("orlopctl", Some(binaries::orlopctl())),
        ("ctr", binaries::find("ctr")),
    ] {
        if let Some(size) = path.and_then(|path| fs::metadata(path).ok()).map(|metadata| metadata.len()) {
            println!("{name:34}{:>9.2} MB on disk", size as f64 / 1e6);
        }
    }
    ours.end(&orlopd);
    theirs.end(&containerd);
    orlopd.stop();
    containerd.stop();
}

fn many_files() -> Image {
    let mut layer = Layer::new().dir("many", 0o755);
    for n in 0..6000 {
        if n % 100 == 0 {
            layer = layer.dir(&format!("many/{}", n / 100), 0o755);
        }
        layer =
            layer.file(&format!("many/{}/{n}", n / 100), format!("file {n}\n").repeat(200).as_bytes(), 0o644);
    }
    Image::busybox().layer(layer)
}

fn many_size() -> String {
    let size: usize = many_files().layers().iter().map(|layer| layer.bytes.len()).sum();
    format!("{:.1}", size as f64 / 1e6)
}

/// The samples of one stack, with a container that sleeps for `exec`.
struct Side {
    run: Samples,
    exec: Samples,
    list: Samples,
    pull: Samples,
}

impl Side {
    fn new(daemon: &impl Daemon, image: &str) -> Side {
        daemon.ctr(["images", "pull", "--plain-http", image]).run().success();
        daemon
            .ctr(["run", "-d", "--null-io", image, sleeper(daemon).as_str(), "sleep", "100000"])
            .run()
            .success();
        Side {
            run: Samples::default(),
            exec: Samples::default(),
            list: Samples::default(),
            pull: Samples::default(),
        }
    }

    fn round(&mut self, plan: Plan, daemon: &impl Daemon, image: &str, round: usize) {
        let (id, exec_id) = (format!("{}-{round}", sleeper(daemon)), format!("e{round}"));
        plan.sample(&mut self.run, || drop(daemon.ctr(["run", "--rm", image, &id, "true"]).run().success()));
        let exec = ["tasks", "exec", "--exec-id", &exec_id, &sleeper(daemon), "true"];
        plan.sample(&mut self.exec, || drop(daemon.ctr(exec).run().success()));
        plan.sample(&mut self.list, || drop(daemon.ctr(["images", "ls", "-q"]).run().success()));
    }

    fn pull(&mut self, plan: Plan, daemon: &impl Daemon, image: &str) {
        plan.sample(&mut self.pull, || {
            drop(daemon.ctr(["images", "pull", "--plain-http", image]).run().success())
        });
        daemon.ctr(["images", "rm", "--sync", image]).run().success();
    }

    fn end(&self, daemon: &impl Daemon) {
        let sleeper = sleeper(daemon);
        daemon.ctr(["tasks", "kill", "-s", "KILL", &sleeper]).run().success();
        poll_until(std::time::Duration::from_secs(10), "the sleeper is deleted", || {
            daemon.ctr(["tasks", "delete", &sleeper]).run().status.success()
        });
        daemon.ctr(["containers", "rm", &sleeper]).run().success();
    }
}

/// Both stacks share the cgroup of the namespace, so their containers have different names.
fn sleeper(daemon: &impl Daemon) -> String {
    let directory = daemon.address().parent().and_then(|path| path.file_name()).unwrap_or_default();
    format!("sleep-{}", directory.to_string_lossy())
}

/// The process below `root` whose command line starts so.
fn find(root: &Root, start: &str) -> Option<i32> {
    let path = root.path().display().to_string();
    host::processes()
        .into_iter()
        .find(|task| task.command.starts_with(start) && task.command.contains(&path))
        .map(|task| task.pid)
}

fn shim_of(root: &Root, name: &str, address: &std::path::Path) -> Option<i32> {
    let (path, address) = (root.tag(), address.display().to_string());
    let fits = |task: &host::Task| {
        task.command.contains(name) && task.command.contains(&address) && task.command.contains(path)
    };
    host::processes().into_iter().find(|task| fits(task)).map(|task| task.pid)
}

/// Proportional and private memory as the kernel counts it.
fn print_memory(name: &str, pid: Option<i32>) {
    let Some(text) = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()) else {
        println!("{name:34}        no such process");
        return;
    };
    let field = |field: &str| {
        text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse::<u64>().ok())
    };
    let (pss, rss) = (field("Pss:").unwrap_or_default(), field("Rss:").unwrap_or_default());
    println!("{name:34}{pss:>9} kB proportional, {rss} kB resident");
}
