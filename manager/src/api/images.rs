//! `containerd.services.images.v1.Images`.

use orlop_proto::containerd::services::images::v1 as proto;
use orlop_proto::containerd::types;
use tonic::{Request, Response, Status};

use super::convert::{hashed, paths, sorted};
use crate::gc::Collector;
use crate::request::RequestContext;
use crate::store::Timestamp;
use crate::store::images::{Descriptor, Image, Images};

/// Serves the images.
pub struct ImagesService {
    /// The stored images.
    pub images: Images,
    /// Collects when a client waits for that.
    pub collector: Collector,
}

fn decode_descriptor(descriptor: types::Descriptor) -> Descriptor {
    let types::Descriptor { media_type, digest, size, annotations } = descriptor;
    Descriptor { media_type, digest, size, annotations: sorted(annotations) }
}

fn decode(image: Option<proto::Image>) -> Image {
    let image = image.unwrap_or_default();
    Image {
        name: image.name,
        labels: sorted(image.labels),
        target: decode_descriptor(image.target.unwrap_or_default()),
        created_at: Timestamp::default(),
        updated_at: Timestamp::default(),
    }
}

fn encode(image: Image) -> proto::Image {
    let Descriptor { media_type, digest, size, annotations } = image.target;
    proto::Image {
        name: image.name,
        labels: hashed(image.labels),
        target: Some(types::Descriptor { media_type, digest, size, annotations: hashed(annotations) }),
        created_at: Some(image.created_at),
        updated_at: Some(image.updated_at),
    }
}

/// Refuses an image without a name as the first thing.
fn require_name(image: &Image) -> Result<(), Status> {
    if image.name.is_empty() { Err(Status::invalid_argument("Image.Name required")) } else { Ok(()) }
}

#[tonic::async_trait]
impl proto::images_server::Images for ImagesService {
    async fn get(
        &self,
        request: Request<proto::GetImageRequest>,
    ) -> Result<Response<proto::GetImageResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let image = self.images.get(&context, &request.get_ref().name).await?;
        Ok(Response::new(proto::GetImageResponse { image: Some(encode(image)) }))
    }

    async fn list(
        &self,
        request: Request<proto::ListImagesRequest>,
    ) -> Result<Response<proto::ListImagesResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let images = self.images.list(&context, &request.get_ref().filters).await?;
        Ok(Response::new(proto::ListImagesResponse { images: images.into_iter().map(encode).collect() }))
    }

    async fn create(
        &self,
        request: Request<proto::CreateImageRequest>,
    ) -> Result<Response<proto::CreateImageResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let image = decode(request.into_inner().image);
        require_name(&image)?;
        let image = self.images.create(&context, image).await?;
        Ok(Response::new(proto::CreateImageResponse { image: Some(encode(image)) }))
    }

    async fn update(
        &self,
        request: Request<proto::UpdateImageRequest>,
    ) -> Result<Response<proto::UpdateImageResponse>, Status> {
        let context = RequestContext::of(&request)?;
        let request = request.into_inner();
        let image = decode(request.image);
        require_name(&image)?;
        let image = self.images.update(&context, image, paths(request.update_mask)).await?;
        Ok(Response::new(proto::UpdateImageResponse { image: Some(encode(image)) }))
    }

    async fn delete(&self, request: Request<proto::DeleteImageRequest>) -> Result<Response<()>, Status> {
        let context = RequestContext::of(&request)?;
        let proto::DeleteImageRequest { name, sync, target } = request.into_inner();
        self.images.delete(&context, &name, target.map(decode_descriptor).as_ref()).await?;
        if sync {
            self.collector.collect().await?;
        }
        Ok(Response::new(()))
    }
}
