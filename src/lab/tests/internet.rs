//! The lab's internet behaves like one, without any overlay on it.
//!
//! ```text
//!            h1 ---- inet ---- h2
//!                   /    \
//!               a-nat    b-nat      a: 192.168.1.0/24, b: 192.168.2.0/24
//!                |          |
//!                a, a-1     b, b-1
//! ```

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use flatlan_lab::{
    Bursts, Capture, Direction, Fault, HubSpec, Lab, LabError, Namespace, Nat, Payload, Place, Probe, ProxySpec,
    Quality, SiteSpec, Transfer, Underlay, occurrences, sockets,
};
use support::{Expect, MS, Server, ask_udp, first_v4, open_tcp, pings, punch};

#[test]
fn every_machine_has_a_way_to_the_hubs() {
    let lab = Lab::builder().underlay(Underlay::Dual).hub("h1").site("a", Nat::Cone).build().unwrap();
    for address in lab.hub("h1").unwrap().addresses() {
        for machine in ["admin", "a", "a-1", "a-nat"] {
            assert!(pings(lab.machine(machine).unwrap(), *address, Expect::Answer), "{machine} to {address}");
        }
    }
}

#[test]
fn a_bare_machine_is_one_hop_from_the_core_and_faults_know_its_name() {
    let lab = Lab::builder().bare("x").bare("y").build().unwrap();
    let (x, to) = (lab.bare("x").unwrap().namespace(), lab.bare("y").unwrap().addresses()[0]);
    assert!(pings(x, to, Expect::Answer));
    lab.cut_between("x", "y").unwrap();
    assert!(!pings(x, to, Expect::Silence));
    assert!(pings(lab.admin(), to, Expect::Answer));
}

#[test]
fn an_ipv6_internet_has_no_ipv4() {
    let lab = Lab::builder().underlay(Underlay::V6).hub("h1").site("a", Nat::Cone).build().unwrap();
    let hub = lab.hub("h1").unwrap();
    assert!(hub.addresses().iter().all(IpAddr::is_ipv6));
    assert!(pings(lab.machine("a").unwrap(), hub.addresses()[0], Expect::Answer));
    assert!(!pings(lab.machine("a").unwrap(), Ipv4Addr::new(198, 18, 1, 2).into(), Expect::Silence));
}

#[test]
fn a_hub_s_name_leads_to_its_addresses_and_can_be_moved() {
    let lab = Lab::builder().hub_with(HubSpec::new("h1").by_name()).site("a", Nat::Cone).build().unwrap();
    let (hub, gateway) = (lab.hub("h1").unwrap(), lab.machine("a").unwrap());
    assert_eq!(hub.host(), "h1.hub.test");
    let resolve = || gateway.exec("getent", ["ahostsv4", "h1.hub.test"]).unwrap();
    assert!(resolve().starts_with(&hub.addresses()[0].to_string()));
    lab.set_dns("h1.hub.test", &["192.0.2.7".parse().unwrap()]).unwrap();
    assert!(resolve().starts_with("192.0.2.7"));
}

#[test]
fn a_router_hides_its_site_behind_its_own_address() {
    let lab = Lab::builder().hub("h1").site("a", Nat::Cone).site("b", Nat::None).build().unwrap();
    let server = Server::udp(lab.machine("h1").unwrap());
    let hub = SocketAddr::new(first_v4(&lab, "h1"), server.port());
    let seen = ask_udp(lab.machine("a-1").unwrap(), 4000, hub, Expect::Answer).unwrap();
    assert!(seen.ip().to_string().starts_with("198.18."), "{seen}");
    let open = ask_udp(lab.machine("b-1").unwrap(), 4000, hub, Expect::Answer).unwrap();
    assert_eq!(open.ip(), lab.site("b").unwrap().hosts()[0].addresses()[0]);
}

