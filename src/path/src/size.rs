//! How large a datagram a path carries (in the manner of RFC 8899), and whether it still does.
//!
//! A path is taken to carry full datagrams until large probes fail while small ones pass. Then either
//! another path carries them, which makes this one a black hole for data, or the size steps down the ladder.

use std::time::{Duration, Instant};

/// The size that a path carries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SizeSearch {
    limit: usize,
    current: usize,
    /// When the current size was last seen to pass.
    proven: Option<Instant>,
    missed: u32,
    /// When the first of the missed ones was sent.
    missed_since: Option<Instant>,
    /// The largest smaller size that passed since then.
    fallback: Option<usize>,
    /// When to try the limit again after a step down.
    raise_at: Option<Instant>,
    turn: usize,
    rung: usize,
}

impl SizeSearch {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            current: limit,
            proven: None,
            missed: 0,
            missed_since: None,
            fallback: None,
            raise_at: None,
            turn: 0,
            rung: 0,
        }
    }

    /// The largest datagram to send.
    pub(crate) fn current(&self) -> usize {
        self.current
    }

    /// When the current size was last seen to pass.
    pub(crate) fn proven(&self) -> Option<Instant> {
        self.proven
    }

    /// The size of the next probe, given the size of the data of late: one in five has that size; while
    /// the current size is unproven or in doubt, two in five have the current size, and two a smaller one.
    pub(crate) fn next(&mut self, data: usize, now: Instant) -> usize {
        self.turn = self.turn.wrapping_add(1);
        if self.raise_at.is_some_and(|at| now >= at) {
            self.raise_at = Some(now + RAISE);
            return self.limit;
        }
        if self.urgency() == Urgency::Low {
            return if self.turn.is_multiple_of(5) { data.clamp(SMALL, self.current) } else { SMALL };
        }
        match self.turn % 5 {
            0 | 2 => self.current,
            1 | 3 if self.missed > 0 => self.rung(),
            _ => SMALL,
        }
    }

    /// How urgently large probes are wanted.
    pub(crate) fn urgency(&self) -> Urgency {
        match self.missed {
            0 if self.proven.is_some() => Urgency::Low,
            0 | 1 => Urgency::Raised,
            2.. => Urgency::High,
        }
    }

    /// Data seems not to arrive: ask at once.
    pub(crate) fn doubt(&mut self, now: Instant) {
        if self.missed < 2 {
            self.missed = 2;
            self.missed_since.get_or_insert(now);
        }
    }

    /// A probe of this size arrived.
    pub(crate) fn pass(&mut self, size: usize, now: Instant) {
        if size >= self.current {
            if size > self.current {
                (self.current, self.raise_at) = (size, None);
            }
            self.proven = Some(now);
            self.clear();
        } else if size > SMALL && LADDER.contains(&size) && self.missed > 0 {
            self.fallback = self.fallback.max(Some(size));
        }
    }

    /// A probe of this size, sent at `sent`, did not arrive in time.
    pub(crate) fn miss(&mut self, size: usize, sent: Instant) {
        if size == self.current {
            self.missed += 1;
            self.missed_since.get_or_insert(sent);
        } else if size > SMALL && size < self.current {
            // Data of this size is lost: a question for a probe of the full size.
            self.missed = self.missed.max(1);
            self.missed_since.get_or_insert(sent);
        }
    }

    /// Large probes failed while the path, last known to deliver at `alive`, passed small ones.
    pub(crate) fn failed(&self, alive: Option<Instant>) -> Option<Failed> {
        let failed = self.missed >= MISSES && self.missed_since.is_some_and(|since| alive > Some(since));
        let kind = if self.fallback.is_some() { Failed::Size } else { Failed::Data };
        failed.then_some(kind)
    }

    /// Makes do with the largest smaller size that passed; where none did, goes on asking.
    pub(crate) fn step_down(&mut self, now: Instant) {
        if let Some(size) = self.fallback {
            self.current = size;
            self.raise_at = Some(now + RAISE);
        }
        self.forgive();
    }

    /// The path may lead elsewhere: the limit is tried again.
    pub(crate) fn restart(&mut self) {
        *self = Self::new(self.limit);
    }

    /// Forgets the failures but not the size.
    pub(crate) fn forgive(&mut self) {
        self.proven = None;
        self.clear();
    }

    /// The next smaller size to try; every rung has its turn.
    fn rung(&mut self) -> usize {
        let start = self.rung;
        self.rung = self.rung.wrapping_add(1);
        let rungs = LADDER.into_iter().cycle().skip(start % LADDER.len()).take(LADDER.len());
        rungs.into_iter().find(|rung| *rung < self.current).unwrap_or(SMALL)
    }

    fn clear(&mut self) {
        (self.missed, self.missed_since, self.fallback) = (0, None, None);
    }
}

