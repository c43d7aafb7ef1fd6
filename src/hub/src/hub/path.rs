//! Path requests and labels.
//!
//! A request travels toward the receiver, hop by hop along the shortest way, and no hub twice (`via`).
//! Each hop answers with the label that it wants to see; on the way back every hub allocates its own and
//! tells the forwarder. Where a hub said to hold the receiver does not, the next one is asked. A label
//! lives until its sender closes it, either end detaches, a member or a hub on its way leaves the roster, or
//! the forwarder finds it idle. No network has more than a share of them.
//!
//! When the way onward breaks, the hub that notices asks for another one (*repair*) under the same label
//! of its own; the sender sees nothing but a short loss, and is told which hubs its frames cross then
//! (`PathMoved`, from each hub to the one before it). Where the old way still stands it is kept a
//! while after the new one works. Where there is no other way the sender is told (`PathLost`). The same
//! happens when the receiver attaches here: what led to it over another hub leads to it straight. A receiver that
//! is about to detach says so: its senders are told at once, and what they sent before they knew still reaches it.

use std::{
    collections::{BTreeSet, btree_map::Entry},
    time::{Duration, Instant},
};

use flatlan_relay::{Control, MAX_HOPS, PathOpen, PathReason};
use flatlan_types::{HubKey, Label, MemberId, NetworkId};

use super::{Attachment, Hub, Owner};
use crate::{
    forward::{AttachmentId, ForwardCommand, StreamId},
    linkstate::{Carry, Route, routes},
};

/// One label of ours.
#[derive(Debug)]
pub(super) struct LabelState {
    pub(super) network: NetworkId,
    pub(super) from: MemberId,
    pub(super) to: MemberId,
    upstream: AttachmentId,
    downstream: AttachmentId,
    out: Label,
    /// The hubs before this one.
    via: Vec<HubKey>,
    /// The hubs after it.
    ahead: Vec<HubKey>,
    avoid: Vec<HubKey>,
    repair: Repair,
}

impl LabelState {
    /// Whether frames cross a hub that they should not.
    fn crosses(&self) -> bool {
        self.ahead.iter().any(|hub| self.avoid.contains(hub))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repair {
    /// Under this number.
    Asked(u32),
    No,
}

/// Why another way is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The way is broken: without another one the label is lost.
    Broken,
    /// The way still stands: without another one it is kept.
    Leaving,
}

/// A request that waits for an answer.
#[derive(Debug)]
pub(super) struct Pending {
    origin: Origin,
    upstream: AttachmentId,
    downstream: AttachmentId,
    open: PathOpen,
    /// Of the link to the downstream.
    rtt_us: u32,
    /// The hub that holds the receiver, where it is not this one.
    holder: Option<HubKey>,
    /// Hubs that turned out not to hold it.
    without: BTreeSet<HubKey>,
    deadline: Instant,
}

/// Where a request goes next.
#[derive(Clone, Copy, Debug)]
struct Onward {
    downstream: AttachmentId,
    rtt_us: u32,
    holder: Option<HubKey>,
}

#[derive(Clone, Copy, Debug)]
enum Origin {
    /// The upstream asked, under this number.
    Asked(u32),
    /// We look for another way for this label.
    Repair(Label, Cause),
}

/// A label of a downstream that is not used any more, kept until frames under way have passed.
#[derive(Debug)]
pub(super) struct Closing {
    at: Instant,
    attachment: AttachmentId,
    label: Label,
}

impl Hub {
    pub(super) fn handle_path_open(
        &mut self,
        stream: StreamId,
        upstream: AttachmentId,
        mut open: PathOpen,
        now: Instant,
    ) {
        let request = open.request;
        open.hops = open.hops.min(MAX_HOPS);
        open.avoid.truncate(MAX_AVOID);
        if let Err(reason) = self.may_open(upstream, &open).and_then(|()| {
            let origin = Origin::Asked(request);
            self.ask(origin, upstream, open, now)
        }) {
            self.send(stream, Control::PathFailed { request, reason });
        }
    }

