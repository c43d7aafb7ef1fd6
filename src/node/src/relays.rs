//! Labels: one relayed direction to each peer by each hub, and the ones that this node gave.
//!
//! Each direction is asked for by who sends in it; the answer is the label that the next hop wants to
//! see. A direction alone is of little use, so whoever is asked for one asks for the reverse at the same
//! hub, and answers when that is there:
//!
//! ```text
//!  a            hub            b
//!  |--PathOpen-->|--PathOpen-->|        b has no way back yet: it asks first
//!  |<--PathOpen--|<--PathOpen--|        a's own request is under way: it answers at once
//!  |--PathOpened>|--PathOpened>|        b has its label, so now a gets one
//!  |<-PathOpened-|<-PathOpened-|
//! ```
//!
//! Neither waits for the other when both begin at once, and nobody waits longer than [`HOLD`]. Of many
//! requests to one hub, [`MAX_ASKED`] are under way at a time; the others wait their turn, first come, first
//! served, so that a hub that comes back is not flooded by its first thousand peers.
//!
//! A hub may tell a label that leads elsewhere: by a lie, or since it lost its way. Nothing that is sent by such a label is
//! answered, so a label by which nothing is answered is *renewed*: another one is asked for, and the old one is used until
//! it is there, for the silence may have other causes. Of two directions at a hub no two have the same label: one that is
//! told for a second direction is not used, and not given back, since it is the first one's.
//!
//! This module keeps what was asked and given. Who is worth a path is decided by its caller.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use flatlan_datapath::Command;
use flatlan_relay::{Control, MAX_HOPS, PathOpen, PathReason};
use flatlan_types::{HubKey, HubSlot, Label, MemberId, NetworkId, PeerSlot, SenderHint, Workers};

use crate::{hubs::Hubs, output::Outbox, rng::Rng};

/// Every label asked for and every label given.
pub(crate) struct Relays {
    network: NetworkId,
    me: MemberId,
    /// Labels name the worker of who sends by them.
    workers: Workers,
    outward: BTreeMap<(PeerSlot, HubSlot), Outward>,
    /// To whom each label of a hub leads.
    holders: BTreeMap<(HubSlot, Label), PeerSlot>,
    requests: BTreeMap<(HubSlot, u32), PeerSlot>,
    /// Whose turn comes next at each hub.
    turns: BTreeMap<HubSlot, VecDeque<PeerSlot>>,
    given: BTreeMap<Label, Given>,
    held: Vec<Held>,
    next_request: u32,
    next_slot: u32,
}

/// One direction from this node, by one hub.
struct Outward {
    to: MemberId,
    state: State,
    failures: u32,
}

enum State {
    Asking {
        request: u32,
        until: Instant,
    },
    Open(Way),
    Waiting {
        until: Instant,
    },
    /// Its turn comes when fewer are asked for.
    Queued,
}

/// A label that a hub told.
struct Way {
    label: Label,
    via: Vec<HubKey>,
    /// When it was told, or another one was asked for last.
    since: Instant,
    renewal: Option<Renewal>,
}

/// Another label is asked for in place of one.
struct Renewal {
    request: u32,
    until: Instant,
}

/// A hub's request for a label of ours.
pub(crate) struct Asked<'a> {
    pub(crate) hub: HubSlot,
    pub(crate) open: &'a PathOpen,
    /// Who will send, where that is a member.
    pub(crate) peer: Option<PeerSlot>,
}

/// A label of our own.
struct Given {
    hub: HubSlot,
    peer: PeerSlot,
    since: Instant,
}

/// An answer that waits for the way back.
struct Held {
    hub: HubSlot,
    request: u32,
    label: Label,
    peer: PeerSlot,
    until: Instant,
}

impl Relays {
    pub(crate) fn new(network: NetworkId, me: MemberId, workers: Workers) -> Self {
        Self {
            network,
            me,
            workers,
            outward: BTreeMap::new(),
            holders: BTreeMap::new(),
            requests: BTreeMap::new(),
            turns: BTreeMap::new(),
            given: BTreeMap::new(),
            held: Vec::new(),
            next_request: 0,
            next_slot: 0,
        }
    }

