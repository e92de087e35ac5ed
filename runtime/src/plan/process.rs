//! The user's program and everything about the process that runs it.

use std::ffi::CString;
use std::path::PathBuf;

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain,
    LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType, PosixRlimitType,
    Scheduler,
};
use orlop_host::sys::process::Scheduling;
use orlop_proto::error::Result;

use super::capabilities::Capabilities;
use super::{Host, clean, refuse};
use crate::spec::{self, ExecCPUAffinity};

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Program and arguments.
    pub arguments: Vec<CString>,
    /// `NAME=value` strings, doubled names removed, the last one kept.
    pub environment: Vec<CString>,
    /// Working directory, cleaned and absolute.
    pub cwd: PathBuf,
    /// Whether to make the working directory if it is missing.
    pub make_cwd: bool,
    /// Give it a terminal.
    pub terminal: bool,
    /// Rows and columns of the terminal.
    pub console_size: Option<(u16, u16)>,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: u32,
    /// Its capabilities.
    pub capabilities: Capabilities,
    /// Resource, soft, hard.
    pub limits: Vec<(u32, u64, u64)>,
    /// May not gain privileges.
    pub no_new_privileges: bool,
    /// Badness for the out-of-memory killer.
    pub oom_score_adj: Option<i32>,
    /// What goes into the kernel's file for the label of the next exec.
    pub exec_label: Option<ExecLabel>,
    /// Scheduling policy.
    pub scheduling: Option<Scheduling>,
    /// I/O priority: class and level.
    pub io_priority: Option<(u32, u32)>,
    /// CPUs to run on; a container's first process has none.
    pub affinity: Affinity,
    /// NUMA memory policy: mode with flags, nodes. It is the container's, for each of its processes.
    pub memory_policy: Option<(i32, Vec<u32>)>,
    /// Execution domain. It is the container's, for each of its processes.
    pub personality: Option<u64>,
}

/// CPUs that a process added by `exec` runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// Until it is in the container's cgroup.
    pub initial: Option<Vec<u32>>,
    /// From then on.
    pub last: Option<Vec<u32>>,
}

/// A label for the next exec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecLabel {
    /// An AppArmor profile.
    AppArmor(String),
    /// An SELinux context.
    Selinux(String),
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| refuse(format!("{text:?} has a NUL inside")))
}

impl Process {
    /// What a container does that is created without a process: it waits, as root with no rights, and is never started.
    pub fn absent() -> Process {
        Process {
            arguments: Vec::new(),
            environment: Vec::new(),
            cwd: "/".into(),
            make_cwd: false,
            terminal: false,
            console_size: None,
            uid: 0,
            gid: 0,
            groups: Vec::new(),
            umask: 0o022,
            capabilities: Capabilities::default(),
            limits: Vec::new(),
            no_new_privileges: true,
            oom_score_adj: None,
            exec_label: None,
            scheduling: None,
            io_priority: None,
            affinity: Affinity::default(),
            memory_policy: None,
            personality: None,
        }
    }

    /// Checks a process of the configuration.
    pub fn plan(process: &spec::Process, host: &Host) -> Result<Process> {
        let arguments =
            process.args().iter().flatten().map(|text| c_string(text)).collect::<Result<Vec<_>>>()?;
        if arguments.first().is_none_or(|program| program.is_empty()) {
            return Err(refuse("args must not be empty"));
        }
        if process.cwd().as_os_str().is_empty() {
            return Err(refuse("Cwd property must not be empty"));
        }
        if !process.cwd().is_absolute() {
            return Err(refuse("Cwd must be an absolute path"));
        }
        let user = process.user();
        let mut limits: Vec<(u32, u64, u64)> = Vec::new();
        for limit in process.rlimits().iter().flatten() {
            let resource = resource(limit.typ());
            if limits.iter().any(|&(known, ..)| known == resource) {
                return Err(refuse(format!("rlimit {} is given twice", limit.typ())));
            }
            if limit.soft() > limit.hard() {
                return Err(refuse(format!("soft limit of {} is above the hard one", limit.typ())));
            }
            limits.push((resource, limit.soft(), limit.hard()));
        }
        let size = process.console_size().map(|size| {
            let cut = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
            (cut(size.height()), cut(size.width()))
        });
        let oom_score_adj = process.oom_score_adj();
        if let Some(score) = oom_score_adj.filter(|score| !(-1000..=1000).contains(score)) {
            return Err(refuse(format!("oomScoreAdj {score} is not between -1000 and 1000")));
        }
        Ok(Process {
            arguments,
            environment: environment(process.env().as_deref().unwrap_or_default())?,
            cwd: keep_magic(process.cwd()),
            make_cwd: true,
            terminal: process.terminal().unwrap_or(false),
            console_size: size.filter(|size| *size != (0, 0)),
            uid: user.uid(),
            gid: user.gid(),
            groups: user.additional_gids().clone().unwrap_or_default(),
            umask: user.umask().unwrap_or(0o022),
            capabilities: Capabilities::plan(process.capabilities()),
            limits,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            oom_score_adj,
            exec_label: plan_label(process, host)?,
            scheduling: process.scheduler().as_ref().map(scheduling).transpose()?,
            io_priority: process.io_priority().as_ref().map(io_priority).transpose()?,
            affinity: process.exec_cpu_affinity().as_ref().map(affinity).transpose()?.unwrap_or_default(),
            memory_policy: None,
            personality: None,
        })
    }
}

