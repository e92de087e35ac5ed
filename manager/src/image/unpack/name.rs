//! Names within a layer: cleaned, split, and what they ask for.

use super::switches;

/// Prefix of the names that hide what a lower layer has (OCI image layer specification, whiteouts).
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The name that hides everything that lower layers have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Prefix of the names that AUFS kept for itself.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// A cleaned name: its directory, and the last component. Both are empty for the root itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location<'a> {
    /// The directory, relative to the root, without `.` and `..`.
    pub directory: &'a [u8],
    /// The last component.
    pub base: &'a [u8],
}

/// What a name asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// An ordinary entry.
    Entry,
    /// Hide this name of the lower layers.
    Whiteout(&'a [u8]),
    /// Hide everything that lower layers have in the directory.
    Opaque,
    /// AUFS's own files: nothing to do.
    Ignored,
    /// A whiteout of a name that no directory can hold.
    Invalid,
}

/// Removes empty components and `.`, and resolves `..` by text; what would lead above the root stays in the root.
pub fn clean(name: &[u8]) -> Vec<u8> {
    if switches::is_off("names") {
        return name.strip_suffix(b"/").unwrap_or(name).to_vec();
    }
    let mut clean: Vec<u8> = Vec::with_capacity(name.len());
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => clean.truncate(clean.iter().rposition(|byte| *byte == b'/').unwrap_or(0)),
            component => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(component);
            }
        }
    }
    clean
}

/// Splits a cleaned name.
pub fn split(clean: &[u8]) -> Location<'_> {
    match clean.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Location { directory: &clean[..slash], base: &clean[slash + 1..] },
        None => Location { directory: b"", base: clean },
    }
}

/// What a cleaned name asks for.
pub fn purpose(path: &[u8]) -> Purpose<'_> {
    let base = split(path).base;
    if path.starts_with(AUFS_PREFIX) && base != OPAQUE {
        return Purpose::Ignored;
    }
    match base.strip_prefix(WHITEOUT_PREFIX) {
        None => Purpose::Entry,
        Some(_) if base == OPAQUE => Purpose::Opaque,
        Some(_) if base.starts_with(AUFS_PREFIX) => Purpose::Ignored,
        Some(b"" | b"." | b"..") => Purpose::Invalid,
        Some(hidden) => Purpose::Whiteout(hidden),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans() {
        for (name, expected) in [
            ("a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("/etc/passwd", "etc/passwd"),
            ("../../etc", "etc"),
            ("a/../b", "b"),
            ("a/b/../../../c", "c"),
            ("a/b/..", "a"),
            (".", ""),
            ("/", ""),
            ("..", ""),
            ("...", "..."),
            ("a/.../b", "a/.../b"),
        ] {
            assert_eq!(clean(name.as_bytes()), expected.as_bytes(), "{name}");
        }
    }

    #[test]
    fn splits() {
        assert_eq!(split(b"a/b/c"), Location { directory: b"a/b", base: b"c" });
        assert_eq!(split(b"a"), Location { directory: b"", base: b"a" });
        assert_eq!(split(b""), Location { directory: b"", base: b"" });
    }

    #[test]
    fn knows_whiteouts() {
        assert_eq!(purpose(b"file"), Purpose::Entry);
        assert_eq!(purpose(b".wh.file"), Purpose::Whiteout(b"file"));
        assert_eq!(purpose(b".wh..hidden"), Purpose::Whiteout(b".hidden"));
        assert_eq!(purpose(b".wh..wh..opq"), Purpose::Opaque);
        assert_eq!(purpose(b".wh..wh.plnk"), Purpose::Ignored);
        assert_eq!(purpose(b".wh..wh.plnk/1.2"), Purpose::Ignored);
        assert_eq!(purpose(b"a/.wh.b"), Purpose::Whiteout(b"b"));
        for invalid in [&b".wh."[..], b".wh..", b".wh..."] {
            assert_eq!(purpose(invalid), Purpose::Invalid);
        }
    }
}
