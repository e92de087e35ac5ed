//! Programs for architectures whose calls we do not lay out ourselves, made by libseccomp.

use std::io;

use orlop_host::sys::seccomp::{Attribute, Filter, resolve};
use orlop_proto::error::{Error, Result};

use super::Policy;

/// From how many rules on a binary tree is laid out instead of a list; the number is runc's.
const TREE_FROM: usize = 8;

/// The program for a policy. Calls that are newer than the profile get the default.
pub(super) fn program(policy: &Policy) -> Result<Vec<u64>> {
    let fail =
        |operation: &'static str, object: String| move |error: io::Error| Error::io(operation, object, error);
    let mut filter =
        Filter::new(policy.default).map_err(fail("make a filter for", "linux.seccomp".to_owned()))?;
    for architecture in &policy.architectures {
        let covered = filter.add_architecture(*architecture);
        if covered.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EDOM)) {
            let why = format!("architecture {architecture:#x} has another byte order than this machine");
            return Err(super::refuse(why));
        }
        covered.map_err(fail("cover architecture", format!("{architecture:#x}")))?;
    }
    if policy.rules.len() > TREE_FROM {
        filter.set(Attribute::Optimize, 2).map_err(fail("lay out", "linux.seccomp".to_owned()))?;
    }
    for rule in policy.rules.iter().filter(|rule| rule.action != policy.default) {
        for name in &rule.names {
            // What libseccomp does not know cannot be called either.
            let Some(call) = resolve(name) else { continue };
            for comparisons in &rule.alternatives {
                let added = filter.add_rule(rule.action, call, comparisons);
                added.map_err(fail("add a rule for", name.clone()))?;
            }
        }
    }
    filter.program().map_err(fail("make the program of", "linux.seccomp".to_owned()))
}