    pub(super) fn handle_path_opened(
        &mut self,
        from: AttachmentId,
        request: u32,
        (out, mut via, rtt_us): (Label, Vec<HubKey>, u32),
        now: Instant,
    ) {
        // Numbers are known to whoever is asked: another's request must outlive what others say of it.
        let answered = match self.pending.entry(request) {
            Entry::Occupied(pending) if pending.get().downstream == from => Some(pending.remove()),
            Entry::Occupied(_) | Entry::Vacant(_) => None,
        };
        let Some(pending) = answered else {
            // Too late, or never asked for: nobody will use it.
            return self.close_downstream(from, out);
        };
        via.truncate(usize::from(MAX_HOPS));
        let Pending { origin, upstream, downstream, open, rtt_us: link, .. } = pending;
        match origin {
            Origin::Asked(request) => {
                self.request_ended(upstream);
                let rtt_us = rtt_us.saturating_add(link);
                self.give_label(upstream, downstream, (request, out, via, rtt_us), open, now);
            }
            Origin::Repair(label, _) => self.redirect(label, downstream, (out, &via), now),
        }
    }

    pub(super) fn handle_path_failed(&mut self, from: AttachmentId, request: u32, reason: PathReason, now: Instant) {
        if self.pending.get(&request).is_none_or(|pending| pending.downstream != from) {
            return;
        }
        let elsewhere = matches!(reason, PathReason::HubLost | PathReason::NoRoute | PathReason::NotAttached);
        if !elsewhere || !self.ask_another(request) {
            self.fail(request, reason, now);
        }
    }

    /// The upstream will not use a label again.
    pub(super) fn handle_path_close(&mut self, from: AttachmentId, label: Label, _now: Instant) {
        if self.labels.get(label.0).is_some_and(|state| state.upstream == from)
            && let Some(state) = self.unhook(label)
        {
            self.close_downstream(state.downstream, state.out);
        }
    }

    /// Frames with a label that the next hub gave go another way from there on.
    pub(super) fn handle_path_moved(&mut self, from: AttachmentId, out: Label, mut via: Vec<HubKey>) {
        via.truncate(usize::from(MAX_HOPS));
        for label in self.labels_to(from, out) {
            self.set_ahead(label, &via);
        }
    }

    /// A label that the downstream gave leads nowhere any more.
    pub(super) fn handle_path_lost(&mut self, from: AttachmentId, out: Label, reason: PathReason, now: Instant) {
        let hub = self.owner_hub(from);
        for label in self.labels_to(from, out) {
            match (hub, reason) {
                // The hub there found no other way; perhaps there is one around it.
                (Some(hub), PathReason::HubLost | PathReason::NoRoute | PathReason::Timeout | PathReason::Idle) => {
                    self.repair(label, Some(hub), Cause::Broken, now);
                }
                (Some(hub), PathReason::Leaving) => self.repair(label, Some(hub), Cause::Leaving, now),
                (None, PathReason::Leaving) => self.forewarn(label, now),
                _ => self.lose(label, reason),
            }
        }
    }

    /// The receiver is about to detach: the sender is told once, and the label leads there until it has gone.
    fn forewarn(&mut self, label: Label, now: Instant) {
        let Some(upstream) = self.labels.get(label.0).map(|state| state.upstream) else { return };
        if let Entry::Vacant(leaving) = self.leaving.entry(label) {
            leaving.insert(now + KEEP);
            self.tell(upstream, Control::PathLost { label, reason: PathReason::Leaving });
        }
    }

    /// The downstream does not know a label that it gave: ask for another one.
    pub(super) fn handle_label_unknown(&mut self, from: AttachmentId, out: Label, now: Instant) {
        for label in self.labels_to(from, out) {
            self.repair(label, None, Cause::Broken, now);
        }
    }