/// The working directory as it is written, but for `..` above the root: what it means is for the kernel to say, and
/// whether that lies in the container is checked after the change.
fn keep_magic(path: &std::path::Path) -> PathBuf {
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return clean(path);
    }
    path.to_owned()
}

/// The environment with the last value of each name, in the order of first appearance.
fn environment(pairs: &[String]) -> Result<Vec<CString>> {
    let name = |pair: &str| pair.split_once('=').map(|(name, _)| name.to_owned());
    let mut kept: Vec<(String, CString)> = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let name = name(pair)
            .filter(|name| !name.is_empty())
            .ok_or_else(|| refuse(format!("invalid environment variable {pair:?}")))?;
        let text = c_string(pair)?;
        match kept.iter_mut().find(|(known, _)| *known == name) {
            Some((_, value)) => *value = text,
            None => kept.push((name, text)),
        }
    }
    Ok(kept.into_iter().map(|(_, text)| text).collect())
}

fn plan_label(process: &spec::Process, host: &Host) -> Result<Option<ExecLabel>> {
    let apparmor = process.apparmor_profile().as_deref().filter(|profile| !profile.is_empty());
    let selinux = process.selinux_label().as_deref().filter(|label| !label.is_empty());
    match (apparmor, selinux) {
        (Some(profile), _) if host.security.apparmor => Ok(Some(ExecLabel::AppArmor(profile.into()))),
        (_, Some(label)) if host.security.selinux => Ok(Some(ExecLabel::Selinux(label.into()))),
        (_, Some(_)) => {
            Err(refuse("selinux label is specified in config, but selinux is disabled or not supported"))
        }
        (Some(profile), None) if profile != "unconfined" => {
            Err(refuse(format!("unable to apply apparmor profile {profile}: this kernel has no AppArmor")))
        }
        _ => Ok(None),
    }
}

fn resource(kind: PosixRlimitType) -> u32 {
    use PosixRlimitType::*;
    let resource = match kind {
        RlimitCpu => libc::RLIMIT_CPU,
        RlimitFsize => libc::RLIMIT_FSIZE,
        RlimitData => libc::RLIMIT_DATA,
        RlimitStack => libc::RLIMIT_STACK,
        RlimitCore => libc::RLIMIT_CORE,
        RlimitRss => libc::RLIMIT_RSS,
        RlimitNproc => libc::RLIMIT_NPROC,
        RlimitNofile => libc::RLIMIT_NOFILE,
        RlimitMemlock => libc::RLIMIT_MEMLOCK,
        RlimitAs => libc::RLIMIT_AS,
        RlimitLocks => libc::RLIMIT_LOCKS,
        RlimitSigpending => libc::RLIMIT_SIGPENDING,
        RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        RlimitNice => libc::RLIMIT_NICE,
        RlimitRtprio => libc::RLIMIT_RTPRIO,
        RlimitRttime => libc::RLIMIT_RTTIME,
    };
    #[allow(clippy::unnecessary_cast, reason = "glibc and musl disagree on the type")]
    {
        resource as u32
    }
}

