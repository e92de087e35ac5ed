//! The systemd cgroup driver: a container's cgroup is a unit of systemd's, a delegated scope in a slice, or a slice.
//!
//! systemd makes the unit's cgroup and keeps its limits as properties; everything that it has no property for is written to
//! the control files as without it. A scope cannot be without a process, so a placeholder holds it until the container's
//! first process has been born into it.
//!
//! Follows <https://systemd.io/CONTROL_GROUP_INTERFACE> and <https://systemd.io/CGROUP_DELEGATION>, and runc where these are silent.
//! See docs/decisions/0150-systemd.md for why it speaks D-Bus by itself.

mod annotations;
mod bus;
mod message;
pub(super) mod properties;
mod unit;
mod value;

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

pub use unit::Unit;

use crate::sys;
use crate::sys::clone::{CloneRequest, Cloned, clone3};
use bus::{Bus, Refusal};
use message::Call;
use properties::Property;
use value::Value;

const OBJECT: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// A unit of systemd's that a container's cgroup is, with what holds it open.
#[derive(Debug)]
pub(super) struct Managed {
    pub(super) unit: Unit,
    pub(super) placeholder: Option<Placeholder>,
}

/// The system's manager or a user's.
pub(super) struct Manager(Bus);

impl Manager {
    /// Connects to the manager that has the unit.
    ///
    /// # Errors
    /// `FailedPrecondition` where no systemd runs.
    pub(super) fn of(unit: &Unit) -> Result<Manager> {
        let none = |why| Error::because(Kind::FailedPrecondition, "choose", "the cgroup driver", why);
        if !Path::new("/run/systemd/system").is_dir() {
            return Err(none("systemd not running on this host, cannot use systemd cgroups manager"));
        }
        let socket = if unit.is_users {
            let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
            let runtime = runtime
                .ok_or_else(|| none("XDG_RUNTIME_DIR, which leads to the user's systemd, is not set"))?;
            Path::new(&runtime).join("systemd/private")
        } else {
            PathBuf::from("/run/systemd/private")
        };
        Bus::connect(&socket).map(Manager)
    }

    /// The manager's own cgroup, from the hierarchy's root; its units lie below it.
    pub(super) fn own_group(&mut self) -> Result<PathBuf> {
        let arguments = [Value::text(MANAGER), Value::text("ControlGroup")];
        let call = Call { path: OBJECT, interface: PROPERTIES, method: "Get", arguments: &arguments };
        let answer =
            self.0.call(&call)?.map_err(|refusal| refused("ask for the cgroup of", "systemd", refusal))?;
        if let Some(Value::Variant(value)) = answer.into_iter().next()
            && let Value::Text(path) = *value
        {
            return Ok(PathBuf::from(path));
        }
        Err(Error::new(Kind::DataLoss, "understand the cgroup of", "systemd"))
    }

    /// Starts a container's unit and waits until it is there. A unit of that name that has failed before is cleared away.
    ///
    /// # Errors
    /// `AlreadyExists` for a unit that is in use.
    pub(super) fn start(&mut self, unit: &Unit, id: &str) -> Result<Option<Placeholder>> {
        let placeholder = if unit.is_slice() { None } else { Some(Placeholder::new()?) };
        let pid = placeholder.as_ref().map_or(0, |placeholder| placeholder.pid);
        let mut properties = properties::new_unit(unit, id, pid);
        properties.extend(unit.extra.iter().map(|(name, value)| (name.clone().into(), value.clone())));
        let properties = pairs(&properties);
        let arguments = [
            Value::text(&*unit.name),
            Value::text("replace"),
            properties,
            Value::Array("(sa(sv))".into(), Vec::new()),
        ];
        let mut answer = self.manager("StartTransientUnit", &arguments)?;
        if answer.as_ref().is_err_and(|refusal| refusal.is("UnitExists")) {
            // One that is merely loaded is fit for use as it is, if it is a slice, which may be shared.
            if unit.is_slice() {
                return Ok(None);
            }
            self.forget_failure(unit)?;
            answer = self.manager("StartTransientUnit", &arguments)?;
        }
        let answer = answer.map_err(|refusal| refused("start systemd unit", &unit.name, refusal))?;
        let result = self.finish(&answer)?;
        if result != "done" {
            self.forget_failure(unit)?;
            let why = format!("got `{result}`");
            return Err(Error::because(Kind::FailedPrecondition, "start systemd unit", &*unit.name, why));
        }
        Ok(placeholder)
    }

