//! What this kernel and machine have, as plain data.

use std::path::Path;

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
