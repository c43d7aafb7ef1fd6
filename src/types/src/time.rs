//! Wall time and boot epochs: the two clocks that travel between machines.

use std::fmt;

use minicbor::{Decode, Encode};

/// Seconds since 1970-01-01T00:00:00Z. Enters the cores only as an argument.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct UnixTime(#[n(0)] pub u64);

impl UnixTime {
    /// This time `seconds` later; saturates.
    pub fn after(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }
}

impl fmt::Display for UnixTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A node's start counter: max(persisted + 1, unix seconds), persisted before it is used.
///
/// Sessions are keyed by the epochs of both ends, so a rise makes peers start a new session at once,
/// and a clock set back does no harm. Zero means "not known".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct BootEpoch(#[n(0)] pub u64);

impl BootEpoch {
    /// The epoch of a start at `now`, after the one that was persisted.
    pub fn next(persisted: Self, now: UnixTime) -> Self {
        Self(persisted.0.saturating_add(1).max(now.0))
    }
}

impl fmt::Display for BootEpoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
