//! `linux.seccomp` as a program for the kernel: made in the parent, installed by the container's process.
//!
//! libseccomp knows the calls of every architecture by name. The program for the usual architectures is made here
//! ([`program`]), since libseccomp takes longer for a common profile than a whole container start (docs/decisions/0200-seccomp.md); it makes
//! the program for the others. Follows the runtime specification (config-linux.md, "Seccomp"), seccomp(2), and runc where
//! these are silent.

mod calls;
mod other;
mod program;

use std::collections::BTreeSet;
use std::path::PathBuf;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use orlop_host::sys::seccomp::{self as library, Comparison, Operator};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

const FLAG_LOG: u32 = 1 << 1; // SECCOMP_FILTER_FLAG_LOG
const FLAG_SPEC_ALLOW: u32 = 1 << 2; // SECCOMP_FILTER_FLAG_SPEC_ALLOW
const FLAG_NEW_LISTENER: u32 = 1 << 3; // SECCOMP_FILTER_FLAG_NEW_LISTENER
const FLAG_WAIT_KILLABLE_RECV: u32 = 1 << 5; // SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV

/// The most instructions that the kernel takes (`BPF_MAXINSNS`).
const LONGEST: usize = 4096;
/// The greatest error number that a filter can return (`MAX_ERRNO`).
const GREATEST_ERRNO: u32 = 4095;

/// A program with what belongs to its installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Instructions of eight bytes (`struct sock_filter`).
    pub program: Vec<u64>,
    /// Flags for `SECCOMP_SET_MODE_FILTER`.
    pub flags: u32,
    /// Who gets the descriptor of the notifications; set exactly when `flags` asks for one.
    pub listener: Option<Listener>,
}

/// The receiver of a container's seccomp notifications.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its unix socket.
    pub path: PathBuf,
    /// Text for it, sent along.
    pub metadata: String,
}

/// Makes the program for a profile.
///
/// The synchronisation flag is dropped: the process that installs the filter has one thread.
///
/// # Errors
/// `InvalidArgument` for what seccomp cannot do, with the reason; else libseccomp's error.
pub fn compile(profile: &LinuxSeccomp) -> Result<Filter> {
    let listener = listener(profile)?;
    let policy = Policy::read(profile)?;
    let program = match policy.architectures.iter().all(|one| calls::is_known(*one)) {
        true => program::program(&calls::tables(&policy)),
        false => other::program(&policy)?,
    };
    if program.len() > LONGEST {
        let why = format!("the filter has {} instructions, the kernel takes {LONGEST}", program.len());
        return Err(refuse(why));
    }
    Ok(Filter { program, flags: flags(profile, listener.is_some()), listener })
}

/// A profile that has been checked, in the kernel's and libseccomp's numbers.
struct Policy {
    /// What happens to a call without a rule.
    default: u32,
    /// What happens to a call that is newer than the profile.
    ///
    /// A profile that denies by default answers EPERM to calls that did not exist when it was written, while C
    /// libraries probe for new calls and fall back only on ENOSYS. As in runc, a call beyond every one that the profile
    /// names, on its architecture, is answered with ENOSYS, unless the profile chose that error itself or lets it through.
    newer: Option<u32>,
    /// libseccomp's numbers; always with the native one.
    architectures: BTreeSet<u32>,
    rules: Vec<Rule>,
}

/// One rule of a profile.
struct Rule {
    names: Vec<String>,
    action: u32,
    /// Lists of which one must hold as a whole; never empty.
    alternatives: Vec<Vec<Comparison>>,
}

impl Policy {
    fn read(profile: &LinuxSeccomp) -> Result<Policy> {
        let default = action(profile.default_action(), profile.default_errno_ret())?;
        let mut rules = Vec::new();
        for rule in profile.syscalls().iter().flatten() {
            if rule.names().iter().any(String::is_empty) {
                return Err(refuse("empty string is not a valid syscall"));
            }
            rules.push(Rule {
                names: rule.names().clone(),
                action: action(rule.action(), rule.errno_ret())?,
                alternatives: alternatives(rule.args().as_deref().unwrap_or_default())?,
            });
        }
        let lets_through = matches!(
            profile.default_action(),
            LinuxSeccompAction::ScmpActAllow
                | LinuxSeccompAction::ScmpActLog
                | LinuxSeccompAction::ScmpActTrace
        );
        let enosys = LinuxSeccompAction::ScmpActErrno.as_u32(Some(libc::ENOSYS as u32));
        let newer = (!lets_through && default != enosys).then_some(enosys);
        Ok(Policy { default, newer, architectures: architectures(profile), rules })
    }
}

