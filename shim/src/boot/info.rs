//! `-info`: what this shim and its runtime are, for managers from containerd 2.0 on.

use std::ffi::CString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use orlop_proto::containerd::types::{RuntimeInfo, RuntimeVersion};
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use prost::Message;
use prost_types::Any;

use super::params::read_stdin;
use crate::{options, runtime};

/// URL of a runtime's features, whose value is JSON.
const FEATURES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Reads options from stdin and prints a RuntimeInfo.
pub fn info() -> Result<()> {
    let input = read_stdin()?;
    let given = match input.as_slice() {
        [] => None,
        bytes => {
            let invalid = |e| Error::because(Kind::InvalidArgument, "decode", "the options", e);
            Some(Any::decode(bytes).map_err(invalid)?)
        }
    };
    let options = options::read(given.as_ref())?;
    let name = options.binary_name.as_str();
    let program = runtime::find(name)?;
    let word = |bytes: &[u8]| CString::new(bytes).map_err(|_| Error::new(Kind::InvalidArgument, "run", name));
    // Runtimes that do not know the command have no features to tell.
    let features = runtime::run(&[word(program.as_os_str().as_bytes())?, word(b"features")?]).ok();
    let info = RuntimeInfo {
        name: "io.containerd.orlop.v1".to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: String::new(),
        }),
        options: given,
        features: features.map(|value| Any { type_url: FEATURES_URL.to_owned(), value }),
        ..RuntimeInfo::default()
    };
    std::io::stdout().write_all(&info.encode_to_vec()).context("write", "the information")
}
