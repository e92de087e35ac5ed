//! sd_notify(3) from within a container, as runc has it: a service manager that names a socket in `NOTIFY_SOCKET` hears when
//! the container's program is ready.
//!
//! The container gets a socket of its own, in a directory of the state directory that is mounted at `/run/notify`. Of what is
//! sent there, only `READY=…` is passed on: the manager trusts the runtime and not the container.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;
use oci_spec::runtime::{Mount, MountBuilder};
use orlop_host::file;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use crate::log::Log;
use crate::sync::send_descriptor;

/// The variable that names the manager's socket to us and the container's to its program.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// The directory of the state directory, and where the container sees it.
const DIRECTORY: &str = "notify";
const INSIDE: &str = "/run/notify";

/// The socket in it.
const NAME: &str = "notify.sock";

/// How long the manager may take to have read what it was told, in milliseconds; runc waits as long.
const BARRIER: u16 = 30_000;

/// What a container that may say that it is ready gets.
pub struct Notify {
    /// Where the socket is, in the state directory.
    directory: PathBuf,
    /// The manager's socket.
    manager: SocketAddr,
}

impl Notify {
    /// What our caller's environment asks for.
    pub fn asked(state: &Path) -> Result<Option<Notify>> {
        let Some(name) = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()) else { return Ok(None) };
        let bytes = name.as_encoded_bytes();
        let manager = match bytes.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&name),
        };
        let manager = manager.context("use", format!("{VARIABLE}={}", name.display()))?;
        Ok(Some(Notify { directory: state.join(DIRECTORY), manager }))
    }

    /// The mount for the container.
    pub fn mount(&self) -> Result<Mount> {
        let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(str::to_owned).to_vec();
        let mount = MountBuilder::default().destination(INSIDE).source(&self.directory).options(options);
        mount.build().map_err(|error| Error::because(Kind::Internal, "describe", INSIDE, error))
    }

    /// The variable for its program.
    pub fn variable() -> String {
        format!("{VARIABLE}={INSIDE}/{NAME}")
    }

    /// Makes the directory that is mounted.
    pub fn make_directory(&self) -> Result<()> {
        let made = std::fs::DirBuilder::new().mode(0o755).create(&self.directory);
        made.context("create", self.directory.to_string_lossy())
    }

    /// Makes the socket; none for a container that was made without the directory.
    pub fn listen(&self) -> Result<Option<Listener>> {
        let directory = match file::open(&self.directory, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.context("open", self.directory.to_string_lossy())?,
        };
        // A socket's address has 108 bytes, which the path of a state directory may exceed.
        let path = PathBuf::from(format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()));
        let shown = || self.directory.join(NAME).to_string_lossy().into_owned();
        let socket = UnixDatagram::bind(&path).context("listen on", shown())?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))
            .context("open up", shown())?;
        Ok(Some(Listener { socket, manager: self.manager.clone() }))
    }
}

/// The container's socket.
pub struct Listener {
    socket: UnixDatagram,
    manager: SocketAddr,
}

impl Listener {
    /// Waits until the program says that it is ready, and passes that on with its pid, so that the manager watches over the program
    /// and not over us, who go. Returns too when the process has ended.
    pub fn hand_over(&self, process: BorrowedFd, pid: i32, log: &Log) -> Result<()> {
        loop {
            let mut watched = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(process, PollFlags::POLLIN),
            ];
            match poll(&mut watched, PollTimeout::NONE) {
                Err(nix::Error::EINTR) => continue,
                other => other.context("wait for", "the program to be ready")?,
            };
            let [said, ended] = watched.map(|one| one.revents().is_some_and(|events| !events.is_empty()));
            if said && let Some(words) = self.ready()? {
                let manager = self.tell(&words)?;
                manager.send(format!("MAINPID={pid}\n").as_bytes()).context("tell", "the service manager")?;
                return barrier(&manager, log);
            }
            if ended && !said {
                return Ok(());
            }
        }
    }

    /// Passes on what there is to hear, if it is that the program is ready; we stay the process that the manager watches over.
    pub fn pass_on(&self) -> Result<()> {
        if let Some(words) = self.ready()? {
            self.tell(&words)?;
        }
        Ok(())
    }

    /// What the program said, if it is that it is ready. Others of its words are not for the manager.
    fn ready(&self) -> Result<Option<Vec<u8>>> {
        let mut words = [0u8; 4096];
        let length = match self.socket.recv(&mut words) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(None),
            other => other.context("hear", "the container")?,
        };
        let line = words[..length].split(|byte| *byte == b'\n').find(|line| line.starts_with(b"READY="));
        Ok(line.map(|line| [line, b"\n"].concat()))
    }

    fn tell(&self, words: &[u8]) -> Result<UnixDatagram> {
        let tell = || -> io::Result<UnixDatagram> {
            let manager = UnixDatagram::unbound()?;
            manager.connect_addr(&self.manager)?;
            manager.send(words)?;
            Ok(manager)
        };
        tell().context("tell", "the service manager")
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Waits until the manager has read what it was told (sd_notify_barrier(3)): it closes the descriptor that it is sent.
fn barrier(manager: &UnixDatagram, log: &Log) -> Result<()> {
    let (ours, theirs): (OwnedFd, OwnedFd) =
        pipe2(OFlag::O_CLOEXEC).context("create", "a pipe for the service manager")?;
    send_descriptor(manager.as_fd(), b"BARRIER=1", theirs.as_fd())?;
    drop(theirs);
    let mut watched = [PollFd::new(ours.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut watched, BARRIER) {
            Err(nix::Error::EINTR) => {}
            Ok(0) => {
                log.warning("the service manager has not answered for 30 seconds");
                return Ok(());
            }
            other => return other.map(drop).context("wait for", "the service manager"),
        }
    }
}
