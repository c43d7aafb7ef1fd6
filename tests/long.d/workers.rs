//! What a second worker adds, and what a large roster costs: `tests/long workers [--rounds N]`.
//!
//! ```text
//! source --TUN frames--> worker (seals) ==datagrams in memory==> worker (opens) --TUN frames--> sink
//!                            ^------------- probes and their answers -------------^
//! ```
//!
//! A pair of workers is one thread; two pairs are two threads that share the snapshot and nothing else. First packets
//! per second, with one and two threads in turns and a control that only computes beside each; then instructions
//! per packet under callgrind, with 10 and 10,000 members in the roster. The table is written to
//! `tests/results/workers.md`.
//!
//! One piece of work alone, for a profile: `--count N`, a number of bursts of 32 frames, with
//! `--mode tso|udp64` (super-packets of 64 KB, packets of 64 bytes), `--part seal|open` and `--members N`. The
//! functions to look at are `seal_bursts` and `open_bursts`; time stands still meanwhile:
//!
//! ```text
//! CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="valgrind --tool=callgrind --collect-atstart=no --toggle-collect=*open_bursts*" \
//!     cargo bench --package flatlan-datapath --bench workers -- --count 20 --mode tso --part open --members 10
//! ```

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a program for people"
)]

mod measure;
#[path = "../../src/datapath/tests/worker/packet.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod packet;

use std::{
    hint::black_box,
    process::Command as Program,
    sync::{Arc, Barrier},
    time::{Duration, Instant},
};

use flatlan_datapath::{
    Command, DropReason, Owner, PeerInfo, PeerKeys, Sink, Snapshot, Transmit, Worker, WorkerConfig,
};
use flatlan_packet::{Gro, VNET_LEN, VnetHeader};
use flatlan_roster::OwnerTable;
use flatlan_types::{
    BootEpoch, Endpoint, HubSlot, MemberId, NetworkId, NodeKeys, NodeSecret, NodeSeed, PeerSlot, Prefix, SessionKey,
    Share, VirtualIp,
};
use flatlan_wg::{Boringtun, Engine};
use measure::Paper;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if words.iter().any(|word| word == "--count") {
        Task::parse(&words).run();
        return;
    }
    let rounds = measure::number("--rounds", 7) as usize;
    let mut paper = Paper::new("workers", "More than one worker");
    paper.say(format!(
        "Packets from a source through a worker that seals and one that opens to a sink, all in one thread; two workers \
         are two threads. Median of {rounds} rounds in turns, {:?} each. The control computes, and touches no memory.\n",
        SPAN
    ));
    throughput(&mut paper, rounds);
    paper.say("\nInstructions per packet (callgrind, with the vector units that valgrind knows):\n");
    instructions(&mut paper);
    paper.end();
}

/// Packets per second with one and two workers.
fn throughput(paper: &mut Paper, rounds: usize) {
    paper.head(&["what", "one worker", "two workers", "two / one", "least", "most"]);
    let world = World::new(10);
    let mut rates = vec![Vec::new(); Mode::ALL.len() + 1];
    for _ in 0..rounds {
        for (mode, rates) in Mode::ALL.into_iter().map(Some).chain([None]).zip(&mut rates) {
            rates.push([1, 2].map(|threads| rate(&world, mode, threads)));
        }
    }
    for (mode, rates) in Mode::ALL.into_iter().map(Some).chain([None]).zip(&rates) {
        let median = |at: usize| median(rates.iter().map(|round| round[at]));
        let ratios = || rates.iter().map(|[one, two]| two / one);
        let (least, most) = (ratios().fold(f64::MAX, f64::min), ratios().fold(0.0, f64::max));
        let (what, unit) = mode.map_or(("control", "/s"), |mode| (mode.name(), " packets/s"));
        let (one, two, ratio) = (median(0), median(1), self::median(ratios()));
        paper.say(format!("| {what} | {one:.0}{unit} | {two:.0}{unit} | {ratio:.2} | {least:.2} | {most:.2} |"));
        if mode.is_some() {
            paper
                .must(ratio >= LEAST_RATIO, &format!("{what}: two workers bring {ratio:.2} of one, not {LEAST_RATIO}"));
        }
    }
}

