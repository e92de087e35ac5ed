//! `exec`: another process in a container.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use orlop_host::cgroup::{Cgroup, CgroupPaths};
use orlop_host::file;
use orlop_proto::contract::CONFIG_FILE;
use orlop_proto::contract::runc_text::RuncError;
use orlop_proto::contract::state::Status;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::cli::{ExecArgs, Global};
use crate::container::Container;
use crate::foreground::{self, Main, Signals};
use crate::launch::{self, Launch, Surroundings};
use crate::log::Log;
use crate::plan::capabilities::bit;
use crate::plan::namespaces::Namespaces;
use crate::plan::process::Process;
use crate::plan::user;
use crate::plan::{Host, Plan};
use crate::{bundle, console, join, spec};

/// Runs the process; returns its exit code, or 0 if it is left to itself.
pub fn run(global: &Global, arguments: &ExecArgs, log: &Log) -> Result<u8> {
    let container = Container::open(&global.root, &arguments.id)?;
    match container.status()? {
        Status::Stopped => return Err(RuncError::ExecStopped.into()),
        Status::Paused if !arguments.ignore_paused => return Err(RuncError::ExecPaused.into()),
        _ => {}
    }
    let (process, warnings) = process(&container, arguments)?;
    warnings.iter().for_each(|warning| log.warning(warning));
    let plan = plan(&container, process, arguments, log)?;
    console::check(plan.process.terminal, arguments.console_socket.as_deref(), arguments.detach)?;
    let filter = container.filter()?;
    let Some(init) = container.init()? else { return Err(RuncError::ExecStopped.into()) };
    let flags = plan.namespaces.all();
    let cgroup_paths = sub_cgroup(container.cgroup_paths(), &arguments.cgroup)?;
    let cgroup = Cgroup::open(&cgroup_paths)?;
    let signals = if arguments.detach { None } else { Some(Signals::hold()?) };
    let state = container.hook_state(Status::Running);
    let mut process = launch::spawn(Launch {
        plan: &plan,
        joins: vec![(init, flags)],
        entry: cgroup.entry()?,
        cgroup_follows: false,
        hierarchies: None,
        cgroup_paths: &cgroup_paths,
        fifo: None,
        filter: filter.as_ref(),
        idmaps: Vec::new(),
        hook_state: state.clone(),
    })?;
    let starts_at_once = arguments.console_socket.is_none();
    let (state, filter) = (&state, filter.as_ref());
    let around = Surroundings { log, state, hooks: None, filter, later: &[], starts_at_once };
    let mut started = || -> Result<()> {
        if let Some(groups) = container.groups()? {
            groups.enter(process.pid)?;
        }
        process.prepare(&plan, &around)?;
        console::deliver(
            &mut process,
            arguments.console_socket.as_deref(),
            arguments.pidfd_socket.as_deref(),
        )?;
        if let Some(path) = &arguments.pid_file {
            launch::write_pid_file(path, process.pid)?;
        }
        process.start()
    };
    if let Err(error) = started() {
        // The error tells why; that a process which could not start has ended needs no words.
        let _ = process.end();
        return Err(error);
    }
    match signals {
        None => Ok(0),
        Some(signals) => {
            let console = process.console.take();
            let main = Main { process: process.pidfd.as_fd(), pid: process.pid };
            let code = foreground::wait(&signals, main, console, None)?;
            // The end of this process closes at once what would be closed one by one.
            std::process::exit(i32::from(code))
        }
    }
}

/// The process of the file, or the bundle's with what the flags change.
fn process(container: &Container, arguments: &ExecArgs) -> Result<(spec::Process, Vec<String>)> {
    if let Some(path) = &arguments.process {
        let text = file::read(path).context("open", path.to_string_lossy())?;
        return bundle::parse_process(&text, path);
    }
    if arguments.command.is_empty() {
        return Err(Error::exactly(Kind::InvalidArgument, "exec args cannot be empty"));
    }
    let path = Path::new(container.state.bundle()).join(CONFIG_FILE);
    let text = file::read(&path).context("read", path.to_string_lossy())?;
    let (spec, warnings) = bundle::parse(&text)?;
    let process = spec.process().clone();
    let mut process =
        process.ok_or_else(|| Error::exactly(Kind::InvalidArgument, "process property must not be empty"))?;
    change(&mut process, arguments)?;
    Ok((process, warnings))
}

/// Puts the flags into the process.
fn change(process: &mut spec::Process, arguments: &ExecArgs) -> Result<()> {
    process.args = Some(arguments.command.clone());
    process.terminal = Some(arguments.tty);
    if let Some(cwd) = &arguments.cwd {
        process.cwd = cwd.clone();
    }
    process.env.get_or_insert_default().extend(arguments.env.iter().cloned());
    if let Some(user) = &arguments.user {
        let (uid, gid) = user::parse(user)?;
        process.user.set_uid(uid);
        if let Some(gid) = gid {
            process.user.set_gid(gid);
        }
    }
    if !arguments.additional_gids.is_empty() {
        let groups = process.user.additional_gids_mut().get_or_insert_default();
        for &gid in &arguments.additional_gids {
            groups.push(u32::try_from(gid).map_err(|_| {
                let what = format!("additional-gids must be a positive number {gid}");
                Error::exactly(Kind::InvalidArgument, what)
            })?);
        }
    }
    if let Some(profile) = &arguments.apparmor {
        process.apparmor_profile = Some(profile.clone());
    }
    if let Some(label) = &arguments.process_label {
        process.selinux_label = Some(label.clone());
    }
    if let Some(on) = arguments.no_new_privs {
        process.no_new_privileges = Some(on);
    }
    Ok(())
}

