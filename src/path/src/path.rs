//! One path: its probes in flight, and what they say.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{
    evidence::{Ledger, Tally},
    kind::{PathId, PathKind},
    rtt::Rtt,
    size::SizeSearch,
};

/// One path and everything known about it. It decides nothing.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    pub(crate) id: PathId,
    pub(crate) kind: PathKind,
    pub(crate) phase: Phase,
    /// A relay's round trip to the hub; ranks the path until its own is known.
    pub(crate) hint: Duration,
    pub(crate) ledger: Ledger,
    pub(crate) size: SizeSearch,
    /// A probe is due then; `None`: the path is not probed.
    pub(crate) due: Option<Instant>,
    /// Probes still to be sent in quick succession.
    pub(crate) burst: u32,
    /// Probes sent since the last answer, or since the path got a new chance.
    pub(crate) tries: u32,
    /// No graceful move to this path before.
    pub(crate) hold_until: Option<Instant>,
    /// Swallowed data before: a last resort until then.
    pub(crate) grey_until: Option<Instant>,
    /// Its hub asked to be left.
    pub(crate) draining: bool,
    /// The peer names it as a candidate at present.
    pub(crate) listed: bool,
    /// The latest time at which something sent is known to have arrived.
    alive: Option<Instant>,
    last_sent: Option<Instant>,
    sent: VecDeque<Sent>,
    /// The earliest deadline of a probe in flight.
    deadline: Option<Instant>,
    /// Deadlines missed since `alive`, and when the first of these probes was sent.
    missed: u32,
    missed_since: Option<Instant>,
    answers: u32,
    rtt: Rtt,
    /// Samples came from replies by this same path; others are taken only as long as there are none, or none any more.
    rtt_origin: Option<Reverse>,
    /// Answers by other paths since the last one by this.
    others: u32,
    loss: f32,
    deaths: Strikes,
    blackouts: Strikes,
}

/// Where a path stands; suspicion is [`Path::missed`] above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Did not answer enough yet.
    Untested,
    /// Answers.
    Valid,
    /// Stopped answering while others answered.
    Dead,
}

/// The way a reply came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reverse {
    /// By the probed path.
    Same,
    /// By another one.
    Other,
}

impl Path {
    pub(crate) fn new(id: PathId, kind: PathKind, hint: Duration, max_datagram: usize, now: Instant) -> Self {
        Self {
            id,
            kind,
            phase: Phase::Untested,
            hint,
            ledger: Ledger::default(),
            size: SizeSearch::new(max_datagram),
            due: Some(now),
            burst: 0,
            tries: 0,
            hold_until: None,
            grey_until: None,
            draining: false,
            listed: false,
            alive: None,
            last_sent: None,
            sent: VecDeque::new(),
            deadline: None,
            missed: 0,
            missed_since: None,
            answers: 0,
            rtt: Rtt::default(),
            rtt_origin: None,
            others: 0,
            loss: 0.0,
            deaths: Strikes::default(),
            blackouts: Strikes::default(),
        }
    }

    /// A probe of `size` bytes leaves; `asked` is the ledger of the path it asks about.
    pub(crate) fn probe(&mut self, seq: u32, size: usize, about: PathId, asked: Tally, now: Instant, min: Duration) {
        let deadline = now + self.rtt.deadline(min);
        self.sent.push_back(Sent { seq, at: now, deadline, size, about, asked, fate: Fate::Open });
        let forgotten = |sent: &Sent| now.saturating_duration_since(sent.at) > REMEMBER;
        while self.sent.len() > MAX_SENT || self.sent.front().is_some_and(forgotten) {
            if let Some(Sent { at, size, fate: Fate::Open, .. }) = self.sent.pop_front() {
                self.miss(at, size);
            }
        }
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
        self.last_sent = Some(now);
        self.tries = self.tries.saturating_add(1);
        self.burst = self.burst.saturating_sub(1);
    }