    /// Asks for a way to a peer at every hub of `hubs` where there is none and none is asked for.
    pub(crate) fn want(&mut self, peer: PeerSlot, to: MemberId, hubs: &Hubs, now: Instant, out: &mut Outbox) {
        for hub in hubs.attached().take(MAX_HUBS).collect::<Vec<_>>() {
            self.want_at(peer, to, hub, hubs, now, out);
        }
    }

    /// A peer has become present: what waits after a failure is asked for at once.
    pub(crate) fn retry(&mut self, peer: PeerSlot, hubs: &Hubs, now: Instant, out: &mut Outbox) {
        let waiting: Vec<(HubSlot, MemberId)> = self
            .outward
            .range((peer, HubSlot(0))..=(peer, HubSlot(u8::MAX)))
            .filter(|(_, outward)| matches!(outward.state, State::Waiting { .. }))
            .map(|((_, hub), outward)| (*hub, outward.to))
            .collect();
        for (hub, to) in waiting {
            if let Some(outward) = self.outward.get_mut(&(peer, hub)) {
                outward.failures = 0;
            }
            self.ask(peer, to, hub, hubs, now, out);
        }
    }

    /// A hub asks on behalf of a member for the label of frames from it.
    pub(crate) fn handle_open(
        &mut self,
        asked: &Asked<'_>,
        hubs: &Hubs,
        rng: &mut Rng,
        now: Instant,
        out: &mut Outbox,
    ) {
        let Asked { hub, open, peer } = *asked;
        let fail = |reason| Control::PathFailed { request: open.request, reason };
        if hubs.is_leaving(hub) {
            hubs.send(hub, &fail(PathReason::NotAttached), out);
            return;
        }
        let Some(peer) = peer.filter(|_| open.network == self.network && open.to == self.me) else {
            hubs.send(hub, &fail(PathReason::NotMember), out);
            return;
        };
        let Some(label) = self.give(hub, (peer, open.from), rng, now, out) else {
            hubs.send(hub, &fail(PathReason::Quota), out);
            return;
        };
        let way_back = self.outward.get(&(peer, hub)).map(|outward| &outward.state);
        if matches!(way_back, Some(State::Asking { .. } | State::Open(_))) {
            hubs.send(hub, &opened(open.request, label), out);
            return;
        }
        self.held.push(Held { hub, request: open.request, label, peer, until: now + HOLD });
        self.ask(peer, open.from, hub, hubs, now, out);
    }

    /// Nothing that is sent to a peer is answered, by this hub or by any: a label that is not fresh may be a wrong one.
    pub(crate) fn renew(
        &mut self,
        peer: PeerSlot,
        silent: impl Fn(HubSlot) -> bool,
        hubs: &Hubs,
        now: Instant,
        out: &mut Outbox,
    ) {
        let all = self.outward.range((peer, HubSlot(0))..=(peer, HubSlot(u8::MAX)));
        let stale = |way: &Way| way.renewal.is_none() && now.saturating_duration_since(way.since) >= FRESH;
        let due: Vec<(HubSlot, MemberId)> = all
            .filter(|((_, hub), outward)| silent(*hub) && outward.way().is_some_and(stale))
            .map(|((_, hub), outward)| (*hub, outward.to))
            .collect();
        for (hub, to) in due {
            if self.is_busy(hub) {
                continue;
            }
            let request = self.request(peer, to, hub, hubs, out);
            if let Some(way) = self.outward.get_mut(&(peer, hub)).and_then(Outward::way_mut) {
                tracing::debug!(peer = peer.0, hub = hub.0, "nothing is answered by this hub: another label");
                way.renewal = Some(Renewal { request, until: now + PATIENCE });
                way.since = now;
            }
        }
    }

