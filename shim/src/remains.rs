//! What a container leaves with its runtime when its creation was cut off or its shim died, cleared away by force.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use orlop_host::cgroup::{Cgroup, Hierarchies};
use orlop_proto::error::{Error, Result};

use crate::runtime::{self, Runtime, Spec, Verb};

/// How often and how long to wait for the processes of a cut-off creation to leave their cgroup.
const BUSY: (u32, Duration) = (100, Duration::from_millis(10));

/// Has the runtime delete a container, and removes the cgroup that a runtime which was killed while it created knows nothing
/// of. Whatever goes wrong keeps nothing else back.
pub fn clear(runtime: &Runtime, id: &str, bundle: &Path) -> Result<()> {
    let deleted = runtime.command(id, &Verb::Delete).and_then(|command| runtime::run(&command));
    runtime.leave_root();
    let left = if runtime.is_systemd() { Ok(()) } else { remove_cgroup(id, bundle) };
    deleted.map(drop).and(left)
}

/// Removes the directories that the container's configuration names, if they are there and nobody is in them: whoever uses
/// the same ones keeps them.
fn remove_cgroup(id: &str, bundle: &Path) -> Result<()> {
    // Without a configuration nothing was made.
    let Ok(spec) = Spec::read(bundle) else { return Ok(()) };
    let paths = Cgroup::plan(&Hierarchies::detect()?, spec.cgroups_path(), id)?;
    for (_, path) in paths.iter() {
        let (attempts, pause) = BUSY;
        for attempt in 1.. {
            match fs::remove_dir(path) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy && attempt < attempts => {
                    std::thread::sleep(pause);
                }
                Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ResourceBusy) => {
                    return Err(Error::io("remove cgroup", path.to_string_lossy(), error));
                }
                _ => break,
            }
        }
    }
    Ok(())
}
