//! The byte code is judged by running it in a small machine that knows nothing of how it was made.

use serde_json::json;

use super::super::rules::default_rules;
use super::*;

/// Runs a device program as the kernel would: true means allowed.
fn run(code: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
    let context = [access << 16 | kind, major, minor];
    let mut registers = [0u64; 11];
    let mut next = 0usize;
    for _ in 0..10_000 {
        let bytes = code[next].bytes();
        let (destination, source) = ((bytes[1] & 15) as usize, (bytes[1] >> 4) as usize);
        let offset = i16::from_ne_bytes([bytes[2], bytes[3]]);
        let immediate = i32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as u32;
        let low = registers[destination] as u32;
        next += 1;
        match bytes[0] {
            0x61 => {
                assert_eq!(source, 1, "only the context may be read");
                registers[destination] = u64::from(context[offset as usize / 4]);
            }
            0xbc => registers[destination] = u64::from(registers[source] as u32),
            0xb4 => registers[destination] = u64::from(immediate),
            0x54 => registers[destination] = u64::from(low & immediate),
            0x74 => registers[destination] = u64::from(low >> immediate),
            0x56 if low != immediate => next = next.checked_add_signed(offset.into()).unwrap(),
            0x16 if low == immediate => next = next.checked_add_signed(offset.into()).unwrap(),
            0x56 | 0x16 => {}
            0x95 => return registers[0] == 1,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
    panic!("the program does not end");
}

const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;

fn compile(rules: serde_json::Value, defaults: bool) -> Vec<Instruction> {
    let mut rules: Vec<_> = serde_json::from_value(rules).unwrap();
    if defaults {
        rules.extend(default_rules(|_| false));
    }
    program(&Policy::reduce(&rules).unwrap())
}

#[test]
fn the_default_container() {
    let code = compile(json!([{"allow": false, "access": "rwm"}]), true);
    assert!(run(&code, CHARACTER, 2 | 4, 1, 3), "read and write null");
    assert!(run(&code, CHARACTER, 1, 10, 200), "make a node of anything");
    assert!(run(&code, BLOCK, 1, 8, 0), "make a node of anything");
    assert!(!run(&code, BLOCK, 2, 8, 0), "read a disk");
    assert!(!run(&code, BLOCK, 1 | 2, 8, 0), "make and read a disk at once");
    assert!(!run(&code, CHARACTER, 4, 10, 200), "write another device");
    assert!(run(&code, CHARACTER, 2, 136, 77), "any terminal");
    assert!(!run(&code, CHARACTER, 2, 5, 1), "the console");
}

#[test]
fn everything_allowed() {
    let code = compile(json!([{"allow": true, "access": "rwm"}]), true);
    assert_eq!(code.len(), 8);
    assert!(run(&code, BLOCK, 7, 8, 0));
}

#[test]
fn everything_but() {
    let rules = json!([{"allow": true, "access": "rwm"},
        {"allow": false, "type": "b", "major": 8, "access": "w"}]);
    let code = compile(rules, false);
    assert!(run(&code, BLOCK, 2, 8, 3), "read is not forbidden");
    assert!(!run(&code, BLOCK, 4, 8, 3));
    assert!(!run(&code, BLOCK, 2 | 4, 8, 3), "one forbidden access is enough");
    assert!(run(&code, CHARACTER, 4, 8, 3), "another type");
    assert!(run(&code, BLOCK, 4, 9, 3), "another number");
}

#[test]
fn agrees_with_the_policy_on_every_access() {
    let rules: Vec<oci_spec::runtime::LinuxDeviceCgroup> = serde_json::from_value(json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rw"},
        {"allow": true, "type": "c", "minor": 5, "access": "r"},
        {"allow": true, "type": "b", "major": 8, "access": "m"},
        {"allow": true, "type": "b", "major": 4294967295u32, "minor": 1, "access": "rwm"},
    ]))
    .unwrap();
    let policy = Policy::reduce(&rules).unwrap();
    let code = program(&policy);
    for kind in [BLOCK, CHARACTER] {
        for major in [0, 1, 8, u32::MAX] {
            for minor in [0, 1, 3, 5] {
                for access in 1..8 {
                    let expected = policy.exceptions.iter().any(|(devices, allowed)| {
                        let is_kind = match devices.kind {
                            Type::Block => kind == BLOCK,
                            Type::Character => kind == CHARACTER,
                        };
                        is_kind
                            && devices.major.is_none_or(|one| one == major)
                            && devices.minor.is_none_or(|one| one == minor)
                            && access & !u32::from(allowed.bits()) == 0
                    });
                    assert_eq!(
                        run(&code, kind, access, major, minor),
                        expected,
                        "{kind} {major}:{minor} {access}"
                    );
                }
            }
        }
    }
}
