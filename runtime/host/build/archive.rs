//! Release archives, which `.ci/sources` fetches.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// A release.
pub struct Archive {
    /// Name and version: the directory in the archive, and the archive's name without its ending.
    pub release: &'static str,
    /// The archive's digest.
    pub sha256: &'static str,
    /// The variable that names an archive in another place.
    pub variable: &'static str,
}

impl Archive {
    /// Unpacks the archive into the build's directory, if it is the right one; returns where its files are.
    pub fn unpack(&self) -> Result<PathBuf, Box<dyn Error>> {
        println!("cargo::rerun-if-env-changed={}", self.variable);
        let (path, release) = (self.path()?, self.release);
        println!("cargo::rerun-if-changed={}", path.display());
        let bytes = fs::read(&path).map_err(|error| {
            format!("the source of {release} is not at {}: run .ci/setup ({error})", path.display())
        })?;
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        if digest != self.sha256 {
            let path = path.display();
            let why = format!("{path} is not {release}: its sha256 is {digest}; remove it, run .ci/setup");
            return Err(why.into());
        }
        let out = PathBuf::from(env::var("OUT_DIR")?);
        tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..])).unpack(&out)?;
        Ok(out.join(release))
    }

    fn path(&self) -> Result<PathBuf, Box<dyn Error>> {
        if let Some(path) = env::var_os(self.variable) {
            return Ok(path.into());
        }
        let cache = match env::var_os("XDG_CACHE_HOME") {
            Some(path) => PathBuf::from(path),
            None => PathBuf::from(env::var_os("HOME").ok_or("HOME is not set")?).join(".cache"),
        };
        Ok(cache.join("orlop").join(format!("{}.tar.gz", self.release)))
    }
}
