//! A small generator of numbers, always the same for the same seed, and mutations of bytes and JSON.

use serde_json::{Value, json};

/// xorshift64*: good enough to choose mutations.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Flips, inserts, removes, repeats or cuts off some bytes.
    pub fn mutate_bytes(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(6) {
            if bytes.is_empty() {
                return;
            }
            let at = self.below(bytes.len());
            let length = (1 + self.below(64)).min(bytes.len() - at);
            match self.below(6) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = [0, 0xff, b'/', b'.', b'0', 0x80][self.below(6)],
                2 => bytes.insert(at, self.next() as u8),
                3 => drop(bytes.drain(at..at + length)),
                4 => {
                    let copy = bytes[at..at + length].to_vec();
                    bytes.splice(at..at, copy);
                }
                _ if self.below(10) == 0 => bytes.truncate(at),
                _ => bytes[at..at + length].fill(0),
            }
        }
    }

    /// Replaces, removes or doubles one value somewhere in `value`.
    pub fn mutate_json(&mut self, value: &mut Value) {
        match value {
            Value::Object(map) if !map.is_empty() && self.below(8) != 0 => {
                let key = map.keys().nth(self.below(map.len())).cloned().expect("the index is in range");
                match self.below(12) {
                    0 => drop(map.remove(&key)),
                    _ => self.mutate_json(&mut map[&key]),
                }
            }
            Value::Array(list) if !list.is_empty() && self.below(8) != 0 => {
                let at = self.below(list.len());
                match self.below(12) {
                    0 => drop(list.remove(at)),
                    1 => list.insert(at, list[at].clone()),
                    _ => self.mutate_json(&mut list[at]),
                }
            }
            other => *other = self.value(),
        }
    }

    fn value(&mut self) -> Value {
        let strange = [
            json!(null),
            json!(true),
            json!(0),
            json!(-1),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(1.5),
            json!(""),
            json!("/"),
            json!(".."),
            json!("../../../../etc"),
            json!("a\u{0}b"),
            json!("\u{fffd}"),
            json!("x".repeat(5000)),
            json!("bind"),
            json!("rbind"),
            json!([]),
            json!({}),
            json!([null]),
            json!({"": ""}),
            json!("/proc/self/fd/3"),
            json!("CAP_NOSUCH"),
            json!("99999999999999999999"),
        ];
        strange[self.below(strange.len())].clone()
    }
}
