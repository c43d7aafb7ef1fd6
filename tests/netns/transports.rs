//! What carries a packet: directly, by a hub over UDP, by a hub over TLS, through a proxy; and how that changes.
//!
//! ```text
//!        h1 ---- inet ---- h2
//!              /      \
//!          a-nat      b-nat       the kinds of router are what the tests differ in
//!            |          |
//!            a          b
//! ```

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod support;

use flatlan_lab::{Lab, Nat, Payload, ProxySpec, SiteSpec, Transfer};
use serde_json::Value;
use support::{
    MIB, PATIENCE, gateway, is_direct, is_relay, lab, path, ping, send, send_by_every_address, wait_path, wait_status,
};

const MUCH: u64 = 64 * MIB;

#[test]
fn nodes_behind_cones_punch_holes_and_64_mib_arrive_directly() {
    let lab = lab().hub("h1").site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    lab.bring_up().unwrap();
    let _talk = ping(&lab, "a", "b");
    wait_path(&lab, "a", "b", "a direct path", is_direct);
    wait_path(&lab, "b", "a", "a direct path", is_direct);
    let before = lab.traffic();
    send_by_every_address(&lab, "a", "b", MUCH);
    let by_hub = lab.traffic().since(&before).of("h1").received_bytes;
    assert!(by_hub < MUCH / 10, "{by_hub} bytes crossed the hub");
    wait_path(&lab, "a", "b", "a direct path", is_direct);
}

#[test]
fn a_symmetric_and_an_open_node_find_the_direct_path() {
    let lab = lab().hub("h1").site("a", Nat::Symmetric).site("b", Nat::FullCone).build().unwrap();
    lab.bring_up().unwrap();
    let _talk = ping(&lab, "a", "b");
    wait_path(&lab, "a", "b", "a direct path", is_direct);
    wait_path(&lab, "b", "a", "a direct path", is_direct);
}

#[test]
fn symmetric_nats_stay_relayed_and_64_mib_arrive_by_the_hub_over_udp() {
    let lab = lab().hub("h1").hub("h2").site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.bring_up().unwrap();
    let talk = ping(&lab, "a", "b");
    send_by_every_address(&lab, "a", "b", MUCH);
    // Long enough for every attempt at a direct path.
    talk.wait_answers(500, PATIENCE).unwrap();
    for (from, to) in [("a", "b"), ("b", "a")] {
        let path = path(&lab.status(from).unwrap(), to).unwrap();
        assert!(is_relay(&path, "udp"), "{from}: {path:#}");
    }
}

#[test]
fn where_udp_is_blocked_64_mib_arrive_over_tls_and_the_status_says_so() {
    let lab = lab().hub("h1").site("a", Nat::UdpBlocked).site("b", Nat::Tcp443Only).build().unwrap();
    lab.bring_up().unwrap();
    let _talk = ping(&lab, "a", "b");
    for (from, to) in [("a", "b"), ("b", "a")] {
        wait_status(&lab, from, "a hub over TCP", |status| (status["hubs"][0]["transport"] == "tcp").then_some(()));
        wait_path(&lab, from, to, "a path over TCP", |path| is_relay(path, "tcp"));
    }
    send_by_every_address(&lab, "a", "b", MUCH);
}

#[test]
fn only_a_proxy_leads_out_and_64_mib_arrive_through_it() {
    let credentials = Some(("clerk".to_owned(), "paper".to_owned()));
    let walled = SiteSpec::new("a").nat(Nat::ProxyOnly).proxy(ProxySpec { credentials });
    let lab = lab().hub("h1").site_with(walled).site("b", Nat::Cone).build().unwrap();
    lab.bring_up().unwrap();
    let _talk = ping(&lab, "a", "b");
    let path = wait_path(&lab, "a", "b", "a path over TCP", |path| is_relay(path, "tcp"));
    assert_eq!(path["via"], serde_json::json!(["h1"]));
    send_by_every_address(&lab, "a", "b", MUCH);
    send(&lab, "b", "a", MIB);
    let asked = lab.site("a").unwrap().proxy().unwrap().targets();
    let hub = format!("{}:443", lab.hub("h1").unwrap().host());
    assert!(!asked.is_empty() && asked.iter().all(|target| *target == hub), "{asked:?}");
}

#[test]
fn a_flow_goes_on_over_tls_while_udp_is_blocked_and_comes_back_to_udp() {
    let lab = lab().hub("h1").site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.bring_up().unwrap();
    let (a, b) = (gateway(&lab, "a"), gateway(&lab, "b"));
    let address = lab.site("b").unwrap().virtual_ip().into();
    let flow = Transfer::start(a, b, address, Payload::Random, None).unwrap();
    more(&flow);
    wait_path(&lab, "a", "b", "a path over UDP", |path| is_relay(path, "udp"));
    lab.block_udp("a").unwrap();
    wait_path(&lab, "a", "b", "a path over TCP", |path| is_relay(path, "tcp"));
    more(&flow);
    hub_transport(&lab, "tcp");
    lab.heal("a").unwrap();
    hub_transport(&lab, "udp");
    wait_path(&lab, "a", "b", "a path over UDP", |path| is_relay(path, "udp"));
    more(&flow);
    let report = flow.stop(PATIENCE);
    assert!(report.equal && report.broken.is_none(), "{report:?}");
}

#[test]
fn a_node_told_to_use_tcp_sends_no_datagram() {
    let lab = lab().hub("h1").site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    for site in ["a", "b"] {
        lab.join(site).unwrap();
    }
    // Whatever leaves a as UDP is counted by its router.
    let router = lab.site("a").unwrap().router(0).unwrap();
    router
        .nft("table inet count { chain c { type filter hook forward priority -5; meta l4proto udp counter; }; }")
        .unwrap();
    lab.up_with("a", &flatlan_lab::RunOptions::args(["--transport", "tcp"])).unwrap();
    lab.up("b").unwrap();
    let talk = ping(&lab, "a", "b");
    wait_path(&lab, "a", "b", "a path over TCP", |path| is_relay(path, "tcp"));
    talk.wait_answers(200, PATIENCE).unwrap();
    let counted = router.exec("nft", ["list", "chain", "inet", "count", "c"]).unwrap();
    let from_a = counted.lines().find(|line| line.contains("counter")).unwrap();
    assert!(from_a.contains("packets 0 "), "{from_a}");
}

/// Waits until a few megabytes more have arrived.
fn more(flow: &Transfer) {
    flow.wait_received(flow.received() + 4 * MIB, PATIENCE).unwrap();
}

fn hub_transport(lab: &Lab, transport: &str) {
    let wanted = |status: &Value| (status["hubs"][0]["transport"] == transport).then_some(());
    wait_status(lab, "a", &format!("the hub over {transport}"), wanted);
}
