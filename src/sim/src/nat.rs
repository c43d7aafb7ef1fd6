//! What stands between a node and the underlay.
//!
//! Words of RFC 4787: a mapping is what an internal endpoint looks like from outside; a filter says whose datagrams
//! come in by it. Only what goes out keeps either alive.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use flatlan_types::Endpoint;

use crate::party::{Party, UDP_PORT};

/// How a node is attached to the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nat {
    /// A public address, and no filter.
    Open,
    /// One mapping for all; in comes what comes from an endpoint that was sent to.
    PortRestricted,
    /// A mapping for each endpoint that is sent to, and in comes what comes from there.
    Symmetric,
    /// Streams outward, and no datagram at all.
    NoUdp,
}

impl Nat {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Open, Self::PortRestricted, Self::Symmetric, Self::NoUdp];

    /// Whether two nodes behind such ones find a direct way, once each knows what hubs see of the other.
    pub fn meets(self, other: Self) -> bool {
        match (self, other) {
            (Self::NoUdp, _) | (_, Self::NoUdp) => false,
            (Self::Symmetric, Self::Symmetric | Self::PortRestricted) => false,
            (Self::PortRestricted, Self::Symmetric) => false,
            (Self::Open, _) | (_, Self::Open) => true,
            (Self::PortRestricted, Self::PortRestricted) => true,
        }
    }
}

/// The NAT of one node.
pub(crate) struct Gate {
    pub(crate) nat: Nat,
    party: Party,
    mappings: BTreeMap<u16, Mapping>,
    next_port: u16,
}

struct Mapping {
    /// The only endpoint that it is for.
    only: Option<Endpoint>,
    last: Instant,
    sent_to: BTreeMap<Endpoint, Instant>,
}

impl Gate {
    pub(crate) fn new(nat: Nat, party: Party) -> Self {
        Self { nat, party, mappings: BTreeMap::new(), next_port: 20_000 }
    }

    /// The node's own address, with its port.
    pub(crate) fn host(&self) -> Endpoint {
        match (self.nat, self.party) {
            (Nat::PortRestricted | Nat::Symmetric | Nat::NoUdp, Party::Node(n)) => {
                Endpoint::new((Ipv4Addr::new(172, 16, (n / 250) as u8, (n % 250) as u8 + 1), UDP_PORT).into())
            }
            (Nat::Open | Nat::PortRestricted | Nat::Symmetric | Nat::NoUdp, party) => party.udp(),
        }
    }

    /// A datagram goes out: where it seems to come from.
    pub(crate) fn outbound(&mut self, to: Endpoint, now: Instant) -> Option<Endpoint> {
        let only = match self.nat {
            Nat::Open => return Some(self.party.udp()),
            Nat::NoUdp => return None,
            Nat::PortRestricted => None,
            Nat::Symmetric => Some(to),
        };
        let live = |mapping: &Mapping| mapping.only == only && now.duration_since(mapping.last) < LIFE;
        let found = self.mappings.iter().find(|(_, mapping)| live(mapping)).map(|(port, _)| *port);
        let port = found.unwrap_or_else(|| {
            self.mappings.retain(|_, mapping| now.duration_since(mapping.last) < LIFE);
            self.next_port = self.next_port.checked_add(1).unwrap_or(20_000);
            self.next_port
        });
        let mapping = self.mappings.entry(port).or_insert(Mapping { only, last: now, sent_to: BTreeMap::new() });
        mapping.last = now;
        mapping.sent_to.insert(to, now);
        Some(Endpoint::new((self.party.ip(), port).into()))
    }

    /// Whether a datagram comes in.
    pub(crate) fn admits(&self, to: Endpoint, from: Endpoint, now: Instant) -> bool {
        let port = to.socket_addr().port();
        match self.nat {
            Nat::Open => port == UDP_PORT,
            Nat::NoUdp => false,
            Nat::PortRestricted | Nat::Symmetric => {
                let mapping = self.mappings.get(&port).filter(|mapping| now.duration_since(mapping.last) < LIFE);
                mapping.and_then(|m| m.sent_to.get(&from)).is_some_and(|at| now.duration_since(*at) < LIFE)
            }
        }
    }

    /// It starts again: every mapping is gone, and the next ones have other ports.
    pub(crate) fn forget(&mut self) {
        self.mappings.clear();
    }
}

/// A mapping that is not used is forgotten after this: less than RFC 4787 allows, as many do.
const LIFE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(nat: Nat) -> (Gate, Instant, [Endpoint; 2]) {
        (Gate::new(nat, Party::Node(0)), Instant::now(), [Party::Hub(0).udp(), Party::Hub(1).udp()])
    }

    #[test]
    fn behind_a_port_restricted_nat_all_see_the_same_port_and_only_who_was_sent_to_comes_in() {
        let (mut gate, now, [a, b]) = gate(Nat::PortRestricted);
        let seen = gate.outbound(a, now).unwrap();
        assert!(gate.admits(seen, a, now) && !gate.admits(seen, b, now));
        assert_eq!(gate.outbound(b, now), Some(seen));
        assert!(gate.admits(seen, b, now));
        assert!(!gate.admits(seen, b, now + LIFE));
    }

    #[test]
    fn behind_a_symmetric_nat_each_sees_another_port() {
        let (mut gate, now, [a, b]) = gate(Nat::Symmetric);
        let (seen_by_a, seen_by_b) = (gate.outbound(a, now).unwrap(), gate.outbound(b, now).unwrap());
        assert_ne!(seen_by_a, seen_by_b);
        assert!(gate.admits(seen_by_a, a, now) && !gate.admits(seen_by_a, b, now));
    }

    #[test]
    fn a_nat_that_starts_again_gives_another_port() {
        let (mut gate, now, [a, _]) = gate(Nat::PortRestricted);
        let before = gate.outbound(a, now);
        gate.forget();
        assert_ne!(gate.outbound(a, now), before);
    }

    #[test]
    fn parties_are_found_by_their_addresses() {
        for party in [Party::Hub(0), Party::Hub(49), Party::Node(0), Party::Node(9_999), Party::Outside] {
            assert_eq!(Party::at(party.ip()), Some(party));
        }
    }
}
