//! What a bad wire does to each packet. Pure: time is an argument, chance comes of a seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// How a wire treats what crosses it. The default is a good wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quality {
    /// How long each packet takes.
    pub delay: Duration,
    /// It may take up to so much longer, each packet as chance wants: they overtake each other.
    pub jitter: Duration,
    /// Of a thousand packets, so many are lost.
    pub lost: u16,
    /// Of a thousand, so many come twice.
    pub doubled: u16,
    /// Of a thousand, so many are held back, and overtaken by what comes after them.
    pub held: u16,
    /// For so long.
    pub hold: Duration,
    /// Bits a second; nothing: as fast as it goes.
    pub rate: Option<u64>,
    /// With a rate: so many bytes may wait, and what comes then is dropped.
    pub queue: u64,
    /// Packets shorter than this many bytes, IP header included, are left alone by chance and find room in the queue: to
    /// spare control messages.
    pub shortest: usize,
}

/// What became of the packets of a wire, in packets. `came` + `doubled` = `passed` + `lost` + `overflowed` + `refused` +
/// those under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fates {
    /// Entered it.
    pub came: u64,
    /// Left it, second copies included.
    pub passed: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Came twice: each counts once here.
    pub doubled: u64,
    /// Were held back.
    pub held: u64,
    /// Dropped because too many waited for the rate.
    pub overflowed: u64,
    /// Not taken back by the kernel.
    pub refused: u64,
}

/// What to do with a packet now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing: it is gone.
    Lost,
    /// Send it on.
    Pass,
    /// Send it on two times.
    PassTwice,
    /// Nothing yet: [`Wire::poll_packet`] gives it back.
    Wait,
}

/// One direction of a wire.
#[derive(Debug)]
pub(super) struct Wire {
    quality: Quality,
    chance: Chance,
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Orders what is due at the same time.
    next: u64,
    /// When the rate lets the next packet begin.
    free: Option<Instant>,
    fates: Fates,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Instant,
    number: u64,
    packet: Vec<u8>,
}

impl Wire {
    pub(super) fn new(quality: Quality, seed: u64) -> Self {
        let (waiting, fates) = (BinaryHeap::new(), Fates::default());
        Self { quality, chance: Chance(seed), waiting, next: 0, free: None, fates }
    }

    /// A packet enters the wire.
    pub(super) fn handle_packet(&mut self, packet: &[u8], now: Instant) -> Verdict {
        self.fates.came += 1;
        let Quality { delay, jitter, lost, doubled, held, hold, shortest, .. } = self.quality;
        let touched = packet.len() >= shortest;
        if touched && self.chance.is_of(lost) {
            self.fates.lost += 1;
            return Verdict::Lost;
        }
        let queue = if touched { self.quality.queue } else { u64::MAX };
        let Some(mut due) = self.admit(packet.len(), queue, now) else {
            self.fates.overflowed += 1;
            return Verdict::Lost;
        };
        due += delay + self.chance.up_to(jitter);
        if touched && self.chance.is_of(held) {
            self.fates.held += 1;
            due += hold;
        }
        let twice = touched && self.chance.is_of(doubled);
        self.fates.doubled += u64::from(twice);
        if due <= now {
            self.fates.passed += 1 + u64::from(twice);
            return if twice { Verdict::PassTwice } else { Verdict::Pass };
        }
        for _ in 0..=u8::from(twice) {
            self.waiting.push(Reverse(Waiting { due, number: self.next, packet: packet.to_vec() }));
            self.next += 1;
        }
        Verdict::Wait
    }

    /// The next packet that leaves the wire, where it is time.
    pub(super) fn poll_packet(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.poll_timeout()? > now {
            return None;
        }
        self.fates.passed += 1;
        self.waiting.pop().map(|Reverse(waiting)| waiting.packet)
    }

    /// When the next packet leaves it.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse(waiting)| waiting.due)
    }

    /// The kernel did not take a packet back.
    pub(super) fn note_refused(&mut self) {
        self.fates.passed -= 1;
        self.fates.refused += 1;
    }

    pub(super) fn fates(&self) -> Fates {
        self.fates
    }

    /// When the last bit of a packet is through, or nothing where too much waits.
    fn admit(&mut self, bytes: usize, queue: u64, now: Instant) -> Option<Instant> {
        let Some(rate) = self.quality.rate else { return Some(now) };
        let begin = self.free.map_or(now, |free| free.max(now));
        let time = |bytes: u64| Duration::from_nanos(bytes.saturating_mul(8_000_000_000) / rate.max(1));
        if begin - now > time(queue) {
            return None;
        }
        let end = begin + time(bytes as u64);
        self.free = Some(end);
        Some(end)
    }
}

