//! Contexts that a client names by URL: an archive, or a Dockerfile alone.

use std::os::fd::OwnedFd;

use tokio::io::AsyncReadExt;
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

use super::context::{MAX_DOCKERFILE, Workplace, of_dockerfile, unpacked};
use crate::docker::failure::{Failure, Result};
use crate::docker::fetch;

/// Where an archive has its mark, and the mark.
const TAR: (usize, &[u8]) = (257, b"ustar");

/// Whether a URL is that of a repository.
fn is_repository(url: &str) -> bool {
    let plain = url.split('#').next().unwrap_or_default();
    let is_http = url.starts_with("http://") || url.starts_with("https://");
    (is_http && plain.ends_with(".git"))
        || ["git://", "git@", "github.com/", "ssh://"].iter().any(|prefix| url.starts_with(prefix))
}

/// Whether what a stream begins with is an archive, compressed or not.
fn is_archive(start: &[u8]) -> bool {
    const MARKS: [&[u8]; 4] = [&[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd], b"BZh", &[0xfd, b'7', b'z', b'X']];
    MARKS.iter().any(|mark| start.starts_with(mark))
        || start.get(TAR.0..).is_some_and(|rest| rest.starts_with(TAR.1))
}

/// Fetches a context.
///
/// # Errors
///
/// 400 for what cannot be fetched.
pub async fn fetch(url: &str, work: &Workplace, stop: &CancellationToken) -> Result<OwnedFd> {
    if is_repository(url) {
        return Err(Failure::invalid(format!(
            "unable to prepare context: {url} is a repository, which only a client can fetch for this engine"
        )));
    }
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(Failure::invalid(format!("remote URL {url} is not supported")));
    }
    let response = fetch::get(url, stop).await?;
    let mut body = StreamReader::new(fetch::body(response, stop.clone()));
    let broken = |error: std::io::Error| Failure::invalid(error.to_string());
    let mut start = Vec::new();
    (&mut body).take((TAR.0 + TAR.1.len()) as u64).read_to_end(&mut start).await.map_err(broken)?;
    let is_archive = is_archive(&start);
    let mut whole = std::io::Cursor::new(start).chain(body);
    if is_archive {
        return unpacked(whole, work).await;
    }
    let mut text = Vec::new();
    let length = (&mut whole).take(MAX_DOCKERFILE + 1).read_to_end(&mut text).await.map_err(broken)?;
    if length as u64 > MAX_DOCKERFILE {
        return Err(Failure::invalid(format!("{url}: a Dockerfile has no more than {MAX_DOCKERFILE} bytes")));
    }
    of_dockerfile(&text, work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_their_content_are_told_apart() {
        assert!(is_repository("https://x/y.git#main") && is_repository("git@x:y"));
        assert!(!is_repository("https://x/y.tar"));
        let mut tar = vec![0; 300];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(is_archive(&tar) && is_archive(&[0x1f, 0x8b, 8]) && !is_archive(b"FROM x"));
    }
}
