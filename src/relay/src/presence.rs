//! Signed presence: "this node is attached to this hub".
//!
//! The node signs it when it attaches; hubs hand it on unchanged, so that no hub can claim a node which
//! it does not hold. A boot epoch and a counter order a node's statements: of two, the greater holds.
//! There is no refresh; a presence lives while its hub is reachable and holds the node.
//!
//! Layout, 176 bytes: member 32, network 32, hub 32, boot epoch u64, counter u64, signature 64.

use flatlan_types::{BootEpoch, HubKey, MemberId, NetworkId, NodeSecret, Signature};

/// A presence whose signature is its member's. The only ways to get one are [`Presence::sign`] and
/// [`Presence::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    member: MemberId,
    network: NetworkId,
    hub: HubKey,
    order: PresenceOrder,
    signature: Signature,
}

impl Presence {
    /// Length of the encoded form.
    pub const LEN: usize = 176;

    /// The node's statement that it is attached to `hub`.
    pub fn sign(node: &NodeSecret, network: NetworkId, hub: HubKey, order: PresenceOrder) -> Self {
        let member = node.public().id;
        let signature = node.sign(DOMAIN, &payload(&member, &network, &hub, order));
        Self { member, network, hub, order, signature }
    }

    /// Reads an encoded presence and checks its signature.
    ///
    /// # Errors
    /// The length is wrong, or the signature is not the member's.
    pub fn verify(bytes: &[u8]) -> Result<Self, PresenceError> {
        let presence = Self::decode(bytes).ok_or(PresenceError::Malformed)?;
        let signed = payload(&presence.member, &presence.network, &presence.hub, presence.order);
        let good = presence.member.verify(DOMAIN, &signed, &presence.signature);
        good.map_err(|_| PresenceError::BadSignature)?;
        Ok(presence)
    }

    /// Whose, where and which, before the signature is looked at: to refuse what is not wanted cheaply.
    pub fn peek(bytes: &[u8]) -> Option<(NetworkId, MemberId, HubKey, PresenceOrder)> {
        let presence = Self::decode(bytes)?;
        Some((presence.network, presence.member, presence.hub, presence.order))
    }

    /// The encoded form.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = payload(&self.member, &self.network, &self.hub, self.order);
        bytes.extend_from_slice(self.signature.as_bytes());
        bytes
    }

    /// Who is attached.
    pub fn member(&self) -> MemberId {
        self.member
    }

    /// In which network.
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// To which hub.
    pub fn hub(&self) -> HubKey {
        self.hub
    }

    /// Its place among this node's statements.
    pub fn order(&self) -> PresenceOrder {
        self.order
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (member, rest) = bytes.split_first_chunk()?;
        let (network, rest) = rest.split_first_chunk()?;
        let (hub, rest) = rest.split_first_chunk()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (counter, rest) = rest.split_first_chunk()?;
        let signature = rest.try_into().ok()?;
        Some(Self {
            member: MemberId::from_bytes(*member),
            network: NetworkId::from_bytes(*network),
            hub: HubKey::from_bytes(*hub),
            order: PresenceOrder {
                epoch: BootEpoch(u64::from_be_bytes(*epoch)),
                counter: u64::from_be_bytes(*counter),
            },
            signature: Signature::from_bytes(signature),
        })
    }
}

/// Orders the statements of one node: the boot epoch first, then a counter of its attachments in this
/// boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, minicbor::Encode, minicbor::Decode)]
pub struct PresenceOrder {
    /// The node's boot epoch.
    #[n(0)]
    pub epoch: BootEpoch,
    /// Counts the node's attachments, over all hubs.
    #[n(1)]
    pub counter: u64,
}

/// Why bytes are no presence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PresenceError {
    /// Not the member's signature.
    #[error("the presence is not signed by its member")]
    BadSignature,
    /// Wrong length.
    #[error("the presence has the wrong length")]
    Malformed,
}

const DOMAIN: &str = "presence";

fn payload(member: &MemberId, network: &NetworkId, hub: &HubKey, order: PresenceOrder) -> Vec<u8> {
    let (epoch, counter) = (order.epoch.0.to_be_bytes(), order.counter.to_be_bytes());
    let mut bytes = Vec::with_capacity(Presence::LEN);
    for part in [&member.as_bytes()[..], network.as_bytes(), hub.as_bytes(), &epoch, &counter] {
        bytes.extend_from_slice(part);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use flatlan_types::{HubSecret, NodeSeed};

    use super::*;

    #[test]
    fn a_presence_survives_the_wire_and_any_flipped_bit_is_refused() {
        let node = NodeSeed::from_bytes([7; 32]).derive();
        let order = PresenceOrder { epoch: BootEpoch(9), counter: 3 };
        let hub = HubSecret::from_bytes(&[1; 32]).public();
        let presence = Presence::sign(&node, NetworkId::from_bytes([5; 32]), hub, order);
        let bytes = presence.encode();
        assert_eq!(bytes.len(), Presence::LEN);
        assert_eq!(Presence::verify(&bytes), Ok(presence));
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(Presence::verify(&bad), Err(PresenceError::BadSignature));
        }
        assert_eq!(Presence::verify(&bytes[..175]), Err(PresenceError::Malformed));
    }

    #[test]
    fn a_greater_epoch_comes_after_any_counter() {
        let old = PresenceOrder { epoch: BootEpoch(1), counter: u64::MAX };
        assert!(PresenceOrder { epoch: BootEpoch(2), counter: 0 } > old);
    }
}
