//! `orlopctl install`: programs and libraries of an image into a directory of the host.

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use orlop_proto::containerd::services::introspection::v1::PluginsRequest;
use orlop_proto::error::{Context as _, Error, Result};
use orlop_proto::kind::Kind;

use super::Context;
use crate::blob;
use crate::cli::Install;
use crate::image;
use crate::media::decompressed;
use crate::platform::Platform;

/// What marks a name of a lower layer as removed (OCI Image Specification, layer.md).
const WHITEOUT: &str = ".wh.";

pub async fn install(context: &Context<'_>, options: &Install) -> Result<()> {
    let client = context.client;
    let record = image::record(client, &options.image).await?;
    let root = match options.path.as_ref().filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => path.clone(),
        None => managed(context).await?,
    };
    let image = image::resolve(client, &image::target(&record)?, &Platform::host()).await?;
    let mut installation = Installation {
        root,
        directories: if options.libs { vec!["bin", "lib"] } else { vec!["bin"] },
        replace: options.replace,
        made: HashSet::new(),
    };
    for layer in &image.manifest.layers {
        installation = blob::consume(client, &layer.digest, move |input| {
            installation.layer(input)?;
            Ok(installation)
        })
        .await?;
    }
    Ok(())
}

/// The directory for installed programs that the server says.
async fn managed(context: &Context<'_>) -> Result<PathBuf> {
    let request = PluginsRequest { filters: vec!["id==opt".to_owned()] };
    let plugins = context.client.introspection().plugins(request).await?.into_inner().plugins;
    let refused = |reason: &'static str| Error::exactly(Kind::FailedPrecondition, reason);
    let [plugin] = plugins.as_slice() else { return Err(refused("opt service not enabled")) };
    let path = plugin.exports.get("path").filter(|path| !path.is_empty());
    path.map(PathBuf::from).ok_or_else(|| refused("opt path not exported"))
}

/// What is installed where.
struct Installation {
    root: PathBuf,
    /// The directories of the image of which files are taken.
    directories: Vec<&'static str>,
    /// Whether files that are there already are replaced.
    replace: bool,
    /// What this installation made.
    made: HashSet<PathBuf>,
}

impl Installation {
    /// Takes the files of a layer. Nothing but names directly in one of the directories is looked at, so that a link
    /// among them leads nowhere; the archive's reader refuses what leads out of the root.
    fn layer(&mut self, input: &mut dyn Read) -> Result<()> {
        let shown = self.root.display().to_string();
        let mut archive = tar::Archive::new(decompressed(input).context("read layer for", &shown)?);
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(true);
        archive.set_overwrite(true);
        for entry in archive.entries().context("read layer for", &shown)? {
            let mut entry = entry.context("read layer for", &shown)?;
            let named = entry.path().context("read layer for", &shown)?.into_owned();
            let Some(name) = self.wanted(&named) else { continue };
            let target = self.root.join(&name);
            if let Some(hidden) = hidden(&name) {
                // Files of others are not this image's to remove.
                if self.made.remove(&hidden) {
                    fs::remove_file(self.root.join(&hidden)).context("remove", &shown)?;
                }
                continue;
            }
            let is_there = fs::symlink_metadata(&target).is_ok();
            if is_there && !self.replace {
                let reason = format!("cannot replace {} in {shown}", name.display());
                return Err(Error::exactly(Kind::AlreadyExists, reason));
            }
            let kind = entry.header().entry_type();
            let object = target.display().to_string();
            if kind.is_dir() {
                directory(&target).context("create", object)?;
            } else if kind.is_file() || kind.is_symlink() || kind.is_hard_link() {
                let parent = target.parent().unwrap_or(&self.root);
                fs::create_dir_all(parent).context("create", parent.display().to_string())?;
                let inside = parent.canonicalize().context("resolve", &object)?;
                if !inside.starts_with(self.root.canonicalize().context("resolve", &shown)?) {
                    return Err(outside(&object));
                }
                if is_there {
                    // A symbolic or hard link is not made over another file.
                    fs::remove_file(&target).context("replace", &object)?;
                }
                if !entry.unpack_in(&self.root).context("install", &object)? {
                    return Err(outside(&object));
                }
                self.made.insert(name);
            }
        }
        Ok(())
    }

