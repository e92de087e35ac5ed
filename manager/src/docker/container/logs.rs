//! Logs of containers: a line of JSON per line of output, in files that rotate (the driver `json-file`; `local` is kept
//! the same way with other limits).

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use orlop_proto::contract::time::rfc3339_nano;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::record::Record;
use super::state::parse;
use crate::db::blocking;
use crate::docker::failure::{Failure, Result};
use crate::docker::message::Channel;

/// The longest line that is one entry, in bytes, as under dockerd.
const LONGEST: usize = 16 << 10;
/// How much is read at a time when looking for the last lines.
const BLOCK: u64 = 64 << 10;
/// How many entries are read at a time.
const BATCH: usize = 256;

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The line with its end; without where a long line goes on.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// When it was written.
    pub time: String,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest file, in bytes; nothing for any size.
    pub size: Option<u64>,
    /// Number of files.
    pub files: usize,
}

impl Limits {
    /// The limits that a driver's options set.
    ///
    /// # Errors
    ///
    /// 400 for options that the driver does not have, or values that it cannot have.
    pub fn parse(driver: &str, options: &BTreeMap<String, String>) -> Result<Limits> {
        let known: &[&str] = match driver {
            "json-file" => &[
                "max-size",
                "max-file",
                "compress",
                "labels",
                "labels-regex",
                "env",
                "env-regex",
                "tag",
                "mode",
                "max-buffer-size",
            ],
            "local" => &["max-size", "max-file", "compress", "mode", "max-buffer-size"],
            "none" => &["mode", "max-buffer-size"],
            other => {
                return Err(Failure::invalid(format!("logger: no log driver named '{other}' is registered")));
            }
        };
        if let Some(unknown) = options.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(Failure::invalid(format!("unknown log opt '{unknown}' for {driver} log driver")));
        }
        let mut limits = match driver {
            "local" => Limits { size: Some(20 << 20), files: 5 },
            _ => Limits { size: None, files: 1 },
        };
        if let Some(text) = options.get("max-size") {
            limits.size = match text.as_str() {
                "-1" => None,
                text => Some(bytes(text).ok_or_else(|| Failure::invalid(format!("invalid size: '{text}'")))?),
            };
        }
        if let Some(text) = options.get("max-file") {
            let wrong = || Failure::invalid(format!("invalid value for max-file: {text:?}"));
            limits.files = text.parse().ok().filter(|&number| number > 0).ok_or_else(wrong)?;
        }
        Ok(limits)
    }
}

/// A size as people write it: `10m`, `1.5g`, `4096`.
pub fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_lowercase();
    let number = lower.trim_end_matches("ib").trim_end_matches('b');
    let (number, factor) = match number.chars().last()? {
        'k' => (&number[..number.len() - 1], 1_u64 << 10),
        'm' => (&number[..number.len() - 1], 1 << 20),
        'g' => (&number[..number.len() - 1], 1 << 30),
        't' => (&number[..number.len() - 1], 1 << 40),
        _ => (number, 1),
    };
    let number: f64 =
        number.trim().parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)?;
    Some((number * factor as f64) as u64)
}

/// How many bytes the lines take that begin within the room that is left: at least one line.
fn whole_lines(lines: &[u8], room: u64) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX).max(1);
    if lines.len() <= room {
        return lines.len();
    }
    let end = lines[room - 1..].iter().position(|&byte| byte == b'\n');
    end.map_or(lines.len(), |end| room + end)
}

/// The log of a container.
pub struct Log {
    /// The file that is written; the older ones have a number behind its name. Nothing for the driver `none`.
    path: Option<PathBuf>,
    limits: Limits,
    open: Mutex<Option<Open>>,
    /// Changes whenever something is written.
    written: watch::Sender<u64>,
}

struct Open {
    file: File,
    size: u64,
}

impl Open {
    fn at(path: &Path) -> std::io::Result<Open> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
        let size = file.metadata()?.len();
        Ok(Open { file, size })
    }
}

