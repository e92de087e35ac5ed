//! The snapshotter `erofs`: each unpacked layer is one EROFS image, put on top of each other by overlayfs.
//!
//! `ID/layer.erofs` holds a layer that was unpacked, `ID/fs` one that was written through a mount, `ID/work` is the
//! kernel's scratch space while the layer is active. Images are mounted below the state directory for as long as a
//! snapshot on top of them is active or viewed, so that whoever mounts the overlay needs to know nothing of them. Where
//! the kernel lacks EROFS, or this is a user namespace, which may not mount it, all layers are directories.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use orlop_proto::error::{Context, Result};

use super::image_mounts::{self, ImageMounts};
use super::overlay::{Overlay, is_user_namespace};
use super::snapshotter::{Layer, LayerMounts, Snapshotter, UnpackPlace, Usage};
use super::usage::usage;
use crate::image::erofs::root_owner;

/// Bytes per block in stat(2).
const BLOCK: u64 = 512;

/// The snapshotter `erofs`.
pub struct Erofs {
    overlay: Overlay,
    mounts: Arc<ImageMounts>,
    has_images: bool,
}

impl Erofs {
    /// Opens the directory of layers, which is made if need be, with the mounts in `state`.
    pub fn open(root: &Path, state: &Path) -> Result<Erofs> {
        let has_images = !is_user_namespace() && image_mounts::is_supported();
        Ok(Erofs { overlay: Overlay::open(root)?, mounts: ImageMounts::new(state), has_images })
    }

    fn image(&self, id: u64) -> PathBuf {
        self.overlay.directory().path(id).join("layer.erofs")
    }

    /// The image of a layer, where it has one.
    fn existing_image(&self, id: u64) -> Option<(u64, PathBuf)> {
        Some((id, self.image(id))).filter(|(_, path)| path.exists())
    }
}

impl Snapshotter for Erofs {
    fn name(&self) -> &'static str {
        "erofs"
    }

    fn root(&self) -> &Path {
        self.overlay.root()
    }

    fn keeps_limits(&self) -> bool {
        self.overlay.keeps_limits()
    }

    fn create(&self, layer: &Layer) -> Result<()> {
        let owner = |parent: &u64| {
            let upper = self.overlay.upper(*parent);
            let found = match fs::metadata(&upper) {
                Ok(found) => Ok((found.uid(), found.gid())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    File::open(self.image(*parent)).and_then(|image| root_owner(&image))
                }
                Err(error) => Err(error),
            };
            found.context("inspect", upper.display().to_string())
        };
        self.overlay.make(layer, layer.parents.first().map(owner).transpose()?)
    }

    fn mounts(&self, layer: &Layer) -> Result<LayerMounts> {
        let mut lower = Vec::new();
        let mut images = Vec::new();
        if let Some(own) = self.existing_image(layer.id) {
            lower.push(self.mounts.path(layer.id));
            images.push(own);
        }
        for parent in &layer.parents {
            let image = self.existing_image(*parent);
            let upper = self.overlay.upper(*parent);
            if image.is_none() || upper.exists() {
                lower.push(upper);
            }
            if let Some(image) = image {
                lower.push(self.mounts.path(*parent));
                images.push(image);
            }
        }
        let hold = self.mounts.hold(&images)?;
        Ok(LayerMounts { mounts: self.overlay.mounts_over(layer, &lower), hold: Some(Box::new(hold)) })
    }

    fn unpack_place(&self, id: u64) -> Option<UnpackPlace> {
        match self.has_images {
            true => Some(UnpackPlace::Image(self.image(id))),
            false => self.overlay.unpack_place(id),
        }
    }

    fn roots(&self, ids: &[u64]) -> Result<Vec<OwnedFd>> {
        let mut roots = Vec::new();
        for id in ids {
            let image = self.existing_image(*id);
            if image.is_none() || self.overlay.upper(*id).exists() {
                roots.extend(self.overlay.roots(&[*id])?);
            }
            if let Some((_, image)) = image {
                roots.push(image_mounts::root(&image)?);
            }
        }
        Ok(roots)
    }

    fn usage(&self, id: u64) -> Result<Usage> {
        let upper = self.overlay.upper(id);
        let mut used = if upper.exists() { usage(&upper)? } else { Usage::default() };
        if let Some((_, image)) = self.existing_image(id) {
            let found = image.metadata().context("inspect", image.display().to_string())?;
            used.size += found.blocks() * BLOCK;
            used.inodes += 1;
        }
        Ok(used)
    }

    fn commit(&self, id: u64) -> Result<Usage> {
        if self.existing_image(id).is_some() {
            // Nothing was written through a mount: the image is all there is.
            for path in [self.overlay.upper(id), self.overlay.work(id)] {
                match fs::remove_dir(&path) {
                    Err(error)
                        if !matches!(
                            error.kind(),
                            io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                        ) =>
                    {
                        return Err(error).context("remove", path.display().to_string());
                    }
                    _ => {}
                }
            }
        }
        self.usage(id)
    }

    fn files(&self, id: u64) -> Option<PathBuf> {
        Some(match self.existing_image(id) {
            Some(_) => self.overlay.directory().path(id),
            None => self.overlay.upper(id),
        })
    }

    fn image(&self, id: u64) -> Option<PathBuf> {
        self.existing_image(id).map(|(_, path)| path)
    }

    fn shown(&self, id: u64) -> Option<PathBuf> {
        Some(self.existing_image(id).map_or_else(|| self.overlay.upper(id), |_| self.mounts.path(id)))
    }

    fn exchange(&self, one: u64, other: u64) -> Result<()> {
        self.overlay.exchange(one, other)?;
        // Whoever holds a layer's mounts shall find in them what the layer has now.
        [one, other]
            .into_iter()
            .filter_map(|id| self.existing_image(id))
            .try_for_each(|(id, image)| self.mounts.renew(id, &image))
    }

    fn discard(&self, id: u64) -> Result<()> {
        self.overlay.discard(id)
    }

    fn clean(&self) -> Result<()> {
        self.overlay.clean()
    }

    fn settle(&self) -> Result<()> {
        self.mounts.settle()
    }

    fn layers(&self) -> Result<Vec<u64>> {
        self.overlay.layers()
    }
}
