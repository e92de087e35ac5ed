//! A process's standard streams by FIFOs, as containerd's clients and shims share them.
//!
//! This side makes the FIFOs and opens its ends at once, keeping the other ends open too until the shim has opened
//! them: only then does end of file mean that the process has closed its output.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use orlop_proto::error::{Context, Result};
use tokio::sync::oneshot;

use crate::client::random_id;

/// Where a process's streams lead, in the terms of the task API. An empty path is /dev/null.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Paths {
    /// Standard input.
    pub stdin: String,
    /// Standard output: a FIFO or a log URI.
    pub stdout: String,
    /// Standard error; empty with a terminal.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// FIFOs made for one process.
#[derive(Debug)]
pub struct Fifos {
    directory: PathBuf,
    /// Their paths.
    pub paths: Paths,
}

impl Fifos {
    /// Makes the FIFOs in a new directory below `root`, named after the process.
    ///
    /// # Errors
    ///
    /// Those of mkdir(2) and mkfifo(3); nothing is left behind then.
    pub fn create(root: &Path, id: &str, terminal: bool) -> Result<Fifos> {
        let directory = root.join(random_id());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .context("create", directory.display().to_string())?;
        let mut fifos = Fifos { directory, paths: Paths { terminal, ..Paths::default() } };
        match fifos.fill(id) {
            Ok(()) => Ok(fifos),
            Err(error) => {
                fifos.remove();
                Err(error)
            }
        }
    }

    fn fill(&mut self, id: &str) -> Result<()> {
        let make = |stream: &str| -> Result<String> {
            let path = self.directory.join(format!("{id}-{stream}"));
            nix::unistd::mkfifo(&path, Mode::S_IRWXU).context("create FIFO", path.display().to_string())?;
            Ok(path.to_string_lossy().into_owned())
        };
        let stdin = make("stdin")?;
        let stdout = make("stdout")?;
        let stderr = if self.paths.terminal { String::new() } else { make("stderr")? };
        self.paths = Paths { stdin, stdout, stderr, terminal: self.paths.terminal };
        Ok(())
    }

    /// Removes the FIFOs; whoever has them open is not disturbed.
    pub fn remove(self) {
        remove(&self.paths);
    }
}

/// Removes FIFOs and the directory that was made for them. What is already gone or shared is left alone.
pub fn remove(paths: &Paths) {
    use std::os::unix::fs::FileTypeExt;
    for path in [&paths.stdin, &paths.stdout, &paths.stderr].map(Path::new) {
        if std::fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_fifo()) {
            // Somebody else may have removed it meanwhile.
            let _ = std::fs::remove_file(path);
        }
    }
    let made_by_us =
        |path: &String| path.starts_with('/').then(|| Path::new(path).parent()).flatten().map(Path::to_owned);
    if let Some(directory) = [&paths.stdout, &paths.stdin].into_iter().find_map(made_by_us) {
        // Only an empty directory goes.
        let _ = std::fs::remove_dir(directory);
    }
}

/// Removes the FIFOs of a process whose own were made below `root`; those of other clients are theirs to remove.
pub fn remove_below(root: &Path, paths: &Paths) {
    let below = |path: &String| Path::new(path).starts_with(root);
    if [&paths.stdin, &paths.stdout, &paths.stderr].into_iter().any(below) {
        remove(paths);
    }
}

/// This side's ends of the streams, being copied from and to our own standard streams.
pub struct Streams {
    keepers: Vec<File>,
    outputs: Vec<oneshot::Receiver<()>>,
    input: Option<oneshot::Receiver<()>>,
}

impl Streams {
    /// No streams of ours.
    pub fn none() -> Streams {
        Streams { keepers: Vec::new(), outputs: Vec::new(), input: None }
    }