/// Instructions per packet with a small and a large roster.
fn instructions(paper: &mut Paper) {
    paper.head(&["what", "10 members", "10,000 members", "more"]);
    for mode in Mode::ALL {
        for part in [Part::Seal, Part::Open] {
            let count = |members| {
                let task = Task { mode, part, members, bursts: mode.bursts() };
                task.count() / (mode.bursts() * BURST * mode.packets()) as f64
            };
            let (few, many) = (count(10), count(10_000));
            let more = (many / few - 1.0) * 100.0;
            paper.say(format!("| {} {} | {few:.0} | {many:.0} | {more:+.1} % |", part.name(), mode.name()));
            let what = format!("{} {}: 10,000 members cost {more:.1} % more", part.name(), mode.name());
            paper.must(more.abs() <= MOST_MORE, &what);
        }
    }
}

/// Packets per second through so many pairs of workers, or steps of the control.
fn rate(world: &World, mode: Option<Mode>, threads: usize) -> f64 {
    let barrier = Barrier::new(threads);
    let run = |thread| match mode {
        None => {
            barrier.wait();
            let start = Instant::now();
            let (mut steps, mut state) = (0.0, thread as u64);
            while start.elapsed() < SPAN {
                for _ in 0..10_000 {
                    state = black_box(state.rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 1);
                }
                steps += 10_000.0;
            }
            steps / start.elapsed().as_secs_f64()
        }
        Some(mode) => {
            let mut pair = Pair::establish(world, thread);
            let frame = mode.frame(ip(thread + 1));
            let mut buffer = frame.clone();
            barrier.wait();
            let (start, from) = (Instant::now(), pair.now);
            let (before, mut sent) = (pair.open_out.packets, 0);
            while start.elapsed() < SPAN {
                pair.now = from + start.elapsed();
                pair.seal_burst([&frame, &frame], &mut buffer);
                pair.exchange();
                sent += BURST * mode.packets();
            }
            let arrived = pair.open_out.packets - before;
            assert!(arrived as f64 > 0.999 * sent as f64, "{arrived} of {sent} arrived: {}", pair.drops());
            arrived as f64 / start.elapsed().as_secs_f64()
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect::<Vec<_>>();
        threads.into_iter().map(|thread| thread.join().expect("a thread that measures")).sum()
    })
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// TCP super-packets, as long as they get.
    Tso,
    /// UDP with 64 bytes.
    Udp64,
}

impl Mode {
    const ALL: [Self; 2] = [Self::Tso, Self::Udp64];

    fn name(self) -> &'static str {
        match self {
            Self::Tso => "tso",
            Self::Udp64 => "udp64",
        }
    }

    /// Bursts for a count: long enough that what happens once does not show.
    fn bursts(self) -> usize {
        match self {
            Self::Tso => 10,
            Self::Udp64 => 200,
        }
    }

    /// Packets in a frame.
    fn packets(self) -> usize {
        match self {
            Self::Tso => TCP_DATA.div_ceil(MSS),
            Self::Udp64 => 1,
        }
    }

    /// A frame as it is read from the TUN.
    fn frame(self, to: [u8; 4]) -> Vec<u8> {
        match self {
            Self::Tso => packet::super_packet(ip(0), to, TCP_DATA, MSS as u16),
            Self::Udp64 => [vec![0; VNET_LEN], packet::udp(ip(0), to, 64)].concat(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Seal,
    Open,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Seal => "seal",
            Self::Open => "open",
        }
    }
}

/// A piece of work, done once.
#[derive(Debug, Clone, Copy)]
struct Task {
    mode: Mode,
    part: Part,
    members: usize,
    bursts: usize,
}

