//! What an image says about the containers made of it (config.md of the OCI Image Specification).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::accounts::Accounts;
use super::process::merge_env;
use super::types::*;
use crate::error::Result;

/// The environment of a container whose image sets none.
const DEFAULT_ENV: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The configuration document of an image. Docker writes null where it has nothing, which reads as absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Image {
    /// GOARCH of the image's programs.
    pub architecture: String,
    /// GOOS of the image's programs.
    pub os: String,
    /// Variant of the architecture.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// How to run a container.
    pub config: Option<Config>,
    /// The layers.
    pub rootfs: RootFs,
}

/// `config` of an image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// User, with optional group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Environment, `NAME=value` each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// Program with its first arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Arguments, or the program where there is no entry point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Labels for containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Signal that asks the container to stop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
}

/// `rootfs` of an image.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Digests of the uncompressed layers, bottom first.
    pub diff_ids: Vec<String>,
}

impl Spec {
    /// Takes environment, program, directory and user from an image; variables that are set already win.
    ///
    /// A user's names are looked up in the container's own files.
    pub fn apply_image(&mut self, config: &Config, accounts: &Accounts) -> Result<()> {
        let process = self.process_mut();
        let base = match config.env.as_deref() {
            Some(env) if !env.is_empty() => env.to_vec(),
            _ => vec![DEFAULT_ENV.to_owned()],
        };
        process.env = merge_env(&base, &process.env);
        let words = [&config.entrypoint, &config.cmd].into_iter().flatten().flatten();
        process.args = words.cloned().collect();
        process.cwd = match config.working_dir.as_deref() {
            Some(directory) if !directory.is_empty() => directory.to_owned(),
            _ => "/".to_owned(),
        };
        match config.user.as_deref() {
            Some(user) if !user.is_empty() => self.set_user(user, accounts)?,
            _ => {
                let user = &mut self.process_mut().user;
                user.additional_gids = accounts.groups("root", user.gid);
            }
        }
        Ok(())
    }

    /// Runs the process as `user` or `user:group`, with the groups that the container's files give it.
    pub fn set_user(&mut self, user: &str, accounts: &Accounts) -> Result<()> {
        let resolved = accounts.user(user)?;
        let target = &mut self.process_mut().user;
        target.uid = resolved.uid;
        target.gid = resolved.gid;
        target.additional_gids = accounts.groups(&resolved.uid.to_string(), resolved.gid);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_fills_what_the_user_left_open() {
        let image: Image = serde_json::from_str(
            r#"{"os":"linux","architecture":"amd64","config":{"Env":["PATH=/bin","A=1"],"Entrypoint":["/e"],
                "Cmd":["c"],"WorkingDir":"/w","User":"web","Labels":null,"StopSignal":"SIGINT"},
                "rootfs":{"type":"layers","diff_ids":["sha256:1"]}}"#,
        )
        .unwrap();
        let accounts = Accounts {
            passwd: Some("web:x:33:34::/:/bin/sh".to_owned()),
            group: Some("log:x:40:web".to_owned()),
        };
        let mut spec = super::super::container("n", "i", false);
        spec.set_env(&["A=2".to_owned()]);
        spec.apply_image(image.config.as_ref().unwrap(), &accounts).unwrap();
        let process = spec.process.unwrap();
        assert_eq!(process.env, ["PATH=/bin", "A=2"]);
        assert_eq!(process.args, ["/e", "c"]);
        assert_eq!(process.cwd, "/w");
        assert_eq!((process.user.uid, process.user.gid), (33, 34));
        assert_eq!(process.user.additional_gids, [34, 40]);
    }

    #[test]
    fn an_empty_image_gets_the_defaults() {
        let mut spec = super::super::container("n", "i", false);
        spec.apply_image(&Config::default(), &Accounts::default()).unwrap();
        let process = spec.process.unwrap();
        assert_eq!(process.env, [DEFAULT_ENV]);
        assert_eq!(process.cwd, "/");
        assert_eq!(process.user.additional_gids, [0]);
        assert!(process.args.is_empty());
    }
}
