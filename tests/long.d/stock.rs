//! The long run of a plain WireGuard device: minutes of traffic both ways with the rekeys of both sides, and what of it was
//! lost. `tests/long stock [--minutes N]`; the topology is in `tests/netns/wireguard.rs`.
//!
//! Pings every 50 ms: device to node, node to device, and another node to the device through the first. WireGuard
//! makes a new session before the old one ends, so that no rekey may cost a packet. The control is a ping between the
//! same machines over the underlay.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a program for people")]

#[path = "../netns/wireguard.rs"]
#[expect(dead_code, reason = "the tests take more of it")]
mod wireguard;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flatlan_lab::Probe;
use wireguard::{Initiative, StockLab, wan};

fn main() {
    let mut minutes = 5;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--minutes" => minutes = words.next().and_then(|word| word.parse().ok()).expect("--minutes N"),
            // cargo says it
            "--bench" => {}
            other => panic!("{other}: only --minutes N"),
        }
    }
    flatlan_lab::enter().unwrap();
    let stock = StockLab::bring_up(env!("CARGO_BIN_EXE_flatlan"));
    let lab = &stock.lab;
    let device = stock.run(Initiative::Both);
    let node = lab.site("a").unwrap();
    let (a, b) = (node.gateway(), lab.site("b").unwrap().gateway());
    let address = *stock.addresses().first().unwrap();
    let via: IpAddr = node.virtual_ip().into();
    let ping = |from, to| {
        let probe = Probe::ping(from, to, PACE).unwrap();
        probe.wait_answers(1, Duration::from_secs(30)).unwrap();
        probe
    };
    let probes = [
        ("phone to a", ping(stock.phone(), via)),
        ("a to phone", ping(a, address)),
        ("b to phone through a", ping(b, address)),
        ("control: underlay", ping(a, wan(lab, "phone").ip())),
    ];
    let started = Instant::now();
    let mut handshakes = Vec::new();
    while started.elapsed() < Duration::from_secs(60 * minutes) {
        let last = device.last_handshake();
        if last != 0 && handshakes.last() != Some(&last) {
            handshakes.push(last);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    println!("{minutes} minutes, {} handshakes, pings each {} ms", handshakes.len(), PACE.as_millis());
    println!("| what | sent | lost | longest gap ms | median round trip ms |\n|---|---|---|---|---|");
    let mut lost_in_all = 0;
    for (what, probe) in probes {
        // the last ones may be under way
        let report = probe.stop();
        let lost = report.sent().saturating_sub(report.answered() + UNDER_WAY);
        let (gap, median) = (report.longest_gap().length, report.round_trip_quantile(0.5));
        println!(
            "| {what} | {} | {lost} | {} | {:.2} |",
            report.sent(),
            gap.as_millis(),
            median.as_secs_f64() * 1000.0
        );
        if !what.starts_with("control") {
            lost_in_all += lost;
        }
    }
    let rekeys = usize::try_from(60 * minutes / REKEY_SECONDS).unwrap();
    assert!(handshakes.len() > rekeys.saturating_sub(1), "too few handshakes: {handshakes:?}");
    assert!(lost_in_all <= handshakes.len(), "more was lost than the handshakes may cost");
}

/// The pause between two pings.
const PACE: Duration = Duration::from_millis(50);
/// Pings that may still be on their way when the run ends.
const UNDER_WAY: usize = 2;
/// WireGuard's Rekey-After-Time.
const REKEY_SECONDS: u64 = 120;
