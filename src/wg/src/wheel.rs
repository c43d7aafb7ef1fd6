//! When each lane ticks.
//!
//! boringtun learns the time only when its timers are run, and retries without jitter, so two ends, or a
//! thousand lanes opened in one second, would stay in step for ever. Here every lane ticks once a turn,
//! at a phase drawn for it. Phases are few, so that the number of wake-ups does not grow with the lanes.

use std::time::{Duration, Instant};

use flatlan_types::LaneKey;

/// The lanes by phase.
pub(crate) struct Wheel {
    /// Where step 0 lies: drawn too, so that processes do not agree on phases.
    origin: Option<Instant>,
    offset: Duration,
    /// Steps that have been run.
    done: u64,
    phases: [Vec<LaneKey>; PHASES],
}

impl Wheel {
    pub(crate) fn new(seed: u64) -> Self {
        Self { origin: None, offset: Duration::from_nanos(seed % STEP_NANOS), done: 0, phases: Default::default() }
    }

    pub(crate) fn insert(&mut self, lane: LaneKey, phase: Phase, now: Instant) {
        // The offset lies ahead of `now`: there may be no time before it.
        let origin = *self.origin.get_or_insert(now + self.offset);
        if self.is_empty() {
            self.done = steps(origin, now);
        }
        if let Some(lanes) = self.phases.get_mut(phase.index()) {
            lanes.push(lane);
        }
    }

    pub(crate) fn remove(&mut self, lane: LaneKey, phase: Phase) {
        if let Some(lanes) = self.phases.get_mut(phase.index())
            && let Some(at) = lanes.iter().position(|l| *l == lane)
        {
            lanes.swap_remove(at);
        }
    }

    /// The phases whose turn has come; each once, however late it is.
    pub(crate) fn due(&mut self, now: Instant) -> impl Iterator<Item = Phase> + use<> {
        let reached = self.origin.map_or(0, |origin| steps(origin, now)).max(self.done);
        let from = self.done.max(reached.saturating_sub(PHASES as u64));
        self.done = reached;
        (from..reached).map(|step| Phase((step + 1) % PHASES as u64))
    }

    pub(crate) fn lane(&self, phase: Phase, at: usize) -> Option<LaneKey> {
        self.phases.get(phase.index())?.get(at).copied()
    }

    /// When the next phase that has lanes is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        let origin = self.origin?;
        let busy = |step: &u64| self.phases.get(Phase(step % PHASES as u64).index()).is_some_and(|l| !l.is_empty());
        let step = (self.done + 1..=self.done + PHASES as u64).find(busy)?;
        Some(origin + Duration::from_nanos(STEP_NANOS.saturating_mul(step)))
    }

    fn is_empty(&self) -> bool {
        self.phases.iter().all(Vec::is_empty)
    }
}

/// A place on the wheel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Phase(u64);

impl Phase {
    /// The phase that a lane with this random index has.
    pub(crate) fn of(index: u32) -> Self {
        Self(u64::from(index) % PHASES as u64)
    }

    fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(0)
    }
}

/// Whole steps from `origin` to `now`.
fn steps(origin: Instant, now: Instant) -> u64 {
    let nanos = now.saturating_duration_since(origin).as_nanos();
    u64::try_from(nanos).unwrap_or(u64::MAX) / STEP_NANOS
}

/// How often a lane ticks: boringtun's own device does it as often.
pub(crate) const TICK: Duration = Duration::from_millis(250);
const PHASES: usize = 8;
const STEP_NANOS: u64 = TICK.as_nanos() as u64 / PHASES as u64;

#[cfg(test)]
mod tests {
    use flatlan_types::{LaneId, PeerSlot};

    use super::*;

    fn lane(n: u32) -> LaneKey {
        LaneKey { peer: PeerSlot(n), lane: LaneId::PRIMARY }
    }

    fn run(wheel: &mut Wheel, now: Instant) -> Vec<LaneKey> {
        let phases: Vec<Phase> = wheel.due(now).collect();
        phases.into_iter().flat_map(|p| (0..).map_while(|at| wheel.lane(p, at)).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn every_lane_ticks_once_a_turn_and_not_all_at_once() {
        let start = Instant::now();
        let mut wheel = Wheel::new(12_345_678);
        assert_eq!(wheel.next(), None);
        for n in 0..16 {
            wheel.insert(lane(n), Phase::of(n), start);
        }
        let mut ticks = [0; 16];
        let mut most = 0;
        let end = start + TICK * 40;
        while let Some(at) = wheel.next().filter(|at| *at <= end) {
            let due = run(&mut wheel, at);
            most = most.max(due.len());
            for LaneKey { peer: PeerSlot(n), .. } in due {
                ticks[n as usize] += 1;
            }
        }
        assert!(ticks.iter().all(|n| (39..=40).contains(n)), "{ticks:?}");
        assert_eq!(most, 2);
    }

    #[test]
    fn a_late_call_ticks_each_lane_once() {
        let start = Instant::now();
        let mut wheel = Wheel::new(0);
        wheel.insert(lane(1), Phase::of(3), start);
        let late = start + Duration::from_secs(3600);
        assert_eq!(run(&mut wheel, late), [lane(1)]);
        assert_eq!(run(&mut wheel, late), []);
        let next = wheel.next().unwrap();
        assert!(next > late && next <= late + TICK);
        wheel.remove(lane(1), Phase::of(3));
        assert_eq!(wheel.next(), None);
    }
}