    /// Stops a unit and waits for its end; one that is gone already is none.
    pub(super) fn stop(&mut self, unit: &Unit) -> Result<()> {
        let arguments = [Value::text(&*unit.name), Value::text("replace")];
        match self.manager("StopUnit", &arguments)? {
            Ok(answer) => drop(self.finish(&answer)?),
            Err(refusal) if refusal.is("NoSuchUnit") => {}
            Err(refusal) => return Err(refused("stop systemd unit", &unit.name, refusal)),
        }
        self.forget_failure(unit)
    }

    /// Changes a unit's properties until the next boot.
    pub(super) fn set(&mut self, unit: &Unit, properties: &[Property]) -> Result<()> {
        let arguments = [Value::text(&*unit.name), Value::Bool(true), pairs(properties)];
        let answer = self.manager("SetUnitProperties", &arguments)?;
        answer.map(drop).map_err(|refusal| refused("set properties of systemd unit", &unit.name, refusal))
    }

    /// Lets systemd drop what it remembers of a unit that failed; there is usually nothing.
    fn forget_failure(&mut self, unit: &Unit) -> Result<()> {
        self.manager("ResetFailedUnit", &[Value::text(&*unit.name)]).map(drop)
    }

    fn manager(
        &mut self,
        method: &str,
        arguments: &[Value],
    ) -> Result<std::result::Result<Vec<Value>, Refusal>> {
        self.0.call(&Call { path: OBJECT, interface: MANAGER, method, arguments })
    }

    /// Waits for the job that an answer names.
    fn finish(&mut self, answer: &[Value]) -> Result<String> {
        match answer {
            [Value::Path(job)] => self.0.wait_for(job),
            _ => Err(Error::new(Kind::DataLoss, "understand an answer of", "systemd")),
        }
    }
}

fn pairs(properties: &[Property]) -> Value {
    let pair = |(name, value): &Property| {
        Value::Struct(vec![Value::text(&**name), Value::Variant(Box::new(value.clone()))])
    };
    Value::Array("(sv)".into(), properties.iter().map(pair).collect())
}

impl Refusal {
    /// Whether this is systemd's error of that name.
    fn is(&self, name: &str) -> bool {
        self.name.rsplit('.').next() == Some(name)
    }
}

fn refused(operation: &'static str, object: &str, refusal: Refusal) -> Error {
    let kind = match refusal.name.rsplit('.').next().unwrap_or_default() {
        "UnitExists" => Kind::AlreadyExists,
        "NoSuchUnit" => Kind::NotFound,
        "AccessDenied" | "InteractiveAuthorizationRequired" => Kind::PermissionDenied,
        "InvalidArgs" | "PropertyReadOnly" => Kind::InvalidArgument,
        _ => Kind::FailedPrecondition,
    };
    Error::because(kind, operation, object.to_owned(), refusal.text)
}

/// A process that does nothing, so that a scope is not empty. It ends with this value, or with its parent.
#[derive(Debug)]
pub(super) struct Placeholder {
    pub(super) pid: i32,
    process: OwnedFd,
}

impl Placeholder {
    fn new() -> Result<Placeholder> {
        let parent = nix::unistd::getpid();
        match clone3(CloneRequest::default()).context("clone", "a placeholder")? {
            Cloned::Parent { pid, pidfd } => Ok(Placeholder { pid, process: pidfd }),
            Cloned::Child => {
                let tied = prctl::set_pdeathsig(Signal::SIGKILL);
                while tied.is_ok() && nix::unistd::getppid() == parent {
                    nix::unistd::pause();
                }
                std::process::exit(1)
            }
        }
    }

    /// Ends it, if it has not ended yet.
    pub(super) fn end(&self) {
        // Both fail when it is gone, which is as good.
        let _ = sys::pid::pidfd_send_signal(self.process.as_fd(), libc::SIGKILL);
        let _ = waitid(Id::PIDFd(self.process.as_fd()), WaitPidFlag::WEXITED);
    }
}

impl Drop for Placeholder {
    fn drop(&mut self) {
        self.end();
    }
}
