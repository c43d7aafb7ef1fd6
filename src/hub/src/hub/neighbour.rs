//! Hubs beside this one: dialled or accepted, measured, and what they say of the rest.
//!
//! ```text
//!  control stream attached ──hello both ways──▶ up ──no sign of life──▶ down (stream kept a while)
//!                                               │ ▲ ▲                       │ ▲
//!                        no sign for a moment,  │ │ └────── heard again ────┘ │
//!                        where data goes        ▼ │ heard again               │
//!                                              late ──no sign of life─────────┘
//! ```
//!
//! Signs of life are messages on the control stream and `BIND`s on UDP: one late TCP segment takes no adjacency down.
//! Where UDP works, a `BIND` without an answer is followed by many, so that silence means something sooner. Where data goes
//! too `BIND`s are so frequent that a tenth of a second or two says something: the neighbour is *late*, and what leads over
//! it is moved, where there is another way, as if it were stopping. Nothing is lost if that was wrong: what was moved is led
//! back to who has been on time for a while; who was taken for late without cause gets twice the time, until it has not
//! been late for long. Two hubs that dial each other keep the stream that the smaller key dialled.
//! Up or down, and round trips that changed much, make a new link state, which floods to the hubs that
//! share a network with its origin. A loss is stated at once, what comes back only so often. Who hands on what a neighbour
//! said leaves out whom that neighbour reaches itself, as both state: among hubs that all reach each other a word takes as many
//! messages as there are hubs, not their square. Who loses a neighbour asks others for what it may have said meanwhile.
//! Digests find what a lost message left different.
//!
//! A hub that no roster lists may bring the one that does: it has a place among few, for a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use flatlan_relay::{
    Attach, Attached, Control, Echo, Lsa, LsaEntry, LsaLink, LsaVersion, NetworkTag, Presence, Proof, RefusedCode,
    Role, SignedLsa, auth,
};
use flatlan_types::{Endpoint, HostPort, HubKey, Label, NetworkId, Signature};

use super::{
    Dialling, Draining, Hub, NeighbourStatus, Owner, State, attach::Refusal, network::Network, path::Cause,
    presence::Gone,
};
use crate::{
    forward::{AttachmentId, ForwardCommand, QUICK_BURST, QUICK_LATE, StreamId},
    linkstate::News,
    output::{DetachReason, DialId, HubEvent, Output},
};

/// A hub whose control stream is attached.
#[derive(Debug)]
pub(super) struct Neighbour {
    control: StreamId,
    pub(super) attachment: AttachmentId,
    /// Who dialled.
    dialler: HubKey,
    /// Of its first stream: who attaches again while it is here gets no time anew.
    since: Instant,
    heard: Instant,
    /// Without a sign of life it is down from then on.
    silent: Instant,
    /// The same for late, where it speaks often enough.
    late: Option<Instant>,
    pace: Pace,
    /// How often it was late and was heard after all; one less after each [`ALARM_KEPT`] without.
    alarms: u32,
    /// When it was so last, or when one was forgotten.
    alarmed: Instant,
    /// What led over it when it was late.
    led_around: BTreeSet<Label>,
    leg: LegState,
    /// Its last hello, and when it came.
    theirs: Option<(u64, Instant)>,
    rtt: Option<Duration>,
    adjacency: Adjacency,
    /// Networks that it says it serves, of those that list it.
    serves: BTreeSet<NetworkId>,
    /// What we said of that kind.
    told: BTreeSet<NetworkId>,
    next_hello: Instant,
}

impl Neighbour {
    pub(super) fn is_up(&self) -> bool {
        self.adjacency != Adjacency::Down
    }

    /// Whether ways are better off without it.
    pub(super) fn is_late(&self) -> bool {
        self.adjacency == Adjacency::Late
    }

    pub(super) fn rtt_us(&self) -> u32 {
        u32::try_from(self.rtt.unwrap_or_default().as_micros()).unwrap_or(u32::MAX)
    }

    pub(super) fn status(&self, hub: HubKey) -> NeighbourStatus {
        NeighbourStatus { hub, up: self.is_up(), udp: self.leg == LegState::Up, rtt: self.rtt }
    }

    /// A sign of life.
    fn hear(&mut self, now: Instant) {
        let patience = match self.leg {
            LegState::Down => HELLO * MISSES,
            LegState::Up => SILENCE + self.rtt.unwrap_or_default() * 2,
        };
        (self.heard, self.silent) = (now, now + patience);
        let doubt = self.pace.doubt(self.rtt.unwrap_or_default());
        self.late = doubt.map(|doubt| now + doubt * (1 << self.alarms));
    }

    fn alive(&self, now: Instant) -> bool {
        now < self.silent
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Adjacency {
    Down,
    /// Up, but silent for longer than it should be.
    Late,
    Up,
}

/// How often a neighbour speaks on UDP.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    last: Option<Instant>,
    /// The longest pause of late. Forgotten more slowly than the burst after one lost datagram lasts.
    pause: Option<Duration>,
}

impl Pace {
    fn hear(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            let pause = now.saturating_duration_since(last);
            self.pause = Some(self.pause.map_or(pause, |longest| pause.max(longest * 15 / 16)));
        }
    }

    /// After how much silence it is late: when the answer to one `BIND`, to the one after it and to those of the burst
    /// that follows should all have come. At 10 % of loss each way chance does that once in days. `None` where it speaks
    /// too rarely.
    fn doubt(&self, rtt: Duration) -> Option<Duration> {
        let pause = self.pause.filter(|pause| *pause <= FREQUENT)?;
        let burst = QUICK_BURST.max(rtt / 8) * BURST_LENGTH;
        Some((pause.max(rtt) + rtt * 3 / 2 + QUICK_LATE + burst).max(LEAST_DOUBT))
    }
}

