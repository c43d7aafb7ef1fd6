//! Whether a packet thread that has read all there was waits for the next datagram, or sleeps for a moment and reads again.
//!
//! Datagrams that come one by one would awaken the thread for every one of them, and that costs more than to forward
//! it; those that are read together also leave together. A network card with much to do interrupts its machine not
//! more often than every so many microseconds (interrupt moderation, `ethtool -C`). This is the same, one floor up:
//!
//! 1. Reads that follow another of the same thread by less than [`GAP`] are counted. Where all that the thread carries
//!    comes seldom there are none, and few where it comes in bursts: then everything is read at once.
//! 2. After a window with [`MANY`] of them, the thread sleeps after a read that brought something, until [`GAP`] after
//!    it, and reads again without asking whether there is anything. What brings nothing is followed by a wait.
//! 3. That goes on as long as it pays: while such reads bring three datagrams for every two of them, and three quarters
//!    of what came in a time before. Where a flow waits for its own answers, one by one or some at once, it would be
//!    slower for it: then it is left alone for [`REST`].
//! 4. Who moves bulk reads much at once as it is ([`LARGE`]), and is left alone too.
//! 5. While quotas refuse [`MANY`] in a window, nothing waits: what one network sends above its own slows no other down.
//!
//! The price: on a thread that does this, everything that it carries waits for up to [`GAP`], also what comes seldom; and
//! a network above its quota costs it a wake-up for each datagram. What is dropped for another reason counts as nothing.

use std::time::{Duration, Instant};

use flatlan_hub::Carried;

/// What the last windows said.
#[derive(Debug)]
pub(crate) struct Moderation {
    mode: Mode,
    /// The last read that brought something, and whether that was the last read at all.
    brought_at: Instant,
    brought: bool,
    /// The next read is behind a pause.
    paused: bool,
    window_begun: Instant,
    window: Window,
    /// Datagrams a second in the last window without pauses.
    rate: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Every read is followed by a wait.
    Off,
    /// Some are followed by a pause.
    On,
    /// It did not pay.
    Rests { until: Instant },
}

/// What there was since it began.
#[derive(Debug, Default)]
struct Window {
    /// Reads that brought something that was carried on, and what.
    reads: u64,
    carried: Carried,
    /// Those of them shortly after another.
    close: u64,
    pauses: u64,
    /// Datagrams that the reads behind pauses carried on.
    behind_pauses: u64,
    /// Datagrams that a quota refused.
    refused: u64,
}

impl Moderation {
    pub(crate) fn new(now: Instant) -> Self {
        let window = Window::default();
        Self { mode: Mode::Off, brought_at: now, brought: false, paused: false, window_begun: now, window, rate: 0 }
    }

    /// What was there was read at that time: so much of it was carried on, so many datagrams a quota refused.
    pub(crate) fn handle_read(&mut self, carried: Carried, refused: u64, now: Instant) {
        if now >= self.window_begun + WINDOW {
            self.judge(now);
        }
        self.window.refused += refused;
        let paused = std::mem::take(&mut self.paused);
        self.brought = carried.packets > 0;
        if self.brought {
            self.window.reads += 1;
            self.window.carried += carried;
            self.window.close += u64::from(paused || now < self.brought_at + GAP);
            self.window.behind_pauses += if paused { carried.packets } else { 0 };
            self.brought_at = now;
        }
    }

    /// There was nothing more to read. How long to sleep before the next read; `None`: wait for something to come. The
    /// clock is read only where it matters.
    pub(crate) fn pause(&mut self, clock: impl FnOnce() -> Instant) -> Option<Duration> {
        if self.mode != Mode::On || !self.brought {
            return None;
        }
        let left = (self.brought_at + GAP).checked_duration_since(clock()).filter(|left| !left.is_zero())?;
        self.window.pauses += 1;
        self.paused = true;
        Some(left)
    }

