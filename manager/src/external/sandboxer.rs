//! Sandbox controllers that run as programs of their own, by the name that clients ask for.

use std::collections::BTreeMap;
use std::sync::Arc;

use orlop_proto::containerd::services::sandbox::v1 as api;
use orlop_proto::containerd::services::sandbox::v1::controller_client::ControllerClient;
use orlop_proto::error::{Error, Result};
use tonic::transport::Channel;

use super::{channel, request};
use crate::config::{ProxyKind, ProxyPlugin};
use crate::request::{Namespace, RequestContext};

/// The external controllers; cheap to clone.
#[derive(Clone, Default)]
pub struct Sandboxers(Arc<BTreeMap<String, ControllerClient<Channel>>>);

impl Sandboxers {
    /// Those of the configuration.
    ///
    /// # Errors
    ///
    /// For an address that is none.
    pub fn new(plugins: &BTreeMap<String, ProxyPlugin>) -> Result<Sandboxers> {
        let own = plugins.iter().filter(|(_, plugin)| plugin.kind == ProxyKind::Sandbox);
        let all = own.map(|(name, plugin)| Ok((name.clone(), ControllerClient::new(channel(name, plugin)?))));
        Ok(Sandboxers(Arc::new(all.collect::<Result<_>>()?)))
    }

    /// The controller of a name.
    pub fn get(&self, name: &str) -> Option<ControllerClient<Channel>> {
        self.0.get(name).cloned()
    }

    /// Where the shim of a running sandbox listens, and the version that it speaks; nothing where no such controller is
    /// configured.
    ///
    /// # Errors
    ///
    /// The program's, with its name.
    pub async fn endpoint(
        &self,
        namespace: &Namespace,
        name: &str,
        sandbox: &str,
    ) -> Result<Option<(String, u32)>> {
        let Some(mut client) = self.get(name) else { return Ok(None) };
        let context = RequestContext { namespace: namespace.clone(), lease: None };
        let message = api::ControllerStatusRequest {
            sandbox_id: sandbox.to_owned(),
            sandboxer: name.to_owned(),
            verbose: false,
        };
        let status = client.status(request(&context, message)).await.map_err(|status| {
            let error = Error::from(status);
            Error::because(error.kind(), "sandbox controller", name, error)
        })?;
        let status = status.into_inner();
        Ok(Some((status.address, status.version)))
    }
}
