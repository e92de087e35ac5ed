//! Files on their way into an image: found below a root, hashed, copied below another. All paths stay in their root.
//!
//! A copy is an archive that one thread writes and the unpacker reads: it has the guards that hostile layers need.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::thread;

use orlop_proto::error::{Context, Error};
use orlop_proto::kind::Kind;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::pattern::{Excluded, compile, is_pattern};
use crate::docker::container::accounts_below;
use crate::docker::failure::{Failure, Result};
use crate::image::diff::{Looks, write_tree_as};
use crate::image::unpack::{Target, Whiteouts, apply, attributes, hex, reader};

/// How many symbolic links a path may lead over.
const MAX_LINKS: usize = 40;
/// Mode of directories that a copy makes on its way.
const DIRECTORY_MODE: u32 = 0o755;
/// Length of the header of an archive's entry, in bytes.
const HEADER: usize = 512;

/// User and group of what is copied.
pub type Owner = (u32, u32);

/// Something to copy.
pub struct Source {
    parent: OwnedFd,
    /// Its name in the directory; `.` for the directory itself.
    base: String,
    /// What a file is called where it is copied into a directory.
    name: String,
    is_directory: bool,
    /// Whether it came from elsewhere: then `ADD` does not unpack it.
    is_download: bool,
    /// What it is, as the history says it: `file:DIGEST`.
    pub hash: String,
}

/// Where a path leads, the last part followed too: a directory and a name in it.
struct Located {
    parent: OwnedFd,
    base: String,
    is_directory: bool,
}

fn open_directory(root: &OwnedFd, path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = if path.is_empty() { "/" } else { path };
    rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
}

/// Finds a path below a root.
fn locate(root: &OwnedFd, path: &str) -> rustix::io::Result<Located> {
    let mut path = path.trim_end_matches('/').to_owned();
    for _ in 0..MAX_LINKS {
        let (directory, base) = path.rsplit_once('/').unwrap_or(("", &path));
        if base.is_empty() || base == "." || base == ".." {
            let parent = open_directory(root, &path)?;
            return Ok(Located { parent, base: ".".to_owned(), is_directory: true });
        }
        let parent = open_directory(root, directory)?;
        let stat = rustix::fs::statat(&parent, base, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&parent, base, Vec::new())?;
                let target = target.to_str().map_err(|_| Errno::NOENT)?;
                let below = format!("{directory}/{target}");
                path = if target.starts_with('/') { target.to_owned() } else { below };
                path.truncate(path.trim_end_matches('/').len());
            }
            kind => {
                let is_directory = kind == FileType::Directory;
                return Ok(Located { parent, base: base.to_owned(), is_directory });
            }
        }
    }
    Err(Errno::LOOP)
}

