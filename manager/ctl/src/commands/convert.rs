//! `orlopctl images convert`: the same image with other media types or other compression.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use orlop_proto::containerd::services::images::v1::{
    CreateImageRequest, Image as Record, UpdateImageRequest,
};
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::orlop::admin::v1::StoreLayerImageRequest;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tonic::Code;

use super::Context;
use crate::blob::{self, transform, write_document};
use crate::cli::images::Convert;
use crate::client::Client;
use crate::image::{self, Descriptor, Index};
use crate::media::{self, Compression};
use crate::output;
use crate::platform::Platform;
use crate::unpack;

/// Label of a layer: the digest of what it decompresses to.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// The snapshotter that keeps layers as images.
const EROFS: &str = "erofs";
/// What labels that keep content start with.
const KEEP: &str = "containerd.io/gc.ref.content";

/// What becomes of an image.
struct Plan {
    compression: Option<Compression>,
    /// Whether layers become images of a file system.
    to_erofs: bool,
    to_oci: bool,
    /// The platforms that stay; all without any.
    platforms: Vec<Platform>,
}

/// Makes the other image and prints its digest.
pub async fn convert(context: &Context<'_>, options: &Convert) -> Result<()> {
    let compression = match (options.uncompress, options.gzip, options.zstd) {
        (true, ..) => Some(Compression::None),
        (_, true, _) => Some(Compression::Gzip),
        (.., true) => Some(Compression::Zstd),
        _ => None,
    };
    let platforms = match (options.all_platforms, options.platform.as_slice()) {
        (true, _) => Vec::new(),
        (false, []) => vec![Platform::host()],
        (false, wanted) => wanted.iter().map(|text| text.parse()).collect::<Result<_>>()?,
    };
    let (to_erofs, to_oci) = (options.erofs, options.oci);
    let plan = Plan { compression, to_erofs, to_oci, platforms };
    let target = context
        .client
        .with_lease(async |client| {
            let record = image::record(client, &options.source).await?;
            let target = plan.convert(client, &image::target(&record)?).await?;
            store(client, Record { target: Some((&target).into()), ..record }, &options.target).await?;
            Ok(target)
        })
        .await?;
    output::print(&format!("{}\n", target.digest))
}

/// Gives an image a name, whoever has it.
pub async fn store(client: &Client, record: Record, name: &str) -> Result<()> {
    let mut images = client.images();
    let image = Some(Record { name: name.to_owned(), ..record });
    match images.create(CreateImageRequest { image: image.clone(), ..Default::default() }).await {
        Err(status) if status.code() == Code::AlreadyExists => {
            images.update(UpdateImageRequest { image, ..Default::default() }).await?;
            Ok(())
        }
        created => Ok(created.map(drop)?),
    }
}

impl Plan {
    async fn convert(&self, client: &Client, descriptor: &Descriptor) -> Result<Descriptor> {
        match descriptor.is_index() {
            true => self.index(client, descriptor).await,
            false => self.manifest(client, descriptor).await,
        }
    }

    async fn index(&self, client: &Client, descriptor: &Descriptor) -> Result<Descriptor> {
        let mut document: Value = image::document(client, &descriptor.digest).await?;
        let index: Index = parse(&document, descriptor)?;
        let listed = document["manifests"].as_array().cloned().unwrap_or_default();
        let mut manifests = Vec::new();
        for (listed, child) in listed.into_iter().zip(index.manifests) {
            let is_wanted = child.platform.as_ref().is_none_or(|found| {
                self.platforms.is_empty() || self.platforms.iter().any(|wanted| wanted.accepts(found))
            });
            if is_wanted {
                let made = Box::pin(self.convert(client, &child)).await?;
                manifests.push(self.described(listed, &child, &made));
            }
        }
        if manifests.is_empty() {
            let wanted: Vec<String> = self.platforms.iter().map(Platform::to_string).collect();
            let why = format!("no manifest for platform {}", wanted.join(", "));
            return Err(Error::because(Kind::NotFound, "convert", &descriptor.digest, why));
        }
        let digests: Vec<String> = manifests.iter().map(digest_of).collect();
        let keep = digests.iter().enumerate().map(|(n, digest)| (format!("{KEEP}.m.{n}"), digest.clone()));
        document["manifests"] = manifests.into();
        self.write(client, document, descriptor, keep.collect()).await
    }

    async fn manifest(&self, client: &Client, descriptor: &Descriptor) -> Result<Descriptor> {
        let mut document: Value = image::document(client, &descriptor.digest).await?;
        let manifest: image::Manifest = parse(&document, descriptor)?;
        let (config, images) = match self.to_erofs {
            true => erofs(client, &manifest).await?,
            false => (manifest.config.clone(), Vec::new()),
        };
        let mut images = images.into_iter();
        let listed = document["layers"].as_array().cloned().unwrap_or_default();
        let mut layers = Vec::new();
        for (listed, layer) in listed.into_iter().zip(&manifest.layers) {
            let made = match (images.next(), self.compression) {
                (Some(image), _) => image,
                (None, Some(wanted)) => convert_layer(client, layer, wanted).await?,
                (None, None) => layer.clone(),
            };
            layers.push(self.described(listed, layer, &made));
        }
        let config = self.described(document["config"].take(), &manifest.config, &config);
        let mut keep = HashMap::from([(format!("{KEEP}.config"), digest_of(&config))]);
        keep.extend(layers.iter().enumerate().map(|(n, layer)| (format!("{KEEP}.l.{n}"), digest_of(layer))));
        document["config"] = config;
        document["layers"] = layers.into();
        self.write(client, document, descriptor, keep).await
    }

