//! What the tests that mutate their input choose by.

/// A generator of numbers that look like chance (xorshift64*), the same for the same seed.
pub struct Chance(u64);

impl Chance {
    /// The one of a seed and of a round with it.
    pub fn of(seed: u64, round: u64) -> Chance {
        // Zero would stay zero, and each round is another.
        Chance(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(2 * round) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below another, and 0 below 0.
    pub fn below(&mut self, limit: usize) -> usize {
        // The upper bits are the better ones.
        ((self.number() >> 16) % limit.max(1) as u64) as usize
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}
