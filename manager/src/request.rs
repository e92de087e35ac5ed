//! What every request carries besides its message: the namespace and the lease.

use std::fmt;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tonic::metadata::MetadataMap;

use crate::{identifier, labels};

/// Metadata key of the namespace.
pub const NAMESPACE_HEADER: &str = "containerd-namespace";
/// Metadata key of the lease.
pub const LEASE_HEADER: &str = "containerd-lease";

/// A valid namespace: objects of one are invisible in another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(String);

impl Namespace {
    /// Checks a name as containerd does.
    pub fn new(name: impl Into<String>) -> Result<Namespace> {
        let name = name.into();
        if name.is_empty() {
            return Err(Error::new(Kind::FailedPrecondition, "namespace is required", ""));
        }
        identifier::validate(&name)
            .map_err(|error| labels::invalid(format!("namespace validation: {}", error.operation())))?;
        Ok(Namespace(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// On whose behalf a call is made.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// Namespace of every object that the call names.
    pub namespace: Namespace,
    /// Lease that keeps what the call makes.
    pub lease: Option<String>,
}

/// What tests make by hand; requests bring theirs along.
#[cfg(test)]
impl RequestContext {
    /// A call in a namespace, without a lease.
    pub fn new(namespace: Namespace) -> RequestContext {
        RequestContext { namespace, lease: None }
    }

    /// The same call under a lease.
    pub fn with_lease(mut self, lease: impl Into<String>) -> RequestContext {
        self.lease = Some(lease.into());
        self
    }
}

impl RequestContext {
    /// Reads the headers; of a header that came twice the first value counts.
    pub fn from_metadata(metadata: &MetadataMap) -> Result<RequestContext> {
        let header = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
        let namespace = Namespace::new(header(NAMESPACE_HEADER).unwrap_or_default())?;
        let lease = header(LEASE_HEADER).filter(|lease| !lease.is_empty()).map(str::to_owned);
        Ok(RequestContext { namespace, lease })
    }

    /// The context of a request.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<RequestContext> {
        RequestContext::from_metadata(request.metadata())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_header_wins() {
        let mut metadata = MetadataMap::new();
        metadata.append(NAMESPACE_HEADER, "one".parse().unwrap());
        metadata.append(NAMESPACE_HEADER, "two".parse().unwrap());
        metadata.append(LEASE_HEADER, "l".parse().unwrap());
        let context = RequestContext::from_metadata(&metadata).unwrap();
        assert_eq!(context.namespace.as_str(), "one");
        assert_eq!(context.lease.as_deref(), Some("l"));
    }

    #[test]
    fn a_namespace_is_required_and_checked() {
        let error = RequestContext::from_metadata(&MetadataMap::new()).unwrap_err();
        assert_eq!(error.to_string(), "namespace is required: failed precondition");
        let error = Namespace::new("a/b").unwrap_err();
        assert!(
            error.to_string().starts_with("namespace validation: identifier \"a/b\" must match"),
            "{error}"
        );
    }
}
