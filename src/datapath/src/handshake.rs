//! Sessions come up: when to initiate, sealed handshakes, boot epochs.
//!
//! A session is keyed by (peer, lane, both epochs). An epoch that rises at either end makes every lane
//! of the pair start anew at once; an epoch below the greatest seen is an old life speaking, and what it
//! says is dropped. A peer whose epoch is not known yet is probed first: every sealed frame carries one.

use std::time::{Duration, Instant};

use flatlan_path::PathKind;
use flatlan_types::{BootEpoch, Endpoint, LaneId, LaneKey, PeerSlot};
use flatlan_wg::{
    Admission, HANDSHAKE_MAX, OpenError, Sessions, lacks_cookie,
    sealed::{HandshakeVerdict, SEALED_HANDSHAKE_MAX, SealedHandshake, SealedHandshakeHeader, seal_handshake},
};

use crate::{
    DropReason, Event, NewSessions, Sink,
    batch::send_now,
    outbound::send_by,
    peer::{Link, Peer, Route},
    worker::Worker,
};

impl<S: Sessions> Worker<S> {
    /// Somebody wants a session on this lane: initiate, or ask for what is missing.
    pub(crate) fn want_session(&mut self, slot: PeerSlot, lane: LaneId, now: Instant, out: &mut impl Sink) {
        if self.refuses_session(slot) {
            // as good as silent: where others own the same addresses, they are to be used
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.waiting = peer.waiting.or(Some(now));
                self.arm(slot, now);
            }
            return;
        }
        let key = LaneKey { peer: slot, lane };
        let established = self.sessions.is_established(key);
        let lacking = !self.has_way(slot);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.waiting = lacking.then(|| peer.waiting.unwrap_or(now));
        let state = peer.lane_mut(lane);
        state.wanted = !established;
        if established || state.next_try.is_some_and(|at| at > now) {
            return;
        }
        // a peer whose epoch is not known is being probed; its answer brings the epoch
        let known = peer.node_link().is_none_or(|link| link.epoch != BootEpoch::default());
        let route = peer.lane_route(lane, &self.hubs).filter(|_| known);
        let sent = route.is_some_and(|route| self.initiate(key, route, now, out));
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let state = peer.lane_mut(lane);
        // only the last two initiations can be answered: the pause grows with what was sent
        let pause = if sent { RETRY.saturating_mul(1 << state.tries.min(MAX_RETRY_DOUBLINGS)) } else { RETRY };
        state.tries += u32::from(sent);
        state.next_try = Some(now + pause);
        if (route.is_none() || state.tries > TRIES_BEFORE_HELP) && lane == self.primary_lane(slot) {
            self.need_path(slot, now);
        }
        self.arm(slot, now);
    }

    /// A session that is only kept ready carries no data, by which WireGuard would renew it: it is made anew before it
    /// ends.
    pub(crate) fn renew_session(&mut self, key: LaneKey, now: Instant, out: &mut impl Sink) {
        let old = self.sessions.last_handshake(key, now).is_some_and(|age| age >= RENEW_AFTER);
        if !old || !self.sessions.is_established(key) || self.refuses_session(key.peer) {
            return;
        }
        if let Some(route) = self.peers.get(key.peer).and_then(|peer| peer.lane_route(key.lane, &self.hubs)) {
            self.initiate(key, route, now, out);
        }
    }

    /// Sends an initiation; `false` where the engine has none now.
    fn initiate(&mut self, key: LaneKey, route: Route, now: Instant, out: &mut impl Sink) -> bool {
        self.open_lane(key.peer, key.lane, now);
        let mut message = [0; HANDSHAKE_MAX];
        let sent = self.sessions.initiate(key, now, &mut message);
        if let Some(message) = sent.and_then(|len| message.get(..len)) {
            self.send_handshake(key, message, route, out);
        }
        sent.is_some()
    }

    /// While there is traffic every lane that has a path has a session too: what moves to another lane
    /// does not wait.
    pub(crate) fn warm(&mut self, slot: PeerSlot, now: Instant, out: &mut impl Sink) {
        for lane in LaneId::all() {
            let Some(peer) = self.peers.get(slot).filter(|peer| peer.is_busy(now)) else { return };
            let Some(link) = peer.node_link() else { return };
            let cold = link.paths.active(lane).is_some() && !self.sessions.is_established(peer.lane_key(lane));
            if cold && link.epoch != BootEpoch::default() {
                self.want_session(slot, lane, now, out);
            }
        }
    }

    /// Tries again what was not answered, or gives up what nobody waits for.
    pub(crate) fn retry_due(&mut self, slot: PeerSlot, now: Instant, out: &mut impl Sink) {
        for lane in LaneId::all() {
            let Some(peer) = self.peers.get_mut(slot) else { return };
            let busy = peer.is_busy(now);
            let state = peer.lane_mut(lane);
            if !state.wanted || state.next_try.is_none_or(|at| at > now) {
                continue;
            }
            if state.tries >= MAX_TRIES && !busy {
                *state = crate::peer::Lane { open: state.open, ..Default::default() };
                peer.waiting = None;
                continue;
            }
            state.next_try = None;
            self.want_session(slot, lane, now, out);
        }
    }

    /// Tells the control machine that a peer cannot be reached as things stand.
    pub(crate) fn need_path(&mut self, slot: PeerSlot, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if peer.need_told.is_none_or(|told| now.duration_since(told) >= NEED_AGAIN) {
            peer.need_told = Some(now);
            self.event(Event::NeedPath { peer: slot });
        }
    }

    /// Sends a WireGuard handshake message: sealed between nodes of ours, plain to a stock peer.
    pub(crate) fn send_handshake(&mut self, lane: LaneKey, message: &[u8], route: Route, out: &mut impl Sink) {
        let Some(peer) = self.peers.get(lane.peer) else { return };
        let Some(link) = peer.node_link() else {
            send_by(route, message, &mut self.stats.drops, out);
            return;
        };
        let header =
            SealedHandshakeHeader { lane: lane.lane, sender_epoch: self.config.epoch, receiver_epoch: link.epoch };
        let mut sealed = [0; SEALED_HANDSHAKE_MAX];
        let len = seal_handshake(&link.keys, header, message, &mut sealed);
        if let Some(sealed) = len.and_then(|len| sealed.get(..len)) {
            send_by(route, sealed, &mut self.stats.drops, out);
        }
    }

    /// A sealed handshake (`0x11`).
    pub(crate) fn handle_sealed_handshake(
        &mut self,
        datagram: &[u8],
        ingress: PathKind,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let sealed = SealedHandshake::parse(datagram).ok_or(DropReason::Malformed)?;
        let snapshot = self.snapshot.clone();
        let hinted = snapshot.hinted(sealed.hint);
        if hinted.is_empty() {
            return Err(DropReason::Unknown);
        }
        for slot in hinted.iter().copied() {
            if self.owner_elsewhere(slot).is_some() {
                continue;
            }
            let Some(link) = self.ensure_peer(slot, now).and_then(|peer| peer.node_link_mut()) else { continue };
            let Some(verified) = sealed.verify(&link.keys) else { continue };
            let seen = link.epoch;
            let lane = LaneKey { peer: slot, lane: verified.header.lane };
            return match verified.judge(self.config.epoch, seen) {
                HandshakeVerdict::Current => self.handle_handshake(lane, verified.message, ingress, now, out),
                HandshakeVerdict::NewSender => {
                    self.peer_epoch(slot, verified.header.sender_epoch, now, out);
                    self.handle_handshake(lane, verified.message, ingress, now, out)
                }
                HandshakeVerdict::NotForThisLife | HandshakeVerdict::WeAreOld => {
                    // any sealed frame tells the peer our epoch
                    self.send_hello(slot, ingress, now, out);
                    Err(DropReason::StaleEpoch)
                }
                HandshakeVerdict::OldSender => {
                    self.stale_peer(slot, now);
                    Err(DropReason::StaleEpoch)
                }
            };
        }
        Err(DropReason::BadTag)
    }

    /// A plain WireGuard type 1 to 3: only stock peers send them.
    ///
    /// Anybody can send what looks like one, and a cookie costs more than the datagram that it answers. So while what comes is
    /// read late, few are looked at that bring none: what has sessions goes first.
    pub(crate) fn handle_plain_handshake(
        &mut self,
        datagram: &[u8],
        from: Endpoint,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let spare = !self.late || self.strangers.take(now);
        if !spare && lacks_cookie(datagram) {
            return Err(DropReason::RateLimited);
        }
        let mut reply = [0; HANDSHAKE_MAX];
        match self.sessions.stock_lane(datagram, from, now, &mut reply) {
            Admission::Lane(lane) => self.handle_handshake(lane, datagram, PathKind::Direct(from), now, out),
            Admission::Cookie(len) => {
                if spare {
                    let cookie = reply.get(..len).unwrap_or_default();
                    send_now(from, cookie, &mut self.stats.drops, out);
                }
                Err(DropReason::RateLimited)
            }
            Admission::Refused => Err(DropReason::PlainHandshake),
        }
    }

    fn handle_handshake(
        &mut self,
        lane: LaneKey,
        message: &[u8],
        ingress: PathKind,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        if self.refuses_session(lane.peer) {
            return Err(DropReason::NewSessionRefused);
        }
        self.open_lane(lane.peer, lane.lane, now);
        let mut reply = [0; HANDSHAKE_MAX];
        let handled = self.sessions.handle_handshake(lane, message, now, &mut reply).map_err(drop_reason)?;
        if let Some(peer) = self.peers.get_mut(lane.peer)
            && let Link::Stock { endpoint } = &mut peer.link
            && let PathKind::Direct(from) = ingress
        {
            *endpoint = Some(from);
        }
        if let Some(reply) = handled.reply.and_then(|len| reply.get(..len)) {
            // back the way it came, else by the lane's own path
            let route = self.peers.get(lane.peer).and_then(|peer| {
                let reverse = peer.node_link().and_then(|link| link.route(ingress, &self.hubs));
                reverse.or_else(|| peer.lane_route(lane.lane, &self.hubs))
            });
            match route {
                Some(route) if reply.first() == Some(&crate::worker::WIREGUARD_DATA) => {
                    send_by(route, reply, &mut self.stats.drops, out);
                }
                Some(route) => self.send_handshake(lane, reply, route, out),
                None => self.need_path(lane.peer, now),
            }
        }
        if handled.established {
            self.on_established(lane, now, out);
        }
        self.arm(lane.peer, now);
        Ok(())
    }

    /// Whether a session with this peer would be a new one, while none may begin.
    fn refuses_session(&self, slot: PeerSlot) -> bool {
        let up = |lane| self.sessions.is_established(LaneKey { peer: slot, lane });
        self.snapshot.new_sessions == NewSessions::Refused && !LaneId::all().any(up)
    }

    /// A lane carries data from here on.
    pub(crate) fn on_established(&mut self, lane: LaneKey, now: Instant, out: &mut impl Sink) {
        let Some(peer) = self.peers.get_mut(lane.peer) else { return };
        peer.waiting = None;
        let state = peer.lane_mut(lane.lane);
        state.wanted = false;
        state.tries = 0;
        state.next_try = None;
        self.event(Event::SessionUp { peer: lane.peer, lane: lane.lane });
        self.flush_queue(lane.peer, now, out);
        self.warm(lane.peer, now, out);
        self.judge_silence(lane.peer, now);
    }

    /// A peer speaks under this epoch. `false`: it is below the greatest, drop what it says.
    pub(crate) fn peer_epoch(&mut self, slot: PeerSlot, epoch: BootEpoch, now: Instant, out: &mut impl Sink) -> bool {
        let Some(link) = self.peers.get_mut(slot).and_then(Peer::node_link_mut) else { return false };
        if epoch < link.epoch {
            return false;
        }
        if epoch > link.epoch {
            let known = link.epoch != BootEpoch::default();
            link.epoch = epoch;
            link.replay.set_epoch(epoch);
            self.event(Event::PeerEpoch { peer: slot, epoch });
            if known {
                tracing::debug!(peer = slot.0, version = epoch.0, "peer started again: sessions are made anew");
                self.restart_sessions(slot, now, out);
            } else if self.peers.get(slot).is_some_and(|peer| peer.lanes.iter().any(|lane| lane.wanted)) {
                self.retry_lanes(slot, now, out);
            }
        }
        true
    }

    /// Either end started again: lanes that were in use are made anew at once.
    pub(crate) fn restart_sessions(&mut self, slot: PeerSlot, now: Instant, out: &mut impl Sink) {
        self.sessions.close_peer(slot);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let recent = peer.last_data.is_some_and(|at| now.duration_since(at) < RECENT);
        for lane in &mut peer.lanes {
            lane.wanted = lane.wanted || (lane.open && recent);
            lane.open = false;
            lane.tries = 0;
            lane.next_try = None;
        }
        if matches!(peer.link, Link::Stock { .. }) {
            self.open_lane(slot, LaneId::PRIMARY, now);
        }
        self.retry_lanes(slot, now, out);
    }

    /// What had to wait for a path or an epoch may go on.
    pub(crate) fn retry_lanes(&mut self, slot: PeerSlot, now: Instant, out: &mut impl Sink) {
        for lane in LaneId::all() {
            let Some(peer) = self.peers.get_mut(slot) else { return };
            let state = peer.lane_mut(lane);
            if state.wanted {
                state.next_try = None;
                self.want_session(slot, lane, now, out);
            }
        }
    }

    /// A peer spoke under an epoch below the greatest: the control machine may want to tell it.
    pub(crate) fn stale_peer(&mut self, slot: PeerSlot, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if peer.stale_told.is_none_or(|told| now.duration_since(told) >= NEED_AGAIN) {
            peer.stale_told = Some(now);
            self.event(Event::StaleEpoch { peer: slot });
        }
    }
}

