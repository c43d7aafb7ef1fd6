//! Who may sign: the first admin key, the recovery key, and the certificates that replaced the former.
//!
//! The network id is the hash of the two public keys, so whoever knows the id needs to trust nothing
//! else: the keys travel with every head and are checked against it. A certificate (network id, key
//! epoch, new admin key), signed by the recovery key, hands the roster to a new admin key. A greater
//! key epoch wins over any serial, so one recovery undoes whatever a thief signed.

use flatlan_types::{AdminKey, AdminSecret, NetworkId, RecoveryKey, Signature};
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

use crate::wire;

/// The keys of a network and the chain of certificates from the first admin key to the current one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    first_admin: AdminKey,
    recovery: RecoveryKey,
    certificates: Vec<KeyCertificate>,
}

impl Authority {
    /// A new network's.
    pub fn new(first_admin: AdminKey, recovery: RecoveryKey) -> Self {
        Self { first_admin, recovery, certificates: Vec::new() }
    }

    /// The same after one more certificate.
    ///
    /// # Errors
    /// It is not signed by the recovery key, or its key epoch is not greater than the current one.
    pub fn with(mut self, certificate: KeyCertificate) -> Result<Self, AuthorityError> {
        certificate.verify(&self.network(), &self.recovery)?;
        if certificate.key_epoch <= self.key_epoch() {
            return Err(AuthorityError::EpochOrder);
        }
        if self.certificates.len() == MAX_CERTIFICATES {
            return Err(AuthorityError::TooMany);
        }
        self.certificates.push(certificate);
        Ok(self)
    }

    /// Replaces the admin key: the certificate for `new_admin`, under the next key epoch.
    ///
    /// # Errors
    /// `recovery` is not this network's recovery secret, or the chain is full.
    pub fn recover(&self, new_admin: AdminKey, recovery: &AdminSecret) -> Result<Self, AuthorityError> {
        if RecoveryKey::of(recovery) != self.recovery {
            return Err(AuthorityError::NotRecoveryKey);
        }
        let key_epoch = self.key_epoch().checked_add(1).ok_or(AuthorityError::TooMany)?;
        self.clone().with(KeyCertificate::issue(&self.network(), key_epoch, new_admin, recovery))
    }

    /// The id of the network that these keys make.
    pub fn network(&self) -> NetworkId {
        NetworkId::of(&self.first_admin, &self.recovery)
    }

    /// The admin key that the network began with.
    pub fn first_admin(&self) -> &AdminKey {
        &self.first_admin
    }

    /// The recovery key.
    pub fn recovery(&self) -> &RecoveryKey {
        &self.recovery
    }

    /// The certificates, oldest first.
    pub fn certificates(&self) -> &[KeyCertificate] {
        &self.certificates
    }

    /// The admin key that signs the roster.
    pub fn admin(&self) -> &AdminKey {
        self.certificates.last().map_or(&self.first_admin, |last| &last.admin)
    }

    /// How often the admin key was replaced, at the least: 0 for the first.
    pub fn key_epoch(&self) -> u32 {
        self.certificates.last().map_or(0, |last| last.key_epoch)
    }

    /// Checks that these are the keys of `network` and that every certificate holds.
    pub(crate) fn verify(&self, network: &NetworkId) -> Result<(), AuthorityError> {
        if self.network() != *network {
            return Err(AuthorityError::OtherNetwork { expected: *network, got: self.network() });
        }
        let mut epoch = 0;
        for certificate in &self.certificates {
            certificate.verify(network, &self.recovery)?;
            if certificate.key_epoch <= epoch {
                return Err(AuthorityError::EpochOrder);
            }
            epoch = certificate.key_epoch;
        }
        Ok(())
    }
}

impl<C> Encode<C> for Authority {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, ctx: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(3)?;
        self.first_admin.encode(e, ctx)?;
        self.recovery.encode(e, ctx)?;
        self.certificates.encode(e, ctx)
    }
}