#[test]
fn a_cone_maps_one_port_for_all_destinations_and_a_symmetric_router_does_not() {
    let lab = Lab::builder().hub("h1").hub("h2").site("a", Nat::Cone).site("b", Nat::Symmetric).build().unwrap();
    let servers = ["h1", "h2"].map(|hub| (first_v4(&lab, hub), Server::udp(lab.machine(hub).unwrap())));
    let seen = |site: &str| {
        let ask = |(ip, server): &(IpAddr, Server)| {
            ask_udp(lab.machine(site).unwrap(), 4000, SocketAddr::new(*ip, server.port()), Expect::Answer).unwrap()
        };
        (ask(&servers[0]), ask(&servers[1]))
    };
    let (one, other) = seen("a");
    assert_eq!(one, other);
    assert_eq!(one.port(), 4000);
    let (one, other) = seen("b");
    assert_eq!(one.ip(), other.ip());
    assert_ne!(one.port(), other.port());
}

#[test]
fn strangers_reach_a_full_cone_and_no_other_router() {
    for (nat, reached) in [(Nat::FullCone, true), (Nat::Cone, false), (Nat::Symmetric, false)] {
        let lab = Lab::builder().hub("h1").hub("h2").site("a", nat).build().unwrap();
        let server = Server::udp(lab.machine("h1").unwrap());
        let gateway = Server::udp_at(lab.machine("a").unwrap(), 4000);
        // The gateway's own question opens the mapping; then somebody else uses it.
        let mapped = gateway.ask(SocketAddr::new(first_v4(&lab, "h1"), server.port()));
        let stranger = ask_udp(lab.machine("h2").unwrap(), 5000, mapped, Expect::answer_if(reached));
        assert_eq!(stranger.is_some(), reached, "{nat}");
    }
}

#[test]
fn two_cones_are_crossed_when_both_sides_send_and_two_symmetric_routers_are_not() {
    for (nat, crossed) in [(Nat::Cone, true), (Nat::Symmetric, false)] {
        let lab = Lab::builder().hub("h1").site("a", nat).site("b", nat).build().unwrap();
        let server = Server::udp(lab.machine("h1").unwrap());
        let hub = SocketAddr::new(first_v4(&lab, "h1"), server.port());
        let (a, b) = (Server::udp_at(lab.machine("a").unwrap(), 4000), Server::udp_at(lab.machine("b").unwrap(), 4000));
        let (a_outside, b_outside) = (a.ask(hub), b.ask(hub));
        let expect = Expect::answer_if(crossed);
        assert_eq!(punch((&a, a_outside), (&b, b_outside), expect), crossed, "{nat}");
    }
}

#[test]
fn what_a_strict_router_lets_out() {
    for (nat, udp, tcp_443, tcp_80) in [
        (Nat::UdpBlocked, false, true, true),
        (Nat::Tcp443Only, false, true, false),
        (Nat::ProxyOnly, false, false, false),
        (Nat::Symmetric, true, true, true),
    ] {
        for underlay in [Underlay::V4, Underlay::V6] {
            let lab = Lab::builder().underlay(underlay).hub("h1").site("a", nat).build().unwrap();
            let (hub, gateway) = (lab.hub("h1").unwrap(), lab.machine("a").unwrap());
            let address = hub.addresses()[0];
            let server = Server::udp(hub.namespace());
            let asked = ask_udp(gateway, 4000, SocketAddr::new(address, server.port()), Expect::answer_if(udp));
            assert_eq!(asked.is_some(), udp, "UDP, {nat}, {underlay:?}");
            for (port, passes) in [(443, tcp_443), (80, tcp_80)] {
                let at = SocketAddr::new(address, port);
                let listener = hub.namespace().run(move || std::net::TcpListener::bind(at)).unwrap();
                assert_eq!(
                    open_tcp(gateway, at, Expect::answer_if(passes)).is_ok(),
                    passes,
                    "TCP {port}, {nat}, {underlay:?}"
                );
                drop(listener);
            }
        }
    }
}

