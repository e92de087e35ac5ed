//! `--cache-from`: steps of an image that was made elsewhere, known by its history.

use serde_json::{Value, json};

use crate::docker::image::Found;

/// What a source's history and layers make of a base and one more step: the document, and how many layers it has.
///
/// The source must begin with the base's history and layers, and its next step must be the one that is wanted.
pub fn taken(source: &Found, base: &Found, said: &str) -> Option<(Value, usize)> {
    let history = |found: &Found| found.document["history"].as_array().cloned().unwrap_or_default();
    let (own, steps) = (history(base), history(source));
    let same = |left: &Value, right: &Value| {
        left["created_by"] == right["created_by"] && is_empty(left) == is_empty(right)
    };
    let begins = steps.len() > own.len() && own.iter().zip(&steps).all(|(left, right)| same(left, right));
    if !begins || steps[own.len()]["created_by"].as_str() != Some(said) {
        return None;
    }
    let steps = &steps[..=own.len()];
    let layers = steps.iter().filter(|step| !is_empty(step)).count();
    let (below, all) = (base.diff_ids(), source.diff_ids());
    // A history that tells of other layers than there are is no history.
    if layers > all.len() || layers > source.manifest.layers.len() || !all.starts_with(&below) {
        return None;
    }
    let mut document = source.document.clone();
    document["history"] = json!(steps);
    document["rootfs"] = json!({ "type": "layers", "diff_ids": &all[..layers] });
    document["created"] = steps.last().map(|step| step["created"].clone()).unwrap_or_default();
    Some((document, layers))
}

fn is_empty(step: &Value) -> bool {
    step["empty_layer"].as_bool().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::docker::build::base::scratch;
    use crate::docker::image::platform;
    use crate::image::manifest::Descriptor;

    fn image(steps: &[(&str, bool)]) -> Found {
        let mut found = scratch(&platform());
        let steps = steps.iter().map(|(said, empty)| json!({ "created_by": said, "empty_layer": empty }));
        found.document["history"] = steps.collect();
        let layers =
            found.document["history"].as_array().unwrap().iter().filter(|step| !is_empty(step)).count();
        found.document["rootfs"]["diff_ids"] =
            (0..layers).map(|number| json!(format!("sha256:{number}"))).collect();
        found.manifest.layers = (0..layers).map(|_| Descriptor::of("", b"")).collect();
        found
    }

    #[test]
    fn a_step_is_taken_where_the_history_is_the_same() {
        let source = image(&[("base", false), ("env", true), ("run", false), ("more", false)]);
        let base = image(&[("base", false)]);
        let (document, layers) = taken(&source, &base, "env").unwrap();
        assert_eq!((layers, document["history"].as_array().unwrap().len()), (1, 2));
        assert!(taken(&source, &base, "run").is_none());
        let next = image(&[("base", false), ("env", true)]);
        let (document, layers) = taken(&source, &next, "run").unwrap();
        assert_eq!((layers, document["rootfs"]["diff_ids"].as_array().unwrap().len()), (2, 2));
        assert!(taken(&source, &image(&[("other", false)]), "env").is_none());
        assert!(taken(&source, &source, "x").is_none());
    }
}
