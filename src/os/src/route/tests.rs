use std::time::Duration;

use rtnetlink::LinkVeth;
use tokio::{task::yield_now, time::timeout};

use super::*;
use crate::{
    neighbour::Port,
    testing::{as_nobody, async_in_empty_netns, plain_tun, runtime},
    tun::Tun,
};

impl Netlink {
    pub(crate) async fn delete_for_test(&self, name: &str) {
        let link = self.link(name).await.unwrap();
        self.handle.link().del(link.index).execute().await.unwrap();
    }

    pub(crate) async fn set_down_for_test(&self, link: Link) {
        self.change_link("set the device down", LinkUnspec::new_with_index(link.index).down().build()).await.unwrap();
    }

    /// A pair of devices, `a` and `b`, both up, `a` with these addresses.
    pub(crate) async fn veth_for_test(&self, addresses: &[&str]) -> Link {
        self.handle.link().add(LinkVeth::new("a", "b").build()).execute().await.unwrap();
        for name in ["a", "b"] {
            let link = self.link(name).await.unwrap();
            self.set_up(link).await.unwrap();
        }
        let link = self.link("a").await.unwrap();
        self.set_addresses(link, &networks(addresses)).await.unwrap();
        link
    }

    async fn answered_for(&self) -> Vec<String> {
        let all: Vec<_> = self.handle.neighbours().get().proxies().execute().try_collect().await.unwrap();
        let mut ips: Vec<_> = all.iter().filter_map(neighbour::address).map(|ip| ip.to_string()).collect();
        ips.sort();
        ips
    }

    /// The device as its neighbours know it, once it has a link-local address.
    pub(crate) async fn port_for_test(&self, link: Link) -> Port {
        let found = async {
            loop {
                match self.port(link).await.unwrap().unwrap() {
                    port if port.local.is_some() => return port,
                    _ => yield_now().await,
                }
            }
        };
        timeout(PATIENCE, found).await.expect("the device has a link-local address")
    }

    /// Waits until whoever sends to `ip` by the device sends it to `port`.
    pub(crate) async fn neighbour_is_at_for_test(&self, link: Link, ip: &str, port: Port) {
        let learned = async {
            while self.neighbour_for_test(link, ip).await.is_none_or(|found| found != port.ethernet) {
                yield_now().await;
            }
        };
        timeout(PATIENCE, learned).await.unwrap_or_else(|_| panic!("where {ip} is was never learned"));
    }

    async fn neighbour_for_test(&self, link: Link, ip: &str) -> Option<Vec<u8>> {
        use rtnetlink::packet_route::neighbour::NeighbourAttribute::LinkLayerAddress;
        let all: Vec<_> = self.handle.neighbours().get().execute().try_collect().await.unwrap();
        let ip: IpAddr = ip.parse().unwrap();
        let found = all.into_iter().find(|n| n.header.ifindex == link.index && neighbour::address(n) == Some(ip))?;
        found.attributes.into_iter().find_map(|a| match a {
            LinkLayerAddress(address) => Some(address),
            _ => None,
        })
    }

    async fn routes_of(&self, link: Link) -> Vec<(String, Option<IpAddr>)> {
        let all = self.routes().await.unwrap();
        let ours = all.iter().filter(|r| output(r) == Some(link.index) && r.header.protocol == PROTOCOL);
        ours.map(|r| (destination(r).unwrap().to_string(), preferred_source(r))).collect()
    }
}

