//! What is mounted in a container: `-v`, `--mount`, `--tmpfs`, `--volumes-from` and the image's volumes become one list
//! of places. Pure; names of anonymous volumes are filled in later.

use std::collections::BTreeMap;

use orlop_proto::spec::types::Mount;

use super::config::{Config, HostConfig, MountRequest};
use super::record::MountPoint;
use crate::docker::failure::{Failure, Result};

const PROPAGATIONS: [&str; 6] = ["shared", "slave", "private", "rshared", "rslave", "rprivate"];

/// A path without `.`, `..` and double slashes.
pub fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn destination(kind: &str, path: &str, shown: &str) -> Result<String> {
    if !path.starts_with('/') {
        let text = format!(
            "invalid volume specification: '{shown}': invalid mount config for type {kind:?}: invalid mount path: '{path}' mount path must \
             be absolute"
        );
        return Err(Failure::invalid(text));
    }
    match clean(path).as_str() {
        "/" => Err(Failure::invalid(format!(
            "invalid volume specification: '{shown}': invalid mount config for type {kind:?}: invalid specification: destination can't be '/'"
        ))),
        path => Ok(path.to_owned()),
    }
}

/// `-v SOURCE:TARGET[:OPTIONS]`.
fn bind(text: &str) -> Result<MountPoint> {
    let wrong = || Failure::invalid(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, mode] => (*source, *target, *mode),
        _ => return Err(wrong()),
    };
    if parts.len() > 1 && source.is_empty() {
        return Err(wrong());
    }
    let is_bind = source.starts_with('/');
    let mut place = MountPoint {
        destination: destination(if is_bind { "bind" } else { "volume" }, target, text)?,
        mode: mode.to_owned(),
        writable: true,
        ..MountPoint::default()
    };
    let mut copies = true;
    let mut kinds = Vec::new();
    for option in mode.split(',').filter(|option| !option.is_empty()) {
        let kind = match option {
            "rw" => "ro",
            "Z" => "z",
            "cached" | "delegated" => "consistent",
            option if PROPAGATIONS.contains(&option) => "propagation",
            option => option,
        };
        if kinds.contains(&kind) {
            return Err(Failure::invalid(format!("invalid mode: {mode}")));
        }
        kinds.push(kind);
        match option {
            "ro" => place.writable = false,
            "rw" | "z" | "Z" | "consistent" | "cached" | "delegated" => {}
            "nocopy" if !is_bind => copies = false,
            option if PROPAGATIONS.contains(&option) && is_bind => option.clone_into(&mut place.propagation),
            _ => return Err(Failure::invalid(format!("invalid mode: {mode}"))),
        }
    }
    if is_bind {
        "bind".clone_into(&mut place.kind);
        place.source = clean(source);
        place.makes_source = true;
        if place.propagation.is_empty() {
            "rprivate".clone_into(&mut place.propagation);
        }
    } else {
        volume(&mut place, source, copies)?;
    }
    Ok(place)
}

fn volume(place: &mut MountPoint, name: &str, copies: bool) -> Result<()> {
    let letters = |name: &str| {
        name.chars().enumerate().all(|(at, letter)| {
            letter.is_ascii_alphanumeric() || (at > 0 && (letter == '_' || letter == '.' || letter == '-'))
        })
    };
    if !name.is_empty() && (!letters(name) || name.len() < 2) {
        return Err(Failure::invalid(format!(
            "create {name}: {name:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are \
             allowed. If you intended to pass a host directory, use absolute path"
        )));
    }
    "volume".clone_into(&mut place.kind);
    name.clone_into(&mut place.name);
    "local".clone_into(&mut place.driver);
    place.anonymous = name.is_empty();
    place.copies = copies;
    if place.mode.is_empty() {
        "z".clone_into(&mut place.mode);
    }
    Ok(())
}

