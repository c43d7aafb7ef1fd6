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

use std::net::IpAddr;
use std::time::Instant;

use flatlan_lab::{Lab, Namespace, Nat, Outcome, Transfer};
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

#[test]
fn a_host_is_told_what_is_too_long_and_its_kernel_believes_it() {
    let lab = pair(Nat::Cone);
    lab.mtu_hole("b", 1280).unwrap();
    let talk = ping(&lab, "a", "b");
    let (near, far) = (host(&lab, "a"), lab.site("b").unwrap().hosts()[0].addresses());
    for to in far {
        let deadline = Instant::now() + PATIENCE;
        let told = loop {
            // more than the path carries, less than the TUN: it is the node that answers, not the gateway's kernel
            let answer = echo(near, to, 1380);
            if let Some(told) = believed(near, to) {
                assert_eq!(refused(&answer), Some(told), "{answer:?}");
                break told;
            }
            assert!(Instant::now() < deadline, "nothing was told of {to}: {answer:?}");
        };
        let least = if to.is_ipv4() { 1100 } else { 1280 };
        assert!((least..1380).contains(&told), "{told}");
        // as long as that it arrives, and its answer too once the other end knows what its own way carries
        while let Err(error) = echo(near, to, told).success() {
            assert!(Instant::now() < deadline, "{told} bytes to {to}: {error}");
        }
    }
    drop(talk);
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

/// The size that an ICMP error named, as ping prints it.
fn refused(answer: &Outcome) -> Option<usize> {
    let said = answer.stdout.replace("mtu = ", "mtu=");
    let (_, told) = said.split_once("mtu=")?;
    told.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Pings once with an IP packet of so many bytes that must not be fragmented.
fn echo(from: &Namespace, to: IpAddr, bytes: usize) -> Outcome {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    let mut command = Namespace::command("ping");
    command.args(["-n", "-c", "1", "-W", "1", "-M", "do", "-s", &(bytes - headers).to_string(), &to.to_string()]);
    from.output(command).unwrap()
}

/// The MTU that a machine's kernel has learned of the way to an address.
fn believed(machine: &Namespace, to: IpAddr) -> Option<usize> {
    let said = machine.exec("ip", ["route", "get", &to.to_string()]).unwrap();
    let mut words = said.split_whitespace().skip_while(|word| *word != "mtu");
    words.nth(1)?.parse().ok()
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