fn networks(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

fn tun() -> Tun {
    plain_tun(networks(&["10.9.0.1/24", "fd09::1/64"]))
}

#[test]
fn addresses_become_exactly_what_was_asked() {
    async_in_empty_netns(|| async {
        let netlink = Netlink::open().unwrap();
        let link = netlink.veth_for_test(&["192.0.2.1/24", "2001:db8::1/64"]).await;
        netlink.set_addresses(link, &networks(&["192.0.2.9/24", "2001:db8::1/64"])).await.unwrap();
        let connected = netlink.connected(&[]).await.unwrap();
        let texts: Vec<_> = connected.iter().map(|c| format!("{} {}", c.device, c.prefix)).collect();
        assert_eq!(texts, ["a 192.0.2.0/24", "a 2001:db8::/64"]);
        assert_eq!(netlink.connected(&[link]).await.unwrap(), []);
    });
}

#[test]
fn where_ipv6_is_off_a_device_has_its_ipv4_addresses_and_routes() {
    async_in_empty_netns(|| async {
        let netlink = Netlink::open().unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        let link = netlink.veth_for_test(&[]).await;
        let wanted = networks(&["10.9.0.1/32", "fd09::1/128"]);
        assert_eq!(netlink.set_addresses(link, &wanted).await.unwrap(), Ipv6::Disabled);
        let routes = ["10.10.0.0/16", "fd0a::/16"].map(|p| (p.parse::<Prefix>().unwrap(), None));
        netlink.set_routes(link, &routes.into()).await.unwrap();
        let routes: Vec<_> = netlink.routes_of(link).await.into_iter().map(|(prefix, _)| prefix).collect();
        assert_eq!(routes, ["10.10.0.0/16"]);
        let connected: Vec<_> = netlink.connected(&[]).await.unwrap().iter().map(|c| c.prefix.to_string()).collect();
        assert_eq!(connected, ["10.9.0.1/32"]);
    });
}

#[test]
fn gateway_routes_are_told_from_those_of_a_device() {
    async_in_empty_netns(|| async {
        let netlink = Netlink::open().unwrap();
        let link = netlink.veth_for_test(&["192.0.2.1/24"]).await;
        assert_eq!(netlink.gateway_routes().await.unwrap(), BTreeSet::new());
        let gateway = "192.0.2.254".parse().unwrap();
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
        netlink.handle.route().add(default).execute().await.unwrap();
        let route = GatewayRoute { prefix: None, gateway: gateway.into(), link: Some(link) };
        assert_eq!(netlink.gateway_routes().await.unwrap(), BTreeSet::from([route]));
    });
}

#[test]
fn our_routes_become_exactly_what_was_asked_and_others_stay() {
    async_in_empty_netns(|| async {
        let tun = tun();
        let netlink = Netlink::open().unwrap();
        let link = netlink.link(tun.name()).await.unwrap();
        let foreign = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::new(10, 40, 0, 0), 16)
            .output_interface(link.index)
            .build();
        netlink.handle.route().add(foreign).execute().await.unwrap();

        let source: IpAddr = "10.9.0.1".parse().unwrap();
        let route = |text: &str| text.parse::<Prefix>().unwrap();
        let first = BTreeMap::from([
            (route("10.20.0.0/16"), Some(source)),
            (route("10.30.0.0/16"), None),
            (route("fd20::/64"), None),
        ]);
        netlink.set_routes(link, &first).await.unwrap();
        netlink.set_routes(link, &first).await.unwrap();
        assert_eq!(
            netlink.routes_of(link).await,
            [("10.20.0.0/16".into(), Some(source)), ("10.30.0.0/16".into(), None), ("fd20::/64".into(), None)]
        );

        let second = BTreeMap::from([(route("10.20.0.0/16"), None), (route("fd30::/64"), None)]);
        netlink.set_routes(link, &second).await.unwrap();
        assert_eq!(netlink.routes_of(link).await, [("10.20.0.0/16".into(), None), ("fd30::/64".into(), None)]);
        let all = netlink.routes().await.unwrap();
        assert!(all.iter().any(|r| destination(r) == Some(route("10.40.0.0/16"))));

        let mixed = BTreeMap::from([(route("fd40::/64"), Some(source))]);
        let error = netlink.set_routes(link, &mixed).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot add the route fd40::/64: its source address is of the other family");
    });
}

#[test]
fn host_addresses_are_those_that_others_can_reach_the_default_route_first() {
    async_in_empty_netns(|| async {
        let _tun = tun();
        let netlink = Netlink::open().unwrap();
        netlink.veth_for_test(&["192.0.2.1/24", "169.254.7.7/16"]).await;
        let b = netlink.link("b").await.unwrap();
        netlink.set_addresses(b, &networks(&["198.51.100.1/24"])).await.unwrap();
        let ips = |hosts: Vec<HostAddress>| hosts.iter().map(|h| h.ip.to_string()).collect::<Vec<_>>();
        let mut all = ips(netlink.host_addresses().await.unwrap());
        all.sort();
        assert_eq!(all, ["192.0.2.1", "198.51.100.1"]);

        let default = RouteMessageBuilder::<Ipv4Addr>::new()
            .output_interface(b.index)
            .gateway(Ipv4Addr::new(198, 51, 100, 254))
            .build();
        netlink.handle.route().add(default).execute().await.unwrap();
        let hosts = netlink.host_addresses().await.unwrap();
        assert_eq!(hosts[0].device, "b");
        assert!(hosts[0].default_route && !hosts[1].default_route);
        assert_eq!(ips(hosts), ["198.51.100.1", "192.0.2.1"]);
    });
}

#[test]
fn changes_are_told_but_not_those_of_the_excepted_device() {
    async_in_empty_netns(|| async {
        // a link-local address that is found to be nobody else's is one more change, a second or two later
        std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
        let netlink = Netlink::open().unwrap();
        let a = netlink.veth_for_test(&[]).await;
        let b = netlink.link("b").await.unwrap();
        let mut changes = Changes::watch(&[a]).unwrap();
        // What the devices' coming up still brings.
        while timeout(Duration::from_millis(300), changes.changed()).await.is_ok() {}

        netlink.set_addresses(a, &networks(&["192.0.2.1/24"])).await.unwrap();
        netlink.set_addresses(b, &networks(&["198.51.100.1/24"])).await.unwrap();
        timeout(Duration::from_secs(5), changes.changed()).await.expect("b was told");
        while timeout(Duration::from_millis(300), changes.changed()).await.is_ok() {}

        netlink.set_addresses(a, &networks(&["192.0.2.2/32"])).await.unwrap();
        assert!(timeout(Duration::from_millis(300), changes.changed()).await.is_err(), "a is excepted");
    });
}

