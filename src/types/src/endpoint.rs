//! Places in the underlay: socket addresses, and the texts that resolve to them.

use std::{fmt, net::SocketAddr, str::FromStr};

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use serde::{Deserialize, Serialize};

/// An address outside the overlay, where a datagram really goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Endpoint(SocketAddr);

impl Endpoint {
    /// An endpoint; an IPv4-mapped IPv6 address becomes the IPv4 address that it means, and scope and
    /// flow label are dropped, so that equal places compare equal.
    pub fn new(address: SocketAddr) -> Self {
        Self(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// The socket address.
    pub fn socket_addr(self) -> SocketAddr {
        self.0
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::new(address)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<C> Encode<C> for Endpoint {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?;
        match self.0 {
            SocketAddr::V4(v4) => e.bytes(&v4.ip().octets())?,
            SocketAddr::V6(v6) => e.bytes(&v6.ip().octets())?,
        };
        e.u16(self.0.port())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Endpoint {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        if d.array()? != Some(2) {
            return Err(decode::Error::message("an endpoint is [address, port]"));
        }
        let octets = d.bytes()?;
        let ip = if let Ok(v4) = <[u8; 4]>::try_from(octets) {
            v4.into()
        } else if let Ok(v6) = <[u8; 16]>::try_from(octets) {
            v6.into()
        } else {
            return Err(decode::Error::message("an address has 4 or 16 bytes"));
        };
        Ok(Self::new(SocketAddr::new(ip, d.u16()?)))
    }
}

/// `HOST:PORT` as an operator writes it: the host is an IPv4 address, an IPv6 address in brackets, or
/// a DNS name. All of the name's addresses are tried; it is resolved again on failure.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// The host without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The endpoint, where the host is a literal address.
    pub fn literal(&self) -> Option<Endpoint> {
        let ip = self.host.parse().ok()?;
        Some(Endpoint::new(SocketAddr::new(ip, self.port)))
    }
}

impl From<Endpoint> for HostPort {
    fn from(endpoint: Endpoint) -> Self {
        Self { host: endpoint.0.ip().to_string(), port: endpoint.0.port() }
    }
}

impl FromStr for HostPort {
    type Err = ParseHostPortError;

    fn from_str(s: &str) -> Result<Self, ParseHostPortError> {
        let (host, port) = s.rsplit_once(':').ok_or(ParseHostPortError::NoPort)?;
        let port = port.parse().map_err(|_| ParseHostPortError::NoPort)?;
        if port == 0 {
            return Err(ParseHostPortError::NoPort);
        }
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => v6,
            Some(_) => return Err(ParseHostPortError::Host),
            None => host,
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
        let v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
        if host.is_empty() || host.len() > 253 || !(v6 || host.chars().all(legal)) {
            return Err(ParseHostPortError::Host);
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl TryFrom<String> for HostPort {
    type Error = ParseHostPortError;

    fn try_from(s: String) -> Result<Self, ParseHostPortError> {
        s.parse()
    }
}

impl From<HostPort> for String {
    fn from(h: HostPort) -> Self {
        h.to_string()
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<C> Encode<C> for HostPort {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.str(&self.to_string())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for HostPort {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        d.str()?.parse().map_err(decode::Error::custom)
    }
}

/// Why a text is no `HOST:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseHostPortError {
    /// The host is no address and no DNS name.
    #[error("the host must be a DNS name, an IPv4 address, or an IPv6 address in brackets")]
    Host,
    /// The port is missing, zero, or no number.
    #[error("HOST:PORT needs a port from 1 to 65535")]
    NoPort,
}
