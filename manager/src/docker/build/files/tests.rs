use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;

struct Sides {
    directory: tempfile::TempDir,
    place: Place,
    target: OwnedFd,
}

fn open(path: &Path) -> OwnedFd {
    std::fs::create_dir_all(path).unwrap();
    File::open(path).unwrap().into()
}

impl Sides {
    fn new() -> Sides {
        let directory = tempfile::tempdir().unwrap();
        let place = Place { root: open(&directory.path().join("context")), is_context: true };
        let target = open(&directory.path().join("image"));
        Sides { directory, place, target }
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.directory.path().join(path)).unwrap()
    }

    fn copy(&self, sources: &[&str], target: &str) -> Result<String> {
        self.copy_with(sources, target, &[])
    }

    fn copy_with(&self, sources: &[&str], target: &str, excluded: &[&str]) -> Result<String> {
        let sources: Vec<String> = sources.iter().map(|&source| source.to_owned()).collect();
        let excluded = || Excluded::of(excluded.iter().copied()).unwrap();
        let found = self.place.find(&sources, &excluded(), false)?;
        let is_root = rustix::process::geteuid().is_root();
        let copying = Copying {
            target: target.to_owned(),
            chown: String::new(),
            mode: None,
            // Only root gives files away.
            keeps_owner: !is_root,
            unpacks: true,
            excluded: excluded(),
        };
        copying.copy(&self.target, &found)?;
        Ok(joined_hash(&found))
    }
}

#[test]
fn files_and_directories_go_where_they_are_sent() {
    if !rustix::process::geteuid().is_root() {
        println!("not run: needs root");
        return;
    }
    let sides = Sides::new();
    for (path, text) in
        [("context/a", "1"), ("context/d/x", "2"), ("context/d/s/y", "3"), ("context/.wh.z", "4")]
    {
        sides.write(path, text);
    }
    sides.copy(&["a"], "/f").unwrap();
    assert_eq!(sides.read("image/f"), "1");
    sides.copy(&["a"], "/new/").unwrap();
    assert_eq!(sides.read("image/new/a"), "1");
    sides.copy(&["a"], "/new").unwrap();
    sides.copy(&["d"], "/new").unwrap();
    assert_eq!((sides.read("image/new/x"), sides.read("image/new/s/y")), ("2".to_owned(), "3".to_owned()));
    sides.copy(&["?", "d/*"], "/all/").unwrap();
    // Of a directory that matches, what is in it is copied.
    assert_eq!((sides.read("image/all/a"), sides.read("image/all/y")), ("1".to_owned(), "3".to_owned()));
    sides.copy(&[".wh.z"], "/").unwrap();
    assert_eq!(sides.read("image/.wh.z"), "4");
    sides.copy_with(&["d"], "/less", &["*", "!s/y"]).unwrap();
    assert_eq!(sides.read("image/less/s/y"), "3");
    assert!(!sides.directory.path().join("image/less/x").exists());
    let made = std::fs::metadata(sides.directory.path().join("image/new")).unwrap();
    assert_eq!((made.permissions().mode() & 0o7777, made.uid()), (0o755, 0));
}

#[test]
fn links_stay_inside_on_both_sides() {
    let sides = Sides::new();
    sides.write("outside/secret", "s");
    sides.write("context/real", "r");
    let context = sides.directory.path().join("context");
    symlink("../outside", context.join("up")).unwrap();
    symlink("/real", context.join("absolute")).unwrap();
    symlink("real", context.join("link")).unwrap();
    symlink("loop", context.join("loop")).unwrap();
    symlink("../../outside", sides.directory.path().join("image/out")).unwrap();
    sides.copy(&["link"], "/l").unwrap();
    sides.copy(&["absolute"], "/m").unwrap();
    assert_eq!((sides.read("image/l"), sides.read("image/m")), ("r".to_owned(), "r".to_owned()));
    for source in ["up/secret", "loop", "none"] {
        let failure = sides.copy(&[source], "/x").unwrap_err();
        assert_eq!(failure.status, 400, "{source}: {}", failure.message);
    }
    assert!(sides.copy(&["../outside/secret"], "/x").unwrap_err().message.starts_with("forbidden path"));
    // What leads out of the image is made in it, or refused.
    let _ = sides.copy(&["real"], "/out/secret");
    assert_eq!(sides.read("outside/secret"), "s");
    let _ = sides.copy(&["real"], "/../../outside/secret");
    assert_eq!(sides.read("outside/secret"), "s");
}

#[test]
fn what_a_file_is_makes_its_hash() {
    let sides = Sides::new();
    sides.write("context/a", "1");
    sides.write("context/d/a", "1");
    let hash = |source: &str| {
        let found = sides.place.find(&[source.to_owned()], &Excluded::of([]).unwrap(), false).unwrap();
        joined_hash(&found)
    };
    let (file, directory) = (hash("a"), hash("d"));
    assert!(file.starts_with("file:") && directory.starts_with("dir:"));
    let later = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 5, tv_nsec: 5 },
        last_modification: rustix::fs::Timespec { tv_sec: 5, tv_nsec: 5 },
    };
    rustix::fs::utimensat(&sides.place.root, "a", &later, AtFlags::empty()).unwrap();
    assert_eq!(hash("a"), file);
    sides.write("context/a", "2");
    assert_ne!(hash("a"), file);
    sides.write("context/d/b", "");
    assert_ne!(hash("d"), directory);
}

#[test]
fn archives_are_known_by_their_content() {
    let sides = Sides::new();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(1);
    header.set_mode(0o644);
    archive.append_data(&mut header, "in/side", &b"i"[..]).unwrap();
    let bytes = archive.into_inner().unwrap();
    std::fs::write(sides.directory.path().join("context/plain"), &bytes).unwrap();
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zipped.write_all(&bytes).unwrap();
    std::fs::write(sides.directory.path().join("context/zipped"), zipped.finish().unwrap()).unwrap();
    sides.write("context/text", &"x".repeat(600));
    let found = |name: &str| {
        let found = sides.place.find(&[name.to_owned()], &Excluded::of([]).unwrap(), false).unwrap();
        is_archive(&found[0]).unwrap()
    };
    assert!(found("plain") && found("zipped") && !found("text"));
}
