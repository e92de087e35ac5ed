//! The new process's procedure: stages from the clone to the user's program.
//!
//! A container's init and a process that `exec` adds run the same stages with another table. The order is data, and
//! what security depends on is asserted on the tables.

mod cgroup;
mod copy_up;
mod devices;
mod machine;
mod mounts;
mod namespaces;
pub mod paths;
mod privileges;
mod program;
mod rootfs;
mod terminal;

use std::ffi::CString;
use std::os::fd::OwnedFd;

use orlop_host::cgroup::{CgroupPaths, Hierarchies};
use orlop_proto::contract::state::HookState;
use orlop_proto::error::Result;

use crate::idmap::Idmap;
use crate::plan::{Container, Plan};
use crate::seccomp::Filter;
use crate::sync::{Channel, Message};

/// What init has in hand besides its plan.
pub struct Init<'a> {
    /// What to do.
    pub plan: &'a Plan,
    /// To the parent.
    pub channel: Channel,
    /// Namespaces to join, each with its `CLONE_NEW…` flags.
    pub joins: Vec<(OwnedFd, u64)>,
    /// `CLONE_NEW…` flags of namespaces that it makes itself, while the parent has other things to do.
    pub apart: u64,
    /// `tasks` files of cgroup v1, to write oneself into; none if the parent is still to send them.
    pub tasks: Option<Vec<OwnedFd>>,
    /// Where the host's cgroups are, for cgroup mounts.
    pub hierarchies: Option<&'a Hierarchies>,
    /// The container's own cgroups.
    pub cgroup_paths: &'a CgroupPaths,
    /// The FIFO on which `start` lets go; none where the parent does it over the channel.
    pub fifo: Option<OwnedFd>,
    /// The seccomp filter.
    pub filter: Option<&'a Filter>,
    /// What was prepared for id-mapped mounts; one for each mount.
    pub idmaps: Vec<Option<Idmap>>,
    /// For the hooks that init runs.
    pub hook_state: HookState,
    /// What the stages leave for one another.
    pub found: Found,
}

/// What earlier stages leave for later ones.
#[derive(Default)]
pub struct Found {
    /// The root of the container's file system.
    root: Option<OwnedFd>,
    /// Sources of bind mounts, opened while the caller's rights were there; one for each mount.
    sources: Vec<Option<OwnedFd>>,
    /// Mounts that become read-only when everything is in place.
    late_readonly: Vec<OwnedFd>,
    /// The program found in the container.
    program: CString,
    /// `HOME` if the configuration has none.
    home: Option<CString>,
}

/// A step of the procedure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    Session,
    Namespaces,
    Loopback,
    Keyring,
    Cgroup,
    Mapping,
    Join,
    LaterNamespaces,
    Sources,
    RootUser,
    Propagation,
    Rootfs,
    Mounts,
    Devices,
    RuntimeHooks,
    ContainerHooks,
    Pivot,
    Terminal,
    Names,
    Sysctl,
    WorkingDirectory,
    ReadonlyPaths,
    MaskedPaths,
    LateReadonly,
    ReadonlyRoot,
    Limits,
    Scheduling,
    Label,
    NoNewPrivileges,
    EarlySeccomp,
    Bounding,
    Ids,
    EnterDirectory,
    Capabilities,
    Lookup,
    WatchedSeccomp,
    Ready,
    Start,
    StartHooks,
    Descriptors,
    LateSeccomp,
    Execute,
}

type Row = (Stage, fn(&mut Init) -> Result<()>);

/// From a clone with new namespaces to the user's program in a new container.
const CREATE: &[Row] = &[
    (Stage::Session, namespaces::session),
    (Stage::Namespaces, namespaces::make_own),
    (Stage::Loopback, machine::loopback),
    (Stage::Keyring, namespaces::keyring),
    (Stage::Cgroup, namespaces::enter_cgroup),
    (Stage::Mapping, namespaces::await_mapping),
    (Stage::Join, namespaces::join),
    (Stage::LaterNamespaces, namespaces::later),
    (Stage::Sources, mounts::open_sources),
    (Stage::RootUser, namespaces::become_root),
    (Stage::Propagation, rootfs::propagation),
    (Stage::Rootfs, rootfs::bind),
    (Stage::Mounts, mounts::mount_all),
    (Stage::Devices, devices::make),
    (Stage::RuntimeHooks, machine::await_runtime_hooks),
    (Stage::ContainerHooks, machine::container_hooks),
    (Stage::Pivot, rootfs::pivot),
    (Stage::Terminal, terminal::open),
    (Stage::Names, machine::names),
    (Stage::Sysctl, machine::sysctl),
    (Stage::WorkingDirectory, rootfs::make_cwd),
    (Stage::ReadonlyPaths, paths::make_readonly),
    (Stage::MaskedPaths, paths::mask),
    (Stage::LateReadonly, rootfs::late_readonly),
    (Stage::ReadonlyRoot, rootfs::readonly_root),
    (Stage::Limits, machine::limits),
    (Stage::Scheduling, machine::scheduling),
    (Stage::Label, privileges::label),
    (Stage::NoNewPrivileges, privileges::no_new_privileges),
    (Stage::EarlySeccomp, privileges::early_seccomp),
    (Stage::Bounding, privileges::bounding),
    (Stage::Ids, privileges::ids),
    (Stage::EnterDirectory, program::enter_directory),
    (Stage::Capabilities, privileges::capabilities),
    (Stage::Lookup, program::look_up),
    (Stage::WatchedSeccomp, privileges::watched_seccomp),
    (Stage::Ready, program::ready),
    (Stage::Start, program::await_start),
    (Stage::StartHooks, program::start_hooks),
    (Stage::Descriptors, program::descriptors),
    (Stage::LateSeccomp, privileges::late_seccomp),
    (Stage::Execute, program::execute),
];

