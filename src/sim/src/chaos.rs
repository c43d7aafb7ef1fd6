//! One seed: an internet of its own, everything that can break, and whether all is well after.

use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, Instant},
};

use flatlan_datapath::PeerReport;
use flatlan_link::{Bursts, Chance, Quality};
use flatlan_path::{PathStatus, Spread};

use crate::{
    admin::hub_secret,
    fault::{Change, Fault},
    ledger::{Flow, FlowId},
    lie::Lie,
    model,
    nat::Nat,
    node_site::Disk,
    party::Party,
    sim::{Counters, Sim, Violation},
    visit::Errand,
};

/// How a seed went.
#[derive(Debug)]
pub struct Outcome {
    /// Which.
    pub seed: u64,
    /// Over all that happened.
    pub hash: u64,
    /// How much happened.
    pub events: u64,
    /// The rule that was broken, if one was.
    pub violation: Option<Violation>,
    /// How long after the mending all was well.
    pub healed: Option<Duration>,
    /// How much there was of everything.
    pub counters: Counters,
    /// Inner packets that came.
    pub arrived: u64,
    /// What happened, where it was to be kept.
    pub text: Vec<String>,
}

/// Whether what happens is kept as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// It is.
    Kept,
    /// It is not.
    No,
}

/// Runs a seed.
pub fn run(seed: u64, text: Text, start: Instant) -> Outcome {
    let mut plan = Plan { chance: Chance::new(seed ^ PLAN) };
    let mut sim = plan.internet(seed, text, start);
    sim.begin_now();
    plan.break_things(&mut sim);
    sim.run(CHAOS);
    sim.heal();
    let healed = if sim.violation().is_none() { all_well(&mut sim) } else { None };
    outcome(&sim, healed)
}

/// One hub lies in one way, and goes on doing so, while the admin changes something and everybody talks: whether it
/// gains anything by it. Nodes that have an honest hub reach each other; a node that has only the liar hears of the
/// newest roster and of every claim all the same where the lie is about those.
pub fn run_with_liar(seed: u64, lie: Lie, text: Text, start: Instant) -> Outcome {
    let mut chance = Chance::new(seed ^ PLAN);
    let mut sim = Sim::seeded(seed, start);
    if text == Text::Kept {
        sim = sim.with_text();
    }
    let names = ["h0", "h1", "h2"];
    names.iter().for_each(|name| {
        sim.add_hub(name);
    });
    for n in 0..3 {
        let nat = chance.one_of(&[Nat::Symmetric, Nat::NoUdp]).copied().unwrap_or(Nat::Symmetric);
        let n = sim.add_node(&format!("n{n}"), 0, nat);
        sim.nodes[n].spread = spread(&mut chance);
    }
    let liar = chance.below(names.len());
    let honest = (liar + 1 + chance.below(2)) % names.len();
    let about_rosters = matches!(lie, Lie::OldHead | Lie::OmittedClaim);
    if about_rosters {
        let only = sim.add_node("only", 0, Nat::Open);
        for hub in (0..names.len()).filter(|hub| *hub != liar) {
            sim.underlay.part(Party::Node(only), Party::Hub(hub));
        }
    }
    sim = sim.invited("invited", Nat::Symmetric, names.get(honest).copied().unwrap_or_default());
    sim.begin_now();
    let everybody: Vec<usize> = (0..sim.nodes.len()).collect();
    let pairs = everybody.iter().flat_map(|a| everybody.iter().map(move |b| (*a, *b))).filter(|(a, b)| a != b);
    let flows: Vec<FlowId> = pairs.map(|(a, b)| sim.add_flow(a, b, Duration::from_millis(100), 100)).collect();
    let has_honest = |sim: &Sim, node: usize| !sim.underlay.is_apart(Party::Node(node), Party::Hub(honest));
    // a hub that never gave anything is not a liar yet
    sim.run(Duration::from_secs(2) + chance.up_to(Duration::from_secs(3)));
    sim.fault(Fault::Lie(liar, lie));
    sim.run(chance.up_to(Duration::from_secs(2)));
    let invited = sim.nodes.len() - 1;
    sim.visit(honest, 0, Errand::Redeem(sim.nodes[invited].number));
    sim.run(Duration::from_millis(500) + chance.up_to(Duration::from_secs(2)));
    sim.fault(Fault::Publish(0, Change::Exchange(0, 1), vec![honest]));
    let mark = sim.now();
    let knows = |sim: &Sim| {
        let runs = sim.nodes.iter().map(|site| site.run.as_ref());
        runs.flatten().all(|run| run.serial == sim.newest() && run.node.status().network.claims == 1)
    };
    let must = |sim: &Sim, flow: &Flow| has_honest(sim, flow.from) && has_honest(sim, flow.to);
    let silent = |sim: &Sim| -> Vec<String> {
        let all = flows.iter().map(|flow| sim.flow_report(*flow));
        let silent = all.filter(|flow| must(sim, flow) && flow.newest <= Some(mark));
        silent.map(|flow| format!("n{} -> n{}", flow.from, flow.to)).collect()
    };
    let talk = |sim: &Sim| silent(sim).is_empty();
    let healed = sim.time_to(CAUGHT, |sim| talk(sim) && knows(sim));
    if healed.is_none() && sim.violation().is_none() {
        let (knows, silent) = (knows(&sim), silent(&sim).join(", "));
        let what = format!("{CAUGHT:?} after the change, h{liar} lies ({lie:?}): all know {knows}, silent: {silent}");
        sim.violate(what);
    }
    // and it goes on
    sim.run(AFTER);
    if sim.counters().lies == 0 && sim.violation().is_none() {
        sim.violate(format!("h{liar} never came to lie ({lie:?})"));
    }
    if let Some(what) = too_near(&sim) {
        sim.violate(what);
    }
    outcome(&sim, healed)
}

