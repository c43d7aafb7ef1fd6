//! Two LANs that are one network, without NAT: hosts reach each other by their own addresses, and need a static route only.
//!
//! ```text
//!                  h1         h2               two hubs
//!                    \       /
//!                     - inet -
//!                   /          \
//!               a-nat          b-nat           symmetric NATs: no direct path
//!              /     \        /     \
//!           [a]      a-1   [b]      b-1        [a], [b]: gateways, which run flatlan; a-1 and b-1 run nothing of it
//!              192.168.1.11    192.168.2.11
//! ```
//!
//! In this order: both gateways join with the prefixes of their LANs; a-1 and b-1 have a route to the other LAN by their own
//! gateway, as a site's router or DHCP would give them; they ping, hold TCP sessions and send data both ways, by IPv4 and
//! IPv6, and each sees the other's own address; no machine's packet filter has got a rule by it; then the hub in use is
//! killed, and the sessions live on over the other.
//!
//! `examples/two-sites/run`

#![expect(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

#[path = "../story.rs"]
mod story;

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use flatlan_lab::{Host, Lab, Namespace, Nat, Payload, Probe, Transfer};
use story::Story;

fn main() -> ExitCode {
    flatlan_lab::enter().unwrap();
    let mut story = Story::default();
    story.say(
        "Two sites, each behind a symmetric NAT, and two hubs. The gateways a and b run flatlan, hosts run nothing.",
    );
    let lab = Lab::builder().flatlan(env!("CARGO_BIN_EXE_flatlan")).hub("h1").hub("h2");
    let lab = lab.site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    let before = rulesets(&lab);
    lab.bring_up().unwrap();

    let [a, b] = ["a", "b"].map(|site| lab.site(site).unwrap().hosts().first().unwrap());
    let theirs = lab.site("b").unwrap().prefixes()[0].to_string();
    story.say("All that a-1 knows of the other site is a route by its own gateway:");
    story.say(format!("    {}", a.namespace().exec("ip", ["route", "show", &theirs]).unwrap().trim()));
    for family in 0..2 {
        talk(&mut story, a, b, family);
        talk(&mut story, b, a, family);
    }
    story.claim("nft list ruleset says the same on every machine as before flatlan ran", rulesets(&lab) == before);

    let (near, far, to) = (a.namespace(), b.namespace(), b.addresses()[0]);
    let session = Probe::tcp_echo(near, far, to, EACH).unwrap();
    session.wait_answers(20, PATIENCE).unwrap();
    let wires = lab.watch_traffic(Duration::from_millis(50)).unwrap();
    let from = Instant::now();
    session.wait_answers(100, PATIENCE).unwrap();
    let crossed = wires.between(from, Instant::now());
    let hub = lab.hubs().max_by_key(|hub| crossed.of(hub.name()).received_bytes).unwrap().name().to_owned();
    let bytes = crossed.of(&hub).received_bytes;
    story.say(format!("A session of a-1 with b-1 goes over hub {hub}, which is killed (SIGKILL)."));
    // a question has 52 bytes and more, whatever is around it
    story.claim(format!("{bytes} bytes came to that hub while 100 questions were answered"), bytes > 5200);
    let killed = lab.kill(&hub).unwrap();
    while Instant::now() < killed + WATCHED && session.wait_answers(20, PATIENCE).is_ok() {}
    let report = session.stop();
    story.claim("the session lives", report.broken().is_none());
    let gap = report.longest_gap_between(killed, killed + WATCHED).length;
    story.claim_within("it was answered again", gap, GAP);
    story.end()
}

/// One host pings the other, has a session with it, and sends it data.
fn talk(story: &mut Story, from: &Host, to: &Host, family: usize) {
    let [own, other] = [from, to].map(|host| *host.addresses().get(family).unwrap());
    let (near, far) = (from.namespace(), to.namespace());
    story.say(format!("{own} talks to {other}:"));
    let ping = Probe::ping(near, other, EACH).unwrap();
    story.claim("pings are answered", ping.wait_answers(10, PATIENCE).is_ok());
    let session = Probe::tcp_echo(near, far, other, EACH).unwrap();
    story.claim("a TCP session is answered", session.wait_answers(10, PATIENCE).is_ok());
    let seen = session.peer().unwrap().ip();
    story.claim(format!("the other side sees {seen}, the host's own address"), seen == own);
    let (bytes, equal) = sent(near, far, other);
    story.claim(format!("{bytes} bytes arrived as they were sent (SHA-256)"), equal && bytes == DATA);
}

fn sent(near: &Namespace, far: &Namespace, to: IpAddr) -> (u64, bool) {
    let transfer = Transfer::start(near, far, to, Payload::Random, Some(DATA)).unwrap();
    let report = transfer.finish(LONG).unwrap();
    (report.bytes, report.equal && report.broken.is_none())
}

/// Every machine's packet filter.
fn rulesets(lab: &Lab) -> Vec<String> {
    lab.machines().into_iter().map(|machine| machine.exec("nft", ["list", "ruleset"]).unwrap()).collect()
}

/// Between two questions.
const EACH: Duration = Duration::from_millis(10);
/// What each host sends the other.
const DATA: u64 = 16 << 20;
/// How long the session is watched once its hub is dead, and for how long it may say nothing.
const WATCHED: Duration = Duration::from_secs(4);
const GAP: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(120);
