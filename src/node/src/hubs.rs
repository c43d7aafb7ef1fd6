//! The hubs: which to be attached to, dialling them, and keeping the attachments alive.
//!
//! A hub is known by its key; a target is a place to dial. Behind a load-balanced name the two differ: a
//! stream lands on whichever hub answers and is an attachment there, and the name is dialled again until
//! as many distinct hubs as wanted have answered.
//!
//! ```text
//!              dial          opened         hello verified        granted
//!   Dialling ---------> .. ---------> Hello ------------> Answer ---------> Open
//!      ^                                |                   |                |
//!      +---- after a back-off ----------+-------------------+----------------+   closed, refused, too slow
//! ```
//!
//! Each open control stream brings one data stream to the same hub. A control stream on which nothing was
//! heard for [`SILENT`] is dead; it is asked before that.
//!
//! What it does not do: read control messages beyond the attachment, or judge the UDP leg (the workers do).

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use flatlan_datapath::{Command, HubUdp};
use flatlan_relay::{
    Attach, Attached, BindKey, ClaimsSummary, Control, Leg, Proof, RefusedCode, Role,
    auth::{AttachScope, Exporter, verify_hello},
};
use flatlan_types::{Endpoint, HostPort, HubKey, HubSlot, Name};

use crate::{
    Transport,
    backoff::Backoff,
    identity::{Identity, NO_HUB},
    output::{Outbox, Output, StreamId},
    rng::{Rng, mix},
    status::{HubState, HubStatus},
};

/// All hubs, targets and streams.
pub(crate) struct Hubs {
    transport: Transport,
    targets: Vec<Target>,
    hubs: Vec<Hub>,
    streams: BTreeMap<StreamId, Stream>,
    next_stream: u64,
    events: VecDeque<HubEvent>,
    origin: Instant,
    /// Hubs of the roster; `None` before there is one, when any hub of the targets may answer.
    listed: Option<usize>,
}

/// What the roster says of a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedHub {
    pub(crate) key: HubKey,
    pub(crate) name: Name,
    pub(crate) tls: HostPort,
    pub(crate) udp: Option<HostPort>,
    pub(crate) weight: u16,
}

/// What every method needs beside its subject.
pub(crate) struct Context<'a> {
    pub(crate) me: &'a mut Identity,
    pub(crate) rng: &'a mut Rng,
    pub(crate) out: &'a mut Outbox,
    pub(crate) now: Instant,
}

/// What the rest of the machine must know.
#[derive(Debug)]
pub(crate) enum HubEvent {
    /// A control stream is granted.
    Attached { hub: HubSlot, head: Option<Vec<u8>>, claims: ClaimsSummary },
    /// It is gone, and with it all that the hub knew of this node.
    Detached { hub: HubSlot },
    /// A message on it.
    Message { hub: HubSlot, message: Control },
    /// A hub did not grant it.
    Refused { code: RefusedCode, presence: Option<Vec<u8>> },
}

struct Target {
    place: HostPort,
    key: Option<HubKey>,
    /// Greater is better.
    rank: f64,
    dialling: Option<StreamId>,
    backoff: Backoff,
    next: Instant,
    /// The operator was told that it cannot be reached.
    told: bool,
}

struct Hub {
    slot: HubSlot,
    key: HubKey,
    name: Option<Name>,
    /// In the roster, or not yet known not to be.
    listed: bool,
    udp: Option<HostPort>,
    rank: f64,
    control: Option<Attachment>,
    data: DataStream,
    /// Lost while attached, and the operator was told.
    lost: bool,
}

struct Attachment {
    stream: StreamId,
    bind: Option<BindKey>,
    /// Where the hub may take UDP, best first, each once.
    places: Vec<Endpoint>,
    names: Vec<HostPort>,
    place: usize,
    place_until: Option<Instant>,
    leg: Option<UdpLeg>,
    since: Instant,
    heard: Instant,
    asked: Option<Instant>,
    /// Where this attachment was dialled, without the port.
    remote: Option<IpAddr>,
    rtt: Option<Duration>,
    draining: bool,
}

struct UdpLeg {
    reflexive: Endpoint,
    rtt: Duration,
}

#[derive(Default)]
struct DataStream {
    dialling: Option<StreamId>,
    open: Option<StreamId>,
    backoff: Backoff,
    next: Option<Instant>,
}

struct Stream {
    purpose: Purpose,
    place: HostPort,
    phase: Phase,
    deadline: Option<Instant>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Control,
    Data(HubSlot),
}

enum Phase {
    Dialling,
    Hello { exporter: Exporter, remote: Option<Endpoint> },
    Answer { key: HubKey, remote: Option<Endpoint> },
    Open(HubSlot),
}