    /// A reply to one of this path's probes. Returns what the probe asked about, once per probe.
    pub(crate) fn answer(&mut self, seq: u32, reverse: Reverse, now: Instant) -> Option<Asked> {
        let sent = self.sent.iter_mut().rev().find(|sent| sent.seq == seq)?;
        let first = sent.fate != Fate::Answered(Reverse::Same) && sent.fate != Fate::Answered(Reverse::Other);
        let sample = now.saturating_duration_since(sent.at);
        self.others = match reverse {
            Reverse::Other if first && self.rtt_origin == Some(Reverse::Same) => self.others.saturating_add(1),
            Reverse::Other => self.others,
            Reverse::Same => 0,
        };
        // the way back by this path is gone: what it once was says nothing any more
        if self.others >= OTHERS && self.rtt.age(now) > OTHERS_FOR {
            (self.rtt, self.rtt_origin, self.others) = (Rtt::default(), None, 0);
        }
        match (reverse, self.rtt_origin) {
            (Reverse::Same, Some(Reverse::Same)) if sent.fate != Fate::Answered(Reverse::Same) => {
                self.rtt.update(sample, now);
            }
            (Reverse::Same, Some(Reverse::Other) | None) => {
                self.rtt = Rtt::default();
                self.rtt.update(sample, now);
                self.rtt_origin = Some(Reverse::Same);
            }
            (Reverse::Other, Some(Reverse::Other) | None) if first => {
                self.rtt.update(sample, now);
                self.rtt_origin = Some(Reverse::Other);
            }
            (Reverse::Same | Reverse::Other, _) => {}
        }
        let asked = Asked { at: sent.at, about: sent.about, tally: sent.asked };
        let (was, size) = (sent.fate, sent.size);
        if first || reverse == Reverse::Same {
            sent.fate = Fate::Answered(reverse);
        }
        if !first {
            return None;
        }
        if was == Fate::Open {
            self.note_loss(0.0);
            self.find_deadline();
        }
        self.size.pass(size, now);
        self.answers = self.answers.saturating_add(1);
        self.tries = 0;
        self.deliver(asked.at);
        Some(asked)
    }

    /// The peer says, through another path, that it heard this probe.
    pub(crate) fn heard(&mut self, seq: u32, now: Instant) {
        let Some(sent) = self.sent.iter_mut().rev().find(|sent| sent.seq == seq) else { return };
        let (at, size, was) = (sent.at, sent.size, sent.fate);
        match was {
            Fate::Open | Fate::Missed => {
                sent.fate = Fate::Heard;
                self.size.pass(size, now);
                if was == Fate::Open {
                    self.note_loss(0.0);
                    self.find_deadline();
                }
            }
            Fate::Answered(_) | Fate::Heard => {}
        }
        self.deliver(at);
    }

    /// Something that was sent at `at` or later arrived.
    pub(crate) fn deliver(&mut self, at: Instant) {
        if self.alive >= Some(at) {
            return;
        }
        self.alive = Some(at);
        let mut later = self.sent.iter().filter(|sent| sent.fate == Fate::Missed && sent.at > at).map(|sent| sent.at);
        self.missed_since = later.next();
        self.missed = u32::from(self.missed_since.is_some()) + u32::try_from(later.count()).unwrap_or(u32::MAX);
        if self.missed == 0 {
            self.burst = 0;
        }
    }

    /// Deadlines that passed.
    pub(crate) fn expire(&mut self, now: Instant) -> Expired {
        let mut expired = Expired::No;
        if self.deadline.is_none_or(|deadline| deadline > now) {
            return expired;
        }
        let mut late = Vec::new();
        for sent in self.sent.iter_mut().filter(|sent| sent.fate == Fate::Open && sent.deadline <= now) {
            sent.fate = Fate::Missed;
            late.push((sent.at, sent.size));
        }
        for (at, size) in late {
            if self.miss(at, size) == Expired::Yes {
                expired = Expired::Yes;
            }
        }
        self.find_deadline();
        expired
    }

    /// A probe was not answered.
    fn miss(&mut self, at: Instant, size: usize) -> Expired {
        self.size.miss(size, at);
        self.note_loss(1.0);
        if self.alive >= Some(at) {
            return Expired::No;
        }
        self.answers = 0;
        self.missed = self.missed.saturating_add(1);
        self.missed_since.get_or_insert(at);
        Expired::Yes
    }

    /// The next deadline.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Deadlines missed since the path was last known to deliver.
    pub(crate) fn missed(&self) -> u32 {
        self.missed
    }

    /// When the first of the missed ones was sent.
    pub(crate) fn missed_since(&self) -> Option<Instant> {
        self.missed_since
    }

    /// Forgets what is in flight: the other end or this one is in another place than before.
    pub(crate) fn renew(&mut self, now: Instant) {
        self.sent.clear();
        self.deadline = None;
        (self.missed, self.missed_since) = (0, None);
        (self.tries, self.due) = (0, Some(now));
    }

    /// Stopped working. It is not moved to gracefully for a while, longer each time.
    pub(crate) fn die(&mut self, now: Instant) {
        (self.phase, self.answers, self.burst, self.tries) = (Phase::Dead, 0, 0, 0);
        self.missed_since.get_or_insert(now);
        self.hold_until = Some(self.deaths.strike(now, HOLD, MAX_HOLD));
    }

    /// Swallowed data. It is a last resort for a while, longer each time.
    pub(crate) fn black_out(&mut self, now: Instant) {
        self.grey_until = Some(self.blackouts.strike(now, GREY, MAX_GREY));
        self.size.forgive();
        self.ledger.restart();
    }

