//! What a roster of 100,000 members with 10,000 prefixes costs a node: `tests/long roster [--members N]`.
//!
//! ```text
//! admin: signs a roster and those that follow it     node (a process of its own): the control machine
//!        state directory, bundles  ----------------->  cold load: files -> checked -> verified -> snapshot
//!                                                       delta: hub's last message -> verified -> disk -> snapshot
//! ```
//!
//! The node is [`flatlan_node::Node`] in a process that has nothing else, so the memory is that process's. A hub is
//! played as far as a node needs it to hear of a head and to fetch its roster in parts over a stream. A delta is one
//! member that comes, goes, or changes its keys, address or prefixes. Its time is from the last part to the snapshot
//! for the workers; the write to the disk, durably, is a column of its own: a disk's speed is not the node's.
//!
//! All of it with half as many members and with all of them, each by [`ROUNDS`] processes, in turns: what twice the members
//! cost is the median of what it was within a turn, as a machine's speed moves. The
//! tables are written to `tests/results/roster.md`.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    reason = "a program for people"
)]

mod measure;

use std::{
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_node::{Node, NodeConfig, Output, PersistResult, Persisted, StreamId, Transport, persist};
use flatlan_relay::{Attached, ClaimsSummary, Control, MAX_PART, Role, auth};
use flatlan_roster::{
    Authority, DEFAULT_LIFE, Draft, HubRecord, MemberRecord, NetworkRecord, Ratchet, Record, Records, VerifiedRoster,
};
use flatlan_types::{
    AdminSecret, Endpoint, HubSecret, MemberId, NetworkId, NodeKeys, NodeSeed, Prefix, RecoveryKey, SessionKey,
    UnixTime, VirtualIp, Workers,
};
use measure::{Flags, Paper};
use sha2::{Digest, Sha256};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [flag, folder] = &words[..]
        && flag == "--node"
    {
        return play_node(Path::new(folder));
    }
    let members = Flags::read(&["--members"]).number("--members", MEMBERS);
    let mut paper = Paper::new("roster", "A roster of 100,000 members with 10,000 prefixes");
    if members != MEMBERS {
        paper.is_part();
    }
    paper.say(format!(
        "Times in ms, each the median of {ROUNDS} processes; of the deltas the slowest. Memory of the process in MiB, the most \
         of them: when loaded, after all deltas, and the most that it ever was, while a roster arrives. On disk: the same \
         roster and ratchet written durably.\n",
    ));
    paper.head(&[
        "members",
        "prefixes",
        "bundle MiB",
        "cold load",
        "delta",
        "on disk",
        "loaded",
        "after deltas",
        "most",
    ]);
    let prepared = [members / 2, members].map(Prepared::new);
    let turns: Vec<[Measured; 2]> = (0..ROUNDS).map(|_| prepared.each_ref().map(Prepared::run)).collect();
    let [half, whole] = [0, 1].map(|size| Measured::together(turns.iter().map(|turn| &turn[size])));
    for (prepared, measured) in prepared.iter().zip([&half, &whole]) {
        prepared.say(measured, &mut paper);
    }
    paper.say("\nDeltas of the whole roster, each in ms:\n");
    paper.head(&["what", "until the snapshot", "on disk"]);
    for (what, took, disk) in &whole.deltas {
        paper.say(format!("| {what} | {:.1} | {:.1} |", ms(*took), ms(*disk)));
    }
    let ratio = |of: fn(&Measured) -> Duration| {
        let mut ratios: Vec<f64> =
            turns.iter().map(|[half, whole]| of(whole).as_secs_f64() / of(half).as_secs_f64()).collect();
        ratios.sort_by(f64::total_cmp);
        ratios[ratios.len() / 2]
    };
    let (cold, delta) = (ratio(|m| m.cold), ratio(Measured::delta));
    paper.say(format!("\nTwice the members: cold load {cold:.2} times, delta {delta:.2} times."));
    paper.must(whole.cold <= COLD, &format!("cold load {:.0} ms, not {COLD:?}", ms(whole.cold)));
    paper.must(whole.delta() <= DELTA, &format!("delta {:.1} ms, not {DELTA:?}", ms(whole.delta())));
    paper.must(cold <= LINEAR, &format!("cold load of twice the members {cold:.2} times, not {LINEAR}"));
    paper.must(delta <= LINEAR, &format!("delta of twice the members {delta:.2} times, not {LINEAR}"));
    for (what, mib) in [("loaded", whole.loaded), ("after deltas", whole.after)] {
        paper.must(mib <= MEMORY, &format!("memory {what} {mib:.0} MiB, not {MEMORY}"));
    }
    paper.end();
}

