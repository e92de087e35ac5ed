//! The command line: runc's verbs and flags, its grammar and its words for mistakes.
//!
//! `table` says what there is, `parse` is the grammar, and this file makes one typed request of what was given.

mod help;
pub mod parse;
pub mod table;

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use parse::{Given, Order};
use table::Verb;

/// What `--version` prints, in runc's form, which go-runc parses.
const VERSION: &str = concat!("orlop version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.3.0\n");

/// The exit code for an unknown verb, as in runc.
const NO_SUCH_VERB: u8 = 3;

/// How often `events` prints statistics unless told otherwise.
const EVENTS_INTERVAL: Duration = Duration::from_secs(5);

/// What comes of a part of the command line.
#[derive(Debug)]
pub enum Parsed<T> {
    /// Something to do.
    Request(T),
    /// The user asked something; this is the answer.
    Answer(String),
    /// The user made a mistake.
    Mistake(Mistake),
}

/// A command line that makes no sense.
#[derive(Debug)]
pub struct Mistake {
    /// What to print: the usage.
    pub usage: String,
    /// What is wrong.
    pub what: String,
    /// The exit code.
    pub code: u8,
}

/// Flags before the verb.
#[derive(Clone, Debug)]
pub struct Global {
    /// Enable debug logging.
    pub debug: bool,
    /// File to write log lines to, instead of standard error.
    pub log: Option<PathBuf>,
    /// Format of log lines.
    pub log_format: LogFormat,
    /// Directory for the state of containers.
    pub root: PathBuf,
    /// Let systemd manage cgroups.
    pub systemd_cgroup: bool,
    /// Whether to ignore cgroup permission errors, as it was given.
    rootless: String,
}