    /// Frees a label and tells both ends.
    pub(super) fn drop_label(&mut self, label: Label, reason: PathReason, _now: Instant) {
        let Some(state) = self.unhook(label) else { return };
        self.close_downstream(state.downstream, state.out);
        self.tell(state.upstream, Control::PathLost { label, reason });
    }

    /// Ends what a network's roster no longer allows: of members that left it, over hubs that left it.
    pub(super) fn drop_strangers(&mut self, network: NetworkId, now: Instant) {
        let Some(state) = self.networks.get(&network) else { return };
        let member = |member: &MemberId| state.lists_member(member);
        let attachment = |attachment: &AttachmentId| match self.attachments.get(attachment.0).map(|at| at.owner) {
            Some(Owner::Hub(hub)) => state.lists_hub(&hub),
            Some(Owner::Node { .. }) | None => true,
        };
        let verdict = |members: [&MemberId; 2], over: [&AttachmentId; 2]| {
            if !members.into_iter().all(member) {
                Some(PathReason::NotMember)
            } else if !over.into_iter().all(attachment) {
                Some(PathReason::HubLost)
            } else {
                None
            }
        };
        let requests = self.pending.iter().filter(|(_, pending)| pending.open.network == network);
        let requests: Vec<_> = requests
            .filter_map(|(request, Pending { open, upstream, downstream, .. })| {
                Some((*request, verdict([&open.from, &open.to], [upstream, downstream])?))
            })
            .collect();
        let labels = self.labels.iter().filter(|(_, label)| label.network == network);
        let labels: Vec<_> = labels
            .filter_map(|(label, LabelState { from, to, upstream, downstream, .. })| {
                Some((Label(label), verdict([from, to], [upstream, downstream])?))
            })
            .collect();
        for (request, reason) in requests {
            self.fail(request, reason, now);
        }
        for (label, reason) in labels {
            self.drop_label(label, reason, now);
        }
    }

    /// Ends all paths of an attachment that is about to go.
    pub(super) fn release_paths(&mut self, attachment: AttachmentId, now: Instant) {
        let Some(state) = self.attachments.get_mut(attachment.0) else { return };
        let upstream = std::mem::take(&mut state.upstream);
        let downstream = std::mem::take(&mut state.downstream);
        let hub = match state.owner {
            Owner::Hub(hub) => Some(hub),
            Owner::Node { .. } => None,
        };
        for label in upstream {
            if let Some(state) = self.unhook(label) {
                self.close_downstream(state.downstream, state.out);
            }
        }
        let asked = |pending: &Pending| pending.upstream == attachment;
        self.pending.retain(|_, pending| !asked(pending));
        let unanswered: Vec<_> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.downstream == attachment)
            .map(|(request, _)| *request)
            .collect();
        let reason = if hub.is_some() { PathReason::HubLost } else { PathReason::Detached };
        for request in unanswered {
            self.fail(request, reason, now);
        }
        for (_, label) in downstream {
            match hub {
                Some(_) => self.repair(label, hub, Cause::Broken, now),
                None => self.lose(label, reason),
            }
        }
    }

    /// Looks for other ways for all that leads over a hub which is not to be used.
    pub(super) fn leave_neighbour(&mut self, attachment: AttachmentId, cause: Cause, now: Instant) {
        let hub = self.owner_hub(attachment);
        let Some(state) = self.attachments.get(attachment.0) else { return };
        let labels: Vec<_> = state.downstream.iter().map(|(_, label)| *label).collect();
        for label in labels {
            self.repair(label, hub, cause, now);
        }
        if cause == Cause::Broken {
            let asked = self.pending.iter().filter(|(_, pending)| pending.downstream == attachment);
            for request in asked.map(|(request, _)| *request).collect::<Vec<_>>() {
                self.ask_around(request, now);
            }
        }
    }

