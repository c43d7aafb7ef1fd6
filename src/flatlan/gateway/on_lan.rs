//! What is to be on a gateway's LANs for addresses that moved, so that nobody there needs to be told.
//!
//! ```text
//!   moved away: 192.168.10.5 of this LAN is at another site      moved here: 192.168.10.5 is on this LAN, its route elsewhere
//!     neighbour  --who has .5?-->  gateway: I                      gateway --192.168.10.5 dev LAN--> host
//!     neighbour  ----------------> gateway --> overlay             host --who has .1, its router?--> gateway: I --> overlay
//! ```
//!
//! Pure: what to do follows from the roster and from the LANs that this machine is in. The kernel answers only for what
//! its own routes lead elsewhere, so an address that comes home is answered for by itself again. By IPv4, that is, and address by
//! address; by IPv6, and for what is wider than [`WIDEST`], `elsewhere` answers. A host that moved reaches the router that it
//! believes in by each of the two, but for one that has a link-local IPv6 address: that is nobody else's.
//!
//! What moved away from a LAN, and what was on it and has moved on, is announced there: nobody waits until he asks again.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use flatlan_node::Interface;
use flatlan_os::route::Connected;
use flatlan_types::Prefix;

/// What is to be on the LANs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct OnLan {
    /// What moved here and is reached by a device.
    pub(super) routes: BTreeMap<String, BTreeSet<Prefix>>,
    /// What this machine answers for, by device.
    pub(super) answers: BTreeSet<(String, IpAddr)>,
    /// What moved here, and no device is known for it.
    pub(super) homeless: Vec<Prefix>,
    /// What moved away, and is too wide to be announced address by address.
    pub(super) wide: BTreeSet<Prefix>,
}

impl OnLan {
    /// What follows from `interface` on a machine that is in `lans`. `lan`: the device of the site's LAN, where the
    /// operator named one.
    pub(super) fn plan(interface: &Interface, lans: &[Connected], lan: Option<&str>) -> Self {
        let mut plan = Self::default();
        // behind another gateway of the group it is on this LAN still
        let away = |prefix: &Prefix| moved_away(*prefix, interface) && !interface.beside.contains(prefix);
        for prefix in interface.routes.iter().copied().filter(away) {
            for lan in lans.iter().filter(|lan| strictly(prefix, lan.prefix)) {
                match each_of(prefix) {
                    Some(ips) => plan.answers.extend(ips.map(|ip| (lan.device.clone(), ip))),
                    None => {
                        plan.wide.insert(prefix);
                    }
                }
            }
        }
        for prefix in interface.moved.iter().copied() {
            if lans.iter().any(|lan| prefix.lies_in(lan.prefix)) {
                continue;
            }
            let Some(device) = lan.or_else(|| only_device(interface, lans)) else {
                plan.homeless.push(prefix);
                continue;
            };
            plan.routes.entry(device.to_owned()).or_default().insert(prefix);
            let around = interface.routes.iter().copied().filter(|route| strictly(prefix, *route));
            // its host believes that all of its old LAN is on this one, its router too
            if let Some(around) = around.max_by_key(|route| route.length()) {
                let ends = [around.network().network(), around.network().broadcast()];
                let hosts = each_of(around).into_iter().flatten().filter(|ip| !ends.contains(ip));
                plan.answers.extend(hosts.map(|ip| (device.to_owned(), ip)));
            }
        }
        plan
    }

    /// The devices that it is about.
    pub(super) fn devices(&self) -> impl Iterator<Item = &str> {
        self.routes.keys().chain(self.answers.iter().map(|(device, _)| device)).map(String::as_str)
    }

    /// What was on a LAN by an earlier plan and is no more, address by address.
    pub(super) fn left(&self, earlier: &Self) -> BTreeSet<(String, IpAddr)> {
        let mut left = BTreeSet::new();
        for (device, prefixes) in &earlier.routes {
            let here = self.routes.get(device);
            for prefix in prefixes.iter().filter(|prefix| here.is_none_or(|here| !here.contains(*prefix))) {
                left.extend(each_of(*prefix).into_iter().flatten().map(|ip| (device.clone(), ip)));
            }
        }
        left
    }
}

/// The addresses of a prefix that is narrow enough to be dealt with one by one.
fn each_of(prefix: Prefix) -> Option<impl Iterator<Item = IpAddr>> {
    let bits = if prefix.ip().is_ipv4() { 32 } else { 128 };
    (bits - prefix.length() <= WIDEST).then(|| prefix.network().iter())
}

/// Whether another member's prefix is a part of what this one carries.
pub(crate) fn moved_away(prefix: Prefix, interface: &Interface) -> bool {
    interface.served.iter().any(|served| strictly(prefix, *served))
}

/// Whether `prefix` is a part of `of`, and not all of it.
pub(crate) fn strictly(prefix: Prefix, of: Prefix) -> bool {
    prefix.lies_in(of) && prefix.length() > of.length()
}

