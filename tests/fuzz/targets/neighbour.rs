//! What hosts of a LAN ask by ARP and by neighbour discovery.

use std::net::{Ipv4Addr, Ipv6Addr};

use flatlan_fuzz::{Fuzz, outcome};

use wire::{OVERRIDE, REPLY, REQUEST, SOLICITED};

#[path = "../../../src/os/src/checksum.rs"]
mod checksum;
// what is around it has sockets
#[path = "../../../src/os/src/neighbour/wire.rs"]
mod wire;

const ASKER: ([u8; 6], Ipv4Addr) = ([2, 0, 0, 0, 0, 1], Ipv4Addr::new(192, 0, 2, 1));
const TARGET: ([u8; 6], Ipv4Addr) = ([0; 6], Ipv4Addr::new(192, 0, 2, 2));

#[test]
fn arp_request() {
    let seeds = [REQUEST, REPLY].map(|operation| wire::arp(operation, ASKER, TARGET));
    Fuzz::new("arp-request").seeds(seeds).longest(64).run(|input| {
        let asked = wire::parse_request(input);
        if let Some((target, asker)) = asked {
            // padding and hardware addresses do not matter
            let again = wire::arp(REQUEST, ([0; 6], asker), ([0; 6], target));
            assert_eq!(wire::parse_request(&again), asked);
        }
        outcome(&asked.is_some())
    });
}

#[test]
fn neighbour_solicitation() {
    let asker: Ipv6Addr = "fd77:2::b".parse().unwrap();
    let ends = (asker, "ff02::1:ff00:b".parse().unwrap());
    let target: Ipv6Addr = "fd77:1::b".parse().unwrap();
    let advertised = wire::advertisement(ends, target, ASKER.0, SOLICITED | OVERRIDE);
    // the same as a question: another kind, no flags, and the checksum that follows from it
    let mut solicited = advertised.clone();
    (solicited[40], solicited[44]) = (135, 0);
    let was = [solicited[42], solicited[43]];
    [solicited[42], solicited[43]] = checksum::sum([&was, &[0x01, 0x00], &[0x60, 0x00]]).to_be_bytes();
    assert_eq!(wire::parse_solicitation(&solicited), Some((target, asker)));
    Fuzz::new("neighbour-solicitation").seeds([advertised, solicited]).longest(128).run(|input| {
        let asked = wire::parse_solicitation(input);
        assert!(asked.is_none_or(|(target, _)| !target.is_multicast()));
        outcome(&asked.is_some())
    });
}
