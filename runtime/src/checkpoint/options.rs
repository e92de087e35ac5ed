//! What the command lines of checkpoint and restore ask for, checked.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;

use super::rpc::Message;
use crate::cli::parse::Given;
use crate::plan::clean;

/// Where images are if no flag says so, as in runc.
const IMAGES: &str = "checkpoint";
/// The configuration of CRIU's that containers have, which runc's users know.
const CONFIGURATION: &str = "/etc/criu/runc.conf";
/// The annotation that names another one, or none.
const ANNOTATION: &str = "org.criu.config";

/// Flags that both verbs have, or have as CRIU knows them: the flag, and the number of CRIU's option.
const SWITCHES: [(&str, u32); 9] = [
    ("leave-running", 3),
    ("ext-unix-sk", 4),
    ("tcp-established", 5),
    ("shell-job", 7),
    ("file-locks", 8),
    ("auto-dedup", 16),
    ("link-remap", 18),
    ("tcp-skip-in-flight", 46),
    ("lazy-pages", 48),
];

/// Texts that CRIU takes as they are: the flag, and the number of CRIU's option.
const TEXTS: [(&str, u32); 2] = [("lsm-profile", 53), ("lsm-mount-context", 63)];

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// Directory of the images.
    pub images: PathBuf,
    /// Directory of the log, unless it is that of the images.
    work: Option<PathBuf>,
    /// Earlier images, relative to these.
    parent: Option<String>,
    /// Only memory, and the container goes on.
    pub pre_dump: bool,
    /// The container goes on after a checkpoint.
    pub leave_running: bool,
    /// How much of the cgroups is saved or restored (`criu_cg_mode`).
    cgroup_mode: u64,
    /// Where pages are sent: address and port.
    page_server: Option<(String, u64)>,
    /// Descriptor that gets a byte once pages can be fetched.
    pub status: Option<i32>,
    switches: Vec<u32>,
    texts: Vec<(u32, String)>,
}

/// Directories that CRIU opens through our descriptors of them.
pub struct Directories {
    images: File,
    work: Option<File>,
    /// Where the log is.
    pub log: PathBuf,
}

impl Options {
    /// Reads the flags; nothing is made yet.
    pub fn new(given: &Given) -> Result<Options> {
        let images = absolute(given.path("image-path").unwrap_or_else(|| Path::new(IMAGES).to_owned()))?;
        let parent = given.path("parent-path").map(|parent| check_parent(&images, &parent)).transpose()?;
        if let Some(name) = given.texts("empty-ns").into_iter().find(|name| name != "network") {
            return Err(refuse(format!("namespace {name:?} is not supported")));
        }
        Ok(Options {
            work: given.path("work-path").map(absolute).transpose()?,
            parent,
            pre_dump: given.is_on("pre-dump"),
            leave_running: given.is_on("leave-running"),
            cgroup_mode: cgroup_mode(given.text("manage-cgroups-mode").as_deref().unwrap_or(""))?,
            page_server: given.text("page-server").as_deref().map(page_server).transpose()?,
            status: given.number("status-fd").filter(|&number| number != -1).map(|number| number as i32),
            switches: SWITCHES
                .iter()
                .filter(|(name, _)| given.is_on(name))
                .map(|(_, field)| *field)
                .collect(),
            texts: TEXTS.iter().filter_map(|(name, field)| Some((*field, given.text(name)?))).collect(),
            images,
        })
    }

    /// Opens the directories; a checkpoint makes those that are missing.
    pub fn open(&self, make: bool) -> Result<Directories> {
        let open = |path: &Path, make: bool| -> Result<File> {
            let shown = || path.to_string_lossy().into_owned();
            if make {
                DirBuilder::new().recursive(true).mode(0o700).create(path).context("create", shown())?;
            }
            File::open(path).context("open", shown())
        };
        Ok(Directories {
            images: open(&self.images, make)?,
            // CRIU writes its log there on the way back too.
            work: self.work.as_deref().map(|work| open(work, true)).transpose()?,
            log: self.work.clone().unwrap_or_else(|| self.images.clone()),
        })
    }

