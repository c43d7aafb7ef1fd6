//! What people do by hand, between every two nodes: `tests/long by-hand`.
//!
//! ```text
//!            h1 ------ inet ------ h2
//!             /     |      |      \
//!         a-nat   b-nat  c-nat   d-nat      full cones where paths are direct, symmetric where they are relayed
//!           |       |      |       |
//!           a       b      c       d        a, b, c join by token, d is added by its key
//! ```
//!
//! Each ordered pair, by virtual IPv4 and IPv6, directly and relayed: `ping`, `iperf3`, `ssh`, `scp` with the SHA-256 of
//! both ends, and what `ss -tn` shows on the receiver. Every row says by which way it went, before and after.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a program for people"
)]

#[path = "../netns/hand.rs"]
mod hand;
mod measure;
#[path = "../netns/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;

use flatlan_lab::{Lab, LabError, Nat, iperf3};
use hand::Ssh;
use measure::Paper;
use serde_json::Value;
use support::{gateway, path, ping, wait_path};

fn main() {
    let seconds = measure::number("--seconds", 1);
    flatlan_lab::enter().unwrap();
    let mut paper = Paper::new("by-hand", "By hand: every two nodes, both families, direct and relayed");
    paper.say(format!("`iperf3` for {seconds} s; `scp` of 4 MiB. What failed says why below.\n"));
    paper.head(&["from, to", "way", "IP", "ping", "iperf3, Mbit/s", "ssh", "scp, SHA-256", "ss -tn on the receiver"]);
    way(&mut paper, "direct", Nat::FullCone, seconds);
    way(&mut paper, "relay", Nat::Symmetric, seconds);
    paper.end();
}

fn way(paper: &mut Paper, kind: &'static str, nat: Nat, seconds: u32) {
    let lab = support::lab().hub("h1").hub("h2");
    let lab = SITES.into_iter().fold(lab, |lab, site| lab.site(site, nat)).build().unwrap();
    hand::bring_up(&lab, ["a", "b", "c"], "d");
    let servers: BTreeMap<&str, Ssh> = SITES.into_iter().map(|site| (site, Ssh::serve(&lab, site))).collect();
    for (from, to) in SITES.into_iter().flat_map(|from| SITES.map(|to| (from, to))).filter(|(from, to)| from != to) {
        let _talk = ping(&lab, from, to);
        let wanted = |path: &Value| path["kind"] == kind;
        wait_path(&lab, from, to, kind, wanted);
        for address in lab.virtual_ips(to).unwrap() {
            row(paper, &lab, (from, to), address, &servers[to], seconds, kind);
            let now = path(&lab.status(from).unwrap(), to);
            paper.must(now.as_ref().is_some_and(wanted), &format!("{from} to {to}: not {kind} at the end: {now:?}"));
        }
    }
}

fn row(
    paper: &mut Paper,
    lab: &Lab,
    (from, to): (&str, &str),
    address: IpAddr,
    server: &Ssh,
    seconds: u32,
    kind: &str,
) {
    let (near, far) = (gateway(lab, from), gateway(lab, to));
    let own = lab.virtual_ips(from).unwrap().into_iter().find(|own| own.is_ipv4() == address.is_ipv4()).unwrap();
    let cells = [
        near.exec("ping", ["-n", "-q", "-c", "5", "-i", "0.05", "-W", "2", &address.to_string()]).and_then(|said| {
            if said.contains(" 0% packet loss") { Ok("5 of 5".to_owned()) } else { wrong("ping", said) }
        }),
        iperf3(lab, near, far, address, seconds, &[]).map(|rate| format!("{rate:.0}")),
        server.run(near, address, "echo $SSH_CONNECTION").and_then(|said| {
            let words: Vec<&str> = said.split_whitespace().collect();
            let seen = words.first() == Some(&own.to_string().as_str()) && words.get(2) == Some(&&*address.to_string());
            if seen { Ok("ok".to_owned()) } else { wrong("ssh", said) }
        }),
        server.copy(near, address).and_then(|(sent, came)| {
            if sent == came { Ok("equal".to_owned()) } else { wrong("scp", format!("{sent}, {came}")) }
        }),
        hand::both_ends(near, far, address).and_then(|(local, seen)| {
            let good = seen == local && seen.ip() == own;
            if good { Ok("own IP and port".to_owned()) } else { wrong("ss", format!("{local} came as {seen}")) }
        }),
    ];
    let shown = cells.each_ref().map(|cell| cell.as_deref().unwrap_or("FAILED"));
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    paper.say(format!("| {from}, {to} | {kind} | {family} | {} |", shown.join(" | ")));
    for failed in cells.iter().filter_map(|cell| cell.as_ref().err()) {
        paper.must(false, &format!("{from} to {to}, {kind}, {family}: {failed}"));
    }
}

fn wrong(command: &str, answer: String) -> Result<String, LabError> {
    Err(LabError::Unexpected { command: command.to_owned(), answer })
}

const SITES: [&str; 4] = ["a", "b", "c", "d"];