    /// A descriptor as the document has it, of what was made of its content.
    fn described(&self, mut listed: Value, old: &Descriptor, made: &Descriptor) -> Value {
        let media_type = if self.to_oci { media::oci(&made.media_type) } else { made.media_type.clone() };
        if (&old.digest, &old.media_type) != (&made.digest, &media_type) {
            listed["mediaType"] = media_type.into();
            listed["digest"] = made.digest.clone().into();
            listed["size"] = made.size.into();
        }
        listed
    }

    /// Stores a document with its labels; what differs in nothing keeps its digest.
    async fn write(
        &self,
        client: &Client,
        mut document: Value,
        old: &Descriptor,
        keep: HashMap<String, String>,
    ) -> Result<Descriptor> {
        let mut like = old.clone();
        if self.to_oci {
            like.media_type = media::oci(&old.media_type);
            document["mediaType"] = like.media_type.clone().into();
        }
        let before: Value = image::document(client, &old.digest).await?;
        if before == document && like.media_type == old.media_type {
            return Ok(old.clone());
        }
        let mut labels = blob::labels(client, &old.digest).await?;
        labels.retain(|key, _| !key.starts_with(KEEP));
        labels.extend(keep);
        write_document(client, &document, labels, &like).await
    }
}

/// The images that the layers are kept as once they are unpacked, and a configuration that has them for its content.
async fn erofs(client: &Client, manifest: &image::Manifest) -> Result<(Descriptor, Vec<Descriptor>)> {
    let old = &manifest.config;
    let mut document: Value = image::document(client, &old.digest).await?;
    let unpacked =
        image::Image { path: Vec::new(), manifest: manifest.clone(), config: parse(&document, old)? };
    unpack::unpack(client, EROFS, &unpacked).await?;
    let mut images = Vec::new();
    for name in image::chain_ids(&unpacked.config.rootfs.diff_ids) {
        let request = StoreLayerImageRequest { snapshotter: EROFS.to_owned(), name };
        let stored = client.admin().store_layer_image(request).await?.into_inner().descriptor;
        images.push(Descriptor::from(&stored.unwrap_or_default()));
    }
    document["rootfs"]["diff_ids"] = images.iter().map(|image| image.digest.clone()).collect();
    let config = write_document(client, &document, HashMap::new(), old).await?;
    Ok((config, images))
}

/// The layer with another compression. Its content, and so its diff ID, stays.
async fn convert_layer(client: &Client, layer: &Descriptor, wanted: Compression) -> Result<Descriptor> {
    if media::compression(&layer.media_type).is_none_or(|has| has == wanted) {
        return Ok(layer.clone());
    }
    let mut labels = blob::labels(client, &layer.digest).await?;
    labels.retain(|key, _| key != UNCOMPRESSED);
    let with_diff_id = move |diff_id: &String| {
        if wanted != Compression::None {
            labels.insert(UNCOMPRESSED.to_owned(), diff_id.clone());
        }
        labels
    };
    let recompress = move |input: &mut dyn Read, output: &mut dyn Write| recompress(input, output, wanted);
    let (digest, size, _) = transform(client, &layer.digest, recompress, with_diff_id).await?;
    let media_type = media::compressed(&layer.media_type, wanted);
    Ok(Descriptor { media_type, digest, size, ..layer.clone() })
}

/// Decompresses what is compressed in whatever way, and compresses it in the wanted one; returns the digest of what is
/// within. The same input gives the same output.
fn recompress(input: &mut dyn Read, output: &mut dyn Write, wanted: Compression) -> io::Result<String> {
    let mut plain = media::decompressed(input)?;
    match wanted {
        Compression::None => hashed(&mut plain, output),
        Compression::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(output, flate2::Compression::default());
            let diff_id = hashed(&mut plain, &mut gzip)?;
            gzip.finish()?;
            Ok(diff_id)
        }
        Compression::Zstd => {
            let mut zstd = zstd::stream::write::Encoder::new(output, zstd::DEFAULT_COMPRESSION_LEVEL)?;
            let diff_id = hashed(&mut plain, &mut zstd)?;
            zstd.finish()?;
            Ok(diff_id)
        }
    }
}

fn hashed(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 << 10];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(blob::named(&hash.finalize())),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            length => length?,
        };
        hash.update(&buffer[..length]);
        to.write_all(&buffer[..length])?;
    }
}

fn digest_of(descriptor: &Value) -> String {
    descriptor["digest"].as_str().unwrap_or_default().to_owned()
}

fn parse<T: for<'de> serde::Deserialize<'de>>(document: &Value, descriptor: &Descriptor) -> Result<T> {
    T::deserialize(document)
        .map_err(|error| Error::because(Kind::DataLoss, "parse", &descriptor.digest, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_compression_becomes_every_other() {
        let plain: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
        let once = |input: &[u8], wanted| {
            let mut output = Vec::new();
            let diff_id = recompress(&mut &input[..], &mut output, wanted).unwrap();
            (output, diff_id)
        };
        let all = [Compression::None, Compression::Gzip, Compression::Zstd];
        let diff_id = blob::named(&Sha256::digest(&plain));
        for from in all {
            let (packed, _) = once(&plain, from);
            for to in all {
                let (made, found) = once(&packed, to);
                assert_eq!(found, diff_id);
                assert_eq!(made, once(&plain, to).0, "{from:?} {to:?}");
            }
            if from != Compression::None {
                let cut = &packed[..packed.len() / 2];
                assert!(recompress(&mut &cut[..], &mut Vec::new(), Compression::None).is_err());
            }
        }
    }
}
