//! What a machine does that does not go together with what its node carries.
//!
//! Pure: from what the node and the kernel say to what is wrong, and the command that mends it.
//!
//! | trap | what happens |
//! |---|---|
//! | `forwarding` | the kernel drops what is not for this machine |
//! | `firewall` | a filter drops what is forwarded |
//! | `reverse_path` | the kernel drops what comes in by another device than its answer would leave by (RFC 3704) |
//! | `same_lan_twice` | two links hold one prefix: the hosts behind one of them are not reached |
//! | `clash` | another member carries the LAN that this machine is in |
//! | `elsewhere` | a route of the machine leads what a member carries past the overlay |
//! | `arp` | neighbours ask where an address is, and nobody answers |

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use flatlan_os::route::Connected;
use flatlan_types::{Prefix, VirtualIp};
use serde::Serialize;
use serde_json::Value;

use super::machine::{Filter, Machine};
use crate::client::{array, text};

/// Something that keeps packets from where they should go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Trap {
    /// Which one.
    pub(super) trap: Kind,
    /// Where.
    pub(super) device: Option<String>,
    /// What is hit.
    pub(super) prefix: Option<Prefix>,
    /// What happens, in words.
    pub(super) what: String,
    /// What to do: a command, where there is one.
    pub(super) remedy: String,
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.remedy)
    }
}

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Arp,
    Clash,
    Elsewhere,
    Firewall,
    Forwarding,
    ReversePath,
    SameLanTwice,
}

/// Who carries what.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    /// This node's device.
    pub(super) tun: String,
    /// The prefixes behind this node.
    pub(super) served: Vec<Prefix>,
    /// What each of the other members carries, its own addresses among it.
    peers: Vec<(String, Prefix)>,
}

impl Overlay {
    /// As a node's status says.
    pub(super) fn of(status: &Value) -> Self {
        let null = Value::Null;
        let me = status.get("self").unwrap_or(&null);
        let peers = array(status.get("peers"))
            .flat_map(|peer| prefixes(peer).map(move |prefix| (text(peer, "name").to_owned(), prefix)));
        Self { tun: text(me, "tun").to_owned(), served: routes(me).collect(), peers: peers.collect() }
    }

    /// The addresses of which it matters where the kernel sends what is for them.
    pub(super) fn asked(&self, connected: &[Connected]) -> BTreeSet<IpAddr> {
        let all = self.served.iter().chain(self.peers.iter().map(|(_, prefix)| prefix));
        all.chain(connected.iter().map(|lan| &lan.prefix)).flat_map(|prefix| samples(*prefix)).collect()
    }

    /// Whether a member is another gateway of this node's group: they carry a prefix together.
    fn is_beside(&self, name: &str) -> bool {
        self.peers.iter().any(|(other, prefix)| other == name && self.served.contains(prefix))
    }

    /// Whether a member carries a part of `prefix` that holds this address.
    fn has_narrower(&self, prefix: Prefix, ip: IpAddr) -> bool {
        let all = self.served.iter().chain(self.peers.iter().map(|(_, prefix)| prefix));
        all.copied().any(|other| strictly(other, prefix) && other.contains(ip))
    }
}

/// All that a member carries, as the status has it: its own addresses, and its routes.
pub(crate) fn prefixes(member: &Value) -> impl Iterator<Item = Prefix> {
    let hosts = array(member.get("ips")).filter_map(|ip| ip.as_str()?.parse().ok());
    hosts.map(|ip| Prefix::host(VirtualIp::new(ip))).chain(routes(member))
}

fn routes(member: &Value) -> impl Iterator<Item = Prefix> {
    array(member.get("routes")).filter_map(|route| route.as_str()?.parse().ok())
}

/// Whatever is wrong, worst first: without forwarding nothing else matters.
pub(super) fn find(overlay: &Overlay, machine: &Machine) -> Vec<Trap> {
    let look = Look { overlay, machine };
    let mut traps = Vec::new();
    if !overlay.served.is_empty() {
        look.forwarding(&mut traps);
        traps.extend(machine.filters.iter().map(firewall));
        look.same_lan_twice(&mut traps);
        look.reverse_path(&mut traps);
        look.arp(&mut traps);
    }
    look.past_the_overlay(&mut traps);
    traps
}

struct Look<'a> {
    overlay: &'a Overlay,
    machine: &'a Machine,
}

