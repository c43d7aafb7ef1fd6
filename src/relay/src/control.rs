//! The messages of a control stream.
//!
//! One message is CBOR (RFC 8949): `[tag, {field: value}]`. Fields have integer keys; unknown fields are
//! skipped. An unknown tag below [`CRITICAL_BELOW`] is refused, one from there up is skipped: so a later
//! version adds what may be ignored and what may not.
//!
//! Every message that concerns a network names it, although most streams belong to one: the receiver
//! checks that it is the stream's own, and no table is ever looked up by a bare member.

use flatlan_types::{Endpoint, HostPort, HubKey, InviteKey, Label, MemberId, NetworkId, PairKey, Signature};
use minicbor::{Decode, Decoder, Encode, Encoder, bytes::ByteVec, decode, encode};
use subtle::ConstantTimeEq as _;

use crate::PresenceOrder;

/// Tags from here up may be skipped by who does not know them.
pub const CRITICAL_BELOW: u32 = 0x8000;

/// A message of a control stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub enum Control {
    /// Hub, first on every stream: who it is.
    #[n(1)]
    HubHello {
        /// The version that it speaks.
        #[n(0)]
        version: u16,
        /// Its roster key.
        #[n(1)]
        key: HubKey,
        /// Over the channel: [`crate::auth::sign_hello`].
        #[n(2)]
        signature: Signature,
    },
    /// Dialler, second: what it wants.
    #[n(2)]
    Attach(#[n(0)] Attach),
    /// Hub: granted.
    #[n(3)]
    Attached(#[n(0)] Attached),
    /// Hub: not granted; or an answer to anything else that cannot be done. As an answer to
    /// [`Control::Attach`], or with a code that says so, the stream is closed after it.
    #[n(4)]
    Refused {
        /// Why, for the program.
        #[n(0)]
        code: RefusedCode,
        /// Why, for the operator.
        #[n(1)]
        text: String,
        /// With [`RefusedCode::StaleEpoch`]: the greater signed presence.
        #[cbor(n(2), with = "minicbor::bytes")]
        presence: Option<Vec<u8>>,
    },

    /// Both ways: the newest head that the sender has. After attaching, and on change.
    #[n(5)]
    Head {
        /// Of which network.
        #[n(0)]
        network: NetworkId,
        /// The signed head.
        #[cbor(n(1), with = "minicbor::bytes")]
        head: Vec<u8>,
        /// Of the claims that go with it.
        #[n(2)]
        claims: ClaimsSummary,
    },
    /// Asks for the published roster, one part at a time; the answer is [`Control::RosterPart`].
    #[n(6)]
    GetRoster {
        /// Of which network.
        #[n(0)]
        network: NetworkId,
        /// From which byte.
        #[n(1)]
        offset: u32,
    },
    /// A part of the published roster. Where `version` differs from the part before, start over.
    #[n(7)]
    RosterPart {
        /// Of which network.
        #[n(0)]
        network: NetworkId,
        /// Names the bytes: equal for all parts of one roster.
        #[n(1)]
        version: u64,
        /// Length of the whole.
        #[n(2)]
        total: u32,
        /// Where this part begins.
        #[n(3)]
        offset: u32,
        /// The part.
        #[cbor(n(4), with = "minicbor::bytes")]
        bytes: Vec<u8>,
    },
    /// A part of a roster to publish, in order, the first at offset 0. Answered once, after the last,
    /// by [`Control::Stored`] or [`Control::Refused`].
    #[n(8)]
    PutRoster {
        /// Of which network.
        #[n(0)]
        network: NetworkId,
        /// Length of the whole.
        #[n(1)]
        total: u32,
        /// Where this part begins.
        #[n(2)]
        offset: u32,
        /// The part.
        #[cbor(n(3), with = "minicbor::bytes")]
        bytes: Vec<u8>,
    },
    /// Hub: the roster is stored durably (or was there before).
    #[n(9)]
    Stored {
        /// Of which network.
        #[n(0)]
        network: NetworkId,
        /// Key epoch of the head.
        #[n(1)]
        key_epoch: u64,
        /// Serial of the head.
        #[n(2)]
        serial: u64,
    },
    /// A claim to redeem (role `Join`), to the one hub that may. Answered by [`Control::Redeemed`].
    #[n(10)]
    Redeem {
        /// Of which network.
        #[n(0)]
        network: NetworkId,
        /// The claim, not yet countersigned.
        #[cbor(n(1), with = "minicbor::bytes")]
        claim: Vec<u8>,
    },
    /// Hub: the claim is remembered durably.
    #[n(11)]
    Redeemed {
        /// Of which network.
        #[n(0)]
        network: NetworkId,
        /// The countersigned claim.
        #[cbor(n(1), with = "minicbor::bytes")]
        claim: Vec<u8>,
    },
    /// Asks for the claims beside the newest head; the answer is [`Control::Claims`].
    #[n(12)]
    GetClaims {
        /// Of which network.
        #[n(0)]
        network: NetworkId,
        /// From which place in their order.
        #[n(1)]
        from: u32,
    },
    /// Countersigned claims: an answer, or new ones.
    #[n(13)]
    Claims {
        /// Of which network.
        #[n(0)]
        network: NetworkId,
        /// Place of the first in their order.
        #[n(1)]
        from: u32,
        /// How many there are in all.
        #[n(2)]
        total: u32,
        /// As many as fit.
        #[n(3)]
        claims: Vec<ByteVec>,
    },

    /// Node: tell me now and on change where these are.
    #[n(14)]
    Watch {
        /// Members of the stream's network.
        #[n(0)]
        peers: Vec<MemberId>,
    },
    /// Node: no more about these.
    #[n(15)]
    Unwatch {
        /// Members of the stream's network.
        #[n(0)]
        peers: Vec<MemberId>,
    },
    /// Hub to node: a watched peer is attached to a hub.
    #[n(16)]
    Presence {
        /// [`crate::Presence`], encoded.
        #[cbor(n(0), with = "minicbor::bytes")]
        presence: Vec<u8>,
    },
    /// Hub to node: a watched peer is not, or no longer, attached.
    #[n(17)]
    Absent {
        /// Who.
        #[n(0)]
        peer: MemberId,
        /// To which hub; `None`: to no hub that this one can reach.
        #[n(1)]
        hub: Option<HubKey>,
    },

    /// Opens one direction of relaying, hop by hop toward `to`. Answered by [`Control::PathOpened`] or
    /// [`Control::PathFailed`] with the same request number.
    #[n(18)]
    PathOpen(#[n(0)] PathOpen),
    /// Send frames for this request with this label.
    #[n(19)]
    PathOpened {
        /// The request that this answers.
        #[n(0)]
        request: u32,
        /// What the sender of this message wants to see.
        #[n(1)]
        label: Label,
        /// The hubs that frames will cross from here on, in order; a hub puts itself first.
        #[n(2)]
        via: Vec<HubKey>,
        /// Round trips between those hubs, summed, microseconds.
        #[n(3)]
        rtt_us: u32,
    },
    /// The request came to nothing.
    #[n(20)]
    PathFailed {
        /// The request that this answers.
        #[n(0)]
        request: u32,
        /// Why.
        #[n(1)]
        reason: PathReason,
    },
    /// To who gave the label: I will not use it again.
    #[n(21)]
    PathClose {
        /// The label.
        #[n(0)]
        label: Label,
    },
    /// From who gave the label: it leads nowhere any more.
    #[n(22)]
    PathLost {
        /// The label.
        #[n(0)]
        label: Label,
        /// Why.
        #[n(1)]
        reason: PathReason,
    },
    /// Frames came with a label that was never given, or not to you. Tears nothing down.
    #[n(23)]
    LabelUnknown {
        /// The label.
        #[n(0)]
        label: Label,
    },
    /// Node: by which of my legs I want labelled frames. Without it: UDP while bound, else the data stream.
    #[n(24)]
    Downlink {
        /// The leg.
        #[n(0)]
        leg: Leg,
    },

    /// Either: are you there.
    #[n(25)]
    Ping {
        /// The sender's own; comes back.
        #[n(0)]
        time: u64,
    },
    /// Answer to [`Control::Ping`].
    #[n(26)]
    Pong {
        /// Of the ping.
        #[n(0)]
        time: u64,
    },
    /// Hub: I am about to stop; move your flows, then leave.
    #[n(27)]
    Draining,

    /// Hub to hub, several times a second: I am here; and what is the round trip.
    #[n(28)]
    Hello {
        /// The sender's clock, microseconds, zero arbitrary.
        #[n(0)]
        time: u64,
        /// The last hello received.
        #[n(1)]
        echo: Option<Echo>,
    },
    /// Hub to hub: the networks that I serve and whose roster lists you.
    #[n(29)]
    Serves {
        /// All of them.
        #[n(0)]
        networks: Vec<NetworkId>,
    },
    /// Hub to hub: a link state.
    #[n(30)]
    Lsa {
        /// [`crate::SignedLsa`], as signed.
        #[cbor(n(0), with = "minicbor::bytes")]
        lsa: Vec<u8>,
    },
    /// Hub to hub: the link states that I have. The receiver sends what is missing or older.
    #[n(31)]
    LsaDigest {
        /// All of them that concern you.
        #[n(0)]
        entries: Vec<LsaEntry>,
    },
    /// Hub to hub: presences, as signed.
    #[n(32)]
    PresenceFlood {
        /// Of which network.
        #[n(0)]
        network: NetworkId,
        /// [`crate::Presence`], encoded.
        #[n(1)]
        presences: Vec<ByteVec>,
    },
    /// Hub to hub: a node is attached to a hub no more.
    #[n(33)]
    PresenceGone {
        /// Of which network.
        #[n(0)]
        network: NetworkId,
        /// Who.
        #[n(1)]
        member: MemberId,
        /// Where.
        #[n(2)]
        hub: HubKey,
        /// Up to which of its statements.
        #[n(3)]
        order: PresenceOrder,
    },
    /// Hub to hub: what I know of who is attached where.
    #[n(34)]
    PresenceDigest {
        /// Of which network.
        #[n(0)]
        network: NetworkId,
        /// One for each hub that holds a member.
        #[n(1)]
        entries: Vec<PresenceSummary>,
    },
    /// Hub to hub: send me what you know of this hub's nodes.
    #[n(35)]
    PresencePull {
        /// Of which network.
        #[n(0)]
        network: NetworkId,
        /// Which hub's.
        #[n(1)]
        hub: HubKey,
    },
    /// Hub: frames with this label go another way from here on. The label is the same, and whoever does not know this
    /// message misses nothing but the news.
    #[n(32768)]
    PathMoved {
        /// The label.
        #[n(0)]
        label: Label,
        /// The hubs that they cross from here on, in order; a hub puts itself first.
        #[n(1)]
        via: Vec<HubKey>,
    },
}

/// What a dialler wants.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Attach {
    /// The version that it speaks.
    #[n(0)]
    pub version: u16,
    /// In which network. A dialling hub names any network that both serve.
    #[n(1)]
    pub network: NetworkId,
    /// As what.
    #[n(2)]
    pub role: Role,
    /// Why it may.
    #[n(3)]
    pub proof: Proof,
}

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Role {
    /// A node's control stream.
    #[n(1)]
    Control,
    /// A node's data stream; its control stream must be at the same hub.
    #[n(2)]
    Data,
    /// Redeeming an invite.
    #[n(3)]
    Join,
    /// Publishing and reading the roster.
    #[n(4)]
    Admin,
    /// A hub's control stream to a hub.
    #[n(5)]
    HubControl,
    /// A hub's data stream to a hub.
    #[n(6)]
    HubData,
}

impl Role {
    /// Its number on the wire.
    pub fn code(self) -> u8 {
        match self {
            Self::Control => 1,
            Self::Data => 2,
            Self::Join => 3,
            Self::Admin => 4,
            Self::HubControl => 5,
            Self::HubData => 6,
        }
    }
}

/// Why a dialler may attach. Signatures are over [`crate::auth::AttachScope`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub enum Proof {
    /// A member (roles `Control` and `Data`).
    #[n(1)]
    Node {
        /// Who.
        #[n(0)]
        id: MemberId,
        /// With role `Control`: [`crate::Presence`] at this hub, encoded. Empty otherwise.
        #[cbor(n(1), with = "minicbor::bytes")]
        presence: Vec<u8>,
        /// Its signature.
        #[n(2)]
        signature: Signature,
    },
    /// Who holds an invite (role `Join`).
    #[n(2)]
    Invite {
        /// Which invite.
        #[n(0)]
        key: InviteKey,
        /// Its signature.
        #[n(1)]
        signature: Signature,
    },
    /// A hub (roles `HubControl` and `HubData`).
    #[n(3)]
    Hub {
        /// Which.
        #[n(0)]
        key: HubKey,
        /// Its signature.
        #[n(1)]
        signature: Signature,
    },
    /// None needed (role `Admin`): what is uploaded proves itself, and the network's id is the capability
    /// to read.
    #[n(4)]
    Nothing,
}