    /// A node can be reached here: what leads to it over other hubs need not, and must not end with them.
    pub(super) fn shorten(&mut self, attachment: AttachmentId, now: Instant) {
        let Some(Owner::Node { network, member }) = self.attachments.get(attachment.0).map(|state| state.owner) else {
            return;
        };
        let abroad = self.neighbours.values().filter_map(|neighbour| self.attachments.get(neighbour.attachment.0));
        let labels = abroad.flat_map(|state| state.downstream.iter().map(|(_, label)| *label)).filter(|label| {
            self.labels.get(label.0).is_some_and(|state| (state.network, state.to) == (network, member))
        });
        for label in labels.collect::<Vec<_>>() {
            self.repair(label, None, Cause::Leaving, now);
        }
    }

    /// The receiver may have come here while another hub was asked for the way to it: no label led there yet that
    /// [`shorten`](Self::shorten) would have seen, or it was to be led another way.
    fn lead_straight(&mut self, label: Label, now: Instant) {
        let Some(LabelState { network, to, downstream, .. }) = self.labels.get(label.0) else { return };
        let here = self.networks.get(network).and_then(|state| state.attached.get(to));
        let Some(here) = here.filter(|here| *here != downstream) else { return };
        if self.attachments.get(here.0).is_some_and(Attachment::is_reached) {
            self.repair(label, None, Cause::Leaving, now);
        }
    }

    /// A member has attached to another hub too: its ways from here should not cross that one any more.
    pub(super) fn part_ways(&mut self, network: NetworkId, from: MemberId, hub: HubKey, now: Instant) {
        if hub == self.key {
            return;
        }
        let here = self.networks.get(&network).and_then(|state| state.attached.get(&from));
        let Some(here) = here.and_then(|here| self.attachments.get(here.0)) else { return };
        for label in here.upstream.iter().copied().collect::<Vec<_>>() {
            let Some(state) = self.labels.get_mut(label.0) else { continue };
            if !state.avoid.contains(&hub) && state.avoid.len() < MAX_AVOID {
                state.avoid.push(hub);
            }
            if state.ahead.contains(&hub) && state.crosses() {
                self.crossing.insert((network, state.to, label));
                self.repair(label, None, Cause::Leaving, now);
            }
        }
    }

    /// A member can be reached at another hub too: perhaps ways to it that cross hubs which they should avoid need not.
    /// Those hubs are other ways of the same sender, and the end of one must not be that of both.
    pub(super) fn spread_ways(&mut self, network: NetworkId, to: MemberId, now: Instant) {
        let range = (network, to, Label(0))..=(network, to, Label(u32::MAX));
        let crossing: Vec<_> = self.crossing.range(range).map(|(_, _, label)| *label).collect();
        for label in crossing {
            self.repair(label, None, Cause::Leaving, now);
        }
    }

    /// Perhaps there is a better way by now.
    pub(super) fn improve(&mut self, label: Label, now: Instant) {
        self.repair(label, None, Cause::Leaving, now);
    }

    pub(super) fn expire_requests(&mut self, now: Instant) {
        let late: Vec<_> =
            self.pending.iter().filter(|(_, pending)| pending.deadline <= now).map(|(request, _)| *request).collect();
        for request in late {
            self.fail(request, PathReason::Timeout, now);
        }
    }

    pub(super) fn close_old_labels(&mut self, now: Instant) {
        let due: Vec<_> = self.closing.extract_if(.., |closing| closing.at <= now).collect();
        for Closing { attachment, label, .. } in due {
            self.close_downstream(attachment, label);
        }
        let stayed: Vec<_> = self.leaving.iter().filter(|(_, at)| **at <= now).map(|(label, _)| *label).collect();
        for label in stayed {
            self.lose(label, PathReason::Detached);
        }
    }

    /// When a request or a closing label next needs a turn.
    pub(super) fn requests_due(&self) -> Option<Instant> {
        let requests = self.pending.values().map(|pending| pending.deadline);
        let closing = self.closing.iter().map(|closing| closing.at);
        requests.chain(closing).chain(self.leaving.values().copied()).min()
    }

