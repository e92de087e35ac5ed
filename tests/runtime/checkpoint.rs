//! Containers saved to files and brought back by CRIU. Where CRIU does not run, as on kernels newer than it, what is asked for is
//! refused and the container goes on; `make test-vm` has a kernel on which it runs.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::libc::O_NONBLOCK;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use orlop_tests::{Bundle, Cmd, Output, Root, binaries, host, poll_until, poll_value};
use serde_json::json;

use crate::support::{PATIENCE, Runtime};

/// Counts in memory, and shows how far it is; ends once it is told to.
const COUNTER: &str = "echo kept > /run/file; n=0; trap 'exit 9' TERM
                       while [ ! -e /data/end ]; do n=$((n+1)); echo $n > /data/new; mv /data/new /data/count; sleep 0.05; done; exit 7";

/// CRIU 3.17 names a socket after the pid that it restores, which is 1 in every container, in the network that all of these share:
/// one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

struct Saved {
    runtime: Runtime,
    bundle: Bundle,
    data: PathBuf,
    images: PathBuf,
    _alone: MutexGuard<'static, ()>,
}

impl Saved {
    /// A container that counts.
    fn new() -> Saved {
        Saved::with(|bundle| bundle.sh(COUNTER))
    }

    /// One that counts already, where CRIU works.
    fn counting() -> Option<Saved> {
        host::criu_works().then(|| {
            let saved = Saved::new();
            saved.start();
            saved
        })
    }

    /// A container in the network of the host, since CRIU 3.17 fails on the network namespaces of newer kernels.
    fn with(change: impl FnOnce(Bundle) -> Bundle) -> Saved {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = Runtime::new();
        let data = runtime.root.join("data");
        fs::create_dir(&data).unwrap();
        let bundle = change(runtime.sh(""))
            .mount(json!({"destination": "/data", "type": "bind", "source": data, "options": ["rbind"]}))
            .mount(json!({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]}))
            .edit(|config| {
                let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.retain(|namespace| namespace["type"] != "network");
            })
            .save();
        let images = runtime.root.join("images");
        Saved { runtime, bundle, data, images, _alone: alone }
    }

    fn count(&self) -> u32 {
        poll_value(PATIENCE, "the container counts", || {
            fs::read_to_string(self.data.join("count")).ok()?.trim().parse().ok()
        })
    }

    fn wait_for_more_than(&self, count: u32) {
        poll_until(PATIENCE, "the container goes on counting", || self.count() > count);
    }

    /// Starts it with streams that are the host's null device: CRIU takes no file of the host.
    fn start(&self) {
        let command = "exec \"$0\" --root \"$1\" run --detach --bundle \"$2\" c1 </dev/null >/dev/null 2>&1";
        self.shell(command, &[self.bundle.path()]).success();
        self.wait_for_more_than(2);
    }

    fn shell(&self, command: &str, arguments: &[&Path]) -> Output {
        Cmd::new("/bin/sh")
            .args(["-c", command])
            .arg(binaries::orlop())
            .arg(self.runtime.state_dir())
            .args(arguments)
            .run()
    }

    fn checkpoint(&self, arguments: &[&str]) -> Output {
        self.saving(arguments).run()
    }

    fn saving(&self, arguments: &[&str]) -> Cmd {
        let call = self.runtime.cmd().args(["checkpoint", "--image-path"]).arg(&self.images);
        call.args(arguments).arg("c1")
    }

    fn restore(&self, flags: &str) -> Output {
        let command = format!(
            "exec \"$0\" --root \"$1\" restore {flags} --bundle \"$2\" --image-path \"$3\" c1 </dev/null >/dev/null 2>\"$4\""
        );
        let errors = self.runtime.root.join("errors");
        let mut out = self.shell(&command, &[self.bundle.path(), &self.images, &errors]);
        out.stderr = fs::read_to_string(errors).unwrap_or_default();
        out
    }
}

/// Processes, their memory and the container's own file systems come back; `exec`, `kill` and `delete` work as before.
#[test]
fn a_container_goes_on_where_it_was() {
    let Some(saved) = Saved::counting() else { return refuses() };
    saved.checkpoint(&[]).success();
    assert_eq!(saved.runtime.call(&["list", "--quiet"]).success().stdout, "");
    saved.runtime.assert_clean();
    let before = saved.count();
    let pid_file = saved.runtime.root.join("pid");
    saved.restore(&format!("--detach --pid-file {}", pid_file.display())).success();
    assert_eq!(saved.runtime.status("c1"), "running");
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), saved.runtime.pid("c1").to_string());
    saved.wait_for_more_than(before);
    assert!(saved.count() < before + 1000, "it started from the beginning, or runs twice");
    let out = saved.runtime.exec("c1", &["sh", "-c", "cat /run/file; hostname; cat /proc/1/comm"]).success();
    assert_eq!(out.stdout, "kept\norlop\nsh\n");
    saved.runtime.call(&["kill", "c1", "TERM"]).success();
    saved.runtime.wait_for("c1", "stopped");
    saved.runtime.finish("c1");
}