    /// A hub's label for what was asked. The peer, where there was no label to it before.
    pub(crate) fn handle_opened(
        &mut self,
        hub: HubSlot,
        request: u32,
        (label, via): (Label, Vec<HubKey>),
        hubs: &Hubs,
        now: Instant,
        out: &mut Outbox,
    ) -> Option<PeerSlot> {
        let taken = self.holders.contains_key(&(hub, label));
        let asked = self.requests.remove(&(hub, request)).and_then(|peer| {
            let outward = self.outward.get_mut(&(peer, hub))?;
            outward.asks(request).then_some((peer, outward))
        });
        let Some((peer, outward)) = asked else {
            if !taken {
                hubs.send(hub, &Control::PathClose { label }, out);
            }
            return None;
        };
        if taken {
            tracing::debug!(peer = peer.0, hub = hub.0, "a hub told a label that it told before");
            outward.fail(now);
            self.release_held(|held| held.peer == peer && held.hub == hub, hubs, out);
            return None;
        }
        let before = outward.way().map(|way| way.label);
        let over = behind(hub, &via, hubs);
        outward.state = State::Open(Way { label, via, since: now, renewal: None });
        outward.failures = 0;
        out.worker(Command::SetLabel { peer, hub, label: Some(label) });
        out.worker(Command::SetWay { peer, hub, over });
        self.holders.insert((hub, label), peer);
        if let Some(before) = before {
            self.holders.remove(&(hub, before));
            hubs.send(hub, &Control::PathClose { label: before }, out);
        }
        self.release_held(|held| held.peer == peer && held.hub == hub, hubs, out);
        before.is_none().then_some(peer)
    }

    /// What was asked came to nothing: again later.
    pub(crate) fn handle_failed(
        &mut self,
        hub: HubSlot,
        request: u32,
        reason: PathReason,
        hubs: &Hubs,
        now: Instant,
        out: &mut Outbox,
    ) {
        let Some(peer) = self.requests.remove(&(hub, request)) else { return };
        if let Some(outward) = self.outward.get_mut(&(peer, hub)).filter(|outward| outward.asks(request)) {
            tracing::debug!(peer = peer.0, hub = hub.0, reason = ?reason, "no path by this hub");
            outward.fail(now);
        }
        self.release_held(|held| held.peer == peer && held.hub == hub, hubs, out);
        self.ask_next(hub, hubs, now, out);
    }

    /// A hub's label leads nowhere any more; or soon, where its receiver is [leaving](PathReason::Leaving): that one
    /// is used to the end where there is no other.
    pub(crate) fn handle_lost(
        &mut self,
        hub: HubSlot,
        label: Label,
        reason: PathReason,
        now: Instant,
        out: &mut Outbox,
    ) {
        let Some(peer) = self.holders.get(&(hub, label)).copied() else { return };
        if reason == PathReason::Leaving && self.labels(peer).all(|(other, _)| other == hub) {
            return;
        }
        self.holders.remove(&(hub, label));
        if let Some(outward) = self.outward.get_mut(&(peer, hub)) {
            match outward.way_mut().and_then(|way| way.renewal.take()) {
                Some(Renewal { request, until }) => outward.state = State::Asking { request, until },
                None => outward.wait(now),
            }
            out.worker(Command::SetLabel { peer, hub, label: None });
        }
    }

    /// A hub is left soon: peers are to use their other ways before it is.
    pub(crate) fn leave_hub(&self, hub: HubSlot, hubs: &Hubs, out: &mut Outbox) {
        for (label, _) in self.given.iter().filter(|(_, given)| given.hub == hub) {
            hubs.send(hub, &Control::PathLost { label: *label, reason: PathReason::Leaving }, out);
        }
    }

    /// Frames with a hub's label go another way from there on.
    pub(crate) fn handle_moved(
        &mut self,
        hub: HubSlot,
        label: Label,
        mut via: Vec<HubKey>,
        hubs: &Hubs,
        out: &mut Outbox,
    ) {
        via.truncate(usize::from(MAX_HOPS));
        let Some(peer) = self.holders.get(&(hub, label)).copied() else { return };
        if let Some(way) = self.outward.get_mut(&(peer, hub)).and_then(Outward::way_mut) {
            out.worker(Command::SetWay { peer, hub, over: behind(hub, &via, hubs) });
            way.via = via;
        }
    }

