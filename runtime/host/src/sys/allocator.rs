//! Memory that is kept for later though nothing needs it now: what was freed, and pages of the program itself.

/// What glibc keeps of freed memory at the top of an arena, in bytes; larger pieces are mapped on their own and go when freed.
#[cfg(target_env = "gnu")]
const KEPT: libc::c_int = 128 << 10;

/// Has the allocator of a process with many short-lived threads keep little: two arenas instead of eight for each processor, and
/// thresholds that do not grow with what was once freed (mallopt(3)). Other allocators stay as they are.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_ARENA_MAX, 2), (libc::M_MMAP_THRESHOLD, KEPT), (libc::M_TRIM_THRESHOLD, KEPT)]
    {
        // SAFETY: mallopt(3) takes two integers, and these parameters may be set at any time.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives free memory inside of the heap back to the kernel (malloc_trim(3)); takes milliseconds where there is much of it.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes the allocator's own locks and moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Unmaps the pages of this program and its libraries that nothing has changed. They stay in the page cache, and those that are
/// used again come back one by one: what a busy time once touched, and the kernel mapped around it, counts as this process's memory
/// no more. Returns how many bytes of mappings were let go of.
///
/// # Errors
///
/// Those of reading /proc/self/smaps; what cannot be unmapped stays.
pub fn release_program() -> std::io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps")?;
    let mut released = 0;
    for (start, length) in unchanged(&text) {
        // SAFETY: the range is a private mapping of a file that is not writable and of which the kernel says that it holds no page
        // of its own, in memory or in swap space, so every page is the file's and is read from there again. A mapping that the
        // loader still relocates is writable. Nobody unmaps programs or libraries of this process: it calls no dlclose(3).
        let result = unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
        released += if result == 0 { length as u64 } else { 0 };
    }
    Ok(released)
}

/// Addresses and lengths of the mappings of files that cannot be written and that nothing has changed (proc_pid_smaps(5)).
fn unchanged(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        let is_none = |value: &str| value.trim() == "0 kB";
        if let Some(value) = line.strip_prefix("Anonymous:") {
            current = current.filter(|_| is_none(value));
        } else if let Some(value) = line.strip_prefix("Swap:") {
            // A changed page that was swapped out, as the relocated ones of an idle program are, is counted here alone.
            found.extend(current.take().filter(|_| is_none(value)));
        } else if let Some(range) = mapping(line) {
            current = range;
        }
    }
    found
}

/// What the first line of a mapping says: its range, where it is one of a file that is private and read-only. `None` for other
/// lines.
fn mapping(line: &str) -> Option<Option<(usize, usize)>> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let parse = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (parse(start)?, parse(end)?);
    let is_fixed = matches!(words.next()?, "r-xp" | "r--p");
    let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
    Some((is_fixed && is_file).then_some((start, end.checked_sub(start)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_or_can_be_stays() {
        let smaps = "\
55d0-55d2 r--p 00000000 fd:00 12 /usr/bin/program
Rss: 8 kB
Anonymous:             0 kB
Swap:                  0 kB
55d2-55d6 r-xp 00002000 fd:00 12 /usr/bin/program
Anonymous:             0 kB
Swap:                  0 kB
55d6-55d7 r--p 00006000 fd:00 12 /usr/bin/program
Anonymous:             8 kB
Swap:                  0 kB
55d7-55d8 r--p 00007000 fd:00 12 /usr/bin/program
Anonymous:             0 kB
Swap:                  4 kB
SwapPss:               0 kB
55d8-55d9 rw-p 00008000 fd:00 12 /usr/bin/program
Anonymous:             0 kB
Swap:                  0 kB
7f00-7f10 r--s 00000000 fd:00 13 /some/shared/file
Anonymous:             0 kB
Swap:                  0 kB
7f10-7f20 r-xp 00000000 00:00 0 [vdso]
Anonymous:             0 kB
Swap:                  0 kB
7f20-7f30 r--p 00000000 00:00 0
Anonymous:             0 kB
Swap:                  0 kB
VmFlags: rd mr mw me
";
        assert_eq!(unchanged(smaps), [(0x55d0, 2), (0x55d2, 4)]);
    }

    #[test]
    fn a_program_goes_on_after_its_pages_were_let_go_of() {
        let resident = || -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        let before = resident();
        trim();
        assert!(release_program().unwrap() > 0);
        let after = resident();
        assert!(after < before, "{before} KiB of files before, {after} after");
        assert_eq!(format!("{:?}", [1.5, 2.5]), "[1.5, 2.5]");
    }
}
