//! The places of a registry, asked one after the other until one can serve.

use std::sync::atomic::{AtomicUsize, Ordering};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::place::Place;

/// How often an idempotent request is made at most.
pub(super) const ATTEMPTS: u32 = 5;
/// How often where another place may serve as well.
const ATTEMPTS_BEFORE_NEXT: u32 = 2;

/// One request's way through the places.
pub(super) struct Round<'a> {
    places: &'a [Place],
    /// The place that served last.
    chosen: &'a AtomicUsize,
    /// Which places are asked, the last one first.
    order: Vec<usize>,
    current: usize,
    failed: Option<(Error, usize)>,
    barred: Vec<&'a str>,
    /// The error where no place may be asked.
    none: Error,
}

impl<'a> Round<'a> {
    /// A way that begins at `first` and leads to the places that may do it.
    pub(super) fn new(
        places: &'a [Place],
        chosen: &'a AtomicUsize,
        first: usize,
        may: impl Fn(usize) -> bool,
        none: Error,
    ) -> Round<'a> {
        let count = places.len();
        let mut order: Vec<usize> =
            (0..count).map(|step| (first + step) % count).filter(|index| may(*index)).collect();
        order.reverse();
        Round { places, chosen, order, current: 0, failed: None, barred: Vec::new(), none }
    }

    /// The next place to ask, and how often at most.
    ///
    /// # Errors
    /// What the places answered, when there is none left.
    pub(super) fn next(&mut self) -> Result<(&'a Place, u32)> {
        while let Some(index) = self.order.pop() {
            let place = &self.places[index];
            // A host that hangs or refuses is not asked the same over another protocol.
            if !self.barred.contains(&place.endpoint.host.as_str()) {
                self.current = index;
                return Ok((place, if self.order.is_empty() { ATTEMPTS } else { ATTEMPTS_BEFORE_NEXT }));
            }
        }
        let none = std::mem::replace(&mut self.none, Error::new(Kind::Unavailable, "", ""));
        Err(self.failed.take().map_or(none, |(error, _)| error))
    }

    /// The place served: it is asked first from now on. Says which one it is.
    pub(super) fn served(self) -> usize {
        self.chosen.store(self.current, Ordering::Relaxed);
        self.current
    }

    /// The place said that there is none: its host is not asked over another protocol, but others may be.
    pub(super) fn answered(&mut self) {
        self.barred.push(&self.places[self.current].endpoint.host);
    }

    /// The place could not.
    pub(super) fn failed(&mut self, error: Error) {
        let host = |index: usize| self.places[index].endpoint.host.as_str();
        if matches!(error.kind(), Kind::DeadlineExceeded | Kind::Unauthenticated) {
            self.barred.push(host(self.current));
        }
        // Of one host over two protocols, the one that it understood knows best why; else the later place, which stands
        // for the registry itself.
        let is_best = self.failed.as_ref().is_none_or(|(earlier, index)| {
            host(*index) != host(self.current)
                || error.kind() == Kind::NotFound
                || earlier.kind() == Kind::Unknown
        });
        if is_best {
            self.failed = Some((error, self.current));
        }
    }
}
