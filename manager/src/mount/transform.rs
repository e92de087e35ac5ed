//! What can be done to a mount before it is made: filling in where earlier ones are, and making directories and file systems.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::libc::{O_CREAT, O_DIRECTORY, O_EXCL, O_PATH, O_RDWR};
use orlop_host::sys::path::{Resolve, open_below};
use orlop_proto::contract::size;
use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::Active;
use crate::labels::invalid;
use crate::snapshot::Mount;

/// Options that ask for a directory.
const MAKE_DIRECTORY: &str = "X-containerd.mkdir.";
/// Options that describe a file system to make.
const MAKE_FILE_SYSTEM: &str = "X-containerd.mkfs.";

/// One transformation, in containerd's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// `format`: words such as `{{ mount 0 }}` become facts on mounts made before.
    Format,
    /// `mkdir`: options name directories that must be there.
    MakeDirectory,
    /// `mkfs`: the source is a file with a file system in it, made if it is missing.
    MakeFileSystem,
}

impl Transform {
    /// The one that a word means.
    pub fn named(word: &str) -> Option<Transform> {
        match word {
            "format" => Some(Transform::Format),
            "mkdir" => Some(Transform::MakeDirectory),
            "mkfs" => Some(Transform::MakeFileSystem),
            _ => None,
        }
    }

    /// Carries it out below the directories in which that is allowed; returns the mount to go on with. Blocks.
    pub fn apply(self, mut mount: Mount, active: &[Active], roots: &[PathBuf]) -> Result<Mount> {
        match self {
            Transform::Format => {
                mount.source = format(&mount.source, active)?;
                mount.target = format(&mount.target, active)?;
                for option in &mut mount.options {
                    *option = format(option, active)?;
                }
            }
            Transform::MakeDirectory => {
                for wanted in take_options(&mut mount, MAKE_DIRECTORY) {
                    Directory::parse(&wanted)?.make(roots)?;
                }
            }
            Transform::MakeFileSystem => {
                let wanted = FileSystem::parse(&take_options(&mut mount, MAKE_FILE_SYSTEM))?;
                wanted.make(Path::new(&mount.source), roots)?;
            }
        }
        Ok(mount)
    }
}

/// Takes the options with a prefix out of a mount; returns them without it.
fn take_options(mount: &mut Mount, prefix: &str) -> Vec<String> {
    let (own, rest) =
        std::mem::take(&mut mount.options).into_iter().partition(|option| option.starts_with(prefix));
    mount.options = rest;
    let own: Vec<String> = own;
    own.into_iter().map(|option| option[prefix.len()..].to_owned()).collect()
}

