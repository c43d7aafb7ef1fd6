//! The control machine: streams, and what is said on them.
//!
//! ```text
//!  accepted ─▶ Greeting ──Attach──▶ Node │ Data │ Join │ Admin │ Hub │ HubData
//!  dialled ──▶ DialGreeting ──HubHello──▶ DialAttaching ──Attached──▶ Hub │ HubData
//!  any ──refused, silent, closed──▶ gone
//! ```
//!
//! Each concern has its file: `attach` (who may), `network` (rosters and claims), `transfer`
//! (rosters on their way), `presence`, `path` (requests and labels), `neighbour` (hubs, link state). This one owns the tables and the clockwork.
//!
//! *Mutate, drain, mutate*: after every input or command drain [`Hub::poll_output`].

mod attach;
mod neighbour;
mod network;
mod path;
mod presence;
mod transfer;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use flatlan_relay::{Control, PathReason, RefusedCode, Role, auth};
use flatlan_roster::{ClaimError, DecodeError, HeadError, HistoryError, RatchetDecodeError, RecordsError, VerifyError};
use flatlan_types::{Endpoint, HubKey, Label, MemberId, NetworkId, UnixTime};

use self::{
    neighbour::{Dialler, LegState, Neighbour},
    network::Network,
    path::{Closing, LabelState, Pending},
    transfer::{Held, Incoming},
};
use crate::{
    config::{Allow, HubConfig, StoredNetwork},
    forward::{AttachmentId, AttachmentKind, ForwardCommand, ForwardEvent, StreamId},
    linkstate::Lsdb,
    output::{DetachReason, DialId, HubEvent, Output, StoreToken},
    slots::{Random, Slots},
};

/// The control machine of a hub.
pub struct Hub {
    key: HubKey,
    config: HubConfig,
    clock: Clock,
    random: Random,
    streams: BTreeMap<StreamId, Stream>,
    networks: BTreeMap<NetworkId, Network>,
    /// Allowed, but what is stored of them must stay as it is.
    withheld: BTreeSet<NetworkId>,
    attachments: Slots<Attachment>,
    labels: Slots<LabelState>,
    pending: BTreeMap<u32, Pending>,
    next_request: u32,
    closing: Vec<Closing>,
    /// Labels whose receiver is about to detach, and until when they lead there at most.
    leaving: BTreeMap<Label, Instant>,
    /// Labels whose way crosses a hub that it should avoid, by whom they lead to.
    crossing: BTreeSet<(NetworkId, MemberId, Label)>,
    neighbours: BTreeMap<HubKey, Neighbour>,
    diallers: BTreeMap<HubKey, Dialler>,
    dials: BTreeMap<DialId, Dialling>,
    lsdb: Lsdb,
    own: neighbour::OwnState,
    /// Since when hubs that hold presences cannot be reached.
    unreachable: BTreeMap<(NetworkId, HubKey), Instant>,
    held: Held,
    claims_checked: u64,
    refused: u64,
    outputs: VecDeque<Output>,
    next_id: u64,
    draining: Draining,
    next_tick: Instant,
    next_second: Instant,
    next_digest: Instant,
}

