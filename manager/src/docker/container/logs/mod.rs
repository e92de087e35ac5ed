//! Logs of containers: a line of JSON per line of output, in files that rotate (the driver `json-file`; `local` is kept
//! the same way with other limits).

mod options;
mod reader;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use orlop_proto::contract::time::rfc3339_nano;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use self::options::Limits;
use self::options::attributes;
pub use self::reader::{Reader, Wanted};
use super::record::Record;
use crate::db::blocking;
use crate::docker::message::Channel;

/// The longest line that is one entry, in bytes, as under dockerd.
const LONGEST: usize = 16 << 10;
/// How well older files are compressed: as gzip(1) does by default.
const COMPRESSION: u32 = 6;

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The line with its end; without where a long line goes on.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// What the driver's options add: labels, variables, a tag.
    #[serde(default, rename = "attrs", skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// When it was written.
    pub time: String,
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
    attributes: BTreeMap<String, String>,
    open: Mutex<Option<Open>>,
    /// Held while an older file is compressed; the next rotation waits for it.
    compressing: Mutex<()>,
    /// Changes whenever something is written.
    written: watch::Sender<u64>,
}

struct Open {
    file: File,
    size: u64,
}

impl Open {
    fn at(path: &Path) -> io::Result<Open> {
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
        let limits = Limits::parse(driver, &record.host.log_config.options).unwrap_or_default();
        let attributes = if driver == "json-file" { attributes(record) } else { BTreeMap::new() };
        Log {
            path,
            limits,
            attributes,
            open: Mutex::default(),
            compressing: Mutex::default(),
            written: watch::Sender::default(),
        }
    }

    /// The file that is written.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Writes output; `rest` is the start of a line that has not ended yet.
    pub async fn write(self: &Arc<Self>, channel: Channel, data: &[u8], rest: &mut Vec<u8>) {
        if self.path.is_none() {
            return;
        }
        let mut lines = Vec::new();
        let time = rfc3339_nano(SystemTime::now());
        for piece in data.split_inclusive(|&byte| byte == b'\n') {
            rest.extend_from_slice(piece);
            if rest.ends_with(b"\n") || rest.len() >= LONGEST {
                self.encode(channel, rest, &time, &mut lines);
                rest.clear();
            }
        }
        self.append(lines).await;
    }

    /// Writes what has no end, when nothing comes any more.
    pub async fn finish(self: &Arc<Self>, channel: Channel, rest: &mut Vec<u8>) {
        if !rest.is_empty() && self.path.is_some() {
            let mut lines = Vec::new();
            self.encode(channel, rest, &rfc3339_nano(SystemTime::now()), &mut lines);
            rest.clear();
            self.append(lines).await;
        }
    }

    fn encode(&self, channel: Channel, line: &[u8], time: &str, lines: &mut Vec<u8>) {
        let stream = if channel == Channel::Stdout { "stdout" } else { "stderr" };
        let entry = Entry {
            log: String::from_utf8_lossy(line).into_owned(),
            stream: stream.to_owned(),
            attributes: self.attributes.clone(),
            time: time.to_owned(),
        };
        // Ignoring: text is always JSON.
        if serde_json::to_writer(&mut *lines, &entry).is_ok() {
            lines.push(b'\n');
        }
    }

    async fn append(self: &Arc<Self>, lines: Vec<u8>) {
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
        match written.await {
            Ok(true) => {
                let log = self.clone();
                tokio::task::spawn_blocking(move || log.compress());
            }
            Ok(false) => {}
            Err(error) => tracing::error!("{error}"),
        }
        self.written.send_modify(|count| *count += 1);
    }

