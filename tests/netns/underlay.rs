//! What the internet below speaks, how hubs are named, and a node with two ways out of its site.
//!
//! ```text
//!        h1 ---- inet ---- h2          IPv4, IPv6 or both
//!              /   |  \
//!         a-nat a-nat2 b-nat           a has a second uplink in one of the tests
//!             \    /     |
//!               a        b
//! ```

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod support;

use std::net::{IpAddr, SocketAddr};

use flatlan_lab::{HubSpec, Lab, Nat, Payload, SiteSpec, Transfer, Underlay};
use support::{MIB, PATIENCE, gateway, is_direct, lab, ping, send_to, wait_path, wait_status};

#[test]
fn an_ipv4_underlay_carries_both_families() {
    let lab = lab().underlay(Underlay::V4).hub("h1").site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    lab.bring_up().unwrap();
    both_families(&lab);
    assert!(direct_endpoint(&lab).is_ipv4());
}

#[test]
fn an_ipv6_underlay_carries_both_families() {
    let lab = lab().underlay(Underlay::V6).hub("h1").site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    lab.bring_up().unwrap();
    both_families(&lab);
    assert!(direct_endpoint(&lab).is_ipv6());
}

#[test]
fn an_underlay_of_both_and_hubs_of_either_bring_everybody_together() {
    let lab = lab()
        .underlay(Underlay::Dual)
        .hub_with(HubSpec::new("h1"))
        .hub_with(HubSpec::new("h2").underlay(Underlay::V6))
        .site_with(SiteSpec::new("a").nat(Nat::Symmetric).underlay(Underlay::V4))
        .site_with(SiteSpec::new("b").nat(Nat::Symmetric).underlay(Underlay::V6))
        .build()
        .unwrap();
    lab.bring_up().unwrap();
    both_families(&lab);
    // They share no family: only the hub that has both can be between them.
    let _talk = ping(&lab, "a", "b");
    let path = wait_path(&lab, "a", "b", "a relayed path", |path| path["kind"] == "relay");
    assert_eq!(path["via"][0], "h1", "{path:#}");
}

#[test]
fn a_hub_is_found_by_its_name_and_found_again_where_the_name_moves() {
    let lab = lab()
        .hub_with(HubSpec::new("h1").by_name())
        .hub_with(HubSpec::new("spare").by_name())
        .site("a", Nat::Symmetric)
        .site("b", Nat::Symmetric)
        .build()
        .unwrap();
    let (h1, spare) = (lab.hub("h1").unwrap(), lab.hub("spare").unwrap());
    lab.network_create().unwrap();
    lab.add_hub(h1).unwrap();
    lab.start_hub("h1").unwrap();
    lab.publish().unwrap();
    for site in ["a", "b"] {
        lab.join(site).unwrap();
        lab.up(site).unwrap();
    }
    let talk = ping(&lab, "a", "b");
    // The hub moves to another machine with its state, and its name with it.
    lab.kill("h1").unwrap();
    gateway(&lab, "a").exec("cp", ["-a", h1.state().to_str().unwrap(), spare.state().to_str().unwrap()]).unwrap();
    lab.set_dns("h1.hub.test", spare.addresses()).unwrap();
    lab.start_hub("spare").unwrap();
    for site in ["a", "b"] {
        wait_status(&lab, site, "the hub again", |status| (status["hubs"][0]["state"] == "attached").then_some(()));
    }
    talk.wait_answers(100, PATIENCE).unwrap();
}

