//! What refers to a manifest (OCI distribution specification 1.1, "Listing Referrers"): signatures, lists of parts,
//! provenance. A registry lists it itself, or keeps a list under a tag that is made of the digest.

use bytes::Bytes;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use reqwest::Url;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, LINK};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::auth::Scope;
use super::place::{Ask, Place};
use super::{ATTEMPTS, Repository, accept_manifests, media_type};
use crate::content::digest::Digest;
use crate::image::manifest::{Descriptor, MAX_DOCUMENT};
use crate::image::media;

/// What is being done, for messages.
const OPERATION: &str = "list referrers of";
/// The most that one manifest may have.
const MAX_REFERRERS: usize = 1024;
/// The most answers that a list may come in.
const MAX_PAGES: usize = 64;
/// The longest parts of a tag that is made of a digest.
const MAX_ALGORITHM: usize = 32;
const MAX_ENCODED: usize = 64;

/// A manifest that refers to another, as the list has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// Which one it is.
    #[serde(flatten)]
    pub descriptor: Descriptor,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
}

/// An index, of which the list alone counts.
#[derive(Deserialize)]
struct List {
    // Go writes an empty list as null.
    manifests: Option<Vec<Referrer>>,
}

impl Repository {
    /// The manifests that refer to one, of one artifact type or of all.
    ///
    /// Every place is asked in turn until one knows of any; the last one decides that there are none.
    ///
    /// # Errors
    ///
    /// Those of the registry; `ResourceExhausted` for a list without end.
    pub async fn referrers(&self, subject: &Digest, artifact_type: Option<&str>) -> Result<Vec<Referrer>> {
        let mut round = self.round(OPERATION, 0, |may| may.pull);
        let mut has_none = false;
        loop {
            let (place, attempts) = match round.next() {
                Err(_) if has_none => return Ok(Vec::new()),
                next => next?,
            };
            match referrers_at(place, attempts, subject, artifact_type).await {
                Ok(mut found) => {
                    // Not every registry filters.
                    found.retain(|one| artifact_type.is_none_or(|wanted| one.artifact_type == wanted));
                    if !found.is_empty() {
                        return Ok(found);
                    }
                    has_none = true;
                    round.answered();
                }
                Err(error) => {
                    has_none = false;
                    round.failed(error);
                }
            }
        }
    }

