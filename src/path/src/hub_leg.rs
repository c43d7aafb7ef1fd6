//! Whether a hub can be reached over UDP.
//!
//! One machine per hub, shared by all pairs that use it: it asks with a BIND, whose answer carries the
//! reflexive address and a round trip, and keeps the NAT mapping open. Frames, keys and challenges are the
//! caller's; this decides only when to ask and what to make of silence.
//!
//! ```text
//!             key                  answered
//!   Down ───────────► Probing ─────────────────► Up
//!    ▲  ▲                │                        │ ▲
//!    │  └── 8 missed ────┘                        └─┘ answered
//!    └──────────────────── 8 missed ──────────────┘
//!
//!   Down with a key goes on asking, less and less often, and goes Up when answered.
//!   Without a key it is Down and silent.
//! ```

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use flatlan_types::Endpoint;

use crate::{config::HubLegConfig, random::Random, rtt::Rtt};

/// The UDP leg between this node and one hub. *Mutate, drain, mutate*: after every input drain
/// [`poll_transmit`](Self::poll_transmit) and [`poll_event`](Self::poll_event), then ask
/// [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct HubLeg {
    config: HubLegConfig,
    random: Random,
    state: HubLegState,
    key: Key,
    counter: u64,
    rtt: Rtt,
    reflexive: Option<Endpoint>,
    used: Option<Instant>,
    /// When to ask next.
    due: Option<Instant>,
    /// When the answer to the latest question is late; `None`: answered or given up.
    deadline: Option<Instant>,
    asked: Option<Instant>,
    missed: u32,
    transmit: Option<BindProbe>,
    events: VecDeque<HubLegEvent>,
}

impl HubLeg {
    /// A leg without a key: down, and nothing is sent. `seed` makes the jitter.
    pub fn new(config: HubLegConfig, seed: u64) -> Self {
        Self {
            config,
            random: Random::new(seed),
            state: HubLegState::Down,
            key: Key::Missing,
            counter: 0,
            rtt: Rtt::default(),
            reflexive: None,
            used: None,
            due: None,
            deadline: None,
            asked: None,
            missed: 0,
            transmit: None,
            events: VecDeque::new(),
        }
    }

    /// The hub gave a (new) bind key over its control stream: ask at once. Counting starts again, and so
    /// does the round trip: the hub may be another one behind the same name.
    pub fn set_key(&mut self, now: Instant) {
        (self.key, self.counter, self.rtt) = (Key::Present, 0, Rtt::default());
        if self.state == HubLegState::Down {
            self.state = HubLegState::Probing;
        }
        self.restart(now);
    }

    /// The control stream is gone and the key with it: down, and nothing is sent.
    pub fn clear_key(&mut self, _now: Instant) {
        (self.key, self.due, self.deadline, self.transmit) = (Key::Missing, None, None, None);
        self.go_down();
    }

    /// A pair uses this hub. Cheap; call it for each batch.
    pub fn touch(&mut self, now: Instant) {
        let idle = !self.is_hot(now);
        self.used = self.used.max(Some(now));
        if idle && self.key == Key::Present && self.deadline.is_none() {
            self.due = Some(now);
            self.handle_timeout(now);
        }
    }

    /// Something changed on this node's side of the network: ask at once.
    pub fn reprobe(&mut self, now: Instant) {
        if self.key == Key::Present {
            self.restart(now);
        }
    }

    /// The hub answered a BIND: its round trip, and the endpoint it saw.
    pub fn handle_bound(&mut self, rtt: Duration, reflexive: Endpoint, now: Instant) {
        if self.key == Key::Missing {
            return;
        }
        self.rtt.update(rtt, now);
        (self.missed, self.deadline) = (0, None);
        let pause = self.pause(now);
        self.due = Some(self.asked.map_or(now, |asked| asked + pause).max(now));
        let was = self.reflexive.replace(reflexive);
        if self.state != HubLegState::Up {
            self.state = HubLegState::Up;
            self.events.push_back(HubLegEvent::Up { reflexive, rtt });
        } else if was != Some(reflexive) {
            self.events.push_back(HubLegEvent::Roamed { reflexive });
        }
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.deadline = None;
            self.missed = self.missed.saturating_add(1);
            if self.missed >= MISSES {
                self.go_down();
            }
            self.due = Some(now + self.retry());
        }
        if self.due.is_some_and(|due| due <= now) {
            self.ask(now);
        }
    }

    /// A BIND to send now.
    pub fn poll_transmit(&mut self) -> Option<BindProbe> {
        self.transmit.take()
    }

    /// What changed.
    pub fn poll_event(&mut self) -> Option<HubLegEvent> {
        self.events.pop_front()
    }

    /// When to call [`HubLeg::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.due, self.deadline].into_iter().flatten().min()
    }

    /// Whether it can be used.
    pub fn state(&self) -> HubLegState {
        self.state
    }

    /// Smoothed round trip, once there was an answer.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt.smoothed()
    }

    /// This node as the hub saw it last.
    pub fn reflexive(&self) -> Option<Endpoint> {
        self.reflexive
    }

    fn restart(&mut self, now: Instant) {
        (self.missed, self.deadline, self.due) = (0, None, Some(now));
        self.handle_timeout(now);
    }

    fn ask(&mut self, now: Instant) {
        self.counter += 1;
        self.transmit = Some(BindProbe { counter: self.counter });
        (self.asked, self.due) = (Some(now), None);
        self.deadline = Some(now + self.rtt.deadline(self.config.min_deadline));
    }

    fn go_down(&mut self) {
        if self.state != HubLegState::Down {
            self.state = HubLegState::Down;
            self.events.push_back(HubLegEvent::Down);
        }
    }

    /// To the next question after an answer.
    fn pause(&mut self, now: Instant) -> Duration {
        if self.is_hot(now) {
            return self.config.probe_interval;
        }
        // Not all nodes of a hub at once.
        let jitter = u32::from(self.random.next_u16()) % 256;
        self.config.keepalive - self.config.keepalive / 5 * jitter / 256
    }

    /// To the next question after silence.
    fn retry(&self) -> Duration {
        let doublings = self.missed.saturating_sub(MISSES).min(16);
        match self.state {
            HubLegState::Up | HubLegState::Probing => self.config.burst_interval,
            HubLegState::Down => self.config.probe_interval.saturating_mul(1 << doublings).min(self.config.retry),
        }
    }

    fn is_hot(&self, now: Instant) -> bool {
        self.used.is_some_and(|used| now.saturating_duration_since(used) < self.config.hot)
    }
}

/// One BIND is to be sent. The caller writes the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindProbe {
    /// Counts up over the BINDs of a key; the frame's counter.
    pub counter: u64,
}

/// What a [`HubLeg`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubLegEvent {
    /// No answer: use the TLS leg.
    Down,
    /// The hub sees this node at another endpoint than before.
    Roamed {
        /// Where.
        reflexive: Endpoint,
    },
    /// The hub answers over UDP.
    Up {
        /// This node as the hub sees it.
        reflexive: Endpoint,
        /// The round trip.
        rtt: Duration,
    },
}

/// Whether the UDP leg to a hub can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HubLegState {
    /// No key, or no answer.
    Down,
    /// Asked, not yet answered.
    Probing,
    /// Answers.
    Up,
}

/// Whether there is anything to sign a BIND with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Missing,
    Present,
}

/// Missed answers in a row that take the leg down: at 10 % loss each way four are missed every few minutes, and a leg that
/// goes down takes every pair's path by it along. Pairs do not wait for it: they probe for themselves.
const MISSES: u32 = 8;

#[cfg(test)]
mod tests;
