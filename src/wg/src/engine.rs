//! The lanes of one worker, over any [`Tunnel`].
//!
//! Everything that a user of boringtun must know is here, once for both engines:
//!
//! * Lengths, types, counters and buffers are checked before the tunnel sees them, so that no datagram can
//!   make it panic.
//! * A packet is sealed only where a session exists, so the tunnel never queues. Whether one exists is
//!   cached, because the tunnel would read the clock to say it; the cache changes only where the tunnel's
//!   own answer can.
//! * A tick after the first packet that follows a quiet time is put off, or the tunnel would start a
//!   handshake before the answer can be back.
//! * The tunnel keeps sessions in eight slots and an unconfirmed session may land on the one in use; before
//!   it can, an index is skipped.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use blake2::{
    Blake2sMac256,
    digest::{FixedOutput as _, KeyInit as _, Update as _},
};
use flatlan_types::{Endpoint, LaneId, LaneKey, NodeSecret, PeerSlot, SessionKey, Share};

use crate::{
    index::IndexTable,
    limiter::SourceLimiter,
    message::{self, COUNTER_MAX, HANDSHAKE_MAX, MessageKind, PADDING},
    sessions::{Admission, Handshake, OpenError, Opened, PeerSession, SealError, Sessions, Stock, sealed_len},
    tunnel::{Admit, Step, Tunnel, TunnelConfig, TunnelError},
    wheel::{Phase, TICK, Wheel},
};

/// The engine: `Engine<Boringtun>`, or `Engine<Plain>` in the simulator.
pub struct Engine<T: Tunnel> {
    identity: T::Identity,
    /// By peer slot.
    peers: Vec<Option<Box<Peer<T>>>>,
    indices: IndexTable,
    wheel: Wheel,
    /// Lane 0 of the stock peers, by static key.
    stock: BTreeMap<SessionKey, LaneKey>,
    limiter: SourceLimiter,
    /// Where a packet is padded that the caller did not pad.
    scratch: Box<[u8]>,
}

/// The lanes of one peer.
struct Peer<T> {
    lanes: [Option<Box<Lane<T>>>; LaneId::COUNT],
}

impl<T: Tunnel> Engine<T> {
    /// An engine without lanes. `seed` must be random: the indices on the wire come from it.
    pub fn new(secret: &NodeSecret, seed: u64) -> Self {
        Self::shared(secret, seed, Share::default())
    }

    /// The engine of one worker of several: its indices name it.
    pub fn shared(secret: &NodeSecret, seed: u64, share: Share) -> Self {
        Self {
            identity: T::identity(secret, seed),
            peers: Vec::new(),
            indices: IndexTable::new(seed, share),
            wheel: Wheel::new(seed),
            stock: BTreeMap::new(),
            limiter: SourceLimiter::new(seed),
            scratch: vec![0; PACKET_MAX.next_multiple_of(PADDING)].into_boxed_slice(),
        }
    }

    fn lane(&self, key: LaneKey) -> Option<&Lane<T>> {
        self.peers.get(key.peer.0 as usize)?.as_ref()?.lanes.get(key.lane.index())?.as_deref()
    }

    fn lane_mut(&mut self, key: LaneKey) -> Option<&mut Lane<T>> {
        lane_mut(&mut self.peers, key)
    }

    /// A lane at rest has its timers run again.
    fn wake(&mut self, key: LaneKey, now: Instant) {
        if let Some(lane) = lane_mut(&mut self.peers, key).filter(|lane| lane.resting) {
            lane.resting = false;
            self.wheel.insert(key, Phase::of(lane.index), now);
        }
    }
}

/// Apart from `self`, so that the rest of the engine can be used beside the lane.
fn lane_mut<T: Tunnel>(peers: &mut [Option<Box<Peer<T>>>], key: LaneKey) -> Option<&mut Lane<T>> {
    peers.get_mut(key.peer.0 as usize)?.as_mut()?.lanes.get_mut(key.lane.index())?.as_deref_mut()
}

