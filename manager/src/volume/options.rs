//! Options of the local driver: `type`, `device` and `o`, as for mount(8). Pure.

use std::collections::BTreeMap;

use nix::mount::MsFlags;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

/// What to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Kind of file system; `none` for a bind mount.
    pub kind: String,
    /// What is mounted.
    pub device: String,
    /// Flags of mount(2).
    pub flags: MsFlags,
    /// Options of the file system.
    pub data: String,
}

/// Names of options and the flags that they set, or take away.
const FLAGS: &[(&str, MsFlags, bool)] = &[
    ("defaults", MsFlags::empty(), true),
    ("async", MsFlags::MS_SYNCHRONOUS, false),
    ("atime", MsFlags::MS_NOATIME, false),
    ("bind", MsFlags::MS_BIND, true),
    ("dev", MsFlags::MS_NODEV, false),
    ("diratime", MsFlags::MS_NODIRATIME, false),
    ("dirsync", MsFlags::MS_DIRSYNC, true),
    ("exec", MsFlags::MS_NOEXEC, false),
    ("mand", MsFlags::MS_MANDLOCK, true),
    ("noatime", MsFlags::MS_NOATIME, true),
    ("nodev", MsFlags::MS_NODEV, true),
    ("nodiratime", MsFlags::MS_NODIRATIME, true),
    ("noexec", MsFlags::MS_NOEXEC, true),
    ("nomand", MsFlags::MS_MANDLOCK, false),
    ("norelatime", MsFlags::MS_RELATIME, false),
    ("nosuid", MsFlags::MS_NOSUID, true),
    ("rbind", MsFlags::MS_BIND.union(MsFlags::MS_REC), true),
    ("relatime", MsFlags::MS_RELATIME, true),
    ("remount", MsFlags::MS_REMOUNT, true),
    ("ro", MsFlags::MS_RDONLY, true),
    ("rw", MsFlags::MS_RDONLY, false),
    ("strictatime", MsFlags::MS_STRICTATIME, true),
    ("suid", MsFlags::MS_NOSUID, false),
    ("sync", MsFlags::MS_SYNCHRONOUS, true),
];

impl Options {
    /// Reads a volume's options; none for a volume that is a directory and nothing else.
    ///
    /// # Errors
    ///
    /// `InvalidArgument` in dockerd's words for options that it does not know, or that are not enough.
    pub fn parse(options: &BTreeMap<String, String>) -> Result<Option<Options>> {
        let refused = |text: String| Err(Error::exactly(Kind::InvalidArgument, text));
        if let Some(unknown) =
            options.keys().find(|key| !["type", "device", "o", "size"].contains(&key.as_str()))
        {
            return refused(format!("invalid option: {unknown:?}"));
        }
        if options.contains_key("size") {
            return refused("quota size requested but no quota support".to_owned());
        }
        let get = |key: &str| options.get(key).filter(|value| !value.is_empty()).cloned();
        let (kind, device, words) = (get("type"), get("device"), get("o"));
        if kind.is_none() && device.is_none() && words.is_none() {
            return Ok(None);
        }
        let Some(device) = device else { return refused("missing required option: \"device\"".to_owned()) };
        let (mut flags, mut data) = (MsFlags::empty(), Vec::new());
        for word in words.iter().flat_map(|words| words.split(',')).filter(|word| !word.is_empty()) {
            match FLAGS.iter().find(|(name, _, _)| *name == word) {
                Some((_, flag, true)) => flags.insert(*flag),
                Some((_, flag, false)) => flags.remove(*flag),
                None => data.push(word),
            }
        }
        if kind.is_none() && !flags.contains(MsFlags::MS_BIND) {
            return refused("missing required option: \"type\"".to_owned());
        }
        let kind = kind.unwrap_or_else(|| "none".to_owned());
        Ok(Some(Options { kind, device, flags, data: data.join(",") }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Option<Options>> {
        Options::parse(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn flags_and_data_come_apart() {
        assert_eq!(parse(&[]).unwrap(), None);
        let options =
            parse(&[("type", "nfs"), ("device", ":/x"), ("o", "addr=10.0.0.1,ro,noexec,exec,soft")]);
        let options = options.unwrap().unwrap();
        assert_eq!((options.flags, options.data.as_str()), (MsFlags::MS_RDONLY, "addr=10.0.0.1,soft"));
    }

    #[test]
    fn too_little_is_refused() {
        for (pairs, words) in [
            (&[("type", "tmpfs")][..], "missing required option: \"device\""),
            (&[("device", "x")][..], "missing required option: \"type\""),
            (&[("size", "1g")][..], "quota size requested but no quota support"),
        ] {
            assert_eq!(parse(pairs).unwrap_err().to_string(), words);
        }
        assert!(parse(&[("device", "/x"), ("o", "bind")]).is_ok());
    }
}
