//! Minutes of saturation over a bad wire, after which every packet must be accounted for: `tests/long soak [--minutes N]`.
//!
//! ```text
//!          h1 ---- inet ==== what a and b send is lost, doubled and overtaken here, as a seed wants
//!                /      \
//!            a-nat      b-nat     cones: the path is a direct one
//!              |          |
//!              a          b
//! ```
//!
//! One TCP stream each way takes all it gets, and its bytes are compared by SHA-256; datagrams of random sizes go beside
//! it. Sessions are renewed meanwhile. Then all is still, and for each direction must hold, in packets: sealed by the
//! one end, and doubled by the wire = accepted by the other end + lost by the wire + dropped, by reason. Control messages
//! are not counted among the packets, so the wire spares what is as short as they are. The table is written to
//! `tests/results/soak.md`.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a program that measures for people"
)]

mod measure;
#[path = "../netns/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flatlan_lab::{Bursts, Emulator, Fates, Lab, Nat, Payload, Quality, Transfer};
use measure::Paper;
use serde_json::Value;
use support::{MIB, PATIENCE, gateway, path, ping, wait_path};

fn main() {
    let minutes = measure::number("--minutes", 10);
    flatlan_lab::enter().unwrap();
    let lab = support::lab().hub("h1").site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    lab.bring_up().unwrap();
    let talk = ping(&lab, "a", "b");
    wait_path(&lab, "a", "b", "a direct path", support::is_direct);
    wait_path(&lab, "b", "a", "a direct path", support::is_direct);
    drop(talk);
    let mut paper = Paper::new("soak", "Minutes of saturation over a bad wire");
    let Quality { lost, doubled, held, hold, rate, shortest, .. } = QUALITY;
    let rate = rate.unwrap_or_default() / 1_000_000;
    paper.say(format!(
        "{minutes} minutes, seed {SEED}, each way {rate} Mbit/s; of a thousand packets {lost} lost, {doubled}"
    ));
    paper.say(format!("doubled, {held} held back for {hold:?}; packets shorter than {shortest} bytes are spared.\n"));
    let before = ["a", "b"].map(|site| Count::of(&lab, site));
    let wires = ["a", "b"].map(|site| lab.emulate(site, QUALITY, SEED).unwrap());
    let streams = [("a", "b"), ("b", "a")].map(|(from, to)| stream(&lab, from, to));
    let datagrams = [("a", "b"), ("b", "a")].map(|(from, to)| Datagrams::start(&lab, from, to));
    let rekeys = watch(&lab, Duration::from_secs(60 * u64::from(minutes)));
    for source in datagrams {
        source.stop();
    }
    paper.head(&["TCP", "MiB", "SHA-256", "Mbit/s"]);
    for (name, stream) in ["a to b", "b to a"].into_iter().zip(streams) {
        let report = stream.stop(PATIENCE);
        let equal = if report.equal { "equal" } else { "NOT EQUAL" };
        paper.say(format!("| {name} | {} | {equal} | {:.0} |", report.bytes / MIB, report.megabits_per_second()));
        paper.must(report.equal && report.broken.is_none() && report.bytes > MIB, &format!("{name}: {report:?}"));
    }
    let fates = wires.each_ref().map(|wire| settled(&lab, wire));
    let overruns = wires.each_ref().map(|wire| wire.overrun().unwrap());
    drop(wires);
    let [a, b] = ["a", "b"].map(|site| Count::of(&lab, site));
    let [a_before, b_before] = before;
    let ends = [a.since(&a_before), b.since(&b_before)];
    paper.say(format!("\nSessions renewed: {rekeys}.\n"));
    paper.must(rekeys >= u64::from(minutes).saturating_sub(1) / 2, "too few sessions were renewed");
    paper.head(&["packets", "a to b", "b to a"]);
    let [ours, theirs] = &ends;
    let ways = [Way::new(ours, theirs, fates[0], overruns[0]), Way::new(theirs, ours, fates[1], overruns[1])];
    for ((name, one), (_, other)) in ways[0].rows().into_iter().zip(ways[1].rows()) {
        paper.say(format!("| {name} | {one} | {other} |"));
    }
    for (name, way) in ["a to b", "b to a"].into_iter().zip(&ways) {
        paper.must(way.balances(), &format!("{name}: {} packets are not accounted for", way.missing()));
        paper.must(way.sealed > 1000, &format!("{name}: next to nothing was sent"));
    }
    for (name, end) in ["a", "b"].into_iter().zip(&ends) {
        paper.say(format!("\n{name} dropped: {:?}", end.drops));
        let strange: Vec<_> = end.drops.keys().filter(|reason| !EXPECTED.contains(&reason.as_str())).collect();
        paper.must(
            strange.is_empty(),
            &format!("{name}: dropped for reasons that a bad wire does not give: {strange:?}"),
        );
    }
    paper
        .must(path(&lab.status("a").unwrap(), "b").is_none_or(|path| support::is_direct(&path)), "the path is another");
    paper.end();
}

