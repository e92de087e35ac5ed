//! What buildkitd keeps for builds to come: `/build/prune`, and its part of `/system/df`.

use std::time::SystemTime;

use orlop_proto::contract::time::rfc3339_nano;
use prost::Message;
use prost_types::Timestamp;
use serde_json::{Value, json};

use super::call::{Error, call};
use super::{configured, connect};
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};
use crate::docker::filters::Filters;
use crate::docker::message::Query;
use crate::docker::moment::of_filter;

/// The call that removes.
const PRUNE: &str = "/moby.buildkit.v1.Control/Prune";
/// The call that lists.
const USAGE: &str = "/moby.buildkit.v1.Control/DiskUsage";
/// The fields of a record that can be filtered by, as buildkitd has them.
const FIELDS: [&str; 7] = ["description", "id", "inuse", "parent", "private", "shared", "type"];
/// What else can be filtered by; labels are those of other objects that are pruned with these.
const FILTERS: [&str; 11] = [
    "description",
    "id",
    "inuse",
    "label",
    "label!",
    "parent",
    "private",
    "shared",
    "type",
    "until",
    "unused-for",
];

/// What is to go (`PruneRequest`).
#[derive(Clone, PartialEq, Message)]
struct Prune {
    #[prost(string, repeated, tag = "1")]
    filter: Vec<String>,
    #[prost(bool, tag = "2")]
    all: bool,
    /// In nanoseconds, since its last use.
    #[prost(int64, tag = "3")]
    keep_duration: i64,
    #[prost(int64, tag = "4")]
    reserved_space: i64,
    #[prost(int64, tag = "5")]
    max_used_space: i64,
    #[prost(int64, tag = "6")]
    min_free_space: i64,
}

/// All records (`DiskUsageRequest`).
#[derive(Clone, PartialEq, Message)]
struct All {}

/// `DiskUsageResponse`.
#[derive(Clone, PartialEq, Message)]
struct Usage {
    #[prost(message, repeated, tag = "1")]
    records: Vec<Record>,
}

/// Something that is kept (`UsageRecord`).
#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(bool, tag = "3")]
    in_use: bool,
    #[prost(int64, tag = "4")]
    size: i64,
    #[prost(message, optional, tag = "6")]
    created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "7")]
    last_used_at: Option<Timestamp>,
    #[prost(int64, tag = "8")]
    usage_count: i64,
    #[prost(string, tag = "9")]
    description: String,
    #[prost(string, tag = "10")]
    record_type: String,
    #[prost(bool, tag = "11")]
    shared: bool,
    #[prost(string, repeated, tag = "12")]
    parents: Vec<String>,
}

impl Record {
    fn shown(&self) -> Value {
        let time = |time: &Timestamp| SystemTime::try_from(*time).map(rfc3339_nano).ok();
        let mut shown = json!({
            "ID": self.id,
            "Type": self.record_type,
            "Description": self.description,
            "InUse": self.in_use,
            "Shared": self.shared,
            "Size": self.size,
            "CreatedAt": self.created_at.as_ref().and_then(time),
            "LastUsedAt": self.last_used_at.as_ref().and_then(time),
            "UsageCount": self.usage_count,
        });
        if !self.parents.is_empty() {
            shown["Parents"] = json!(self.parents);
        }
        shown
    }
}

/// What a request to prune asks of buildkitd.
fn wanted(query: &Query, now: SystemTime) -> Result<Prune> {
    let filters = Filters::parse(query.get("filters"), &FILTERS)?;
    let one = |field: &str| match filters.values(field) {
        [] => Ok(None),
        [value] => Ok(Some(value.clone())),
        _ => Err(Failure::invalid("filters expect only one value")),
    };
    let keep_duration = match (one("until")?, one("unused-for")?) {
        (Some(_), Some(_)) => {
            return Err(Failure::invalid("conflicting filters: \"until\" and \"unused-for\""));
        }
        (until, unused) => match until.or(unused) {
            None => 0,
            Some(text) => {
                let since = now.duration_since(of_filter(&text, now)?).unwrap_or_default();
                i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
            }
        },
    };
    let mut filter = Vec::new();
    for field in FIELDS {
        let how = if field == "id" { "~=" } else { "==" };
        filter.extend(one(field)?.map(|value| format!("{field}{how}{value}")));
    }
    let bytes = |name: &str| query.number::<i64>(name);
    Ok(Prune {
        filter: if filter.is_empty() { filter } else { vec![filter.join(",")] },
        all: query.flag("all"),
        keep_duration,
        // Before API 1.48 the latter.
        reserved_space: bytes("reserved-space")?.or(bytes("keep-storage")?).unwrap_or_default(),
        max_used_space: bytes("max-used-space")?.unwrap_or_default(),
        min_free_space: bytes("min-free-space")?.unwrap_or_default(),
    })
}

fn failed(error: Error) -> Failure {
    Failure::internal(error.to_string())
}

impl Engine {
    /// `docker builder prune`.
    ///
    /// # Errors
    ///
    /// 400 for filters that are none, 503 without the buildkitd that is configured.
    pub async fn prune_builds(&self, query: &Query) -> Result<Value> {
        let wanted = wanted(query, SystemTime::now())?;
        let (mut removed, mut freed) = (Vec::new(), 0);
        // What the classic builder keeps are images: they go with theirs.
        if let Ok(address) = configured(self) {
            let (mut buildkit, _) = connect(address).await?;
            let mut answers = call(&mut buildkit, PRUNE, &wanted).await.map_err(failed)?;
            while let Some(message) = answers.next().await.map_err(failed)? {
                let record = Record::decode(message).map_err(|error| failed(error.into()))?;
                freed += record.size;
                removed.push(record.id);
            }
        }
        let removed = if removed.is_empty() { Value::Null } else { json!(removed) };
        Ok(json!({ "CachesDeleted": removed, "SpaceReclaimed": freed }))
    }

    /// What is kept for builds, and its size; nothing where buildkitd does not say.
    pub async fn build_usage(&self) -> (Vec<Value>, i64) {
        let Ok(address) = configured(self) else { return Default::default() };
        let asked = async {
            let (mut buildkit, _) = connect(address).await?;
            let answers = call(&mut buildkit, USAGE, &All {}).await.map_err(failed)?;
            answers.only::<Usage>().await.map_err(failed)
        };
        match asked.await {
            Ok(usage) => {
                let size = usage.records.iter().map(|record| record.size).sum();
                (usage.records.iter().map(Record::shown).collect(), size)
            }
            Err(failure) => {
                tracing::warn!("{failure}");
                Default::default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn what_is_to_go_is_said_as_dockerd_says_it() {
        let asked = |text: &str| {
            let filters = form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            let query = format!("all=1&keep-storage=5&filters={filters}");
            wanted(&Query::parse(&query), UNIX_EPOCH + Duration::from_secs(10))
        };
        let prune = asked(r#"{"until":["4"],"id":["a"],"type":["regular"],"label":["x"]}"#).unwrap();
        assert_eq!(prune.filter, ["id~=a,type==regular"]);
        assert_eq!((prune.all, prune.reserved_space, prune.keep_duration), (true, 5, 6_000_000_000));
        for text in [r#"{"until":["1"],"unused-for":["1"]}"#, r#"{"type":["a","b"]}"#, r#"{"other":["a"]}"#] {
            assert_eq!(asked(text).unwrap_err().status, 400, "{text}");
        }
        assert_eq!(asked("{}").unwrap().filter, Vec::<String>::new());
    }
}
