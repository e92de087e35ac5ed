//! The OCI runtime, driven by its command line as runc's callers do.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};
use orlop_host::state::StateDirectory;
use orlop_proto::containerd::runc::v1::Options;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::sealed::Sealed;

/// The runtime when the options name none.
const DEFAULT_RUNTIME: &str = "orlop";
/// Where orlop keeps its state.
const ORLOP_ROOT: &str = "/run/orlop";
/// Where containerd has every other runtime keep its state.
const OTHER_ROOT: &str = "/run/containerd/runc";
/// How much of a log is searched for an error.
const LOG_LIMIT: u64 = 256 << 10;

/// A runtime for the containers of one bundle.
#[derive(Clone, Debug)]
pub struct Runtime {
    program: PathBuf,
    root: PathBuf,
    log: PathBuf,
    systemd_cgroup: bool,
    no_pivot_root: bool,
    no_new_keyring: bool,
    criu: String,
    /// Whether it is orlop, of which more is known than runc's command line.
    is_orlop: bool,
}

/// What one start of the runtime is for.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the variants are runc's commands and flags")]
pub enum Verb<'a> {
    Create {
        bundle: &'a Path,
        pid_file: &'a Path,
        console: Option<&'a str>,
    },
    Start,
    Exec {
        process: &'a str,
        pid_file: &'a Path,
        console: Option<&'a str>,
    },
    Kill {
        signal: i32,
        all: bool,
    },
    Delete,
    Pause,
    Resume,
    Update,
    Checkpoint {
        images: &'a str,
        work: &'a Path,
        leave_running: bool,
        flags: &'a [String],
    },
    Restore {
        images: &'a str,
        work: &'a Path,
        bundle: &'a Path,
        pid_file: &'a Path,
        console: Option<&'a str>,
    },
}

impl Verb<'_> {
    /// What a failure is called, in the words that containerd's clients know.
    pub fn failure(&self) -> &'static str {
        match self {
            Verb::Create { .. } => "OCI runtime create failed",
            Verb::Start => "OCI runtime start failed",
            Verb::Exec { .. } => "OCI runtime exec failed",
            Verb::Kill { .. } => "OCI runtime kill failed",
            Verb::Delete => "failed to delete task",
            Verb::Pause => "OCI runtime pause failed",
            Verb::Resume => "OCI runtime resume failed",
            Verb::Update => "OCI runtime update failed",
            Verb::Checkpoint { .. } => "OCI runtime checkpoint failed",
            Verb::Restore { .. } => "OCI runtime restore failed",
        }
    }
}

impl Runtime {
    /// The runtime that the options ask for.
    pub fn new(options: &Options, namespace: &str, bundle: &Path) -> Result<Runtime> {
        let name = options.binary_name.as_str();
        let is_orlop =
            name.is_empty() || Path::new(name).file_name().is_some_and(|file| file == DEFAULT_RUNTIME);
        let root = match options.root.as_str() {
            "" if is_orlop => ORLOP_ROOT,
            "" => OTHER_ROOT,
            root => root,
        };
        Ok(Runtime {
            program: find(name)?,
            root: Path::new(root).join(namespace),
            log: bundle.join("log.json"),
            systemd_cgroup: options.systemd_cgroup,
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            criu: options.criu_path.clone(),
            is_orlop,
        })
    }

    /// The state of a container, if it is orlop's: then no program need be started for what the host library can do.
    pub fn state_of(&self, id: &str) -> Option<Result<StateDirectory>> {
        self.is_orlop.then(|| StateDirectory::open(&self.root, id))
    }

    /// Whether systemd has the containers' cgroups.
    pub fn is_systemd(&self) -> bool {
        self.systemd_cgroup
    }

    /// Removes the namespace's directory of states if the deleted container's was the last. orlop makes it again while it
    /// creates, however often that happens to it; another runtime might find it gone at the wrong moment.
    pub fn leave_root(&self) {
        if self.is_orlop {
            // Not being empty is usual.
            let _ = fs::remove_dir(&self.root);
        }
    }