impl<T: Tunnel> Sessions for Engine<T> {
    fn open_lane(&mut self, lane: LaneKey, peer: PeerSession, now: Instant) {
        self.close_lane(lane);
        let Some(index) = self.indices.insert(lane) else { return };
        let config = TunnelConfig {
            peer: peer.key,
            psk: lane_psk(peer.psk.as_ref(), lane.lane),
            keepalive: peer.keepalive,
            index,
        };
        let tunnel = T::new(&self.identity, config, now);
        let at = lane.peer.0 as usize;
        if self.peers.len() <= at {
            self.peers.resize_with(at + 1, || None);
        }
        let Some(place) = self.peers.get_mut(at) else { return };
        let peer_lanes = &mut place.get_or_insert_with(|| Box::new(Peer { lanes: Default::default() })).lanes;
        if let Some(place) = peer_lanes.get_mut(lane.lane.index()) {
            *place = Some(Box::new(Lane::new(tunnel, index, &peer, now)));
        }
        if peer.stock == Stock::Yes && lane.lane == LaneId::PRIMARY {
            self.stock.insert(peer.key, lane);
        }
        self.wheel.insert(lane, Phase::of(index), now);
    }

    fn close_lane(&mut self, lane: LaneKey) {
        let Some(Some(peer)) = self.peers.get_mut(lane.peer.0 as usize) else { return };
        let Some(old) = peer.lanes.get_mut(lane.lane.index()).and_then(Option::take) else { return };
        self.indices.remove(old.index);
        if !old.resting {
            self.wheel.remove(lane, Phase::of(old.index));
        }
        if self.stock.get(&old.key) == Some(&lane) {
            self.stock.remove(&old.key);
        }
    }

    fn close_peer(&mut self, peer: PeerSlot) {
        for lane in (0..LaneId::COUNT as u8).filter_map(LaneId::new) {
            self.close_lane(LaneKey { peer, lane });
        }
        if let Some(place) = self.peers.get_mut(peer.0 as usize) {
            *place = None;
        }
    }

    fn rest_peer(&mut self, peer: PeerSlot) {
        let Self { identity, peers, wheel, .. } = self;
        for lane in (0..LaneId::COUNT as u8).filter_map(LaneId::new) {
            let key = LaneKey { peer, lane };
            let Some(lane) = lane_mut(peers, key).filter(|lane| !lane.resting) else { continue };
            wheel.remove(key, Phase::of(lane.index));
            lane.rest(identity);
        }
    }

    fn initiate(&mut self, lane: LaneKey, now: Instant, out: &mut [u8]) -> Option<usize> {
        self.wake(lane, now);
        self.lane_mut(lane)?.initiate(now, out)
    }

    fn seal(&mut self, lane: LaneKey, packet: &[u8], now: Instant, out: &mut [u8]) -> Result<usize, SealError> {
        let lane = lane_mut(&mut self.peers, lane).ok_or(SealError::UnknownLane)?;
        if packet.len() > PACKET_MAX || out.len() < sealed_len(packet.len()) {
            return Err(SealError::TooBig);
        }
        if !lane.established {
            return Err(SealError::NoSession);
        }
        let padded = packet.len().next_multiple_of(PADDING);
        let packet = if padded == packet.len() {
            packet
        } else {
            let scratch = self.scratch.get_mut(..padded).ok_or(SealError::TooBig)?;
            let (text, padding) = scratch.split_at_mut(packet.len());
            text.copy_from_slice(packet);
            padding.fill(0);
            scratch
        };
        lane.seal(packet, now, out)
    }

