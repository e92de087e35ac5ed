//! AppArmor: the profile that a container gets, and the engine's own, `docker-default`.
//!
//! Follows dockerd: the profile is loaded at the start and again before a container that gets it, since those who look after
//! a machine's profiles unload what lies in none of their files. apparmor.d(5) is the language.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;

use orlop_proto::error::{Context, Error, Result};
use orlop_proto::kind::Kind;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Mutex;

/// Name of the engine's own profile.
pub const DEFAULT: &str = "docker-default";
/// What stands for no profile.
const UNCONFINED: &str = "unconfined";
/// The program that compiles and loads profiles.
const PARSER: &str = "/sbin/apparmor_parser";
/// Where the kernel shows AppArmor.
const KERNEL: &str = "/sys/kernel/security/apparmor";

/// What this machine has of AppArmor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The kernel confines programs, and this daemon is in no container that says so (`container` in its environment).
    pub is_on: bool,
    /// The program that loads profiles is there.
    pub has_parser: bool,
}

impl Machine {
    /// Looks at this one.
    fn find() -> Machine {
        let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        let is_contained = std::env::var_os("container").is_some_and(|name| !name.is_empty());
        Machine {
            is_on: enabled.is_ok_and(|text| text.starts_with('Y'))
                && Path::new(KERNEL).exists()
                && !is_contained,
            has_parser: Path::new(PARSER).exists(),
        }
    }

    /// The profile of a container: the one that it names, none for a privileged one, else the engine's own. Without the program
    /// that loads it there is no such; a profile that is named is for the kernel to find.
    pub fn profile(self, named: &str, privileged: bool) -> Option<String> {
        let name = match named {
            "" if !self.has_parser => return None,
            "" if privileged => UNCONFINED,
            "" => DEFAULT,
            named => named,
        };
        self.is_on.then(|| name.to_owned())
    }
}

/// AppArmor on this machine.
#[derive(Debug)]
pub struct AppArmor {
    /// What there is.
    pub machine: Machine,
    /// Held while the profile is loaded: once is enough.
    turn: Mutex<()>,
}

impl AppArmor {
    /// Looks at this machine.
    pub fn find() -> AppArmor {
        AppArmor { machine: Machine::find(), turn: Mutex::default() }
    }

    /// Loads the engine's profile where the daemon starts; a failure is said, and met again by who needs the profile.
    pub async fn prepare(&self) {
        if !self.machine.is_on || !self.machine.has_parser {
            return;
        }
        if let Err(error) = self.load().await {
            tracing::error!("{error}");
        }
    }

    /// Sees that a profile which a process is about to get is there, if it is the engine's own.
    ///
    /// # Errors
    ///
    /// When it cannot be loaded, with what the program said.
    pub async fn ensure(&self, profile: &str) -> Result<()> {
        if profile == DEFAULT { self.load().await } else { Ok(()) }
    }

    async fn load(&self) -> Result<()> {
        let _turn = self.turn.lock().await;
        let list = format!("{KERNEL}/profiles");
        let loaded = fs::read_to_string(&list).context("read", list)?;
        if is_loaded(&loaded, DEFAULT) {
            return Ok(());
        }
        let own = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
        let exists = |file: &str| Path::new("/etc/apparmor.d").join(file).exists();
        let text = text(confined_by(&own), exists("tunables/global"), exists("abstractions/base"));
        let failed = |why: String| {
            let context = format!("AppArmor enabled on system but the {DEFAULT} profile could not be loaded");
            Error::exactly(Kind::Internal, format!("{context}: running `{PARSER} -Kr` failed with {why}"))
        };
        let output = run(&text).await.map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            return Err(failed(format!("output: {}: {}", said.trim(), output.status)));
        }
        tracing::info!(profile = DEFAULT, "AppArmor profile loaded");
        Ok(())
    }
}

/// Has the parser compile a profile without a cache, and load it, also over one of the same name.
async fn run(text: &str) -> std::io::Result<std::process::Output> {
    let mut command = Command::new(PARSER);
    command.arg("-Kr").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(text.as_bytes()).await {
            // It says itself why it did not read on.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    child.wait_with_output().await
}

/// Whether the kernel's list has a profile. A line is a name and a mode in parentheses.
fn is_loaded(list: &str, name: &str) -> bool {
    list.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))
}

/// The profile that a process has, from its `attr/current`: what stands before the mode.
fn confined_by(current: &str) -> &str {
    current.split_whitespace().next().unwrap_or(UNCONFINED)
}

