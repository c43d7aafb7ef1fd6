//! Link states: what a hub says of its own adjacencies, signed by it.
//!
//! Only adjacencies and the networks served are in it; who is attached where is `presence`. A hub can lie about its
//! own links, which costs no more than dropping what passes it; it cannot speak for another hub, nor
//! push another's sequence number beyond reach.

use flatlan_types::{HubKey, HubSecret, NetworkId, PairKey, Signature};
use minicbor::{Decode, Encode, bytes::ByteVec};

use crate::{DecodeError, LsaVersion};

/// One hub's link state.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Lsa {
    /// Whose.
    #[n(0)]
    pub origin: HubKey,
    /// Which of its statements; the greatest holds.
    #[n(1)]
    pub version: LsaVersion,
    /// Its adjacencies that are up, sorted by whom they lead to.
    #[n(2)]
    pub links: Vec<LsaLink>,
    /// The networks that it serves, sorted.
    #[n(3)]
    pub serves: Vec<NetworkTag>,
}

impl Lsa {
    /// Its adjacency with another hub.
    pub fn link(&self, to: &HubKey) -> Option<&LsaLink> {
        let at = self.links.binary_search_by_key(to, |link| link.to).ok()?;
        self.links.get(at)
    }
}

/// One adjacency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LsaLink {
    /// The hub at the other end.
    #[n(0)]
    pub to: HubKey,
    /// Measured round trip, microseconds.
    #[n(1)]
    pub rtt_us: u32,
}

/// Eight bytes that stand for a network in a link state: they tell nothing to a hub that does not know
/// the network's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(transparent)]
pub struct NetworkTag(#[n(0)] pub u64);

impl NetworkTag {
    /// The tag of a network.
    pub fn of(network: &NetworkId) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = PairKey::tag(network.as_bytes(), &[b"flatlan network tag v1"]);
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

/// A link state and the bytes that carried its origin's signature, which are handed on unchanged. The
/// only ways to get one are [`SignedLsa::sign`] and [`SignedLsa::verify`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedLsa {
    lsa: Lsa,
    bytes: Vec<u8>,
}

impl SignedLsa {
    /// The hub's own statement. `lsa.origin` is replaced by the key that signs.
    pub fn sign(hub: &HubSecret, mut lsa: Lsa) -> Self {
        lsa.origin = hub.public();
        let body = minicbor::to_vec(&lsa).expect("writing to a Vec cannot fail");
        let envelope = Envelope { signature: hub.sign(DOMAIN, &body), body: body.into() };
        let bytes = minicbor::to_vec(&envelope).expect("writing to a Vec cannot fail");
        Self { lsa, bytes }
    }

    /// Reads a link state without checking the signature: to drop cheaply what is old or unwanted.
    ///
    /// # Errors
    /// The bytes are no link state.
    pub fn peek(bytes: &[u8]) -> Result<Lsa, DecodeError> {
        let envelope: Envelope = crate::control::decode_all(bytes)?;
        crate::control::decode_all(&envelope.body)
    }

    /// Reads a link state and checks its origin's signature.
    ///
    /// # Errors
    /// The bytes are no link state, or another's signature is on them.
    pub fn verify(bytes: &[u8]) -> Result<Self, LsaError> {
        let envelope: Envelope = crate::control::decode_all(bytes).map_err(LsaError::Malformed)?;
        let lsa: Lsa = crate::control::decode_all(&envelope.body).map_err(LsaError::Malformed)?;
        let good = lsa.origin.verify(DOMAIN, &envelope.body, &envelope.signature);
        good.map_err(|_| LsaError::BadSignature)?;
        Ok(Self { lsa, bytes: bytes.to_vec() })
    }

    /// What was signed.
    pub fn lsa(&self) -> &Lsa {
        &self.lsa
    }

    /// The signed bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[derive(Encode, Decode)]
struct Envelope {
    #[n(0)]
    body: ByteVec,
    #[n(1)]
    signature: Signature,
}

/// Why bytes are no link state.
#[derive(Debug, thiserror::Error)]
pub enum LsaError {
    /// Not the origin's signature.
    #[error("the link state is not signed by its origin")]
    BadSignature,
    /// No link state.
    #[error("the link state is malformed")]
    Malformed(#[source] DecodeError),
}

const DOMAIN: &str = "lsa";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_state_survives_the_wire_and_a_changed_one_is_refused() {
        let hub = HubSecret::from_bytes(&[1; 32]);
        let lsa = Lsa {
            origin: HubKey::from_bytes([0; 32]),
            version: LsaVersion { incarnation: 1, sequence: 2 },
            links: vec![LsaLink { to: HubSecret::from_bytes(&[2; 32]).public(), rtt_us: 900 }],
            serves: vec![NetworkTag::of(&NetworkId::from_bytes([3; 32]))],
        };
        let signed = SignedLsa::sign(&hub, lsa);
        assert_eq!(signed.lsa().origin, hub.public());
        assert_eq!(SignedLsa::verify(signed.bytes()).unwrap(), signed);
        assert_eq!(&SignedLsa::peek(signed.bytes()).unwrap(), signed.lsa());
        for at in 0..signed.bytes().len() {
            let mut bad = signed.bytes().to_vec();
            bad[at] ^= 1;
            assert!(SignedLsa::verify(&bad).is_err(), "byte {at}");
        }
    }
}