impl Task {
    fn parse(words: &[String]) -> Self {
        let mut task = Self { mode: Mode::Tso, part: Part::Seal, members: 10, bursts: 1 };
        for pair in words.chunks(2) {
            let (flag, word) = (pair[0].as_str(), pair.get(1).map_or("", String::as_str));
            match (flag, word, word.parse()) {
                ("--count", _, Ok(bursts)) => task.bursts = bursts,
                ("--members", _, Ok(members)) if members >= 3 => task.members = members,
                ("--mode", "tso", _) => task.mode = Mode::Tso,
                ("--mode", "udp64", _) => task.mode = Mode::Udp64,
                ("--part", "seal", _) => task.part = Part::Seal,
                ("--part", "open", _) => task.part = Part::Open,
                _ => panic!("{flag} {word}: --count N [--mode tso|udp64] [--part seal|open] [--members N]"),
            }
        }
        task
    }

    fn run(self) {
        let mut pair = Pair::establish(&World::new(self.members), 0);
        // to two addresses of the peer in turns, so that each frame is looked up
        let frames = [self.mode.frame(ip(1)), self.mode.frame(second_ip(1))];
        let frames = [&frames[0][..], &frames[1]];
        match self.part {
            Part::Seal => {
                pair.seal_out.keeps = false;
                pair.seal_bursts(frames, self.bursts);
            }
            Part::Open => {
                let mut buffer = frames[0].to_vec();
                (0..self.bursts).for_each(|_| pair.seal_burst(frames, &mut buffer));
                let before = pair.open_out.packets;
                pair.open_bursts();
                let opened = pair.open_out.packets - before;
                assert_eq!(opened, self.bursts * BURST * self.mode.packets(), "{}", pair.drops());
            }
        }
    }

    /// Instructions that it takes, from a process of its own.
    fn count(self) -> f64 {
        let (bursts, members) = (self.bursts.to_string(), self.members.to_string());
        let output = Program::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"])
            .arg(format!("--toggle-collect=*{}_bursts*", self.part.name()))
            .arg(std::env::current_exe().unwrap())
            .args(["--count", &bursts, "--mode", self.mode.name(), "--part", self.part.name(), "--members", &members])
            .output()
            .expect("valgrind, which this counts with");
        let told = String::from_utf8_lossy(&output.stderr);
        let collected = told.lines().find_map(|line| line.split("Collected :").nth(1)?.trim().parse().ok());
        assert!(output.status.success(), "{told}");
        collected.filter(|count| *count > 0.0).unwrap_or_else(|| panic!("no count in: {told}"))
    }
}

/// Node 0, to which all threads belong, and the others; one snapshot for all workers of a node.
struct World {
    snapshot: Arc<Snapshot>,
    members: usize,
}

impl World {
    fn new(members: usize) -> Self {
        Self { snapshot: snapshot(0, members), members }
    }
}

/// A worker of node 0 that seals, and the worker of a peer that opens.
struct Pair {
    seal: Worker<Engine<Boringtun>>,
    open: Worker<Engine<Boringtun>>,
    seal_out: Wire,
    open_out: Wire,
    now: Instant,
}

impl Pair {
    /// Two workers with a session, a path, and its MTU. The time of that is virtual.
    fn establish(world: &World, thread: usize) -> Self {
        let peer = thread + 1;
        let mut pair = Self {
            seal: worker(0, thread),
            open: worker(peer, 0),
            seal_out: Wire::new(),
            open_out: Wire::new(),
            now: Instant::now(),
        };
        pair.seal.set_snapshot(world.snapshot.clone(), pair.now);
        pair.open.set_snapshot(snapshot(peer, world.members), pair.now);
        let direct =
            |n| Command::SetDirect { peer: PeerSlot(n as u32), endpoints: vec![at(if n == 0 { 0 } else { 1 })] };
        pair.seal.handle_command(direct(peer), pair.now, &mut pair.seal_out);
        pair.open.handle_command(direct(0), pair.now, &mut pair.open_out);
        let hello = [vec![0; VNET_LEN], packet::udp(ip(0), ip(peer), 1)].concat();
        for _ in 0..SETTLE_MILLIS {
            pair.now += Duration::from_millis(1);
            pair.seal.handle_tun(&mut hello.clone(), pair.now, &mut pair.seal_out);
            pair.seal.flush_outbound(&mut pair.seal_out);
            pair.exchange();
            pair.seal.handle_timeout(pair.now, &mut pair.seal_out);
            pair.open.handle_timeout(pair.now, &mut pair.open_out);
            while pair.seal.poll_event().is_some() || pair.open.poll_event().is_some() {}
        }
        let before = pair.open_out.packets;
        let frame = Mode::Tso.frame(ip(peer));
        pair.seal_burst([&frame, &frame], &mut frame.clone());
        let whole = pair.seal_out.sends.iter().any(|send| send.segment >= MSS + 40);
        pair.exchange();
        assert!(whole && pair.open_out.packets == before + BURST * Mode::Tso.packets(), "{}", pair.drops());
        pair
    }

