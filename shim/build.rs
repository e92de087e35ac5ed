//! Links what a static release shim never reads out of it: it pays for every page of its file while its container lives.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=tables.ld");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    // The profile aborts on a panic, so nobody unwinds a stack, and strips, so a backtrace would name nothing.
    if is("CARGO_CFG_TARGET_ENV", "musl") && is("PROFILE", "release") {
        let directory = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
        let script = Path::new(&directory).join("tables.ld");
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}", script.display());
        // A bit for most relocations where a table entry takes 24 bytes; musl has known them since 1.2.4.
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
