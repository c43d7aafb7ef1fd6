//! What a bad link does to each packet: delay, jitter, loss, bursts, duplication, hold-back, damage, a rate.
//!
//! Two machines use it, so that both worlds have the same network: the emulator of the lab, which carries real packets
//! between namespaces, and the simulation, whose packets are events under a virtual clock. It is pure: time is an
//! argument, and chance comes of a seed, so the same packets meet the same fate.
//!
//! A [`Link`] is one direction. It is asked about each packet once, when that enters: [`Link::handle_packet`] says
//! whether it arrives, when, how often, and with which bit turned. What it does not do: hold packets. Whoever asks
//! keeps them until they are due.
//!
//! Bursts are those of Gilbert and Elliott: a link is good or bad, each packet may be the one with which that changes,
//! and while it is bad most packets are lost.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod chance;

use std::time::{Duration, Instant};

pub use chance::Chance;

/// How a link treats what crosses it. The default is a good link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Quality {
    /// How long each packet takes.
    pub delay: Duration,
    /// It may take up to so much longer, each packet as chance wants: they overtake each other.
    pub jitter: Duration,
    /// Of a thousand packets, so many are lost.
    pub lost: u16,
    /// More are lost in bursts.
    pub bursts: Bursts,
    /// Of a thousand, so many come twice.
    pub doubled: u16,
    /// Of a thousand, so many are held back, and overtaken by what comes after them.
    pub held: u16,
    /// For so long.
    pub hold: Duration,
    /// Of a thousand, so many arrive with one bit turned.
    pub damaged: u16,
    /// Bits a second; nothing: as fast as it goes.
    pub rate: Option<u64>,
    /// With a rate: so many bytes may wait, and what comes then is dropped.
    pub queue: u64,
    /// Packets shorter than this many bytes, all headers included, are left alone by chance and find room in the queue: to
    /// spare control messages.
    pub shortest: usize,
}

/// Times in which a link is bad (E. N. Gilbert 1960, E. O. Elliott 1963). The default is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bursts {
    /// Of a thousand packets that find it good, with so many it turns bad.
    pub begin: u16,
    /// Of a thousand that find it bad, with so many it turns good.
    pub end: u16,
    /// While it is bad, of a thousand packets so many are lost.
    pub lost: u16,
}

/// What became of the packets of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Entered it.
    pub came: u64,
    /// Lost by chance, bursts included.
    pub lost: u64,
    /// Came twice: each counts once here.
    pub doubled: u64,
    /// Were held back.
    pub held: u64,
    /// Arrive with one bit turned.
    pub damaged: u64,
    /// Dropped because too many waited for the rate.
    pub overflowed: u64,
}

/// What becomes of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is gone.
    Lost,
    /// It arrives.
    Arrives(Arrival),
}

/// How a packet arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// When.
    pub due: Instant,
    /// How often.
    pub copies: Copies,
    /// The bit that is turned, counted from the first byte's lowest.
    pub damage: Option<usize>,
}

/// How often a packet arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Copies {
    /// Once.
    One,
    /// Twice.
    Two,
}

impl Copies {
    /// The number.
    pub const fn count(self) -> u64 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// One direction of a link.
#[derive(Debug)]
pub struct Link {
    quality: Quality,
    chance: Chance,
    weather: Weather,
    /// When the rate lets the next packet begin.
    free: Option<Instant>,
    counts: Counts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    Bad,
    Good,
}

impl Link {
    /// A link on which nothing has happened.
    pub fn new(quality: Quality, seed: u64) -> Self {
        Self { quality, chance: Chance::new(seed), weather: Weather::Good, free: None, counts: Counts::default() }
    }

    /// A packet of so many bytes enters.
    pub fn handle_packet(&mut self, bytes: usize, now: Instant) -> Fate {
        self.counts.came += 1;
        let Quality { delay, jitter, lost, doubled, held, hold, damaged, shortest, .. } = self.quality;
        let touched = bytes >= shortest;
        if touched && (self.is_lost_in_burst() || self.chance.is_of(lost)) {
            self.counts.lost += 1;
            return Fate::Lost;
        }
        let queue = if touched { self.quality.queue } else { u64::MAX };
        let Some(mut due) = self.admit(bytes, queue, now) else {
            self.counts.overflowed += 1;
            return Fate::Lost;
        };
        due += delay + self.chance.up_to(jitter);
        if touched && self.chance.is_of(held) {
            self.counts.held += 1;
            due += hold;
        }
        let twice = touched && self.chance.is_of(doubled);
        let copies = if twice { Copies::Two } else { Copies::One };
        self.counts.doubled += u64::from(twice);
        let damage = (touched && bytes > 0 && self.chance.is_of(damaged)).then(|| self.chance.below(bytes * 8));
        self.counts.damaged += u64::from(damage.is_some());
        Fate::Arrives(Arrival { due, copies, damage })
    }

    /// From here on it is such a link.
    pub fn set_quality(&mut self, quality: Quality) {
        self.quality = quality;
    }

    /// What became of the packets so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether the weather takes a packet. A link without bursts asks chance nothing.
    fn is_lost_in_burst(&mut self) -> bool {
        let Bursts { begin, end, lost } = self.quality.bursts;
        let turns = match self.weather {
            Weather::Good => self.chance.is_of(begin),
            Weather::Bad => begin == 0 || self.chance.is_of(end),
        };
        self.weather = match (self.weather, turns) {
            (Weather::Good, true) | (Weather::Bad, false) => Weather::Bad,
            (Weather::Good, false) | (Weather::Bad, true) => Weather::Good,
        };
        self.weather == Weather::Bad && self.chance.is_of(lost)
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

/// Turns one bit of a packet, counted as in [`Arrival::damage`].
pub fn turn_bit(packet: &mut [u8], bit: usize) {
    if let Some(byte) = packet.get_mut(bit / 8) {
        *byte ^= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests;