/// Fills in what stands between `{{` and `}}`.
fn format(text: &str, active: &[Active]) -> Result<String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (words, after) =
            after.split_once("}}").ok_or_else(|| invalid(format!("unclosed {{{{ in {text:?}")))?;
        filled.push_str(before);
        filled.push_str(&fact(words, active).map_err(|why| invalid(format!("{why} in {text:?}")))?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// What `source N`, `target N`, `mount N` or `overlay FROM TO` stands for.
fn fact(words: &str, active: &[Active]) -> std::result::Result<String, String> {
    let words: Vec<&str> = words.split_whitespace().collect();
    let count = active.len();
    let find = |word: &str| -> std::result::Result<(usize, &Active), String> {
        let number: usize = word.parse().map_err(|_| format!("{word:?} is no number"))?;
        let found = active.get(number);
        found
            .map(|found| (number, found))
            .ok_or_else(|| format!("index out of bounds: {number}, has {count} active mounts"))
    };
    match words[..] {
        ["source", one] => Ok(find(one)?.1.mount().source),
        ["target", one] => Ok(find(one)?.1.mount().target),
        ["mount", one] => Ok(find(one)?.1.mount_point.clone()),
        ["overlay", from, to] => {
            let ((from, _), (to, _)) = (find(from)?, find(to)?);
            let (low, high) = (from.min(to), from.max(to));
            let mut points: Vec<&str> =
                active[low..=high].iter().map(|active| active.mount_point.as_str()).collect();
            if from > to {
                points.reverse();
            }
            Ok(points.join(":"))
        }
        _ => Err(format!("unknown words {:?}", words.join(" "))),
    }
}

/// A directory that an option asks for.
#[derive(Debug, PartialEq, Eq)]
struct Directory {
    path: PathBuf,
    mode: u32,
    owner: Option<(u32, u32)>,
}

impl Directory {
    /// Reads `path=PATH[:MODE[:UID:GID]]`.
    fn parse(option: &str) -> Result<Directory> {
        let bad = || invalid(format!("invalid mkdir option {MAKE_DIRECTORY}{option:?}"));
        let parts: Vec<&str> = option.strip_prefix("path=").ok_or_else(bad)?.splitn(4, ':').collect();
        let mode = |text: &str| {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
            mode.ok_or_else(|| invalid(format!("invalid mode {text}")))
        };
        let number = |text: &str, what| text.parse().map_err(|_| invalid(format!("invalid {what} {text:?}")));
        let (path, mode, owner) = match parts[..] {
            [path] => (path, 0o700, None),
            [path, bits] => (path, mode(bits)?, None),
            [path, bits, uid, gid] => (path, mode(bits)?, Some((number(uid, "uid")?, number(gid, "gid")?))),
            _ => return Err(bad()),
        };
        Ok(Directory { path: path.into(), mode, owner })
    }

    fn make(&self, roots: &[PathBuf]) -> Result<()> {
        let shown = self.path.display().to_string();
        let (root, below) = allowed(&self.path, roots, "mkdir")?;
        let parent = below.parent().unwrap_or(Path::new("."));
        let name = below.file_name().ok_or_else(|| invalid(format!("invalid mkdir path {shown}")))?;
        let parent = open(&root, parent, O_PATH | O_DIRECTORY).context("open", &shown)?;
        let mode = rustix::fs::Mode::from_raw_mode(self.mode);
        match rustix::fs::mkdirat(&parent, name, mode) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(Error::io("create", shown, error.into())),
        }
        let made = File::from(open(&root, &below, O_DIRECTORY).context("open", &shown)?);
        // The mask of the process must not show.
        made.set_permissions(Permissions::from_mode(self.mode)).context("protect", &shown)?;
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::fchown(&made, Some(uid), Some(gid)).context("change owner of", shown)?;
        }
        Ok(())
    }
}

/// A file system that options describe.
#[derive(Debug, PartialEq, Eq)]
struct FileSystem {
    kind: String,
    size: u64,
    uuid: Option<String>,
}

impl FileSystem {
    fn parse(options: &[String]) -> Result<FileSystem> {
        let mut made = FileSystem { kind: "ext4".to_owned(), size: 0, uuid: None };
        for option in options {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match key {
                "size" => {
                    made.size =
                        size::bytes(value).ok_or_else(|| invalid(format!("bad option size: {value:?}")))?;
                }
                "fs" => made.kind = value.to_owned(),
                "uuid" => made.uuid = Some(value.to_owned()),
                _ => return Err(invalid(format!("unknown mount option {key}"))),
            }
        }
        if made.size == 0 {
            return Err(invalid("mkfs requires mkfs.size option"));
        }
        Ok(made)
    }

    /// The program that makes it, with its arguments.
    fn program(&self) -> Result<(String, Vec<String>)> {
        let arguments = match (self.kind.as_str(), &self.uuid) {
            ("ext2" | "ext3" | "ext4", Some(uuid)) => vec!["-U".to_owned(), uuid.clone()],
            ("xfs", Some(uuid)) => vec!["-m".to_owned(), format!("uuid={uuid}")],
            ("ext2" | "ext3" | "ext4" | "xfs", None) => Vec::new(),
            (other, _) => return Err(invalid(format!("unsupported filesystem {other:?}"))),
        };
        Ok((format!("mkfs.{}", self.kind), arguments))
    }

    fn make(&self, path: &Path, roots: &[PathBuf]) -> Result<()> {
        let shown = path.display().to_string();
        let (program, arguments) = self.program()?;
        let (root, below) = allowed(path, roots, "mkfs")?;
        match open_below(root.as_fd(), &below, O_RDWR | O_CREAT | O_EXCL, 0o640, Resolve::InRootNoLinks) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            file => {
                let file = File::from(file.context("create", &shown)?);
                let made = file
                    .set_len(self.size)
                    .context("resize", &shown)
                    .and_then(|()| run(&program, &arguments, path));
                if made.is_err() {
                    // A file without a file system would pass for one next time; the first error is the one to tell.
                    let _ = std::fs::remove_file(path);
                }
                made
            }
        }
    }
}

