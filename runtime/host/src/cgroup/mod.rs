//! Control groups: a container's directories, limits, device rules, processes and figures, on version 1, hybrid and
//! version 2 hosts.
//!
//! Planning is pure (which directories, which values); what follows writes it out. Processes enter by themselves, since
//! moving one from outside takes a global lock in the kernel for milliseconds: see [`Entry`].
//!
//! Follows cgroups(7), the kernel's admin guides for cgroup v1 and v2, and runc where these are silent.

mod create;
mod devices;
mod freeze;
mod group;
mod hierarchies;
mod limits;
mod oom;
mod paths;
pub mod stats;
mod systemd;

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use orlop_proto::error::{Error, Result};

pub use devices::default_rules as default_device_rules;
pub use hierarchies::{Hierarchies, Hierarchy, Mode};
pub use oom::OomWatch;
pub use paths::CgroupPaths;
pub use stats::Stats;
pub use systemd::Unit;

use crate::file;
use crate::sys::bpf;
use create::Forbidden;
pub use create::Part;
use group::Group;
use limits::{Limits, Missing, Setting};
use systemd::{Managed, Manager, properties};

/// A container's cgroup: its directory in every hierarchy.
#[derive(Debug)]
pub struct Cgroup {
    groups: Vec<Group>,
    /// The directories that this value has made, parents first.
    made: Vec<PathBuf>,
    /// The unit that it is, with the systemd driver.
    managed: Option<Managed>,
}

/// How a new process gets into a cgroup without anybody moving it.
///
/// A hybrid host has both ways at once: the process is cloned into the version 2 group and writes itself into the others.
#[derive(Debug)]
pub struct Entry {
    /// The version 2 directory, for clone3's `CLONE_INTO_CGROUP`.
    pub unified: Option<OwnedFd>,
    /// The version 1 `tasks` files, open for writing: the new process, while it has one thread, writes `0` to each.
    pub tasks: Vec<OwnedFd>,
}

impl Cgroup {
    /// Decides the directories of container `id` from `linux.cgroupsPath`. Has no effect.
    ///
    /// An absolute path counts from each hierarchy's mount point, a relative one from the caller's own cgroup (version 1) or
    /// that cgroup's parent (version 2, where a group with processes cannot hand controllers down); without a path
    /// the container's name is a relative one. This is what runc does.
    ///
    /// # Errors
    /// `InvalidArgument` for a path to the top of a hierarchy or to the caller's own cgroup.
    pub fn plan(hierarchies: &Hierarchies, cgroups_path: Option<&str>, id: &str) -> Result<CgroupPaths> {
        paths::check(cgroups_path.filter(|path| !path.is_empty()).unwrap_or(id))?;
        Ok(paths::plan(hierarchies, cgroups_path, id))
    }

