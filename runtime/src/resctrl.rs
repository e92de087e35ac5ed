//! Intel RDT: the container's class of service and monitoring group in the resctrl file system (runtime-spec, "IntelRdt"; the
//! kernel's filesystems/resctrl.rst).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxIntelRdt;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use serde::{Deserialize, Serialize};

/// Where the kernel has a directory for the file system to be mounted on.
const USUAL_PLACE: &str = "/sys/fs/resctrl";

/// A container's groups, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    root: PathBuf,
    class: PathBuf,
    /// The class has the configuration's name, and is not the container's alone.
    is_named: bool,
    /// Lines for the class's `schemata` file.
    schemata: Vec<String>,
    /// How many of these an existing class must have already.
    fixed: usize,
    monitoring: Option<PathBuf>,
}

/// Groups that a container is in, as its state keeps them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// The class of service.
    pub class: PathBuf,
    /// Every group that a process of the container is put into.
    tasks: Vec<PathBuf>,
    /// Directories that go with the container.
    made: Vec<PathBuf>,
}

/// Where the file system is mounted.
///
/// # Errors
/// `FailedPrecondition` if it is not.
pub fn root() -> Result<PathBuf> {
    if let Some(path) = crate::switches::resctrl() {
        return Ok(path);
    }
    let table = fs::read_to_string("/proc/self/mountinfo").context("read", "/proc/self/mountinfo")?;
    find(&table).ok_or_else(|| {
        let why = "intelRdt is specified in config, but Intel RDT is not enabled";
        Error::exactly(Kind::FailedPrecondition, why)
    })
}

fn find(table: &str) -> Option<PathBuf> {
    let points = table.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let is_resctrl = right.split(' ').next() == Some("resctrl");
        is_resctrl.then(|| left.split(' ').nth(4)).flatten().map(PathBuf::from)
    });
    let all: Vec<_> = points.collect();
    all.iter().find(|point| *point == Path::new(USUAL_PLACE)).or(all.first()).cloned()
}

/// Decides where a container goes. Reads the file system and changes nothing.
///
/// # Errors
/// `InvalidArgument` for a name or schema that cannot be, `FailedPrecondition` for what the machine lacks or what an existing
/// class has otherwise.
pub fn plan(configured: &LinuxIntelRdt, id: &str, root: PathBuf) -> Result<Plan> {
    let name = configured.clos_id().as_deref().unwrap_or("");
    if name == "." || name == ".." || name.len() > 1 && name.contains('/') {
        return Err(refuse(format!("invalid intelRdt.ClosID {name:?}")));
    }
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (cache, bandwidth) = (set(configured.l3_cache_schema()), set(configured.mem_bw_schema()));
    for (schema, member, resource, technology) in
        [(&cache, "l3CacheSchema", "L3", "CAT"), (&bandwidth, "memBwSchema", "MB", "MBA")]
    {
        if schema.is_some() && !root.join("info").join(resource).exists() {
            let why = format!(
                "intelRdt.{member} is specified in config, but Intel RDT/{technology} is not enabled"
            );
            return Err(Error::exactly(Kind::FailedPrecondition, why));
        }
    }
    if bandwidth.as_ref().is_some_and(|schema| !schema.starts_with("MB:")) {
        return Err(refuse("intelRdt.memBwSchema does not start with \"MB:\""));
    }
    let mut schemata: Vec<String> = cache.into_iter().chain(bandwidth).collect();
    let fixed = schemata.len();
    schemata.extend(configured.schemata().iter().flatten().filter(|line| !line.is_empty()).cloned());
    if schemata.iter().any(|line| line.contains('\n')) {
        return Err(refuse("intelRdt has a schema of several lines"));
    }
    let is_named = !name.is_empty();
    let class = match name {
        "" => root.join(id),
        "/" => root.clone(),
        name => root.join(name),
    };
    let monitoring =
        configured.enable_monitoring().unwrap_or(false).then(|| class.join("mon_groups").join(id));
    let plan = Plan { root, class, is_named, schemata, fixed, monitoring };
    plan.check()?;
    Ok(plan)
}

