//! What the daemon consists of, in the terms by which clients ask for it: containerd's plugin types and names.

use std::path::Path;

use crate::filter::{Filter, text};
use crate::snapshot::Snapshots;
use orlop_proto::error::Result;

/// One part of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plugin {
    /// Type, such as `io.containerd.snapshotter.v1`.
    pub kind: &'static str,
    /// Name, such as `overlayfs`.
    pub id: String,
    /// Types of other parts that it builds on.
    pub requires: &'static [&'static str],
    /// Whether it depends on the machine's platform.
    pub has_platform: bool,
    /// Facts that clients look for, such as the directory `root`.
    pub exports: Vec<(String, String)>,
    /// What it can do beyond the usual.
    pub capabilities: Vec<String>,
}

const CONTENT: &str = "io.containerd.content.v1";
const SNAPSHOTTER: &str = "io.containerd.snapshotter.v1";
const METADATA: &str = "io.containerd.metadata.v1";
const DIFFER: &str = "io.containerd.differ.v1";
const EVENT: &str = "io.containerd.event.v1";
const GC: &str = "io.containerd.gc.v1";
/// Type of what runs tasks.
pub const RUNTIME: &str = "io.containerd.runtime.v2";
const SANDBOX_STORE: &str = "io.containerd.sandbox.store.v1";
const SANDBOX_CONTROLLER: &str = "io.containerd.sandbox.controller.v1";
const SHIM: &str = "io.containerd.shim.v1";
const LEASE: &str = "io.containerd.lease.v1";
const STREAMING: &str = "io.containerd.streaming.v1";
const TRANSFER: &str = "io.containerd.transfer.v1";
const MONITOR: &str = "io.containerd.monitor.container.v1";
const TTRPC: &str = "io.containerd.ttrpc.v1";
const MOUNT_MANAGER: &str = "io.containerd.mount-manager.v1";
const MOUNT_HANDLER: &str = "io.containerd.mount-handler.v1";
const INTERNAL: &str = "io.containerd.internal.v1";
const SERVICE: &str = "io.containerd.service.v1";
const GRPC: &str = "io.containerd.grpc.v1";

/// The services of the API, by the names of containerd's service plugins.
const SERVICES: [&str; 9] = [
    "containers-service",
    "content-service",
    "diff-service",
    "images-service",
    "introspection-service",
    "leases-service",
    "namespaces-service",
    "snapshots-service",
    "tasks-service",
];

/// The services of the API, by the names of containerd's gRPC plugins.
const GRPC_SERVICES: [&str; 17] = [
    "containers",
    "content",
    "diff",
    "events",
    "healthcheck",
    "images",
    "introspection",
    "leases",
    "mounts",
    "namespaces",
    "sandbox-controllers",
    "sandboxes",
    "snapshots",
    "streaming",
    "tasks",
    "transfer",
    "version",
];

/// The parts that the filters choose (`type`, `id`).
///
/// `installed` is the directory of installed programs.
pub fn plugins(snapshots: &Snapshots, installed: &Path, filters: &[String]) -> Result<Vec<Plugin>> {
    let filter = Filter::parse(filters)?;
    let chosen = |plugin: &Plugin| {
        filter.matches(&|path: &[&str]| match path {
            ["type", ..] => text(plugin.kind),
            ["id", ..] => text(&plugin.id),
            _ => None,
        })
    };
    Ok(all(snapshots, installed).into_iter().filter(chosen).collect())
}

fn all(snapshots: &Snapshots, installed: &Path) -> Vec<Plugin> {
    let mut all = vec![Plugin { kind: CONTENT, id: "content".to_owned(), ..Plugin::default() }];
    all.extend(snapshots.snapshotters().map(|snapshotter| Plugin {
        kind: SNAPSHOTTER,
        id: snapshotter.name().to_owned(),
        has_platform: true,
        exports: snapshotter.exports(),
        capabilities: snapshotter.capabilities(),
        ..Plugin::default()
    }));
    all.push(Plugin { kind: EVENT, id: "exchange".to_owned(), ..Plugin::default() });
    all.push(Plugin {
        kind: METADATA,
        id: "bolt".to_owned(),
        requires: &[CONTENT, SNAPSHOTTER],
        ..Plugin::default()
    });
    all.push(Plugin {
        kind: DIFFER,
        id: "walking".to_owned(),
        requires: &[METADATA],
        has_platform: true,
        ..Plugin::default()
    });
    all.push(Plugin { kind: GC, id: "scheduler".to_owned(), requires: &[METADATA], ..Plugin::default() });
    all.push(Plugin {
        kind: RUNTIME,
        id: "task".to_owned(),
        requires: &[EVENT, METADATA],
        has_platform: true,
        ..Plugin::default()
    });
    let part = |kind, id: &str, requires| Plugin { kind, id: id.to_owned(), requires, ..Plugin::default() };
    all.extend([
        Plugin {
            exports: vec![("path".to_owned(), installed.display().to_string())],
            ..part(INTERNAL, "opt", &[])
        },
        part(LEASE, "manager", &[METADATA][..]),
        part(STREAMING, "manager", &[METADATA]),
        Plugin { has_platform: true, ..part(TRANSFER, "local", &[LEASE, METADATA, DIFFER]) },
        Plugin { has_platform: true, ..part(SHIM, "manager", &[EVENT, METADATA]) },
        part(SANDBOX_STORE, "local", &[METADATA]),
        part(SANDBOX_CONTROLLER, "shim", &[SHIM, EVENT]),
        part(MONITOR, "restart", &[METADATA, RUNTIME]),
        part(TTRPC, "events", &[EVENT]),
        part(MOUNT_MANAGER, "bolt", &[METADATA, MOUNT_HANDLER]),
        part(MOUNT_HANDLER, crate::mount::LOOP, &[]),
    ]);
    all.extend(SERVICES.map(|id| part(SERVICE, id, &[METADATA])));
    all.extend(GRPC_SERVICES.map(|id| part(GRPC, id, &[SERVICE])));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Database;
    use crate::events::Exchange;

    #[test]
    fn clients_find_a_snapshotter_and_its_root() {
        let directory = tempfile::tempdir().unwrap();
        let db = Database::open(&directory.path().join("db")).unwrap();
        let snapshots = Snapshots::open(
            directory.path(),
            &directory.path().join("state"),
            &Default::default(),
            db,
            Exchange::default(),
        )
        .unwrap();
        let find = |filter: &str| plugins(&snapshots, Path::new("/opt/x"), &[filter.to_owned()]).unwrap();
        // As nerdctl and dockerd ask, blank included.
        let [overlay] = &find("type==io.containerd.snapshotter.v1, id==overlayfs")[..] else {
            panic!("one plugin expected")
        };
        assert_eq!(
            overlay.exports,
            [("root".to_owned(), directory.path().join("overlayfs").display().to_string())]
        );
        assert_eq!(find("type==io.containerd.snapshotter.v1").len(), 3);
        assert_eq!(find("").len(), all(&snapshots, Path::new("/opt/x")).len());
        // As `ctr install` asks.
        let [opt] = &find("id==opt")[..] else { panic!("one plugin expected") };
        assert_eq!(opt.exports, [("path".to_owned(), "/opt/x".to_owned())]);
        assert!(find("id==zfs").is_empty());
    }
}