/// A node that takes a hub to be nearer than it is.
fn too_near(sim: &Sim) -> Option<String> {
    sim.nodes.iter().enumerate().find_map(|(n, site)| {
        site.run.as_ref()?.node.status().hubs.into_iter().find_map(|status| {
            let hub = (0..sim.hubs.len()).find(|hub| hub_secret(*hub).public() == status.key)?;
            let (rtt, way) = (status.rtt?, sim.underlay.delay(Party::Node(n), Party::Hub(hub)));
            (rtt < way * 2).then(|| format!("n{n} takes h{hub} to be {rtt:?} away, and one way is {way:?}"))
        })
    })
}

fn outcome(sim: &Sim, healed: Option<Duration>) -> Outcome {
    Outcome {
        seed: sim.seed,
        hash: sim.trace.hash(),
        events: sim.trace.events(),
        violation: sim.violation().cloned(),
        healed,
        counters: sim.counters(),
        arrived: sim.ledger.arrived,
        text: sim.trace.lines().to_vec(),
    }
}

/// Waits until everybody has the newest roster and reaches whom he should; how long it took.
pub(crate) fn all_well(sim: &mut Sim) -> Option<Duration> {
    // each part of the hubs' graph is told by its admins once more
    for network in 0..sim.admins.len() {
        let mut told = BTreeSet::new();
        for hub in 0..sim.hubs.len() {
            if !told.contains(&hub) {
                told.extend(model::component(sim, hub));
                sim.upload(network, &[hub]);
            }
        }
    }
    let mark = sim.now();
    let pairs: Vec<(usize, usize)> = (0..sim.nodes.len())
        .flat_map(|a| (0..sim.nodes.len()).map(move |b| (a, b)))
        .filter(|(a, b)| model::must_reach(sim, *a, *b))
        .collect();
    let flows: Vec<FlowId> = pairs.iter().map(|(a, b)| sim.add_flow(*a, *b, TRY, 100)).collect();
    let shared = share_out(sim, &pairs);
    let well = |sim: &Sim| {
        flows.iter().all(|flow| sim.flow_report(*flow).newest > Some(mark))
            && shared.iter().all(|shared| shared.hubs(sim) > 1)
            && heads_differ(sim).is_none()
    };
    let took = sim.time_to(BOUND, well);
    if took.is_none() && sim.violation().is_none() {
        let silent: Vec<String> = flows
            .iter()
            .map(|flow| sim.flow_report(*flow))
            .filter(|flow| flow.newest <= Some(mark))
            .map(|flow| format!("n{} -> n{}", flow.from, flow.to))
            .collect();
        let heads = heads_differ(sim).unwrap_or_default();
        let alone = shared.iter().find(|shared| shared.hubs(sim) < 2);
        let alone = alone.map(|shared| format!("{shared}: {}", ways(sim, shared.pair.0))).unwrap_or_default();
        sim.violate(format!("{BOUND:?} after the mending not all is well: {} {heads}{alone}", silent.join(", ")));
        return None;
    }
    let shared = shared.iter().flat_map(|shared| &shared.flows);
    flows.iter().chain(shared).for_each(|flow| sim.end_flow(*flow));
    // who is out stays out
    let out: Vec<(usize, usize)> = (0..sim.nodes.len())
        .flat_map(|a| (0..sim.nodes.len()).map(move |b| (a, b)))
        .filter(|(a, b)| a != b && (!model::is_member(sim, *a) || !model::is_member(sim, *b)))
        .collect();
    let flows: Vec<FlowId> = out.iter().map(|(a, b)| sim.add_flow(*a, *b, TRY, 100)).collect();
    sim.run(AFTER);
    for flow in flows {
        let flow = sim.flow_report(flow);
        if flow.arrived > 0 {
            let what = format!("n{} reaches n{}, of whom one is no member any more", flow.from, flow.to);
            sim.violate(what);
        }
    }
    took
}