impl Hub {
    /// A hub with what it had stored. `unix` is the wall time at `now`. What does not hold of a network is
    /// told ([`Output::SetAside`], [`HubEvent::Withheld`]) and keeps no other network from being served.
    pub fn new(config: HubConfig, stored: Vec<StoredNetwork>, now: Instant, unix: UnixTime) -> Self {
        let mut networks = BTreeMap::new();
        if let Allow::Networks(allowed) = &config.allow {
            networks.extend(allowed.iter().map(|id| (*id, Network::new(*id))));
        }
        let mut unsound = Vec::new();
        for stored in stored {
            let network = stored.network;
            if config.allow.allows(&network) {
                let (state, restored) = Network::restore(&stored, &config.limits);
                networks.insert(network, state);
                unsound.extend(restored.err().map(|error| (network, error)));
            }
        }
        let (key, incarnation) = (config.secret.public(), config.incarnation);
        let mut random = Random::new(config.seed);
        let digests = usize::from(random.next() as u16);
        let mut hub = Self {
            key,
            config,
            clock: Clock { start: now, unix, unix_at: now },
            random,
            streams: BTreeMap::new(),
            networks,
            withheld: BTreeSet::new(),
            attachments: Slots::default(),
            labels: Slots::default(),
            pending: BTreeMap::new(),
            next_request: 0,
            closing: Vec::new(),
            leaving: BTreeMap::new(),
            crossing: BTreeSet::new(),
            neighbours: BTreeMap::new(),
            diallers: BTreeMap::new(),
            dials: BTreeMap::new(),
            lsdb: Lsdb::default(),
            own: neighbour::OwnState::new(incarnation, digests, now),
            unreachable: BTreeMap::new(),
            held: Held::default(),
            claims_checked: 0,
            refused: 0,
            outputs: VecDeque::new(),
            next_id: 0,
            draining: Draining::No,
            next_tick: now,
            next_second: now,
            next_digest: now,
        };
        for (network, error) in unsound {
            let reason = error.to_string();
            if error.is_of_later_version() {
                hub.withhold(network);
                hub.event(HubEvent::Withheld { network, reason });
            } else {
                hub.outputs.push_back(Output::SetAside { network, reason });
            }
        }
        hub.set_diallers(now);
        hub.originate();
        hub
    }

    /// A stream is there: TLS and WebSocket are done.
    pub fn handle_stream_opened(&mut self, stream: StreamId, opened: Opened, now: Instant) {
        let Opened { remote, exporter, origin } = opened;
        let state = match origin {
            StreamOrigin::Accepted => State::Greeting,
            StreamOrigin::Dialled(dial) => match self.dials.remove(&dial) {
                Some(dialling) => State::DialGreeting(dialling),
                None => {
                    self.outputs.push_back(Output::Close { stream });
                    return;
                }
            },
        };
        let stream_state = Stream { remote, exporter, state, opened: now, heard: now, incoming: Incoming::default() };
        self.streams.insert(stream, stream_state);
        if origin == StreamOrigin::Accepted {
            let signature = auth::sign_hello(&self.config.secret, &exporter);
            let version = flatlan_relay::VERSION;
            self.send(stream, Control::HubHello { version, key: self.key, signature });
        }
    }

    /// A message came on a stream that is not for data.
    pub fn handle_message(&mut self, stream: StreamId, message: &[u8], now: Instant) {
        match Control::decode(message) {
            Ok(Some(message)) => self.handle_control(stream, message, now),
            Ok(None) => {
                if let Some(stream) = self.streams.get_mut(&stream) {
                    stream.heard = now;
                }
            }
            Err(error) => self.refuse(stream, RefusedCode::BadMessage, &error.to_string(), now),
        }
    }

    /// The same, decoded.
    pub fn handle_control(&mut self, stream: StreamId, message: Control, now: Instant) {
        let Some(at) = self.streams.get_mut(&stream) else { return };
        at.heard = now;
        match at.state {
            State::Greeting => self.handle_greeting(stream, message, now),
            State::DialGreeting(dialling) => self.handle_hub_hello(stream, dialling, message, now),
            State::DialAttaching(dialling) => self.handle_attached(stream, dialling, message, now),
            State::Node(attachment) => self.handle_node(stream, attachment, message, now),
            State::Join { network } | State::Admin { network } => self.handle_visitor(stream, network, message, now),
            State::Hub(hub) => self.handle_hub(stream, hub, message, now),
            State::Data(_) | State::HubData(_) => {
                self.refuse(stream, RefusedCode::BadMessage, "a control message on a data stream", now);
            }
        }
    }

    /// A stream ended, by whomever.
    pub fn handle_stream_closed(&mut self, stream: StreamId, now: Instant) {
        self.forget_stream(stream, DetachReason::Closed, now);
    }

    /// A dialled hub did not answer.
    pub fn handle_dial_failed(&mut self, dial: DialId, now: Instant) {
        if let Some(dialling) = self.dials.remove(&dial) {
            self.dial_ended(dialling, now);
        }
    }

