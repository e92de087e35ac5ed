//! Images: names for content.

use orlop_proto::containerd::services::images::v1 as events;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;

use super::{Timestamp, label_field, namespaces, now, publish, stored, update_entry, update_label};
use crate::content::digest::Digest;
use crate::db::{Database, Query, Table, key, prefix};
use crate::events::Exchange;
use crate::filter::{Filter, text};
use crate::labels::{self, Labels, invalid};
use crate::request::RequestContext;

/// Images by namespace and name.
pub static IMAGES: Table<Image> = Table::new("images");

/// What an image's name stands for (OCI image specification, descriptor.md).
#[derive(Clone, PartialEq, Message)]
pub struct Descriptor {
    /// Media type of the content.
    #[prost(string, tag = "1")]
    pub media_type: String,
    /// Digest of the content.
    #[prost(string, tag = "2")]
    pub digest: String,
    /// Size of the content, in bytes.
    #[prost(int64, tag = "3")]
    pub size: i64,
    /// Annotations of the descriptor.
    #[prost(btree_map = "string, string", tag = "4")]
    pub annotations: Labels,
}

/// An image.
#[derive(Clone, PartialEq, Message)]
pub struct Image {
    /// Name within the namespace; any text.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: Labels,
    /// What the name stands for.
    #[prost(message, required, tag = "3")]
    pub target: Descriptor,
    /// When the name was made.
    #[prost(message, required, tag = "4")]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[prost(message, required, tag = "5")]
    pub updated_at: Timestamp,
}

impl Image {
    /// Checks the parts in containerd's order and words.
    fn validate(&self) -> Result<()> {
        if self.name.is_empty() {
            return Err(invalid("image name must not be empty"));
        }
        labels::validate(&self.labels, "image.Labels")?;
        if let Err(why) = Digest::check(&self.target.digest) {
            return Err(invalid(format!("Target.Digest {:?} invalid: {why}", self.target.digest)));
        }
        if self.target.size <= 0 {
            return Err(invalid("Target.Size must be greater than zero"));
        }
        if self.target.media_type.is_empty() {
            return Err(invalid("Target.MediaType must be set"));
        }
        Ok(())
    }

    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["name", ..] => text(&self.name),
            ["target", "digest", ..] => text(&self.target.digest),
            ["target", "mediatype", ..] => text(&self.target.media_type),
            ["labels", rest @ ..] => label_field(&self.labels, rest),
            ["annotations", rest @ ..] => label_field(&self.target.annotations, rest),
            _ => None,
        }
    }
}

/// The images; cheap to clone.
#[derive(Clone)]
pub struct Images {
    db: Database,
    exchange: Exchange,
    kept: Option<Kept>,
}

/// Where an image is kept under no name when another takes its last one.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// The namespace in which it is so.
    pub namespace: &'static str,
    /// What comes before its digest in the name that stands for none.
    pub prefix: &'static str,
}

impl Images {
    /// A handle on the stored images.
    pub fn new(db: Database, exchange: Exchange) -> Images {
        Images { db, exchange, kept: None }
    }

    /// The same where images are kept that lose their names to others.
    pub fn keeping(self, kept: Kept) -> Images {
        Images { kept: Some(kept), ..self }
    }

    /// The images of all namespaces, each with its namespace.
    pub async fn everywhere(&self) -> Result<Vec<(String, Image)>> {
        let all = self.db.read(|tx| tx.scan(&IMAGES, "")).await?;
        let named = |(key, image): (String, Image)| {
            key.split_once('\0').map(|(namespace, _)| (namespace.to_owned(), image))
        };
        Ok(all.into_iter().filter_map(named).collect())
    }

    /// The image of a name.
    pub async fn get(&self, context: &RequestContext, name: &str) -> Result<Image> {
        let (key, name) = (key(&[context.namespace.as_str(), name]), name.to_owned());
        self.db.read(move |tx| tx.get(&IMAGES, &key)?.ok_or_else(|| unknown(&name))).await
    }

    /// The images that the filters choose (`name`, `target.digest`, `target.mediatype`, `labels.KEY`,
    /// `annotations.KEY`), by name.
    pub async fn list(&self, context: &RequestContext, filters: &[String]) -> Result<Vec<Image>> {
        let filter = Filter::parse(filters)?;
        let own = prefix(&[context.namespace.as_str()]);
        let all = self.db.read(move |tx| tx.scan(&IMAGES, &own)).await?;
        let images = all.into_iter().map(|(_, image)| image);
        Ok(images.filter(|image| filter.matches(&|path: &[&str]| image.field(path))).collect())
    }

