//! Differs that run as programs of their own: asked before our own, by the order of their names. One that answers
//! `Unimplemented` leaves the work to the next.

use std::collections::BTreeMap;

use orlop_proto::containerd::services::diff::v1 as api;
use orlop_proto::containerd::services::diff::v1::diff_client::DiffClient;
use orlop_proto::containerd::types;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use tonic::transport::Channel;

use super::{channel, request};
use crate::api::convert;
use crate::config::{ProxyKind, ProxyPlugin};
use crate::content::digest::Digest;
use crate::image::manifest::Descriptor;
use crate::request::RequestContext;
use crate::snapshot::Mount;

/// The external differs; cheap to clone.
#[derive(Clone, Default)]
pub struct Differs(Vec<(String, DiffClient<Channel>)>);

impl Differs {
    /// Those of the configuration.
    ///
    /// # Errors
    ///
    /// For an address that is none.
    pub fn new(plugins: &BTreeMap<String, ProxyPlugin>) -> Result<Differs> {
        let own = plugins.iter().filter(|(_, plugin)| plugin.kind == ProxyKind::Diff);
        let differs = own.map(|(name, plugin)| Ok((name.clone(), DiffClient::new(channel(name, plugin)?))));
        differs.collect::<Result<_>>().map(Differs)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Has a layer applied to mounts; nothing where no program takes it.
    ///
    /// # Errors
    ///
    /// The program's, with its name.
    pub async fn apply(
        &self,
        context: &RequestContext,
        message: &api::ApplyRequest,
    ) -> Result<Option<api::ApplyResponse>> {
        for (name, client) in &self.0 {
            let answer = client.clone().apply(request(context, message.clone())).await;
            if let Some(answer) = taken(name, answer)? {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    /// Has a layer of the content store applied to mounts; returns the digest of what it decompresses to, or nothing where no
    /// program takes it.
    ///
    /// # Errors
    ///
    /// As [`Differs::apply`].
    pub async fn apply_layer(
        &self,
        context: &RequestContext,
        layer: &Descriptor,
        mounts: Vec<Mount>,
    ) -> Result<Option<Digest>> {
        let message = api::ApplyRequest {
            diff: Some(types::Descriptor {
                media_type: layer.media_type.clone(),
                digest: layer.digest.to_string(),
                size: i64::try_from(layer.size).unwrap_or(i64::MAX),
                annotations: convert::hashed(layer.annotations.clone()),
            }),
            mounts: convert::mounts(mounts),
            ..api::ApplyRequest::default()
        };
        let answer = self.apply(context, &message).await?;
        answer.map(|answer| Digest::parse(&answer.applied.unwrap_or_default().digest)).transpose()
    }

    /// Has a layer made of what differs; nothing where no program does.
    ///
    /// # Errors
    ///
    /// As [`Differs::apply`].
    pub async fn diff(
        &self,
        context: &RequestContext,
        message: &api::DiffRequest,
    ) -> Result<Option<api::DiffResponse>> {
        for (name, client) in &self.0 {
            let answer = client.clone().diff(request(context, message.clone())).await;
            if let Some(answer) = taken(name, answer)? {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }
}

/// The answer of a program that took the work.
fn taken<T>(name: &str, answer: std::result::Result<tonic::Response<T>, tonic::Status>) -> Result<Option<T>> {
    match answer.map_err(Error::from) {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(error) if error.kind() == Kind::Unimplemented => Ok(None),
        Err(error) => Err(Error::because(error.kind(), "differ", name, error)),
    }
}
