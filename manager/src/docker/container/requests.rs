//! Devices by driver (`--gpus`, `--device VENDOR/CLASS=NAME`): which of the Container Device Interface's a container asks for.

use serde::Deserialize;
use serde_json::Value;

use orlop_proto::error::Error;
use orlop_proto::spec::cdi::{Edits, Registry, is_qualified, resolve};
use orlop_proto::spec::cdi_files::registries;

use super::config::Resources;
use crate::docker::Engine;
use crate::docker::failure::{Failure, Result};

/// Kinds of graphics processors, the one first that is taken where there are several.
const GRAPHICS: [&str; 2] = ["nvidia.com/gpu", "amd.com/gpu"];

/// One request, as clients send it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Request {
    driver: String,
    /// How many; -1 for all.
    count: i64,
    #[serde(rename = "DeviceIDs")]
    ids: Vec<String>,
    /// Sets of words of which one must be had.
    capabilities: Vec<Vec<String>>,
}

fn no_driver(request: &Request) -> Failure {
    let sets: Vec<String> =
        request.capabilities.iter().map(|words| format!("[{}]", words.join(" "))).collect();
    Failure::internal(format!(
        "could not select device driver {:?} with capabilities: [{}]",
        request.driver,
        sets.join(" ")
    ))
}

/// The names of the devices that a request means, given what there is.
fn named(request: &Request, registries: &[Registry]) -> Result<Vec<String>> {
    match request.driver.as_str() {
        "cdi" => return Ok(request.ids.clone()),
        "" | "nvidia" | "amd" => {}
        _ => return Err(no_driver(request)),
    }
    if !request.capabilities.iter().any(|words| words.iter().any(|word| word == "gpu")) {
        return Err(no_driver(request));
    }
    let is_there = |kind: &&&str| registries.iter().any(|registry| registry.kind == **kind);
    let kinds = GRAPHICS.iter().filter(|kind| request.driver.is_empty() || kind.starts_with(&request.driver));
    let kind = kinds.clone().find(is_there).ok_or_else(|| no_driver(request))?;
    let names: Vec<String> = match (request.ids.as_slice(), request.count) {
        ([], -1) => vec!["all".to_owned()],
        ([], count) => (0..count).map(|number| number.to_string()).collect(),
        (ids, 0) => ids.to_vec(),
        _ => return Err(Failure::invalid("cannot set both Count and DeviceIDs on device request")),
    };
    Ok(names.into_iter().map(|name| format!("{kind}={name}")).collect())
}

impl Engine {
    /// What the devices that a container asks for bring into it.
    ///
    /// # Errors
    ///
    /// 400 and 500 in dockerd's words, for devices that nothing here defines.
    pub(super) fn device_edits(&self, limits: &Resources) -> Result<Vec<Edits>> {
        let wanted = limits.devices.iter().map(|device| device.path_on_host.clone());
        let mut names: Vec<String> = wanted.filter(|path| is_qualified(path)).collect();
        if names.is_empty() && limits.device_requests.is_empty() {
            return Ok(Vec::new());
        }
        let warn = |error: Error| tracing::warn!("{error}");
        let registries = registries(&self.settings().cdi, warn)?;
        for request in &limits.device_requests {
            let request: Request = serde_json::from_value(Value::clone(request))
                .map_err(|error| Failure::invalid(format!("invalid JSON: {error}")))?;
            names.extend(named(&request, &registries)?);
        }
        let found = resolve(&registries, &names).map_err(|error| Failure::internal(error.to_string()))?;
        Ok(found.into_iter().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(driver: &str, count: i64, ids: &[&str]) -> Request {
        Request {
            driver: driver.to_owned(),
            count,
            ids: ids.iter().map(|&id| id.to_owned()).collect(),
            capabilities: vec![vec!["gpu".to_owned()]],
        }
    }

    #[test]
    fn graphics_processors_have_names() {
        let there = [Registry { kind: "nvidia.com/gpu".to_owned(), ..Registry::default() }];
        assert_eq!(named(&request("", -1, &[]), &there).unwrap(), ["nvidia.com/gpu=all"]);
        assert_eq!(
            named(&request("nvidia", 2, &[]), &there).unwrap(),
            ["nvidia.com/gpu=0", "nvidia.com/gpu=1"]
        );
        assert_eq!(named(&request("", 0, &["GPU-1"]), &there).unwrap(), ["nvidia.com/gpu=GPU-1"]);
        assert_eq!(named(&request("cdi", 0, &["v.test/toy=one"]), &[]).unwrap(), ["v.test/toy=one"]);
        assert!(named(&request("", 1, &["x"]), &there).is_err());
    }

    #[test]
    fn without_a_driver_there_is_none() {
        let failure = named(&request("", -1, &[]), &[]).unwrap_err();
        assert_eq!(failure.message, "could not select device driver \"\" with capabilities: [[gpu]]");
        assert!(named(&request("amd", -1, &[]), &[]).is_err());
        assert!(named(&request("odd", -1, &[]), &[]).is_err());
    }
}