    /// Names content; the times are set here.
    pub async fn create(&self, context: &RequestContext, mut image: Image) -> Result<Image> {
        image.validate()?;
        image.labels = stored(image.labels);
        image.created_at = now();
        image.updated_at = image.created_at;
        let (namespace, record) = (context.namespace.clone(), image.clone());
        self.db
            .write(move |tx| {
                let key = key(&[namespace.as_str(), &record.name]);
                if tx.get(&IMAGES, &key)?.is_some() {
                    return Err(Error::new(Kind::AlreadyExists, "image", format!("{:?}", record.name)));
                }
                namespaces::ensure(tx, &namespace)?;
                tx.put(&IMAGES, &key, &record)
            })
            .await?;
        let labels = image.labels.clone().into_iter().collect();
        let event = events::ImageCreate { name: image.name.clone(), labels };
        publish(&self.exchange, &context.namespace, "/images/create", &event)?;
        Ok(image)
    }

    /// Replaces the parts that the field paths name (`labels`, `labels.KEY`, `target`, `annotations`,
    /// `annotations.KEY`), or everything but the time of creation. What the name stood for may be [`Kept`].
    pub async fn update(
        &self,
        context: &RequestContext,
        image: Image,
        fieldpaths: Vec<String>,
    ) -> Result<Image> {
        if image.name.is_empty() {
            return Err(invalid("image name is required for update"));
        }
        let namespace = context.namespace.clone();
        let kept = self.kept.filter(|kept| kept.namespace == namespace.as_str());
        let updated = self
            .db
            .write(move |tx| {
                let of = |name: &str| key(&[namespace.as_str(), name]);
                let key = of(&image.name);
                let mut updated = tx.get(&IMAGES, &key)?.ok_or_else(|| unknown(&image.name))?;
                let before = updated.clone();
                let created_at = updated.created_at;
                if fieldpaths.is_empty() {
                    updated = image;
                } else {
                    for path in &fieldpaths {
                        updated.take(&image, path)?;
                    }
                }
                updated.validate()?;
                updated.labels = stored(updated.labels);
                updated.created_at = created_at;
                updated.updated_at = now();
                tx.put(&IMAGES, &key, &updated)?;
                if let Some(kept) = kept.filter(|_| before.target.digest != updated.target.digest) {
                    let all = tx.scan(&IMAGES, &prefix(&[namespace.as_str()]))?;
                    if !all.iter().any(|(_, other)| other.target.digest == before.target.digest) {
                        let name = format!("{}{}", kept.prefix, before.target.digest);
                        let nameless = Image { name, labels: Labels::new(), ..before };
                        tx.put(&IMAGES, &of(&nameless.name), &nameless)?;
                    }
                }
                Ok(updated)
            })
            .await?;
        let labels = updated.labels.clone().into_iter().collect();
        let event = events::ImageUpdate { name: updated.name.clone(), labels };
        publish(&self.exchange, &context.namespace, "/images/update", &event)?;
        Ok(updated)
    }

    /// Removes a name, or refuses when a target is given and the name stands for another.
    pub async fn delete(
        &self,
        context: &RequestContext,
        name: &str,
        target: Option<&Descriptor>,
    ) -> Result<()> {
        let (namespace, owned) = (context.namespace.clone(), name.to_owned());
        let wanted = target.map(|target| target.digest.clone());
        self.db
            .free(move |tx| {
                let key = key(&[namespace.as_str(), &owned]);
                let image = tx.get(&IMAGES, &key)?.ok_or_else(|| unknown(&owned))?;
                if wanted.as_ref().is_some_and(|wanted| *wanted != image.target.digest) {
                    return Err(Error::new(
                        Kind::NotFound,
                        "image",
                        format!("{owned:?} has different target"),
                    ));
                }
                tx.remove(&IMAGES, &key)?;
                Ok(())
            })
            .await?;
        let event = events::ImageDelete { name: name.to_owned() };
        publish(&self.exchange, &context.namespace, "/images/delete", &event)
    }
}

impl Image {
    /// Takes over from another image what a field path names.
    fn take(&mut self, from: &Image, path: &str) -> Result<()> {
        if update_label(path, &mut self.labels, &from.labels)
            || update_entry(path, "annotations.", &mut self.target.annotations, &from.target.annotations)
        {
            return Ok(());
        }
        match path {
            "labels" => self.labels.clone_from(&from.labels),
            "target" => self.target.clone_from(&from.target),
            "annotations" => self.target.annotations.clone_from(&from.target.annotations),
            _ => return Err(invalid(format!("cannot update {path:?} field on image {:?}", self.name))),
        }
        Ok(())
    }
}

fn unknown(name: &str) -> Error {
    Error::new(Kind::NotFound, "image", format!("{name:?}"))
}