/// Waits, and counts how often a session was renewed.
fn watch(lab: &Lab, length: Duration) -> u64 {
    let (begun, mut last, mut renewed) = (Instant::now(), f64::MAX, 0);
    while begun.elapsed() < length {
        let status = lab.status("a").unwrap();
        let age = status.pointer("/peers/0/last_handshake_s").and_then(Value::as_f64).unwrap_or(last);
        renewed += u64::from(age < last && last < f64::MAX);
        last = age;
        std::thread::sleep(Duration::from_secs(1));
    }
    renewed
}

/// What a wire did, once nothing is under way.
fn settled(lab: &Lab, wire: &Emulator) -> Fates {
    let deadline = Instant::now() + PATIENCE;
    let look = || (wire.fates(), ["a", "b"].map(|site| Count::of(lab, site)));
    let mut last = look();
    loop {
        std::thread::sleep(STILL);
        let next = look();
        let still = |count: &Count, was: &Count| count.sealed == was.sealed && count.accepted == was.accepted;
        if next.1.iter().zip(&last.1).all(|(count, was)| still(count, was)) {
            return next.0;
        }
        assert!(Instant::now() < deadline, "something is still being sent: {next:?}");
        last = next;
    }
}

fn stream(lab: &Lab, from: &str, to: &str) -> Transfer {
    let address = lab.site(to).unwrap().virtual_ip().into();
    Transfer::start(gateway(lab, from), gateway(lab, to), address, Payload::Random, None).unwrap()
}

/// What a node and its socket counted.
#[derive(Debug)]
struct Count {
    sealed: u64,
    accepted: u64,
    drops: BTreeMap<String, u64>,
    /// Dropped by the kernel because the node was late.
    socket: u64,
}

impl Count {
    fn of(lab: &Lab, site: &str) -> Self {
        let status = lab.status(site).unwrap();
        let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).unwrap();
        let drops = status["drops"].as_object().unwrap();
        let drops = drops.iter().map(|(reason, count)| (reason.clone(), count.as_u64().unwrap())).collect();
        let port = number("/self/port");
        let socket = gateway(lab, site).run(move || socket_drops(port));
        Self { sealed: number("/packets/tx"), accepted: number("/packets/rx"), drops, socket }
    }

    fn since(&self, before: &Self) -> Self {
        let of = |reason: &String, count: &u64| count - before.drops.get(reason).copied().unwrap_or(0);
        let drops = self.drops.iter().map(|(reason, count)| (reason.clone(), of(reason, count)));
        Self {
            sealed: self.sealed - before.sealed,
            accepted: self.accepted - before.accepted,
            drops: drops.filter(|(_, count)| *count > 0).collect(),
            socket: self.socket - before.socket,
        }
    }

    fn dropped(&self, reasons: &[&str]) -> u64 {
        reasons.iter().filter_map(|reason| self.drops.get(*reason)).sum()
    }
}

/// The last column of `/proc/net/udp`, of the sockets on a port.
fn socket_drops(port: u64) -> u64 {
    let wanted = format!(":{port:04X}");
    let tables = ["udp", "udp6"].map(|table| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")));
    let lines = tables.iter().flatten().flat_map(|table| table.lines());
    let ours = lines.filter(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&wanted)));
    ours.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum()
}

/// One direction, in packets.
struct Way {
    sealed: u64,
    accepted: u64,
    wire: Fates,
    overrun: u64,
    unsent: u64,
    socket: u64,
    refused: u64,
}

impl Way {
    fn new(from: &Count, to: &Count, wire: Fates, overrun: u64) -> Self {
        let (unsent, refused) = (from.dropped(&ON_THE_WAY_OUT), to.dropped(&ON_THE_WAY_IN));
        Self { sealed: from.sealed, accepted: to.accepted, wire, overrun, unsent, socket: to.socket, refused }
    }

