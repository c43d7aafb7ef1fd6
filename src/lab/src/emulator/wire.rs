//! Packets that are under way on a bad link. Pure: time is an argument; what becomes of each, [`flatlan_link`] says.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use flatlan_link::{Arrival, Copies, Fate, Link, Quality};

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
    /// Had one bit turned.
    pub damaged: u64,
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
    link: Link,
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Orders what is due at the same time.
    next: u64,
    passed: u64,
    refused: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Instant,
    number: u64,
    packet: Vec<u8>,
}

impl Wire {
    pub(super) fn new(quality: Quality, seed: u64) -> Self {
        Self { link: Link::new(quality, seed), waiting: BinaryHeap::new(), next: 0, passed: 0, refused: 0 }
    }

    /// A packet enters the wire. Its bytes may change.
    pub(super) fn handle_packet(&mut self, packet: &mut [u8], now: Instant) -> Verdict {
        let Fate::Arrives(Arrival { due, copies, damage }) = self.link.handle_packet(packet.len(), now) else {
            return Verdict::Lost;
        };
        if let Some(bit) = damage {
            turn(packet, bit);
        }
        if due <= now {
            self.passed += copies.count();
            return if copies == Copies::Two { Verdict::PassTwice } else { Verdict::Pass };
        }
        for _ in 0..copies.count() {
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
        self.passed += 1;
        self.waiting.pop().map(|Reverse(waiting)| waiting.packet)
    }

    /// When the next packet leaves it.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.peek().map(|Reverse(waiting)| waiting.due)
    }

    /// The kernel did not take a packet back.
    pub(super) fn note_refused(&mut self) {
        self.passed -= 1;
        self.refused += 1;
    }

    pub(super) fn fates(&self) -> Fates {
        let flatlan_link::Counts { came, lost, doubled, held, damaged, overflowed } = self.link.counts();
        Fates { came, passed: self.passed, lost, doubled, held, damaged, overflowed, refused: self.refused }
    }
}

/// Turns a bit behind the headers of IP and UDP, where the kernel does not see it: a datagram that it finds wrong never
/// reaches the program that is to be tested. Over IPv4 UDP may go without a checksum; TCP's own is left, so that its
/// packets are lost.
fn turn(packet: &mut [u8], bit: usize) {
    let udp = packet.first().is_some_and(|first| *first == 0x45) && packet.get(9) == Some(&UDP);
    let headers = if udp { IPV4_AND_UDP } else { 0 };
    if udp && let Some(checksum) = packet.get_mut(26..28) {
        checksum.fill(0);
    }
    let bits = packet.len().saturating_sub(headers) * 8;
    if bits > 0 {
        flatlan_link::turn_bit(packet.get_mut(headers..).unwrap_or_default(), bit % bits);
    }
}

const UDP: u8 = 17;
/// Bytes before the payload of a UDP datagram in IPv4 without options.
const IPV4_AND_UDP: usize = 28;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn drained(wire: &mut Wire, now: Instant) -> Vec<u8> {
        std::iter::from_fn(|| wire.poll_packet(now)).filter_map(|packet| packet.first().copied()).collect()
    }

    #[test]
    fn a_good_wire_passes_everything_at_once() {
        let mut wire = Wire::new(Quality::default(), 1);
        for _ in 0..1000 {
            assert_eq!(wire.handle_packet(&mut [0; 100], Instant::now()), Verdict::Pass);
        }
        assert_eq!(wire.fates(), Fates { came: 1000, passed: 1000, ..Fates::default() });
    }

    #[test]
    fn every_packet_is_counted() {
        let now = Instant::now();
        let quality = Quality { lost: 100, doubled: 50, held: 20, hold: MS, ..Quality::default() };
        let mut wire = Wire::new(quality, 3);
        for _ in 0..100_000 {
            wire.handle_packet(&mut [0; 100], now);
        }
        drained(&mut wire, now + MS * 2);
        let fates = wire.fates();
        assert_eq!(fates.came + fates.doubled, fates.passed + fates.lost, "{fates:?}");
    }

    #[test]
    fn delayed_packets_leave_in_the_order_in_which_they_came() {
        let now = Instant::now();
        let mut wire = Wire::new(Quality { delay: MS * 5, ..Quality::default() }, 3);
        for number in 0..10 {
            assert_eq!(wire.handle_packet(&mut [number], now), Verdict::Wait);
        }
        assert_eq!(drained(&mut wire, now + MS * 4), Vec::<u8>::new());
        assert_eq!(drained(&mut wire, now + MS * 5), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn a_packet_that_is_held_back_leaves_after_what_came_later() {
        let now = Instant::now();
        let mut wire = Wire::new(Quality { held: 1000, hold: MS * 10, shortest: 2, ..Quality::default() }, 3);
        assert_eq!(wire.handle_packet(&mut [1, 1], now), Verdict::Wait);
        assert_eq!(wire.handle_packet(&mut [2], now), Verdict::Pass);
        assert_eq!(drained(&mut wire, now + MS * 9), Vec::<u8>::new());
        assert_eq!(wire.poll_timeout(), Some(now + MS * 10));
        assert_eq!(drained(&mut wire, now + MS * 10), [1]);
    }

    #[test]
    fn damage_to_a_datagram_is_for_the_program_and_not_for_the_kernel() {
        let mut packet = [0; 40];
        (packet[0], packet[9], packet[27]) = (0x45, UDP, 7);
        for bit in 0..40 * 8 {
            let mut damaged = packet;
            turn(&mut damaged, bit);
            assert_eq!((&damaged[..26], &damaged[26..28]), (&packet[..26], &[0, 0][..]));
            assert_eq!(damaged[28..].iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
        }
    }

    #[test]
    fn a_damaged_packet_leaves_damaged() {
        let now = Instant::now();
        let mut wire = Wire::new(Quality { damaged: 1000, delay: MS, ..Quality::default() }, 3);
        let mut packet = [0; 100];
        wire.handle_packet(&mut packet, now);
        let left = wire.poll_packet(now + MS).unwrap();
        assert_ne!(left, [0; 100]);
        assert_eq!(wire.fates().damaged, 1);
    }
}