    /// The way to a hub for a network's paths.
    pub(super) fn route(&mut self, network: NetworkId, to: HubKey) -> Option<Route> {
        let generation = self.lsdb.generation();
        let state = self.networks.get(&network)?;
        if state.routes.as_ref().is_none_or(|(of, _)| *of != generation) {
            let table = self.routes_around(network, &BTreeSet::new());
            self.networks.get_mut(&network)?.routes = Some((generation, table));
        }
        let (_, table) = self.networks.get(&network)?.routes.as_ref()?;
        table.get(&to).copied()
    }

    fn may_open(&self, upstream: AttachmentId, open: &PathOpen) -> Result<(), PathReason> {
        if open.hops == 0 || open.via.len() >= usize::from(MAX_HOPS) || open.via.contains(&self.key) {
            return Err(PathReason::HopLimit);
        }
        let network = self.networks.get(&open.network).ok_or(PathReason::NotMember)?;
        if !network.lists_member(&open.from) || !network.lists_member(&open.to) || open.from == open.to {
            return Err(PathReason::NotMember);
        }
        let state = self.attachments.get(upstream.0).ok_or(PathReason::Refused)?;
        let limits = &self.config.limits;
        // A neighbour asks for many nodes, each of which its own hub holds to the limit.
        let (requests, labels) = match state.owner {
            Owner::Hub(_) => (limits.requests * HUB_SHARE, limits.labels_per_network),
            Owner::Node { .. } => (limits.requests, limits.labels_per_node),
        };
        let many = state.requests >= requests || state.upstream.len() >= labels;
        if many || network.labels >= limits.labels_per_network {
            return Err(PathReason::Quota);
        }
        Ok(())
    }

    /// Hands a request to the next hop.
    fn ask(&mut self, origin: Origin, upstream: AttachmentId, open: PathOpen, now: Instant) -> Result<(), PathReason> {
        let onward = self.choose(&open, &BTreeSet::new())?;
        if onward.downstream == upstream {
            return Err(PathReason::NoRoute);
        }
        if let (Origin::Asked(_), Some(state)) = (origin, self.attachments.get_mut(upstream.0)) {
            state.requests += 1;
        }
        let Onward { downstream, rtt_us, holder } = onward;
        let (without, deadline) = (BTreeSet::new(), now + PATIENCE);
        self.hand_on(Pending { origin, upstream, downstream, open, rtt_us, holder, without, deadline });
        Ok(())
    }

    /// The hub that was said to hold the receiver does not: perhaps another one does.
    fn ask_another(&mut self, request: u32) -> bool {
        let Some(Pending { open, holder: Some(holder), without, upstream, .. }) = self.pending.get(&request) else {
            return false;
        };
        let (open, upstream, mut without) = (open.clone(), *upstream, without.clone());
        without.insert(*holder);
        let Ok(Onward { downstream, rtt_us, holder }) = self.choose(&open, &without) else { return false };
        if downstream == upstream {
            return false;
        }
        if let Some(pending) = self.pending.remove(&request) {
            self.hand_on(Pending { downstream, rtt_us, holder, without, ..pending });
        }
        true
    }

    /// The hub that was asked says nothing more: perhaps there is a way around it.
    fn ask_around(&mut self, request: u32, now: Instant) {
        let Some(Pending { open, without, upstream, .. }) = self.pending.get(&request) else { return };
        let (open, upstream, without) = (open.clone(), *upstream, without.clone());
        match self.choose(&open, &without) {
            Ok(Onward { downstream, rtt_us, holder }) if downstream != upstream => {
                if let Some(pending) = self.pending.remove(&request) {
                    self.hand_on(Pending { downstream, rtt_us, holder, ..pending });
                }
            }
            Ok(_) | Err(_) => self.fail(request, PathReason::HubLost, now),
        }
    }

