//! Round-trip time as TCP estimates it (RFC 6298), for paths that are asked often or once in a while.

use std::time::{Duration, Instant};

/// Smoothed round trip and its variation.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
    /// When the last sample came.
    updated: Option<Instant>,
}

impl Rtt {
    /// RFC 6298 section 2 with its usual gains, which are for samples that come once in a round trip. Where they come
    /// seldom, one of less than half counts for half: a queue of seconds is gone, and jitter is not followed.
    pub(crate) fn update(&mut self, sample: Duration, now: Instant) {
        let apart = self.age(now);
        self.updated = Some(now);
        let Some(smoothed) = self.smoothed else {
            (self.smoothed, self.variation) = (Some(sample), sample / 2);
            return;
        };
        self.variation = (self.variation * 3 + smoothed.abs_diff(sample)) / 4;
        self.smoothed = Some(if apart > OFTEN && sample < smoothed / 2 {
            (smoothed + sample) / 2
        } else {
            (smoothed * 7 + sample) / 8
        });
    }

    /// Since the last sample.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        self.updated.map_or(Duration::ZERO, |updated| now.saturating_duration_since(updated))
    }

    /// After this long a reply is late.
    pub(crate) fn deadline(&self, min: Duration) -> Duration {
        self.smoothed.map_or(UNKNOWN, |smoothed| smoothed + self.variation * 4).min(LATEST).max(min)
    }

    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }
}

/// Samples no further apart than this have the usual gains.
const OFTEN: Duration = Duration::from_millis(250);
/// No reply is waited for longer: a path on which packets once stood in a queue for seconds may die like any other.
const LATEST: Duration = Duration::from_secs(3);
/// The deadline before the first sample.
const UNKNOWN: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_round_trip_tightens_the_deadline() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.deadline(Duration::ZERO), UNKNOWN);
        let start = Instant::now();
        for n in 0..100 {
            rtt.update(Duration::from_millis(30), start + OFTEN * n);
        }
        assert_eq!(rtt.smoothed(), Some(Duration::from_millis(30)));
        assert!(rtt.deadline(Duration::ZERO) < Duration::from_millis(31));
        assert_eq!(rtt.deadline(Duration::from_millis(50)), Duration::from_millis(50));
    }

    #[test]
    fn a_round_trip_that_grows_loosens_the_deadline_before_the_mean_follows() {
        let mut rtt = Rtt::default();
        let start = Instant::now();
        (0..100).for_each(|n| rtt.update(Duration::from_millis(10), start + OFTEN * n));
        (100..103).for_each(|n| rtt.update(Duration::from_millis(100), start + OFTEN * n));
        assert!(rtt.smoothed() < Some(Duration::from_millis(50)));
        assert!(rtt.deadline(Duration::ZERO) > Duration::from_millis(150));
    }

    #[test]
    fn where_samples_come_once_a_second_a_queue_of_seconds_is_forgotten_in_fifteen() {
        let (mut rtt, start) = (Rtt::default(), Instant::now());
        rtt.update(Duration::from_secs(5), start);
        (1..15).for_each(|n| rtt.update(Duration::from_millis(40), start + Duration::from_secs(1) * n));
        assert!(rtt.smoothed() < Some(Duration::from_millis(60)), "{rtt:?}");
    }

    #[test]
    fn where_samples_come_once_a_second_jitter_is_smoothed_as_where_they_come_often() {
        let [seldom, often] = [Duration::from_secs(1), OFTEN].map(|apart| {
            let (mut rtt, start) = (Rtt::default(), Instant::now());
            (0..99).for_each(|n| rtt.update(Duration::from_millis(60 + u64::from(n % 3) * 20), start + apart * n));
            rtt.smoothed()
        });
        assert_eq!(seldom, often);
    }
}
