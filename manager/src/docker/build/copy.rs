//! `COPY` and `ADD`: sources from the context, from stages and images, from URLs and from the Dockerfile itself.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::SystemTime;

use futures_util::StreamExt;
use orlop_proto::error::Context as _;
use sha2::{Digest as _, Sha256};

use super::change::directory;
use super::dockerfile::Copy;
use super::files::{Copying, Place, Source, joined_hash, single};
use super::output::{Broken, Console};
use super::pattern::Excluded;
use super::stage::{Build, State};
use crate::docker::container::fresh_id;
use crate::docker::failure::{Failure, Result};
use crate::docker::fetch;
use crate::image::unpack::hex;

/// What a file from a URL without a name is called; only where the target names it.
const UNNAMED: &str = "__unnamed__";
/// Mode of files from URLs.
const DOWNLOAD_MODE: u32 = 0o600;
/// Mode of files from the Dockerfile.
const DOCUMENT_MODE: u32 = 0o644;

/// Whether a source is a URL.
fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// The permission bits of `--chmod`.
fn mode(text: &str) -> Result<Option<u32>> {
    if text.is_empty() {
        return Ok(None);
    }
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.map(Some).ok_or_else(|| {
        Failure::invalid(format!(
            "invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"
        ))
    })
}

impl Build {
    /// Carries out `COPY` or `ADD`.
    pub(super) async fn copy(
        &self,
        state: &mut State,
        copy: &Copy,
        name: &str,
        console: &Console,
    ) -> Result<(), Broken> {
        let failed = |failure: Failure| failure.within(&format!("{name} failed"));
        let mode = mode(&copy.chmod)?;
        let (urls, paths): (Vec<&String>, Vec<&String>) =
            copy.sources.iter().partition(|source| is_url(source));
        if name == "COPY" && !urls.is_empty() {
            return Err(failed(Failure::invalid("source can't be a URL for COPY")).into());
        }
        let excluded: Vec<&str> = copy.excludes.iter().map(String::as_str).collect();
        Excluded::of(excluded.iter().copied())?;
        let keeps_owner = !copy.from.is_empty() && copy.chown.is_empty();
        let mut sources = Vec::new();
        let mut viewed = None;
        if !paths.is_empty() {
            let (place, key) = self.place(state, copy, console).await?;
            viewed = key;
            let paths: Vec<String> = paths.into_iter().cloned().collect();
            let patterns: Vec<String> = copy.excludes.clone();
            let found = tokio::task::spawn_blocking(move || {
                let excluded = Excluded::of(patterns.iter().map(String::as_str))?;
                place.find(&paths, &excluded, keeps_owner)
            });
            match found.await.map_err(|error| Failure::internal(error.to_string())).and_then(|found| found) {
                Ok(found) => sources.extend(found),
                Err(failure) => {
                    self.forget_view(viewed).await?;
                    return Err(failed(failure).into());
                }
            }
        }
        let done = self.copy_found(state, copy, name, (sources, urls, mode), console).await;
        self.forget_view(viewed).await?;
        done
    }

    async fn copy_found(
        &self,
        state: &mut State,
        copy: &Copy,
        name: &str,
        (mut sources, urls, mode): (Vec<Source>, Vec<&String>, Option<u32>),
        console: &Console,
    ) -> Result<(), Broken> {
        for url in urls {
            sources.push(
                self.download(url, copy)
                    .await
                    .map_err(|failure| failure.within(&format!("{name} failed")))?,
            );
        }
        for document in &copy.documents {
            sources.push(self.made_file(&document.name, document.text().as_bytes(), DOCUMENT_MODE)?);
        }
        let target = &copy.target;
        if sources.len() > 1 && !target.ends_with('/') {
            return Err(Failure::invalid(format!(
                "When using {name} with more than one source file, the destination must be a directory and end with a /"
            ))
            .into());
        }
        let chown = if copy.chown.is_empty() { String::new() } else { format!("--chown={} ", copy.chown) };
        let chmod = if copy.chmod.is_empty() { String::new() } else { format!("--chmod={} ", copy.chmod) };
        let said = format!("{name} {chown}{chmod}{} in {target} ", joined_hash(&sources));
        let said = state.nop(&said, " ");
        if self.take_cached(state, &said, &said, console).await? {
            return Ok(());
        }
        let whole = directory(&state.draft.config.working_dir, target);
        let copying = Copying {
            target: if target.ends_with('/') && whole != "/" { format!("{whole}/") } else { whole },
            chown: copy.chown.clone(),
            mode,
            keeps_owner: !copy.from.is_empty() && copy.chown.is_empty(),
            unpacks: name == "ADD",
            excluded: Excluded::of(copy.excludes.iter().map(String::as_str))?,
        };
        self.change_files(state, &said, &said, move |root| copying.copy(&root, &sources)).await
    }

