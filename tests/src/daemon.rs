//! The two managers, ours and Debian's containerd, each in a directory of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::binaries;
use crate::command::{Cmd, Output, Process, path_with};
use crate::host;
use crate::poll::poll_for;
use crate::registry::free_name;
use crate::root::Root;

/// What a test does with a manager, whichever of the two it is.
pub trait Daemon {
    /// The gRPC socket.
    fn address(&self) -> &Path;

    /// The namespace that [`Daemon::ctr`] and [`Daemon::orlopctl`] use: the root's tag, so that cgroups carry it.
    fn namespace(&self) -> &str;

    /// The `ctr` that [`Daemon::ctr`] calls.
    fn client(&self) -> PathBuf;

    /// Debian's `ctr` on this daemon, in its namespace; another one if the daemon's [`Variant`] says so.
    fn ctr<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Cmd {
        Cmd::new(self.client()).arg("-a").arg(self.address()).args(["-n", self.namespace()]).args(args)
    }

    /// Our own client on this daemon, in its namespace.
    fn orlopctl<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Cmd {
        Cmd::new(binaries::orlopctl())
            .arg("--address")
            .arg(self.address())
            .args(["--namespace", self.namespace()])
            .args(args)
    }
}

/// How a daemon is started, kept for starting it again.
#[derive(Debug)]
struct Launch {
    program: PathBuf,
    args: Vec<String>,
    /// A directory of links that comes first in `PATH`: our shim, and our runtime under its own name.
    bin: PathBuf,
    dir: PathBuf,
    address: PathBuf,
    namespace: String,
    env: Vec<(String, String)>,
    client: PathBuf,
    /// Hide the unified hierarchy of a hybrid host, which crun refuses.
    hide_unified: bool,
    /// Run in this network namespace.
    network: Option<PathBuf>,
    /// Run in this mount namespace.
    mounts: Option<PathBuf>,
    /// A file that stands for the kernel's boot ID.
    boot_id: Option<PathBuf>,
}

impl Launch {
    fn new(root: &Root, name: &str, program: PathBuf) -> Launch {
        let dir = free_name(root, name);
        fs::create_dir(&dir).expect("making the daemon's directory");
        let bin = dir.join("bin");
        fs::create_dir(&bin).expect("making the daemon's bin directory");
        let launch = Launch {
            program,
            args: Vec::new(),
            bin,
            address: dir.join("s"),
            namespace: root.tag().to_owned(),
            env: Vec::new(),
            client: binaries::find("ctr").unwrap_or_default(),
            hide_unified: false,
            network: None,
            mounts: None,
            boot_id: None,
            dir,
        };
        launch.link(&binaries::orlop(), "orlop");
        launch.link(&binaries::shim(), "containerd-shim-orlop-v1");
        launch
    }

    /// Puts `program` into the daemon's `PATH` under another name.
    fn link(&self, program: &Path, name: &str) {
        let target = fs::canonicalize(program).expect("a program has a path");
        symlink(target, self.bin.join(name)).expect("linking a program");
    }

    /// Starts it without waiting.
    fn begin(&self) -> Process {
        const HIDE: [&str; 6] = [
            "-m",
            "--propagation",
            "private",
            "sh",
            "-c",
            "umount /sys/fs/cgroup/unified && exec \"$0\" \"$@\"",
        ];
        let hybrid = host::mounts().iter().any(|m| m.target == Path::new("/sys/fs/cgroup/unified"));
        let cmd = if self.hide_unified && hybrid {
            Cmd::new("unshare").args(HIDE).arg(&self.program)
        } else if let Some(file) = &self.boot_id {
            let bind = format!(
                "mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$0\" \"$@\"",
                file.display()
            );
            Cmd::new("unshare").args(["-m", "--propagation", "private", "sh", "-c", &bind]).arg(&self.program)
        } else {
            Cmd::new(&self.program)
        };
        let cmd = match &self.network {
            Some(path) => {
                let mounts = self.mounts.iter().map(|path| format!("--mount={}", path.display()));
                Cmd::new("nsenter").arg(format!("--net={}", path.display())).args(mounts).arg(&self.program)
            }
            None => cmd,
        };
        let mut cmd = cmd
            .args(&self.args)
            .cwd(&self.dir)
            .env("PATH", path_with(std::slice::from_ref(&self.bin)))
            .without_env("NOTIFY_SOCKET")
            .without_env("LISTEN_FDS");
        for (key, value) in &self.env {
            cmd = cmd.env(key, value);
        }
        cmd.spawn()
    }

