//! Names: which unit a container is, in which slice, and where systemd puts its cgroup. Pure.

use std::path::{Path, PathBuf};

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::annotations;
use super::value::Value;

/// A container's unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// Its name: `PREFIX-NAME.scope`, or a slice's.
    pub(super) name: String,
    /// The slice that it is part of.
    pub(super) slice: String,
    /// Whether a user's manager has it instead of the system's.
    pub(super) is_users: bool,
    /// Properties that the configuration's annotations ask for.
    pub(super) extra: Vec<(String, Value)>,
}

impl Unit {
    /// Decides the unit from `linux.cgroupsPath`, which has the form `slice:prefix:name` here.
    ///
    /// # Errors
    /// `InvalidArgument` for another form, with runc's words.
    pub fn plan(path: &str, id: &str, is_users: bool) -> Result<Unit> {
        let parts: Vec<&str> = match path {
            "" => vec!["", "orlop", id],
            path => path.split(':').collect(),
        };
        let [slice, prefix, name] = parts[..] else {
            return Err(Error::because(
                Kind::InvalidArgument,
                "read",
                "linux.cgroupsPath",
                format!(
                    "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {path:?} instead"
                ),
            ));
        };
        let slice = match slice {
            "" if is_users => "user.slice",
            "" => "system.slice",
            slice => slice,
        };
        expand(slice)?;
        // Who names a slice gets one; everything else is a scope.
        let name = if name.ends_with(".slice") {
            if expand(name)?.as_os_str().is_empty() {
                let why = "the root slice holds everything else, which would end with the container";
                return Err(Error::because(
                    Kind::InvalidArgument,
                    "use",
                    format!("cgroupsPath {path:?}"),
                    why,
                ));
            }
            name.to_owned()
        } else {
            format!("{prefix}-{name}.scope")
        };
        if name.contains('/') {
            return Err(Error::because(
                Kind::InvalidArgument,
                "read",
                "linux.cgroupsPath",
                format!("invalid unit name {name:?}"),
            ));
        }
        Ok(Unit { name, slice: slice.to_owned(), is_users, extra: Vec::new() })
    }

    /// The same unit with the properties that annotations ask for, `org.systemd.property.NAME`.
    ///
    /// # Errors
    /// `InvalidArgument` for one that cannot be read.
    pub(in crate::cgroup) fn with_annotations<'a>(
        mut self,
        annotations: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Unit> {
        self.extra = annotations::properties(annotations)?;
        Ok(self)
    }

    /// The unit of a container that was made before, by the directory of its cgroup.
    pub(in crate::cgroup) fn of_directory(directory: &Path, is_users: bool) -> Option<Unit> {
        let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let unit = name(directory).filter(|name| name.ends_with(".scope") || name.ends_with(".slice"))?;
        let slice = directory.parent().and_then(name).unwrap_or_default();
        Some(Unit { name: unit, slice, is_users, extra: Vec::new() })
    }

    /// Whether a user's manager has it.
    pub(in crate::cgroup) fn is_users(&self) -> bool {
        self.is_users
    }

    /// Whether it is a slice and not a scope: such a unit holds no processes of its own in systemd's eyes.
    pub(super) fn is_slice(&self) -> bool {
        self.name.ends_with(".slice")
    }

    /// Where its cgroup is below that of its manager.
    pub fn directory(&self) -> Result<PathBuf> {
        // A slice's place follows from its own name alone.
        if self.is_slice() { expand(&self.name) } else { Ok(expand(&self.slice)?.join(&self.name)) }
    }
}

/// The directory of a slice: `a-b.slice` lies in `a.slice` (systemd.slice(5)).
fn expand(slice: &str) -> Result<PathBuf> {
    let invalid = || {
        let why = format!("invalid slice name: {slice}");
        Error::because(Kind::InvalidArgument, "read", "linux.cgroupsPath", why)
    };
    let name = slice.strip_suffix(".slice").ok_or_else(invalid)?;
    // The root slice.
    if name == "-" {
        return Ok(PathBuf::new());
    }
    let mut path = PathBuf::new();
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() || part.contains('/') {
            return Err(invalid());
        }
        prefix.push_str(part);
        path.push(format!("{prefix}.slice"));
        prefix.push('-');
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(path: &str, is_users: bool) -> String {
        Unit::plan(path, "c1", is_users).unwrap().directory().unwrap().to_string_lossy().into_owned()
    }

    #[test]
    fn a_scope_lies_in_its_slice_and_that_in_its_parents() {
        assert_eq!(directory("", false), "system.slice/orlop-c1.scope");
        assert_eq!(directory("", true), "user.slice/orlop-c1.scope");
        assert_eq!(directory(":p:n", false), "system.slice/p-n.scope");
        assert_eq!(directory("machine.slice:libpod:x", false), "machine.slice/libpod-x.scope");
        assert_eq!(directory("a-b-c.slice:p:n", false), "a.slice/a-b.slice/a-b-c.slice/p-n.scope");
        assert_eq!(directory("-.slice:p:n", false), "p-n.scope");
    }

    #[test]
    fn who_names_a_slice_gets_one() {
        let unit = Unit::plan("a.slice:p:a-b.slice", "c1", false).unwrap();
        assert!(unit.is_slice());
        assert_eq!(unit.directory().unwrap(), Path::new("a.slice/a-b.slice"));
    }

    #[test]
    fn other_forms_are_refused() {
        for (path, why) in [
            ("/a/b", "slice:prefix:name"),
            ("a:b", "slice:prefix:name"),
            ("a:b:c:d", "slice:prefix:name"),
            ("a:p:n", "invalid slice name: a"),
            ("a--b.slice:p:n", "invalid slice name"),
            ("-a.slice:p:n", "invalid slice name"),
            ("a/b.slice:p:n", "invalid slice name"),
            ("a.slice:p:x/y", "invalid unit name"),
        ] {
            let error = Unit::plan(path, "c1", false).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn a_unit_is_found_again_by_its_directory() {
        let path = Path::new("/sys/fs/cgroup/a.slice/p-n.scope");
        let unit = Unit::of_directory(path, false).unwrap();
        assert_eq!((unit.name.as_str(), unit.slice.as_str()), ("p-n.scope", "a.slice"));
        assert_eq!(Unit::of_directory(Path::new("/sys/fs/cgroup/c1"), false), None);
    }
}
