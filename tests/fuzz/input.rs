//! How inputs are made: JSON with parts replaced by strange values or by parts of other entries, bytes with some of them changed,
//! and words put together from those of the corpus.

use serde_json::Value;

use super::random::Random;

/// One entry of a corpus of JSON documents, changed: mostly as a document, sometimes as bytes.
pub fn json(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    if random.below(16) == 0 {
        random.mutate_bytes(&mut bytes);
        return bytes;
    }
    let mut value: Value = serde_json::from_slice(&bytes).expect("an entry of the corpus is JSON");
    for _ in 0..random.below(5) {
        if random.below(3) == 0 {
            let other = &corpus[random.below(corpus.len())];
            let other = serde_json::from_slice(other).expect("an entry of the corpus is JSON");
            graft(random, &mut value, &other);
        } else {
            random.mutate_json(&mut value);
        }
    }
    serde_json::to_vec(&value).expect("a JSON value has a text")
}

/// Puts a part of another document at its place in this one.
fn graft(random: &mut Random, value: &mut Value, other: &Value) {
    let (Value::Object(map), Value::Object(parts)) = (&mut *value, other) else {
        *value = other.clone();
        return;
    };
    let Some((key, part)) = parts.iter().nth(random.below(parts.len().max(1))) else { return };
    match map.get_mut(key) {
        Some(own) if own.is_object() && random.below(4) != 0 => graft(random, own, part),
        _ => {
            map.insert(key.clone(), part.clone());
        }
    }
}

/// Up to eight words of the corpus, which has one a line, some of them changed.
pub fn words(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<String> {
    (0..random.below(9)).map(|_| text(random, corpus)).collect()
}

/// A line of the corpus, one in two changed, one in eight put together from two.
pub fn text(random: &mut Random, corpus: &[Vec<u8>]) -> String {
    let mut bytes = line(random, corpus);
    if random.below(8) == 0 {
        bytes.extend(line(random, corpus));
    }
    if random.below(2) == 0 {
        random.mutate_bytes(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn line(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let lines: Vec<&[u8]> = corpus[random.below(corpus.len())].split(|&byte| byte == b'\n').collect();
    lines[random.below(lines.len())].to_vec()
}

/// An entry of a corpus of bytes, changed.
pub fn bytes(random: &mut Random, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = corpus[random.below(corpus.len())].clone();
    random.mutate_bytes(&mut bytes);
    bytes
}