    fn spawn(&self) -> Process {
        let mut process = self.begin();
        let up = poll_for(Duration::from_secs(30), || {
            (!process.running() || UnixStream::connect(&self.address).is_ok()).then_some(())
        });
        if up.is_none() || !process.running() {
            panic!(
                "{} does not serve on {}:\n{}",
                self.program.display(),
                self.address.display(),
                process.stderr()
            );
        }
        process
    }
}

fn stop(process: Process) -> Output {
    process.signal(Signal::SIGTERM);
    process.wait(Duration::from_secs(30))
}

/// What may differ from the usual when a daemon is started.
#[derive(Debug, Clone, Default)]
pub struct Variant {
    /// Environment variables, which a restart sets again.
    pub env: Vec<(String, String)>,
    /// Programs that come first in its `PATH` under the given names.
    pub links: Vec<(PathBuf, String)>,
    /// Run it in a mount namespace without the unified hierarchy of a hybrid host, which crun refuses.
    pub hide_unified: bool,
    /// A file whose content the daemon takes for the kernel's boot ID: rewritten, the machine has been restarted.
    pub boot_id: Option<PathBuf>,
    /// Run it in the network namespace of this path.
    pub network: Option<PathBuf>,
    /// Run it in the mount namespace of this path, where that of a network is given too.
    pub mounts: Option<PathBuf>,
    /// Where our manager keeps its state, instead of its own directory.
    pub state: Option<PathBuf>,
    /// Where the manager keeps its persistent data, instead of its own directory.
    pub data: Option<PathBuf>,
    /// The `orlopd` to start, instead of the one that was built.
    pub program: Option<PathBuf>,
    /// The `containerd` to start, instead of Debian's.
    pub containerd: Option<PathBuf>,
    /// The `ctr` with which the daemon is called, instead of Debian's.
    pub client: Option<PathBuf>,
    /// The namespace in which the daemon is called, instead of the root's tag.
    pub namespace: Option<String>,
    /// Have containerd serve CRI too.
    pub cri: bool,
    /// Lines of TOML at the end of containerd's configuration.
    pub containerd_config: String,
}

impl Variant {
    fn apply(&self, launch: &mut Launch) {
        launch.env.clone_from(&self.env);
        launch.hide_unified = self.hide_unified;
        launch.network.clone_from(&self.network);
        launch.mounts.clone_from(&self.mounts);
        launch.boot_id.clone_from(&self.boot_id);
        if let Some(client) = &self.client {
            launch.client.clone_from(client);
        }
        if let Some(namespace) = &self.namespace {
            launch.namespace.clone_from(namespace);
        }
        for (program, name) in &self.links {
            launch.link(program, name);
        }
    }
}

/// Debian's containerd with root, state and socket of its own and without CRI. Our shim and runtime come first in its
/// `PATH`; its own shim is found after them.
#[derive(Debug)]
pub struct Containerd {
    launch: Launch,
    process: Option<Process>,
}

/// The plugins of CRI, of containerd 1.x and 2.x.
const CRI: &str =
    r#""io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "#;

impl Containerd {
    /// Starts one below `root`.
    pub fn start(root: &Root) -> Containerd {
        Containerd::start_as(root, &Variant::default())
    }

    /// Starts one below `root` that differs from the usual.
    pub fn start_as(root: &Root, variant: &Variant) -> Containerd {
        let program = variant.containerd.clone().unwrap_or_else(|| binaries::system("containerd"));
        let mut launch = Launch::new(root, "containerd", program);
        variant.apply(&mut launch);
        let config = launch.dir.join("config.toml");
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\noom_score = 0\n\
             disabled_plugins = [{}\"io.containerd.nri.v1.nri\", \"io.containerd.internal.v1.opt\", \
             \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"]\n\
             [grpc]\naddress = {:?}\n{}",
            variant.data.clone().unwrap_or_else(|| launch.dir.join("root")),
            launch.dir.join("state"),
            if variant.cri { "" } else { CRI },
            launch.address,
            variant.containerd_config,
        );
        fs::write(&config, text).expect("writing config.toml");
        launch.args = vec!["--config".into(), config.display().to_string()];
        let process = launch.spawn();
        Containerd { launch, process: Some(process) }
    }

    /// Ends it as an administrator does, and returns how it ended.
    pub fn stop(&mut self) -> Option<Output> {
        self.process.take().map(stop)
    }

    /// Kills it at whatever instruction it is, with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.signal(Signal::SIGKILL);
            process.wait(Duration::from_secs(30));
        }
    }

    /// Starts it again on the same directories and socket.
    pub fn restart(&mut self) {
        self.stop();
        self.process = Some(self.launch.spawn());
    }

    /// The same without waiting until it serves.
    pub fn begin(&mut self) {
        self.stop();
        self.process = Some(self.launch.begin());
    }

    /// What it logged since it was last started.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::stderr).unwrap_or_default()
    }
}

