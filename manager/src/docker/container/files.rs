//! Files of containers from outside: `docker cp`, `diff`, `export`, `commit`.
//!
//! A running container is looked at through its own root, with its volumes; one that does not run through a mount that
//! nobody else sees. Every path is resolved within that root.

use std::io::{self, BufWriter};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Method, StatusCode};
use orlop_proto::contract::time::rfc3339_nano;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use serde_json::{Value, json};
use tokio_util::io::SyncIoBridge;
use tokio_util::sync::CancellationToken;

use super::config::Config;
use super::place::clean;
use super::{Container, marks};
use crate::db::blocking;
use crate::docker::Engine;
use crate::docker::build::apply_all;
use crate::docker::errand::while_awaited;
use crate::docker::failure::{Failure, Result};
use crate::docker::image::{ToClient, dangling, normal};
use crate::docker::message::{self, Reply, Request};
use crate::image::diff::{Change, DiffRequest, changes, write_tree};
use crate::image::unpack::{Target, Whiteouts, apply, apply_for};
use crate::image::{DEFAULT_SNAPSHOTTER, Job, mounts};
use crate::owners::Owners;

/// Bits of Go's `fs.FileMode` by file type.
const TYPES: [(FileType, u32); 6] = [
    (FileType::Directory, 1 << 31),
    (FileType::Symlink, 1 << 27),
    (FileType::BlockDevice, 1 << 26),
    (FileType::CharacterDevice, 1 << 26 | 1 << 21),
    (FileType::Fifo, 1 << 25),
    (FileType::Socket, 1 << 24),
];
/// Bits of Go's `fs.FileMode` for set-user-ID, set-group-ID and sticky.
const MARKS: [(u32, u32); 3] = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];

/// A mode in the terms of Go's `fs.FileMode`.
fn go_mode(mode: u32) -> u32 {
    let kind = FileType::from_raw_mode(mode);
    let kind = TYPES.iter().find(|(known, _)| *known == kind).map_or(0, |(_, bits)| *bits);
    MARKS.iter().filter(|(mark, _)| mode & mark != 0).fold(mode & 0o777 | kind, |all, (_, bits)| all | bits)
}

/// What is made in every container so that something can be mounted there.
const PLACES: [&str; 10] = [
    "/dev/console",
    "/dev/mqueue",
    "/dev/pts",
    "/dev/shm",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/proc",
    "/sys/fs/cgroup",
    "/sbin/docker-init",
];
/// What is in every container for the engine's sake: no part of what its image becomes.
pub fn places() -> Vec<String> {
    PLACES.into_iter().chain(marks::PATHS).map(str::to_owned).collect()
}

/// What the engine mounts in every container.
const FILES: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// Changes without the places that mounts needed, and without directories that changed for those alone.
fn own(found: Vec<(Change, String)>, targets: &[String]) -> Vec<(Change, String)> {
    let is_target = |change: Change, path: &String| change == Change::Added && targets.contains(path);
    let parent = |path: &str| path.rsplit_once('/').map_or("", |(parent, _)| parent).to_owned();
    let touched: Vec<String> = found
        .iter()
        .filter(|(change, path)| is_target(*change, path))
        .map(|(_, path)| parent(path))
        .collect();
    let rest: Vec<(Change, String)> =
        found.into_iter().filter(|(change, path)| !is_target(*change, path)).collect();
    let has_others = |path: &str| rest.iter().any(|(_, other)| other.starts_with(&format!("{path}/")));
    let kept = rest
        .iter()
        .filter(|(change, path)| *change != Change::Modified || !touched.contains(path) || has_others(path));
    kept.cloned().collect()
}

/// A place in a container: a directory, and a name in it (`.` for itself).
struct Place {
    parent: OwnedFd,
    base: String,
    stat: Stat,
    link: String,
}

