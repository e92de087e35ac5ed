//! Reading a log: from the start or its last lines, and on as it grows.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tokio::sync::watch;

use super::{Entry, Log, open};
use crate::db::blocking;
use crate::docker::container::state::parse;
use crate::docker::failure::Result;

/// How much is read at a time when looking for the last lines.
const BLOCK: u64 = 64 << 10;
/// How many entries are read at a time.
const BATCH: usize = 256;

/// Reads a log, and waits for more.
pub struct Reader {
    log: std::sync::Arc<Log>,
    written: watch::Receiver<u64>,
    tail: Option<usize>,
    /// Files that are still to be read, the next one last; nothing before the first read.
    files: Option<Vec<PathBuf>>,
    current: Option<(BufReader<File>, Vec<u8>)>,
}

impl Reader {
    /// Reads a log; `written` changes whenever something is written to it.
    pub(super) fn new(
        log: std::sync::Arc<Log>,
        written: watch::Receiver<u64>,
        tail: Option<usize>,
    ) -> Reader {
        Reader { log, written, tail, files: None, current: None }
    }

    /// The next entries; none at the end of what is written.
    ///
    /// # Errors
    ///
    /// Those of reading.
    pub async fn next(self) -> Result<(Reader, Vec<Entry>)> {
        let path = self.log.path.as_deref().unwrap_or(Path::new("")).display().to_string();
        let read = blocking(move || {
            let mut reader = self;
            let entries = reader.read();
            entries
                .map(|entries| (reader, entries))
                .map_err(|error| orlop_proto::error::Error::io("read log", path, error))
        });
        Ok(read.await?)
    }

    /// Waits until something was written since the last read began.
    pub async fn wait(&mut self) {
        // Ignoring: the sender lives as long as this reader's log.
        let _ = self.written.changed().await;
    }

    fn read(&mut self) -> std::io::Result<Vec<Entry>> {
        self.written.borrow_and_update();
        if self.files.is_none() {
            self.begin()?;
        }
        let mut entries = Vec::new();
        loop {
            if self.current.is_none() {
                let Some(path) = self.files.as_mut().and_then(Vec::pop) else { break };
                match open(&path) {
                    Ok(file) => self.current = Some((BufReader::new(file), Vec::new())),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        let files = self.files.get_or_insert_default();
                        if files.is_empty() {
                            // Nothing was written yet: it is looked for again.
                            files.push(path);
                            break;
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            let Some((input, line)) = self.current.as_mut() else { break };
            while entries.len() < BATCH {
                if input.read_until(b'\n', line)? == 0 || !line.ends_with(b"\n") {
                    break;
                }
                // A line that is none (from a machine that went down) is passed over.
                if let Ok(entry) = serde_json::from_slice(line) {
                    entries.push(entry);
                }
                line.clear();
            }
            if entries.len() >= BATCH || !self.is_replaced() {
                break;
            }
            self.current = None;
        }
        Ok(entries)
    }

    /// Whether there are newer files than the one that was read to its end.
    fn is_replaced(&mut self) -> bool {
        use std::os::unix::fs::MetadataExt;
        if self.files.as_ref().is_some_and(|files| !files.is_empty()) {
            return true;
        }
        let (Some((input, _)), Some(path)) = (&self.current, &self.log.path) else { return false };
        let inode = |data: std::io::Result<std::fs::Metadata>| data.map(|data| data.ino()).ok();
        let newest = inode(std::fs::metadata(path));
        let replaced = newest.is_some() && newest != inode(input.get_ref().metadata());
        if replaced && let Some(files) = &mut self.files {
            files.push(path.clone());
        }
        replaced
    }

    /// Finds where to begin.
    fn begin(&mut self) -> std::io::Result<()> {
        let mut files = self.log.files();
        if files.is_empty() {
            files.extend(self.log.path.clone());
        }
        let Some(mut wanted) = self.tail else {
            files.reverse();
            self.files = Some(files);
            return Ok(());
        };
        let mut later = Vec::new();
        while let Some(path) = files.pop() {
            let Ok(mut file) = open(&path) else {
                later.push(path);
                continue;
            };
            let (at, found) = last_lines(&mut file, wanted)?;
            if found >= wanted || files.is_empty() {
                file.seek(SeekFrom::Start(at))?;
                self.current = Some((BufReader::new(file), Vec::new()));
                break;
            }
            wanted -= found;
            later.push(path);
        }
        self.files = Some(later);
        Ok(())
    }
}

/// Where the last lines of a file begin, and how many there are (up to those wanted).
fn last_lines(file: &mut File, wanted: usize) -> std::io::Result<(u64, usize)> {
    let end = file.metadata()?.len();
    if wanted == 0 {
        return Ok((end, 0));
    }
    let (mut at, mut found) = (end, 0);
    while at > 0 {
        let start = at.saturating_sub(BLOCK);
        let mut block = vec![0; (at - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let position = start + index as u64 + 1;
            // The end of the last line begins no line.
            if position != end {
                found += 1;
                if found == wanted {
                    return Ok((position, found));
                }
            }
        }
        at = start;
    }
    Ok((0, if end == 0 { 0 } else { found + 1 }))
}

/// Which entries a client wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Not before.
    pub since: Option<SystemTime>,
    /// Not after.
    pub until: Option<SystemTime>,
}

impl Wanted {
    /// Whether an entry is wanted.
    pub fn accepts(&self, entry: &Entry) -> bool {
        let is_stream = if entry.stream == "stderr" { self.stderr } else { self.stdout };
        let at = || parse(&entry.time);
        is_stream
            && self.since.is_none_or(|since| at().is_none_or(|at| at >= since))
            && self.until.is_none_or(|until| at().is_none_or(|at| at <= until))
    }

    /// Whether an entry and all later ones come too late.
    pub fn is_past(&self, entry: &Entry) -> bool {
        self.until.is_some_and(|until| parse(&entry.time).is_some_and(|at| at > until))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn streams_and_times_choose() {
        let entry = Entry {
            log: "x".into(),
            stream: "stderr".into(),
            attributes: BTreeMap::new(),
            time: "1970-01-01T00:00:05Z".into(),
        };
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds));
        let wanted = Wanted { stderr: true, ..Wanted::default() };
        assert!(wanted.accepts(&entry) && !Wanted { stdout: true, ..Wanted::default() }.accepts(&entry));
        assert!(!Wanted { since: at(6), ..wanted }.accepts(&entry));
        assert!(!Wanted { until: at(4), ..wanted }.accepts(&entry));
        assert!(Wanted { until: at(4), ..wanted }.is_past(&entry));
    }
}