impl<'b, C> Decode<'b, C> for Authority {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        wire::tuple(d, 3)?;
        let first_admin = AdminKey::decode(d, ctx)?;
        let recovery = RecoveryKey::decode(d, ctx)?;
        let count = d.array()?.ok_or_else(|| decode::Error::message("array of indefinite length"))?;
        if count > MAX_CERTIFICATES as u64 {
            return Err(decode::Error::message("too many certificates"));
        }
        let certificates = (0..count).map(|_| KeyCertificate::decode(d, ctx)).collect::<Result<_, _>>()?;
        Ok(Self { first_admin, recovery, certificates })
    }
}

/// The recovery key's word that, from a key epoch on, another admin key signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyCertificate {
    key_epoch: u32,
    admin: AdminKey,
    signature: Signature,
}

impl KeyCertificate {
    /// Signs one.
    pub fn issue(network: &NetworkId, key_epoch: u32, admin: AdminKey, recovery: &AdminSecret) -> Self {
        let signature = recovery.sign(DOMAIN, &Self::signed(network, key_epoch, &admin));
        Self { key_epoch, admin, signature }
    }

    /// From its text form, `flcert1...`. Whether it holds is checked when it is added to an [`Authority`].
    ///
    /// # Errors
    /// Mistyped, cut off, or something else.
    pub fn from_text(text: &str) -> Result<Self, AuthorityError> {
        let (kind, bytes) = crate::token::from_bech32m(text).ok_or(AuthorityError::Text)?;
        if kind != HRP {
            return Err(AuthorityError::Text);
        }
        wire::canonical(&bytes, MAX_CERTIFICATE).map_err(|_| AuthorityError::Text)
    }

    /// Its text form, for `network.toml`.
    pub fn to_text(&self) -> String {
        crate::token::to_bech32m(HRP, &wire::to_bytes(self)).expect("a certificate is far below the code's limit")
    }

    /// From which key epoch on.
    pub fn key_epoch(&self) -> u32 {
        self.key_epoch
    }

    /// Who signs from then on.
    pub fn admin(&self) -> &AdminKey {
        &self.admin
    }

    fn verify(&self, network: &NetworkId, recovery: &RecoveryKey) -> Result<(), AuthorityError> {
        recovery
            .verify(DOMAIN, &Self::signed(network, self.key_epoch, &self.admin), &self.signature)
            .map_err(|_| AuthorityError::BadCertificate)
    }

    fn signed(network: &NetworkId, key_epoch: u32, admin: &AdminKey) -> Vec<u8> {
        [&network.as_bytes()[..], &key_epoch.to_be_bytes(), admin.as_bytes()].concat()
    }
}

impl<C> Encode<C> for KeyCertificate {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, ctx: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(3)?.u32(self.key_epoch)?;
        self.admin.encode(e, ctx)?;
        self.signature.encode(e, ctx)
    }
}

impl<'b, C> Decode<'b, C> for KeyCertificate {
    fn decode(d: &mut Decoder<'b>, ctx: &mut C) -> Result<Self, decode::Error> {
        wire::tuple(d, 3)?;
        Ok(Self { key_epoch: d.u32()?, admin: AdminKey::decode(d, ctx)?, signature: Signature::decode(d, ctx)? })
    }
}

/// Why keys or certificates are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    /// A certificate is not signed by the recovery key.
    #[error("a certificate is not signed by the network's recovery key")]
    BadCertificate,
    /// Key epochs do not rise.
    #[error("the key epochs of the certificates do not rise")]
    EpochOrder,
    /// The secret given is another one.
    #[error("this is not the recovery key of the network: use the recovery.key made by `flatlan network create`")]
    NotRecoveryKey,
    /// The keys make another network id.
    #[error("it belongs to network {}, not to {}", got.full(), expected.full())]
    OtherNetwork {
        /// The network that was expected.
        expected: NetworkId,
        /// The network that the keys make.
        got: NetworkId,
    },
    /// The text is no certificate.
    #[error("not a valid flcert1... certificate: mistyped or cut off")]
    Text,
    /// The chain is full.
    #[error("the admin key was replaced {MAX_CERTIFICATES} times, which is as often as it can be")]
    TooMany,
}

const DOMAIN: &str = "key-certificate";
const HRP: &str = "flcert";
const MAX_CERTIFICATE: usize = 128;
/// How often the admin key can be replaced in a network's life.
pub const MAX_CERTIFICATES: usize = 64;