/// The comparisons of a rule: lists of which one must hold as a whole.
///
/// As in runc, a rule that compares one argument twice means each comparison by itself.
fn alternatives(arguments: &[LinuxSeccompArg]) -> Result<Vec<Vec<Comparison>>> {
    let mut all = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let number = u32::try_from(argument.index()).ok().filter(|index| *index < 6);
        let Some(number) = number else {
            return Err(refuse(format!("invalid argument index {}", argument.index())));
        };
        all.push(Comparison {
            argument: number,
            operator: operator(argument.op()),
            value: argument.value(),
            second: argument.value_two().unwrap_or(0),
        });
    }
    let distinct: BTreeSet<u32> = all.iter().map(|one| one.argument).collect();
    if distinct.len() == all.len() {
        return Ok(vec![all]);
    }
    Ok(all.into_iter().map(|one| vec![one]).collect())
}

fn operator(operator: LinuxSeccompOperator) -> Operator {
    match operator {
        LinuxSeccompOperator::ScmpCmpNe => Operator::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => Operator::Less,
        LinuxSeccompOperator::ScmpCmpLe => Operator::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => Operator::Equal,
        LinuxSeccompOperator::ScmpCmpGe => Operator::GreaterOrEqual,
        LinuxSeccompOperator::ScmpCmpGt => Operator::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => Operator::MaskedEqual,
    }
}

/// An action with its error number, as the kernel's `SECCOMP_RET_…`; without a number it is EPERM.
fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32> {
    let has_number = matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace);
    match errno {
        Some(_) if !has_number => Err(refuse(format!("{action} does not support an errno"))),
        Some(number) if number > GREATEST_ERRNO => {
            Err(refuse(format!("errnoRet {number} is no error number")))
        }
        _ => Ok(action.as_u32(errno)),
    }
}

/// The architectures of a profile and always the native one, as its author may have left it out for being self-evident.
fn architectures(profile: &LinuxSeccomp) -> BTreeSet<u32> {
    let named = profile.architectures().iter().flatten();
    let foreign = named.filter(|architecture| **architecture != Arch::ScmpArchNative);
    foreign.map(|architecture| *architecture as u32).chain([library::native_architecture()]).collect()
}

fn flags(profile: &LinuxSeccomp, listens: bool) -> u32 {
    let mut flags = if listens { FLAG_NEW_LISTENER } else { 0 };
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
            // The kernel takes it with a listener alone, and without one there is nothing to wait for.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if listens => FLAG_WAIT_KILLABLE_RECV,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        };
    }
    flags
}

/// The names of every flag, and those that this kernel takes.
pub fn flag_names() -> (Vec<&'static str>, Vec<&'static str>) {
    let all = [
        ("SECCOMP_FILTER_FLAG_LOG", FLAG_LOG),
        ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", FLAG_SPEC_ALLOW),
        ("SECCOMP_FILTER_FLAG_TSYNC", 0),
        ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", FLAG_WAIT_KILLABLE_RECV | FLAG_NEW_LISTENER),
    ];
    let supported = all.iter().filter(|(_, bits)| orlop_host::sys::creds::takes_seccomp_flags(*bits));
    (all.iter().map(|(name, _)| *name).collect(), supported.map(|(name, _)| *name).collect())
}

/// Who is to be notified, where any rule notifies.
fn listener(profile: &LinuxSeccomp) -> Result<Option<Listener>> {
    let notify = LinuxSeccompAction::ScmpActNotify;
    if profile.default_action() == notify {
        return Err(refuse("SCMP_ACT_NOTIFY cannot be used as default action"));
    }
    let mut notifies = false;
    for rule in profile.syscalls().iter().flatten().filter(|rule| rule.action() == notify) {
        notifies = true;
        // The process writes the descriptor's number to its parent when the filter is in force already.
        if rule.names().iter().any(|name| name == "write") {
            return Err(refuse("SCMP_ACT_NOTIFY cannot be used for the write syscall"));
        }
    }
    let path = profile.listener_path().clone().filter(|path| !path.as_os_str().is_empty());
    let metadata = profile.listener_metadata().clone().unwrap_or_default();
    if path.is_none() && !metadata.is_empty() {
        return Err(refuse("listenerMetadata must not be set without listenerPath"));
    }
    match (notifies, path) {
        (true, Some(path)) => Ok(Some(Listener { path, metadata })),
        (true, None) => Err(refuse("SCMP_ACT_NOTIFY needs a listenerPath")),
        (false, _) => Ok(None),
    }
}

fn refuse(why: impl Into<String>) -> Error {
    Error::because(Kind::InvalidArgument, "read", "linux.seccomp", why.into())
}

#[cfg(test)]
pub mod machine;
#[cfg(test)]
mod tests;