    /// The program by descriptor, so that it need not seal itself: only orlop does, and only to enter a container.
    pub fn executable<'a>(&self, verb: &Verb, kept: &'a mut Option<Sealed>) -> Option<BorrowedFd<'a>> {
        let enters = matches!(verb, Verb::Create { .. } | Verb::Exec { .. } | Verb::Restore { .. });
        if self.is_orlop && enters { Sealed::of(kept, &self.program) } else { None }
    }

    /// The program and its arguments.
    pub fn command(&self, id: &str, verb: &Verb) -> Result<Vec<CString>> {
        let path = |path: &Path| path.as_os_str().as_bytes().to_vec();
        let mut words: Vec<Vec<u8>> = vec![path(&self.program), b"--root".to_vec(), path(&self.root)];
        words.extend([b"--log".to_vec(), path(&self.log), b"--log-format".to_vec(), b"json".to_vec()]);
        let mut add = |word: &str| words.push(word.as_bytes().to_vec());
        if self.systemd_cgroup {
            add("--systemd-cgroup");
        }
        if !self.criu.is_empty() && matches!(verb, Verb::Checkpoint { .. } | Verb::Restore { .. }) {
            add("--criu");
            add(&self.criu);
        }
        match verb {
            Verb::Create { bundle, pid_file, console } => {
                add("create");
                add("--bundle");
                add(&bundle.to_string_lossy());
                if let Some(console) = console {
                    add("--console-socket");
                    add(console);
                }
                add("--pid-file");
                add(&pid_file.to_string_lossy());
                if self.no_pivot_root {
                    add("--no-pivot");
                }
                if self.no_new_keyring {
                    add("--no-new-keyring");
                }
                add(id);
            }
            Verb::Exec { process, pid_file, console } => {
                add("exec");
                add("--process");
                add(process);
                if let Some(console) = console {
                    add("--console-socket");
                    add(console);
                }
                add("--detach");
                add("--pid-file");
                add(&pid_file.to_string_lossy());
                add(id);
            }
            Verb::Kill { signal, all } => {
                add("kill");
                if *all {
                    add("--all");
                }
                add(id);
                add(&signal.to_string());
            }
            Verb::Delete => {
                add("delete");
                add("--force");
                add(id);
            }
            Verb::Update => {
                add("update");
                add("--resources");
                add("-");
                add(id);
            }
            Verb::Checkpoint { images, work, leave_running, flags } => {
                add("checkpoint");
                add("--image-path");
                add(images);
                add("--work-path");
                add(&work.to_string_lossy());
                flags.iter().for_each(|flag| add(flag));
                if *leave_running {
                    add("--leave-running");
                }
                add(id);
            }
            Verb::Restore { images, work, bundle, pid_file, console } => {
                add("restore");
                add("--image-path");
                add(images);
                add("--work-path");
                add(&work.to_string_lossy());
                add("--bundle");
                add(&bundle.to_string_lossy());
                add("--detach");
                if let Some(console) = console {
                    add("--console-socket");
                    add(console);
                }
                add("--pid-file");
                add(&pid_file.to_string_lossy());
                // The shim adopts what is left without a parent.
                add("--no-subreaper");
                if self.no_pivot_root {
                    add("--no-pivot");
                }
                add(id);
            }
            Verb::Start => {
                add("start");
                add(id);
            }
            Verb::Pause => {
                add("pause");
                add(id);
            }
            Verb::Resume => {
                add("resume");
                add(id);
            }
        }
        words
            .into_iter()
            .map(|word| {
                CString::new(word).map_err(|_| Error::new(Kind::InvalidArgument, "run", id.to_owned()))
            })
            .collect()
    }

    /// How long the log is now: what comes later is the next command's.
    pub fn log_length(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// The error of a command that failed: what it logged since, or else what it printed.
    pub fn error(&self, failure: &'static str, ended: Ended, output: &[u8], log_since: u64) -> Error {
        let logged = read_from(&self.log, log_since).and_then(|text| last_error(&text));
        let printed = String::from_utf8_lossy(output);
        let printed = printed.trim();
        let text = match logged {
            Some(text) => text,
            None => {
                let name = self.program.file_name().unwrap_or_default().to_string_lossy();
                let how = match ended {
                    Ended::Code(code) => format!("exit status {code}"),
                    Ended::Signal(signal) => format!("signal {signal}"),
                };
                let colon = if printed.is_empty() { "" } else { ": " };
                format!("{name} did not terminate successfully: {how}{colon}{printed}")
            }
        };
        Error::because(kind(&text, printed), failure, "", text)
    }
}

/// How a command ended that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    Code(i32),
    /// Killed.
    Signal(i32),
}

impl Ended {
    /// From an exit status as a shell shows it; nothing for success.
    pub fn from_status(status: u32) -> Option<Ended> {
        match status {
            0 => None,
            129..=192 => Some(Ended::Signal(status as i32 - 128)),
            code => Some(Ended::Code(code as i32)),
        }
    }
}

/// The kind of a runtime's failure. Other runtimes have nothing but their texts to say that a container is gone, and
/// containerd's clients act on it.
fn kind(logged: &str, printed: &str) -> Kind {
    const GONE: [&str; 4] =
        ["process already finished", "container not running", "no such process", "does not exist"];
    let says = |text: &str| GONE.iter().any(|gone| text.to_lowercase().contains(gone));
    if says(logged) || says(printed) { Kind::NotFound } else { Kind::Unknown }
}