    fn judge(&mut self, now: Instant) {
        let window = std::mem::take(&mut self.window);
        let time = now - self.window_begun;
        self.window_begun = now;
        // of a thread that slept meanwhile nothing is known
        if time >= 2 * WINDOW {
            self.mode = match self.mode {
                Mode::Rests { .. } => self.mode,
                Mode::Off | Mode::On => Mode::Off,
            };
            return;
        }
        let rate = window.carried.packets * 1_000_000 / u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        let flooded = window.refused >= MANY;
        self.mode = match self.mode {
            Mode::Rests { until } if now < until => self.mode,
            Mode::On if window.carried.bytes >= window.reads.max(1) * VAST => Mode::Off,
            Mode::On if 2 * window.behind_pauses < 3 * window.pauses || 4 * rate < 3 * self.rate => {
                Mode::Rests { until: now + REST }
            }
            // behind what does not pay: else a flood that comes and goes would have it tried again each time
            Mode::On if flooded => Mode::Off,
            Mode::On => Mode::On,
            Mode::Off | Mode::Rests { .. } => {
                self.rate = rate;
                let many = window.close >= MANY && window.carried.bytes < window.reads * LARGE;
                if many && !flooded { Mode::On } else { Mode::Off }
            }
        };
    }
}

/// How close reads may be to each other.
const GAP: Duration = Duration::from_micros(200);
/// How often it is judged anew.
const WINDOW: Duration = Duration::from_millis(10);
/// So many in a window are many, of reads that follow another closely and of what is refused: 2,000 a second.
const MANY: u64 = 20;
/// So many bytes for each read are bulk.
const LARGE: u64 = 16 << 10;
/// And so many where pauses make reads larger than they would be: what is no bulk without them must not become it.
const VAST: u64 = 64 << 10;
/// How long it is not tried again where it did not pay: what it costs others is less than a hundredth of the time.
const REST: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    /// A thread that reads a socket.
    struct World {
        moderation: Moderation,
        now: Instant,
        reads: u32,
        pauses: u32,
        slept: Duration,
        /// Every so many datagrams, another comes that a quota refuses.
        refused_each: Option<u64>,
        /// The longest time that something waited to be read.
        waited: Duration,
    }

    impl World {
        fn new() -> Self {
            let now = Instant::now();
            let (slept, waited) = (Duration::ZERO, Duration::ZERO);
            Self { moderation: Moderation::new(now), now, reads: 0, pauses: 0, slept, refused_each: None, waited }
        }

        /// For so long, the same comes again and again; when, is told by when it came and when it was read.
        fn run(&mut self, time: Duration, what: Carried, next: impl Fn(Instant, Instant) -> Instant) {
            let (end, mut comes) = (self.now + time, next(self.now, self.now));
            let mut count = 0;
            while self.now < end {
                let now = self.now;
                match self.moderation.pause(|| now) {
                    Some(pause) => {
                        self.now += pause;
                        self.slept += pause;
                        self.pauses += 1;
                    }
                    None => self.now = self.now.max(comes),
                }
                let (mut carried, mut refused) = (Carried::default(), 0);
                while comes <= self.now {
                    count += 1;
                    carried += what;
                    refused += u64::from(self.refused_each.is_some_and(|each| count % each == 0));
                    self.waited = self.waited.max(self.now - comes);
                    comes = next(comes, self.now);
                }
                self.reads += 1;
                self.moderation.handle_read(carried, refused, self.now);
            }
        }

        /// Datagrams of 100 bytes, so far apart.
        fn stream(&mut self, apart: Duration, time: Duration) {
            self.run(time, of(1, 100), |came, _| came + apart);
        }
    }

    fn of(packets: u64, each: u64) -> Carried {
        Carried { packets, bytes: packets * each }
    }

    #[test]
    fn datagrams_that_come_one_by_one_and_often_are_read_together() {
        for apart in [20, 40, 60] {
            let mut world = World::new();
            world.stream(apart * US, Duration::from_secs(1));
            assert!((4_500..5_500).contains(&world.reads), "{apart}: {}", world.reads);
            assert!(world.waited <= GAP, "{:?}", world.waited);
        }
    }

    #[test]
    fn what_comes_seldom_is_read_at_once_and_so_is_a_burst_of_it() {
        let mut world = World::new();
        world.stream(GAP, Duration::from_secs(1));
        for _ in 0..100 {
            world.now += 10 * WINDOW;
            world.stream(10 * US, 10 * (MANY as u32 - 1) * US);
        }
        assert_eq!((world.pauses, world.waited), (0, Duration::ZERO));
    }

    #[test]
    fn many_that_come_after_a_silence_are_read_at_once_at_first() {
        for ms in 0..10 {
            let mut world = World::new();
            world.stream(20 * US, Duration::from_millis(100 + ms));
            assert!(world.pauses > 400, "{}", world.pauses);
            world.now += 3 * WINDOW;
            let before = world.pauses;
            world.stream(20 * US, Duration::from_millis(5));
            assert_eq!(world.pauses, before);
        }
    }

    #[test]
    fn where_each_datagram_answers_the_one_before_little_time_is_lost() {
        let mut world = World::new();
        world.run(Duration::from_secs(10), of(1, 100), |_, read| read + 50 * US);
        assert!(world.pauses > 0 && world.slept < Duration::from_millis(60), "{:?}", world.slept);
    }

    #[test]
    fn a_flow_that_waits_for_several_answers_at_a_time_is_not_slowed_down_for_long() {
        for at_once in [2, 4, 8, 64] {
            let mut world = World::new();
            world.run(Duration::from_secs(10), of(at_once, 100), |_, read| read + 50 * US);
            assert!(world.pauses > 0 && world.slept < Duration::from_millis(60), "{at_once}: {:?}", world.slept);
        }
    }

    #[test]
    fn a_fast_stream_is_not_taken_for_bulk_because_it_is_read_together() {
        for apart in [10, 15] {
            let mut world = World::new();
            world.run(Duration::from_secs(1), of(1, 1_400), |came, _| came + apart * US);
            assert!((4_500..6_500).contains(&world.reads), "{apart}: {}", world.reads);
        }
    }

    #[test]
    fn what_is_dropped_beside_bulk_does_not_slow_it_down() {
        let mut world = World::new();
        let end = world.now + Duration::from_secs(1);
        while world.now < end {
            world.run(100 * US, of(40, 1_400), |came, _| came + 50 * US);
            world.run(100 * US, of(0, 0), |came, _| came + 5 * US);
        }
        assert_eq!(world.pauses, 0);
    }

    #[test]
    fn bulk_is_read_at_once() {
        let mut world = World::new();
        world.run(Duration::from_secs(1), of(40, 1_400), |came, _| came + 50 * US);
        assert_eq!(world.pauses, 0);
    }

    #[test]
    fn what_is_dropped_slows_nobody_down() {
        let mut world = World::new();
        world.run(Duration::from_secs(1), of(0, 0), |came, _| came + 5 * US);
        assert_eq!((world.pauses, world.waited), (0, Duration::ZERO));
    }

    #[test]
    fn while_quotas_refuse_much_nothing_waits() {
        let mut world = World::new();
        world.refused_each = Some(10);
        world.stream(40 * US, Duration::from_secs(1));
        assert_eq!((world.pauses, world.waited), (0, Duration::ZERO));
        world.refused_each = None;
        world.stream(40 * US, Duration::from_secs(1));
        let before = world.pauses;
        assert!(before > 4_000, "{before}");
        world.refused_each = Some(10);
        world.stream(40 * US, Duration::from_secs(1));
        assert!(world.pauses - before < 120, "{}", world.pauses - before);
    }

    #[test]
    fn what_quotas_refuse_counts_also_where_it_is_read_alone() {
        let mut world = World::new();
        world.stream(40 * US, Duration::from_secs(1));
        let before = world.pauses;
        assert!(before > 4_000, "{before}");
        let end = world.now + Duration::from_secs(1);
        while world.now < end {
            world.refused_each = None;
            world.stream(20 * US, 80 * US);
            world.refused_each = Some(1);
            world.run(80 * US, of(0, 0), |came, _| came + 5 * US);
        }
        assert!(world.pauses - before < 120, "{}", world.pauses - before);
    }

    #[test]
    fn that_quotas_refuse_a_little_changes_nothing() {
        let mut world = World::new();
        world.refused_each = Some(20);
        world.stream(40 * US, Duration::from_secs(1));
        assert!(world.pauses > 4_000, "{}", world.pauses);
    }

    #[test]
    fn what_quotas_refuse_by_turns_slows_nobody_down_who_waits_for_answers() {
        let mut world = World::new();
        for turn in 0..1_000 {
            world.refused_each = (turn % 2 == 0).then_some(1);
            world.run(WINDOW, of(1, 100), |_, read| read + 50 * US);
        }
        assert!(world.pauses > 0 && world.slept < Duration::from_millis(60), "{:?}", world.slept);
    }

    #[test]
    fn where_a_pause_brings_hardly_more_than_one_little_time_is_lost() {
        let mut world = World::new();
        world.stream(180 * US, Duration::from_secs(10));
        assert!(world.pauses > 0 && world.slept < Duration::from_millis(60), "{:?}", world.slept);
    }
}
