//! What a shim understands of what it is told at its start: from containerd 2.3 on all of it in one message, which older
//! ones take for the runtime's options and refuse. What a shim says of itself (`-info`) decides, once per program.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use orlop_proto::containerd::types::RuntimeInfo;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;
use prost_types::Any;

use super::launch::{Daemon, Launcher, run};

/// What our own shim calls itself.
const OURS: &str = "io.containerd.orlop.v1";
/// What containerd's own shim calls itself.
const RUNC: &str = "io.containerd.runc.v2";
/// The version of containerd whose shim takes the parameters.
const PARAMETERS_SINCE: (u32, u32) = (2, 3);
/// The most that is kept of what a shim tells of itself, which holds the features of its runtime, in bytes.
const MAX_INFO: usize = 256 << 10;
/// How long a shim may take to say what it is.
const DEADLINE: Duration = Duration::from_secs(2);
/// How many answers are kept; with more than that all are asked again.
const KEPT: usize = 64;

/// What a shim reads at its start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dialect {
    /// The runtime's options alone, as an Any.
    Options,
    /// BootstrapParams, which hold the options and more.
    Parameters,
}

/// A program as it was when it was asked: another file under the same path is another program.
#[derive(PartialEq, Eq, Hash)]
struct Program {
    path: PathBuf,
    inode: (u64, u64),
    modified: (i64, i64),
    options: Vec<u8>,
}

/// What is known of the shims on this machine.
#[derive(Default)]
pub struct Dialects {
    known: Mutex<HashMap<Program, Dialect>>,
}

impl Dialects {
    /// The dialect of a launcher's shim. One that says nothing of use gets the options alone, as all shims did.
    pub async fn of(&self, launcher: &Launcher, options: Option<&Any>) -> Dialect {
        // A shim that cannot be looked at will not start either, and then says why.
        let Ok(file) = tokio::fs::metadata(&launcher.shim).await else { return Dialect::Options };
        let program = Program {
            path: launcher.shim.clone(),
            inode: (file.dev(), file.ino()),
            modified: (file.mtime(), file.mtime_nsec()),
            options: options.map(Message::encode_to_vec).unwrap_or_default(),
        };
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dialect) = known().get(&program) {
            return *dialect;
        }
        let namespace = launcher.bundle.namespace.as_str();
        let dialect = match info(&launcher.daemon, &launcher.shim, namespace, options).await {
            Ok(info) => told(&info),
            // It may have been a busy moment.
            Err(error) if error.kind() == Kind::DeadlineExceeded => return Dialect::Options,
            Err(_) => Dialect::Options,
        };
        let mut known = known();
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(program, dialect);
        dialect
    }
}

/// What a shim says of itself and of the runtime that the options name.
///
/// # Errors
///
/// When it does not know the question, and `DeadlineExceeded` when it does not end.
pub async fn info(
    daemon: &Daemon,
    shim: &Path,
    namespace: &str,
    options: Option<&Any>,
) -> Result<RuntimeInfo> {
    let mut command = daemon.command(shim, namespace);
    command.arg("-info");
    let input = options.map(Message::encode_to_vec).unwrap_or_default();
    let output = run(shim, command, &input, MAX_INFO, DEADLINE, "shim info").await?;
    if !output.success {
        let reason = format!("{}: {}", output.all(), output.status);
        return Err(Error::because(Kind::Unknown, "failed to run", shim.display().to_string(), reason));
    }
    RuntimeInfo::decode(output.stdout.as_slice())
        .map_err(|error| Error::because(Kind::Unknown, "decode answer of", shim.display().to_string(), error))
}

fn told(info: &RuntimeInfo) -> Dialect {
    let version = info.version.as_ref().map(|version| version.version.as_str()).unwrap_or_default();
    match info.name.as_str() {
        OURS => Dialect::Parameters,
        RUNC if numbers(version) >= Some(PARAMETERS_SINCE) => Dialect::Parameters,
        _ => Dialect::Options,
    }
}

/// The first two numbers of a version such as `v2.3.1`.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split(|letter: char| !letter.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use orlop_proto::containerd::types::RuntimeVersion;

    use super::*;

    #[test]
    fn name_and_version_decide() {
        for (name, version, dialect) in [
            (OURS, "0.1.0", Dialect::Parameters),
            (RUNC, "v2.3.0", Dialect::Parameters),
            (RUNC, "2.10.1+unknown", Dialect::Parameters),
            (RUNC, "v3.0.0-beta.1", Dialect::Parameters),
            (RUNC, "v2.2.9", Dialect::Options),
            (RUNC, "1.7.24~ds1", Dialect::Options),
            (RUNC, "", Dialect::Options),
            ("io.containerd.kata.v2", "3.0.0", Dialect::Options),
            ("", "", Dialect::Options),
        ] {
            let version = RuntimeVersion { version: version.into(), ..RuntimeVersion::default() };
            let info = RuntimeInfo { name: name.into(), version: Some(version), ..RuntimeInfo::default() };
            assert_eq!(told(&info), dialect, "{info:?}");
        }
        assert_eq!(told(&RuntimeInfo::default()), Dialect::Options);
    }
}
