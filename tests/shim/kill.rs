//! SIGKILL of the shim at random points of a container's life: the delete action leaves nothing and tells the truth.
//!
//! `ORLOP_SHIM_KILLS` says how often, as `make soak` does; each kill prints its seed, and `ORLOP_SHIM_SEED` is the first.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use orlop_proto::containerd::task::v2::*;
use orlop_proto::containerd::types::Mount;
use orlop_tests::shim::{Client, DEADLINE, Events, Fifos, Manner, Prepared, runtime};
use orlop_tests::{Bundle, Numbers, Root, binaries, host, number, poll_until};

/// Kills of a run that was asked for no number.
const KILLS: u64 = 30;
/// The longest life of a shim, in microseconds: a little more than all steps take.
const LIFE: u64 = 90_000;

/// Leads a container through its life until the shim is gone.
fn live(mut client: Client, create: &CreateTaskRequest, exec: &ExecProcessRequest) {
    let id = || create.id.clone();
    let named = |exec_id: &str| StartRequest { id: id(), exec_id: exec_id.to_owned() };
    let mut steps = || -> orlop_proto::error::Result<()> {
        client.call::<CreateTaskResponse>("Create", create)?;
        client.call::<StartResponse>("Start", &named(""))?;
        client.call::<()>("Exec", exec)?;
        client.call::<StartResponse>("Start", &named("e"))?;
        client.call::<()>("Pause", &PauseRequest { id: id() })?;
        client.call::<()>("Resume", &ResumeRequest { id: id() })?;
        client.call::<()>("Kill", &KillRequest { id: id(), signal: 9, ..KillRequest::default() })?;
        client.call::<WaitResponse>("Wait", &WaitRequest { id: id(), exec_id: String::new() })?;
        client.call::<DeleteResponse>("Delete", &DeleteRequest { id: id(), exec_id: String::new() })?;
        Ok(())
    };
    // How far it gets is chance, and what ends early makes its steps fail.
    let _ = steps();
}

/// An overlay over a directory, so that there is a mount to be left behind.
fn overlay(root: &Root, name: &str, lower: &Path) -> Vec<Mount> {
    let directory = |kind: &str| {
        let path = root.join(format!("{name}-{kind}"));
        fs::create_dir(&path).expect("making a directory");
        path.display().to_string()
    };
    let options = vec![
        format!("workdir={}", directory("work")),
        format!("upperdir={}", directory("upper")),
        format!("lowerdir={}", lower.display()),
    ];
    vec![Mount { r#type: "overlay".into(), source: "overlay".into(), target: String::new(), options }]
}

fn kill_at_random(program: &str, share: u64) {
    let root = Root::new();
    let base = Bundle::new(&root, "base");
    let (first, kills) = (number("ORLOP_SHIM_SEED", 1), number("ORLOP_SHIM_KILLS", KILLS) / share);
    for seed in first..first + kills {
        let after = Numbers::of(seed).draw() % LIFE;
        println!("{program}, seed {seed}: killed after {after} us");
        let name = format!("k{seed}");
        let script = if seed % 3 == 0 { "exit 7" } else { "sleep 1000" };
        let bundle = Bundle::beside(&root, &name, &base)
            .sh(script)
            .edit(|config| config["root"]["path"] = "rootfs".into())
            .save();
        let events = Events::listen(Manner::Answering);
        let mut shim =
            Prepared::new(&root, &name, bundle, &runtime(program), events).start(&binaries::shim());
        let mut create = shim.create_request(&Fifos::default());
        create.rootfs = overlay(&root, &name, &base.rootfs(""));
        let exec = shim.exec_request("e", "sleep 1000", &Fifos::default());
        let (pid, client) = (shim.pid(), shim.connect());
        thread::scope(|scope| {
            scope.spawn(|| live(client, &create, &exec));
            // The point is chosen by time, since that is what comes: the machine decides which instruction it meets.
            thread::sleep(Duration::from_micros(after));
            kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killing the shim");
        });
        poll_until(DEADLINE, "the shim is gone", || !host::alive(pid));
        let deleted = shim.delete_action();
        let told = shim.events.of(&shim.id);
        let exit: Option<u32> = told.iter().find_map(|event| event.strip_prefix("exit init ")?.parse().ok());
        if let Some(exit) = exit {
            assert_eq!(deleted.exit_status, exit, "seed {seed}: {told:?}");
        } else {
            assert!([7, 137].contains(&deleted.exit_status), "seed {seed}: {deleted:?}");
        }
        assert!(deleted.exited_at.is_some(), "seed {seed}");
        assert!(!shim.socket.exists(), "seed {seed}: its socket is left");
        drop(shim);
        root.assert_clean();
    }
}

#[test]
fn nothing_is_left_with_orlop() {
    kill_at_random("orlop", 1);
}

#[test]
fn nothing_is_left_with_runc() {
    kill_at_random("runc", 2);
}
