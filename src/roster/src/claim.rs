//! Claims: a node's proof that it redeemed an invite.
//!
//! 1. The node makes a [`Claim`] (network, invite key, its two keys), signed by the invite's secret from
//!    the token and by the node's own key.
//! 2. The one hub that the invite names checks it against the current roster and countersigns it with
//!    the time ([`VerifiedRoster::countersign`]); it stores the result before it answers.
//! 3. The [`CountersignedClaim`] travels with the roster; every member folds it by the same rules
//!    (`fold`), until the admin's `pull` writes the keys into the record and retires the invite.
//!
//! Both types exist only with signatures that hold. Whether a claim counts is decided against a roster.
//!
//! [`VerifiedRoster::countersign`]: crate::VerifiedRoster::countersign

use std::{collections::BTreeMap, fmt};

use flatlan_types::{HubKey, HubSecret, InviteKey, InviteSecret, NetworkId, NodeKeys, NodeSecret, Signature, UnixTime};
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use sha2::{Digest, Sha256};

use crate::wire::{self, DecodeError};

/// A claim as the node makes it: both its signatures hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim(Unchecked);

impl Claim {
    /// Makes one.
    pub fn make(network: &NetworkId, invite: &InviteSecret, node: &NodeSecret) -> Self {
        let (invite_key, keys) = (invite.public(), node.public());
        let signed = signed(network, &invite_key, &keys);
        Self(Unchecked {
            invite: invite_key,
            keys,
            by_invite: invite.sign(INVITE_DOMAIN, &signed),
            by_node: node.sign(NODE_DOMAIN, &signed),
        })
    }

    /// Reads and checks one.
    ///
    /// # Errors
    /// It is damaged, or a signature does not hold for `network`.
    pub fn decode(bytes: &[u8], network: &NetworkId) -> Result<Self, ClaimError> {
        wire::canonical::<Unchecked>(bytes, MAX_CLAIM)?.check(network)
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        wire::to_bytes(&self.0)
    }

    /// Which invite it redeems.
    pub fn invite(&self) -> &InviteKey {
        &self.0.invite
    }

    /// The keys that it gives the member.
    pub fn keys(&self) -> &NodeKeys {
        &self.0.keys
    }

    /// Countersigns it. Whether it may be is for [`VerifiedRoster::countersign`] to say.
    ///
    /// [`VerifiedRoster::countersign`]: crate::VerifiedRoster::countersign
    pub(crate) fn countersign(&self, hub: &HubSecret, time: UnixTime) -> CountersignedClaim {
        let by_hub = hub.sign(HUB_DOMAIN, &countersigned(&self.0, time));
        CountersignedClaim { claim: self.clone(), hub: hub.public(), time, by_hub }
    }
}

/// A claim that a hub countersigned: all three signatures hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountersignedClaim {
    claim: Claim,
    hub: HubKey,
    time: UnixTime,
    by_hub: Signature,
}

impl CountersignedClaim {
    /// Reads and checks one.
    ///
    /// # Errors
    /// It is damaged, or one of its signatures does not hold for `network`.
    pub fn decode(bytes: &[u8], network: &NetworkId) -> Result<Self, ClaimError> {
        let unchecked: UncheckedCountersigned = wire::canonical(bytes, MAX_CLAIM)?;
        unchecked.check(network)
    }

    /// Which invite it says that it redeems; no signature is checked.
    pub fn peek_invite(bytes: &[u8]) -> Option<InviteKey> {
        let unchecked: UncheckedCountersigned = wire::canonical(bytes, MAX_CLAIM).ok()?;
        Some(unchecked.claim.invite)
    }

    /// The bytes to send.
    pub fn encode(&self) -> Vec<u8> {
        wire::to_bytes(&UncheckedCountersigned {
            claim: self.claim.0.clone(),
            hub: self.hub,
            time: self.time,
            by_hub: self.by_hub,
        })
    }

    /// Which invite it redeems.
    pub fn invite(&self) -> &InviteKey {
        self.claim.invite()
    }

