//! Floods at a node's UDP port while a flow runs: what they take from the flow, and from a handshake that is meant.
//!
//! ```text
//!   a --+          +-- h1 (hub)     b is open to everybody, and has a stock peer: plain handshakes are looked at.
//!       +-- inet --+                Its router x sends with forged source addresses, and knows public keys only:
//!   c --+          +-- x -- b       from further away each datagram would cost this machine more than b.
//!
//! The control: the same datagrams, dropped by nft where they come in at b.
//! ```

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use blake2::digest::Update as _;
use blake2::{Blake2s256, Blake2sMac, Digest as _};
use flatlan_lab::{Lab, Namespace, Nat, UDP_PORT};
use flatlan_types::{NetworkId, NodeKeys, SenderHint};
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn, sendmmsg, socket,
};

use crate::blast;
use crate::measure::Paper;
use crate::usage::Usage;

/// What the datagrams are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Random bytes of 100, whose first is a known one.
    Garbage,
    /// WireGuard initiations whose first MAC holds.
    Plain,
    /// Sealed initiations that name a member as their sender.
    Sealed,
}

impl Kind {
    const ALL: [(Self, u64, &'static str); 3] = [
        (Self::Plain, 50_000, "initiations with a valid MAC1"),
        (Self::Sealed, 50_000, "sealed initiations in a member's name"),
        (Self::Garbage, 200_000, "garbage"),
    ];
}

/// Every kind, dropped and not, in turns.
pub(crate) fn run(paper: &mut Paper, binary: &Path) -> Result<()> {
    flatlan_lab::enter()?;
    let lab = Lab::builder().flatlan(binary).hub("h1").site("a", Nat::Cone).site("b", Nat::None).site("c", Nat::Cone);
    let lab = lab.build()?;
    lab.bring_up()?;
    let (a, b) = (lab.site("a")?, lab.site("b")?);
    let stock = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    lab.administer(["member", "add", "phone", "--stock", "--key", stock, "--via", "b"])?;
    lab.publish()?;
    let network: NetworkId = lab.network_id().context("no network")?.parse().ok().context("no network id")?;
    let key = |site: &str| member_key(&lab, site);
    let (target, sender) = (key("b")?, key("a")?);
    let hint = SenderHint::of(&network, &sender.id);
    let [IpAddr::V4(address), _] = b.lan_addresses() else { bail!("b has no IPv4 address") };
    lab.wait_reachable(a.gateway(), b.virtual_ip().into(), Duration::from_secs(20))?;
    paper.say(format!(
        "A flow of {RATE} Mbit/s from a to b by datagrams of {PAYLOAD} bytes, {SECONDS} s each, {ROUNDS} turns.\n"
    ));
    paper.head(&[
        "flood",
        "offered, k/s",
        "",
        "flow received, Mbit/s",
        "b's CPU, % of a core",
        "b's RSS, MiB",
        "new session, ms",
    ]);
    // a router that remembers every forged source is full before the node has anything to do
    lab.core().nft(FORGET)?;
    let x = b.router(0).context("b has no router")?;
    x.nft(FORGET)?;
    turn(&lab, paper, "none", None)?;
    for (kind, rate, name) in Kind::ALL {
        let datagrams = Arc::new(forge(kind, address, &target, hint));
        let (mut control, mut flooded) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for (at, turns) in [(At::Ingress, &mut control), (At::Node, &mut flooded)] {
                let flood = Flood::begin(x, datagrams.clone(), address, rate)?;
                turns.push(turn(&lab, paper, name, Some((flood, at)))?);
            }
        }
        let median = |turns: &[Turn]| {
            let mut flows: Vec<f64> = turns.iter().map(|turn| turn.flow).collect();
            flows.sort_by(f64::total_cmp);
            flows[flows.len() / 2]
        };
        let (beside, share) = (median(&control), median(&flooded) / median(&control));
        let worst = flooded.iter().map(|turn| turn.session).max().unwrap_or_default();
        let offered = flooded.iter().map(|turn| turn.offered).fold(f64::INFINITY, f64::min);
        paper.say(format!("| **{name}** | | flow, of the control | {:.1} % | | | |", share * 100.0));
        paper.must(beside >= f64::from(RATE) / 2.0, &format!("{name}: the control has {beside:.1} Mbit/s"));
        paper.must(offered >= 0.95 * rate as f64, &format!("{name}: {offered:.0} a second were offered"));
        paper.must(share >= 0.9, &format!("{name}: the flow has {:.1} % of the control", share * 100.0));
        paper.must(worst <= Duration::from_secs(1), &format!("{name}: a new session took {worst:?}"));
    }
    Ok(())
}

/// Where a flood ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Dropped by nft: the control.
    Ingress,
    /// Nowhere before the node.
    Node,
}

