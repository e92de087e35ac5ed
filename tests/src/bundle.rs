//! OCI bundles for the runtime: a rootfs made of busybox, and a configuration that tests edit.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::Root;
use crate::binaries;
use crate::command::Cmd;

/// The names under which Debian's busybox-static can be called.
fn applets() -> &'static [String] {
    static APPLETS: OnceLock<Vec<String>> = OnceLock::new();
    APPLETS.get_or_init(|| {
        let out = Cmd::new(binaries::system("busybox")).arg("--list").run().success();
        out.stdout.lines().map(str::to_owned).collect()
    })
}

/// Makes a root file system at `dir`: `/bin/busybox` with a link per applet, `/etc/passwd` and `/etc/group` with root and
/// `user` (1000), and the usual empty directories.
pub fn busybox_rootfs(dir: &Path) {
    for name in ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "var"] {
        fs::create_dir_all(dir.join(name)).expect("making the rootfs");
    }
    fs::set_permissions(dir.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("opening /tmp");
    fs::copy(binaries::system("busybox"), dir.join("bin/busybox")).expect("copying busybox");
    for name in applets().iter().filter(|name| *name != "busybox") {
        symlink("busybox", dir.join("bin").join(name)).expect("linking an applet");
    }
    fs::write(
        dir.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )
    .expect("passwd");
    fs::write(dir.join("etc/group"), "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n").expect("group");
}

/// A bundle: a directory with `config.json` and `rootfs`.
///
/// The configuration starts as what `runc spec` prints, without a terminal, with a writable rootfs and with a cgroups
/// path below the root's tag; change it with [`Bundle::edit`] or the short forms, then [`Bundle::save`] it.
#[derive(Debug, Clone)]
pub struct Bundle {
    dir: PathBuf,
    config: Value,
}

impl Bundle {
    /// Makes the directory `name` below `root`, with a busybox rootfs.
    pub fn new(root: &Root, name: &str) -> Bundle {
        let dir = root.join(name);
        busybox_rootfs(&dir.join("rootfs"));
        Bundle { dir, config: default_config(&root.cgroups_path(name)) }
    }

    /// Makes the directory `name` below `root`, for a container on the rootfs of another bundle.
    pub fn beside(root: &Root, name: &str, other: &Bundle) -> Bundle {
        let dir = root.join(name);
        fs::create_dir(&dir).expect("making the bundle");
        let config = default_config(&root.cgroups_path(name));
        let rootfs = other.rootfs("").display().to_string();
        Bundle { dir, config }.edit(|config| config["root"]["path"] = json!(rootfs))
    }

    /// The bundle's directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// A path below the rootfs, as the host sees it.
    pub fn rootfs(&self, path: &str) -> PathBuf {
        self.dir.join("rootfs").join(path.trim_start_matches('/'))
    }

    /// The configuration as it stands.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Sets the arguments of the process.
    pub fn args(self, args: impl IntoIterator<Item = impl Into<String>>) -> Bundle {
        let args: Vec<String> = args.into_iter().map(Into::into).collect();
        self.edit(|config| config["process"]["args"] = json!(args))
    }

    /// Has the process run a shell script.
    pub fn sh(self, script: &str) -> Bundle {
        self.args(["sh", "-c", script])
    }

    /// Adds an environment variable, `NAME=value`.
    pub fn env(self, assignment: &str) -> Bundle {
        self.edit(|config| push(&mut config["process"]["env"], json!(assignment)))
    }

    /// Adds a mount, in the form of the specification.
    pub fn mount(self, mount: Value) -> Bundle {
        self.edit(|config| push(&mut config["mounts"], mount))
    }

    /// Changes the configuration in any way.
    pub fn edit(mut self, change: impl FnOnce(&mut Value)) -> Bundle {
        change(&mut self.config);
        self
    }

    /// Writes `config.json`.
    pub fn save(self) -> Bundle {
        let text = serde_json::to_vec_pretty(&self.config).expect("a JSON value can be written");
        fs::write(self.dir.join("config.json"), text).expect("writing config.json");
        self
    }
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        other => *other = json!([item]),
    }
}

/// What runc 1.1's `spec` prints, but for terminal, readonly rootfs and ambient and inheritable capabilities, and with a
/// cgroups path.
fn default_config(cgroups_path: &str) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": ["true"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "orlop",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "cgroupsPath": cgroups_path,
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                           {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}