/// The one device behind which this member's own routes are.
fn only_device<'a>(interface: &Interface, lans: &'a [Connected]) -> Option<&'a str> {
    let own = |prefix: Prefix| {
        let mut served = interface.served.iter().filter(|served| !interface.moved.contains(served));
        served.any(|served| served.overlaps(prefix))
    };
    let devices: BTreeSet<&str> = lans.iter().filter(|lan| own(lan.prefix)).map(|lan| lan.device.as_str()).collect();
    let mut devices = devices.into_iter();
    devices.next().filter(|_| devices.next().is_none())
}

/// Bits of a prefix that may be dealt with address by address: as many as 1,024.
const WIDEST: u8 = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::testing::{interface, lan, prefix};

    #[test]
    fn the_old_site_answers_for_what_moved_away_from_its_lan_and_for_nothing_else() {
        let interface = interface(&["192.168.10.5/32", "192.168.20.0/24"], &["192.168.10.0/24"], &[]);
        let lans = [lan("eth0", "203.0.113.0/24"), lan("eth1", "192.168.10.0/24")];
        let plan = OnLan::plan(&interface, &lans, None);
        assert_eq!(plan.answers, [("eth1".to_owned(), "192.168.10.5".parse().unwrap())].into());
        assert_eq!((plan.routes.len(), plan.homeless.len(), plan.wide.len()), (0, 0, 0));
    }

    #[test]
    fn the_new_site_leads_it_to_its_lan_and_answers_there_for_the_rest_of_the_old_one() {
        let interface = interface(&["192.168.10.0/24"], &["192.168.20.0/24"], &["192.168.10.5/32"]);
        let lans = [lan("eth0", "203.0.113.0/24"), lan("eth1", "192.168.20.0/24")];
        let plan = OnLan::plan(&interface, &lans, None);
        assert_eq!(plan.routes, [("eth1".to_owned(), [prefix("192.168.10.5/32")].into())].into());
        let router = ("eth1".to_owned(), "192.168.10.1".parse().unwrap());
        assert!(plan.answers.contains(&router) && plan.answers.len() == 254);
        assert!(!plan.answers.contains(&("eth1".to_owned(), "192.168.10.255".parse().unwrap())));
    }

    #[test]
    fn where_the_lan_cannot_be_told_the_operator_names_it() {
        let interface = interface(&["192.168.10.0/24"], &[], &["192.168.10.5/32"]);
        let lans = [lan("eth0", "203.0.113.0/24"), lan("eth1", "192.168.20.0/24")];
        let plan = OnLan::plan(&interface, &lans, None);
        assert_eq!((plan.homeless.as_slice(), plan.answers.len()), (&[prefix("192.168.10.5/32")][..], 0));
        let plan = OnLan::plan(&interface, &lans, Some("eth1"));
        assert!(plan.homeless.is_empty() && plan.routes.contains_key("eth1"));
    }

    #[test]
    fn what_moved_to_a_site_that_has_the_same_lan_needs_no_help() {
        let interface = interface(&["192.168.10.0/24"], &["192.168.20.0/24"], &["192.168.10.5/32"]);
        let lans = [lan("eth1", "192.168.20.0/24"), lan("eth2", "192.168.10.0/24")];
        assert_eq!(OnLan::plan(&interface, &lans, None), OnLan::default());
    }

    #[test]
    fn what_moved_to_another_gateway_of_the_group_is_on_the_same_lan_still() {
        let mut interface = interface(&["192.168.10.5/32"], &["192.168.10.0/24"], &[]);
        interface.beside = vec![prefix("192.168.10.5/32")];
        assert_eq!(OnLan::plan(&interface, &[lan("eth1", "192.168.10.0/24")], None), OnLan::default());
    }

    #[test]
    fn what_moves_on_from_a_lan_is_known_address_by_address_where_that_can_be() {
        let lans = [lan("eth1", "192.168.20.0/24")];
        let plan = |moved: &[&str]| OnLan::plan(&interface(&[], &["192.168.20.0/24"], moved), &lans, None);
        let before = plan(&["192.168.10.5/32", "192.168.10.8/31", "fd77:1::5/128", "fd77:3::/64"]);
        let ips = |of: &BTreeSet<(String, IpAddr)>| of.iter().map(|(_, ip)| ip.to_string()).collect::<Vec<_>>();
        assert_eq!(ips(&plan(&["192.168.10.5/32"]).left(&before)), ["192.168.10.8", "192.168.10.9", "fd77:1::5"]);
        assert_eq!(ips(&before.left(&before)), Vec::<String>::new());
        assert_eq!(ips(&before.left(&plan(&[]))), Vec::<String>::new());
    }

    #[test]
    fn thousands_of_addresses_are_not_answered_for_one_by_one() {
        let interface = interface(&["10.1.0.0/17"], &["10.1.0.0/16"], &[]);
        let plan = OnLan::plan(&interface, &[lan("eth1", "10.1.0.0/16")], None);
        assert_eq!((plan.answers.len(), plan.wide), (0, [prefix("10.1.0.0/17")].into()));
    }
}