/// What one turn showed.
struct Turn {
    /// Datagrams of the flood, a second.
    offered: f64,
    /// Megabits a second that arrived.
    flow: f64,
    /// How long a node that came during it waited for its first answer.
    session: Duration,
}

/// The flow from a to b, and then a node that has never spoken to b in this life, beside a flood.
fn turn(lab: &Lab, paper: &mut Paper, name: &str, flood: Option<(Flood, At)>) -> Result<Turn> {
    let (a, b, c) = (lab.site("a")?, lab.site("b")?, lab.site("c")?);
    let at = flood.as_ref().map(|(_, at)| *at);
    if at == Some(At::Ingress) {
        b.gateway().nft(DROP)?;
    }
    std::thread::sleep(Duration::from_millis(300));
    let sent = || flood.as_ref().map_or(0, |(flood, _)| flood.sent());
    let pid = lab.process("b")?.pid();
    let (before, sent_before, begun) = (Usage::of(pid), sent(), Instant::now());
    let flow = flow(a.gateway(), b.gateway(), b.virtual_ip())?;
    let seconds = begun.elapsed().as_secs_f64();
    let (after, sent) = (Usage::of(pid), sent() - sent_before);
    lab.kill("c")?;
    lab.up("c")?;
    let session = lab.wait_reachable(c.gateway(), b.virtual_ip().into(), Duration::from_secs(10))?;
    if let Some((flood, _)) = flood {
        flood.end();
    }
    if at == Some(At::Ingress) {
        b.gateway().nft("delete table netdev flood")?;
    }
    let turn = Turn { offered: sent as f64 / seconds, flow, session };
    paper.say(format!(
        "| {name} | {:.0} | {} | {flow:.1} | {:.0} | {:.1} | {:.0} |",
        turn.offered / 1e3,
        match at {
            Some(At::Ingress) => "dropped by nft (control)",
            Some(At::Node) => "at the node",
            None => "",
        },
        (after.ticks - before.ticks) as f64 / seconds,
        after.resident_kib as f64 / 1024.0,
        session.as_secs_f64() * 1e3
    ));
    Ok(turn)
}

/// Megabits a second that arrive, of those sent by one socket for [`SECONDS`].
///
/// Not by iperf3: it sends one datagram ahead of the others and waits for its answer for half a minute, which is longer
/// than the flow. Here one that is lost is one that is lost.
fn flow(from: &Namespace, to: &Namespace, address: Ipv4Addr) -> Result<f64> {
    let there = to.run(move || UdpSocket::bind((address, 0))).context("no socket of the receiver")?;
    let place = there.local_addr().context("the receiver has no address")?;
    let here = from.run(move || {
        let here = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        here.connect(place).map(|()| here)
    });
    let here = here.context("no socket of the sender")?;
    there.set_read_timeout(Some(ON_THE_WAY))?;
    let (stop, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (sent, received) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let begun = Instant::now();
    let sender = std::thread::spawn({
        let (stop, rate) = (stop.clone(), u64::from(RATE) * 1_000_000 / (8 * PAYLOAD as u64));
        move || blast::paced(&here, &[0; PAYLOAD], rate, &stop, &sent)
    });
    let receiver = std::thread::spawn({
        let (ended, received) = (ended.clone(), received.clone());
        move || blast::count(&there, &ended, &received)
    });
    std::thread::sleep(Duration::from_secs(u64::from(SECONDS)));
    stop.store(true, Ordering::Relaxed);
    let _ = sender.join();
    let seconds = begun.elapsed().as_secs_f64();
    std::thread::sleep(ON_THE_WAY);
    ended.store(true, Ordering::Relaxed);
    let _ = receiver.join();
    Ok(received.load(Ordering::Relaxed) as f64 * PAYLOAD as f64 * 8.0 / seconds / 1e6)
}

/// A member's keys, as the admin's file has them.
fn member_key(lab: &Lab, site: &str) -> Result<NodeKeys> {
    lab.administer(["network", "pull"])?;
    let text = std::fs::read_to_string(lab.admin_state().join("network.toml")).context("no network.toml")?;
    let mut lines = text.lines().skip_while(|line| line.trim() != format!("[member.{site}]"));
    let key = lines.find_map(|line| line.trim().strip_prefix("key = \"")?.strip_suffix('"'));
    key.and_then(|key| key.parse().ok()).with_context(|| format!("{site} has no key in network.toml"))
}

/// Whole IP packets with many sources.
fn forge(kind: Kind, to: Ipv4Addr, target: &NodeKeys, hint: SenderHint) -> Vec<Vec<u8>> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = |count: usize| -> Vec<u8> {
        let mut next = || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random as u8
        };
        (0..count).map(|_| next()).collect()
    };
    let mac1_key = Blake2s256::new().chain_update(b"mac1----").chain_update(target.session.as_bytes()).finalize();
    let mut initiation = || {
        let mut message = vec![1, 0, 0, 0];
        message.extend(bytes(112));
        let mac = <Blake2sMac<blake2::digest::consts::U16> as blake2::digest::KeyInit>::new_from_slice(&mac1_key);
        let mac = mac.expect("32 bytes").chain(&message);
        message.extend(blake2::digest::FixedOutput::finalize_fixed(mac));
        message.extend([0; 16]);
        message
    };
    (0..FORGED)
        .map(|n| {
            let payload = match kind {
                Kind::Plain => initiation(),
                Kind::Sealed => {
                    let mut frame = vec![0x11, 0, 0, 0];
                    frame.extend(hint.0.to_be_bytes());
                    frame.extend([0; 16]);
                    frame.extend(initiation());
                    frame.extend([7; 16]);
                    frame
                }
                Kind::Garbage => {
                    let mut garbage = initiation();
                    garbage.truncate(100);
                    garbage[0] = [1, 2, 3, 4, 0x10, 0x11, 0x20, 0x21, 0x22, 0xff][n % 10];
                    garbage
                }
            };
            packet(n as u32, to, &payload)
        })
        .collect()
}