fn plan(container: &Container, process: spec::Process, arguments: &ExecArgs, log: &Log) -> Result<Plan> {
    let labelled = process.apparmor_profile().is_some() || process.selinux_label().is_some();
    let security = if labelled { orlop_host::probe::SecurityModules::detect() } else { Default::default() };
    let host = Host { security, ..Default::default() };
    let mut planned = Process::plan(&process, &host)?;
    container.inherited()?.complete(&mut planned, &process)?;
    if process.capabilities().is_none() {
        let sets = container.state.config.spec.get("capabilities").cloned().unwrap_or_default();
        let sets = serde_json::to_vec(&sets)
            .and_then(|sets| serde_json::from_slice(&sets))
            .map_err(|error| Error::because(Kind::DataLoss, "read", "the container's capabilities", error))?;
        planned.capabilities = crate::plan::capabilities::Capabilities::plan(&sets);
    }
    let (known, unknown): (Vec<_>, Vec<_>) = arguments.cap.iter().partition(|name| bit(name).is_ok());
    for bit in known.into_iter().flat_map(|name| bit(name)) {
        planned.capabilities.add(bit);
    }
    if !unknown.is_empty() {
        let names: Vec<_> = unknown.iter().map(|name| name.as_str()).collect();
        log.warning(format_args!("ignoring unknown or unavailable capabilities: [{}]", names.join(" ")));
    }
    planned.make_cwd = false;
    let preserved = launch::preserved(arguments.preserve_fds)?;
    planned.environment.extend(preserved.environment());
    let id = container.state.id.clone();
    let keyring = (!container.state.config.no_new_keyring).then(|| format!("_ses.{id}"));
    let flags = join::different(container.state.init_process_pid, container.state.config.namespaces);
    Ok(Plan {
        id,
        namespaces: Namespaces { join: vec![(flags, Default::default())], ..Default::default() },
        container: None,
        process: planned,
        preserved: preserved.count,
        keyring,
    })
}

/// The container's cgroup, or groups below it: `path` for every controller, or several `controller[,controller…]:path`.
fn sub_cgroup(paths: CgroupPaths, wanted: &[String]) -> Result<CgroupPaths> {
    let below = sub_paths(wanted)?;
    let known: BTreeMap<String, PathBuf> =
        paths.iter().map(|(controller, path)| (controller.to_owned(), path.to_owned())).collect();
    if let Some(controller) = below.keys().find(|name| !name.is_empty() && !known.contains_key(*name)) {
        return Err(refuse(format!("unknown controller {controller} in SubCgroupPaths")));
    }
    let is_hybrid = known.len() > 1;
    let mut changed = BTreeMap::new();
    for (controller, path) in known {
        let Some(sub) = below.get(&controller).or(below.get("")) else {
            changed.insert(controller, path);
            continue;
        };
        let sub = crate::plan::clean(Path::new(sub));
        let inner = path.join(sub.strip_prefix("/").unwrap_or(&sub));
        if inner.is_dir() {
            changed.insert(controller, inner);
        } else if is_hybrid && controller.is_empty() {
            // Who makes groups for version 1 need not make one in a hierarchy without controllers.
            changed.insert(controller, path);
        } else {
            let file = inner.join("cgroup.procs");
            let error = std::io::Error::from_raw_os_error(libc::ENOENT);
            let error = Error::io("open", file.to_string_lossy(), error);
            return Err(Error::exactly(Kind::NotFound, format!("error adding process to cgroups: {error}")));
        }
    }
    Ok(changed.into_iter().collect())
}

/// The flags' paths by controller; the empty name is every controller.
fn sub_paths(wanted: &[String]) -> Result<BTreeMap<String, String>> {
    let mut paths = BTreeMap::new();
    for text in wanted {
        let Some((controllers, path)) = text.split_once(':') else {
            if wanted.len() > 1 {
                let why = format!("invalid --cgroup argument: {text} (missing <controller>: prefix)");
                return Err(refuse(why));
            }
            paths.insert(String::new(), text.clone());
            continue;
        };
        for controller in controllers.split(',') {
            if controller.is_empty() {
                return Err(refuse(format!("invalid --cgroup argument: {text} (empty <controller> prefix)")));
            }
            if paths.insert(controller.to_owned(), path.to_owned()).is_some() {
                return Err(refuse(format!(
                    "invalid --cgroup argument(s): controller {controller} specified multiple times"
                )));
            }
        }
    }
    Ok(paths)
}

fn refuse(why: String) -> Error {
    Error::exactly(Kind::InvalidArgument, why)
}
