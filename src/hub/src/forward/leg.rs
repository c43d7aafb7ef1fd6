//! The UDP leg to a neighbouring hub that we dialled: we bind our address there, and keep probing.
//!
//! ```text
//!            BOUND                 LOST unanswered
//!  Down ───────────────▶ Up ───────────────────────▶ Down
//!  (each endpoint in turn,   (every INTERVAL)
//!   with back-off)
//! ```
//!
//! A challenge is answered at once. Which endpoints may be tried is decided by who made the leg; an
//! address that never answers gets one small datagram per back-off.

use std::time::{Duration, Instant};

use flatlan_relay::{
    BindSecret,
    bind::{self, Bind, Bound, Verdict},
};
use flatlan_types::Endpoint;

use super::AttachmentId;

/// See the module.
#[derive(Debug)]
pub(crate) struct HubLeg {
    attachment: AttachmentId,
    id: u32,
    key: BindSecret,
    endpoints: Vec<Endpoint>,
    /// Which endpoint is tried next, while down.
    turn: usize,
    /// Where it answers.
    up: Option<Endpoint>,
    /// Counter of the last `BIND` sent.
    sent: u64,
    /// Counter of the last `BOUND` taken.
    taken: u64,
    unanswered: u32,
    pause: Duration,
    next: Instant,
    start: Instant,
}

/// What a timeout asks for.
#[derive(Debug, Default)]
pub(crate) struct Step {
    pub(crate) send: Option<(Endpoint, [u8; bind::LEN])>,
    pub(crate) down: bool,
}

/// What an answer from the hub means.
#[derive(Debug)]
pub(crate) enum Answer {
    Bound { attachment: AttachmentId, rtt: Duration, change: bool },
    Challenged { reply: [u8; bind::LEN] },
}

impl HubLeg {
    pub(crate) fn new(
        attachment: AttachmentId,
        id: u32,
        key: BindSecret,
        endpoints: Vec<Endpoint>,
        now: Instant,
    ) -> Self {
        Self {
            attachment,
            id,
            key,
            endpoints,
            turn: 0,
            up: None,
            sent: 0,
            taken: 0,
            unanswered: 0,
            pause: INTERVAL,
            next: now,
            start: now,
        }
    }

    pub(crate) fn attachment(&self) -> AttachmentId {
        self.attachment
    }

    /// Tries these no more.
    pub(crate) fn leave(&mut self, places: &[Endpoint]) {
        self.endpoints.retain(|endpoint| !places.contains(endpoint));
        self.up = self.up.filter(|up| !places.contains(up));
    }

    pub(crate) fn poll_timeout(&self) -> Instant {
        self.next
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Step {
        if now < self.next {
            return Step::default();
        }
        let down = self.up.is_some() && self.unanswered >= LOST;
        if down {
            self.up = None;
        }
        let to = self.up.or_else(|| self.endpoints.get(self.turn % self.endpoints.len().max(1)).copied());
        if self.up.is_none() {
            self.turn = self.turn.wrapping_add(1);
            // The first few tries are quick; then twice as slow each time.
            self.pause = if self.unanswered < QUICK { INTERVAL } else { (self.pause * 2).min(SLOWEST) };
        }
        self.unanswered = self.unanswered.saturating_add(1);
        self.next = now + self.pause;
        let send = to.map(|to| (to, self.bind(0, now)));
        Step { send, down }
    }

    /// `None` where it is not an answer to this leg.
    pub(crate) fn handle_bound(&mut self, from: Endpoint, frame: &[u8], now: Instant) -> Option<Answer> {
        if Bound::peek_id(frame)? != self.id || !self.endpoints.contains(&from) {
            return None;
        }
        let bound = Bound::open(frame, &self.key)?;
        if bound.counter <= self.taken || bound.counter > self.sent {
            return None;
        }
        self.taken = bound.counter;
        match bound.verdict {
            Verdict::Challenge(nonce) => Some(Answer::Challenged { reply: self.bind(nonce, now) }),
            Verdict::Bound => {
                let change = self.up != Some(from);
                self.up = Some(from);
                self.unanswered = 0;
                self.pause = INTERVAL;
                self.next = self.next.min(now + INTERVAL);
                let rtt = Duration::from_micros(self.clock(now).saturating_sub(bound.time));
                Some(Answer::Bound { attachment: self.attachment, rtt, change })
            }
        }
    }

    fn bind(&mut self, nonce: u64, now: Instant) -> [u8; bind::LEN] {
        self.sent += 1;
        Bind { id: self.id, counter: self.sent, time: self.clock(now), nonce }.encode(&self.key)
    }

    fn clock(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }
}

const INTERVAL: Duration = Duration::from_millis(200);
/// So many unanswered in a row: down.
const LOST: u32 = 4;
/// So many tries before slowing down.
const QUICK: u32 = 8;
const SLOWEST: Duration = Duration::from_secs(5);
