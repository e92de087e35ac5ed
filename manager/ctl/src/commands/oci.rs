//! `orlopctl oci`.

use orlop_proto::error::Result;
use orlop_proto::spec;

use super::Context;
use crate::cli::Oci;
use crate::{host, output};

pub fn execute(context: &Context<'_>, verb: Oci) -> Result<()> {
    match verb {
        Oci::Spec => {
            output::document(&spec::any_container(&context.global.namespace, host::unified_cgroups()))
        }
    }
}