/// What the host cannot do is said, and neither harms the container nor leaves anything.
fn refuses() {
    let saved = Saved::new();
    saved.start();
    let out = saved.checkpoint(&[]);
    assert_eq!(out.code(), 1, "{out}");
    assert!(out.stderr.contains("criu"), "{out}");
    let before = saved.count();
    saved.wait_for_more_than(before);
    saved.runtime.finish("c1");
    let out = saved.restore("--detach");
    assert_eq!(out.code(), 1, "{out}");
    saved.runtime.assert_clean();
}

/// A restore that stays ends with the container's exit code and deletes it.
#[test]
fn a_restore_in_the_foreground_ends_with_the_container() {
    let Some(saved) = Saved::counting() else { return };
    saved.checkpoint(&[]).success();
    fs::write(saved.data.join("end"), "").unwrap();
    let out = saved.restore("");
    assert_eq!(out.code(), 7, "{out}");
    saved.runtime.assert_clean();
}

/// Memory is saved while the container runs, and only the rest of it after it was stopped; a copy can be left running.
#[test]
fn memory_is_saved_in_advance() {
    let Some(mut saved) = Saved::counting() else { return };
    let parent = saved.runtime.root.join("parent");
    let images = std::mem::replace(&mut saved.images, parent);
    saved.checkpoint(&["--pre-dump"]).success();
    assert_eq!(saved.runtime.status("c1"), "running");
    saved.images = images;
    saved.checkpoint(&["--parent-path", "../parent", "--leave-running"]).success();
    let before = saved.count();
    saved.wait_for_more_than(before);
    saved.runtime.finish("c1");
    saved.restore("--detach").success();
    saved.wait_for_more_than(before);
    saved.runtime.finish("c1");
}

/// A port of loopback, for one test at a time.
const PORT: u16 = 4455;

/// Sends what it counts to itself, through a connection of the network that it shares with the host.
fn sending() -> String {
    let listens = format!("grep -q ':{PORT:04X} 0*:0000 0A' /proc/net/tcp6");
    format!(
        "sleep 100000 | nc -l -p {PORT} >/data/got & until {listens}; do sleep 0.05; done
         n=0; trap 'exit 9' TERM
         while :; do n=$((n+1)); echo $n; echo $n >/data/new; mv /data/new /data/count; sleep 0.05; done | nc ::1 {PORT}"
    )
}

/// Connections of TCP come back with both of their ends, and nothing that was on the way is lost or comes twice, whether a flag asks
/// for it or CRIU's configuration, which an annotation names.
#[test]
fn connections_go_on() {
    if !host::criu_works() {
        return;
    }
    let elsewhere = Root::new();
    let configuration = elsewhere.join("criu.conf");
    fs::write(&configuration, "").unwrap();
    let saved = Saved::with(|bundle| {
        let annotations = json!({ "org.criu.config": configuration });
        bundle.sh(&sending()).edit(|config| config["annotations"] = annotations)
    });
    let got = || {
        let text = fs::read_to_string(saved.data.join("got")).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole).to_owned();
        whole.lines().map(|line| line.parse().expect("a number")).collect::<Vec<u32>>()
    };
    saved.start();
    poll_until(PATIENCE, "something arrives", || got().len() > 2);
    let refused = saved.checkpoint(&[]);
    assert!(refused.stderr.contains("criu failed"), "{refused}");
    let count = saved.count();
    saved.wait_for_more_than(count);
    for (flags, configured) in [(&["--tcp-established"][..], ""), (&[], "tcp-established\n")] {
        fs::write(&configuration, configured).unwrap();
        saved.checkpoint(flags).success();
        let before = got().len();
        saved.restore(&format!("--detach {}", flags.join(" "))).success();
        poll_until(PATIENCE, "more arrives", || got().len() > before + 2);
    }
    let all = got();
    assert_eq!(all, (1..=all.len() as u32).collect::<Vec<_>>());
    saved.runtime.finish("c1");
}

