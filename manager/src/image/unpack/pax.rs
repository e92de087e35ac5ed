//! Records of pax extended headers: `LENGTH KEY=VALUE\n`.

use orlop_proto::error::Result;

use super::archive::{Extent, Time, broken};

/// Extended attributes lie under this prefix (star, GNU tar, Go).
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// The most attributes of one file: their names alone fill what Linux can list.
const MAX_XATTRS: usize = 1024;

/// What a pax header says about the entry that follows it.
#[derive(Debug, Default)]
pub struct Records {
    /// `path`
    pub path: Option<Vec<u8>>,
    /// `linkpath`
    pub link: Option<Vec<u8>>,
    /// `size`
    pub size: Option<u64>,
    /// `uid`
    pub uid: Option<u64>,
    /// `gid`
    pub gid: Option<u64>,
    /// `mtime`
    pub mtime: Option<Time>,
    /// `SCHILY.xattr.*`
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// `GNU.sparse.*`
    pub sparse: Sparse,
}

/// The records of GNU tar's sparse formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub struct Sparse {
    major: Option<u64>,
    /// The file's name, since `path` is made to look odd for programs that do not know the format.
    pub name: Option<Vec<u8>>,
    /// The file's length in bytes.
    pub real_size: Option<u64>,
    map: Option<Vec<u8>>,
    /// Offsets and lengths of format 0.0, alternating.
    pairs: Vec<u64>,
}

impl Sparse {
    /// Whether the map lies at the start of the data.
    pub fn is_version_1(&self) -> bool {
        self.major == Some(1)
    }

    /// The map of formats 0.0 and 0.1, or `None` where the file is not sparse.
    pub fn extents(&self) -> Result<Option<Vec<Extent>>> {
        let numbers = match &self.map {
            Some(map) if map.is_empty() => Vec::new(),
            Some(map) => map.split(|byte| *byte == b',').map(decimal).collect::<Result<Vec<u64>>>()?,
            None if self.pairs.is_empty() => return Ok(None),
            None => self.pairs.clone(),
        };
        if numbers.len() % 2 != 0 {
            return Err(broken("a sparse map with an offset but no length"));
        }
        Ok(Some(numbers.chunks(2).map(|pair| Extent { offset: pair[0], length: pair[1] }).collect()))
    }
}

/// Adds the records of one header; later ones win.
pub fn parse(mut bytes: &[u8], records: &mut Records) -> Result<()> {
    while !bytes.is_empty() && bytes[0] != 0 {
        let space = bytes
            .iter()
            .position(|byte| *byte == b' ')
            .ok_or_else(|| broken("a pax record without length"))?;
        let length = usize::try_from(decimal(&bytes[..space])?).unwrap_or(usize::MAX);
        if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
            return Err(broken("a pax record whose length is wrong"));
        }
        let record = &bytes[space + 1..length - 1];
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(|| broken("a pax record without value"))?;
        set(&record[..equals], &record[equals + 1..], records)?;
        bytes = &bytes[length..];
    }
    Ok(())
}

fn set(key: &[u8], value: &[u8], records: &mut Records) -> Result<()> {
    // An empty value means that the record is not there; the header's own field counts again.
    let present = !value.is_empty();
    match key {
        b"path" => records.path = text(value)?.filter(|_| present),
        b"linkpath" => records.link = text(value)?.filter(|_| present),
        b"size" => records.size = if present { Some(decimal(value)?) } else { None },
        b"uid" => records.uid = if present { Some(decimal(value)?) } else { None },
        b"gid" => records.gid = if present { Some(decimal(value)?) } else { None },
        b"mtime" => records.mtime = if present { Some(time(value)?) } else { None },
        b"GNU.sparse.major" => records.sparse.major = Some(decimal(value)?),
        b"GNU.sparse.name" => records.sparse.name = text(value)?,
        b"GNU.sparse.realsize" | b"GNU.sparse.size" => records.sparse.real_size = Some(decimal(value)?),
        b"GNU.sparse.map" => records.sparse.map = Some(value.to_vec()),
        b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
            let expects_offset = records.sparse.pairs.len().is_multiple_of(2);
            if expects_offset != key.ends_with(b"offset") {
                return Err(broken("a sparse map whose records are out of order"));
            }
            records.sparse.pairs.push(decimal(value)?);
        }
        _ => {
            if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                if name.is_empty() || name.contains(&0) {
                    return Err(broken("an extended attribute without a valid name"));
                }
                if records.xattrs.len() >= MAX_XATTRS {
                    return Err(broken("more extended attributes than a file can have"));
                }
                records.xattrs.retain(|(known, _)| known != name);
                records.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Ok(())
}

fn text(value: &[u8]) -> Result<Option<Vec<u8>>> {
    match value.contains(&0) {
        true => Err(broken("a NUL byte within a name")),
        false => Ok(Some(value.to_vec())),
    }
}

fn decimal(text: &[u8]) -> Result<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    str::from_utf8(text)
        .ok()
        .filter(|_| is_number)
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| broken("a pax record that is not a number"))
}

