//! Who is on the underlay, and at which addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use flatlan_types::{Endpoint, HostPort};

/// One machine of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A hub, by its number.
    Hub(usize),
    /// A node, by its number.
    Node(usize),
    /// Somewhere else: the admin's machine, machines that join, attackers.
    Outside,
}

impl Party {
    /// Its public address.
    pub fn ip(self) -> IpAddr {
        let (network, n) = match self {
            Self::Hub(n) => (203, n),
            Self::Node(n) => (20, n),
            Self::Outside => (45, 0),
        };
        Ipv4Addr::new(network, 1, (n / 250) as u8, (n % 250) as u8 + 1).into()
    }

    /// Whose public address this is.
    pub fn at(ip: IpAddr) -> Option<Self> {
        let IpAddr::V4(ip) = ip else { return None };
        let [network, 1, high, low] = ip.octets() else { return None };
        let n = usize::from(high) * 250 + usize::from(low.checked_sub(1)?);
        match network {
            203 => Some(Self::Hub(n)),
            20 => Some(Self::Node(n)),
            45 => Some(Self::Outside),
            _ => None,
        }
    }

    /// Where a hub receives datagrams, and a node without NAT.
    pub fn udp(self) -> Endpoint {
        Endpoint::new((self.ip(), UDP_PORT).into())
    }

    /// Where a hub takes streams.
    pub fn tls(self) -> HostPort {
        Endpoint::new((self.ip(), TLS_PORT).into()).into()
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub(n) => write!(f, "h{n}"),
            Self::Node(n) => write!(f, "n{n}"),
            Self::Outside => f.write_str("outside"),
        }
    }
}

/// The port of every node and hub.
pub(crate) const UDP_PORT: u16 = 51_820;
/// The port of every hub's streams.
const TLS_PORT: u16 = 443;
