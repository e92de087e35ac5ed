//! Builds C libraries from their pinned sources where a feature asks for one.
//!
//! Their release archives hold generated sources and need no configuration, so that a compiler for the target is all it takes.

use std::error::Error;

#[cfg(any(feature = "inflate", feature = "seccomp"))]
mod archive;
#[cfg(feature = "inflate")]
mod isal;
#[cfg(feature = "seccomp")]
mod libseccomp;

fn main() {
    println!("cargo::rerun-if-changed=build");
    if let Err(error) = build() {
        println!("cargo::error={error}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    #[cfg(feature = "inflate")]
    isal::build()?;
    #[cfg(feature = "seccomp")]
    libseccomp::build()?;
    Ok(())
}
