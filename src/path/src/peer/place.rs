//! Which path each lane uses.
//!
//! One lane carries flows, or several; a spare one carries nothing, and where only one carries, it waits on another
//! way. A dead path moves the lane itself, for there is nothing in flight that could be overtaken. A better path is
//! taken gracefully: a spare lane goes there, then it gets the flows, and the old one stays where it is until what it
//! has in flight has arrived.

use std::time::{Duration, Instant};

use flatlan_types::LaneId;

use super::{Better, Need, PeerPaths};
use crate::{
    event::MoveReason,
    kind::{Leg, PathId, PathKind},
    path::{Path, Phase},
    size::Failed,
};

impl PeerPaths {
    pub(super) fn place(&mut self, now: Instant) {
        self.revive();
        self.bury(now);
        self.check_sizes(now);
        for lane in LaneId::all().filter(|lane| self.carries(*lane)).collect::<Vec<_>>() {
            self.place_carrier(lane, now);
        }
        self.pardon(now);
        self.consider_better(now);
        self.share_out(now);
        self.place_spare(now);
        self.trim(now);
        self.choose_standbys(now);
    }

    fn choose_standbys(&mut self, now: Instant) {
        let ready = |id: &PathId, of: Option<PathId>| {
            Some(*id) != of && self.paths.get(id).is_some_and(|path| path.phase != Phase::Dead)
        };
        let spare = self.standby_lane().and_then(|lane| self.lane(lane)?.path);
        let standby = |lane: LaneId| {
            let own = self.lane(lane).and_then(|lane| lane.path);
            let warm = spare.filter(|spare| ready(spare, own));
            self.carries(lane).then(|| warm.or_else(|| self.choose(own, None, now).map(|(id, _)| id))).flatten()
        };
        let standbys: Vec<Option<PathId>> = LaneId::all().map(standby).collect();
        for (lane, standby) in self.lanes.iter_mut().zip(standbys) {
            lane.standby = standby;
        }
    }

    /// Data does not arrive by this path although probes do. Lanes leave it if another path has what is
    /// needed; with none the news is worth nothing, for they must stay anyway.
    pub(super) fn condemn(&mut self, id: PathId, need: Need, now: Instant) -> Outcome {
        if self.paths.get(&id).is_none_or(|path| path.is_grey(now)) {
            return Outcome::Stays;
        }
        let since = now.checked_sub(FRESH);
        let target = self.choose_by(Some(id), since, now, |path| match need {
            Need::Life => true,
            Need::Size(size) => path.size.current() >= size && path.size.proven() >= since && since.is_some(),
        });
        let Some((target, health)) = target else { return Outcome::Stays };
        // one that died not long ago is better than one that swallows data, if it answers
        let answers = since.is_some() && self.paths.get(&target).is_some_and(|path| path.alive() > since);
        if !(health == Health::Good || health == Health::Fair && answers) {
            return Outcome::Stays;
        }
        if let Some(path) = self.paths.get_mut(&id) {
            path.black_out(now);
        }
        for lane in LaneId::all().filter(|lane| self.carries(*lane) && self.uses(*lane, id)).collect::<Vec<_>>() {
            self.put_carrier(lane, target, MoveReason::Evidence);
        }
        self.excuse(id, MoveReason::Evidence);
        Outcome::Leaves
    }

    /// Paths that answered often enough are valid.
    fn revive(&mut self) {
        for path in self.paths.values_mut() {
            let enough = match (path.phase, path.kind) {
                (Phase::Untested, PathKind::Relay { .. }) => 1,
                (Phase::Untested, PathKind::Direct(_)) | (Phase::Dead, _) => ANSWERS,
                (Phase::Valid, _) => continue,
            };
            if path.answers() >= enough {
                path.revive();
            }
        }
    }

    /// Paths that missed too many probes while another path delivered are dead; so are those that were
    /// silent for very long, but if nothing else answers no lane has reason to leave them.
    fn bury(&mut self, now: Instant) {
        if self.paths.values().all(|path| path.missed() == 0) {
            return;
        }
        let heard: Vec<(PathId, Option<Instant>)> = self.paths.values().map(|path| (path.id, path.alive())).collect();
        let mut dead = Vec::new();
        for path in self.paths.values_mut().filter(|path| path.phase != Phase::Dead) {
            let limit = match path.phase {
                Phase::Untested => MISSES_UNTESTED,
                Phase::Valid | Phase::Dead => MISSES,
            };
            let Some(since) = path.missed_since().filter(|_| path.missed() >= limit) else { continue };
            let candidate = path.phase == Phase::Untested && path.kind.is_direct();
            let others = heard.iter().any(|(id, alive)| *id != path.id && *alive > Some(since));
            if !candidate && (others || now.saturating_duration_since(since) > SILENCE) {
                path.die(now);
                dead.push(path.id);
            }
        }
        dead.into_iter().for_each(|id| self.excuse(id, MoveReason::Dead));
    }

