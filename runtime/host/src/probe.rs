//! What this kernel and machine have, as plain data.

use std::path::Path;

use orlop_proto::error::{Error, Result};
use orlop_proto::kind::Kind;

use crate::sys::mount;

/// Refuses a kernel without the mount API by descriptor, without which no container is made.
///
/// # Errors
/// `Unimplemented`, with the release of the kernel that is there.
pub fn require_mount_api() -> Result<()> {
    if mount::is_available() {
        return Ok(());
    }
    let release = crate::file::read_text(Path::new("/proc/sys/kernel/osrelease")).unwrap_or_default();
    let text = format!(
        "orlop needs Linux 5.15 or later, and mount_setattr(2) let through by whatever filters system calls: there is no such call here (Linux {})",
        release.trim()
    );
    Err(Error::exactly(Kind::Unimplemented, text))
}

/// Which security modules are there to take labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SecurityModules {
    /// AppArmor is enabled.
    pub apparmor: bool,
    /// SELinux is enabled.
    pub selinux: bool,
}

impl SecurityModules {
    /// Looks for the modules' own directories.
    pub fn detect() -> SecurityModules {
        SecurityModules {
            apparmor: std::fs::read("/sys/module/apparmor/parameters/enabled")
                .is_ok_and(|text| text.first() == Some(&b'Y')),
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
        }
    }
}
