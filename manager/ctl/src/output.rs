//! What goes to standard output: aligned tables, JSON, units as `ctr` writes them.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime};

use orlop_proto::contract::time::{rfc3339, rfc3339_nano};
use orlop_proto::error::{Context, Result};
use prost_types::Timestamp;
use serde_json::Value;

/// Writes text to standard output.
///
/// # Errors
///
/// Those of the write, a reader that went away included.
pub fn print(text: &str) -> Result<()> {
    bytes(text.as_bytes())
}

/// Writes bytes to standard output.
///
/// # Errors
///
/// Those of the write, a reader that went away included.
pub fn bytes(data: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(data).and_then(|()| out.flush()).context("write", "standard output")
}

/// Writes a document indented as Go's tools do.
///
/// # Errors
///
/// Those of the write.
pub fn json(value: &Value) -> Result<()> {
    document(value)
}

/// The same with the members in the order of their type.
///
/// # Errors
///
/// Those of the write.
pub fn document(value: &impl serde::Serialize) -> Result<()> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    value.serialize(&mut serializer).map_err(io::Error::from).context("write", "JSON")?;
    text.push(b'\n');
    bytes(&text)
}

/// How the columns of a table are kept apart.
#[derive(Clone, Copy, PartialEq)]
pub enum Gap {
    /// Columns padded with this many spaces beyond the widest cell.
    Spaces(usize),
    /// Columns padded with tabs.
    Tabs,
}

/// Rows of cells, aligned as Go's `text/tabwriter` aligns them.
///
/// A last cell is padded like any other in rows marked as closed, as where `ctr` ends them with a tab.
pub struct Table {
    gap: Gap,
    rows: Vec<(Vec<String>, bool)>,
}

impl Table {
    /// A table with a closed head row.
    pub fn new(gap: Gap, head: &[&str]) -> Table {
        Table { gap, rows: vec![(head.iter().map(|&cell| cell.to_owned()).collect(), true)] }
    }

    /// A table without a head.
    pub fn headless(gap: Gap) -> Table {
        Table { gap, rows: Vec::new() }
    }

    /// Adds a row whose last cell is padded.
    pub fn closed(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push((cells.into_iter().collect(), true));
    }

    /// Adds a row whose last cell is not padded.
    pub fn open(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push((cells.into_iter().collect(), false));
    }

    /// The aligned text.
    pub fn render(&self) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for (cells, closed) in &self.rows {
            let padded = if *closed { cells.len() } else { cells.len().saturating_sub(1) };
            for (column, cell) in cells.iter().take(padded).enumerate() {
                widths.resize(widths.len().max(column + 1), 0);
                widths[column] = widths[column].max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for (cells, closed) in &self.rows {
            for (column, cell) in cells.iter().enumerate() {
                text.push_str(cell);
                if *closed || column + 1 < cells.len() {
                    self.pad(&mut text, cell.chars().count(), widths[column]);
                }
            }
            text.push('\n');
        }
        text
    }

    fn pad(&self, text: &mut String, used: usize, width: usize) {
        match self.gap {
            Gap::Spaces(gap) => text.extend(std::iter::repeat_n(' ', width + gap - used)),
            Gap::Tabs => {
                // One more than the widest cell, rounded up to the next stop.
                let stop = (width + 1).div_ceil(8) * 8;
                text.extend(std::iter::repeat_n('\t', (stop - used).div_ceil(8)));
            }
        }
    }

    /// Writes the table, with its head in bold on a terminal.
    ///
    /// # Errors
    ///
    /// Those of the write.
    pub fn print(&self) -> Result<()> {
        let text = self.render();
        match text.split_once('\n') {
            Some((head, rows)) if console::colors_enabled() && self.rows.len() > 1 => {
                print(&format!("{}\n{rows}", console::style(head).bold()))
            }
            _ => print(&text),
        }
    }
}

/// Bytes in powers of 1024 with one digit: `1008.3 KiB`.
pub fn binary_size(bytes: i64) -> String {
    let (value, unit) = scale(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]);
    format!("{value:.1} {unit}")
}