/// An IPv4 packet with a UDP datagram; the kernel fills in the IP checksum.
fn packet(n: u32, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let source = Ipv4Addr::from(FORGED_SOURCES.to_bits() | (n.wrapping_mul(2_654_435_761) >> 16));
    let length = (28 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    // with an identification of its own: the kernel would draw one for each
    packet.extend([1, 1, 0, 0, 64, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(to.octets());
    packet.extend((1024 + (n % 60_000) as u16).to_be_bytes());
    packet.extend(UDP_PORT.to_be_bytes());
    packet.extend((8 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend_from_slice(payload);
    packet
}

struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Flood {
    fn begin(from: &Namespace, datagrams: Arc<Vec<Vec<u8>>>, to: Ipv4Addr, rate: u64) -> Result<Self> {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (stop.clone(), sent.clone());
        let thread = from.thread("flood", move || {
            if let Err(error) = send(&datagrams, to, rate, &stopped, &count) {
                eprintln!("no flood: {error:#}");
            }
        })?;
        Ok(Self { stop, sent, thread })
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.join();
    }
}

fn send(datagrams: &[Vec<u8>], to: Ipv4Addr, rate: u64, stop: &AtomicBool, sent: &AtomicU64) -> Result<()> {
    let raw =
        socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).context("no raw socket")?;
    let addresses = [Some(SockaddrIn::from(std::net::SocketAddrV4::new(to, 0))); BATCH];
    let slices: Vec<[IoSlice<'_>; 1]> = datagrams.iter().map(|datagram| [IoSlice::new(datagram)]).collect();
    let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, None);
    let begun = Instant::now();
    let mut count: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = u64::try_from(begun.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX);
        if due < count + BATCH as u64 {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        let at = count as usize % (slices.len() - BATCH);
        let batch = slices.iter().skip(at).take(BATCH);
        let done = sendmmsg(raw.as_raw_fd(), &mut headers, batch, addresses, [], MsgFlags::empty());
        count += done.map_or(BATCH, |results| results.count()) as u64;
        sent.store(count, Ordering::Relaxed);
    }
    Ok(())
}

/// 198.19.0.0/16, which is for measurements (RFC 2544) and nobody's here: cables of a lab have 198.18.0.0/16, and what is
/// dropped from there is the hub's and every other site's.
const FORGED_SOURCES: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 0);
/// At the node's ingress, before anything of IP.
const DROP: &str = "add table netdev flood
add chain netdev flood in { type filter hook ingress device eth0 priority 0; }
add rule netdev flood in ip saddr 198.19.0.0/16 drop";
/// Routers keep no state of forged sources, and what is sent there gets no answer.
const FORGET: &str = "add table ip forged
add chain ip forged in { type filter hook prerouting priority raw; }
add rule ip forged in ip saddr 198.19.0.0/16 notrack
add rule ip forged in ip daddr 198.19.0.0/16 drop";
/// Megabits a second of the flow.
const RATE: u32 = 200;
/// Bytes of each of its datagrams.
const PAYLOAD: usize = 1_200;
const SECONDS: u32 = 5;
const ROUNDS: u32 = 3;
/// What was sent last has arrived by then, or is lost.
const ON_THE_WAY: Duration = Duration::from_millis(200);
/// Datagrams made beforehand.
const FORGED: usize = 16_384;
const BATCH: usize = 32;