/// Flows of a pair that must go over more than one hub.
struct Shared {
    pair: (usize, usize),
    near: BTreeSet<usize>,
    flows: Vec<FlowId>,
}

impl Shared {
    /// How many hubs carry them.
    fn hubs(&self, sim: &Sim) -> usize {
        let hubs = self.flows.iter().flat_map(|flow| &sim.flow_report(*flow).hubs);
        let recent = hubs.filter(|(_, last)| sim.now() - **last < TRY * 2).map(|(hub, _)| *hub);
        recent.collect::<BTreeSet<usize>>().len()
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pair: (from, to), near, flows } = self;
        write!(f, "n{from} -> n{to}: {} flows go over one hub, and {near:?} are near", flows.len())
    }
}

/// What a node thinks of its paths, by peer.
fn ways(sim: &Sim, node: usize) -> String {
    let reports = sim.nodes[node].run.as_ref().map(|run| run.worker.report(sim.now())).unwrap_or_default();
    let way = |path: &PathStatus| {
        let PathStatus { kind, state, lane: _, rtt, loss, mtu } = path;
        format!("{kind} {state:?} {:.1?} {:.0} % {mtu} B", rtt.unwrap_or_default(), loss * 100.0)
    };
    let peer = |report: PeerReport| {
        format!("peer {} [{}]", report.peer.0, report.paths.iter().map(way).collect::<Vec<_>>().join(", "))
    };
    reports.into_iter().map(peer).collect::<Vec<_>>().join(", ")
}

/// Many flows of the first pairs that have more than one hub for them.
fn share_out(sim: &mut Sim, pairs: &[(usize, usize)]) -> Vec<Shared> {
    let near = pairs.iter().map(|(a, b)| ((*a, *b), model::shared_hubs(sim, *a, *b)));
    let several: Vec<_> = near.filter(|(_, near)| near.len() > 1).take(SHARING).collect();
    let mut flows = |(from, to)| (0..FLOWS).map(|_| sim.add_flow(from, to, TRY, 100)).collect();
    several.into_iter().map(|(pair, near)| Shared { pair, near, flows: flows(pair) }).collect()
}

/// Every other node shares out its flows.
fn spread(chance: &mut Chance) -> Spread {
    if chance.is_of(500) { Spread::On } else { Spread::Off }
}

/// Who does not have the newest roster, and should.
fn heads_differ(sim: &Sim) -> Option<String> {
    for (n, site) in sim.nodes.iter().enumerate() {
        let newest = sim.admins[site.network].serial();
        let serial = site.run.as_ref().map_or(0, |run| run.serial);
        if model::is_member(sim, n) && model::has_hub(sim, n) && serial != newest {
            return Some(format!("n{n} has roster {serial} of {newest}"));
        }
    }
    for (n, site) in sim.hubs.iter().enumerate() {
        for status in site.run.iter().flat_map(|run| run.hub.networks()) {
            let newest = sim.network_number(&status.network).map_or(0, |network| sim.admins[network].serial());
            let serial = status.roster.as_ref().map_or(0, |(_, version)| version.serial);
            if serial != newest {
                return Some(format!("h{n} has roster {serial} of {newest}"));
            }
        }
    }
    None
}