#[test]
fn without_privilege_the_capability_is_named() {
    let error = as_nobody(|| {
        runtime().block_on(async {
            let netlink = Netlink::open().unwrap();
            let lo = netlink.link("lo").await.unwrap();
            netlink.set_mtu(lo, 65536).await.unwrap_err()
        })
    });
    assert_eq!(
        error.to_string(),
        "cannot set the MTU: not permitted: this needs root, or the capability CAP_NET_ADMIN"
    );
    assert_eq!(error.exit_class(), ExitClass::NotPermitted);
}

#[test]
fn a_missing_device_is_named() {
    async_in_empty_netns(|| async {
        let error = Netlink::open().unwrap().link("nope").await.unwrap_err();
        assert_eq!(error.to_string(), "there is no network device nope");
    });
}

#[test]
fn what_is_answered_for_on_a_lan_becomes_exactly_what_was_asked() {
    async_in_empty_netns(|| async {
        let netlink = Netlink::open().unwrap();
        let link = netlink.veth_for_test(&["192.0.2.1/24"]).await;
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let foreign = netlink.handle.neighbours().add(link.index, ip("192.0.2.77"));
        foreign.flags(rtnetlink::packet_route::neighbour::NeighbourFlags::Proxy).execute().await.unwrap();
        let answers = |ips: &[&str]| ips.iter().map(|text| (link, ip(text))).collect::<BTreeSet<_>>();
        let added =
            netlink.set_answers(&[link].into(), &answers(&["192.0.2.5", "192.0.2.6", "2001:db8::5"])).await.unwrap();
        assert_eq!(added.len(), 3);
        let added = netlink.set_answers(&[link].into(), &answers(&["192.0.2.6", "192.0.2.7"])).await.unwrap();
        assert_eq!(added, [(link, ip("192.0.2.7"))]);
        assert_eq!(netlink.answered_for().await, ["192.0.2.6", "192.0.2.7", "192.0.2.77"]);
        netlink.set_answers(&[link].into(), &BTreeSet::new()).await.unwrap();
        assert_eq!(netlink.answered_for().await, ["192.0.2.77"], "somebody else's stays");
    });
}

#[test]
fn an_address_is_announced_to_everybody_on_its_lan() {
    async_in_empty_netns(|| async {
        // else the devices' own addresses are of use only after a second
        std::fs::write("/proc/sys/net/ipv6/conf/default/dad_transmits", "0").unwrap();
        let netlink = Netlink::open().unwrap();
        let link = netlink.veth_for_test(&["192.0.2.1/24"]).await;
        let other = netlink.link("b").await.unwrap();
        netlink.set_addresses(other, &networks(&["192.0.2.2/24", "2001:db8::2/64"])).await.unwrap();
        let port = netlink.port_for_test(link).await;
        let ips = ["192.0.2.5", "2001:db8::5"];
        for ip in ips {
            // a neighbour is only told anew of whom it has heard
            let stale = netlink.handle.neighbours().add(other.index, ip.parse().unwrap());
            let stale = stale.state(rtnetlink::packet_route::neighbour::NeighbourState::Stale);
            stale.link_layer_address(&[2, 0, 0, 0, 0, 9]).execute().await.unwrap();
        }
        netlink.announce(link, &ips.map(|ip| ip.parse().unwrap())).await.unwrap();
        for ip in ips {
            netlink.neighbour_is_at_for_test(other, ip, port).await;
        }
    });
}

#[test]
fn what_is_unreachable_is_so_only_where_no_other_route_leads() {
    async_in_empty_netns(|| async {
        let netlink = Netlink::open().unwrap();
        let link = netlink.veth_for_test(&["192.0.2.1/24", "2001:db8::1/64"]).await;
        let prefixes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<Prefix>>();
        let (lans, none) = (prefixes(&["192.0.2.0/24", "2001:db8::/64"]), BTreeSet::new());
        for _ in 0..2 {
            netlink.set_unreachable(&lans, &none).await.unwrap();
        }
        let others = ["192.0.2.7", "2001:db8::7"].map(|ip| ip.parse().unwrap());
        let ways = async || netlink.ways(others).await.unwrap();
        assert!(ways().await.values().all(|way| way.as_ref().is_some_and(|way| way.device == "a")));

        // its routes go, and the default route is no way there
        netlink.set_addresses(link, &[]).await.unwrap();
        let b = netlink.link("b").await.unwrap();
        let default = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(b.index).build();
        netlink.handle.route().add(default).execute().await.unwrap();
        let default = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(b.index).build();
        netlink.handle.route().add(default).execute().await.unwrap();
        assert!(ways().await.values().all(Option::is_none));

        // another node's stays
        netlink.set_unreachable(&none, &none).await.unwrap();
        assert!(ways().await.values().all(Option::is_none));
        netlink.set_unreachable(&none, &lans).await.unwrap();
        assert!(ways().await.values().all(|way| way.as_ref().is_some_and(|way| way.device == "b")));
    });
}

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);