    /// Puts a manifest that was pushed on the list of what it refers to, which is under the tag: for a registry that makes no list
    /// by itself ("Pushing Manifests with Subject").
    ///
    /// # Errors
    ///
    /// Those of the registry; `FailedPrecondition` where the tag is no list's.
    pub async fn add_referrer(&self, subject: &Digest, referrer: &Referrer) -> Result<()> {
        let tag = tag(subject);
        let mut ask = Ask::get("add referrer of", subject.as_str(), format!("manifests/{tag}"));
        // A registry says that there is nothing where there is something else than what it is asked for.
        ask.headers = accept_manifests();
        ask.scope = Scope::push();
        let index = match self.place().read(&ask, ATTEMPTS, MAX_DOCUMENT).await {
            Ok((headers, body)) if media_type(&headers) == Some(media::OCI_INDEX) => Some(body),
            Ok(_) => {
                let why = format!("tag {tag} is not that of a list");
                return Err(Error::because(Kind::FailedPrecondition, ask.operation, ask.object, why));
            }
            Err(error) if error.kind() == Kind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(index) = added(subject, index.as_deref(), referrer)? {
            let descriptor = Descriptor::of(media::OCI_INDEX, &index);
            self.put_manifest(&tag, &descriptor, index).await?;
        }
        Ok(())
    }
}

/// An index with a referrer more, as what it was without it; nothing where it has that one.
fn added(subject: &Digest, index: Option<&[u8]>, referrer: &Referrer) -> Result<Option<Bytes>> {
    let found = index.map(|index| parse(subject, index)).transpose()?.unwrap_or_default();
    if found.iter().any(|one| one.descriptor.digest == referrer.descriptor.digest) {
        return Ok(None);
    }
    check_count(subject, found.len() + 1)?;
    let failed = |error| Error::because(Kind::InvalidArgument, "add referrer of", subject.to_string(), error);
    // What we know nothing of stays.
    let index =
        index.unwrap_or(br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json"}"#);
    let mut index: Map<String, Value> = serde_json::from_slice(index).map_err(failed)?;
    let one = serde_json::to_value(referrer).map_err(failed)?;
    match index.entry("manifests").or_insert(Value::Null) {
        Value::Array(manifests) => manifests.push(one),
        none => *none = Value::Array(vec![one]),
    }
    Ok(Some(serde_json::to_vec(&index).map_err(failed)?.into()))
}

/// What a place knows: its list, or the one under the tag.
async fn referrers_at(
    place: &Place,
    attempts: u32,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<Referrer>> {
    if place.endpoint.capabilities.referrers {
        match listed(place, attempts, subject, artifact_type).await {
            // Registries before 1.1 answer this path in whatever way.
            Ok(None) => {}
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unimplemented | Kind::Unknown) => {}
            Ok(Some(found)) => return Ok(found),
            Err(error) => return Err(error),
        }
    }
    let mut ask = Ask::get(OPERATION, subject.as_str(), format!("manifests/{}", tag(subject)));
    ask.headers = accept_index();
    match place.read(&ask, attempts, MAX_DOCUMENT).await {
        Ok((_, body)) => parse(subject, &body),
        Err(error) if error.kind() == Kind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The list that a registry makes itself, page by page; nothing where it answers with something else.
async fn listed(
    place: &Place,
    attempts: u32,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Option<Vec<Referrer>>> {
    let mut query = artifact_type.map(|wanted| {
        form_urlencoded::Serializer::new(String::new()).append_pair("artifactType", wanted).finish()
    });
    let mut found = Vec::new();
    let mut length = 0;
    for _ in 0..MAX_PAGES {
        let target = match &query {
            Some(query) => format!("referrers/{subject}?{query}"),
            None => format!("referrers/{subject}"),
        };
        let ask = Ask { headers: accept_index(), ..Ask::get(OPERATION, subject.as_str(), target) };
        let (headers, body) = place.read(&ask, attempts, MAX_DOCUMENT).await?;
        if media_type(&headers) != Some(media::OCI_INDEX) {
            return Ok(None);
        }
        length += body.len() as u64;
        if length > MAX_DOCUMENT {
            return Err(exhausted(subject, format!("the list is longer than {MAX_DOCUMENT} bytes")));
        }
        found.extend(parse(subject, &body)?);
        check_count(subject, found.len())?;
        query = next_page(&headers);
        if query.is_none() {
            return Ok(Some(found));
        }
    }
    Err(exhausted(subject, format!("the list comes in more than {MAX_PAGES} parts")))
}

fn parse(subject: &Digest, body: &[u8]) -> Result<Vec<Referrer>> {
    let list: List = serde_json::from_slice(body)
        .map_err(|error| Error::because(Kind::InvalidArgument, OPERATION, subject.to_string(), error))?;
    let found = list.manifests.unwrap_or_default();
    check_count(subject, found.len())?;
    Ok(found)
}

fn check_count(subject: &Digest, count: usize) -> Result<()> {
    if count <= MAX_REFERRERS {
        return Ok(());
    }
    Err(exhausted(subject, format!("there are more than {MAX_REFERRERS}")))
}

fn exhausted(subject: &Digest, why: String) -> Error {
    Error::because(Kind::ResourceExhausted, OPERATION, subject.to_string(), why)
}

/// The tag of the list where the registry makes none.
fn tag(subject: &Digest) -> String {
    let cut = |text: &str, length: usize| text.chars().take(length).collect::<String>();
    format!("{}-{}", cut(subject.algorithm().name(), MAX_ALGORITHM), cut(subject.hex(), MAX_ENCODED))
}

/// The query of the page that follows (RFC 8288). The path is ours whatever the registry says: no other place is asked.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    links.flat_map(|value| value.split(',')).find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = |parameter: &str| matches!(parameter.trim(), "rel=\"next\"" | "rel=next");
        if !parameters.split(';').any(is_next) {
            return None;
        }
        let any = Url::parse("https://registry.invalid/").ok()?;
        any.join(target).ok()?.query().map(str::to_owned)
    })
}

fn accept_index() -> HeaderMap {
    HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(media::OCI_INDEX))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_made_of_digests() {
        let digest = Digest::parse(&format!("sha256:{}", "a".repeat(64))).unwrap();
        assert_eq!(tag(&digest), format!("sha256-{}", "a".repeat(64)));
        let digest = Digest::parse(&format!("sha512:{}", "b".repeat(128))).unwrap();
        assert_eq!(tag(&digest), format!("sha512-{}", "b".repeat(64)));
    }

    #[test]
    fn the_next_page_is_where_a_link_says() {
        let next = |links: &[&str]| {
            let links = links.iter().map(|link| (LINK, HeaderValue::from_str(link).unwrap()));
            next_page(&links.collect())
        };
        assert_eq!(next(&[]), None);
        for link in [
            "</v2/a/referrers/sha256:0?n=2&last=x>; rel=\"next\"",
            "<https://other.example/v2/?n=2&last=x>;rel=next",
            "<?n=1>; rel=\"prev\", <?n=2&last=x>; title=\"t\"; rel=\"next\"",
        ] {
            assert_eq!(next(&[link]).as_deref(), Some("n=2&last=x"), "{link}");
        }
        for link in ["</v2/a?n=2>; rel=\"last\"", "/v2/a?n=2; rel=\"next\"", "</v2/a>; rel=\"next\""] {
            assert_eq!(next(&[link]), None, "{link}");
        }
    }

    #[test]
    fn a_list_gets_a_referrer_once_and_keeps_what_it_has() {
        let subject = Digest::of_bytes(b"");
        let one = |bytes: &[u8]| Referrer {
            descriptor: Descriptor::of(media::OCI_MANIFEST, bytes),
            artifact_type: "a/b".to_owned(),
        };
        let first = added(&subject, None, &one(b"1")).unwrap().unwrap();
        assert_eq!(parse(&subject, &first).unwrap(), [one(b"1")]);
        assert_eq!(added(&subject, Some(&first), &one(b"1")).unwrap(), None);
        let odd = br#"{"schemaVersion":2,"manifests":null,"annotations":{"a":"b"}}"#;
        let second = added(&subject, Some(odd), &one(b"2")).unwrap().unwrap();
        assert_eq!(parse(&subject, &second).unwrap(), [one(b"2")]);
        assert!(String::from_utf8_lossy(&second).contains(r#""annotations":{"a":"b"}"#));
        let list = vec![one(b"1"); MAX_REFERRERS];
        let full = serde_json::to_vec(&serde_json::json!({"manifests": list})).unwrap();
        assert_eq!(added(&subject, Some(&full), &one(b"2")).unwrap_err().kind(), Kind::ResourceExhausted);
        assert_eq!(added(&subject, Some(b"[null]"), &one(b"2")).unwrap_err().kind(), Kind::InvalidArgument);
    }

    #[test]
    fn lists_are_read_leniently_and_have_an_end() {
        let subject = Digest::of_bytes(b"");
        assert_eq!(parse(&subject, br#"{"schemaVersion":2,"manifests":null}"#).unwrap(), []);
        let one = format!(
            r#"{{"mediaType":"{}","digest":"{subject}","size":7,"artifactType":"a/b"}}"#,
            media::OCI_MANIFEST
        );
        let list = |count| format!(r#"{{"manifests":[{}]}}"#, vec![one.as_str(); count].join(","));
        let found = parse(&subject, list(1).as_bytes()).unwrap();
        assert_eq!((found[0].artifact_type.as_str(), found[0].descriptor.size), ("a/b", 7));
        let error = parse(&subject, list(MAX_REFERRERS + 1).as_bytes()).unwrap_err();
        assert_eq!(error.kind(), Kind::ResourceExhausted);
    }
}
