//! A layer as the EROFS image that it is kept as, for images whose layers are such images.

use std::io::Read;

use orlop_proto::error::{Context, Result};

use super::manifest::Descriptor;
use super::{ImageService, media, unique};
use crate::db::blocking;
use crate::labels::Labels;
use crate::request::RequestContext;

/// How many bytes are copied at a time.
const PIECE: usize = 1 << 20;

impl ImageService {
    /// Puts the image that a committed snapshot's own layer is kept as into the content store.
    ///
    /// # Errors
    ///
    /// `NotFound` for an unknown snapshot, `FailedPrecondition` for one that is kept as files.
    pub async fn store_layer_image(
        &self,
        context: &RequestContext,
        snapshotter: &str,
        name: &str,
    ) -> Result<Descriptor> {
        let mut file = self.shared.snapshots.image(context, snapshotter, name).await?;
        let reference = format!("erofs-{}", unique());
        let mut writer = self.shared.content.writer(context, &reference, 0, None).await?;
        let shown = name.to_owned();
        let copied = async {
            loop {
                let shown = shown.clone();
                let (read, piece) = blocking(move || {
                    let mut piece = Vec::with_capacity(PIECE);
                    (&mut file).take(PIECE as u64).read_to_end(&mut piece).context("read layer", shown)?;
                    Ok((file, piece))
                })
                .await?;
                file = read;
                if piece.is_empty() {
                    return Ok(());
                }
                writer.write(piece.into()).await?;
            }
        };
        let committed = match copied.await {
            Ok(()) => self.commit_diff(context, writer, Labels::new()).await,
            Err(error) => Err(error),
        };
        match committed {
            Ok((digest, size)) => Ok(Descriptor { digest, size, ..Descriptor::of(media::EROFS_LAYER, b"") }),
            Err(error) => {
                // Ignoring: the write may be gone already, and the first error says what matters.
                let _ = self.shared.content.abort(context, &reference).await;
                Err(error)
            }
        }
    }
}
