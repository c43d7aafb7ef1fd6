//! Public keys, secrets and signatures, each kind a type of its own.
//!
//! Public keys compare, print short (`Display`) and parse from their full text. Secrets have no
//! `Debug`, no `Clone`, and are zeroed on drop. Every signature is made over a domain and the payload
//! (`flatlan-<kind>-v1\0`), so that bytes signed for one purpose mean nothing for another.

use std::{fmt, str::FromStr};

use ed25519_dalek::{Signer as _, SigningKey, VerifyingKey};
use hkdf::Hkdf;
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::text::{KeyTextError, from_text, to_text};

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident, $hrp:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// From its 32 bytes.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// Its 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The full text form, which `FromStr` reads.
            pub fn full(&self) -> String {
                to_text($hrp, &self.0)
            }
        }

        impl FromStr for $name {
            type Err = KeyTextError;

            fn from_str(s: &str) -> Result<Self, KeyTextError> {
                from_text($hrp, s.trim()).map(Self)
            }
        }

        /// The short form: enough to tell keys apart in a log.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let full = self.full();
                f.write_str(full.get(..$hrp.len() + 9).unwrap_or(&full))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(&self.full())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
                let bytes = d.bytes()?;
                bytes.try_into().map(Self).map_err(|_| decode::Error::message("a key has 32 bytes"))
            }
        }
    };
}

macro_rules! verifies {
    ($name:ident) => {
        impl $name {
            /// Checks a signature by this key over `domain` and `payload` (Ed25519, RFC 8032, strict:
            /// small-order keys and non-canonical signatures are refused).
            ///
            /// # Errors
            /// The key is no point, or the signature is not of this key over these bytes.
            pub fn verify(&self, domain: &str, payload: &[u8], signature: &Signature) -> Result<(), SignatureError> {
                let key = VerifyingKey::from_bytes(&self.0).map_err(|_| SignatureError)?;
                let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
                key.verify_strict(&signed_bytes(domain, payload), &signature).map_err(|_| SignatureError)
            }
        }
    };
}

macro_rules! signing_secret {
    ($(#[$doc:meta])* $name:ident, $public:ident) => {
        $(#[$doc])*
        pub struct $name(SigningKey);

        impl $name {
            /// From its 32 secret bytes.
            pub fn from_bytes(bytes: &[u8; 32]) -> Self {
                Self(SigningKey::from_bytes(bytes))
            }

            /// Its 32 secret bytes, for the file that holds them.
            pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
                Zeroizing::new(self.0.to_bytes())
            }

            /// The public key.
            pub fn public(&self) -> $public {
                $public(self.0.verifying_key().to_bytes())
            }

            /// Signs `domain` and `payload`.
            pub fn sign(&self, domain: &str, payload: &[u8]) -> Signature {
                Signature(self.0.sign(&signed_bytes(domain, payload)).to_bytes())
            }
        }
    };
}

public_key! {
    /// A member's Ed25519 public key: who it is. Its WireGuard key is [`SessionKey`].
    MemberId, "flmember"
}
public_key! {
    /// A member's X25519 public key: WireGuard's static key.
    SessionKey, "flsession"
}
public_key! {
    /// A hub's Ed25519 public key, listed in the roster.
    HubKey, "flhub"
}
public_key! {
    /// The Ed25519 public key whose secret signs the roster.
    AdminKey, "fladmin"
}
public_key! {
    /// The Ed25519 public key whose secret replaces the admin key.
    RecoveryKey, "flrecovery"
}
public_key! {
    /// The Ed25519 public key of one invite; its secret is in the token.
    InviteKey, "flinvite"
}
public_key! {
    /// One network: the hash of its first admin key and its recovery key.
    NetworkId, "flnet"
}

verifies!(MemberId);
verifies!(HubKey);
verifies!(AdminKey);
verifies!(RecoveryKey);
verifies!(InviteKey);

signing_secret! {
    /// The admin's secret, or the recovery secret: both sign on behalf of the network's owner.
    AdminSecret, AdminKey
}
signing_secret! {
    /// A hub's secret.
    HubSecret, HubKey
}
signing_secret! {
    /// The secret in an invite's token.
    InviteSecret, InviteKey
}

impl RecoveryKey {
    /// The recovery key whose secret is `secret`.
    pub fn of(secret: &AdminSecret) -> Self {
        Self(secret.public().0)
    }
}

impl NetworkId {
    /// The id of the network made with these two keys.
    pub fn of(first_admin: &AdminKey, recovery: &RecoveryKey) -> Self {
        Self(Sha256::digest([&b"flatlan-network-v1\0"[..], &first_admin.0, &recovery.0].concat()).into())
    }
}

/// A node's two public keys. Both are unique over the roster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct NodeKeys {
    /// Who it is.
    #[n(0)]
    pub id: MemberId,
    /// Its WireGuard static key.
    #[n(1)]
    pub session: SessionKey,
}