impl Daemon for Containerd {
    fn address(&self) -> &Path {
        &self.launch.address
    }

    fn namespace(&self) -> &str {
        &self.launch.namespace
    }

    fn client(&self) -> PathBuf {
        self.launch.client.clone()
    }
}

/// Our manager with root, state, socket and configuration of its own. Our shim and runtime come first in its `PATH`.
#[derive(Debug)]
pub struct Orlopd {
    launch: Launch,
    data: PathBuf,
    state: PathBuf,
    process: Option<Process>,
}

impl Orlopd {
    /// Starts one below `root`, with an empty configuration.
    pub fn start(root: &Root) -> Orlopd {
        Orlopd::start_with(root, "")
    }

    /// Starts one below `root` with `config` as its configuration file.
    pub fn start_with(root: &Root, config: &str) -> Orlopd {
        Orlopd::start_as(root, config, &Variant::default())
    }

    /// Starts one below `root` that keeps its persistent data in `data`.
    pub fn start_on(root: &Root, data: &Path) -> Orlopd {
        Orlopd::launch(root, "", &Variant::default(), Some(data))
    }

    /// Starts one below `root` with a configuration, and different from the usual.
    pub fn start_as(root: &Root, config: &str, variant: &Variant) -> Orlopd {
        Orlopd::launch(root, config, variant, variant.data.as_deref())
    }

    fn launch(root: &Root, config: &str, variant: &Variant, data: Option<&Path>) -> Orlopd {
        let program = variant.program.clone().unwrap_or_else(binaries::orlopd);
        let mut launch = Launch::new(root, "orlopd", program);
        variant.apply(&mut launch);
        let file = launch.dir.join("config.toml");
        fs::write(&file, config).expect("writing config.toml");
        let data = data.map_or_else(|| launch.dir.join("root"), Path::to_owned);
        let state = variant.state.clone().unwrap_or_else(|| launch.dir.join("state"));
        let flags = [
            ("--config", file),
            ("--root", data.clone()),
            ("--state", state.clone()),
            ("--address", launch.address.clone()),
        ];
        launch.args = flags
            .into_iter()
            .flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()])
            .collect();
        launch.args.extend(["--log-level".to_owned(), "debug".to_owned()]);
        let process = launch.spawn();
        Orlopd { launch, data, state, process: Some(process) }
    }

    /// Its persistent data.
    pub fn root(&self) -> PathBuf {
        self.data.clone()
    }

    /// Its state for as long as the machine is up.
    pub fn state(&self) -> PathBuf {
        self.state.clone()
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.launch.dir.join("config.toml")
    }

    /// Its process id, or `None` while it is down.
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(Process::pid)
    }

    /// What it logged since it was last started.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::stderr).unwrap_or_default()
    }

    /// Ends it as an administrator does, and returns how it ended.
    pub fn stop(&mut self) -> Option<Output> {
        self.process.take().map(stop)
    }

    /// Kills it at whatever instruction it is, with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.signal(Signal::SIGKILL);
            process.wait(Duration::from_secs(30));
        }
    }

    /// Starts it again on the same directories and socket.
    pub fn restart(&mut self) {
        self.stop();
        self.process = Some(self.launch.spawn());
    }

    /// The same without waiting until it serves.
    pub fn begin(&mut self) {
        self.stop();
        self.process = Some(self.launch.begin());
    }

    /// Waits until it has ended by itself, and returns how.
    ///
    /// # Panics
    /// If it is down already, or does not end.
    pub fn wait(&mut self) -> Output {
        self.process.take().expect("it was started").wait(Duration::from_secs(30))
    }
}

impl Daemon for Orlopd {
    fn address(&self) -> &Path {
        &self.launch.address
    }

    fn namespace(&self) -> &str {
        &self.launch.namespace
    }

    fn client(&self) -> PathBuf {
        self.launch.client.clone()
    }
}
