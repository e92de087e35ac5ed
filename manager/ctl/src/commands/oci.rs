//! `orlopctl oci`.

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;
use orlop_proto::spec;

use super::Context;
use crate::cli::Oci;
use crate::platform::Platform;
use crate::{host, output};

pub fn execute(context: &Context<'_>, verb: Oci) -> Result<()> {
    match verb {
        Oci::Spec { platform } => {
            let platform = Platform::wanted(platform.as_deref())?;
            if platform.os != "linux" {
                let reason = "configurations are made for Linux alone";
                return Err(Error::because(Kind::Unimplemented, "--platform", platform.to_string(), reason));
            }
            output::document(&spec::any_container(&context.global.namespace, host::unified_cgroups()))
        }
    }
}