impl Hubs {
    pub(crate) fn new(transport: Transport, bootstrap: &[HostPort], now: Instant) -> Self {
        let mut targets: Vec<Target> = Vec::new();
        for place in bootstrap {
            if !targets.iter().any(|target| target.place == *place) {
                targets.push(Target::new(place.clone(), None, 0.0, now));
            }
        }
        Self {
            transport,
            targets,
            hubs: Vec::new(),
            streams: BTreeMap::new(),
            next_stream: 0,
            events: VecDeque::new(),
            origin: now,
            listed: None,
        }
    }

    /// The roster's hubs, replacing what was known. Hubs that are not among them are left.
    pub(crate) fn set_listed(&mut self, listed: &[ListedHub], ctx: &mut Context<'_>) {
        self.listed = Some(listed.len());
        let mut targets = Vec::with_capacity(listed.len());
        for entry in listed {
            let rank = rank(ctx.me, &entry.key, entry.weight);
            let old =
                self.targets.iter().position(|t| t.place == entry.tls && t.key.is_none_or(|key| key == entry.key));
            let mut target = match old {
                Some(place) => self.targets.swap_remove(place),
                None => Target::new(entry.tls.clone(), None, rank, ctx.now),
            };
            target.key = Some(entry.key);
            target.rank = rank;
            targets.push(target);
        }
        targets.sort_by(|a, b| b.rank.total_cmp(&a.rank));
        for gone in std::mem::replace(&mut self.targets, targets) {
            if let Some(stream) = gone.dialling {
                self.drop_stream(stream, ctx.out);
            }
        }
        for hub in &mut self.hubs {
            hub.listed = listed.iter().any(|entry| entry.key == hub.key);
        }
        for entry in listed {
            if let Some(hub) = self.ensure(entry.key) {
                hub.name = Some(entry.name.clone());
                hub.udp = entry.udp.clone();
                hub.rank = rank(ctx.me, &entry.key, entry.weight);
            }
        }
        let unlisted: Vec<HubSlot> =
            self.hubs.iter().filter(|hub| !hub.listed && hub.control.is_some()).map(|hub| hub.slot).collect();
        for slot in unlisted {
            tracing::warn!(hub = %self.label(slot), "hub is not in the roster: left");
            self.detach(slot, ctx);
        }
    }

    /// A dialled stream is up; the hub speaks first.
    pub(crate) fn handle_opened(&mut self, id: StreamId, exporter: Exporter, remote: Option<Endpoint>, now: Instant) {
        if let Some(stream) = self.streams.get_mut(&id)
            && matches!(stream.phase, Phase::Dialling)
        {
            stream.phase = Phase::Hello { exporter, remote };
            stream.deadline = Some(now + ANSWER);
        }
    }

