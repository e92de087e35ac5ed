//! What each parser promises about whatever it is given.

use std::path::{Component, Path};

use orlop_host::cgroup::{Cgroup, Hierarchies, Hierarchy, Unit};
use orlop_host::mounts::MountOptions;
use orlop_host::probe::SecurityModules;
use orlop_host::sys::mount::{ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY};
use orlop_host::sys::seccomp::native_architecture;

use super::{drive, input};
use crate::bundle;
use crate::plan::process::Process;
use crate::plan::{Host, Plan, Request, user};
use crate::seccomp;
use crate::seccomp::machine::{Call, run};
use crate::sync::{Channel, Message};

/// The hosts that a plan is made for.
fn hosts() -> [Host; 3] {
    let security = SecurityModules { apparmor: true, selinux: true };
    [
        Host::default(),
        Host { unified: true, security, ..Default::default() },
        Host { user: true, ..Default::default() },
    ]
}

/// An entry of a corpus that is one input.
fn whole(entry: &[u8]) -> Vec<Vec<u8>> {
    vec![entry.to_vec()]
}

/// An entry of a corpus that has an input on each line.
fn lines(entry: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(entry).lines().map(str::to_owned).collect()
}

/// Absolute, and no way up or sideways in it.
fn is_clean(path: &Path) -> bool {
    path.is_absolute()
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

fn check_process(process: &Process) {
    assert!(process.arguments.first().is_none_or(|program| !program.is_empty()));
    assert!(process.cwd.is_absolute() && !process.cwd.components().any(|part| part == Component::ParentDir));
    let names = process.environment.iter().map(|pair| pair.to_bytes().split(|&byte| byte == b'=').next());
    let names: std::collections::BTreeSet<_> = names.collect();
    assert_eq!(names.len(), process.environment.len(), "each name once");
    assert!(process.limits.iter().all(|(_, soft, hard)| soft <= hard));
}

#[test]
fn config_json() {
    let attempt = |text: &Vec<u8>| {
        let Ok((spec, _)) = bundle::parse(text) else { return };
        let request = Request { id: "x".into(), bundle: "/b".into(), ..Default::default() };
        for host in hosts() {
            let Ok((plan, _)) = Plan::for_container(&spec, &request, &host) else { continue };
            check_process(&plan.process);
            let container = plan.container.as_ref().expect("the plan of a container");
            assert!(container.mounts.iter().all(|mount| is_clean(&mount.destination)));
            assert!(container.masked.iter().chain(&container.readonly_paths).all(|path| is_clean(path)));
            assert!(
                container
                    .devices
                    .iter()
                    .all(|device| is_clean(&device.path) && device.path != Path::new("/"))
            );
            let is_name = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
            assert!(container.sysctl.iter().all(|(name, _)| is_name(name)));
        }
    };
    drive("config", input::json, attempt, whole);
}

#[test]
fn process_json() {
    let attempt = |text: &Vec<u8>| {
        let Ok((process, _)) = bundle::parse_process(text, Path::new("process.json")) else { return };
        for host in hosts() {
            if let Ok(planned) = Process::plan(&process, &host) {
                check_process(&planned);
            }
        }
    };
    drive("process", input::json, attempt, whole);
}

#[test]
fn mount_options() {
    let attempt = |words: &Vec<String>| {
        let options = MountOptions::parse(words);
        for (off, on, bit) in [
            ("rw", "ro", ATTR_RDONLY),
            ("suid", "nosuid", ATTR_NOSUID),
            ("dev", "nodev", ATTR_NODEV),
            ("exec", "noexec", ATTR_NOEXEC),
        ] {
            let last = words.iter().rev().find(|word| **word == on || **word == off);
            let expected = last.map(|word| word == on);
            assert_eq!(options.set & bit != 0, expected == Some(true), "{words:?}");
            assert_eq!(options.clear & bit != 0, expected == Some(false), "{words:?}");
        }
        let again = [words.as_slice(), words.as_slice()].concat();
        let again = MountOptions::parse(&again);
        let bits = |options: &MountOptions| {
            (options.set, options.clear, options.recursive_set, options.recursive_clear, options.idmap)
        };
        assert_eq!(bits(&again), bits(&options), "said twice it means the same: {words:?}");
    };
    drive("mounts", input::words, attempt, |entry| vec![lines(entry)]);
}

#[test]
fn seccomp_rules() {
    let attempt = |text: &Vec<u8>| {
        let Ok(profile) = serde_json::from_slice(text) else { return };
        let Ok(filter) = seccomp::compile(&profile) else { return };
        assert!(!filter.program.is_empty() && filter.program.len() <= 4096);
        // The machine panics where the kernel would refuse the program.
        for number in [0, 1, 59, 101, 157, 321, 435, 0x4000_0000, u32::MAX] {
            for arguments in [[0; 6], [u64::MAX; 6], [1, 2, 3, 1 << 32, 5, 0x7e02_0000]] {
                for architecture in [native_architecture(), 0x4000_0003, 0] {
                    run(&filter.program, Call { number, architecture, arguments });
                }
            }
        }
    };
    drive("seccomp", input::json, attempt, whole);
}

#[test]
fn users() {
    let attempt = |text: &String| {
        let Ok((uid, gid)) = user::parse(text) else { return };
        // Leading zeroes apart, what it means is what it says.
        let said: Vec<_> = text.split(':').map(|part| part.trim_start_matches('0')).collect();
        let shown = |id: u32| if id == 0 { String::new() } else { id.to_string() };
        let meant: Vec<_> = [Some(uid), gid].into_iter().flatten().map(shown).collect();
        assert_eq!(said, meant, "{text:?}");
        assert!(!text.is_empty() && !text.starts_with(':') && !text.ends_with(':'));
    };
    drive("users", input::text, attempt, lines);
}

/// The caller's own cgroup, of a name that no input makes by chance.
const OWN: &str = "user-5f0c9a/shell-71be02";

#[test]
fn cgroup_paths() {
    let hierarchy = |controllers: &[&str], mountpoint: &str| Hierarchy {
        controllers: controllers.iter().map(|&one| one.to_owned()).collect(),
        mountpoint: mountpoint.into(),
        own: Path::new(mountpoint).join(OWN),
    };
    let unified = Some(hierarchy(&[], "/cg/unified"));
    let hosts = [
        Hierarchies { legacy: vec![hierarchy(&["cpu", "cpuacct"], "/cg/cpu")], unified: unified.clone() },
        Hierarchies { legacy: Vec::new(), unified },
    ];
    let attempt = |text: &String| {
        for is_users in [false, true] {
            let directory = Unit::plan(text, "id", is_users).and_then(|unit| unit.directory());
            let is_below = |path: &Path| {
                path != Path::new("") && path.components().all(|part| matches!(part, Component::Normal(_)))
            };
            assert!(directory.is_err() || directory.is_ok_and(|path| is_below(&path)), "{text:?}");
        }
        for hierarchies in &hosts {
            for (path, id) in [(Some(text.as_str()), "id"), (None, text)] {
                let Ok(paths) = Cgroup::plan(hierarchies, path, id) else { continue };
                assert!(!paths.is_empty());
                for (controller, path) in paths.iter() {
                    let top = Path::new(if controller.is_empty() { "/cg/unified" } else { "/cg/cpu" });
                    assert!(path.starts_with(top) && is_clean(path), "{text:?}: {path:?}");
                    // What removes or kills a container would do so with everything else that is in such a group.
                    let own = top.join(OWN);
                    assert!(path != top && path != own && Some(path) != own.parent(), "{text:?}");
                }
            }
        }
    };
    drive("cgroups", input::text, attempt, lines);
}

#[test]
fn sync_protocol() {
    let (parent, child) = Channel::pair().expect("a channel");
    let attempt = |bytes: &Vec<u8>| {
        let Some(message) = Message::decode(bytes) else { return };
        child.send(&message).expect("the channel has room");
        let (received, descriptor) =
            parent.receive().expect("a message of ours is understood").expect("it is there");
        assert!(descriptor.is_none());
        // Text that was cut in the middle of a character has another one there.
        assert_eq!(received, Message::decode(&message.encode()).expect("it is a message"));
        assert_eq!(std::mem::discriminant(&received), std::mem::discriminant(&message));
    };
    drive("sync", input::bytes, attempt, whole);
}
