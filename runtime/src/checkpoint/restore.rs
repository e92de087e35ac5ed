//! A container brought back from files.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::SystemTime;

use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use orlop_host::cgroup::Part;
use orlop_host::state::StateDirectory;
use orlop_host::sys;
use orlop_proto::contract::time::rfc3339_nano;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::options::Options;
use super::outside::{self, open_directory};
use super::rpc::{Call, Criu, Message};
use super::{DESCRIPTORS, quote};
use crate::cli::{CreateArgs, Global};
use crate::container::{self, Container};
use crate::decision::Decision;
use crate::init::paths::{Kind as Node, ensure};
use crate::launch::{self, Purpose};
use crate::log::Log;
use crate::plan::mounts::{Mount, Source};
use crate::plan::namespaces::CLONE_NEWTIME;
use crate::undo::Undo;
use crate::{console, hooks};

const LOG: &str = "restore.log";
/// In the state directory: where the root file system is mounted for CRIU, which wants a mount point of its own.
const ROOT: &str = "criu-root";
/// Field of `criu_opts` for where in a hierarchy saved cgroups are restored (`cgroup_root`).
const CGROUP_ROOT: u32 = 25;

/// A container that runs again.
pub struct Restored {
    /// The container.
    pub container: Container,
    /// Its init.
    pub pid: i32,
    /// Its init.
    pub pidfd: OwnedFd,
    /// The master end of its terminal, if nobody else got it.
    pub console: Option<OwnedFd>,
}

/// Brings a container back: decides everything as for a new one, then does it; what was done is undone if a later step fails.
pub fn restore(
    global: &Global,
    arguments: &CreateArgs,
    options: &Options,
    purpose: Purpose,
    log: &Log,
) -> Result<Restored> {
    let streams = streams(&options.images)?;
    let decision = Decision::new(global, arguments, purpose, log)?;
    let mut undo = Undo::default();
    let mut effects = || -> Result<Restored> {
        let directory = StateDirectory::reserve(&global.root, &arguments.id)?;
        undo.push({
            let directory = directory.clone();
            move || directory.remove()
        });
        if let Some(notify) = &decision.notify {
            notify.make_directory()?;
        }
        let cgroup = Rc::new(decision.make_cgroup(Part::Whole, log)?);
        undo.push({
            let cgroup = cgroup.clone();
            move || cgroup.undo()
        });
        decision.limit(&cgroup, log)?;
        let cgroup_paths = cgroup.paths();
        let mut hook_state = container::hook_state(&decision.bundle, &arguments.id);
        let annotations = hook_state.annotations.clone().into_iter().collect();
        let mut message = Message::default();
        // Made as a child of ours; devices that have other numbers by now are found by their names.
        message.flag(26, true).flag(6, true);
        let joined = outside::tell_joined(&mut message, &decision.plan)?;
        for (number, name) in streams.iter().enumerate().filter(|(_, name)| name.contains("pipe:")) {
            outside::tell_inherited(&mut message, name, number);
        }

        let root = directory.path().join(ROOT);
        let planned = decision.plan.container.as_ref().expect("a container's plan has this part");
        message.text(13, &root.to_string_lossy());
        let mounts = outside::mounts(&decision.plan, planned, &decision.hierarchies, &cgroup_paths)?;
        outside::tell(&mut message, mounts.iter().map(|one| (&*one.destination, &*one.source)));
        outside::tell(&mut message, [("/dev/null", "/dev/null")]);
        let (criu, directories) = in_own_mounts(|| {
            prepare(&planned.rootfs, &root, &planned.mounts)?;
            // CRIU makes mounts below its directory, which has to be one of its own mount namespace.
            let directories = options.open(false)?;
            Ok((Criu::start(&joined.iter().map(OwnedFd::as_fd).collect::<Vec<_>>())?, directories))
        })?;
        options.tell(&mut message, &directories, LOG, &annotations);
        // What CRIU makes is born where CRIU is.
        cgroup.admit(criu.pid)?;
        tell_cgroups(&mut message, criu.pid)?;

        let mut master = None;
        let before_pivot = decision.bundle.spec.hooks().as_ref();
        let answered = criu.call(Call::Restore, &message, &mut |notice, descriptor| match &*notice.event {
            "setup-namespaces" => {
                hook_state.pid = notice.pid;
                hooks::run(hooks::before_pivot(before_pivot), &hook_state)
            }
            "orphan-pts-master" => {
                master = descriptor;
                Ok(())
            }
            _ => Ok(()),
        });
        let pid = answered.inspect_err(|_| quote(log, &directories.log.join(LOG)))?.ok_or_else(|| {
            Error::because(Kind::Internal, "restore", &*arguments.id, "criu does not say which process it is")
        })?;
        let pidfd = sys::pid::pidfd_open(pid).context("open", "the restored process")?;
        let kept = pidfd.try_clone().context("keep", "the restored process")?;
        undo.push(move || launch::kill_and_reap(kept));
        std::fs::remove_dir(&root).context("remove", root.to_string_lossy())?;

        decision.settle(&cgroup)?;
        let created = rfc3339_nano(SystemTime::now());
        let Decision { bundle, plan, .. } = &decision;
        let mut state = container::stored(bundle, plan, pid, &cgroup_paths, created, global)?;
        // CRIU keeps clocks going on by a time namespace.
        state.config.namespaces |= CLONE_NEWTIME;
        directory.save(&state)?;
        if let Some(filter) = &decision.filter {
            container::save_filter(&directory, filter)?;
        }
        if let (Some(path), Some(master)) = (&arguments.console_socket, &master) {
            console::send_to(path, b"/dev/ptmx", master.as_fd())?;
        }
        if let Some(path) = &arguments.pid_file {
            launch::write_pid_file(path, pid)?;
        }
        Ok(Restored { container: Container::new(directory, state), pid, pidfd, console: master })
    };
    match effects() {
        Ok(restored) => Ok(restored),
        Err(error) => Err(undo.unwind(error)),
    }
}

