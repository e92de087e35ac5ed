//! Devices by the Container Device Interface (CDI 1.0): what a vendor's files say that a container with one of its devices
//! gets. Finding the files is the caller's affair.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::types::{Device, Mount, Spec};
use crate::error::{Error, Result};
use crate::kind::Kind;

/// A file of one vendor and class of devices.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registry {
    /// Version of CDI that it follows.
    pub cdi_version: String,
    /// `VENDOR/CLASS`.
    pub kind: String,
    /// The devices.
    #[serde(default)]
    pub devices: Vec<Entry>,
    /// What every container with one of the devices gets.
    #[serde(default)]
    pub container_edits: Edits,
}

/// One device.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its name within the class.
    pub name: String,
    /// What a container with it gets.
    #[serde(default)]
    pub container_edits: Edits,
}

/// Changes to a container.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edits {
    /// Variables, `NAME=VALUE`.
    pub env: Vec<String>,
    /// Device nodes.
    pub device_nodes: Vec<Node>,
    /// Mounts.
    pub mounts: Vec<Bind>,
    /// Programs that run with the container.
    pub hooks: Vec<Hook>,
    /// Groups that the process is in.
    pub additional_gids: Vec<u32>,
    /// Classes of cache and memory bandwidth, as the runtime specification has them.
    pub intel_rdt: Option<Value>,
    /// Network devices that move into the container.
    pub net_devices: Vec<NetDevice>,
}

/// A device node.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    /// Path in the container.
    pub path: String,
    /// Path on the host, where it is another.
    pub host_path: String,
    /// `b`, `c`, `u` or `p`; the host's where it is empty.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number; the host's where there is none.
    pub major: Option<i64>,
    /// Minor number; the host's where there is none.
    pub minor: Option<i64>,
    /// Permission bits.
    pub file_mode: Option<u32>,
    /// What the container may do with it, of `r`, `w` and `m`; all where it is empty.
    pub permissions: String,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Bind {
    /// Path on the host.
    pub host_path: String,
    /// Path in the container.
    pub container_path: String,
    /// Options.
    pub options: Vec<String>,
    /// File system type.
    #[serde(rename = "type")]
    pub kind: String,
}

/// A program that runs with the container.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hook {
    /// When: `createRuntime` and the others of the runtime specification.
    pub hook_name: String,
    /// The program.
    pub path: String,
    /// Its words, the first of which is its name.
    pub args: Vec<String>,
    /// Its variables.
    pub env: Vec<String>,
    /// How long it may take, in seconds.
    pub timeout: Option<i64>,
}

/// A network device that moves into the container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NetDevice {
    /// Its name on the host.
    pub host_interface_name: String,
    /// Its name in the container.
    pub name: String,
}

/// Names of hooks that the runtime specification has.
const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// Whether a word names a device of a vendor, `VENDOR/CLASS=NAME`, rather than a path.
pub fn is_qualified(word: &str) -> bool {
    let Some((kind, name)) = word.split_once('=') else { return false };
    let is_name = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.ends_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c))
    };
    match kind.split_once('/') {
        Some((vendor, class)) => is_name(vendor) && is_name(class) && is_name(name),
        None => false,
    }
}

impl Registry {
    /// The edits for one of the devices: its own after those of its class.
    pub fn edits(&self, name: &str) -> Option<[&Edits; 2]> {
        let entry = self.devices.iter().find(|entry| entry.name == name)?;
        Some([&self.container_edits, &entry.container_edits])
    }
}