/// Whether data to a neighbour goes over UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LegState {
    Down,
    Up,
}

/// A hub that we dial whenever it is not attached.
#[derive(Debug)]
pub(super) struct Dialler {
    at: HostPort,
    control: Try,
    data: Try,
}

impl Dialler {
    fn attempt(&self, role: Role) -> &Try {
        if role == Role::HubData { &self.data } else { &self.control }
    }
}

#[derive(Debug)]
struct Try {
    /// `None` while an attempt runs.
    next: Option<Instant>,
    pause: Duration,
}

impl Try {
    fn new(now: Instant) -> Self {
        Self { next: Some(now), pause: FIRST_PAUSE }
    }

    fn failed(&mut self, now: Instant, jitter: u64) {
        let spread = u32::try_from(jitter % 256).unwrap_or(0);
        self.next = Some(now + self.pause + self.pause * spread / 512);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    fn succeeded(&mut self, now: Instant) {
        *self = Self::new(now + FIRST_PAUSE);
    }

    fn due(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| next <= now)
    }
}

/// Our own link state.
#[derive(Debug)]
pub(super) struct OwnState {
    version: LsaVersion,
    /// What is no loss is not stated before that.
    next: Instant,
    /// Whether something waits for it.
    waits: Waits,
    /// Hubs that we lost as neighbours, and when it is looked for what they said last.
    missed: BTreeMap<HubKey, Instant>,
    /// Where in the neighbours the next digests begin.
    digests: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    No,
    Yes,
}

impl OwnState {
    pub(super) fn new(incarnation: u64, digests: usize, now: Instant) -> Self {
        let version = LsaVersion { incarnation, sequence: 0 };
        Self { version, next: now, waits: Waits::No, missed: BTreeMap::new(), digests }
    }
}

impl Hub {
    /// A hub dialled us.
    pub(super) fn attach_hub(
        &mut self,
        stream: StreamId,
        attach: &Attach,
        (key, signature): (&HubKey, &Signature),
        now: Instant,
    ) -> Result<(), Refusal> {
        let good = self.scope(stream, attach, |scope| scope.verify_hub(key, signature));
        good.ok_or_else(|| Refusal::new(RefusedCode::BadProof, "the proof does not hold"))?;
        self.make_room_for(key, now);
        if *key == self.key || !self.may_neighbour(key, &attach.network) {
            return Err(Refusal::new(RefusedCode::NotMember, "this hub shares no network with yours"));
        }
        if attach.role == Role::HubData {
            let attachment = self.neighbours.get(key).map(|neighbour| neighbour.attachment);
            let attachment =
                attachment.ok_or_else(|| Refusal::new(RefusedCode::NoControl, "no control stream of yours is here"))?;
            self.set_state(stream, State::HubData(*key));
            self.set_data(attachment, stream);
            self.send_attached(stream, attachment.0, attach.network, None);
            return Ok(());
        }
        if self.keeps(key, *key, now) {
            return Err(Refusal::new(RefusedCode::Replaced, "another stream between these hubs is kept"));
        }
        let (attachment, bind) = self.add_neighbour(stream, *key, *key, now)?;
        let bind = flatlan_relay::BindKey { id: attachment.0, key: bind };
        self.send_attached(stream, attachment.0, attach.network, Some(bind));
        Ok(())
    }

    /// The first word on a stream that we dialled.
    pub(super) fn handle_hub_hello(&mut self, stream: StreamId, dialling: Dialling, message: Control, now: Instant) {
        let Dialling { hub, role } = dialling;
        let Some(exporter) = self.streams.get(&stream).map(|stream| stream.exporter) else { return };
        let good = if let Control::HubHello { key, signature, .. } = &message {
            *key == hub && auth::verify_hello(key, &exporter, signature).is_ok()
        } else {
            false
        };
        if !good {
            return self.refuse(stream, RefusedCode::BadProof, "this is not the hub that was dialled", now);
        }
        if role == Role::HubControl && self.keeps(&hub, self.key, now) {
            return self.refuse(stream, RefusedCode::Replaced, "another stream between these hubs is kept", now);
        }
        let shared = self.networks.iter().find(|(_, network)| network.lists_hub(&hub)).map(|(id, _)| *id);
        let any = || self.networks.keys().next().copied();
        let network = shared.or_else(any).unwrap_or(NetworkId::from_bytes([0; 32]));
        let scope = auth::AttachScope { exporter: &exporter, hub: &hub, network: &network, role };
        let signature = scope.sign_hub(&self.config.secret);
        let proof = Proof::Hub { key: self.key, signature };
        self.set_state(stream, State::DialAttaching(dialling));
        self.send(stream, Control::Attach(Attach { version: flatlan_relay::VERSION, network, role, proof }));
    }

