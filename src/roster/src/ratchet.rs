//! The greatest head seen: what keeps a roster from going back.
//!
//! Order is (key epoch, serial). The ratchet is written to disk before a newer roster is used, and
//! read before any roster is; less than it holds is refused. Two heads of one key epoch that are not
//! in one chain are a fork: the first is kept, both are kept as proof, and the caller alarms. A
//! serial that jumps too far is refused, so that a thief cannot push the order to its end in one
//! step; a greater key epoch undoes whatever he did.

use std::fmt;

use flatlan_types::NetworkId;
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

use crate::{
    head::{HeadError, RosterVersion, VerifiedHead},
    history::{HistoryError, Lineage, Relation, UncheckedLineage},
    roster::VerifiedRoster,
    wire::{self, DecodeError},
};

/// The greatest head seen of one network, and the proof of a fork if there was one.
#[derive(Clone, PartialEq, Eq)]
pub struct Ratchet {
    network: NetworkId,
    greatest: Option<Lineage>,
    fork: Option<ForkProof>,
}

impl Ratchet {
    /// Of a network of which nothing was seen: trust rests on the network id alone.
    pub fn new(network: NetworkId) -> Self {
        Self { network, greatest: None, fork: None }
    }

    /// Reads what [`Ratchet::encode`] wrote.
    ///
    /// # Errors
    /// Damaged, of another network, or written by a later version.
    pub fn decode(bytes: &[u8], network: &NetworkId) -> Result<Self, RatchetDecodeError> {
        let Stored { greatest, fork } = wire::versioned(bytes, MAX_RATCHET, FORMAT)?;
        let lineage = |unchecked: UncheckedLineage| -> Result<Lineage, RatchetDecodeError> {
            Ok(Lineage::new(unchecked.head.verify(network)?, unchecked.history)?)
        };
        Ok(Self {
            network: *network,
            greatest: greatest.map(lineage).transpose()?,
            fork: fork.map(|fork| fork.check(network)).transpose()?,
        })
    }

    /// What in a stored ratchet only a later version understands, if anything. Nothing is verified.
    pub fn later(bytes: &[u8]) -> Option<DecodeError> {
        wire::versioned::<Stored>(bytes, MAX_RATCHET, FORMAT).err().and_then(|error| error.later(FORMAT))
    }

    /// The bytes for the disk.
    pub fn encode(&self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::new());
        let written: Result<(), encode::Error<std::convert::Infallible>> = (|| {
            e.array(3)?.u64(FORMAT)?;
            e.encode(&self.greatest)?;
            e.encode(&self.fork)?.ok()
        })();
        written.expect("writing to memory does not fail");
        e.into_writer()
    }

    /// The network.
    pub fn network(&self) -> &NetworkId {
        &self.network
    }

    /// The greatest head seen.
    pub fn head(&self) -> Option<&VerifiedHead> {
        self.greatest.as_ref().map(Lineage::head)
    }

    /// The proof of a fork, if one was seen.
    pub fn fork(&self) -> Option<&ForkProof> {
        self.fork.as_ref()
    }

    /// Takes a newer roster's head. Write [`Ratchet::encode`] to disk before the roster is used.
    ///
    /// # Errors
    /// The roster may not follow the greatest head seen. A fork's proof is kept here.
    pub fn advance(&mut self, roster: &VerifiedRoster) -> Result<Step, RatchetError> {
        let step = self.check(roster.lineage());
        match &step {
            Ok(Step::Newer) => self.greatest = Some(roster.lineage().clone()),
            Err(RatchetError::Fork(proof)) => {
                self.keep_proof(proof);
            }
            Ok(Step::Same) | Err(RatchetError::Rollback { .. } | RatchetError::SerialJump { .. }) => {}
        }
        step
    }

    /// Judges a head that a hub or a peer sent, without its roster: whether to ask for that, to hand
    /// ours back, or to alarm.
    ///
    /// # Errors
    /// It is no head that may follow ours.
    pub fn compare(&self, head: &VerifiedHead) -> Result<Step, RatchetError> {
        self.check(&Lineage::alone(head.clone()))
    }

    /// Keeps the first proof of a fork; whether this was it.
    pub fn keep_proof(&mut self, proof: &ForkProof) -> Kept {
        if self.fork.is_some() {
            return Kept::Already;
        }
        self.fork = Some(proof.clone());
        Kept::First
    }

    pub(crate) fn check(&self, theirs: &Lineage) -> Result<Step, RatchetError> {
        match &self.greatest {
            Some(ours) => follow(theirs, ours),
            None => Ok(Step::Newer),
        }
    }
}

impl fmt::Debug for Ratchet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ratchet").field("greatest", &self.head()).field("fork", &self.fork).finish()
    }
}

/// Whether the holder of `ours` may go to `theirs`.
pub(crate) fn follow(theirs: &Lineage, ours: &Lineage) -> Result<Step, RatchetError> {
    let (have, got) = (ours.head().version(), theirs.head().version());
    match theirs.relation(ours) {
        Relation::Same => Ok(Step::Same),
        Relation::Fork => Err(RatchetError::Fork(Box::new(ForkProof { first: ours.clone(), second: theirs.clone() }))),
        Relation::Older => Err(RatchetError::Rollback { have, got }),
        Relation::Newer => {
            if have.key_epoch == got.key_epoch && got.serial - have.serial > MAX_SERIAL_JUMP {
                return Err(RatchetError::SerialJump { have, got });
            }
            Ok(Step::Newer)
        }
    }
}

