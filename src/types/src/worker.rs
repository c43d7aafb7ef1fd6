//! How many workers share a port, and whose a thing is.
//!
//! The count is a power of two, so that some bits of what stands in a datagram anyway (a receiver index, a sender
//! hint, a label) name the worker that owns what it speaks of: nothing is looked up, and no state is shared.

use std::fmt;

use crate::{Label, SenderHint};

/// One of a process's packet threads, counted from zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u8);

impl WorkerId {
    /// The one that has what belongs to no other: bindings at hubs, stock peers.
    pub const FIRST: Self = Self(0);
}

/// How many packet threads a process has: 1, 2, 4, 8 or 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workers {
    mask: u8,
}

/// One worker of so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Which.
    pub worker: WorkerId,
    /// Of how many.
    pub of: Workers,
}

impl Workers {
    /// One.
    pub const ONE: Self = Self { mask: 0 };
    /// The greatest count.
    pub const MOST: usize = 16;

    /// So many; `None` where that is no power of two, or more than [`Self::MOST`].
    pub fn new(count: usize) -> Option<Self> {
        let mask = u8::try_from(count.checked_sub(1)?).ok()?;
        (count.is_power_of_two() && count <= Self::MOST).then_some(Self { mask })
    }

    /// How many.
    pub fn count(self) -> usize {
        usize::from(self.mask) + 1
    }

    /// The bits that name a worker.
    pub fn mask(self) -> u8 {
        self.mask
    }

    /// Each of them.
    pub fn all(self) -> impl Iterator<Item = WorkerId> {
        (0..=self.mask).map(WorkerId)
    }

    /// The worker that a byte names.
    #[inline]
    pub fn of_byte(self, byte: u8) -> WorkerId {
        WorkerId(byte & self.mask)
    }

    /// The worker to which a peer belongs, with all its sessions, paths and labels.
    #[inline]
    pub fn of_hint(self, hint: SenderHint) -> WorkerId {
        let [.., low] = hint.0.to_be_bytes();
        self.of_byte(low)
    }

    /// The worker to which a label belongs: the lowest bits of its generation.
    #[inline]
    pub fn of_label(self, label: Label) -> WorkerId {
        let [.., low] = label.0.to_be_bytes();
        self.of_byte(low)
    }

    /// A label's generation, changed so that the label belongs to this worker.
    pub fn generation(self, worker: WorkerId, random: u16) -> u16 {
        (random & !u16::from(self.mask)) | u16::from(worker.0 & self.mask)
    }
}

impl Default for Workers {
    fn default() -> Self {
        Self::ONE
    }
}

impl fmt::Display for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.count().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_powers_of_two_up_to_sixteen_are_counts() {
        let good: Vec<usize> = (0..100).filter(|count| Workers::new(*count).is_some()).collect();
        assert_eq!(good, [1, 2, 4, 8, 16]);
        assert_eq!(Workers::new(4).unwrap().all().map(|worker| worker.0).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn a_labels_generation_names_its_worker_and_keeps_its_other_bits() {
        let workers = Workers::new(4).unwrap();
        for worker in workers.all() {
            let generation = workers.generation(worker, 0xabc);
            assert_eq!(generation & !3, 0xabc & !3);
            assert_eq!(workers.of_label(Label::new(77, generation)), worker);
            assert_eq!(Workers::ONE.of_label(Label::new(77, generation)), WorkerId::FIRST);
        }
    }
}
