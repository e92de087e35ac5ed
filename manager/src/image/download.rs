//! A blob on its way into the content store, readable while it comes in.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use orlop_proto::error::Error;
use orlop_proto::kind::Kind;
use tokio::sync::Notify;

/// How far a download has come.
#[derive(Default)]
struct State {
    /// The ingest's file, once there is one.
    file: Option<Arc<File>>,
    /// Bytes that can be read.
    available: u64,
    /// Whether it could be had another way: from somebody else, or from its start.
    is_elsewhere: bool,
    /// How it ended: `Ok` when every byte is there and verified.
    end: Option<Result<(), (Kind, String)>>,
}

/// What the downloading side and those who read along share.
#[derive(Default)]
pub struct Download {
    state: Mutex<State>,
    changed: Condvar,
    ended: Notify,
}

impl Download {
    /// A download that has not started.
    pub fn new() -> Arc<Download> {
        Arc::default()
    }

    /// The bytes go into this file, of which the first ones are there.
    pub fn begin(&self, file: File, available: u64) {
        self.change(|state| (state.file, state.available) = (Some(Arc::new(file)), available));
    }

    /// The blob could be had another way, should this one turn out wrong: from somebody else, or from its start.
    pub fn note_elsewhere(&self) {
        self.lock().is_elsewhere = true;
    }

    /// Whether the blob could be had another way: then it matters who is to blame for what is in it.
    pub fn is_elsewhere(&self) -> bool {
        self.lock().is_elsewhere
    }

    /// More bytes are there.
    pub fn advance(&self, available: u64) {
        self.change(|state| state.available = available);
    }

    /// Nothing more will come.
    pub fn end(&self, result: Result<(), &Error>) {
        self.change(|state| {
            if state.end.is_none() {
                state.end = Some(result.map_err(|error| (error.kind(), error.to_string())));
            }
        });
        self.ended.notify_waiters();
    }

    /// Waits for the end, without blocking.
    pub async fn finished(&self) -> Result<(), Error> {
        loop {
            let ended = self.ended.notified();
            if let Some(end) = &self.lock().end {
                return end.clone().map_err(failed);
            }
            ended.await;
        }
    }

    /// Waits, without blocking, until there is something to read or the end; `false` when it ended without a file,
    /// which means that the blob was there already.
    pub async fn started(&self) -> Result<bool, Error> {
        loop {
            let ended = self.ended.notified();
            {
                let state = self.lock();
                match (&state.file, &state.end) {
                    (_, Some(Err(error))) => return Err(failed(error.clone())),
                    (Some(_), _) => return Ok(true),
                    (None, Some(Ok(()))) => return Ok(false),
                    (None, None) => {}
                }
            }
            ended.await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
        self.ended.notify_waiters();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed((kind, why): (Kind, String)) -> Error {
    Error::new(kind, why, String::new())
}

/// Reads along from the first byte; blocks until bytes come, and ends when the blob is verified.
pub struct Follow {
    download: Arc<Download>,
    offset: u64,
}

impl Follow {
    /// A reader of the whole blob.
    pub fn new(download: Arc<Download>) -> Self {
        Follow { download, offset: 0 }
    }
}

impl Read for Follow {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let (file, available) = {
            let mut state = self.download.lock();
            loop {
                match (&state.file, &state.end) {
                    (_, Some(Err(error))) => return Err(io::Error::other(failed(error.clone()))),
                    (Some(file), _) if state.available > self.offset => {
                        break (file.clone(), state.available);
                    }
                    (_, Some(Ok(()))) => return Ok(0),
                    _ => state = self.download.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            }
        };
        let length = buffer.len().min(usize::try_from(available - self.offset).unwrap_or(usize::MAX));
        let length = file.read_at(&mut buffer[..length], self.offset)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_reader_follows_to_the_end() {
        let download = Download::new();
        let mut file = tempfile::tempfile().unwrap();
        let reader = std::thread::spawn({
            let download = download.clone();
            move || {
                let mut all = Vec::new();
                Follow::new(download).read_to_end(&mut all).map(|_| all)
            }
        });
        file.write_all(b"one").unwrap();
        download.begin(file.try_clone().unwrap(), 3);
        file.write_all(b"two").unwrap();
        download.advance(6);
        download.end(Ok(()));
        assert_eq!(reader.join().unwrap().unwrap(), b"onetwo");
    }

    #[test]
    fn a_failure_reaches_the_reader_as_it_is() {
        let download = Download::new();
        download.begin(tempfile::tempfile().unwrap(), 0);
        download.end(Err(&Error::new(Kind::DeadlineExceeded, "fetch", "blob")));
        let error = Follow::new(download).read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.downcast::<Error>().unwrap().kind(), Kind::DeadlineExceeded);
    }
}