    fn open(&mut self, datagram: &[u8], now: Instant, out: &mut [u8]) -> Result<Opened, OpenError> {
        if MessageKind::of(datagram) != Some(MessageKind::Data) {
            return Err(OpenError::Malformed);
        }
        let receiver = message::receiver_index(datagram, MessageKind::Data).ok_or(OpenError::Malformed)?;
        if message::counter(datagram).is_none_or(|counter| counter > COUNTER_MAX) {
            return Err(OpenError::CounterTooHigh);
        }
        if out.len() < datagram.len() {
            return Err(OpenError::BufferTooSmall);
        }
        let key = self.indices.lane(receiver).ok_or(OpenError::UnknownIndex)?;
        let lane = self.lane_mut(key).ok_or(OpenError::UnknownIndex)?;
        let len = lane.open(receiver, datagram, now, out).map_err(|e| refused(e, key))?;
        let established = std::mem::take(&mut lane.confirmed);
        Ok(Opened { lane: key, len, established })
    }

    fn handle_handshake(
        &mut self,
        lane: LaneKey,
        message: &[u8],
        now: Instant,
        out: &mut [u8],
    ) -> Result<Handshake, OpenError> {
        let kind = MessageKind::of(message).ok_or(OpenError::Malformed)?;
        if out.len() < HANDSHAKE_MAX {
            return Err(OpenError::BufferTooSmall);
        }
        let key = lane;
        let lane = self.lane_mut(key).ok_or(OpenError::UnknownLane)?;
        let handled = match kind {
            MessageKind::Data => Err(OpenError::Malformed),
            MessageKind::Initiation => {
                if !lane.initiations.allow(now) {
                    return Err(OpenError::Limited);
                }
                lane.handle_initiation(message, now, out).map_err(|e| refused(e, key))
            }
            MessageKind::Response | MessageKind::Cookie => {
                let receiver = message::receiver_index(message, kind).ok_or(OpenError::Malformed)?;
                if receiver >> 8 != lane.index {
                    return Err(OpenError::WrongIndex { lane: key });
                }
                lane.handle_answer(kind, receiver, message, now, out).map_err(|e| refused(e, key))
            }
        };
        // what is refused, a replay say, wakes nobody
        if handled.is_ok() {
            self.wake(key, now);
        }
        handled
    }

    fn stock_lane(&mut self, message: &[u8], from: Endpoint, now: Instant, out: &mut [u8]) -> Admission {
        let Some(kind) = MessageKind::of(message).filter(|kind| *kind != MessageKind::Data) else {
            return Admission::Refused;
        };
        if self.stock.is_empty() || out.len() < HANDSHAKE_MAX {
            return Admission::Refused;
        }
        let from = from.socket_addr().ip();
        match T::admit(&mut self.identity, message, from, out) {
            Admit::Pass => {}
            Admit::Cookie(len) => return Admission::Cookie(len),
            Admit::Refuse => return Admission::Refused,
        }
        // After the cookie, so that under load only a source that has proven its address has a bucket.
        if !self.limiter.allow(from, now) {
            return Admission::Refused;
        }
        let lane = if kind == MessageKind::Initiation {
            T::initiator(&self.identity, message).and_then(|key| self.stock.get(&key).copied())
        } else {
            message::receiver_index(message, kind)
                .and_then(|receiver| self.indices.lane(receiver))
                .filter(|lane| self.lane(*lane).is_some_and(|lane| self.stock.contains_key(&lane.key)))
        };
        lane.map_or(Admission::Refused, Admission::Lane)
    }