impl Look<'_> {
    fn forwarding(&self, traps: &mut Vec<Trap>) {
        let served = |v4: bool| self.overlay.served.iter().find(|prefix| prefix.ip().is_ipv4() == v4).copied();
        if let (Some(prefix), false) = (served(false), self.machine.forwards.v6) {
            traps.push(Trap {
                trap: Kind::Forwarding,
                device: None,
                prefix: Some(prefix),
                what: format!(
                    "this machine does not forward IPv6, and {prefix} is not reached (where its own way out is by router advertisements, that device needs accept_ra=2 first)"
                ),
                remedy: "sysctl -w net/ipv6/conf/all/forwarding=1".to_owned(),
            });
        }
        let Some(prefix) = served(true) else { return };
        if !self.machine.forwards.v4 {
            traps.push(Trap {
                trap: Kind::Forwarding,
                device: None,
                prefix: Some(prefix),
                what: format!("this machine does not forward IPv4, and {prefix} is not reached"),
                remedy: "sysctl -w net/ipv4/ip_forward=1".to_owned(),
            });
            return;
        }
        let ends = self.lans().map(|lan| &lan.device).chain([&self.overlay.tun]).collect::<BTreeSet<_>>();
        let deaf = |device: &&String| self.machine.devices.get(*device).is_some_and(|device| !device.forwards);
        for device in ends.into_iter().filter(deaf) {
            traps.push(Trap {
                trap: Kind::Forwarding,
                device: Some(device.clone()),
                prefix: Some(prefix),
                what: format!("what comes in by {device} is not forwarded"),
                remedy: format!("sysctl -w net/ipv4/conf/{device}/forwarding=1"),
            });
        }
    }

    fn same_lan_twice(&self, traps: &mut Vec<Trap>) {
        let lans: Vec<&Connected> = self.lans().collect();
        for (number, lan) in lans.iter().enumerate() {
            let other =
                lans.iter().take(number).find(|other| other.device != lan.device && other.prefix.overlaps(lan.prefix));
            if let Some(other) = other {
                traps.push(Trap {
                    trap: Kind::SameLanTwice,
                    device: Some(lan.device.clone()),
                    prefix: Some(lan.prefix),
                    what: format!(
                        "{} is on {} and {} on {}: the hosts behind one of the two are not reached",
                        other.prefix, other.device, lan.prefix, lan.device
                    ),
                    remedy: "give one link another prefix, or make both ports of one bridge".to_owned(),
                });
            }
        }
    }

    /// What comes in by another device than its answer would leave by.
    fn reverse_path(&self, traps: &mut Vec<Trap>) {
        let shared = self.overlay.served.iter().filter(|own| self.overlay.peers.iter().any(|(_, other)| other == *own));
        let by_tun =
            shared.map(|prefix| (&self.overlay.tun, *prefix, "its hosts send by another gateway of the group"));
        let by_lan = self.lans().map(|lan| (&lan.device, lan.prefix, "its hosts send by it"));
        let mut told = BTreeSet::new();
        for (device, prefix, whence) in by_tun.chain(by_lan).filter(|(_, prefix, _)| prefix.ip().is_ipv4()) {
            let strict = self.machine.devices.get(device).is_some_and(|device| device.rp_filter == 1);
            let Some(back) = self.strays(prefix, device).filter(|_| strict) else { continue };
            if told.insert(device) {
                traps.push(Trap {
                    trap: Kind::ReversePath,
                    device: Some(device.clone()),
                    prefix: Some(prefix),
                    what: format!(
                        "{device} takes nothing from {prefix} (rp_filter 1), for the way back leads by {back}, and {whence}"
                    ),
                    remedy: format!("sysctl -w net/ipv4/conf/{device}/rp_filter=2"),
                });
            }
        }
    }

    fn arp(&self, traps: &mut Vec<Trap>) {
        let lans: BTreeMap<&String, Prefix> =
            self.lans().filter(|lan| lan.prefix.ip().is_ipv4()).map(|lan| (&lan.device, lan.prefix)).collect();
        for (device, lan) in lans {
            let Some(settings) = self.machine.devices.get(device) else { continue };
            if settings.arp_ignore == 8 {
                traps.push(Trap {
                    trap: Kind::Arp,
                    device: Some(device.clone()),
                    prefix: Some(lan),
                    what: format!("{device} answers nobody who asks for this gateway (arp_ignore 8)"),
                    remedy: format!("sysctl -w net/ipv4/conf/all/arp_ignore=0 net/ipv4/conf/{device}/arp_ignore=0"),
                });
            }
            if let (true, Some(way)) = (settings.arp_filter, self.strays(lan, device)) {
                traps.push(Trap {
                    trap: Kind::Arp,
                    device: Some(device.clone()),
                    prefix: Some(lan),
                    what: format!(
                        "{device} answers none of its hosts (arp_filter 1), for the way to them leads by {way}"
                    ),
                    remedy: format!("sysctl -w net/ipv4/conf/all/arp_filter=0 net/ipv4/conf/{device}/arp_filter=0"),
                });
            }
        }
        for (name, prefix) in &self.overlay.peers {
            let moved = self.overlay.served.iter().any(|served| strictly(*prefix, *served));
            // behind another gateway of the group it is on this LAN still; what is wide, the node answers for by itself
            let by_kernel = moved && prefix.ip().is_ipv4() && width(*prefix) <= WIDEST && !self.overlay.is_beside(name);
            for lan in self.lans().filter(|lan| by_kernel && strictly(*prefix, lan.prefix)) {
                if !self.answers_for(*prefix, &lan.device) {
                    traps.push(Trap {
                        trap: Kind::Arp,
                        device: Some(lan.device.clone()),
                        prefix: Some(*prefix),
                        what: format!(
                            "{prefix} of {} moved to {name}, and on {} nobody answers for it: its old neighbours do not reach it",
                            lan.prefix, lan.device
                        ),
                        remedy: if prefix.is_host() {
                            format!("ip neighbour replace proxy {} dev {}", prefix.ip(), lan.device)
                        } else {
                            "systemctl reload flatlan".to_owned()
                        },
                    });
                }
            }
        }
    }

    /// What other members carry, and the kernel does not send into the overlay.
    fn past_the_overlay(&self, traps: &mut Vec<Trap>) {
        for (name, prefix) in &self.overlay.peers {
            let prefix = *prefix;
            if self.overlay.served.contains(&prefix) {
                continue;
            }
            let moved = self.overlay.served.iter().any(|served| strictly(prefix, *served));
            let lan = self.machine.connected.iter().find(|lan| prefix.lies_in(lan.prefix));
            if let Some(lan) = lan.filter(|lan| !(moved && strictly(prefix, lan.prefix))) {
                traps.push(Trap {
                    trap: Kind::Clash,
                    device: Some(lan.device.clone()),
                    prefix: Some(prefix),
                    what: format!(
                        "{prefix} of {name} is not reached from here: {} is the LAN of {}",
                        lan.prefix, lan.device
                    ),
                    remedy: "give one of the two LANs another prefix".to_owned(),
                });
                continue;
            }
            if let Some(way) = self.strays(prefix, &self.overlay.tun) {
                traps.push(Trap {
                    trap: Kind::Elsewhere,
                    device: Some(way.to_owned()),
                    prefix: Some(prefix),
                    what: format!("{prefix} of {name} is sent by {way} and not into the overlay"),
                    remedy: "remove the route or rule that says so: ip route show table all; ip rule".to_owned(),
                });
            }
        }
    }

    /// The networks that the site behind this machine consists of.
    fn lans(&self) -> impl Iterator<Item = &Connected> {
        let served = |lan: &&Connected| self.overlay.served.iter().any(|served| served.overlaps(lan.prefix));
        self.machine.connected.iter().filter(served)
    }

    /// By which other device than this one the kernel sends what is for hosts of a prefix, but for parts of it that other
    /// members carry.
    fn strays(&self, prefix: Prefix, device: &str) -> Option<&str> {
        samples(prefix).find_map(|ip| {
            let way = self.machine.ways.get(&ip)?.as_ref()?;
            let elsewhere = way.device != device && way.device != LOOPBACK;
            (elsewhere && !self.overlay.has_narrower(prefix, ip)).then_some(way.device.as_str())
        })
    }

    fn answers_for(&self, prefix: Prefix, device: &str) -> bool {
        let one_by_one = || prefix.network().iter().all(|ip| self.machine.answers.contains(&(device.to_owned(), ip)));
        self.machine.devices.get(device).is_some_and(|device| device.proxy_arp) || one_by_one()
    }
}

