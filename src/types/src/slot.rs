//! Small indices that stand for long keys inside one process.

use std::fmt;

/// A member's place in the peer table. Not reused while the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerSlot(pub u32);

/// A hub's place in the node's table of hubs. Not reused while the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HubSlot(pub u8);

/// One WireGuard session of a peer pair. Two where one carries all flows and the other stands by; 2 and 3 as well
/// when flows are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(u8);

impl LaneId {
    /// The lane that carries flows at first.
    pub const PRIMARY: Self = Self(0);
    /// The lane that stands by at first.
    pub const STANDBY: Self = Self(1);
    /// How many lanes a pair has at the most.
    pub const COUNT: usize = 4;

    /// The lane of this number, where there is one.
    pub const fn new(number: u8) -> Option<Self> {
        if (number as usize) < Self::COUNT { Some(Self(number)) } else { None }
    }

    /// Every lane that a pair may have.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(Self)
    }

    /// Its number, below [`LaneId::COUNT`].
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Its number, as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for LaneId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A lane of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneKey {
    /// Whose.
    pub peer: PeerSlot,
    /// Which.
    pub lane: LaneId,
}

/// The handle by which its owner wants to see one relayed direction (as in MPLS, RFC 3031,
/// downstream-assigned): a 20-bit slot and a 12-bit random generation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode)]
#[cbor(transparent)]
pub struct Label(#[n(0)] pub u32);

impl Label {
    /// The label of a slot (its low 20 bits) and a generation (its low 12 bits).
    pub const fn new(slot: u32, generation: u16) -> Self {
        Self(((slot & 0xf_ffff) << 12) | (generation as u32 & 0xfff))
    }

    /// The slot, below 2^20.
    pub const fn slot(self) -> u32 {
        self.0 >> 12
    }

    /// The generation, below 2^12.
    pub const fn generation(self) -> u16 {
        (self.0 & 0xfff) as u16
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.slot(), self.generation())
    }
}
