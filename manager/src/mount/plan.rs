//! What of a set of mounts is done here and what is left to the caller. Pure.
//!
//! A type such as `format/mkdir/overlay` asks for transformations before the mount, the first word first. Whatever a mount
//! that is done here builds on is done here too.

use orlop_proto::error::Result;

use super::transform::Transform;
use crate::labels::invalid;
use crate::snapshot::Mount;

/// The type of a file that becomes a block device.
pub const LOOP: &str = "loop";

/// A mount to be done here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is done to it before, in order.
    pub transforms: Vec<Transform>,
    /// The mount, with the type that is left.
    pub mount: Mount,
}

/// A set of mounts, divided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is done here, in order.
    pub own: Vec<Step>,
    /// What the caller does; of the first the transformations are done here.
    pub system: Vec<Step>,
    /// Whether the caller gets one bind mount of the last of our own.
    pub is_temporary: bool,
}

impl Plan {
    /// Divides mounts; all are done here for a caller who only wants to look. Nothing where nothing is to be done here.
    ///
    /// # Errors
    ///
    /// For more mounts than anybody keeps apart.
    pub fn new(mounts: Vec<Mount>, is_temporary: bool) -> Result<Option<Plan>> {
        if mounts.len() > 255 {
            return Err(invalid(format!("too many mounts ({}): maximum 255", mounts.len())));
        }
        let mut steps: Vec<Step> = mounts.into_iter().map(step).collect();
        let mut first_system = None;
        for (index, step) in steps.iter().enumerate() {
            if is_temporary || step.mount.kind == LOOP {
                first_system = Some(index + 1);
            } else if !step.transforms.is_empty() {
                first_system = Some(index);
            }
        }
        Ok(first_system.map(|first| {
            let system = steps.split_off(first);
            Plan { own: steps, system, is_temporary }
        }))
    }
}

fn step(mut mount: Mount) -> Step {
    let mut transforms = Vec::new();
    while let Some((word, rest)) = mount.kind.split_once('/') {
        // An unknown word belongs to the type.
        let Some(transform) = Transform::named(word) else { break };
        transforms.push(transform);
        mount.kind = rest.to_owned();
    }
    Step { transforms, mount }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(kinds: &[&str], is_temporary: bool) -> Option<(Vec<String>, Vec<String>)> {
        let mount = |kind: &&str| Mount { kind: (*kind).to_owned(), ..Mount::default() };
        let plan = Plan::new(kinds.iter().map(mount).collect(), is_temporary).unwrap()?;
        let kinds = |steps: Vec<Step>| steps.into_iter().map(|step| step.mount.kind).collect();
        Some((kinds(plan.own), kinds(plan.system)))
    }

    fn parts(own: &[&str], system: &[&str]) -> Option<(Vec<String>, Vec<String>)> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Some((words(own), words(system)))
    }

    #[test]
    fn plain_mounts_are_the_callers() {
        assert_eq!(plan(&["overlay"], false), None);
        assert_eq!(plan(&["bind", "bind"], false), None);
        assert_eq!(plan(&[], true), None);
        assert_eq!(plan(&["unknown/ext4"], false), None);
    }

    #[test]
    fn what_a_later_one_builds_on_is_done_here() {
        assert_eq!(plan(&["loop"], false), parts(&["loop"], &[]));
        assert_eq!(plan(&["loop", "format/ext4"], false), parts(&["loop"], &["ext4"]));
        assert_eq!(
            plan(&["ext4", "tmpfs", "format/overlay"], false),
            parts(&["ext4", "tmpfs"], &["overlay"])
        );
        assert_eq!(plan(&["format/bind", "bind"], false), parts(&[], &["bind", "bind"]));
        assert_eq!(plan(&["format/mkdir/overlay"], false), parts(&[], &["overlay"]));
        assert_eq!(plan(&["bind", "overlay"], true), parts(&["bind", "overlay"], &[]));
    }

    #[test]
    fn transformations_keep_their_order() {
        let mount = Mount { kind: "format/mkfs/x/ext4".to_owned(), ..Mount::default() };
        let plan = Plan::new(vec![mount], false).unwrap().unwrap();
        assert_eq!(plan.system[0].transforms, [Transform::Format, Transform::MakeFileSystem]);
        assert_eq!(plan.system[0].mount.kind, "x/ext4");
    }
}