impl Plan {
    fn check(&self) -> Result<()> {
        let shown = || self.class.to_string_lossy().into_owned();
        let exists = self.class.exists();
        if self.is_named && self.schemata.is_empty() && !exists {
            let why = "it must be there already when no schemata are given";
            return Err(Error::because(Kind::FailedPrecondition, "find the class of service", shown(), why));
        }
        if self.is_named && exists && self.fixed > 0 {
            let present =
                fs::read_to_string(self.class.join("schemata")).context("read the schemata of", shown())?;
            if let Some(line) = self.schemata[..self.fixed].iter().find(|line| !holds(&present, line)) {
                let why = format!("it exists and does not have {line:?}");
                return Err(Error::because(
                    Kind::FailedPrecondition,
                    "use the class of service",
                    shown(),
                    why,
                ));
            }
        }
        Ok(())
    }

    /// Makes the groups that are missing and puts a process into them; what was made is taken away again if that fails.
    pub fn enter(&self, pid: i32) -> Result<Groups> {
        let mut groups = Groups { class: self.class.clone(), ..Default::default() };
        match self.make(&mut groups).and_then(|()| groups.enter(pid)) {
            Ok(()) => Ok(groups),
            Err(error) => {
                let error = self.explained(error);
                match groups.remove() {
                    Ok(()) => Err(error),
                    Err(problem) => {
                        Err(Error::exactly(error.kind(), format!("{error} (and while undoing: {problem})")))
                    }
                }
            }
        }
    }

    fn make(&self, groups: &mut Groups) -> Result<()> {
        let is_new = directory(&self.class)?;
        if is_new && !self.is_named {
            groups.made.push(self.class.clone());
        }
        if !self.schemata.is_empty() {
            let path = self.class.join("schemata");
            let text: String = self.schemata.iter().map(|line| format!("{line}\n")).collect();
            fs::write(&path, text).context("write", path.to_string_lossy())?;
        }
        groups.tasks.push(self.class.clone());
        if let Some(monitoring) = &self.monitoring {
            if directory(monitoring)? {
                groups.made.push(monitoring.clone());
            }
            groups.tasks.push(monitoring.clone());
        }
        Ok(())
    }

    /// Adds what the kernel says of the last command, which tells more than the error number.
    fn explained(&self, error: Error) -> Error {
        match fs::read_to_string(self.root.join("info/last_cmd_status")) {
            Ok(status) if !status.trim().is_empty() && status.trim() != "ok" => {
                Error::exactly(error.kind(), format!("intelRdt: {error}: {}", status.trim()))
            }
            _ => Error::exactly(error.kind(), format!("intelRdt: {error}")),
        }
    }
}

impl Groups {
    /// Puts a process into the groups.
    pub fn enter(&self, pid: i32) -> Result<()> {
        for group in &self.tasks {
            let path = group.join("tasks");
            fs::write(&path, pid.to_string()).context("write", path.to_string_lossy())?;
        }
        Ok(())
    }

    /// Removes what was made for the container, the innermost first.
    pub fn remove(&self) -> Result<()> {
        for group in self.made.iter().rev() {
            match fs::remove_dir(group) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.context("remove", group.to_string_lossy())?,
            }
        }
        Ok(())
    }
}

/// Makes a directory; whether it is new.
fn directory(path: &Path) -> Result<bool> {
    match fs::create_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(Error::io("create", path.to_string_lossy(), error)),
    }
}

/// Whether a `schemata` file has what a line asks for. Spaces and leading zeros mean nothing.
fn holds(present: &str, line: &str) -> bool {
    let Some((resource, wanted)) = line.split_once(':') else { return false };
    let values = |text: &str| -> Vec<(String, String)> {
        let one = |part: &str| {
            let (domain, value) = part.split_once('=')?;
            let value = value.trim().trim_start_matches('0').to_ascii_lowercase();
            Some((domain.trim().to_owned(), value))
        };
        text.split(';').filter_map(one).collect()
    };
    let of_resource = present.lines().filter_map(|line| line.split_once(':'));
    let mut found =
        of_resource.filter(|(name, _)| name.trim() == resource.trim()).map(|(_, text)| values(text));
    found.any(|have| values(wanted).iter().all(|value| have.contains(value)))
}

fn refuse(why: impl Into<String>) -> Error {
    Error::exactly(Kind::InvalidArgument, why)
}

#[cfg(test)]
mod tests;
