//! The world: its clock, what is under way, and whose turn it is.
//!
//! Everything that happens is an event with a time, or a timeout that a machine asked for. The earliest is next; of two
//! at the same time, the one that was decided first. Nothing else decides, so the same seed gives the same trace.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use flatlan_link::{Chance, Quality};
use flatlan_path::Spread;
use flatlan_types::{NetworkId, UnixTime};

use crate::{
    admin::{Admin, Member},
    datagram::{Datagram, Trail},
    fault::Fault,
    hub_site::HubSite,
    ledger::{Flow, FlowId, Ledger},
    nat::Nat,
    node_site::NodeSite,
    party::Party,
    stream::{Conn, ConnId, Side},
    trace::Trace,
    underlay::Underlay,
    visit::{Errand, Visit},
};

/// A virtual internet with hubs and nodes. Made by [`Sim::seeded`] and the methods that return it, begun by
/// [`Sim::begin`].
pub struct Sim {
    pub(crate) seed: u64,
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    pub(crate) chance: Chance,
    pub(crate) underlay: Underlay,
    pub(crate) hubs: Vec<HubSite>,
    pub(crate) nodes: Vec<NodeSite>,
    pub(crate) admins: Vec<Admin>,
    pub(crate) conns: BTreeMap<ConnId, Conn>,
    pub(crate) visits: BTreeMap<u64, Visit>,
    pub(crate) ledger: Ledger,
    pub(crate) trace: Trace,
    /// Datagrams that an attacker recorded.
    pub(crate) tape: VecDeque<Datagram>,
    pub(crate) counters: Counters,
    pub(crate) timers: BTreeSet<(Instant, Party)>,
    events: BTreeMap<(Instant, u64), Event>,
    next: u64,
    violation: Option<Violation>,
    /// The first hub over which came what a machine is handed at this moment.
    pub(crate) via: Option<usize>,
    names: BTreeMap<String, Party>,
    /// Datagrams are not kept for an attacker.
    pub(crate) quiet: bool,
}

/// A rule that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// When, from the beginning.
    pub at: Duration,
    /// What.
    pub what: String,
}

/// How much there was of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams sent.
    pub datagrams: u64,
    /// Their bytes.
    pub datagram_bytes: u64,
    /// Messages on control streams.
    pub messages: u64,
    /// Their bytes.
    pub message_bytes: u64,
    /// Messages on data streams.
    pub packed: u64,
    /// Timeouts.
    pub timeouts: u64,
    /// Messages and frames that a liar bent, made up or sent again.
    pub lies: u64,
}

pub(crate) enum Event {
    Datagram(Box<Datagram>),
    /// A dial reaches the other end.
    Dial(ConnId),
    DialFailed(ConnId),
    /// The dialler learns that it is open.
    Opened(ConnId),
    /// What this side sent first arrives.
    Carry(ConnId, Side),
    /// This side learns of the end.
    Closed(ConnId, Side),
    Flow(FlowId),
    Fault(Fault),
    /// An errand is tried again.
    Visit(u64),
}

impl Sim {
    /// An internet without anybody. `start` only gives the virtual clock a beginning.
    pub fn seeded(seed: u64, start: Instant) -> Self {
        Self {
            seed,
            now: start,
            start,
            chance: Chance::new(seed),
            underlay: Underlay::new(seed),
            hubs: Vec::new(),
            nodes: Vec::new(),
            admins: Vec::new(),
            conns: BTreeMap::new(),
            visits: BTreeMap::new(),
            ledger: Ledger::default(),
            trace: Trace::default(),
            tape: VecDeque::new(),
            counters: Counters::default(),
            timers: BTreeSet::new(),
            events: BTreeMap::new(),
            next: 0,
            violation: None,
            via: None,
            names: BTreeMap::new(),
            quiet: false,
        }
    }

    // ---- who there is ----------------------------------------------------------------------------

    /// What happens is kept as text too.
    #[must_use]
    pub fn with_text(mut self) -> Self {
        self.trace = Trace::with_text();
        self
    }