    /// Packets that nobody counted. Below zero: so many control messages are among those that were dropped.
    fn missing(&self) -> i64 {
        let came = self.sealed + self.wire.doubled;
        let by_wire = self.wire.lost + self.wire.overflowed + self.wire.refused + self.overrun;
        let gone = self.unsent + by_wire + self.socket + self.refused;
        came.cast_signed() - (self.accepted + gone).cast_signed()
    }

    /// Datagrams that held no packet.
    fn control(&self) -> i64 {
        (self.wire.came + self.overrun + self.unsent).cast_signed() - self.sealed.cast_signed()
    }

    /// Whether every packet is accounted for. Neither the wire nor a socket tells packets from control messages: the wire
    /// may have lost a few long ones (probes of a path's MTU), a socket as many as it was sent.
    fn balances(&self) -> bool {
        let most = PROBES + self.control().min(self.socket.cast_signed());
        (-most..=0).contains(&self.missing())
    }

    fn rows(&self) -> Vec<(&'static str, i64)> {
        let counts = [
            ("sealed by the sender", self.sealed),
            ("+ doubled by the wire", self.wire.doubled),
            ("- not taken by the sender's kernel", self.unsent),
            ("- lost by the wire", self.wire.lost),
            ("- dropped where too many waited for the wire", self.wire.overflowed),
            ("- not taken by the core's kernel", self.overrun + self.wire.refused),
            ("- dropped at the receiver's socket", self.socket),
            ("- dropped by the receiver, by reason", self.refused),
            ("- accepted by the receiver", self.accepted),
            ("(overtaken)", self.wire.held),
        ];
        let counts = counts.into_iter().map(|(name, count)| (name, count.cast_signed()));
        counts.chain([("= not accounted for", self.missing()), ("(control messages)", self.control())]).collect()
    }
}

/// Datagrams of random sizes.
struct Datagrams {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Datagrams {
    fn start(lab: &Lab, from: &str, to: &str) -> Self {
        let to = SocketAddr::new(IpAddr::V4(lab.site(to).unwrap().virtual_ip()), PORT);
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = gateway(lab, from).thread("datagrams", move || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            let payload = [0; LONGEST];
            let mut seed = SEED;
            while !seen.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    // Knuth's MMIX: any sequence will do
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let length = usize::try_from(seed >> 33).unwrap() % LONGEST;
                    // nobody listens, and ICMP says so: that is no error of this socket's
                    let _ = socket.send_to(&payload[..length], to);
                }
                std::thread::sleep(PACE);
            }
        });
        Self { stop, thread: thread.unwrap() }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// When nothing has moved for so long, nothing is under way.
const STILL: Duration = Duration::from_secs(3);
const SEED: u64 = 20_261_121;
/// What becomes of what each node sends. Control messages are shorter than that.
const QUALITY: Quality = Quality {
    delay: Duration::ZERO,
    jitter: Duration::ZERO,
    lost: 2,
    doubled: 2,
    bursts: Bursts { begin: 0, end: 0, lost: 0 },
    damaged: 0,
    held: 5,
    hold: Duration::from_millis(2),
    rate: Some(200_000_000),
    queue: 500_000,
    shortest: 400,
};
/// Reasons that a node gives for packets that it has sealed already.
const ON_THE_WAY_OUT: [&str; 1] = ["backpressure"];
/// Reasons that it gives for what it did not accept.
const ON_THE_WAY_IN: [&str; 9] = [
    "bad_tag",
    "congestion",
    "malformed",
    "not_for_us",
    "replayed",
    "source_not_owned",
    "stale_epoch",
    "truncated",
    "unknown",
];
/// The reasons that a bad wire and a full one give, and those that a machine's own chatter and a path's MTU give before a
/// packet is sealed.
const EXPECTED: [&str; 6] = ["backpressure", "bad_destination", "congestion", "queue_full", "replayed", "too_big"];
/// Long control messages that may be lost.
const PROBES: i64 = 50;
const PORT: u16 = 9;
/// The largest payload whose packet is not cut.
const LONGEST: usize = 1372;
/// Datagrams in a row, and the pause after them: about 8,000 a second.
const BURST: u32 = 10;
const PACE: Duration = Duration::from_millis(1);