    fn handle_timeout(&mut self, now: Instant, emit: &mut dyn FnMut(LaneKey, &[u8])) {
        T::reset_gate(&mut self.identity, now);
        let mut out = [0; HANDSHAKE_MAX];
        for phase in self.wheel.due(now) {
            let mut at = 0;
            while let Some(key) = self.wheel.lane(phase, at) {
                at += 1;
                let Some(lane) = lane_mut(&mut self.peers, key) else { continue };
                if let Some(message) = lane.tick(now, &mut out).and_then(|len| out.get(..len)) {
                    emit(key, message);
                }
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.next()
    }

    fn is_established(&self, lane: LaneKey) -> bool {
        self.lane(lane).is_some_and(|lane| lane.established)
    }

    fn last_handshake(&self, lane: LaneKey, now: Instant) -> Option<Duration> {
        self.lane(lane)?.completed.map(|at| now.saturating_duration_since(at))
    }
}

/// One lane: the tunnel, and what we know of its inside without asking it.
struct Lane<T> {
    tunnel: T,
    /// The 24 bits by which the peer names us.
    index: u32,
    key: SessionKey,
    retry: Duration,
    keepalive: bool,
    /// Without sessions and off the wheel, until the next handshake.
    resting: bool,
    /// The tunnel has a current session: what it would answer, without its clock.
    established: bool,
    /// A session was confirmed by an opened datagram, and nobody has been told.
    confirmed: bool,
    completed: Option<Instant>,
    /// The local index of the tunnel's newest session or initiation; its slot is this modulo eight.
    newest: u32,
    /// The local index of the tunnel's current session, as the tunnel chooses it.
    current: u32,
    /// In which tick the session of each slot was made: the tunnel's clock stands still between ticks.
    made: [u64; SLOTS],
    ticks: u64,
    last_tick: Instant,
    /// No tick before this.
    hold: Option<Instant>,
    last_sent: Option<Instant>,
    initiated: Option<Instant>,
    initiations: Budget,
}

impl<T: Tunnel> Lane<T> {
    fn new(tunnel: T, index: u32, peer: &PeerSession, now: Instant) -> Self {
        Self {
            tunnel,
            index,
            key: peer.key,
            retry: match peer.stock {
                Stock::No => RETRY,
                Stock::Yes => REKEY_TIMEOUT,
            },
            keepalive: peer.keepalive.is_some_and(|seconds| seconds > 0),
            resting: false,
            established: false,
            confirmed: false,
            completed: None,
            newest: index << 8,
            current: 0,
            made: [0; SLOTS],
            ticks: 0,
            last_tick: now,
            hold: None,
            last_sent: None,
            initiated: None,
            initiations: Budget { at: now, credit: Budget::BURST },
        }
    }

    fn rest(&mut self, identity: &T::Identity) {
        self.tunnel.drop_sessions(identity);
        self.resting = true;
        self.established = false;
        self.confirmed = false;
        self.completed = None;
        self.hold = None;
    }

    fn initiate(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        let out = out.get_mut(..HANDSHAKE_MAX)?;
        if self.initiated.is_some_and(|at| now < at + self.retry) {
            return None;
        }
        if let Some(len) = self.catch_up(now, out) {
            return Some(len);
        }
        let Step::Network(len) = self.tunnel.initiate(now, out) else { return None };
        self.on_sent(out.get(..len)?, now);
        Some(len)
    }

    fn seal(&mut self, packet: &[u8], now: Instant, out: &mut [u8]) -> Result<usize, SealError> {
        if !packet.is_empty() {
            if self.last_sent.is_none_or(|at| now.saturating_duration_since(at) >= QUIET) {
                self.hold = Some(now + HOLD);
            }
            self.last_sent = Some(now);
        }
        match self.tunnel.seal(packet, now, out) {
            Step::Network(len) => Ok(len),
            Step::Done | Step::Failed(_) | Step::Packet(_) => Err(SealError::NoSession),
        }
    }

    fn open(&mut self, receiver: u32, datagram: &[u8], now: Instant, out: &mut [u8]) -> Result<usize, TunnelError> {
        let len = match self.tunnel.handle(datagram, now, out) {
            Step::Done => Ok(0),
            Step::Packet(len) => whole_packet(out.get(..len)).ok_or(TunnelError::NotIp),
            Step::Failed(TunnelError::NotIp) => Err(TunnelError::NotIp),
            Step::Failed(error) => return Err(error),
            // Data is never answered by the tunnel.
            Step::Network(_) => return Err(TunnelError::Malformed),
        };
        // Authentic, whatever is inside: the tunnel has taken note, and so do we.
        self.on_confirmed(receiver, now);
        len
    }

    fn handle_initiation(&mut self, message: &[u8], now: Instant, out: &mut [u8]) -> Result<Handshake, TunnelError> {
        self.catch_up(now, out);
        self.skip_slot_in_use(now, out);
        match self.tunnel.handle(message, now, out) {
            Step::Network(len) => {
                self.on_sent(out.get(..len).unwrap_or_default(), now);
                self.on_session(self.newest);
                Ok(Handshake { reply: Some(len), established: false })
            }
            Step::Failed(error) => Err(error),
            Step::Done | Step::Packet(_) => Err(TunnelError::Malformed),
        }
    }

    fn handle_answer(
        &mut self,
        kind: MessageKind,
        receiver: u32,
        message: &[u8],
        now: Instant,
        out: &mut [u8],
    ) -> Result<Handshake, TunnelError> {
        self.catch_up(now, out);
        match (kind, self.tunnel.handle(message, now, out)) {
            (MessageKind::Response, Step::Network(len)) => {
                self.on_session(receiver);
                self.on_confirmed(receiver, now);
                self.confirmed = false;
                Ok(Handshake { reply: Some(len), established: true })
            }
            // A cookie was stored; it comes into use with the next initiation.
            (MessageKind::Cookie, Step::Done) => Ok(Handshake { reply: None, established: false }),
            (_, Step::Failed(error)) => Err(error),
            (_, Step::Done | Step::Network(_) | Step::Packet(_)) => Err(TunnelError::Malformed),
        }
    }

    fn tick(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        if self.hold.is_some_and(|until| now < until) {
            return None;
        }
        self.hold = None;
        let sent = self.advance(now, out);
        if sent.is_some() || !self.keepalive || self.established {
            return sent;
        }
        // The tunnel's persistent keepalive begins only after its interval, and ends for ever when attempts
        // were given up.
        match self.initiated {
            None => self.initiate(now, out),
            Some(at) if self.tunnel.is_expired() && now >= at + REVIVE => self.initiate(now, out),
            Some(_) => None,
        }
    }

    /// The tunnel stamps what happens with the time of its last tick; after a pause (suspend, a stalled
    /// worker) that would make a new session look old.
    fn catch_up(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        if now < self.last_tick + STALE {
            return None;
        }
        let len = self.advance(now, out)?;
        // A keepalive on the way to a handshake is not worth sending.
        (MessageKind::of(out.get(..len)?) == Some(MessageKind::Initiation)).then_some(len)
    }

    fn advance(&mut self, now: Instant, out: &mut [u8]) -> Option<usize> {
        self.last_tick = now;
        self.ticks += 1;
        let step = self.tunnel.tick(now, out);
        self.established = self.tunnel.has_session();
        let Step::Network(len) = step else { return None };
        self.on_sent(out.get(..len)?, now);
        Some(len)
    }

    /// A session that is made for an initiation is unconfirmed, and goes into the slot after the newest. If
    /// that is the slot in use, the tunnel would seal with a session that the peer may never learn of; an
    /// initiation that is not sent moves it on by one.
    fn skip_slot_in_use(&mut self, now: Instant, out: &mut [u8]) {
        if slot(next_index(self.newest)) == slot(self.current)
            && let Step::Network(len) = self.tunnel.initiate(now, out)
            && let Some(index) = out.get(..len).and_then(message::sender_index)
        {
            self.newest = index;
        }
    }

    fn on_sent(&mut self, message: &[u8], now: Instant) {
        match MessageKind::of(message) {
            Some(MessageKind::Initiation) => {
                self.initiated = Some(now);
                self.newest = message::sender_index(message).unwrap_or(self.newest);
            }
            Some(MessageKind::Response) => self.newest = message::sender_index(message).unwrap_or(self.newest),
            Some(MessageKind::Cookie | MessageKind::Data) | None => {}
        }
    }

    fn on_session(&mut self, local: u32) {
        if let Some(made) = self.made.get_mut(slot(local)) {
            *made = self.ticks;
        }
    }

    /// The tunnel goes over to a session when it is confirmed, unless the current one is younger.
    fn on_confirmed(&mut self, local: u32, now: Instant) {
        let made = |index| self.made.get(slot(index)).copied().unwrap_or(0);
        let newer = local != self.current && made(local) >= made(self.current);
        if !self.established || newer {
            if local != self.current {
                self.completed = Some(now);
            }
            self.confirmed = true;
            self.current = local;
        }
        self.established = true;
    }
}

/// How many initiations one lane may cost us: each is two scalar multiplications, also when it is a replay.
struct Budget {
    at: Instant,
    credit: Duration,
}

impl Budget {
    fn allow(&mut self, now: Instant) -> bool {
        self.credit = (self.credit + now.saturating_duration_since(self.at)).min(Self::BURST);
        self.at = self.at.max(now);
        let Some(rest) = self.credit.checked_sub(Self::COST) else { return false };
        self.credit = rest;
        true
    }

    const COST: Duration = Duration::from_millis(50);
    const BURST: Duration = Duration::from_millis(500);
}

fn refused(error: TunnelError, lane: LaneKey) -> OpenError {
    match error {
        TunnelError::Forged => OpenError::Forged,
        TunnelError::Expired | TunnelError::Malformed => OpenError::Malformed,
        TunnelError::NoSession => OpenError::NoSession { lane },
        TunnelError::NotIp => OpenError::NotIp { lane },
        TunnelError::Replayed => OpenError::Replayed,
        TunnelError::StaleInitiation => OpenError::StaleInitiation,
        TunnelError::Unexpected => OpenError::Unexpected,
        TunnelError::WrongIndex => OpenError::WrongIndex { lane },
    }
}

/// The length of a packet that has at least its version's header. boringtun cuts by the packet's own length
/// field, and an IPv4 total length may be 0.
fn whole_packet(packet: Option<&[u8]>) -> Option<usize> {
    let packet = packet?;
    let least = match packet.first()? >> 4 {
        4 => 20,
        6 => 40,
        _ => return None,
    };
    (packet.len() >= least).then_some(packet.len())
}

/// The pre-shared key of a lane: the pair's own on lane 0, and mixed with the number on the others, so that
/// what was sealed for one lane can never be opened on another.
fn lane_psk(psk: Option<&[u8; 32]>, lane: LaneId) -> Option<[u8; 32]> {
    if lane == LaneId::PRIMARY {
        return psk.copied();
    }
    let mut mac = Blake2sMac256::new_from_slice(psk.unwrap_or(&[0; 32])).ok()?;
    mac.update(b"flatlan lane psk v1");
    mac.update(&[lane.number()]);
    Some(mac.finalize_fixed().into())
}

fn next_index(local: u32) -> u32 {
    (local & !0xff) | (local.wrapping_add(1) & 0xff)
}

fn slot(local: u32) -> usize {
    local as usize % SLOTS
}

/// The longest IP packet.
const PACKET_MAX: usize = 65_535;
/// How many sessions a tunnel keeps.
const SLOTS: usize = 8;
/// WireGuard's Rekey-Timeout: how soon a stock peer is asked again.
const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon a peer of our own kind may be asked again: a lost first packet should not cost seconds, and its
/// seal is cheap to check.
const RETRY: Duration = Duration::from_millis(250);
/// How often a lane with a persistent keepalive is revived.
const REVIVE: Duration = Duration::from_secs(15);
/// A lane that has sent nothing for this long is quiet.
const QUIET: Duration = Duration::from_secs(10);
/// How long the first packet after a quiet time has to be answered before the tunnel's timers see it.
const HOLD: Duration = Duration::from_secs(1);
/// A tunnel that has not ticked for this long is ticked before a handshake.
const STALE: Duration = Duration::from_secs(2);
const _: () = assert!(STALE.as_millis() > HOLD.as_millis() + TICK.as_millis());

#[cfg(test)]
mod tests;
