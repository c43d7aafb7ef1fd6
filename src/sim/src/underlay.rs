//! The virtual internet: links between parties, and what is cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use flatlan_link::{Arrival, Chance, Copies, Fate, Link, Quality, turn_bit};

use crate::party::Party;

/// Directed links between all parties. Each takes some time of its own, more or less of it by where the two are.
pub(crate) struct Underlay {
    seed: u64,
    quality: Quality,
    own: BTreeMap<(Party, Party), Quality>,
    links: BTreeMap<(Party, Party), Link>,
    /// There is no way between the two, in this direction, as long as this internet exists.
    never: BTreeSet<(Party, Party)>,
    cut: BTreeSet<(Party, Party)>,
    /// Between these no datagram passes.
    udp_cut: BTreeSet<(Party, Party)>,
    /// Every way between any two takes so long, wherever they are.
    pub(crate) everywhere: Option<Duration>,
}

impl Underlay {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            quality: Quality::default(),
            own: BTreeMap::new(),
            links: BTreeMap::new(),
            never: BTreeSet::new(),
            cut: BTreeSet::new(),
            udp_cut: BTreeSet::new(),
            everywhere: None,
        }
    }

    /// A datagram enters the link between two: when its copies arrive. Its bytes may change.
    pub(crate) fn carry(
        &mut self,
        from: Party,
        to: Party,
        bytes: &mut [u8],
        now: Instant,
    ) -> Option<(Instant, Copies)> {
        if self.is_cut(from, to) || self.udp_cut.contains(&(from, to)) || bytes.len() > MTU {
            return None;
        }
        match self.link(from, to).handle_packet(bytes.len(), now) {
            Fate::Lost => None,
            Fate::Arrives(Arrival { due, copies, damage }) => {
                if let Some(bit) = damage {
                    turn_bit(bytes, bit);
                }
                Some((due, copies))
            }
        }
    }

    /// How long what a stream carries is under way, with what is sent again.
    pub(crate) fn transit(&mut self, from: Party, to: Party, now: Instant) -> Duration {
        let mut late = Duration::ZERO;
        for again in 0..4 {
            match self.link(from, to).handle_packet(STREAM_PIECE, now) {
                Fate::Arrives(Arrival { due, damage: None, .. }) => return late + due.duration_since(now),
                Fate::Arrives(Arrival { .. }) | Fate::Lost => late += RESEND * 2u32.pow(again),
            }
        }
        late + self.delay(from, to)
    }

    /// One way between two, without jitter.
    pub(crate) fn delay(&self, from: Party, to: Party) -> Duration {
        let quality = self.own.get(&(from, to)).unwrap_or(&self.quality);
        quality.delay + self.everywhere.unwrap_or_else(|| self.distance(from, to))
    }

    pub(crate) fn is_cut(&self, from: Party, to: Party) -> bool {
        self.cut.contains(&(from, to)) || self.never.contains(&(from, to))
    }

    /// Whether there will never be a way.
    pub(crate) fn is_apart(&self, from: Party, to: Party) -> bool {
        self.never.contains(&(from, to))
    }

    /// There is no way between two, ever.
    pub(crate) fn part(&mut self, a: Party, b: Party) {
        self.never.extend([(a, b), (b, a)]);
    }

    pub(crate) fn cut(&mut self, from: Party, to: Party) {
        self.cut.insert((from, to));
    }

    pub(crate) fn mend(&mut self, from: Party, to: Party) {
        self.cut.remove(&(from, to));
    }

    pub(crate) fn cut_udp(&mut self, from: Party, to: Party) {
        self.udp_cut.insert((from, to));
    }

    pub(crate) fn mend_udp(&mut self, from: Party, to: Party) {
        self.udp_cut.remove(&(from, to));
    }

    /// Every link is such a one, but for those with a quality of their own.
    pub(crate) fn set_quality(&mut self, quality: Quality) {
        self.quality = quality;
        self.renew();
    }

    /// One link is such a one.
    pub(crate) fn set_link(&mut self, from: Party, to: Party, quality: Quality) {
        self.own.insert((from, to), quality);
        self.renew();
    }

    /// All is well, but for what is apart for ever.
    pub(crate) fn heal(&mut self) {
        self.quality = Quality::default();
        self.own.clear();
        self.cut.clear();
        self.udp_cut.clear();
        self.renew();
    }

    fn renew(&mut self) {
        let of: Vec<_> = self.links.keys().copied().collect();
        for (from, to) in of {
            let quality = self.quality_of(from, to);
            if let Some(link) = self.links.get_mut(&(from, to)) {
                link.set_quality(quality);
            }
        }
    }

    fn link(&mut self, from: Party, to: Party) -> &mut Link {
        let quality = self.quality_of(from, to);
        let seed = Chance::new(self.seed ^ number(from) << 32 ^ number(to)).next();
        self.links.entry((from, to)).or_insert_with(|| Link::new(quality, seed))
    }

    fn quality_of(&self, from: Party, to: Party) -> Quality {
        let quality = *self.own.get(&(from, to)).unwrap_or(&self.quality);
        Quality { delay: self.delay(from, to), ..quality }
    }

    /// The same both ways.
    fn distance(&self, a: Party, b: Party) -> Duration {
        let (a, b) = (number(a.min(b)), number(a.max(b)));
        NEAREST + Chance::new(self.seed ^ a << 24 ^ b << 4).up_to(FARTHEST - NEAREST)
    }
}

fn number(party: Party) -> u64 {
    match party {
        Party::Hub(n) => n as u64 + 1,
        Party::Node(n) => n as u64 + 1_000_001,
        Party::Outside => 0,
    }
}

/// The longest payload of a datagram: Ethernet's 1500 without the headers of IPv4 and UDP.
const MTU: usize = 1472;
/// What a message of a stream counts as on the link.
const STREAM_PIECE: usize = 300;
/// TCP's least timeout on Linux.
pub(crate) const RESEND: Duration = Duration::from_millis(200);
const NEAREST: Duration = Duration::from_millis(1);
const FARTHEST: Duration = Duration::from_millis(25);