pub(super) fn scheduling(scheduler: &Scheduler) -> Result<Scheduling> {
    use LinuxSchedulerPolicy::*;
    let policy = match scheduler.policy() {
        SchedOther => libc::SCHED_OTHER,
        SchedFifo => libc::SCHED_FIFO,
        SchedRr => libc::SCHED_RR,
        SchedBatch => libc::SCHED_BATCH,
        SchedIso => return Err(refuse("scheduler policy SCHED_ISO does not exist in Linux")),
        SchedIdle => libc::SCHED_IDLE,
        SchedDeadline => libc::SCHED_DEADLINE,
    };
    let is_for = |policies: &[libc::c_int]| policies.contains(&policy);
    let nice = scheduler.nice().unwrap_or(0);
    if is_for(&[libc::SCHED_OTHER, libc::SCHED_BATCH]) && !(-20..=19).contains(&nice) {
        return Err(refuse(format!("invalid scheduler.nice: {nice}")));
    }
    let priority = scheduler.priority().unwrap_or(0);
    if priority != 0 && !is_for(&[libc::SCHED_FIFO, libc::SCHED_RR]) {
        return Err(refuse("scheduler.priority can only be specified for SchedFIFO or SchedRR policy"));
    }
    let times = [scheduler.runtime(), scheduler.deadline(), scheduler.period()].map(|time| time.unwrap_or(0));
    if times != [0; 3] && !is_for(&[libc::SCHED_DEADLINE]) {
        let why = "scheduler runtime/deadline/period can only be specified for SchedDeadline policy";
        return Err(refuse(why));
    }
    let [runtime, deadline, period] = times;
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    Ok(Scheduling {
        policy: policy as u32,
        flags: scheduler.flags().iter().flatten().fold(0, |all, one| all | flag(one)),
        nice,
        priority: u32::try_from(priority).map_err(|_| refuse("scheduler priority is negative"))?,
        runtime,
        deadline,
        period,
    })
}

pub(super) fn affinity(configured: &ExecCPUAffinity) -> Result<Affinity> {
    let list =
        |list: &Option<String>| list.as_deref().filter(|list| !list.is_empty()).map(number_list).transpose();
    Ok(Affinity { initial: list(configured.initial())?, last: list(configured.cpu_affinity_final())? })
}

pub(super) fn io_priority(configured: &LinuxIOPriority) -> Result<(u32, u32)> {
    let level = configured.priority();
    let class = match configured.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u32::try_from(level) {
        Ok(level @ 0..=7) => Ok((class, level)),
        _ => Err(refuse(format!("I/O priority {level} is not between 0 and 7"))),
    }
}

/// A list of numbers as the kernel writes CPUs and nodes: `0-3,7`.
pub fn number_list(text: &str) -> Result<Vec<u32>> {
    let bad = || refuse(format!("{text:?} is not a list of numbers"));
    let mut numbers = Vec::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u32 = first.parse().map_err(|_| bad())?;
        let last: u32 = last.parse().map_err(|_| bad())?;
        // A list in which everything is named twice, and longer, is a mistake or an attempt on our memory.
        if last < first || last > 65_535 || numbers.len() > 65_536 {
            return Err(bad());
        }
        numbers.extend(first..=last);
    }
    Ok(numbers)
}

pub(super) fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<(i32, Vec<u32>)> {
    use MemoryPolicyModeType::*;
    let mode = match policy.mode() {
        MpolDefault => libc::MPOL_DEFAULT,
        MpolPreferred => libc::MPOL_PREFERRED,
        MpolBind => libc::MPOL_BIND,
        MpolInterleave => libc::MPOL_INTERLEAVE,
        MpolLocal => libc::MPOL_LOCAL,
        MpolPreferredMany => 5,
        MpolWeightedInterleave => 6,
    };
    let flag = |flag: &MemoryPolicyFlagType| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    };
    let flags = policy.flags().iter().flatten().fold(0, |all, one| all | flag(one));
    let nodes = policy.nodes().as_deref().map(number_list).transpose()?.unwrap_or_default();
    match policy.mode() {
        MpolDefault | MpolLocal if !nodes.is_empty() => {
            let why = format!("memory policy mode requires 0 nodes but got {}", nodes.len());
            return Err(refuse(why));
        }
        MpolBind | MpolInterleave | MpolPreferredMany | MpolWeightedInterleave if nodes.is_empty() => {
            return Err(refuse("memory policy mode requires at least one node but got 0"));
        }
        _ => {}
    }
    Ok((mode | flags, nodes))
}

pub(super) fn personality(personality: &LinuxPersonality) -> Result<u64> {
    if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err(refuse("personality flags are not supported: the specification defines none"));
    }
    Ok(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_name_counts() {
        let pairs = ["A=1", "B=2", "A=3"].map(str::to_owned);
        assert_eq!(environment(&pairs).unwrap(), [c"A=3".to_owned(), c"B=2".to_owned()]);
        environment(&["=1".to_owned()]).unwrap_err();
        environment(&["A".to_owned()]).unwrap_err();
        environment(&["A=\0".to_owned()]).unwrap_err();
    }

    #[test]
    fn lists_of_numbers() {
        assert_eq!(number_list("0-2,7").unwrap(), [0, 1, 2, 7]);
        assert!(number_list("").unwrap().is_empty());
        for bad in ["a", "2-1", "0-99999999", "-1", &"0-65535,".repeat(9)] {
            number_list(bad).unwrap_err();
        }
    }
}
