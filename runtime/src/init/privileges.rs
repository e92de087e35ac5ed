//! What the process gives up: labels, privileges, users, system calls.

use orlop_host::sys;
use orlop_host::sys::creds::CapabilityMasks;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::Init;
use super::machine::Proc;
use crate::plan::capabilities::{COUNT, name, numbers};
use crate::plan::process::ExecLabel;
use crate::sync::Message;

/// The security label that the next exec gives the process.
pub fn label(init: &mut Init) -> Result<()> {
    let Some(label) = &init.plan.process.exec_label else { return Ok(()) };
    let proc = Proc::open()?;
    match label {
        ExecLabel::AppArmor(profile) => {
            let own = proc.own("attr/apparmor/exec");
            // Before Linux 5.1 there was one file for all modules.
            let path = if proc.has(&own) { own } else { proc.own("attr/exec") };
            proc.write(&path, &format!("exec {profile}")).map_err(|error| {
                Error::exactly(error.kind(), format!("unable to apply apparmor profile: {error}"))
            })
        }
        ExecLabel::Selinux(label) => proc.write(&proc.own("attr/exec"), label),
    }
}

/// No privileges by exec, if the configuration says so.
pub fn no_new_privileges(init: &mut Init) -> Result<()> {
    if !init.plan.process.no_new_privileges {
        return Ok(());
    }
    sys::creds::no_new_privileges().context("set", "no_new_privs")
}

/// Without no_new_privs a filter needs `CAP_SYS_ADMIN`, which is still there now.
pub fn early_seccomp(init: &mut Init) -> Result<()> {
    if init.plan.process.no_new_privileges || init.filter.is_none() {
        return Ok(());
    }
    // The filter may forbid to do this later; what is opened from now on is marked from the start.
    if !crate::switches::is_off("descriptors") {
        sys::fd::close_on_exec_from(3).context("close", "descriptors")?;
    }
    seccomp(init)
}

/// A filter whose notifications go to a supervisor is installed while the parent is still there to pass them on.
pub fn watched_seccomp(init: &mut Init) -> Result<()> {
    let watched = init.filter.is_some_and(|filter| filter.listener.is_some());
    if init.plan.process.no_new_privileges && watched { seccomp(init) } else { Ok(()) }
}

/// With no_new_privs the filter comes last, so that it need not allow what comes before the program.
pub fn late_seccomp(init: &mut Init) -> Result<()> {
    let watched = init.filter.is_some_and(|filter| filter.listener.is_some());
    if init.plan.process.no_new_privileges && !watched { seccomp(init) } else { Ok(()) }
}

fn seccomp(init: &Init) -> Result<()> {
    let Some(filter) = init.filter else { return Ok(()) };
    let listener = sys::creds::install_seccomp(&filter.program, filter.flags)
        .context("install", "the seccomp filter")?;
    if let Some(listener) = listener {
        use std::os::fd::AsRawFd;
        init.channel.send(&Message::Listener(listener.as_raw_fd()))?;
        // The parent takes a copy of the descriptor out of this process and then says so.
        super::namespaces::await_go(init)?;
    }
    Ok(())
}

/// Takes what the process shall never have out of the bounding set, and lets the rest survive the change of user.
pub fn bounding(init: &mut Init) -> Result<()> {
    let keep = init.plan.process.capabilities.bounding;
    for number in 0..64u8 {
        if number < COUNT && keep & (1 << number) != 0 {
            continue;
        }
        match sys::creds::drop_bounding(number) {
            Ok(()) => {}
            // The kernel knows no more capabilities.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(Error::io("drop from the bounding set", name(number), error)),
        }
    }
    sys::creds::keep_capabilities(true).context("keep", "capabilities over the change of user")
}

/// Groups, group and user.
pub fn ids(init: &mut Init) -> Result<()> {
    let process = &init.plan.process;
    give_streams(process.uid);
    match sys::creds::set_groups(&process.groups) {
        // A user namespace made without privileges has setgroups denied, and then no groups to give up or to get.
        Err(error)
            if error.raw_os_error() == Some(libc::EPERM)
                && process.groups.is_empty()
                && init.plan.namespaces.has_user_namespace() => {}
        other => other.context("set", "supplementary groups")?,
    }
    sys::creds::set_gid(process.gid).context("set group id", process.gid.to_string())?;
    sys::creds::set_uid(process.uid).context("set user id", process.uid.to_string())?;
    let mask = nix::sys::stat::Mode::from_bits_truncate(process.umask);
    nix::sys::stat::umask(mask);
    Ok(())
}

/// Standard streams that are pipes or terminals of this user's own become the container user's, so that it can open
/// `/dev/stderr`; runc does so too, and like it leaves the null device and what it may not change alone.
fn give_streams(uid: u32) {
    use nix::sys::stat::fstat;
    use nix::unistd::{Gid, Uid, fchown};
    if uid == 0 {
        return;
    }
    let streams = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    // By its number: under the name the image may have anything, and the host's own device would change hands (CVE-2026-88265 of
    // another runtime).
    let null = match crate::switches::is_off("null-stream") {
        true => nix::sys::stat::stat("/dev/null").map_or(0, |stat| stat.st_rdev),
        false => libc::makedev(1, 3),
    };
    let give = |stream: std::os::fd::BorrowedFd| {
        let Ok(stat) = fstat(stream) else { return };
        if stat.st_uid == uid || stat.st_rdev != 0 && stat.st_rdev == null {
            return;
        }
        let _ = fchown(stream, Some(Uid::from_raw(uid)), None::<Gid>);
    };
    use std::os::fd::AsFd;
    give(streams.0.as_fd());
    give(streams.1.as_fd());
    give(streams.2.as_fd());
}

/// The capability sets, cut to what this machine's root has itself.
pub fn capabilities(init: &mut Init) -> Result<()> {
    let wanted = init.plan.process.capabilities;
    let owned = sys::creds::capabilities().context("look at", "capabilities")?.permitted;
    let missing = (wanted.permitted | wanted.effective | wanted.ambient) & !owned;
    if missing != 0 {
        let names: Vec<_> = numbers(missing).map(name).collect();
        let text = format!("capabilities that the caller lacks are left out: {}", names.join(", "));
        init.tell(&Message::Warning(text));
    }
    let permitted = wanted.permitted & owned;
    let masks = CapabilityMasks {
        effective: wanted.effective & permitted,
        permitted,
        inheritable: wanted.inheritable & owned,
    };
    sys::creds::keep_capabilities(false).context("drop", "capabilities at later changes of user")?;
    sys::creds::set_capabilities(masks).context("set", "capabilities")?;
    sys::creds::clear_ambient().context("clear", "ambient capabilities")?;
    let possible = wanted.ambient & masks.permitted & masks.inheritable;
    for number in numbers(possible) {
        sys::creds::raise_ambient(number).context("raise ambient", name(number))?;
    }
    let impossible: Vec<_> = numbers(wanted.ambient & !missing & !possible).map(name).collect();
    if !impossible.is_empty() {
        let names = impossible.join(", ");
        let text = format!("not ambient, since not both permitted and inheritable: {names}");
        init.tell(&Message::Note(text));
    }
    if masks.effective & !masks.permitted != 0 {
        return Err(Error::new(Kind::InvalidArgument, "set", "capabilities"));
    }
    Ok(())
}