struct Plan {
    chance: Chance,
}

impl Plan {
    fn internet(&mut self, seed: u64, text: Text, start: Instant) -> Sim {
        let mut sim = Sim::seeded(seed, start);
        if text == Text::Kept {
            sim = sim.with_text();
        }
        let hubs = 2 + self.chance.below(4);
        for hub in 0..hubs {
            sim.add_hub(&format!("h{hub}"));
        }
        for network in 0..=self.chance.below(2) {
            for _ in 0..2 + self.chance.below(3) {
                let nat = self.nat();
                let n = sim.nodes.len();
                sim.add_node(&format!("n{n}"), network, nat);
                sim.nodes[n].spread = spread(&mut self.chance);
            }
        }
        // one in three has an invited member
        if self.chance.is_of(333) {
            let (nat, hub) = (self.nat(), self.chance.below(hubs));
            sim = sim.invited("invited", nat, &format!("h{hub}"));
            let number = sim.nodes.last().map_or(0, |site| site.number);
            sim.visit(hub, 0, Errand::Redeem(number));
        }
        // some ways there never are
        for a in 0..hubs {
            for b in 0..a {
                if self.chance.is_of(200) {
                    sim.underlay.part(Party::Hub(a), Party::Hub(b));
                }
            }
            for node in 0..sim.nodes.len() {
                if self.chance.is_of(200) {
                    sim.underlay.part(Party::Hub(a), Party::Node(node));
                }
            }
        }
        sim
    }

    fn break_things(&mut self, sim: &mut Sim) {
        let quality = self.quality();
        sim.underlay.set_quality(quality);
        for _ in 0..3 {
            let (from, to) = (self.chance.below(sim.nodes.len()), self.chance.below(sim.nodes.len()));
            if from != to {
                sim.add_flow(from, to, Duration::from_millis(50), 100 + self.chance.below(1100));
            }
        }
        // one in four has a member with a changed program
        let (from, to, victim) = (
            self.chance.below(sim.nodes.len()),
            self.chance.below(sim.nodes.len()),
            self.chance.below(sim.nodes.len()),
        );
        let one = [to, victim].iter().all(|other| sim.nodes[*other].network == sim.nodes[from].network);
        if self.chance.is_of(250) && from != to && from != victim && to != victim && one {
            sim.add_forged_flow(from, to, victim);
        }
        let count = 4 + self.chance.below(12);
        for _ in 0..count {
            let at = self.chance.up_to(CHAOS);
            let back = at + Duration::from_millis(50) + self.chance.up_to(Duration::from_secs(8));
            self.fault(sim, at, back);
        }
    }