    /// Where sources are: the context, a stage, an image.
    async fn place(
        &self,
        state: &State,
        copy: &Copy,
        console: &Console,
    ) -> Result<(Place, Option<String>), Broken> {
        if copy.from.is_empty() {
            let root = self.context.try_clone().map_err(|error| Failure::internal(error.to_string()))?;
            return Ok((Place { root, is_context: true }, None));
        }
        let found = match self.stage_of(&copy.from, state.index, true) {
            Some(stage) => self.outcome(stage).await?,
            None => self.image(&copy.from, None, console).await.map_err(|broken| {
                let context = format!("invalid from flag value {}", copy.from);
                Broken { failure: broken.failure.within(&context), code: broken.code }
            })?,
        };
        let (root, key) = self.view(&found).await?;
        Ok((Place { root, is_context: false }, key))
    }

    /// A file of the build's own.
    fn made_file(&self, name: &str, bytes: &[u8], mode: u32) -> Result<Source> {
        let (directory, mut file) = self.new_file(name, mode)?;
        file.write_all(bytes).context("write", name)?;
        single(directory, name)
    }

    fn new_file(&self, name: &str, mode: u32) -> Result<(OwnedFd, std::fs::File)> {
        use std::os::unix::fs::OpenOptionsExt;
        if name.is_empty() || name.contains('/') || name == "." || name == ".." {
            return Err(Failure::invalid(format!("invalid file name: {name}")));
        }
        let path = self.work.join(&format!("file-{}", fresh_id()?));
        std::fs::create_dir_all(&path).context("create", path.display().to_string())?;
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path.join(name));
        let file = file.context("create", name)?;
        let directory = std::fs::File::open(&path).context("open", path.display().to_string())?;
        Ok((directory.into(), file))
    }

    /// Fetches a URL.
    async fn download(&self, url: &str, copy: &Copy) -> Result<Source> {
        let response = fetch::get(url, &self.stop).await?;
        let name = match response.url().path().rsplit('/').next() {
            Some(name) if !name.is_empty() => name.to_owned(),
            _ if copy.target.ends_with('/') => {
                return Err(Failure::invalid(format!("cannot determine filename for source {url}")));
            }
            _ => UNNAMED.to_owned(),
        };
        let header = response.headers().get("last-modified").and_then(|value| value.to_str().ok());
        let changed: Option<SystemTime> = header.and_then(|text| httpdate::parse_http_date(text).ok());
        let (directory, mut file) = self.new_file(&name, DOWNLOAD_MODE)?;
        let mut hash = Sha256::new();
        let mut body = fetch::body(response, self.stop.clone());
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| Failure::invalid(error.to_string()))?;
            hash.update(&piece);
            file.write_all(&piece).context("write", &*name)?;
        }
        file.set_modified(changed.unwrap_or(SystemTime::UNIX_EPOCH)).context("change time of", &*name)?;
        let digest = format!("sha256:{}", hex(&hash.finalize()));
        if !copy.checksum.is_empty() && copy.checksum != digest {
            return Err(Failure::invalid(format!("digest mismatch {digest}: {}", copy.checksum)));
        }
        single(directory, &name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        assert_eq!(mode("755").unwrap(), Some(0o755));
        assert_eq!(mode("").unwrap(), None);
        assert!(mode("9").is_err() && mode("u+x").is_err() && mode("10000").is_err());
        assert!(is_url("https://x/y") && !is_url("http"));
    }
}
