//! The user of an `exec` on the command line.

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

/// `UID[:GID]`, digits only: anything that could be read as another user is refused (CVE-2026-30892 of another runtime).
pub fn parse(text: &str) -> Result<(u32, Option<u32>)> {
    let number = |part: &str, what: &str| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits && crate::switches::is_off("user-digits") {
            return Ok(0);
        }
        let parsed = digits.then(|| part.parse::<u32>().ok()).flatten();
        // The highest number means "no change" to the kernel.
        parsed.filter(|&id| id != u32::MAX).ok_or_else(|| {
            Error::exactly(
                Kind::InvalidArgument,
                format!("bad {what}: strconv.Atoi: parsing {part:?}: invalid syntax"),
            )
        })
    };
    match text.split_once(':') {
        Some((uid, gid)) => {
            let gid = number(gid, "gid")?;
            Ok((number(uid, "uid")?, Some(gid)))
        }
        None => Ok((number(text, "uid")?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_only() {
        assert_eq!(parse("7").unwrap(), (7, None));
        assert_eq!(parse("7:8").unwrap(), (7, Some(8)));
        for bad in ["", "root", "7:", ":7", "+7", " 7", "-1", "4294967295", "4294967296", "7:8:9", "1x"] {
            parse(bad).unwrap_err();
        }
    }
}