    /// Tells CRIU (`criu_opts`) what comes from the command line and the container's annotations.
    pub fn tell(
        &self,
        message: &mut Message,
        directories: &Directories,
        log: &str,
        annotations: &Annotations,
    ) {
        use std::os::fd::AsRawFd;
        let number = |file: &File| file.as_raw_fd() as u64;
        message.number(1, number(&directories.images)).number(9, 4).text(10, log);
        // Notices; the old and the new way to say that cgroups matter; a terminal whose other end stays outside.
        message.flag(12, true).flag(24, true).number(34, self.cgroup_mode).flag(50, true);
        // The network's devices are somebody else's to set up.
        message.number(38, libc::CLONE_NEWNET as u64);
        if let Some(work) = &directories.work {
            message.number(17, number(work));
        }
        if let Some(parent) = &self.parent {
            message.text(14, parent).flag(15, true);
        }
        if let Some((address, port)) = &self.page_server {
            let mut server = Message::default();
            server.text(1, address).number(2, *port);
            message.part(11, &server);
        }
        let configuration = annotations.get(ANNOTATION).map_or(CONFIGURATION, String::as_str);
        if !configuration.is_empty() {
            message.text(51, configuration);
        }
        for field in &self.switches {
            message.flag(*field, true);
        }
        for (field, text) in &self.texts {
            message.text(*field, text);
        }
    }
}

/// A container's annotations.
pub type Annotations = std::collections::BTreeMap<String, String>;

fn refuse(why: impl Into<String>) -> Error {
    Error::exactly(Kind::InvalidArgument, why.into())
}

/// The bundle becomes the working directory later.
fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).context("find", path.to_string_lossy())
}

fn check_parent(images: &Path, parent: &Path) -> Result<String> {
    if parent.is_absolute() {
        return Err(refuse("--parent-path must be relative"));
    }
    // By the text alone, as the directory of the new images need not be there yet.
    let whole = clean(&images.join(parent));
    let found = std::fs::metadata(&whole).context("invalid --parent-path: stat", whole.to_string_lossy())?;
    if !found.is_dir() {
        return Err(refuse(format!("invalid --parent-path: {} is not a directory", whole.display())));
    }
    Ok(parent.to_string_lossy().into_owned())
}

fn cgroup_mode(name: &str) -> Result<u64> {
    match name {
        "ignore" => Ok(0),
        "soft" => Ok(3),
        "full" => Ok(4),
        "strict" => Ok(5),
        "" => Ok(6),
        _ => Err(refuse("invalid manage-cgroups-mode value")),
    }
}

fn page_server(text: &str) -> Result<(String, u64)> {
    match text.rsplit_once(':') {
        Some((address, port)) if !address.is_empty() && !port.is_empty() => {
            let port = port.parse::<u16>().map_err(|_| refuse("Invalid port number"))?;
            Ok((address.to_owned(), port.into()))
        }
        _ => Err(refuse("Use --page-server ADDRESS:PORT to specify page server")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_servers_are_checked() {
        assert_eq!(cgroup_mode("strict").unwrap(), 5);
        assert_eq!(cgroup_mode("").unwrap(), 6);
        cgroup_mode("some").unwrap_err();
        assert_eq!(page_server("127.0.0.1:99").unwrap(), ("127.0.0.1".into(), 99));
        for bad in ["", "x", "x:", ":9", "x:y", "x:70000"] {
            page_server(bad).unwrap_err();
        }
    }

    #[test]
    fn an_earlier_image_is_named_from_the_new_one() {
        let directory = std::env::temp_dir();
        let images = directory.join("not there yet");
        assert_eq!(check_parent(&images, Path::new("../.")).unwrap(), "../.");
        check_parent(&directory, Path::new("/tmp")).unwrap_err();
        check_parent(&directory, Path::new("no such directory")).unwrap_err();
    }
}
