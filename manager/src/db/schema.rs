//! The version of the database's layout, and the way from each version to the next.
//!
//! Records are protobuf messages, so a new field needs no step here; a step is for what moves, splits or changes its meaning.
//! All steps that a file lacks are one transaction: a kill in between leaves the old layout, which the next start begins with
//! again. A copy of the file as it was stays beside it, for whoever wants to go back to the older program.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::{Blob, Database, META, Query, Write};
use crate::content::blobs::sync_directory;

/// Turns a layout into the next one.
pub(super) type Step = fn(&Write) -> Result<()>;

/// The steps, of which the first turns version 1 into version 2.
pub(super) const STEPS: &[Step] = &[];

/// Key of the version in [`META`].
const KEY: &str = "schema";

/// The version that these steps lead to.
fn version(steps: &[Step]) -> u32 {
    1 + steps.len() as u32
}

/// Brings a database to the present layout; a new one is given its number.
///
/// # Errors
///
/// `FailedPrecondition` for one that a newer program wrote, which is left as it is; `ResourceExhausted` where there is no room
/// for the copy.
pub(super) fn upgrade(database: &Database, steps: &[Step]) -> Result<()> {
    let present = version(steps);
    let path = database.path();
    let found = match database.read_now(|tx| tx.get(&META, KEY))? {
        None => {
            return database.write_now(|tx| {
                tx.do_not_count();
                tx.put(&META, KEY, &number(present))
            });
        }
        // What is no number is from a future that keeps it otherwise.
        Some(found) => found.value.try_into().map(u32::from_be_bytes).unwrap_or(u32::MAX),
    };
    if found > present {
        return Err(newer(path, found, present));
    }
    if found == present {
        return Ok(());
    }
    let missing = steps.get(found.saturating_sub(1) as usize..).unwrap_or_default();
    let copy = copy(path, found)?;
    database.write_now(|tx| {
        tx.do_not_count();
        missing.iter().try_for_each(|step| step(tx))?;
        tx.put(&META, KEY, &number(present))
    })?;
    tracing::info!(from = found, to = present, copy = %copy.display(), "the database has a new layout");
    Ok(())
}

fn number(version: u32) -> Blob {
    Blob { value: version.to_be_bytes().to_vec() }
}

/// Where the file stays as it was with an older version.
fn copy_path(path: &Path, version: u32) -> PathBuf {
    path.with_extension(format!("schema-{version}"))
}

/// Copies the file as it is, which nobody writes to meanwhile; the copy has its name when it is on the disk.
fn copy(path: &Path, version: u32) -> Result<PathBuf> {
    let copy = copy_path(path, version);
    let name = || copy.display().to_string();
    let unfinished = path.with_extension("schema-copy");
    let result = fs::copy(path, &unfinished)
        .and_then(|_| File::open(&unfinished)?.sync_all())
        .and_then(|()| fs::rename(&unfinished, &copy));
    if let Err(error) = result {
        // Ignoring: what went wrong first is what is reported.
        let _ = fs::remove_file(&unfinished);
        return Err(error).context("copy the database to", name());
    }
    sync_directory(path.parent().unwrap_or(Path::new("/")))?;
    Ok(copy)
}