    /// Decides the unit of container `id` from `linux.cgroupsPath`, for the systemd driver, and asks its manager where it
    /// will lie: the system's manager, or a user's. Annotations `org.systemd.property.NAME` are further properties of it.
    ///
    /// # Errors
    /// `InvalidArgument` for a path not of the form `slice:prefix:name` and for such an annotation that cannot be read,
    /// `FailedPrecondition` where systemd does not run.
    pub fn plan_unit<'a>(
        hierarchies: &Hierarchies,
        cgroups_path: Option<&str>,
        annotations: impl Iterator<Item = (&'a str, &'a str)>,
        id: &str,
        is_users: bool,
    ) -> Result<(Unit, CgroupPaths)> {
        let unit = Unit::plan(cgroups_path.unwrap_or_default(), id, is_users)?;
        let unit = unit.with_annotations(annotations)?;
        let directory = unit.directory()?;
        let mut manager = Manager::of(&unit)?;
        let above = if is_users { manager.own_group()? } else { PathBuf::new() };
        Ok((unit, paths::below_mount_points(hierarchies, &above, &directory)))
    }

    /// Makes the directories and readies them for processes: cpusets inherit on version 1, controllers are handed down
    /// on version 2.
    ///
    /// # Errors
    /// `FailedPrecondition` for a group that is frozen or holds processes; what was made is removed again.
    pub fn create(hierarchies: &Hierarchies, paths: &CgroupPaths, part: Part) -> Result<Cgroup> {
        Cgroup::make(hierarchies, paths, part, Forbidden::Refused, None)
    }

    /// Adds the other part of a cgroup that was made in two.
    pub fn add(&mut self, rest: Cgroup) {
        self.groups.extend(rest.groups);
        self.made.extend(rest.made);
    }

    /// Like [`Cgroup::create`], but leaves out directories that the caller may not make: what a rootless container gets
    /// where nobody delegated a cgroup to its user. [`Cgroup::paths`] tells what there is.
    pub fn create_permitted(hierarchies: &Hierarchies, paths: &CgroupPaths) -> Result<Cgroup> {
        Cgroup::make(hierarchies, paths, Part::Whole, Forbidden::LeftOut, None)
    }

    /// Like [`Cgroup::create`], with the directories of [`Cgroup::plan_unit`], which systemd makes with the unit.
    ///
    /// # Errors
    /// `AlreadyExists` for a unit that is in use; systemd's refusal.
    pub fn create_unit(
        hierarchies: &Hierarchies,
        paths: &CgroupPaths,
        unit: &Unit,
        id: &str,
    ) -> Result<Cgroup> {
        let placeholder = Manager::of(unit)?.start(unit, id)?;
        let managed = Managed { unit: unit.clone(), placeholder };
        Cgroup::make(hierarchies, paths, Part::Whole, Forbidden::Refused, Some(managed))
    }

    fn make(
        hierarchies: &Hierarchies,
        paths: &CgroupPaths,
        part: Part,
        forbidden: Forbidden,
        managed: Option<Managed>,
    ) -> Result<Cgroup> {
        let mut made = Vec::new();
        let inside =
            managed.as_ref().and_then(|managed| managed.placeholder.as_ref()).map(|process| process.pid);
        match create::create(hierarchies, paths, part, forbidden, inside, &mut made) {
            Ok(groups) => Ok(Cgroup { groups, made, managed }),
            Err(error) => {
                // The first error is the one to tell: what cannot be removed now was not wanted in the first place.
                let _ = Cgroup { groups: Vec::new(), made, managed }.undo();
                Err(error)
            }
        }
    }

    /// Opens an existing cgroup; a directory that is gone is left out.
    pub fn open(paths: &CgroupPaths) -> Result<Cgroup> {
        let mut groups = Vec::new();
        for (controllers, path) in create::by_directory(paths) {
            match Group::open(controllers, path) {
                Err(error) if error.kind() == orlop_proto::kind::Kind::NotFound => {}
                group => groups.push(group?),
            }
        }
        Ok(Cgroup { groups, made: Vec::new(), managed: None })
    }

    /// The same cgroup as the unit of systemd's that it is, if the driver made it one: limits are then told to systemd too,
    /// and removal stops the unit. `is_users` says whether a user's manager has it.
    pub fn as_unit(mut self, is_users: bool) -> Cgroup {
        let mut groups = self.groups.iter();
        let unit = groups.find_map(|group| Unit::of_directory(&group.path, is_users));
        self.managed = unit.map(|unit| Managed { unit, placeholder: None });
        self
    }

    /// Opens the cgroup that a process is in, for containers of a runtime whose state is not known.
    ///
    /// On a hybrid host the version 2 hierarchy is left out, as the runtime may not have used it.
    pub fn of_process(pid: i32) -> Result<Cgroup> {
        let process = pid.to_string();
        let hierarchies = Hierarchies::detect_for(&process)?;
        let mut paths: Vec<(String, PathBuf)> = Vec::new();
        for hierarchy in &hierarchies.legacy {
            paths.extend(hierarchy.controllers.iter().map(|name| (name.clone(), hierarchy.own.clone())));
        }
        if let (Mode::Unified, Some(unified)) = (hierarchies.mode(), &hierarchies.unified) {
            paths.push((String::new(), unified.own.clone()));
        }
        Cgroup::open(&paths.into_iter().collect())
    }

    /// The directories that there are.
    pub fn paths(&self) -> CgroupPaths {
        let names = |group: &Group| -> Vec<String> {
            if group.is_unified() { vec![String::new()] } else { group.controllers.clone() }
        };
        let pairs = |group| names(group).into_iter().map(|name| (name, group.path.clone()));
        self.groups.iter().flat_map(pairs).collect()
    }

    /// How a process gets in.
    pub fn entry(&self) -> Result<Entry> {
        let mut entry = Entry { unified: None, tasks: self.tasks()? };
        if let Some(group) = self.unified() {
            let directory = group.directory().and_then(|directory| directory.try_clone_to_owned());
            entry.unified = Some(directory.map_err(|error| group.error("open", "", error))?);
        }
        Ok(entry)
    }

    /// The version 1 `tasks` files, open for writing (see [`Entry`]).
    pub fn tasks(&self) -> Result<Vec<OwnedFd>> {
        let groups = self.groups.iter().filter(|group| !group.is_unified());
        let tasks = groups.map(|group| {
            group.file("tasks", OFlag::O_WRONLY).map_err(|error| group.error("open", "tasks", error))
        });
        tasks.collect()
    }

    /// Moves another process in, which waits for a lock of the kernel's and is for those that cannot enter by themselves.
    pub fn admit(&self, pid: i32) -> Result<()> {
        self.groups.iter().try_for_each(|group| group.write("cgroup.procs", &pid.to_string()))
    }

    /// Sets limits and, unless `devices` is `None`, device rules: those of the resources and then `devices`, which for a new
    /// container are [`default_device_rules`]. Returns warnings for the caller to show.
    ///
    /// # Errors
    /// `InvalidArgument` for a value that no kernel takes, before anything is written; `FailedPrecondition` for a limit
    /// whose controller is missing; else the system call's error with the file's name.
    pub fn apply(
        &self,
        resources: &LinuxResources,
        devices: Option<&[LinuxDeviceCgroup]>,
    ) -> Result<Vec<String>> {
        let is_unified_only = self.groups.iter().all(Group::is_unified);
        let mut limits = limits::plan(
            resources,
            is_unified_only,
            |name| self.legacy(name).is_some(),
            |file| self.unified().filter(|_| devices.is_none())?.try_read(file).ok(),
        )?;
        let policy = match devices {
            Some(more) => {
                let rules = resources.devices().iter().flatten().chain(more);
                Some(devices::Policy::reduce(rules)?)
            }
            None => None,
        };
        if let Some(Managed { unit, placeholder }) = &self.managed {
            if placeholder.is_some() {
                limits.leave_room_for_two();
            }
            let mut told = properties::of_settings(limits.legacy.iter().chain(&limits.unified).flatten());
            // Devices are the machine's and not a user's to forbid.
            told.extend(policy.iter().filter(|_| !unit.is_users()).flat_map(properties::of_devices));
            if !told.is_empty() {
                Manager::of(unit)?.set(unit, &told)?;
            }
        }
        let Limits { legacy, unified, warnings } = limits;
        for together in legacy {
            self.write_together(together)?;
        }
        if let (false, false, Some(group)) = (unified.is_empty(), is_unified_only, self.unified()) {
            let controllers = unified.iter().flatten().map(|one| &*one.controller);
            create::hand_down_single(&group.path, controllers)?;
        }
        for together in unified {
            self.write_together(together)?;
        }
        if let Some(policy) = policy {
            self.confine(&policy)?;
        }
        Ok(warnings)
    }

    /// With the systemd driver, takes back the room that the process needed which held the unit, now that the container's own
    /// is in it: a limit of one process can only be kept from here on.
    pub fn settle(&self, resources: &LinuxResources) -> Result<()> {
        let Some(Managed { unit, placeholder: Some(placeholder) }) = &self.managed else { return Ok(()) };
        placeholder.end();
        let is_unified_only = self.groups.iter().all(Group::is_unified);
        let limits = limits::plan(resources, is_unified_only, |name| self.legacy(name).is_some(), |_| None)?;
        let Some(setting) = limits.of_one_process() else { return Ok(()) };
        Manager::of(unit)?.set(unit, &properties::of_settings([setting].into_iter()))?;
        self.write_setting(setting)
    }

    /// Sends a signal to every process of the cgroup and of those below it, and no fewer while they multiply.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        freeze::signal(self, signal)
    }

    /// Like [`Cgroup::signal`], by the signal's number: realtime signals and 0 have no names.
    pub fn signal_number(&self, number: i32) -> Result<()> {
        if let Ok(signal) = Signal::try_from(number) {
            return self.signal(signal);
        }
        for pid in self.pids()? {
            match crate::sys::pid::kill(pid, number) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(Error::io("signal", pid.to_string(), error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Memory in use, in bytes; nothing without a memory controller.
    pub fn memory_in_use(&self) -> Option<u64> {
        let (group, file) = match (self.legacy("memory"), self.unified()) {
            (Some(group), _) => (group, "memory.usage_in_bytes"),
            (None, Some(group)) => (group, "memory.current"),
            (None, None) => return None,
        };
        group.try_read(file).ok()?.trim().parse().ok()
    }

    /// Kills every process of the cgroup and of those below it. They may take a moment to be gone.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// Stops every process until [`Cgroup::thaw`]; returns when all have stopped.
    pub fn freeze(&self) -> Result<()> {
        freeze::freeze(self)
    }

    /// Lets frozen processes go on.
    pub fn thaw(&self) -> Result<()> {
        freeze::thaw(self)
    }

    /// Asks every process to stop, or to go on, for callers that may not wait: see [`Cgroup::has_answered`].
    pub fn ask(&self, stop: bool) -> Result<()> {
        freeze::ask(self, stop)
    }

    /// Whether every process has done what [`Cgroup::ask`] wanted. On version 1 one that forks at the wrong moment may never
    /// do so: then ask for the opposite, and again.
    pub fn has_answered(&self, stop: bool) -> Result<bool> {
        freeze::has_answered(self, stop)
    }

    /// Whether there is a freezer.
    pub fn can_freeze(&self) -> bool {
        self.legacy("freezer").is_some() || self.unified().is_some()
    }

    /// Whether the cgroup has been frozen by itself, not through an ancestor.
    pub fn frozen(&self) -> Result<bool> {
        freeze::frozen(self)
    }

    /// The processes of the cgroup and of those below it, by the caller's pid namespace, in ascending order.
    pub fn pids(&self) -> Result<Vec<i32>> {
        match self.members() {
            Some(group) => freeze::pids(&group.path),
            None => Ok(Vec::new()),
        }
    }

    /// What the cgroup has used.
    pub fn stats(&self) -> Result<Stats> {
        stats::read(self)
    }

    /// Asks to be told when memory runs out.
    ///
    /// # Errors
    /// `FailedPrecondition` without a memory controller.
    pub fn oom_events(&self) -> Result<OomWatch> {
        OomWatch::new(self)
    }

    /// Removes the cgroup and those below it. Waits for killed processes to leave, up to two seconds.
    pub fn remove(&self) -> Result<()> {
        self.stop_unit()?;
        create::remove(self.groups.iter().map(|group| group.path.as_path()))
    }

    /// Removes a cgroup that holds no process and is no unit of systemd's, as [`Cgroup::remove`] does, without opening it.
    pub fn remove_at(paths: &CgroupPaths) -> Result<()> {
        create::remove(create::by_directory(paths).into_iter().map(|(_, path)| path))
    }

    /// As [`Cgroup::remove_at`], for callers that may not wait: false if something is left, which may go later.
    pub fn try_remove_at(paths: &CgroupPaths) -> bool {
        create::by_directory(paths).into_iter().all(|(_, path)| create::is_removed(path))
    }

    /// Undoes [`Cgroup::create`]: removes the directories that it made, parents included.
    pub fn undo(&self) -> Result<()> {
        self.stop_unit()?;
        create::remove(self.made.iter().rev().map(PathBuf::as_path))
    }

    /// Stops the unit, with the systemd driver: it ends with its last process, but systemd may not have noticed yet.
    fn stop_unit(&self) -> Result<()> {
        let Some(Managed { unit, placeholder }) = &self.managed else { return Ok(()) };
        if let Some(placeholder) = placeholder {
            placeholder.end();
        }
        Manager::of(unit)?.stop(unit)
    }

    /// The version 1 group of a controller.
    fn legacy(&self, controller: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.has(controller))
    }

    /// The version 2 group.
    fn unified(&self) -> Option<&Group> {
        self.groups.iter().find(|group| group.is_unified())
    }

    /// The group whose process list is taken for the container's; on version 1 one of many that should agree.
    fn members(&self) -> Option<&Group> {
        ["devices", "pids", "freezer", "memory"]
            .iter()
            .find_map(|name| self.legacy(name))
            .or_else(|| self.groups.first())
    }

    /// Writes settings that depend on each other's present values: one that is refused is tried again after the rest.
    fn write_together(&self, together: Vec<Setting>) -> Result<()> {
        let mut left = together;
        loop {
            let before = left.len();
            let mut refused = Vec::new();
            let mut failure = None;
            for setting in left {
                match self.write_setting(&setting) {
                    Ok(()) => {}
                    Err(error) if error.kind() == orlop_proto::kind::Kind::InvalidArgument => {
                        failure.get_or_insert(error);
                        refused.push(setting);
                    }
                    Err(error) => return Err(error),
                }
            }
            match failure {
                None => return Ok(()),
                Some(error) if refused.len() == before => return Err(error),
                Some(_) => left = refused,
            }
        }
    }

    fn write_setting(&self, setting: &Setting) -> Result<()> {
        let group = self.legacy(&setting.controller).or(self.unified());
        let Some(group) = group else {
            return match setting.missing {
                Missing::Ignore => Ok(()),
                _ => Err(limits::no_controller(&setting.controller)),
            };
        };
        let error = match group.try_write(&setting.file, &setting.value) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let is_absent = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EACCES | libc::EPERM));
        match (&setting.missing, error.raw_os_error()) {
            (Missing::Ignore, Some(libc::ENOENT)) => Ok(()),
            (Missing::Instead(other), Some(libc::ENOENT)) => self.write_setting(other),
            (_, Some(libc::EBUSY)) if &*setting.file == "memory.limit_in_bytes" => {
                Err(self.too_little_memory(group, setting, error))
            }
            _ if is_absent && group.is_unified() && !self.has_controller(group, &setting.controller) => {
                Err(limits::no_controller(&setting.controller))
            }
            _ => Err(group.error(format!("write {:?} to", setting.value), &setting.file, error)),
        }
    }

    /// Whether a version 2 group has the controller; its core files belong to none.
    fn has_controller(&self, group: &Group, controller: &str) -> bool {
        let Ok(available) = group.try_read("cgroup.controllers") else { return true };
        controller == "cgroup" || available.split_whitespace().any(|one| one == controller)
    }

    /// The error for a memory limit below what is in use.
    fn too_little_memory(&self, group: &Group, setting: &Setting, error: std::io::Error) -> Error {
        let figure = |file| group.try_read(file).unwrap_or_default().trim().to_owned();
        Error::because(
            orlop_proto::kind::Kind::from_io(&error),
            format!("unable to set memory limit to {}", setting.value),
            "",
            format!(
                "current usage: {}, peak usage: {}",
                figure("memory.usage_in_bytes"),
                figure("memory.max_usage_in_bytes")
            ),
        )
    }

    /// Puts a device policy in force.
    fn confine(&self, policy: &devices::Policy) -> Result<()> {
        if let Some(group) = self.legacy("devices") {
            let mut open: Option<(&str, OwnedFd)> = None;
            for (name, line) in devices::legacy_writes(policy) {
                let written = (|| {
                    if open.as_ref().is_none_or(|(opened, _)| *opened != name) {
                        open = Some((name, group.file(name, OFlag::O_WRONLY)?));
                    }
                    match &open {
                        Some((_, opened)) => file::write_value(opened, line.as_bytes()),
                        None => Ok(()),
                    }
                })();
                written.map_err(|error| group.error(format!("write {line:?} to"), name, error))?;
            }
            return Ok(());
        }
        let Some(group) = self.unified() else { return Ok(()) };
        let code: Vec<[u8; 8]> = devices::program(policy).into_iter().map(|one| one.bytes()).collect();
        let object = || group.path.to_string_lossy().into_owned();
        let program = bpf::load_device_program(&code)
            .map_err(|error| Error::io("load the device program of", object(), error))?;
        group
            .directory()
            .and_then(|directory| bpf::attach_device_program(directory, std::os::fd::AsFd::as_fd(&program)))
            .map_err(|error| Error::io("attach the device program of", object(), error))
    }
}

#[cfg(test)]
mod tests;