#[test]
fn a_proxy_is_the_way_out_of_a_site_that_has_no_other() {
    let credentials = Some(("site".to_owned(), "secret".to_owned()));
    let site = SiteSpec::new("a").nat(Nat::ProxyOnly).proxy(ProxySpec { credentials });
    let lab = Lab::builder().hub_with(HubSpec::new("h1").by_name()).site_with(site).build().unwrap();
    let (hub, site) = (lab.hub("h1").unwrap(), lab.site("a").unwrap());
    let server = Server::tcp(hub.namespace(), 443);
    let proxy = site.proxy().unwrap();
    assert_eq!(proxy.url(), "http://site@192.168.1.1:3128");
    let target = "h1.hub.test:443";
    assert_eq!(support::connect_through(site.gateway(), proxy.address(), target, None), 407);
    assert_eq!(support::connect_through(site.gateway(), proxy.address(), target, Some("c2l0ZTpzZWNyZXQ=")), 200);
    assert_eq!(proxy.targets(), [target]);
    drop(server);
}

#[test]
fn a_second_uplink_takes_over_and_gives_back() {
    let site = SiteSpec::new("a").uplink(Nat::Cone);
    let lab = Lab::builder().underlay(Underlay::Dual).hub("h1").site_with(site).build().unwrap();
    let gateway = lab.machine("a").unwrap();
    for address in lab.hub("h1").unwrap().addresses() {
        let probe = Probe::ping(gateway, *address, 10 * MS).unwrap();
        probe.wait_answers(3, 10_000 * MS).unwrap();
        let before = lab.machine("a-nat2").unwrap().exec("ip", ["-s", "link", "show", "wan"]).unwrap();
        lab.uplink_down("a", 0).unwrap();
        probe.wait_answers(10, 10_000 * MS).unwrap();
        let after = lab.machine("a-nat2").unwrap().exec("ip", ["-s", "link", "show", "wan"]).unwrap();
        assert_ne!(before, after, "the second router carried nothing");
        lab.uplink_up("a", 0).unwrap();
        probe.wait_answers(10, 10_000 * MS).unwrap();
    }
    assert!(lab.machine("a").unwrap().exec("ip", ["route", "get", "198.18.1.2"]).unwrap().contains("eth0"));
}

#[test]
fn a_cut_is_silent_and_ends_with_healing() {
    let lab = Lab::builder().hub("h1").hub("h2").site("a", Nat::Cone).build().unwrap();
    let gateway = lab.machine("a").unwrap();
    let cut = Probe::ping(gateway, first_v4(&lab, "h1"), 5 * MS).unwrap();
    let other = Probe::ping(gateway, first_v4(&lab, "h2"), 5 * MS).unwrap();
    cut.wait_answers(10, 10_000 * MS).unwrap();
    let at = lab.cut("h1").unwrap();
    // what came before may still be read
    let deadline = Instant::now() + 10_000 * MS;
    while !matches!(cut.wait_answers(3, 300 * MS), Err(LabError::Timeout { .. })) {
        assert!(Instant::now() < deadline, "it answers");
    }
    let lost = gateway.exec("ping", ["-c1", "-W1", &first_v4(&lab, "h1").to_string()]).unwrap_err();
    assert!(!lost.to_string().contains("nreachable"), "{lost}");
    let healed = lab.heal("h1").unwrap();
    cut.wait_answers(10, 10_000 * MS).unwrap();
    let (cut, other) = (cut.stop().longest_gap_between(at, healed).length, other.stop().longest_gap().length);
    assert!(cut >= 300 * MS && other < cut / 2, "cut off for {cut:?}, the other {other:?}");
}

