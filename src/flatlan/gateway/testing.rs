//! A gateway's prefixes and LANs, by their texts.

use flatlan_node::Interface;
use flatlan_os::route::Connected;
use flatlan_types::{Name, Prefix};

pub(super) fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// A LAN that this machine is in.
pub(super) fn lan(device: &str, of: &str) -> Connected {
    Connected { device: device.to_owned(), prefix: prefix(of) }
}

/// What a gateway's roster says: prefixes of others, its own, and those of its own that moved here.
pub(super) fn interface(routes: &[&str], served: &[&str], moved: &[&str]) -> Interface {
    let name: Name = "site".parse().unwrap();
    let prefixes = |texts: &[&str]| texts.iter().map(|text| prefix(text)).collect::<Vec<_>>();
    let served = [prefixes(served), prefixes(moved)].concat();
    let range = prefix("10.77.0.0/16");
    let (routes, moved) = ([prefixes(routes), vec![range]].concat(), prefixes(moved));
    Interface {
        network: name.clone(),
        name,
        ips: Vec::new(),
        range,
        routes,
        served,
        beside: Vec::new(),
        moved,
        mtu: 1400,
    }
}
