//! The matrix with the newest containerd, its shim and its client, every sub-command of that client, and buildkitd, all built
//! from Go's module proxy by `make newest`: Go 1.26 or newer, a network and some minutes. `make test` leaves it out and says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use orlop_tests::{
    Cmd, Containerd, Daemon, Image, Orlopd, Registry, Root, Variant, binaries, go, newer_crun, poll_until,
};

use crate::ctr_walk::{Client, walk};
use crate::ctr_words;
use crate::workload::{exercise, import_image};

const MODULE: &str = "github.com/containerd/containerd/v2";
/// The one place that says which containerd is the newest.
const VERSION: &str = "v2.4.2";
/// What Go's checksum database says of the module.
const SUM: &str = "h1:p6Qg+xbEz8lvwdhHDx0U469xENvp4LgGBx+E7djXkGw=";
/// Its programs.
const PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];
/// What needs C libraries, or hardware that is not here.
const WITHOUT: &str = "no_btrfs no_devmapper no_zfs";

const BUILDKIT: &str = "github.com/moby/buildkit";
/// The one place that says which buildkit is the newest.
const BUILDKIT_VERSION: &str = "v0.34.2";
/// What Go's checksum database says of it.
const BUILDKIT_SUM: &str = "h1:fXgOe79JW5zJNDumRtwTemOklLX66otQokObUXuiGJo=";

/// Downloads a module and says where it lies.
fn download(cwd: &Path, module: &str, version: &str, sum: &str) -> PathBuf {
    let module = format!("{module}@{version}");
    let answer = go(cwd).args(["mod", "download", "-json", &module]).run().success();
    let answer: serde_json::Value = serde_json::from_str(&answer.stdout).expect("JSON from go");
    assert_eq!(answer["Sum"], sum, "the module is another one");
    answer["Dir"].as_str().expect("a directory").into()
}

/// Builds buildkitd and its client once; the directory that they are in. Its go.mod has lines that only count for the main
/// module, so that it is built within a copy of itself.
fn build_buildkit() -> PathBuf {
    let directory = binaries::target_dir().join("newest").join(format!("buildkit-{BUILDKIT_VERSION}"));
    if directory.join("buildkitd").exists() && directory.join("buildctl").exists() {
        return directory;
    }
    let part = directory.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).unwrap();
    let source = download(&part, BUILDKIT, BUILDKIT_VERSION, BUILDKIT_SUM);
    Cmd::new("cp").args(["-r", "--no-preserve=mode"]).arg(source).arg(part.join("source")).run().success();
    let build = go(&part.join("source")).args(["build", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(&part);
    build.args(["./cmd/buildkitd", "./cmd/buildctl"]).run().success();
    fs::remove_dir_all(part.join("source")).unwrap();
    let _ = fs::remove_dir_all(&directory);
    fs::rename(&part, &directory).unwrap();
    directory
}

/// Builds the programs once; the directory that they are in.
pub fn build() -> PathBuf {
    let directory = binaries::target_dir().join("newest").join(VERSION);
    if PROGRAMS.iter().all(|name| directory.join(name).exists()) {
        return directory;
    }
    let part = directory.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).unwrap();
    download(&part, MODULE, VERSION, SUM);
    let packages = PROGRAMS.map(|name| format!("{MODULE}/cmd/{name}@{VERSION}"));
    let install =
        go(&part).args(["install", "-trimpath", "-ldflags", "-s -w", "-tags", WITHOUT]).args(packages);
    install.env("GOBIN", &part).run().success();
    let _ = fs::remove_dir_all(&directory);
    fs::rename(&part, &directory).unwrap();
    directory
}

fn check(daemon: &impl Daemon, root: &Root, runtime: &str) {
    let program = match runtime {
        "orlop" => binaries::orlop(),
        // Debian's refuses the version of the specification that this client writes.
        "crun" => newer_crun().unwrap_or_else(|why| panic!("{why}")),
        other => binaries::system(other),
    };
    let image = import_image(root, daemon);
    exercise(root, daemon, &image, &["--runc-binary", program.to_str().expect("paths here are UTF-8")]);
}

#[test]
fn the_newest_containerd_its_shim_and_its_client() {
    if std::env::var_os("ORLOP_NEWEST").is_none() {
        println!("not run: containerd {VERSION}; `make newest` runs it");
        return;
    }
    let programs = build();
    let shim = "containerd-shim-runc-v2";
    let [containerd, theirs, client] = PROGRAMS.map(|name| programs.join(name));
    for runtime in ["orlop", "runc", "crun"] {
        let hide_unified = runtime == "crun";
        let variant = Variant { client: Some(client.clone()), hide_unified, ..Variant::default() };
        for (whose, program) in [("our shim", binaries::shim()), ("its shim", theirs.clone())] {
            println!("{runtime} under {whose} under containerd {VERSION}");
            let root = Root::new();
            let links = vec![(program, shim.to_owned())];
            let variant = Variant { containerd: Some(containerd.clone()), links, ..variant.clone() };
            let mut daemon = Containerd::start_as(&root, &variant);
            check(&daemon, &root, runtime);
            daemon.stop();
            root.assert_clean();
        }
        for (whose, config) in [
            ("our shim", String::new()),
            ("its shim", format!("[runtimes.\"io.containerd.runc.v2\"]\nshim = {theirs:?}\n")),
        ] {
            println!("{runtime} under {whose} under orlopd, by ctr {VERSION}");
            let root = Root::new();
            let mut daemon = Orlopd::start_as(&root, &config, &variant);
            check(&daemon, &root, runtime);
            daemon.stop();
            root.assert_clean();
        }
    }
}