    /// The second word on a stream that we dialled.
    pub(super) fn handle_attached(&mut self, stream: StreamId, dialling: Dialling, message: Control, now: Instant) {
        let Dialling { hub, role } = dialling;
        let Control::Attached(attached) = message else {
            self.outputs.push_back(Output::Close { stream });
            return self.forget_stream(stream, DetachReason::Closed, now);
        };
        if role == Role::HubData {
            self.set_try(&hub, role, |attempt, _| attempt.succeeded(now));
            let Some(attachment) = self.neighbours.get(&hub).map(|neighbour| neighbour.attachment) else {
                return self.refuse(stream, RefusedCode::NoControl, "the control stream is gone", now);
            };
            self.set_state(stream, State::HubData(hub));
            return self.set_data(attachment, stream);
        }
        if self.keeps(&hub, self.key, now) {
            return self.refuse(stream, RefusedCode::Replaced, "another stream between these hubs is kept", now);
        }
        self.set_try(&hub, role, |attempt, _| attempt.succeeded(now));
        let Some(remote) = self.streams.get(&stream).map(|stream| stream.remote) else { return };
        match self.add_neighbour(stream, hub, self.key, now) {
            Err(refusal) => {
                tracing::debug!(?refusal, "neighbour not taken");
                self.refuse(stream, RefusedCode::Quota, "this hub is full", now);
            }
            Ok((attachment, _)) => {
                let Attached { udp, bind: Some(bind), .. } = attached else { return };
                let endpoints = udp_endpoints(&udp, remote);
                self.forward(ForwardCommand::SetLeg { attachment, id: bind.id, key: bind.key, endpoints });
            }
        }
    }

    pub(super) fn handle_hub(&mut self, stream: StreamId, hub: HubKey, message: Control, now: Instant) {
        let Some(neighbour) = self.neighbours.get_mut(&hub) else { return };
        neighbour.hear(now);
        let attachment = neighbour.attachment;
        match message {
            Control::Hello { time, echo } => self.handle_hello(hub, time, echo, now),
            Control::Serves { networks } => self.handle_serves(stream, hub, networks, now),
            Control::Lsa { lsa } => self.handle_lsa(hub, &lsa, now),
            Control::LsaDigest { entries } => self.handle_lsa_digest(hub, &entries),
            Control::PresenceFlood { network, presences } if self.shares(&hub, &network) => {
                self.handle_presences(hub, network, &presences, now);
            }
            Control::PresenceGone { network, member, hub: at, order } if self.shares(&hub, &network) => {
                if at == self.key {
                    self.correct(hub, network, &member);
                } else {
                    self.presence_gone(network, member, at, Gone::UpTo(order), Some(hub), now);
                }
            }
            Control::PresenceDigest { network, entries } if self.shares(&hub, &network) => {
                self.handle_presence_digest(hub, network, &entries);
            }
            Control::PresencePull { network, hub: of } if self.shares(&hub, &network) => {
                self.handle_presence_pull(hub, network, of);
            }
            Control::PathOpen(open) if self.shares(&hub, &open.network) => {
                self.handle_path_open(stream, attachment, open, now);
            }
            Control::PathOpen(open) => {
                let (request, reason) = (open.request, flatlan_relay::PathReason::Refused);
                self.send(stream, Control::PathFailed { request, reason });
            }
            // Of a network that is not, or not yet, shared.
            Control::PresenceFlood { .. }
            | Control::PresenceGone { .. }
            | Control::PresenceDigest { .. }
            | Control::PresencePull { .. } => {}
            Control::PathOpened { request, label, via, rtt_us } => {
                self.handle_path_opened(attachment, request, (label, via, rtt_us), now);
            }
            Control::PathFailed { request, reason } => self.handle_path_failed(attachment, request, reason, now),
            Control::PathClose { label } => self.handle_path_close(attachment, label, now),
            Control::PathLost { label, reason } => self.handle_path_lost(attachment, label, reason, now),
            Control::PathMoved { label, via } => self.handle_path_moved(attachment, label, via),
            Control::LabelUnknown { label } => self.handle_label_unknown(attachment, label, now),
            Control::Head { .. }
            | Control::GetRoster { .. }
            | Control::RosterPart { .. }
            | Control::GetClaims { .. }
            | Control::Claims { .. } => self.handle_roster(stream, None, message, now),
            Control::Ping { time } => self.send(stream, Control::Pong { time }),
            Control::Refused { code: RefusedCode::NoRoster, .. } => self.handle_no_roster(stream, now),
            Control::Pong { .. } | Control::Draining | Control::Refused { .. } => {}
            Control::HubHello { .. }
            | Control::Attach(_)
            | Control::Attached(_)
            | Control::PutRoster { .. }
            | Control::Stored { .. }
            | Control::Redeem { .. }
            | Control::Redeemed { .. }
            | Control::Watch { .. }
            | Control::Unwatch { .. }
            | Control::Presence { .. }
            | Control::Absent { .. }
            | Control::Downlink { .. } => {
                self.refuse(stream, RefusedCode::BadMessage, "not for a hub's stream", now);
            }
        }
    }

    /// A neighbour's control stream ended.
    pub(super) fn neighbour_ended(&mut self, hub: HubKey, stream: StreamId, now: Instant) {
        if self.neighbours.get(&hub).is_none_or(|neighbour| neighbour.control != stream) {
            return;
        }
        let Some(gone) = self.neighbours.remove(&hub) else { return };
        if gone.is_up() {
            self.event(HubEvent::NeighbourDown { hub });
            self.neighbour_lost(hub, now);
        }
        self.remove_attachment(gone.attachment, now);
    }

    /// The data plane says whether UDP to an attachment works.
    pub(super) fn set_leg(&mut self, attachment: AttachmentId, leg: LegState, now: Instant) {
        let Some(state) = self.attachments.get_mut(attachment.0) else { return };
        let Owner::Hub(hub) = state.owner else {
            state.leg = leg;
            return;
        };
        if let Some(neighbour) = self.neighbours.get_mut(&hub) {
            neighbour.leg = leg;
            neighbour.pace = Pace::default();
            if leg == LegState::Up {
                neighbour.hear(now);
            }
        }
    }

    /// A sign of life on UDP.
    pub(super) fn heard_neighbour(&mut self, attachment: AttachmentId, now: Instant) {
        if let Some(Owner::Hub(hub)) = self.attachments.get(attachment.0).map(|attachment| attachment.owner)
            && let Some(neighbour) = self.neighbours.get_mut(&hub)
        {
            neighbour.pace.hear(now);
            neighbour.hear(now);
        }
    }