    #[inline(never)]
    fn seal_bursts(&mut self, frames: [&[u8]; 2], bursts: usize) {
        let mut buffer = frames[0].to_vec();
        for _ in 0..bursts {
            self.seal_burst(frames, &mut buffer);
        }
    }

    /// What the packet thread does with frames that it reads from the TUN.
    fn seal_burst(&mut self, frames: [&[u8]; 2], buffer: &mut [u8]) {
        for frame in frames.into_iter().cycle().take(BURST) {
            buffer.copy_from_slice(frame);
            self.seal.handle_tun(buffer, self.now, &mut self.seal_out);
        }
        self.seal.flush_outbound(&mut self.seal_out);
    }

    #[inline(never)]
    fn open_bursts(&mut self) {
        self.seal_out.deliver(at(0), &mut self.open, self.now, &mut self.open_out);
    }

    /// What was sent arrives, and what is said to that.
    fn exchange(&mut self) {
        while !self.seal_out.is_empty() || !self.open_out.is_empty() {
            self.seal_out.deliver(at(0), &mut self.open, self.now, &mut self.open_out);
            self.open_out.deliver(at(1), &mut self.seal, self.now, &mut self.seal_out);
        }
        if self.seal.poll_timeout().is_some_and(|at| at <= self.now) {
            self.seal.handle_timeout(self.now, &mut self.seal_out);
        }
        if self.open.poll_timeout().is_some_and(|at| at <= self.now) {
            self.open.handle_timeout(self.now, &mut self.open_out);
        }
        while self.seal.poll_event().is_some() || self.open.poll_event().is_some() {}
    }

    fn drops(&self) -> String {
        let of = |worker: &Worker<_>| worker.stats().drops.iter().filter(|(_, n)| *n > 0).collect::<Vec<_>>();
        format!("drops: {:?} sealing, {:?} opening", of(&self.seal), of(&self.open))
    }
}

/// Sent datagrams until they are delivered, and a count of what came to the TUN.
struct Wire {
    bytes: Vec<u8>,
    sends: Vec<Send>,
    /// What is sent is kept, else dropped.
    keeps: bool,
    packets: usize,
}

#[derive(Debug, Clone, Copy)]
struct Send {
    len: usize,
    segment: usize,
    ecn: u8,
}

impl Wire {
    fn new() -> Self {
        Self { bytes: Vec::new(), sends: Vec::new(), keeps: true, packets: 0 }
    }

    fn is_empty(&self) -> bool {
        self.sends.is_empty()
    }

    fn deliver(&mut self, from: Endpoint, to: &mut Worker<Engine<Boringtun>>, now: Instant, out: &mut Self) {
        let mut rest = self.bytes.as_slice();
        for buffers in self.sends.chunks(RECEIVED) {
            for send in buffers {
                let (contents, tail) = rest.split_at(send.len);
                rest = tail;
                to.handle_network(from, contents, send.segment, send.ecn, now, out);
            }
            to.flush_inbound(now, out);
        }
        self.bytes.clear();
        self.sends.clear();
    }
}

impl Sink for Wire {
    fn send_udp(&mut self, transmit: &Transmit<'_>) -> Result<(), DropReason> {
        if self.keeps {
            let Transmit { contents, segment, traffic_class, .. } = *transmit;
            self.bytes.extend_from_slice(contents);
            self.sends.push(Send { len: contents.len(), segment, ecn: traffic_class & 3 });
        }
        Ok(())
    }