impl Log {
    /// The log of a container with this directory. Nothing is made yet.
    pub fn new(directory: &Path, record: &Record) -> Log {
        let driver = record.log_driver();
        let path = match driver {
            "none" => None,
            "local" => Some(directory.join("local-logs").join("container.log")),
            _ => Some(directory.join(format!("{}-json.log", record.id))),
        };
        // What could not be stored with a container is not among its options.
        let limits =
            Limits::parse(driver, &record.host.log_config.options).unwrap_or(Limits { size: None, files: 1 });
        Log { path, limits, open: Mutex::default(), written: watch::Sender::default() }
    }

    /// The file that is written.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Writes output; `rest` is the start of a line that has not ended yet.
    pub async fn write(self: &std::sync::Arc<Self>, channel: Channel, data: &[u8], rest: &mut Vec<u8>) {
        if self.path.is_none() {
            return;
        }
        let mut lines = Vec::new();
        let time = rfc3339_nano(SystemTime::now());
        for piece in data.split_inclusive(|&byte| byte == b'\n') {
            rest.extend_from_slice(piece);
            if rest.ends_with(b"\n") || rest.len() >= LONGEST {
                encode(channel, rest, &time, &mut lines);
                rest.clear();
            }
        }
        self.append(lines).await;
    }

    /// Writes what has no end, when nothing comes any more.
    pub async fn finish(self: &std::sync::Arc<Self>, channel: Channel, rest: &mut Vec<u8>) {
        if !rest.is_empty() && self.path.is_some() {
            let mut lines = Vec::new();
            encode(channel, rest, &rfc3339_nano(SystemTime::now()), &mut lines);
            rest.clear();
            self.append(lines).await;
        }
    }

    async fn append(self: &std::sync::Arc<Self>, lines: Vec<u8>) {
        if lines.is_empty() {
            return;
        }
        let log = self.clone();
        let written = blocking(move || {
            log.append_now(&lines).map_err(|error| {
                let path = log.path.as_deref().unwrap_or(Path::new("")).display().to_string();
                orlop_proto::error::Error::io("write log", path, error)
            })
        });
        // A full disk costs log lines, not the container.
        if let Err(error) = written.await {
            tracing::error!("{error}");
        }
        self.written.send_modify(|count| *count += 1);
    }