#[test]
fn a_one_way_cut_lets_the_other_way_pass() {
    let lab = Lab::builder().hub("h1").site("a", Nat::None).build().unwrap();
    let server = Server::udp_at(lab.machine("h1").unwrap(), 7000);
    let gateway = Server::udp_at(lab.machine("a").unwrap(), 4000);
    let (hub, site) = (first_v4(&lab, "h1"), lab.site("a").unwrap().lan_addresses()[0]);
    lab.cut_one_way("h1", Direction::To).unwrap();
    gateway.poke(SocketAddr::new(hub, 7000));
    server.poke(SocketAddr::new(site, 4000));
    assert!(gateway.heard_from(hub, Expect::Answer));
    assert!(!server.heard_from(site, Expect::Silence));
}

#[test]
fn faults_between_two_touch_nobody_else() {
    let lab = Lab::builder().hub("h1").hub("h2").site("a", Nat::None).site("b", Nat::None).build().unwrap();
    let at = |site: &str| lab.site(site).unwrap().lan_addresses()[0];
    let (a, b, h1) = (lab.machine("a").unwrap(), lab.machine("b").unwrap(), lab.machine("h1").unwrap());
    assert!(pings(a, at("b"), Expect::Answer));
    lab.forbid_direct().unwrap();
    assert!(!pings(a, at("b"), Expect::Silence));
    assert!(pings(a, first_v4(&lab, "h1"), Expect::Answer));
    lab.allow_direct().unwrap();
    lab.cut_between("h1", "h2").unwrap();
    assert!(!pings(h1, first_v4(&lab, "h2"), Expect::Silence));
    assert!(pings(b, first_v4(&lab, "h2"), Expect::Answer) && pings(a, at("b"), Expect::Answer));
    lab.heal_all().unwrap();
    assert!(pings(h1, first_v4(&lab, "h2"), Expect::Answer));
}

#[test]
fn a_hub_that_drops_data_passes_probes_and_everything_else() {
    let lab = Lab::builder().hub("h1").site("a", Nat::None).build().unwrap();
    let (a, h1, at) = (lab.machine("a").unwrap(), lab.machine("h1").unwrap(), first_v4(&lab, "h1"));
    lab.drop_data("h1").unwrap();
    let socket = h1.run(move || UdpSocket::bind((at, 7000))).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let label = [0x20, 8, 0, 0, 1, 2, 3, 4];
    let [data, probe] = [4_u8, 0x10].map(|kind| [&label[..], &[kind, 0, 0, 0]].concat());
    let plain = vec![4; 12];
    a.run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        // the last one to be sent comes through: what was sent before it has been dropped
        for datagram in [&data, &plain, &probe] {
            socket.send_to(datagram, (at, 7000)).unwrap();
        }
    });
    let mut heard = [0; 64];
    let mut next = || socket.recv(&mut heard).map(|length| heard[..length].to_vec()).unwrap();
    assert_eq!((next()[0], next()[8]), (4, 0x10));
    let probe = Probe::ping(a, at, MS).unwrap();
    probe.wait_answers(5, LONG).unwrap();
}

#[test]
fn datagrams_are_counted_one_by_one_and_a_duplicate_is_none() {
    let lab = Lab::builder().bare("x").bare("y").build().unwrap();
    let (x, y) = (lab.bare("x").unwrap(), lab.bare("y").unwrap());
    let emulator = lab.emulate("x", Quality { delay: MS * 20, doubled: 1000, ..Quality::default() }, 1).unwrap();
    let probe = Probe::datagrams(x.namespace(), y.namespace(), y.addresses()[0], MS).unwrap();
    probe.wait_answers(100, LONG).unwrap();
    let report = probe.finish(LONG);
    assert_eq!(report.answered(), report.sent());
    drop(emulator);
    lab.lose("x", 500).unwrap();
    let probe = Probe::datagrams(x.namespace(), y.namespace(), y.addresses()[0], MS).unwrap();
    probe.wait_answers(100, LONG).unwrap();
    let report = probe.finish(MS * 100);
    assert!(report.answered() < report.sent(), "{} of {}", report.answered(), report.sent());
}