    fn fault(&mut self, sim: &mut Sim, at: Duration, back: Duration) {
        let (hub, node) = (self.chance.below(sim.hubs.len()), self.chance.below(sim.nodes.len()));
        let party = if self.chance.is_of(500) { Party::Hub(hub) } else { Party::Node(node) };
        let other = Party::Hub(self.chance.below(sim.hubs.len()));
        match self.chance.below(17) {
            0 | 1 => {
                let gone = if self.chance.is_of(500) { Fault::Kill(party) } else { Fault::PowerOff(party) };
                sim.later(at, gone);
                let disk = self.disk(sim, party);
                sim.later(back, Fault::Start(party, disk));
            }
            2 => sim.later(at, Fault::Freeze(party, back - at)),
            3 => {
                sim.later(at, Fault::Cut(party, other));
                sim.later(back, Fault::Mend(party, other));
            }
            4 => {
                sim.later(at, Fault::Cut(other, party));
                sim.later(back, Fault::Mend(other, party));
            }
            5 => {
                for (from, to) in [(party, other), (other, party)] {
                    sim.later(at, Fault::CutUdp(from, to));
                    sim.later(back, Fault::MendUdp(from, to));
                }
            }
            6 => {
                sim.later(at, Fault::Swallow(hub));
                sim.later(back, Fault::Pass(hub));
            }
            7 | 8 => {
                if let Some(lie) = self.chance.one_of(&Lie::ALL) {
                    sim.later(at, Fault::Lie(hub, *lie));
                    sim.later(back, Fault::Honest(hub));
                }
            }
            9 => {
                let most = self.chance.one_of(&[5, 3600, 86_400 * 400]).copied().unwrap_or(5);
                let ahead = self.chance.is_of(500);
                sim.later(at, Fault::Clock(party, if ahead { most } else { -most }));
            }
            10 | 11 => self.publish(sim, at),
            12 => sim.later(at, Fault::Rebind(node)),
            13 => sim.later(at, Fault::NetworkChanged(node)),
            14 => sim.later(at, Fault::Replay(1 + self.chance.below(50))),
            15 => {
                sim.later(at, Fault::Drain(hub));
                sim.later(at + Duration::from_secs(2), Fault::Kill(Party::Hub(hub)));
                sim.later(back + Duration::from_secs(2), Fault::Start(Party::Hub(hub), Disk::Kept));
            }
            _ => {
                sim.later(at / 2, Fault::Snapshot(party));
                sim.later(at, Fault::DieAtWrite(node, 1 + self.chance.below(3) as u32));
                sim.later(back, Fault::Start(Party::Node(node), Disk::Kept));
            }
        }
    }

    fn publish(&mut self, sim: &mut Sim, at: Duration) {
        let network = self.chance.below(sim.admins.len());
        let of: Vec<usize> = (0..sim.nodes.len()).filter(|node| sim.nodes[*node].network == network).collect();
        let (a, b) = (self.chance.below(of.len()), self.chance.below(of.len()));
        let change = match self.chance.below(4) {
            0 => Change::Nothing,
            1 if of.len() > 2 => Change::Revoke(of[a]),
            2 => Change::Add(self.nat(), spread(&mut self.chance)),
            _ => Change::Exchange(of[a], of[b]),
        };
        let some: Vec<usize> = (0..sim.hubs.len()).filter(|_| self.chance.is_of(500)).collect();
        sim.later(at, Fault::Publish(network, change, some));
    }

    /// The hub that redeemed keeps its disk: a claim that it alone knows would be lost with it.
    fn disk(&mut self, sim: &Sim, party: Party) -> Disk {
        let redeemer = |hub| sim.admins[0].members().iter().any(|member| member.invited_at == Some(hub));
        match (party, self.chance.below(4)) {
            (Party::Hub(hub), _) if redeemer(hub) => Disk::Kept,
            (_, 0) => Disk::Lost,
            (_, 1) => Disk::Reverted,
            (_, _) => Disk::Kept,
        }
    }

    fn nat(&mut self) -> Nat {
        self.chance.one_of(&Nat::ALL).copied().unwrap_or(Nat::Open)
    }

    fn quality(&mut self) -> Quality {
        let ms = Duration::from_millis(1);
        let good = Quality::default();
        match self.chance.below(5) {
            0 => good,
            1 => Quality { lost: 100, ..good },
            2 => Quality { jitter: ms * 30, held: 20, hold: ms * 50, doubled: 100, ..good },
            3 => Quality { bursts: Bursts { begin: 10, end: 50, lost: 800 }, ..good },
            _ => Quality { lost: 20, damaged: 10, doubled: 20, jitter: ms * 5, ..good },
        }
    }
}

/// How long things break.
const CHAOS: Duration = Duration::from_secs(25);
/// All is well so long after the mending at the latest.
pub const BOUND: Duration = Duration::from_secs(30);
/// A liar has gained nothing so long after the change at the latest.
pub const CAUGHT: Duration = Duration::from_secs(10);
/// After that, who is out is watched for so long.
const AFTER: Duration = Duration::from_secs(2);
/// How often a pair tries.
const TRY: Duration = Duration::from_millis(200);
/// Pairs of which it is looked at whether their flows are shared out.
const SHARING: usize = 2;
/// Flows of each: chance gives all of them to one hub in less than one of a hundred thousand.
const FLOWS: usize = 12;
/// So that what breaks is another chance than what the links do.
const PLAN: u64 = 0x706c_616e;
