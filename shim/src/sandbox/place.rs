//! Where a pod's shim goes when the pod is made: into the namespaces that its containers share (docs/decisions/0311-pods-network.md).

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use nix::libc::{CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWUTS};
use nix::unistd::sethostname;
use orlop_host::sys::pid::{setns, unshare};
use orlop_proto::any;
use orlop_proto::containerd::runtime::sandbox::v1::CreateSandboxRequest;
use orlop_proto::contract::sysctl::{self, Owner};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::runtime::v1::{NamespaceMode, PodSandboxConfig};

/// What a pod's containers share.
#[derive(Debug, Default, PartialEq)]
pub struct Place {
    /// The path of its network namespace; empty for this one.
    network: String,
    /// The name of a host of its own; empty for this one's name.
    host_name: Option<String>,
    /// Whether it has an IPC namespace of its own.
    has_ipc: bool,
    /// Sysctls of these namespaces, by their paths below `/proc/sys`.
    sysctls: Vec<(String, String)>,
}

impl Place {
    /// What a request asks for: the network by itself, the rest in the message of the Kubernetes CRI, as containerd sends it.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for what is no such message, and for sysctls that the pod would share with others; `Unimplemented` for a PID
    /// namespace of the pod, since there is no process that could be its first.
    #[inline(never)] // Apart from what every shim runs: shim/tables.ld.
    pub fn of(request: &CreateSandboxRequest) -> Result<Place> {
        let mut place = Place { network: request.netns_path.clone(), ..Place::default() };
        let Some(options) = request.options.as_ref().filter(|options| any::is::<PodSandboxConfig>(options))
        else {
            return Ok(place);
        };
        let config: PodSandboxConfig = any::unpack(options)?;
        let linux = config.linux.unwrap_or_default();
        let modes = linux.security_context.and_then(|context| context.namespace_options).unwrap_or_default();
        let refused = |kind, why: String| Error::because(kind, "sandbox", request.sandbox_id.clone(), why);
        if modes.pid() == NamespaceMode::Pod {
            let why = "a PID namespace of the pod needs a container that pauses".to_owned();
            return Err(refused(Kind::Unimplemented, why));
        }
        let has_network = modes.network() != NamespaceMode::Node;
        place.host_name = has_network.then_some(config.hostname);
        place.has_ipc = modes.ipc() != NamespaceMode::Node;
        for (name, value) in linux.sysctls {
            let path = sysctl::path(&name).filter(|path| match sysctl::owner(path) {
                Some(Owner::Network | Owner::Uts) => has_network,
                Some(Owner::Ipc) => place.has_ipc,
                Some(Owner::HostName | Owner::User) | None => false,
            });
            let path = path.ok_or_else(|| {
                refused(Kind::InvalidArgument, format!("sysctl {name:?} is not in a namespace of the pod"))
            })?;
            place.sysctls.push((path, value));
        }
        place.sysctls.sort();
        Ok(place)
    }

    /// Takes this process there.
    ///
    /// # Errors
    ///
    /// What the kernel says; the process is somewhere in between then.
    #[inline(never)] // As above.
    pub fn enter(&self) -> Result<()> {
        if !self.network.is_empty() {
            let namespace = File::open(&self.network).context("open network namespace", &self.network)?;
            setns(namespace.as_fd(), CLONE_NEWNET).context("join network namespace", &self.network)?;
        }
        let uts = if self.host_name.is_some() { CLONE_NEWUTS } else { 0 };
        let ipc = if self.has_ipc { CLONE_NEWIPC } else { 0 };
        unshare(uts | ipc).context("leave", "the host's UTS and IPC namespaces")?;
        if let Some(name) = self.host_name.as_ref().filter(|name| !name.is_empty()) {
            sethostname(name).context("set host name", name)?;
        }
        for (path, value) in &self.sysctls {
            std::fs::write(Path::new("/proc/sys").join(path), value).context("write sysctl", path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use orlop_proto::runtime::v1::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption};

    use super::*;

    fn request(modes: [NamespaceMode; 3], sysctls: &[(&str, &str)]) -> CreateSandboxRequest {
        let [network, pid, ipc] = modes.map(|mode| mode as i32);
        let security_context =
            LinuxSandboxSecurityContext { namespace_options: Some(NamespaceOption { network, pid, ipc }) };
        let sysctls = sysctls.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let linux = LinuxPodSandboxConfig { security_context: Some(security_context), sysctls };
        let config = PodSandboxConfig { hostname: "pod-1".to_owned(), linux: Some(linux) };
        CreateSandboxRequest { options: Some(any::pack(&config)), ..CreateSandboxRequest::default() }
    }

    #[test]
    fn a_pod_has_the_namespaces_that_it_asks_for() {
        use NamespaceMode::{Container, Node, Pod};
        let shared = [("net.ipv4.ip_forward", "1"), ("kernel.shmmax", "4096")];
        let own = Place::of(&request([Pod, Container, Pod], &shared)).unwrap();
        assert_eq!(own.host_name.as_deref(), Some("pod-1"));
        assert!(own.has_ipc);
        assert_eq!(own.sysctls[0], ("kernel/shmmax".to_owned(), "4096".to_owned()));
        assert_eq!(Place::of(&request([Node, Container, Node], &[])).unwrap(), Place::default());
        // Who is not Kubernetes says nothing of it.
        assert_eq!(Place::of(&CreateSandboxRequest::default()).unwrap(), Place::default());
    }

    #[test]
    fn what_would_be_the_hosts_is_refused() {
        use NamespaceMode::{Container, Node, Pod};
        let kind = |request: &CreateSandboxRequest| Place::of(request).unwrap_err().kind();
        assert_eq!(kind(&request([Pod, Pod, Pod], &[])), Kind::Unimplemented);
        for (modes, name) in [
            ([Node, Container, Pod], "net.ipv4.ip_forward"),
            ([Pod, Container, Node], "kernel.shmmax"),
            ([Pod, Container, Pod], "vm.swappiness"),
            ([Pod, Container, Pod], "net/../kernel/panic"),
            ([Pod, Container, Pod], "kernel.hostname"),
        ] {
            assert_eq!(kind(&request(modes, &[(name, "1")])), Kind::InvalidArgument, "{name}");
        }
        let mut garbage = request([Pod, Container, Pod], &[]);
        garbage.options.as_mut().unwrap().value = vec![0xff];
        assert_eq!(kind(&garbage), Kind::InvalidArgument);
    }
}