    /// Writes lines; `true` when there is a file to compress now.
    fn append_now(&self, lines: &[u8]) -> io::Result<bool> {
        let Some(path) = &self.path else { return Ok(false) };
        let mut has_older = false;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = lines;
        while !lines.is_empty() {
            let is_full = |open: &Open| self.limits.size.is_some_and(|most| open.size >= most);
            if open.as_ref().is_some_and(is_full) {
                *open = None;
                self.rotate(path)?;
                has_older = self.limits.compress;
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
        Ok(has_older)
    }

    /// Moves each file to the next number, compressed or not; the last one goes.
    fn rotate(&self, path: &Path) -> io::Result<()> {
        if self.limits.files < 2 {
            return std::fs::remove_file(path);
        }
        let _compressing = self.compressing.lock().unwrap_or_else(PoisonError::into_inner);
        let last = numbered(path, self.limits.files - 1);
        for path in [compressed(&last), last] {
            unless_missing(std::fs::remove_file(path))?;
        }
        for number in (2..self.limits.files).rev() {
            let (from, to) = (numbered(path, number - 1), numbered(path, number));
            unless_missing(std::fs::rename(compressed(&from), compressed(&to)))?;
            unless_missing(std::fs::rename(from, to))?;
        }
        unless_missing(std::fs::rename(path, numbered(path, 1)))
    }

    /// Compresses the newest of the older files; one that cannot be stays as it is.
    fn compress(&self) {
        let Some(path) = &self.path else { return };
        let _compressing = self.compressing.lock().unwrap_or_else(PoisonError::into_inner);
        let from = numbered(path, 1);
        if let Err(error) = unless_missing(compress(&from)) {
            tracing::warn!(path = %from.display(), "compress log: {error}");
        }
    }

    /// The files that there are, the oldest first.
    fn files(&self) -> Vec<PathBuf> {
        let Some(path) = &self.path else { return Vec::new() };
        let older = (1..self.limits.files).rev().map(|number| numbered(path, number));
        older.chain([path.clone()]).filter(|path| path.exists() || compressed(path).exists()).collect()
    }

    /// Reads from the start, or the last lines.
    pub fn reader(self: &Arc<Self>, tail: Option<usize>) -> Reader {
        // Subscribed first: what is written from here on is noticed.
        let written = self.written.subscribe();
        Reader::new(self.clone(), written, tail)
    }
}

/// Opens a file of a log; one that was compressed is decompressed into a file without a name, which can be read from any
/// place.
fn open(path: &Path) -> io::Result<File> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    let packed = File::open(compressed(path))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
    let mut plain = options.open(directory)?;
    io::copy(&mut MultiGzDecoder::new(packed), &mut plain)?;
    plain.rewind()?;
    Ok(plain)
}

/// Compresses a file in its place: at every moment it is there, one way or the other.
fn compress(path: &Path) -> io::Result<()> {
    let mut from = File::open(path)?;
    let to = compressed(path);
    let unfinished = to.with_extension("gz.tmp");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&unfinished)?;
    let mut encoder = GzEncoder::new(file, flate2::Compression::new(COMPRESSION));
    io::copy(&mut from, &mut encoder)?;
    encoder.finish()?;
    std::fs::rename(&unfinished, &to)?;
    std::fs::remove_file(path)
}

/// Takes a file that is not there for no failure.
fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn compressed(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    name.into()
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(directory: &Path, size: Option<u64>, files: usize) -> Arc<Log> {
        Arc::new(Log {
            path: Some(directory.join("x-json.log")),
            limits: Limits { size, files, compress: false },
            attributes: BTreeMap::new(),
            open: Mutex::default(),
            compressing: Mutex::default(),
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

    #[tokio::test]
    async fn older_files_are_compressed_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(directory.path(), Some(10), 3);
        Arc::get_mut(&mut log).unwrap().limits.compress = true;
        for text in ["a\n", "b\n", "c\n", "d\n"] {
            write(&log, text).await;
            // What the task does that `write` left behind.
            log.compress();
        }
        let is_there = |text: &str| directory.path().join(format!("x-json.log{text}")).exists();
        assert!(is_there("") && is_there(".1.gz") && is_there(".2.gz"));
        assert!(!is_there(".1") && !is_there(".3.gz"));
        let (_, all) = texts(log.reader(None)).await;
        assert_eq!(all, ["b\n", "c\n", "d\n"]);
        let (_, last) = texts(log.reader(Some(2))).await;
        assert_eq!(last, ["c\n", "d\n"]);
    }

    #[test]
    fn lines_stay_whole() {
        for (room, length) in [(1, 3), (3, 3), (4, 6), (6, 6), (100, 6)] {
            assert_eq!(whole_lines(b"ab\ncd\n", room), length, "{room}");
        }
    }
}