fn run(program: &str, arguments: &[String], path: &Path) -> Result<()> {
    let output =
        Command::new(program).arg("-q").args(arguments).arg(path).output().context("run", program)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let why = format!("{program} failed: {said}: {}", output.status);
    Err(Error::because(Kind::Unknown, "format", path.display().to_string(), why))
}

/// The allowed directory that a path is in, opened, and the rest of the path.
fn allowed(path: &Path, roots: &[PathBuf], what: &str) -> Result<(OwnedFd, PathBuf)> {
    let find = |root: &&PathBuf| path.strip_prefix(root).is_ok_and(|rest| rest != Path::new(""));
    let Some(root) = roots.iter().find(find) else {
        let text = format!("no root {:?} configured for {what}: {}", path.display(), Kind::Unimplemented);
        return Err(Error::exactly(Kind::Unimplemented, text));
    };
    let directory = File::open(root).context("open", root.display().to_string())?;
    let below = path.strip_prefix(root).unwrap_or(path).to_owned();
    Ok((directory.into(), below))
}

/// Opens what is below a directory, by no link.
fn open(root: &OwnedFd, below: &Path, flags: i32) -> io::Result<OwnedFd> {
    let below = if below == Path::new("") { Path::new(".") } else { below };
    open_below(root.as_fd(), below, flags, 0, Resolve::InRootNoLinks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(points: &[&str]) -> Vec<Active> {
        points
            .iter()
            .map(|point| Active {
                source: format!("source of {point}"),
                mount_point: (*point).to_owned(),
                ..Active::default()
            })
            .collect()
    }

    #[test]
    fn words_become_facts() {
        let active = active(&["/a", "/b", "/c"]);
        for (text, filled) in [
            ("plain", "plain"),
            ("{{ mount 1 }}", "/b"),
            ("{{mount 0}}/x", "/a/x"),
            ("lowerdir={{ overlay 0 2 }}", "lowerdir=/a:/b:/c"),
            ("lowerdir={{ overlay 2 1 }}:/d", "lowerdir=/c:/b:/d"),
            ("{{ source 2 }}", "source of /c"),
            ("{{ target 2 }}", ""),
        ] {
            assert_eq!(format(text, &active).unwrap(), filled, "{text}");
        }
        for bad in
            ["{{ mount 3 }}", "{{ mount }}", "{{ other 1 }}", "{{ mount x", "{{ overlay 0 3 }}", "{{}}"]
        {
            assert_eq!(format(bad, &active).unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn directories_are_made_where_it_is_allowed() {
        let place = tempfile::tempdir().unwrap();
        let roots = [place.path().join("root")];
        std::fs::create_dir(&roots[0]).unwrap();
        let apply = |path: &str| {
            let option = format!("{MAKE_DIRECTORY}path={path}");
            let mount = Mount { options: vec!["ro".to_owned(), option], ..Mount::default() };
            Transform::MakeDirectory.apply(mount, &[], &roots)
        };
        let path = |name: &str| roots[0].join(name).display().to_string();
        let mode = |name: &str| roots[0].join(name).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(apply(&path("one")).unwrap().options, ["ro"]);
        assert_eq!(mode("one"), 0o700);
        for _ in 0..2 {
            apply(&format!("{}:755", path("one/two"))).unwrap();
            assert_eq!(mode("one/two"), 0o755);
        }
        std::os::unix::fs::symlink(place.path(), roots[0].join("link")).unwrap();
        assert!(apply(&path("link/out")).is_err());
        assert!(apply(&path("../out")).is_err() || !place.path().join("out").exists());
        assert_eq!(apply("/elsewhere/x").unwrap_err().kind(), Kind::Unimplemented);
        for bad in [format!("{}:1777", path("x")), format!("{}:7:7", path("x")), path("x:9")] {
            assert_eq!(apply(&bad).unwrap_err().kind(), Kind::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn file_systems_need_a_size_and_a_known_kind() {
        let parse = |options: &[&str]| {
            FileSystem::parse(&options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
        };
        let made = parse(&["size=16MiB", "uuid=u", "fs=xfs"]).unwrap();
        assert_eq!(made.size, 16 << 20);
        assert_eq!(made.program().unwrap().1, ["-m", "uuid=u"]);
        assert!(parse(&["size=10q"]).is_err() && parse(&[]).is_err() && parse(&["size=1", "x=y"]).is_err());
        assert!(parse(&["size=1", "fs=../x"]).unwrap().program().is_err());
    }
}
