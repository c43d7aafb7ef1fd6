//! A [`Tunnel`] without cryptography and without a clock, for the simulator and for tests of time.
//!
//! It is boringtun's machine over again: the same messages in the same order with the same lengths, indices,
//! eight session slots, replay window, cookies, timers and their oddities, so that what the engine does about
//! an oddity can be tested in virtual time. Only the bytes are different: a hash that anyone can compute
//! stands where the cryptography was. **It protects nothing.** No product crate names it.

mod timers;
mod wire;

use std::{
    net::IpAddr,
    sync::OnceLock,
    time::{Duration, Instant},
};

use flatlan_types::{BootEpoch, NodeSecret, SessionKey};

use self::{
    timers::Timers,
    wire::{Digest, Initiation, Response},
};
use crate::{
    message::{self, MessageKind},
    sealed::{Freshness, ReplayWindow},
    tunnel::{Admit, Step, Tunnel, TunnelConfig, TunnelError},
};

/// The stand-in: boringtun's behaviour in virtual time.
pub struct Plain {
    own: SessionKey,
    peer: SessionKey,
    psk: [u8; 32],
    seed: u64,
    drawn: u64,
    newest: u32,
    state: Attempt,
    previous: Attempt,
    latest_stamp: u64,
    cookie: Option<u64>,
    /// Index and MAC of the last message that a cookie reply could answer.
    last_mac: Option<(u32, u64)>,
    sessions: [Option<Session>; SLOTS],
    current: u32,
    timers: Timers,
}

/// What all plain tunnels of a process share.
pub struct PlainIdentity {
    own: SessionKey,
    seed: u64,
    admitted: u64,
    gate_reset: Option<Instant>,
}

/// Our own initiation.
#[derive(Clone, Copy)]
enum Attempt {
    None,
    Sent { local: u32, nonce: u64, at: Instant },
    Expired,
}

struct Session {
    local: u32,
    remote: u32,
    send: u64,
    receive: u64,
    sent: u64,
    window: ReplayWindow,
}

impl Tunnel for Plain {
    type Identity = PlainIdentity;

    fn identity(secret: &NodeSecret, seed: u64) -> PlainIdentity {
        PlainIdentity { own: secret.public().session, seed, admitted: 0, gate_reset: None }
    }

    fn admit(identity: &mut PlainIdentity, message: &[u8], from: IpAddr, out: &mut [u8]) -> Admit {
        let kind = MessageKind::of(message);
        if !matches!(kind, Some(MessageKind::Initiation | MessageKind::Response)) {
            return Admit::Pass;
        }
        let Some((mac, cookie)) = wire::macs(message, &identity.own) else { return Admit::Refuse };
        identity.admitted += 1;
        let due = Digest::new("cookie").number(identity.seed).bytes(from.to_string().as_bytes()).end();
        if identity.admitted <= GATE_PER_SECOND || cookie == due {
            return Admit::Pass;
        }
        let receiver = message::sender_index(message).unwrap_or_default();
        wire::write_cookie(receiver, due, mac, out).map_or(Admit::Refuse, Admit::Cookie)
    }

    fn reset_gate(identity: &mut PlainIdentity, now: Instant) {
        if identity.gate_reset.is_none_or(|at| now.saturating_duration_since(at) >= GATE_RESET) {
            identity.gate_reset = Some(now);
            identity.admitted = 0;
        }
    }

    fn initiator(identity: &PlainIdentity, message: &[u8]) -> Option<SessionKey> {
        wire::macs(message, &identity.own)?;
        Initiation::parse(message).map(|initiation| initiation.key)
    }

    fn new(identity: &PlainIdentity, config: TunnelConfig, now: Instant) -> Self {
        Self {
            own: identity.own,
            peer: config.peer,
            psk: config.psk.unwrap_or_default(),
            seed: Digest::new("tunnel").number(identity.seed).number(config.index.into()).end(),
            drawn: 0,
            newest: config.index << 8,
            state: Attempt::None,
            previous: Attempt::None,
            latest_stamp: 0,
            cookie: None,
            last_mac: None,
            sessions: Default::default(),
            current: 0,
            timers: Timers::new(config.keepalive, now),
        }
    }

    fn seal(&mut self, packet: &[u8], now: Instant, out: &mut [u8]) -> Step {
        let Some(session) = self.sessions.get_mut(slot(self.current)).and_then(Option::as_mut) else {
            // Where boringtun would queue the packet.
            return if self.in_progress() { Step::Done } else { self.initiate(now, out) };
        };
        let len = session.seal(packet, out);
        self.timers.on_packet_sent();
        if !packet.is_empty() {
            self.timers.on_data_sent();
        }
        Step::Network(len)
    }

    fn handle(&mut self, message: &[u8], _now: Instant, out: &mut [u8]) -> Step {
        let result = match MessageKind::of(message) {
            Some(MessageKind::Initiation) => self.handle_initiation(message, out),
            Some(MessageKind::Response) => self.handle_response(message, out),
            Some(MessageKind::Cookie) => self.handle_cookie(message),
            Some(MessageKind::Data) => self.handle_data(message, out),
            None => Err(TunnelError::Malformed),
        };
        result.unwrap_or_else(Step::Failed)
    }