#[test]
fn a_node_with_two_uplinks_survives_losing_the_one_in_use() {
    let lab = lab()
        .hub("h1")
        .hub("h2")
        .site_with(SiteSpec::new("a").nat(Nat::Cone).uplink(Nat::Cone))
        .site("b", Nat::Cone)
        .build()
        .unwrap();
    lab.bring_up().unwrap();
    let talk = ping(&lab, "a", "b");
    let address = lab.site("b").unwrap().virtual_ip().into();
    let flow = Transfer::start(gateway(&lab, "a"), gateway(&lab, "b"), address, Payload::Random, None).unwrap();
    for uplink in [0, 1] {
        flow.wait_received(flow.received() + 4 * MIB, PATIENCE).unwrap();
        lab.uplink_down("a", uplink).unwrap();
        flow.wait_received(flow.received() + 4 * MIB, PATIENCE).unwrap();
        talk.wait_answers(100, PATIENCE).unwrap();
        lab.uplink_up("a", uplink).unwrap();
    }
    let report = flow.stop(PATIENCE);
    assert!(report.equal && report.broken.is_none(), "{report:?}");
}

#[test]
fn a_machine_without_ipv6_is_in_the_lan_by_ipv4() {
    let lab = lab().underlay(Underlay::V4).hub("h1").site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    for key in ["net/ipv6/conf/all/disable_ipv6", "net/ipv6/conf/default/disable_ipv6"] {
        gateway(&lab, "a").sysctl(key, "1").unwrap();
    }
    lab.bring_up().unwrap();
    send_to(gateway(&lab, "a"), gateway(&lab, "b"), lab.site("b").unwrap().virtual_ip().into(), 4 * MIB);
    assert!(lab.process("a").unwrap().tail(50).contains("IPv6 is switched off on this machine"));
}

/// A machine that moves into a LAN which another member carries goes there itself; the overlay stays the overlay's.
#[test]
fn a_lan_that_this_machine_comes_to_be_in_is_its_own_and_the_overlay_stays_reachable() {
    let b = SiteSpec::new("b").nat(Nat::Cone).hosts(1);
    let lab = lab().hub("h1").site("a", Nat::Cone).site_with(b).build().unwrap();
    lab.bring_up().unwrap();
    let (a, b) = (gateway(&lab, "a"), lab.site("b").unwrap());
    let (theirs, prefix) = (b.lan_addresses()[0], b.prefixes()[0]);
    let ours = IpAddr::from((u32::from_be_bytes(octets(prefix.ip())) + 77).to_be_bytes());
    let overlaid = |to: IpAddr| a.exec("ip", ["route", "get", &to.to_string()]).unwrap().contains("dev fl0");
    assert!(overlaid(theirs));
    for words in [
        "link add vpn type veth peer name far".to_owned(),
        "link set far up".to_owned(),
        "link set vpn up".to_owned(),
        // it holds the overlay's range, too
        "addr add 10.255.255.1/8 dev vpn".to_owned(),
        format!("addr add {ours}/{} dev vpn", prefix.prefix()),
    ] {
        a.exec("ip", words.split(' ')).unwrap();
    }
    wait_status(&lab, "a", "a route of its own", |_| (!overlaid(theirs)).then_some(()));
    assert!(overlaid(b.virtual_ip().into()));
    drop(ping(&lab, "a", "b"));
    // and back
    a.exec("ip", ["link", "del", "vpn"]).unwrap();
    wait_status(&lab, "a", "the overlay's route again", |_| overlaid(theirs).then_some(()));
}

fn octets(ip: IpAddr) -> [u8; 4] {
    let IpAddr::V4(ip) = ip else { panic!("{ip} is no IPv4 address") };
    ip.octets()
}

/// A few megabytes by each virtual address, each way.
fn both_families(lab: &Lab) {
    for (from, to) in [("a", "b"), ("b", "a")] {
        let addresses = lab.virtual_ips(to).unwrap();
        assert!(addresses.iter().any(IpAddr::is_ipv4) && addresses.iter().any(IpAddr::is_ipv6), "{addresses:?}");
        for address in addresses {
            send_to(gateway(lab, from), gateway(lab, to), address, 4 * MIB);
        }
    }
}

/// Where a sends datagrams for b, once it knows a direct path.
fn direct_endpoint(lab: &Lab) -> SocketAddr {
    let _talk = ping(lab, "a", "b");
    let path = wait_path(lab, "a", "b", "a direct path", is_direct);
    path["endpoint"].as_str().unwrap().parse().unwrap()
}
