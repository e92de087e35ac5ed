//! libseccomp.
//!
//! Distributions' static libraries are built against glibc with fortified calls and do not link into a musl binary; their
//! shared ones cannot be linked into a static one.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

use super::archive::Archive;

const ARCHIVE: Archive = Archive {
    release: "libseccomp-2.6.0",
    sha256: "83b6085232d1588c379dc9b9cae47bb37407cf262e6e74993c61ba72d2a784dc",
    variable: "ORLOP_LIBSECCOMP",
};
/// A program of the sources that is no part of the library.
const NOT_LIBRARY: &str = "arch-syscall-dump.c";

pub fn build() -> Result<(), Box<dyn Error>> {
    let top = ARCHIVE.unpack()?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // All that the sources ask of ./configure.
    fs::write(out.join("configure.h"), "#define HAVE_LINUX_SECCOMP_H 1\n")?;
    let mut build = cc::Build::new();
    build.include(&out).include(top.join("include")).include(top.join("src")).warnings(false).opt_level(2);
    if env::var("CARGO_CFG_TARGET_ENV")? == "musl" {
        // The kernel's headers belong to no C library; musl's compiler does not look for them by itself.
        let machine = env::var("CARGO_CFG_TARGET_ARCH")?;
        for directory in ["/usr/include".to_owned(), format!("/usr/include/{machine}-linux-gnu")] {
            build.flag("-idirafter").flag(directory);
        }
    }
    for entry in fs::read_dir(top.join("src"))? {
        let path = entry?.path();
        let is_source = path.extension().is_some_and(|extension| extension == "c");
        if is_source && path.file_name().is_some_and(|name| name != NOT_LIBRARY) {
            build.file(path);
        }
    }
    build.try_compile("seccomp")?;
    Ok(())
}
