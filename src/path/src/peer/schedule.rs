//! When each path is probed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use flatlan_types::HubSlot;

use super::{Lane, PeerPaths, ProbeOut, place};
use crate::{
    budget::REFILL,
    event::PathEvent,
    evidence::Tally,
    frame::Probe,
    kind::PathId,
    path::{Expired, Path, Phase},
    size::{SMALL, Urgency},
};

impl PeerPaths {
    /// Deadlines that passed. The first one missed on the primary's path starts a burst there and on
    /// whatever could take over: suspicion is settled at once.
    pub(super) fn expire(&mut self, now: Instant) {
        let urgent = self.activity(now) == Activity::Hot || self.is_kept_warm(now);
        let mut alarm = Vec::new();
        let mut missed = Vec::new();
        for path in self.paths.values_mut() {
            if path.expire(now) == Expired::Yes {
                missed.push(path.id);
            }
        }
        self.find_silent(&missed, now);
        for id in missed {
            let role = self.role(id);
            let Some(path) = self.paths.get_mut(&id) else { continue };
            if role == Role::Primary && urgent && path.missed() == 1 {
                (path.burst, path.due) = (BURST, Some(now));
                alarm.push(id);
            } else if role != Role::Other && path.missed() < place::MISSES {
                path.due = path.due.map(|due| due.min(now + RETRY));
            }
        }
        if !alarm.is_empty() {
            let struck = |lane: &&Lane| lane.path.is_some_and(|id| alarm.contains(&id));
            let standbys: Vec<PathId> = self.lanes.iter().filter(struck).filter_map(|lane| lane.standby).collect();
            for path in self.paths.values_mut() {
                if standbys.contains(&path.id) {
                    (path.burst, path.due) = (BURST, Some(now));
                } else if path.phase == Phase::Valid {
                    path.due = Some(now);
                }
            }
        }
    }

    /// Hubs by which nothing arrives although it was asked again and again, of those of these paths.
    fn find_silent(&mut self, missed: &[PathId], now: Instant) {
        let hubs: BTreeSet<HubSlot> =
            missed.iter().filter_map(|id| self.paths.get(id)).filter_map(|path| path.kind.hub()).collect();
        for hub in hubs {
            let silent = |path: &Path| {
                let since = path.missed_since().filter(|_| path.missed() >= place::MISSES_UNTESTED);
                since.is_some_and(|since| now.saturating_duration_since(since) >= SILENT)
            };
            let told = self.silent.get(&hub).is_some_and(|told| now.saturating_duration_since(*told) < SILENT);
            if !told && self.paths.values().filter(|path| path.kind.hub() == Some(hub)).all(silent) {
                self.silent.insert(hub, now);
                self.events.push_back(PathEvent::Silent { hub });
            }
        }
    }

    /// Sends what is due and computes the next timeout.
    pub(super) fn schedule(&mut self, now: Instant) {
        if self.activity(now) < Activity::Gone {
            for id in self.lanes.iter().flat_map(|lane| [lane.path, lane.standby]).flatten() {
                self.paths.get_mut(&id).and_then(|path| path.due.replace(path.due.unwrap_or(now)));
            }
        }
        let due: Vec<PathId> =
            self.paths.values().filter(|path| path.due.is_some_and(|at| at <= now)).map(|path| path.id).collect();
        for id in due {
            self.probe(id, now);
        }
        let probes = self.paths.values().flat_map(|path| [path.due, path.deadline()]);
        self.timeout = probes.chain([self.idle_at()]).flatten().min();
    }

    /// How active the peer is.
    pub(super) fn activity(&self, now: Instant) -> Activity {
        let silent = now.saturating_duration_since(self.last_traffic);
        if silent < self.config.hot {
            Activity::Hot
        } else if silent < self.config.idle || self.is_kept_warm(now) {
            Activity::Warm
        } else if silent < self.config.gone {
            Activity::Idle
        } else {
            Activity::Gone
        }
    }