    /// A hub will not use a label of ours again.
    pub(crate) fn handle_close(&mut self, hub: HubSlot, label: Label, out: &mut Outbox) {
        if self.given.get(&label).is_some_and(|given| given.hub == hub) {
            self.given.remove(&label);
            out.worker(Command::RemoveInLabel { label });
        }
    }

    /// A hub is gone, with every label at it. The workers know by `RemoveHub`.
    pub(crate) fn remove_hub(&mut self, hub: HubSlot) {
        self.outward.retain(|(_, at), _| *at != hub);
        self.holders.retain(|(at, _), _| *at != hub);
        self.requests.retain(|(at, _), _| *at != hub);
        self.turns.remove(&hub);
        self.given.retain(|_, given| given.hub != hub);
        self.held.retain(|held| held.hub != hub);
    }

    /// Nobody speaks to or as this peer any more: everything about it is given back. When the last of
    /// several is removed, [`Relays::ask_waiting`].
    pub(crate) fn remove_peer(&mut self, peer: PeerSlot, reason: PathReason, hubs: &Hubs, out: &mut Outbox) {
        let keys: Vec<(PeerSlot, HubSlot)> =
            self.outward.range((peer, HubSlot(0))..=(peer, HubSlot(u8::MAX))).map(|(key, _)| *key).collect();
        for key in keys {
            let Some(outward) = self.outward.remove(&key) else { continue };
            if let State::Open(Way { label, .. }) = outward.state {
                self.holders.remove(&(key.1, label));
                hubs.send(key.1, &Control::PathClose { label }, out);
                out.worker(Command::SetLabel { peer, hub: key.1, label: None });
            }
        }
        self.requests.retain(|_, of| *of != peer);
        self.held.retain(|held| held.peer != peer);
        let given: Vec<(Label, HubSlot)> = self
            .given
            .iter()
            .filter(|(_, given)| given.peer == peer)
            .map(|(label, given)| (*label, given.hub))
            .collect();
        for (label, hub) in given {
            self.given.remove(&label);
            hubs.send(hub, &Control::PathLost { label, reason }, out);
            out.worker(Command::RemoveInLabel { label });
        }
    }

    /// Timers: answers that waited long enough, requests without an answer, failures to try again.
    pub(crate) fn handle_timeout(&mut self, hubs: &Hubs, now: Instant, out: &mut Outbox) {
        self.release_held(|held| held.until <= now, hubs, out);
        let mut again = Vec::new();
        for ((peer, hub), outward) in &mut self.outward {
            match outward.state {
                State::Asking { request, until }
                | State::Open(Way { renewal: Some(Renewal { request, until }), .. })
                    if until <= now =>
                {
                    self.requests.remove(&(*hub, request));
                    outward.fail(now);
                }
                State::Waiting { until } if until <= now => again.push((*peer, *hub, outward.to)),
                State::Asking { .. } | State::Open(_) | State::Queued | State::Waiting { .. } => {}
            }
        }
        for (peer, hub, to) in again {
            self.ask(peer, to, hub, hubs, now, out);
        }
        self.ask_waiting(hubs, now, out);
    }

    /// Asks for those whose turn has come, at every hub.
    pub(crate) fn ask_waiting(&mut self, hubs: &Hubs, now: Instant, out: &mut Outbox) {
        for hub in self.turns.keys().copied().collect::<Vec<_>>() {
            self.ask_next(hub, hubs, now, out);
        }
    }