    fn tick(&mut self, now: Instant, out: &mut [u8]) -> Step {
        self.timers.advance(now);
        for (slot, session) in self.sessions.iter_mut().enumerate() {
            if self.timers.session_is_over(slot) {
                *session = None;
            }
        }
        if matches!(self.state, Attempt::Expired) {
            return Step::Failed(TunnelError::Expired);
        }
        if self.timers.cookie_is_over() {
            self.cookie = None;
        }
        let sent = match self.state {
            Attempt::Sent { at, .. } => Some(at),
            Attempt::None | Attempt::Expired => None,
        };
        match self.timers.due(sent, now) {
            timers::Due::Nothing => Step::Done,
            timers::Due::GiveUp => {
                self.state = Attempt::Expired;
                self.previous = Attempt::Expired;
                self.sessions = Default::default();
                self.timers.clear(now);
                Step::Failed(TunnelError::Expired)
            }
            timers::Due::Initiation => self.initiate(now, out),
            timers::Due::Keepalive => self.seal(&[], now, out),
        }
    }

    fn initiate(&mut self, now: Instant, out: &mut [u8]) -> Step {
        if matches!(self.state, Attempt::Expired) {
            self.timers.clear(now);
        }
        let starting = !self.in_progress();
        let local = self.next_index();
        let nonce = self.draw();
        let initiation = Initiation { sender: local, key: self.own, stamp: stamp(now), nonce };
        let Some((len, mac)) = initiation.write(&self.peer, self.cookie, out) else {
            return Step::Failed(TunnelError::Malformed);
        };
        self.last_mac = Some((local, mac));
        self.previous = std::mem::replace(&mut self.state, Attempt::Sent { local, nonce, at: now });
        if starting {
            self.timers.on_handshake_started();
        }
        self.timers.on_packet_sent();
        Step::Network(len)
    }

    fn drop_sessions(&mut self, _identity: &PlainIdentity) {
        self.sessions = Default::default();
    }

    fn has_session(&self) -> bool {
        self.sessions.get(slot(self.current)).is_some_and(Option::is_some)
    }

    fn is_expired(&self) -> bool {
        matches!(self.state, Attempt::Expired)
    }
}

impl Plain {
    /// Local index of the session that seals.
    #[cfg(test)]
    pub(crate) fn current(&self) -> u32 {
        self.current
    }

    /// Local index of the newest session or initiation.
    #[cfg(test)]
    pub(crate) fn newest(&self) -> u32 {
        self.newest
    }

    /// Whether the session that seals is the one that was confirmed.
    #[cfg(test)]
    pub(crate) fn current_is_confirmed(&self) -> bool {
        self.sessions.get(slot(self.current)).and_then(Option::as_ref).is_some_and(|s| s.local == self.current)
    }

    fn handle_initiation(&mut self, message: &[u8], out: &mut [u8]) -> Result<Step, TunnelError> {
        wire::macs(message, &self.own).ok_or(TunnelError::Forged)?;
        let initiation = Initiation::parse(message).ok_or(TunnelError::Malformed)?;
        if initiation.key != self.peer {
            return Err(TunnelError::Forged);
        }
        if initiation.stamp <= self.latest_stamp {
            return Err(TunnelError::StaleInitiation);
        }
        self.latest_stamp = initiation.stamp;
        self.previous = std::mem::replace(&mut self.state, Attempt::None);

        let local = self.next_index();
        let nonce = self.draw();
        let secret = secret(&self.psk, initiation.nonce, nonce, &self.peer, &self.own);
        let response = Response { sender: local, receiver: initiation.sender, nonce };
        let (len, mac) = response.write(&self.peer, secret, self.cookie, out).ok_or(TunnelError::Malformed)?;
        self.last_mac = Some((local, mac));
        self.store(Session::new(local, initiation.sender, secret, wire::Role::Responder));
        self.timers.on_packet_received();
        self.timers.on_packet_sent();
        self.timers.on_session(slot(local), wire::Role::Responder);
        Ok(Step::Network(len))
    }

    fn handle_response(&mut self, message: &[u8], out: &mut [u8]) -> Result<Step, TunnelError> {
        wire::macs(message, &self.own).ok_or(TunnelError::Forged)?;
        let response = Response::parse(message).ok_or(TunnelError::Malformed)?;
        let attempt = |attempt: Attempt| match attempt {
            Attempt::Sent { local, nonce, .. } if local == response.receiver => Some(nonce),
            Attempt::Sent { .. } | Attempt::None | Attempt::Expired => None,
        };
        let (place, nonce) = if let Some(nonce) = attempt(self.state) {
            (&mut self.state, nonce)
        } else if let Some(nonce) = attempt(self.previous) {
            (&mut self.previous, nonce)
        } else {
            return Err(TunnelError::Unexpected);
        };
        let secret = secret(&self.psk, nonce, response.nonce, &self.own, &self.peer);
        if !response.proves(message, secret) {
            return Err(TunnelError::Forged);
        }
        *place = Attempt::None;
        let local = response.receiver;
        let mut session = Session::new(local, response.sender, secret, wire::Role::Initiator);
        let len = session.seal(&[], out);
        self.store(session);
        self.timers.on_packet_received();
        self.timers.on_session(slot(local), wire::Role::Initiator);
        self.set_current(local);
        Ok(Step::Network(len))
    }

