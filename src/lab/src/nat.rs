//! What a site's router does to packets: the kinds of NAT and firewall found in front of real sites, as nftables rules.
//!
//! IPv4 is translated, IPv6 is filtered by state only, as home and office routers do. The kinds differ in what
//! they allow: see [`Nat`]. Everything that a router drops is dropped in silence.

use std::fmt::{self, Display, Write as _};
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The kind of router in front of a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Nat {
    /// Keeps the source port, answers only come from where something was sent (port-restricted cone).
    Cone,
    /// Keeps the source port and lets anybody send to a port once it is mapped: all of UDP goes to the gateway (full
    /// cone).
    FullCone,
    /// Routes without translating: the site's addresses are public and open.
    None,
    /// Nothing crosses. Only a proxy on the router gets out.
    ProxyOnly,
    /// Another random source port for every destination.
    Symmetric,
    /// TCP to port 443 crosses and nothing else, not even ICMP.
    Tcp443Only,
    /// As [`Nat::Cone`], but no UDP crosses.
    UdpBlocked,
}

impl Nat {
    /// Every kind.
    pub const ALL: [Self; 7] =
        [Self::Cone, Self::FullCone, Self::None, Self::ProxyOnly, Self::Symmetric, Self::Tcp443Only, Self::UdpBlocked];

    /// Whether the core of the internet has a route to the addresses behind.
    #[must_use]
    pub fn is_routed(self) -> bool {
        self == Self::None
    }

    /// The word for it on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Cone => "cone",
            Self::FullCone => "full-cone",
            Self::None => "none",
            Self::ProxyOnly => "proxy-only",
            Self::Symmetric => "symmetric",
            Self::Tcp443Only => "tcp443-only",
            Self::UdpBlocked => "udp-blocked",
        }
    }

    /// The rules of a router whose outside is `wan`, and whose gateway inside has the address `gateway`.
    pub(crate) fn rules(self, gateway: Ipv4Addr) -> String {
        let mut rules = String::from("table inet site {\n chain forward {\n  type filter hook forward priority 0\n");
        match self {
            Self::None => {}
            Self::Cone | Self::Symmetric => rules.push_str(STATEFUL),
            Self::FullCone => {
                rules.push_str("  ct status dnat accept\n");
                rules.push_str(STATEFUL);
            }
            Self::ProxyOnly => rules.push_str("  drop\n"),
            Self::Tcp443Only => {
                rules.push_str("  oifname \"wan\" tcp dport 443 accept\n");
                rules.push_str("  iifname \"wan\" tcp sport 443 ct state established,related accept\n  drop\n");
            }
            Self::UdpBlocked => {
                rules.push_str("  meta l4proto udp drop\n");
                rules.push_str(STATEFUL);
            }
        }
        rules.push_str(" }\n");
        let masquerade = match self {
            Self::None => None,
            Self::Cone | Self::FullCone | Self::ProxyOnly | Self::Tcp443Only | Self::UdpBlocked => Some("masquerade"),
            Self::Symmetric => Some("masquerade fully-random"),
        };
        if let Some(masquerade) = masquerade {
            // A packet nobody asked for must leave no trace: an entry would take the port away from the gateway's own
            // packet.
            rules.push_str(" chain input {\n  type filter hook input priority 0\n");
            rules.push_str("  iifname \"wan\" ct state new meta l4proto { tcp, udp } drop\n }\n");
            rules.push_str(" chain leave {\n  type nat hook postrouting priority 100\n");
            let _ = writeln!(rules, "  oifname \"wan\" meta nfproto ipv4 {masquerade}\n }}");
        }
        if self == Self::FullCone {
            rules.push_str(" chain arrive {\n  type nat hook prerouting priority -100\n");
            let _ = writeln!(rules, "  iifname \"wan\" udp dport 1024-65535 dnat ip to {gateway}\n }}");
        }
        rules.push_str("}\n");
        rules
    }
}

impl Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Nat {
    type Err = ParseNatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|nat| nat.word() == text).ok_or(ParseNatError)
    }
}

/// Not a kind of NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a kind of NAT: cone, full-cone, none, proxy-only, symmetric, tcp443-only or udp-blocked")]
pub struct ParseNatError;

/// From outside only answers come in.
const STATEFUL: &str = "  iifname \"wan\" ct state new,invalid drop\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read_back_from_its_word() {
        for nat in Nat::ALL {
            assert_eq!(nat.to_string().parse(), Ok(nat));
        }
        assert_eq!("porous".parse::<Nat>(), Err(ParseNatError));
    }

    #[test]
    fn only_the_open_router_leaves_addresses_alone() {
        for nat in Nat::ALL {
            let rules = nat.rules(Ipv4Addr::new(192, 168, 1, 2));
            assert_eq!(rules.contains("masquerade"), nat != Nat::None, "{nat}: {rules}");
        }
    }
}
