//! What a lab consists of, and which addresses its parts get. Pure: nothing is made here.
//!
//! ```text
//!                     admin
//!                       |              198.18.N.0/24, 2001:db8:N::/64: one network per cable, .1 is the core
//!   hub h1 ----------- inet ----------- hub h2
//!                     /    \
//!             a-nat (router)  b-nat    192.168.N.0/24, fd77:N::/64, with IPv6 also 2001:db8:1N::/64: router .1
//!             /   |    \
//!     gateway a  a-1   a-2             gateway .2 (runs flatlan), hosts from .11 (run nothing)
//! ```
//!
//! A site beside another one (`SiteSpec::beside`) has an uplink of its own, and its gateway one more port, `lan0`, on the
//! other's LAN: a second gateway, from .3.
//!
//! A second uplink is a second router `a-nat2` on a cable of its own to the gateway, with a higher metric. Hosts reach
//! the overlay and the other sites' prefixes through their gateway, the rest through the router.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::nat::Nat;

/// Which protocols a part of the internet speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Underlay {
    /// Both.
    Dual,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl Underlay {
    pub(crate) fn has_v6(self) -> bool {
        self != Self::V4
    }
}

/// A hub to be.
#[derive(Debug, Clone)]
pub struct HubSpec {
    pub(crate) name: String,
    pub(crate) by_name: bool,
    pub(crate) underlay: Option<Underlay>,
    pub(crate) region: Option<String>,
}

impl HubSpec {
    /// A hub with a public address.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), by_name: false, underlay: None, region: None }
    }

    /// Publishes its endpoint as a DNS name. A hub with more than one address always does.
    #[must_use]
    pub fn by_name(mut self) -> Self {
        self.by_name = true;
        self
    }

    /// Another underlay than the lab's.
    #[must_use]
    pub fn underlay(mut self, underlay: Underlay) -> Self {
        self.underlay = Some(underlay);
        self
    }

    /// Its region in the roster.
    #[must_use]
    pub fn region(mut self, region: &str) -> Self {
        self.region = Some(region.to_owned());
        self
    }
}

/// A site to be.
#[derive(Debug, Clone)]
pub struct SiteSpec {
    pub(crate) name: String,
    pub(crate) uplinks: Vec<Nat>,
    pub(crate) hosts: u8,
    pub(crate) underlay: Option<Underlay>,
    pub(crate) proxy: Option<ProxySpec>,
    pub(crate) beside: Option<String>,
}

/// An HTTP CONNECT proxy on a site's router.
#[derive(Debug, Clone, Default)]
pub struct ProxySpec {
    /// User and password that it asks for.
    pub credentials: Option<(String, String)>,
}

impl SiteSpec {
    /// A site behind a cone NAT, without hosts.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), uplinks: vec![Nat::Cone], hosts: 0, underlay: None, proxy: None, beside: None }
    }

    /// The kind of its router.
    #[must_use]
    pub fn nat(mut self, nat: Nat) -> Self {
        self.uplinks = vec![nat];
        self
    }

    /// One more uplink, used while those before it are down.
    #[must_use]
    pub fn uplink(mut self, nat: Nat) -> Self {
        self.uplinks.push(nat);
        self
    }

    /// So many hosts on its LAN that run no flatlan.
    #[must_use]
    pub fn hosts(mut self, count: u8) -> Self {
        self.hosts = count;
        self
    }

    /// Its gateway stands on the LAN of that site too, which is added before it, and carries its prefixes.
    #[must_use]
    pub fn beside(mut self, site: &str) -> Self {
        self.beside = Some(site.to_owned());
        self
    }

    /// Another underlay than the lab's.
    #[must_use]
    pub fn underlay(mut self, underlay: Underlay) -> Self {
        self.underlay = Some(underlay);
        self
    }

    /// A proxy on its router, which its node is told to use.
    #[must_use]
    pub fn proxy(mut self, proxy: ProxySpec) -> Self {
        self.proxy = Some(proxy);
        self
    }
}

/// A cable to the core.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cable {
    number: u8,
    underlay: Underlay,
}

impl Cable {
    pub(crate) fn new(number: u8, underlay: Underlay) -> Self {
        Self { number, underlay }
    }

    /// The addresses of the core's end.
    pub(crate) fn core(self) -> Vec<IpNetwork> {
        self.end(1)
    }

    /// The addresses of the other end.
    pub(crate) fn party(self) -> Vec<IpNetwork> {
        self.end(2)
    }

    fn end(self, host: u8) -> Vec<IpNetwork> {
        let v4 = v4(Ipv4Addr::new(198, 18, self.number, host), 24);
        let v6 = v6(Ipv6Addr::new(0x2001, 0xdb8, self.number.into(), 0, 0, 0, 0, host.into()), 64);
        of_underlay(self.underlay, v4, v6)
    }
}