    fn hand_on(&mut self, pending: Pending) {
        let request = self.next_request;
        self.next_request = self.next_request.wrapping_add(1);
        let open = &pending.open;
        let mut via = open.via.clone();
        via.push(self.key);
        let onward = PathOpen { request, hops: open.hops.saturating_sub(1), via, ..open.clone() };
        self.tell(pending.downstream, Control::PathOpen(onward));
        if let Origin::Repair(label, _) = pending.origin
            && let Some(state) = self.labels.get_mut(label.0)
        {
            state.repair = Repair::Asked(request);
        }
        self.pending.insert(request, pending);
    }

    /// The next hop toward the receiver, at another hub than those `without` it.
    fn choose(&mut self, open: &PathOpen, without: &BTreeSet<HubKey>) -> Result<Onward, PathReason> {
        let state = self.networks.get(&open.network).ok_or(PathReason::NotMember)?;
        if let Some(here) = state.attached.get(&open.to) {
            return Ok(Onward { downstream: *here, rtt_us: 0, holder: None });
        }
        let holders = state.presence.hubs_of(&open.to).map(|presence| presence.hub());
        let holders: Vec<_> = holders.filter(|hub| !without.contains(hub)).collect();
        if holders.is_empty() {
            return Err(PathReason::NotAttached);
        }
        let crossed: BTreeSet<_> = open.via.iter().copied().collect();
        let late = self.neighbours.iter().filter(|(_, neighbour)| neighbour.is_late()).map(|(hub, _)| *hub);
        let avoided = open.avoid.iter().copied().filter(|hub| *hub != self.key);
        let wary = avoided.chain(late).chain(crossed.iter().copied()).collect();
        for around in [&wary, &crossed] {
            let table = if around.is_empty() {
                holders.iter().filter_map(|hub| Some((*hub, self.route(open.network, *hub)?))).collect()
            } else {
                self.routes_around(open.network, around)
            };
            let reachable = holders.iter().filter_map(|hub| Some((*hub, table.get(hub)?)));
            let best = reachable.min_by_key(|(_, route)| (route.cost, route.next_hop));
            let Some((holder, best)) = best else { continue };
            if let Some(neighbour) = self.neighbours.get(&best.next_hop).filter(|neighbour| neighbour.is_up()) {
                let (downstream, rtt_us) = (neighbour.attachment, neighbour.rtt_us());
                return Ok(Onward { downstream, rtt_us, holder: Some(holder) });
            }
        }
        Err(PathReason::NoRoute)
    }

    fn routes_around(
        &self,
        network: NetworkId,
        around: &BTreeSet<HubKey>,
    ) -> std::collections::BTreeMap<HubKey, Route> {
        let Some(state) = self.networks.get(&network) else { return std::collections::BTreeMap::new() };
        let me = self.key;
        routes(me, self.lsdb.states(), |lsa| {
            if lsa.origin == me {
                Carry::Transit
            } else if !state.lists_hub(&lsa.origin) || around.contains(&lsa.origin) {
                Carry::No
            } else if lsa.serves.binary_search(&state.tag).is_ok() {
                Carry::Transit
            } else {
                Carry::End
            }
        })
    }

