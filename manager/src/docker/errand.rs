//! Work that does not end with the request that asked for it: hyper drops a request when its client goes, at any point.

use std::future::Future;

use tokio_util::sync::CancellationToken;

use super::failure::{Failure, Result};

/// Runs work to its end, whether or not its caller waits.
///
/// # Errors
///
/// Those of the work; 500 when it panics.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.map_err(|error| Failure::internal(error.to_string()))?
}

/// The same for work that ends early when nobody waits any more, and cleans up: the token tells it.
///
/// # Errors
///
/// As [`to_the_end`].
pub async fn while_awaited<T: Send + 'static, W: Future<Output = Result<T>> + Send + 'static>(
    work: impl FnOnce(CancellationToken) -> W,
) -> Result<T> {
    let stop = CancellationToken::new();
    let waits = stop.clone().drop_guard();
    let done = to_the_end(work(stop)).await;
    // What goes on from here, a reply that streams, has its own ways to learn that the client is gone.
    waits.disarm();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_no_more_is_noticed_by_work_that_goes_on() {
        let (tell, told) = tokio::sync::oneshot::channel();
        let waiting = tokio::spawn(while_awaited(|stop| async move {
            stop.cancelled().await;
            // Ignoring: the test waits for it.
            let _ = tell.send("cleaned up");
            Ok(())
        }));
        tokio::task::yield_now().await;
        waiting.abort();
        assert_eq!(told.await.unwrap(), "cleaned up");
        let stop = while_awaited(|stop| async move { Ok(stop) }).await.unwrap();
        assert!(!stop.is_cancelled());
    }
}
