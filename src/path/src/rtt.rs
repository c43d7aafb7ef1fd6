//! Round-trip time as TCP estimates it (RFC 6298).

use std::time::Duration;

/// Smoothed round trip and its variation.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
}

impl Rtt {
    /// RFC 6298 section 2 with its usual gains.
    pub(crate) fn update(&mut self, sample: Duration) {
        let Some(smoothed) = self.smoothed else {
            (self.smoothed, self.variation) = (Some(sample), sample / 2);
            return;
        };
        self.variation = (self.variation * 3 + smoothed.abs_diff(sample)) / 4;
        self.smoothed = Some((smoothed * 7 + sample) / 8);
    }

    /// After this long a reply is late.
    pub(crate) fn deadline(&self, min: Duration) -> Duration {
        self.smoothed.map_or(UNKNOWN, |smoothed| smoothed + self.variation * 4).max(min)
    }

    pub(crate) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }
}

/// The deadline before the first sample.
const UNKNOWN: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_round_trip_tightens_the_deadline() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.deadline(Duration::ZERO), UNKNOWN);
        for _ in 0..100 {
            rtt.update(Duration::from_millis(30));
        }
        assert_eq!(rtt.smoothed(), Some(Duration::from_millis(30)));
        assert!(rtt.deadline(Duration::ZERO) < Duration::from_millis(31));
        assert_eq!(rtt.deadline(Duration::from_millis(50)), Duration::from_millis(50));
    }

    #[test]
    fn a_round_trip_that_grows_loosens_the_deadline_before_the_mean_follows() {
        let mut rtt = Rtt::default();
        (0..100).for_each(|_| rtt.update(Duration::from_millis(10)));
        (0..3).for_each(|_| rtt.update(Duration::from_millis(100)));
        assert!(rtt.smoothed() < Some(Duration::from_millis(50)));
        assert!(rtt.deadline(Duration::ZERO) > Duration::from_millis(150));
    }
}
