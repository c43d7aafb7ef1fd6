//! Addresses inside the overlay, and the prefixes that members own.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use ipnetwork::IpNetwork;
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{NetworkId, SessionKey};

/// An address inside the overlay. Never a place to send a datagram.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VirtualIp(IpAddr);

impl VirtualIp {
    /// A virtual IP.
    pub fn new(ip: IpAddr) -> Self {
        Self(ip.to_canonical())
    }

    /// The IPv6 address that belongs to a key: `fd`, 40 bits of H(network id), 80 bits of
    /// H(network id, X25519 key) (a unique local address, RFC 4193).
    pub fn of_key(network: &NetworkId, key: &SessionKey) -> Self {
        let of_network = |domain: &[u8]| Sha256::new().chain_update(domain).chain_update(network.as_bytes());
        let site = of_network(b"flatlan vip site v1").finalize();
        let host = of_network(b"flatlan vip host v1").chain_update(key.as_bytes()).finalize();
        let mut octets = [0; 16];
        let bytes = std::iter::once(&0xfd).chain(site.iter().take(5)).chain(host.iter().take(10));
        for (octet, byte) in octets.iter_mut().zip(bytes) {
            *octet = *byte;
        }
        Self(Ipv6Addr::from(octets).into())
    }

    /// The address.
    pub fn ip(self) -> IpAddr {
        self.0
    }
}

impl fmt::Display for VirtualIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for VirtualIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<C> Encode<C> for VirtualIp {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        encode_ip(self.0, e)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for VirtualIp {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        Ok(Self::new(decode_ip(d)?))
    }
}

/// A prefix of the overlay, host bits zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(IpNetwork);

impl Prefix {
    /// The prefix of `length` bits that holds `ip`; host bits are cleared. `None` where the length
    /// exceeds the address's.
    pub fn of(ip: IpAddr, length: u8) -> Option<Self> {
        let net = IpNetwork::new(ip, length).ok()?;
        Some(Self(IpNetwork::new(net.network(), length).ok()?))
    }

    /// The /32 or /128 of one address.
    pub fn host(ip: VirtualIp) -> Self {
        Self(IpNetwork::from(ip.0))
    }

    /// The first address.
    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }

    /// The length, in bits.
    pub fn length(self) -> u8 {
        self.0.prefix()
    }

    /// Whether it holds a single address.
    pub fn is_host(self) -> bool {
        self.length() == if self.ip().is_ipv4() { 32 } else { 128 }
    }

    /// Whether `ip` is of this prefix.
    pub fn contains(self, ip: IpAddr) -> bool {
        self.0.contains(ip)
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.ip()) || other.contains(self.ip())
    }

    /// Whether all its addresses are of `other`, too.
    pub fn lies_in(self, other: Self) -> bool {
        other.length() <= self.length() && other.contains(self.ip())
    }

    /// The same, as the `ipnetwork` crate has it.
    pub fn network(self) -> IpNetwork {
        self.0
    }
}

impl FromStr for Prefix {
    type Err = ParsePrefixError;

    fn from_str(s: &str) -> Result<Self, ParsePrefixError> {
        let net: IpNetwork = s.parse().map_err(|_| ParsePrefixError::Form)?;
        if net.ip() != net.network() {
            return Err(ParsePrefixError::HostBits { network: net.network() });
        }
        Ok(Self(net))
    }
}

impl TryFrom<String> for Prefix {
    type Error = ParsePrefixError;

    fn try_from(s: String) -> Result<Self, ParsePrefixError> {
        s.parse()
    }
}

impl From<Prefix> for String {
    fn from(p: Prefix) -> Self {
        p.to_string()
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl<C> Encode<C> for Prefix {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?;
        encode_ip(self.ip(), e)?.u8(self.length())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Prefix {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        if d.array()? != Some(2) {
            return Err(decode::Error::message("a prefix is [address, length]"));
        }
        let ip = decode_ip(d)?;
        let prefix = Self::of(ip, d.u8()?).ok_or_else(|| decode::Error::message("prefix length out of range"))?;
        if prefix.ip() != ip {
            return Err(decode::Error::message("host bits of a prefix are set"));
        }
        Ok(prefix)
    }
}

/// Why a text is no prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParsePrefixError {
    /// Not `ADDRESS/LENGTH`.
    #[error("a prefix is ADDRESS/LENGTH, such as 10.1.0.0/16")]
    Form,
    /// The address has bits set beyond the length.
    #[error("the prefix has host bits set; its network address is {network}")]
    HostBits {
        /// What was probably meant.
        network: IpAddr,
    },
}

fn encode_ip<W: encode::Write>(ip: IpAddr, e: &mut Encoder<W>) -> Result<&mut Encoder<W>, encode::Error<W::Error>> {
    match ip {
        IpAddr::V4(v4) => e.bytes(&v4.octets()),
        IpAddr::V6(v6) => e.bytes(&v6.octets()),
    }
}

fn decode_ip(d: &mut Decoder<'_>) -> Result<IpAddr, decode::Error> {
    let octets = d.bytes()?;
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        Ok(v4.into())
    } else if let Ok(v6) = <[u8; 16]>::try_from(octets) {
        let ip = Ipv6Addr::from(v6);
        if ip.to_ipv4_mapped().is_some() {
            return Err(decode::Error::message("IPv4-mapped address in the overlay"));
        }
        Ok(ip.into())
    } else {
        Err(decode::Error::message("an address has 4 or 16 bytes"))
    }
}
