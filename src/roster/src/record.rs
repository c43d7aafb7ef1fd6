//! One entry of the roster, as bytes and as what they say.
//!
//! A record is CBOR: `[kind, {integer key: value}]`, with key 1 the name in every kind. The bytes are
//! kept as the admin signed them, so a version that does not know a key still passes it on whole.
//! Kinds from [`SKIPPABLE`] on may be ignored by who does not know them; other unknown kinds refuse
//! the roster, as do keys that a record lists as critical.
//!
//! A record says nothing about whether it fits the others: that is `rules`.

use flatlan_types::{HostPort, HubKey, InviteKey, MemberId, Name, NodeKeys, Prefix, SessionKey, UnixTime, VirtualIp};
use minicbor::{Decode, Decoder, Encode, Encoder, encode};
use sha2::{Digest, Sha256};

use crate::wire::{self, DecodeError};

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The network itself; there is exactly one.
    Network(NetworkRecord),
    /// A hub.
    Hub(HubRecord),
    /// A member.
    Member(MemberRecord),
    /// A kind that this version does not know and may ignore.
    Skipped {
        /// Its kind, at least [`SKIPPABLE`].
        kind: u16,
        /// Its name.
        name: Name,
    },
}

impl Record {
    /// What orders records: kind, then name. No two records have the same.
    pub fn order(&self) -> (u16, &Name) {
        match self {
            Self::Network(network) => (NETWORK, &network.name),
            Self::Hub(hub) => (HUB, &hub.name),
            Self::Member(member) => (MEMBER, &member.name),
            Self::Skipped { kind, name } => (*kind, name),
        }
    }

    /// The bytes of a record made here.
    pub fn encode(&self) -> Vec<u8> {
        wire::to_bytes(&Tagged(self))
    }

    /// Reads a record. Whether it fits the others is not asked.
    ///
    /// # Errors
    /// It is damaged, or says something that this version may not ignore.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (kind, body) = Self::open(bytes)?;
        match kind {
            NETWORK => Ok(Self::Network(wire::map(body, NetworkRecord::LAST_KEY)?)),
            HUB => Ok(Self::Hub(wire::map(body, HubRecord::LAST_KEY)?)),
            MEMBER => Ok(Self::Member(wire::map(body, MemberRecord::LAST_KEY)?)),
            SKIPPABLE.. => Ok(Self::Skipped { kind, name: wire::whole::<Named>(body)?.name }),
            _ => Err(DecodeError::Critical { key: kind.into() }),
        }
    }

    /// Whether it says anything that this version may not ignore; what else it says is not read.
    ///
    /// # Errors
    /// It does, or its wrapping is damaged.
    pub(crate) fn check_critical(bytes: &[u8]) -> Result<(), DecodeError> {
        let (kind, body) = Self::open(bytes)?;
        match kind {
            NETWORK => wire::critical(body, NetworkRecord::LAST_KEY),
            HUB => wire::critical(body, HubRecord::LAST_KEY),
            MEMBER => wire::critical(body, MemberRecord::LAST_KEY),
            SKIPPABLE.. => Ok(()),
            _ => Err(DecodeError::Critical { key: kind.into() }),
        }
    }

    /// Its kind, and what it says.
    fn open(bytes: &[u8]) -> Result<(u16, &[u8]), DecodeError> {
        if bytes.len() > MAX_RECORD {
            return Err(DecodeError::TooLong { got: bytes.len(), limit: MAX_RECORD });
        }
        let mut d = Decoder::new(bytes);
        wire::tuple(&mut d, 2)?;
        Ok((d.u16()?, bytes.get(d.position()..).unwrap_or_default()))
    }
}

/// The network itself.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct NetworkRecord {
    /// Its name.
    #[n(1)]
    pub name: Name,
    /// Where members' IPv4 addresses come from.
    #[n(2)]
    pub range: Prefix,
    /// MTU of every member's interface, in bytes.
    #[n(3)]
    pub mtu: u16,
    /// What happens when the head is past its expiry.
    #[n(4)]
    pub expiry: Expiry,
}

impl NetworkRecord {
    const LAST_KEY: u32 = 4;
}

/// What a node does with a roster past its expiry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Expiry {
    /// Say so, early and loud; cut nobody off.
    #[default]
    #[n(0)]
    Warn,
    /// Start no new session until a newer roster is there.
    #[n(1)]
    RefuseNew,
}