    fn handle_cookie(&mut self, message: &[u8]) -> Result<Step, TunnelError> {
        let (index, mac) = self.last_mac.ok_or(TunnelError::Unexpected)?;
        if message::receiver_index(message, MessageKind::Cookie) != Some(index) {
            return Err(TunnelError::WrongIndex);
        }
        self.cookie = Some(wire::read_cookie(message, mac).ok_or(TunnelError::Forged)?);
        self.timers.on_packet_received();
        self.timers.on_cookie();
        Ok(Step::Done)
    }

    fn handle_data(&mut self, message: &[u8], out: &mut [u8]) -> Result<Step, TunnelError> {
        let local = message::receiver_index(message, MessageKind::Data).ok_or(TunnelError::Malformed)?;
        let session = self.sessions.get_mut(slot(local)).and_then(Option::as_mut).ok_or(TunnelError::NoSession)?;
        let len = session.open(local, message, out)?;
        self.set_current(local);
        self.timers.on_packet_received();
        let packet = out.get(..len).ok_or(TunnelError::Malformed)?;
        if packet.is_empty() {
            return Ok(Step::Done);
        }
        let len = wire::inner_len(packet).filter(|inner| *inner <= packet.len()).ok_or(TunnelError::NotIp)?;
        self.timers.on_data_received();
        Ok(Step::Packet(len))
    }

    fn store(&mut self, session: Session) {
        if let Some(place) = self.sessions.get_mut(slot(session.local)) {
            *place = Some(session);
        }
    }

    fn set_current(&mut self, local: u32) {
        if self.current == local {
            return;
        }
        let gone = self.sessions.get(slot(self.current)).is_none_or(Option::is_none);
        if gone || self.timers.session_age_order(slot(local), slot(self.current)).is_ge() {
            self.current = local;
        }
    }

    fn in_progress(&self) -> bool {
        matches!(self.state, Attempt::Sent { .. })
    }

    fn next_index(&mut self) -> u32 {
        self.newest = (self.newest & !0xff) | (self.newest.wrapping_add(1) & 0xff);
        self.newest
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        Digest::new("draw").number(self.seed).number(self.drawn).end()
    }
}

impl Session {
    fn new(local: u32, remote: u32, secret: u64, role: wire::Role) -> Self {
        let direction = |role| Digest::new("direction").number(secret).number(role as u64).end();
        let (send, receive) = match role {
            wire::Role::Initiator => (direction(wire::Role::Initiator), direction(wire::Role::Responder)),
            wire::Role::Responder => (direction(wire::Role::Responder), direction(wire::Role::Initiator)),
        };
        Self { local, remote, send, receive, sent: 0, window: ReplayWindow::new(BootEpoch(0)) }
    }

    fn seal(&mut self, packet: &[u8], out: &mut [u8]) -> usize {
        let counter = self.sent;
        self.sent += 1;
        wire::write_data(self.remote, counter, packet, self.send, out)
            .expect("the engine checks that the buffer is large enough")
    }

    fn open(&mut self, local: u32, message: &[u8], out: &mut [u8]) -> Result<usize, TunnelError> {
        if self.local != local {
            return Err(TunnelError::WrongIndex);
        }
        let counter = message::counter(message).ok_or(TunnelError::Malformed)?;
        let len = wire::read_data(message, self.receive, out).ok_or(TunnelError::Forged)?;
        match self.window.accept(BootEpoch(0), counter) {
            Freshness::Fresh | Freshness::NewEpoch => Ok(len),
            Freshness::OldEpoch | Freshness::Replayed => Err(TunnelError::Replayed),
        }
    }
}

fn secret(psk: &[u8; 32], initiator: u64, responder: u64, from: &SessionKey, to: &SessionKey) -> u64 {
    Digest::new("session")
        .bytes(psk)
        .number(initiator)
        .number(responder)
        .bytes(from.as_bytes())
        .bytes(to.as_bytes())
        .end()
}

/// Stands for TAI64N. An `Instant` can only be told apart from another, so all are told from one.
fn stamp(now: Instant) -> u64 {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let origin = *ORIGIN.get_or_init(|| now);
    let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX / 4);
    (1_u64 << 62).saturating_add(nanos(now.saturating_duration_since(origin)))
        - nanos(origin.saturating_duration_since(now)).min(1 << 61)
}

fn slot(local: u32) -> usize {
    local as usize % SLOTS
}

const SLOTS: usize = 8;
/// As the boringtun engine has it.
const GATE_PER_SECOND: u64 = 100;
const GATE_RESET: Duration = Duration::from_secs(1);
