//! Which underlay addresses a peer may be probed at, and which of our own are worth telling.
//!
//! A member is trusted to be a member and no more: what it offers could make this node send probes to
//! anybody. So nothing is probed that no candidate can be: loopback, link-local, multicast, port 0, a
//! hub, or an address of the overlay itself (a tunnel through the tunnel). The datapath limits how often.

use std::net::IpAddr;

use flatlan_types::Endpoint;

/// The most candidates of one node.
pub const MAX_CANDIDATES: usize = 8;

/// What no candidate can be.
pub(crate) trait Forbidden {
    /// Whether the address belongs to the overlay, from this node's point of view.
    fn is_overlay(&self, ip: IpAddr) -> bool;
    /// Whether a hub is there.
    fn is_hub(&self, endpoint: Endpoint) -> bool;
}

/// What may be probed of what was offered: each once, in the order given, at most [`MAX_CANDIDATES`].
pub(crate) fn admissible(offered: impl IntoIterator<Item = Endpoint>, forbidden: &impl Forbidden) -> Vec<Endpoint> {
    let mut kept: Vec<Endpoint> = Vec::with_capacity(MAX_CANDIDATES);
    for endpoint in offered {
        if kept.len() == MAX_CANDIDATES {
            break;
        }
        let address = endpoint.socket_addr();
        let allowed = address.port() != 0
            && is_unicast(address.ip())
            && !forbidden.is_overlay(address.ip())
            && !forbidden.is_hub(endpoint)
            && !kept.contains(&endpoint);
        if allowed {
            kept.push(endpoint);
        }
    }
    kept
}

/// Whether a datagram to this address can leave the machine for one other.
fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            !(v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets().first() == Some(&0)
                || v4.octets().first() >= Some(&240))
        }
        IpAddr::V6(v6) => !(v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rules;

    impl Forbidden for Rules {
        fn is_overlay(&self, ip: IpAddr) -> bool {
            matches!(ip, IpAddr::V4(v4) if v4.octets()[..2] == [10, 77])
        }

        fn is_hub(&self, endpoint: Endpoint) -> bool {
            endpoint == at("198.51.100.1:51820")
        }
    }

    fn at(s: &str) -> Endpoint {
        Endpoint::new(s.parse().unwrap())
    }

    #[test]
    fn what_no_candidate_can_be_is_left_out() {
        let bad = [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "0.0.0.0:1",
            "0.1.2.3:1",
            "169.254.169.254:80",
            "224.0.0.1:1",
            "255.255.255.255:1",
            "240.0.0.1:1",
            "192.0.2.1:0",
            "10.77.0.9:51820",
            "198.51.100.1:51820",
            "[::1]:1",
            "[::]:1",
            "[fe80::1]:1",
            "[ff02::1]:1",
            "[::ffff:127.0.0.1]:1",
            "[::ffff:10.77.0.1]:1",
        ];
        assert_eq!(admissible(bad.map(at), &Rules), []);
        let good = ["192.0.2.1:51820", "10.1.0.1:4000", "[2001:db8::1]:51820", "198.51.100.1:51821"].map(at);
        assert_eq!(admissible(good, &Rules), good);
    }

    #[test]
    fn at_most_eight_and_each_once() {
        let offered = (1..100).flat_map(|n| [Endpoint::new(([192, 0, 2, 1], n).into()); 2]);
        let kept = admissible(offered, &Rules);
        assert_eq!(kept.len(), MAX_CANDIDATES);
        assert_eq!(kept.last(), Some(&at("192.0.2.1:8")));
    }
}