/// A hub.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct HubRecord {
    /// Its name.
    #[n(1)]
    pub name: Name,
    /// Its key, with which it proves every stream.
    #[n(2)]
    pub key: HubKey,
    /// Where it takes streams.
    #[n(3)]
    pub tls: HostPort,
    /// Where it takes datagrams, if it does.
    #[n(4)]
    pub udp: Option<HostPort>,
    /// Where it stands, in the admin's words.
    #[n(5)]
    pub region: Option<Name>,
    /// How much it is preferred among equals; more is better.
    #[n(6)]
    pub weight: u16,
}

impl HubRecord {
    const LAST_KEY: u32 = 6;
}

/// A member. It may have keys, an open invite, both (the invite's claim replaces the keys), or neither
/// (its name and addresses are reserved).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct MemberRecord {
    /// Its name.
    #[n(1)]
    pub name: Name,
    /// Its addresses, as assigned. Where no IPv6 is among them, it has the one that belongs to its key.
    #[n(2)]
    pub ips: Vec<VirtualIp>,
    /// Its keys.
    #[n(3)]
    pub keys: Option<NodeKeys>,
    /// The invite that may give it (new) keys.
    #[n(4)]
    pub invite: Option<Invite>,
    /// Prefixes of its site that it carries.
    #[n(5)]
    pub routes: Vec<Prefix>,
    /// Prefixes that lie within another member's routes and have been re-homed to this one.
    #[n(6)]
    pub moved: Vec<Prefix>,
    /// Groups that it is in.
    #[n(7)]
    pub groups: Vec<Name>,
    /// Where it can be reached directly, as far as the admin knows. A hint.
    #[n(8)]
    pub endpoint: Option<HostPort>,
    /// The group of members that may carry the same prefixes for each other.
    #[n(9)]
    pub ha: Option<Name>,
    /// A plain WireGuard peer, terminated by another member.
    #[n(10)]
    pub stock: Option<Stock>,
    /// How much it is preferred in that group; more is better, and without one it is 0. Equals share their flows.
    #[n(11)]
    pub priority: Option<u16>,
}

impl MemberRecord {
    const LAST_KEY: u32 = 11;

    /// A member with nothing but a name.
    pub fn new(name: Name) -> Self {
        Self {
            name,
            ips: Vec::new(),
            keys: None,
            invite: None,
            routes: Vec::new(),
            moved: Vec::new(),
            groups: Vec::new(),
            endpoint: None,
            ha: None,
            stock: None,
            priority: None,
        }
    }
}

/// An invite: whoever proves that it holds the secret gives the member its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Invite {
    /// The invite's public key.
    #[n(1)]
    pub key: InviteKey,
    /// Until when it may be redeemed. A claim made in time stays valid after.
    #[n(2)]
    pub expires: UnixTime,
    /// The one hub that may redeem it.
    #[n(3)]
    pub redeemer: HubKey,
}

/// A plain WireGuard peer.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Stock {
    /// The member that terminates its tunnel.
    #[n(1)]
    pub via: Name,
}

/// The keys under which a plain WireGuard peer is listed: it has no Ed25519 key, so its id is a hash of
/// the one key that it has; nobody holds a secret to it.
pub fn stock_keys(session: SessionKey) -> NodeKeys {
    let id = Sha256::digest([&b"flatlan stock member v1\0"[..], session.as_bytes()].concat());
    NodeKeys { id: MemberId::from_bytes(id.into()), session }
}

#[derive(Decode)]
#[cbor(map)]
struct Named {
    #[n(1)]
    name: Name,
}

struct Tagged<'a>(&'a Record);

impl<C> Encode<C> for Tagged<'_> {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, ctx: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?.u16(self.0.order().0)?;
        match self.0 {
            Record::Network(network) => network.encode(e, ctx),
            Record::Hub(hub) => hub.encode(e, ctx),
            Record::Member(member) => member.encode(e, ctx),
            Record::Skipped { name, .. } => e.map(1)?.u8(1)?.encode(name)?.ok(),
        }
    }
}

const NETWORK: u16 = 1;
const HUB: u16 = 2;
const MEMBER: u16 = 3;
/// The first kind that a reader may ignore when it does not know it.
pub const SKIPPABLE: u16 = 0x8000;
/// The longest record, in bytes.
pub const MAX_RECORD: usize = 16 * 1024;