#[test]
fn newest_every_sub_command_of_its_client_works() {
    if std::env::var_os("ORLOP_NEWEST").is_none() {
        println!("not run: ctr {VERSION}; `make newest` runs it");
        return;
    }
    walk(Client::Newest, &build().join("ctr"));
    ctr_words::walk(&build().join("ctr"));
}

/// A file of three stages; each adds a line.
fn dockerfile(base: &str) -> String {
    let step = |words: &str| format!("RUN [\"sh\", \"-c\", \"{words}\"]\n");
    format!(
        "FROM {base} AS one\n{}FROM {base} AS two\nCOPY --from=one /one /two\n{}FROM {base}\nCOPY --from=two /two /three\n{}",
        step("echo one > /one"),
        step("echo two >> /two"),
        step("echo three >> /three")
    )
}

#[test]
fn newest_buildkitd_builds_three_stages_on_orlopd() {
    if std::env::var_os("ORLOP_NEWEST").is_none() {
        println!("not run: buildkit {BUILDKIT_VERSION}; `make newest` runs it");
        return;
    }
    let programs = build_buildkit();
    let root = Root::new();
    let registry = Registry::start(&root);
    let mut orlopd = Orlopd::start(&root);
    let base = Image::two_layers().push(&registry, "base", "1");
    let context = root.join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), dockerfile(&base)).unwrap();
    let address = format!("unix://{}", root.join("buildkit").display());
    let buildkitd = Cmd::new(programs.join("buildkitd"))
        .arg("--root")
        .arg(root.join("buildkit-root"))
        .args(["--addr", &address, "--oci-worker=false", "--containerd-worker=true"])
        .args(["--containerd-worker-net", "host", "--containerd-worker-addr"])
        .arg(orlopd.address())
        .args(["--containerd-worker-namespace", root.tag()])
        .spawn();
    let buildctl = || Cmd::new(programs.join("buildctl")).args(["--addr", &address]);
    poll_until(Duration::from_secs(60), "buildkitd answers", || {
        buildctl().args(["debug", "workers"]).run().status.success()
    });
    let built = format!("{}/built:1", registry.address());
    let local = |name: &str| format!("{name}={}", context.display());
    let output = format!("type=image,name={built},push=true,registry.insecure=true,unpack=true");
    let build = buildctl().args(["build", "--frontend", "dockerfile.v0", "--output", &output]);
    build.args(["--local", &local("context"), "--local", &local("dockerfile")]).run().success();
    orlopd.orlopctl(["images", "pull", &built]).run().success();
    let run = ["run", "--rm", &built, "c", "sh", "-c", "cat /three /etc/changed"];
    assert_eq!(orlopd.orlopctl(run).run().success().stdout, "one\ntwo\nthree\ntwo\n");
    buildkitd.signal(Signal::SIGTERM);
    buildkitd.wait(Duration::from_secs(60));
    orlopd.stop();
    drop(registry);
    root.assert_clean();
}

/// The program in `clients`, built with the module's client.
fn build_go_client() -> PathBuf {
    let directory = binaries::target_dir().join("newest").join(format!("client-{VERSION}"));
    let part = directory.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).unwrap();
    download(&part, MODULE, VERSION, SUM);
    fs::write(part.join("main.go"), include_str!("clients/main.go")).unwrap();
    fs::write(part.join("go.mod"), format!("module client\n\ngo 1.26\n\nrequire {MODULE} {VERSION}\n"))
        .unwrap();
    // Go keeps what it has built before.
    go(&part).args(["build", "-trimpath", "-ldflags", "-s -w", "-o", "client", "."]).run().success();
    let _ = fs::remove_dir_all(&directory);
    fs::rename(&part, &directory).unwrap();
    directory.join("client")
}

#[test]
fn newest_go_client_pulls_runs_and_hears_of_it() {
    if std::env::var_os("ORLOP_NEWEST").is_none() {
        println!("not run: the Go client {VERSION}; `make newest` runs it");
        return;
    }
    let client = build_go_client();
    let root = Root::new();
    let registry = Registry::start(&root);
    let mut orlopd = Orlopd::start(&root);
    let image = Image::two_layers().push(&registry, "client", "1");
    let fifos = root.join("fifos");
    fs::create_dir(&fifos).unwrap();
    let told = Cmd::new(client).arg(orlopd.address()).args([root.tag(), &image]).arg(&fifos).run().success();
    let lines: Vec<&str> = told.stdout.lines().collect();
    assert_eq!(lines[0], format!("pulled {image}"));
    assert_eq!(lines[1], "exec said \"inside\\n\" and ended with 7");
    assert_eq!(lines[2], "task said \"two\\n\" and ended with 137");
    let mut topics: Vec<&str> =
        lines[3..].iter().filter_map(|line| line.strip_prefix("event /tasks/")).collect();
    assert_eq!(topics.pop(), Some("delete"), "{topics:?}");
    assert_eq!(topics, ["create", "start", "exec-added", "exec-started", "exit", "exit"]);
    orlopd.stop();
    drop(registry);
    root.assert_clean();
}
