//! boringtun's timers (its `timers.rs`), oddities included, with time as an argument.
//!
//! The oddities that matter, each held by the engine: time stands still between ticks; the wish for a new
//! handshake is measured from the last packet *received*, so the first packet after a quiet time already
//! fulfils it; what was given up stays given up; a tunnel never used gives up too.

use std::{
    cmp::Ordering,
    time::{Duration, Instant},
};

use super::{SLOTS, wire::Role};

/// When what happened, since the tunnel was made.
pub(super) struct Timers {
    started: Instant,
    /// Time as of the last tick.
    current: Duration,
    role: Role,
    session: Duration,
    handshake_started: Duration,
    packet_received: Duration,
    packet_sent: Duration,
    data_received: Duration,
    data_sent: Duration,
    cookie_received: Duration,
    keepalive_sent: Duration,
    sessions: [Duration; SLOTS],
    want_keepalive: bool,
    want_handshake: bool,
    /// Zero is off.
    keepalive: Duration,
}

/// What a tick is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing.
    Nothing,
    /// No answer for too long, or no session for too long.
    GiveUp,
    /// A first or repeated initiation.
    Initiation,
    /// An empty packet.
    Keepalive,
}

impl Timers {
    pub(super) fn new(keepalive: Option<u16>, now: Instant) -> Self {
        Self {
            started: now,
            current: Duration::ZERO,
            role: Role::Responder,
            session: Duration::ZERO,
            handshake_started: Duration::ZERO,
            packet_received: Duration::ZERO,
            packet_sent: Duration::ZERO,
            data_received: Duration::ZERO,
            data_sent: Duration::ZERO,
            cookie_received: Duration::ZERO,
            keepalive_sent: Duration::ZERO,
            sessions: [Duration::ZERO; SLOTS],
            want_keepalive: false,
            want_handshake: false,
            keepalive: Duration::from_secs(keepalive.unwrap_or(0).into()),
        }
    }

    pub(super) fn advance(&mut self, now: Instant) {
        self.current = now.saturating_duration_since(self.started);
    }

    /// Whether the session in this slot has reached its age; the slot's clock starts again.
    pub(super) fn session_is_over(&mut self, slot: usize) -> bool {
        let Some(made) = self.sessions.get_mut(slot) else { return false };
        let over = self.current.saturating_sub(*made) > REJECT_AFTER_TIME;
        if over {
            *made = self.current;
        }
        over
    }

    pub(super) fn cookie_is_over(&self) -> bool {
        self.since(self.cookie_received) >= COOKIE_EXPIRATION_TIME
    }

    pub(super) fn due(&mut self, initiation_sent: Option<Instant>, now: Instant) -> Due {
        if self.since(self.session) >= REJECT_AFTER_TIME * 3 {
            return Due::GiveUp;
        }
        if let Some(sent) = initiation_sent {
            if self.since(self.handshake_started) >= REKEY_ATTEMPT_TIME {
                return Due::GiveUp;
            }
            let repeat = now.saturating_duration_since(sent) >= REKEY_TIMEOUT;
            return if repeat { Due::Initiation } else { Due::Nothing };
        }
        if self.wants_handshake() {
            return Due::Initiation;
        }
        let mut keepalive = self.data_received > self.packet_sent
            && self.since(self.packet_sent) >= KEEPALIVE_TIMEOUT
            && std::mem::take(&mut self.want_keepalive);
        if !self.keepalive.is_zero() && self.since(self.keepalive_sent) >= self.keepalive {
            self.keepalive_sent = self.current;
            keepalive = true;
        }
        if keepalive { Due::Keepalive } else { Due::Nothing }
    }

    fn wants_handshake(&mut self) -> bool {
        let age = self.since(self.session);
        let initiator = self.role == Role::Initiator;
        let on_send = initiator && self.session < self.data_sent && age >= REKEY_AFTER_TIME;
        let late = REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT;
        let on_receive = initiator && self.session < self.data_received && age >= late;
        let unanswered = self.data_sent > self.packet_received
            && self.since(self.packet_received) >= KEEPALIVE_TIMEOUT + REKEY_TIMEOUT
            && std::mem::take(&mut self.want_handshake);
        on_send || on_receive || unanswered
    }

    pub(super) fn on_packet_received(&mut self) {
        self.want_keepalive = true;
        self.want_handshake = false;
        self.packet_received = self.current;
    }

    pub(super) fn on_packet_sent(&mut self) {
        self.want_handshake = true;
        self.want_keepalive = false;
        self.packet_sent = self.current;
    }

    pub(super) fn on_data_received(&mut self) {
        self.data_received = self.current;
    }

    pub(super) fn on_data_sent(&mut self) {
        self.data_sent = self.current;
    }

    pub(super) fn on_handshake_started(&mut self) {
        self.handshake_started = self.current;
    }

    pub(super) fn on_cookie(&mut self) {
        self.cookie_received = self.current;
    }

    pub(super) fn on_session(&mut self, slot: usize, role: Role) {
        self.session = self.current;
        self.role = role;
        if let Some(made) = self.sessions.get_mut(slot) {
            *made = self.current;
        }
    }

    /// Which of two sessions is the younger.
    pub(super) fn session_age_order(&self, one: usize, other: usize) -> Ordering {
        self.sessions.get(one).cmp(&self.sessions.get(other))
    }

    pub(super) fn clear(&mut self, now: Instant) {
        self.advance(now);
        for timer in [
            &mut self.session,
            &mut self.handshake_started,
            &mut self.packet_received,
            &mut self.packet_sent,
            &mut self.data_received,
            &mut self.data_sent,
            &mut self.cookie_received,
            &mut self.keepalive_sent,
        ] {
            *timer = self.current;
        }
        self.want_handshake = false;
        self.want_keepalive = false;
    }

    fn since(&self, then: Duration) -> Duration {
        self.current.saturating_sub(then)
    }
}

// Whitepaper section 6.1.
const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const COOKIE_EXPIRATION_TIME: Duration = Duration::from_secs(120);
