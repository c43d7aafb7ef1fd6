//! Handing out keys of 20 bits of slot and 12 bits of random generation.

use std::collections::VecDeque;

use flatlan_types::{Label, PairKey};

use crate::forward::Table;

/// A table that chooses its keys. A freed slot is given again as late as possible.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    table: Table<T>,
    free: VecDeque<u32>,
    next: u32,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { table: Table::default(), free: VecDeque::new(), next: 1 }
    }
}

impl<T> Slots<T> {
    /// Stores a value under a new key; `None` where all slots are taken.
    pub(crate) fn insert(&mut self, generation: u16, value: T) -> Option<u32> {
        // Slot 0 is never given: zero stands for "none" in a log or a capture.
        let slot = if self.free.len() >= SPARE || self.next == LAST {
            self.free.pop_front()?
        } else {
            self.next += 1;
            self.next - 1
        };
        let key = Label::new(slot, generation).0;
        self.table.insert(key, value);
        Some(key)
    }

    pub(crate) fn get(&self, key: u32) -> Option<&T> {
        self.table.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        self.table.get_mut(key)
    }

    pub(crate) fn remove(&mut self, key: u32) -> Option<T> {
        let value = self.table.remove(key)?;
        self.free.push_back(Label(key).slot());
        Some(value)
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.table.iter()
    }
}

/// Random bytes from one seed: a keyed BLAKE2s over a counter. The same seed gives the same trace.
#[derive(Debug)]
pub(crate) struct Random {
    seed: [u8; 32],
    counter: u64,
}

impl Random {
    pub(crate) fn new(seed: [u8; 32]) -> Self {
        Self { seed, counter: 0 }
    }

    pub(crate) fn next(&mut self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.block();
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    pub(crate) fn generation(&mut self) -> u16 {
        let [a, b, ..] = self.block();
        u16::from_be_bytes([a, b])
    }

    pub(crate) fn key(&mut self) -> [u8; 32] {
        let mut key = [0; 32];
        let (first, second) = key.split_at_mut(16);
        first.copy_from_slice(&self.block());
        second.copy_from_slice(&self.block());
        key
    }

    fn block(&mut self) -> [u8; 16] {
        self.counter += 1;
        PairKey::tag(&self.seed, &[b"flatlan hub random v1", &self.counter.to_be_bytes()])
    }
}

/// Slots kept free before one is given again.
const SPARE: usize = 1024;
/// One beyond the greatest slot.
const LAST: u32 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_key_finds_nothing_and_its_slot_is_given_again_late() {
        let mut slots = Slots::default();
        let first = slots.insert(7, "a").unwrap();
        assert_eq!(slots.remove(first), Some("a"));
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.remove(first), None);
        let given = (0..SPARE).map(|_| slots.insert(7, "b").unwrap()).collect::<Vec<_>>();
        assert!(!given.contains(&first));
        assert_eq!(slots.len(), SPARE);
    }
}