/// What one size gave.
struct Measured {
    cold: Duration,
    /// What, until the snapshot, on disk.
    deltas: Vec<(String, Duration, Duration)>,
    /// MiB.
    loaded: f64,
    after: f64,
    most: f64,
}

impl Measured {
    fn delta(&self) -> Duration {
        self.deltas.iter().map(|(_, took, _)| *took).max().unwrap()
    }
}

/// What the admin signed, in a node's state directory.
struct Prepared {
    members: u32,
    folder: tempfile::TempDir,
    bundle: Vec<u8>,
    ratchet: Vec<u8>,
}

impl Prepared {
    fn new(members: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut admin = Admin::new(members);
        let first = admin.sign();
        let mut ratchet = Ratchet::new(admin.authority.network());
        ratchet.advance(&first).unwrap();
        let bundle = first.encode();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        write("network", admin.authority.network().as_bytes());
        for (n, what) in DELTAS.iter().enumerate() {
            admin.change(n);
            let roster = admin.sign();
            write(&format!("{n} {what}"), &roster.encode());
            write(&format!("head {n}"), &roster.signed_head().encode());
        }
        Self { members, folder, bundle: bundle.to_vec(), ratchet: ratchet.encode().to_vec() }
    }

    /// One process.
    fn run(&self) -> Measured {
        write_durably(self.folder.path(), persist::ROSTER, &self.bundle);
        write_durably(self.folder.path(), persist::RATCHET, &self.ratchet);
        run_node(self.folder.path())
    }

    fn say(&self, measured: &Measured, paper: &mut Paper) {
        let disk = measured.deltas.iter().map(|(_, _, disk)| *disk).max().unwrap();
        paper.say(format!(
            "| {} | {} | {:.1} | {:.0} | {:.1} | {:.0} | {:.0} | {:.0} | {:.0} |",
            self.members,
            self.members / ROUTED,
            self.bundle.len() as f64 / f64::from(1 << 20),
            ms(measured.cold),
            ms(measured.delta()),
            ms(disk),
            measured.loaded,
            measured.after,
            measured.most,
        ));
    }
}

impl Measured {
    /// Of several processes: medians of the times, the most of the memory.
    fn together<'a>(rounds: impl Iterator<Item = &'a Self>) -> Self {
        let rounds: Vec<&Self> = rounds.collect();
        let most = |of: fn(&Self) -> f64| rounds.iter().map(|m| of(m)).fold(0.0, f64::max);
        let deltas = DELTAS.iter().enumerate().map(|(n, what)| {
            let of =
                |time: fn(&(String, Duration, Duration)) -> Duration| median(rounds.iter().map(|m| time(&m.deltas[n])));
            ((*what).to_owned(), of(|delta| delta.1), of(|delta| delta.2))
        });
        Self {
            cold: median(rounds.iter().map(|m| m.cold)),
            deltas: deltas.collect(),
            loaded: most(|m| m.loaded),
            after: most(|m| m.after),
            most: most(|m| m.most),
        }
    }
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    times[times.len() / 2]
}