/// A path relative to its root, without `.`; `..` is kept at the start alone.
fn relative(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            // Above `/` is `/`.
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Where sources are looked for.
pub struct Place {
    /// Its root.
    pub root: OwnedFd,
    /// Whether it is the context of the build, rather than an image.
    pub is_context: bool,
}

impl Place {
    /// Finds sources, and hashes what they are. Blocks.
    ///
    /// # Errors
    ///
    /// 400 in dockerd's words for a source that is not there, or outside.
    pub fn find(&self, sources: &[String], excluded: &Excluded, keeps_owner: bool) -> Result<Vec<Source>> {
        let mut found = Vec::new();
        for source in sources {
            let path = relative(source);
            if path.starts_with("..") {
                return Err(Failure::invalid(format!(
                    "forbidden path outside the build context: {source} ()"
                )));
            }
            if !is_pattern(&path) {
                found.push(self.one(&path, excluded, keeps_owner)?);
                continue;
            }
            let regex = compile(&path, false)?;
            let mut names = Vec::new();
            list(&self.root, "", path.matches('/').count(), &mut names)?;
            for name in names.iter().filter(|name| regex.is_match(name)) {
                found.push(self.one(name, excluded, keeps_owner)?);
            }
        }
        if found.is_empty() {
            return Err(Failure::invalid("no source files were specified"));
        }
        Ok(found)
    }

    fn one(&self, path: &str, excluded: &Excluded, keeps_owner: bool) -> Result<Source> {
        let located = locate(&self.root, path).map_err(|errno| {
            let text = format!("stat {path}: {}", go_error(errno));
            match (errno, self.is_context) {
                (Errno::NOENT | Errno::NOTDIR, true) => {
                    let text =
                        format!("file not found in build context or excluded by .dockerignore: {text}");
                    Failure::invalid(text)
                }
                _ => Failure::invalid(text),
            }
        })?;
        // Named as it was asked for, not as what links lead to.
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        source(located, name, excluded, keeps_owner, false)
    }
}

/// A file that was made or fetched for the build.
///
/// # Errors
///
/// Those of reading it.
pub fn single(directory: OwnedFd, name: &str) -> Result<Source> {
    let located = Located { parent: directory, base: name.to_owned(), is_directory: false };
    source(located, name.to_owned(), &Excluded::of([])?, false, true)
}

fn source(
    located: Located,
    name: String,
    excluded: &Excluded,
    keeps_owner: bool,
    is_download: bool,
) -> Result<Source> {
    let Located { parent, base, is_directory } = located;
    let looks = Looks {
        above: if is_directory { Vec::new() } else { name.as_bytes().to_vec() },
        // When a file was changed does not count, and who owns it only where that is kept.
        epoch: Some(0),
        owner: (!keeps_owner).then_some((0, 0)),
        ..Looks::default()
    };
    let mut hash = Hash(Sha256::new());
    write_tree_as(&mut hash, &parent, base.as_bytes(), looks, &|path| is_out(excluded, path))?;
    let kind = if is_directory { "dir" } else { "file" };
    let hash = format!("{kind}:{}", hex(&hash.0.finalize()));
    Ok(Source { parent, base, name, is_directory, is_download, hash })
}

fn is_out(excluded: &Excluded, path: &[u8]) -> bool {
    !excluded.is_empty() && excluded.has(&String::from_utf8_lossy(path))
}

/// The paths below a root, as deep as a pattern can reach, in the order of their names.
fn list(directory: &OwnedFd, above: &str, depth: usize, names: &mut Vec<String>) -> Result<()> {
    let failed = |errno: Errno| Error::io("read", above, errno.into());
    let mut entries = attributes::entries(directory).map_err(failed)?;
    entries.sort();
    for entry in entries {
        let Ok(base) = entry.to_str() else { continue };
        let path = if above.is_empty() { base.to_owned() } else { format!("{above}/{base}") };
        names.push(path.clone());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if depth > 0
            && let Ok(inner) = rustix::fs::openat(directory, base, flags, Mode::empty())
        {
            list(&inner, &path, depth - 1, names)?;
        }
    }
    Ok(())
}

/// One text for all sources.
pub fn joined_hash(sources: &[Source]) -> String {
    match sources {
        [one] => one.hash.clone(),
        all => {
            let all: Vec<&str> = all.iter().map(|source| source.hash.as_str()).collect();
            format!("multi:{}", hex(&Sha256::digest(all.join(","))))
        }
    }
}

/// How sources are copied.
pub struct Copying {
    /// Where to, absolute; with a slash at the end for a directory.
    pub target: String,
    /// The owner as it was given, and nothing for root.
    pub chown: String,
    /// Permission bits, unless they stay.
    pub mode: Option<u32>,
    /// Whether owners stay where none was given.
    pub keeps_owner: bool,
    /// Whether archives are unpacked.
    pub unpacks: bool,
    /// What is left out.
    pub excluded: Excluded,
}

impl Copying {
    /// Copies sources below a root. Blocks.
    ///
    /// # Errors
    ///
    /// 400 for an owner that is none; those of the file system.
    pub fn copy(&self, root: &OwnedFd, sources: &[Source]) -> Result<()> {
        let owner = match self.chown.as_str() {
            "" if self.keeps_owner => None,
            "" => Some((0, 0)),
            text => Some(owner(root, text)?),
        };
        for source in sources {
            self.one(root, source, owner)?;
        }
        Ok(())
    }

    fn one(&self, root: &OwnedFd, source: &Source, owner: Option<Owner>) -> Result<()> {
        let made_for = owner.unwrap_or((0, 0));
        if self.unpacks && !source.is_download && !source.is_directory && is_archive(source)? {
            let directory = make_directories(root, &self.target, made_for)?;
            let file = open_file(source)?;
            apply(file, Target { root: directory, lowers: Vec::new(), whiteouts: Whiteouts::Literal })?;
            return Ok(());
        }
        let (directory, above) = if source.is_directory {
            (make_directories(root, &self.target, made_for)?, String::new())
        } else if self.target.ends_with('/') {
            (make_directories(root, &self.target, made_for)?, source.name.clone())
        } else {
            match locate(root, &self.target) {
                Ok(found) if found.is_directory => {
                    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
                    let opened = rustix::fs::openat(&found.parent, &*found.base, flags, Mode::empty());
                    (opened.map_err(|errno| failed(&self.target, errno))?, source.name.clone())
                }
                Ok(found) => (found.parent, found.base),
                Err(Errno::NOENT) => {
                    let (parent, base) = self.target.rsplit_once('/').unwrap_or(("", &self.target));
                    (make_directories(root, parent, made_for)?, base.to_owned())
                }
                Err(errno) => return Err(failed(&self.target, errno).into()),
            }
        };
        let looks = Looks { above: above.into_bytes(), owner, mode: self.mode, ..Looks::default() };
        transfer(source, directory, looks, &self.excluded)
    }
}

/// Copies a source into a directory.
fn transfer(source: &Source, directory: OwnedFd, looks: Looks, excluded: &Excluded) -> Result<()> {
    let (input, output) = io::pipe().context("make", "pipe")?;
    let copied = thread::scope(|scope| {
        let writer = thread::Builder::new().name("copy".to_owned()).spawn_scoped(scope, move || {
            let output = BufWriter::with_capacity(64 << 10, output);
            write_tree_as(output, &source.parent, source.base.as_bytes(), looks, &|path| {
                is_out(excluded, path)
            })
        });
        let writer = writer.context("start", "copy thread")?;
        let read =
            apply(input, Target { root: directory, lowers: Vec::new(), whiteouts: Whiteouts::Literal });
        let panicked = |_| Error::because(Kind::Internal, "copy", "files", "a thread panicked");
        let written = writer.join().map_err(panicked)?;
        // A reader that stops makes the writer stop: the reader knows why, unless it only missed the end.
        match (read, written) {
            (Ok(_), written) => written,
            (Err(error), Err(cause)) if error.kind() == Kind::DataLoss => Err(cause),
            (Err(error), _) => Err(error),
        }
    });
    Ok(copied?)
}

fn failed(path: &str, errno: Errno) -> Error {
    Error::io("open", path, errno.into())
}

fn open_file(source: &Source) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = rustix::fs::openat(&source.parent, &*source.base, flags, Mode::empty());
    Ok(opened.map(File::from).map_err(|errno| failed(&source.name, errno))?)
}

