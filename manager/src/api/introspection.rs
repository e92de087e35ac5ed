//! `containerd.services.introspection.v1.Introspection`.

use std::path::PathBuf;

use orlop_proto::any;
use orlop_proto::containerd::services::introspection::v1 as proto;
use orlop_proto::containerd::types::{Platform, RuntimeRequest};
use orlop_proto::error::Error;
use orlop_proto::kind::Kind;
use tonic::{Request, Response, Status};

use crate::plugins::{Plugin, RUNTIME, plugins};
use crate::snapshot::Snapshots;
use crate::task::Supervisor;

/// Answers what the daemon consists of and who it is.
pub struct IntrospectionService {
    /// The snapshotters are among the parts.
    pub snapshots: Snapshots,
    /// Knows the runtimes.
    pub supervisor: Supervisor,
    /// The directory of installed programs.
    pub installed: PathBuf,
    /// Identity of the installation.
    pub uuid: String,
}

/// Architecture by its name in Go, which the OCI specifications use.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn encode(plugin: Plugin) -> proto::Plugin {
    let platform = Platform {
        os: std::env::consts::OS.to_owned(),
        architecture: architecture().to_owned(),
        ..Platform::default()
    };
    let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    proto::Plugin {
        r#type: plugin.kind.to_owned(),
        id: plugin.id,
        requires: owned(plugin.requires),
        platforms: plugin.has_platform.then_some(platform).into_iter().collect(),
        exports: plugin.exports.into_iter().collect(),
        capabilities: plugin.capabilities,
        init_err: None,
    }
}

#[tonic::async_trait]
impl proto::introspection_server::Introspection for IntrospectionService {
    async fn plugins(
        &self,
        request: Request<proto::PluginsRequest>,
    ) -> Result<Response<proto::PluginsResponse>, Status> {
        let plugins = plugins(&self.snapshots, &self.installed, &request.get_ref().filters)?;
        Ok(Response::new(proto::PluginsResponse { plugins: plugins.into_iter().map(encode).collect() }))
    }

    async fn server(&self, _request: Request<()>) -> Result<Response<proto::ServerResponse>, Status> {
        let pidns = std::fs::metadata("/proc/self/ns/pid");
        Ok(Response::new(proto::ServerResponse {
            uuid: self.uuid.clone(),
            pid: u64::from(std::process::id()),
            pidns: pidns.map(|found| std::os::unix::fs::MetadataExt::ino(&found)).unwrap_or(0),
            deprecations: Vec::new(),
        }))
    }

    async fn plugin_info(
        &self,
        request: Request<proto::PluginInfoRequest>,
    ) -> Result<Response<proto::PluginInfoResponse>, Status> {
        let proto::PluginInfoRequest { r#type, id, options } = request.into_inner();
        let filter = format!("type=={:?},id=={:?}", r#type, id);
        let Some(plugin) = plugins(&self.snapshots, &self.installed, &[filter])?.pop() else {
            return Err(Error::new(
                Kind::NotFound,
                format!("plugin {type}.{id} not found", type = r#type),
                "",
            )
            .into());
        };
        let extra = match options {
            None => None,
            Some(request) if plugin.kind == RUNTIME && any::is::<RuntimeRequest>(&request) => {
                Some(any::pack(&self.supervisor.runtime_info(any::unpack(&request)?).await?))
            }
            Some(request) if plugin.kind == RUNTIME => {
                let text = format!("unknown request type {}", request.type_url);
                return Err(Error::new(Kind::Unimplemented, text, "").into());
            }
            Some(_) => {
                let text = "plugin does not provided extra information";
                return Err(Error::new(Kind::Unimplemented, text, "").into());
            }
        };
        Ok(Response::new(proto::PluginInfoResponse { plugin: Some(encode(plugin)), extra }))
    }
}
