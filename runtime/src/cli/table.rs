//! The command line as data: runc's verbs and flags. Parsing, help, completions and manual pages are all made from it.
//!
//! One long file, since it is one table.

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing, or `=true` and `=false`.
    Nothing,
    /// Text.
    Text,
    /// A path, which need not be UTF-8.
    Path,
    /// Text, as often as it is given.
    Texts,
    /// A whole number.
    Number,
    /// A whole number, as often as it is given.
    Numbers,
    /// A time as Go writes it: `5s`, `1m30s`, `250ms`.
    Duration,
}

/// A flag.
#[derive(Debug)]
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// Another name of one letter, without a dash.
    pub short: Option<&'static str>,
    /// What it takes.
    pub takes: Takes,
    /// What stands for its value in help.
    pub value: &'static str,
    /// What it does.
    pub help: &'static str,
    /// Accepted, and not shown.
    pub hidden: bool,
}

/// A verb.
#[derive(Debug)]
pub struct Verb {
    /// Its name.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// What follows the flags, in help.
    pub operands: &'static str,
    /// How many operands it takes at least.
    pub least: usize,
    /// How many operands it takes at most.
    pub most: usize,
    /// Whether everything after the first operand is left alone: it belongs to another program.
    pub in_order: bool,
    /// Its flags.
    pub flags: &'static [Flag],
}

const fn flag(name: &'static str, takes: Takes, value: &'static str, help: &'static str) -> Flag {
    Flag { name, short: None, takes, value, help, hidden: false }
}

const fn switch(name: &'static str, help: &'static str) -> Flag {
    flag(name, Takes::Nothing, "", help)
}

const fn text(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    flag(name, Takes::Text, value, help)
}

const fn path(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    flag(name, Takes::Path, value, help)
}

const fn texts(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    flag(name, Takes::Texts, value, help)
}

const fn number(name: &'static str, help: &'static str) -> Flag {
    flag(name, Takes::Number, "N", help)
}

impl Flag {
    const fn short(self, short: &'static str) -> Flag {
        Flag { short: Some(short), ..self }
    }

    const fn hidden(self) -> Flag {
        Flag { hidden: true, ..self }
    }
}

/// Verbs about one container that take its id and nothing else.
const fn plain(name: &'static str, about: &'static str) -> Verb {
    Verb { name, about, operands: "CONTAINER", least: 1, most: 1, in_order: false, flags: &[] }
}

const CONSOLE_SOCKET: Flag =
    path("console-socket", "SOCKET", "unix socket that gets the master end of the process's terminal");
const PIDFD_SOCKET: Flag = path("pidfd-socket", "SOCKET", "unix socket that gets a pidfd of the process");
const BUNDLE: Flag = path("bundle", "DIR", "the bundle directory, the current one by default").short("b");
const DETACH: Flag = switch("detach", "do not wait for the process").short("d");
const PID_FILE: Flag = path("pid-file", "FILE", "file to write the process id to");
const NO_SUBREAPER: Flag = switch("no-subreaper", "do not become the parent of orphaned processes");
const NO_PIVOT: Flag =
    switch("no-pivot", "move the root over instead of pivot_root, for a root file system on a ramdisk");
const NO_NEW_KEYRING: Flag = switch("no-new-keyring", "keep the caller's session keyring");
const PRESERVE_FDS: Flag = number("preserve-fds", "pass this many descriptors beyond stdio and LISTEN_FDS");
const FORMAT: Flag = text("format", "FORMAT", "table or json (default: table)").short("f");

const IMAGE_PATH: Flag = path("image-path", "DIR", "directory of the image files (default: ./checkpoint)");
const WORK_PATH: Flag = path("work-path", "DIR", "directory for work files and logs");
const TCP_ESTABLISHED: Flag = switch("tcp-established", "allow open TCP connections");
const EXT_UNIX_SK: Flag = switch("ext-unix-sk", "allow external unix sockets");
const SHELL_JOB: Flag = switch("shell-job", "allow shell jobs");
const LAZY_PAGES: Flag = switch("lazy-pages", "restore memory pages lazily, by userfaultfd");
const FILE_LOCKS: Flag = switch("file-locks", "handle file locks");
const MANAGE_CGROUPS: Flag =
    text("manage-cgroups-mode", "MODE", "soft, full, strict or ignore (default: soft)");
