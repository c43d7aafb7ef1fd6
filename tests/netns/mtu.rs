//! The network below begins to carry less, and says nothing of it: packets that are too long vanish, and so would an error.
//!
//! ```text
//!                 h1
//!                 |
//!   a-1          inet           b-1
//!     \         /    \          /          what b sends and receives is what has less room
//!      \--- a-nat    b-nat ----/
//!             |        |
//!            [a]      [b]
//! ```

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod support;

use flatlan_lab::{Lab, Namespace, Nat, Transfer};
use serde_json::Value;
use support::{MIB, PATIENCE, is_direct, is_relay, lab, ping, wait_path};

#[test]
fn a_transfer_goes_on_over_a_direct_path_that_shrinks_in_silence() {
    goes_on(Nat::Cone, is_direct);
}

#[test]
fn a_transfer_goes_on_over_a_hub_whose_way_shrinks_in_silence() {
    goes_on(Nat::Symmetric, |path| is_relay(path, "udp"));
}

fn goes_on(nat: Nat, expected: impl Fn(&Value) -> bool) {
    let lab = pair(nat);
    let talk = ping(&lab, "a", "b");
    wait_path(&lab, "a", "b", "the path that this is about", &expected);
    let address = |site: &str| lab.site(site).unwrap().hosts()[0].addresses()[0];
    let flow = |from, to| Transfer::start_paced(host(&lab, from), host(&lab, to), address(to), RATE).unwrap();
    let flows = [flow("a", "b"), flow("b", "a")];
    let move_on = || flows.iter().for_each(|flow| flow.wait_received(flow.received() + 2 * MIB, PATIENCE).unwrap());
    move_on();
    for bytes in [1400, 1280] {
        lab.mtu_hole("b", bytes).unwrap();
        move_on();
    }
    for site in ["a", "b"] {
        let other = if site == "a" { "b" } else { "a" };
        let fits = |path: &Value| expected(path) && path["mtu"].as_u64().is_some_and(|mtu| mtu <= 1280);
        wait_path(&lab, site, other, "the same kind of path, which carries less", fits);
    }
    for flow in flows {
        let report = flow.stop(PATIENCE);
        assert!(report.equal && report.broken.is_none(), "{report:?}");
    }
    drop(talk);
}

fn host<'a>(lab: &'a Lab, site: &str) -> &'a Namespace {
    lab.site(site).unwrap().hosts()[0].namespace()
}

fn pair(nat: Nat) -> Lab {
    let lab = lab().hub("h1").site("a", nat).site("b", nat).build().unwrap();
    lab.bring_up().unwrap();
    lab
}

/// Bits a second of each flow: many packets as long as they may be, and not all that a machine can do.
const RATE: u64 = 20_000_000;