/// What does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// No size of data at all.
    Data,
    /// The current size; a smaller one does.
    Size,
}

/// How urgently large probes are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// Now and then.
    Low,
    /// Every other probe.
    Raised,
    /// Every other probe, and quickly.
    High,
}

/// The size of an ordinary probe.
pub(crate) const SMALL: usize = 64;

/// At 10 % loss each way this many in a row are missed once in half a million tries.
const MISSES: u32 = 8;
/// How long after a step down the limit is tried again.
const RAISE: Duration = Duration::from_secs(60);
/// Sizes to fall back to, likeliest first: a multiple of 16 each, as sealed packets are. 1232 fits IPv6's least MTU, 528
/// behind a label the 576 bytes that every IPv4 host takes (RFC 791).
const LADDER: [usize; 6] = [1232, 1360, 1280, 1408, 1152, 528];

#[cfg(test)]
mod tests {
    use super::*;

    /// Probes a path that carries `passes` bytes until nothing is in doubt.
    fn settle(search: &mut SizeSearch, passes: usize, start: Instant) {
        let mut now = start;
        for _ in 0..1000 {
            now += Duration::from_millis(20);
            let size = search.next(1000, now);
            if size <= passes {
                search.pass(size, now)
            } else {
                search.miss(size, now)
            }
            if search.failed(Some(now + Duration::from_millis(1))).is_some() {
                search.step_down(now);
            }
        }
    }

    #[test]
    fn a_path_that_swallows_large_probes_gets_a_size_that_passes() {
        let start = Instant::now();
        for passes in [1240, 1300, 1400, 600, 576 - 20 - 8 - 8] {
            let mut search = SizeSearch::new(1440);
            settle(&mut search, passes, start);
            assert!(search.current() <= passes && search.proven().is_some(), "{passes}: {}", search.current());
            assert_eq!(search.urgency(), Urgency::Low);
        }
    }

    #[test]
    fn a_path_that_swallows_everything_but_small_probes_keeps_its_size() {
        let mut search = SizeSearch::new(1440);
        settle(&mut search, 200, Instant::now());
        assert_eq!((search.current(), search.proven()), (1440, None));
    }

    #[test]
    fn a_path_that_passes_nothing_at_all_is_not_blamed_for_its_size() {
        let start = Instant::now();
        let mut search = SizeSearch::new(1440);
        (0..MISSES).for_each(|_| search.miss(1440, start));
        assert_eq!(search.failed(None), None);
        assert_eq!(search.failed(Some(start)), None);
        assert_eq!(search.failed(Some(start + Duration::from_millis(1))), Some(Failed::Data));
    }

    #[test]
    fn the_limit_is_tried_again_and_taken_when_it_passes() {
        let start = Instant::now();
        let mut search = SizeSearch::new(1440);
        settle(&mut search, 1300, start);
        assert!(search.current() < 1440);
        settle(&mut search, 1440, start + RAISE * 2);
        assert_eq!(search.current(), 1440);
    }

    #[test]
    fn one_probe_in_five_has_the_size_of_the_data() {
        let now = Instant::now();
        let mut search = SizeSearch::new(1440);
        search.pass(1440, now);
        let sizes: Vec<usize> = (0..10).map(|_| search.next(777, now)).collect();
        assert_eq!(sizes.iter().filter(|size| **size == 777).count(), 2);
        assert_eq!(sizes.iter().filter(|size| **size == SMALL).count(), 8);
    }
}
