//! Saved containers as content: CRIU's images as one tar, and what the container was to be, in containerd's media types.

use std::path::Path;

use orlop_proto::error::{Error, Result};
use prost::Message;
use prost_types::Any;

use super::ImageService;
use super::diff::DiffRequest;
use super::manifest::Descriptor;
use super::media;
use crate::content::digest::Digest;
use crate::labels::{Labels, invalid};
use crate::request::RequestContext;
use crate::snapshot::Mount;

/// Media type of CRIU's images.
pub const CHECKPOINT: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
/// Media type of the container's specification.
const CONFIG: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";

fn bind(directory: &Path) -> Vec<Mount> {
    vec![Mount {
        kind: "bind".to_owned(),
        source: directory.display().to_string(),
        options: vec!["rbind".to_owned()],
        ..Mount::default()
    }]
}

impl ImageService {
    /// Puts a directory of CRIU's images and the container's specification into the content store.
    ///
    /// # Errors
    ///
    /// Those of reading and of the content store.
    pub async fn save_checkpoint(
        &self,
        context: &RequestContext,
        directory: &Path,
        spec: &Any,
    ) -> Result<Vec<Descriptor>> {
        let request = DiffRequest {
            right: bind(directory),
            media_type: media::OCI_LAYER.to_owned(),
            ..DiffRequest::default()
        };
        let mut images = self.diff(context, request).await?;
        images.media_type = CHECKPOINT.to_owned();
        let bytes = spec.encode_to_vec();
        let config = Descriptor::of(CONFIG, &bytes);
        self.keep(context, &config, bytes.into(), Labels::new()).await?;
        Ok(vec![images, config])
    }

    /// Unpacks CRIU's images from the content store to an empty directory.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` for another media type, `NotFound` for content that is not there.
    pub async fn restore_checkpoint(
        &self,
        context: &RequestContext,
        media_type: &str,
        digest: &str,
        directory: &Path,
    ) -> Result<()> {
        if media_type != CHECKPOINT {
            return Err(invalid(format!("unsupported checkpoint type {media_type:?}")));
        }
        let mut images = Descriptor::of(media::OCI_LAYER, b"");
        images.digest = Digest::parse(digest)?;
        let applied = self.apply(context, &images, bind(directory), false).await;
        applied.map(drop).map_err(|error| Error::because(error.kind(), "restore checkpoint", digest, error))
    }
}
