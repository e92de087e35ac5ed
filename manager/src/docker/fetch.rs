//! What URLs give: contexts of builds, sources of `ADD`, archives to import.

use std::io;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::failure::{Failure, Result};
use crate::image::registry::why;

/// Asks for a URL, until that is given up.
///
/// # Errors
///
/// 400 for what cannot be fetched.
pub async fn get(url: &str, stop: &CancellationToken) -> Result<reqwest::Response> {
    let wrong = |error: reqwest::Error| Failure::invalid(format!("failed to GET {url}: {}", why(&error)));
    let client = match reqwest::Client::builder().build() {
        // A machine without certificates of its own can still speak plain HTTP.
        Err(_) => reqwest::Client::builder().tls_certs_only([]).build(),
        built => built,
    };
    let response = tokio::select! {
        response = client.map_err(wrong)?.get(url).send() => response.map_err(wrong)?,
        () = stop.cancelled() => return Err(Failure::invalid(given_up().to_string())),
    };
    match response.status() {
        status if status.is_success() => Ok(response),
        status => Err(Failure::invalid(format!("failed to GET {url} with status {status}"))),
    }
}

/// What an answer holds; it breaks off when it is given up.
pub fn body(
    response: reqwest::Response,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<Bytes>> + Send + Unpin + 'static {
    let pieces = response.bytes_stream().map_err(|error| io::Error::other(why(&error)));
    Box::pin(stream::try_unfold((Box::pin(pieces), stop), async |(mut pieces, stop)| {
        tokio::select! {
            piece = pieces.try_next() => Ok(piece?.map(|piece| (piece, (pieces, stop)))),
            () = stop.cancelled() => Err(given_up()),
        }
    }))
}

fn given_up() -> io::Error {
    io::Error::other("it was given up")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_fetched_says_why() {
        // Ignoring: another test may have set it up.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let stop = CancellationToken::new();
        for (url, why) in [("http://127.0.0.1:1/x", "connection refused"), ("http://", "empty host")] {
            let failure = get(url, &stop).await.unwrap_err();
            assert_eq!(failure.message, format!("failed to GET {url}: {why}"));
        }
    }
}