    /// The data plane has something to say.
    pub fn handle_forward(&mut self, event: ForwardEvent, now: Instant) {
        match event {
            // between workers
            ForwardEvent::BindAstray { .. }
            | ForwardEvent::EndpointSet { .. }
            | ForwardEvent::HubUsed { .. }
            | ForwardEvent::LabelUsed { .. } => {}
            ForwardEvent::HubHeard { attachment } => self.heard_neighbour(attachment, now),
            ForwardEvent::LabelIdle { label } => self.drop_label(label, PathReason::Idle, now),
            ForwardEvent::LabelUnknown { attachment, label } => {
                if let Some(attachment) = self.attachments.get(attachment.0) {
                    let control = attachment.control;
                    self.send(control, Control::LabelUnknown { label });
                }
            }
            ForwardEvent::LegUp { attachment, .. } | ForwardEvent::Bound { attachment, .. } => {
                self.set_leg(attachment, LegState::Up, now);
                self.shorten(attachment, now);
            }
            ForwardEvent::LegDown { attachment } | ForwardEvent::Unbound { attachment } => {
                self.set_leg(attachment, LegState::Down, now);
            }
        }
    }

    /// A write that [`Output::Store`] asked for is done, or failed.
    pub fn handle_stored(&mut self, token: StoreToken, outcome: StoreOutcome, now: Instant) {
        self.stored(token, outcome, now);
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.next_tick {
            return;
        }
        let late = now.saturating_duration_since(self.next_tick);
        self.dial_due(now);
        self.tick_neighbours(late, now);
        self.expire_requests(now);
        self.close_old_labels(now);
        if now >= self.next_second {
            self.next_second = now + Duration::from_secs(1);
            self.close_silent(now);
            self.tick_transfers(now);
            self.pull_missed(now);
            self.forget_unreachable(now);
        }
        if now >= self.next_digest {
            self.next_digest = now + DIGEST;
            self.send_digests();
        }
        // what is set between two turns is due in more than an idle turn, or draws the next turn forward
        let due = [self.neighbours_due(), self.requests_due()].into_iter().flatten().min();
        let next = due.map_or(now + IDLE_TICK, |due| due.clamp(now + TICK, now + IDLE_TICK));
        self.next_tick = self.doubts_due().map_or(next, |doubt| next.min(doubt.max(now + DOUBT_TICK)));
    }

    /// The wall clock was set.
    pub fn set_time(&mut self, unix: UnixTime, now: Instant) {
        (self.clock.unix, self.clock.unix_at) = (unix, now);
    }

    /// Serves a network no more, and writes nothing of it: for use right after the start.
    pub fn withhold(&mut self, network: NetworkId) {
        self.networks.remove(&network);
        self.withheld.insert(network);
    }

    /// The hub is about to stop: tell everyone to leave, and take no one in.
    pub fn drain(&mut self) {
        self.draining = Draining::Yes;
        let told: Vec<_> = self
            .streams
            .iter()
            .filter(|(_, stream)| matches!(stream.state, State::Node(_) | State::Hub(_)))
            .map(|(stream, _)| *stream)
            .collect();
        for stream in told {
            self.send(stream, Control::Draining);
        }
        self.originate();
    }