/// What the standard streams of the saved container's init were.
fn streams(images: &Path) -> Result<Vec<String>> {
    let path = images.join(DESCRIPTORS);
    let text = std::fs::read(&path).context("open", path.to_string_lossy())?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::because(Kind::DataLoss, "read", path.to_string_lossy(), error))
}

/// Does something in a mount namespace of its own, which ends with the processes that were started there: however this
/// ends, no mount is left on the host.
fn in_own_mounts<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let before = open("/proc/self/ns/mnt", flags, Mode::empty()).context("open", "our mount namespace")?;
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).context("leave", "our mount namespace")?;
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    let done = mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)
        .context("make a slave of", "/")
        .and_then(|()| work());
    sys::pid::setns(before.as_fd(), libc::CLONE_NEWNS).context("go back to", "our mount namespace")?;
    done
}

/// Mounts the root file system at `root`, with every place in it that something will be mounted on.
fn prepare(rootfs: &Path, root: &Path, mounts: &[Mount]) -> Result<()> {
    std::fs::create_dir(root).context("create", root.to_string_lossy())?;
    let bind = || {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(rootfs), root, None::<&str>, flags, None::<&str>).context("mount", root.to_string_lossy())
    };
    bind()?;
    let tree = open_directory(root)?;
    for mount in mounts.iter().filter(|mount| !is_saved(mount, mounts)) {
        let source = match &mount.source {
            Source::Bind(path) => Some(path),
            _ => None,
        };
        let node = if source.is_some_and(|path| !path.is_dir()) { Node::File } else { Node::Directory };
        let target = ensure(tree.as_fd(), &mount.destination, node)?;
        if let Some(path) = source {
            // Later ones may lie on this one.
            let shown = path.to_string_lossy();
            let tree =
                sys::mount::clone_tree(nix::fcntl::AT_FDCWD, path, true).context("bind", shown.clone())?;
            sys::mount::attach(tree.as_fd(), target.as_fd()).context("mount", shown)?;
        }
    }
    drop(tree);
    // CRIU makes the mounts itself, on a root that has none.
    umount2(root, MntFlags::MNT_DETACH).context("unmount", root.to_string_lossy())?;
    bind()
}

/// Whether CRIU brings the place of the mount back by itself, with the file system that it lies on.
fn is_saved(mount: &Mount, mounts: &[Mount]) -> bool {
    let is_memory = |other: &&Mount| {
        matches!(&other.source, Source::FileSystem(kind, _) if kind == "tmpfs")
            && other.destination != mount.destination
            && mount.destination.starts_with(&other.destination)
    };
    mount.source == Source::Cgroup || mounts.iter().any(|other| is_memory(&other))
}

/// Tells CRIU the cgroups that it is in: saved ones are restored there.
fn tell_cgroups(message: &mut Message, pid: i32) -> Result<()> {
    let path = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&path).context("read", path)?;
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        for controller in controllers.split(',') {
            let mut part = Message::default();
            part.text(1, controller).text(2, path);
            message.part(CGROUP_ROOT, &part);
        }
    }
    Ok(())
}