impl Global {
    /// Whether to ignore cgroup permission errors; nothing if that depends on the caller.
    pub fn rootless(&self) -> Result<Option<bool>> {
        let text = &*self.rootless;
        if text.is_empty() || text.eq_ignore_ascii_case("auto") {
            return Ok(None);
        }
        let known = parse::boolean(OsStr::new(text));
        known.map(Some).ok_or_else(|| {
            let why = format!("strconv.ParseBool: parsing {text:?}: invalid syntax");
            Error::exactly(Kind::InvalidArgument, why)
        })
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// `time="…" level=error msg="…"`
    Text,
    /// One JSON object per line
    Json,
}

/// The verbs.
#[derive(Debug)]
pub enum Command {
    /// Save the state of a running container.
    Checkpoint(Box<CheckpointArgs>),
    /// Create a container and leave it waiting for start.
    Create(CreateArgs),
    /// Delete what a container still holds.
    Delete {
        /// Kill it first if it is alive.
        force: bool,
        /// The container.
        id: String,
    },
    /// Print events and statistics.
    Events {
        /// Time between two statistics.
        interval: Duration,
        /// Print the statistics once.
        once: bool,
        /// The container.
        id: String,
    },
    /// Run another process in a container.
    Exec(Box<ExecArgs>),
    /// Print what this runtime supports.
    Features,
    /// Send a signal.
    Kill(KillArgs),
    /// List containers.
    List {
        /// How to print them.
        format: String,
        /// Print only ids.
        quiet: bool,
    },
    /// Stop all processes.
    Pause {
        /// The container.
        id: String,
    },
    /// Show processes.
    Ps {
        /// How to print them.
        format: String,
        /// The container.
        id: String,
        /// Options for ps(1).
        options: Vec<OsString>,
    },
    /// Restore a container from a checkpoint.
    Restore(Box<RestoreArgs>),
    /// Let processes go on.
    Resume {
        /// The container.
        id: String,
    },
    /// Create and start a container.
    Run(RunArgs),
    /// Write a configuration to start from.
    Spec {
        /// Directory to write it to.
        bundle: Option<PathBuf>,
        /// For a user without root's rights.
        rootless: bool,
    },
    /// Start a created container.
    Start {
        /// The container.
        id: String,
    },
    /// Print a container's state.
    State {
        /// The container.
        id: String,
    },
    /// Change limits.
    Update(Box<UpdateArgs>),
}

/// Flags that create and run share.
#[derive(Clone, Debug, Default)]
pub struct CreateArgs {
    /// The bundle directory.
    pub bundle: Option<PathBuf>,
    /// Unix socket that gets the master end of the container's terminal.
    pub console_socket: Option<PathBuf>,
    /// Unix socket that gets a pidfd of the container's init.
    pub pidfd_socket: Option<PathBuf>,
    /// File to write the process id to, absolute.
    pub pid_file: Option<PathBuf>,
    /// Move the root over instead of pivot_root.
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// How many descriptors beyond stdio and LISTEN_FDS to pass.
    pub preserve_fds: u32,
    /// Name of the container.
    pub id: String,
}

/// Flags of run.
#[derive(Clone, Debug)]
pub struct RunArgs {
    /// Do not wait for the container.
    pub detach: bool,
    /// Do not delete the container when it ends.
    pub keep: bool,
    /// Do not become the parent of orphaned processes.
    pub no_subreaper: bool,
    /// The rest, as for create.
    pub create: CreateArgs,
}

/// Flags of exec.
#[derive(Clone, Debug)]
pub struct ExecArgs {
    /// Unix socket that gets the master end of the process's terminal.
    pub console_socket: Option<PathBuf>,
    /// Unix socket that gets a pidfd of the process.
    pub pidfd_socket: Option<PathBuf>,
    /// Working directory in the container.
    pub cwd: Option<PathBuf>,
    /// Environment variables to set.
    pub env: Vec<String>,
    /// Give the process a terminal.
    pub tty: bool,
    /// User, as UID[:GID].
    pub user: Option<String>,
    /// Additional group ids.
    pub additional_gids: Vec<i64>,
    /// File with the process as JSON.
    pub process: Option<PathBuf>,
    /// Do not wait for the process.
    pub detach: bool,
    /// File to write the process id to, absolute.
    pub pid_file: Option<PathBuf>,
    /// SELinux label of the process.
    pub process_label: Option<String>,
    /// AppArmor profile of the process.
    pub apparmor: Option<String>,
    /// Whether the process may not gain privileges; as the configuration says if not given.
    pub no_new_privs: Option<bool>,
    /// Capabilities to add.
    pub cap: Vec<String>,
    /// How many descriptors beyond stdio and LISTEN_FDS to pass.
    pub preserve_fds: u32,
    /// Existing cgroups below the container's, as [CONTROLLER:]PATH.
    pub cgroup: Vec<String>,
    /// Do not refuse a paused container.
    pub ignore_paused: bool,
    /// The container.
    pub id: String,
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// Flags of kill.
#[derive(Clone, Debug)]
pub struct KillArgs {
    /// Signal every process of the container.
    pub all: bool,
    /// The container.
    pub id: String,
    /// Name or number.
    pub signal: Option<String>,
}

/// Flags of update; numbers are text here, as in runc, and are checked by the verb.
#[derive(Debug)]
pub struct UpdateArgs {
    /// File with the resources as JSON, - for standard input; all other flags are ignored then.
    pub resources: Option<PathBuf>,
    /// All that was given.
    pub given: Given,
    /// The container.
    pub id: String,
}

/// Flags of checkpoint.
#[derive(Debug)]
pub struct CheckpointArgs {
    /// All that was given.
    pub given: Given,
    /// The container.
    pub id: String,
}

/// Flags of restore.
#[derive(Debug)]
pub struct RestoreArgs {
    /// All that was given.
    pub given: Given,
    /// What run has too.
    pub run: RunArgs,
}

/// Parses the flags before the verb; returns them with the verb and what follows it.
pub fn global(arguments: impl Iterator<Item = OsString>) -> Result<Parsed<(Global, Vec<OsString>)>> {
    let given = match parse::parse(table::GLOBAL, arguments, Order::First) {
        Ok(given) => given,
        Err(what) => {
            let usage = format!("Incorrect Usage. {what}\n\n{}", help::program());
            return Ok(Parsed::Mistake(Mistake { usage, what, code: 1 }));
        }
    };
    if given.is_on("help") || (given.operands.is_empty() && !given.is_on("version")) {
        return Ok(Parsed::Answer(help::program()));
    }
    if given.is_on("version") {
        return Ok(Parsed::Answer(VERSION.to_owned()));
    }
    let log_format = match given.text("log-format").as_deref() {
        None | Some("text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(other) => {
            return Err(Error::exactly(Kind::InvalidArgument, format!("invalid log-format: {other}")));
        }
    };
    let root = given.raw_path("root");
    let global = Global {
        debug: given.is_on("debug"),
        log: given.path("log"),
        log_format,
        root: root.map_or_else(default_root, |path| checked_root(&path))?,
        systemd_cgroup: given.is_on("systemd-cgroup"),
        rootless: given.text("rootless").unwrap_or_default(),
    };
    Ok(Parsed::Request((global, given.operands)))
}

/// A named root, absolute; runc refuses the root of all files.
fn checked_root(path: &Path) -> Result<PathBuf> {
    let root = absolute(path)?;
    if root == Path::new("/") {
        let why = "Option --root argument should not be set to /";
        return Err(Error::exactly(Kind::InvalidArgument, why));
    }
    Ok(root)
}

/// Where the state lies if no flag says it. A user's runtime directory is cleaned of old files that have no sticky bit (XDG
/// Base Directory Specification).
fn default_root() -> Result<PathBuf> {
    let Some(root) = crate::rootless::state_root() else {
        return Ok(PathBuf::from(orlop_proto::contract::RUNTIME_ROOT));
    };
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(&root);
    let sticky = std::fs::Permissions::from_mode(0o1700);
    made.and_then(|()| std::fs::set_permissions(&root, sticky)).context("create", root.to_string_lossy())?;
    Ok(root)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    if path.is_absolute() {
        return Ok(crate::plan::clean(path));
    }
    let directory = std::env::current_dir().context("find", "the working directory")?;
    Ok(crate::plan::clean(&directory.join(path)))
}

/// Parses a verb and what follows it. `program` is the name by which we were called.
pub fn command(program: &OsStr, mut words: Vec<OsString>) -> Result<Parsed<Command>> {
    let name = words.remove(0);
    let find = |name: &OsStr| table::VERBS.iter().find(|verb| name == verb.name);
    if name == "help" || name == "h" {
        return Ok(match words.first().map(|name| find(name).ok_or(name)) {
            None => Parsed::Answer(help::program()),
            Some(Ok(verb)) => Parsed::Answer(help::verb(verb)),
            Some(Err(name)) => no_such_verb(name),
        });
    }
    let Some(verb) = find(&name) else { return Ok(no_such_verb(&name)) };
    let order = if verb.in_order { Order::First } else { Order::Anywhere };
    let given = match parse::parse(verb.flags, words, order) {
        Ok(given) => given,
        Err(what) => {
            let usage = format!("Incorrect Usage: {what}\n\n{}", help::verb(verb));
            return Ok(Parsed::Mistake(Mistake { usage, what, code: 1 }));
        }
    };
    if given.is_on("help") {
        return Ok(Parsed::Answer(help::verb(verb)));
    }
    if let Some(what) = wrong_count(verb, given.operands.len()) {
        let what = format!("{}: {what}", program.to_string_lossy());
        let usage = format!("Incorrect Usage.\n\n{}", help::verb(verb));
        return Ok(Parsed::Mistake(Mistake { usage, what, code: 1 }));
    }
    request(verb, given).map(Parsed::Request)
}

fn no_such_verb<T>(name: &OsStr) -> Parsed<T> {
    let what = format!("No help topic for '{}'\n", name.to_string_lossy());
    Parsed::Mistake(Mistake { usage: String::new(), what, code: NO_SUCH_VERB })
}

fn wrong_count(verb: &Verb, count: usize) -> Option<String> {
    let Verb { name, least, most, .. } = *verb;
    let requires = |how: &str, number: usize| Some(format!("{name:?} requires {how} {number} argument(s)"));
    match count {
        _ if (least..=most).contains(&count) => None,
        _ if least == most => requires("exactly", least),
        _ if count < least => requires("a minimum of", least),
        _ => requires("a maximum of", most),
    }
}

fn request(verb: &Verb, mut given: Given) -> Result<Command> {
    let id = given.operand().unwrap_or_default();
    let format = |given: &Given| given.text("format").unwrap_or_else(|| "table".to_owned());
    Ok(match verb.name {
        "checkpoint" => Command::Checkpoint(Box::new(CheckpointArgs { given, id })),
        "create" => Command::Create(create(&given, id)?),
        "delete" => Command::Delete { force: given.is_on("force"), id },
        "events" => Command::Events {
            interval: given.duration("interval").unwrap_or(EVENTS_INTERVAL),
            once: given.is_on("stats"),
            id,
        },
        "exec" => Command::Exec(Box::new(exec(given, id)?)),
        "features" => Command::Features,
        "kill" => Command::Kill(KillArgs {
            all: given.is_on("all"),
            id,
            signal: given.operand().filter(|signal| !signal.is_empty()),
        }),
        "list" => Command::List { format: format(&given), quiet: given.is_on("quiet") },
        "pause" => Command::Pause { id },
        "ps" => Command::Ps { format: format(&given), id, options: given.operands },
        "restore" => Command::Restore(Box::new(RestoreArgs { run: run(&given, id)?, given })),
        "resume" => Command::Resume { id },
        "run" => Command::Run(run(&given, id)?),
        "spec" => Command::Spec { bundle: given.path("bundle"), rootless: given.is_on("rootless") },
        "start" => Command::Start { id },
        "state" => Command::State { id },
        "update" => Command::Update(Box::new(UpdateArgs { resources: given.path("resources"), given, id })),
        other => unreachable!("{other} is in the table and not here"),
    })
}

fn create(given: &Given, id: String) -> Result<CreateArgs> {
    Ok(CreateArgs {
        bundle: given.path("bundle"),
        console_socket: given.path("console-socket"),
        pidfd_socket: given.path("pidfd-socket"),
        pid_file: given.path("pid-file").map(|path| absolute(&path)).transpose()?,
        no_pivot: given.is_on("no-pivot"),
        no_new_keyring: given.is_on("no-new-keyring"),
        preserve_fds: preserve_fds(given),
        id,
    })
}

fn run(given: &Given, id: String) -> Result<RunArgs> {
    Ok(RunArgs {
        detach: given.is_on("detach"),
        keep: given.is_on("keep"),
        no_subreaper: given.is_on("no-subreaper"),
        create: create(given, id)?,
    })
}

/// A negative number passes none, as in runc.
fn preserve_fds(given: &Given) -> u32 {
    given.number("preserve-fds").unwrap_or(0).clamp(0, i64::from(u32::MAX)) as u32
}

fn exec(mut given: Given, id: String) -> Result<ExecArgs> {
    let text = |word: OsString| {
        word.into_string().map_err(|word| {
            let what = format!("argument {:?} is not UTF-8", word.to_string_lossy());
            Error::exactly(Kind::InvalidArgument, what)
        })
    };
    let command = std::mem::take(&mut given.operands).into_iter().map(text).collect::<Result<_>>()?;
    Ok(ExecArgs {
        console_socket: given.path("console-socket"),
        pidfd_socket: given.path("pidfd-socket"),
        cwd: given.path("cwd"),
        env: given.texts("env"),
        tty: given.is_on("tty"),
        user: given.text("user"),
        additional_gids: given.numbers("additional-gids"),
        process: given.path("process"),
        detach: given.is_on("detach"),
        pid_file: given.path("pid-file").map(|path| absolute(&path)).transpose()?,
        process_label: given.text("process-label"),
        apparmor: given.text("apparmor"),
        no_new_privs: given.switch("no-new-privs"),
        cap: given.texts("cap"),
        preserve_fds: preserve_fds(&given),
        cgroup: given.texts("cgroup"),
        ignore_paused: given.is_on("ignore-paused"),
        id,
        command,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn parsed(line: &str) -> Parsed<Command> {
        command(OsStr::new("orlop"), words(line)).unwrap()
    }

    fn mistake(line: &str) -> (String, u8) {
        match parsed(line) {
            Parsed::Mistake(mistake) => (mistake.what, mistake.code),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn every_verb_of_the_table_becomes_a_request() {
        for verb in table::VERBS {
            let line = format!("{}{}", verb.name, if verb.least == 1 { " c" } else { "" });
            assert!(matches!(parsed(&line), Parsed::Request(_)), "{line}");
            let names = verb.flags.iter().flat_map(|flag| [Some(flag.name), flag.short]).flatten();
            let mut names: Vec<_> = names.collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{}: a flag is there twice", verb.name);
            assert!(matches!(parsed(&format!("{} --help", verb.name)), Parsed::Answer(_)));
        }
    }

    #[test]
    fn flags_after_the_container_belong_to_the_program() {
        let Parsed::Request(Command::Exec(exec)) = parsed("exec -t --env A=b c ls -l --env x") else {
            panic!()
        };
        assert_eq!((exec.id.as_str(), exec.tty), ("c", true));
        assert_eq!(exec.command, ["ls", "-l", "--env", "x"]);
        assert_eq!(exec.env, ["A=b"]);
    }

    #[test]
    fn flags_may_follow_the_container_of_other_verbs() {
        let Parsed::Request(Command::Run(run)) = parsed("run c --detach -b /x") else { panic!() };
        assert_eq!((run.detach, run.create.bundle), (true, Some("/x".into())));
        let Parsed::Request(Command::Kill(kill)) = parsed("kill c -9") else { panic!() };
        assert_eq!(kill.signal.as_deref(), Some("-9"));
    }

    #[test]
    fn mistakes_have_runcs_words_and_codes() {
        for (line, what, code) in [
            ("foo", "No help topic for 'foo'\n", 3),
            ("state", "orlop: \"state\" requires exactly 1 argument(s)", 1),
            ("list x", "orlop: \"list\" requires exactly 0 argument(s)", 1),
            ("kill", "orlop: \"kill\" requires a minimum of 1 argument(s)", 1),
            ("kill a b c", "orlop: \"kill\" requires a maximum of 2 argument(s)", 1),
            ("run -b x --bundle y c", "Cannot use two forms of the same flag: b bundle", 1),
            ("run -dt x", "flag provided but not defined: -dt", 1),
            ("run --preserve-fds a x", "invalid value \"a\" for flag -preserve-fds: parse error", 1),
        ] {
            assert_eq!(mistake(line), (what.to_owned(), code), "{line}");
        }
    }

    #[test]
    fn the_root_of_all_files_holds_no_state() {
        for (line, ok) in
            [("--root /x state c", true), ("--root / state c", false), ("--root /../ state c", false)]
        {
            assert_eq!(global(words(line).into_iter()).is_ok(), ok, "{line}");
        }
        global(words("--log-format yaml state c").into_iter()).unwrap_err();
    }
}