impl NodeKeys {
    /// The full text form of both, which `FromStr` reads: what `join --request` prints.
    pub fn full(&self) -> String {
        to_text(NODE_HRP, &[self.id.0, self.session.0].concat())
    }
}

impl FromStr for NodeKeys {
    type Err = KeyTextError;

    fn from_str(s: &str) -> Result<Self, KeyTextError> {
        let bytes: [u8; 64] = from_text(NODE_HRP, s.trim())?;
        let (id, session) = bytes.split_at(32);
        let half = |b: &[u8]| <[u8; 32]>::try_from(b).expect("64 bytes split at 32");
        Ok(Self { id: MemberId(half(id)), session: SessionKey(half(session)) })
    }
}

/// The one secret that a node has on disk: 32 random bytes, from which both its keys are derived.
pub struct NodeSeed(Zeroizing<[u8; 32]>);

impl NodeSeed {
    /// From its 32 secret bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Its bytes, for the file that holds them.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Both private keys (HKDF-SHA256, RFC 5869).
    pub fn derive(&self) -> NodeSecret {
        let expand = |info: &[u8]| {
            let mut out = Zeroizing::new([0; 32]);
            let hkdf = Hkdf::<Sha256>::new(Some(b"flatlan node seed v1"), self.0.as_ref());
            hkdf.expand(info, out.as_mut()).expect("32 bytes are within HKDF-SHA256's limit");
            out
        };
        NodeSecret {
            signing: SigningKey::from_bytes(&expand(b"ed25519")),
            session: StaticSecret::from(*expand(b"x25519")),
        }
    }
}

/// A node's private keys. No `Debug`, no `Clone`, zeroed on drop.
pub struct NodeSecret {
    signing: SigningKey,
    session: StaticSecret,
}

impl NodeSecret {
    /// Both public keys.
    pub fn public(&self) -> NodeKeys {
        NodeKeys {
            id: MemberId(self.signing.verifying_key().to_bytes()),
            session: SessionKey(PublicKey::from(&self.session).to_bytes()),
        }
    }

    /// Signs `domain` and `payload` with the Ed25519 key.
    pub fn sign(&self, domain: &str, payload: &[u8]) -> Signature {
        Signature(self.signing.sign(&signed_bytes(domain, payload)).to_bytes())
    }

    /// The X25519 secret, for the WireGuard engine.
    pub fn session(&self) -> &StaticSecret {
        &self.session
    }
}

/// An Ed25519 signature over a domain and a payload.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// From its 64 bytes.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }

    /// Its 64 bytes.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signature(..)")
    }
}

impl<C> Encode<C> for Signature {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.bytes(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Signature {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        d.bytes()?.try_into().map(Self).map_err(|_| decode::Error::message("a signature has 64 bytes"))
    }
}

/// A signature is not of this key over these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("bad signature")]
pub struct SignatureError;

fn signed_bytes(domain: &str, payload: &[u8]) -> Vec<u8> {
    [b"flatlan-", domain.as_bytes(), b"-v1\0", payload].concat()
}

const NODE_HRP: &str = "flnode";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_text_form_and_a_mistyped_one_is_refused() {
        let key = HubSecret::from_bytes(&[7; 32]).public();
        let text = key.full();
        assert_eq!(text.parse::<HubKey>(), Ok(key));
        assert_eq!(text.parse::<AdminKey>(), Err(KeyTextError::Kind { expected: "fladmin" }));
        let mut wrong = text.clone();
        wrong.replace_range(10..11, if &text[10..11] == "q" { "p" } else { "q" });
        assert_eq!(wrong.parse::<HubKey>(), Err(KeyTextError::Checksum { expected: "flhub" }));
        assert!(text.starts_with(&key.to_string()));
    }

    #[test]
    fn a_signature_holds_only_in_its_domain() {
        let secret = AdminSecret::from_bytes(&[1; 32]);
        let signature = secret.sign("head", b"payload");
        assert_eq!(secret.public().verify("head", b"payload", &signature), Ok(()));
        assert_eq!(secret.public().verify("claim", b"payload", &signature), Err(SignatureError));
        assert_eq!(secret.public().verify("head", b"payloae", &signature), Err(SignatureError));
    }

    #[test]
    fn one_seed_gives_two_keys_and_always_the_same() {
        let keys = NodeSeed::from_bytes([9; 32]).derive().public();
        assert_eq!(keys, NodeSeed::from_bytes([9; 32]).derive().public());
        assert_ne!(keys.id.as_bytes(), keys.session.as_bytes());
        assert_eq!(keys.full().parse::<NodeKeys>(), Ok(keys));
    }
}
