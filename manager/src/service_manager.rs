//! Tells the service manager how it goes (sd_notify(3)); without one, nobody.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

use crate::db::{Database, META, Query, blocking};

/// How long a service manager that does not read is waited for: nothing else may stop over it.
const PATIENCE: Duration = Duration::from_secs(1);

fn tell(state: &[NotifyState]) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(path.as_bytes(), state) {
        tracing::warn!(%error, "the service manager does not listen");
    }
}

fn send(path: &[u8], state: &[NotifyState]) -> std::io::Result<()> {
    let address = match path.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let lines: String = state.iter().map(|state| format!("{state}\n")).collect();
    socket.send_to_addr(lines.as_bytes(), &address).map(drop)
}

/// Clients can connect.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] follows.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// The daemon is about to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says, as often as the service manager wants to hear it, that the daemon works: that its threads run and its database
/// answers. Ends at once where nobody wants to hear it.
pub async fn watch(database: Database) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let mut tick = tokio::time::interval(period / 2);
    loop {
        tick.tick().await;
        let database = database.clone();
        match blocking(move || database.read_now(|tx| tx.get(&META, "schema"))).await {
            Ok(_) => tell(&[NotifyState::Watchdog]),
            Err(error) => tracing::error!(%error, "the database does not answer"),
        }
    }
}