/// Finds a runtime by its path, in `PATH`, or beside this program; orlop if no name is given.
pub fn find(name: &str) -> Result<PathBuf> {
    let name = if name.is_empty() { DEFAULT_RUNTIME } else { name };
    let is_program = |path: &Path| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    if name.contains('/') {
        let path = PathBuf::from(name);
        return if is_program(&path) { Ok(path) } else { Err(not_found(name, "no such executable file")) };
    }
    let search = std::env::var_os("PATH").unwrap_or_default();
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    std::env::split_paths(&search)
        .chain(beside)
        .map(|directory| directory.join(name))
        .find(|path| is_program(path))
        .ok_or_else(|| not_found(name, "executable file not found in $PATH"))
}

fn not_found(name: &str, why: &'static str) -> Error {
    Error::because(Kind::NotFound, "exec:", format!("{name:?}"), why)
}

/// Runs a command and waits for it, in a helper or an action of its own; what it prints.
pub fn run(command: &[CString]) -> Result<Vec<u8>> {
    let word = |word: &CString| std::ffi::OsStr::from_bytes(word.as_bytes()).to_owned();
    let output = std::process::Command::new(word(&command[0]))
        .args(command[1..].iter().map(word))
        .stdin(std::process::Stdio::null())
        .output()
        .context("run", command[0].to_string_lossy())?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    Err(Error::because(Kind::Unknown, "run", command[0].to_string_lossy(), text))
}

/// The environment for runtimes: ours, without what would make one report to our own service manager.
pub fn environment() -> Vec<CString> {
    let entry = |(key, value): (std::ffi::OsString, std::ffi::OsString)| {
        if key == "NOTIFY_SOCKET" {
            return None;
        }
        let mut bytes = key.into_encoded_bytes();
        bytes.push(b'=');
        bytes.extend(value.into_encoded_bytes());
        CString::new(bytes).ok()
    };
    std::env::vars_os().filter_map(entry).collect()
}

/// Reads a pid file.
pub fn read_pid(path: &Path) -> Result<i32> {
    let shown = || path.display().to_string();
    let text = fs::read_to_string(path).context("read", shown())?;
    let pid = text.trim().parse::<i32>().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| Error::because(Kind::Internal, "read", shown(), format!("no pid: {text:?}")))
}

fn read_from(path: &Path, from: u64) -> Option<String> {
    let mut file = File::open(path).ok()?;
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_LIMIT).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last error in a log of JSON lines; other lines mean nothing.
fn last_error(log: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let mut lines = log.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    let last = lines.rfind(|line| line.level == "error" || line.level == "fatal")?;
    Some(last.msg.trim().to_owned()).filter(|text| !text.is_empty())
}

/// The few parts of `config.json` that the shim needs.
#[derive(Debug, Default, Deserialize)]
pub struct Spec {
    /// Labels of the container.
    #[serde(default)]
    pub annotations: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    linux: Option<Linux>,
    #[serde(default)]
    process: Option<IgnoredAny>,
    #[serde(default)]
    hooks: Option<Hooks>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Hooks {
    poststart: Option<Vec<IgnoredAny>>,
    poststop: Option<Vec<IgnoredAny>>,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default)]
    namespaces: Option<Vec<Namespace>>,
    #[serde(default, rename = "cgroupsPath")]
    cgroups_path: Option<String>,
    #[serde(default, rename = "intelRdt")]
    intel_rdt: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

