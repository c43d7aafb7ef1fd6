//! Chance for jitter and label generations, from a seed: the same seed gives the same trace.
//!
//! Nothing secret comes from here; what another is not to foresee is [opaque](Rng::opaque).

use sha2::{Digest, Sha256};

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A word that tells nothing of those to come.
    pub(crate) fn opaque(&mut self) -> u64 {
        let hash: [u8; 32] = Sha256::digest(self.next().to_le_bytes()).into();
        hash.first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
    }

    /// Below `bound`; zero where that is zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or_default()
    }
}

/// A well-spread function of one word.
pub(crate) fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
