//! The head: the admin's one signature over the whole roster.
//!
//! A head commits to the network, its place in the order (key epoch, serial), the records (their
//! number, and the SHA-256 over their own SHA-256s in order), the head before it, and its own life.
//! The chain of keys travels with it, so that it can be judged alone by whoever knows the network id.
//!
//! A head is signed as bytes and stays those bytes: its id is their hash.

use std::fmt;

use flatlan_types::{NetworkId, Signature, UnixTime};
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use sha2::{Digest, Sha256};

use crate::{
    authority::{Authority, AuthorityError},
    calendar::Utc,
    wire::{self, DecodeError},
};

/// A head whose keys, certificates and signature hold for a network.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifiedHead(SignedHead);

impl VerifiedHead {
    /// Reads and checks a head: the bytes that hubs and peers send.
    ///
    /// # Errors
    /// It is damaged, of another network, or not signed by the network's admin key.
    pub fn decode(bytes: &[u8], network: &NetworkId) -> Result<Self, HeadError> {
        let head: SignedHead = wire::canonical(bytes, MAX_HEAD)?;
        head.verify(network)
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        wire::to_bytes(&self.0)
    }

    /// What it says.
    pub fn head(&self) -> &Head {
        &self.0.head
    }

    /// Which it is.
    pub fn id(&self) -> HeadId {
        self.0.id()
    }

    /// Its place in the order of heads.
    pub fn version(&self) -> RosterVersion {
        self.0.head.version()
    }

    /// The keys that travel with it.
    pub fn authority(&self) -> &Authority {
        &self.0.authority
    }

    pub(crate) fn signed(&self) -> &SignedHead {
        &self.0
    }
}

impl fmt::Debug for VerifiedHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifiedHead({} {})", self.version(), self.id())
    }
}

/// What a head says.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Head {
    /// Of which network.
    #[n(1)]
    pub network: NetworkId,
    /// How often the admin key was replaced.
    #[n(2)]
    pub key_epoch: u32,
    /// The roster's number under this admin key.
    #[n(3)]
    pub serial: u64,
    /// How many records there are.
    #[n(4)]
    pub records: u32,
    /// SHA-256 over the records' own SHA-256s in order.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub digest: [u8; 32],
    /// The head that this one follows.
    #[n(6)]
    pub previous: Option<HeadId>,
    /// When it was signed.
    #[n(7)]
    pub issued: UnixTime,
    /// When it should have been renewed.
    #[n(8)]
    pub expires: UnixTime,
}

impl Head {
    /// Its place in the order of heads.
    pub fn version(&self) -> RosterVersion {
        RosterVersion { key_epoch: self.key_epoch, serial: self.serial }
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(DecodeError::TooLong { got: payload.len(), limit: MAX_PAYLOAD });
        }
        wire::map(payload, Self::LAST_KEY)
    }

    const LAST_KEY: u32 = 8;
}

/// A head's place in the order: a greater key epoch wins over any serial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(array)]
pub struct RosterVersion {
    /// How often the admin key was replaced.
    #[n(0)]
    pub key_epoch: u32,
    /// The roster's number under that key.
    #[n(1)]
    pub serial: u64,
}

impl fmt::Display for RosterVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key_epoch {
            0 => write!(f, "{}", self.serial),
            epoch => write!(f, "{} of key epoch {epoch}", self.serial),
        }
    }
}

/// The hash of a head's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeadId([u8; 32]);

impl HeadId {
    /// Of these signed bytes.
    pub(crate) fn of(payload: &[u8]) -> Self {
        Self(Sha256::digest([&b"flatlan-head-id-v1\0"[..], payload].concat()).into())
    }

    /// Its 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for HeadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(6).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for HeadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<C> Encode<C> for HeadId {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for HeadId {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        d.bytes()?.try_into().map(Self).map_err(|_| decode::Error::message("a head id has 32 bytes"))
    }
}