    /// Every way between any two parties takes so long.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.underlay.everywhere = Some(delay);
        self
    }

    /// One more hub.
    #[must_use]
    pub fn hub(mut self, name: &str) -> Self {
        self.add_hub(name);
        self
    }

    /// One more node of the first network.
    #[must_use]
    pub fn node(mut self, name: &str, nat: Nat) -> Self {
        self.add_node(name, 0, nat);
        self
    }

    /// This node shares out its flows over several hubs.
    #[must_use]
    pub fn spread(mut self, node: &str) -> Self {
        let n = self.node_number(node);
        self.nodes[n].spread = Spread::On;
        self
    }

    /// Two parties that have no way to each other.
    #[must_use]
    pub fn apart(mut self, a: &str, b: &str) -> Self {
        let (a, b) = (self.party(a), self.party(b));
        self.underlay.part(a, b);
        self
    }

    /// A node that gets its keys by an invite, which this hub redeems.
    #[must_use]
    pub fn invited(mut self, name: &str, nat: Nat, redeemer: &str) -> Self {
        let hub = self.hub_number(redeemer);
        let n = self.add_node(name, 0, nat);
        let number = self.nodes[n].number;
        for member in self.admins[0].members_mut().iter_mut().filter(|member| member.number == number) {
            member.invited_at = Some(hub);
        }
        self
    }

    /// Everybody begins, and the hubs hold the first roster.
    #[must_use]
    pub fn begin(mut self) -> Self {
        self.begin_now();
        self
    }

    pub(crate) fn begin_now(&mut self) {
        self.sign_all();
        (0..self.hubs.len()).for_each(|hub| self.start_stocked_hub(hub));
        for node in 0..self.nodes.len() {
            self.start_node(node);
        }
    }

    /// Every network has its first roster.
    pub(crate) fn sign_all(&mut self) {
        self.admins.iter_mut().for_each(|admin| admin.sign(UNIX));
    }

    pub(crate) fn start_stocked_hub(&mut self, hub: usize) {
        self.stock_hub(hub);
        self.start_hub(hub);
    }

    pub(crate) fn add_hub(&mut self, name: &str) -> usize {
        let n = self.hubs.len();
        self.hubs.push(HubSite::new(self.now));
        self.names.insert(name.to_owned(), Party::Hub(n));
        n
    }

    /// A node of a network, by the network's number; it is a member from the next roster on.
    pub(crate) fn add_node(&mut self, name: &str, network: usize, nat: Nat) -> usize {
        while self.admins.len() <= network {
            self.admins.push(Admin::new(self.admins.len(), (0..self.hubs.len()).collect()));
        }
        let n = self.nodes.len();
        let number = self.nodes.iter().filter(|site| site.network == network).count();
        self.admins[network].members_mut().push(Member::new(number));
        self.nodes.push(NodeSite::new(n, network, number, nat, self.now));
        self.names.insert(name.to_owned(), Party::Node(n));
        n
    }

    // ---- what happens ----------------------------------------------------------------------------

    /// Time passes. Ends early where a rule is broken.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end && self.violation.is_none() {
            self.step(end);
        }
    }

    /// Runs until it holds, for at most so long; how long it took, or nothing where it never held.
    pub fn time_to(&mut self, most: Duration, mut holds: impl FnMut(&Self) -> bool) -> Option<Duration> {
        let begin = self.now;
        while !holds(self) {
            if self.now - begin >= most || self.violation.is_some() {
                return None;
            }
            self.step(begin + most);
        }
        Some(self.now - begin)
    }

    /// Packets from one node to another from now on, at such times.
    pub fn flow(&mut self, from: &str, to: &str, every: Duration) -> FlowId {
        let (from, to) = (self.node_number(from), self.node_number(to));
        self.add_flow(from, to, every, 100)
    }

    pub(crate) fn add_flow(&mut self, from: usize, to: usize, every: Duration, size: usize) -> FlowId {
        let flow = self.ledger.add_flow(from, to, every, size);
        self.at(Duration::ZERO, Event::Flow(flow));
        flow
    }

    /// A flow ends.
    pub fn end_flow(&mut self, flow: FlowId) {
        self.ledger.flow_mut(flow).running = false;
    }

    /// What became of a flow.
    pub fn flow_report(&self, flow: FlowId) -> &Flow {
        self.ledger.flow(flow)
    }

    /// Every flow there was.
    pub fn flows(&self) -> impl Iterator<Item = &Flow> {
        self.ledger.flows().map(|(_, flow)| flow)
    }

    /// The longest gap of a flow counts from here.
    pub fn forget_gaps(&mut self) {
        let now = self.now;
        for id in self.ledger.flows().map(|(id, _)| id).collect::<Vec<_>>() {
            let flow = self.ledger.flow_mut(id);
            flow.longest_gap = Duration::ZERO;
            flow.last = flow.last.map(|_| now);
        }
    }

    /// Whether packets that were sent after `mark` have come both ways.
    pub fn can_ping(&self, a: &str, b: &str, mark: Instant) -> bool {
        let (a, b) = (self.node_number(a), self.node_number(b));
        let came = |from, to| {
            self.ledger.flows().any(|(_, flow)| (flow.from, flow.to) == (from, to) && flow.newest > Some(mark))
        };
        came(a, b) && came(b, a)
    }

    /// The links have such a quality from here on.
    pub fn set_quality(&mut self, quality: Quality) {
        self.underlay.set_quality(quality);
    }

    /// Something goes wrong, so much later.
    pub fn schedule(&mut self, after: Duration, fault: Fault) {
        self.later(after, fault);
    }

    /// A machine redeems the invite of a node made by [`Sim::invited`].
    pub fn redeem(&mut self, name: &str) {
        let site = &self.nodes[self.node_number(name)];
        let (network, number) = (site.network, site.number);
        let member = self.admins[network].members().iter().find(|member| member.number == number);
        if let Some(hub) = member.and_then(|member| member.invited_at) {
            self.visit(hub, network, Errand::Redeem(number));
        }
    }

    /// Something goes wrong, now.
    pub fn inject(&mut self, fault: Fault) {
        self.fault(fault);
    }

    // ---- questions -------------------------------------------------------------------------------

    /// The virtual time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// How long it has been running.
    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// The rule that was broken, if one was.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// What happened.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// How much there was of everything.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Who has this name.
    ///
    /// # Panics
    /// Nobody has.
    pub fn party(&self, name: &str) -> Party {
        *self.names.get(name).expect("somebody of this name")
    }

    /// The name of a party.
    pub(crate) fn name(&self, party: Party) -> String {
        self.names.iter().find(|(_, of)| **of == party).map(|(name, _)| name.clone()).unwrap_or_default()
    }

    pub(crate) fn node_number(&self, name: &str) -> usize {
        match self.party(name) {
            Party::Node(n) => n,
            Party::Hub(_) | Party::Outside => panic!("{name} is no node"),
        }
    }

    pub(crate) fn hub_number(&self, name: &str) -> usize {
        match self.party(name) {
            Party::Hub(n) => n,
            Party::Node(_) | Party::Outside => panic!("{name} is no hub"),
        }
    }

    pub(crate) fn network_number(&self, id: &NetworkId) -> Option<usize> {
        self.admins.iter().position(|admin| admin.network() == *id)
    }

    /// What a clock shows that is off by so many seconds.
    pub(crate) fn unix(&self, off: i64) -> UnixTime {
        UnixTime(UNIX.0.saturating_add(self.elapsed().as_secs()).saturating_add_signed(off))
    }

    // ---- private ---------------------------------------------------------------------------------

    pub(crate) fn violate(&mut self, what: String) {
        let at = self.elapsed();
        self.trace.note(at, Party::Outside, b"violation", format_args!("VIOLATION: {what}"));
        self.violation.get_or_insert(Violation { at, what });
    }

    pub(crate) fn at(&mut self, after: Duration, event: Event) {
        self.when(self.now + after, event);
    }

    pub(crate) fn when(&mut self, at: Instant, event: Event) {
        self.next += 1;
        self.events.insert((at.max(self.now), self.next), event);
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// One event, or one timeout, or the end.
    fn step(&mut self, end: Instant) {
        let event = self.events.first_key_value().map(|((at, _), _)| *at);
        let timer = self.timers.first().copied();
        match (event, timer) {
            (Some(at), timer) if at <= end && timer.is_none_or(|(due, _)| at <= due) => {
                self.now = self.now.max(at);
                if let Some((_, event)) = self.events.pop_first() {
                    self.happen(event);
                }
            }
            (_, Some((due, party))) if due <= end => {
                self.now = self.now.max(due);
                self.timers.pop_first();
                self.counters.timeouts += 1;
                match party {
                    Party::Hub(hub) => self.hub_timeout(hub),
                    Party::Node(node) => self.node_timeout(node),
                    Party::Outside => {}
                }
            }
            _ => self.now = end,
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Datagram(datagram) => self.datagram_arrives(*datagram),
            Event::Dial(conn) => self.dial_arrives(conn),
            Event::DialFailed(conn) => self.dial_failed(conn),
            Event::Opened(conn) => self.opened(conn),
            Event::Carry(conn, side) => self.message_arrives(conn, side),
            Event::Closed(conn, side) => self.end_arrives(conn, side),
            Event::Flow(flow) => self.send_of(flow),
            Event::Fault(fault) => self.fault(fault),
            Event::Visit(visit) => self.visit_again(visit),
        }
    }

    fn send_of(&mut self, id: FlowId) {
        let flow = self.ledger.flow(id);
        if !flow.running {
            return;
        }
        let every = flow.every;
        self.send_inner(id);
        self.at(every, Event::Flow(id));
    }

    /// A datagram leaves a party.
    pub(crate) fn send_datagram(
        &mut self,
        from: Party,
        to: flatlan_types::Endpoint,
        sent: (Vec<u8>, u8),
        trail: Trail,
    ) {
        let (mut bytes, class) = sent;
        let Some(party) = Party::at(to.socket_addr().ip()).filter(|party| *party != from) else { return };
        let source = match from {
            Party::Hub(_) | Party::Outside => Some(from.udp()),
            Party::Node(n) => self.nodes[n].gate.outbound(to, self.now),
        };
        let Some(source) = source else { return };
        self.counters.datagrams += 1;
        self.counters.datagram_bytes += bytes.len() as u64;
        let Some((due, copies)) = self.underlay.carry(from, party, &mut bytes, self.now) else { return };
        for _ in 0..copies.count() {
            let bytes = bytes.clone();
            let datagram = Datagram { from: source, to, party, bytes, class, trail: trail.clone() };
            self.when(due, Event::Datagram(Box::new(datagram)));
        }
    }

    fn datagram_arrives(&mut self, datagram: Datagram) {
        if !self.quiet {
            if self.tape.len() >= TAPE {
                self.tape.pop_front();
            }
            self.tape.push_back(datagram.clone());
        }
        match datagram.party {
            Party::Hub(hub) => self.hub_receives(hub, datagram),
            Party::Node(node) => self.node_receives(node, datagram),
            Party::Outside => {}
        }
    }

    /// When what is for a party can reach it, where it is frozen.
    pub(crate) fn thaw_of(&self, party: Party) -> Option<Instant> {
        match party {
            Party::Hub(hub) => self.hubs[hub].place.frozen,
            Party::Node(node) => self.nodes[node].place.frozen,
            Party::Outside => None,
        }
    }
}

