//! A plain WireGuard device as a member: both sides may speak first, everybody reaches it, it roams, it is revoked.
//! The topology is in `wireguard.rs`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;
mod wireguard;

use std::net::IpAddr;
use std::time::Duration;

use flatlan_lab::{Lab, Namespace, Probe};
use support::{MIB, PATIENCE, gateway, send_to, wait_status};
use wireguard::{Initiative, StockLab, wan};

#[test]
fn a_stock_peer_may_speak_first_and_then_everybody_reaches_everybody() {
    let stock = lab();
    let lab = &stock.lab;
    let device = stock.run(Initiative::Both);
    let via = lab.site("a").unwrap().virtual_ip().into();
    answered(stock.phone(), via);
    assert_ne!(device.last_handshake(), 0);
    assert_eq!(device.peer_endpoint(), Some(wan(lab, "a")));
    for address in stock.addresses() {
        for (site, from) in [("a", gateway(lab, "a")), ("b", gateway(lab, "b"))] {
            let own = of_family(lab, site, address);
            answered(from, address);
            answered(stock.phone(), own);
            assert_eq!(send_to(from, stock.phone(), address, MIB).peer.ip(), own);
            assert_eq!(send_to(stock.phone(), from, own, MIB).peer.ip(), address);
        }
    }
    let status = lab.status("a").unwrap();
    let phone = status["peers"].as_array().unwrap().iter().find(|peer| peer["name"] == "phone").unwrap();
    assert_eq!((&phone["path"]["kind"], &phone["path"]["transport"]), (&"direct".into(), &"udp".into()), "{phone:#}");
    assert!(phone["last_handshake_s"].as_f64().is_some(), "{phone:#}");
}

#[test]
fn a_node_speaks_first_to_a_stock_peer_whose_endpoint_is_known() {
    let stock = lab();
    let device = stock.run(Initiative::Theirs);
    assert_eq!((device.last_handshake(), device.peer_endpoint()), (0, None));
    let address = *stock.addresses().first().unwrap();
    answered(gateway(&stock.lab, "a"), address);
    assert_ne!(device.last_handshake(), 0);
    // and after the node is killed and starts again, the device learns that from the node
    stock.lab.kill("a").unwrap();
    stock.lab.up("a").unwrap();
    answered(gateway(&stock.lab, "b"), address);
    answered(stock.phone(), of_family(&stock.lab, "b", address));
}

#[test]
fn a_stock_peer_that_moves_is_followed_and_one_that_is_revoked_is_silent() {
    let stock = lab();
    let lab = &stock.lab;
    let device = stock.run(Initiative::Both);
    let via: IpAddr = lab.site("a").unwrap().virtual_ip().into();
    let address = *stock.addresses().first().unwrap();
    answered(stock.phone(), via);
    let out = Probe::ping(stock.phone(), via, Duration::from_millis(20)).unwrap();
    out.wait_answers(5, PATIENCE).unwrap();
    let handshake = device.last_handshake();
    device.move_to(51_999);
    out.wait_answers(20, PATIENCE).unwrap();
    drop(out);
    assert_eq!(device.last_handshake(), handshake, "roaming costs no handshake");
    answered(gateway(lab, "b"), address);

    lab.administer(["revoke", "phone"]).unwrap();
    let gone = |status: &serde_json::Value| {
        let peers = status["peers"].as_array()?;
        peers.iter().all(|peer| peer["name"] != "phone").then_some(())
    };
    wait_status(lab, "a", "a roster without the phone", gone);
    let (to, from) = (
        Probe::ping(gateway(lab, "a"), address, Duration::from_millis(20)).unwrap(),
        Probe::ping(stock.phone(), via, Duration::from_millis(20)).unwrap(),
    );
    assert!(to.wait_answers(1, Duration::from_secs(1)).is_err());
    assert_eq!([to, from].map(|ping| ping.stop().answered()), [0, 0]);
}

fn lab() -> StockLab {
    StockLab::bring_up(env!("CARGO_BIN_EXE_flatlan"))
}

fn answered(from: &Namespace, to: IpAddr) {
    Probe::ping(from, to, Duration::from_millis(50)).unwrap().wait_answers(3, PATIENCE).unwrap();
}

/// A site's own address of the same family.
fn of_family(lab: &Lab, site: &str, other: IpAddr) -> IpAddr {
    lab.virtual_ips(site).unwrap().into_iter().find(|own| own.is_ipv4() == other.is_ipv4()).unwrap()
}
