//! Snapshots: a record for each layer and a layer for each record, with the files that its blob has.

use std::collections::HashMap;
use std::path::Path;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use super::{Checker, Options, Outcome, Problem, Report};
use crate::db::{Query, blocking};
use crate::image::restore::{LayerSource, LayerSources};
use crate::snapshot::{Record, SNAPSHOTS, SnapshotKind, Unsynced, sort_lowest_first};

/// A snapshot and where it is.
struct Place {
    namespace: String,
    snapshotter: String,
    name: String,
    record: Record,
}

impl Place {
    /// The same in the terms of those who make layers again.
    fn layer(&self) -> Unsynced {
        Unsynced {
            namespace: self.namespace.clone(),
            snapshotter: self.snapshotter.clone(),
            name: self.name.clone(),
            layer: self.record.layer,
            is_doubtful: false,
        }
    }
}

impl Checker {
    pub(super) async fn layers(
        &self,
        options: Options,
        sources: &LayerSources,
        report: &mut Report,
    ) -> Result<()> {
        let places = self.places().await?;
        let doubtful: HashMap<u64, bool> = {
            let snapshots = self.snapshots.clone();
            let unsynced = blocking(move || snapshots.unsynced()).await?;
            report.layers_unsynced = unsynced.len() as u64;
            unsynced.into_iter().map(|one| (one.layer, one.is_doubtful)).collect()
        };
        let mut numbers: HashMap<u64, String> = HashMap::new();
        for place in &places {
            report.snapshots += 1;
            let name = format!("{}/{}", place.snapshotter, place.name);
            if let Some(other) = numbers.insert(place.record.layer, name.clone()) {
                let text = format!("{other} has the same layer, number {}", place.record.layer);
                report.problems.push(Problem::damage("snapshot", &place.namespace, &name, text));
                continue;
            }
            let source = sources.get(&(place.namespace.clone(), place.name.clone()));
            let is_doubtful = doubtful.get(&place.record.layer).copied().unwrap_or(false);
            let found = self.layer(options, place, source, is_doubtful, report).await?;
            if let Some((text, outcome)) = found
                && self.is_still_there(place).await?
            {
                let mut problem = Problem::damage("snapshot", &place.namespace, &name, text);
                problem.outcome = outcome;
                report.problems.push(problem);
            }
        }
        let snapshots = self.snapshots.clone();
        for (snapshotter, layer) in blocking(move || snapshots.stray_layers()).await? {
            let name = format!("{snapshotter}/layer {layer}");
            let mut problem = Problem::damage("snapshot", "", &name, "no snapshot has it");
            if options.repair {
                let snapshots = self.snapshots.clone();
                let removed = blocking(move || {
                    snapshots.forget(&[(snapshotter, layer)]).and_then(|()| snapshots.clean())
                });
                problem.outcome = Outcome::of(removed.await, "removed");
            }
            report.problems.push(problem);
        }
        Ok(())
    }

    /// All snapshots. A layer is compared with one made on top of those below it, so these come first.
    async fn places(&self) -> Result<Vec<Place>> {
        let mut all = self.db.read(|tx| tx.scan(&SNAPSHOTS, "")).await?;
        sort_lowest_first(&mut all);
        let place = |(key, record): (String, Record)| {
            let mut parts = key.splitn(3, '\0').map(str::to_owned);
            Some(Place { namespace: parts.next()?, snapshotter: parts.next()?, name: parts.next()?, record })
        };
        Ok(all.into_iter().filter_map(place).collect())
    }

    async fn is_still_there(&self, place: &Place) -> Result<bool> {
        let key = crate::db::key(&[&place.namespace, &place.snapshotter, &place.name]);
        let layer = place.record.layer;
        let found = self.db.read(move |tx| tx.get(&SNAPSHOTS, &key)).await?;
        Ok(found.is_some_and(|record| record.layer == layer))
    }