    /// Hellos, and who is up. The turn comes `late`.
    pub(super) fn tick_neighbours(&mut self, late: Duration, now: Instant) {
        let hubs: Vec<_> = self.neighbours.keys().copied().collect();
        for hub in hubs {
            let Some(neighbour) = self.neighbours.get_mut(&hub) else { continue };
            // This hub itself stood still: what came meanwhile is still to be read.
            if late > ASLEEP && neighbour.is_up() && !neighbour.alive(now) {
                neighbour.silent = now + HELLO;
            }
            let doubtful = neighbour.adjacency == Adjacency::Up && neighbour.late.is_some_and(|late| late <= now);
            if late > DOUBTED_TURN && doubtful {
                neighbour.late = Some(now + LEAST_DOUBT);
            }
            if neighbour.next_hello <= now {
                self.send_hello(hub, now);
            }
            self.judge(hub, now);
        }
        self.originate_if_changed(now);
    }

    /// When a neighbour or a dial next needs a turn.
    pub(super) fn neighbours_due(&self) -> Option<Instant> {
        let neighbours = self.neighbours.values().flat_map(|neighbour| {
            let silent = neighbour.is_up().then_some(neighbour.silent);
            [Some(neighbour.next_hello), silent].into_iter().flatten()
        });
        let dials = self.diallers.iter().filter_map(|(hub, dialler)| dialler.attempt(self.wanted_dial(hub)?).next);
        let own = (self.own.waits == Waits::Yes).then_some(self.own.next);
        neighbours.chain(dials).chain(own).min()
    }

    /// When a neighbour next is late, if it says nothing until then.
    pub(super) fn doubts_due(&self) -> Option<Instant> {
        let up = self.neighbours.values().filter(|neighbour| neighbour.adjacency == Adjacency::Up);
        up.filter_map(|neighbour| neighbour.late).min()
    }

    pub(super) fn send_digests(&mut self) {
        for hub in self.digest_turn() {
            self.send_lsa_digest(hub);
            self.send_presence_digests(hub, &self.shared(&hub));
        }
        let networks = &self.networks;
        let me = self.key;
        self.lsdb.retain(|origin| *origin == me || networks.values().any(|network| network.lists_hub(origin)));
    }

    /// Neighbours whose turn it is to get digests: all where they are few. Where they are many each hub gets as many
    /// digests in a turn all the same, of others each time.
    fn digest_turn(&mut self) -> Vec<HubKey> {
        let up: Vec<_> = self.neighbours.iter().filter(|(_, n)| n.is_up()).map(|(hub, _)| *hub).collect();
        let begin = self.own.digests.checked_rem(up.len()).unwrap_or(0);
        self.own.digests = begin + DIGESTS;
        up.iter().cycle().skip(begin).take(up.len().min(DIGESTS)).copied().collect()
    }

    /// What a neighbour said last may not have come, and others took it that it had: they hand nothing on that it tells
    /// by itself. It is asked for as soon as others know, too.
    fn neighbour_lost(&mut self, hub: HubKey, now: Instant) {
        self.originate();
        self.own.missed.insert(hub, now + SETTLED);
    }

    /// Asks for the link states, and for what hubs hold that we lost as neighbours and others have.
    pub(super) fn pull_missed(&mut self, now: Instant) {
        let lost: Vec<_> = self.own.missed.extract_if(.., |_, due| *due <= now).map(|(hub, _)| hub).collect();
        if !lost.is_empty() {
            for hub in self.digest_turn() {
                self.send_lsa_digest(hub);
            }
        }
        for hub in lost {
            let networks: Vec<_> = self.networks.keys().copied().collect();
            for network in networks {
                let next_hop = self.route(network, hub).map(|route| route.next_hop);
                if let Some(next_hop) = next_hop.filter(|next_hop| *next_hop != hub) {
                    self.tell_hub(next_hop, Control::PresencePull { network, hub });
                }
            }
        }
    }

    /// The hubs that we dial: those in rosters of networks allowed by name, and those configured.
    pub(super) fn set_diallers(&mut self, now: Instant) {
        let mut targets: BTreeMap<HubKey, HostPort> = BTreeMap::new();
        for (id, network) in &self.networks {
            let Some(roster) = network.roster.as_ref().filter(|_| self.config.allow.names(id)) else { continue };
            targets.extend(roster.hubs().iter().map(|hub| (hub.key, hub.tls.clone())));
        }
        targets.extend(self.config.peers.iter().map(|peer| (peer.key, peer.at.clone())));
        targets.remove(&self.key);
        self.diallers.retain(|hub, _| targets.contains_key(hub));
        for (hub, at) in targets {
            let fresh = || Dialler { at: at.clone(), control: Try::new(now), data: Try::new(now) };
            self.diallers.entry(hub).or_insert_with(fresh).at = at.clone();
        }
        if !self.diallers.is_empty() {
            self.next_tick = self.next_tick.min(now);
        }
    }

    pub(super) fn dial_due(&mut self, now: Instant) {
        let mut due = Vec::new();
        for (hub, dialler) in &self.diallers {
            if let Some(role) = self.wanted_dial(hub).filter(|role| dialler.attempt(*role).due(now)) {
                due.push((*hub, dialler.at.clone(), role));
            }
        }
        for (hub, at, role) in due {
            let dial = DialId(self.next_id());
            self.set_try(&hub, role, |attempt, _| attempt.next = None);
            self.dials.insert(dial, Dialling { hub, role });
            self.outputs.push_back(Output::Dial { dial, at, role });
        }
    }