    fn append_now(&self, lines: &[u8]) -> std::io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = lines;
        while !lines.is_empty() {
            let is_full = |open: &Open| self.limits.size.is_some_and(|most| open.size >= most);
            if open.as_ref().is_some_and(is_full) {
                *open = None;
                self.rotate(path)?;
            }
            if open.is_none() {
                *open = Some(Open::at(path)?);
            }
            if let Some(open) = open.as_mut() {
                let room = self.limits.size.map_or(u64::MAX, |most| most - open.size.min(most));
                let (now, later) = lines.split_at(whole_lines(lines, room));
                open.file.write_all(now)?;
                open.size += now.len() as u64;
                lines = later;
            }
        }
        Ok(())
    }

    /// Moves each file to the next number; the last one goes.
    fn rotate(&self, path: &Path) -> std::io::Result<()> {
        if self.limits.files < 2 {
            return std::fs::remove_file(path);
        }
        for number in (1..self.limits.files).rev() {
            let from = if number == 1 { path.to_owned() } else { numbered(path, number - 1) };
            match std::fs::rename(from, numbered(path, number)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// The files that there are, the oldest first.
    fn files(&self) -> Vec<PathBuf> {
        let Some(path) = &self.path else { return Vec::new() };
        let older = (1..self.limits.files).rev().map(|number| numbered(path, number));
        older.chain([path.clone()]).filter(|path| path.exists()).collect()
    }

    /// Reads from the start, or the last lines.
    pub fn reader(self: &std::sync::Arc<Self>, tail: Option<usize>) -> Reader {
        // Subscribed first: what is written from here on is noticed.
        let written = self.written.subscribe();
        Reader { log: self.clone(), written, tail, files: None, current: None }
    }
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn encode(channel: Channel, line: &[u8], time: &str, lines: &mut Vec<u8>) {
    let stream = if channel == Channel::Stdout { "stdout" } else { "stderr" };
    let entry = Entry {
        log: String::from_utf8_lossy(line).into_owned(),
        stream: stream.to_owned(),
        time: time.to_owned(),
    };
    // Ignoring: text is always JSON.
    if serde_json::to_writer(&mut *lines, &entry).is_ok() {
        lines.push(b'\n');
    }
}

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
                match File::open(&path) {
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
            let Ok(mut file) = File::open(&path) else {
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
    use std::sync::Arc;

    use super::*;

    fn log(directory: &Path, size: Option<u64>, files: usize) -> Arc<Log> {
        Arc::new(Log {
            path: Some(directory.join("x-json.log")),
            limits: Limits { size, files },
            open: Mutex::default(),
            written: watch::Sender::default(),
        })
    }

    async fn texts(reader: Reader) -> (Reader, Vec<String>) {
        let (reader, entries) = reader.next().await.unwrap();
        (reader, entries.into_iter().map(|entry| entry.log).collect())
    }

    async fn write(log: &Arc<Log>, text: &str) {
        let mut rest = Vec::new();
        log.write(Channel::Stdout, text.as_bytes(), &mut rest).await;
        log.finish(Channel::Stdout, &mut rest).await;
    }

    #[tokio::test]
    async fn lines_are_read_back_and_followed() {
        let directory = tempfile::tempdir().unwrap();
        let log = log(directory.path(), None, 1);
        let (reader, nothing) = texts(log.reader(None)).await;
        assert!(nothing.is_empty());
        write(&log, "one\ntwo\nthr").await;
        let (_, all) = texts(log.reader(None)).await;
        assert_eq!(all, ["one\n", "two\n", "thr"]);
        let (_, last) = texts(log.reader(Some(2))).await;
        assert_eq!(last, ["two\n", "thr"]);
        let (_, none) = texts(log.reader(Some(0))).await;
        assert!(none.is_empty());
        let mut reader = reader;
        reader.wait().await;
        let (_, followed) = texts(reader).await;
        assert_eq!(followed.len(), 3, "a log that came into being later is followed");
    }

    #[tokio::test]
    async fn files_rotate_and_readers_follow() {
        let directory = tempfile::tempdir().unwrap();
        let log = log(directory.path(), Some(10), 3);
        write(&log, "a\n").await;
        let (reader, first) = texts(log.reader(None)).await;
        assert_eq!(first, ["a\n"]);
        for text in ["b\n", "c\n"] {
            write(&log, text).await;
        }
        assert_eq!(log.files().len(), 3);
        let (_, all) = texts(log.reader(None)).await;
        assert_eq!(all, ["a\n", "b\n", "c\n"]);
        let (_, last) = texts(log.reader(Some(2))).await;
        assert_eq!(last, ["b\n", "c\n"]);
        write(&log, "d\n").await;
        let (_, all) = texts(log.reader(None)).await;
        assert_eq!(all, ["b\n", "c\n", "d\n"], "the oldest goes");
        let (_, rest) = texts(reader).await;
        assert_eq!(rest.last().unwrap(), "d\n");
    }

    #[test]
    fn lines_stay_whole() {
        for (room, length) in [(1, 3), (3, 3), (4, 6), (6, 6), (100, 6)] {
            assert_eq!(whole_lines(b"ab\ncd\n", room), length, "{room}");
        }
    }

    #[test]
    fn options_are_checked() {
        let options = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let limits =
            Limits::parse("json-file", &options(&[("max-size", "1.5k"), ("max-file", "2")])).unwrap();
        assert_eq!(limits, Limits { size: Some(1536), files: 2 });
        for (driver, pairs) in [
            ("json-file", &[("nope", "1")][..]),
            ("json-file", &[("max-size", "x")]),
            ("json-file", &[("max-file", "0")]),
            ("nope", &[]),
        ] {
            assert!(Limits::parse(driver, &options(pairs)).is_err(), "{driver} {pairs:?}");
        }
        assert_eq!(bytes("10mb"), Some(10 << 20));
    }

    #[test]
    fn streams_and_times_choose() {
        let entry = Entry { log: "x".into(), stream: "stderr".into(), time: "1970-01-01T00:00:05Z".into() };
        let at = |seconds| Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds));
        let wanted = Wanted { stderr: true, ..Wanted::default() };
        assert!(wanted.accepts(&entry) && !Wanted { stdout: true, ..Wanted::default() }.accepts(&entry));
        assert!(!Wanted { since: at(6), ..wanted }.accepts(&entry));
        assert!(!Wanted { until: at(4), ..wanted }.accepts(&entry));
        assert!(Wanted { until: at(4), ..wanted }.is_past(&entry));
    }
}