    /// A message on a stream.
    pub(crate) fn handle_message(&mut self, id: StreamId, bytes: &[u8], ctx: &mut Context<'_>) {
        let Some(stream) = self.streams.get(&id) else { return };
        let message = match Control::decode(bytes) {
            Ok(Some(message)) => message,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(reason = %error, "a hub's message is refused");
                self.fail(id, ctx);
                return;
            }
        };
        match &stream.phase {
            Phase::Dialling => self.fail(id, ctx),
            Phase::Hello { exporter, remote } => {
                let (exporter, remote) = (*exporter, *remote);
                self.on_hello(id, exporter, remote, &message, ctx);
            }
            Phase::Answer { key, remote } => {
                let (key, remote) = (*key, *remote);
                self.on_answer(id, key, remote, message, ctx);
            }
            Phase::Open(slot) => {
                let slot = *slot;
                self.on_message(slot, id, message, ctx);
            }
        }
    }

    /// A stream ended, or could not be dialled.
    pub(crate) fn handle_closed(&mut self, id: StreamId, ctx: &mut Context<'_>) {
        let Some(stream) = self.streams.remove(&id) else { return };
        self.on_gone(id, &stream, ctx);
    }

    /// The workers' word on a UDP leg.
    pub(crate) fn handle_leg_up(
        &mut self,
        slot: HubSlot,
        reflexive: Endpoint,
        rtt: Duration,
        out: &mut Outbox,
    ) -> bool {
        let Some(attachment) = self.attachment_mut(slot) else { return false };
        attachment.place_until = None;
        let was = attachment.leg.replace(UdpLeg { reflexive, rtt });
        if was.is_none() {
            out.send(attachment.stream, &Control::Downlink { leg: Leg::Udp });
        }
        was.is_none_or(|leg| leg.reflexive != reflexive)
    }

    /// Nothing comes back from a hub's UDP port: the hub is to use the stream, and another of the hub's
    /// addresses is tried where it has one.
    pub(crate) fn handle_leg_down(&mut self, slot: HubSlot, ctx: &mut Context<'_>) {
        let Some(attachment) = self.attachment_mut(slot) else { return };
        attachment.leg = None;
        ctx.out.send(attachment.stream, &Control::Downlink { leg: Leg::Tls });
        self.next_place(slot, ctx);
    }

    /// The addresses of a name that was asked for.
    pub(crate) fn handle_resolved(&mut self, place: &HostPort, endpoints: &[Endpoint], ctx: &mut Context<'_>) {
        let slots: Vec<HubSlot> = self.hubs.iter().map(|hub| hub.slot).collect();
        for slot in slots {
            let Some(attachment) = self.attachment_mut(slot) else { continue };
            if !attachment.names.contains(place) {
                continue;
            }
            let had = attachment.places.get(attachment.place).copied();
            for endpoint in endpoints {
                attachment.add_place(*endpoint);
            }
            if had.is_none() {
                self.tell_workers(slot, ctx);
            }
        }
    }

    /// The underlay changed: a dead stream is to be found now, and whatever waits is dialled now.
    pub(crate) fn network_changed(&mut self, ctx: &mut Context<'_>) {
        for target in &mut self.targets {
            if target.dialling.is_none() {
                target.backoff.reset();
                target.next = ctx.now;
            }
        }
        let origin = self.origin;
        for hub in &mut self.hubs {
            hub.data.next = hub.data.next.map(|_| ctx.now);
            if let Some(attachment) = &mut hub.control {
                // as if silent for so long that the answer must come within HURRY
                attachment.heard = ctx.now.checked_sub(SILENT.saturating_sub(HURRY)).unwrap_or(ctx.now);
                attachment.ask(origin, ctx.now, ctx.out);
            }
        }
    }

    /// Leaves every hub: the node stops, or starts over under another epoch.
    pub(crate) fn detach_all(&mut self, ctx: &mut Context<'_>) {
        let slots: Vec<HubSlot> = self.attached().collect();
        for slot in slots {
            self.detach(slot, ctx);
        }
        for (id, stream) in std::mem::take(&mut self.streams) {
            ctx.out.push(Output::Close { stream: id });
            self.on_gone(id, &stream, ctx);
        }
    }

    /// No dialling before this.
    pub(crate) fn hold_until(&mut self, at: Instant) {
        for target in &mut self.targets {
            target.next = target.next.max(at);
        }
    }

    /// Dialling anew has a reason that is no failure: at once.
    pub(crate) fn dial_now(&mut self, now: Instant) {
        for target in &mut self.targets {
            target.backoff.reset();
            target.next = now;
        }
    }

    /// Timers: what is too slow fails, what is silent is asked, what is wanted is dialled.
    pub(crate) fn handle_timeout(&mut self, ctx: &mut Context<'_>) {
        let late: Vec<StreamId> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.deadline.is_some_and(|at| at <= ctx.now))
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.fail(id, ctx);
        }
        let origin = self.origin;
        let mut silent = Vec::new();
        let mut rotate = Vec::new();
        for hub in &mut self.hubs {
            let Some(attachment) = &mut hub.control else { continue };
            if ctx.now.duration_since(attachment.heard) >= SILENT {
                silent.push(hub.slot);
            } else if attachment.ask_at() <= ctx.now {
                attachment.ask(origin, ctx.now, ctx.out);
            }
            if attachment.place_until.is_some_and(|at| at <= ctx.now) {
                rotate.push(hub.slot);
            }
        }
        for slot in rotate {
            self.next_place(slot, ctx);
        }
        for slot in silent {
            tracing::debug!(hub = %self.label(slot), "hub is silent");
            self.detach(slot, ctx);
        }
        self.dial(ctx);
    }

    /// When [`Hubs::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let streams = self.streams.values().filter_map(|stream| stream.deadline);
        let attachments = self.hubs.iter().filter_map(|hub| hub.control.as_ref()).flat_map(|attachment| {
            [Some(attachment.ask_at()), Some(attachment.heard + SILENT), attachment.place_until].into_iter().flatten()
        });
        let data = self.hubs.iter().filter(|hub| self.wants_data(hub)).filter_map(|hub| hub.data.next);
        let targets = self.due_targets().into_iter().filter_map(|n| self.targets.get(n)).map(|target| target.next);
        streams.chain(attachments).chain(data).chain(targets).min()
    }

    pub(crate) fn poll_event(&mut self) -> Option<HubEvent> {
        self.events.pop_front()
    }

    /// Sends a message to a hub that this node is attached to.
    pub(crate) fn send(&self, slot: HubSlot, message: &Control, out: &mut Outbox) {
        if let Some(attachment) = self.attachment(slot) {
            out.send(attachment.stream, message);
        }
    }

    /// The hubs attached to, the preferred first.
    pub(crate) fn attached(&self) -> impl Iterator<Item = HubSlot> {
        let mut hubs: Vec<&Hub> = self.hubs.iter().filter(|hub| hub.control.is_some()).collect();
        let draining = |hub: &Hub| hub.control.as_ref().is_some_and(|attachment| attachment.draining);
        hubs.sort_by(|a, b| draining(a).cmp(&draining(b)).then(b.rank.total_cmp(&a.rank)));
        hubs.into_iter().map(|hub| hub.slot)
    }

    pub(crate) fn attached_count(&self) -> usize {
        self.hubs.iter().filter(|hub| hub.control.is_some()).count()
    }

    /// How many hubs to be attached to.
    pub(crate) fn wanted(&self) -> usize {
        self.listed.unwrap_or(self.targets.len()).min(MAX_ATTACHED)
    }

    pub(crate) fn is_attached(&self, slot: HubSlot) -> bool {
        self.attachment(slot).is_some()
    }

    pub(crate) fn key(&self, slot: HubSlot) -> Option<HubKey> {
        Some(self.hub(slot)?.key)
    }

    /// Where the hubs see this node, each place once.
    pub(crate) fn reflexive(&self) -> Vec<Endpoint> {
        let mut seen = Vec::new();
        for leg in self.hubs.iter().filter_map(|hub| hub.control.as_ref()?.leg.as_ref()) {
            if !seen.contains(&leg.reflexive) {
                seen.push(leg.reflexive);
            }
        }
        seen
    }

    /// Whether a hub takes UDP or streams there.
    pub(crate) fn is_place(&self, endpoint: Endpoint) -> bool {
        let of_attachment = |attachment: &Attachment| attachment.places.contains(&endpoint);
        let literal = |place: &HostPort| place.literal() == Some(endpoint);
        self.targets.iter().any(|target| literal(&target.place))
            || self
                .hubs
                .iter()
                .any(|hub| hub.udp.as_ref().is_some_and(literal) || hub.control.as_ref().is_some_and(of_attachment))
    }

    pub(crate) fn status(&self) -> Vec<HubStatus> {
        let status = |hub: &Hub| {
            let attachment = hub.control.as_ref();
            let dialled = self.targets.iter().any(|target| target.key == Some(hub.key) && target.dialling.is_some());
            let leg = attachment.and_then(|attachment| attachment.leg.as_ref());
            HubStatus {
                slot: hub.slot,
                name: hub.name.clone(),
                key: hub.key,
                state: match attachment {
                    Some(attachment) if attachment.draining => HubState::Draining,
                    Some(_) => HubState::Attached,
                    None if dialled || hub.lost => HubState::Dialling,
                    None => HubState::Unused,
                },
                transport: match (attachment, leg, hub.data.open) {
                    (None, _, _) | (Some(_), None, None) => None,
                    (Some(_), Some(_), _) => Some(flatlan_path::Leg::Udp),
                    (Some(_), None, Some(_)) => Some(flatlan_path::Leg::Tls),
                },
                rtt: leg.map(|leg| leg.rtt).or(attachment.and_then(|attachment| attachment.rtt)),
                reflexive: leg.map(|leg| leg.reflexive),
                since: attachment.map(|attachment| attachment.since),
            }
        };
        self.hubs.iter().filter(|hub| hub.listed || hub.control.is_some()).map(status).collect()
    }

    /// The hub's name, or its key where it has none: for logs.
    pub(crate) fn label(&self, slot: HubSlot) -> String {
        let hub = self.hub(slot);
        let named = hub.and_then(|hub| hub.name.as_ref()).map(|name| name.as_str().to_owned());
        named.or_else(|| hub.map(|hub| hub.key.to_string())).unwrap_or_default()
    }

    // ---- private, in call order

    fn on_hello(
        &mut self,
        id: StreamId,
        exporter: Exporter,
        remote: Option<Endpoint>,
        message: &Control,
        ctx: &mut Context<'_>,
    ) {
        let Some(stream) = self.streams.get(&id) else { return };
        let Control::HubHello { key, signature, .. } = message else { return self.fail(id, ctx) };
        let place = stream.place.clone();
        if verify_hello(key, &exporter, signature).is_err() || *key == NO_HUB {
            tracing::warn!(endpoint = %place, "whoever answers there has not the hub's key");
            return self.fail(id, ctx);
        }
        let known = self.hubs.iter().find(|hub| hub.key == *key);
        let wanted = match stream.purpose {
            Purpose::Control => {
                let member = self.listed.is_none() || known.is_some_and(|hub| hub.listed);
                if !member {
                    tracing::warn!(endpoint = %place, hub = %key, "the hub there is not in the roster");
                }
                member && known.is_none_or(|hub| hub.control.is_none())
            }
            Purpose::Data(slot) => self.key(slot) == Some(*key),
        };
        if !wanted {
            return self.fail(id, ctx);
        }
        let (role, presence) = match stream.purpose {
            Purpose::Control => (Role::Control, ctx.me.attach_to(*key).encode()),
            Purpose::Data(_) => (Role::Data, Vec::new()),
        };
        let network = ctx.me.network;
        let scope = AttachScope { exporter: &exporter, hub: key, network: &network, role };
        let signature = scope.sign_node(&ctx.me.secret);
        let proof = Proof::Node { id: ctx.me.keys.id, presence, signature };
        let attach = Attach { version: flatlan_relay::VERSION, network, role, proof };
        ctx.out.send(id, &Control::Attach(attach));
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.phase = Phase::Answer { key: *key, remote };
            stream.deadline = Some(ctx.now + ANSWER);
        }
    }

    fn on_answer(
        &mut self,
        id: StreamId,
        key: HubKey,
        remote: Option<Endpoint>,
        message: Control,
        ctx: &mut Context<'_>,
    ) {
        let Some(stream) = self.streams.get(&id) else { return };
        let purpose = stream.purpose;
        #[expect(clippy::wildcard_enum_match_arm, reason = "everything but an answer is out of order here")]
        match message {
            Control::Attached(attached) => match purpose {
                Purpose::Control => self.on_attached(id, key, remote, attached, ctx),
                Purpose::Data(slot) => self.on_data(id, slot, ctx),
            },
            Control::Refused { code, text, presence } => {
                tracing::debug!(hub = %key, reason = %text, "a hub refuses");
                self.fail(id, ctx);
                if purpose == Purpose::Control {
                    self.events.push_back(HubEvent::Refused { code, presence });
                }
            }
            _ => self.fail(id, ctx),
        }
    }

    fn on_attached(
        &mut self,
        id: StreamId,
        key: HubKey,
        remote: Option<Endpoint>,
        attached: Attached,
        ctx: &mut Context<'_>,
    ) {
        let Some(hub) = self.ensure(key) else { return self.fail(id, ctx) };
        if hub.control.is_some() {
            return self.fail(id, ctx);
        }
        let slot = hub.slot;
        let mut attachment = Attachment {
            stream: id,
            bind: attached.bind,
            places: Vec::new(),
            names: Vec::new(),
            place: 0,
            place_until: None,
            leg: None,
            since: ctx.now,
            heard: ctx.now,
            asked: None,
            remote: remote.map(|remote| remote.socket_addr().ip()),
            rtt: None,
            draining: false,
        };
        for place in hub.udp.iter().chain(attached.udp.iter().take(MAX_PLACES)) {
            attachment.add_name(place);
        }
        let names = attachment.names.clone();
        let lost = std::mem::take(&mut hub.lost);
        hub.control = Some(attachment);
        hub.data = DataStream { next: Some(ctx.now), ..DataStream::default() };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.phase = Phase::Open(slot);
            stream.deadline = None;
        }
        let mut told = false;
        for target in &mut self.targets {
            if target.dialling == Some(id) || target.key == Some(key) {
                target.backoff.reset();
                told |= std::mem::take(&mut target.told);
                target.next = ctx.now;
            }
            if target.dialling == Some(id) {
                target.dialling = None;
            }
        }
        if lost || told {
            tracing::info!(hub = %self.label(slot), "hub is back");
        } else {
            tracing::debug!(hub = %self.label(slot), "attached");
        }
        for place in names {
            ctx.out.push(Output::Resolve { place });
        }
        self.tell_workers(slot, ctx);
        self.events.push_back(HubEvent::Attached { hub: slot, head: attached.head, claims: attached.claims });
        self.dial(ctx);
    }

    fn on_data(&mut self, id: StreamId, slot: HubSlot, ctx: &mut Context<'_>) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.phase = Phase::Open(slot);
            stream.deadline = None;
        }
        let Some(hub) = self.hub_mut(slot) else { return };
        hub.data = DataStream { open: Some(id), ..DataStream::default() };
        ctx.out.push(Output::BindData { stream: id, hub: slot });
        self.tell_workers(slot, ctx);
    }

    fn on_message(&mut self, slot: HubSlot, id: StreamId, message: Control, ctx: &mut Context<'_>) {
        let origin = self.origin;
        let Some(attachment) = self.attachment_mut(slot).filter(|attachment| attachment.stream == id) else { return };
        attachment.heard = ctx.now;
        #[expect(clippy::wildcard_enum_match_arm, reason = "the rest is not about the attachment")]
        match message {
            Control::Ping { time } => ctx.out.send(id, &Control::Pong { time }),
            Control::Pong { time } => {
                let sent = origin.checked_add(Duration::from_micros(time));
                attachment.asked = None;
                attachment.rtt = sent.and_then(|sent| ctx.now.checked_duration_since(sent)).or(attachment.rtt);
            }
            Control::Draining => {
                attachment.draining = true;
                tracing::info!(hub = %self.label(slot), "hub is about to stop");
            }
            Control::Refused { code, text, presence } => {
                tracing::debug!(hub = %self.label(slot), reason = %text, "a hub refuses");
                if closes(code) {
                    self.detach(slot, ctx);
                    self.events.push_back(HubEvent::Refused { code, presence });
                }
            }
            message => self.events.push_back(HubEvent::Message { hub: slot, message }),
        }
    }

    /// Closes a stream that is of no use, as if it had ended by itself.
    fn fail(&mut self, id: StreamId, ctx: &mut Context<'_>) {
        let Some(stream) = self.streams.remove(&id) else { return };
        ctx.out.push(Output::Close { stream: id });
        self.on_gone(id, &stream, ctx);
    }

    fn on_gone(&mut self, id: StreamId, stream: &Stream, ctx: &mut Context<'_>) {
        match (stream.purpose, &stream.phase) {
            (Purpose::Control, Phase::Open(slot)) => self.detach(*slot, ctx),
            (Purpose::Control, Phase::Dialling | Phase::Hello { .. } | Phase::Answer { .. }) => {
                let Some(target) = self.targets.iter_mut().find(|target| target.dialling == Some(id)) else { return };
                target.dialling = None;
                target.next = target.backoff.failed(ctx.now, ctx.rng);
                if target.backoff.failures() == TELL_AFTER && !target.told {
                    target.told = true;
                    let lost = self.hubs.iter().any(|hub| Some(hub.key) == target.key && hub.lost);
                    if !lost {
                        tracing::warn!(endpoint = %target.place, "hub cannot be reached");
                    }
                }
            }
            (Purpose::Data(slot), _) => {
                let Some(hub) = self.hub_mut(slot) else { return };
                let was_open = hub.data.open == Some(id);
                if was_open || hub.data.dialling == Some(id) {
                    let mut backoff = hub.data.backoff;
                    let next = Some(backoff.failed(ctx.now, ctx.rng));
                    hub.data = DataStream { backoff, next, ..DataStream::default() };
                }
                if was_open {
                    self.tell_workers(slot, ctx);
                }
            }
        }
    }

    /// Ends an attachment, both its streams included.
    fn detach(&mut self, slot: HubSlot, ctx: &mut Context<'_>) {
        let label = self.label(slot);
        let Some(hub) = self.hub_mut(slot) else { return };
        let Some(attachment) = hub.control.take() else { return };
        let data = std::mem::take(&mut hub.data);
        let (key, listed) = (hub.key, hub.listed);
        hub.lost = listed;
        for id in [Some(attachment.stream), data.dialling, data.open].into_iter().flatten() {
            self.drop_stream(id, ctx.out);
        }
        if listed {
            tracing::warn!(hub = %label, "hub is lost");
        }
        for target in self.targets.iter_mut().filter(|target| target.key.is_none_or(|of| of == key)) {
            if target.dialling.is_none() {
                target.next = target.backoff.failed(ctx.now, ctx.rng);
            }
        }
        ctx.out.worker(Command::RemoveHub { hub: slot });
        self.events.push_back(HubEvent::Detached { hub: slot });
    }

    fn drop_stream(&mut self, id: StreamId, out: &mut Outbox) {
        if self.streams.remove(&id).is_some() {
            out.push(Output::Close { stream: id });
        }
    }

    /// Tells the workers how a hub can be reached at this moment.
    fn tell_workers(&mut self, slot: HubSlot, ctx: &mut Context<'_>) {
        let transport = self.transport;
        let Some(hub) = self.hub_mut(slot) else { return };
        let stream = hub.data.open.is_some();
        let Some(attachment) = &mut hub.control else { return };
        let udp = match (transport, &attachment.bind, attachment.places.get(attachment.place)) {
            (Transport::Auto | Transport::Udp, Some(bind), Some(endpoint)) => {
                Some(HubUdp { endpoint: *endpoint, bind: bind.clone() })
            }
            (Transport::Auto | Transport::Udp | Transport::Tcp, _, _) => None,
        };
        if attachment.leg.is_none() && udp.is_some() && attachment.places.len() > 1 {
            attachment.place_until.get_or_insert(ctx.now + TRY_PLACE);
        }
        ctx.out.worker(Command::SetHub { hub: slot, udp, stream });
    }

    /// The hub does not answer at this address: the next one; its names are resolved again after the last.
    fn next_place(&mut self, slot: HubSlot, ctx: &mut Context<'_>) {
        let Some(attachment) = self.attachment_mut(slot) else { return };
        attachment.place_until = None;
        attachment.place += 1;
        if attachment.place >= attachment.places.len() {
            attachment.place = 0;
            for place in attachment.names.clone() {
                ctx.out.push(Output::Resolve { place });
            }
        }
        if attachment.places.len() > 1 {
            self.tell_workers(slot, ctx);
        }
    }

    /// Dials what is wanted and due.
    fn dial(&mut self, ctx: &mut Context<'_>) {
        for place in self.due_targets() {
            let Some(target) = self.targets.get_mut(place) else { continue };
            if target.next > ctx.now {
                continue;
            }
            self.next_stream += 1;
            let id = StreamId(self.next_stream);
            target.dialling = Some(id);
            let (place, expected) = (target.place.clone(), target.key);
            self.open(id, Purpose::Control, place, expected, ctx);
        }
        let due: Vec<(HubSlot, HubKey)> = self
            .hubs
            .iter()
            .filter(|hub| self.wants_data(hub) && hub.data.next.is_some_and(|at| at <= ctx.now))
            .map(|hub| (hub.slot, hub.key))
            .collect();
        for (slot, key) in due {
            let control = self.attachment(slot).map(|attachment| attachment.stream);
            let place = control.and_then(|id| Some(self.streams.get(&id)?.place.clone()));
            let Some(place) = place else { continue };
            self.next_stream += 1;
            let id = StreamId(self.next_stream);
            if let Some(hub) = self.hub_mut(slot) {
                hub.data.dialling = Some(id);
                hub.data.next = None;
            }
            self.open(id, Purpose::Data(slot), place, Some(key), ctx);
        }
    }

    fn open(
        &mut self,
        id: StreamId,
        purpose: Purpose,
        place: HostPort,
        expected: Option<HubKey>,
        ctx: &mut Context<'_>,
    ) {
        let role = match purpose {
            Purpose::Control => Role::Control,
            Purpose::Data(_) => Role::Data,
        };
        ctx.out.push(Output::Dial { stream: id, target: place.clone(), role, hub: expected });
        let deadline = Some(ctx.now + DIAL);
        self.streams.insert(id, Stream { purpose, place, phase: Phase::Dialling, deadline });
    }

    /// The targets to dial when their time comes: the best that are not attached. One that fails keeps
    /// its turn and does not use it up, so that the next best steps in for it.
    fn due_targets(&self) -> Vec<usize> {
        let attached = |key: Option<HubKey>| {
            key.is_some_and(|key| {
                let stays = |hub: &Hub| hub.control.as_ref().is_some_and(|attachment| !attachment.draining);
                self.hubs.iter().any(|hub| hub.key == key && stays(hub))
            })
        };
        let by_place = |target: &Target| {
            target.key.is_none() && {
                let open = |stream: &Stream| stream.place == target.place && matches!(stream.phase, Phase::Open(_));
                self.streams.values().any(open)
            }
        };
        let mut left = self.wanted();
        let mut due = Vec::new();
        for (place, target) in self.targets.iter().enumerate() {
            if left == 0 {
                break;
            }
            if attached(target.key) || by_place(target) {
                left -= 1;
                continue;
            }
            if target.backoff.failures() < STEP_IN {
                left -= 1;
            }
            // a hub that said it is about to stop is dialled again when it has gone
            let held = self.hubs.iter().any(|hub| Some(hub.key) == target.key && hub.control.is_some());
            if target.dialling.is_none() && !held {
                due.push(place);
            }
        }
        due
    }

    fn wants_data(&self, hub: &Hub) -> bool {
        let allowed = match self.transport {
            Transport::Auto | Transport::Tcp => true,
            Transport::Udp => false,
        };
        allowed && hub.control.is_some() && hub.data.open.is_none() && hub.data.dialling.is_none()
    }

    /// The hub with this key, given a slot now if it has none. `None` where no slot is left.
    fn ensure(&mut self, key: HubKey) -> Option<&mut Hub> {
        let place = match self.hubs.iter().position(|hub| hub.key == key) {
            Some(place) => place,
            None => {
                let slot = HubSlot(u8::try_from(self.hubs.len()).ok()?);
                self.hubs.push(Hub {
                    slot,
                    key,
                    name: None,
                    listed: true,
                    udp: None,
                    rank: 0.0,
                    control: None,
                    data: DataStream::default(),
                    lost: false,
                });
                self.hubs.len() - 1
            }
        };
        self.hubs.get_mut(place)
    }

    fn hub(&self, slot: HubSlot) -> Option<&Hub> {
        self.hubs.get(usize::from(slot.0))
    }

    fn hub_mut(&mut self, slot: HubSlot) -> Option<&mut Hub> {
        self.hubs.get_mut(usize::from(slot.0))
    }

    fn attachment(&self, slot: HubSlot) -> Option<&Attachment> {
        self.hub(slot)?.control.as_ref()
    }

    fn attachment_mut(&mut self, slot: HubSlot) -> Option<&mut Attachment> {
        self.hub_mut(slot)?.control.as_mut()
    }
}