    /// From when on the peer is at rest, unless that was told: after minutes without traffic, and when it does not probe
    /// any more. Its probes are no traffic, and no reason to ask it anything: else two would keep each other awake.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        if self.told_idle == Some(self.last_traffic) {
            return None;
        }
        let asked = self.asked.map(|asked| asked + ASKED);
        [asked, self.warm_until].into_iter().flatten().chain([self.last_traffic + self.config.gone]).max()
    }

    fn is_kept_warm(&self, now: Instant) -> bool {
        self.warm_until.is_some_and(|until| now < until)
    }

    fn probe(&mut self, id: PathId, now: Instant) {
        let about = self.about(id);
        let asked = self.paths.get(&about).map_or_else(Tally::default, |path| path.ledger.tally());
        let (role, activity) = (self.role(id), self.activity(now));
        let (data_size, min_deadline) = (self.data_size.0, self.config.min_deadline);
        let Some(path) = self.paths.get_mut(&id) else { return };
        if activity == Activity::Gone || is_exhausted(path, role) {
            path.due = None;
            return;
        }
        let unproven = path.kind.is_direct() && path.phase != Phase::Valid;
        if unproven && self.budget.take(now).is_none() {
            path.due = Some(now + REFILL);
            return;
        }
        let large = path.phase == Phase::Valid && path.burst == 0 && activity == Activity::Hot;
        let contender = path.kind.is_direct() && path.size.proven().is_none();
        let size = if large && (role != Role::Other || contender) { path.size.next(data_size, now) } else { SMALL };
        self.seq = self.seq.wrapping_add(1);
        path.probe(self.seq, size, about, asked, now, min_deadline);
        let probe = Probe { path: id, seq: self.seq, instance: self.instance, about };
        let kind = path.kind;
        let pause = self.pause(id, role, activity, now);
        if let Some(path) = self.paths.get_mut(&id) {
            path.due = pause.map(|pause| now + pause);
        }
        self.transmits.push_back(ProbeOut { path: kind, probe, size });
    }

    /// Which path a probe that travels this one asks about: one that carries flows, for that is what everyone wants to
    /// know. Of several each asks about itself; where one is in doubt, the others ask about that one too, by turns: each
    /// keeps its own, for probes of several paths leave in step.
    fn about(&self, id: PathId) -> PathId {
        let primary = self.lane(self.primary).and_then(|lane| lane.path);
        let carried = || self.carriers().filter_map(|lane| self.lane(lane)?.path);
        if carried().all(|other| Some(other) == primary) {
            return primary.unwrap_or(id);
        }
        let doubtful = carried().filter(|other| *other != id).filter_map(|other| self.paths.get(&other));
        let doubtful = doubtful.filter(|path| path.missed() > 0).max_by_key(|path| path.missed()).map(|path| path.id);
        if !carried().any(|other| other == id) {
            return doubtful.or(primary).unwrap_or(id);
        }
        let last = self.paths.get(&id).and_then(Path::last_about);
        doubtful.filter(|doubt| last != Some(*doubt)).unwrap_or(id)
    }

    /// From a probe that leaves now to the next one of the same path.
    fn pause(&mut self, id: PathId, role: Role, activity: Activity, now: Instant) -> Option<Duration> {
        let searching = self.searching(now);
        let path = self.paths.get(&id)?;
        let interval = self.config.probe_interval * self.stretch;
        if is_exhausted(path, role) {
            return None;
        }
        if path.burst > 0 {
            return Some(self.config.burst_interval);
        }
        let candidate = path.kind.is_direct() && path.phase == Phase::Untested;
        if candidate && path.answers() == 0 {
            return Some(back_off(CANDIDATE, path.tries, CANDIDATE_MAX));
        }
        let pause = match activity {
            Activity::Gone => return None,
            Activity::Idle if role == Role::Other && !path.kind.is_direct() => return None,
            Activity::Idle if path.missed() > 0 && path.missed() < place::MISSES => RETRY,
            Activity::Idle => return Some(self.keepalive()),
            Activity::Warm if path.phase == Phase::Dead => back_off(DEAD, path.tries, WARM_OTHER),
            Activity::Warm if role == Role::Other => WARM_OTHER,
            Activity::Warm => WARM,
            Activity::Hot => match (path.phase, role) {
                // Soon three answers, or none.
                (Phase::Dead | Phase::Untested, _) if path.answers() > 0 => self.config.burst_interval,
                (Phase::Dead, Role::Other | Role::Standby) => {
                    back_off(DEAD, path.tries, if path.kind.is_direct() { DEAD_DIRECT } else { OTHER })
                }
                (Phase::Untested, Role::Other) => back_off(interval, path.tries, OTHER),
                (_, Role::Primary) if path.missed() >= place::MISSES || path.phase == Phase::Dead => {
                    searching.unwrap_or(interval)
                }
                (_, Role::Primary) => urgent(path, interval),
                (_, Role::Standby) if path.missed() > 0 => interval.max(back_off(interval, path.missed() / 8, OTHER)),
                (_, Role::Standby) => urgent(path, interval * 2),
                (Phase::Valid, Role::Other) if path.kind.is_direct() && path.size.proven().is_none() => {
                    urgent(path, interval)
                }
                (Phase::Valid, Role::Other) => OTHER,
            },
        };
        Some(searching.map_or(pause, |limit| pause.min(limit)))
    }

    /// While the primary has no path that answers, every path is asked, with a back-off that starts anew
    /// with each such time.
    fn searching(&self, now: Instant) -> Option<Duration> {
        if self.activity(now) != Activity::Hot {
            return None;
        }
        let primary = self.lane(self.primary).and_then(|lane| lane.path).and_then(|id| self.paths.get(&id));
        let Some(primary) = primary else { return Some(SEARCH_MAX) };
        let lost = primary.phase == Phase::Dead || primary.missed() >= place::MISSES;
        let since = primary.missed_since().filter(|_| lost)?;
        Some((now.saturating_duration_since(since) / 4).clamp(SEARCH_MIN, SEARCH_MAX))
    }

    /// 15 to 25 seconds: shorter than NATs and labels forget, and not all peers at once.
    fn keepalive(&mut self) -> Duration {
        KEEPALIVE + Duration::from_millis(self.random.next_u64() % KEEPALIVE_JITTER)
    }

    fn role(&self, id: PathId) -> Role {
        if self.carriers().any(|lane| self.uses(lane, id)) {
            Role::Primary
        } else if self.lanes.iter().any(|lane| lane.standby == Some(id) || lane.path == Some(id)) {
            Role::Standby
        } else {
            Role::Other
        }
    }
}

