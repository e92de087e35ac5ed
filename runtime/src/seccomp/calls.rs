//! What happens to each call of each architecture: names resolved, rules merged, numbers gathered into ranges.

use std::collections::BTreeMap;

use orlop_host::sys::seccomp::{Comparison, Operator, resolve_on};

use super::Policy;
use super::program::{Case, Range, Table, Verdict};

pub(super) const X86: u32 = 0x4000_0003; // SCMP_ARCH_X86
pub(super) const X86_64: u32 = 0xc000_003e; // SCMP_ARCH_X86_64
const X32: u32 = 0x4000_003e; // SCMP_ARCH_X32, libseccomp's own number; for the kernel x32 is x86-64
const ARM: u32 = 0x4000_0028; // SCMP_ARCH_ARM
const AARCH64: u32 = 0xc000_00b7; // SCMP_ARCH_AARCH64
const RISCV64: u32 = 0xc000_00f3; // SCMP_ARCH_RISCV64
const LOONGARCH64: u32 = 0xc000_0102; // SCMP_ARCH_LOONGARCH64

/// What tells calls of x32 from those of x86-64 (`__X32_SYSCALL_BIT`).
const X32_BIT: u32 = 0x4000_0000;
/// The action for an architecture that the profile leaves out: libseccomp's default (`SECCOMP_RET_KILL_THREAD`).
const FOREIGN: u32 = 0;

/// Whether we lay out the calls of an architecture (libseccomp's number): little-endian ones without multiplexed calls, and x86.
pub(super) fn is_known(architecture: u32) -> bool {
    [X86, X86_64, X32, ARM, AARCH64, RISCV64, LOONGARCH64].contains(&architecture)
}

/// One table for each architecture that the kernel tells apart.
pub(super) fn tables(policy: &Policy) -> Vec<Table> {
    let mut tables = Vec::new();
    for architecture in policy.architectures.iter().copied().filter(|one| *one != X32) {
        if architecture != X86_64 {
            let is_wide = architecture != X86 && architecture != ARM;
            tables.push(Table { architecture, is_wide, ranges: ranges(policy, architecture, 0, u32::MAX) });
        }
    }
    let has = |architecture: u32| policy.architectures.contains(&architecture);
    if has(X86_64) || has(X32) {
        let always = |first, action| Range { first, verdict: Verdict::Action(action) };
        let mut all = match has(X86_64) {
            true => ranges(policy, X86_64, 0, X32_BIT - 1),
            false => vec![always(0, FOREIGN)],
        };
        match has(X32) {
            true => all.extend(ranges(policy, X32, X32_BIT, u32::MAX)),
            // Number -1 is no call of x32 but what a tracer puts there to skip one.
            false => all.extend([always(X32_BIT, FOREIGN), always(u32::MAX, policy.default)]),
        }
        // Most calls are native ones, so their table comes first.
        tables.insert(0, Table { architecture: X86_64, is_wide: true, ranges: merge(all) });
    }
    tables
}

/// The calls from `first` to `last` as ranges without gaps.
fn ranges(policy: &Policy, architecture: u32, first: u32, last: u32) -> Vec<Range> {
    let mut calls: BTreeMap<u32, Vec<Case>> = BTreeMap::new();
    let mut greatest = None;
    for rule in &policy.rules {
        for name in &rule.names {
            let Some(number) = resolve_on(architecture, name) else { continue };
            if number > 0 {
                greatest = greatest.max(Some(number as u32));
            }
            if rule.action == policy.default {
                continue;
            }
            for (call, multiplexer) in entries(architecture, number) {
                for comparisons in &rule.alternatives {
                    let case = case(architecture, rule.action, comparisons, multiplexer);
                    calls.entry(call).or_default().push(case);
                }
            }
        }
    }
    let newer = policy.newer.zip(greatest).filter(|(_, greatest)| *greatest < last);
    let mut all = Vec::new();
    let mut next = first;
    for (call, cases) in calls.into_iter().filter(|(call, _)| (first..=last).contains(call)) {
        if call > next {
            all.push(Range { first: next, verdict: Verdict::Action(policy.default) });
        }
        all.push(Range { first: call, verdict: verdict(cases, policy.default) });
        next = call + 1;
    }
    match newer {
        Some((action, greatest)) => {
            if next <= greatest {
                all.push(Range { first: next, verdict: Verdict::Action(policy.default) });
            }
            all.push(Range { first: (greatest + 1).max(first), verdict: Verdict::Action(action) });
        }
        None => all.push(Range { first: next, verdict: Verdict::Action(policy.default) }),
    }
    merge(all)
}

