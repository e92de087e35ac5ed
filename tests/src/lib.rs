//! Harness of the black-box suites.
//!
//! A test makes one [`Root`]: a short temporary directory with a tag of its own. Every process, mount and cgroup that the
//! test causes lies below that directory or carries that tag, so that [`Root::assert_clean`] can name what was left
//! behind and dropping the root removes it, even after a panic and with other tests running beside it.
//!
//! ```no_run
//! use orlop_tests::{Bundle, Cmd, Root, binaries};
//! let root = Root::new();
//! let bundle = Bundle::new(&root, "b").args(["sh", "-c", "echo hello"]).save();
//! let out = Cmd::new(binaries::orlop()).arg("--root").arg(root.join("state")).args(["run", "--bundle"]).arg(bundle.path()).arg("c1").run();
//! assert_eq!(out.success().stdout, "hello\n");
//! root.assert_clean();
//! ```

pub mod binaries;
mod bundle;
mod command;
mod crun;
pub mod daemon;
mod front;
mod go;
mod guard;
pub mod host;
pub mod http;
pub mod image;
mod numbers;
mod poll;
mod pretender;
mod proxy;
mod recorder;
mod registry;
mod root;
pub mod shim;
mod terminal;

pub use bundle::{Bundle, busybox_rootfs};
pub use command::{Cmd, Output, Process};
pub use crun::{NEWER_CRUN, newer_crun};
pub use daemon::{Containerd, Daemon, Orlopd, Variant};
pub use front::{Cutter, Deed, Front, Request};
pub use go::{go, has_go};
pub use guard::{Authority, Guard, PASSWORD, TokenServer, USER};
pub use image::{Compression, Image, Layer};
pub use numbers::{Numbers, number};
pub use poll::{patient, poll_for, poll_until, poll_value};
pub use pretender::pretender;
pub use proxy::Proxy;
pub use recorder::Recorder;
pub use registry::Registry;
pub use root::{Leaks, Root};
pub use terminal::Terminal;