/// What a dialler gets.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Attached {
    /// The version that the hub will speak on this stream: the smaller of the two.
    #[n(0)]
    pub version: u16,
    /// The attachment's number at this hub.
    #[n(1)]
    pub attachment: u32,
    /// The stream's source, as the hub sees it.
    #[n(2)]
    pub observed: Endpoint,
    /// Where the hub receives UDP. An unspecified address means: at the address that was dialled.
    #[n(3)]
    pub udp: Vec<HostPort>,
    /// For binding (roles `Control` and `HubControl`).
    #[n(4)]
    pub bind: Option<BindKey>,
    /// The newest head that the hub has.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub head: Option<Vec<u8>>,
    /// Of the claims that go with it.
    #[n(6)]
    pub claims: ClaimsSummary,
}

/// How many claims go with a head, and the hash over them: two that differ know of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ClaimsSummary {
    /// How many.
    #[n(0)]
    pub count: u32,
    /// Over all of them, in order.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub hash: [u8; 32],
}

/// The key under which an attachment binds its UDP address.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct BindKey {
    /// Names it in a `BIND`.
    #[n(0)]
    pub id: u32,
    /// The key.
    #[n(1)]
    pub key: BindSecret,
}

/// 32 secret bytes, told over the control stream. Prints as dots.
#[derive(Clone)]
pub struct BindSecret([u8; 32]);

