//! A long transfer while the network below begins to carry less and says nothing of it: `tests/long mtu [--mib N]
//! [--flatlan PATH]`.
//!
//! Two sites and a hub. A LAN host of one sends one TCP flow to a LAN host of the other, over a direct path and over the
//! hub. After a third of it, IP packets of more than 1400 bytes from and to the receiving site vanish, after two thirds those
//! of more than 1280; no ICMP error says so. The flow may pause for three seconds at most, and every byte must arrive. A
//! transfer over a way that stays as it is comes first.

#![expect(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a program for people")]

mod measure;
#[path = "../netns/support.rs"]
mod support;

use std::time::Duration;

use flatlan_lab::{Lab, LabBuilder, Nat, Payload, Transfer, TransferReport};
use measure::{Flags, Paper};
use support::{MIB, ping, wait_path};

fn main() {
    let flags = Flags::read(&["--mib", "--flatlan"]);
    let mib = u64::from(flags.number("--mib", 1024));
    flatlan_lab::enter().unwrap();
    let builder = support::lab().hub("h1");
    let builder = flags.word("--flatlan").map_or_else(|| builder.clone(), |binary| builder.clone().flatlan(binary));
    let mut paper = Paper::new("mtu", "A transfer while the way below shrinks in silence");
    paper.say(format!(
        "{mib} MiB from a LAN host to another; IP packets of more than 1400, then of more than 1280 bytes vanish."
    ));
    paper.say("No ICMP error says so.\n");
    paper.head(&["way", "it carries, bytes", "Mbit/s", "longest pause, ms", "equal"]);
    for (way, nat) in [("direct", Nat::Cone), ("relay", Nat::Symmetric)] {
        for holes in [&[][..], &[1400, 1280]] {
            let report = transfer(builder.clone(), way, nat, mib * MIB, holes);
            let carries = [1500].iter().chain(holes).map(u16::to_string).collect::<Vec<_>>().join(", then ");
            let (rate, pause) = (report.megabits_per_second(), report.longest_gap.length);
            let whole = report.equal && report.broken.is_none() && report.bytes == mib * MIB;
            let equal = if whole { "yes" } else { "NO" };
            paper.say(format!("| {way} | {carries} | {rate:.0} | {} | {equal} |", pause.as_millis()));
            paper.must(whole, &format!("{way}, {carries}: {report:?}"));
            paper.must(pause <= LIMIT, &format!("{way}, {carries}: a pause of {pause:?}, not at most {LIMIT:?}"));
        }
    }
    paper.end();
}

fn transfer(builder: LabBuilder, way: &str, nat: Nat, bytes: u64, holes: &[u16]) -> TransferReport {
    let lab = builder.site("a", nat).site("b", nat).build().unwrap();
    lab.bring_up().unwrap();
    {
        let _talk = ping(&lab, "a", "b");
        wait_path(&lab, "a", "b", way, |path| path["kind"] == way);
    }
    let (near, (far, to)) = (host(&lab, "a").0, host(&lab, "b"));
    let flow = Transfer::start(near, far, to, Payload::Random, Some(bytes)).unwrap();
    for (third, hole) in (1..).zip(holes) {
        flow.wait_received(bytes * third / 3, LONG).unwrap();
        lab.mtu_hole("b", *hole).unwrap();
    }
    flow.finish(LONG).unwrap()
}

fn host<'a>(lab: &'a Lab, site: &str) -> (&'a flatlan_lab::Namespace, std::net::IpAddr) {
    let host = lab.site(site).unwrap().hosts().first().unwrap();
    (host.namespace(), host.addresses()[0])
}

/// The longest pause that is allowed.
const LIMIT: Duration = Duration::from_secs(3);
const LONG: Duration = Duration::from_secs(900);