    /// Paths that fail large probes are used with a smaller size that passes; where none but the smallest
    /// passes, they swallow data.
    fn check_sizes(&mut self, now: Instant) {
        let failed = |path: &Path| Some((path.id, path.size.failed(path.alive())?, path.size.current()));
        let valid = self.paths.values().filter(|path| path.phase == Phase::Valid);
        let failed: Vec<(PathId, Failed, usize)> = valid.filter_map(failed).collect();
        for (id, failed, size) in failed {
            let left = match failed {
                Failed::Size => Outcome::Stays,
                Failed::Data => self.condemn(id, Need::Size(size), now),
            };
            if let Some(path) = self.paths.get_mut(&id).filter(|_| left == Outcome::Stays) {
                path.size.step_down(now);
            }
        }
    }

    /// A lane that carries flows has a path as long as there is any, and leaves it when it is dead.
    fn place_carrier(&mut self, lane: LaneId, now: Instant) {
        let current = self.lane(lane).and_then(|lane| lane.path);
        let reason = |or| self.lane(lane).map_or(or, |lane| lane.reason);
        let Some(path) = current.and_then(|id| self.paths.get(&id)) else {
            if let Some((id, _)) = self.choose(None, None, now) {
                self.put_carrier(lane, id, reason(MoveReason::First));
            }
            return;
        };
        if path.phase != Phase::Dead || is_recovering(path) {
            return;
        }
        let since = path.missed_since().filter(|_| path.missed() > 0).or_else(|| now.checked_sub(FRESH));
        if let Some((id, _)) = self.choose(current, since, now) {
            self.put_carrier(lane, id, reason(MoveReason::Dead));
            self.better = None;
        }
    }

    fn place_spare(&mut self, now: Instant) {
        let Some(spare) = self.standby_lane() else { return };
        let Some(primary) = self.lane(self.primary).and_then(|lane| lane.path) else { return };
        let Some(lane) = self.lane(spare).copied() else { return };
        let Some((best, health)) = self.choose(Some(primary), None, now) else { return };
        let (Some(primary), Some(target)) = (self.paths.get(&primary), self.paths.get(&best)) else { return };
        let reason = match lane.path.and_then(|id| self.paths.get(&id)) {
            None if lane.reason == MoveReason::Unused => MoveReason::First,
            None => lane.reason,
            Some(current) if current.id == best => return,
            Some(current) => {
                let doomed = current.phase == Phase::Dead || current.is_grey(now);
                if health > Health::Fair || (lane.is_quiet(now) && !doomed) {
                    return;
                }
                let (own, new) = (self.common(current.kind, primary.kind), self.common(target.kind, primary.kind));
                let crowded = new < own;
                let slow = class(current.kind) == Class::Tls && class(target.kind) == Class::Udp;
                let apart = new <= own;
                if doomed {
                    lane.reason
                } else if current.draining && !target.draining {
                    MoveReason::Drain
                } else if crowded || current.id == primary.id {
                    MoveReason::Spread
                } else if slow && apart && health == Health::Good {
                    MoveReason::Better
                } else {
                    return;
                }
            }
        };
        self.put(spare, best, reason);
    }

    /// A path that is better for long enough, or the way to leave a draining hub, is taken gracefully: for one lane at
    /// a time.
    fn consider_better(&mut self, now: Instant) {
        let wish = LaneId::all().filter(|lane| self.carries(*lane)).find_map(|lane| self.wish(lane, now));
        let Some(Wish { lane, path, reason, wait, round_trips, same_class }) = wish else {
            self.better = None;
            return;
        };
        let since = match self.better {
            Some(better) if (better.lane, better.path) == (lane, path) => better.since,
            Some(_) | None => now,
        };
        self.better = Some(Better { lane, path, since });
        let Some(spare) = self.free_lane(now) else { return };
        let busy = self.lane(spare).is_some_and(|spare| spare.is_quiet(now) && spare.path != Some(path));
        if now.saturating_duration_since(since) < wait || busy {
            return;
        }
        if same_class && reason != MoveReason::Spread {
            self.dwell = Some(now + self.dwell_next);
            self.dwell_next = (self.dwell_next * 2).min(MAX_DWELL);
        }
        self.better = None;
        self.begin_data(path);
        self.put(spare, path, reason);
        self.hand_flows(lane, spare, reason, now + round_trips.max(MIN_QUIET));
    }

