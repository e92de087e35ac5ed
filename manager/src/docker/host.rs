//! Facts about this machine that clients are told.

use std::fs;

/// Release of the kernel.
pub fn kernel() -> String {
    let name = rustix::system::uname();
    name.release().to_string_lossy().into_owned()
}

/// The machine's name.
pub fn name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// Go's name of the processor.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Number of processors.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Memory, in bytes.
pub fn memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kilobytes = total.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024
}

/// `1` or `2`.
pub fn cgroup_version() -> &'static str {
    if is_unified() { "2" } else { "1" }
}

/// Whether there is cgroup v2 alone.
pub fn is_unified() -> bool {
    fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok()
}

/// How many descriptors this daemon has open.
pub fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// What the distribution calls itself.
pub fn operating_system() -> String {
    os_release("PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned())
}

/// The distribution's version.
pub fn operating_system_version() -> String {
    os_release("VERSION_ID").unwrap_or_default()
}

/// A value of os-release(5).
fn os_release(key: &str) -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

/// What protects the host, in the words of `docker info`.
pub fn security_options(has_apparmor: bool, is_remapped: bool) -> Vec<&'static str> {
    let mut options = Vec::new();
    if has_apparmor {
        options.push("name=apparmor");
    }
    options.push("name=seccomp,profile=builtin");
    if is_remapped {
        options.push("name=userns");
    }
    if is_unified() {
        options.push("name=cgroupns");
    }
    options
}