    /// Which stream to a hub of [`Hub::diallers`] is missing, if it is ours to dial: who dialled the control
    /// stream dials the data stream, too.
    fn wanted_dial(&self, hub: &HubKey) -> Option<Role> {
        let Some(neighbour) = self.neighbours.get(hub) else { return Some(Role::HubControl) };
        let ours = neighbour.is_up() && neighbour.dialler == self.key;
        let attachment = self.attachments.get(neighbour.attachment.0).filter(|_| ours)?;
        attachment.data.is_none().then_some(Role::HubData)
    }

    /// An attempt came to nothing.
    pub(super) fn dial_ended(&mut self, dialling: Dialling, now: Instant) {
        let Dialling { hub, role } = dialling;
        self.set_try(&hub, role, |attempt, jitter| attempt.failed(now, jitter));
    }

    /// A roster changed: who shares what, and who may stay.
    pub(super) fn neighbours_changed(&mut self, now: Instant) {
        let hubs: Vec<_> = self.neighbours.iter().map(|(hub, neighbour)| (*hub, neighbour.control)).collect();
        for (hub, control) in hubs {
            if self.is_newcomer(&hub) && self.networks.values().all(|network| network.roster.is_some()) {
                self.refuse(control, RefusedCode::NotMember, "this hub shares no network with yours", now);
                continue;
            }
            self.send_serves(hub);
            // What came from hubs that no roster listed was not kept.
            self.send_lsa_digest(hub);
        }
        self.originate_if_changed(now);
    }

    /// The networks that both serve.
    pub(super) fn shared(&self, hub: &HubKey) -> Vec<NetworkId> {
        let Some(neighbour) = self.neighbours.get(hub) else { return Vec::new() };
        neighbour.serves.iter().copied().filter(|network| self.shares(hub, network)).collect()
    }

    /// Sends to the neighbours that serve a network, but for those that `from`, whose word it is, tells by itself.
    pub(super) fn tell_hubs(&mut self, network: NetworkId, from: Option<HubKey>, message: &Control) {
        let Some(state) = self.networks.get(&network) else { return };
        let from = from.map(|from| (from, self.lsdb.serves(&from, state.tag)));
        let has = |hub| from.is_some_and(|(from, serves)| from == hub || (serves && self.lsdb.linked(&from, &hub)));
        let told: Vec<_> = self
            .neighbours
            .iter()
            .filter(|(hub, neighbour)| neighbour.serves.contains(&network) && state.lists_hub(hub) && !has(**hub))
            .map(|(_, neighbour)| neighbour.control)
            .collect();
        for stream in told {
            self.send(stream, message.clone());
        }
    }

    pub(super) fn tell_hub(&mut self, hub: HubKey, message: Control) {
        if let Some(neighbour) = self.neighbours.get(&hub) {
            let control = neighbour.control;
            self.send(control, message);
        }
    }

    /// States our links anew, at once.
    pub(super) fn originate(&mut self) {
        self.own.waits = Waits::No;
        let Lsa { links, serves, .. } = self.own_links();
        self.own.version.sequence += 1;
        let lsa = Lsa { origin: self.key, version: self.own.version, links, serves };
        let signed = SignedLsa::sign(&self.config.secret, lsa);
        let bytes = signed.bytes().to_vec();
        self.lsdb.insert(signed);
        self.flood(self.key, &bytes, None);
    }

    /// The same where nothing is lost: at once, or where that was so a moment ago, together with what comes until then.
    /// Where many hubs meet at once each of them would state each neighbour by itself, to all.
    fn originate_soon(&mut self, now: Instant) {
        if now >= self.own.next {
            self.own.next = now + STATED;
            return self.originate();
        }
        self.own.waits = Waits::Yes;
        self.next_tick = self.next_tick.min(self.own.next);
    }

    fn originate_if_changed(&mut self, now: Instant) {
        let fresh = self.own_links();
        let same = self.lsdb.get(&self.key).is_some_and(|stated| {
            let stated = stated.lsa();
            let alike = |(a, b): (&LsaLink, &LsaLink)| a.to == b.to && a.rtt_us.abs_diff(b.rtt_us) <= drift(a.rtt_us);
            stated.serves == fresh.serves
                && stated.links.len() == fresh.links.len()
                && stated.links.iter().zip(&fresh.links).all(alike)
        });
        if same {
            self.own.waits = Waits::No;
        } else {
            self.originate_soon(now);
        }
    }

    fn own_links(&self) -> Lsa {
        let up = self.neighbours.iter().filter(|(_, neighbour)| neighbour.is_up());
        let links = up.map(|(hub, neighbour)| LsaLink { to: *hub, rtt_us: neighbour.rtt_us() }).collect();
        let serves: BTreeSet<NetworkTag> = match self.draining {
            Draining::Yes => BTreeSet::new(),
            Draining::No => self.networks.values().filter(|n| n.roster.is_some()).map(|n| n.tag).collect(),
        };
        Lsa { origin: self.key, version: self.own.version, links, serves: serves.into_iter().collect() }
    }

    fn may_neighbour(&self, hub: &HubKey, network: &NetworkId) -> bool {
        if self.is_peer(hub) || self.neighbours.contains_key(hub) {
            return true;
        }
        if self.is_listed(hub) {
            let listed = self.neighbours.keys().filter(|hub| self.is_listed(hub) && !self.is_peer(hub));
            return listed.count() < MAX_NEIGHBOURS;
        }
        // It may bring the roster that lists it. Anyone may say so: such hubs take no room from others.
        let new = self.allows(network) && self.networks.get(network).is_none_or(|n| n.roster.is_none());
        new && self.neighbours.keys().filter(|hub| self.is_newcomer(hub)).count() < MAX_NEWCOMERS
    }

