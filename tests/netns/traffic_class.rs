//! The traffic class of a packet: outside on the wires, over a hub as well, and what is marked there comes back in.
//!
//! ```text
//!             h1
//!             |
//!           inet                    its core counts what classes pass, and marks congestion
//!          /    \
//!      a-nat    b-nat
//!        |        |
//!        a        b
//! ```

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod support;

use flatlan_lab::{Lab, Namespace, Nat, RunOptions};
use support::{PATIENCE, gateway, is_direct, is_relay, lab, ping, wait_path, wait_status};

/// Expedited forwarding (RFC 3246), as a traffic class.
const VOICE: &str = "0xb8";
/// The same, and that its sender understands marks.
const VOICE_ECT: &str = "0xba";

#[test]
fn the_wires_see_the_dscp_of_the_packets_directly_and_over_a_hub() {
    for direct in [true, false] {
        let lab = pair(direct);
        let legs = if direct { 1 } else { 2 };
        count(&lab);
        ping_with(&lab, VOICE, 20);
        // each question and each answer crosses the core on every leg
        assert!(counted(&lab, "ef") >= 2 * legs * 20, "{}", counted(&lab, "ef"));
        count(&lab);
        ping_with(&lab, "0x00", 20);
        assert_eq!(counted(&lab, "ef"), 0);
    }
}

#[test]
fn a_node_told_so_shows_no_dscp_and_the_packet_keeps_its_own() {
    let lab = pair(true);
    let file = lab.folder().join("state").join("a.toml");
    std::fs::write(&file, "dscp = \"zero\"").unwrap();
    lab.up_with("a", &RunOptions::args(["--config", file.to_str().unwrap()])).unwrap();
    drop(ping(&lab, "a", "b"));
    count(&lab);
    let inside = Inside::watch(gateway(&lab, "b"));
    ping_with(&lab, VOICE_ECT, 20);
    assert!(inside.seen("ef") >= 20);
    // what b answers, b shows; of what a sends the congestion bits only
    assert!(counted(&lab, "ef") <= 25, "{}", counted(&lab, "ef"));
    assert!(counted(&lab, "ect0") >= 40, "{}", counted(&lab, "ect0"));
}

#[test]
fn congestion_on_the_way_reaches_the_packet_inside_directly_and_over_a_hub() {
    for direct in [true, false] {
        let lab = pair(direct);
        let inside = Inside::watch(gateway(&lab, "b"));
        ping_with(&lab, VOICE_ECT, 20);
        assert_eq!((inside.seen("ce"), inside.seen("ect0") >= 20), (0, true));
        mark(&lab);
        ping_with(&lab, VOICE_ECT, 20);
        assert!(inside.seen("ce") >= 20, "{}", inside.seen("ce"));
        assert!(inside.seen("ef") >= 40, "the mark leaves the DSCP alone");
    }
}

#[test]
fn a_mark_on_a_packet_whose_sender_knows_none_is_a_counted_loss() {
    for direct in [true, false] {
        let lab = pair(direct);
        mark_all(&lab);
        let before = congested(&lab);
        let address = lab.site("b").unwrap().virtual_ip().to_string();
        let lost = gateway(&lab, "a").exec("ping", ["-c", "5", "-i", "0.05", "-W", "1", "-Q", VOICE, &address]);
        assert!(lost.is_err(), "{lost:?}");
        wait_status(&lab, "b", "counted losses", |_| (congested(&lab) >= before + 5).then_some(()));
    }
}

fn congested(lab: &Lab) -> u64 {
    lab.status("b").unwrap()["drops"]["congestion"].as_u64().unwrap()
}

/// Two sites that talk, directly or over the hub by UDP.
fn pair(direct: bool) -> Lab {
    let nat = if direct { Nat::Cone } else { Nat::Symmetric };
    let lab = lab().hub("h1").site("a", nat).site("b", nat).build().unwrap();
    lab.bring_up().unwrap();
    let talk = ping(&lab, "a", "b");
    for (from, to) in [("a", "b"), ("b", "a")] {
        wait_path(&lab, from, to, "its path", |path| if direct { is_direct(path) } else { is_relay(path, "udp") });
    }
    talk.wait_answers(50, PATIENCE).unwrap();
    lab
}

/// Pings b from a; every answer must come.
fn ping_with(lab: &Lab, traffic_class: &str, times: u32) {
    let address = lab.site("b").unwrap().virtual_ip().to_string();
    let words = ["-c", &times.to_string(), "-i", "0.01", "-W", "5", "-Q", traffic_class, &address];
    let said = gateway(lab, "a").exec("ping", words).unwrap();
    assert!(said.contains(" 0% packet loss"), "{said}");
}

/// Counts the datagrams of data that cross the core, by class, from zero.
fn count(lab: &Lab) {
    let _ = lab.core().exec("nft", ["delete", "table", "inet", "classes"]);
    lab.core()
        .nft(
            "table inet classes {
                counter ef {}
                counter ect0 {}
                chain c {
                    type filter hook forward priority -5;
                    meta l4proto udp ip dscp ef counter name ef
                    meta l4proto udp ip6 dscp ef counter name ef
                    meta l4proto udp ip ecn ect0 counter name ect0
                    meta l4proto udp ip6 ecn ect0 counter name ect0
                }
            }",
        )
        .unwrap();
}

fn counted(lab: &Lab, counter: &str) -> u64 {
    packets(lab.core(), "classes", counter)
}

/// Marks what may be marked.
fn mark(lab: &Lab) {
    lab.core()
        .nft(
            "table inet congestion { chain c {
                type filter hook forward priority -4;
                meta l4proto udp ip ecn { ect0, ect1 } ip ecn set ce
                meta l4proto udp ip6 ecn { ect0, ect1 } ip6 ecn set ce
            }; }",
        )
        .unwrap();
}

/// Marks everything of that class, as no router should.
fn mark_all(lab: &Lab) {
    lab.core()
        .nft(
            "table inet congestion { chain c {
                type filter hook forward priority -4;
                meta l4proto udp ip dscp ef ip ecn set ce
                meta l4proto udp ip6 dscp ef ip6 ecn set ce
            }; }",
        )
        .unwrap();
}

/// What arrives by a node's TUN, by class.
struct Inside<'a>(&'a Namespace);

impl<'a> Inside<'a> {
    fn watch(machine: &'a Namespace) -> Self {
        machine
            .nft(
                "table inet inside {
                    counter ef {}
                    counter ect0 {}
                    counter ce {}
                    chain c {
                        type filter hook input priority 0;
                        iifname fl0 ip dscp ef counter name ef
                        iifname fl0 ip ecn ect0 counter name ect0
                        iifname fl0 ip ecn ce counter name ce
                    }
                }",
            )
            .unwrap();
        Self(machine)
    }

    fn seen(&self, counter: &str) -> u64 {
        packets(self.0, "inside", counter)
    }
}

fn packets(machine: &Namespace, table: &str, counter: &str) -> u64 {
    let said = machine.exec("nft", ["list", "counter", "inet", table, counter]).unwrap();
    let mut words = said.split_whitespace();
    words.find(|word| *word == "packets").unwrap();
    words.next().unwrap().parse().unwrap()
}
