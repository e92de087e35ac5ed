//! The inflate of ISA-L, whose assembler is for x86 (docs/decisions/0512-inflate.md).

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::archive::Archive;

const ARCHIVE: Archive = Archive {
    release: "isa-l-2.31.1",
    sha256: "e1d5573a4019738243b568ab1e1422e6ab7557c5cae33cc8686944d327ad6bb4",
    variable: "ORLOP_ISAL",
};
/// What the inflate takes: the second is the table of codes by which it knows the headers that its own deflate writes.
const SOURCES: [&str; 2] = ["igzip_inflate.c", "hufftables_c.c"];
/// The loop that decodes, for two generations of processors, what chooses between them, and their table.
const ASSEMBLED: [&str; 4] = [
    "igzip_decode_block_stateless_01",
    "igzip_decode_block_stateless_04",
    "igzip_inflate_multibinary",
    "rfc1951_lookup",
];
/// What makes it callable.
const BINDING: &str = "src/sys/inflate.c";

pub fn build() -> Result<(), Box<dyn Error>> {
    if env::var("CARGO_CFG_TARGET_ARCH")? != "x86_64" {
        return Ok(());
    }
    println!("cargo::rerun-if-changed={BINDING}");
    let top = ARCHIVE.unpack()?;
    let igzip = top.join("igzip");
    let mut build = cc::Build::new();
    build.include(top.join("include")).include(&igzip).warnings(false).opt_level(3).file(BINDING);
    build.files(SOURCES.iter().map(|source| igzip.join(source)));
    for name in ASSEMBLED {
        build.object(assemble(&top, name)?);
    }
    build.try_compile("isal_inflate")?;
    Ok(())
}

fn assemble(top: &Path, name: &str) -> Result<PathBuf, Box<dyn Error>> {
    let object = PathBuf::from(env::var("OUT_DIR")?).join(name).with_extension("o");
    let igzip = top.join("igzip");
    let mut nasm = Command::new("nasm");
    nasm.args(["-f", "elf64", "-D", "LINUX", "-o"]).arg(&object);
    for directory in [&top.join("include"), &igzip] {
        // Names are put right behind it.
        nasm.arg("-I").arg(directory.join(""));
    }
    let status = nasm.arg(igzip.join(name).with_extension("asm")).status();
    let status = status.map_err(|error| format!("nasm: {error}: run .ci/setup"))?;
    if !status.success() {
        return Err(format!("nasm {name}: {status}").into());
    }
    Ok(object)
}