    fn is_listed(&self, hub: &HubKey) -> bool {
        self.networks.values().any(|network| network.lists_hub(hub))
    }

    /// Whether it was configured.
    fn is_peer(&self, hub: &HubKey) -> bool {
        self.config.peers.iter().any(|peer| peer.key == *hub)
    }

    fn is_newcomer(&self, hub: &HubKey) -> bool {
        !self.is_listed(hub) && !self.is_peer(hub)
    }

    /// Where newcomers have all places: lets go of one that did not bring its roster in time.
    fn make_room_for(&mut self, hub: &HubKey, now: Instant) {
        if !self.is_newcomer(hub) || self.neighbours.contains_key(hub) {
            return;
        }
        let newcomers: Vec<_> = self.neighbours.iter().filter(|(hub, _)| self.is_newcomer(hub)).collect();
        let first = newcomers.iter().min_by_key(|(_, neighbour)| neighbour.since);
        let late = first.filter(|(_, first)| now.saturating_duration_since(first.since) >= NEWCOMER_LIFE);
        if let Some((_, late)) = late.filter(|_| newcomers.len() >= MAX_NEWCOMERS) {
            let stream = late.control;
            self.refuse(stream, RefusedCode::NotMember, "this hub shares no network with yours", now);
        }
    }

    /// Whether the stream that there is to `hub` is to be kept over one dialled by `dialler`.
    fn keeps(&self, hub: &HubKey, dialler: HubKey, now: Instant) -> bool {
        let preferred = self.key.min(*hub);
        self.neighbours.get(hub).is_some_and(|there| {
            let fresh = now.saturating_duration_since(there.heard) < HELLO * 2;
            fresh && there.dialler == preferred && dialler != preferred
        })
    }

    fn add_neighbour(
        &mut self,
        stream: StreamId,
        hub: HubKey,
        dialler: HubKey,
        now: Instant,
    ) -> Result<(AttachmentId, flatlan_relay::BindSecret), Refusal> {
        let before = self.neighbours.get(&hub).map(|neighbour| (neighbour.control, neighbour.since));
        if let Some((before, _)) = before {
            self.refuse(before, RefusedCode::Replaced, "a newer stream between these hubs took its place", now);
        }
        let full = || Refusal::new(RefusedCode::Quota, "this hub is full");
        let (attachment, bind) = self.add_attachment(Owner::Hub(hub), stream).ok_or_else(full)?;
        self.set_state(stream, State::Hub(hub));
        let neighbour = Neighbour {
            control: stream,
            attachment,
            dialler,
            since: before.map_or(now, |(_, since)| since),
            heard: now,
            silent: now + HELLO * MISSES,
            late: None,
            pace: Pace::default(),
            alarms: 0,
            alarmed: now,
            led_around: BTreeSet::new(),
            leg: LegState::Down,
            theirs: None,
            rtt: None,
            adjacency: Adjacency::Down,
            serves: BTreeSet::new(),
            told: BTreeSet::new(),
            next_hello: now,
        };
        self.neighbours.insert(hub, neighbour);
        self.next_tick = now;
        Ok((attachment, bind))
    }

    fn handle_hello(&mut self, hub: HubKey, time: u64, echo: Option<Echo>, now: Instant) {
        let clock = self.clock.micros(now);
        let Some(neighbour) = self.neighbours.get_mut(&hub) else { return };
        let first = neighbour.theirs.is_none();
        neighbour.theirs = Some((time, now));
        if let Some(Echo { time, held_us }) = echo {
            let sample = Duration::from_micros(clock.saturating_sub(time).saturating_sub(held_us));
            let smooth = |rtt: Duration| (rtt * 7 + sample) / 8;
            neighbour.rtt = Some(neighbour.rtt.map_or(sample, smooth));
        }
        if first {
            self.send_hello(hub, now);
        }
        self.judge(hub, now);
    }

    fn send_hello(&mut self, hub: HubKey, now: Instant) {
        let time = self.clock.micros(now);
        let Some(neighbour) = self.neighbours.get_mut(&hub) else { return };
        neighbour.next_hello = now + HELLO;
        let held = |at: Instant| u64::try_from(now.saturating_duration_since(at).as_micros()).unwrap_or(u64::MAX);
        let echo = neighbour.theirs.map(|(time, at)| Echo { time, held_us: held(at) });
        self.tell_hub(hub, Control::Hello { time, echo });
    }

    fn judge(&mut self, hub: HubKey, now: Instant) {
        let Some(neighbour) = self.neighbours.get_mut(&hub) else { return };
        let attachment = neighbour.attachment;
        let good = neighbour.alive(now) && neighbour.rtt.is_some();
        let late = neighbour.late.is_some_and(|late| late <= now);
        match (neighbour.adjacency, good) {
            (Adjacency::Down, true) => {
                neighbour.adjacency = Adjacency::Up;
                self.event(HubEvent::NeighbourUp { hub });
                self.send_serves(hub);
                self.originate_soon(now);
                self.send_lsa_digest(hub);
                self.send_presence_digests(hub, &self.shared(&hub));
            }
            (Adjacency::Up, true) if late => {
                neighbour.adjacency = Adjacency::Late;
                let there = self.attachments.get(attachment.0).into_iter().flat_map(|there| &there.downstream);
                neighbour.led_around.retain(|label| self.labels.get(label.0).is_some());
                neighbour.led_around.extend(there.map(|(_, label)| *label));
                self.event(HubEvent::NeighbourLate { hub });
                self.leave_neighbour(attachment, Cause::Leaving, now);
            }
            (Adjacency::Late, true) if !late => {
                neighbour.adjacency = Adjacency::Up;
                (neighbour.alarms, neighbour.alarmed) = ((neighbour.alarms + 1).min(MAX_ALARMS), now);
            }
            (Adjacency::Late | Adjacency::Up, false) => {
                neighbour.adjacency = Adjacency::Down;
                neighbour.led_around.clear();
                self.event(HubEvent::NeighbourDown { hub });
                self.neighbour_lost(hub, now);
                self.leave_neighbour(attachment, Cause::Broken, now);
            }
            (Adjacency::Up, true) => self.trust(hub, now),
            (Adjacency::Down, false) | (Adjacency::Late, true) => {}
        }
    }