    /// Where the flows of a lane would be better, ways that others go set aside.
    fn wish(&self, lane: LaneId, now: Instant) -> Option<Wish> {
        let current = self.carried(lane)?;
        if current.phase == Phase::Dead && !is_recovering(current) {
            return None;
        }
        let several = self.carriers().count() > 1;
        let open = |path: &&Path| !several || path.kind.is_direct() || !self.is_taken(path.kind, Some(lane));
        // whatever works is better than a hub that is about to stop
        let fit = |path: &&Path| is_fit(path, now) || (current.draining && is_sound(path, now));
        let fit = self.paths.values().filter(fit).filter(open);
        let best = fit.min_by_key(|path| (class(path.kind), path.cost(), path.id))?;
        if best.id == current.id {
            return None;
        }
        let (old, new) = (current.cost(), best.cost());
        let nearer = new + MARGIN.max(old / 4) < old || best.loss() + LOSS_MARGIN < current.loss();
        let rested = self.dwell.is_none_or(|until| now >= until);
        let same_class = class(best.kind) == class(current.kind);
        let crowded = several && self.is_guest(lane);
        let (wait, reason) = match class(best.kind) {
            _ if current.draining => (Duration::ZERO, MoveReason::Drain),
            Class::Direct if !same_class => (Duration::ZERO, MoveReason::Better),
            _ if class(best.kind) < class(current.kind) => (SUSTAIN, MoveReason::Better),
            _ if same_class && crowded => (SUSTAIN, MoveReason::Spread),
            _ if same_class && nearer && rested => (SUSTAIN, MoveReason::Better),
            Class::Direct | Class::Udp | Class::Tls => return None,
        };
        Some(Wish { lane, path: best.id, reason, wait, round_trips: (old + new) * 2, same_class })
    }

    /// A lane goes by this path from here on.
    pub(super) fn put(&mut self, lane: LaneId, path: PathId, reason: MoveReason) {
        let Some(lane) = self.lanes.get_mut(lane.index()) else { return };
        if lane.path != Some(path) {
            self.arrivals += 1;
            lane.arrival = self.arrivals;
            (lane.path, lane.reason, lane.quiet_until) = (Some(path), reason, None);
        }
    }

    /// The same for a lane that carries flows.
    pub(super) fn put_carrier(&mut self, lane: LaneId, path: PathId, reason: MoveReason) {
        self.begin_data(path);
        self.put(lane, path, reason);
    }

    /// Flows are about to go by a path: where none do yet, what was lost there earlier says nothing.
    pub(super) fn begin_data(&mut self, path: PathId) {
        if !self.carriers().any(|lane| self.uses(lane, path))
            && let Some(path) = self.paths.get_mut(&path)
        {
            path.ledger.restart();
        }
    }

    /// The best path to go to from `away`, if it is left because of what happened since `since`.
    fn choose(&self, away: Option<PathId>, since: Option<Instant>, now: Instant) -> Option<(PathId, Health)> {
        self.choose_by(away, since, now, |_| true)
    }

    fn choose_by(
        &self,
        away: Option<PathId>,
        since: Option<Instant>,
        now: Instant,
        wanted: impl Fn(&Path) -> bool,
    ) -> Option<(PathId, Health)> {
        let left = away.and_then(|id| self.kind(id));
        let others = self.paths.values().filter(|path| Some(path.id) != away && wanted(path));
        let ranked = others.filter_map(|path| {
            let common = left.map(|left| self.common(left, path.kind));
            Some((health(path, since, now)?, common, class(path.kind), path.cost(), path.id))
        });
        ranked.min().map(|(health, .., id)| (id, health))
    }
}

impl PeerPaths {
    /// What two paths share.
    fn common(&self, a: PathKind, b: PathKind) -> Common {
        let hubs = |kind: PathKind| {
            let first = kind.hub();
            first.into_iter().chain(first.and_then(|hub| self.over.get(&hub)).into_iter().flatten().copied())
        };
        if same_way(a, b) {
            Common::First
        } else if hubs(a).any(|hub| hubs(b).any(|other| other == hub)) {
            Common::Hub
        } else {
            Common::Nothing
        }
    }
}