impl Edits {
    /// Changes a container's specification. `host` finds the node at a path of the host.
    ///
    /// # Errors
    ///
    /// For a hook that the runtime specification does not have, and those of `host`.
    pub fn apply(&self, spec: &mut Spec, host: impl Fn(&str) -> Result<Device>) -> Result<()> {
        spec.set_env(&self.env);
        for node in &self.device_nodes {
            let access = if node.permissions.is_empty() { "rwm" } else { &node.permissions };
            spec.add_device(node.complete(&host)?, access);
        }
        for bind in &self.mounts {
            spec.mounts.retain(|mount| mount.destination != bind.container_path);
            spec.mounts.push(bind.mount());
        }
        for hook in &self.hooks {
            hook.add(spec)?;
        }
        let groups = &mut spec.process_mut().user.additional_gids;
        // Group 0 is everybody's who runs as root; CDI leaves it out.
        groups.extend(self.additional_gids.iter().filter(|gid| **gid != 0));
        groups.dedup();
        if let Some(classes) = &self.intel_rdt {
            spec.linux_mut().intel_rdt = Some(classes.clone());
        }
        for device in &self.net_devices {
            let own = json!({ "name": device.name });
            spec.linux_mut().net_devices.insert(device.host_interface_name.clone(), own);
        }
        Ok(())
    }
}

impl Node {
    fn complete(&self, host: impl Fn(&str) -> Result<Device>) -> Result<Device> {
        let mut device = Device { path: self.path.clone(), kind: self.kind.clone(), ..Device::default() };
        if self.kind.is_empty() || (self.major.is_none() && self.kind != "p") {
            let path = if self.host_path.is_empty() { &self.path } else { &self.host_path };
            let found = host(path)?;
            if !self.kind.is_empty() && self.kind != found.kind {
                let why = format!("it is of type {:?}, the device's file says {:?}", found.kind, self.kind);
                return Err(Error::because(Kind::InvalidArgument, "CDI device", path.as_str(), why));
            }
            device = Device { path: self.path.clone(), ..found };
        }
        device.major = self.major.unwrap_or(device.major);
        device.minor = self.minor.unwrap_or(device.minor);
        device.file_mode = self.file_mode.or(device.file_mode);
        device.uid = self.uid.or(device.uid);
        device.gid = self.gid.or(device.gid);
        Ok(device)
    }
}

impl Bind {
    fn mount(&self) -> Mount {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        let kind = match self.kind.as_str() {
            "" if options.iter().any(|option| matches!(*option, "bind" | "rbind")) => "bind",
            kind => kind,
        };
        Mount::new(&self.container_path, kind, &self.host_path, &options)
    }
}

impl Hook {
    fn add(&self, spec: &mut Spec) -> Result<()> {
        if !HOOKS.contains(&self.hook_name.as_str()) {
            return Err(Error::new(Kind::InvalidArgument, "CDI hook", format!("{:?}", self.hook_name)));
        }
        let mut hook = json!({ "path": self.path, "args": self.args, "env": self.env });
        if let Some(timeout) = self.timeout {
            hook["timeout"] = timeout.into();
        }
        let hooks = spec.hooks.get_or_insert_with(|| json!({}));
        match &mut hooks[&self.hook_name] {
            Value::Array(list) => list.push(hook),
            other => *other = json!([hook]),
        }
        Ok(())
    }
}