/// Finds a path below a root; the last part is not followed.
fn find(root: &OwnedFd, path: &str) -> std::result::Result<Place, Errno> {
    let whole = clean(path);
    let is_directory = path.ends_with('/') || path.ends_with("/.") || whole == "/";
    let (directory, base) = match whole.rsplit_once('/') {
        Some((directory, base)) if !is_directory => (directory.to_owned(), base.to_owned()),
        _ => (whole, ".".to_owned()),
    };
    let below = if directory.is_empty() { "/" } else { &directory };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::openat2(root, below, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    let stat = rustix::fs::statat(&parent, &base, AtFlags::SYMLINK_NOFOLLOW)?;
    let link = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&parent, &base, Vec::new())?;
            let target = target.to_string_lossy().into_owned();
            if target.starts_with('/') { clean(&target) } else { clean(&format!("{directory}/{target}")) }
        }
        _ => String::new(),
    };
    Ok(Place { parent, base, stat, link })
}

/// The header that describes a path.
fn described(path: &str, place: &Place) -> HeaderValue {
    let name = clean(path).rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("/").to_owned();
    let seconds = u64::try_from(place.stat.st_mtime).unwrap_or(0);
    let nanoseconds = u32::try_from(place.stat.st_mtime_nsec).unwrap_or(0);
    let document = json!({
        "name": name,
        "size": place.stat.st_size,
        "mode": go_mode(place.stat.st_mode),
        "mtime": rfc3339_nano(UNIX_EPOCH + Duration::new(seconds, nanoseconds)),
        "linkTarget": place.link,
    });
    HeaderValue::from_str(&STANDARD.encode(document.to_string()))
        .unwrap_or_else(|_| HeaderValue::from_static(""))
}

impl Engine {
    /// The root of a container's files.
    async fn root_of(&self, container: &Container) -> Result<OwnedFd> {
        let (is_running, pid) = container.with(|record| (record.state.is_running(), record.state.pid));
        if is_running {
            let root = std::fs::File::open(format!("/proc/{pid}/root"));
            return Ok(root
                .map_err(|error| Failure::internal(format!("open container's root: {error}")))?
                .into());
        }
        let root = self.parts.snapshots.mounts(&self.context, DEFAULT_SNAPSHOTTER, &container.id).await?;
        Ok(blocking(move || mounts::root(&root)).await?)
    }

