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
//! heard for [`attachment::SILENT`] is dead; it is asked before that, and has longer while the hub answers datagrams.
//!
//! Which hubs: the nearest, and among those that are equally near by the roster's weights ([`distance`]). One that is
//! clearly nearer than one in use is attached beside it, and only then is the other left. Where a peer is at none of
//! these hubs, one of its own is attached to as well.
//!
//! What it does not do: read control messages beyond the attachment, or judge the UDP leg (the workers do).

mod attach;
mod attachment;
mod dial;
mod distance;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use flatlan_datapath::Command;
use flatlan_relay::{ClaimsSummary, Control, Leg, RefusedCode, auth::Exporter};
use flatlan_types::{Endpoint, HostPort, HubKey, HubSlot, Name};

use self::{
    attach::ANSWER,
    attachment::{Attachment, UdpLeg},
    dial::{MAX_ATTACHED, SURPLUS, Target, rank},
    distance::Distance,
};
use crate::{
    Transport,
    backoff::Backoff,
    fetch::HubFetch,
    identity::Identity,
    output::{Outbox, Output, StreamId},
    rng::Rng,
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
    /// Hubs of the roster; `None` before there is one, when any hub of the targets may answer.
    listed: Option<usize>,
    /// Since when there are more attachments than wanted.
    surplus: Option<Instant>,
    /// Hubs of peers with which this node has none in common, and when each was last needed.
    far: BTreeMap<HubKey, Instant>,
    /// The only hubs in common with some peer, when a hub was last to be left.
    sole: BTreeSet<HubKey>,
    /// When a hub was dialled last because it is nearer than another.
    upgraded: Option<Instant>,
    /// When a hub was measured last that is not attached.
    measured_last: Option<Instant>,
    reader: Reader,
}

/// What the roster says of a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListedHub {
    pub(crate) key: HubKey,
    pub(crate) name: Name,
    pub(crate) tls: HostPort,
    pub(crate) udp: Option<HostPort>,
    pub(crate) region: Option<Name>,
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
    /// It is left soon.
    Leaving { hub: HubSlot },
    /// It is gone, and with it all that the hub knew of this node.
    Detached { hub: HubSlot },
    /// A message on it.
    Message { hub: HubSlot, message: Control },
    /// A hub did not grant it.
    Refused { code: RefusedCode, presence: Option<Vec<u8>> },
    /// What a hub that does not grant it gives to everybody who knows the network: its roster.
    Read { bundle: Vec<u8>, stream: StreamId },
}

struct Hub {
    slot: HubSlot,
    key: HubKey,
    name: Option<Name>,
    /// In the roster, or not yet known not to be.
    listed: bool,
    udp: Option<HostPort>,
    rank: f64,
    distance: Distance,
    control: Option<Attachment>,
    data: DataStream,
    /// Lost while attached, and the operator was told.
    lost: bool,
}

/// Reading the roster as a stranger may: so a node that was removed learns it from the admin's signature,
/// not from a hub's word. Each hub is read apart from the others: none can hide what another gives.
#[derive(Default)]
struct Reader {
    fetches: BTreeMap<StreamId, HubFetch>,
    last: BTreeMap<HostPort, Instant>,
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
    Measure(HubSlot),
    Read,
}

