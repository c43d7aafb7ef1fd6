//! How far the hubs are, and which are preferred for it.
//!
//! Attached hubs are measured by the pings that keep their control streams alive. Where the roster has more hubs than a
//! node attaches to, each of the others is asked now and then on a stream of its own, as a stranger may: one at a time,
//! a few pings, and it is closed. A hub that was not measured yet is taken to be as far as the nearest one of its
//! region.
//!
//! ```text
//!   order: tier by round trip (nearest first), within a tier by the weighted hash
//!   tier:  0 up to half as far again as the nearest hub, and so on in growing steps; a hub stays in its tier
//!          until its round trip is a fifth beyond the step
//! ```
//!
//! So load spreads by weight over hubs that are equally near, and hubs whose round trips hardly differ never change
//! places.

use std::time::{Duration, Instant};

use flatlan_relay::Control;
use flatlan_types::{HubSlot, Name};

use super::{Context, Hubs, Phase, Purpose, attach::ANSWER};
use crate::output::{Output, StreamId};

/// What is known of the way to a hub.
#[derive(Clone, Debug, Default)]
pub(super) struct Distance {
    /// Smoothed; less counts at once, for what delays an answer says nothing of the way.
    pub(super) rtt: Option<Duration>,
    tier: Option<u8>,
    /// When it was asked last without being attached.
    asked: Option<Instant>,
    pub(super) region: Option<Name>,
}

/// Where a hub stands in this node's order: the smaller is preferred.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Standing {
    /// Peers are there that no other hub reaches straight.
    far: bool,
    pub(super) tier: u8,
    /// Greater is better.
    pub(super) rank: f64,
}

impl Standing {
    pub(super) fn compare(&self, other: &Self) -> std::cmp::Ordering {
        other.far.cmp(&self.far).then(self.tier.cmp(&other.tier)).then(other.rank.total_cmp(&self.rank))
    }
}

impl Distance {
    fn note(&mut self, sample: Duration) {
        let smooth = |rtt: Duration| if sample < rtt { sample } else { (rtt * 15 + sample) / 16 };
        self.rtt = Some(self.rtt.map_or(sample, smooth));
    }

    /// Nothing is known of the way any more.
    pub(super) fn forget(&mut self) {
        (self.rtt, self.tier, self.asked) = (None, None, None);
    }
}

impl Hubs {
    /// A hub answered a ping.
    pub(super) fn note_distance(&mut self, slot: HubSlot, sample: Duration) {
        if let Some(hub) = self.hub_mut(slot) {
            hub.distance.note(sample);
            self.find_tiers();
        }
    }

    /// Puts every hub into its tier, and the targets into their order.
    pub(super) fn find_tiers(&mut self) {
        let listed = || self.hubs.iter().filter(|hub| hub.listed);
        let known: Vec<(Option<Name>, Duration)> =
            listed().filter_map(|hub| Some((hub.distance.region.clone(), hub.distance.rtt?))).collect();
        let nearest = known.iter().map(|(_, rtt)| *rtt).min();
        for hub in &mut self.hubs {
            let region = hub.distance.region.as_ref();
            let alike = known.iter().filter(|(of, _)| of.is_some() && of.as_ref() == region).map(|(_, rtt)| *rtt);
            let rtt = hub.distance.rtt.or_else(|| alike.min());
            hub.distance.tier = match (rtt, nearest) {
                (Some(rtt), Some(nearest)) => Some(tier(rtt, nearest, hub.distance.tier)),
                (None, _) | (_, None) => None,
            };
        }
        let standing = |target: &super::dial::Target| {
            let hub = self.hubs.iter().find(|hub| Some(hub.key) == target.key);
            let tier = hub.and_then(|hub| hub.distance.tier).unwrap_or(UNKNOWN);
            Standing { far: hub.is_some_and(|hub| self.far.contains_key(&hub.key)), tier, rank: target.rank }
        };
        let mut order: Vec<(Standing, usize)> = self.targets.iter().map(standing).zip(0..).collect();
        order.sort_by(|(a, n), (b, m)| a.compare(b).then(n.cmp(m)));
        let mut targets: Vec<_> = std::mem::take(&mut self.targets).into_iter().map(Some).collect();
        self.targets = order.into_iter().filter_map(|(_, n)| targets.get_mut(n).and_then(Option::take)).collect();
    }

    pub(super) fn standing(&self, slot: HubSlot) -> Standing {
        let hub = self.hub(slot);
        let tier = hub.and_then(|hub| hub.distance.tier).unwrap_or(UNKNOWN);
        Standing { far: self.is_far(slot), tier, rank: hub.map_or(0.0, |hub| hub.rank) }
    }

    /// Asks the next hub how far it is, when its time has come.
    pub(super) fn measure(&mut self, ctx: &mut Context<'_>) {
        let Some((slot, at)) = self.next_measured() else { return };
        if at > ctx.now {
            return;
        }
        let Some(key) = self.key(slot) else { return };
        let Some(place) = self.targets.iter().find(|target| target.key == Some(key)).map(|t| t.place.clone()) else {
            return;
        };
        if let Some(hub) = self.hub_mut(slot) {
            hub.distance.asked = Some(ctx.now);
        }
        self.measured_last = Some(ctx.now);
        self.next_stream += 1;
        self.open(StreamId(self.next_stream), Purpose::Measure(slot), place, Some(key), ctx);
    }

