//! Which sealed frames have been seen.
//!
//! A sliding bitmap over the counter (RFC 6479), for the greatest epoch of one sender. Ask it only after a
//! frame was opened: a forged counter must not move the window.

use flatlan_types::BootEpoch;

/// The frames seen of one sender.
#[derive(Clone)]
pub struct ReplayWindow {
    epoch: BootEpoch,
    /// Greatest counter accepted in `epoch`.
    top: u64,
    /// Bit `counter % SIZE`, for the `SIZE` counters up to `top`.
    seen: [u64; WORDS],
}

impl ReplayWindow {
    /// A window for a sender whose greatest known epoch is `epoch`; the first frame of that epoch is new
    /// whatever its counter.
    pub fn new(epoch: BootEpoch) -> Self {
        Self { epoch, top: 0, seen: [0; WORDS] }
    }

    /// Takes an authentic frame.
    pub fn accept(&mut self, epoch: BootEpoch, counter: u64) -> Freshness {
        if epoch < self.epoch {
            return Freshness::OldEpoch;
        }
        if epoch > self.epoch {
            *self = Self::new(epoch);
            self.advance(counter);
            return Freshness::NewEpoch;
        }
        if counter > self.top {
            self.advance(counter);
            return Freshness::Fresh;
        }
        if self.top - counter >= SIZE {
            return Freshness::Replayed;
        }
        let (word, bit) = place(counter);
        let Some(word) = self.seen.get_mut(word) else { return Freshness::Replayed };
        if *word & bit != 0 {
            return Freshness::Replayed;
        }
        *word |= bit;
        Freshness::Fresh
    }

    /// The greatest epoch seen.
    pub fn epoch(&self) -> BootEpoch {
        self.epoch
    }

    /// A greater epoch was learned elsewhere (a sealed handshake): frames of the old one are old from here
    /// on. A lower one changes nothing.
    pub fn set_epoch(&mut self, epoch: BootEpoch) {
        if epoch > self.epoch {
            *self = Self::new(epoch);
        }
    }

    fn advance(&mut self, counter: u64) {
        if counter - self.top >= SIZE {
            self.seen = [0; WORDS];
        } else {
            for skipped in self.top + 1..counter {
                let (word, bit) = place(skipped);
                if let Some(word) = self.seen.get_mut(word) {
                    *word &= !bit;
                }
            }
        }
        self.top = counter;
        let (word, bit) = place(counter);
        if let Some(word) = self.seen.get_mut(word) {
            *word |= bit;
        }
    }
}

/// What a frame's epoch and counter say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Freshness {
    /// New.
    Fresh,
    /// New, and the first of a greater epoch: the sender has started again.
    NewEpoch,
    /// From an earlier life of the sender: drop it, and tell it the epoch that we know.
    OldEpoch,
    /// Seen before, or too far behind to tell.
    Replayed,
}

fn place(counter: u64) -> (usize, u64) {
    let at = counter % SIZE;
    ((at / 64) as usize, 1 << (at % 64))
}

const WORDS: usize = 16;
/// How far behind the newest a frame may come.
const SIZE: u64 = 64 * WORDS as u64;
