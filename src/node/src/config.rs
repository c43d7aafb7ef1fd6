//! What a node is made with.

use std::sync::Arc;

use flatlan_types::{BootEpoch, HostPort, NetworkId, NodeSecret, Workers};

/// What a node is made with.
pub struct NodeConfig {
    /// The network: the root of trust.
    pub network: NetworkId,
    /// This node's keys.
    pub secret: Arc<NodeSecret>,
    /// This start's epoch, persisted already ([`crate::persist::next_epoch`]).
    pub epoch: BootEpoch,
    /// Where to look for a hub while there is no roster: the token's.
    pub bootstrap: Vec<HostPort>,
    /// Which transports may be used.
    pub transport: Transport,
    /// How many workers the labels of this node are shared out to.
    pub workers: Workers,
}

/// Which transports may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// UDP where it works, TLS streams where it does not.
    #[default]
    Auto,
    /// Only TLS streams: to hubs, and never directly.
    Tcp,
    /// Only UDP for data. Control streams are TLS always.
    Udp,
}