/// The engine's profile, for a daemon that is confined by `daemon`, with what distributions lay in /etc/apparmor.d where they do.
fn text(daemon: &str, has_tunables: bool, has_base: bool) -> String {
    let head = if has_tunables { "#include <tunables/global>" } else { "@{PROC}=/proc/" };
    let base = if has_base { "  #include <abstractions/base>\n" } else { "" };
    let mut senders = vec![UNCONFINED, "orlop", "runc", "crun", DEFAULT];
    if !senders.contains(&daemon) {
        senders.push(daemon);
    }
    let receives: String =
        senders.iter().map(|sender| format!("  signal (receive) peer={sender},\n")).collect();
    format!(
        "{head}\n\n\
         profile {DEFAULT} flags=(attach_disconnected,mediate_deleted) {{\n\
         {base}  file,\n  network,\n  capability,\n  umount,\n  deny mount,\n\n\
         # Signals come from the host, from the runtimes that stop containers, and from the container itself.\n\
         {receives}  signal (send) peer={DEFAULT},\n  ptrace (trace,read,tracedby,readby) peer={DEFAULT},\n\n\
         {PROC_RULES}\n{SYS_RULES}}}\n"
    )
}

/// Of /proc a container writes to its processes' directories, and to limits on what its IPC namespace has.
const PROC_RULES: &str = "\
  deny @{PROC}/* w,
  deny @{PROC}/{[^0-9s],s[^y],sy[^s],sys[^/]}*/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{[^s],s[^eh],s[eh][^m]}** w,
  deny @{PROC}/{kcore,sysrq-trigger} rwklx,
";

/// Of /sys it writes to cgroups alone, and does not see the firmware, what its neighbours take of power, and security modules.
const SYS_RULES: &str = "\
  deny /sys/{[^f]*,f[^s]*,fs/[^c]*,fs/c[^g]*,fs/cg[^r]*}/** wklx,
  deny /sys/{firmware,kernel/security,devices/virtual/powercap}/** rwklx,
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_is_the_named_one_or_the_engines() {
        let on = Machine { is_on: true, has_parser: true };
        let profile = |machine: Machine, named, privileged| machine.profile(named, privileged);
        for (named, privileged, expected) in [
            ("", false, DEFAULT),
            ("", true, UNCONFINED),
            ("mine", false, "mine"),
            ("mine", true, "mine"),
            (UNCONFINED, false, UNCONFINED),
            (DEFAULT, true, DEFAULT),
        ] {
            assert_eq!(profile(on, named, privileged).as_deref(), Some(expected), "{named} {privileged}");
        }
        let without_parser = Machine { has_parser: false, ..on };
        assert_eq!(profile(without_parser, "", false), None);
        assert_eq!(profile(without_parser, "", true), None);
        assert_eq!(profile(without_parser, "mine", false).as_deref(), Some("mine"));
        for has_parser in [false, true] {
            let off = Machine { is_on: false, has_parser };
            for (named, privileged) in [("", false), ("", true), ("mine", false), (UNCONFINED, false)] {
                assert_eq!(profile(off, named, privileged), None, "as dockerd without AppArmor");
            }
        }
    }

    #[test]
    fn the_kernels_list_is_read_by_whole_names() {
        let list = "/usr/bin/man (enforce)\ndocker-default-old (enforce)\ndocker-default (complain)\n";
        assert!(is_loaded(list, DEFAULT) && is_loaded(list, "/usr/bin/man"));
        assert!(!is_loaded(list, "docker") && !is_loaded("", DEFAULT));
        assert!(!is_loaded("docker-default-old (enforce)\n", DEFAULT));
    }

    #[test]
    fn the_profile_knows_who_may_signal() {
        assert_eq!(confined_by("/usr/sbin/orlopd (enforce)\n"), "/usr/sbin/orlopd");
        assert_eq!((confined_by("unconfined\n"), confined_by("")), (UNCONFINED, UNCONFINED));
        let plain = text(UNCONFINED, false, false);
        assert!(plain.starts_with("@{PROC}=/proc/\n") && !plain.contains("#include"), "{plain}");
        assert_eq!(plain.matches("peer=unconfined").count(), 1, "{plain}");
        let full = text("/usr/sbin/orlopd", true, true);
        assert!(full.starts_with("#include <tunables/global>\n"), "{full}");
        for line in [
            "  #include <abstractions/base>\n",
            "  signal (receive) peer=/usr/sbin/orlopd,\n",
            "  deny mount,\n",
            "  deny @{PROC}/{kcore,sysrq-trigger} rwklx,\n",
        ] {
            assert!(full.contains(line), "{line}: {full}");
        }
        assert_eq!(full.matches('{').count(), full.matches('}').count());
    }
}