/// Decimal seconds with an optional fraction, of which nanoseconds are kept; `-1.5` is half a second before -1.
fn time(text: &[u8]) -> Result<Time> {
    let (is_negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(point) => (&text[..point], &text[point + 1..]),
        None => (text, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(broken("a time that is not a number"));
    }
    let seconds = i64::try_from(decimal(whole)?).map_err(|_| broken("a time beyond what can be told"))?;
    let nanoseconds = (0..9)
        .fold(0, |sum, place| sum * 10 + u32::from(fraction.get(place).map_or(0, |digit| digit - b'0')));
    Ok(match (is_negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds: 0 },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length.to_string().len() + body != length {
            length += 1;
        }
        [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
    }

    fn parsed(bytes: &[u8]) -> Result<Records> {
        let mut records = Records::default();
        parse(bytes, &mut records).map(|()| records)
    }

    #[test]
    fn reads_records() {
        let bytes = [
            record("path", b"a/b"),
            record("mtime", b"1700000000.123456789"),
            record("uid", b"4000000000"),
            record("SCHILY.xattr.user.x", b"1\n\0=2"),
            record("comment", b"anything"),
            record("path", b"last wins"),
        ]
        .concat();
        let records = parsed(&bytes).unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"last wins"[..]));
        assert_eq!(records.mtime, Some(Time { seconds: 1_700_000_000, nanoseconds: 123_456_789 }));
        assert_eq!(records.uid, Some(4_000_000_000));
        assert_eq!(records.xattrs, [(b"user.x".to_vec(), b"1\n\0=2".to_vec())]);
    }

    #[test]
    fn reads_times() {
        for (text, seconds, nanoseconds) in [
            ("0", 0, 0),
            ("1.5", 1, 500_000_000),
            ("1.0000000019", 1, 1),
            ("-1.5", -2, 500_000_000),
            ("-2", -2, 0),
            ("3.", 3, 0),
        ] {
            assert_eq!(time(text.as_bytes()).unwrap(), Time { seconds, nanoseconds }, "{text}");
        }
        for text in ["", "-", ".5", "1.x", "1e3", "99999999999999999999"] {
            assert!(time(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn refuses_broken_records() {
        for bytes in
            [&b"5"[..], b"x a=b\n", b"99 a=b\n", b"6 a=bc", b"5 a=\n\n", b"0 a=b\n", b"6 abcd\n", b"3 \n"]
        {
            assert!(parsed(bytes).is_err(), "{bytes:?}");
        }
        assert!(parsed(&record("path", b"a\0b")).is_err());
        assert!(parsed(&record("size", b"-1")).is_err());
        assert!(parsed(&record("GNU.sparse.numbytes", b"1")).is_err());
    }

    #[test]
    fn reads_sparse_maps() {
        let records =
            parsed(&[record("GNU.sparse.map", b"0,4,8,4"), record("GNU.sparse.size", b"12")].concat());
        let sparse = records.unwrap().sparse;
        let extents = [Extent { offset: 0, length: 4 }, Extent { offset: 8, length: 4 }];
        assert_eq!(sparse.extents().unwrap().unwrap(), extents);
        let pairs = [
            record("GNU.sparse.offset", b"0"),
            record("GNU.sparse.numbytes", b"4"),
            record("GNU.sparse.offset", b"8"),
            record("GNU.sparse.numbytes", b"4"),
        ];
        assert_eq!(parsed(&pairs.concat()).unwrap().sparse.extents().unwrap().unwrap(), extents);
        assert!(parsed(&record("GNU.sparse.map", b"0,4,8")).unwrap().sparse.extents().is_err());
    }
}
