//! `orlopctl images history`.

use orlop_proto::error::Result;
use serde_json::{Value, json};

use super::Context;
use crate::image;
use crate::output::{self, Gap, Table};
use crate::platform::Platform;

/// How much of a command is shown in a table.
const SHOWN: usize = 60;

/// Prints what the layers of an image were made by, the last one first.
pub async fn history(context: &Context<'_>, platform: Option<&str>, name: &str) -> Result<()> {
    let record = image::record(context.client, name).await?;
    let target = image::target(&record)?;
    let found = image::resolve(context.client, &target, &Platform::wanted(platform)?).await?;
    let config: Value = image::document(context.client, &found.manifest.config.digest).await?;
    let layers: Vec<(String, i64)> =
        found.manifest.layers.iter().map(|layer| (layer.digest.clone(), layer.size)).collect();
    let rows = rows(&config, &layers);
    if context.json() {
        return output::json(&rows.into());
    }
    let mut table = Table::new(Gap::Spaces(1), &["CREATED", "CREATED BY", "SIZE", "LAYER", "COMMENT"]);
    for row in rows {
        let text = |key: &str| row[key].as_str().filter(|text| !text.is_empty()).unwrap_or("-").to_owned();
        let by = text("created_by").replace(['\n', '\t'], " ");
        let by = match by.char_indices().nth(SHOWN) {
            Some((end, _)) => format!("{}…", &by[..end]),
            None => by,
        };
        let size = output::binary_size(row["size"].as_i64().unwrap_or_default());
        table.closed([text("created"), by, size, text("layer"), text("comment")]);
    }
    table.print()
}

/// Entries of the configuration with the layers that they made; layers that have none come by themselves.
fn rows(config: &Value, layers: &[(String, i64)]) -> Vec<Value> {
    let mut layers = layers.iter();
    let row = |entry: &Value, layer: Option<&(String, i64)>| {
        json!({
            "created": entry["created"],
            "created_by": entry["created_by"],
            "comment": entry["comment"],
            "layer": layer.map(|(digest, _)| digest),
            "size": layer.map_or(0, |(_, size)| *size),
        })
    };
    let mut rows = Vec::new();
    for entry in config["history"].as_array().into_iter().flatten() {
        let layer = if entry["empty_layer"] == true { None } else { layers.next() };
        rows.push(row(entry, layer));
    }
    rows.extend(layers.map(|layer| row(&Value::Null, Some(layer))));
    rows.reverse();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_has_a_row() {
        let layers = [("sha256:a".to_owned(), 1), ("sha256:b".to_owned(), 2), ("sha256:c".to_owned(), 3)];
        let config = json!({"history": [
            {"created_by": "one"}, {"created_by": "two", "empty_layer": true}, {"created_by": "three"},
        ]});
        let found = rows(&config, &layers);
        let by: Vec<_> =
            found.iter().map(|row| (row["created_by"].as_str(), row["layer"].as_str())).collect();
        assert_eq!(
            by,
            [
                (None, Some("sha256:c")),
                (Some("three"), Some("sha256:b")),
                (Some("two"), None),
                (Some("one"), Some("sha256:a")),
            ]
        );
        assert_eq!(rows(&json!({}), &layers).len(), 3);
    }
}