fn newer(path: &Path, found: u32, present: u32) -> Error {
    let copy = copy_path(path, present);
    let hint = match copy.exists() {
        true => format!("; {} is the database as this version left it", copy.display()),
        false => String::new(),
    };
    let why = format!(
        "written by a newer version of orlopd (schema {found}, known up to {present}): start that one{hint}"
    );
    Error::because(Kind::FailedPrecondition, "open database", path.display().to_string(), why)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::db::{Table, key};
    use crate::store::images::IMAGES;

    /// A root directory as version 1 of the layout has it, with three images, two of them in the namespace `default`.
    const VERSION_1: &[u8] = include_bytes!("../../../tests/manager/fixtures/root-schema-1.tar.zst");

    /// Where a layout that only these tests know keeps the images.
    static MOVED: Table<crate::store::images::Image> = Table::new("moved_images");

    /// Moves all images to another table, under the name alone.
    fn move_images(tx: &Write) -> Result<()> {
        for (place, image) in tx.scan(&IMAGES, "")? {
            let name = place.split_once('\0').map_or("", |(_, name)| name);
            tx.put(&MOVED, name, &image)?;
            tx.remove(&IMAGES, &place)?;
        }
        Ok(())
    }

    /// Labels them.
    fn label_images(tx: &Write) -> Result<()> {
        for (name, mut image) in tx.scan(&MOVED, "")? {
            image.labels.insert("moved".to_owned(), "yes".to_owned());
            tx.put(&MOVED, &name, &image)?;
        }
        Ok(())
    }

    fn fail(_: &Write) -> Result<()> {
        Err(Error::new(Kind::Aborted, "stop", ""))
    }

    fn version_1(directory: &Path) -> PathBuf {
        let mut archive = tar::Archive::new(zstd::Decoder::new(VERSION_1).unwrap());
        let is_database =
            |entry: &tar::Entry<'_, _>| entry.path().is_ok_and(|path| path.ends_with("meta.redb"));
        let mut entries = archive.entries().unwrap().map(Result::unwrap);
        let path = directory.join("meta.redb");
        entries.find(is_database).unwrap().unpack(&path).unwrap();
        path
    }

    fn images(database: &Database, table: &Table<crate::store::images::Image>) -> BTreeMap<String, usize> {
        let found = database.read_now(|tx| tx.scan(table, "")).unwrap();
        found.into_iter().map(|(name, image)| (name, image.labels.len())).collect()
    }

    #[test]
    fn an_older_database_is_brought_to_the_present_layout() {
        let directory = tempfile::tempdir().unwrap();
        let path = version_1(directory.path());
        let before = {
            let database = Database::open(&path).unwrap();
            images(&database, &IMAGES)
        };
        assert_eq!(before.len(), 3);
        let (one, two) = (key(&["default", "example.com/one:1"]), key(&["default", "example.com/two:1"]));
        assert!(before.contains_key(&one) && before.contains_key(&two), "{before:?}");

        let steps: &[Step] = &[move_images, label_images];
        let database = Database::open_with(&path, steps).unwrap();
        assert_eq!(images(&database, &IMAGES).len(), 0);
        let after = images(&database, &MOVED);
        assert_eq!(after["example.com/one:1"], before[&one] + 1);
        assert_eq!(after.len(), 3);
        drop(database);
        // Not a second time.
        let database = Database::open_with(&path, steps).unwrap();
        assert_eq!(images(&database, &MOVED), after);
        drop(database);
        // One that lacks the last step gets it alone.
        let longer: &[Step] = &[move_images, label_images, label_images];
        assert_eq!(images(&Database::open_with(&path, longer).unwrap(), &MOVED), after);

        // The older program refuses it, and says where its own database is.
        let error = Database::open(&path).err().unwrap();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        let text = error.to_string();
        assert!(text.contains("written by a newer version of orlopd (schema 4, known up to 1)"), "{text}");
        let copy = directory.path().join("meta.schema-1");
        assert!(text.contains(&copy.display().to_string()), "{text}");
        fs::rename(&copy, &path).unwrap();
        assert_eq!(images(&Database::open(&path).unwrap(), &IMAGES), before);
    }

    #[test]
    fn a_step_that_fails_leaves_the_layout_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = version_1(directory.path());
        let error = Database::open_with(&path, &[move_images, fail]).err().unwrap();
        assert_eq!(error.kind(), Kind::Aborted);
        assert_eq!(images(&Database::open(&path).unwrap(), &IMAGES).len(), 3);
        // And the next start of the newer program gets there.
        let database = Database::open_with(&path, &[move_images, label_images]).unwrap();
        assert_eq!(images(&database, &MOVED).len(), 3);
    }
}
