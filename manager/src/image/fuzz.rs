//! Fuzz targets: what comes from registries and from their configuration, in process, with input made from the kept corpus in
//! `tests/fuzz/corpus`. Layers have a target of their own, in `unpack/fuzz.rs`.
//!
//! Every input is made from a number, which a failure prints (`ORLOP_FUZZ_SEED`); `make soak` tries a million (`ORLOP_FUZZ_RUNS`).

#[path = "../../../tests/fuzz/drive.rs"]
mod drive;
#[allow(dead_code, reason = "the runtime has further kinds of input")]
#[path = "../../../tests/fuzz/input.rs"]
mod input;
#[path = "../../../tests/fuzz/random.rs"]
mod random;

use std::path::Path;

use drive::drive;

use super::manifest::{Config, Document, select};
use super::media;
use super::platform::Platform;
use super::reference::Reference;
use super::registry::challenge::{self, Challenge};
use super::registry::hosts;
use crate::content::digest::Digest;

/// An entry of a corpus that has an input on each line.
fn lines(entry: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(entry).lines().map(str::to_owned).collect()
}

/// An entry of a corpus that is one input.
fn whole(entry: &[u8]) -> Vec<Vec<u8>> {
    vec![entry.to_vec()]
}

#[test]
fn references() {
    let attempt = |text: &String| {
        let Ok(reference) = Reference::parse(text) else { return };
        let shown = reference.to_string();
        assert_eq!(
            Reference::parse(&shown).as_ref().ok(),
            Some(&reference),
            "{text:?} is shown as {shown:?}"
        );
        assert!(reference.tag().is_some() || reference.digest().is_some());
        // What goes into a URL and into a path stays what it is.
        let url =
            format!("https://{}/v2/{}/manifests/{}", reference.host(), reference.path(), reference.object());
        // The grammar takes hosts that are none (`256.0.0.1`): these are refused where they are asked for.
        let Ok(parsed) = reqwest::Url::parse(&url) else {
            let host = format!("https://{}/", reference.host());
            assert!(reqwest::Url::parse(&host).is_err(), "{text:?} becomes {url}");
            return;
        };
        assert_eq!(
            parsed.path(),
            format!("/v2/{}/manifests/{}", reference.path(), reference.object()),
            "{text:?}"
        );
        assert!(parsed.query().is_none() && parsed.fragment().is_none() && parsed.username().is_empty());
        let is_plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        assert!(reference.path().split('/').all(is_plain), "{text:?}");
        assert!(!reference.domain().contains('/') && is_plain(reference.domain()), "{text:?}");
        assert!(shown.len() <= 255 + 1 + 128 + 1 + 256, "{text:?}");
    };
    drive("references", input::text, attempt, lines);
}

#[test]
fn manifests() {
    let wanted =
        Platform { os: "linux".to_owned(), architecture: "amd64".to_owned(), variant: String::new() };
    let attempt = |text: &Vec<u8>| {
        let digest = Digest::of_bytes(text);
        let _ = Config::parse(&digest, text);
        let mut readings = 0;
        for media_type in [media::OCI_MANIFEST, media::OCI_INDEX] {
            let Ok(document) = Document::parse(media_type, &digest, text) else { continue };
            readings += 1;
            let children = document.children();
            assert!(children.len() <= 1025);
            assert!(children.iter().all(|child| Digest::parse(child.digest.as_str()).is_ok()));
            let labels = document.reference_labels(|_| true);
            let names: std::collections::BTreeSet<_> = labels.iter().map(|(name, _)| name).collect();
            // One label may stand for several children of no known kind only if they would have the same name.
            assert!(names.len() == labels.len() || labels.len() == children.len());
            if let Document::Index(index) = &document {
                assert!(select(index, &wanted).len() <= index.manifests.len());
            }
        }
        // One document is never two things to two readers.
        assert!(readings <= 1, "{}", String::from_utf8_lossy(text));
    };
    drive("manifests", input::json, attempt, whole);
}

#[test]
fn hosts_files() {
    let attempt = |text: &Vec<u8>| {
        let Ok(text) = std::str::from_utf8(text) else { return };
        let Ok(places) = hosts::parse(text, Path::new("/d"), "registry.example", None) else { return };
        assert!(!places.is_empty());
        for place in places {
            let url = format!("{}://{}{}/a/b", place.scheme, place.host, place.path);
            assert!(matches!(place.scheme.as_str(), "http" | "https"), "{url}");
            assert!(!place.host.is_empty() && !place.host.contains(['/', '@', '?', '#', ' ']), "{url}");
            assert!(place.path.is_empty() || place.path.starts_with('/'), "{url}");
            assert!(place.authorities.iter().all(|path| path.is_absolute()), "{url}");
        }
    };
    drive("hosts", input::bytes, attempt, whole);
}

#[test]
fn challenges() {
    let attempt = |text: &String| match challenge::parse([text.as_str()]) {
        Some(Challenge::Bearer { realm, service, scope }) => {
            assert!(!realm.is_empty());
            assert!(realm.len() + service.len() + scope.len() <= text.len(), "{text:?}");
        }
        Some(Challenge::Basic) => assert!(text.trim_start().to_lowercase().starts_with("basic"), "{text:?}"),
        None => {}
    };
    drive("challenges", input::text, attempt, lines);
}
