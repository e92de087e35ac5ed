//! AppArmor's profile for containers, the same under any name: dockerd's `docker-default` and that of `ctr run
//! --apparmor-default-profile`. apparmor.d(5) is the language.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::error::{Context, Error, Result};
use crate::kind::Kind;

/// The program that compiles and loads profiles.
pub const PARSER: &str = "/sbin/apparmor_parser";
/// Where the kernel shows AppArmor.
pub const KERNEL: &str = "/sys/kernel/security/apparmor";
/// The profile of whoever has none.
const UNCONFINED: &str = "unconfined";

/// Loads the profile under a name, unless one of that name is loaded already; says whether it did.
///
/// # Errors
///
/// `InvalidArgument` for what cannot be a name; that the kernel has no AppArmor; what the program said that loads profiles.
pub fn load(name: &str) -> Result<bool> {
    let is_word =
        |letter: char| !letter.is_whitespace() && !letter.is_control() && !"{}(),\"#".contains(letter);
    if name.is_empty() || !name.chars().all(is_word) {
        let reason = format!("invalid name {name:?}");
        return Err(Error::because(Kind::InvalidArgument, "AppArmor profile", "", reason));
    }
    let list = format!("{KERNEL}/profiles");
    if is_loaded(&fs::read_to_string(&list).context("read", list)?, name) {
        return Ok(false);
    }
    let own = fs::read_to_string("/proc/self/attr/current").unwrap_or_default();
    let exists = |file: &str| Path::new("/etc/apparmor.d").join(file).exists();
    let text = text(name, confined_by(&own), exists("tunables/global"), exists("abstractions/base"));
    let failed =
        |why: String| Error::exactly(Kind::Internal, format!("running `{PARSER} -Kr` failed with {why}"));
    let output = run(&text).map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("output: {}: {}", said.trim(), output.status)));
    }
    Ok(true)
}

/// Has the parser compile a profile without a cache, and load it, also over one of the same name.
fn run(text: &str) -> std::io::Result<Output> {
    let mut command = Command::new(PARSER);
    command.arg("-Kr").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(text.as_bytes()) {
            // It says itself why it did not read on.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    child.wait_with_output()
}

/// Whether the kernel's list has a profile. A line is a name and a mode in parentheses.
fn is_loaded(list: &str, name: &str) -> bool {
    list.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))
}

/// The profile that a process has, from its `attr/current`: what stands before the mode.
fn confined_by(current: &str) -> &str {
    current.split_whitespace().next().unwrap_or(UNCONFINED)
}

/// The profile under a name, for containers whose manager is confined by `daemon`, with what distributions lay in /etc/apparmor.d where they do.
fn text(name: &str, daemon: &str, has_tunables: bool, has_base: bool) -> String {
    let head = if has_tunables { "#include <tunables/global>" } else { "@{PROC}=/proc/" };
    let base = if has_base { "  #include <abstractions/base>\n" } else { "" };
    let mut senders = vec![UNCONFINED, "orlop", "runc", "crun", name];
    if !senders.contains(&daemon) {
        senders.push(daemon);
    }
    let receives: String =
        senders.iter().map(|sender| format!("  signal (receive) peer={sender},\n")).collect();
    format!(
        "{head}\n\n\
         profile {name} flags=(attach_disconnected,mediate_deleted) {{\n\
         {base}  file,\n  network,\n  capability,\n  umount,\n  deny mount,\n\n\
         # Signals come from the host, from the runtimes that stop containers, and from the container itself.\n\
         {receives}  signal (send) peer={name},\n  ptrace (trace,read,tracedby,readby) peer={name},\n\n\
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
    fn the_kernels_list_is_read_by_whole_names() {
        let list = "/usr/bin/man (enforce)\ndocker-default-old (enforce)\ndocker-default (complain)\n";
        assert!(is_loaded(list, "docker-default") && is_loaded(list, "/usr/bin/man"));
        assert!(!is_loaded(list, "docker") && !is_loaded("", "docker-default"));
        assert!(!is_loaded("docker-default-old (enforce)\n", "docker-default"));
    }

    #[test]
    fn the_profile_knows_who_may_signal() {
        assert_eq!(confined_by("/usr/sbin/orlopd (enforce)\n"), "/usr/sbin/orlopd");
        assert_eq!((confined_by("unconfined\n"), confined_by("")), (UNCONFINED, UNCONFINED));
        let plain = text("docker-default", UNCONFINED, false, false);
        assert!(plain.starts_with("@{PROC}=/proc/\n") && !plain.contains("#include"), "{plain}");
        assert_eq!(plain.matches("peer=unconfined").count(), 1, "{plain}");
        let full = text("mine", "/usr/sbin/orlopd", true, true);
        assert!(full.starts_with("#include <tunables/global>\n"), "{full}");
        for line in [
            "  #include <abstractions/base>\n",
            "  signal (receive) peer=/usr/sbin/orlopd,\n",
            "profile mine flags=",
            "  signal (send) peer=mine,\n",
            "  deny mount,\n",
            "  deny @{PROC}/{kcore,sysrq-trigger} rwklx,\n",
        ] {
            assert!(full.contains(line), "{line}: {full}");
        }
        assert_eq!(full.matches('{').count(), full.matches('}').count());
    }

    #[test]
    fn a_name_is_one_word() {
        for name in ["", "a b", "a{", "a\n}", "a,b", "\"a\""] {
            assert_eq!(load(name).unwrap_err().kind(), Kind::InvalidArgument, "{name:?}");
        }
    }
}