impl BindSecret {
    /// From its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether `mac` is the tag over `parts`, in constant time.
    pub fn matches(&self, parts: &[&[u8]], mac: &[u8]) -> bool {
        PairKey::tag(&self.0, parts).ct_eq(mac).into()
    }
}

impl PartialEq for BindSecret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for BindSecret {}

impl std::fmt::Debug for BindSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BindSecret(..)")
    }
}

impl<C> Encode<C> for BindSecret {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for BindSecret {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        d.bytes()?.try_into().map(Self).map_err(|_| decode::Error::message("a key has 32 bytes"))
    }
}

/// A request for one direction of relaying.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PathOpen {
    /// The asker's number for it, unique on this stream while it is pending.
    #[n(0)]
    pub request: u32,
    /// In which network.
    #[n(1)]
    pub network: NetworkId,
    /// Who will send.
    #[n(2)]
    pub from: MemberId,
    /// Who will receive.
    #[n(3)]
    pub to: MemberId,
    /// How many more hubs it may cross.
    #[n(4)]
    pub hops: u8,
    /// The hubs that it has crossed, in order: none twice.
    #[n(5)]
    pub via: Vec<HubKey>,
    /// Hubs to go around where there is a way around them: those that the asker uses otherwise.
    #[n(6)]
    pub avoid: Vec<HubKey>,
}

