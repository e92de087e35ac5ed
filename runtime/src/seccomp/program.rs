//! Instructions of the kernel's classic BPF for tables of calls: a binary search for the call's number, then its verdict.
//!
//! The machine is described in the kernel's Documentation/networking/filter.rst; a program may read `struct seccomp_data` only.

use orlop_host::sys::seccomp::{Comparison, Operator};

/// The calls of one architecture.
#[derive(Debug)]
pub(super) struct Table {
    /// The kernel's number (`AUDIT_ARCH_…`).
    pub(super) architecture: u32,
    /// Whether arguments have 64 bits.
    pub(super) is_wide: bool,
    /// All numbers in ascending order, from zero and without gaps.
    pub(super) ranges: Vec<Range>,
}

/// Calls with one verdict, up to the next range.
#[derive(Debug)]
pub(super) struct Range {
    pub(super) first: u32,
    pub(super) verdict: Verdict,
}

/// What happens to a call.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Always this (`SECCOMP_RET_…`).
    Action(u32),
    /// The action of the first case that holds.
    Cases { cases: Vec<Case>, otherwise: u32 },
}

/// An action under conditions.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) action: u32,
    /// All of them must hold.
    pub(super) comparisons: Vec<Comparison>,
    /// Only the lower halves of arguments count.
    pub(super) is_narrow: bool,
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const IF_GREATER_OR_EQUAL: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The action for an architecture without a table (`SECCOMP_RET_KILL_THREAD`), which is libseccomp's.
const FOREIGN: u32 = 0;

/// The program for the tables, the likeliest architecture first.
pub(super) fn program(tables: &[Table]) -> Vec<u64> {
    let mut code = vec![plain(LOAD, ARCHITECTURE)];
    for table in tables {
        let mut section = vec![plain(LOAD, NUMBER)];
        section.extend(search(&table.ranges, table.is_wide));
        code.extend(unless(IF_EQUAL, table.architecture, section.len()));
        code.extend(section);
    }
    code.push(plain(RETURN, FOREIGN));
    code
}

/// Finds the range of the number in the accumulator and ends with its verdict.
fn search(ranges: &[Range], is_wide: bool) -> Vec<u64> {
    match ranges {
        [] => Vec::new(),
        [only] => verdict(&only.verdict, is_wide),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let upper_code = search(upper, is_wide);
            let mut code = unless(IF_GREATER_OR_EQUAL, upper[0].first, upper_code.len());
            code.extend(upper_code);
            code.extend(search(lower, is_wide));
            code
        }
    }
}

/// A test that falls through if it holds, and else skips `length` instructions. A conditional jump reaches 255 of them.
fn unless(test: u16, value: u32, length: usize) -> Vec<u64> {
    match u8::try_from(length) {
        Ok(length) => vec![branch(test, value, 0, length)],
        // Programs have at most 4096 instructions, or they are refused as a whole.
        Err(_) => vec![branch(test, value, 1, 0), plain(JUMP, length as u32)],
    }
}

fn verdict(verdict: &Verdict, is_wide: bool) -> Vec<u64> {
    let (cases, otherwise) = match verdict {
        Verdict::Action(action) => return vec![plain(RETURN, *action)],
        Verdict::Cases { cases, otherwise } => (cases, otherwise),
    };
    let mut code = Vec::new();
    for case in cases {
        code.extend(conditions(case, is_wide && !case.is_narrow));
    }
    code.push(plain(RETURN, *otherwise));
    code
}

/// Where a test in a case leads.
#[derive(Clone, Copy)]
enum Target {
    /// The next instruction.
    Next,
    /// The end of this comparison, which holds.
    Holds,
    /// The end of the case, which does not hold.
    Fails,
}

/// An instruction with open ends.
struct Step {
    code: u16,
    value: u32,
    then: Target,
    otherwise: Target,
}

/// A case: all comparisons one after the other, then its action.
fn conditions(case: &Case, is_wide: bool) -> Vec<u64> {
    let parts: Vec<Vec<Step>> = case.comparisons.iter().map(|one| comparison(one, is_wide)).collect();
    // Six comparisons of six instructions at most, so every jump is short.
    let length = parts.iter().map(Vec::len).sum::<usize>() + 1;
    let mut code = Vec::with_capacity(length);
    for part in parts {
        let end = code.len() + part.len();
        for step in part {
            let from = code.len() + 1;
            let distance = |target| match target {
                Target::Next => 0,
                Target::Holds => (end - from) as u8,
                Target::Fails => (length - from) as u8,
            };
            code.push(branch(step.code, step.value, distance(step.then), distance(step.otherwise)));
        }
    }
    code.push(plain(RETURN, case.action));
    code
}

/// One comparison. An argument of 64 bits is compared in halves, the upper one first.
fn comparison(comparison: &Comparison, is_wide: bool) -> Vec<Step> {
    use Target::{Fails, Holds, Next};
    let offset = ARGUMENTS + 8 * comparison.argument;
    let load = |offset| Step { code: LOAD, value: offset, then: Next, otherwise: Next };
    let mask = |value| Step { code: AND, value, then: Next, otherwise: Next };
    let test = |code, value, then, otherwise| Step { code, value, then, otherwise };
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (upper, lower) = halves(comparison.value);
    let mut steps = Vec::new();
    if is_wide && comparison.operator != Operator::MaskedEqual {
        steps.push(load(offset + 4));
        match comparison.operator {
            Operator::Equal | Operator::MaskedEqual => steps.push(test(IF_EQUAL, upper, Next, Fails)),
            Operator::NotEqual => steps.push(test(IF_EQUAL, upper, Next, Holds)),
            Operator::Greater | Operator::GreaterOrEqual => {
                steps.push(test(IF_GREATER, upper, Holds, Next));
                steps.push(test(IF_EQUAL, upper, Next, Fails));
            }
            Operator::Less | Operator::LessOrEqual => {
                steps.push(test(IF_GREATER, upper, Fails, Next));
                steps.push(test(IF_EQUAL, upper, Next, Holds));
            }
        }
    }
    match comparison.operator {
        Operator::MaskedEqual => {
            let (upper_wanted, lower_wanted) = halves(comparison.second & comparison.value);
            for (bits, wanted, offset) in [(upper, upper_wanted, offset + 4), (lower, lower_wanted, offset)] {
                let is_upper = offset % 8 == 4;
                if bits != 0 && (is_wide || !is_upper) {
                    steps.extend([load(offset), mask(bits), test(IF_EQUAL, wanted, Next, Fails)]);
                }
            }
            return steps;
        }
        _ => steps.push(load(offset)),
    }
    steps.push(match comparison.operator {
        Operator::Equal | Operator::MaskedEqual => test(IF_EQUAL, lower, Next, Fails),
        Operator::NotEqual => test(IF_EQUAL, lower, Fails, Next),
        Operator::Greater => test(IF_GREATER, lower, Next, Fails),
        Operator::GreaterOrEqual => test(IF_GREATER_OR_EQUAL, lower, Next, Fails),
        Operator::Less => test(IF_GREATER_OR_EQUAL, lower, Fails, Next),
        Operator::LessOrEqual => test(IF_GREATER, lower, Fails, Next),
    });
    steps
}

fn plain(code: u16, value: u32) -> u64 {
    branch(code, value, 0, 0)
}

/// An instruction in the layout of `struct sock_filter`.
fn branch(code: u16, value: u32, if_true: u8, if_false: u8) -> u64 {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&code.to_ne_bytes());
    bytes[2] = if_true;
    bytes[3] = if_false;
    bytes[4..].copy_from_slice(&value.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}
