//! One at a time per name: whoever comes second waits, and then finds the work done.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Names that are being worked on.
#[derive(Default)]
pub struct Flights {
    names: Mutex<HashMap<String, Weak<AsyncMutex<()>>>>,
}

impl Flights {
    /// Waits until nobody else works on the name; the work is one's own until the guard is dropped.
    ///
    /// After the wait, look first whether the work is done: the one before may have succeeded or failed.
    pub async fn enter(&self, name: &str) -> OwnedMutexGuard<()> {
        let turn = {
            let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
            names.retain(|_, turn| turn.strong_count() > 0);
            match names.get(name).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::new(AsyncMutex::new(()));
                    names.insert(name.to_owned(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn one_at_a_time_per_name() {
        let flights = Arc::new(Flights::default());
        let (inside, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let workers: Vec<_> = (0..10)
            .map(|_| {
                let (flights, inside, done) = (flights.clone(), inside.clone(), done.clone());
                tokio::spawn(async move {
                    let _turn = flights.enter("x").await;
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                    let is_first = !done.swap(true, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    is_first
                })
            })
            .collect();
        let mut first = 0;
        for worker in workers {
            first += usize::from(worker.await.unwrap());
        }
        assert_eq!(first, 1);
        let _other = flights.enter("y").await;
        assert_eq!(flights.names.lock().unwrap().len(), 1);
    }
}
