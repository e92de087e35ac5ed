//! Everything about a new container that is decided, opened and checked before anything is changed.

use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use orlop_host::cgroup::{Cgroup, CgroupPaths, Hierarchies, Mode, Part, Unit, default_device_rules};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::bundle::Bundle;
use crate::cli::{CreateArgs, Global};
use crate::idmap;
use crate::launch::{Purpose, preserved};
use crate::log::Log;
use crate::notify::Notify;
use crate::plan::{Host, Plan, Request};
use crate::seccomp::{self, Filter};
use crate::{console, container, join, network, resctrl, rootless};

/// A container that can be made.
pub struct Decision {
    /// Its bundle.
    pub bundle: Bundle,
    /// What its init does.
    pub plan: Plan,
    /// The host's cgroups.
    pub hierarchies: Hierarchies,
    /// Its seccomp filter.
    pub filter: Option<Filter>,
    /// Namespaces to join, each with its `CLONE_NEW…` flags.
    pub joins: Vec<(OwnedFd, u64)>,
    /// The network namespace among them, which gets its devices.
    pub network: Option<OwnedFd>,
    /// Its Intel RDT groups.
    pub rdt: Option<resctrl::Plan>,
    /// What was prepared for id-mapped mounts.
    pub idmaps: idmap::Prepared,
    /// How its program says that it is ready.
    pub notify: Option<Notify>,
    /// The unit that the cgroup is, with the systemd driver.
    unit: Option<Unit>,
    /// Where its cgroup will be.
    pub cgroup_paths: CgroupPaths,
    resources: LinuxResources,
    device_rules: Vec<LinuxDeviceCgroup>,
    /// The configuration names a cgroup, which is to be had or the container is not made.
    cgroup_is_named: bool,
    /// What `--rootless` said.
    rootless: Option<bool>,
}

impl Decision {
    /// Decides. Warnings go to the log; nothing is changed but the working directory, which is the bundle from now on.
    pub fn new(global: &Global, arguments: &CreateArgs, purpose: Purpose, log: &Log) -> Result<Decision> {
        let (mut bundle, warnings) = Bundle::load(arguments.bundle.as_deref())?;
        orlop_host::state::check_id(&arguments.id)?;
        orlop_host::probe::require_mount_api()?;
        let notify = Notify::asked(&global.root.join(&arguments.id))?;
        if let Some(notify) = &notify {
            bundle.spec.add_mount(notify.mount()?);
            bundle.spec.add_variable(Notify::variable());
        }
        let rootless = global.rootless()?;
        let hierarchies = Hierarchies::detect()?;
        let host = Host {
            unified: hierarchies.mode() == Mode::Unified,
            user: rootless::is_user(),
            security: container::security_modules_for(&bundle.spec),
        };
        let preserved = preserved(arguments.preserve_fds)?;
        let request = Request {
            id: arguments.id.clone(),
            bundle: bundle.path.clone(),
            no_pivot: arguments.no_pivot,
            no_new_keyring: arguments.no_new_keyring,
            preserved: preserved.count,
            starts: purpose != Purpose::Create,
        };
        let (mut plan, more) = Plan::for_container(&bundle.spec, &request, &host)?;
        plan.process.environment.extend(preserved.environment());
        warnings.iter().chain(&more).for_each(|warning| log.warning(warning));
        let rootfs = bundle.rootfs()?;
        plan.container.as_mut().expect("a container's plan has this part").rootfs = rootfs;
        console::check(
            plan.process.terminal,
            arguments.console_socket.as_deref(),
            purpose != Purpose::RunForeground,
        )?;
        let linux = bundle.spec.linux().as_ref();
        let filter = linux.and_then(|linux| linux.seccomp().as_ref()).map(seccomp::compile).transpose()?;
        let joins = join::open_all(&plan.namespaces.join)?;
        let network = joins.iter().find(|(_, flag)| flag & libc::CLONE_NEWNET as u64 != 0).map(|(fd, _)| fd);
        let network =
            network.map(|namespace| namespace.try_clone()).transpose().context("keep", "a namespace")?;
        network::check(plan.net_devices(), network.as_ref().map(|namespace| namespace.as_fd()))?;
        let rdt = linux.and_then(|linux| linux.intel_rdt().as_ref());
        let rdt = rdt.map(|rdt| resctrl::plan(rdt, &arguments.id, resctrl::root()?)).transpose()?;
        let idmaps = idmap::prepare(&plan, &joins)?;
        let cgroups_path =
            linux.and_then(|linux| linux.cgroups_path().as_ref()).map(|path| path.to_string_lossy());
        let (unit, cgroup_paths) = if global.systemd_cgroup {
            let is_users = rootless::is_user() || rootless::is_in_user_namespace();
            let annotations = bundle.spec.annotations().iter().flatten();
            let annotations = annotations.map(|(name, value)| (name.as_str(), value.as_str()));
            let path = cgroups_path.as_deref();
            let (unit, paths) = Cgroup::plan_unit(&hierarchies, path, annotations, &arguments.id, is_users)?;
            (Some(unit), paths)
        } else {
            (None, Cgroup::plan(&hierarchies, cgroups_path.as_deref(), &arguments.id)?)
        };
        let cgroup_is_named = cgroups_path.is_some();
        let resources = linux.and_then(|linux| linux.resources().clone()).unwrap_or_else(no_resources);
        let own_devices: Vec<_> =
            linux.and_then(|linux| linux.devices().as_ref()).into_iter().flatten().collect();
        let device_rules =
            default_device_rules(|path| own_devices.iter().any(|device| device.path() == path));
        Ok(Decision {
            plan,
            hierarchies,
            filter,
            joins,
            network,
            rdt,
            idmaps,
            notify,
            unit,
            cgroup_paths,
            resources,
            device_rules,
            cgroup_is_named,
            rootless,
            bundle,
        })
    }

