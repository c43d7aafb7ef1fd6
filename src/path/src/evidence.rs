//! What data says about a path: the sender's ledger of what it sent, compared with what the receiver
//! reports, and the receiver's counters that it reports from.
//!
//! A report is exact because a probe is sent behind the data: the ledger as it stood when the probe left is
//! compared with the counters as they stood when the probe arrived by the same path. A report that came
//! through another path's probe is used as good news only: that path may simply be faster.
//!
//! Counters are compared modulo 2^32. Counters that go down mean that the receiver started again or that
//! data comes in elsewhere since; the ledger then starts a new comparison and judges nothing.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use flatlan_types::{Endpoint, HubSlot};

use crate::{
    frame::{Received, UNIT},
    kind::{PathId, PathKind},
};

/// What was sent by one path, and since when nothing of it was seen to arrive.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ledger {
    packets: u64,
    bytes: u64,
    /// The last report that was good news, or about nothing.
    mark: Option<Mark>,
    /// The last report in which anything had arrived since the one before.
    advance: Option<Mark>,
    /// The latest report, whichever path it came through.
    latest: Option<Report>,
}

impl Ledger {
    pub(crate) fn add(&mut self, packets: u32, bytes: u64) {
        self.packets = self.packets.wrapping_add(packets.into());
        self.bytes = self.bytes.wrapping_add(bytes);
    }

    /// What was sent until now, as a probe that leaves now remembers it.
    pub(crate) fn tally(&self) -> Tally {
        Tally::new(self.packets, self.bytes)
    }

    /// Counters of another receiver follow, or data starts on this path: compare from the next report on.
    pub(crate) fn restart(&mut self) {
        (self.mark, self.advance, self.latest) = (None, None, None);
    }

    /// A report through any path. Returns a time after which this path certainly delivered data.
    pub(crate) fn hear(&mut self, received: Tally, asked: Instant) -> Option<Instant> {
        let before = self.latest;
        if before.is_some_and(|before| asked <= before.asked) {
            return None;
        }
        self.latest = Some(Report { received, asked });
        // What advanced between two reports arrived after the earlier of the two was asked for.
        let before = before?;
        (received.since(before.received)?.packets > 0).then_some(before.asked)
    }

    /// A report by a probe that travelled this very path: `sent` is the ledger when it left, at `asked`.
    pub(crate) fn judge(&mut self, sent: Tally, received: Tally, asked: Instant, span: Duration) -> Verdict {
        let mark = Mark { sent, received, asked };
        let (Some(before), Some(advance)) = (self.mark, self.advance) else {
            return self.begin(mark, Verdict::Unclear);
        };
        if asked <= before.asked {
            return Verdict::Unclear;
        }
        let (Some(since), Some(stalled)) = (mark.since(before), mark.since(advance)) else {
            return self.begin(mark, Verdict::Unclear);
        };
        if since.sent.packets == 0 {
            return self.begin(mark, Verdict::Unclear);
        }
        if stalled.received.packets > 0 {
            self.advance = Some(mark);
        } else if stalled.sent.packets >= FEW_PACKETS && stalled.lasted >= span {
            return self.begin(mark, Verdict::BlackHole);
        }
        let lost = since.sent.packets.saturating_sub(since.received.packets);
        let less_than = |share: u64| u64::from(since.received.units) * share < u64::from(since.sent.units);
        if less_than(4) && lost >= MANY_PACKETS && since.lasted >= span * 5 {
            return self.begin(mark, Verdict::Lossy);
        }
        match lost {
            _ if !less_than(2) => self.begin(mark, Verdict::Delivers),
            FEW_PACKETS.. => Verdict::Doubt,
            _ => Verdict::Unclear,
        }
    }

    /// Compares from this report on.
    fn begin(&mut self, mark: Mark, verdict: Verdict) -> Verdict {
        self.mark = Some(mark);
        match verdict {
            // What was sent since the last advance may still be on its way: that clock goes on.
            Verdict::Delivers => {}
            Verdict::BlackHole | Verdict::Doubt | Verdict::Lossy | Verdict::Unclear => self.advance = Some(mark),
        }
        verdict
    }
}

/// What a comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing arrived of at least eight packets, for the whole span.
    BlackHole,
    /// Most bytes arrive.
    Delivers,
    /// Most bytes did not arrive: something that depends on size, or a burst of loss. Ask with large probes.
    Doubt,
    /// Very little arrives of very much.
    Lossy,
    /// Too little was sent.
    Unclear,
}

/// Packets and units of bytes, modulo 2^32, as they travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    packets: u32,
    units: u32,
}

impl Tally {
    #[expect(clippy::cast_possible_truncation, reason = "counters travel modulo 2^32")]
    fn new(packets: u64, bytes: u64) -> Self {
        Self { packets: packets as u32, units: (bytes / UNIT) as u32 }
    }

