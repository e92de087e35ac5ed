//! A runtime that saves nothing and restores nothing, for what is around it: CRIU does not run on every kernel.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::binaries;
use crate::root::Root;

/// A runtime in front of orlop that notes how `checkpoint` and `restore` are called, ends the container for the first if it
/// is not to run on, and runs it from its start for the second. Its notes are in `calls` below the root.
///
/// # Panics
/// When it cannot be written.
pub fn pretender(root: &Root) -> PathBuf {
    let (path, notes) = (root.join("pretender"), root.join("calls"));
    let orlop = binaries::orlop();
    let script = format!(
        "#!/bin/sh\nall=\"$*\"\nrun() {{ exec {orlop} \"$@\"; }}\ncase $all in\n\
         *' checkpoint '*) echo \"checkpoint ${{all#* checkpoint }}\" >>{notes}\n\
         case $all in *--leave-running*) exit 0;; esac\n\
         for id; do :; done; run --root \"$2\" kill \"$id\" KILL;;\n\
         *' restore '*) echo \"restore ${{all#* restore }}\" >>{notes}\n\
         r=$2; while [ \"$1\" != --bundle ]; do shift; done; run --root \"$r\" run \"$@\";;\n\
         *) run \"$@\";;\nesac\n",
        orlop = orlop.display(),
        notes = notes.display(),
    );
    fs::write(&path, script).expect("writing a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("making a script a program");
    path
}
