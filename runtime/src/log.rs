//! Log lines as runc writes them, which go-runc and podman read.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::SystemTime;

use orlop_proto::contract::quote::quoted;
use orlop_proto::contract::time::rfc3339;
use orlop_proto::error::{Context, Result};

use crate::cli::{Global, LogFormat};

/// Where and how to write log lines.
pub struct Log {
    file: Option<File>,
    format: LogFormat,
    debug: bool,
}

#[derive(Clone, Copy)]
enum Level {
    Debug,
    Warning,
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Debug => "debug",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

impl Log {
    /// Standard error in text form, until the command line is known.
    pub fn to_stderr() -> Log {
        Log { file: None, format: LogFormat::Text, debug: false }
    }

    /// What the global flags ask for.
    pub fn open(global: &Global) -> Result<Log> {
        let file = match &global.log {
            None => None,
            Some(path) => {
                let opened = OpenOptions::new().append(true).create(true).open(path);
                Some(opened.context("open", path.to_string_lossy())?)
            }
        };
        Ok(Log { file, format: global.log_format, debug: global.debug })
    }

    fn write(&self, level: Level, message: &str) {
        let time = rfc3339(SystemTime::now());
        let line = match self.format {
            LogFormat::Text => {
                format!("time=\"{time}\" level={} msg={}\n", level.name(), quoted(message))
            }
            LogFormat::Json => {
                let message = serde_json::Value::from(message);
                format!("{{\"level\":\"{}\",\"msg\":{message},\"time\":\"{time}\"}}\n", level.name())
            }
        };
        // A log that cannot be written leaves nobody to tell.
        let _ = match &self.file {
            Some(file) => { file }.write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }

    /// Something the operator may want to follow.
    pub fn debug(&self, message: impl Display) {
        if self.debug {
            self.write(Level::Debug, &message.to_string());
        }
    }

    /// Something that does not stop the work.
    pub fn warning(&self, message: impl Display) {
        self.write(Level::Warning, &message.to_string());
    }

    /// The reason why the program ends; also on standard error if the log goes elsewhere.
    pub fn fatal(&self, message: impl Display) {
        let message = message.to_string();
        self.write(Level::Error, &message);
        if self.file.is_some() {
            eprintln!("{message}");
        }
    }
}
