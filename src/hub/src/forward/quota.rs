//! Token buckets: how much an attachment, or a whole network, may send.

use std::time::Instant;

/// A rate, with one tenth of a second of it as burst. Zero means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes per second.
    pub bytes: u64,
    /// Packets per second.
    pub packets: u64,
}

/// The state of one quota.
#[derive(Debug)]
pub(crate) struct Bucket {
    quota: Quota,
    bytes: u64,
    packets: u64,
    filled: Instant,
}

impl Bucket {
    pub(crate) fn new(quota: Quota, now: Instant) -> Self {
        Self { quota, bytes: burst(quota.bytes, LARGEST), packets: burst(quota.packets, 64), filled: now }
    }

    /// Takes all of it or nothing.
    #[inline]
    pub(crate) fn take(&mut self, packets: u64, bytes: u64, now: Instant) -> bool {
        if self.quota == Quota::default() {
            return true;
        }
        self.fill(now);
        let fits = |rate: u64, have: u64, want: u64| rate == 0 || want <= have;
        if !fits(self.quota.bytes, self.bytes, bytes) || !fits(self.quota.packets, self.packets, packets) {
            return false;
        }
        self.bytes = self.bytes.saturating_sub(bytes);
        self.packets = self.packets.saturating_sub(packets);
        true
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = u64::try_from(now.saturating_duration_since(self.filled).as_micros()).unwrap_or(u64::MAX);
        let due = |rate: u64| u64::try_from(u128::from(rate) * u128::from(elapsed) / 1_000_000).unwrap_or(u64::MAX);
        let (bytes, packets) = (due(self.quota.bytes), due(self.quota.packets));
        // Too short a time for a whole token of each: let it add up.
        if (self.quota.bytes != 0 && bytes == 0) || (self.quota.packets != 0 && packets == 0) {
            return;
        }
        self.filled = now;
        self.bytes = self.bytes.saturating_add(bytes).min(burst(self.quota.bytes, LARGEST));
        self.packets = self.packets.saturating_add(packets).min(burst(self.quota.packets, 64));
    }
}

/// A tenth of a second, but at least one batch.
fn burst(rate: u64, least: u64) -> u64 {
    (rate / 10).max(least)
}

/// The largest batch.
const LARGEST: u64 = 65_536;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_is_kept_over_time_and_a_burst_is_bounded() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Quota { bytes: 1_000_000, packets: 0 }, start);
        let mut passed = 0;
        for ms in 0..2_000 {
            while bucket.take(1, 1000, start + Duration::from_millis(ms)) {
                passed += 1000;
            }
        }
        assert!((2_000_000..2_120_000).contains(&passed), "{passed}");
    }

    #[test]
    fn without_a_quota_everything_passes() {
        let mut bucket = Bucket::new(Quota::default(), Instant::now());
        assert!(bucket.take(u64::MAX, u64::MAX, Instant::now()));
    }
}