const EMPTY_NS: Flag =
    texts("empty-ns", "NAMESPACE", "create this namespace without restoring its properties (network)");
const AUTO_DEDUP: Flag = switch("auto-dedup", "store memory pages once");

/// Flags before the verb.
pub const GLOBAL: &[Flag] = &[
    switch("debug", "enable debug logging"),
    path("log", "FILE", "file to write log lines to, instead of standard error"),
    text("log-format", "FORMAT", "text or json (default: text)"),
    path("root", "DIR", "directory for the state of containers, best on a tmpfs (default: /run/orlop)"),
    path("criu", "PATH", "accepted for older callers").hidden(),
    switch("systemd-cgroup", "let systemd manage cgroups; cgroupsPath then has the form slice:prefix:name"),
    text("rootless", "BOOL", "ignore cgroup permission errors: true, false or auto (default: auto)"),
    switch("help", "show help").short("h"),
    switch("version", "print the version").short("v"),
];

/// The verbs.
pub const VERBS: &[Verb] = &[
    Verb {
        flags: &[
            IMAGE_PATH,
            WORK_PATH,
            path("parent-path", "DIR", "image files of an earlier pre-dump, relative to the image path"),
            switch("leave-running", "leave the container running"),
            TCP_ESTABLISHED,
            switch("tcp-skip-in-flight", "skip TCP connections in flight"),
            switch("link-remap", "allow unlinked files to be linked back"),
            EXT_UNIX_SK,
            SHELL_JOB,
            LAZY_PAGES,
            number("status-fd", "descriptor that gets a zero byte once lazy pages are ready"),
            text("page-server", "ADDRESS:PORT", "page server that takes the memory"),
            FILE_LOCKS,
            switch("pre-dump", "dump the memory alone and leave the container running"),
            MANAGE_CGROUPS,
            EMPTY_NS,
            AUTO_DEDUP,
        ],
        ..plain("checkpoint", "Save the state of a running container")
    },
    Verb {
        flags: &[BUNDLE, CONSOLE_SOCKET, PIDFD_SOCKET, PID_FILE, NO_PIVOT, NO_NEW_KEYRING, PRESERVE_FDS],
        ..plain("create", "Create a container and leave it waiting for start")
    },
    Verb {
        flags: &[switch(
            "force",
            "kill the container first if it is alive; one that does not exist is no error",
        )
        .short("f")],
        ..plain("delete", "Delete what a stopped container still holds")
    },
    Verb {
        flags: &[
            flag("interval", Takes::Duration, "TIME", "time between two statistics (default: 5s)"),
            switch("stats", "print the statistics once and exit"),
        ],
        ..plain("events", "Print a container's out-of-memory events and statistics as JSON")
    },
    Verb {
        operands: "CONTAINER COMMAND [ARGUMENT...] | -p FILE CONTAINER",
        most: usize::MAX,
        in_order: true,
        flags: &[
            CONSOLE_SOCKET,
            PIDFD_SOCKET,
            path("cwd", "DIR", "working directory in the container"),
            texts("env", "NAME=VALUE", "set an environment variable").short("e"),
            switch("tty", "give the process a terminal").short("t"),
            text("user", "UID[:GID]", "user and group").short("u"),
            flag("additional-gids", Takes::Numbers, "GID", "additional group").short("g"),
            path("process", "FILE", "file with the process as JSON").short("p"),
            DETACH,
            PID_FILE,
            text("process-label", "LABEL", "SELinux label of the process"),
            text("apparmor", "PROFILE", "AppArmor profile of the process"),
            switch("no-new-privs", "the process may not gain privileges"),
            texts("cap", "CAP", "add a capability").short("c"),
            PRESERVE_FDS,
            texts("cgroup", "[CONTROLLER:]PATH", "existing cgroup below the container's"),
            switch("ignore-paused", "do not refuse a paused container"),
            Flag { hidden: true, ..NO_SUBREAPER },
        ],
        ..plain("exec", "Run another process in a running container")
    },
    Verb {
        operands: "CONTAINER [SIGNAL]",
        most: 2,
        flags: &[switch("all", "signal every process of the container").short("a").hidden()],
        ..plain("kill", "Send a signal to a container's init process (SIGTERM unless another is named)")
    },
    Verb {
        operands: "",
        least: 0,
        most: 0,
        flags: &[FORMAT, switch("quiet", "print only ids").short("q")],
        ..plain("list", "List the containers below the root directory")
    },
    plain("pause", "Stop all processes of a container until resume"),
    Verb {
        operands: "CONTAINER [PS OPTION...]",
        most: usize::MAX,
        in_order: true,
        flags: &[FORMAT],
        ..plain("ps", "Show the processes in a container, by ps(1)")
    },
    Verb {
        flags: &[
            CONSOLE_SOCKET,
            IMAGE_PATH,
            WORK_PATH,
            TCP_ESTABLISHED,
            EXT_UNIX_SK,
            SHELL_JOB,
            FILE_LOCKS,
            MANAGE_CGROUPS,
            BUNDLE,
            DETACH,
            PID_FILE,
            NO_SUBREAPER,
            NO_PIVOT,
            EMPTY_NS,
            AUTO_DEDUP,
            LAZY_PAGES,
            text("lsm-profile", "TYPE:NAME", "security profile to restore with"),
            text("lsm-mount-context", "CONTEXT", "security context of mounts to restore with"),
        ],
        ..plain("restore", "Restore a container from a checkpoint")
    },
    plain("resume", "Let the processes of a paused container go on"),
    Verb {
        flags: &[
            BUNDLE,
            CONSOLE_SOCKET,
            PIDFD_SOCKET,
            DETACH,
            switch("keep", "do not delete the container when it ends"),
            PID_FILE,
            NO_SUBREAPER,
            NO_PIVOT,
            NO_NEW_KEYRING,
            PRESERVE_FDS,
        ],
        ..plain("run", "Create and start a container")
    },
    Verb {
        operands: "",
        least: 0,
        most: 0,
        flags: &[
            path("bundle", "DIR", "directory to write it to").short("b"),
            switch("rootless", "for a user without root's rights"),
        ],
        ..plain("spec", "Write a config.json to start from")
    },
    plain("start", "Start the user's program in a created container"),
    plain("state", "Print a container's state as JSON"),
    Verb {
        flags: &[
            path(
                "resources",
                "FILE",
                "the resources as JSON, - for standard input; other flags are ignored then",
            )
            .short("r"),
            number("blkio-weight", "relative weight of block I/O, 10 to 1000"),
            text("cpu-period", "N", "period of the CPU quota in microseconds"),
            text("cpu-quota", "N", "CPU time allowed in a period in microseconds"),
            text("cpu-burst", "N", "CPU time that may be saved up, in microseconds"),
            text("cpu-share", "N", "relative weight of CPU time"),
            text("cpu-rt-period", "N", "period of realtime CPU time in microseconds"),
            text("cpu-rt-runtime", "N", "realtime CPU time in a period in microseconds"),
            text("cpuset-cpus", "LIST", "CPUs to run on"),
            text("cpuset-mems", "LIST", "memory nodes to use"),
            text("kernel-memory", "BYTES", "obsolete").hidden(),
            text("kernel-memory-tcp", "BYTES", "obsolete").hidden(),
            text("memory", "BYTES", "memory limit"),
            text("cpu-idle", "N", "1: SCHED_IDLE for the whole cgroup, 0: not"),
            text("memory-reservation", "BYTES", "memory reservation"),
            text("memory-swap", "BYTES", "memory and swap together, -1 for no limit"),
            number("pids-limit", "highest number of processes"),
            text("l3-cache-schema", "SCHEMA", "Intel RDT: schema of the L3 cache"),
            text("mem-bw-schema", "SCHEMA", "Intel RDT: schema of memory bandwidth"),
        ],
        ..plain("update", "Change a container's limits")
    },
    Verb { operands: "", least: 0, most: 0, ..plain("features", "Print what this runtime supports as JSON") },
];

/// The name of the flag that every verb has.
pub const HELP: Flag = switch("help", "show help").short("h");
