//! Receiver indices: the 24 bits that a type 4 names its lane by.
//!
//! They are drawn at random, so that an observer learns neither how many lanes there are nor which belong
//! together, and they are unique among the open ones. The low 8 bits of a receiver index on the wire are
//! the tunnel's own session counter. Where several workers share a port, the lowest of the 24 bits' highest
//! eight name the worker, so that a datagram finds it by its receiver index.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use blake2::{Blake2s256, Digest as _};
use flatlan_types::{LaneKey, Share};

/// The open lanes by index.
pub(crate) struct IndexTable {
    seed: u64,
    share: Share,
    drawn: u64,
    lanes: HashMap<u32, LaneKey, BuildHasherDefault<Spread>>,
}

impl IndexTable {
    /// The indices of one worker.
    pub(crate) fn new(seed: u64, share: Share) -> Self {
        Self { seed, share, drawn: 0, lanes: HashMap::default() }
    }

    /// Draws an index for `lane`; `None` where most of the worker's are taken.
    pub(crate) fn insert(&mut self, lane: LaneKey) -> Option<u32> {
        if self.lanes.len() >= CAPACITY / self.share.of.count() {
            return None;
        }
        loop {
            let index = self.draw();
            if let std::collections::hash_map::Entry::Vacant(vacant) = self.lanes.entry(index) {
                vacant.insert(lane);
                return Some(index);
            }
        }
    }

    pub(crate) fn remove(&mut self, index: u32) {
        self.lanes.remove(&index);
    }

    /// The lane of a receiver index as it stands on the wire.
    pub(crate) fn lane(&self, receiver_index: u32) -> Option<LaneKey> {
        self.lanes.get(&(receiver_index >> 8)).copied()
    }

    fn draw(&mut self) -> u32 {
        self.drawn += 1;
        let hash = Blake2s256::new()
            .chain_update(b"flatlan index v1")
            .chain_update(self.seed.to_le_bytes())
            .chain_update(self.drawn.to_le_bytes())
            .finalize();
        let [a, b, c, ..]: [u8; 32] = hash.into();
        let Share { worker, of } = self.share;
        u32::from_le_bytes([a, b, (c & !of.mask()) | worker.0, 0])
    }
}

/// A multiplication is hash enough for keys that we drew at random ourselves: nobody outside can choose
/// two that collide.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, key: u32) {
        self.0 = (self.0 ^ u64::from(key)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Half of all indices: drawing stays short.
const CAPACITY: usize = 1 << 23;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flatlan_types::{LaneId, PeerSlot, Workers};

    use super::*;

    #[test]
    fn indices_are_unique_24_bit_and_do_not_count_up() {
        let mut table = IndexTable::new(7, Share::default());
        let lane = |n| LaneKey { peer: PeerSlot(n), lane: LaneId::PRIMARY };
        let drawn: Vec<u32> = (0..5000).map(|n| table.insert(lane(n)).unwrap()).collect();
        assert_eq!(drawn.iter().collect::<BTreeSet<_>>().len(), drawn.len());
        assert!(drawn.iter().all(|index| *index < 1 << 24));
        let rising = drawn.windows(2).filter(|w| w[0] < w[1]).count();
        assert!((2200..2800).contains(&rising), "{rising} of 4999 steps go up");
        for (n, index) in drawn.iter().enumerate() {
            assert_eq!(table.lane(index << 8 | 0x5a), Some(lane(n as u32)));
        }
        table.remove(drawn[0]);
        assert_eq!(table.lane(drawn[0] << 8), None);
    }

    #[test]
    fn another_seed_draws_other_indices() {
        let lane = LaneKey { peer: PeerSlot(0), lane: LaneId::PRIMARY };
        assert_ne!(
            IndexTable::new(1, Share::default()).insert(lane),
            IndexTable::new(2, Share::default()).insert(lane)
        );
    }

    #[test]
    fn the_wire_names_the_worker_in_the_byte_that_steers_and_all_other_bits_are_random() {
        for count in [1, 2, 4, 16] {
            let of = Workers::new(count).unwrap();
            for worker in of.all() {
                let mut table = IndexTable::new(7, Share { worker, of });
                let (mut ones, mut zeros) = (0, 0);
                for n in 0..300 {
                    let lane = LaneKey { peer: PeerSlot(n), lane: LaneId::PRIMARY };
                    let index = table.insert(lane).unwrap();
                    let wire = (index << 8 | 0x5a).to_le_bytes();
                    assert_eq!(of.of_byte(wire[3]), worker);
                    (ones, zeros) = (ones | index, zeros | !index);
                }
                let random = 0x00ff_ffff & !(u32::from(of.mask()) << 16);
                assert_eq!((ones & random, zeros & random), (random, random));
            }
        }
    }
}
