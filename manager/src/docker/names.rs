//! Names for containers that nobody named.

const ADJECTIVES: [&str; 40] = [
    "able", "ample", "apt", "blithe", "bold", "brave", "bright", "brisk", "calm", "clear", "cosy", "deft",
    "eager", "fair", "fleet", "fond", "frank", "gentle", "glad", "hale", "hardy", "jolly", "keen", "kind",
    "lively", "lucid", "merry", "mild", "neat", "nimble", "quick", "quiet", "ready", "sound", "spry",
    "steady", "sunny", "swift", "trim", "witty",
];
const NOUNS: [&str; 40] = [
    "anchor", "bilge", "binnacle", "boom", "bosun", "bow", "brig", "bulkhead", "buoy", "capstan", "clipper",
    "cutter", "davit", "deck", "ferry", "galley", "gunwale", "halyard", "hatch", "helm", "hull", "jib",
    "keel", "ketch", "locker", "mast", "mizzen", "oar", "pilot", "quay", "rigging", "rudder", "schooner",
    "sextant", "sloop", "spar", "stern", "tiller", "topsail", "yawl",
];

/// A name by chance, with a number when such names become rare.
pub fn from(chance: &str, numbered: bool) -> String {
    let number =
        |at: usize| chance.get(at..at + 4).and_then(|hex| usize::from_str_radix(hex, 16).ok()).unwrap_or(0);
    let name = format!("{}_{}", ADJECTIVES[number(0) % ADJECTIVES.len()], NOUNS[number(4) % NOUNS.len()]);
    if numbered { format!("{name}{}", number(8) % 1000) } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_decides() {
        assert_eq!(from("000000010002", false), "able_bilge");
        assert_eq!(from("000000010002", true), "able_bilge2");
    }
}
