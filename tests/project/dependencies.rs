//! What may be linked: forbidden edges between our packages and crates, licences, versions, reasons.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use orlop_tests::{Cmd, binaries};
use serde_json::Value;

/// The crates that `package` links when it is built on its own, as a release is.
fn linked(package: &str) -> BTreeSet<String> {
    let out = Cmd::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "-e",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "-p",
            package,
        ])
        .cwd(binaries::source_root())
        .run()
        .success();
    out.stdout
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn links_none_of(package: &str, forbidden: &[&str]) {
    let linked = linked(package);
    assert!(linked.contains(package), "cargo tree -p {package} does not list it");
    let found: Vec<_> = forbidden.iter().filter(|name| linked.contains(**name)).collect();
    assert!(found.is_empty(), "{package} links {found:?}");
}

#[test]
fn the_runtime_links_no_async_and_no_protocol_stack() {
    links_none_of(
        "orlop",
        &["tokio", "tonic", "prost", "tower", "hyper", "orlop-shim", "orlop-manager", "orlop-ctl"],
    );
}

#[test]
fn the_shim_links_no_async_stack() {
    links_none_of("orlop-shim", &["tokio", "tonic", "tower", "hyper", "orlop", "orlop-manager", "orlop-ctl"]);
}

#[test]
fn the_manager_links_neither_runtime_nor_shim() {
    links_none_of("orlop-manager", &["orlop", "orlop-shim", "orlop-ctl"]);
}

#[test]
fn the_client_links_no_other_part_of_the_stack() {
    links_none_of("orlop-ctl", &["orlop", "orlop-shim", "orlop-manager", "orlop-host"]);
}

#[test]
fn the_lower_libraries_know_nothing_of_what_stands_on_them() {
    links_none_of(
        "orlop-host",
        &["orlop", "orlop-shim", "orlop-manager", "tokio", "tonic", "prost", "tower"],
    );
    links_none_of(
        "orlop-proto",
        &["orlop-host", "orlop", "orlop-shim", "orlop-manager", "tokio", "tonic", "prost"],
    );
}

fn metadata() -> Value {
    let out = Cmd::new(env!("CARGO"))
        .args([
            "metadata",
            "--locked",
            "--offline",
            "--format-version",
            "1",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .cwd(binaries::source_root())
        .run()
        .success();
    serde_json::from_str(&out.stdout).expect("cargo prints JSON")
}

/// The packages that are compiled on Linux, for whatever purpose.
fn packages(metadata: &Value) -> Vec<&Value> {
    let nodes = metadata["resolve"]["nodes"].as_array().expect("a resolve graph");
    let used: BTreeSet<&str> = nodes.iter().filter_map(|node| node["id"].as_str()).collect();
    let all = metadata["packages"].as_array().expect("a list of packages");
    all.iter().filter(|package| used.contains(text(&package["id"]))).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn deny() -> toml::Table {
    let text = fs::read_to_string(binaries::source_root().join("deny.toml")).expect("reading deny.toml");
    text.parse().expect("deny.toml is TOML")
}

/// Whether a licence expression can be met with `allowed` alone: `OR` needs one side, `AND` both.
fn permits(expression: &str, allowed: &BTreeSet<&str>) -> bool {
    let expression = expression.replace(['(', ')'], " ").replace('/', " OR ");
    // Of the expressions in use, none has an OR inside an AND that would need more than splitting at AND first.
    expression.split(" AND ").all(|side| {
        side.split(" OR ").any(|licence| {
            allowed.contains(licence.split_whitespace().collect::<Vec<_>>().join(" ").as_str())
        })
    })
}

#[test]
fn licence_expressions_are_read_as_spdx_means_them() {
    let allowed = BTreeSet::from(["MIT", "Apache-2.0 WITH LLVM-exception"]);
    assert!(permits("GPL-3.0 OR MIT", &allowed));
    assert!(permits("Apache-2.0 WITH LLVM-exception OR GPL-3.0", &allowed));
    assert!(!permits("(MIT OR GPL-3.0) AND BSD-3-Clause", &allowed));
    assert!(!permits("Apache-2.0", &allowed));
}

#[test]
fn every_licence_is_allowed_and_every_crate_comes_from_the_registry() {
    let metadata = metadata();
    let deny = deny();
    let allowed: BTreeSet<&str> = deny["licenses"]["allow"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|licence| licence.as_str())
        .collect();
    let mut wrong = Vec::new();
    for package in packages(&metadata) {
        let (name, licence) = (text(&package["name"]), text(&package["license"]));
        if !permits(licence, &allowed) {
            wrong.push(format!("{name}: licence {licence:?}"));
        }
        let source = text(&package["source"]);
        if !source.is_empty() && source != "registry+https://github.com/rust-lang/crates.io-index" {
            wrong.push(format!("{name}: source {source}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_crate_is_compiled_twice_or_banned_but_for_a_written_reason() {
    let metadata = metadata();
    let deny = deny();
    let rules = |list: &str| -> Vec<(String, String)> {
        let entries = deny["bans"][list].as_array().expect("a list");
        let field = |entry: &toml::Value, name: &str| {
            entry.get(name).and_then(|v| v.as_str()).unwrap_or_default().to_owned()
        };
        entries.iter().map(|entry| (field(entry, "crate"), field(entry, "reason"))).collect()
    };
    let mut wrong = Vec::new();
    for (name, reason) in rules("skip").iter().chain(&rules("deny")) {
        if reason.len() < 20 {
            wrong.push(format!("deny.toml gives no reason for {name}"));
        }
    }
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages(&metadata) {
        versions.entry(text(&package["name"])).or_default().insert(text(&package["version"]));
    }
    for (banned, _) in rules("deny") {
        if versions.contains_key(banned.as_str()) {
            wrong.push(format!("{banned} is banned"));
        }
    }
    let skipped = |name: &str, version: &str| {
        rules("skip").iter().any(|(rule, _)| {
            rule.split_once('@')
                .is_some_and(|(n, v)| n == name && (version == v || version.starts_with(&format!("{v}."))))
        })
    };
    for (name, versions) in versions.iter().filter(|(_, versions)| versions.len() > 1) {
        let left: Vec<_> = versions.iter().filter(|version| !skipped(name, version)).collect();
        if left.len() > 1 {
            wrong.push(format!("{name} is there in {} versions: {left:?}", left.len()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_dependency_of_the_workspace_has_a_written_reason() {
    let root = binaries::source_root();
    let manifest: toml::Table =
        fs::read_to_string(root.join("Cargo.toml")).expect("reading Cargo.toml").parse().expect("TOML");
    let decisions: String = fs::read_dir(root.join("docs/decisions"))
        .expect("listing docs/decisions")
        .map(|entry| fs::read_to_string(entry.expect("an entry").path()).expect("reading a decision"))
        .collect();
    let dependencies = manifest["workspace"]["dependencies"].as_table().expect("a table");
    let missing: Vec<_> = dependencies
        .keys()
        .filter(|name| !name.starts_with("orlop-") && !decisions.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "no reason in docs/decisions for {missing:?}");
}
