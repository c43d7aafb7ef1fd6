//! Whether a packet thread that is awakened reads at once, or leaves what came where it is for a moment.
//!
//! Datagrams that come one by one would awaken the thread for every one of them, and that costs more than to forward
//! it; those that are read together also leave together. A network card with much to do interrupts its machine not
//! more often than every so many microseconds (interrupt moderation, `ethtool -C`). This is the same, one floor up:
//!
//! 1. Wakes that follow a read by less than [`GAP`] are counted. Who sends seldom is never among them, nor the first of
//!    a burst: they are read at once.
//! 2. After a window with [`MANY`] of them, such wakes are put off until [`GAP`] after the read before.
//! 3. That goes on as long as it pays: while two datagrams or more are carried on for each wake that was put off. Where
//!    each is the answer to the one before, as in a flow of questions and answers, nothing is won and time is lost:
//!    then it is left alone for [`REST`].
//! 4. Who moves bulk reads much at once as it is ([`LARGE`]), and is left alone too.
//!
//! What is dropped counts as nothing: whoever sends it slows nobody down.

use std::time::{Duration, Instant};

use flatlan_hub::Carried;

/// What the last windows said.
#[derive(Debug)]
pub(crate) struct Moderation {
    mode: Mode,
    read: Instant,
    window_ends: Instant,
    window: Window,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Every wake is followed by a read.
    Off,
    /// Some are put off.
    On,
    /// It did not pay.
    Rests { until: Instant },
}

/// What there was since it began.
#[derive(Debug, Default)]
struct Window {
    reads: u64,
    carried: Carried,
    /// Wakes shortly after a read.
    close: u64,
    /// Those of them that were put off, and the datagrams that the reads behind them carried on.
    put_off: u64,
    brought: u64,
    /// The next read is behind one.
    awaits: bool,
}

impl Moderation {
    pub(crate) fn new(now: Instant) -> Self {
        Self { mode: Mode::Off, read: now, window_ends: now + WINDOW, window: Window::default() }
    }

    /// The thread was awakened by a datagram. How long to leave it alone; zero: not at all.
    pub(crate) fn handle_wake(&mut self, now: Instant) -> Duration {
        if now >= self.window_ends {
            self.judge(now);
        }
        let wait = (self.read + GAP).saturating_duration_since(now);
        if wait.is_zero() {
            return wait;
        }
        self.window.close += 1;
        if self.mode != Mode::On {
            return Duration::ZERO;
        }
        self.window.put_off += 1;
        self.window.awaits = true;
        wait
    }

    /// What was there was read at that time, and so much of it was carried on.
    pub(crate) fn handle_read(&mut self, carried: Carried, now: Instant) {
        self.read = now;
        self.window.reads += 1;
        self.window.carried += carried;
        if std::mem::take(&mut self.window.awaits) {
            self.window.brought += carried.packets;
        }
    }

    fn judge(&mut self, now: Instant) {
        // of a thread that slept meanwhile nothing is known
        let window = std::mem::take(&mut self.window);
        let stale = now >= self.window_ends + WINDOW;
        self.window_ends = now + WINDOW;
        let many = !stale && window.close >= MANY && window.carried.bytes < window.reads * LARGE;
        self.mode = match self.mode {
            Mode::Rests { until } if now < until => self.mode,
            Mode::On if many && window.brought < 2 * window.put_off => Mode::Rests { until: now + REST },
            Mode::Off | Mode::On | Mode::Rests { .. } if many => Mode::On,
            Mode::Off | Mode::On | Mode::Rests { .. } => Mode::Off,
        };
    }
}

/// How close reads may be to each other.
const GAP: Duration = Duration::from_micros(100);
/// How often it is judged anew.
const WINDOW: Duration = Duration::from_millis(10);
/// So many wakes in a window that follow a read closely are many: 2,000 a second.
const MANY: u64 = 20;
/// So many bytes for each read are bulk.
const LARGE: u64 = 16 << 10;
/// How long it is not tried again where it did not pay.
const REST: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// A source, and what the thread reads of it.
    struct World {
        moderation: Moderation,
        now: Instant,
        slept: Duration,
        put_off: u32,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            Self { moderation: Moderation::new(now), now, slept: Duration::ZERO, put_off: 0 }
        }

        /// After so long the thread is awakened, and reads what `bring` makes of the time that it slept then.
        fn wake(&mut self, after: Duration, bring: impl Fn(Duration) -> Carried) {
            self.now += after;
            let slept = self.moderation.handle_wake(self.now);
            self.now += slept;
            self.slept += slept;
            self.put_off += u32::from(!slept.is_zero());
            self.moderation.handle_read(bring(slept), self.now);
        }

        /// Datagrams of 100 bytes that come one by one, so far apart, for so long; how many wakes there were.
        fn stream(&mut self, apart: Duration, time: Duration) -> u32 {
            let (end, mut wakes) = (self.now + time, 0);
            while self.now < end {
                self.wake(apart, |slept| of(1 + (slept.as_nanos() / apart.as_nanos()) as u64, 100));
                wakes += 1;
            }
            wakes
        }

        /// The share of five seconds that is slept where each wake, so long after the last read, brings the same.
        fn lost(&mut self, after: Duration, brought: Carried) -> f64 {
            let begun = self.now;
            while self.now < begun + Duration::from_secs(5) {
                self.wake(after, |_| brought);
            }
            self.slept.as_secs_f64() / 5.0
        }
    }

    fn of(packets: u64, each: u64) -> Carried {
        Carried { packets, bytes: packets * each }
    }

    #[test]
    fn datagrams_that_come_one_by_one_and_often_are_read_together() {
        let mut world = World::new();
        let wakes = world.stream(20 * US, Duration::from_secs(1));
        assert!((10_000..10_600).contains(&wakes), "{wakes}");
    }

    #[test]
    fn what_comes_seldom_is_read_at_once_and_so_is_a_burst_of_it() {
        let mut world = World::new();
        world.stream(GAP, Duration::from_secs(1));
        for _ in 0..100 {
            world.wake(10 * WINDOW, |_| of(1, 100));
            (1..MANY).for_each(|_| world.wake(10 * US, |_| of(1, 100)));
        }
        assert_eq!(world.put_off, 0);
    }

    #[test]
    fn many_that_come_after_a_silence_are_read_at_once_at_first() {
        for ms in 0..10 {
            let mut world = World::new();
            world.stream(20 * US, Duration::from_millis(100 + ms));
            let before = world.put_off;
            world.now += 2 * WINDOW;
            (0..100).for_each(|_| world.wake(20 * US, |_| of(1, 100)));
            assert_eq!(world.put_off, before);
        }
    }

    #[test]
    fn where_each_datagram_answers_the_one_before_little_time_is_lost() {
        let mut world = World::new();
        let lost = world.lost(50 * US, of(1, 100));
        assert!(world.put_off > 0 && lost < 0.02, "{lost}");
    }

    #[test]
    fn bulk_is_read_at_once() {
        let mut world = World::new();
        (0..10_000).for_each(|_| world.wake(50 * US, |_| of(40, 1_400)));
        assert_eq!(world.put_off, 0);
    }

    #[test]
    fn what_is_dropped_slows_nobody_down_for_long() {
        let lost = World::new().lost(5 * US, of(0, 0));
        assert!(lost < 0.03, "{lost}");
    }
}
