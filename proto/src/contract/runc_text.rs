//! The exact words of runc's errors that Go callers look for, in one table.
//!
//! containerd's shim, go-runc, podman, conmon and dockerd know what went wrong only from these words in the
//! runtime's log or standard error. They are written here and nowhere else; our own code passes kinds.

use crate::error::Error;
use crate::kind::Kind;

/// An error whose words callers match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuncError {
    /// No container of this id is known.
    ContainerNotExist,
    /// The id is taken.
    IdExists,
    /// No id was given.
    EmptyId,
    /// The id is not made of allowed characters.
    InvalidId,
    /// The container is not running (nor created, nor paused).
    NotRunning,
    /// The container is not paused.
    NotPaused,
    /// The process to be signalled has ended.
    ProcessFinished,
    /// `exec` into a container whose init has ended.
    ExecStopped,
    /// `exec` into a paused container.
    ExecPaused,
    /// `start` of a container that was started.
    AlreadyRunning,
    /// `start` of a container whose init has ended.
    StartStopped,
    /// `start` of a container in another status that does not allow it.
    CannotStart(String),
    /// `delete` without force of a container that is alive: id and status.
    NotStopped(String, String),
    /// A program named without a slash is in no directory of `PATH`.
    NotInPath(String),
    /// The program's file is not there.
    NoSuchProgram(String),
    /// The program's file may not be executed.
    ProgramDenied(String),
    /// The working directory cannot be entered: directory and reason.
    Chdir(String, String),
    /// The bundle has no configuration.
    NoConfig,
    /// A name that is no signal.
    UnknownSignal(String),
    /// The cgroup to start in is not empty or frozen: path and state.
    CgroupFrozen,
}

impl RuncError {
    /// The kind that our own code acts on.
    pub fn kind(&self) -> Kind {
        use RuncError::*;
        match self {
            ContainerNotExist | NotInPath(_) | NoSuchProgram(_) | NoConfig | ProcessFinished => {
                Kind::NotFound
            }
            IdExists => Kind::AlreadyExists,
            EmptyId | InvalidId | UnknownSignal(_) => Kind::InvalidArgument,
            ProgramDenied(_) => Kind::PermissionDenied,
            NotRunning | NotPaused | ExecStopped | ExecPaused | AlreadyRunning | StartStopped
            | CannotStart(_) | NotStopped(..) | Chdir(..) | CgroupFrozen => Kind::FailedPrecondition,
        }
    }

    /// The words.
    pub fn text(&self) -> String {
        use RuncError::*;
        match self {
            ContainerNotExist => "container does not exist".into(),
            IdExists => "container with given ID already exists".into(),
            EmptyId => "container id cannot be empty".into(),
            InvalidId => "invalid container ID format".into(),
            NotRunning => "container not running".into(),
            NotPaused => "container not paused".into(),
            ProcessFinished => "os: process already finished".into(),
            ExecStopped => "cannot exec in a stopped container".into(),
            ExecPaused => "cannot exec in a paused container (use --ignore-paused to override)".into(),
            AlreadyRunning => "cannot start an already running container".into(),
            StartStopped => "cannot start a container that has stopped".into(),
            CannotStart(status) => format!("cannot start a container in the {status} state"),
            NotStopped(id, status) => format!("cannot delete container {id} that is not stopped: {status}"),
            NotInPath(name) => format!("exec: {name:?}: executable file not found in $PATH"),
            NoSuchProgram(path) => format!("exec: {path:?}: stat {path}: no such file or directory"),
            ProgramDenied(path) => format!("exec: {path:?}: permission denied"),
            Chdir(path, why) => format!("chdir to cwd ({path:?}) set in config.json failed: {why}"),
            NoConfig => "JSON specification file config.json not found".into(),
            UnknownSignal(name) => format!("unknown signal {name:?}"),
            CgroupFrozen => "container's cgroup is frozen".into(),
        }
    }
}

impl From<RuncError> for Error {
    fn from(error: RuncError) -> Error {
        Error::exactly(error.kind(), error.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What callers look for: the error, their pattern in lower or upper case as they write it, and who they are.
    #[test]
    fn every_text_has_what_its_readers_match() {
        let program = || "sh".to_owned();
        let table: &[(RuncError, &str, &str)] = &[
            (RuncError::ContainerNotExist, "container does not exist", "go-runc, podman"),
            (RuncError::ContainerNotExist, "does not exist", "containerd shim, checkKillError"),
            (RuncError::IdExists, "container with given ID already exists", "dockerd"),
            (RuncError::NotRunning, "container not running", "containerd shim, checkKillError"),
            (RuncError::ProcessFinished, "os: process already finished", "containerd shim, checkKillError"),
            (RuncError::ExecStopped, "cannot exec in a stopped container", "dockerd, podman"),
            (RuncError::ExecPaused, "cannot exec in a paused container", "dockerd"),
            (RuncError::AlreadyRunning, "cannot start an already running container", "podman"),
            (RuncError::NotStopped("x".into(), "running".into()), "that is not stopped: running", "go-runc"),
            (RuncError::NotInPath(program()), "executable file not found in $PATH", "dockerd, podman"),
            (RuncError::NoSuchProgram("/a".into()), "no such file or directory", "dockerd, podman"),
            (RuncError::ProgramDenied("/a".into()), "permission denied", "dockerd, podman"),
            (RuncError::Chdir("/a".into(), "not a directory".into()), "not a directory", "dockerd"),
        ];
        for (error, pattern, reader) in table {
            assert!(error.text().contains(pattern), "{reader}: {}", error.text());
            assert_eq!(Error::from(error.clone()).to_string(), error.text());
        }
    }
}
