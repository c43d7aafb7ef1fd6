//! A network made by the commands of the command line only, and used: ping, TCP, ssh and scp by virtual IP.
//!
//! ```text
//!            h1 ------ inet ------ h2
//!             /     |      |      \
//!         a-nat   b-nat  c-nat   d-nat      cone, symmetric, full cone, cone
//!           |       |      |       |
//!           a       b      c       d        a, b, c join by token, d is added by its key
//! ```

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod hand;
mod support;

use std::net::IpAddr;
use std::time::Duration;

use flatlan_lab::{Lab, Nat, Probe, iperf3};
use hand::Ssh;
use serde_json::Value;
use support::{MIB, PATIENCE, gateway, is_relay, lab, path, ping, wait_path, wait_status};

#[test]
fn three_nodes_by_token_and_one_by_key_reach_each_other_by_every_address() {
    let lab = lab()
        .hub("h1")
        .hub("h2")
        .site("a", Nat::Cone)
        .site("b", Nat::Symmetric)
        .site("c", Nat::FullCone)
        .site("d", Nat::Cone)
        .build()
        .unwrap();
    let id = hand::bring_up(&lab, ["a", "b", "c"], "d");
    every_pair_pings(&lab);
    the_receiver_sees_the_sender_s_own_address_and_port(&lab);
    iperf3_runs_by_every_address(&lab);
    for site in ["a", "b", "c", "d"] {
        the_status_holds_what_the_contract_says(&lab, site, &id);
    }
}

#[test]
fn ssh_and_scp_work_by_virtual_ipv4_and_ipv6() {
    let lab = lab().hub("h1").site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.bring_up().unwrap();
    let ssh = Ssh::serve(&lab, "b");
    for address in lab.virtual_ips("b").unwrap() {
        let from = gateway(&lab, "a");
        // sshd tells by which addresses it was reached: client, client's port, own, own port.
        let seen = ssh.run(from, address, "echo $SSH_CONNECTION").unwrap();
        let client = lab.virtual_ips("a").unwrap().into_iter().find(|own| own.is_ipv4() == address.is_ipv4()).unwrap();
        let words: Vec<&str> = seen.split_whitespace().collect();
        assert_eq!((words[0], words[2]), (client.to_string().as_str(), address.to_string().as_str()), "{seen}");
        let (sent, came) = ssh.copy(from, address).unwrap();
        assert_eq!(sent, came, "SHA-256 of the copy over {address}");
    }
}

#[test]
fn a_pair_with_no_hub_in_common_is_relayed_over_two_hubs() {
    let lab = lab().hub("h1").hub("h2").site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    lab.forbid_direct().unwrap();
    for site in ["a", "b"] {
        lab.join(site).unwrap();
    }
    lab.cut_between("a", "h2").unwrap();
    lab.cut_between("b", "h1").unwrap();
    for site in ["a", "b"] {
        lab.up(site).unwrap();
    }
    let probe = ping(&lab, "a", "b");
    let there = wait_path(&lab, "a", "b", "a relayed path", |path| is_relay(path, "udp"));
    assert_eq!(there["via"], serde_json::json!(["h1", "h2"]));
    let back = wait_path(&lab, "b", "a", "a relayed path", |path| is_relay(path, "udp"));
    assert_eq!(back["via"], serde_json::json!(["h2", "h1"]));
    probe.wait_answers(10, PATIENCE).unwrap();
    support::send(&lab, "a", "b", 8 * MIB);
}

fn every_pair_pings(lab: &Lab) {
    let mut probes = Vec::new();
    for to in lab.sites() {
        let addresses = lab.virtual_ips(to.name()).unwrap();
        assert!(addresses.iter().any(IpAddr::is_ipv4) && addresses.iter().any(IpAddr::is_ipv6), "{addresses:?}");
        for from in lab.sites().filter(|from| from.name() != to.name()) {
            for address in &addresses {
                probes.push(Probe::ping(from.gateway(), *address, Duration::from_millis(50)).unwrap());
            }
        }
    }
    assert_eq!(probes.len(), 24);
    for probe in probes {
        probe.wait_answers(3, PATIENCE).unwrap();
    }
}