    /// A neighbour is on time: what that means after a while.
    fn trust(&mut self, hub: HubKey, now: Instant) {
        let Some(neighbour) = self.neighbours.get_mut(&hub) else { return };
        let steady = now.saturating_duration_since(neighbour.alarmed);
        if neighbour.alarms > 0 && steady >= ALARM_KEPT {
            (neighbour.alarms, neighbour.alarmed) = (neighbour.alarms - 1, now);
        }
        if !neighbour.led_around.is_empty() && steady >= LED_BACK {
            let some: Vec<Label> =
                std::iter::from_fn(|| neighbour.led_around.pop_first()).take(LED_BACK_AT_ONCE).collect();
            for label in some {
                self.improve(label, now);
            }
        }
    }

    /// Says what we serve that the neighbour has a part in, where that is not what we said before.
    fn send_serves(&mut self, hub: HubKey) {
        let networks = self.networks.iter().filter(|(_, network)| network.lists_hub(&hub)).map(|(id, _)| *id);
        let networks: BTreeSet<_> = networks.take(MAX_SERVED).collect();
        let Some(neighbour) = self.neighbours.get_mut(&hub).filter(|neighbour| neighbour.told != networks) else {
            return;
        };
        let before = std::mem::replace(&mut neighbour.told, networks.clone());
        let fresh: Vec<_> = networks.difference(&before).copied().filter(|id| neighbour.serves.contains(id)).collect();
        self.tell_hub(hub, Control::Serves { networks: networks.into_iter().collect() });
        self.begin_to_share(hub, &fresh);
    }

    /// Tells a neighbour what there is of networks.
    fn begin_to_share(&mut self, hub: HubKey, networks: &[NetworkId]) {
        self.send_heads(hub, networks);
        self.send_presence_digests(hub, networks);
    }

    fn handle_serves(&mut self, stream: StreamId, hub: HubKey, networks: Vec<NetworkId>, now: Instant) {
        let allowed = networks.into_iter().take(MAX_SERVED).filter(|network| self.allows(network));
        let allowed: BTreeSet<_> = allowed.collect();
        let missing = |id: &&NetworkId| self.networks.get(id).is_none_or(|network| network.roster.is_none());
        let missing: Vec<_> = allowed.iter().filter(missing).copied().collect();
        let Some(neighbour) = self.neighbours.get_mut(&hub) else { return };
        let before = std::mem::replace(&mut neighbour.serves, allowed);
        for network in missing {
            self.ask_for_roster(stream, network, None, now);
        }
        let fresh: Vec<_> = self.shared(&hub).into_iter().filter(|network| !before.contains(network)).collect();
        self.begin_to_share(hub, &fresh);
    }

    fn handle_lsa(&mut self, from: HubKey, bytes: &[u8], now: Instant) {
        let Ok(Lsa { origin, version, .. }) = SignedLsa::peek(bytes) else { return };
        if origin == self.key {
            // Ours, of a life that we do not remember: go beyond it.
            if version > self.own.version && SignedLsa::verify(bytes).is_ok() {
                self.own.version = LsaVersion { incarnation: version.incarnation.saturating_add(1), sequence: 0 };
                self.originate();
            }
            return;
        }
        if !self.networks.values().any(|network| network.lists_hub(&origin)) {
            return;
        }
        match self.lsdb.add(bytes) {
            News::Restarted => {
                self.hub_restarted(origin);
                self.flood(origin, bytes, Some(from));
                self.leave_drained(origin, now);
            }
            News::Newer => {
                self.flood(origin, bytes, Some(from));
                self.leave_drained(origin, now);
            }
            News::Older => {
                if let Some(ours) = self.lsdb.get(&origin) {
                    let lsa = ours.bytes().to_vec();
                    self.tell_hub(from, Control::Lsa { lsa });
                }
            }
            News::Bad | News::Same => {}
        }
    }

    /// A neighbour that no longer serves a network carries no transit: move what leads over it.
    fn leave_drained(&mut self, hub: HubKey, now: Instant) {
        let drained = self.lsdb.get(&hub).is_some_and(|lsa| lsa.lsa().serves.is_empty());
        let attachment = self.neighbours.get(&hub).map(|neighbour| neighbour.attachment);
        if let Some(attachment) = attachment.filter(|_| drained) {
            self.leave_neighbour(attachment, Cause::Leaving, now);
        }
    }

    fn handle_lsa_digest(&mut self, hub: HubKey, theirs: &[LsaEntry]) {
        let theirs: BTreeMap<_, _> = theirs.iter().map(|entry| (entry.origin, entry.version)).collect();
        let newer = |lsa: &&SignedLsa| {
            let Lsa { origin, version, .. } = lsa.lsa();
            theirs.get(origin).is_none_or(|theirs| theirs < version) && self.related(origin, &hub)
        };
        let missing: Vec<_> = self.lsdb.iter().filter(newer).map(|lsa| lsa.bytes().to_vec()).collect();
        for lsa in missing {
            self.tell_hub(hub, Control::Lsa { lsa });
        }
    }