/// The verdict on one call. As in libseccomp a rule without comparisons covers all others, and the first one counts.
fn verdict(cases: Vec<Case>, default: u32) -> Verdict {
    match cases.iter().find(|case| case.comparisons.is_empty()) {
        Some(case) => Verdict::Action(case.action),
        None => Verdict::Cases { cases, otherwise: default },
    }
}

/// Joins neighbours on which the verdict is the same.
fn merge(ranges: Vec<Range>) -> Vec<Range> {
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        let is_same = merged.last().is_some_and(|last| match (&last.verdict, &range.verdict) {
            (Verdict::Action(one), Verdict::Action(other)) => one == other,
            _ => false,
        });
        if !is_same {
            merged.push(range);
        }
    }
    merged
}

/// The numbers under which a call can be made, each with the value of a multiplexer's first argument if it goes through one.
///
/// libseccomp gives 32-bit x86's socket and System V calls negative numbers that hold that value; since Linux 4.3 and 5.1 most
/// have a number of their own too.
fn entries(architecture: u32, number: i32) -> Vec<(u32, Option<u64>)> {
    if let Ok(number) = u32::try_from(number) {
        return vec![(number, None)];
    }
    if architecture != X86 {
        return Vec::new();
    }
    let (multiplexer, argument) = match -number {
        value @ 101..=120 => (X86_SOCKETCALL, value - 100),
        value @ 201..=224 => (X86_IPC, value - 200),
        _ => return Vec::new(),
    };
    let direct = X86_DIRECT.iter().find(|(pseudo, _)| *pseudo == number).map(|(_, direct)| (*direct, None));
    [(multiplexer, Some(argument as u64))].into_iter().chain(direct).collect()
}

const X86_SOCKETCALL: u32 = 102;
const X86_IPC: u32 = 117;

/// libseccomp's negative numbers with the calls' own ones (arch/x86/entry/syscalls/syscall_32.tbl).
const X86_DIRECT: [(i32, u32); 27] = [
    (-101, 359), // socket
    (-102, 361), // bind
    (-103, 362), // connect
    (-104, 363), // listen
    (-106, 367), // getsockname
    (-107, 368), // getpeername
    (-108, 360), // socketpair
    (-111, 369), // sendto
    (-112, 371), // recvfrom
    (-113, 373), // shutdown
    (-114, 366), // setsockopt
    (-115, 365), // getsockopt
    (-116, 370), // sendmsg
    (-117, 372), // recvmsg
    (-118, 364), // accept4
    (-119, 337), // recvmmsg
    (-120, 345), // sendmmsg
    (-202, 393), // semget
    (-203, 394), // semctl
    (-211, 400), // msgsnd
    (-212, 401), // msgrcv
    (-213, 399), // msgget
    (-214, 402), // msgctl
    (-221, 397), // shmat
    (-222, 398), // shmdt
    (-223, 395), // shmget
    (-224, 396), // shmctl
];

/// A rule's comparisons on one architecture.
///
/// A multiplexer's first argument says which call is meant. The others lead to memory that a filter cannot read, so that
/// what libseccomp does with them is done here too: comparisons are kept, except that of the first argument.
fn case(architecture: u32, action: u32, comparisons: &[Comparison], multiplexer: Option<u64>) -> Case {
    let is_narrow = matches!(architecture, X86 | X32 | ARM);
    let mut all: Vec<Comparison> = comparisons
        .iter()
        .filter(|one| multiplexer.is_none() || one.argument != 0)
        // A comparison under an empty mask always holds.
        .filter(|one| one.operator != Operator::MaskedEqual || one.value != 0)
        .copied()
        .collect();
    if let Some(value) = multiplexer {
        all.push(Comparison { argument: 0, operator: Operator::Equal, value, second: 0 });
    }
    Case { action, comparisons: all, is_narrow }
}
