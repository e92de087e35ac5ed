//! AppArmor: the profile that a container gets, and the engine's own, `docker-default`.
//!
//! Follows dockerd: the profile is loaded at the start and again before a container that gets it, since those who look after
//! a machine's profiles unload what lies in none of their files. apparmor.d(5) is the language.

use std::fs;
use std::path::Path;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::spec::apparmor::{self, KERNEL, PARSER};
use tokio::sync::Mutex;

/// Name of the engine's own profile.
pub const DEFAULT: &str = "docker-default";
/// What stands for no profile.
const UNCONFINED: &str = "unconfined";

/// What this machine has of AppArmor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The kernel confines programs, and this daemon is in no container that says so (`container` in its environment).
    pub is_on: bool,
    /// The program that loads profiles is there.
    pub has_parser: bool,
}

impl Machine {
    /// Looks at this one.
    fn find() -> Machine {
        let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        let is_contained = std::env::var_os("container").is_some_and(|name| !name.is_empty());
        Machine {
            is_on: enabled.is_ok_and(|text| text.starts_with('Y'))
                && Path::new(KERNEL).exists()
                && !is_contained,
            has_parser: Path::new(PARSER).exists(),
        }
    }

    /// The profile of a container: the one that it names, none for a privileged one, else the engine's own. Without the program
    /// that loads it there is no such; a profile that is named is for the kernel to find.
    pub fn profile(self, named: &str, privileged: bool) -> Option<String> {
        let name = match named {
            "" if !self.has_parser => return None,
            "" if privileged => UNCONFINED,
            "" => DEFAULT,
            named => named,
        };
        self.is_on.then(|| name.to_owned())
    }
}

/// AppArmor on this machine.
#[derive(Debug)]
pub struct AppArmor {
    /// What there is.
    pub machine: Machine,
    /// Held while the profile is loaded: once is enough.
    turn: Mutex<()>,
}

impl AppArmor {
    /// Looks at this machine.
    pub fn find() -> AppArmor {
        AppArmor { machine: Machine::find(), turn: Mutex::default() }
    }

    /// Loads the engine's profile where the daemon starts; a failure is said, and met again by who needs the profile.
    pub async fn prepare(&self) {
        if !self.machine.is_on || !self.machine.has_parser {
            return;
        }
        if let Err(error) = self.load().await {
            tracing::error!("{error}");
        }
    }

    /// Sees that a profile which a process is about to get is there, if it is the engine's own.
    ///
    /// # Errors
    ///
    /// When it cannot be loaded, with what the program said.
    pub async fn ensure(&self, profile: &str) -> Result<()> {
        if profile == DEFAULT { self.load().await } else { Ok(()) }
    }

    async fn load(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        // Reads a file, and may run a program for a moment.
        let loaded = tokio::task::spawn_blocking(|| apparmor::load(DEFAULT)).await;
        let loaded = loaded.unwrap_or_else(|error| Err(Error::because(Kind::Internal, "wait", "", error)));
        let is_new = loaded.map_err(|error| {
            let context = format!("AppArmor enabled on system but the {DEFAULT} profile could not be loaded");
            Error::exactly(Kind::Internal, format!("{context}: {error}"))
        })?;
        if is_new {
            tracing::info!(profile = DEFAULT, "AppArmor profile loaded");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_the_named_one_or_the_engines() {
        let on = Machine { is_on: true, has_parser: true };
        let profile = |machine: Machine, named, privileged| machine.profile(named, privileged);
        for (named, privileged, expected) in [
            ("", false, DEFAULT),
            ("", true, UNCONFINED),
            ("mine", false, "mine"),
            ("mine", true, "mine"),
            (UNCONFINED, false, UNCONFINED),
            (DEFAULT, true, DEFAULT),
        ] {
            assert_eq!(profile(on, named, privileged).as_deref(), Some(expected), "{named} {privileged}");
        }
        let without_parser = Machine { has_parser: false, ..on };
        assert_eq!(profile(without_parser, "", false), None);
        assert_eq!(profile(without_parser, "", true), None);
        assert_eq!(profile(without_parser, "mine", false).as_deref(), Some("mine"));
        for has_parser in [false, true] {
            let off = Machine { is_on: false, has_parser };
            for (named, privileged) in [("", false), ("", true), ("mine", false), (UNCONFINED, false)] {
                assert_eq!(profile(off, named, privileged), None, "as dockerd without AppArmor");
            }
        }
    }
}