    /// What is to be done; drain after every input or command.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Hub::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Instant {
        self.next_tick
    }

    /// Its roster key.
    pub fn key(&self) -> HubKey {
        self.key
    }

    /// Whether the other end of a stream has proven to be a member or a hub. Admins and whoever redeems an invite
    /// have proven less.
    pub fn knows(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|stream| match stream.state {
            State::Node(_) | State::Data(_) | State::Hub(_) | State::HubData(_) => true,
            State::Greeting
            | State::DialGreeting(_)
            | State::DialAttaching(_)
            | State::Join { .. }
            | State::Admin { .. } => false,
        })
    }

    /// How much there is of everything.
    pub fn stats(&self) -> HubStats {
        HubStats {
            streams: self.streams.len(),
            attachments: self.attachments.len(),
            labels: self.labels.len(),
            requests: self.pending.len(),
            neighbours: self.neighbours.values().filter(|neighbour| neighbour.is_up()).count(),
            hubs: self.lsdb.iter().count(),
            links: self.lsdb.links(),
            claims_checked: self.claims_checked,
            refused: self.refused,
        }
    }

    /// The networks that it serves.
    pub fn networks(&self) -> impl Iterator<Item = NetworkStatus> {
        self.networks.values().map(Network::status)
    }

    /// The hubs that it talks to.
    pub fn neighbours(&self) -> impl Iterator<Item = NeighbourStatus> {
        self.neighbours.iter().map(|(key, neighbour)| neighbour.status(*key))
    }

    /// Sends where the stream is still there.
    fn send(&mut self, stream: StreamId, message: Control) {
        if self.streams.contains_key(&stream) {
            self.outputs.push_back(Output::Send { stream, message });
        }
    }

    fn allows(&self, network: &NetworkId) -> bool {
        self.config.allow.allows(network) && !self.withheld.contains(network)
    }

    fn event(&mut self, event: HubEvent) {
        self.outputs.push_back(Output::Event(event));
    }

    fn forward(&mut self, command: ForwardCommand) {
        self.outputs.push_back(Output::Forward(command));
    }

    /// Answers with a refusal and closes the stream.
    fn refuse(&mut self, stream: StreamId, code: RefusedCode, text: &str, now: Instant) {
        self.refuse_with(stream, code, text, None, now);
    }

    fn refuse_with(
        &mut self,
        stream: StreamId,
        code: RefusedCode,
        text: &str,
        presence: Option<Vec<u8>>,
        now: Instant,
    ) {
        let Some(at) = self.streams.get(&stream) else { return };
        let endpoint = at.remote;
        self.send(stream, Control::Refused { code, text: text.to_owned(), presence });
        self.outputs.push_back(Output::Close { stream });
        self.refused += 1;
        self.event(HubEvent::Refused { endpoint, code });
        self.forget_stream(stream, DetachReason::Refused(code), now);
    }

    fn forget_stream(&mut self, stream: StreamId, reason: DetachReason, now: Instant) {
        let Some(gone) = self.streams.remove(&stream) else { return };
        if let Some(held) = gone.incoming.held() {
            self.held.free(held);
        }
        match gone.state {
            State::Greeting | State::Join { .. } | State::Admin { .. } => {}
            State::DialGreeting(dialling) | State::DialAttaching(dialling) => self.dial_ended(dialling, now),
            State::Node(attachment) => self.detach(attachment, reason, now),
            State::Data(attachment) => self.data_ended(attachment, stream),
            State::Hub(hub) => self.neighbour_ended(hub, stream, now),
            State::HubData(hub) => {
                if let Some(attachment) = self.neighbours.get(&hub).map(|neighbour| neighbour.attachment) {
                    self.data_ended(attachment, stream);
                }
            }
        }
    }

    fn add_attachment(&mut self, owner: Owner, control: StreamId) -> Option<(AttachmentId, flatlan_relay::BindSecret)> {
        let kind = match owner {
            Owner::Hub(_) => AttachmentKind::Hub,
            Owner::Node { .. } => AttachmentKind::Node,
        };
        let quota = match owner {
            Owner::Hub(_) => crate::forward::Quota::default(),
            Owner::Node { .. } => self.config.limits.node,
        };
        let generation = self.random.generation();
        let attachment = Attachment {
            owner,
            control,
            data: None,
            leg: LegState::Down,
            upstream: BTreeSet::new(),
            downstream: BTreeSet::new(),
            requests: 0,
            watches: BTreeSet::new(),
        };
        let attachment = AttachmentId(self.attachments.insert(generation, attachment)?);
        let bind = flatlan_relay::BindSecret::from_bytes(self.random.key());
        self.forward(ForwardCommand::AddAttachment { attachment, kind, bind: bind.clone(), quota });
        Some((attachment, bind))
    }

    /// Frees an attachment with all that hangs on it.
    fn remove_attachment(&mut self, attachment: AttachmentId, now: Instant) {
        self.forward(ForwardCommand::RemoveAttachment { attachment });
        self.release_paths(attachment, now);
        let Some(gone) = self.attachments.remove(attachment.0) else { return };
        if let Some(data) = gone.data {
            self.streams.remove(&data);
            self.outputs.push_back(Output::Close { stream: data });
        }
        if let Owner::Node { network, .. } = gone.owner
            && let Some(network) = self.networks.get_mut(&network)
        {
            for peer in gone.watches {
                network.unwatch(&peer, attachment);
            }
        }
    }

    fn data_ended(&mut self, attachment: AttachmentId, stream: StreamId) {
        let Some(state) = self.attachments.get_mut(attachment.0) else { return };
        if state.data == Some(stream) {
            state.data = None;
            self.forward(ForwardCommand::SetStream { attachment, stream: None });
        }
    }

    /// Makes `stream` the data stream of an attachment, in place of the one before.
    fn set_data(&mut self, attachment: AttachmentId, stream: StreamId) {
        let Some(state) = self.attachments.get_mut(attachment.0) else { return };
        if let Some(before) = state.data.replace(stream) {
            self.streams.remove(&before);
            self.outputs.push_back(Output::Close { stream: before });
        }
        self.forward(ForwardCommand::SetStream { attachment, stream: Some(stream) });
        self.outputs.push_back(Output::Data { stream, attachment });
    }

    fn close_silent(&mut self, now: Instant) {
        let mut silent = Vec::new();
        let mut ping = Vec::new();
        for (stream, state) in &self.streams {
            let quiet = now.saturating_duration_since(state.heard);
            match state.state {
                State::Greeting | State::DialGreeting(_) | State::DialAttaching(_) => {
                    if now.saturating_duration_since(state.opened) >= GREETING_LIFE {
                        silent.push(*stream);
                    }
                }
                State::Join { .. } | State::Admin { .. } if quiet >= VISITOR_LIFE => silent.push(*stream),
                State::Node(_) if quiet >= NODE_LIFE => silent.push(*stream),
                State::Hub(_) if quiet >= HUB_LIFE => silent.push(*stream),
                State::Node(_) if quiet >= NODE_LIFE / 2 => ping.push(*stream),
                State::Node(_)
                | State::Hub(_)
                | State::Join { .. }
                | State::Admin { .. }
                | State::Data(_)
                | State::HubData(_) => {}
            }
        }
        for stream in ping {
            let time = self.clock.micros(now);
            self.send(stream, Control::Ping { time });
        }
        for stream in silent {
            self.refuse(stream, RefusedCode::Silent, "silent for too long", now);
        }
    }

    fn next_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub").field("key", &self.key).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// A stream that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The other end.
    pub remote: Endpoint,
    /// Names the TLS session.
    pub exporter: auth::Exporter,
    /// Who opened it.
    pub origin: StreamOrigin,
}