    /// Answered often enough.
    pub(crate) fn revive(&mut self) {
        self.phase = Phase::Valid;
    }

    pub(crate) fn is_grey(&self, now: Instant) -> bool {
        self.grey_until.is_some_and(|until| now < until)
    }

    /// When it swallowed data last.
    pub(crate) fn blamed(&self) -> Option<Instant> {
        self.blackouts.last
    }

    pub(crate) fn is_held(&self, now: Instant) -> bool {
        self.hold_until.is_some_and(|until| now < until)
    }

    /// The latest time at which something sent is known to have arrived.
    pub(crate) fn alive(&self) -> Option<Instant> {
        self.alive
    }

    /// What its latest probe asked about.
    pub(crate) fn last_about(&self) -> Option<PathId> {
        self.sent.back().map(|sent| sent.about)
    }

    pub(crate) fn last_sent(&self) -> Option<Instant> {
        self.last_sent
    }

    /// Answers in a row.
    pub(crate) fn answers(&self) -> u32 {
        self.answers
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt.smoothed()
    }

    /// Its round trip, or a guess.
    pub(crate) fn cost(&self) -> Duration {
        self.rtt.smoothed().unwrap_or(self.hint * 2)
    }

    pub(crate) fn loss(&self) -> f32 {
        self.loss
    }

    fn find_deadline(&mut self) {
        self.deadline = self.sent.iter().filter(|sent| sent.fate == Fate::Open).map(|sent| sent.deadline).min();
    }

    fn note_loss(&mut self, sample: f32) {
        self.loss += (sample - self.loss) / 32.0;
    }
}

/// What an answered probe asked, and when.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    pub(crate) about: PathId,
    pub(crate) tally: Tally,
}

/// Whether a deadline passed that says something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expired {
    No,
    Yes,
}

/// A probe that was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    seq: u32,
    at: Instant,
    deadline: Instant,
    size: usize,
    about: PathId,
    /// What had been sent by the path it asks about.
    asked: Tally,
    fate: Fate,
}

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Its reply came, by this or another path.
    Answered(Reverse),
    /// It arrived, but its own reply did not come.
    Heard,
    /// Its deadline passed.
    Missed,
    /// In flight.
    Open,
}

/// Doubles a penalty with every offence that comes after the last one's, and forgets after some time. What happens
/// again meanwhile is the same offence, whose penalty begins anew: a stream that stalls dies and revives many times.
#[derive(Clone, Copy, Debug, Default)]
struct Strikes {
    count: u32,
    last: Option<Instant>,
    until: Option<Instant>,
}

impl Strikes {
    /// When the penalty ends.
    fn strike(&mut self, now: Instant, first: Duration, most: Duration) -> Instant {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) > FORGET) {
            self.count = 0;
        }
        if self.until.is_none_or(|until| now >= until) {
            self.count = self.count.saturating_add(1);
        }
        self.last = Some(now);
        let until = now + first.saturating_mul(1 << self.count.saturating_sub(1).min(16)).min(most);
        self.until = Some(until);
        until
    }
}

/// Probes remembered per path, and for how long: a longer round trip than any.
const MAX_SENT: usize = 128;
const REMEMBER: Duration = Duration::from_secs(8);
/// So many answers by other paths alone, for so long, are the only ones there are.
const OTHERS: u32 = 10;
const OTHERS_FOR: Duration = Duration::from_secs(10);
/// After a death, no graceful return before. The longest is far above what a hub takes to flap, and short enough that a
/// live one is not missed for long.
const HOLD: Duration = Duration::from_secs(2);
const MAX_HOLD: Duration = Duration::from_secs(20);
/// After swallowing data, a last resort until.
const GREY: Duration = Duration::from_secs(10);
const MAX_GREY: Duration = Duration::from_secs(300);
/// Good behaviour for so long clears the record.
const FORGET: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use flatlan_types::HubSlot;

    use super::*;
    use crate::kind::Leg;

    #[test]
    fn probes_that_leave_faster_than_they_are_given_up_are_missed_all_the_same() {
        let kind = PathKind::Relay { hub: HubSlot(0), leg: Leg::Udp };
        let (id, mut now) = (PathId(0), Instant::now());
        let mut path = Path::new(id, kind, Duration::ZERO, 1440, now);
        path.rtt.update(Duration::from_secs(5), now);
        for seq in 0..2 * MAX_SENT as u32 {
            now += Duration::from_millis(5);
            path.probe(seq, 100, id, Tally::default(), now, Duration::ZERO);
            path.expire(now);
        }
        assert_eq!(path.missed() as usize, MAX_SENT);
    }
}