fn firewall(filter: &Filter) -> Trap {
    Trap {
        trap: Kind::Firewall,
        device: None,
        prefix: None,
        what: format!("{} drops what is forwarded, and no rule lets the overlay pass ({})", filter.chain, filter.read),
        remedy: filter.pass.clone(),
    }
}

/// Whether `prefix` is a part of `of`, and not all of it.
fn strictly(prefix: Prefix, of: Prefix) -> bool {
    prefix.lies_in(of) && prefix.length() > of.length()
}

/// Addresses of a prefix that hosts may have: one of them may be this machine's own.
fn samples(prefix: Prefix) -> impl Iterator<Item = IpAddr> {
    prefix.network().iter().skip(if prefix.is_host() { 0 } else { 1 }).take(2)
}

/// Bits of a prefix that are its hosts'.
fn width(prefix: Prefix) -> u8 {
    if prefix.ip().is_ipv4() { 32 - prefix.length() } else { 128 - prefix.length() }
}

/// The device by which a machine speaks to itself.
const LOOPBACK: &str = "lo";
/// A node has the kernel answer for as many addresses of a prefix as these bits say.
const WIDEST: u8 = 10;

#[cfg(test)]
mod tests {
    use flatlan_os::route::Way;
    use serde_json::json;

    use super::{
        super::machine::{Device, Forwards},
        *,
    };