/// Who opened a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamOrigin {
    /// The other end.
    Accepted,
    /// We did, as [`Output::Dial`] asked.
    Dialled(DialId),
}

/// How a write went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOutcome {
    /// It did not.
    Failed,
    /// It is on disk.
    Stored,
}

/// How much there is of everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HubStats {
    /// Streams, data included.
    pub streams: usize,
    /// Nodes and neighbouring hubs.
    pub attachments: usize,
    /// Labels given.
    pub labels: usize,
    /// Path requests that wait for an answer.
    pub requests: usize,
    /// Neighbouring hubs that are up.
    pub neighbours: usize,
    /// Hubs whose link state is known.
    pub hubs: usize,
    /// Links between two hubs that both state.
    pub links: usize,
    /// Claims of others whose signatures were checked.
    pub claims_checked: u64,
    /// Streams refused.
    pub refused: u64,
}

/// One network, for a status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Which.
    pub network: NetworkId,
    /// Its name and its roster's version, once there is a roster.
    pub roster: Option<(flatlan_types::Name, flatlan_roster::RosterVersion)>,
    /// Members attached to this hub.
    pub attached: usize,
    /// Members attached to any hub.
    pub present: usize,
}

/// One neighbouring hub, for a status page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NeighbourStatus {
    /// Which.
    pub hub: HubKey,
    /// Whether paths may lead over it.
    pub up: bool,
    /// Whether data goes over UDP.
    pub udp: bool,
    /// Measured.
    pub rtt: Option<Duration>,
}