/// Memory stays where it was until the restored container asks for it; who waits for that is told when it can be fetched.
#[test]
fn memory_is_fetched_when_it_is_wanted() {
    let Some(saved) = Saved::counting() else { return };
    let address = format!("127.0.0.1:{PORT}");
    let told = saved.runtime.root.join("told");
    mkfifo(&told, Mode::S_IRWXU).unwrap();
    let flags = format!("--lazy-pages --page-server {address} --status-fd 5 --manage-cgroups-mode ignore");
    let command = format!("exec \"$0\" --root \"$1\" checkpoint {flags} --image-path \"$2\" c1 5<>\"$3\"");
    let serving = Cmd::new("/bin/sh")
        .args(["-c", &command])
        .arg(binaries::orlop())
        .args([&saved.runtime.state_dir(), &saved.images, &told])
        .spawn();
    let mut word = [1];
    let mut hears = File::options().read(true).custom_flags(O_NONBLOCK).open(&told).unwrap();
    poll_until(PATIENCE, "memory can be fetched", || matches!(hears.read(&mut word), Ok(1)));
    assert_eq!(word, [0]);
    let before = saved.count();
    // The saved one is there until its memory has been fetched.
    let second = Bundle::beside(&saved.runtime.root, "second", &saved.bundle);
    let second = second.edit(|config| {
        let (root, cgroup) = (config["root"].take(), config["linux"]["cgroupsPath"].take());
        *config = saved.bundle.config().clone();
        (config["root"], config["linux"]["cgroupsPath"]) = (root, cgroup);
    });
    let second = second.save();
    let fetching = Cmd::new(binaries::find("criu").unwrap())
        .args(["lazy-pages", "--page-server", "--address", "127.0.0.1", "--port", &PORT.to_string(), "-D"])
        .arg(&saved.images)
        .spawn();
    poll_until(PATIENCE, "somebody fetches", || saved.images.join("lazy-pages.socket").exists());
    let errors = saved.runtime.root.join("errors");
    let command = "exec \"$0\" --root \"$1\" restore --detach --lazy-pages --manage-cgroups-mode ignore --bundle \"$2\" \
                   --image-path \"$3\" --work-path \"$3\" c2 </dev/null >/dev/null 2>\"$4\"";
    let restored = saved.shell(command, &[second.path(), &saved.images, &errors]);
    assert!(restored.status.success(), "{}", fs::read_to_string(&errors).unwrap_or_default());
    saved.wait_for_more_than(before);
    serving.wait(PATIENCE).success();
    fetching.wait(PATIENCE).success();
    assert_eq!(saved.runtime.call(&["list", "--quiet"]).success().stdout.trim(), "c2");
    let count = saved.count();
    saved.wait_for_more_than(count);
    saved.runtime.finish("c2");
}

/// Damaged images: one error with what CRIU's log says, and neither state, cgroup, mount nor process is left.
#[test]
fn damaged_images_leave_nothing() {
    let Some(saved) = Saved::counting() else { return };
    saved.checkpoint(&["--work-path", saved.runtime.root.join("work").to_str().unwrap()]).success();
    assert!(saved.runtime.root.join("work/dump.log").exists());
    fs::write(saved.images.join("pstree.img"), "nothing of use").unwrap();
    let out = saved.restore("--detach");
    assert_eq!(out.code(), 1, "{out}");
    assert!(out.stderr.contains("criu failed: type RESTORE"), "{out}");
    saved.runtime.assert_clean();
    fs::remove_file(saved.images.join("descriptors.json")).unwrap();
    let out = saved.restore("--detach");
    assert!(out.stderr.contains("descriptors.json"), "{out}");
    saved.runtime.assert_clean();
}

/// What cannot be saved, and what makes no sense, is refused with runc's words.
#[test]
fn refusals() {
    let saved = Saved::new();
    saved.runtime.create(&saved.bundle, "c1");
    let out = saved.checkpoint(&[]);
    assert!(out.stderr.contains("Container cannot be checkpointed in created state"), "{out}");
    saved.runtime.finish("c1");
    saved.start();
    for (arguments, why) in [
        (&["--parent-path", "/tmp"][..], "--parent-path must be relative"),
        (&["--page-server", "here"], "Use --page-server ADDRESS:PORT to specify page server"),
        (&["--page-server", "here:x"], "Invalid port number"),
        (&["--empty-ns", "mount"], "namespace \\\"mount\\\" is not supported"),
        (&["--manage-cgroups-mode", "some"], "invalid manage-cgroups-mode value"),
        (&["--status-fd", "77"], "invalid --status-fd argument 77"),
    ] {
        let out = saved.checkpoint(arguments);
        assert_eq!(out.code(), 1, "{out}");
        assert!(out.stderr.contains(why), "{out}");
    }
    assert!(!saved.images.exists());
    saved.runtime.finish("c1");
}