    fn give_label(
        &mut self,
        upstream: AttachmentId,
        downstream: AttachmentId,
        (request, out, mut via, rtt_us): (u32, Label, Vec<HubKey>, u32),
        open: PathOpen,
        now: Instant,
    ) {
        let PathOpen { network, from, to, via: before, avoid, .. } = open;
        let (ahead, repair) = (via.clone(), Repair::No);
        let state = LabelState { network, from, to, upstream, downstream, out, via: before, ahead, avoid, repair };
        let crosses = state.crosses();
        let generation = self.random.generation();
        // Many requests may have waited at once.
        let limit = self.config.limits.labels_per_network;
        let tenant = self.networks.get_mut(&network).filter(|tenant| tenant.labels < limit);
        let given = tenant.and_then(|tenant| {
            let label = self.labels.insert(generation, state).map(Label)?;
            tenant.labels += 1;
            Some(label)
        });
        let Some(label) = given else {
            self.close_downstream(downstream, out);
            return self.tell(upstream, Control::PathFailed { request, reason: PathReason::Quota });
        };
        if let Some(state) = self.attachments.get_mut(upstream.0) {
            state.upstream.insert(label);
        }
        if crosses {
            self.crossing.insert((network, to, label));
        }
        if let Some(state) = self.attachments.get_mut(downstream.0) {
            state.downstream.insert((out, label));
        }
        self.forward(ForwardCommand::AddLabel { label, network, upstream, downstream, out });
        via.insert(0, self.key);
        self.tell(upstream, Control::PathOpened { request, label, via, rtt_us });
        self.lead_straight(label, now);
    }

    /// Another way works: move the label onto it, and let the old way drain.
    fn redirect(&mut self, label: Label, downstream: AttachmentId, (out, via): (Label, &[HubKey]), now: Instant) {
        let Some(state) = self.labels.get_mut(label.0) else {
            return self.close_downstream(downstream, out);
        };
        let before = (state.downstream, state.out);
        (state.downstream, state.out, state.repair) = (downstream, out, Repair::No);
        self.set_ahead(label, via);
        if let Some(attachment) = self.attachments.get_mut(before.0.0) {
            attachment.downstream.remove(&(before.1, label));
            self.closing.push(Closing { at: now + KEEP, attachment: before.0, label: before.1 });
        }
        if let Some(attachment) = self.attachments.get_mut(downstream.0) {
            attachment.downstream.insert((out, label));
        }
        self.forward(ForwardCommand::RedirectLabel { label, downstream, out });
        self.lead_straight(label, now);
    }

    /// The hubs after this one on a label's way. The sender is told where they are others than before.
    fn set_ahead(&mut self, label: Label, ahead: &[HubKey]) {
        let Some(state) = self.labels.get_mut(label.0).filter(|state| state.ahead != ahead) else { return };
        state.ahead = ahead.to_vec();
        let (way, upstream) = ((state.network, state.to, label), state.upstream);
        if state.crosses() {
            self.crossing.insert(way);
        } else {
            self.crossing.remove(&way);
        }
        let via = [self.key].into_iter().chain(ahead.iter().copied()).collect();
        self.tell(upstream, Control::PathMoved { label, via });
    }

    /// Looks for another way onward, around `hub`. Where the way is broken and there is no other, the
    /// sender is told.
    fn repair(&mut self, label: Label, hub: Option<HubKey>, cause: Cause, now: Instant) {
        if self.is_repaired(label, cause) {
            return;
        }
        let Some(state) = self.labels.get(label.0) else { return };
        let before = state.downstream;
        let mut avoid = state.avoid.clone();
        avoid.extend(hub);
        let crossed = u8::try_from(state.via.len()).unwrap_or(MAX_HOPS);
        let open = PathOpen {
            request: 0,
            network: state.network,
            from: state.from,
            to: state.to,
            hops: MAX_HOPS.saturating_sub(crossed),
            via: state.via.clone(),
            avoid,
        };
        let upstream = state.upstream;
        let onward = self.choose(&open, &BTreeSet::new());
        let stays = cause == Cause::Leaving && onward.is_ok_and(|onward| onward.downstream == before);
        let asked =
            if stays { Err(PathReason::NoRoute) } else { self.ask(Origin::Repair(label, cause), upstream, open, now) };
        if let Err(reason) = asked {
            let reason = if hub.is_some() { PathReason::HubLost } else { reason };
            self.unrepaired(label, cause, reason, now);
        }
    }

