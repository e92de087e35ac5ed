//! Verification of images by programs in a directory, as containerd's verifier `bindir` calls them.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::manifest::Descriptor;
use crate::config::ImageVerifier;

/// The media type of what verifiers read.
const DESCRIPTOR: &str = "application/vnd.oci.descriptor.v1+json";
/// The most that is kept of what a verifier says, in bytes.
const MAX_OUTPUT: u64 = 32 << 10;

/// The programs that are asked before an image is pulled.
pub struct Verifiers {
    config: ImageVerifier,
}

/// What a program decided.
struct Judgement {
    accepted: bool,
    code: i32,
    reason: String,
}

impl Verifiers {
    /// The programs of the configured directory, which is read anew for each image.
    pub fn new(config: ImageVerifier) -> Verifiers {
        Verifiers { config }
    }

    /// Asks the programs, by name, whether an image may be pulled; the first refusal ends it.
    ///
    /// # Errors
    ///
    /// `Unknown` in containerd's words for an image that one refuses, and where one cannot be asked.
    pub async fn check(&self, name: &str, descriptor: &Descriptor) -> Result<()> {
        let digest = descriptor.digest.to_string();
        let unanswered = |error: Error| {
            let text =
                format!("blocking pull of {name} with digest {digest}: image verifier bindir returned error");
            Error::because(Kind::Unknown, text, "", error)
        };
        let programs = programs(&self.config.bin_dir).map_err(unanswered)?;
        let limit = usize::try_from(self.config.max_verifiers).unwrap_or(usize::MAX);
        if programs.len() > limit {
            tracing::warn!(
                directory = %self.config.bin_dir.display(),
                "{} image verifiers are not asked: {limit} are at most", programs.len() - limit
            );
        }
        for program in programs.iter().take(limit) {
            let judgement = self.ask(program, name, descriptor).await.map_err(unanswered)?;
            if !judgement.accepted {
                let program = program.file_name().unwrap_or_default().display();
                let Judgement { code, reason, .. } = judgement;
                return Err(Error::exactly(
                    Kind::Unknown,
                    format!(
                        "image verifier bindir blocked pull of {name} with digest {digest} for reason: verifier \
                         {program} rejected image (exit code {code}): {reason}"
                    ),
                ));
            }
        }
        Ok(())
    }

    async fn ask(&self, program: &Path, name: &str, descriptor: &Descriptor) -> Result<Judgement> {
        let called = || format!("verifier {}", program.file_name().unwrap_or_default().display());
        let mut command = Command::new(program);
        command.args(["-name", name, "-digest", descriptor.digest.as_str(), "-stdin-media-type", DESCRIPTOR]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().context("failed to call", called())?;
        let input = json!({
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest.as_str(),
            "size": descriptor.size,
        });
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A program may decide without reading.
                let _ = stdin.write_all(format!("{input}\n").as_bytes()).await;
            }
        };
        let deadline = Duration::from_secs(self.config.per_verifier_timeout);
        let work = async { tokio::join!(feed, read(stdout), read(stderr), child.wait()) };
        let Ok(((), said, logged, ended)) = tokio::time::timeout(deadline, work).await else {
            let why = format!("it did not end within {deadline:?}");
            return Err(Error::because(Kind::DeadlineExceeded, "failed to call", called(), why));
        };
        let status = ended.context("failed to call", called())?;
        tracing::debug!(verifier = %program.display(), %status, "{logged}");
        let Some(code) = status.code() else {
            let why = format!("waiting on command to exit: {status}");
            return Err(Error::because(Kind::Unknown, "failed to call", called(), why));
        };
        Ok(Judgement { accepted: code == 0, code, reason: said })
    }
}

/// The start of what a program writes; the rest is read and dropped, so that it can end.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut start = Vec::new();
    // A torn pipe counts as the end of the output.
    let _ = (&mut stream).take(MAX_OUTPUT).read_to_end(&mut start).await;
    let rest = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.unwrap_or(0);
    let mut text = String::from_utf8_lossy(&start).trim().to_owned();
    if rest > 0 {
        text.push_str("(stdout truncated)");
    }
    text
}

/// What lies in a directory, by name; nothing where it is missing.
fn programs(directory: &Path) -> Result<Vec<PathBuf>> {
    let listed = || directory.display().to_string();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("failed to list directory contents", listed())?,
    };
    let mut programs = Vec::new();
    for entry in entries {
        programs.push(entry.context("failed to list directory contents", listed())?.path());
    }
    programs.sort_unstable();
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn verifiers(scripts: &[(&str, &str)], limit: i64) -> (tempfile::TempDir, Verifiers) {
        let directory = tempfile::tempdir().unwrap();
        for (name, script) in scripts {
            let path = directory.path().join(name);
            std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let bin_dir = directory.path().to_owned();
        let config = ImageVerifier { bin_dir, max_verifiers: limit, per_verifier_timeout: 1 };
        (directory, Verifiers::new(config))
    }

    async fn checked(scripts: &[(&str, &str)], limit: i64) -> Result<(), String> {
        let (_directory, verifiers) = verifiers(scripts, limit);
        let descriptor = Descriptor::of("type/x", b"content");
        verifiers.check("registry.test/a:1", &descriptor).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn programs_see_the_image_and_decide() {
        let told = r#"read -r line; case "$*:$line" in
            "-name registry.test/a:1 -digest sha256:"*" -stdin-media-type application/vnd.oci.descriptor.v1+json:"*'"mediaType":"type/x"'*) ;;
            *) echo "told $* $line"; exit 9;; esac"#;
        checked(&[("a", told), ("b", "exit 0")], 10).await.unwrap();
        checked(&[], 10).await.unwrap();
        let error = checked(&[("a", told), ("b", "echo not signed; exit 3")], 10).await.unwrap_err();
        assert!(
            error.ends_with("for reason: verifier b rejected image (exit code 3): not signed"),
            "{error}"
        );
        checked(&[("a", told), ("b", "exit 3")], 1).await.unwrap();
    }

    #[tokio::test]
    async fn a_program_that_cannot_decide_refuses() {
        for script in ["sleep 100", "kill -9 $$"] {
            let error = checked(&[("a", script)], -1).await.unwrap_err();
            assert!(error.starts_with("blocking pull of registry.test/a:1 with digest sha256:"), "{error}");
        }
        // Output without end neither fills the memory nor keeps the program from its end.
        checked(&[("a", "head -c 1000000 /dev/zero")], -1).await.unwrap();
    }
}
