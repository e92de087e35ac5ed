//! Where a standard stream leads: a FIFO's path, or a URI that names a file or a logging program.

use std::path::PathBuf;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

/// The far end of a standard stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nowhere: `/dev/null`.
    Null,
    /// A FIFO, or a file that is there already.
    Path(PathBuf),
    /// A file to append to (`file:///path`).
    File(PathBuf),
    /// A program that takes the output (`binary:///program?key=value`), and its arguments.
    Program(PathBuf, Vec<String>),
}

/// Reads what a client asked for.
pub fn parse(text: &str) -> Result<Target> {
    if text.is_empty() {
        return Ok(Target::Null);
    }
    let Some((scheme, rest)) = text.split_once("://") else { return Ok(Target::Path(PathBuf::from(text))) };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = PathBuf::from(unescape(path));
    match scheme {
        "fifo" => Ok(Target::Path(path)),
        "file" => Ok(Target::File(path)),
        "binary" | "binary-v2" => {
            let mut arguments = Vec::new();
            for pair in query.split('&').filter(|pair| !pair.is_empty()) {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                arguments.push(unescape(key));
                arguments.push(unescape(value));
            }
            Ok(Target::Program(path, arguments))
        }
        other => {
            Err(Error::because(Kind::InvalidArgument, "open", text, format!("unknown STDIO scheme {other}")))
        }
    }
}

/// Undoes `%XX` and, as in a query, `+`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match (first, hex.and_then(|two| u8::from_str_radix(two, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_paths_and_uris() {
        assert_eq!(parse("").unwrap(), Target::Null);
        assert_eq!(parse("/run/f").unwrap(), Target::Path("/run/f".into()));
        assert_eq!(parse("fifo:///run/f").unwrap(), Target::Path("/run/f".into()));
        assert_eq!(parse("file:///var/log/a%20b").unwrap(), Target::File("/var/log/a b".into()));
        let program =
            Target::Program("/usr/bin/l".into(), vec!["_LOG".into(), "/v w".into(), "x".into(), "".into()]);
        assert_eq!(parse("binary:///usr/bin/l?_LOG=/v%20w&x").unwrap(), program);
        assert_eq!(parse("http://x").unwrap_err().kind(), Kind::InvalidArgument);
    }
}