    /// A gateway of 192.168.1.0/24 on eth1, whose way out is eth0, in good order.
    struct Gateway {
        status: Value,
        machine: Machine,
    }

    impl Gateway {
        fn good() -> Self {
            let status = json!({
                "self": { "tun": "fl0", "ips": ["10.77.0.1"], "routes": ["192.168.1.0/24"] },
                "peers": [{ "name": "b", "ips": ["10.77.0.2"], "routes": ["192.168.2.0/24"] }],
            });
            let connected = [("eth0", "203.0.113.0/24"), ("eth1", "192.168.1.0/24")];
            let device = Device { forwards: true, ..Device::default() };
            let machine = Machine {
                forwards: Forwards { v4: true, v6: false },
                devices: ["eth0", "eth1", "eth2", "fl0"].map(|name| (name.to_owned(), device)).into(),
                connected: connected.map(|(device, of)| lan(device, of)).into(),
                ..Machine::default()
            };
            let mut gateway = Self { status, machine };
            for (ip, device) in
                [("203.0.113.1", "eth0"), ("192.168.1.1", "eth1"), ("10.77.0.2", "fl0"), ("192.168.2.1", "fl0")]
            {
                gateway.leads(ip, device);
            }
            gateway
        }

        fn leads(&mut self, ip: &str, device: &str) {
            let way = Way { device: device.to_owned(), gateway: None };
            self.machine.ways.insert(ip.parse().unwrap(), Some(way));
        }

        fn device(&mut self, name: &str) -> &mut Device {
            self.machine.devices.get_mut(name).unwrap()
        }

        fn peer(&mut self, peer: Value) {
            self.status["peers"].as_array_mut().unwrap().push(peer);
        }

        /// The traps and where they are.
        fn traps(&self) -> Vec<(Kind, Option<String>)> {
            let found = find(&Overlay::of(&self.status), &self.machine);
            found.into_iter().map(|found| (found.trap, found.device)).collect()
        }
    }

    fn lan(device: &str, of: &str) -> Connected {
        Connected { device: device.to_owned(), prefix: of.parse().unwrap() }
    }

    fn on(kind: Kind, device: &str) -> Vec<(Kind, Option<String>)> {
        vec![(kind, Some(device.to_owned()))]
    }

    #[test]
    fn a_gateway_in_good_order_has_no_traps() {
        assert_eq!(Gateway::good().traps(), []);
    }

    #[test]
    fn a_gateway_that_does_not_forward_what_it_carries_is_told_so() {
        let mut gateway = Gateway::good();
        gateway.machine.forwards.v4 = false;
        assert_eq!(gateway.traps(), [(Kind::Forwarding, None)]);
        let mut gateway = Gateway::good();
        gateway.device("eth1").forwards = false;
        gateway.device("eth0").forwards = false;
        assert_eq!(gateway.traps(), on(Kind::Forwarding, "eth1"), "the way out carries sealed packets only");
        let mut gateway = Gateway::good();
        gateway.status["self"]["routes"] = json!(["fd77:1::/64"]);
        assert_eq!(gateway.traps(), [(Kind::Forwarding, None)]);
        gateway.status["self"]["routes"] = json!([]);
        gateway.machine.forwards.v4 = false;
        assert_eq!(gateway.traps(), [], "who carries nothing need not forward");
    }

    #[test]
    fn strict_filters_are_traps_only_where_answers_leave_by_another_device() {
        let mut gateway = Gateway::good();
        gateway.device("fl0").rp_filter = 1;
        gateway.device("eth1").rp_filter = 1;
        assert_eq!(gateway.traps(), []);
        gateway.peer(json!({ "name": "a2", "ips": [], "routes": ["192.168.1.0/24"] }));
        assert_eq!(gateway.traps(), on(Kind::ReversePath, "fl0"), "its hosts may come by the other gateway");
        gateway.device("fl0").rp_filter = 2;
        assert_eq!(gateway.traps(), []);
    }

