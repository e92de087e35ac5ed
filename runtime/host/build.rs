//! Builds libseccomp from its pinned source when the feature `seccomp` asks for it.
//!
//! Distributions' static libraries are built against glibc with fortified calls and do not link into a musl binary; their
//! shared ones cannot be linked into a static one. Its release archive holds generated sources and needs no configuration, so
//! a C compiler for the target is all it takes.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "seccomp")]
    if let Err(error) = libseccomp::build() {
        println!("cargo::error={error}");
        std::process::exit(1);
    }
}

#[cfg(feature = "seccomp")]
mod libseccomp {
    use std::env;
    use std::error::Error;
    use std::fs;
    use std::path::{Path, PathBuf};

    use sha2::{Digest, Sha256};

    /// The release; `.ci/libseccomp` fetches the same.
    const ARCHIVE: &str = "libseccomp-2.6.0.tar.gz";
    const SHA256: &str = "83b6085232d1588c379dc9b9cae47bb37407cf262e6e74993c61ba72d2a784dc";
    /// The directory in the archive.
    const TOP: &str = "libseccomp-2.6.0";
    /// A program of the sources that is no part of the library.
    const NOT_LIBRARY: &str = "arch-syscall-dump.c";
    /// Names an archive in another place.
    const OVERRIDE: &str = "ORLOP_LIBSECCOMP";

    pub fn build() -> Result<(), Box<dyn Error>> {
        println!("cargo::rerun-if-env-changed={OVERRIDE}");
        let archive = archive()?;
        println!("cargo::rerun-if-changed={}", archive.display());
        let bytes = fs::read(&archive).map_err(|error| {
            format!("the source of libseccomp is not at {}: run .ci/setup ({error})", archive.display())
        })?;
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        if digest != SHA256 {
            let path = archive.display();
            return Err(format!(
                "{path} is not libseccomp 2.6.0: its sha256 is {digest}; remove it, run .ci/setup"
            )
            .into());
        }
        let out = PathBuf::from(env::var("OUT_DIR")?);
        tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..])).unpack(&out)?;
        compile(&out, &out.join(TOP))
    }

    fn archive() -> Result<PathBuf, Box<dyn Error>> {
        if let Some(path) = env::var_os(OVERRIDE) {
            return Ok(path.into());
        }
        let cache = match env::var_os("XDG_CACHE_HOME") {
            Some(path) => PathBuf::from(path),
            None => PathBuf::from(env::var_os("HOME").ok_or("HOME is not set")?).join(".cache"),
        };
        Ok(cache.join("orlop").join(ARCHIVE))
    }

    fn compile(out: &Path, top: &Path) -> Result<(), Box<dyn Error>> {
        // All that the sources ask of ./configure.
        fs::write(out.join("configure.h"), "#define HAVE_LINUX_SECCOMP_H 1\n")?;
        let mut build = cc::Build::new();
        build.include(out).include(top.join("include")).include(top.join("src")).warnings(false).opt_level(2);
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
}