#[test]
fn a_cut_between_two_meets_what_comes_over_a_bad_wire() {
    let lab = Lab::builder().bare("x").bare("y").bare("z").build().unwrap();
    let [x, y, z] = ["x", "y", "z"].map(|name| lab.bare(name).unwrap());
    let _wire = lab.emulate("x", Quality { delay: MS, ..Quality::default() }, 1).unwrap();
    assert!(pings(x.namespace(), y.addresses()[0], Expect::Answer));
    lab.cut_one_way_between("x", "y").unwrap();
    assert!(!pings(x.namespace(), y.addresses()[0], Expect::Silence));
    assert!(pings(x.namespace(), z.addresses()[0], Expect::Answer));
}

#[test]
fn a_paced_transfer_keeps_its_rate_and_its_bytes() {
    let lab = Lab::builder().bare("x").bare("y").build().unwrap();
    let (x, y) = (lab.bare("x").unwrap(), lab.bare("y").unwrap());
    let transfer = Transfer::start_paced(x.namespace(), y.namespace(), y.addresses()[0], 8_000_000).unwrap();
    transfer.wait_received(500_000, LONG).unwrap();
    let report = transfer.stop(LONG);
    assert!(report.equal && report.broken.is_none(), "{report:?}");
    assert!(report.megabits_per_second() < 9.0, "{report:?}");
}

#[test]
fn random_loss_loses_about_what_it_says() {
    let lab = Lab::builder().hub("h1").site("a", Nat::Cone).build().unwrap();
    lab.inject(Place::Of("h1".to_owned()), Fault::LosePerMille(200), Direction::To).unwrap();
    let probe = Probe::ping(lab.machine("a").unwrap(), first_v4(&lab, "h1"), MS).unwrap();
    probe.wait_answers(400, 20_000 * MS).unwrap();
    let report = probe.stop();
    let share = report.answered() * 1000 / report.sent();
    assert!((700..=900).contains(&share), "{share} of 1000 answered");
}

#[test]
fn a_bad_wire_delays_and_doubles_and_is_a_good_one_again_when_it_is_dropped() {
    let lab = Lab::builder().bare("x").bare("y").build().unwrap();
    let (x, to) = (lab.bare("x").unwrap().namespace(), lab.bare("y").unwrap().addresses()[0]);
    let emulator = lab.emulate("x", Quality { delay: MS * 40, doubled: 1000, ..Quality::default() }, 1).unwrap();
    let probe = Probe::ping(x, to, MS * 10).unwrap();
    probe.wait_answers(20, LONG).unwrap();
    assert!(probe.stop().round_trip_quantile(0.0) >= MS * 40);
    let fates = emulator.fates();
    assert!(fates.doubled >= 20 && fates.doubled == fates.came, "{fates:?}");
    drop(emulator);
    let probe = Probe::ping(x, to, MS * 10).unwrap();
    probe.wait_answers(20, LONG).unwrap();
    assert!(probe.stop().round_trip_quantile(0.0) < MS * 40);
}

#[test]
fn what_a_bad_wire_loses_does_not_arrive_and_tcp_heals_it() {
    let lab = Lab::builder().bare("x").bare("y").build().unwrap();
    let (x, y) = (lab.bare("x").unwrap(), lab.bare("y").unwrap());
    let chance = Quality { lost: 20, doubled: 20, held: 50, hold: MS * 3, jitter: MS, ..Quality::default() };
    let quality = Quality { bursts: Bursts { begin: 2, end: 200, lost: 900 }, damaged: 5, ..chance };
    let emulator = lab.emulate("x", quality, 5).unwrap();
    let (bytes, address) = (4 << 20, y.addresses()[0]);
    let transfer = Transfer::start(x.namespace(), y.namespace(), address, Payload::Random, Some(bytes)).unwrap();
    let report = transfer.finish(LONG * 4).unwrap();
    assert!(report.equal && report.bytes == bytes, "{report:?}");
    let fates = emulator.fates();
    assert!(fates.lost > 0 && fates.doubled > 0 && fates.held > 0 && fates.refused == 0, "{fates:?}");
    assert!(fates.damaged > 0, "{fates:?}");
}

