//! Capabilities as bit masks.

use oci_spec::runtime::{Capabilities as Names, Capability, LinuxCapabilities};
use orlop_proto::error::Result;

use super::refuse;

/// The kernel's numbers, in order (`linux/capability.h`).
const ORDER: [Capability; 41] = {
    use Capability::*;
    [
        Chown,
        DacOverride,
        DacReadSearch,
        Fowner,
        Fsetid,
        Kill,
        Setgid,
        Setuid,
        Setpcap,
        LinuxImmutable,
        NetBindService,
        NetBroadcast,
        NetAdmin,
        NetRaw,
        IpcLock,
        IpcOwner,
        SysModule,
        SysRawio,
        SysChroot,
        SysPtrace,
        SysPacct,
        SysAdmin,
        SysBoot,
        SysNice,
        SysResource,
        SysTime,
        SysTtyConfig,
        Mknod,
        Lease,
        AuditWrite,
        AuditControl,
        Setfcap,
        MacOverride,
        MacAdmin,
        Syslog,
        WakeAlarm,
        BlockSuspend,
        AuditRead,
        Perfmon,
        Bpf,
        CheckpointRestore,
    ]
};

/// The five sets of a process, bit 0 being `CAP_CHOWN`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// What the process and its children can ever have.
    pub bounding: u64,
    /// What is in force.
    pub effective: u64,
    /// What can be made effective.
    pub permitted: u64,
    /// What is kept over the exec of a file with inheritable capabilities.
    pub inheritable: u64,
    /// What is kept over every exec.
    pub ambient: u64,
}

/// How many capabilities there are.
pub const COUNT: u8 = ORDER.len() as u8;

/// The name of a number, such as `CAP_CHOWN`.
pub fn name(number: u8) -> String {
    ORDER.get(usize::from(number)).map_or_else(|| format!("CAP_{number}"), |one| format!("CAP_{one}"))
}

/// Every name, in the kernel's order.
pub fn names() -> Vec<String> {
    (0..COUNT).map(name).collect()
}

/// The bit of a name, with or without `CAP_`, in any case.
pub fn bit(text: &str) -> Result<u64> {
    let upper = text.to_ascii_uppercase();
    let wanted = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let position = ORDER.iter().position(|one| one.to_string() == wanted);
    position.map(|at| 1 << at).ok_or_else(|| refuse(format!("unknown capability {text:?}")))
}

fn mask(names: &Option<Names>) -> u64 {
    let position = |name: &Capability| ORDER.iter().position(|one| one == name);
    names.iter().flatten().filter_map(position).fold(0, |mask, at| mask | 1 << at)
}

impl Capabilities {
    /// The sets of the configuration; none means none.
    pub fn plan(configured: &Option<LinuxCapabilities>) -> Capabilities {
        let Some(sets) = configured else { return Capabilities::default() };
        Capabilities {
            bounding: mask(sets.bounding()),
            effective: mask(sets.effective()),
            permitted: mask(sets.permitted()),
            inheritable: mask(sets.inheritable()),
            ambient: mask(sets.ambient()),
        }
    }

    /// Adds one to the bounding, effective and permitted sets, as `exec --cap` does; not to the inheritable one, which a file of
    /// the image could turn into a permitted one for any user (CVE-2022-29162).
    pub fn add(&mut self, bit: u64) {
        if crate::switches::is_off("inheritable") {
            self.inheritable |= bit;
        }
        for set in [&mut self.bounding, &mut self.effective, &mut self.permitted] {
            *set |= bit;
        }
    }
}

/// The numbers of the bits in a mask.
pub fn numbers(mask: u64) -> impl Iterator<Item = u8> {
    (0..COUNT).filter(move |number| mask & (1 << number) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(bit("CAP_CHOWN").unwrap(), 1);
        assert_eq!(bit("sys_admin").unwrap(), 1 << 21);
        assert_eq!(bit("CAP_CHECKPOINT_RESTORE").unwrap(), 1 << 40);
        assert_eq!(name(27), "CAP_MKNOD");
        bit("CAP_ODD").unwrap_err();
        assert_eq!(numbers(0b101).collect::<Vec<_>>(), [0, 2]);
    }
}
