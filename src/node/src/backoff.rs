//! When to try again: at once, then ever later, never at the same moment as others.
//!
//! The first retry comes within [`FIRST`]; then the delay doubles from [`SECOND`] to [`SOON`], where it
//! stays for the time in which a restarted hub comes back, and later [`LATE`]. Every delay is cut by up
//! to a quarter.

use std::time::{Duration, Instant};

use crate::rng::Rng;

/// The state of one thing that is tried again and again.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
    since: Option<Instant>,
}

impl Backoff {
    /// It worked.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    /// It failed: the moment of the next try.
    pub(crate) fn failed(&mut self, now: Instant, rng: &mut Rng) -> Instant {
        let since = *self.since.get_or_insert(now);
        let delay = match self.failures {
            0 => return self.next(now + FIRST.mul_f64(0.1 + 0.8 * unit(rng))),
            n if now.duration_since(since) < PATIENCE => (SECOND * 2u32.pow((n - 1).min(8))).min(SOON),
            _ => LATE,
        };
        self.next(now + delay.mul_f64(0.75 + 0.25 * unit(rng)))
    }

    /// How often it failed in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    fn next(&mut self, at: Instant) -> Instant {
        self.failures = self.failures.saturating_add(1);
        at
    }
}

fn unit(rng: &mut Rng) -> f64 {
    rng.below(1 << 16) as f64 / f64::from(1 << 16)
}

/// The first retry comes within this.
pub(crate) const FIRST: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_millis(200);
/// The longest delay while a hub that restarts may still come back.
pub(crate) const SOON: Duration = Duration::from_millis(1_500);
const PATIENCE: Duration = Duration::from_secs(180);
/// The longest delay of all.
pub(crate) const LATE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_retry_comes_within_a_tenth_of_a_second_and_later_ones_stay_under_the_caps() {
        let (mut now, mut rng) = (Instant::now(), Rng::new(1));
        let start = now;
        let mut backoff = Backoff::default();
        let first = backoff.failed(now, &mut rng);
        assert!(first > now && first - now <= FIRST);
        let mut last = Duration::ZERO;
        for _ in 0..400 {
            let at = backoff.failed(now, &mut rng);
            last = at - now;
            assert!(last <= if now - start < PATIENCE { SOON } else { LATE });
            now = at;
        }
        assert!(last > SOON);
        backoff.reset();
        assert!(backoff.failed(now, &mut rng) - now <= FIRST);
    }
}