/// `--mount`.
fn mount(request: &MountRequest) -> Result<MountPoint> {
    let kind = request.kind.as_str();
    let wrong = |why: String| Failure::invalid(format!("invalid mount config for type {kind:?}: {why}"));
    if !request.target.starts_with('/') {
        let why = if request.target.is_empty() {
            "field Target must not be empty".to_owned()
        } else {
            format!("invalid mount path: '{}' mount path must be absolute", request.target)
        };
        return Err(wrong(why));
    }
    let target = clean(&request.target);
    if target == "/" {
        return Err(wrong("invalid specification: destination can't be '/'".to_owned()));
    }
    let mut place = MountPoint { destination: target, writable: !request.read_only, ..MountPoint::default() };
    match kind {
        "bind" => {
            if request.source.is_empty() {
                return Err(wrong("field Source must not be empty".to_owned()));
            }
            if !request.source.starts_with('/') {
                let why = format!("invalid mount path: '{}' mount path must be absolute", request.source);
                return Err(wrong(why));
            }
            let options = request.bind_options.clone().unwrap_or_default();
            if !options.propagation.is_empty() && !PROPAGATIONS.contains(&options.propagation.as_str()) {
                return Err(wrong(format!("invalid propagation mode: {}", options.propagation)));
            }
            "bind".clone_into(&mut place.kind);
            place.source = clean(&request.source);
            place.propagation = match options.propagation.as_str() {
                "" => "rprivate".to_owned(),
                other => other.to_owned(),
            };
            place.makes_source = options.create_mountpoint;
            place.non_recursive = options.non_recursive;
        }
        "volume" => {
            let options = request.volume_options.clone().unwrap_or_default();
            volume(&mut place, &request.source, !options.no_copy)?;
            place.subpath = options.subpath;
        }
        "tmpfs" => {
            if !request.source.is_empty() {
                return Err(wrong("field Source must not be specified".to_owned()));
            }
            let options = request.tmpfs_options.clone().unwrap_or_default();
            "tmpfs".clone_into(&mut place.kind);
            let mut words = Vec::new();
            if options.size_bytes > 0 {
                words.push(format!("size={}", options.size_bytes));
            }
            if options.mode != 0 {
                words.push(format!("mode={:o}", options.mode));
            }
            place.options = words.join(",");
        }
        _ => return Err(wrong("mount type unknown".to_owned())),
    }
    Ok(place)
}

/// Every place, each once: what is asked for wins over what other containers and the image have.
///
/// `others` are the places of the containers that `--volumes-from` names, with whether they may be written.
///
/// # Errors
///
/// 400 in dockerd's words.
pub fn plan(
    config: &Config,
    host: &HostConfig,
    others: &[(Vec<MountPoint>, Option<bool>)],
) -> Result<Vec<MountPoint>> {
    let mut places: BTreeMap<String, MountPoint> = BTreeMap::new();
    for (mounts, writable) in others {
        for place in mounts.iter().filter(|place| place.kind != "tmpfs") {
            let writable = writable.map_or(place.writable, |writable| writable && place.writable);
            let place = MountPoint { writable, anonymous: false, copies: false, ..place.clone() };
            places.insert(place.destination.clone(), place);
        }
    }
    let mut asked: BTreeMap<String, MountPoint> = BTreeMap::new();
    let mut add = |place: MountPoint| match asked.insert(place.destination.clone(), place) {
        None => Ok(()),
        Some(twice) => Err(Failure::invalid(format!("Duplicate mount point: {}", twice.destination))),
    };
    for text in &host.binds {
        add(bind(text)?)?;
    }
    for request in &host.mounts {
        add(mount(request)?)?;
    }
    for (path, options) in &host.tmpfs {
        let place = MountPoint {
            kind: "tmpfs".to_owned(),
            destination: destination("tmpfs", path, path)?,
            options: options.clone(),
            writable: true,
            ..MountPoint::default()
        };
        add(place)?;
    }
    places.extend(asked);
    for path in config.volumes.keys() {
        let target = destination("volume", path, path)?;
        if let std::collections::btree_map::Entry::Vacant(free) = places.entry(target.clone()) {
            let mut place = MountPoint { destination: target, writable: true, ..MountPoint::default() };
            volume(&mut place, "", true)?;
            place.mode.clear();
            free.insert(place);
        }
    }
    Ok(places.into_values().collect())
}