#[test]
fn an_mtu_hole_swallows_large_packets_of_a_batch_and_no_small_ones() {
    let lab = Lab::builder().hub("h1").site("a", Nat::None).build().unwrap();
    let (gateway, hub) = (lab.machine("a").unwrap(), first_v4(&lab, "h1").to_string());
    lab.mtu_hole("h1", 1300).unwrap();
    gateway.exec("ping", ["-c1", "-W2", "-M", "do", "-s", "1200", &hub]).unwrap();
    let lost = gateway.exec("ping", ["-c1", "-W1", "-M", "do", "-s", "1372", &hub]).unwrap_err().to_string();
    assert!(!lost.contains("too long"), "{lost}");
    // The kernel sends small segments as one batch of 64 KiB: each of them passes.
    gateway.exec("ip", ["route", "replace", &format!("{hub}/32"), "via", "192.168.1.1", "advmss", "1000"]).unwrap();
    lab.machine("h1")
        .unwrap()
        .exec("ip", ["route", "replace", "192.168.1.0/24", "via", "198.18.1.1", "advmss", "1000"])
        .unwrap();
    let transfer =
        Transfer::start(gateway, lab.machine("h1").unwrap(), first_v4(&lab, "h1"), Payload::Random, Some(4 << 20));
    let report = transfer.unwrap().finish(20_000 * MS).unwrap();
    assert!(report.equal);
}

#[test]
fn blocked_udp_leaves_tcp_alone() {
    let lab = Lab::builder().hub("h1").site("a", Nat::Cone).build().unwrap();
    let hub = lab.machine("h1").unwrap();
    let server = Server::udp(hub);
    let at = SocketAddr::new(first_v4(&lab, "h1"), server.port());
    assert!(ask_udp(lab.machine("a").unwrap(), 4000, at, Expect::Answer).is_some());
    lab.block_udp("a").unwrap();
    assert!(ask_udp(lab.machine("a").unwrap(), 4001, at, Expect::Silence).is_none());
    let tcp = Server::tcp(hub, 443);
    assert!(open_tcp(lab.machine("a").unwrap(), SocketAddr::new(at.ip(), 443), Expect::Answer).is_ok());
    drop(tcp);
}

#[test]
fn the_core_counts_who_carried_what() {
    let lab = Lab::builder().hub("h1").hub("h2").site("a", Nat::Cone).build().unwrap();
    // So seldom that nothing is seen of the transfer but its beginning and its end.
    let log = lab.watch_traffic(1_000 * MS).unwrap();
    let before = lab.traffic();
    let (a, h1) = (lab.machine("a").unwrap(), lab.machine("h1").unwrap());
    let transfer = Transfer::start(a, h1, first_v4(&lab, "h1"), Payload::Random, Some(8 << 20)).unwrap();
    let report = transfer.finish(30_000 * MS).unwrap();
    assert!(report.equal && report.bytes == 8 << 20 && report.broken.is_none(), "{report:?}");
    let crossed = lab.traffic().since(&before);
    assert!(crossed.of("h1").received_bytes > 8 << 20, "{crossed:?}");
    assert!(crossed.of("a").sent_bytes > 8 << 20, "{crossed:?}");
    assert!(crossed.of("h2").received_bytes < 100_000, "{crossed:?}");
    let after = Instant::now();
    assert!(log.between(before.at, after).of("h1").received_bytes > 8 << 20, "not one byte is missing");
}

