//! From `linux.resources` to values for control files: pure decisions, written out by the caller.
//!
//! Follows the runtime specification (config-linux.md, "Control groups"), the kernel's admin guides for cgroup v1 and
//! v2, and runc where these are silent.

mod v1;
mod v2;

use std::borrow::Cow;

use oci_spec::runtime::LinuxResources;
use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

/// A value for one control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The controller in the names of its hierarchy's version.
    pub(super) controller: Cow<'static, str>,
    /// The control file.
    pub(super) file: Cow<'static, str>,
    /// What is written to it.
    pub(super) value: String,
    /// What to do where the kernel has no such file.
    pub(super) missing: Missing,
}

/// What to do where the kernel has no such control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// The limit cannot be kept: fail.
    Fail,
    /// The value is what the kernel does anyway.
    Ignore,
    /// Another file means the same.
    Instead(Box<Setting>),
}

/// Settings of which the kernel checks each against the others' present values: one that it refuses is tried again
/// after the rest. Most groups have one member.
pub(super) type Together = Vec<Setting>;

/// All that `linux.resources` asks for, except device rules.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// For version 1 hierarchies, in the order of writing.
    pub(super) legacy: Vec<Together>,
    /// For the version 2 hierarchy, in the order of writing.
    pub(super) unified: Vec<Together>,
    /// What is asked for and ignored.
    pub(super) warnings: Vec<String>,
}

impl Limits {
    /// A limit of one process, if there is one.
    pub(super) fn of_one_process(&self) -> Option<&Setting> {
        self.legacy.iter().chain(&self.unified).flatten().find(|setting| is_one_process(setting))
    }

    /// Makes a limit of one process one of two.
    pub(super) fn leave_room_for_two(&mut self) {
        let all = self.legacy.iter_mut().chain(&mut self.unified).flatten();
        all.filter(|setting| is_one_process(setting)).for_each(|setting| setting.value = "2".to_owned());
    }
}

fn is_one_process(setting: &Setting) -> bool {
    setting.file == "pids.max" && setting.value.trim() == "1"
}

/// Decides what to write where controllers for which `is_legacy` holds are in version 1 hierarchies and the others,
/// if anywhere, in the version 2 one.
///
/// `present` reads a file of the version 2 group: what is not asked for keeps its value, also where version 2 has one file, or
/// one sum, for two limits of the specification. A new group has nothing to keep.
///
/// # Errors
/// `InvalidArgument` for a value that no kernel takes.
pub(super) fn plan(
    resources: &LinuxResources,
    is_unified_only: bool,
    is_legacy: impl Fn(&str) -> bool,
    present: impl Fn(&str) -> Option<String>,
) -> Result<Limits> {
    let mut warnings = Vec::new();
    if resources.memory().is_some_and(|memory| memory.kernel().is_some() || memory.kernel_tcp().is_some()) {
        warnings.push("Kernel memory settings are ignored and will be removed".to_owned());
    }
    if is_unified_only {
        return Ok(Limits { legacy: Vec::new(), unified: v2::settings(resources, &present)?, warnings });
    }
    if resources.unified().as_ref().is_some_and(|unified| !unified.is_empty()) {
        return Err(refuse("linux.resources.unified", "cannot use unified on cgroup v1"));
    }
    let (legacy, elsewhere): (Vec<_>, Vec<_>) = v1::settings(resources)?
        .into_iter()
        .partition(|together| together.first().is_some_and(|setting| is_legacy(&setting.controller)));
    let mut unified = Vec::new();
    if !elsewhere.is_empty() {
        unified = v2::settings(resources, &present)?;
        for missing in elsewhere.iter().flatten() {
            let is_same = |one: &Setting| one.controller == modern(&missing.controller);
            if missing.missing == Missing::Fail && !unified.iter().flatten().any(is_same) {
                return Err(no_controller(&missing.controller));
            }
        }
        unified.retain(|together| {
            let wanted =
                |legacy: &Setting| together.iter().any(|one| one.controller == modern(&legacy.controller));
            elsewhere.iter().flatten().any(wanted)
        });
    }
    Ok(Limits { legacy, unified, warnings })
}

/// The version 2 name of a version 1 controller.
fn modern(controller: &str) -> &str {
    match controller {
        "blkio" => "io",
        other => other,
    }
}

/// The error for a limit whose controller the container's cgroup does not have.
pub(super) fn no_controller(controller: &str) -> Error {
    let why = "container could not join or create cgroup";
    Error::because(Kind::FailedPrecondition, format!("cannot set {controller} limit"), "", why)
}

fn refuse(what: &'static str, why: impl Into<String>) -> Error {
    Error::because(Kind::InvalidArgument, "set", what, why.into())
}

fn setting(
    controller: &'static str,
    file: impl Into<Cow<'static, str>>,
    value: impl ToString,
    missing: Missing,
) -> Setting {
    Setting { controller: controller.into(), file: file.into(), value: value.to_string(), missing }
}

/// A value of which zero means that it is not set.
fn nonzero<T: Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

/// The words of a number of which -1 means that there is no limit.
fn or_max(value: i64) -> String {
    if value == -1 { "max".to_owned() } else { value.to_string() }
}

/// The text of huge page limits: the file's prefix is the same on both versions.
fn huge_pages(resources: &LinuxResources, limit: &str, reserved: &str) -> Result<Vec<Together>> {
    let mut settings = Vec::new();
    for page in resources.hugepage_limits().iter().flatten() {
        let size = page.page_size();
        if size.is_empty() || size.contains('/') {
            return Err(refuse("linux.resources.hugepageLimits", format!("invalid page size {size:?}")));
        }
        let value = page.limit();
        settings.push(vec![setting("hugetlb", format!("hugetlb.{size}.{limit}"), value, Missing::Fail)]);
        settings.push(vec![setting("hugetlb", format!("hugetlb.{size}.{reserved}"), value, Missing::Ignore)]);
    }
    Ok(settings)
}

/// `rdma.max`, which is the same on both versions; devices in the order of their names.
fn rdma(resources: &LinuxResources) -> Vec<Together> {
    let mut devices: Vec<_> = resources.rdma().iter().flatten().collect();
    devices.sort_by_key(|(name, _)| name.as_str());
    devices
        .into_iter()
        .filter_map(|(name, limit)| {
            let handles = limit.hca_handles().map(|count| format!(" hca_handle={count}"));
            let objects = limit.hca_objects().map(|count| format!(" hca_object={count}"));
            (handles.is_some() || objects.is_some()).then(|| {
                let value = format!("{name}{}{}", handles.unwrap_or_default(), objects.unwrap_or_default());
                vec![setting("rdma", "rdma.max", value, Missing::Fail)]
            })
        })
        .collect()
}

#[cfg(test)]
mod tests;
