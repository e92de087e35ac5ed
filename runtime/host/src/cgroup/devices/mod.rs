//! Which devices a container may use: the rules of `linux.resources.devices` reduced to a policy, and the policy as
//! control file lines (version 1) or as a BPF program (version 2).

mod program;
mod rules;

pub(super) use program::program;
pub use rules::default_rules;
pub(super) use rules::{Devices, Policy, Type, legacy_writes};