fn the_receiver_sees_the_sender_s_own_address_and_port(lab: &Lab) {
    for (from, to) in [("a", "b"), ("d", "a")] {
        for address in lab.virtual_ips(to).unwrap() {
            let (local, seen) = hand::both_ends(gateway(lab, from), gateway(lab, to), address).unwrap();
            assert_eq!(seen, local);
            assert!(lab.virtual_ips(from).unwrap().contains(&seen.ip()), "{from} came as {seen}");
        }
    }
}

fn iperf3_runs_by_every_address(lab: &Lab) {
    for (from, to) in [("a", "b"), ("c", "d")] {
        for address in lab.virtual_ips(to).unwrap() {
            let rate = iperf3(lab, gateway(lab, from), gateway(lab, to), address, 1, &[]).unwrap();
            assert!(rate > 0.0, "{from} to {address}");
        }
    }
}

fn the_status_holds_what_the_contract_says(lab: &Lab, site: &str, network: &str) {
    let attached =
        |status: &Value| status["hubs"].as_array()?.iter().all(|hub| hub["state"] == "attached").then_some(());
    wait_status(lab, site, "every hub attached", attached);
    let _traffic: Vec<Probe> =
        lab.sites().filter(|other| other.name() != site).map(|other| ping(lab, site, other.name())).collect();
    let full = |status: &Value| {
        let (hubs, peers) = (status["hubs"].as_array()?, status["peers"].as_array()?);
        let measured = |way: &Value| way["transport"] == "udp" && way["rtt_ms"].is_number();
        let heard = |peer: &Value| peer["last_handshake_s"].is_number() && peer["rx_bytes"].as_u64() > Some(0);
        (hubs.iter().all(measured) && peers.iter().all(|peer| measured(&peer["path"]) && heard(peer)))
            .then(|| status.clone())
    };
    let status = wait_status(lab, site, "a measured path to every peer", full);
    assert_eq!(status["network"]["name"], "lab");
    assert_eq!(status["network"]["id"], network);
    assert!(status["network"]["roster_serial"].as_u64().unwrap() > 0, "{status:#}");
    let me = &status["self"];
    assert_eq!(me["name"], site);
    assert_eq!(me["ips"].as_array().unwrap().len(), 2);
    assert!(me["routes"].is_array() && me["boot_epoch"].as_u64().unwrap() > 0, "{me:#}");
    let hubs = status["hubs"].as_array().unwrap();
    assert_eq!(hubs.iter().map(|hub| hub["name"].as_str().unwrap()).collect::<Vec<_>>(), ["h1", "h2"]);
    for hub in hubs {
        assert!(hub["key"].as_str().unwrap().starts_with("flhub1"), "{hub:#}");
        assert_eq!((&hub["transport"], hub["rtt_ms"].is_number()), (&Value::from("udp"), true), "{hub:#}");
    }
    let peers = status["peers"].as_array().unwrap();
    assert_eq!(peers.len(), 3);
    for peer in peers {
        let way = path(&status, peer["name"].as_str().unwrap()).unwrap();
        assert!(way["kind"] == "direct" || way["kind"] == "relay", "{peer:#}");
        assert_eq!(way["via"].as_array().unwrap().is_empty(), way["kind"] == "direct", "{peer:#}");
        assert!(way["transport"] == "udp" && way["mtu"].as_u64().unwrap() >= 1200, "{peer:#}");
        assert!(peer["standby"].is_array() && peer["routes"].is_array(), "{peer:#}");
        assert_eq!(peer["ips"].as_array().unwrap().len(), 2);
        assert!(peer["tx_bytes"].as_u64().unwrap() > 0 && peer["rx_bytes"].as_u64().unwrap() > 0, "{peer:#}");
    }
    assert!(status["drops"].as_object().unwrap().values().all(Value::is_u64), "{status:#}");
}
