//! Which hubs to be attached to, and dialling them when their time comes.

use std::time::{Duration, Instant};

use flatlan_datapath::Command;
use flatlan_types::{HostPort, HubKey, HubSlot};

use super::{Context, Hub, HubEvent, Hubs, MAX_FAR, Phase, Purpose, Stream, distance::Standing};
use crate::{
    Transport,
    backoff::Backoff,
    identity::Identity,
    output::{Output, StreamId},
    rng::mix,
};

/// A place to dial.
pub(super) struct Target {
    pub(super) place: HostPort,
    pub(super) key: Option<HubKey>,
    /// Greater is better.
    pub(super) rank: f64,
    pub(super) dialling: Option<StreamId>,
    /// When it was dialled last.
    dialled_at: Option<Instant>,
    /// Nothing was heard of that dial for [`HEAD_START`].
    slow: bool,
    pub(super) backoff: Backoff,
    pub(super) next: Instant,
    /// The operator was told that it cannot be reached.
    pub(super) told: bool,
}

impl Hubs {
    /// Dials what is wanted and due.
    pub(super) fn dial(&mut self, ctx: &mut Context<'_>) {
        for target in &mut self.targets {
            target.slow |= target.slow_at().is_some_and(|at| at <= ctx.now);
        }
        let upgrade = self.upgrade().filter(|(_, at)| *at <= ctx.now).map(|(place, _)| place);
        self.upgraded = upgrade.map(|_| ctx.now).or(self.upgraded);
        for place in self.due_targets().into_iter().chain(upgrade) {
            let Some(target) = self.targets.get_mut(place) else { continue };
            if target.next > ctx.now {
                continue;
            }
            self.next_stream += 1;
            let id = StreamId(self.next_stream);
            target.dialling = Some(id);
            (target.dialled_at, target.slow) = (Some(ctx.now), false);
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

    pub(super) fn open(
        &mut self,
        id: StreamId,
        purpose: Purpose,
        place: HostPort,
        expected: Option<HubKey>,
        ctx: &mut Context<'_>,
    ) {
        ctx.out.push(Output::Dial { stream: id, target: place.clone(), role: purpose.role(), hub: expected });
        let deadline = Some(ctx.now + DIAL);
        self.streams.insert(id, Stream { purpose, place, phase: Phase::Dialling, deadline });
    }

    /// The targets to dial when their time comes: the best that are not attached. One that fails, or is silent for
    /// [`HEAD_START`] (as RFC 8305 has it for addresses), keeps its turn and does not use it up, so that the next
    /// best steps in for it; when it is back, the one that stepped in is left after [`SURPLUS`].
    pub(super) fn due_targets(&self) -> Vec<usize> {
        let wanted = self.wanted();
        let promising =
            |target: &Target| target.backoff.failures() < STEP_IN && !(target.slow && target.dialling.is_some());
        let dialled = |target: &&Target| target.dialling.is_some() && promising(target);
        let mut coming = self.staying().count() + self.targets.iter().filter(dialled).count();
        let mut left = wanted;
        let mut due = Vec::new();
        for (place, target) in self.targets.iter().enumerate() {
            if left == 0 {
                break;
            }
            let failures = target.backoff.failures();
            let attached = self.is_covered(target);
            if attached || promising(target) {
                left -= 1;
            }
            // a hub that said it is about to stop is dialled again when it has gone
            let held = self.hubs.iter().any(|hub| Some(hub.key) == target.key && hub.control.is_some());
            if attached || held || target.dialling.is_some() {
                continue;
            }
            if failures > 0 {
                due.push(place);
            } else if coming < wanted {
                coming += 1;
                due.push(place);
            }
        }
        due
    }

    /// A hub that is clearly nearer than one of those in use, and when to dial it: beside them, for only when it is
    /// attached is the other left.
    pub(super) fn upgrade(&self) -> Option<(usize, Instant)> {
        let staying = self.staying().count();
        let busy = self.targets.iter().any(|target| target.dialling.is_some());
        if busy || staying == 0 || staying != self.wanted() {
            return None;
        }
        let worst = self.staying().map(|hub| self.standing(hub.slot)).max_by(Standing::compare)?;
        let nearer = |target: &Target| {
            let hub = self.hubs.iter().find(|hub| Some(hub.key) == target.key);
            let free = hub.filter(|hub| hub.listed && hub.control.is_none() && hub.distance.rtt.is_some());
            target.backoff.failures() == 0 && free.is_some_and(|hub| self.standing(hub.slot).tier < worst.tier)
        };
        let place = self.targets.iter().position(nearer)?;
        let next = self.targets.get(place)?.next;
        Some((place, self.upgraded.map_or(next, |last| next.max(last + UPGRADE_PAUSE))))
    }

    /// Whether a target's hub is attached, or (before its key is known) one that was dialled there.
    pub(super) fn is_covered(&self, target: &Target) -> bool {
        let open = |stream: &Stream| stream.place == target.place && matches!(stream.phase, Phase::Open(_));
        match target.key {
            Some(key) => self.staying().any(|hub| hub.key == key),
            None => self.streams.values().any(open),
        }
    }

    /// The hubs attached to that are not about to stop.
    pub(super) fn staying(&self) -> impl Iterator<Item = &Hub> {
        self.hubs.iter().filter(|hub| hub.control.as_ref().is_some_and(|attachment| !attachment.draining))
    }

    /// Leaves the worst hub when there have been too many for long: lanes first, this node's and its peers', and then it.
    /// One that is the only one in common with a peer counts from here on as one that is there for its sake.
    pub(super) fn leave_surplus(&mut self, ctx: &mut Context<'_>) {
        if self.staying().count() <= self.wanted() {
            self.surplus = None;
            return;
        }
        let since = *self.surplus.get_or_insert(ctx.now);
        if ctx.now.duration_since(since) < SURPLUS {
            return;
        }
        self.surplus = None;
        let standing = |hub: &&Hub| self.standing(hub.slot);
        let worst = self.staying().max_by(|a, b| standing(a).compare(&standing(b))).map(|hub| hub.slot);
        let Some(slot) = worst else { return };
        if let Some(key) = self.key(slot).filter(|key| self.sole.contains(key) && self.far.len() < MAX_FAR) {
            self.far.insert(key, ctx.now);
            self.find_tiers();
            return;
        }
        tracing::debug!(hub = %self.label(slot), "hub is not needed any more");
        if let Some(attachment) = self.attachment_mut(slot) {
            attachment.draining = true;
            attachment.leave_at = Some(ctx.now + LEAVE);
            ctx.out.worker(Command::DrainHub { hub: slot });
            self.events.push_back(HubEvent::Leaving { hub: slot });
        }
    }

    pub(super) fn wants_data(&self, hub: &Hub) -> bool {
        let allowed = match self.transport {
            Transport::Auto | Transport::Tcp => true,
            Transport::Udp => false,
        };
        allowed && hub.control.is_some() && hub.data.open.is_none() && hub.data.dialling.is_none()
    }
}

impl Target {
    pub(super) fn new(place: HostPort, key: Option<HubKey>, rank: f64, now: Instant) -> Self {
        let (dialling, dialled_at, slow) = (None, None, false);
        Self { place, key, rank, dialling, dialled_at, slow, backoff: Backoff::default(), next: now, told: false }
    }

    /// When the dial that is under way becomes a slow one.
    pub(super) fn slow_at(&self) -> Option<Instant> {
        self.dialling.filter(|_| !self.slow)?;
        Some(self.dialled_at? + HEAD_START)
    }
}

/// Where a hub stands among those that are equally near: rendezvous hashing, so that nodes spread over the hubs by
/// their weights and a hub that comes or goes moves nobody else.
pub(super) fn rank(me: &Identity, hub: &HubKey, weight: u16) -> f64 {
    let word = |bytes: &[u8; 32]| bytes.first_chunk().map_or(0, |chunk| u64::from_be_bytes(*chunk));
    let hash = mix(word(me.keys.id.as_bytes()) ^ mix(word(hub.as_bytes())));
    let unit = ((hash >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
    -f64::from(weight.max(1)) / unit.ln()
}

/// How many hubs to be attached to, where there are so many.
pub(super) const MAX_ATTACHED: usize = 3;
/// A target that is dialled and says nothing no longer keeps the next best away after this.
const HEAD_START: Duration = Duration::from_secs(1);
/// A failing target no longer keeps the next best away after so many failures.
const STEP_IN: u32 = 2;
/// More hubs than wanted are left after this.
pub(super) const SURPLUS: Duration = Duration::from_secs(60);
/// From one hub that is dialled because it is nearer to the next.
const UPGRADE_PAUSE: Duration = Duration::from_secs(30);
/// Lanes have so long to leave a hub that is to be left.
const LEAVE: Duration = Duration::from_secs(2);
/// A driver that says nothing of a dial for so long has lost it.
const DIAL: Duration = Duration::from_secs(8);