/// The edits of each named device, those of a class only once.
///
/// `registries` come in order of their weight: of two devices of one name the later counts.
///
/// # Errors
///
/// `NotFound` in the words of the CDI library, with all the names that nothing defines.
pub fn resolve<'a>(registries: &'a [Registry], names: &[String]) -> Result<Vec<&'a Edits>> {
    let mut edits = Vec::new();
    let mut classes: BTreeMap<*const Edits, ()> = BTreeMap::new();
    let mut missing = Vec::new();
    for name in names {
        let (kind, device) = name.split_once('=').unwrap_or_default();
        let mut found = registries.iter().rev().filter(|registry| registry.kind == kind);
        match found.find_map(|registry| registry.edits(device)) {
            Some([class, own]) => {
                if classes.insert(class, ()).is_none() {
                    edits.push(class);
                }
                edits.push(own);
            }
            None => missing.push(name.as_str()),
        }
    }
    match missing[..] {
        [] => Ok(edits),
        _ => Err(Error::exactly(
            Kind::NotFound,
            format!("CDI device injection failed: unresolvable CDI devices {}", missing.join(", ")),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
        "cdiVersion": "0.6.0", "kind": "vendor.test/toy",
        "containerEdits": {"env": ["CLASS=toy"]},
        "devices": [
            {"name": "one", "containerEdits": {
                "env": ["TOY=one", "CLASS=mine"],
                "deviceNodes": [{"path": "/dev/toy", "hostPath": "/dev/null", "permissions": "r", "fileMode": 420},
                                {"path": "/dev/made", "type": "c", "major": 9, "minor": 8}],
                "mounts": [{"hostPath": "/usr/lib/toy", "containerPath": "/toy", "options": ["ro", "bind"]}],
                "hooks": [{"hookName": "createContainer", "path": "/usr/bin/toy", "args": ["toy", "x"], "timeout": 3}],
                "additionalGids": [0, 44]}},
            {"name": "two", "containerEdits": {"env": ["TOY=two"]}}
        ]}"#;

    fn host(path: &str) -> Result<Device> {
        assert_eq!(path, "/dev/null");
        Ok(Device {
            path: path.to_owned(),
            kind: "c".to_owned(),
            major: 1,
            minor: 3,
            uid: Some(7),
            ..Device::default()
        })
    }

    #[test]
    fn a_device_brings_all_that_its_file_says() {
        let registries = [serde_json::from_str::<Registry>(FILE).unwrap()];
        let names = ["vendor.test/toy=one".to_owned(), "vendor.test/toy=two".to_owned()];
        let edits = resolve(&registries, &names).unwrap();
        assert_eq!(edits.len(), 3, "the edits of the class come once");
        let mut spec = Spec::default();
        edits.iter().try_for_each(|edits| edits.apply(&mut spec, host)).unwrap();
        assert_eq!(spec.process.as_ref().unwrap().env, ["CLASS=mine", "TOY=two"]);
        assert_eq!(spec.process.as_ref().unwrap().user.additional_gids, [44]);
        let linux = spec.linux.as_ref().unwrap();
        let toy = &linux.devices[0];
        assert_eq!((toy.path.as_str(), toy.major, toy.minor), ("/dev/toy", 1, 3));
        assert_eq!((toy.file_mode, toy.uid), (Some(0o644), Some(7)));
        assert_eq!((linux.devices[1].major, linux.devices[1].minor), (9, 8));
        assert_eq!(linux.resources.as_ref().unwrap().devices[0].access, "r");
        assert_eq!(spec.mounts[0].kind, "bind");
        assert_eq!(spec.hooks.unwrap()["createContainer"][0]["timeout"], 3);
    }

    #[test]
    fn later_files_win_and_missing_devices_are_named() {
        let first: Registry = serde_json::from_str(FILE).unwrap();
        let mut second = first.clone();
        second.devices.truncate(1);
        second.devices[0].container_edits = Edits { env: vec!["TOY=other".to_owned()], ..Edits::default() };
        let registries = [first, second];
        let edits = resolve(&registries, &["vendor.test/toy=one".to_owned()]).unwrap();
        assert_eq!(edits[1].env, ["TOY=other"]);
        let error = resolve(&registries, &["a/b=c".to_owned(), "vendor.test/toy=x".to_owned()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "CDI device injection failed: unresolvable CDI devices a/b=c, vendor.test/toy=x"
        );
    }

    #[test]
    fn names_are_no_paths() {
        for name in ["vendor.test/toy=one", "nvidia.com/gpu=0", "nvidia.com/gpu=GPU-1:2"] {
            assert!(is_qualified(name), "{name}");
        }
        for path in ["/dev/null", "/dev/a=b", "a=b", "a/b", "/a/b=c", "a/b=", "a/b=-c"] {
            assert!(!is_qualified(path), "{path}");
        }
    }
}