/// The mounts of the configuration, parents before what is below them.
pub fn mounts(places: &[MountPoint]) -> Vec<Mount> {
    let mut sorted: Vec<&MountPoint> = places.iter().collect();
    sorted.sort_by_key(|place| (place.destination.matches('/').count(), place.destination.clone()));
    sorted.into_iter().map(one).collect()
}

fn one(place: &MountPoint) -> Mount {
    let access = if place.writable { "rw" } else { "ro" };
    if place.kind == "tmpfs" {
        let mut options = vec!["noexec", "nosuid", "nodev"];
        for option in place.options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "exec" => options.retain(|known| *known != "noexec"),
                "suid" => options.retain(|known| *known != "nosuid"),
                "dev" => options.retain(|known| *known != "nodev"),
                other => options.push(other),
            }
        }
        if !place.writable {
            options.push("ro");
        }
        return Mount::new(&place.destination, "tmpfs", "tmpfs", &options);
    }
    let kind = if place.non_recursive { "bind" } else { "rbind" };
    let propagation = if place.propagation.is_empty() { "rprivate" } else { &place.propagation };
    Mount::new(&place.destination, "bind", &place.source, &[kind, access, propagation])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(binds: &[&str]) -> HostConfig {
        HostConfig { binds: binds.iter().map(|&text| text.to_owned()).collect(), ..HostConfig::default() }
    }

    #[test]
    fn binds_have_forms() {
        let places =
            plan(&Config::default(), &host(&["/a/../b:/c:ro,rslave", "data:/d", "/e"]), &[]).unwrap();
        let shown: Vec<(&str, &str, &str, bool)> =
            places.iter().map(|p| (&*p.kind, &*p.source, &*p.destination, p.writable)).collect();
        assert_eq!(
            shown,
            [("bind", "/b", "/c", false), ("volume", "", "/d", true), ("volume", "", "/e", true)]
        );
        assert_eq!(places[0].propagation, "rslave");
        assert_eq!((places[1].name.as_str(), places[1].anonymous), ("data", false));
        assert!(places[2].anonymous);
    }

    #[test]
    fn wrong_ones_are_refused() {
        for text in ["a:b", "/a:/b:nope", ":/b", "/a:/b:c:d", "/a:/", "x y:/b", "/a:/b:nocopy"] {
            assert_eq!(plan(&Config::default(), &host(&[text]), &[]).unwrap_err().status, 400, "{text}");
        }
        let twice = plan(&Config::default(), &host(&["/a:/x", "/b:/x"]), &[]).unwrap_err();
        assert_eq!(twice.message, "Duplicate mount point: /x");
        let bad = MountRequest { kind: "bind".into(), target: "x".into(), ..MountRequest::default() };
        let bad = HostConfig { mounts: vec![bad], ..HostConfig::default() };
        assert!(
            plan(&Config::default(), &bad, &[])
                .unwrap_err()
                .message
                .starts_with("invalid mount config for type \"bind\"")
        );
    }

    #[test]
    fn the_images_volumes_give_way() {
        let config = Config {
            volumes: [("/c".to_owned(), serde_json::json!({})), ("/n".to_owned(), serde_json::json!({}))]
                .into(),
            ..Config::default()
        };
        let from = plan(&Config::default(), &host(&["/o:/n"]), &[]).unwrap();
        let places = plan(&config, &host(&["/b:/c"]), &[(from, Some(false))]).unwrap();
        assert_eq!(places.len(), 2);
        assert_eq!(
            (places[0].kind.as_str(), places[1].source.as_str(), places[1].writable),
            ("bind", "/o", false)
        );
    }

    #[test]
    fn mounts_come_from_the_top() {
        let host = HostConfig {
            tmpfs: [("/t".to_owned(), "size=1m,exec".to_owned())].into(),
            ..host(&["/a:/t/b", "/c:/z"])
        };
        let mounts = mounts(&plan(&Config::default(), &host, &[]).unwrap());
        let paths: Vec<&str> = mounts.iter().map(|mount| mount.destination.as_str()).collect();
        assert_eq!(paths, ["/t", "/z", "/t/b"]);
        assert_eq!(mounts[0].options, ["nosuid", "nodev", "size=1m"]);
        assert_eq!(mounts[1].options, ["rbind", "rw", "rprivate"]);
    }
}