    /// `/containers/ID/archive`: what is at a path (HEAD), its files (GET), or files to put there (PUT).
    pub(super) async fn archive(&self, container: Arc<Container>, request: Request) -> Result<Reply> {
        let path = request.query.filled("path").unwrap_or_default().to_owned();
        if path.is_empty() {
            return Err(Failure::invalid("missing path parameter"));
        }
        let name = container.with(|record| record.name.clone());
        let root = self.root_of(&container).await?;
        // Of one that does not run the files are looked at as they are kept: with its own owners.
        let owners = container.with(|record| record.owners.clone().filter(|_| record.state.is_running()));
        let failed = move |path: &str, errno: Errno| match errno {
            Errno::NOENT => Failure::not_found(format!("Could not find the file {path} in container {name}")),
            Errno::NOTDIR => Failure::invalid("extraction point is not a directory"),
            errno => Failure::internal(format!("{path}: {errno}")),
        };
        if request.method == Method::PUT {
            if container.with(|record| record.host.readonly_rootfs) {
                return Err(Failure::new(StatusCode::FORBIDDEN, "container rootfs is marked read-only"));
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat2(
                &root,
                clean(&path).as_str(),
                flags,
                Mode::empty(),
                ResolveFlags::IN_ROOT,
            );
            let directory = opened.map_err(|errno| failed(&path, errno))?;
            let input = SyncIoBridge::new(request.into_reader());
            let target = Target { root: directory, lowers: Vec::new(), whiteouts: Whiteouts::Delete };
            let apply = move || match &owners {
                Some(owners) => apply_for(input, target, owners),
                None => apply(input, target),
            };
            blocking(apply).await?;
            self.container_event(&container, "extract-to-dir", &[]);
            return Ok(message::empty(StatusCode::OK));
        }
        let place = find(&root, &path).map_err(|errno| failed(&path, errno))?;
        let header = described(&path, &place);
        let mut reply = if request.method == Method::HEAD {
            message::empty(StatusCode::OK)
        } else {
            let shown = match place.base.as_str() {
                "." if !path.ends_with("/.") && clean(&path) != "/" => {
                    clean(&path).rsplit('/').next().unwrap_or_default().to_owned()
                }
                base => base.to_owned(),
            };
            self.container_event(&container, "archive-path", &[]);
            written(place.parent, place.base, shown, owners)
        };
        reply.headers_mut().insert("X-Docker-Container-Path-Stat", header);
        Ok(reply)
    }

    /// `docker export`.
    pub(super) async fn export_container(&self, container: &Container) -> Result<Reply> {
        let root = self.parts.snapshots.mounts(&self.context, DEFAULT_SNAPSHOTTER, &container.id).await?;
        let root = blocking(move || mounts::readable(&root)).await?;
        self.container_event(container, "export", &[]);
        Ok(written(root, ".".to_owned(), String::new(), None))
    }

    /// `docker diff`.
    pub(super) async fn changes(&self, container: &Container) -> Result<Value> {
        let snapshots = &self.parts.snapshots;
        let chain = container.with(|record| record.chain.clone());
        let key = format!("{}-changes-{}", container.id, super::fresh_id()?);
        let right = snapshots.mounts(&self.context, DEFAULT_SNAPSHOTTER, &container.id).await?;
        // Nothing else refers to the view: the lease keeps it from being collected meanwhile.
        let leased = self.parts.images.begin_lease(&self.context).await?;
        let found = async {
            let left = snapshots.view(&leased, DEFAULT_SNAPSHOTTER, &key, &chain, Default::default()).await?;
            let found = blocking(move || changes(&left, &right)).await;
            snapshots.remove(&leased, DEFAULT_SNAPSHOTTER, &key).await?;
            found
        }
        .await;
        self.parts.images.end_lease(&leased).await?;
        let targets = container.with(|record| {
            let places = record.mounts.iter().map(|place| place.destination.clone());
            places.chain(FILES.into_iter().chain(marks::PATHS).map(str::to_owned)).collect::<Vec<_>>()
        });
        let found: Vec<Value> = own(found?, &targets)
            .into_iter()
            .map(|(change, path)| {
                let kind = match change {
                    Change::Modified => 0,
                    Change::Added => 1,
                    Change::Deleted => 2,
                };
                json!({ "Path": path, "Kind": kind })
            })
            .collect();
        Ok(if found.is_empty() { Value::Null } else { json!(found) })
    }

    /// `docker commit`: an image of a container's files.
    ///
    /// # Errors
    ///
    /// 400 for a name that is none; those of reading and writing.
    pub async fn commit_container(&self, request: Request) -> Result<Reply> {
        let engine = self.clone();
        while_awaited(|stop| async move { engine.commit(request, stop).await }).await
    }

    async fn commit(&self, request: Request, stop: CancellationToken) -> Result<Reply> {
        let query = request.query.clone();
        let container = self.containers.get(query.filled("container").unwrap_or_default())?;
        let name = match (query.filled("repo"), query.filled("tag")) {
            (Some(repository), Some(tag)) => Some(normal(&format!("{repository}:{tag}"))?),
            (Some(repository), None) => Some(normal(repository)?),
            (None, _) => None,
        };
        let changes: Vec<String> = query.all("changes").map(str::to_owned).collect();
        let given: Option<Config> = request.json_or_nothing().await?;
        let record = container.record();
        let base = self.image(&record.image).await?;
        let mut config = apply_all(given.unwrap_or_else(|| record.config.clone()), &changes)?;
        super::create::merge(&mut config, &record.config);
        let is_paused = query.get("pause").is_none_or(|_| query.flag("pause"))
            && container.with(|record| record.state.status == super::state::Status::Running);
        // Held until it has its name.
        let context = self.parts.images.begin_lease(&self.context).await?;
        let job = Job { context, progress: Arc::default(), cancel: stop };
        let made = async {
            if is_paused {
                self.freeze_container(&container, true).await?;
            }
            let made = self.commit_files(&job, &record, &base, &config, &query).await;
            if is_paused {
                self.freeze_container(&container, false).await?;
            }
            let (target, id) = made?;
            let name = name.unwrap_or_else(|| dangling(&target.digest));
            self.name_image(&name, &target).await?;
            Ok::<_, Failure>(id)
        }
        .await;
        self.parts.images.end_lease(&job.context).await?;
        let id = made?;
        self.container_event(
            &container,
            "commit",
            &[("comment", query.get("comment").unwrap_or_default().to_owned())],
        );
        Ok(message::json(StatusCode::CREATED, &json!({ "Id": id })))
    }

    async fn commit_files(
        &self,
        job: &Job,
        record: &super::Record,
        base: &crate::docker::image::Found,
        config: &Config,
        query: &message::Query,
    ) -> Result<(crate::store::images::Descriptor, String)> {
        let snapshots = &self.parts.snapshots;
        let key = format!("{}-commit-{}", record.id, super::fresh_id()?);
        let context = &job.context;
        let right = snapshots.mounts(context, DEFAULT_SNAPSHOTTER, &record.id).await?;
        let left =
            snapshots.view(context, DEFAULT_SNAPSHOTTER, &key, &record.chain, Default::default()).await?;
        let mut document = base.document.clone();
        let now = rfc3339_nano(SystemTime::now());
        let text = |name: &str| query.get(name).unwrap_or_default().to_owned();
        document["created"] = json!(now);
        document["author"] = json!(text("author"));
        document["config"] = json!(config);
        let step = json!({
            "created": now,
            "created_by": record.words().join(" "),
            "comment": text("comment"),
            "author": text("author"),
        });
        let request = DiffRequest { left, right, places: places(), ..DiffRequest::default() };
        let made = self
            .parts
            .images
            .add_layer(job, request, base.manifest.layers.clone(), DEFAULT_SNAPSHOTTER, &mut document, step)
            .await;
        snapshots.remove(context, DEFAULT_SNAPSHOTTER, &key).await?;
        let made = made?;
        let id = made.config.to_string();
        Ok((made.target, id))
    }
}

/// A reply with the archive of what is at a name in a directory.
fn written(parent: OwnedFd, base: String, shown: String, owners: Option<Owners>) -> Reply {
    let (reply, client) = message::channel("application/x-tar");
    tokio::task::spawn_blocking(move || {
        let output = BufWriter::with_capacity(64 << 10, ToClient(client.clone()));
        if let Err(error) = write_tree(output, &parent, base.as_bytes(), shown.as_bytes(), owners) {
            // A body that breaks off is the only way to say so now.
            let _ = client.blocking_send(Err(io::Error::other(error.to_string())));
        }
    });
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos() {
        assert_eq!(go_mode(0o100_644), 0o644);
        assert_eq!(go_mode(0o040_755), 1 << 31 | 0o755);
        assert_eq!(go_mode(0o104_755), 1 << 23 | 0o755);
        assert_eq!(go_mode(0o041_777), 1 << 31 | 1 << 20 | 0o777);
    }

    #[test]
    fn places_of_mounts_are_no_changes() {
        let found = [
            (Change::Modified, "/etc"),
            (Change::Added, "/etc/hosts"),
            (Change::Added, "/d"),
            (Change::Added, "/x"),
        ];
        let found = found.map(|(change, path)| (change, path.to_owned())).to_vec();
        let targets = ["/etc/hosts".to_owned(), "/d".to_owned()];
        assert_eq!(own(found, &targets), [(Change::Added, "/x".to_owned())]);
    }

    #[test]
    fn paths_stay_below_the_root() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("/../../../../../../a", directory.path().join("up")).unwrap();
        std::os::unix::fs::symlink("b", directory.path().join("a/link")).unwrap();
        let root = OwnedFd::from(std::fs::File::open(directory.path()).unwrap());
        let found = find(&root, "/up/b").ok().unwrap();
        assert_eq!((found.base.as_str(), found.link.as_str()), ("b", ""));
        assert_eq!(find(&root, "/a/link").ok().unwrap().link, "/a/b");
        assert_eq!(find(&root, "/a/.").ok().unwrap().base, ".");
        assert_eq!(find(&root, "/").ok().unwrap().base, ".");
        assert_eq!(find(&root, "/no/such").err(), Some(Errno::NOENT));
    }
}