/// By which leg frames reach a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum Leg {
    /// Datagrams, to the bound address.
    #[n(1)]
    Udp,
    /// The data stream.
    #[n(2)]
    Tls,
}

/// In a [`Control::Hello`]: the other's last, for the round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Echo {
    /// Its `time`.
    #[n(0)]
    pub time: u64,
    /// How long it was held before this answer, microseconds.
    #[n(1)]
    pub held_us: u64,
}

/// Orders one hub's link states: the incarnation (its start) first, then a sequence number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct LsaVersion {
    /// Rises with every start of the hub.
    #[n(0)]
    pub incarnation: u64,
    /// Rises with every change.
    #[n(1)]
    pub sequence: u64,
}

/// One line of a [`Control::LsaDigest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LsaEntry {
    /// Whose link state.
    #[n(0)]
    pub origin: HubKey,
    /// The newest that the sender has.
    #[n(1)]
    pub version: LsaVersion,
}

/// One line of a [`Control::PresenceDigest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PresenceSummary {
    /// Which hub's nodes.
    #[n(0)]
    pub hub: HubKey,
    /// How many.
    #[n(1)]
    pub count: u32,
    /// Over members and orders, independent of sequence.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub hash: [u8; 16],
}

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $code:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
            /// A code of a later version.
            Other(u16),
        }

        impl $name {
            /// Its number on the wire.
            pub fn code(self) -> u16 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Other(code) => code,
                }
            }
        }

        impl From<u16> for $name {
            fn from(code: u16) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    code => Self::Other(code),
                }
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
                e.u16(self.code())?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
                d.u16().map(Self::from)
            }
        }
    };
}