/// Whether a file is an archive, compressed or not: it begins with a header whose checksum is right.
fn is_archive(source: &Source) -> Result<bool> {
    // Not opened before it is known to be a file: opening a device can be enough to set it going.
    let stat = rustix::fs::statat(&source.parent, &*source.base, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| failed(&source.name, errno))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(false);
    }
    let (reader, _) = match reader(open_file(source)?) {
        Ok(opened) => opened,
        Err(error) if error.kind() == Kind::Unimplemented => return Err(error.into()),
        Err(_) => return Ok(false),
    };
    let mut header = [0; HEADER];
    let mut length = 0;
    let mut reader = reader;
    while length < HEADER {
        match reader.read(&mut header[length..]) {
            Ok(0) | Err(_) => return Ok(false),
            Ok(more) => length += more,
        }
    }
    let header = tar::Header::from_byte_slice(&header);
    let sum: u32 = header
        .as_bytes()
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(*byte) })
        .sum();
    Ok(header.cksum().is_ok_and(|own| own == sum))
}

/// The owner that `--chown` names; a user alone names the group too.
fn owner(root: &OwnedFd, text: &str) -> Result<Owner> {
    let whole = if text.contains(':') { text.to_owned() } else { format!("{text}:{text}") };
    let user = accounts_below(root).user(&whole).map_err(|error| {
        Failure::invalid(format!("unable to convert uid/gid chown string to host mapping: {error}"))
    })?;
    Ok((user.uid, user.gid))
}

/// Opens a directory below a root, and makes what is missing on the way.
///
/// # Errors
///
/// Those of the file system.
pub fn make_directories(root: &OwnedFd, path: &str, owner: Owner) -> Result<OwnedFd> {
    let mut reached = String::new();
    let mut current = open_directory(root, "/").map_err(|errno| failed(path, errno))?;
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        reached.push('/');
        reached.push_str(part);
        current = match open_directory(root, &reached) {
            Ok(opened) => opened,
            Err(Errno::NOENT) => {
                let make = || -> rustix::io::Result<OwnedFd> {
                    rustix::fs::mkdirat(&current, part, Mode::from_raw_mode(DIRECTORY_MODE))?;
                    let made = open_directory(root, &reached)?;
                    rustix::fs::fchown(&made, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))?;
                    rustix::fs::fchmod(&made, Mode::from_raw_mode(DIRECTORY_MODE))?;
                    Ok(made)
                };
                make().map_err(|errno| Error::io("create", reached.clone(), errno.into()))?
            }
            Err(errno) => return Err(failed(&reached, errno).into()),
        };
    }
    Ok(current)
}

/// Go's words for an error.
fn go_error(errno: Errno) -> String {
    match errno {
        Errno::NOENT => "file does not exist".to_owned(),
        errno => Error::io("", "", errno.into()).to_string().trim_start_matches([' ', ':']).to_owned(),
    }
}

/// Hashes what is written.
struct Hash(Sha256);

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
