//! The one place that reads the clock.
//!
//! The cores take the time as an argument; the shells get it here. A suspended machine must find its
//! timers due when it wakes, but `Instant` stands still meanwhile (CLOCK_MONOTONIC). So [`now`] counts
//! with CLOCK_BOOTTIME from one `Instant` taken at the first call. Do not mix its instants with
//! `Instant::now()` or `tokio::time::Instant`: turn a deadline into a duration by [`until`].

use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use flatlan_types::UnixTime;
use rustix::time::{ClockId, clock_gettime};

/// The time, monotonic, suspended time included.
pub fn now() -> Instant {
    static START: OnceLock<(Instant, Duration)> = OnceLock::new();
    let (instant, boot) = START.get_or_init(|| (Instant::now(), since_boot()));
    *instant + since_boot().saturating_sub(*boot)
}

/// How long it is to a deadline; zero where it has passed.
pub fn until(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(now())
}

/// The wall clock; zero where it shows a time before 1970.
pub fn unix() -> UnixTime {
    UnixTime(since_1970().as_secs())
}

/// The wall clock, as the kernel stamps packets with it; zero where it shows a time before 1970.
pub(crate) fn since_1970() -> Duration {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default()
}

fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_go_back_and_keeps_pace() {
        let (start, real) = (now(), Instant::now());
        while real.elapsed() < Duration::from_millis(5) {
            assert!(now() >= start);
        }
        let passed = now() - start;
        assert!(passed >= Duration::from_millis(4), "{passed:?}");
        assert_eq!(until(start), Duration::ZERO);
        assert!(until(now() + Duration::from_secs(9)) > Duration::from_secs(8));
    }

    #[test]
    fn the_wall_clock_is_after_this_was_written() {
        assert!(unix() > UnixTime(1_700_000_000));
    }
}
