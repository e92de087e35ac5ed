use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use tempfile::TempDir;

use super::digest::Digest;
use super::session::{Action, Session, Step};
use super::*;
use crate::request::Namespace;
use crate::store::leases::Leases;

struct Place {
    directory: TempDir,
    db: Database,
    store: ContentStore,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let db = Database::open(&directory.path().join("db")).unwrap();
    let store =
        ContentStore::open(&directory.path().join("content"), db.clone(), Exchange::default()).unwrap();
    Place { directory, db, store }
}

impl Place {
    /// What a daemon that was killed here finds when it is started again.
    fn restart(self) -> Place {
        let Place { directory, db, store } = self;
        drop((db, store));
        let db = Database::open(&directory.path().join("db")).unwrap();
        let store =
            ContentStore::open(&directory.path().join("content"), db.clone(), Exchange::default()).unwrap();
        store.recover().unwrap();
        Place { directory, db, store }
    }

    fn files(&self) -> Vec<String> {
        let mut names = blobs::names(&self.directory.path().join("content/blobs/sha256")).unwrap();
        names.sort();
        names
    }

    fn ingest_files(&self) -> usize {
        blobs::names(&self.directory.path().join("content/ingest")).unwrap().len()
    }
}

fn context(namespace: &str) -> RequestContext {
    RequestContext::new(Namespace::new(namespace).unwrap())
}

async fn put(store: &ContentStore, context: &RequestContext, bytes: &'static [u8]) -> Digest {
    let mut writer = store.writer(context, &format!("put-{}", bytes.len()), 0, None).await.unwrap();
    writer.write(Bytes::from_static(bytes)).await.unwrap();
    writer.commit(0, None, Labels::new()).await.unwrap()
}

async fn bytes_of(store: &ContentStore, context: &RequestContext, digest: &Digest) -> Vec<u8> {
    store.read_all(context, digest, 1 << 20).await.unwrap()
}

#[tokio::test]
async fn what_is_committed_can_be_read_and_is_read_only() {
    let Place { directory, store, .. } = &place();
    let one = context("one");
    let labels = Labels::from([("a".to_owned(), "1".to_owned()), ("none".to_owned(), String::new())]);
    let mut writer = store.writer(&one, "r", 5, Some(&Digest::of_bytes(b"hello"))).await.unwrap();
    writer.write(Bytes::from_static(b"hel")).await.unwrap();
    assert_eq!(writer.status().offset, 3);
    writer.write(Bytes::from_static(b"lo")).await.unwrap();
    let digest = writer.commit(5, None, labels).await.unwrap();
    assert_eq!(digest, Digest::of_bytes(b"hello"));
    assert_eq!(bytes_of(store, &one, &digest).await, b"hello");
    let info = store.info(&one, &digest).await.unwrap();
    assert_eq!((info.size, info.labels.len()), (5, 1), "empty labels are none");
    let file = directory.path().join("content/blobs/sha256").join(digest.hex());
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o444);
    assert!(store.statuses(&one, &[]).await.unwrap().is_empty());
    let again = store.writer(&one, "other", 0, Some(&digest)).await.err().unwrap();
    assert_eq!(again.kind(), Kind::AlreadyExists);
    assert_eq!(again.to_string(), format!("content {digest}: already exists"));
    assert!(store.read_all(&one, &digest, 4).await.is_err(), "larger than allowed");
}

