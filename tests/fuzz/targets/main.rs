//! Every decoder that reads bytes from outside, one target each. A target is a test; its name is its corpus.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test's helpers may fail the test")]

mod files;
mod forward;
mod machine;
mod neighbour;
mod node;
mod node_machine;
mod packets;
mod proxy;
mod relay;
mod roster;
mod sealed;
mod sessions;
mod websocket;
mod worker;

use flatlan_types::{HubSecret, NetworkId, NodeSecret, NodeSeed};

fn network() -> NetworkId {
    NetworkId::from_bytes([5; 32])
}

fn node(n: u8) -> NodeSecret {
    NodeSeed::from_bytes([n; 32]).derive()
}

fn hub(n: u8) -> HubSecret {
    HubSecret::from_bytes(&[n; 32])
}