    fn send_stream(&mut self, _: HubSlot, _: &[u8]) -> Result<(), DropReason> {
        Err(DropReason::NoPath)
    }

    fn write_tun(&mut self, header_and_packet: &mut [u8]) -> Result<(), DropReason> {
        let header = VnetHeader::parse(header_and_packet).map_err(|_| DropReason::Malformed)?;
        self.packets += header.packets(&header_and_packet[VNET_LEN..]) as usize;
        Ok(())
    }
}

fn worker(node: usize, worker: usize) -> Worker<Engine<Boringtun>> {
    let seed = 1000 * node as u64 + worker as u64;
    let config = WorkerConfig {
        network: network(),
        secret: Arc::new(secret(node)),
        epoch: BootEpoch(1),
        mtu: 1400,
        gro: Gro::ALL,
        class_mask: 0xff,
        spread: flatlan_path::Spread::Off,
        seed,
        share: Share::default(),
    };
    Worker::new(config, Engine::new(&secret(node), seed))
}

/// As node `me` has it: every member owns three addresses.
fn snapshot(me: usize, members: usize) -> Arc<Snapshot> {
    let owner = |n| if n == me { Owner::Me } else { Owner::Peer(PeerSlot(n as u32)) };
    let prefixes = |n: usize| {
        let v4 = [ip(n), second_ip(n)].map(|[a, b, c, d]| format!("{a}.{b}.{c}.{d}/32"));
        let all = v4.into_iter().chain([format!("fd00::{n:x}/128")]);
        all.map(|prefix| prefix.parse::<Prefix>().unwrap())
    };
    let owners = (0..members).flat_map(|n| prefixes(n).map(move |prefix| (prefix, owner(n))));
    let peers = (0..members).filter(|n| *n != me).map(|n| {
        let info =
            PeerInfo { name: format!("n{n}").parse().unwrap(), keys: PeerKeys::Node(keys(n)), psk: None, priority: 0 };
        (PeerSlot(n as u32), info)
    });
    Arc::new(Snapshot::new(1, &network(), peers, OwnerTable::new(owners), vec![VirtualIp::new(ip(me).into())]))
}

/// The keys of those who are spoken to; of the others only the names matter.
fn keys(n: usize) -> NodeKeys {
    if n < SPOKEN {
        return secret(n).public();
    }
    let mut bytes = [0x55; 32];
    bytes[..8].copy_from_slice(&(n as u64).to_le_bytes());
    NodeKeys { id: MemberId::from_bytes(bytes), session: SessionKey::from_bytes(bytes) }
}

fn secret(n: usize) -> NodeSecret {
    NodeSeed::from_bytes([n as u8 + 1; 32]).derive()
}

fn network() -> NetworkId {
    NetworkId::from_bytes([7; 32])
}

fn ip(n: usize) -> [u8; 4] {
    let [.., high, low] = (n as u32 + 1).to_be_bytes();
    [10, 0, high, low]
}

fn second_ip(n: usize) -> [u8; 4] {
    let [_, b, c, d] = ip(n);
    [11, b, c, d]
}

fn at(n: usize) -> Endpoint {
    Endpoint::new(([192, 0, 2, n as u8 + 1], 51820).into())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// How long a round takes.
const SPAN: Duration = Duration::from_millis(500);
/// Frames that a packet thread reads from the TUN before it looks at anything else.
const BURST: usize = 32;
/// Buffers that a packet thread receives at once.
const RECEIVED: usize = 8;
/// Members with whom there are sessions.
const SPOKEN: usize = 3;
/// Time for the handshake and for probing the path's MTU.
const SETTLE_MILLIS: u32 = 3000;
/// Payload of a segment at an MTU of 1,400 bytes.
const MSS: usize = 1360;
/// The most that one super-packet holds.
const TCP_DATA: usize = 65_535 - 40;
const LEAST_RATIO: f64 = 1.6;
/// How many percent more instructions a large roster may cost.
const MOST_MORE: f64 = 5.0;