    #[test]
    fn a_gateways_own_address_and_what_moved_away_say_nothing_of_the_way_to_its_lan() {
        let mut gateway = Gateway::good();
        gateway.device("eth1").rp_filter = 1;
        gateway.leads("192.168.1.1", "lo");
        gateway.leads("192.168.1.2", "fl0");
        assert_eq!(gateway.traps(), on(Kind::ReversePath, "eth1"));
        gateway.peer(json!({ "name": "dr", "ips": [], "routes": ["192.168.1.2/32"] }));
        gateway.machine.answers.insert(("eth1".to_owned(), "192.168.1.2".parse().unwrap()));
        assert_eq!(gateway.traps(), []);
    }

    #[test]
    fn one_lan_on_two_links_is_a_trap_and_so_is_what_follows_from_it() {
        let mut gateway = Gateway::good();
        gateway.machine.connected.push(lan("eth2", "192.168.1.0/24"));
        assert_eq!(gateway.traps(), on(Kind::SameLanTwice, "eth2"));
        gateway.device("eth2").rp_filter = 1;
        gateway.device("eth2").arp_filter = true;
        gateway.device("eth1").arp_filter = true;
        let rest = [on(Kind::ReversePath, "eth2"), on(Kind::Arp, "eth2")].concat();
        assert_eq!(gateway.traps(), [on(Kind::SameLanTwice, "eth2"), rest].concat());
    }

    #[test]
    fn what_moved_away_is_answered_for_or_its_neighbours_are_cut_off() {
        let mut gateway = Gateway::good();
        gateway.peer(json!({ "name": "dr", "ips": [], "routes": ["192.168.1.5/32"] }));
        gateway.leads("192.168.1.5", "fl0");
        assert_eq!(gateway.traps(), on(Kind::Arp, "eth1"));
        let found = find(&Overlay::of(&gateway.status), &gateway.machine);
        assert_eq!(found[0].remedy, "ip neighbour replace proxy 192.168.1.5 dev eth1");
        gateway.machine.answers.insert(("eth1".to_owned(), "192.168.1.5".parse().unwrap()));
        assert_eq!(gateway.traps(), []);
        gateway.machine.answers.clear();
        gateway.device("eth1").proxy_arp = true;
        assert_eq!(gateway.traps(), []);
        // a gateway beside this one has it
        let mut gateway = Gateway::good();
        gateway.peer(json!({ "name": "a2", "ips": [], "routes": ["192.168.1.0/24", "192.168.1.5/32"] }));
        assert_eq!(gateway.traps(), []);
    }

    #[test]
    fn a_device_that_answers_nobody_is_a_trap_on_the_lan_alone() {
        let mut gateway = Gateway::good();
        gateway.device("eth0").arp_ignore = 8;
        gateway.device("eth1").arp_ignore = 1;
        assert_eq!(gateway.traps(), []);
        gateway.device("eth1").arp_ignore = 8;
        assert_eq!(gateway.traps(), on(Kind::Arp, "eth1"));
    }

    #[test]
    fn what_another_member_carries_goes_into_the_overlay_or_is_told_of() {
        let mut gateway = Gateway::good();
        gateway.leads("192.168.2.1", "eth0");
        assert_eq!(gateway.traps(), on(Kind::Elsewhere, "eth0"));
        gateway.leads("192.168.2.1", "fl0");
        gateway.peer(json!({ "name": "c", "ips": [], "routes": ["203.0.113.0/24"] }));
        assert_eq!(gateway.traps(), on(Kind::Clash, "eth0"));
        // a part of b's LAN that moved here is not b's
        let mut gateway = Gateway::good();
        gateway.status["self"]["routes"] = json!(["192.168.1.0/24", "192.168.2.1/32"]);
        gateway.leads("192.168.2.1", "eth1");
        assert_eq!(gateway.traps(), []);
    }

    #[test]
    fn a_filter_that_drops_is_named_with_where_to_read_it() {
        let mut gateway = Gateway::good();
        let filter = |of: &str| Filter { chain: of.to_owned(), read: format!("read {of}"), pass: format!("pass {of}") };
        gateway.machine.filters.push(filter("inet site fwd"));
        let found = find(&Overlay::of(&gateway.status), &gateway.machine);
        assert_eq!((found[0].trap, found[0].remedy.as_str()), (Kind::Firewall, "pass inet site fwd"));
        assert!(found[0].what.contains("read inet site fwd"));
    }
}
