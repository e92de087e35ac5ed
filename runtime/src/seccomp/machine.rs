//! A machine that runs seccomp programs as the kernel would, to judge them in tests.

/// A system call as a program sees it (`struct seccomp_data`).
#[derive(Clone, Copy, Default)]
pub struct Call {
    pub number: u32,
    pub architecture: u32,
    pub arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        let half = |value: u64, high: bool| if high { (value >> 32) as u32 } else { value as u32 };
        match offset {
            0 => self.number,
            4 => self.architecture,
            16..64 if offset.is_multiple_of(4) => {
                let is_high = (offset % 8 == 4) == cfg!(target_endian = "little");
                half(self.arguments[(offset as usize - 16) / 8], is_high)
            }
            _ => panic!("a program may not read at {offset}"),
        }
    }
}

/// The program's verdict (`SECCOMP_RET_…`).
pub fn run(program: &[u64], call: Call) -> u32 {
    let (mut accumulator, mut index, mut next) = (0u32, 0u32, 0usize);
    let mut memory = [0u32; 16];
    loop {
        let bytes = program[next].to_ne_bytes();
        let code = u16::from_ne_bytes([bytes[0], bytes[1]]);
        let value = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        let jump = |holds: bool| usize::from(if holds { bytes[2] } else { bytes[3] });
        next += 1;
        match code {
            0x20 => accumulator = call.word(value),
            0x00 => accumulator = value,
            0x60 => accumulator = memory[value as usize],
            0x02 => memory[value as usize] = accumulator,
            0x54 => accumulator &= value,
            0x07 => index = accumulator,
            0x87 => accumulator = index,
            0x05 => next += value as usize,
            0x15 => next += jump(accumulator == value),
            0x25 => next += jump(accumulator > value),
            0x35 => next += jump(accumulator >= value),
            0x45 => next += jump(accumulator & value != 0),
            0x06 => return value,
            _ => panic!("unknown instruction {code:#x}"),
        }
    }
}
