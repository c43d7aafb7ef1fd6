//! The UDP leg to a neighbouring hub that we dialled: we bind our address there, and keep probing.
//!
//! ```text
//!            BOUND                 LOST unanswered, and SILENCE
//!  Down ───────────────▶ Up ───────────────────────▶ Down
//!  (each endpoint in turn,   (every INTERVAL; every BURST
//!   with back-off)            once an answer is late)
//! ```
//!
//! Where more data goes to that hub or comes from it than idle nodes make, it is asked many times as often, so that both hubs learn within moments
//! that the other is silent. When the data ends the questions thin out little by little: the other hub judges our silence
//! by how often we spoke.
//!
//! Suspicion is settled fast: what comes of the burst is also what keeps the other hub from believing that this one is
//! dead, where a single datagram was lost. On a slow link it is not asked faster than answers can come. A challenge is answered at once. Which endpoints may be tried is decided by who made the leg; an
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
    /// When the first of those was sent.
    silent_since: Instant,
    /// Of the last answer.
    rtt: Duration,
    /// When the last `BIND` was sent that was due.
    asked: Instant,
    load: Load,
    /// Between two `BIND`s whose answers are in time.
    interval: Duration,
    pause: Duration,
    next: Instant,
    start: Instant,
}

/// Whether many of a hub's frames cross this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    Carrying,
    Idle,
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
            silent_since: now,
            rtt: Duration::ZERO,
            asked: now,
            load: Load::Idle,
            interval: INTERVAL,
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

    /// How often it is asked from the next time on.
    pub(crate) fn set_load(&mut self, load: Load) {
        self.load = load;
    }

    pub(crate) fn poll_timeout(&self) -> Instant {
        self.next
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Step {
        if now < self.next {
            return Step::default();
        }
        let silent = now.saturating_duration_since(self.silent_since);
        let down = self.up.is_some() && self.unanswered >= LOST && silent >= SILENCE + self.rtt * 2;
        if down {
            (self.up, self.unanswered) = (None, 0);
        }
        let to = self.up.or_else(|| self.endpoints.get(self.turn % self.endpoints.len().max(1)).copied());
        if self.up.is_none() {
            self.turn = self.turn.wrapping_add(1);
            // The first few tries are quick; then twice as slow each time.
            self.pause = if self.unanswered < QUICK { INTERVAL } else { (self.pause * 2).min(SLOWEST) };
        }
        self.interval = match self.load {
            Load::Carrying => QUICK_INTERVAL,
            Load::Idle => (self.interval + self.interval / 4).min(INTERVAL),
        };
        let (late, burst) = if self.interval < INTERVAL { (QUICK_LATE, QUICK_BURST) } else { (LATE, BURST) };
        // Where it answers, an answer in time puts this off.
        let again = match (self.up, self.unanswered) {
            (None, _) => self.pause,
            (Some(_), 0) => self.rtt + self.rtt / 2 + late,
            (Some(_), _) => burst.max(self.rtt / 8),
        };
        if self.unanswered == 0 {
            self.silent_since = now;
        }
        self.unanswered = self.unanswered.saturating_add(1);
        (self.asked, self.next) = (now, now + again);
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
                self.next = (self.asked + self.interval).max(now);
                let rtt = Duration::from_micros(self.clock(now).saturating_sub(bound.time));
                self.rtt = rtt;
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
/// So much later than usual an answer is late, and how soon it is asked for again then.
const LATE: Duration = Duration::from_millis(60);
const BURST: Duration = Duration::from_millis(40);
/// The same where data goes.
const QUICK_INTERVAL: Duration = Duration::from_millis(25);
pub(crate) const QUICK_LATE: Duration = Duration::from_millis(10);
pub(crate) const QUICK_BURST: Duration = Duration::from_millis(10);
/// What is silent for less than this, and two round trips, is not down: one lost datagram costs a round trip.
const SILENCE: Duration = Duration::from_millis(400);
/// So many unanswered in a row: down. Chance reaches this at 10 % loss each way once in years.
const LOST: u32 = 12;
/// So many tries before slowing down.
const QUICK: u32 = 8;
const SLOWEST: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A leg that is up since `start`, and was answered at once.
    fn up(start: Instant) -> HubLeg {
        let mut leg = HubLeg::new(AttachmentId(1), 7, BindSecret::from_bytes([1; 32]), vec![hub()], start);
        ask(&mut leg, start);
        answer(&mut leg, start + MS);
        leg
    }

    fn hub() -> Endpoint {
        Endpoint::new("192.0.2.9:51820".parse().unwrap())
    }

    fn ask(leg: &mut HubLeg, now: Instant) -> Step {
        let step = leg.handle_timeout(now);
        assert!(step.send.is_some());
        step
    }

    fn answer(leg: &mut HubLeg, now: Instant) {
        let (counter, time) = (leg.sent, leg.clock(leg.asked));
        let bound = Bound { id: 7, counter, time, reflexive: hub(), verdict: Verdict::Bound };
        assert!(leg.handle_bound(hub(), &bound.encode(&BindSecret::from_bytes([1; 32])), now).is_some());
    }

    #[test]
    fn answers_in_time_are_asked_for_five_times_a_second() {
        let start = Instant::now();
        let mut leg = up(start);
        for turn in 1..10 {
            let due = start + INTERVAL * turn;
            assert_eq!(leg.poll_timeout(), due);
            ask(&mut leg, due);
            answer(&mut leg, due + MS * 30);
        }
    }

    #[test]
    fn where_data_goes_answers_are_asked_for_many_times_as_often_and_more_rarely_by_and_by_once_it_ends() {
        let start = Instant::now();
        let mut leg = up(start);
        leg.set_load(Load::Carrying);
        let due = leg.poll_timeout();
        ask(&mut leg, due);
        answer(&mut leg, due + MS);
        assert_eq!(leg.poll_timeout(), due + QUICK_INTERVAL);
        leg.set_load(Load::Idle);
        let mut gap = QUICK_INTERVAL;
        while gap < INTERVAL {
            let due = leg.poll_timeout();
            ask(&mut leg, due);
            answer(&mut leg, due + MS);
            let next = leg.poll_timeout() - due;
            assert!(gap < next && next <= gap * 5 / 4, "{gap:?}, then {next:?}");
            gap = next;
        }
    }

    #[test]
    fn an_answer_that_is_late_is_asked_for_again_at_once_and_one_of_many_is_enough() {
        let start = Instant::now();
        let mut leg = up(start);
        let lost = start + INTERVAL;
        ask(&mut leg, lost);
        let mut now = leg.poll_timeout();
        assert!(now <= lost + LATE + MS * 2);
        for _ in 2..LOST {
            assert!(!ask(&mut leg, now).down);
            assert_eq!(leg.poll_timeout(), now + BURST);
            now += BURST;
        }
        answer(&mut leg, now);
        assert_eq!(leg.poll_timeout(), leg.asked + INTERVAL);
        let due = leg.poll_timeout();
        assert!(!ask(&mut leg, due).down);
    }

    /// Runs a leg whose answers take `rtt` until `end`, the one asked for at `lost` excepted; how often it was down.
    fn run(leg: &mut HubLeg, (start, end): (Instant, Instant), rtt: Duration, lost: u64) -> u32 {
        let (mut now, mut asked, mut downs) = (start, 0, 0);
        let mut coming = std::collections::BTreeMap::new();
        while now < end {
            let step = leg.handle_timeout(now);
            downs += u32::from(step.down);
            if step.send.is_some() {
                asked += 1;
                if asked != lost {
                    coming.insert(now + rtt, (leg.sent, leg.clock(now)));
                }
            }
            let next = coming.keys().next().copied().unwrap_or(end);
            now = leg.poll_timeout().min(next);
            if let Some((counter, time)) = coming.remove(&now) {
                let bound = Bound { id: 7, counter, time, reflexive: hub(), verdict: Verdict::Bound };
                leg.handle_bound(hub(), &bound.encode(&BindSecret::from_bytes([1; 32])), now);
            }
        }
        downs
    }

    #[test]
    fn one_lost_datagram_takes_no_leg_down_however_long_the_link() {
        for rtt in [1, 50, 200, 450, 600, 1500] {
            for lost in 0..20 {
                let start = Instant::now();
                let mut leg = up(start);
                let begin = leg.poll_timeout();
                assert_eq!(
                    run(&mut leg, (begin, begin + MS * 2000), MS * rtt, 0),
                    u32::from(rtt > 500),
                    "{rtt} ms is news"
                );
                let now = leg.poll_timeout();
                assert_eq!(run(&mut leg, (now, now + MS * 20_000), MS * rtt, lost), 0, "{rtt} ms, number {lost}");
            }
        }
    }

    #[test]
    fn a_leg_that_went_down_is_tried_a_few_times_quickly() {
        let start = Instant::now();
        let mut leg = up(start);
        let mut now = leg.poll_timeout();
        while !ask(&mut leg, now).down {
            now = leg.poll_timeout();
        }
        for _ in 1..QUICK {
            assert_eq!(leg.poll_timeout(), now + INTERVAL);
            now += INTERVAL;
            ask(&mut leg, now);
        }
    }

    #[test]
    fn a_hub_that_answers_no_more_is_down_within_a_second() {
        let start = Instant::now();
        let mut leg = up(start);
        let mut due = leg.poll_timeout();
        while !ask(&mut leg, due).down {
            due = leg.poll_timeout();
            assert!(due < start + MS * 1000);
        }
    }
}