    /// Whether another way is asked for already. A request that was made while the old way stood is one for a way that is
    /// broken, once it is.
    fn is_repaired(&mut self, label: Label, cause: Cause) -> bool {
        let Some(Repair::Asked(request)) = self.labels.get(label.0).map(|state| state.repair) else { return false };
        let Some(pending) = self.pending.get_mut(&request) else { return false };
        if cause == Cause::Broken {
            pending.origin = Origin::Repair(label, cause);
        }
        true
    }

    /// There is no other way.
    fn unrepaired(&mut self, label: Label, cause: Cause, reason: PathReason, now: Instant) {
        match (cause, self.labels.get_mut(label.0)) {
            (Cause::Leaving, Some(state)) if self.attachments.get(state.downstream.0).is_some() => {
                state.repair = Repair::No;
            }
            _ => self.drop_label(label, reason, now),
        }
    }

    fn fail(&mut self, request: u32, reason: PathReason, now: Instant) {
        let Some(Pending { origin, upstream, holder, .. }) = self.pending.remove(&request) else { return };
        match origin {
            Origin::Asked(request) => {
                self.request_ended(upstream);
                self.tell(upstream, Control::PathFailed { request, reason });
            }
            Origin::Repair(label, cause) => {
                self.unrepaired(label, cause, reason, now);
                // one that asked the receiver itself is not asked again
                if holder.is_some() {
                    self.lead_straight(label, now);
                }
            }
        }
    }

    /// Tells the upstream; the downstream knows.
    fn lose(&mut self, label: Label, reason: PathReason) {
        if let Some(state) = self.unhook(label) {
            self.tell(state.upstream, Control::PathLost { label, reason });
        }
    }

    /// Frees a label here; tells nobody.
    fn unhook(&mut self, label: Label) -> Option<LabelState> {
        let state = self.labels.remove(label.0)?;
        if let Some(tenant) = self.networks.get_mut(&state.network) {
            tenant.labels = tenant.labels.saturating_sub(1);
        }
        self.crossing.remove(&(state.network, state.to, label));
        self.leaving.remove(&label);
        self.forward(ForwardCommand::RemoveLabel { label });
        if let Some(attachment) = self.attachments.get_mut(state.upstream.0) {
            attachment.upstream.remove(&label);
        }
        if let Some(attachment) = self.attachments.get_mut(state.downstream.0) {
            attachment.downstream.remove(&(state.out, label));
        }
        Some(state)
    }

    /// Tells a downstream that its label is free, unless another of ours still leads to it.
    fn close_downstream(&mut self, downstream: AttachmentId, out: Label) {
        if self.labels_to(downstream, out).is_empty() {
            self.tell(downstream, Control::PathClose { label: out });
        }
    }

    fn labels_to(&self, downstream: AttachmentId, out: Label) -> Vec<Label> {
        let Some(state) = self.attachments.get(downstream.0) else { return Vec::new() };
        let range = (out, Label(0))..=(out, Label(u32::MAX));
        state.downstream.range(range).map(|(_, label)| *label).collect()
    }

    fn request_ended(&mut self, upstream: AttachmentId) {
        if let Some(state) = self.attachments.get_mut(upstream.0) {
            state.requests = state.requests.saturating_sub(1);
        }
    }

    fn owner_hub(&self, attachment: AttachmentId) -> Option<HubKey> {
        match self.attachments.get(attachment.0)?.owner {
            Owner::Hub(hub) => Some(hub),
            Owner::Node { .. } => None,
        }
    }

    /// Sends on an attachment's control stream.
    fn tell(&mut self, attachment: AttachmentId, message: Control) {
        if let Some(state) = self.attachments.get(attachment.0) {
            let control = state.control;
            self.send(control, message);
        }
    }
}

/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the old way is kept after a new one works, and the way to a receiver that is about to detach.
const KEEP: Duration = Duration::from_secs(5);
/// How many nodes' worth a neighbouring hub may ask for.
const HUB_SHARE: usize = 256;
const MAX_AVOID: usize = 16;