    /// What is wrong with a layer, if anything is, and what became of it.
    async fn layer(
        &self,
        options: Options,
        place: &Place,
        source: Option<&LayerSource>,
        is_doubtful: bool,
        report: &mut Report,
    ) -> Result<Option<(String, Outcome)>> {
        let Ok(snapshotter) = self.snapshots.snapshotter(&place.snapshotter).cloned() else {
            return Ok(Some(("its snapshotter is not there".to_owned(), Outcome::Untouched)));
        };
        let image = snapshotter.image(place.record.layer);
        let Some(files) = image.clone().or_else(|| snapshotter.files(place.record.layer)) else {
            return Ok(None);
        };
        let users = snapshotter.shown(place.record.layer).unwrap_or_else(|| files.clone());
        let is_committed = place.record.kind() == SnapshotKind::Committed;
        let shown = files.display().to_string();
        // Views of one layer have no files of their own with some snapshotters.
        let is_missing = image.is_none()
            && !files.is_dir()
            && (is_committed || place.record.kind() == SnapshotKind::Active);
        let text = match (is_missing, source) {
            (true, _) => Some(format!("its files are missing: {shown}")),
            (false, Some(source)) if is_committed && !options.quick => {
                report.layers_compared += 1;
                match self.images.unpack_again(&place.layer(), source).await {
                    Ok(rebuilt) => {
                        let (rebuilt, text) = self.images.compare(rebuilt).await?;
                        if let Some(text) = text {
                            return Ok(Some((text, self.replace(options, &users, rebuilt).await?)));
                        }
                        return Ok(None);
                    }
                    // The blob itself is reported by whoever looks at blobs.
                    Err(error) if error.kind() == Kind::NotFound || error.kind() == Kind::DataLoss => None,
                    Err(error) => Some(format!("it cannot be compared with its blob: {error}")),
                }
            }
            _ => None,
        };
        let text = match text {
            None if is_committed => {
                let layer = place.record.layer;
                let usage = blocking(move || snapshotter.usage(layer)).await;
                match usage {
                    Ok(usage) if usage.inodes != place.record.inodes => Some(format!(
                        "it has {} files and directories, {} when it was made",
                        usage.inodes, place.record.inodes
                    )),
                    Ok(_) if is_doubtful => {
                        Some("the machine went down before its files were on the disk".to_owned())
                    }
                    Ok(_) => None,
                    Err(error) => Some(error.to_string()),
                }
            }
            text => text,
        };
        let Some(text) = text else { return Ok(None) };
        if !options.repair {
            return Ok(Some((text, Outcome::Untouched)));
        }
        let Some(source) = source.filter(|_| is_committed) else {
            let why = "no image has a blob to make it again from; remove what uses it";
            return Ok(Some((text, Outcome::Left(why.to_owned()))));
        };
        let outcome = match self.images.unpack_again(&place.layer(), source).await {
            Ok(rebuilt) => self.replace(options, &users, rebuilt).await?,
            Err(error) => Outcome::Left(error.to_string()),
        };
        Ok(Some((text, outcome)))
    }

    /// Puts a layer that was made again in the old one's place, unless somebody uses that: has it mounted from there.
    async fn replace(
        &self,
        options: Options,
        shown: &Path,
        rebuilt: crate::snapshot::Rebuilt,
    ) -> Result<Outcome> {
        if !options.repair {
            // It is deleted, which may take long.
            return blocking(move || {
                drop(rebuilt);
                Ok(Outcome::Untouched)
            })
            .await;
        }
        let shown = shown.to_owned();
        let adopted = blocking(move || {
            if let Some(process) = user_of(&shown)? {
                let why = format!("it is mounted, seen by process {process}; stop what uses it first");
                return Err(Error::because(Kind::FailedPrecondition, "replace layer", "", why));
            }
            rebuilt.adopt()
        });
        Ok(Outcome::of(adopted.await, "unpacked again"))
    }
}

/// A process in whose mount namespace an overlay has the directory as a layer. Namespaces are looked at once each.
fn user_of(files: &Path) -> Result<Option<u32>> {
    let wanted = files.display().to_string();
    let is_layer = |option: &str| {
        let layers = option.strip_prefix("lowerdir=").or_else(|| option.strip_prefix("lowerdir+="));
        layers.is_some_and(|layers| layers.split(':').any(|layer| layer == wanted))
    };
    let mut seen = std::collections::HashSet::new();
    for entry in std::fs::read_dir("/proc").map_err(|error| Error::io("read", "/proc", error))?.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Processes end at any time.
        let Ok(namespace) = std::fs::read_link(entry.path().join("ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let Ok(mounts) = std::fs::read_to_string(entry.path().join("mountinfo")) else { continue };
        let uses = |line: &str| {
            line.contains(&wanted)
                && line.rsplit(' ').next().is_some_and(|options| options.split(',').any(is_layer))
        };
        if mounts.lines().any(uses) {
            return Ok(Some(process));
        }
    }
    Ok(None)
}