impl Target {
    fn new(place: HostPort, key: Option<HubKey>, rank: f64, now: Instant) -> Self {
        Self { place, key, rank, dialling: None, backoff: Backoff::default(), next: now, told: false }
    }
}

impl Attachment {
    /// A place where the hub says that it takes UDP.
    fn add_name(&mut self, place: &HostPort) {
        match place.literal() {
            Some(endpoint) if endpoint.socket_addr().ip().is_unspecified() => {
                if let Some(ip) = self.remote {
                    self.add_place(Endpoint::new((ip, place.port()).into()));
                }
            }
            Some(endpoint) => self.add_place(endpoint),
            None if self.names.contains(place) => {}
            None => self.names.push(place.clone()),
        }
    }

    fn add_place(&mut self, endpoint: Endpoint) {
        if self.places.contains(&endpoint) || self.places.len() >= MAX_PLACES {
            return;
        }
        // the address that the stream reached is the likeliest to work
        if self.leg.is_none() && Some(endpoint.socket_addr().ip()) == self.remote {
            self.places.insert(0, endpoint);
        } else {
            self.places.push(endpoint);
        }
    }

    fn ask(&mut self, origin: Instant, now: Instant, out: &mut Outbox) {
        self.asked = Some(now);
        let time = now.duration_since(origin).as_micros().try_into().unwrap_or_default();
        out.send(self.stream, &Control::Ping { time });
    }

