//! Who this node is to others: its keys, its boot epoch, and the statements it signs.

use std::sync::Arc;

use flatlan_relay::{Presence, PresenceOrder};
use flatlan_types::{BootEpoch, HubKey, NetworkId, NodeKeys, NodeSecret};

/// A node's secret with all that goes out under it.
pub(crate) struct Identity {
    pub(crate) secret: Arc<NodeSecret>,
    pub(crate) keys: NodeKeys,
    pub(crate) network: NetworkId,
    pub(crate) epoch: BootEpoch,
    attachments: u64,
    statement: Vec<u8>,
}

impl Identity {
    pub(crate) fn new(secret: Arc<NodeSecret>, network: NetworkId, epoch: BootEpoch) -> Self {
        let keys = secret.public();
        let mut identity = Self { secret, keys, network, epoch, attachments: 0, statement: Vec::new() };
        identity.set_epoch(epoch);
        identity
    }

    pub(crate) fn set_epoch(&mut self, epoch: BootEpoch) {
        self.epoch = epoch;
        self.attachments = 0;
        let order = PresenceOrder { epoch, counter: 0 };
        self.statement = Presence::sign(&self.secret, self.network, NO_HUB, order).encode();
    }

    /// A presence at this hub, greater than every one before.
    pub(crate) fn attach_to(&mut self, hub: HubKey) -> Presence {
        self.attachments += 1;
        let order = PresenceOrder { epoch: self.epoch, counter: self.attachments };
        Presence::sign(&self.secret, self.network, hub, order)
    }

    /// Proof of this node's boot epoch, for peers: a presence at no hub.
    pub(crate) fn statement(&self) -> &[u8] {
        &self.statement
    }

    /// The greater epoch that these bytes prove, under this node's own signature.
    pub(crate) fn greater_epoch(&self, presence: &[u8]) -> Option<BootEpoch> {
        let (network, member, _, order) = Presence::peek(presence)?;
        if network != self.network || member != self.keys.id || order.epoch < self.epoch {
            return None;
        }
        // A statement under the same epoch is one of our own, or of a machine cloned while it ran; only
        // one with a greater counter than any of ours tells them apart.
        if order.epoch == self.epoch && order.counter <= self.attachments {
            return None;
        }
        Presence::verify(presence).ok().map(|presence| presence.order().epoch)
    }
}

/// Stands for "no hub" in a statement to peers. No hub has this key: it is no point of the curve's
/// prime-order group, so nothing verifies under it.
pub(crate) const NO_HUB: HubKey = HubKey::from_bytes([0; 32]);

#[cfg(test)]
mod tests {
    use flatlan_types::NodeSeed;

    use super::*;

    fn identity(seed: u8, epoch: u64) -> Identity {
        Identity::new(
            Arc::new(NodeSeed::from_bytes([seed; 32]).derive()),
            NetworkId::from_bytes([5; 32]),
            BootEpoch(epoch),
        )
    }

    #[test]
    fn only_a_statement_of_its_own_under_a_greater_epoch_counts() {
        let me = identity(1, 10);
        assert_eq!(me.greater_epoch(identity(1, 20).statement()), Some(BootEpoch(20)));
        assert_eq!(me.greater_epoch(identity(1, 9).statement()), None);
        assert_eq!(me.greater_epoch(me.statement()), None);
        assert_eq!(me.greater_epoch(identity(2, 20).statement()), None);
        let mut forged = identity(1, 20).statement().to_vec();
        if let Some(last) = forged.last_mut() {
            *last ^= 1;
        }
        assert_eq!(me.greater_epoch(&forged), None);
        assert_eq!(me.greater_epoch(&[]), None);
    }

    #[test]
    fn a_clone_that_attached_more_often_under_the_same_epoch_is_noticed() {
        let (mut me, mut twin) = (identity(1, 10), identity(1, 10));
        let hub = HubKey::from_bytes([3; 32]);
        me.attach_to(hub);
        assert_eq!(me.greater_epoch(&twin.attach_to(hub).encode()), None);
        assert_eq!(me.greater_epoch(&twin.attach_to(hub).encode()), Some(BootEpoch(10)));
    }
}