#[test]
fn a_tcp_echo_and_ss_see_the_client_s_address() {
    let lab = Lab::builder().hub("h1").site("a", Nat::None).build().unwrap();
    let (a, h1) = (lab.machine("a").unwrap(), lab.machine("h1").unwrap());
    let probe = Probe::tcp_echo(a, h1, first_v4(&lab, "h1"), 5 * MS).unwrap();
    probe.wait_answers(20, 10_000 * MS).unwrap();
    let client = probe.peer().unwrap();
    assert_eq!(client.ip(), lab.site("a").unwrap().lan_addresses()[0]);
    assert!(sockets(h1).unwrap().iter().any(|socket| socket.peer == client));
    let report = probe.stop();
    assert!(report.broken().is_none());
}

#[test]
fn a_program_s_own_etc_hosts_does_not_leak_out() {
    let lab = Lab::builder().hub("h1").build().unwrap();
    assert!(!std::fs::read_to_string("/etc/hosts").unwrap_or_default().contains("hub.test"));
    let inside: &Namespace = lab.machine("h1").unwrap();
    assert!(inside.exec("cat", ["/etc/hosts"]).unwrap().contains("h1.hub.test"));
}

#[test]
fn a_capture_holds_what_crossed_the_machine_and_the_search_finds_it() {
    let lab = Lab::builder().hub("h1").hub("h2").site("a", Nat::Cone).build().unwrap();
    let (a, h1) = (lab.machine("a").unwrap(), lab.machine("h1").unwrap());
    let captures = ["a", "h1", "h2"].map(|machine| Capture::start(&lab, lab.machine(machine).unwrap()).unwrap());
    let payload = Payload::Repeat("seven little goats; ".to_owned());
    let transfer = Transfer::start(a, h1, first_v4(&lab, "h1"), payload, Some(1 << 20)).unwrap();
    assert!(transfer.finish(20_000 * MS).unwrap().equal);
    let found = captures.map(|capture| occurrences(&capture.stop().unwrap(), b"seven little goats").unwrap());
    // A text on the border of two packets is not found: a few of them may be missing.
    let whole = (1 << 20) / 20;
    assert!(found[0] > whole * 9 / 10 && found[1] > whole * 9 / 10, "{found:?}");
    assert_eq!(found[2], 0);
}

#[test]
fn a_router_that_forgets_maps_to_another_port() {
    let lab = Lab::builder().hub("h1").site("a", Nat::Cone).build().unwrap();
    let server = Server::udp(lab.machine("h1").unwrap());
    let hub = SocketAddr::new(first_v4(&lab, "h1"), server.port());
    let gateway = lab.machine("a").unwrap();
    let before = ask_udp(gateway, 4000, hub, Expect::Answer).unwrap();
    assert_eq!(ask_udp(gateway, 4000, hub, Expect::Answer), Some(before));
    lab.rebind("a").unwrap();
    let after = ask_udp(gateway, 4000, hub, Expect::Answer).unwrap();
    assert_eq!(before.ip(), after.ip());
    assert_ne!(before.port(), after.port());
}

#[test]
fn an_idle_mapping_is_forgotten_after_the_time_that_was_set() {
    let lab = Lab::builder().hub("h1").site("a", Nat::Cone).build().unwrap();
    lab.set_nat_timeout("a", 1).unwrap();
    let server = Server::udp(lab.machine("h1").unwrap());
    let gateway = Server::udp_at(lab.machine("a").unwrap(), 4000);
    let mapped = gateway.ask(SocketAddr::new(first_v4(&lab, "h1"), server.port()));
    let router = lab.machine("a-nat").unwrap();
    let deadline = Instant::now() + 5000 * MS;
    while router
        .run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack"))
        .is_ok_and(|text| text.contains("dport"))
    {
        assert!(Instant::now() < deadline);
        std::thread::sleep(10 * MS);
    }
    server.poke(mapped);
    assert!(!gateway.heard_text("poke", Expect::Silence));
}

/// How long answers may take to come.
const LONG: Duration = Duration::from_secs(10);