/// The counter under which a datagram is dropped that the engine refused.
pub(crate) fn drop_reason(error: OpenError) -> DropReason {
    match error {
        OpenError::BufferTooSmall => DropReason::TooBig,
        OpenError::CounterTooHigh | OpenError::Malformed | OpenError::NotIp { .. } => DropReason::Malformed,
        OpenError::Forged => DropReason::BadTag,
        OpenError::Limited => DropReason::RateLimited,
        OpenError::NoSession { .. } => DropReason::NoSession,
        OpenError::Replayed | OpenError::StaleInitiation => DropReason::Replayed,
        OpenError::Unexpected | OpenError::UnknownIndex | OpenError::UnknownLane | OpenError::WrongIndex { .. } => {
            DropReason::Unknown
        }
    }
}

/// First pause between two attempts to bring a session up; it doubles.
const RETRY: Duration = Duration::from_millis(250);
const MAX_RETRY_DOUBLINGS: u32 = 4;
/// Initiations without an answer after which the way itself is in doubt.
const TRIES_BEFORE_HELP: u32 = 2;
/// Initiations without an answer after which nobody is asked any more, unless somebody waits.
const MAX_TRIES: u32 = 24;
/// Age of a session from which one that is kept ready is made anew: WireGuard ends it at 180 s, and one with data is
/// renewed at 120 s.
const RENEW_AFTER: Duration = Duration::from_secs(140);
/// The control machine is told of the same need no more often than this.
const NEED_AGAIN: Duration = Duration::from_millis(500);
/// A pair that carried data within this time wants its sessions back after a restart.
const RECENT: Duration = Duration::from_secs(180);
