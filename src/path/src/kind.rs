//! What a path is made of.

use std::fmt;

use flatlan_types::{Endpoint, HubSlot};

/// One way to a peer, as its sender chooses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathKind {
    /// Straight to an endpoint of the peer.
    Direct(Endpoint),
    /// Through a hub; what lies behind that hub is the hubs' affair.
    Relay {
        /// The first hub.
        hub: HubSlot,
        /// How the datagram gets to it.
        leg: Leg,
    },
}

impl PathKind {
    /// The first hub, where there is one.
    pub const fn hub(self) -> Option<HubSlot> {
        match self {
            Self::Direct(_) => None,
            Self::Relay { hub, leg: _ } => Some(hub),
        }
    }

    /// Whether nothing of ours lies between.
    pub const fn is_direct(self) -> bool {
        matches!(self, Self::Direct(_))
    }
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct(endpoint) => write!(f, "direct {endpoint}"),
            Self::Relay { hub, leg } => write!(f, "hub {} over {leg}", hub.0),
        }
    }
}

/// How datagrams travel between a node and a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leg {
    /// As UDP datagrams, from a bound endpoint.
    Udp,
    /// Packed into a data stream over TLS.
    Tls,
}

impl fmt::Display for Leg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Udp => "UDP",
            Self::Tls => "TLS",
        })
    }
}

/// A path's number inside one [`PeerPaths`](crate::PeerPaths): stable while the path lives, not used
/// again soon after. It travels in probes, so that a reply by any path can speak about any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId(pub u16);