/// A network behind a site's router.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lan {
    number: u8,
    underlay: Underlay,
}

impl Lan {
    pub(crate) fn new(number: u8, underlay: Underlay) -> Self {
        Self { number, underlay }
    }

    /// The private networks that the site may publish: IPv4 and IPv6, whatever the underlay speaks.
    pub(crate) fn prefixes(self) -> [IpNetwork; 2] {
        [self.v4(0), self.local_v6(0)]
    }

    /// The network that has to be routed to, where the underlay speaks IPv6.
    pub(crate) fn public_v6(self) -> Option<IpNetwork> {
        self.underlay.has_v6().then(|| self.global_v6(0))
    }

    /// All addresses of one machine.
    pub(crate) fn addresses(self, host: u8) -> Vec<IpNetwork> {
        let mut all = vec![self.v4(host), self.local_v6(host)];
        if self.underlay.has_v6() {
            all.push(self.global_v6(host));
        }
        all
    }

    /// Where one machine sends what leaves the site: the router's addresses, by family of the underlay.
    pub(crate) fn way_out(self) -> Vec<IpAddr> {
        of_underlay(self.underlay, self.v4(1), self.global_v6(1)).into_iter().map(|net| net.ip()).collect()
    }

    /// The private addresses of one machine.
    pub(crate) fn private(self, host: u8) -> [IpAddr; 2] {
        [self.v4(host).ip(), self.local_v6(host).ip()]
    }

    pub(crate) fn ipv4(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, self.number, host)
    }

    fn v4(self, host: u8) -> IpNetwork {
        v4(self.ipv4(host), 24)
    }

    fn local_v6(self, host: u8) -> IpNetwork {
        v6(Ipv6Addr::new(0xfd77, self.number.into(), 0, 0, 0, 0, 0, host.into()), 64)
    }

    fn global_v6(self, host: u8) -> IpNetwork {
        v6(Ipv6Addr::new(0x2001, 0xdb8, 0x1000 + u16::from(self.number), 0, 0, 0, 0, host.into()), 64)
    }
}

/// The router's host number on a LAN.
pub(crate) const ROUTER: u8 = 1;
/// The gateway's host number on a LAN.
pub(crate) const GATEWAY: u8 = 2;
/// The host number of the first gateway beside that one.
pub(crate) const GATEWAY_BESIDE: u8 = 3;
/// The first LAN host's number.
pub(crate) const FIRST_HOST: u8 = 11;
/// Second uplinks have LAN numbers from here, so that they clash with no site's.
pub(crate) const UPLINK_LANS: u8 = 100;

/// Everywhere.
pub(crate) fn default_route(address: IpAddr) -> IpNetwork {
    match address {
        IpAddr::V4(_) => v4(Ipv4Addr::UNSPECIFIED, 0),
        IpAddr::V6(_) => v6(Ipv6Addr::UNSPECIFIED, 0),
    }
}

/// Every overlay's IPv6 range lies in here (RFC 4193).
pub(crate) fn unique_local() -> IpNetwork {
    v6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 8)
}

fn of_underlay(underlay: Underlay, v4: IpNetwork, v6: IpNetwork) -> Vec<IpNetwork> {
    match underlay {
        Underlay::Dual => vec![v4, v6],
        Underlay::V4 => vec![v4],
        Underlay::V6 => vec![v6],
    }
}

fn v4(address: Ipv4Addr, length: u8) -> IpNetwork {
    Ipv4Network::new(address, length).expect("lengths here are constants").into()
}

fn v6(address: Ipv6Addr, length: u8) -> IpNetwork {
    Ipv6Network::new(address, length).expect("lengths here are constants").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lan_has_private_addresses_of_both_families_whatever_the_underlay() {
        for underlay in [Underlay::V4, Underlay::V6, Underlay::Dual] {
            let [v4, v6] = Lan::new(3, underlay).private(GATEWAY);
            assert_eq!((v4.to_string(), v6.to_string()), ("192.168.3.2".to_owned(), "fd77:3::2".to_owned()));
        }
    }

    #[test]
    fn only_the_families_of_the_underlay_lead_out() {
        let ways = |underlay| Lan::new(3, underlay).way_out().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(ways(Underlay::V4), ["192.168.3.1"]);
        assert_eq!(ways(Underlay::V6), ["2001:db8:1003::1"]);
        assert_eq!(ways(Underlay::Dual), ["192.168.3.1", "2001:db8:1003::1"]);
        assert!(Lan::new(3, Underlay::V4).public_v6().is_none());
    }
}
