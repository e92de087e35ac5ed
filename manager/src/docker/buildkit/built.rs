//! What buildkitd exported to the store under names is named by the engine too: there is an event for each, and an image that had no
//! name so far is not listed without one any more.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;

use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};
use crate::docker::image::familiar;
use crate::image::manifest;
use crate::store::images::{Descriptor, Image};

/// Where a `Solve` says what an image is.
const DESCRIPTOR: &str = "containerimage.descriptor";

/// The answer to a `Solve` (`SolveResponse`).
#[derive(Clone, PartialEq, Message)]
pub struct Solved {
    /// What the exporters say.
    #[prost(btree_map = "string, string", tag = "1")]
    pub said: BTreeMap<String, String>,
}

impl Solved {
    /// The image that was exported.
    fn target(&self) -> Option<Descriptor> {
        let text = STANDARD.decode(self.said.get(DESCRIPTOR)?).ok()?;
        let said: manifest::Descriptor = serde_json::from_slice(&text).ok()?;
        Some(Descriptor {
            media_type: said.media_type,
            digest: said.digest.to_string(),
            size: i64::try_from(said.size).ok()?,
            annotations: said.annotations,
        })
    }
}

impl Engine {
    /// Gives an image that was built its complete names; its ID.
    ///
    /// # Errors
    ///
    /// 500 where buildkitd made none.
    pub(super) async fn name_built(&self, solved: &Solved, names: &[String]) -> Result<String> {
        let target = solved.target().ok_or_else(|| Failure::internal("missing image id"))?;
        let image = Image { target: target.clone(), ..Image::default() };
        let id = self.resolve(&image).await?.id;
        for name in names {
            self.name_image(name, &target).await?;
            self.image_event("tag", &id, &familiar(name));
        }
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_what_buildkitd_says() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let text = format!(
            "{{\"mediaType\":\"m\",\"digest\":\"{digest}\",\"size\":7,\"annotations\":{{\"k\":\"v\"}}}}"
        );
        let said = |text: &str| Solved { said: [(DESCRIPTOR.to_owned(), STANDARD.encode(text))].into() };
        let target = said(&text).target().unwrap();
        assert_eq!((target.media_type.as_str(), target.digest, target.size), ("m", digest, 7));
        assert_eq!(target.annotations["k"], "v");
        assert_eq!((said("x").target(), Solved::default().target()), (None, None));
    }
}
