//! Which lane carries which flows.
//!
//! Flows fall into groups by their hash. Without spreading the first group is all there is. With it the others get
//! lanes of their own as they are needed; a group without one goes with another, which one is a matter of the hash
//! too, so that what one group gives up is shared out evenly, and the flows of the others stay where they are.

use std::time::{Duration, Instant};

use flatlan_types::LaneId;

use super::{PeerPaths, place, schedule::Activity};
use crate::{
    config::Spread,
    event::MoveReason,
    kind::{PathId, PathKind},
    path::{Path, Phase},
};

/// Flows that go together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Group {
    /// The lane that carries them; `None`: another group's.
    pub(super) lane: Option<LaneId>,
    /// The lane that did before: while the other has no session.
    pub(super) before: Option<LaneId>,
    /// When a packet of theirs was sent last.
    used: Option<Instant>,
    /// Since when its path is none to share flows out to.
    unfit: Option<Instant>,
}

/// The first group has the first lane.
pub(super) fn first(now: Instant) -> [Group; GROUPS] {
    let mut groups = [Group::default(); GROUPS];
    if let Some(group) = groups.first_mut() {
        (group.lane, group.used) = (Some(LaneId::PRIMARY), Some(now));
    }
    groups
}

impl PeerPaths {
    /// The lanes that may carry a flow of this hash, the one where it belongs first. Where none of them has a
    /// session, any other lane may.
    pub fn lanes_of(&self, flow: u32) -> impl Iterator<Item = LaneId> {
        let groups = order(flow).iter().filter_map(|group| self.groups.get(*group));
        groups.flat_map(|group| [group.lane, group.before]).flatten()
    }

    /// A packet of a flow of this hash is sent: with spreading its group wants a lane.
    pub fn on_flow(&mut self, flow: u32, now: Instant) {
        let group = order(flow).first().and_then(|group| self.groups.get_mut(*group));
        if let Some(group) = group {
            group.used = Some(now);
        }
    }

    /// Whether a lane carries flows.
    pub fn carries(&self, lane: LaneId) -> bool {
        self.carriers().any(|carrier| carrier == lane)
    }

    /// The lanes that carry flows.
    pub(super) fn carriers(&self) -> impl Iterator<Item = LaneId> {
        self.groups.iter().filter_map(|group| group.lane)
    }

    /// The warm standby, which only a single lane that carries flows needs: of several each has another's path.
    pub(super) fn standby_lane(&self) -> Option<LaneId> {
        self.spare().filter(|_| self.carriers().count() == 1)
    }

    /// A lane that carries nothing, best one with a path.
    fn spare(&self) -> Option<LaneId> {
        self.spares().min_by_key(|lane| (self.lane(*lane).is_none_or(|lane| lane.path.is_none()), *lane))
    }

    /// A lane to which flows can be moved, best one whose own have arrived.
    pub(super) fn free_lane(&self, now: Instant) -> Option<LaneId> {
        let quality = |lane: &LaneId| self.lane(*lane).map(|lane| (lane.is_quiet(now), lane.path.is_none()));
        self.spares().min_by_key(|lane| (quality(lane), *lane))
    }

    fn spares(&self) -> impl Iterator<Item = LaneId> {
        let usable = match self.config.spread {
            Spread::Off => WITHOUT_SPREAD,
            Spread::On => LaneId::COUNT,
        };
        LaneId::all().take(usable).filter(|lane| !self.carries(*lane))
    }

    /// The flows of `old` go by `new` from here on; what `old` has under way arrives.
    pub(super) fn hand_flows(&mut self, old: LaneId, new: LaneId, reason: MoveReason, quiet_until: Instant) {
        if let Some(lane) = self.lanes.get_mut(old.index()) {
            (lane.quiet_until, lane.standby) = (Some(quiet_until), None);
        }
        for group in &mut self.groups {
            group.before = group.before.filter(|before| *before != new);
            if group.lane == Some(old) {
                (group.lane, group.before, group.unfit) = (Some(new), Some(old), None);
            }
        }
        if self.primary == old {
            (self.primary, self.primary_reason) = (new, reason);
        }
    }

    /// With spreading: gives groups lanes of their own, and takes them back.
    pub(super) fn share_out(&mut self, now: Instant) {
        if self.config.spread == Spread::Off {
            return;
        }
        self.elect_primary();
        for place in 0..GROUPS {
            self.close_group(place, now);
        }
        if self.activity(now) == Activity::Hot {
            for place in 0..GROUPS {
                self.open_group(place, now);
            }
        }
    }

    /// Lanes that nothing needs leave their paths.
    pub(super) fn trim(&mut self, now: Instant) {
        let standby = self.standby_lane();
        for lane in LaneId::all() {
            if self.carries(lane) || Some(lane) == standby {
                continue;
            }
            let Some(lane) = self.lanes.get_mut(lane.index()).filter(|lane| lane.path.is_some()) else { continue };
            if !lane.is_quiet(now) {
                (lane.path, lane.reason, lane.quiet_until) = (None, MoveReason::Unused, None);
            }
        }
    }

    /// A direct path makes its lane the primary, a hub that is about to stop makes another one so.
    fn elect_primary(&mut self) {
        let standing = |lane: LaneId| self.carried(lane).map(|path| (path.kind.is_direct(), !path.draining));
        let best = self.carriers().max_by_key(|lane| (standing(*lane), *lane == self.primary));
        if let Some(best) = best.filter(|best| standing(*best) > standing(self.primary)) {
            let direct = |lane| self.carried(lane).is_some_and(|path| path.kind.is_direct());
            let better = direct(best) && !direct(self.primary);
            self.primary_reason = if better { MoveReason::Better } else { MoveReason::Drain };
            self.primary = best;
        }
    }

