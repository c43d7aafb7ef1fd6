//! A hub carries what it cannot read: nothing of a text is on its wires or in its memory while it relays it.
//!
//! ```text
//!            h1                     everything that crosses h1 is captured; h1's memory is dumped at the end
//!            |
//!          inet
//!         /    \
//!     a-nat    b-nat                symmetric: only by the hub
//!       |        |
//!       a        b                  a sends b a text; captured and dumped too, where it must be found
//! ```

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use flatlan_lab::{Capture, Lab, Nat, Payload, Transfer};
use support::{MIB, PATIENCE, gateway, is_relay, lab, ping, wait_path};

#[test]
fn a_hub_that_relays_over_udp_holds_no_piece_of_a_text() {
    the_hub_holds_nothing(Nat::Symmetric, "udp");
}

#[test]
fn a_hub_that_relays_over_tls_holds_no_piece_of_a_text() {
    the_hub_holds_nothing(Nat::UdpBlocked, "tcp");
}

fn the_hub_holds_nothing(nat: Nat, transport: &str) {
    let lab = lab().hub("h1").site("a", nat).site("b", nat).build().unwrap();
    lab.bring_up().unwrap();
    let talk = ping(&lab, "a", "b");
    wait_path(&lab, "a", "b", transport, |path| is_relay(path, transport));
    let (hub, a) = (lab.hub("h1").unwrap(), gateway(&lab, "a"));
    let before = lab.traffic();
    let (outer, inner) = (Capture::start(&lab, hub.namespace()).unwrap(), Capture::start(&lab, a).unwrap());
    let address = lab.site("b").unwrap().virtual_ip().into();
    let text = Payload::Repeat(canary());
    let flow = Transfer::start(a, gateway(&lab, "b"), address, text, None).unwrap();
    flow.wait_received(MUCH, PATIENCE).unwrap();
    // While it flows: what is on its way through is in memory now.
    let hub_memory = dump(&lab, "h1");
    let sender_memory = dump(&lab, "a");
    let report = flow.stop(PATIENCE);
    assert!(report.equal && report.broken.is_none(), "{report:?}");
    let (outer, inner) = (outer.stop().unwrap(), inner.stop().unwrap());
    drop(talk);

    let carried = lab.traffic().since(&before).of("h1").sent_bytes;
    assert!(carried > MUCH, "the hub carried {carried} bytes only");
    assert!(std::fs::metadata(&outer).unwrap().len() > MUCH, "the capture is incomplete");
    assert!(piece(&inner).is_some(), "the search does not find the text where it enters the tunnel");
    assert!(piece(&sender_memory).is_some(), "the search does not find the text in the memory of the sender");
    assert_eq!(piece(&outer), None, "a piece of the text on the hub's wires");
    assert_eq!(piece(&hub_memory), None, "a piece of the text in the hub's memory");
}

/// A text without a repetition in it, so that every piece of it is a piece of this one.
fn canary() -> String {
    (0..40).map(|number| format!("canary {number:02} of the mine; ")).collect()
}

/// The memory of a process of the lab.
fn dump(lab: &Lab, name: &str) -> PathBuf {
    let process = lab.process(name).unwrap();
    let stem = lab.folder().join("log").join(format!("{name}.core"));
    let pid = process.pid().to_string();
    lab.admin().exec("gcore", ["-o", stem.to_str().unwrap(), &pid]).unwrap();
    PathBuf::from(format!("{}.{pid}", stem.display()))
}

/// Where in a file the first run of `RUN` bytes of the text is.
fn piece(file: &Path) -> Option<usize> {
    let text = canary().repeat(2).into_bytes();
    let runs: BTreeSet<&[u8]> = text.windows(RUN).collect();
    // Nearly every place is told by its first two bytes.
    let mut begins = vec![false; 1 << 16];
    for run in &runs {
        begins[usize::from(u16::from_be_bytes([run[0], run[1]]))] = true;
    }
    let content = std::fs::read(file).unwrap();
    // Most of a process's memory was never written.
    let written = content.chunks(PAGE).enumerate().filter(|(_, page)| **page != EMPTY[..page.len()]);
    for (number, page) in written {
        let start = number * PAGE;
        // A run that began on the page before may end on this one.
        let before = content[start.saturating_sub(RUN)..start].iter();
        let (mut pair, mut place) = (0, start.saturating_sub(RUN));
        for byte in before.chain(page) {
            pair = (pair << 8 | usize::from(*byte)) & 0xffff;
            place += 1;
            if begins[pair] && place > 1 {
                let first = place - 2;
                if content.get(first..first + RUN).is_some_and(|bytes| runs.contains(bytes)) {
                    return Some(first);
                }
            }
        }
    }
    None
}

/// The shortest run of bytes that counts as a piece of the text.
const RUN: usize = 16;
const PAGE: usize = 4096;
const EMPTY: [u8; PAGE] = [0; PAGE];
/// How much of the text is sent before memory is looked at.
const MUCH: u64 = 8 * MIB;
