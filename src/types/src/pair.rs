//! k_pair: the key that two members share outside WireGuard.
//!
//! It authenticates what must be cheap to refuse before any session exists: probes, candidates and
//! handshakes. Both ends derive the same key from their static keys (X25519, RFC 7748), so nothing is
//! exchanged and no hub takes part.

use blake2::{
    Blake2sMac, Blake2sMac256,
    digest::{FixedOutput as _, KeyInit, Update as _, consts::U16},
};
use sha2::{Digest, Sha256};
use x25519_dalek::PublicKey;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{MemberId, NetworkId, NodeSecret, SessionKey};

/// KDF(X25519(static, static), network id, "flatlan pair v1").
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct PairKey([u8; 32]);

impl PairKey {
    /// The key shared by the owner of `secret` and the owner of `peer` in `network`. One scalar
    /// multiplication (tens of microseconds): derive it on first need and keep it. `None` where the
    /// peer's key is of small order, which contributes nothing to the secret (RFC 7748 section 6.1).
    pub fn derive(secret: &NodeSecret, peer: &SessionKey, network: &NetworkId) -> Option<Self> {
        let shared = secret.session().diffie_hellman(&PublicKey::from(*peer.as_bytes()));
        if !shared.was_contributory() {
            return None;
        }
        Some(Self(keyed(shared.as_bytes(), &[b"flatlan pair v1", network.as_bytes()])))
    }

    /// A key derived from this one for one purpose (and, by naming the sender, one direction).
    pub fn subkey(&self, purpose: &str, context: &[u8]) -> [u8; 32] {
        keyed(&self.0, &[purpose.as_bytes(), &[0], context])
    }

    /// The 16-byte keyed BLAKE2s (RFC 7693) over `parts`, under the subkey that names the sender.
    pub fn tag(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 16] {
        let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("BLAKE2s takes 32-byte keys");
        for part in parts {
            mac.update(part);
        }
        mac.finalize_fixed().into()
    }
}

/// Four bytes that name a sender to a receiver which knows the roster, so that it tries one key only.
/// Not a secret and not proof of anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SenderHint(pub u32);

impl SenderHint {
    /// The hint of a member.
    pub fn of(network: &NetworkId, sender: &MemberId) -> Self {
        let hash = Sha256::new().chain_update(b"flatlan hint v1").chain_update(network.as_bytes());
        let hash = hash.chain_update(sender.as_bytes()).finalize();
        let bytes = hash.first_chunk().expect("a SHA-256 has 32 bytes");
        Self(u32::from_be_bytes(*bytes))
    }
}

fn keyed(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = <Blake2sMac256 as KeyInit>::new_from_slice(key).expect("BLAKE2s takes 32-byte keys");
    for part in parts {
        mac.update(part);
    }
    mac.finalize_fixed().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeSeed;

    #[test]
    fn both_ends_derive_the_same_key_and_another_network_another() {
        let (a, b) = (NodeSeed::from_bytes([1; 32]).derive(), NodeSeed::from_bytes([2; 32]).derive());
        let (x, y) = (NetworkId::from_bytes([3; 32]), NetworkId::from_bytes([4; 32]));
        let ab = PairKey::derive(&a, &b.public().session, &x).unwrap();
        let ba = PairKey::derive(&b, &a.public().session, &x).unwrap();
        let other = PairKey::derive(&a, &b.public().session, &y).unwrap();
        assert_eq!(ab.0, ba.0);
        assert_ne!(ab.0, other.0);
        assert!(PairKey::derive(&a, &SessionKey::from_bytes([0; 32]), &x).is_none());
    }
}