    /// The keys that it gives the member.
    pub fn keys(&self) -> &NodeKeys {
        self.claim.keys()
    }

    /// The hub that countersigned.
    pub fn hub(&self) -> &HubKey {
        &self.hub
    }

    /// When it did.
    pub fn time(&self) -> UnixTime {
        self.time
    }

    /// The hash of its bytes.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.encode()).into()
    }

    /// The order in which claims for one invite are written.
    pub(crate) fn order(&self) -> (UnixTime, [u8; 32]) {
        (self.time, self.hash())
    }
}

/// The claims that stand beside one roster, each for an invite that its head holds open.
///
/// A claim with keys that are held for its invite is no news, whenever it was countersigned: else the hub
/// that may countersign could make everybody write and publish the one genuine claim for ever. Of claims
/// with different keys for one invite the first two are kept: they refuse each other, prove it, and a third
/// changes nothing. So hubs and nodes may hold different copies; [`ClaimSet::summary`] and the members that
/// come of it are the same for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimSet {
    by_invite: BTreeMap<InviteKey, Vec<CountersignedClaim>>,
}

impl ClaimSet {
    /// Adds a claim; whether the set changed. The caller has checked that it fits an open invite.
    pub(crate) fn add(&mut self, claim: CountersignedClaim) -> Added {
        let held = self.by_invite.entry(*claim.invite()).or_default();
        if held.len() >= KEPT || held.iter().any(|other| other.keys() == claim.keys()) {
            return Added::Nothing;
        }
        held.push(claim);
        held.sort_by_cached_key(CountersignedClaim::order);
        Added::Changed
    }

    /// The claims for one invite: none, the one that counts, or two that refuse each other.
    pub fn of(&self, invite: &InviteKey) -> &[CountersignedClaim] {
        self.by_invite.get(invite).map_or(&[], Vec::as_slice)
    }

    /// All claims, by invite and then in order.
    pub fn iter(&self) -> impl Iterator<Item = &CountersignedClaim> {
        self.by_invite.values().flatten()
    }

    /// Each invite with its claims.
    pub(crate) fn by_invite(&self) -> impl Iterator<Item = (&InviteKey, &[CountersignedClaim])> {
        self.by_invite.iter().map(|(invite, claims)| (invite, claims.as_slice()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_invite.values().map(Vec::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_invite.is_empty()
    }

    /// What hubs publish and peers compare: which invite gives which keys, or that two claims for it refuse
    /// each other; not which copies of them are held here.
    pub fn summary(&self) -> ClaimsSummary {
        let mut hash = Sha256::new();
        for (invite, claims) in &self.by_invite {
            hash.update(invite.as_bytes());
            match claims.as_slice() {
                [claim] => {
                    hash.update(claim.keys().id.as_bytes());
                    hash.update(claim.keys().session.as_bytes());
                }
                _ => hash.update([0; 64]),
            }
        }
        ClaimsSummary { count: u32::try_from(self.len()).unwrap_or(u32::MAX), hash: hash.finalize().into() }
    }

    /// Whether this very claim is there, so that its signatures need not be checked again.
    pub fn known(&self, bytes: &[u8]) -> Option<&CountersignedClaim> {
        let unchecked: UncheckedCountersigned = wire::canonical(bytes, MAX_CLAIM).ok()?;
        self.of(&unchecked.claim.invite).iter().find(|held| {
            held.claim.0 == unchecked.claim
                && held.hub == unchecked.hub
                && held.time == unchecked.time
                && held.by_hub == unchecked.by_hub
        })
    }
}

/// Whether something changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    Changed,
    Nothing,
}

/// Number and hash of a claim set: equal summaries mean the same members.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Encode, Decode)]
#[cbor(array)]
pub struct ClaimsSummary {
    /// How many claims.
    #[n(0)]
    pub count: u32,
    /// SHA-256 over each invite with the keys that it gives, as [`ClaimSet::summary`] says.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub hash: [u8; 32],
}

impl fmt::Debug for ClaimsSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} claims ", self.count)?;
        self.hash.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// `[invite key, node keys, signature by the invite, signature by the node]`
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unchecked {
    invite: InviteKey,
    keys: NodeKeys,
    by_invite: Signature,
    by_node: Signature,
}

impl Unchecked {
    fn check(self, network: &NetworkId) -> Result<Claim, ClaimError> {
        let signed = signed(network, &self.invite, &self.keys);
        self.invite.verify(INVITE_DOMAIN, &signed, &self.by_invite).map_err(|_| ClaimError::InviteSignature)?;
        self.keys.id.verify(NODE_DOMAIN, &signed, &self.by_node).map_err(|_| ClaimError::NodeSignature)?;
        Ok(Claim(self))
    }
}

/// `[claim, hub key, time, signature by the hub]`
struct UncheckedCountersigned {
    claim: Unchecked,
    hub: HubKey,
    time: UnixTime,
    by_hub: Signature,
}

impl UncheckedCountersigned {
    fn check(self, network: &NetworkId) -> Result<CountersignedClaim, ClaimError> {
        let signed = countersigned(&self.claim, self.time);
        self.hub.verify(HUB_DOMAIN, &signed, &self.by_hub).map_err(|_| ClaimError::HubSignature)?;
        Ok(CountersignedClaim {
            claim: self.claim.check(network)?,
            hub: self.hub,
            time: self.time,
            by_hub: self.by_hub,
        })
    }
}

impl<C> Encode<C> for Unchecked {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, ctx: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(5)?;
        self.invite.encode(e, ctx)?;
        self.keys.id.encode(e, ctx)?;
        self.keys.session.encode(e, ctx)?;
        self.by_invite.encode(e, ctx)?;
        self.by_node.encode(e, ctx)
    }
}