/// A head as it travels, not yet checked: `[authority, payload, signature]`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SignedHead {
    pub(crate) authority: Authority,
    payload: Vec<u8>,
    signature: Signature,
    head: Head,
}

impl SignedHead {
    /// Signs a head. The caller has checked that `secret` is the authority's admin key.
    pub(crate) fn sign(authority: Authority, head: Head, secret: &flatlan_types::AdminSecret) -> VerifiedHead {
        let payload = wire::to_bytes(&head);
        let signature = secret.sign(DOMAIN, &payload);
        VerifiedHead(Self { authority, payload, signature, head })
    }

    pub(crate) fn verify(self, network: &NetworkId) -> Result<VerifiedHead, HeadError> {
        self.authority.verify(network)?;
        if self.head.network != *network {
            return Err(AuthorityError::OtherNetwork { expected: *network, got: self.head.network }.into());
        }
        if self.head.key_epoch != self.authority.key_epoch() {
            return Err(HeadError::KeyEpoch { head: self.head.key_epoch, chain: self.authority.key_epoch() });
        }
        let signed = self.authority.admin().verify(DOMAIN, &self.payload, &self.signature);
        signed.map_err(|_| HeadError::BadSignature)?;
        Ok(VerifiedHead(self))
    }

    pub(crate) fn id(&self) -> HeadId {
        HeadId::of(&self.payload)
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.payload
    }
}

impl<C> Encode<C> for SignedHead {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, ctx: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(3)?;
        self.authority.encode(e, ctx)?;
        e.bytes(&self.payload)?;
        self.signature.encode(e, ctx)
    }
}

impl<'b, C> Decode<'b, C> for SignedHead {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        wire::tuple(d, 3)?;
        let authority = Authority::decode(d, ctx)?;
        let payload = d.bytes()?.to_vec();
        let signature = Signature::decode(d, ctx)?;
        let head = Head::decode(&payload).map_err(decode::Error::custom)?;
        Ok(Self { authority, payload, signature, head })
    }
}

/// How a head's age is to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// In the last sixth of its life: the admin should publish again.
    Aging {
        /// When it expires.
        expires: UnixTime,
    },
    /// Past its life.
    Expired {
        /// Since when.
        since: UnixTime,
    },
    /// Nothing to say.
    Fresh,
}

impl Freshness {
    /// Of `head` at `now`. A clock that stands before the head was signed counts as that time.
    pub fn of(head: &Head, now: UnixTime) -> Self {
        let now = now.max(head.issued);
        let life = head.expires.0.saturating_sub(head.issued.0);
        if now >= head.expires {
            Self::Expired { since: head.expires }
        } else if head.expires.0 - now.0 <= life / 6 {
            Self::Aging { expires: head.expires }
        } else {
            Self::Fresh
        }
    }
}

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aging { expires } => {
                write!(f, "the roster expires at {}: renew it with `flatlan network publish`", Utc(*expires))
            }
            Self::Expired { since } => {
                write!(f, "the roster expired at {}: renew it with `flatlan network publish`", Utc(*since))
            }
            Self::Fresh => f.write_str("the roster is fresh"),
        }
    }
}

/// Why a head is refused.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// Keys or certificates do not hold.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Not signed by the admin key.
    #[error("the roster's signature does not match the network's admin key")]
    BadSignature,
    /// Cannot be read.
    #[error("the roster's head cannot be read")]
    Decode(#[from] DecodeError),
    /// Signed for another link of the chain of keys.
    #[error("the roster's head is of key epoch {head}, but its chain of keys ends at epoch {chain}")]
    KeyEpoch {
        /// Named in the head.
        head: u32,
        /// Of the last certificate.
        chain: u32,
    },
}

const DOMAIN: &str = "head";
pub(crate) const MAX_PAYLOAD: usize = 1024;
/// The longest head with its chain of keys, in bytes.
pub const MAX_HEAD: usize = 16 * 1024;
