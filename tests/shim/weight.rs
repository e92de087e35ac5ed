//! What one more shim takes of the machine, the kernel's memory for it included.
//!
//! Each shim gets a memory cgroup of its own, and so do the runtime and the container, so that what is charged is the shim's:
//! its anonymous memory, and what the kernel keeps for it (its stack there, page tables, descriptors, sockets, watches, the
//! entries of its directories). Pages of its program are shared by all shims and were paid by the first; pages of files that
//! were read or written are cache. Neither is what another shim adds.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_tests::shim::{DEADLINE, Events, Fifos, Manner, Prepared, Shim};
use orlop_tests::{Bundle, Root, binaries, host, poll_for};

/// How many shims run beside each other.
const SHIMS: usize = 12;
/// The most that one may take, in KiB.
const MOST: u64 = 400;

/// A memory cgroup of the test's.
fn group(root: &Root, name: &str) -> PathBuf {
    let top = host::cgroup_hierarchies()
        .into_iter()
        .find(|dir| dir.ends_with("memory") || host::cgroup_unified())
        .expect("a memory controller");
    let dir = top.join(root.tag()).join(name);
    fs::create_dir_all(&dir).expect("making a cgroup");
    if host::cgroup_unified() {
        for parent in [top.clone(), top.join(root.tag())] {
            fs::write(parent.join("cgroup.subtree_control"), "+memory").expect("handing down the controller");
        }
    }
    dir
}

/// A program that enters a cgroup before it becomes another.
fn inside(path: &Path, group: &Path, program: &Path) {
    let script =
        format!("#!/bin/sh\necho $$ >{}/cgroup.procs\nexec {} \"$@\"\n", group.display(), program.display());
    fs::write(path, script).expect("writing a program");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("making it executable");
}

/// Anonymous and kernel memory of a cgroup, in KiB.
fn charged(group: &Path) -> u64 {
    let stat = fs::read_to_string(group.join("memory.stat")).expect("memory.stat");
    let figure = |name: &str| -> u64 {
        let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {stat}"))
    };
    let bytes = match fs::read_to_string(group.join("memory.kmem.usage_in_bytes")) {
        Ok(kernel) => figure("rss") + kernel.trim().parse::<u64>().expect("a number"),
        Err(_) => figure("anon") + figure("kernel"),
    };
    bytes >> 10
}

#[test]
fn one_more_shim_takes_at_most_400_kibibytes_of_the_machine() {
    let root = Root::new();
    let base = Bundle::new(&root, "base");
    fs::create_dir(root.join("bin")).unwrap();
    let others = group(&root, "others");
    inside(&root.join("bin/orlop"), &others, &binaries::orlop());
    let mut shims: Vec<(Shim, PathBuf)> = Vec::new();
    for n in 0..SHIMS {
        let group = group(&root, &format!("shim{n}"));
        let program = root.join(format!("bin/shim{n}"));
        inside(&program, &group, &binaries::shim());
        let name = format!("c{n}");
        let bundle = Bundle::beside(&root, &name, &base).args(["sleep", "1000"]).save();
        let runtime = root.join("bin/orlop");
        let mut shim =
            Prepared::new(&root, &name, bundle, &runtime, Events::listen(Manner::Answering)).start(&program);
        shim.create(&Fifos::output(&root, &name));
        shim.start_process("").unwrap();
        let inside = host::cgroup_processes(&group);
        assert_eq!(inside, [shim.pid()], "nothing but the shim is counted");
        shims.push((shim, group));
    }
    let release = binaries::shim().to_string_lossy().contains("x86_64-unknown-linux-musl/release");
    // What ended processes held, the kernel gives back a moment later.
    let weights = || shims.iter().map(|(_, group)| charged(group)).collect::<Vec<_>>();
    let light = poll_for(DEADLINE.min(Duration::from_secs(10)), || {
        weights()[1..].iter().all(|weight| *weight <= MOST).then_some(())
    });
    println!("KiB of each shim, anonymous and kernel memory: {:?}", weights());
    assert!(light.is_some() || !release, "more than {MOST} KiB: {:?}", weights());
    let groups: Vec<PathBuf> = shims.iter().map(|(_, group)| group.clone()).chain([others]).collect();
    shims.into_iter().for_each(|(shim, _)| shim.finish());
    for group in groups {
        host::remove_cgroup(&group).expect("the cgroup is empty");
    }
    root.assert_clean();
}
