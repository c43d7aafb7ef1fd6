//! The token: one word that lets a machine join.
//!
//! It carries the network's two public keys (which make the network id), the invite's secret, and the
//! one hub that may redeem it. Whoever holds it can take the member's place once, so it travels like a
//! password. As text it is Bech32m (BIP 350): a mistyped or cut-off token is refused before
//! anything is dialled.

use std::str::FromStr;

use bech32::{Bech32m, Hrp, primitives::decode::CheckedHrpstring};
use flatlan_types::{AdminKey, HostPort, HubKey, InviteSecret, Name, NetworkId, RecoveryKey, UnixTime};
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{
    authority::Authority,
    wire::{self, DecodeError},
};

/// What a machine needs to join. Holds a secret: no `Debug`, no `Clone`.
pub struct Token {
    /// The admin key that the network began with.
    pub first_admin: AdminKey,
    /// The recovery key.
    pub recovery: RecoveryKey,
    /// The network's name.
    pub network_name: Name,
    /// The member that it makes.
    pub member: Name,
    /// The invite's secret.
    pub secret: InviteSecret,
    /// Until when it may be redeemed.
    pub expires: UnixTime,
    /// The hub that may redeem it.
    pub redeemer: HubKey,
    /// That hub's name.
    pub redeemer_name: Name,
    /// Where that hub takes streams.
    pub endpoints: Vec<HostPort>,
}

impl Token {
    /// The network that it belongs to.
    pub fn network(&self) -> NetworkId {
        Authority::new(self.first_admin, self.recovery).network()
    }

    /// Its text form, which `FromStr` reads.
    ///
    /// # Errors
    /// The endpoints are too long for a token.
    pub fn to_text(&self) -> Result<Zeroizing<String>, TokenError> {
        let bytes = Zeroizing::new(wire::to_bytes(self));
        to_bech32m(HRP, &bytes).map(Zeroizing::new).ok_or(TokenError::TooLong)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    /// Reads a token. White space is dropped: a token copied from a wrapped line is whole.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = Zeroizing::new(text.chars().filter(|c| !c.is_whitespace()).collect::<String>());
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        let Some((kind, mut bytes)) = from_bech32m(&text) else {
            return Err(TokenError::Checksum { length: text.chars().count() });
        };
        if kind != HRP {
            return Err(TokenError::Kind);
        }
        let token = wire::versioned(&bytes, MAX_TOKEN, FORMAT);
        bytes.zeroize();
        Ok(token?)
    }
}

/// `[format, admin key, recovery key, network's name, member's name, invite secret, expires, redeemer, its name, [endpoint]]`
impl Encode<()> for Token {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, ctx: &mut ()) -> Result<(), encode::Error<W::Error>> {
        e.array(10)?.u64(FORMAT)?;
        self.first_admin.encode(e, ctx)?;
        self.recovery.encode(e, ctx)?;
        self.network_name.encode(e, ctx)?;
        self.member.encode(e, ctx)?;
        e.bytes(self.secret.to_bytes().as_ref())?;
        self.expires.encode(e, ctx)?;
        self.redeemer.encode(e, ctx)?;
        self.redeemer_name.encode(e, ctx)?;
        self.endpoints.encode(e, ctx)
    }
}

impl<'b> Decode<'b, ()> for Token {
    fn decode(d: &mut Decoder<'b>, ctx: &mut ()) -> Result<Self, decode::Error> {
        wire::tuple(d, 10)?;
        wire::format(d, FORMAT)?;
        Ok(Self {
            first_admin: Decode::decode(d, ctx)?,
            recovery: Decode::decode(d, ctx)?,
            network_name: Decode::decode(d, ctx)?,
            member: Decode::decode(d, ctx)?,
            secret: {
                let bytes = d.bytes()?.try_into().map_err(|_| decode::Error::message("a secret has 32 bytes"))?;
                InviteSecret::from_bytes(bytes)
            },
            expires: Decode::decode(d, ctx)?,
            redeemer: Decode::decode(d, ctx)?,
            redeemer_name: Decode::decode(d, ctx)?,
            endpoints: Decode::decode(d, ctx)?,
        })
    }
}

/// `bytes` as Bech32m text; `None` beyond the code's limit of 1023 characters.
pub(crate) fn to_bech32m(hrp: &str, bytes: &[u8]) -> Option<String> {
    bech32::encode::<Bech32m>(Hrp::parse(hrp).ok()?, bytes).ok()
}

/// The kind and the bytes of Bech32m text.
pub(crate) fn from_bech32m(text: &str) -> Option<(String, Vec<u8>)> {
    let checked = CheckedHrpstring::new::<Bech32m>(text).ok()?;
    Some((checked.hrp().to_lowercase(), checked.byte_iter().collect()))
}

/// Why a text is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Mistyped or cut off.
    #[error("the token is mistyped or cut off ({length} characters): copy all of it, one word that begins with {HRP}1")]
    Checksum {
        /// Characters given.
        length: usize,
    },
    /// Whole, but not to be read.
    #[error("the token cannot be read")]
    Decode(#[from] DecodeError),
    /// Nothing there.
    #[error("the token is empty: paste what `flatlan invite NAME` printed")]
    Empty,
    /// Something else.
    #[error("this is no token: paste what `flatlan invite NAME` printed, one word that begins with {HRP}1")]
    Kind,
    /// Does not fit.
    #[error("the hub's addresses are too long for a token: use a shorter DNS name")]
    TooLong,
}

const HRP: &str = "fltoken";
const FORMAT: u64 = 1;
const MAX_TOKEN: usize = 700;
