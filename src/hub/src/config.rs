//! What a hub is told at its start.

use std::collections::BTreeSet;

use flatlan_types::{HostPort, HubKey, HubSecret, NetworkId};

use crate::forward::Quota;

/// Settings of a hub.
pub struct HubConfig {
    /// Its roster key.
    pub secret: HubSecret,
    /// The networks that it serves.
    pub allow: Allow,
    /// Hubs to dial beside those in the rosters of networks that are allowed by name.
    pub peers: Vec<PeerHub>,
    /// Where it receives UDP, as told to nodes. An unspecified address means: where I was dialled.
    pub udp: Vec<HostPort>,
    /// How much it gives.
    pub limits: Limits,
    /// Rises with every start: microseconds since 1970 do.
    pub incarnation: u64,
    /// 32 random bytes: bind keys and label generations come from them.
    pub seed: [u8; 32],
}

/// Which networks a hub serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allow {
    /// Whichever is published to it. Hubs of such networks are not dialled: an upload must not make this
    /// hub connect anywhere.
    Any,
    /// These.
    Networks(BTreeSet<NetworkId>),
}

impl Allow {
    /// Whether this network may be served.
    pub fn allows(&self, network: &NetworkId) -> bool {
        match self {
            Self::Any => true,
            Self::Networks(networks) => networks.contains(network),
        }
    }

    /// Whether it is allowed by its own name.
    pub(crate) fn names(&self, network: &NetworkId) -> bool {
        match self {
            Self::Any => false,
            Self::Networks(networks) => networks.contains(network),
        }
    }
}

/// A hub to dial.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerHub {
    /// Its key: another one's answer is refused.
    pub key: HubKey,
    /// Where it takes streams.
    pub at: HostPort,
}

/// How much a hub gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What one node may send. Without a limit by default: a good link must not be slowed unasked.
    pub node: Quota,
    /// Labels that one node's frames may come with.
    pub labels_per_node: usize,
    /// Labels of one network, or of one neighbouring hub's frames: a part of all that there are.
    pub labels_per_network: usize,
    /// Members of one network that are attached here.
    pub attachments_per_network: usize,
    /// Path requests of one attachment that wait for an answer.
    pub requests: usize,
    /// Members that one node watches.
    pub watches: usize,
    /// Claims of one network that wait to be stored.
    pub redeeming: usize,
    /// Bytes of rosters that hubs and nodes have sent in part, over all streams.
    pub transfers: usize,
    /// Bytes of rosters that admins, who may be anyone, have uploaded in part, over all streams.
    pub uploads: usize,
    /// Networks that are served although nobody allowed them by name. Those that are here stay.
    pub networks: usize,
    /// Bytes of their rosters. Once they are spent no network is added; one that is here may still grow, by the
    /// part of one among [`Self::networks`].
    pub rosters: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            node: Quota::default(),
            labels_per_node: 16_384,
            labels_per_network: 1 << 18,
            attachments_per_network: 1 << 16,
            requests: 256,
            watches: 16_384,
            redeeming: 1_000,
            transfers: 64 << 20,
            uploads: 64 << 20,
            networks: 1_024,
            rosters: 256 << 20,
        }
    }
}

/// One network, as [`Output::Store`](crate::Output::Store) left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredNetwork {
    /// Which.
    pub network: NetworkId,
    /// The published roster with its claims.
    pub bundle: Vec<u8>,
    /// The greatest head seen.
    pub ratchet: Vec<u8>,
}

impl StoredNetwork {
    /// One file a network, so that roster and ratchet change together or not at all:
    /// `[length of the ratchet u32][ratchet][roster]`.
    pub fn encode(ratchet: &[u8], bundle: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + ratchet.len() + bundle.len());
        bytes.extend_from_slice(&(ratchet.len() as u32).to_be_bytes());
        bytes.extend_from_slice(ratchet);
        bytes.extend_from_slice(bundle);
        bytes
    }

    /// What a file holds; nothing where its parts do not add up. Whether they are good, [`Hub::new`](crate::Hub::new)
    /// says.
    pub fn decode(network: NetworkId, bytes: &[u8]) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (ratchet, bundle) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        Some(Self { network, bundle: bundle.to_vec(), ratchet: ratchet.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a hub of this version wrote is read for ever.
    #[test]
    fn a_networks_file_is_written_and_read_as_in_the_golden_file() {
        let golden = include_bytes!("../tests/golden/stored-network-v1");
        assert_eq!(StoredNetwork::encode(b"ratchet", b"the roster"), golden);
        let stored = StoredNetwork::decode(NetworkId::from_bytes([1; 32]), golden).unwrap();
        assert_eq!((&stored.ratchet[..], &stored.bundle[..]), (&b"ratchet"[..], &b"the roster"[..]));
    }
}