enum Phase {
    Dialling,
    Hello { exporter: Exporter, remote: Option<Endpoint> },
    Answer { key: HubKey, remote: Option<Endpoint> },
    Measuring { left: u8, asked: Instant, ping: u64, least: Option<Duration> },
    Open(HubSlot),
    Reading,
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
            listed: None,
            surplus: None,
            far: BTreeMap::new(),
            sole: BTreeSet::new(),
            upgraded: None,
            measured_last: None,
            reader: Reader::default(),
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
                hub.distance.region.clone_from(&entry.region);
            }
        }
        self.find_tiers();
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
            Phase::Measuring { .. } => self.on_measured(id, &message, ctx),
            Phase::Reading => self.on_read(id, &message, ctx),
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

    /// The underlay changed: a dead stream is to be found now, whatever waits is dialled now, and how far the hubs are is
    /// found out anew.
    pub(crate) fn network_changed(&mut self, ctx: &mut Context<'_>) {
        for target in &mut self.targets {
            if target.dialling.is_none() {
                target.backoff.reset();
                target.next = ctx.now;
            }
        }
        for hub in &mut self.hubs {
            hub.distance.forget();
            hub.data.next = hub.data.next.map(|_| ctx.now);
            if let Some(attachment) = &mut hub.control {
                attachment.answer_by = Some(ctx.now + HURRY);
                attachment.ask(ctx.now, ctx.rng, ctx.out);
            }
        }
        self.measured_last = None;
        self.find_tiers();
    }

    /// Leaves every hub: the node stops, or starts over under another epoch.
    pub(crate) fn detach_all(&mut self, ctx: &mut Context<'_>) {
        let slots: Vec<HubSlot> = self.attached().collect();
        for slot in slots {
            self.end(slot, ctx);
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
        let mut silent = Vec::new();
        let (mut rotate, mut left) = (Vec::new(), Vec::new());
        for hub in &mut self.hubs {
            let Some(attachment) = &mut hub.control else { continue };
            if attachment.silent_at() <= ctx.now {
                silent.push(hub.slot);
            } else if attachment.ask_at() <= ctx.now {
                if attachment.is_asked() && attachment.leg.is_some() {
                    // whether datagrams are still answered decides how long the stream may be silent
                    ctx.out.worker(Command::TouchHub { hub: hub.slot });
                }
                attachment.ask(ctx.now, ctx.rng, ctx.out);
            }
            if attachment.place_until.is_some_and(|at| at <= ctx.now) {
                rotate.push(hub.slot);
            }
            if attachment.leave_at.is_some_and(|at| at <= ctx.now) {
                left.push(hub.slot);
            }
        }
        for slot in left {
            self.end(slot, ctx);
        }
        for slot in rotate {
            self.next_place(slot, ctx);
        }
        for slot in silent {
            tracing::debug!(hub = %self.label(slot), "hub is silent");
            self.detach(slot, ctx);
        }
        self.leave_surplus(ctx);
        self.dial(ctx);
        self.measure(ctx);
    }

    /// When [`Hubs::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let streams = self.streams.values().filter_map(|stream| stream.deadline);
        let attachments = self.hubs.iter().filter_map(|hub| hub.control.as_ref()).flat_map(|attachment| {
            [Some(attachment.ask_at()), Some(attachment.silent_at()), attachment.place_until, attachment.leave_at]
                .into_iter()
                .flatten()
        });
        let data = self.hubs.iter().filter(|hub| self.wants_data(hub)).filter_map(|hub| hub.data.next);
        let targets = self.due_targets().into_iter().filter_map(|n| self.targets.get(n)).map(|target| target.next);
        let slow = self.targets.iter().filter_map(Target::slow_at);
        let surplus = self.surplus.map(|since| since + SURPLUS);
        let upgrade = self.upgrade().map(|(_, at)| at);
        streams
            .chain(attachments)
            .chain(data)
            .chain(targets)
            .chain(slow)
            .chain(surplus)
            .chain(upgrade)
            .chain(self.measure_at())
            .min()
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
        let standing = |hub: &Hub| self.standing(hub.slot);
        hubs.sort_by(|a, b| draining(a).cmp(&draining(b)).then(standing(a).compare(&standing(b))));
        hubs.into_iter().map(|hub| hub.slot)
    }

    pub(crate) fn attached_count(&self) -> usize {
        self.hubs.iter().filter(|hub| hub.control.is_some()).count()
    }

    /// How many hubs to be attached to.
    pub(crate) fn wanted(&self) -> usize {
        self.listed.unwrap_or(self.targets.len()).min(MAX_ATTACHED + self.far.len())
    }

    /// Hubs at which peers are that cannot be reached by a hub in common: a few of them are attached to as well, until
    /// none was needed for a while.
    pub(crate) fn set_far(&mut self, needed: &BTreeSet<HubKey>, now: Instant) {
        for key in needed {
            let free = self.hubs.iter().any(|hub| hub.key == *key && hub.listed && hub.control.is_none());
            if let Some(last) = self.far.get_mut(key) {
                *last = now;
            } else if free && self.far.len() < MAX_FAR {
                self.far.insert(*key, now);
            }
        }
        self.far.retain(|_, last| now.saturating_duration_since(*last) < FAR_KEPT);
        self.find_tiers();
    }

    /// Whether a hub is attached to for the sake of peers that are there.
    pub(crate) fn is_far(&self, slot: HubSlot) -> bool {
        self.hub(slot).is_some_and(|hub| self.far.contains_key(&hub.key))
    }

    /// Whether there is any such hub.
    pub(crate) fn has_far(&self) -> bool {
        !self.far.is_empty()
    }

    /// Whether more hubs than wanted were attached for so long that one is left.
    pub(crate) fn is_surplus_due(&self, now: Instant) -> bool {
        self.surplus.is_some_and(|since| since + SURPLUS <= now)
    }

    /// The only hubs in common with some peer: one that is not wanted otherwise is kept for that.
    pub(crate) fn set_sole(&mut self, sole: BTreeSet<HubKey>) {
        self.sole = sole;
    }

    /// Of the hubs where a peer is, one to attach to for its sake: none where another one is in common.
    pub(crate) fn far_of(&self, there: impl Iterator<Item = HubKey> + Clone) -> Option<HubKey> {
        if self.staying().any(|hub| !self.is_far(hub.slot) && there.clone().any(|key| key == hub.key)) {
            return None;
        }
        let known = there.filter_map(|key| self.hubs.iter().find(|hub| hub.key == key && hub.listed));
        let best = known.min_by(|a, b| self.standing(a.slot).compare(&self.standing(b.slot)));
        best.map(|hub| hub.key)
    }

    /// The only attached hub of those where a peer is.
    pub(crate) fn sole_of(&self, there: impl Iterator<Item = HubKey>) -> Option<HubKey> {
        let mut common = there.filter(|key| self.staying().any(|hub| hub.key == *key));
        common.next().filter(|_| common.next().is_none())
    }

    /// Whether a hub is left soon.
    pub(crate) fn is_leaving(&self, slot: HubSlot) -> bool {
        self.attachment(slot).is_some_and(|attachment| attachment.leave_at.is_some())
    }

    pub(crate) fn is_attached(&self, slot: HubSlot) -> bool {
        self.attachment(slot).is_some()
    }

    pub(crate) fn slot(&self, key: &HubKey) -> Option<HubSlot> {
        Some(self.hubs.iter().find(|hub| hub.key == *key)?.slot)
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
                rtt: leg.map(|leg| leg.rtt).or_else(|| attachment.and_then(|attachment| attachment.rtt)),
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
                    distance: Distance::default(),
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

/// After a change of the underlay, the answer must come within this.
const HURRY: Duration = Duration::from_secs(1);
/// Hubs that are attached to for peers that are there.
const MAX_FAR: usize = 2;
/// One that was not needed for so long is kept no longer.
const FAR_KEPT: Duration = Duration::from_secs(60);
