//! Reading the configuration again while serving (SIGHUP).

use std::time::Duration;

use orlop_proto::error::Result;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::{Registry, reload};

use crate::config::Config;
use crate::docker::Engine;
use crate::docker::settings::{File, Settings};
use crate::stores::Stores;
use crate::task::Supervisor;

/// Changes what is logged.
pub type LogHandle = reload::Handle<Targets, Registry>;

/// What is logged at a level: our own lines from there on, what the libraries below say only as far as it is a warning.
pub fn targets(level: LevelFilter) -> Targets {
    Targets::new().with_default(level.min(LevelFilter::WARN)).with_target(env!("CARGO_CRATE_NAME"), level)
}

/// How the configuration is read again, and what holds now.
pub struct Reload {
    /// Reads it as it was read first, with what the command line says.
    pub read: Box<dyn Fn() -> Result<Config> + Send>,
    /// What holds now.
    pub current: Config,
    /// Changes what is logged; nothing where the command line says it.
    pub log: Option<LogHandle>,
}

impl Reload {
    /// Reads the configuration and applies what can change while serving: the log's level, `[gc]`, `[snapshots]`,
    /// `[runtimes]`, and of Docker's daemon.json what dockerd reads again too. One that cannot be read changes nothing.
    pub fn apply(&mut self, stores: &Stores, supervisor: &Supervisor, engine: Option<&Engine>) {
        let read = || {
            let new = (self.read)()?;
            let file = match new.daemon_json() {
                Some((path, must_be_there)) => File::read(&path, must_be_there)?,
                None => None,
            };
            let settings = file.as_ref().map(Settings::of).transpose()?.unwrap_or_default();
            Ok::<_, orlop_proto::error::Error>((new, settings))
        };
        let (new, settings) = match read() {
            Ok(read) => read,
            Err(error) => return tracing::error!(%error, "the configuration stays as it was"),
        };
        if let Some(engine) = engine {
            engine.reload(&settings);
        }
        if let Some(log) = &self.log {
            // It fails only when there is no log any more.
            let _ = log.modify(|filter| *filter = targets(LevelFilter::from(new.debug.level)));
        }
        stores.collector.configure(new.gc.clone());
        stores.snapshots.set_write_back_delay(Duration::from_secs(new.snapshots.write_back_delay));
        stores.snapshots.set_seals(new.snapshots.fs_verity);
        stores.transfers.set_erofs_layers(new.snapshots.erofs_layers);
        supervisor.configure(new.runtimes.clone());
        let applied = Config {
            debug: crate::config::Debug { level: new.debug.level, ..self.current.debug.clone() },
            gc: new.gc.clone(),
            snapshots: new.snapshots.clone(),
            runtimes: new.runtimes.clone(),
            ..self.current.clone()
        };
        if applied != new {
            tracing::warn!("some of what changed in the configuration takes effect at the next start");
        }
        self.current = applied;
        tracing::info!("the configuration has been read again");
    }
}
