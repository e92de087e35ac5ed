//! The `filters` parameter: a JSON object of field → values, in either of the two forms that clients send.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::Value;

use super::failure::{Failure, Result};
use super::moment;

/// Fields and the values wanted of each; no field wants everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    /// Reads `{"label":["a=b"]}`, or `{"label":{"a=b":true}}` of clients before API 1.22.
    ///
    /// # Errors
    ///
    /// 400 for anything else, and for a field that is not among the known ones.
    pub fn parse(text: Option<&str>, known: &[&str]) -> Result<Filters> {
        let text = text.unwrap_or_default();
        if text.is_empty() {
            return Ok(Filters::default());
        }
        let wrong = || Failure::invalid(format!("invalid filter: {text}"));
        let fields: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|_| wrong())?;
        let mut filters = BTreeMap::new();
        for (field, values) in fields {
            if !known.contains(&field.as_str()) {
                return Err(Failure::invalid(format!("invalid filter '{field}'")));
            }
            let values: Vec<String> = match values {
                Value::Array(list) => list
                    .iter()
                    .map(|value| value.as_str().map(str::to_owned))
                    .collect::<Option<_>>()
                    .ok_or_else(wrong)?,
                Value::Object(set) => set
                    .into_iter()
                    .filter(|(_, held)| held != &Value::Bool(false))
                    .map(|(key, _)| key)
                    .collect(),
                _ => return Err(wrong()),
            };
            filters.insert(field, values);
        }
        Ok(Filters(filters))
    }

    /// The values wanted of a field.
    pub fn values(&self, field: &str) -> &[String] {
        self.0.get(field).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether a field is not filtered by, or one of its values is accepted.
    pub fn accepts(&self, field: &str, is_match: impl Fn(&str) -> bool) -> bool {
        let values = self.values(field);
        values.is_empty() || values.iter().any(|value| is_match(value))
    }

    /// Whether labels have everything that a field (`label`) wants: each `KEY` or `KEY=VALUE`.
    pub fn accepts_labels(&self, field: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(field).iter().all(|wanted| has_label(labels, wanted))
    }

    /// Whether labels have nothing of what a field (`label!`) refuses.
    pub fn refuses_no_label(&self, field: &str, labels: &BTreeMap<String, String>) -> bool {
        !self.values(field).iter().any(|refused| has_label(labels, refused))
    }

    /// The moment before which what is chosen was made (`until`), where it is given.
    ///
    /// # Errors
    ///
    /// 400 for what is no moment, and for more than one.
    pub fn until(&self) -> Result<Option<SystemTime>> {
        match self.values("until") {
            [] => Ok(None),
            [text] => moment::of_filter(text, SystemTime::now()).map(Some),
            _ => Err(Failure::invalid("more than one until filter specified")),
        }
    }

    /// The truth value of a field, where it is given.
    ///
    /// # Errors
    ///
    /// 400 for what is no truth value.
    pub fn flag(&self, field: &str) -> Result<Option<bool>> {
        match self.values(field) {
            [] => Ok(None),
            [value] if ["1", "true", "True", "TRUE", "t"].contains(&value.as_str()) => Ok(Some(true)),
            [value] if ["0", "false", "False", "FALSE", "f"].contains(&value.as_str()) => Ok(Some(false)),
            values => Err(Failure::invalid(format!("invalid filter '{field}={values:?}'"))),
        }
    }
}

fn has_label(labels: &BTreeMap<String, String>, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|held| held == value),
        None => labels.contains_key(wanted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_mean_the_same() {
        let new = Filters::parse(Some(r#"{"label":["a=b"]}"#), &["label"]).unwrap();
        let old = Filters::parse(Some(r#"{"label":{"a=b":true,"c":false}}"#), &["label"]).unwrap();
        assert_eq!(new, old);
        assert_eq!(new.values("label"), ["a=b"]);
        assert!(Filters::parse(None, &[]).unwrap().accepts("any", |_| false));
    }

    #[test]
    fn unknown_fields_and_forms_are_refused() {
        for text in [r#"{"x":["a"]}"#, "x", "[]", r#"{"label":1}"#, r#"{"label":[1]}"#] {
            let failure = Filters::parse(Some(text), &["label"]).unwrap_err();
            assert_eq!(failure.status, 400, "{text}");
        }
    }

    #[test]
    fn all_labels_must_be_there() {
        let filters =
            Filters::parse(Some(r#"{"label":["a=b","c"],"label!":["d"]}"#), &["label", "label!"]).unwrap();
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        assert!(filters.accepts_labels("label", &labels(&[("a", "b"), ("c", "x")])));
        assert!(!filters.accepts_labels("label", &labels(&[("a", "b")])));
        assert!(!filters.refuses_no_label("label!", &labels(&[("d", "")])));
    }

    #[test]
    fn a_flag_has_two_values() {
        let filters = Filters::parse(Some(r#"{"dangling":["true"]}"#), &["dangling"]).unwrap();
        assert_eq!(filters.flag("dangling").unwrap(), Some(true));
        assert_eq!(filters.flag("other").unwrap(), None);
        let wrong = Filters::parse(Some(r#"{"dangling":["x"]}"#), &["dangling"]).unwrap();
        assert!(wrong.flag("dangling").is_err());
    }
}
