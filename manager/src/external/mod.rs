//! Parts of the daemon that run as programs of their own (`[proxy_plugins]`): each serves one of containerd's services on a unix
//! socket, as containerd's proxy plugins do.

pub mod differ;
pub mod sandboxer;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::config::ProxyPlugin;
use crate::request::{LEASE_HEADER, NAMESPACE_HEADER, RequestContext};

/// A connection to a plugin's program, which is reached when it is first needed, and again whenever it comes back.
///
/// # Errors
///
/// For an address that is none.
pub fn channel(name: &str, plugin: &ProxyPlugin) -> Result<Channel> {
    let address = plugin.address.display().to_string();
    let address = address.strip_prefix("unix://").unwrap_or(&address);
    let endpoint = Endpoint::from_shared(format!("unix://{address}"))
        .map_err(|error| Error::because(Kind::InvalidArgument, "configure proxy plugin", name, error))?;
    Ok(endpoint.connect_lazy())
}

/// A message on behalf of whoever asked us.
pub fn request<T>(context: &RequestContext, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let headers = request.metadata_mut();
    // Both were headers before.
    if let Ok(namespace) = context.namespace.as_str().parse() {
        headers.insert(NAMESPACE_HEADER, namespace);
    }
    if let Some(lease) = context.lease.as_deref().and_then(|lease| lease.parse().ok()) {
        headers.insert(LEASE_HEADER, lease);
    }
    request
}