/// How active a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Activity {
    /// Traffic moments ago.
    Hot,
    /// Traffic not long ago.
    Warm,
    /// Lanes and mappings are kept open.
    Idle,
    /// Nothing is sent.
    Gone,
}

/// What a path is to the lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    /// Flows go by it.
    Primary,
    Standby,
    Other,
}

/// An endpoint that was asked often enough: a candidate that did not answer, or one that does not any more
/// and is no candidate.
fn is_exhausted(path: &Path, role: Role) -> bool {
    let hopeless = match path.phase {
        Phase::Untested => true,
        Phase::Dead => !path.listed && role == Role::Other,
        Phase::Valid => false,
    };
    hopeless && path.kind.is_direct() && path.tries >= MAX_TRIES
}

/// Faster while a question of size is open.
fn urgent(path: &Path, interval: Duration) -> Duration {
    match path.size.urgency() {
        Urgency::High => interval.min(SIZE_HIGH),
        Urgency::Raised => interval.min(SIZE_RAISED),
        Urgency::Low => interval,
    }
}

/// The first pause doubled with every try but the first.
fn back_off(first: Duration, tries: u32, most: Duration) -> Duration {
    first.saturating_mul(1 << tries.saturating_sub(1).min(16)).min(most)
}

/// A candidate is asked so often, unless it answers.
pub(super) const MAX_TRIES: u32 = 10;
/// A hub by which nothing arrives for so long is told of, and again after as long.
const SILENT: Duration = Duration::from_secs(5);
/// Probes after the first missed one.
const BURST: u32 = 10;
/// Between the first two probes of a candidate.
const CANDIDATE: Duration = Duration::from_millis(100);
const CANDIDATE_MAX: Duration = Duration::from_secs(60);
/// Between the first two probes of a dead path.
const DEAD: Duration = Duration::from_millis(250);
/// A dead direct path is not asked less often than this.
const DEAD_DIRECT: Duration = Duration::from_secs(10);
/// Paths that no lane uses, while there is traffic.
const OTHER: Duration = Duration::from_secs(1);
/// The lanes' paths, when traffic has stopped.
const WARM: Duration = Duration::from_secs(1);
const WARM_OTHER: Duration = Duration::from_secs(5);
/// After a miss without traffic.
const RETRY: Duration = Duration::from_secs(1);
const SEARCH_MIN: Duration = Duration::from_millis(50);
const SEARCH_MAX: Duration = Duration::from_secs(1);
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_JITTER: u64 = 10_000;
/// How long a peer that asked is expected to ask again: longer than between two keepalives.
const ASKED: Duration = Duration::from_secs(30);
/// Between probes while large ones fail, and while none was answered yet.
const SIZE_HIGH: Duration = Duration::from_millis(20);
const SIZE_RAISED: Duration = Duration::from_millis(50);
