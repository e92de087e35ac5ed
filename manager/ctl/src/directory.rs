//! Archives as directories: an image layout that lies unpacked is sent and received as the tar stream that a transfer carries.

use std::fs;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use tokio::task::JoinHandle;

/// A directory on its way into a stream, or out of one.
pub struct Work(JoinHandle<Result<()>>);

impl Work {
    /// Waits for the end; what went wrong here says why better than the transfer that it broke.
    ///
    /// # Errors
    ///
    /// Those of the directory, then those of the transfer.
    pub async fn end(self, transferred: Result<()>) -> Result<()> {
        let done =
            self.0.await.map_err(|error| Error::because(Kind::Internal, "read", "directory", error))?;
        match (done, transferred) {
            (Err(error), _) if error.kind() != Kind::Canceled => Err(error),
            (_, transferred) => transferred,
        }
    }
}

/// Reads a directory as a tar stream. Only files, directories and links in it are sent.
///
/// # Errors
///
/// Those of making a pipe.
pub fn read(directory: &Path) -> Result<(tokio::fs::File, Work)> {
    let (reader, writer) = std::io::pipe().context("make", "pipe")?;
    let directory = directory.to_owned();
    let work = tokio::task::spawn_blocking(move || send(&directory, writer));
    Ok((file(OwnedFd::from(reader)), Work(work)))
}

/// Writes a tar stream into a directory, which is made and must be empty.
///
/// # Errors
///
/// `FailedPrecondition` for one that holds something, and those of making it.
pub fn write(directory: &Path) -> Result<(tokio::fs::File, Work)> {
    let shown = directory.display().to_string();
    fs::create_dir_all(directory).context("create", &shown)?;
    if fs::read_dir(directory).context("read", &shown)?.next().is_some() {
        return Err(Error::because(
            Kind::FailedPrecondition,
            "export to",
            shown,
            "the directory is not empty",
        ));
    }
    let (reader, writer) = std::io::pipe().context("make", "pipe")?;
    let directory = directory.to_owned();
    let work = tokio::task::spawn_blocking(move || receive(&directory, reader));
    Ok((file(OwnedFd::from(writer)), Work(work)))
}

/// Empties a directory that was empty before.
///
/// # Errors
///
/// The first of removing.
pub fn clear(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    Ok(())
}

fn file(end: OwnedFd) -> tokio::fs::File {
    tokio::fs::File::from_std(fs::File::from(end))
}

fn send(directory: &Path, writer: PipeWriter) -> Result<()> {
    let mut archive = tar::Builder::new(writer);
    archive.follow_symlinks(false);
    let mut pending = vec![PathBuf::new()];
    while let Some(inner) = pending.pop() {
        let path = directory.join(&inner);
        let shown = path.display().to_string();
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).context("read", &shown)? {
            names.push(entry.context("read", &shown)?.file_name());
        }
        names.sort();
        for name in names {
            let (path, inner) = (path.join(&name), inner.join(&name));
            let shown = path.display().to_string();
            let kind = fs::symlink_metadata(&path).context("read", &shown)?.file_type();
            if kind.is_dir() {
                pending.push(inner);
            } else if kind.is_file() || kind.is_symlink() {
                archive.append_path_with_name(&path, &inner).map_err(|error| lost(&shown, error))?;
            }
        }
    }
    let mut writer = archive.into_inner().map_err(|error| lost("archive", error))?;
    writer.flush().map_err(|error| lost("archive", error))
}

fn receive(directory: &Path, reader: PipeReader) -> Result<()> {
    let shown = directory.display().to_string();
    let mut archive = tar::Archive::new(reader);
    archive.set_preserve_mtime(false);
    archive.unpack(directory).context("write", shown)
}

/// A server that takes no more has said why itself.
fn lost(object: &str, error: std::io::Error) -> Error {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe => Error::new(Kind::Canceled, "send", object),
        _ => Error::io("send", object, error),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_directory_goes_out_and_comes_back() {
        let place = tempfile::tempdir().unwrap();
        let (from, to) = (place.path().join("from"), place.path().join("to"));
        fs::create_dir_all(from.join("blobs/sha256")).unwrap();
        fs::write(from.join("oci-layout"), "{}").unwrap();
        fs::write(from.join("blobs/sha256/a"), vec![7; 200_000]).unwrap();
        let (mut stream, sent) = read(&from).unwrap();
        let mut tar = Vec::new();
        stream.read_to_end(&mut tar).await.unwrap();
        sent.end(Ok(())).await.unwrap();
        let (mut stream, written) = write(&to).unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, &tar).await.unwrap();
        tokio::io::AsyncWriteExt::flush(&mut stream).await.unwrap();
        drop(stream);
        written.end(Ok(())).await.unwrap();
        assert_eq!(fs::read(to.join("blobs/sha256/a")).unwrap(), vec![7; 200_000]);
        assert!(write(&to).is_err(), "it is not empty");
        let (stream, failed) = read(&place.path().join("absent")).unwrap();
        drop(stream);
        assert_eq!(failed.end(Ok(())).await.unwrap_err().kind(), Kind::NotFound);
    }
}