    fn ask_at(&self) -> Instant {
        self.asked.unwrap_or(self.heard).max(self.heard) + QUIET
    }
}

/// Where a hub stands in this node's order: rendezvous hashing, so that nodes spread over the hubs by
/// their weights and a hub that comes or goes moves nobody else.
fn rank(me: &Identity, hub: &HubKey, weight: u16) -> f64 {
    let word = |bytes: &[u8; 32]| bytes.first_chunk().map_or(0, |chunk| u64::from_be_bytes(*chunk));
    let hash = mix(word(me.keys.id.as_bytes()) ^ mix(word(hub.as_bytes())));
    let unit = ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
    -f64::from(weight.max(1)) / unit.ln()
}

/// Whether a hub closes the stream with such a refusal.
fn closes(code: RefusedCode) -> bool {
    matches!(
        code,
        RefusedCode::NotMember
            | RefusedCode::StaleEpoch
            | RefusedCode::Replaced
            | RefusedCode::Draining
            | RefusedCode::Silent
            | RefusedCode::BadProof
            | RefusedCode::NetworkRefused
    )
}

/// How many hubs to be attached to, where there are so many.
const MAX_ATTACHED: usize = 3;
/// UDP addresses of one hub that are tried.
const MAX_PLACES: usize = 8;
/// A failing target no longer keeps the next best away after so many failures.
const STEP_IN: u32 = 2;
/// The operator hears of a hub that never answered after so many failures.
const TELL_AFTER: u32 = 3;
/// A driver that says nothing of a dial for so long has lost it.
const DIAL: Duration = Duration::from_secs(8);
/// The hub's hello, and its answer, come within this.
const ANSWER: Duration = Duration::from_secs(3);
/// A control stream is asked when nothing was heard for this long.
pub(crate) const QUIET: Duration = Duration::from_secs(1);
/// And dead after this.
pub(crate) const SILENT: Duration = Duration::from_secs(3);
/// After a change of the underlay, the answer must come within this.
const HURRY: Duration = Duration::from_secs(1);
/// A UDP address of a hub with several is tried for so long.
const TRY_PLACE: Duration = Duration::from_secs(3);
