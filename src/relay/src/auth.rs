//! What is signed when a stream opens.
//!
//! Every proof is made over the TLS exporter of the very stream that it opens (RFC 8446 section 7.5), so
//! that a proof captured by an interposed proxy, or by a hub, is worth nothing on another stream. The
//! hub signs first; the dialler signs only to a hub whose key it knows.
//!
//! This module makes and checks signatures; who may attach is the hub's to decide.

use flatlan_types::{
    HubKey, HubSecret, InviteKey, InviteSecret, MemberId, NetworkId, NodeSecret, Signature, SignatureError,
};

use crate::Role;

/// Keying material exported from one TLS session under [`EXPORTER_LABEL`]: names the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exporter(pub [u8; 32]);

/// The TLS exporter's label; its context is absent.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-flatlan-attach-v1";

/// The hub's signature over the channel: what `HubHello` carries.
pub fn sign_hello(hub: &HubSecret, exporter: &Exporter) -> Signature {
    hub.sign(HELLO, &hello_bytes(&hub.public(), exporter))
}

/// Checks what `HubHello` carries.
///
/// # Errors
/// The signature is not the hub's over this channel.
pub fn verify_hello(hub: &HubKey, exporter: &Exporter, signature: &Signature) -> Result<(), SignatureError> {
    hub.verify(HELLO, &hello_bytes(hub, exporter), signature)
}

/// What a dialler signs: this channel, to this hub, for this network, in this role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachScope<'a> {
    /// The channel.
    pub exporter: &'a Exporter,
    /// The hub that was dialled.
    pub hub: &'a HubKey,
    /// The network.
    pub network: &'a NetworkId,
    /// The stream's role.
    pub role: Role,
}

impl AttachScope<'_> {
    /// A node's signature.
    pub fn sign_node(&self, node: &NodeSecret) -> Signature {
        node.sign(ATTACH, &self.bytes())
    }

    /// The signature of who holds an invite.
    pub fn sign_invite(&self, invite: &InviteSecret) -> Signature {
        invite.sign(ATTACH, &self.bytes())
    }

    /// A dialling hub's signature.
    pub fn sign_hub(&self, hub: &HubSecret) -> Signature {
        hub.sign(ATTACH, &self.bytes())
    }

    /// Checks a node's signature.
    ///
    /// # Errors
    /// The signature is not this member's over this scope.
    pub fn verify_node(&self, id: &MemberId, signature: &Signature) -> Result<(), SignatureError> {
        id.verify(ATTACH, &self.bytes(), signature)
    }

    /// Checks the signature of who holds an invite.
    ///
    /// # Errors
    /// The signature is not this invite's over this scope.
    pub fn verify_invite(&self, key: &InviteKey, signature: &Signature) -> Result<(), SignatureError> {
        key.verify(ATTACH, &self.bytes(), signature)
    }

    /// Checks a dialling hub's signature.
    ///
    /// # Errors
    /// The signature is not this hub's over this scope.
    pub fn verify_hub(&self, key: &HubKey, signature: &Signature) -> Result<(), SignatureError> {
        key.verify(ATTACH, &self.bytes(), signature)
    }

    fn bytes(&self) -> Vec<u8> {
        [&self.exporter.0[..], self.hub.as_bytes(), self.network.as_bytes(), &[self.role.code()]].concat()
    }
}

const HELLO: &str = "hub-hello";
const ATTACH: &str = "attach";

fn hello_bytes(hub: &HubKey, exporter: &Exporter) -> Vec<u8> {
    [&exporter.0[..], hub.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use flatlan_types::NodeSeed;

    use super::*;

    #[test]
    fn a_proof_holds_for_one_channel_one_hub_one_network_and_one_role() {
        let hub = HubSecret::from_bytes(&[1; 32]).public();
        let other = HubSecret::from_bytes(&[2; 32]).public();
        let (x, y) = (Exporter([3; 32]), Exporter([4; 32]));
        let (net, net2) = (NetworkId::from_bytes([5; 32]), NetworkId::from_bytes([6; 32]));
        let node = NodeSeed::from_bytes([7; 32]).derive();
        let scope = AttachScope { exporter: &x, hub: &hub, network: &net, role: Role::Control };
        let signature = scope.sign_node(&node);
        let id = node.public().id;
        assert_eq!(scope.verify_node(&id, &signature), Ok(()));
        for wrong in [
            AttachScope { exporter: &y, ..scope },
            AttachScope { hub: &other, ..scope },
            AttachScope { network: &net2, ..scope },
            AttachScope { role: Role::Data, ..scope },
        ] {
            assert_eq!(wrong.verify_node(&id, &signature), Err(SignatureError));
        }
    }

    #[test]
    fn a_hubs_hello_is_worth_nothing_on_another_channel() {
        let hub = HubSecret::from_bytes(&[1; 32]);
        let signature = sign_hello(&hub, &Exporter([3; 32]));
        assert_eq!(verify_hello(&hub.public(), &Exporter([3; 32]), &signature), Ok(()));
        assert_eq!(verify_hello(&hub.public(), &Exporter([4; 32]), &signature), Err(SignatureError));
    }
}