/// Bytes in powers of 1000 with four significant digits: `1.031MB`.
pub fn decimal_size(bytes: i64) -> String {
    let (value, unit) = scale(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB", "EB"]);
    let whole = value.trunc().to_string().len();
    let text = format!("{value:.*}", 4usize.saturating_sub(whole));
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

fn scale<'a>(bytes: i64, base: f64, units: &[&'a str]) -> (f64, &'a str) {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    (value, units[unit])
}

/// How long ago, in words: `About a minute`.
pub fn age(elapsed: Duration) -> String {
    let seconds = elapsed.as_secs();
    let minutes = seconds / 60;
    let hours = (elapsed.as_secs_f64() / 3600.0 + 0.5) as u64;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", seconds / 3600 / 24 / 365),
    }
}

/// The time since a timestamp, in words.
pub fn since(time: &Option<Timestamp>) -> String {
    let time = time.and_then(|time| SystemTime::try_from(time).ok());
    age(time.and_then(|time| time.elapsed().ok()).unwrap_or_default())
}

/// A timestamp as RFC 3339 with nanoseconds.
pub fn timestamp(time: &Option<Timestamp>) -> String {
    match time.and_then(|time| SystemTime::try_from(time).ok()) {
        Some(time) => rfc3339_nano(time),
        None => "0001-01-01T00:00:00Z".to_owned(),
    }
}

/// A timestamp as RFC 3339 in whole seconds.
pub fn timestamp_seconds(time: &Option<Timestamp>) -> String {
    match time.and_then(|time| SystemTime::try_from(time).ok()) {
        Some(time) => rfc3339(time),
        None => "0001-01-01T00:00:00Z".to_owned(),
    }
}

/// A timestamp as Go prints one: `2026-11-21 01:20:20.42 +0000 UTC`.
pub fn go_time(time: &Option<Timestamp>) -> String {
    let text = timestamp(time);
    format!("{} +0000 UTC", text.trim_end_matches('Z').replace('T', " "))
}

/// Labels as `key=value`, sorted, joined by commas.
pub fn labels(labels: &HashMap<String, String>) -> String {
    let mut pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.sort();
    pairs.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_as_tabwriter_does() {
        let mut table = Table::new(Gap::Spaces(4), &["TASK", "PID", "STATUS"]);
        table.open(["t1".into(), "25925".into(), "RUNNING".into()]);
        assert_eq!(table.render(), "TASK    PID      STATUS    \nt1      25925    RUNNING\n");
        let mut table = Table::new(Gap::Spaces(1), &["REF", "TYPE"]);
        table.closed(["image:1".into(), "x".into()]);
        assert_eq!(table.render(), "REF     TYPE \nimage:1 x    \n");
    }

    #[test]
    fn tabs_reach_the_next_stop() {
        let mut table = Table::new(Gap::Tabs, &["DIGEST", "SIZE", "LABELS"]);
        table.open(["x".repeat(71), "582B".into(), "-".into()]);
        let text = table.render();
        assert!(text.starts_with("DIGEST\t\t\t\t\t\t\t\t\tSIZE\tLABELS\t\n"), "{text:?}");
        assert!(text.ends_with("x\t582B\t-\n"), "{text:?}");
    }

    #[test]
    fn sizes_read_as_in_ctr() {
        assert_eq!(binary_size(582), "582.0 B");
        assert_eq!(binary_size(1_032_499), "1008.3 KiB");
        assert_eq!(decimal_size(582), "582B");
        assert_eq!(decimal_size(1_031_000), "1.031MB");
        assert_eq!(decimal_size(1_000), "1kB");
        assert_eq!(decimal_size(123_456), "123.5kB");
    }

    #[test]
    fn ages_read_as_in_ctr() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (600, "10 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (3 * 86400, "3 days"),
            (20 * 86400, "2 weeks"),
            (90 * 86400, "3 months"),
            (800 * 86400, "2 years"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn labels_are_sorted() {
        let map = [("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())].into();
        assert_eq!(labels(&map), "a=1,b=2");
    }
}