#[tokio::test]
async fn a_wrong_size_or_digest_is_refused_in_containerds_words() {
    let Place { store, .. } = &place();
    let one = context("one");
    let mut writer = store.writer(&one, "r", 0, None).await.unwrap();
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    let error = writer.commit(4, None, Labels::new()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert_eq!(error.to_string(), "\"r\" failed size validation: 5 != 4: failed precondition");
    let other = Digest::of_bytes(b"other");
    let writer = store.writer(&one, "r", 0, None).await.unwrap();
    assert_eq!(writer.status().offset, 5, "the bytes remain");
    let error = writer.commit(5, Some(&other), Labels::new()).await.unwrap_err();
    let text = format!(
        "unexpected commit digest {}, expected {other}: failed precondition",
        Digest::of_bytes(b"hello")
    );
    assert_eq!(error.to_string(), text);
    store.abort(&one, "r").await.unwrap();
    let error = store.abort(&one, "r").await.unwrap_err();
    assert_eq!(error.to_string(), "reference r: not found");
}

#[tokio::test]
async fn a_write_is_resumed_after_a_kill() {
    let place = place();
    let one = context("one");
    let expected = Digest::of_bytes(b"hello world");
    let mut writer = place.store.writer(&one, "r", 11, Some(&expected)).await.unwrap();
    writer.write(Bytes::from_static(b"hello ")).await.unwrap();
    let started = writer.status().started_at;
    drop(writer);
    let place = place.restart();
    let status = place.store.status(&one, "r").await.unwrap();
    assert_eq!((status.offset, status.total, status.expected), (6, 11, Some(expected.clone())));
    assert_eq!(status.started_at, started);
    let mut writer = place.store.writer(&one, "r", 11, Some(&expected)).await.unwrap();
    assert_eq!(writer.status().offset, 6);
    assert_eq!(writer.digest(), Some(Digest::of_bytes(b"hello ")));
    writer.write(Bytes::from_static(b"world")).await.unwrap();
    writer.commit(11, Some(&expected), Labels::new()).await.unwrap();
    assert_eq!(place.ingest_files(), 0);
    assert_eq!(bytes_of(&place.store, &one, &expected).await, b"hello world");
}

#[tokio::test]
async fn another_total_or_a_truncation_starts_over() {
    let Place { store, .. } = &place();
    let one = context("one");
    let mut writer = store.writer(&one, "r", 11, None).await.unwrap();
    writer.write(Bytes::from_static(b"hello ")).await.unwrap();
    drop(writer);
    let mut writer = store.writer(&one, "r", 12, None).await.unwrap();
    assert_eq!(writer.status().offset, 0);
    writer.write(Bytes::from_static(b"abc")).await.unwrap();
    assert_eq!(writer.truncate(2).await.unwrap_err().to_string(), "Truncate: unsupported size");
    writer.truncate(0).await.unwrap();
    writer.write(Bytes::from_static(b"xy")).await.unwrap();
    assert_eq!(writer.digest(), Some(Digest::of_bytes(b"xy")));
    assert_eq!(writer.commit(0, None, Labels::new()).await.unwrap(), Digest::of_bytes(b"xy"));
}

#[tokio::test]
async fn a_reference_has_one_writer() {
    let Place { store, .. } = &place();
    let (one, two) = (context("one"), context("two"));
    let writer = store.writer(&one, "r", 0, None).await.unwrap();
    let error = store.writer(&one, "r", 0, None).await.err().unwrap();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().starts_with("ref one/r locked for "), "{error}");
    store.writer(&two, "r", 0, None).await.unwrap();
    drop(writer);
    store.writer(&one, "r", 0, None).await.unwrap();
}

#[tokio::test]
async fn an_aborted_write_commits_nothing() {
    let place = place();
    let one = context("one");
    let mut writer = place.store.writer(&one, "r", 0, None).await.unwrap();
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    place.store.abort(&one, "r").await.unwrap();
    assert_eq!(writer.commit(0, None, Labels::new()).await.unwrap_err().kind(), Kind::NotFound);
    assert!(place.files().is_empty());
    assert_eq!(place.ingest_files(), 0);
}