    /// Whether the cgroup's version 1 part can be made while the process is setting itself up: not where it takes more than making
    /// directories, or may turn out to be less than planned.
    pub fn has_late_cgroup(&self) -> bool {
        !self.hierarchies.legacy.is_empty()
            && self.unit.is_none()
            && (self.cgroup_is_named || !rootless::does_without_cgroup(self.rootless))
    }

    /// Makes the cgroup, or a part of it. Somebody who named none gets what of it can be had.
    pub fn make_cgroup(&self, part: Part, log: &Log) -> Result<Cgroup> {
        if let Some(unit) = &self.unit {
            return Cgroup::create_unit(&self.hierarchies, &self.cgroup_paths, unit, &self.plan.id);
        }
        match Cgroup::create(&self.hierarchies, &self.cgroup_paths, part) {
            Err(error) if !self.cgroup_is_named && self.can_do_without(&error) => {
                log.debug(error);
                Cgroup::create_permitted(&self.hierarchies, &self.cgroup_paths)
            }
            cgroup => cgroup,
        }
    }

    /// Gives the cgroup its limits and device rules.
    pub fn limit(&self, cgroup: &Cgroup, log: &Log) -> Result<()> {
        let warnings = match cgroup.apply(&self.resources, Some(&self.device_rules)) {
            // A user may set no device rules, and needs none: the devices that it can open are its own anyhow.
            Err(error) if self.can_do_without(&error) => {
                log.debug(error);
                cgroup.apply(&self.resources, None)
            }
            applied => applied,
        };
        warnings?.into_iter().for_each(|warning| log.warning(warning));
        Ok(())
    }

    /// Puts limits in force that had to wait for the first process to be in the cgroup.
    pub fn settle(&self, cgroup: &Cgroup) -> Result<()> {
        cgroup.settle(&self.resources)
    }

    fn can_do_without(&self, error: &Error) -> bool {
        error.kind() == Kind::PermissionDenied && rootless::does_without_cgroup(self.rootless)
    }
}

fn no_resources() -> LinuxResources {
    serde_json::from_slice(b"{}").expect("an empty object is a whole resources section")
}