    fn send_lsa_digest(&mut self, hub: HubKey) {
        let entries = self.lsdb.digest().filter(|entry| self.related(&entry.origin, &hub)).take(MAX_DIGEST).collect();
        self.tell_hub(hub, Control::LsaDigest { entries });
    }

    /// Hands on what `from` said to those that it does not tell by itself.
    fn flood(&mut self, origin: HubKey, bytes: &[u8], from: Option<HubKey>) {
        let tells = |from: HubKey, hub: &HubKey| {
            let common = |network: &Network| {
                self.lsdb.serves(&from, network.tag) && network.lists_hub(&origin) && network.lists_hub(hub)
            };
            self.lsdb.linked(&from, hub) && (from == origin || self.networks.values().any(common))
        };
        let has = |hub: &HubKey| *hub == origin || from.is_some_and(|from| from == *hub || tells(from, hub));
        let told: Vec<_> = self
            .neighbours
            .iter()
            .filter(|(hub, _)| self.related(&origin, hub) && !has(hub))
            .map(|(_, neighbour)| neighbour.control)
            .collect();
        for stream in told {
            self.send(stream, Control::Lsa { lsa: bytes.to_vec() });
        }
    }

    /// Whether `origin`'s links are any of `hub`'s business.
    fn related(&self, origin: &HubKey, hub: &HubKey) -> bool {
        let both = |hubs: [&HubKey; 2]| self.networks.values().any(|n| hubs.iter().all(|hub| n.lists_hub(hub)));
        *origin == self.key || both([origin, hub])
    }

    /// Someone says that a node is here no more, and it is.
    fn correct(&mut self, hub: HubKey, network: NetworkId, member: &flatlan_types::MemberId) {
        let Some(state) = self.networks.get(&network) else { return };
        let ours = state.presence.hubs_of(member).find(|presence| presence.hub() == self.key).map(Presence::encode);
        if let Some(presence) = ours {
            self.tell_hub(hub, Control::PresenceFlood { network, presences: vec![presence.into()] });
        }
    }

    fn shares(&self, hub: &HubKey, network: &NetworkId) -> bool {
        self.networks.get(network).is_some_and(|network| network.lists_hub(hub))
    }

    fn set_try(&mut self, hub: &HubKey, role: Role, change: impl FnOnce(&mut Try, u64)) {
        let jitter = self.random.next();
        let Some(dialler) = self.diallers.get_mut(hub) else { return };
        let attempt = if role == Role::HubData { &mut dialler.data } else { &mut dialler.control };
        change(attempt, jitter);
        if let Some(next) = attempt.next {
            self.next_tick = self.next_tick.min(next);
        }
    }
}

/// Where a hub that we dialled takes datagrams: what it says, with the address that we reached it at in
/// place of an unspecified one or a name.
fn udp_endpoints(udp: &[HostPort], remote: Endpoint) -> Vec<Endpoint> {
    let mut endpoints = Vec::new();
    for at in udp.iter().take(MAX_UDP) {
        let literal = at.literal().filter(|literal| !literal.socket_addr().ip().is_unspecified());
        let reached = std::net::SocketAddr::new(remote.socket_addr().ip(), at.port());
        let endpoint = literal.unwrap_or_else(|| Endpoint::new(reached));
        if !endpoints.contains(&endpoint) {
            endpoints.push(endpoint);
        }
    }
    endpoints
}

/// How far a round trip may drift before it is stated anew, microseconds: a quarter, at least 2 ms.
fn drift(rtt_us: u32) -> u32 {
    (rtt_us / 4).max(2_000)
}

const HELLO: Duration = Duration::from_millis(200);
const MISSES: u32 = 4;
/// Where UDP works: more than two `BIND`s of the usual kind, and the burst that follows a lost one.
const SILENCE: Duration = Duration::from_millis(500);
/// A turn that comes so much too late says nothing of a neighbour.
const ASLEEP: Duration = Duration::from_millis(50);
/// The same for whether it is late.
const DOUBTED_TURN: Duration = Duration::from_millis(20);
/// No silence is shorter than this: computers hesitate, too.
const LEAST_DOUBT: Duration = Duration::from_millis(150);
/// Who speaks more rarely than this is not late before it is down.
const FREQUENT: Duration = Duration::from_millis(100);
/// `BIND`s of a burst that are waited for.
const BURST_LENGTH: u32 = 7;
/// How often the time of one that was not late after all is doubled.
const MAX_ALARMS: u32 = 4;
/// One such time is forgotten after so long without another one.
const ALARM_KEPT: Duration = Duration::from_secs(300);
/// What was led around a neighbour is led back when that has been on time for so long.
const LED_BACK: Duration = Duration::from_secs(5);
/// Labels that are led back in one turn: the hub has others to serve meanwhile.
const LED_BACK_AT_ONCE: usize = 1000;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Neighbours that a roster lists; those that are configured do not count.
const MAX_NEIGHBOURS: usize = 256;
/// Neighbours that no roster lists yet, and how long they keep their place so where others want it.
const MAX_NEWCOMERS: usize = 16;
const NEWCOMER_LIFE: Duration = Duration::from_secs(60);
/// Networks in one `Serves`.
const MAX_SERVED: usize = 1_800;
/// What is no loss is stated at most once in so long.
const STATED: Duration = Duration::from_millis(200);
/// Until then all who lost a neighbour have said so.
const SETTLED: Duration = Duration::from_millis(500);
/// Neighbours that get digests in one turn.
const DIGESTS: usize = 8;
/// Lines in one digest.
const MAX_DIGEST: usize = 1_000;
const MAX_UDP: usize = 8;