impl<'b, C> Decode<'b, C> for Unchecked {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        wire::tuple(d, 5)?;
        Ok(Self {
            invite: Decode::decode(d, ctx)?,
            keys: NodeKeys { id: Decode::decode(d, ctx)?, session: Decode::decode(d, ctx)? },
            by_invite: Decode::decode(d, ctx)?,
            by_node: Decode::decode(d, ctx)?,
        })
    }
}

impl<C> Encode<C> for UncheckedCountersigned {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, ctx: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(4)?;
        self.claim.encode(e, ctx)?;
        self.hub.encode(e, ctx)?;
        self.time.encode(e, ctx)?;
        self.by_hub.encode(e, ctx)
    }
}

impl<'b, C> Decode<'b, C> for UncheckedCountersigned {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        wire::tuple(d, 4)?;
        Ok(Self {
            claim: Decode::decode(d, ctx)?,
            hub: Decode::decode(d, ctx)?,
            time: Decode::decode(d, ctx)?,
            by_hub: Decode::decode(d, ctx)?,
        })
    }
}

/// Why a claim is refused whatever the roster says.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// Cannot be read.
    #[error("the claim cannot be read")]
    Decode(#[from] DecodeError),
    /// The hub's signature does not hold.
    #[error("the claim's countersignature is not of the hub that it names")]
    HubSignature,
    /// The invite's signature does not hold.
    #[error("the claim is not signed with the invite's secret for this network")]
    InviteSignature,
    /// The node's signature does not hold.
    #[error("the claim is not signed by the node whose keys it names")]
    NodeSignature,
}

fn signed(network: &NetworkId, invite: &InviteKey, keys: &NodeKeys) -> Vec<u8> {
    let parts = [&network.as_bytes()[..], invite.as_bytes(), keys.id.as_bytes(), keys.session.as_bytes()];
    parts.concat()
}

fn countersigned(claim: &Unchecked, time: UnixTime) -> Vec<u8> {
    let mut bytes = wire::to_bytes(claim);
    bytes.extend_from_slice(&time.0.to_be_bytes());
    bytes
}

const INVITE_DOMAIN: &str = "claim-invite";
const NODE_DOMAIN: &str = "claim-node";
const HUB_DOMAIN: &str = "claim-hub";
/// How many claims for one invite are kept.
const KEPT: usize = 2;
/// The longest claim, in bytes.
pub const MAX_CLAIM: usize = 512;