/// What one process says.
fn run_node(folder: &Path) -> Measured {
    let output = Command::new(std::env::current_exe().unwrap()).arg("--node").arg(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let words = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = text.lines().map(words).collect();
    let time = |text: &str| Duration::from_nanos(text.parse().unwrap());
    let number = |name: &str| -> f64 {
        lines.iter().find(|words| words[0] == name).unwrap_or_else(|| panic!("{name}: {text}"))[1].parse().unwrap()
    };
    let deltas = lines.iter().filter(|words| words[0] == "delta");
    let measured = Measured {
        cold: Duration::from_nanos(number("cold") as u64),
        deltas: deltas.map(|words| (words[1].clone(), time(&words[2]), time(&words[3]))).collect(),
        loaded: number("loaded"),
        after: number("after"),
        most: number("most"),
    };
    assert_eq!(measured.deltas.len(), DELTAS.len(), "{text}");
    measured
}

/// Who signs.
struct Admin {
    authority: Authority,
    secret: AdminSecret,
    members: Vec<MemberRecord>,
    base: Option<VerifiedRoster>,
}

impl Admin {
    fn new(members: u32) -> Self {
        let (secret, recovery) = (AdminSecret::from_bytes(&[1; 32]), AdminSecret::from_bytes(&[2; 32]));
        let authority = Authority::new(secret.public(), RecoveryKey::from_bytes(*recovery.public().as_bytes()));
        Self { authority, secret, members: (0..members).map(member).collect(), base: None }
    }

    fn sign(&mut self) -> VerifiedRoster {
        let network = NetworkRecord {
            name: "large".parse().unwrap(),
            range: "10.64.0.0/10".parse().unwrap(),
            mtu: 1400,
            expiry: flatlan_roster::Expiry::Warn,
        };
        let hub = HubRecord {
            name: "hub".parse().unwrap(),
            key: hub().public(),
            tls: "192.0.2.1:443".parse().unwrap(),
            udp: None,
            region: None,
            weight: 1,
        };
        let records = [Record::Network(network), Record::Hub(hub)].into_iter();
        let records = records.chain(self.members.iter().cloned().map(Record::Member)).collect();
        let records = Records::compile(records, &self.authority.network()).unwrap();
        let draft = Draft {
            authority: &self.authority,
            records: &records,
            base: self.base.as_ref(),
            now: UNIX,
            life: DEFAULT_LIFE,
        };
        let roster = VerifiedRoster::sign(draft, &self.secret).unwrap();
        self.base = Some(roster.clone());
        roster
    }

    /// One of [`DELTAS`].
    fn change(&mut self, delta: usize) {
        let middle = self.members.len() / 2;
        let new = member((self.members.len() + 1 + delta) as u32);
        match delta {
            0 => self.members[middle].keys = new.keys,
            1 => self.members[middle + 1].ips = new.ips,
            2 => self.members.push(MemberRecord { name: "a-new-one".parse().unwrap(), ..new }),
            3 => drop(self.members.remove(middle)),
            4 => self.members[0].routes.push(Prefix::of([192, 168, 7, 0].into(), 24).unwrap()),
            5 => self.members[middle + 2].moved.push(Prefix::of([192, 168, 7, 9].into(), 32).unwrap()),
            _ => panic!("no such delta"),
        }
    }
}

fn member(n: u32) -> MemberRecord {
    let key = |kind: u8| -> [u8; 32] { Sha256::digest([&[kind][..], &n.to_be_bytes()].concat()).into() };
    let keys = match n {
        ME => seed().derive().public(),
        _ => NodeKeys { id: MemberId::from_bytes(key(1)), session: SessionKey::from_bytes(key(2)) },
    };
    let route = || Prefix::of((0xac10_0000 + ((n / ROUTED) << 4)).to_be_bytes().into(), 28).unwrap();
    MemberRecord {
        ips: vec![VirtualIp::new((0x0a40_0001 + n).to_be_bytes().into())],
        keys: Some(keys),
        routes: n.is_multiple_of(ROUTED).then(route).into_iter().collect(),
        ..MemberRecord::new(format!("m{n:06}").parse().unwrap())
    }
}

/// The process that is measured: one line for each number.
fn play_node(folder: &Path) {
    let network = std::fs::read(folder.join("network")).unwrap();
    let network = NetworkId::from_bytes(network.try_into().unwrap());
    let begun = Instant::now();
    let read = |file: &str| {
        let bytes = std::fs::read(folder.join(file)).unwrap();
        persist::check(file, &bytes).unwrap();
        Some(bytes)
    };
    let persisted = Persisted { roster: read(persist::ROSTER), ratchet: read(persist::RATCHET), peers: None };
    let (epoch, _) = persist::next_epoch(None, UNIX);
    let config = NodeConfig {
        network,
        secret: Arc::new(seed().derive()),
        epoch,
        bootstrap: Vec::new(),
        transport: Transport::Auto,
        workers: Workers::ONE,
    };
    let mut run = Run {
        node: Node::new(config, persisted, 7, begun, UNIX),
        folder: folder.to_owned(),
        control: None,
        asked: None,
        snapshots: 0,
        snapshot: None,
        disk: Duration::ZERO,
        network,
    };
    run.drain();
    println!("cold\t{}", begun.elapsed().as_nanos());
    assert_eq!(run.snapshots, 1, "the roster on the disk was taken into use");
    println!("loaded\t{}", memory("VmRSS:"));
    for (n, what) in DELTAS.iter().enumerate() {
        let head = std::fs::read(folder.join(format!("head {n}"))).unwrap();
        let bundle = std::fs::File::open(folder.join(format!("{n} {what}"))).unwrap();
        let (took, disk) = run.deliver(head, &bundle);
        println!("delta\t{what}\t{}\t{}", took.as_nanos(), disk.as_nanos());
    }
    println!("after\t{}", memory("VmRSS:"));
    println!("most\t{}", memory("VmHWM:"));
}

/// The node, and a hub as far as it hears one.
struct Run {
    node: Node,
    folder: PathBuf,
    control: Option<StreamId>,
    /// Where the part begins that the node asked for.
    asked: Option<u32>,
    snapshots: u32,
    snapshot: Option<Arc<flatlan_datapath::Snapshot>>,
    disk: Duration,
    network: NetworkId,
}

impl Run {
    /// A head and then its roster, read piece by piece: the hub's memory is not the node's. How long the last part took
    /// up to the snapshot, and the disk in that time.
    fn deliver(&mut self, head: Vec<u8>, bundle: &std::fs::File) -> (Duration, Duration) {
        let stream = self.control.expect("the node dials its hub");
        let claims = no_claims();
        self.say(stream, &Control::Head { network: self.network, head, claims });
        let before = self.snapshots;
        let total = bundle.metadata().unwrap().len() as u32;
        loop {
            let offset = self.asked.take().expect("the node asks for the roster");
            let mut bytes = vec![0; ((total - offset) as usize).min(MAX_PART)];
            bundle.read_exact_at(&mut bytes, offset.into()).unwrap();
            let part = Control::RosterPart { network: self.network, version: 1, total, offset, bytes };
            let bytes = part.encode();
            self.disk = Duration::ZERO;
            let begun = Instant::now();
            self.node.handle_message(stream, &bytes, begun, UNIX);
            self.drain();
            if self.snapshots > before {
                return (begun.elapsed() - self.disk, self.disk);
            }
        }
    }

    fn say(&mut self, stream: StreamId, message: &Control) {
        self.node.handle_message(stream, &message.encode(), Instant::now(), UNIX);
        self.drain();
    }

    fn drain(&mut self) {
        let now = Instant::now();
        let mut said = Vec::new();
        while let Some(output) = self.node.poll_output() {
            match output {
                Output::Dial { stream, role: Role::Control, .. } => {
                    self.control = Some(stream);
                    let exporter = auth::Exporter([3; 32]);
                    self.node.handle_opened(stream, exporter.0, Some(address()), now);
                    let signature = auth::sign_hello(&hub(), &exporter);
                    said.push((stream, Control::HubHello { version: 1, key: hub().public(), signature }));
                }
                Output::Dial { stream, .. } => self.node.handle_closed(stream, now, UNIX),
                Output::Send { stream, bytes } => {
                    let message = Control::decode(&bytes).unwrap().unwrap();
                    if matches!(message, Control::Attach(_)) {
                        said.push((stream, Control::Attached(attached())));
                    }
                    if let Control::GetRoster { offset, .. } = message {
                        self.asked = Some(offset);
                    }
                }
                Output::Snapshot(snapshot) => {
                    self.snapshots += 1;
                    self.snapshot = Some(snapshot);
                }
                Output::Persist { file, bytes, token } => {
                    let begun = Instant::now();
                    write_durably(&self.folder, &file, &bytes);
                    self.disk += begun.elapsed();
                    if let Some(token) = token {
                        self.node.handle_persisted(token, PersistResult::Written, now, UNIX);
                    }
                }
                Output::Resolve { place } => self.node.handle_resolved(&place, &[], now),
                Output::Fatal(fatal) => panic!("{fatal}"),
                Output::Close { .. }
                | Output::BindData { .. }
                | Output::Worker(_)
                | Output::Interface(_)
                | Output::Up { .. } => {}
            }
        }
        for (stream, message) in said {
            self.say(stream, &message);
        }
    }
}

fn attached() -> Attached {
    Attached {
        version: 1,
        attachment: 1,
        observed: address(),
        udp: Vec::new(),
        bind: None,
        head: None,
        claims: no_claims(),
    }
}

fn no_claims() -> ClaimsSummary {
    ClaimsSummary { count: 0, hash: Sha256::digest([]).into() }
}

/// As a node's state directory does it: whole or not at all.
fn write_durably(folder: &Path, name: &str, bytes: &[u8]) {
    let (beside, place) = (folder.join(format!(".{name}.new")), folder.join(name));
    let mut file = std::fs::File::create(&beside).unwrap();
    file.write_all(bytes).unwrap();
    file.sync_all().unwrap();
    std::fs::rename(&beside, &place).unwrap();
    std::fs::File::open(folder).unwrap().sync_all().unwrap();
}

/// A number of `/proc/self/status` in MiB.
fn memory(what: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn seed() -> NodeSeed {
    NodeSeed::from_bytes([9; 32])
}

fn hub() -> HubSecret {
    HubSecret::from_bytes(&[8; 32])
}

fn address() -> Endpoint {
    Endpoint::new(([192, 0, 2, 1], 443).into())
}

/// What happens to one member, in this order.
const DELTAS: [&str; 6] = ["new keys", "new address", "added", "removed", "new prefix", "address moved to it"];
const MEMBERS: u32 = 100_000;
const ROUNDS: usize = 5;
/// One member in so many carries a prefix.
const ROUTED: u32 = 10;
/// The node's own member.
const ME: u32 = 3;
const UNIX: UnixTime = UnixTime(1_800_000_000);
/// The goals.
const COLD: Duration = Duration::from_secs(2);
const DELTA: Duration = Duration::from_millis(20);
const MEMORY: f64 = 200.0;
const LINEAR: f64 = 2.3;