/// From a plain clone to another program in an existing container.
const EXEC: &[Row] = &[
    (Stage::Session, namespaces::session),
    (Stage::Cgroup, namespaces::enter_cgroup),
    (Stage::Limits, machine::limits),
    (Stage::Join, namespaces::join),
    (Stage::RootUser, namespaces::become_root),
    (Stage::Keyring, namespaces::keyring),
    (Stage::Terminal, terminal::open),
    (Stage::Scheduling, machine::scheduling),
    (Stage::Label, privileges::label),
    (Stage::NoNewPrivileges, privileges::no_new_privileges),
    (Stage::EarlySeccomp, privileges::early_seccomp),
    (Stage::Bounding, privileges::bounding),
    (Stage::Ids, privileges::ids),
    (Stage::EnterDirectory, program::enter_directory),
    (Stage::Capabilities, privileges::capabilities),
    (Stage::Lookup, program::look_up),
    (Stage::WatchedSeccomp, privileges::watched_seccomp),
    (Stage::Ready, program::ready),
    (Stage::Start, program::await_start),
    (Stage::Descriptors, program::descriptors),
    (Stage::LateSeccomp, privileges::late_seccomp),
    (Stage::Execute, program::execute),
];

/// Runs the stages; comes back only by ending the process. The user's program takes its place if all goes well.
pub fn run(mut init: Init) -> ! {
    let table = if init.plan.container.is_some() { CREATE } else { EXEC };
    for (stage, step) in table {
        if let Err(error) = step(&mut init) {
            let failed = Message::Failed { stage: *stage as u8, kind: error.kind(), what: error.to_string() };
            if init.channel.send(&failed).is_err() {
                // The parent has gone, as it does after `create`; the container's own output is what is left.
                eprintln!("{error}");
            }
            std::process::exit(FAILED);
        }
    }
    std::process::exit(FAILED)
}

/// Exit code of an init that could not start the user's program, as runc's.
const FAILED: i32 = 1;

impl Init<'_> {
    /// The container's part of the plan; only stages of the `CREATE` table ask for it.
    fn container(&self) -> &Container {
        self.plan.container.as_ref().expect("a stage of the create table runs with a container's plan")
    }

    /// The root of the container's file system; only stages after `Rootfs` ask for it.
    fn root(&self) -> std::os::fd::BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.found.root.as_ref().expect("the rootfs stage came before").as_fd()
    }

    /// Sends something to the parent's log; a parent that has gone has none.
    fn tell(&self, message: &Message) {
        let _ = self.channel.send(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(table: &[Row], stages: &[Stage]) {
        let at = |stage: &Stage| table.iter().position(|(one, _)| one == stage);
        let positions: Vec<_> = stages.iter().map(at).collect();
        assert!(positions.iter().all(Option::is_some), "{stages:?} are not all in the table");
        assert!(positions.is_sorted(), "{stages:?} are not in this order");
    }

    #[test]
    fn each_stage_comes_once() {
        for table in [CREATE, EXEC] {
            for (index, (stage, _)) in table.iter().enumerate() {
                assert!(table[index + 1..].iter().all(|(other, _)| other != stage), "{stage:?}");
            }
        }
    }

    #[test]
    fn limits_hold_before_anything_else_is_done() {
        order(CREATE, &[Stage::Namespaces, Stage::Cgroup, Stage::LaterNamespaces, Stage::Propagation]);
        order(CREATE, &[Stage::Cgroup, Stage::Sources, Stage::Mounts]);
        order(EXEC, &[Stage::Cgroup, Stage::Join]);
    }

    #[test]
    fn the_host_is_out_of_reach_before_paths_are_hidden() {
        order(CREATE, &[Stage::Propagation, Stage::Rootfs, Stage::Mounts, Stage::Devices, Stage::Pivot]);
        order(
            CREATE,
            &[Stage::Pivot, Stage::Sysctl, Stage::ReadonlyPaths, Stage::MaskedPaths, Stage::ReadonlyRoot],
        );
        order(CREATE, &[Stage::Mounts, Stage::RuntimeHooks, Stage::ContainerHooks, Stage::Pivot]);
    }

    #[test]
    fn sources_are_opened_with_the_callers_rights() {
        order(CREATE, &[Stage::Mapping, Stage::Sources, Stage::RootUser, Stage::Mounts]);
    }

    #[test]
    fn rights_are_given_up_in_an_order_that_works() {
        for table in [CREATE, EXEC] {
            order(table, &[Stage::Label, Stage::NoNewPrivileges, Stage::EarlySeccomp, Stage::Bounding]);
            order(table, &[Stage::Bounding, Stage::Ids, Stage::EnterDirectory, Stage::Capabilities]);
            order(table, &[Stage::Capabilities, Stage::Lookup, Stage::Ready, Stage::Start]);
        }
    }

    #[test]
    fn only_the_program_follows_the_late_filter() {
        for table in [CREATE, EXEC] {
            let [.., (descriptors, _), (filter, _), (last, _)] = table else { panic!("a short table") };
            assert_eq!(
                [*descriptors, *filter, *last],
                [Stage::Descriptors, Stage::LateSeccomp, Stage::Execute]
            );
        }
    }
}
