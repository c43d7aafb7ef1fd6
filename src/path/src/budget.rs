//! A token bucket: how often endpoints that never answered may be asked.
//!
//! The peer names its candidates, so without a bound it could aim this node's probes at anyone. Each path
//! bounds its own tries; the bucket bounds all of a peer's, however often the peer changes its list.

use std::time::{Duration, Instant};

/// Tokens that come back with time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    tokens: u32,
    /// Up to when tokens were given back.
    filled: Instant,
}

impl Budget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { tokens: CAPACITY, filled: now }
    }

    /// Takes a token if there is one.
    pub(crate) fn take(&mut self, now: Instant) -> Option<()> {
        let periods = now.saturating_duration_since(self.filled).as_millis() / REFILL.as_millis();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        self.tokens = self.tokens.saturating_add(periods).min(CAPACITY);
        self.filled = if self.tokens == CAPACITY { now } else { self.filled + REFILL * periods };
        self.tokens = self.tokens.checked_sub(1)?;
        Some(())
    }
}

/// A full list of candidates, each tried to the end.
const CAPACITY: u32 = 80;
/// Time for one token.
pub(crate) const REFILL: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drained_budget_comes_back_one_token_at_a_time() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        assert_eq!((0..1000).filter(|_| budget.take(start).is_some()).count(), CAPACITY as usize);
        let later = start + REFILL * 3 + REFILL / 2;
        assert_eq!((0..1000).filter(|_| budget.take(later).is_some()).count(), 3);
        assert!(budget.take(later + REFILL / 2).is_some(), "halves are not lost");
        let much_later = start + Duration::from_secs(3600);
        assert_eq!((0..1000).filter(|_| budget.take(much_later).is_some()).count(), CAPACITY as usize);
    }
}
