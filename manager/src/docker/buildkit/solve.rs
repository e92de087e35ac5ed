//! What a build is to give. dockerd has an exporter of its own for BuildKit, `moby`, which a buildkitd does not have; its exporter
//! `image` writes to the store of its worker, which is ours. Everything else of the call stays as it is, byte by byte.

use std::collections::BTreeMap;

use prost::{DecodeError, Message};

use super::wire::{framed, unframed, without};
use crate::docker::image::{DANGLING, normal};

/// dockerd's exporter.
const OURS: &str = "moby";
/// The fields of [`Outputs`].
const FIELDS: [u32; 3] = [3, 4, 13];
/// The fields of [`Output`].
const FIELDS_OF_ONE: [u32; 2] = [1, 2];

/// Where what is built goes (`Exporter` of BuildKit's control.proto).
#[derive(Clone, PartialEq, Message)]
pub struct Output {
    /// What takes it.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// How.
    #[prost(btree_map = "string, string", tag = "2")]
    pub attributes: BTreeMap<String, String>,
}

/// What `SolveRequest` says of it.
#[derive(Clone, PartialEq, Message)]
struct Outputs {
    /// As clients said it before there could be several.
    #[prost(string, tag = "3")]
    kind: String,
    #[prost(btree_map = "string, string", tag = "4")]
    attributes: BTreeMap<String, String>,
    /// Each an [`Output`].
    #[prost(bytes = "vec", repeated, tag = "13")]
    all: Vec<Vec<u8>>,
}

/// A call that is changed.
pub struct Translated {
    /// The call.
    pub call: Vec<u8>,
    /// The names of the image for this engine; of several such images none.
    pub names: Vec<String>,
}

/// A call of `Solve` in which an image for this engine is one in its store; nothing when it stays as it is.
///
/// # Errors
///
/// For what is no such call.
pub fn translated(call: &[u8]) -> Result<Option<Translated>, DecodeError> {
    let Some(request) = unframed(call) else { return Ok(None) };
    let mut outputs = Outputs::decode(request)?;
    if outputs.all.is_empty() && !outputs.kind.is_empty() {
        outputs.all.push(Output { kind: outputs.kind, attributes: outputs.attributes }.encode_to_vec());
    }
    let mut images = Vec::new();
    for said in &mut outputs.all {
        let output = Output::decode(said.as_slice())?;
        if output.kind == OURS {
            let mut changed = without(said, &FIELDS_OF_ONE)?;
            let image = image(output);
            changed.extend(image.encode_to_vec());
            *said = changed;
            images.push(image);
        }
    }
    let names = match images.as_slice() {
        [] => return Ok(None),
        [image] => image.names(),
        _ => Vec::new(),
    };
    let outputs = Outputs { all: outputs.all, ..Outputs::default() };
    let call = framed(&[&without(request, &FIELDS)?, &outputs.encode_to_vec()]);
    Ok(Some(Translated { call, names }))
}

impl Output {
    /// The names of an image.
    fn names(&self) -> Vec<String> {
        let names = self.attributes.get("name").map(String::as_str).unwrap_or_default();
        names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }
}

/// An image in the store, unpacked, under its complete names or under the one of an image that has none.
pub fn image(output: Output) -> Output {
    let names = output.names().into_iter().map(|name| normal(&name).unwrap_or(name));
    let names: Vec<String> = names.collect();
    let mut attributes = output.attributes;
    // The client pushes what dockerd built by itself.
    attributes.retain(|key, _| !key.starts_with("push"));
    match names.is_empty() {
        true => {
            attributes.insert("dangling-name-prefix".to_owned(), DANGLING.trim_end_matches('@').to_owned())
        }
        false => attributes.insert("name".to_owned(), names.join(",")),
    };
    attributes.insert("unpack".to_owned(), "true".to_owned());
    Output { kind: "image".to_owned(), attributes }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call with more fields than are known here.
    #[derive(Clone, PartialEq, Message)]
    struct Whole {
        #[prost(string, tag = "1")]
        reference: String,
        #[prost(string, tag = "3")]
        kind: String,
        #[prost(btree_map = "string, string", tag = "4")]
        attributes: BTreeMap<String, String>,
        #[prost(string, tag = "6")]
        frontend: String,
        #[prost(message, repeated, tag = "13")]
        all: Vec<Output>,
        #[prost(fixed64, tag = "99")]
        later: u64,
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn through(whole: &Whole) -> Option<Whole> {
        let translated = translated(&framed(&[&whole.encode_to_vec()])).unwrap()?;
        Some(Whole::decode(unframed(&translated.call).unwrap()).unwrap())
    }

    fn whole(all: Vec<Output>) -> Whole {
        let (reference, frontend) = ("r".to_owned(), "dockerfile.v0".to_owned());
        Whole { reference, frontend, all, later: 7, ..Whole::default() }
    }

    #[test]
    fn an_image_for_the_engine_is_one_in_its_store() {
        let output =
            |kind: &str, pairs: &[(&str, &str)]| Output { kind: kind.to_owned(), attributes: map(pairs) };
        let named = [("name", "a,127.0.0.1:5000/b:2"), ("push", "true"), ("push-by-digest", "1")];
        let full = map(&[("name", "docker.io/library/a:latest,127.0.0.1:5000/b:2"), ("unpack", "true")]);
        let said = through(&whole(vec![output("local", &[]), output("moby", &named)])).unwrap();
        let image = Output { kind: "image".to_owned(), attributes: full.clone() };
        assert_eq!(said, whole(vec![output("local", &[]), image.clone()]));
        // As older clients say it, also beside the newer way.
        let old = Whole { kind: "moby".to_owned(), attributes: map(&named), ..whole(Vec::new()) };
        assert_eq!(through(&old).unwrap(), whole(vec![image.clone()]));
        let both = Whole { all: vec![output("moby", &named)], ..old };
        assert_eq!(through(&both).unwrap(), whole(vec![image]));
        let nameless = through(&whole(vec![output("moby", &[])])).unwrap().all.remove(0);
        assert_eq!(
            nameless.attributes,
            map(&[("dangling-name-prefix", "moby-dangling"), ("unpack", "true")])
        );
    }

    #[test]
    fn what_asks_for_something_else_stays_as_it_is() {
        assert_eq!(through(&whole(Vec::new())), None);
        let tar = Whole { kind: "tar".to_owned(), ..whole(Vec::new()) };
        assert_eq!(through(&tar), None);
        // Of one output beside another, and of one that is changed, also what is not known here.
        let later = b"\x78\x07";
        let said = |kind: &str| Output { kind: kind.to_owned(), ..Output::default() }.encode_to_vec();
        let all = [said("local"), said("moby")].map(|output| [output.as_slice(), later].concat()).to_vec();
        let call = framed(&[&Outputs { all: all.clone(), ..Outputs::default() }.encode_to_vec()]);
        let Translated { call: changed, names } = translated(&call).unwrap().unwrap();
        assert_eq!(names, Vec::<String>::new());
        let through = Outputs::decode(unframed(&changed).unwrap()).unwrap().all;
        assert_eq!((&through[0], &through[1][..2]), (&all[0], later.as_slice()));
        assert_eq!(Output::decode(through[1].as_slice()).unwrap().kind, "image");
        assert!(translated(&[1, 0, 0, 0, 1, 9]).unwrap().is_none());
        assert!(translated(&[0, 0, 0, 0, 2, 0x1a, 9]).is_err());
    }
}