/// What may fail for two paths at once, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Common {
    Nothing,
    /// A hub that one of them crosses behind its first.
    Hub,
    /// The first hub, or no hub at all.
    First,
}

/// A graceful move.
struct Wish {
    lane: LaneId,
    path: PathId,
    reason: MoveReason,
    /// The path must be better for so long.
    wait: Duration,
    round_trips: Duration,
    same_class: bool,
}

/// Whether flows can be moved to a path although nothing forces them.
pub(super) fn is_fit(path: &Path, now: Instant) -> bool {
    is_sound(path, now) && !path.is_held(now)
}

/// Whether flows can be moved to a path that may have failed not long ago.
fn is_sound(path: &Path, now: Instant) -> bool {
    path.phase == Phase::Valid
        && path.missed() == 0
        && path.alive() >= now.checked_sub(RECENT)
        && !(path.is_grey(now) || path.draining)
        && (path.size.proven().is_some() || !path.kind.is_direct())
}

/// How far a path can be trusted with a lane; `None`: not at all.
fn health(path: &Path, since: Option<Instant>, now: Instant) -> Option<Health> {
    let silent = path.missed() >= MISSES_UNTESTED;
    let fresh = since.is_none_or(|since| path.alive() > Some(since));
    match (path.phase, path.kind) {
        (Phase::Dead, _) => (since.is_some() && fresh && is_recovering(path)).then_some(Health::Hope),
        (Phase::Untested, PathKind::Direct(_)) => (path.answers() > 0).then_some(Health::Hope),
        (Phase::Untested, PathKind::Relay { .. }) if path.missed() > 0 => Some(Health::Poor),
        (Phase::Untested, PathKind::Relay { .. }) => Some(Health::Hope),
        (Phase::Valid, _) if path.is_grey(now) || path.draining || silent => Some(Health::Poor),
        (Phase::Valid, _) if fresh && !path.is_held(now) => Some(Health::Good),
        (Phase::Valid, _) => Some(Health::Fair),
    }
}

/// A dead path that answers again, and may be valid soon.
fn is_recovering(path: &Path) -> bool {
    path.phase == Phase::Dead && path.answers() > 0 && path.missed() == 0
}

/// How far a path can be trusted with a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    /// Answers.
    Good,
    /// Answered, but not of late, or it died not long ago.
    Fair,
    /// Not asked yet, or dead until a moment ago.
    Hope,
    /// Swallows data, will go away, or does not answer.
    Poor,
}

/// Whether a condemned path was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Leaves,
    Stays,
}

/// The ranks of DESIGN: direct, then relayed, then TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Direct,
    Udp,
    Tls,
}

pub(super) fn class(kind: PathKind) -> Class {
    match kind {
        PathKind::Direct(_) => Class::Direct,
        PathKind::Relay { hub: _, leg: Leg::Udp } => Class::Udp,
        PathKind::Relay { hub: _, leg: Leg::Tls } => Class::Tls,
    }
}

/// Whether two paths are likely to fail together.
pub(super) fn same_way(a: PathKind, b: PathKind) -> bool {
    a.hub() == b.hub()
}

/// Missed deadlines that make a path dead. Chance reaches this at 10 % loss once in years, and the
/// burst that follows the first miss gets there in a tenth of a second.
pub(super) const MISSES: u32 = 8;
/// The same for a relay that never answered, where there is nothing to lose.
pub(super) const MISSES_UNTESTED: u32 = 3;
/// Answers in a row that make a direct or a dead path valid.
const ANSWERS: u32 = 3;
/// Without an answer for so long a path is dead whether others answer or not.
const SILENCE: Duration = Duration::from_secs(5);
/// A path that answered within this can be moved to on evidence against another.
const FRESH: Duration = Duration::from_millis(1500);
/// A path that is promoted must have answered within this.
const RECENT: Duration = Duration::from_secs(3);
/// A relay must be better for so long.
pub(super) const SUSTAIN: Duration = Duration::from_millis(1500);
/// A relay must be nearer by so much, or by a quarter.
const MARGIN: Duration = Duration::from_millis(10);
/// A relay must lose less by so much.
const LOSS_MARGIN: f32 = 0.4;
/// After a graceful move between paths of one rank, no other before; twice as long each time, for the
/// load itself may be what makes the one that carries it look worse.
pub(super) const DWELL: Duration = Duration::from_secs(10);
const MAX_DWELL: Duration = Duration::from_secs(600);
/// A lane that carried flows stays open and in its place for at least so long.
pub(super) const MIN_QUIET: Duration = Duration::from_millis(100);
