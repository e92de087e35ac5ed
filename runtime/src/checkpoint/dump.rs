//! A container saved to files.

use orlop_host::cgroup::{Hierarchies, Mode};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::options::Options;
use super::outside;
use super::rpc::{Call, Criu, Message};
use super::{DESCRIPTORS, quote};
use crate::bundle::Bundle;
use crate::container::Container;
use crate::log::Log;
use crate::plan::{Host, Plan, Request};

const LOG: &str = "dump.log";

/// Saves the processes of a container and what belongs to them. Unless the options say otherwise they are gone afterwards.
pub fn dump(container: &Container, options: &Options, log: &Log) -> Result<()> {
    let status = options.status.map(status_descriptor).transpose()?;
    let directories = options.open(true)?;
    let (bundle, _) = Bundle::load(Some(container.state.bundle().as_ref()))?;
    let hierarchies = Hierarchies::detect()?;
    let request =
        Request { id: container.state.id.clone(), bundle: bundle.path.clone(), ..Default::default() };
    let host = Host { unified: hierarchies.mode() == Mode::Unified, ..Default::default() };
    let (mut plan, _) = Plan::for_container(&bundle.spec, &request, &host)?;
    plan.container.as_mut().expect("a container's plan has this part").rootfs = bundle.rootfs()?;
    let planned = plan.container.as_ref().expect("a container's plan has this part");
    let pid = container.state.init_process_pid;
    let cgroups = container.cgroup_paths();

    let mut message = Message::default();
    options.tell(&mut message, &directories, LOG, &container.state.annotations());
    message.number(2, pid as u64).text(13, &container.state.config.rootfs);
    outside::tell_namespaces(&mut message, &plan)?;
    if let Some(path) = cgroups.get("freezer").or_else(|| cgroups.get("")) {
        message.text(44, &path.to_string_lossy());
    }
    if !options.pre_dump {
        let mounts = outside::mounts(&plan, planned, &hierarchies, &cgroups)?;
        outside::tell(&mut message, mounts.iter().map(|one| (&*one.destination, &*one.destination)));
        for path in outside::masked_files(planned, pid)? {
            outside::tell(&mut message, [(&*path.to_string_lossy(), "/dev/null")]);
        }
        let path = options.images.join(DESCRIPTORS);
        let text = serde_json::to_vec(&container.state.external_descriptors)
            .map_err(|error| Error::because(Kind::Internal, "encode", "the standard streams", error))?;
        std::fs::write(&path, text).context("write", path.to_string_lossy())?;
    }
    let call = if options.pre_dump { Call::PreDump } else { Call::Dump };
    let dumped = Criu::start(&[])?.call(call, &message, &mut |notice, _| match (&*notice.event, &status) {
        ("status-ready", Some(status)) => {
            nix::unistd::write(status, &[0]).context("write", "the descriptor of --status-fd")?;
            Ok(())
        }
        _ => Ok(()),
    });
    dumped.map(drop).inspect_err(|_| quote(log, &directories.log.join(LOG)))
}

/// The descriptor that tells somebody outside when pages can be fetched.
fn status_descriptor(number: i32) -> Result<std::fs::File> {
    let opened = std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{number}"));
    opened.map_err(|error| {
        let kind = Error::io("open", "", std::io::Error::from(error.kind())).kind();
        Error::exactly(kind, format!("invalid --status-fd argument {number}: {error}"))
    })
}
