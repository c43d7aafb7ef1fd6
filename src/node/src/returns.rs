//! Gateways that come and go: when one that answers again has its flows back.
//!
//! ```text
//!   silent       silent            silent                      a gateway that was restarted, or moved, has its flows
//!     |  answers   |  answers        |  answers                back at once; one that falls silent again and again
//!     v  v         v  v              v  v                      must answer for ever longer
//!     ----+        ----+---HOLD---+  ----+---twice as long---+
//!         back                 back                       back
//! ```
//!
//! Each move of a flow may cost it packets and turn their order round, and a way that is there for a few seconds carries
//! nobody further. But a path that is needed is never hidden: `share` holds a gateway back only where another one of its
//! prefix can have the flows.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use flatlan_types::PeerSlot;

/// The gateways that fell silent lately.
#[derive(Default)]
pub(crate) struct Returns {
    lately: BTreeMap<PeerSlot, Return>,
}

struct Return {
    /// How often in a row, none of them [`FORGOTTEN`] after the one before.
    silences: u32,
    last: Instant,
    /// It answers, and does not have its flows back before this.
    held_until: Option<Instant>,
}

impl Returns {
    /// It fell silent.
    pub(crate) fn handle_silence(&mut self, slot: PeerSlot, now: Instant) {
        self.lately.retain(|_, of| of.held_until.is_some() || now.duration_since(of.last) < FORGOTTEN);
        let of = self.lately.entry(slot).or_insert(Return { silences: 0, last: now, held_until: None });
        *of = Return { silences: of.silences.saturating_add(1), last: now, held_until: None };
    }

    /// It answers again.
    pub(crate) fn handle_answer(&mut self, slot: PeerSlot, now: Instant) {
        let Some(of) = self.lately.get_mut(&slot) else { return };
        let Some(again) = of.silences.checked_sub(2) else { return };
        let hold = HOLD.saturating_mul(1 << again.min(16)).min(HOLD_MOST);
        of.held_until = Some(now + hold);
    }

    /// Those that have answered for long enough.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Vec<PeerSlot> {
        let mut back = Vec::new();
        for (slot, of) in &mut self.lately {
            if of.held_until.is_some_and(|at| at <= now) {
                of.held_until = None;
                back.push(*slot);
            }
        }
        back
    }

    /// When [`Returns::handle_timeout`] has something to do.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.lately.values().filter_map(|of| of.held_until).min()
    }

    /// Those that answer and are held back.
    pub(crate) fn held(&self) -> impl Iterator<Item = PeerSlot> {
        self.lately.iter().filter(|(_, of)| of.held_until.is_some()).map(|(slot, _)| *slot)
    }
}

/// The second time in a row, a gateway must answer for so long; then twice as long each time, up to [`HOLD_MOST`].
pub(crate) const HOLD: Duration = Duration::from_secs(1);
const HOLD_MOST: Duration = Duration::from_secs(30);
/// A silence that was longer ago is no sign of coming and going.
pub(crate) const FORGOTTEN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_falls_silent_again_and_again_waits_ever_longer_and_it_is_forgotten() {
        let (mut returns, mut now, slot) = (Returns::default(), Instant::now(), PeerSlot(3));
        let mut held = Vec::new();
        for _ in 0..9 {
            returns.handle_silence(slot, now);
            assert_eq!((returns.poll_timeout(), returns.held().count()), (None, 0), "it does not answer");
            returns.handle_answer(slot, now);
            let until = returns.poll_timeout();
            held.push(until.map_or(0, |until| (until - now).as_secs()));
            if let Some(until) = until {
                assert_eq!(returns.handle_timeout(until - Duration::from_millis(1)), []);
                assert!(returns.held().eq([slot]));
                assert_eq!(returns.handle_timeout(until), [slot]);
                now = until;
            }
            assert_eq!((returns.held().count(), returns.poll_timeout()), (0, None));
        }
        assert_eq!(held, [0, 1, 2, 4, 8, 16, 30, 30, 30]);
        returns.handle_silence(slot, now + FORGOTTEN);
        returns.handle_answer(slot, now + FORGOTTEN);
        returns.handle_answer(PeerSlot(4), now);
        assert_eq!(returns.held().count(), 0, "the one was silent long ago, the other never");
    }
}