    /// The name of an entry in one of the directories, without `.` and a slash before it.
    fn wanted(&self, named: &Path) -> Option<PathBuf> {
        let parts = named.components().filter(|part| !matches!(part, Component::CurDir | Component::RootDir));
        let parts: Vec<Component> = parts.collect();
        match parts[..] {
            [Component::Normal(directory), Component::Normal(name)]
                if self.directories.iter().any(|wanted| directory == *wanted) =>
            {
                Some(Path::new(directory).join(name))
            }
            _ => None,
        }
    }
}

fn outside(object: &str) -> Error {
    Error::because(Kind::InvalidArgument, "install", object, "it leads out of the directory")
}

/// The name that a whiteout hides.
fn hidden(name: &Path) -> Option<PathBuf> {
    let hidden = name.file_name()?.to_str()?.strip_prefix(WHITEOUT)?;
    Some(name.with_file_name(hidden))
}

fn directory(path: &Path) -> io::Result<()> {
    match DirBuilder::new().recursive(false).mode(0o755).create(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => fs::create_dir_all(path),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn archive(entries: &[(tar::EntryType, &str, &str)]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (kind, name, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o755);
            // Whoever runs this may give files to nobody else.
            let own = fs::metadata("/proc/self").unwrap();
            header.set_uid(own.uid().into());
            header.set_gid(own.gid().into());
            header.set_size(0);
            if kind.is_symlink() || kind.is_hard_link() {
                archive.append_link(&mut header, name, content).unwrap();
            } else {
                header.set_size(content.len() as u64);
                archive.append_data(&mut header, name, content.as_bytes()).unwrap();
            }
        }
        archive.into_inner().unwrap()
    }

    fn installation(root: &Path) -> Installation {
        Installation { root: root.into(), directories: vec!["bin"], replace: false, made: HashSet::new() }
    }

    #[test]
    fn only_files_directly_in_the_directories_are_taken() {
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        let root = tempfile::tempdir().unwrap();
        let entries = [
            (Directory, "bin", ""),
            (Regular, "./bin/a", "one"),
            (Symlink, "bin/link", "/etc"),
            (Regular, "bin/link/passwd", "no"),
            (Link, "bin/hard", "bin/a"),
            (Regular, "etc/x", "no"),
            (Regular, "lib/l.so", "no"),
        ];
        let mut installation = installation(root.path());
        installation.layer(&mut archive(&entries).as_slice()).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(root.path().join("bin")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["a", "hard", "link"]);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        // What this image put there its upper layers may hide; what was there before they may not.
        fs::write(root.path().join("bin/before"), "").unwrap();
        let whiteouts = [(Regular, "bin/.wh.a", ""), (Regular, "bin/.wh.before", "")];
        installation.layer(&mut archive(&whiteouts).as_slice()).unwrap();
        assert!(!root.path().join("bin/a").exists() && root.path().join("bin/before").exists());
    }

    #[test]
    fn what_leads_out_is_refused() {
        use tar::EntryType::{Link, Regular};
        let place = tempfile::tempdir().unwrap();
        let (root, outside) = (place.path().join("root"), place.path().join("outside"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("secret"), "s").unwrap();
        std::os::unix::fs::symlink(&outside, root.join("bin")).unwrap();
        let entry = archive(&[(Regular, "bin/a", "one")]);
        installation(&root).layer(&mut entry.as_slice()).unwrap_err();
        assert!(!outside.join("a").exists());
        fs::remove_file(root.join("bin")).unwrap();
        let link = archive(&[(Link, "bin/a", "../outside/secret")]);
        installation(&root).layer(&mut link.as_slice()).unwrap_err();
        assert!(!root.join("bin/a").exists());
    }
}