    /// A group whose path is none to share out to, or that sends nothing any more, goes with the others.
    fn close_group(&mut self, place: usize, now: Instant) {
        let Some(group) = self.groups.get(place).copied() else { return };
        let Some(lane) = group.lane else { return };
        let Some(heir) = self.carriers().filter(|other| *other != lane).min_by_key(|other| *other != self.primary)
        else {
            return;
        };
        let (Some(own), Some(other)) = (self.carried(lane), self.carried(heir)) else { return };
        let works = |path: &Path| path.phase == Phase::Valid && path.missed() == 0 && !path.draining;
        let unused = group.used.is_none_or(|used| now.saturating_duration_since(used) >= self.config.gone);
        let (a, b) = (place::class(own.kind), place::class(other.kind));
        let far = a > b || (a == b && own.cost() > other.cost() * 2 + FAR);
        let unfit = far && works(other);
        let since = group.unfit.unwrap_or(now);
        let at_once = unused || (works(other) && (other.kind.is_direct() || own.draining));
        let sustained = unfit && now.saturating_duration_since(since) >= place::SUSTAIN;
        let reason = match (own.draining, unused) {
            (true, _) => MoveReason::Drain,
            (false, true) => MoveReason::Unused,
            (false, false) => MoveReason::Better,
        };
        let quiet_until = now + ((own.cost() + other.cost()) * 2).max(place::MIN_QUIET);
        let Some(group) = self.groups.get_mut(place) else { return };
        group.unfit = unfit.then_some(since);
        if !(at_once || sustained) {
            return;
        }
        (group.lane, group.before, group.unfit) = (None, None, None);
        if let Some(lane) = self.lanes.get_mut(lane.index()) {
            (lane.quiet_until, lane.standby) = (Some(quiet_until), None);
        }
        if self.primary == lane {
            (self.primary, self.primary_reason) = (heir, reason);
        }
    }

    /// A group that sends gets a lane of its own, where there is a hub for it.
    fn open_group(&mut self, place: usize, now: Instant) {
        let wanted = |group: &&Group| {
            let used = group.used.is_some_and(|used| now.saturating_duration_since(used) < self.config.hot);
            group.lane.is_none() && used
        };
        if self.groups.get(place).filter(wanted).is_none() {
            return;
        }
        let Some((class, cost)) = self.carried(self.primary).map(|path| (place::class(path.kind), path.cost())) else {
            return;
        };
        let near = |path: &&Path| place::class(path.kind) == class && path.cost() <= cost + cost / 2 + NEAR;
        let fit = self.paths.values().filter(|path| !path.kind.is_direct() && place::is_fit(path, now));
        let best =
            fit.filter(near).filter(|path| !self.is_taken(path.kind, None)).min_by_key(|path| (path.cost(), path.id));
        let (Some(best), Some(lane)) = (best.map(|path| path.id), self.free_lane(now)) else { return };
        if self.lane(lane).is_some_and(|lane| lane.is_quiet(now) && lane.path != Some(best)) {
            return;
        }
        self.put_carrier(lane, best, MoveReason::Spread);
        for group in &mut self.groups {
            group.before = group.before.filter(|before| *before != lane);
        }
        if let Some(group) = self.groups.get_mut(place) {
            (group.lane, group.before, group.unfit) = (Some(lane), None, None);
        }
    }

    /// Whether a lane that carries flows, other than `except`, goes the same way.
    pub(super) fn is_taken(&self, kind: PathKind, except: Option<LaneId>) -> bool {
        let others = self.carriers().filter(|lane| Some(*lane) != except);
        others.filter_map(|lane| self.carried(lane)).any(|path| place::same_way(path.kind, kind))
    }

    /// Whether a lane shares the way of another one that was there first.
    pub(super) fn is_guest(&self, lane: LaneId) -> bool {
        let arrival = |lane: LaneId| self.lane(lane).map(|lane| lane.arrival);
        let Some(own) = self.carried(lane) else { return false };
        let hosts = self.carriers().filter(|other| *other != lane && arrival(*other) < arrival(lane));
        hosts.filter_map(|other| self.carried(other)).any(|path| place::same_way(path.kind, own.kind))
    }

    /// The path by which a lane goes.
    pub(super) fn carried(&self, lane: LaneId) -> Option<&Path> {
        let id: PathId = self.lane(lane)?.path?;
        self.paths.get(&id)
    }
}

/// In which order groups take a flow: each is first for a third of them, and whatever is missing, the others share
/// its flows evenly.
fn order(flow: u32) -> &'static [usize; GROUPS] {
    let [first, ..] = &ORDERS;
    ORDERS.get(flow as usize % ORDERS.len()).unwrap_or(first)
}

const ORDERS: [[usize; GROUPS]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
/// As many as hubs to which a node is attached: one lane is left, to which flows can be moved.
pub(super) const GROUPS: usize = 3;
/// Lanes where nothing is spread: the one that carries flows, and the one that stands by.
const WITHOUT_SPREAD: usize = 2;
/// Flows are shared out to hubs whose round trip is half as long again as the primary's, and this, at the most.
const NEAR: Duration = Duration::from_millis(10);
/// They leave a hub whose round trip is twice as long as another's and this.
const FAR: Duration = Duration::from_millis(20);