/// SplitMix64: any seed will do.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// True for so many of a thousand.
    fn is_of(&mut self, per_mille: u16) -> bool {
        per_mille > 0 && self.next() % 1000 < u64::from(per_mille)
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        match u64::try_from(most.as_nanos()).unwrap_or(u64::MAX) {
            0 => Duration::ZERO,
            most => Duration::from_nanos(self.next() % most),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn drained(wire: &mut Wire, now: Instant) -> Vec<u8> {
        std::iter::from_fn(|| wire.poll_packet(now)).filter_map(|packet| packet.first().copied()).collect()
    }

    #[test]
    fn a_good_wire_passes_everything_at_once() {
        let mut wire = Wire::new(Quality::default(), 1);
        for _ in 0..1000 {
            assert_eq!(wire.handle_packet(&[0; 100], Instant::now()), Verdict::Pass);
        }
        assert_eq!(wire.fates(), Fates { came: 1000, passed: 1000, ..Fates::default() });
    }

    #[test]
    fn the_same_seed_gives_the_same_fates_and_another_other_ones() {
        let now = Instant::now();
        let verdicts = |seed| {
            let mut wire = Wire::new(Quality { lost: 100, doubled: 50, ..Quality::default() }, seed);
            (0..1000).map(|_| wire.handle_packet(&[0; 100], now)).collect::<Vec<_>>()
        };
        assert_eq!(verdicts(7), verdicts(7));
        assert_ne!(verdicts(7), verdicts(8));
    }

    #[test]
    fn chance_takes_the_share_that_it_was_given_and_every_packet_is_counted() {
        let now = Instant::now();
        let quality = Quality { lost: 100, doubled: 50, held: 20, hold: MS, ..Quality::default() };
        let mut wire = Wire::new(quality, 3);
        for _ in 0..100_000 {
            wire.handle_packet(&[0; 100], now);
        }
        drained(&mut wire, now + MS * 2);
        let fates = wire.fates();
        assert!((9_500..10_500).contains(&fates.lost), "{fates:?}");
        assert!((4_200..4_800).contains(&fates.doubled), "{fates:?}");
        assert!((1_650..1_950).contains(&fates.held), "{fates:?}");
        assert_eq!(fates.came + fates.doubled, fates.passed + fates.lost, "{fates:?}");
    }

    #[test]
    fn a_packet_that_is_held_back_is_overtaken() {
        let now = Instant::now();
        let mut wire = Wire::new(Quality { held: 1000, hold: MS * 10, shortest: 2, ..Quality::default() }, 3);
        assert_eq!(wire.handle_packet(&[1, 1], now), Verdict::Wait);
        assert_eq!(wire.handle_packet(&[2], now), Verdict::Pass);
        assert_eq!(drained(&mut wire, now + MS * 9), Vec::<u8>::new());
        assert_eq!(wire.poll_timeout(), Some(now + MS * 10));
        assert_eq!(drained(&mut wire, now + MS * 10), [1]);
    }

    #[test]
    fn delayed_packets_leave_in_the_order_in_which_they_came() {
        let now = Instant::now();
        let mut wire = Wire::new(Quality { delay: MS * 5, ..Quality::default() }, 3);
        for number in 0..10 {
            assert_eq!(wire.handle_packet(&[number], now), Verdict::Wait);
        }
        assert_eq!(drained(&mut wire, now + MS * 4), Vec::<u8>::new());
        assert_eq!(drained(&mut wire, now + MS * 5), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_rate_lets_packets_wait_for_each_other_and_drops_what_the_queue_does_not_hold() {
        let now = Instant::now();
        // 1000 bytes take a millisecond, and two of them may wait
        let quality = Quality { rate: Some(8_000_000), queue: 2000, ..Quality::default() };
        let mut wire = Wire::new(quality, 3);
        let verdicts: Vec<_> = (0..5).map(|number| wire.handle_packet(&[number; 1000], now)).collect();
        assert_eq!(verdicts, [Verdict::Wait, Verdict::Wait, Verdict::Wait, Verdict::Lost, Verdict::Lost]);
        assert_eq!(drained(&mut wire, now + MS), [0]);
        assert_eq!(drained(&mut wire, now + MS * 3), [1, 2]);
        assert_eq!(wire.handle_packet(&[9; 1000], now + MS * 3), Verdict::Wait);
        assert_eq!(wire.fates().overflowed, 2);
    }

    #[test]
    fn short_packets_are_spared_by_chance_and_by_the_queue() {
        let now = Instant::now();
        let quality = Quality { lost: 1000, rate: Some(8_000), queue: 1, shortest: 100, ..Quality::default() };
        let mut wire = Wire::new(quality, 3);
        for _ in 0..10 {
            assert_eq!(wire.handle_packet(&[0; 99], now), Verdict::Wait);
            assert_eq!(wire.handle_packet(&[0; 100], now), Verdict::Lost);
        }
        assert_eq!(wire.fates().lost, 10);
    }
}