    /// When [`Relays::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let outward = self.outward.values().filter_map(|outward| match outward.state {
            State::Asking { until, .. }
            | State::Open(Way { renewal: Some(Renewal { until, .. }), .. })
            | State::Waiting { until } => Some(until),
            State::Open(_) | State::Queued => None,
        });
        outward.chain(self.held.iter().map(|held| held.until)).min()
    }

    /// Whether a hub relays to this peer.
    pub(crate) fn has_label(&self, peer: PeerSlot) -> bool {
        self.labels(peer).next().is_some()
    }

    /// By which hubs frames to a peer go, with all the hubs that they cross.
    pub(crate) fn labels(&self, peer: PeerSlot) -> impl Iterator<Item = (HubSlot, &[HubKey])> {
        let range = self.outward.range((peer, HubSlot(0))..=(peer, HubSlot(u8::MAX)));
        range.filter_map(|((_, hub), outward)| Some((*hub, outward.way()?.via.as_slice())))
    }

    /// Whether as much is asked of a hub as may be.
    fn is_busy(&self, hub: HubSlot) -> bool {
        self.requests.range((hub, 0)..=(hub, u32::MAX)).count() >= MAX_ASKED
    }

    fn want_at(&mut self, peer: PeerSlot, to: MemberId, hub: HubSlot, hubs: &Hubs, now: Instant, out: &mut Outbox) {
        if !self.outward.contains_key(&(peer, hub)) {
            self.ask(peer, to, hub, hubs, now, out);
        }
    }

    fn ask(&mut self, peer: PeerSlot, to: MemberId, hub: HubSlot, hubs: &Hubs, now: Instant, out: &mut Outbox) {
        if self.is_busy(hub) {
            let outward = self.outward.entry((peer, hub)).or_insert(Outward { to, state: State::Queued, failures: 0 });
            outward.state = State::Queued;
            let turns = self.turns.entry(hub).or_default();
            if !turns.contains(&peer) {
                turns.push_back(peer);
            }
            return;
        }
        let request = self.request(peer, to, hub, hubs, out);
        let state = State::Asking { request, until: now + PATIENCE };
        match self.outward.get_mut(&(peer, hub)) {
            Some(outward) => outward.state = state,
            None => {
                self.outward.insert((peer, hub), Outward { to, state, failures: 0 });
            }
        }
    }

    /// Asks a hub for a label, under the number that its answer bears.
    fn request(&mut self, peer: PeerSlot, to: MemberId, hub: HubSlot, hubs: &Hubs, out: &mut Outbox) -> u32 {
        self.next_request = self.next_request.wrapping_add(1);
        let request = self.next_request;
        self.requests.insert((hub, request), peer);
        let others = hubs.attached().filter(|other| *other != hub).filter_map(|other| hubs.key(other));
        let open = PathOpen {
            request,
            network: self.network,
            from: self.me,
            to,
            hops: MAX_HOPS,
            via: Vec::new(),
            avoid: others.collect(),
        };
        hubs.send(hub, &Control::PathOpen(open), out);
        request
    }

    /// Asks for those whose turn has come.
    pub(crate) fn ask_next(&mut self, hub: HubSlot, hubs: &Hubs, now: Instant, out: &mut Outbox) {
        while !self.is_busy(hub) {
            let Some(peer) = self.turns.get_mut(&hub).and_then(VecDeque::pop_front) else { return };
            let queued = self.outward.get(&(peer, hub)).filter(|outward| matches!(outward.state, State::Queued));
            if let Some(to) = queued.map(|outward| outward.to) {
                self.ask(peer, to, hub, hubs, now, out);
            }
        }
    }

    /// Answers what waited for a way back.
    fn release_held(&mut self, due: impl Fn(&Held) -> bool, hubs: &Hubs, out: &mut Outbox) {
        self.held.retain(|held| {
            if !due(held) {
                return true;
            }
            hubs.send(held.hub, &opened(held.request, held.label), out);
            false
        });
    }

    /// A label of our own for frames from `peer` by `hub`. The oldest goes where there are too many; a
    /// fresh one each time, so that an old path's end never takes a new one's label along.
    fn give(
        &mut self,
        hub: HubSlot,
        (peer, id): (PeerSlot, MemberId),
        rng: &mut Rng,
        now: Instant,
        out: &mut Outbox,
    ) -> Option<Label> {
        let same: Vec<(Instant, Label)> = self
            .given
            .iter()
            .filter(|(_, given)| given.hub == hub && given.peer == peer)
            .map(|(label, given)| (given.since, *label))
            .collect();
        if same.len() >= MAX_SAME
            && let Some((_, oldest)) = same.iter().min()
        {
            self.given.remove(oldest);
            out.worker(Command::RemoveInLabel { label: *oldest });
        }
        if self.given.len() >= MAX_GIVEN {
            return None;
        }
        let worker = self.workers.of_hint(SenderHint::of(&self.network, &id));
        // slots go round, so that one is not used again soon; the generation is random but for the worker
        let label = (0..=MAX_GIVEN).find_map(|_| {
            self.next_slot = self.next_slot.wrapping_add(1) & 0xf_ffff;
            let label = Label::new(self.next_slot, self.workers.generation(worker, rng.next() as u16));
            (!self.given.contains_key(&label)).then_some(label)
        })?;
        self.given.insert(label, Given { hub, peer, since: now });
        out.worker(Command::AddInLabel { label, hub, peer });
        Some(label)
    }
}