codes! {
    /// Why a hub refuses.
    RefusedCode {
        /// The proof does not hold.
        BadProof = 1,
        /// Out of order, malformed, or not for this role.
        BadMessage = 2,
        /// This hub does not serve that network.
        NetworkRefused = 3,
        /// This hub serves that network but has no roster of it yet.
        NoRoster = 4,
        /// Not in the roster, or removed from it.
        NotMember = 5,
        /// A greater boot epoch of this member is known; its presence comes along.
        StaleEpoch = 6,
        /// A newer attachment of this member took its place.
        Replaced = 7,
        /// A data stream without a control stream here.
        NoControl = 8,
        /// Too much: try later.
        Quota = 9,
        /// The versions do not overlap.
        Version = 10,
        /// The roster does not verify.
        BadRoster = 11,
        /// The roster is older than the one here, or not its successor.
        OldRoster = 12,
        /// The claim does not verify, or its invite is unknown, expired or redeemed.
        BadClaim = 13,
        /// Another hub may redeem this invite.
        WrongRedeemer = 14,
        /// The hub could not store it.
        StoreFailed = 15,
        /// The hub is stopping.
        Draining = 16,
        /// Silent for too long.
        Silent = 17,
    }
}

codes! {
    /// Why a path request came to nothing, or a path ended.
    PathReason {
        /// The receiver is attached to no hub that can be reached.
        NotAttached = 1,
        /// No way to the receiver's hub.
        NoRoute = 2,
        /// It crossed too many hubs, or one twice.
        HopLimit = 3,
        /// No answer in time.
        Timeout = 4,
        /// Too many at once.
        Quota = 5,
        /// The sender or the receiver is not in the roster.
        NotMember = 6,
        /// The receiver does not want it.
        Refused = 7,
        /// A hub on the way is not reachable any more.
        HubLost = 8,
        /// Not used for long.
        Idle = 9,
        /// The receiver detached.
        Detached = 10,
        /// The receiver is about to detach: what is under way still arrives.
        Leaving = 11,
    }
}

impl Control {
    /// The message's bytes.
    pub fn encode(&self) -> Vec<u8> {
        minicbor::to_vec(self).expect("writing to a Vec cannot fail")
    }

    /// Reads a message. `Ok(None)`: one of a later version that may be skipped.
    ///
    /// # Errors
    /// Too long, malformed, trailing bytes, or of a later version and not to be skipped.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, DecodeError> {
        if bytes.len() > crate::MAX_MESSAGE {
            return Err(DecodeError::TooLong);
        }
        let mut d = Decoder::new(bytes);
        if d.array()? != Some(2) {
            return Err(decode::Error::message("a message is [tag, fields]").into());
        }
        let tag = d.u32()?;
        if !(1..=LAST).contains(&tag) && !(CRITICAL_BELOW..=LAST_TO_SKIP).contains(&tag) {
            return if tag >= CRITICAL_BELOW { Ok(None) } else { Err(DecodeError::UnknownCritical { tag }) };
        }
        decode_all(bytes).map(Some)
    }
}

/// Reads one value that takes all of `bytes`.
pub(crate) fn decode_all<'b, T: Decode<'b, ()>>(bytes: &'b [u8]) -> Result<T, DecodeError> {
    let mut d = Decoder::new(bytes);
    let value = d.decode()?;
    if d.position() != bytes.len() {
        return Err(DecodeError::Trailing);
    }
    Ok(value)
}

/// The greatest tag of this version that must be known.
const LAST: u32 = 35;
/// The greatest of those that may be skipped.
const LAST_TO_SKIP: u32 = CRITICAL_BELOW;

/// Why bytes are no message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not of the expected form.
    #[error("malformed message")]
    Malformed(#[from] decode::Error),
    /// More than one message may hold.
    #[error("message too long")]
    TooLong,
    /// Bytes after the end.
    #[error("bytes after the end of the message")]
    Trailing,
    /// Of a later version, and it must not be ignored.
    #[error("message {tag} is of a later version and must not be ignored")]
    UnknownCritical {
        /// Its tag.
        tag: u32,
    },
}