/// Why a network does not begin as it was stored.
#[derive(Debug, thiserror::Error)]
enum RestoreError {
    #[error("the greatest head seen: {0}")]
    Ratchet(#[source] RatchetDecodeError),
    #[error("the roster: {0}")]
    Roster(#[source] VerifyError),
}

impl RestoreError {
    /// Whether it is good, and only this program too old for it.
    fn is_of_later_version(&self) -> bool {
        let error = match self {
            Self::Ratchet(
                RatchetDecodeError::Decode(error)
                | RatchetDecodeError::Head(HeadError::Decode(error))
                | RatchetDecodeError::History(HistoryError::Decode(error)),
            )
            | Self::Roster(
                VerifyError::Claim(ClaimError::Decode(error))
                | VerifyError::Decode(error)
                | VerifyError::Head(HeadError::Decode(error))
                | VerifyError::History(HistoryError::Decode(error))
                | VerifyError::Records(RecordsError::Decode(error)),
            ) => error,
            Self::Ratchet(_) | Self::Roster(_) => return false,
        };
        matches!(error, DecodeError::Critical { .. } | DecodeError::Version { .. })
    }
}

#[derive(Debug)]
struct Stream {
    remote: Endpoint,
    exporter: auth::Exporter,
    state: State,
    opened: Instant,
    heard: Instant,
    incoming: Incoming,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Greeting,
    DialGreeting(Dialling),
    DialAttaching(Dialling),
    Node(AttachmentId),
    Data(AttachmentId),
    Join { network: NetworkId },
    Admin { network: NetworkId },
    Hub(HubKey),
    HubData(HubKey),
}

/// A stream that we open to a hub.
#[derive(Clone, Copy, Debug)]
struct Dialling {
    hub: HubKey,
    role: Role,
}

/// A node or a neighbouring hub.
#[derive(Debug)]
struct Attachment {
    owner: Owner,
    control: StreamId,
    data: Option<StreamId>,
    /// A node's, by UDP; a neighbour has its own.
    leg: LegState,
    /// Our labels that its frames come with.
    upstream: BTreeSet<Label>,
    /// The labels that it gave, and ours that lead to them.
    downstream: BTreeSet<(Label, Label)>,
    /// Requests of its own that wait for an answer.
    requests: usize,
    watches: BTreeSet<MemberId>,
}

impl Attachment {
    /// Whether frames can be sent to it.
    fn is_reached(&self) -> bool {
        self.data.is_some() || self.leg == LegState::Up
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Hub(HubKey),
    Node { network: NetworkId, member: MemberId },
}

#[derive(Debug)]
struct Clock {
    start: Instant,
    unix: UnixTime,
    unix_at: Instant,
}

impl Clock {
    fn unix(&self, now: Instant) -> UnixTime {
        self.unix.after(now.saturating_duration_since(self.unix_at).as_secs())
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Draining {
    No,
    Yes,
}

/// The least time between two turns: what is due together is done together.
const TICK: Duration = Duration::from_millis(50);
/// The same where a neighbour that carries data says nothing.
const DOUBT_TICK: Duration = Duration::from_millis(10);
/// The most.
const IDLE_TICK: Duration = Duration::from_millis(500);
const DIGEST: Duration = Duration::from_secs(5);
/// A stream that has not attached by then is closed.
const GREETING_LIFE: Duration = Duration::from_secs(5);
/// Silence after which a stream is given up.
const NODE_LIFE: Duration = Duration::from_secs(10);
const HUB_LIFE: Duration = Duration::from_secs(3);
const VISITOR_LIFE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_of_a_later_version_is_good_and_a_damaged_one_is_not() {
        let restored = |error| RestoreError::Roster(VerifyError::Claim(error)).is_of_later_version();
        assert!(restored(ClaimError::Decode(DecodeError::Version { got: 2 })));
        assert!(restored(ClaimError::Decode(DecodeError::Critical { key: 9 })));
        assert!(!restored(ClaimError::Decode(DecodeError::Trailing)));
        assert!(!restored(ClaimError::NodeSignature));
    }
}