impl Outward {
    fn way(&self) -> Option<&Way> {
        match &self.state {
            State::Open(way) => Some(way),
            State::Asking { .. } | State::Queued | State::Waiting { .. } => None,
        }
    }

    fn way_mut(&mut self) -> Option<&mut Way> {
        match &mut self.state {
            State::Open(way) => Some(way),
            State::Asking { .. } | State::Queued | State::Waiting { .. } => None,
        }
    }

    /// Whether it waits for the answer to this request.
    fn asks(&self, request: u32) -> bool {
        match &self.state {
            State::Asking { request: of, .. } => *of == request,
            State::Open(way) => way.renewal.as_ref().is_some_and(|renewal| renewal.request == request),
            State::Queued | State::Waiting { .. } => false,
        }
    }

    /// What was asked for is not to be had: a label that was to be renewed stays in use.
    fn fail(&mut self, now: Instant) {
        match self.way_mut() {
            Some(way) => way.renewal = None,
            None => self.wait(now),
        }
    }

    fn wait(&mut self, now: Instant) {
        let delay = AGAIN.saturating_mul(1 << self.failures.min(8)).min(AGAIN_MOST);
        self.failures = self.failures.saturating_add(1);
        self.state = State::Waiting { until: now + delay };
    }
}

/// The hubs of a way after the first, as far as they are known.
fn behind(first: HubSlot, via: &[HubKey], hubs: &Hubs) -> Vec<HubSlot> {
    let slots = via.iter().take(usize::from(MAX_HOPS)).filter_map(|key| hubs.slot(key));
    slots.filter(|slot| *slot != first).collect()
}

fn opened(request: u32, label: Label) -> Control {
    Control::PathOpened { request, label, via: Vec::new(), rtt_us: 0 }
}

/// How long an answer waits for the way back.
pub(crate) const HOLD: Duration = Duration::from_millis(200);
/// A hub that does not answer a request within this does not know the way.
const PATIENCE: Duration = Duration::from_secs(1);
/// A label by which nothing is answered is not renewed sooner after it was told, or after the last such attempt.
const FRESH: Duration = Duration::from_secs(5);
/// The first retry after a failure; each later one waits twice as long, up to [`AGAIN_MOST`].
const AGAIN: Duration = Duration::from_millis(150);
const AGAIN_MOST: Duration = Duration::from_secs(5);
/// Requests under way at one hub.
const MAX_ASKED: usize = 128;
/// Hubs by which one peer is reached.
const MAX_HUBS: usize = 6;
/// Labels given for one peer at one hub: paths that replace each other.
const MAX_SAME: usize = 4;
/// Labels given in all.
const MAX_GIVEN: usize = 65_536;
