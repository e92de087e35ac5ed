//! `orlopd oci-hook`: a hook of the OCI runtime that runs another program, with what the runtime says of the container put into
//! its arguments and variables: `{{id}}`, `{{pid}}`, `{{bundle}}`, `{{rootfs}}`, `{{status}}`, `{{annotation "NAME"}}`.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde_json::Value;

/// Reads the container's state from standard input and becomes the program.
///
/// # Errors
///
/// When the state or the bundle's configuration cannot be read, a word names what there is not, or the program cannot be run.
pub fn run(words: &[String]) -> Result<()> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).context("read", "container state")?;
    let state = parse(&text, "container state")?;
    let path = Path::new(state["bundle"].as_str().unwrap_or_default()).join("config.json");
    let shown = path.display().to_string();
    let config = parse(&std::fs::read(&path).context("read", &shown)?, &shown)?;
    let values = Values { state, root: config["root"]["path"].as_str().unwrap_or_default().to_owned() };
    let words = words.iter().map(|word| values.fill(word)).collect::<Result<Vec<_>>>()?;
    let Some((program, arguments)) = words.split_first() else {
        return Err(Error::because(Kind::InvalidArgument, "oci-hook", "", "no program is given"));
    };
    let mut command = Command::new(program);
    command.args(arguments).env_clear();
    for (name, value) in std::env::vars_os() {
        // What is no text has no place for a value either.
        let value = match value.into_string() {
            Ok(value) => OsString::from_vec(values.fill(&value)?.into_bytes()),
            Err(value) => value,
        };
        command.env(name, value);
    }
    Err(command.exec()).context("run", program)
}

fn parse(text: &[u8], shown: &str) -> Result<Value> {
    serde_json::from_slice(text)
        .map_err(|error| Error::because(Kind::InvalidArgument, "parse", shown.to_owned(), error))
}

/// What can be named.
struct Values {
    state: Value,
    /// The root file system as the configuration has it.
    root: String,
}

impl Values {
    /// A text with its names replaced.
    fn fill(&self, text: &str) -> Result<String> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let wrong = || Error::because(Kind::InvalidArgument, "oci-hook", text, "unclosed action");
            let (name, after) = after.split_once("}}").ok_or_else(wrong)?;
            filled.push_str(before);
            filled.push_str(&self.value(name.trim(), text)?);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }

    fn value(&self, name: &str, text: &str) -> Result<String> {
        let said = |member: &str| self.state[member].as_str().unwrap_or_default().to_owned();
        if let Some(key) = name.strip_prefix("annotation").map(str::trim)
            && let Some(key) = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'))
        {
            return Ok(self.state["annotations"][key].as_str().unwrap_or_default().to_owned());
        }
        match name {
            "id" | "bundle" | "status" => Ok(said(name)),
            "pid" => Ok(self.state["pid"].as_i64().unwrap_or(0).to_string()),
            // An absolute path stays what it is.
            "rootfs" => Ok(Path::new(&said("bundle")).join(&self.root).display().to_string()),
            _ => {
                let why = format!("function {name:?} not defined");
                Err(Error::because(Kind::InvalidArgument, "oci-hook", text.to_owned(), why))
            }
        }
    }
}