/// What parties have in common: a machine that runs, or does not.
pub(crate) struct Place {
    /// Which life this is.
    pub(crate) life: u32,
    /// Nothing answers for it, not even a refusal.
    pub(crate) host_down: bool,
    /// Its process does nothing until then.
    pub(crate) frozen: Option<Instant>,
    /// Seconds by which its wall clock is off.
    pub(crate) clock: i64,
    pub(crate) armed: Option<Instant>,
    /// Datagrams that wait because it is frozen.
    waiting: Vec<Datagram>,
    /// The second that counts, and the timeouts in it.
    second: (Instant, u32),
}

impl Place {
    pub(crate) fn new(now: Instant) -> Self {
        Self { life: 0, host_down: false, frozen: None, clock: 0, armed: None, waiting: Vec::new(), second: (now, 0) }
    }

    /// A datagram comes while it is frozen: its kernel keeps it, as long as there is room.
    pub(crate) fn keep(&mut self, datagram: Datagram) {
        if self.waiting.len() < KERNEL_KEEPS {
            self.waiting.push(datagram);
        }
    }

    /// It is frozen no more; what was kept.
    pub(crate) fn wake(&mut self) -> Vec<Datagram> {
        self.frozen = None;
        std::mem::take(&mut self.waiting)
    }

    /// One more timeout; whether there are too many.
    pub(crate) fn count_timeout(&mut self, now: Instant) -> bool {
        if now.duration_since(self.second.0) >= Duration::from_secs(1) {
            self.second = (now, 0);
        }
        self.second.1 += 1;
        self.second.1 > MOST_TIMEOUTS
    }
}

/// What every clock shows at the beginning.
pub(crate) const UNIX: UnixTime = UnixTime(1_800_000_000);
/// Datagrams that an attacker has.
const TAPE: usize = 200;
/// Timeouts of one party in a second: far above what any needs, far below what a machine asks for that asks for the
/// past.
const MOST_TIMEOUTS: u32 = 5_000;
/// Datagrams that a kernel keeps for a process that does nothing.
const KERNEL_KEEPS: usize = 200;