/// What a head means to who holds another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It may replace the one held.
    Newer,
    /// It is the one held.
    Same,
}

/// Whether a proof was the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// There was one before; it stays.
    Already,
    /// It is kept from here on.
    First,
}

/// Two heads, both signed by the network's admin key, that are not of one chain: someone else has the
/// admin key, or two copies of the admin's directory were published from.
#[derive(Clone, PartialEq, Eq)]
pub struct ForkProof {
    first: Lineage,
    second: Lineage,
}

impl ForkProof {
    /// Reads and checks a proof.
    ///
    /// # Errors
    /// Damaged, of another network, or no proof: the two heads are of one chain.
    pub fn decode(bytes: &[u8], network: &NetworkId) -> Result<Self, RatchetDecodeError> {
        wire::canonical::<UncheckedFork>(bytes, MAX_RATCHET)?.check(network)
    }

    /// The bytes to keep or to hand on.
    pub fn encode(&self) -> Vec<u8> {
        wire::to_bytes(self)
    }

    /// The head that was seen first, and kept.
    pub fn first(&self) -> &VerifiedHead {
        self.first.head()
    }

    /// The head that was refused.
    pub fn second(&self) -> &VerifiedHead {
        self.second.head()
    }
}

impl fmt::Debug for ForkProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForkProof").field("first", self.first()).field("second", self.second()).finish()
    }
}

impl fmt::Display for ForkProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, second) = (self.first(), self.second());
        write!(
            f,
            "roster {} ({}) and roster {} ({}) are both signed by the admin key, yet neither follows the other",
            first.version(),
            first.id(),
            second.version(),
            second.id()
        )
    }
}

impl<C> Encode<C> for ForkProof {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, ctx: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?;
        self.first.encode(e, ctx)?;
        self.second.encode(e, ctx)
    }
}

struct UncheckedFork {
    first: UncheckedLineage,
    second: UncheckedLineage,
}

impl UncheckedFork {
    fn check(self, network: &NetworkId) -> Result<ForkProof, RatchetDecodeError> {
        // Either head may have come alone, so its history may be empty; what is there must be true.
        let lineage = |unchecked: UncheckedLineage| -> Result<Lineage, RatchetDecodeError> {
            let head = unchecked.head.verify(network)?;
            if unchecked.history.is_empty() {
                return Ok(Lineage::alone(head));
            }
            Ok(Lineage::new(head, unchecked.history)?)
        };
        let (first, second) = (lineage(self.first)?, lineage(self.second)?);
        match first.relation(&second) {
            Relation::Fork => Ok(ForkProof { first, second }),
            Relation::Newer | Relation::Older | Relation::Same => Err(RatchetDecodeError::NoFork),
        }
    }
}

impl<C> Encode<C> for UncheckedFork {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, ctx: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?;
        self.first.encode(e, ctx)?;
        self.second.encode(e, ctx)
    }
}

impl<'b, C> Decode<'b, C> for UncheckedFork {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        wire::tuple(d, 2)?;
        Ok(Self { first: Decode::decode(d, ctx)?, second: Decode::decode(d, ctx)? })
    }
}

/// `[format, lineage or null, fork or null]`
struct Stored {
    greatest: Option<UncheckedLineage>,
    fork: Option<UncheckedFork>,
}

impl Encode<()> for Stored {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, ctx: &mut ()) -> Result<(), encode::Error<W::Error>> {
        e.array(3)?.u64(FORMAT)?;
        self.greatest.encode(e, ctx)?;
        self.fork.encode(e, ctx)
    }
}

impl<'b> Decode<'b, ()> for Stored {
    fn decode(d: &mut Decoder<'b>, ctx: &mut ()) -> Result<Self, decode::Error> {
        wire::tuple(d, 3)?;
        wire::format(d, FORMAT)?;
        Ok(Self { greatest: Decode::decode(d, ctx)?, fork: Decode::decode(d, ctx)? })
    }
}

/// Why a head may not follow the one held.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RatchetError {
    /// Not of one chain.
    #[error(
        "the roster was forked: {0}: the first is kept; if the admin key was stolen: flatlan network recover --recovery-key FILE"
    )]
    Fork(Box<ForkProof>),
    /// Older.
    #[error("roster {got} is older than {have}, which was seen before")]
    Rollback {
        /// Seen.
        have: RosterVersion,
        /// Offered.
        got: RosterVersion,
    },
    /// Too far ahead.
    #[error(
        "roster {got} is too far ahead of {have}: was the admin key stolen? undo it with `flatlan network recover --recovery-key FILE`"
    )]
    SerialJump {
        /// Seen.
        have: RosterVersion,
        /// Offered.
        got: RosterVersion,
    },
}

/// Why a stored ratchet or proof is refused.
#[derive(Debug, thiserror::Error)]
pub enum RatchetDecodeError {
    /// Cannot be read.
    #[error("it cannot be read")]
    Decode(#[from] DecodeError),
    /// A head does not hold.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// A history does not hold.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The two heads are of one chain.
    #[error("it proves no fork: the two heads are of one chain")]
    NoFork,
}

/// How far a serial may run ahead of the one held.
pub const MAX_SERIAL_JUMP: u64 = 1 << 20;
/// The version of a ratchet's encoding: the first number in it.
pub const FORMAT: u64 = 1;
const MAX_RATCHET: usize = 4 * 1024 * 1024;