    /// Opens the FIFOs without using them: a shim waits in open(2) for the other side of a detached process too.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn hold(paths: &Paths) -> Result<Streams> {
        let mut streams = Streams::none();
        for path in [&paths.stdin, &paths.stdout, &paths.stderr].into_iter().filter(|path| !path.is_empty()) {
            streams.keepers.push(open_fifo(path, OFlag::O_RDWR)?);
        }
        Ok(streams)
    }

    /// Opens the FIFOs and starts copying the output.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn open(paths: &Paths) -> Result<Streams> {
        let mut streams = Streams::none();
        if !paths.stdout.is_empty() {
            streams.copy_output(&paths.stdout, io::stdout())?;
        }
        if !paths.stderr.is_empty() {
            streams.copy_output(&paths.stderr, io::stderr())?;
        }
        if !paths.stdin.is_empty() {
            streams.copy_input(paths.stdin.clone());
        }
        Ok(streams)
    }

    fn copy_output(&mut self, path: &str, sink: impl Write + Send + 'static) -> Result<()> {
        let fifo = open_fifo(path, OFlag::O_RDONLY)?;
        self.keepers.push(open_fifo(path, OFlag::O_WRONLY)?);
        let (done, finished) = oneshot::channel();
        std::thread::spawn(move || {
            drain(fifo, sink);
            // Nobody may wait for it any more.
            let _ = done.send(());
        });
        self.outputs.push(finished);
        Ok(())
    }

    /// To be called when the shim has opened its ends: from now on end of file is the process's.
    pub fn opened(&mut self) {
        self.keepers.clear();
    }

    /// Passes our standard input on, as soon as the shim has opened its end: what is written before would be lost.
    fn copy_input(&mut self, path: String) {
        let (done, finished) = oneshot::channel();
        // This thread may wait for the shim or for a key for ever; it ends with the program.
        std::thread::spawn(move || {
            if let Ok(fifo) = File::options().write(true).open(path) {
                feed(io::stdin(), fifo);
            }
            // Nobody may wait for it any more.
            let _ = done.send(());
        });
        self.input = Some(finished);
    }

    /// Waits until our own standard input has ended; for ever if there is none to pass on.
    pub async fn input_ended(&mut self) {
        match &mut self.input {
            Some(finished) => {
                // The thread ends only after sending.
                let _ = finished.await;
                self.input = None;
            }
            None => std::future::pending().await,
        }
    }

    /// Waits until all output has been copied.
    pub async fn drained(&mut self) {
        self.keepers.clear();
        for finished in self.outputs.drain(..) {
            // The thread ends only after sending.
            let _ = finished.await;
        }
    }
}

/// Opens a FIFO without waiting for the other side, for blocking use.
fn open_fifo(path: &str, access: OFlag) -> Result<File> {
    let fd =
        open(path, access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty()).context("open", path)?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::empty())).context("make blocking", path)?;
    Ok(File::from(fd))
}

/// Copies until end of file. Output that cannot be written is dropped, for the process must not block on it.
fn drain(mut fifo: File, mut sink: impl Write) {
    let mut buffer = vec![0; 64 << 10];
    let mut broken = false;
    loop {
        match fifo.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) if !broken => {
                broken = sink.write_all(&buffer[..read]).and_then(|()| sink.flush()).is_err();
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Copies until end of file on either side.
fn feed(mut source: impl Read, mut fifo: File) {
    let mut buffer = vec![0; 32 << 10];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return,
            Ok(read) if fifo.write_all(&buffer[..read]).is_ok() => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifos_come_and_go_with_their_directory() {
        let root = tempfile::tempdir().unwrap();
        let fifos = Fifos::create(root.path(), "c1", false).unwrap();
        assert!(fifos.paths.stdout.ends_with("/c1-stdout"));
        assert!(Path::new(&fifos.paths.stderr).exists());
        fifos.remove();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
        let terminal = Fifos::create(root.path(), "c2", true).unwrap();
        assert_eq!(terminal.paths.stderr, "");
        terminal.remove();
    }

    #[test]
    fn a_log_is_never_removed() {
        let root = tempfile::tempdir().unwrap();
        let log = root.path().join("log");
        std::fs::write(&log, "x").unwrap();
        let path = log.to_str().unwrap().to_owned();
        remove(&Paths { stdout: path.clone(), stderr: format!("file://{path}"), ..Paths::default() });
        assert!(log.exists());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn output_before_the_shim_opens_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let fifos = Fifos::create(root.path(), "c", false).unwrap();
        let mut streams = Streams::none();
        let (send, receive) = std::sync::mpsc::channel();
        struct Sink(std::sync::mpsc::Sender<Vec<u8>>);
        impl Write for Sink {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                self.0.send(data.to_vec()).map_err(io::Error::other)?;
                Ok(data.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        streams.copy_output(&fifos.paths.stdout, Sink(send)).unwrap();
        let mut shim = std::fs::OpenOptions::new().write(true).open(&fifos.paths.stdout).unwrap();
        shim.write_all(b"hello").unwrap();
        streams.opened();
        drop(shim);
        streams.drained().await;
        assert_eq!(receive.iter().flatten().collect::<Vec<u8>>(), b"hello");
        fifos.remove();
    }
}
