//! A connection to systemd's own socket, which speaks D-Bus without a bus in between.
//!
//! Every manager listens there: the system's for root, a user's for that user. systemctl uses it too, so that it works where
//! no message bus runs. Signals come without a subscription.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::message::{self, Call, FIXED, Incoming};
use super::value::Value;

/// How long systemd may take for one job; runc waits as long.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest line of the handshake.
const LONGEST_LINE: usize = 512;

/// A connection.
pub(super) struct Bus {
    stream: UnixStream,
    /// What came and was not taken yet.
    received: Vec<u8>,
    serial: u32,
    /// Jobs that ended and were not asked for yet: path and result.
    ended: Vec<(String, String)>,
}

/// Why systemd did not do what it was asked.
pub(super) struct Refusal {
    /// The error's name, such as `org.freedesktop.systemd1.UnitExists`.
    pub(super) name: String,
    /// For people.
    pub(super) text: String,
}

impl Bus {
    /// Connects to a manager's socket and proves who we are: by the socket's own credentials.
    pub(super) fn connect(socket: &Path) -> Result<Bus> {
        let shown = || socket.to_string_lossy();
        let stream = UnixStream::connect(socket).context("connect to systemd at", shown())?;
        stream.set_read_timeout(Some(PATIENCE)).context("set up", shown())?;
        stream.set_write_timeout(Some(PATIENCE)).context("set up", shown())?;
        let mut bus = Bus { stream, received: Vec::new(), serial: 0, ended: Vec::new() };
        // An empty name stands for the one that the kernel tells, which is right in user namespaces too. All in one piece:
        // systemd forgets a call that comes together with BEGIN alone until something else comes (systemd 252).
        bus.stream.write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n").context("write to", "systemd")?;
        loop {
            let line = bus.line()?;
            match line.split(' ').next().unwrap_or_default() {
                "DATA" => {}
                "OK" => return Ok(bus),
                _ => return Err(Error::because(Kind::PermissionDenied, "log in to", "systemd", line)),
            }
        }
    }

    /// A line of the handshake.
    fn line(&mut self) -> Result<String> {
        loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.received.drain(..end + 2).collect::<Vec<u8>>();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            if self.received.len() > LONGEST_LINE {
                return Err(Error::new(Kind::DataLoss, "understand an answer of", "systemd"));
            }
            self.read_more()?;
        }
    }

    /// Takes bytes as soon as there are this many.
    fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        while self.received.len() < count {
            self.read_more()?;
        }
        Ok(self.received.drain(..count).collect())
    }

    fn read_more(&mut self) -> Result<()> {
        let mut chunk = [0; 4096];
        let count = self.stream.read(&mut chunk).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                Error::new(Kind::DeadlineExceeded, "wait for an answer of", "systemd")
            }
            _ => Error::io("read from", "systemd", error),
        })?;
        if count == 0 {
            return Err(Error::because(Kind::Unavailable, "read from", "systemd", "it has hung up"));
        }
        self.received.extend(&chunk[..count]);
        Ok(())
    }

    /// Calls a method and waits for its answer.
    ///
    /// # Errors
    /// The outer one is the connection's, the inner one what systemd answered.
    pub(super) fn call(&mut self, call: &Call) -> Result<std::result::Result<Vec<Value>, Refusal>> {
        self.serial += 1;
        self.stream.write_all(&call.encode(self.serial)).context("write to", "systemd")?;
        loop {
            match self.receive()? {
                Incoming::Answer(serial, values) if serial == self.serial => return Ok(Ok(values)),
                Incoming::Refusal(serial, name, text) if serial == self.serial => {
                    return Ok(Err(Refusal { name, text }));
                }
                other => self.note(other),
            }
        }
    }

    /// Waits for the end of a job; returns how it ended (`done`, `failed`, `canceled`, …).
    pub(super) fn wait_for(&mut self, job: &str) -> Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.ended.iter().position(|(path, _)| path == job) {
                return Ok(self.ended.swap_remove(at).1);
            }
            if Instant::now() > deadline {
                return Err(Error::new(Kind::DeadlineExceeded, "wait for systemd's", "job"));
            }
            let incoming = self.receive()?;
            self.note(incoming);
        }
    }

    /// Keeps what may be asked for later.
    fn note(&mut self, incoming: Incoming) {
        let Incoming::Signal { member, arguments } = incoming else { return };
        if let ("JobRemoved", [_, Value::Path(job), _, Value::Text(result)]) = (&*member, &arguments[..]) {
            self.ended.push((job.clone(), result.clone()));
        }
    }

    fn receive(&mut self) -> Result<Incoming> {
        let mut bytes = self.take(FIXED)?;
        let fixed = bytes[..].try_into().expect("as many were taken");
        let rest = message::length(&fixed)? - FIXED;
        bytes.extend(self.take(rest)?);
        message::decode(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A systemd that says this line and then these bytes.
    fn answered(line: &'static [u8], then: &'static [u8]) -> Result<Vec<Value>> {
        let path = std::env::temp_dir().join(format!(
            "orlop-bus-{}-{}",
            std::process::id(),
            line.len() + then.len()
        ));
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut bytes = [0; 512];
            let count = stream.read(&mut bytes).unwrap();
            assert_eq!(&bytes[..count], b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n");
            stream.write_all(line).unwrap();
            if !then.is_empty() {
                let _ = stream.read(&mut bytes);
                let _ = stream.write_all(then);
            }
        });
        let call = Call { path: "/o", interface: "i", method: "m", arguments: &[] };
        let answer = Bus::connect(&path).and_then(|mut bus| bus.call(&call));
        server.join().unwrap();
        std::fs::remove_file(&path).unwrap();
        answer.map(|answer| answer.unwrap_or_default())
    }

    #[test]
    fn a_call_is_answered() {
        let answer =
            b"l\x02\x01\x01\x04\0\0\0\x09\0\0\0\x0f\0\0\0\x05\x01u\0\x01\0\0\0\x08\x01g\0\x01u\0\0\x07\0\0\0";
        assert_eq!(answered(b"DATA\r\nOK 1234\r\n", answer).unwrap(), [Value::U32(7)]);
    }

    #[test]
    fn whoever_is_turned_away_learns_it() {
        let error = answered(b"DATA\r\nREJECTED\r\n", b"").unwrap_err();
        assert_eq!(error.kind(), Kind::PermissionDenied);
        let error = answered(b"DATA\r\nOK 1\r\n", b"not D-Bus at all").unwrap_err();
        assert_eq!(error.kind(), Kind::DataLoss);
        let error = answered(b"OK 1\r\n", b"l\x02").unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable);
    }
}
