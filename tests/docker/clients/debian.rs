//! Images of Debian's packages, built by the engine from a Dockerfile for each.

use std::path::PathBuf;
use std::time::Duration;

use orlop_tests::{Cmd, binaries};

use crate::side::Side;

/// What all of them have: a shell and what it calls.
const BASE: [&str; 7] = ["base-files", "base-passwd", "coreutils", "dash", "findutils", "grep", "sed"];

/// What an image is made of.
pub struct Parts {
    /// The directory of its Dockerfile, below `programs/shop`.
    pub name: &'static str,
    /// Its packages.
    pub packages: &'static [&'static str],
}

/// PostgreSQL.
pub const DATABASE: Parts = Parts { name: "database", packages: &["postgresql-15"] };
/// Redis.
pub const CACHE: Parts = Parts { name: "cache", packages: &["redis-server"] };
/// A web server that uses both.
pub const WEB: Parts = Parts { name: "web", packages: &["python3", "python3-psycopg2", "python3-redis"] };
/// A MySQL-compatible server, and its client.
pub const MARIADB: Parts =
    Parts { name: "mariadb", packages: &["mariadb-server-core", "mariadb-client-core"] };

/// The files of an image, fetched once.
fn files(parts: &Parts) -> PathBuf {
    let archive = binaries::target_dir().join("clients").join(format!("{}.tar", parts.name));
    let script = binaries::source_root().join("tests/docker/programs/packages");
    let fetch = Cmd::new(script).arg(&archive).args(BASE).args(parts.packages);
    fetch.deadline(Duration::from_secs(1200)).run().success();
    archive
}

/// Puts directories of Dockerfiles, each with the files of its packages, into `$dir/shop`.
pub fn prepare(side: &Side, images: &[Parts]) {
    side.says("mkdir $dir/shop");
    let source = binaries::source_root().join("tests/docker/programs/shop");
    side.says(&format!("cp {}/docker-compose.yml $dir/shop/", source.display()));
    for parts in images {
        let (name, archive) = (parts.name, files(parts));
        side.says(&format!("cp -r {}/{name} $dir/shop/", source.display()));
        // A link would do for a person, and not for a client that sends the directory.
        side.says(&format!("cp --reflink=auto {} $dir/shop/{name}/files.tar", archive.display()));
    }
}