impl Spec {
    /// Reads a bundle's `config.json`.
    pub fn read(bundle: &Path) -> Result<Spec> {
        let path = bundle.join("config.json");
        let bytes = fs::read(&path).context("read", path.display().to_string())?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::because(Kind::InvalidArgument, "read", path.display().to_string(), e))
    }

    /// Where the container's cgroup is to be.
    pub fn cgroups_path(&self) -> Option<&str> {
        self.linux.as_ref()?.cgroups_path.as_deref()
    }

    fn namespaces(&self) -> &[Namespace] {
        self.linux.as_ref().and_then(|linux| linux.namespaces.as_deref()).unwrap_or_default()
    }

    /// Whether starting and deleting such a container takes no more than its FIFO, its cgroup and its state: no hooks that
    /// run then, no groups of resctrl, no mounts among the host's.
    pub fn is_plain(&self) -> bool {
        let none = |hooks: &Option<Vec<IgnoredAny>>| hooks.as_ref().is_none_or(Vec::is_empty);
        self.process.is_some()
            && self.hooks.as_ref().is_none_or(|hooks| none(&hooks.poststart) && none(&hooks.poststop))
            && self.linux.as_ref().is_none_or(|linux| linux.intel_rdt.is_none())
            && self.namespaces().iter().any(|namespace| namespace.kind == "mount")
    }

    /// Whether other processes live on when the container's init ends.
    pub fn shares_pids(&self) -> bool {
        !self.namespaces().iter().any(|namespace| namespace.kind == "pid" && namespace.path.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> Runtime {
        let options = Options {
            binary_name: "/bin/sh".into(),
            root: "/r".into(),
            systemd_cgroup: true,
            no_pivot_root: true,
            ..Options::default()
        };
        Runtime::new(&options, "ns", Path::new("/b")).unwrap()
    }

    fn line(verb: Verb) -> String {
        let words = runtime().command("c", &verb).unwrap();
        let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let all = words.join(" ");
        let global = "/bin/sh --root /r/ns --log /b/log.json --log-format json --systemd-cgroup ";
        all.strip_prefix(global).unwrap().to_owned()
    }

    #[test]
    fn speaks_runcs_command_line() {
        let (bundle, pid_file) = (Path::new("/b"), Path::new("/b/init.pid"));
        assert_eq!(
            line(Verb::Create { bundle, pid_file, console: Some("/s") }),
            "create --bundle /b --console-socket /s --pid-file /b/init.pid --no-pivot c"
        );
        assert_eq!(
            line(Verb::Exec { process: "/p", pid_file, console: None }),
            "exec --process /p --detach --pid-file /b/init.pid c"
        );
        assert_eq!(line(Verb::Kill { signal: 9, all: true }), "kill --all c 9");
        assert_eq!(line(Verb::Delete), "delete --force c");
        assert_eq!(line(Verb::Update), "update --resources - c");
        assert_eq!(line(Verb::Start), "start c");
        let flags = ["--file-locks".to_owned()];
        let (images, work) = ("/i", Path::new("/w"));
        assert_eq!(
            line(Verb::Checkpoint { images, work, leave_running: true, flags: &flags }),
            "checkpoint --image-path /i --work-path /w --file-locks --leave-running c"
        );
        assert_eq!(
            line(Verb::Restore { images, work, bundle, pid_file, console: None }),
            "restore --image-path /i --work-path /w --bundle /b --detach --pid-file /b/init.pid --no-subreaper --no-pivot c"
        );
    }

    #[test]
    fn an_unknown_runtime_is_named() {
        let options = Options { binary_name: "no-such-runtime".into(), ..Options::default() };
        let error = Runtime::new(&options, "ns", Path::new("/b")).unwrap_err();
        assert_eq!(error.to_string(), "exec: \"no-such-runtime\": executable file not found in $PATH");
    }

    #[test]
    fn finds_the_last_error_among_garbage() {
        let log = "garbage\n{\"level\":\"error\",\"msg\":\"first\"}\n{\"level\":\"info\",\"msg\":\"x\"}\n\
                   {\"msg\":\" second \",\"level\":\"error\",\"time\":\"t\"}\n{\"level\":";
        assert_eq!(last_error(log).as_deref(), Some("second"));
        assert_eq!(last_error("\u{0}\u{1}"), None);
    }

    #[test]
    fn a_failure_says_how_the_runtime_ended() {
        let error = runtime().error("OCI runtime start failed", Ended::Code(3), b"oops\n", 0);
        assert_eq!(
            error.to_string(),
            "OCI runtime start failed: sh did not terminate successfully: exit status 3: oops"
        );
        let error = runtime().error("OCI runtime kill failed", Ended::Code(1), b"container not running", 0);
        assert_eq!(error.kind(), Kind::NotFound);
    }

    #[test]
    fn knows_what_needs_the_runtime() {
        let read = |text: &str| serde_json::from_str::<Spec>(text).unwrap();
        let rest = r#""process":{},"linux":{"namespaces":[{"type":"mount"}]"#;
        assert!(read(&format!("{{{rest}}}}}")).is_plain());
        assert!(
            read(&format!(r#"{{"hooks":{{"poststop":[],"createRuntime":[{{}}]}},{rest}}}}}"#)).is_plain()
        );
        assert!(!read(&format!(r#"{{"hooks":{{"poststop":[{{}}]}},{rest}}}}}"#)).is_plain());
        assert!(!read(&format!(r#"{{"hooks":{{"poststart":[{{}}]}},{rest}}}}}"#)).is_plain());
        assert!(!read(&format!(r#"{{{rest},"intelRdt":{{}}}}}}"#)).is_plain());
        assert!(!read(r#"{"process":{},"linux":{"namespaces":[]}}"#).is_plain());
        assert!(!read(r#"{"linux":{"namespaces":[{"type":"mount"}]}}"#).is_plain());
    }

    #[test]
    fn knows_who_lives_on_after_init() {
        let read = |text: &str| serde_json::from_str::<Spec>(text).unwrap();
        assert!(!read(r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"mount"}]}}"#).shares_pids());
        assert!(read(r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#).shares_pids());
        assert!(read(r#"{"annotations":{"a":"b"}}"#).shares_pids());
        assert!(read(r#"{"linux":{"namespaces":null}}"#).shares_pids());
    }
}