    /// When [`Hubs::measure`] has something to do.
    pub(super) fn measure_at(&self) -> Option<Instant> {
        self.next_measured().map(|(_, at)| at)
    }

    /// Who is measured next, and when: first who never was, of regions of which nothing is known.
    fn next_measured(&self) -> Option<(HubSlot, Instant)> {
        let measuring = self.streams.values().any(|stream| matches!(stream.purpose, Purpose::Measure(_)));
        // as many hubs as wanted and no choice: nothing to find out
        let choice = self.listed.is_some_and(|listed| listed > self.wanted()) && self.staying().next().is_some();
        if measuring || !choice {
            return None;
        }
        let free = self.measured_last.map(|last| last + MEASURE_SPACING).or_else(|| {
            let first = self.staying().filter_map(|hub| hub.control.as_ref()).map(|attachment| attachment.since).min();
            first.map(|since| since + MEASURE_SPACING)
        })?;
        let others = self.hubs.iter().filter(|hub| hub.listed && hub.control.is_none());
        let next = others.map(|hub| (hub.distance.asked, hub.distance.tier.is_some(), hub.slot)).min()?;
        let (asked, _, slot) = next;
        Some((slot, asked.map_or(free, |asked| free.max(asked + MEASURE_EVERY))))
    }

    /// A hub takes the stream on which it is to be measured.
    pub(super) fn begin_measuring(&mut self, id: StreamId, ctx: &mut Context<'_>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let ping = ctx.rng.opaque();
        stream.phase = Phase::Measuring { left: PINGS, asked: ctx.now, ping, least: None };
        stream.deadline = Some(ctx.now + ANSWER);
        ctx.out.send(id, &Control::Ping { time: ping });
    }

    /// It answers.
    pub(super) fn on_measured(&mut self, id: StreamId, message: &Control, ctx: &mut Context<'_>) {
        let Control::Pong { time } = message else { return };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Purpose::Measure(slot) = stream.purpose else { return };
        let Phase::Measuring { left, asked, ping, least } = &mut stream.phase else { return };
        if time != ping {
            return;
        }
        let sample = ctx.now.saturating_duration_since(*asked);
        let rtt = least.map_or(sample, |least| least.min(sample));
        (*left, *asked, *ping, *least) = (left.saturating_sub(1), ctx.now, ctx.rng.opaque(), Some(rtt));
        if *left > 0 {
            return ctx.out.send(id, &Control::Ping { time: *ping });
        }
        self.streams.remove(&id);
        ctx.out.push(Output::Close { stream: id });
        // what was found out long ago says nothing beside it
        if let Some(hub) = self.hub_mut(slot) {
            hub.distance.rtt = Some(rtt);
            self.find_tiers();
        }
    }
}

/// The tier of a round trip, where the nearest hub has the other one, and this hub had a tier before.
fn tier(rtt: Duration, nearest: Duration, was: Option<u8>) -> u8 {
    let of = |rtt: Duration| {
        let ratio = (rtt + SLACK).as_secs_f64() / (nearest + SLACK).as_secs_f64();
        STEPS.iter().filter(|step| ratio >= **step).count() as u8
    };
    match was {
        Some(was) if of(rtt * 4 / 5) <= was && was <= of(rtt * 5 / 4) => was,
        Some(_) | None => of(rtt),
    }
}

/// Round trips differ by chance by this.
const SLACK: Duration = Duration::from_millis(20);
/// Where the tiers begin, by how many times as far as the nearest hub.
const STEPS: [f64; 4] = [1.5, 2.5, 4.0, 8.0];
/// The tier of a hub of which nothing is known: behind those that are near, before those that are far.
const UNKNOWN: u8 = 1;
/// Pings to a hub that is measured.
const PINGS: u8 = 3;
/// From one hub to the next.
const MEASURE_SPACING: Duration = Duration::from_secs(2);
/// From one time to the next of the same hub.
const MEASURE_EVERY: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hubs_that_are_about_as_far_are_of_one_tier_and_stay_there() {
        let ms = Duration::from_millis;
        assert_eq!(tier(ms(1), ms(1), None), 0);
        assert_eq!(tier(ms(10), ms(1), None), 0);
        assert_eq!(tier(ms(20), ms(1), None), 1);
        assert_eq!(tier(ms(80), ms(1), None), 3);
        assert_eq!(tier(ms(300), ms(1), None), 4);
        assert_eq!(tier(ms(60), ms(50), None), 0);
        // 11.5 ms is the step
        assert_eq!((tier(ms(12), ms(1), Some(0)), tier(ms(11), ms(1), Some(1))), (0, 1));
        assert_eq!((tier(ms(16), ms(1), Some(0)), tier(ms(8), ms(1), Some(1))), (1, 0));
    }

    #[test]
    fn a_shorter_round_trip_counts_at_once_and_a_longer_one_slowly() {
        let mut distance = Distance::default();
        distance.note(Duration::from_millis(16));
        distance.note(Duration::from_millis(32));
        assert_eq!(distance.rtt, Some(Duration::from_millis(17)));
        distance.note(Duration::from_millis(2));
        assert_eq!(distance.rtt, Some(Duration::from_millis(2)));
    }
}
