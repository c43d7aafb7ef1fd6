//! What is to be on a gateway's LANs for addresses that moved, so that nobody there needs to be told.
//!
//! ```text
//!   moved away: 192.168.10.5 of this LAN is at another site      moved here: 192.168.10.5 is on this LAN, its route elsewhere
//!     neighbour  --who has .5?-->  gateway: I                      gateway --192.168.10.5 dev LAN--> host
//!     neighbour  ----------------> gateway --> overlay             host --who has .1, its router?--> gateway: I --> overlay
//! ```
//!
//! Pure: what to do follows from the roster and from the LANs that this machine is in. The kernel answers only for what
//! its own routes lead elsewhere, so an address that comes home is answered for by itself again. Neighbours of an address
//! that moved are reached by IPv4 alone: with IPv6 a host's router has a link-local address, which is nobody else's.

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
    /// What is too wide to answer for each of its addresses.
    pub(super) wide: BTreeSet<Prefix>,
}

impl OnLan {
    /// What follows from `interface` on a machine that is in `lans`. `lan`: the device of the site's LAN, where the
    /// operator named one.
    pub(super) fn plan(interface: &Interface, lans: &[Connected], lan: Option<&str>) -> Self {
        let mut plan = Self::default();
        for prefix in interface.routes.iter().copied().filter(|prefix| moved_away(*prefix, interface)) {
            for lan in lans.iter().filter(|lan| strictly(prefix, lan.prefix)) {
                plan.answer(&lan.device, prefix);
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
                plan.answer(device, around);
                let ends = around.network();
                plan.answers.remove(&(device.to_owned(), ends.network()));
                plan.answers.remove(&(device.to_owned(), ends.broadcast()));
            }
        }
        plan
    }

    /// The devices that it is about.
    pub(super) fn devices(&self) -> impl Iterator<Item = &str> {
        self.routes.keys().chain(self.answers.iter().map(|(device, _)| device)).map(String::as_str)
    }

    fn answer(&mut self, device: &str, prefix: Prefix) {
        let bits = if prefix.ip().is_ipv4() { 32 } else { 128 };
        if bits - prefix.length() > WIDEST {
            self.wide.insert(prefix);
            return;
        }
        self.answers.extend(prefix.network().iter().map(|ip| (device.to_owned(), ip)));
    }
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

/// Bits of a prefix that may be answered for, address by address: as many as 1,024.
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
    fn thousands_of_addresses_are_not_answered_for_one_by_one() {
        let interface = interface(&["10.1.0.0/17"], &["10.1.0.0/16"], &[]);
        let plan = OnLan::plan(&interface, &[lan("eth1", "10.1.0.0/16")], None);
        assert_eq!((plan.answers.len(), plan.wide), (0, [prefix("10.1.0.0/17")].into()));
    }
}