    /// The difference, unless one of them went down.
    fn since(self, before: Self) -> Option<Self> {
        let difference = |a: u32, b: u32| Some(a.wrapping_sub(b)).filter(|d| *d < 1 << 31);
        Some(Self { packets: difference(self.packets, before.packets)?, units: difference(self.units, before.units)? })
    }
}

impl From<Received> for Tally {
    fn from(received: Received) -> Self {
        Self { packets: received.packets, units: received.units }
    }
}

/// Both counters at one time.
#[derive(Clone, Copy, Debug)]
struct Mark {
    sent: Tally,
    received: Tally,
    asked: Instant,
}

impl Mark {
    fn since(self, before: Self) -> Option<Difference> {
        Some(Difference {
            sent: self.sent.since(before.sent)?,
            received: self.received.since(before.received)?,
            lasted: self.asked.saturating_duration_since(before.asked),
        })
    }
}

/// What happened between two marks.
#[derive(Clone, Copy, Debug)]
struct Difference {
    sent: Tally,
    received: Tally,
    lasted: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Report {
    received: Tally,
    asked: Instant,
}

/// The receiver's side: data counted by ingress, and the peer's names for these.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inbox {
    counters: BTreeMap<Ingress, Counter>,
    /// The peer's path numbers: where its probes come in, and the latest of them.
    names: BTreeMap<PathId, (Ingress, u32)>,
    /// Whose numbers these are.
    instance: Option<u16>,
}

impl Inbox {
    pub(crate) fn count(&mut self, ingress: PathKind, packets: u32, bytes: u64, now: Instant) {
        let counter = self.counter(ingress.into(), now);
        counter.packets = counter.packets.wrapping_add(packets.into());
        counter.bytes = counter.bytes.wrapping_add(bytes);
    }

    /// A probe of the peer's came in. Returns whether the peer is another instance than before.
    pub(crate) fn hear(&mut self, path: PathId, seq: u32, instance: u16, ingress: PathKind, now: Instant) -> Restarted {
        let restarted = match self.instance.replace(instance) {
            Some(before) if before != instance => Restarted::Yes,
            Some(_) | None => Restarted::No,
        };
        if restarted == Restarted::Yes {
            self.names.clear();
        }
        let ingress = ingress.into();
        self.counter(ingress, now);
        let latest = self.names.get(&path).map_or(seq, |(_, heard)| later(seq, *heard));
        self.names.insert(path, (ingress, latest));
        // The peer counts its paths up, so the least is the oldest (but for a wrap, which costs one report).
        if self.names.len() > MAX_NAMES {
            self.names.pop_first();
        }
        restarted
    }

    /// What came in on the path that the peer calls `about`.
    pub(crate) fn report(&self, about: PathId) -> Option<Received> {
        let (ingress, heard) = self.names.get(&about)?;
        let counter = self.counters.get(ingress)?;
        let Tally { packets, units } = Tally::new(counter.packets, counter.bytes);
        Some(Received { packets, units, heard: *heard })
    }

    fn counter(&mut self, ingress: Ingress, now: Instant) -> &mut Counter {
        if self.counters.len() >= MAX_INGRESS && !self.counters.contains_key(&ingress) {
            let oldest = self.counters.iter().min_by_key(|(_, counter)| counter.used).map(|(ingress, _)| *ingress);
            oldest.and_then(|oldest| self.counters.remove(&oldest));
        }
        let counter = self.counters.entry(ingress).or_insert(Counter { packets: 0, bytes: 0, used: now });
        counter.used = now;
        counter
    }
}

/// Whether counters of the peer start again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Restarted {
    No,
    Yes,
}

/// Where packets come in. The legs of one hub are one: which of them the hub uses toward this node is this
/// node's choice, not the sender's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Ingress {
    Direct(Endpoint),
    Hub(HubSlot),
}

impl From<PathKind> for Ingress {
    fn from(kind: PathKind) -> Self {
        match kind {
            PathKind::Direct(endpoint) => Self::Direct(endpoint),
            PathKind::Relay { hub, leg: _ } => Self::Hub(hub),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Counter {
    packets: u64,
    bytes: u64,
    used: Instant,
}

/// The later of two sequence numbers (RFC 1982).
fn later(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b) < 1 << 31 { a } else { b }
}

/// So many lost packets are no chance.
const FEW_PACKETS: u32 = 8;
/// So many lost packets say something about a path that still delivers some.
const MANY_PACKETS: u32 = 64;
/// More sources than a peer has at a time.
const MAX_INGRESS: usize = 32;
/// More paths than a peer has at a time.
const MAX_NAMES: usize = 64;

#[cfg(test)]
mod tests;