#[tokio::test]
async fn namespaces_share_bytes_and_nothing_else() {
    let place = place();
    let (one, two) = (context("one"), context("two"));
    let digest = put(&place.store, &one, b"hello").await;
    let error = place.store.info(&two, &digest).await.unwrap_err();
    assert_eq!(error.to_string(), format!("content digest {digest}: not found"));
    let writer = place.store.writer(&two, "r", 5, Some(&digest)).await.unwrap();
    assert_eq!(writer.status().offset, 5, "nothing needs to be sent");
    writer.commit(5, Some(&digest), Labels::new()).await.unwrap();
    assert_eq!(bytes_of(&place.store, &two, &digest).await, b"hello");
    place.store.delete(&one, &digest).await.unwrap();
    place.store.sweep([]).unwrap();
    assert_eq!(place.files().len(), 1, "the other namespace still has it");
    place.store.delete(&two, &digest).await.unwrap();
    place.store.sweep([]).unwrap();
    assert!(place.files().is_empty());
    assert_eq!(place.store.delete(&two, &digest).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_shared_blob_that_the_writer_overwrites_becomes_its_own() {
    let Place { store, .. } = &place();
    let (one, two) = (context("one"), context("two"));
    let digest = put(store, &one, b"hello").await;
    let mut writer = store.writer(&two, "r", 0, Some(&digest)).await.unwrap();
    writer.truncate(0).await.unwrap();
    assert_eq!(writer.status().offset, 0);
    writer.write(Bytes::from_static(b"hello")).await.unwrap();
    assert_eq!(writer.commit(5, Some(&digest), Labels::new()).await.unwrap(), digest);
}

#[tokio::test]
async fn recovery_removes_what_was_not_recorded() {
    let place = place();
    let one = context("one");
    let kept = put(&place.store, &one, b"kept").await;
    let content = place.directory.path().join("content");
    std::fs::write(content.join("blobs/sha256").join(Digest::of_bytes(b"lost").hex()), b"lost").unwrap();
    std::fs::write(content.join("blobs/trash/x"), b"x").unwrap();
    std::fs::create_dir(content.join("ingest/half")).unwrap();
    std::fs::write(content.join("ingest/half/data"), b"no record").unwrap();
    let place = place.restart();
    assert_eq!(place.files(), [kept.hex()]);
    assert_eq!(place.ingest_files(), 0);
    assert!(blobs::names(&content.join("blobs/trash")).unwrap().is_empty());
}

#[tokio::test]
async fn a_blob_being_recorded_is_not_swept() {
    let place = place();
    let digest = Digest::of_bytes(b"hello");
    let data = place.directory.path().join("data");
    std::fs::write(&data, b"hello").unwrap();
    let pin = place.store.blobs.pin(&digest);
    place.store.blobs.place(&data, &digest).unwrap();
    place.store.sweep([digest.clone()]).unwrap();
    assert_eq!(place.files().len(), 1);
    drop(pin);
    place.store.sweep([digest]).unwrap();
    assert!(place.files().is_empty());
}

#[tokio::test]
async fn labels_change_by_field_path() {
    let Place { store, .. } = &place();
    let one = context("one");
    let digest = put(store, &one, b"hello").await;
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    store.update(&one, &digest, labels(&[("a", "1"), ("b", "2")]), vec![]).await.unwrap();
    let info =
        store.update(&one, &digest, labels(&[("a", "3")]), vec!["labels.a".into(), "labels.b".into()]).await;
    assert_eq!(info.unwrap().labels, labels(&[("a", "3")]));
    let error = store.update(&one, &digest, Labels::new(), vec!["size".into()]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot update \"size\" field on content info \"{digest}\": invalid argument")
    );
    let long = labels(&[("a", &"x".repeat(5000))]);
    let error = store.update(&one, &digest, long, vec![]).await.unwrap_err();
    assert!(error.to_string().starts_with("info.Labels: label key and value length (5001 bytes)"), "{error}");
    assert_eq!(store.list(&one, &["labels.a==3".into()]).await.unwrap().len(), 1);
    assert!(store.list(&one, &["labels.a==4".into()]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lease_must_exist_and_holds_what_is_written() {
    let Place { store, db, .. } = &place();
    let one = context("one").with_lease("l");
    let error = store.writer(&one, "r", 0, None).await.err().unwrap();
    assert_eq!(error.to_string(), "lease does not exist: not found");
    let leases = Leases::new(db.clone());
    leases.create(&one, "l", Labels::new()).await.unwrap();
    let digest = put(store, &one, b"hello").await;
    let held = leases.resources(&one, "l").await.unwrap();
    assert_eq!(held.len(), 1);
    assert_eq!((held[0].kind.as_str(), held[0].id.as_str()), ("content", digest.as_str()));
    leases.create(&one, "m", Labels::new()).await.unwrap();
    let other = context("one").with_lease("m");
    assert_eq!(store.writer(&other, "s", 0, Some(&digest)).await.err().unwrap().kind(), Kind::AlreadyExists);
    assert_eq!(leases.resources(&one, "m").await.unwrap(), held, "what is known is held too");
}

fn step(action: Action, offset: u64, data: &'static [u8]) -> Step {
    Step {
        action,
        reference: "r".into(),
        total: 0,
        expected: None,
        offset,
        data: Bytes::from_static(data),
        labels: Labels::new(),
    }
}

#[tokio::test]
async fn the_write_protocol() {
    let Place { store, .. } = &place();
    let one = context("one");
    let mut session = Session::new(store.clone(), one.clone());
    let answer = session.step(step(Action::Stat, 0, b"")).await.unwrap();
    assert_eq!((answer.status.offset, answer.digest), (0, Some(Digest::of_bytes(b""))));
    assert_eq!(session.step(step(Action::Write, 0, b"hello")).await.unwrap().status.offset, 5);
    assert_eq!(session.step(step(Action::Write, 5, b" you")).await.unwrap().status.offset, 9);
    assert_eq!(
        session.step(step(Action::Write, 0, b"bye")).await.unwrap().status.offset,
        3,
        "offset 0 starts over"
    );
    let answer = session.step(step(Action::Commit, 3, b"!")).await.unwrap();
    assert_eq!((answer.status.offset, answer.digest), (4, Some(Digest::of_bytes(b"bye!"))));
    assert!(session.is_finished());
}

#[tokio::test]
async fn the_write_protocol_refuses() {
    let Place { store, .. } = &place();
    let one = context("one");
    let mut session = Session::new(store.clone(), one.clone());
    let nameless = Step { reference: String::new(), ..step(Action::Stat, 0, b"") };
    let error = session.step(nameless).await.err().unwrap();
    assert_eq!(error.to_string(), "first message must have a reference");
    session.step(step(Action::Write, 0, b"hello")).await.unwrap();
    let error = session.step(step(Action::Write, 7, b"x")).await.err().unwrap();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (Kind::OutOfRange, "write @7 must occur at current offset 5")
    );
    let digest = put(store, &one, b"known").await;
    let mut session = Session::new(store.clone(), one.clone());
    session.step(step(Action::Write, 0, b"kno")).await.unwrap();
    let known = Step { expected: Some(digest.clone()), ..step(Action::Commit, 3, b"wn") };
    let error = session.step(known).await.err().unwrap();
    assert_eq!(error.kind(), Kind::AlreadyExists);
    assert_eq!(error.to_string(), format!("blob with expected digest {digest} exists"));
    assert!(store.statuses(&one, &[]).await.unwrap().is_empty(), "the write is given up");
}

#[tokio::test]
async fn what_was_read_of_late_is_at_hand_as_long_as_it_is_true() {
    let place = place();
    let (store, one, two) = (&place.store, context("one"), context("two"));
    let digest = put(store, &one, b"hello").await;
    assert!(store.blob_at_hand(&one, &digest).is_none(), "nobody has looked it up");
    bytes_of(store, &one, &digest).await;
    let blob = store.blob_at_hand(&one, &digest).unwrap();
    assert_eq!(blob.size, 5);
    assert!(store.blob_at_hand(&two, &digest).is_none(), "another namespace");
    // Any change of the records, the collector's too, makes them be looked at again.
    let key = key(&["one", digest.as_str()]);
    let change = |tx: &Write| {
        tx.do_not_count();
        tx.remove(&CONTENT, &key).map(drop)
    };
    place.db.write_now(change).unwrap();
    assert!(store.blob_at_hand(&one, &digest).is_none());
    assert_eq!(store.open_blob(&one, &digest).await.unwrap_err().kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_part_is_read_at_hand_or_waited_for() {
    let Place { directory, .. } = &place();
    let path = directory.path().join("part");
    std::fs::write(&path, b"0123456789").unwrap();
    let file = Arc::new(std::fs::File::open(&path).unwrap());
    assert_eq!(at_hand::read_or_wait(&file, 2, 3).await.unwrap(), Bytes::from_static(b"234"));
    // A file that is shorter than its record says.
    assert!(at_hand::read(&file, 8, 3).is_none());
    let error = at_hand::read_or_wait(&file, 8, 3).await.unwrap_err();
    assert!(error.to_string().starts_with("read content"), "{error}");
}
