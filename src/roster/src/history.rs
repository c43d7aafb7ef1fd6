//! The heads before a head: enough of them to see a fork.
//!
//! A head names the hash of the one before it, so the signed bytes of its ancestors prove themselves
//! without signatures. A roster carries the last [`HISTORY`] of them (or all, while there are fewer; a
//! shorter list is refused, so that a hub cannot hide a fork by cutting it). Whoever holds an
//! older head finds it among them, or knows that the two are not of one chain.

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

use crate::{
    head::{Head, HeadId, RosterVersion, VerifiedHead},
    wire::{self, DecodeError},
};

/// A head and its ancestors.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Lineage {
    head: VerifiedHead,
    ancestors: Vec<Ancestor>,
}

impl Lineage {
    /// A head that came alone.
    pub(crate) fn alone(head: VerifiedHead) -> Self {
        Self { head, ancestors: Vec::new() }
    }

    /// Of a head just signed on top of `base`.
    pub(crate) fn on(base: Option<&Self>, head: VerifiedHead) -> Self {
        let Some(base) = base else { return Self::alone(head) };
        let parent = Ancestor {
            id: base.head.id(),
            version: base.head.version(),
            previous: base.head.head().previous,
            payload: base.head.signed().payload().to_vec(),
        };
        let older = base.ancestors.iter().cloned();
        Self { head, ancestors: std::iter::once(parent).chain(older).take(HISTORY).collect() }
    }

    /// Checks that `history` (newest first) is what the head says came before it, and is not cut short.
    pub(crate) fn new(head: VerifiedHead, history: Vec<Vec<u8>>) -> Result<Self, HistoryError> {
        let mut expected = head.head().previous;
        let mut version = head.version();
        let mut ancestors = Vec::with_capacity(history.len());
        for payload in history {
            let (id, ancestor) = (HeadId::of(&payload), Head::decode(&payload)?);
            let in_order = ancestor.version() < version && ancestor.network == head.head().network;
            if expected != Some(id) || !in_order {
                return Err(HistoryError::Broken);
            }
            (expected, version) = (ancestor.previous, ancestor.version());
            ancestors.push(Ancestor { id, version, previous: ancestor.previous, payload });
        }
        if expected.is_some() && ancestors.len() < HISTORY {
            return Err(HistoryError::Cut { got: ancestors.len() });
        }
        Ok(Self { head, ancestors })
    }

    pub(crate) fn head(&self) -> &VerifiedHead {
        &self.head
    }

    pub(crate) fn payloads(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.ancestors.iter().map(|ancestor| ancestor.payload.as_slice())
    }

    /// How this one stands to `other`.
    pub(crate) fn relation(&self, other: &Self) -> Relation {
        let (ours, theirs) = (self.head.version(), other.head.version());
        if self.head.id() == other.head.id() {
            Relation::Same
        } else if ours.key_epoch != theirs.key_epoch {
            if ours > theirs { Relation::Newer } else { Relation::Older }
        } else if ours == theirs {
            Relation::Fork
        } else if ours > theirs {
            if self.may_descend_from(&other.head) { Relation::Newer } else { Relation::Fork }
        } else if other.may_descend_from(&self.head) {
            Relation::Older
        } else {
            Relation::Fork
        }
    }

    /// Whether the chain behind this head leads, or as far as it is known may lead, to `older`.
    fn may_descend_from(&self, older: &VerifiedHead) -> bool {
        let (mut version, mut previous) = (self.head.version(), self.head.head().previous);
        for ancestor in &self.ancestors {
            if ancestor.version <= older.version() {
                return ancestor.id == older.id();
            }
            (version, previous) = (ancestor.version, ancestor.previous);
        }
        let adjacent = RosterVersion { serial: version.serial.saturating_sub(1), ..version } == older.version();
        match previous {
            None => false,
            Some(id) => id == older.id() || !adjacent,
        }
    }
}

impl<C> Encode<C> for Lineage {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, ctx: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?;
        self.head.signed().encode(e, ctx)?;
        wire::encode_blobs(self.payloads(), e)
    }
}

/// A lineage as it travels, not yet checked: `[signed head, [payload]]`.
pub(crate) struct UncheckedLineage {
    pub(crate) head: crate::head::SignedHead,
    pub(crate) history: Vec<Vec<u8>>,
}

impl<C> Encode<C> for UncheckedLineage {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, ctx: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?;
        self.head.encode(e, ctx)?;
        wire::encode_blobs(self.history.iter().map(Vec::as_slice), e)
    }
}

impl<'b, C> Decode<'b, C> for UncheckedLineage {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        wire::tuple(d, 2)?;
        Ok(Self { head: Decode::decode(d, ctx)?, history: wire::decode_blobs(d, MAX_HISTORY)? })
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Ancestor {
    id: HeadId,
    version: RosterVersion,
    previous: Option<HeadId>,
    payload: Vec<u8>,
}

/// How one head stands to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// Both are signed, and they are not of one chain.
    Fork,
    Newer,
    Older,
    Same,
}

/// Why a history is refused.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The hashes do not lead from head to head.
    #[error("the roster's history does not lead to its head")]
    Broken,
    /// Too short.
    #[error("the roster's history was cut to {got} heads")]
    Cut {
        /// How many there are.
        got: usize,
    },
    /// Cannot be read.
    #[error("the roster's history cannot be read")]
    Decode(#[from] DecodeError),
}

/// How many ancestors travel with a roster.
pub const HISTORY: usize = 32;
const MAX_HISTORY: usize = 256;
