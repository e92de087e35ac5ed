//! A device policy as a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
//!
//! The kernel runs it on every open and mknod with `struct bpf_cgroup_dev_ctx` (linux/bpf.h) and reads 1 as allow, 0 as deny.
//! Instruction encoding: the kernel's Documentation/bpf/standardization/instruction-set.rst.

use super::rules::{Access, Devices, Policy, Type};

/// One instruction: `struct bpf_insn` in its binary layout, little end first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cgroup) struct Instruction {
    pub(in crate::cgroup) opcode: u8,
    /// Destination register in the low half, source register in the high half.
    pub(in crate::cgroup) registers: u8,
    pub(in crate::cgroup) offset: i16,
    pub(in crate::cgroup) immediate: i32,
}

impl Instruction {
    /// The eight bytes that the kernel reads.
    pub(in crate::cgroup) fn bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[0] = self.opcode;
        bytes[1] = self.registers;
        bytes[2..4].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[4..].copy_from_slice(&self.immediate.to_ne_bytes());
        bytes
    }
}

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE_REGISTER_32: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOVE_32: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
const AND_32: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT_32: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP_IF_NOT_32: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const JUMP_IF_EQUAL_32: u8 = 0x16; // BPF_JMP32 | BPF_JEQ | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// The program for a policy: one block for each exception, then what holds for the rest.
///
/// An access is an exception when one of these allows (or denies) all (or any) of it: under a policy that denies, every
/// requested access must be in the exception; under one that allows, one requested access in the exception is enough.
pub(in crate::cgroup) fn program(policy: &Policy) -> Vec<Instruction> {
    let mut code = vec![
        // access_type holds the type in its lower and the access in its upper half.
        op(LOAD_WORD, TYPE, CONTEXT, 0, 0),
        op(MOVE_REGISTER_32, ACCESS, TYPE, 0, 0),
        op(AND_32, TYPE, 0, 0, 0xffff),
        op(SHIFT_RIGHT_32, ACCESS, 0, 0, 16),
        op(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        op(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for (devices, access) in &policy.exceptions {
        code.extend(block(devices, *access, policy.allows));
    }
    code.push(op(MOVE_32, RESULT, 0, 0, i32::from(policy.allows)));
    code.push(op(EXIT, 0, 0, 0, 0));
    code
}

/// The instructions that end the program with the opposite of `allows` for these devices and accesses.
fn block(devices: &Devices, access: Access, allows: bool) -> Vec<Instruction> {
    let mut tests: Vec<Vec<Instruction>> = Vec::new();
    let kind = match devices.kind {
        Type::Block => 1,     // BPF_DEVCG_DEV_BLOCK
        Type::Character => 2, // BPF_DEVCG_DEV_CHAR
    };
    tests.push(vec![op(JUMP_IF_NOT_32, TYPE, 0, 0, kind)]);
    if let Some(major) = devices.major {
        tests.push(vec![op(JUMP_IF_NOT_32, MAJOR, 0, 0, major as i32)]);
    }
    if let Some(minor) = devices.minor {
        tests.push(vec![op(JUMP_IF_NOT_32, MINOR, 0, 0, minor as i32)]);
    }
    let bits = i32::from(access.bits());
    if allows {
        // Denied if any requested access is in the exception: go on when the common part is empty.
        tests.push(vec![
            op(MOVE_REGISTER_32, SCRATCH, ACCESS, 0, 0),
            op(AND_32, SCRATCH, 0, 0, bits),
            op(JUMP_IF_EQUAL_32, SCRATCH, 0, 0, 0),
        ]);
    } else if !access.is_all() {
        // Allowed only if every requested access is in the exception: go on when some lies outside of it.
        tests.push(vec![
            op(MOVE_REGISTER_32, SCRATCH, ACCESS, 0, 0),
            op(AND_32, SCRATCH, 0, 0, !bits & 0xffff),
            op(JUMP_IF_NOT_32, SCRATCH, 0, 0, 0),
        ]);
    }
    let mut code: Vec<Instruction> = tests.into_iter().flatten().collect();
    code.push(op(MOVE_32, RESULT, 0, 0, i32::from(!allows)));
    code.push(op(EXIT, 0, 0, 0, 0));
    let end = code.len();
    for (index, instruction) in code.iter_mut().enumerate() {
        if matches!(instruction.opcode, JUMP_IF_NOT_32 | JUMP_IF_EQUAL_32) {
            // A block has fewer than a dozen instructions.
            instruction.offset = (end - index - 1) as i16;
        }
    }
    code
}

fn op(opcode: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { opcode, registers: source << 4 | destination, offset, immediate }
}

#[cfg(test)]
mod tests;
