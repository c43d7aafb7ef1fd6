//! Sealed frames (`0x10`): probes, their replies, and control messages between two nodes.

use std::time::{Duration, Instant};

use flatlan_path::{
    PathEvent, PathKind,
    frame::{KIND_MESSAGE, KIND_PROBE, KIND_REPLY, Probe, ProbeReply},
};
use flatlan_types::{LaneId, PeerSlot};
use flatlan_wg::{
    Sessions,
    sealed::{FRAME_OVERHEAD, Freshness, SealedFrame, seal_frame},
};

use crate::{
    DropReason, Event, Sink,
    batch::{HEADROOM, send_framed},
    peer::{Lane, Peer, Route},
    worker::Worker,
};

impl<S: Sessions> Worker<S> {
    /// A sealed frame, by whatever way it came.
    pub(crate) fn handle_sealed_frame(
        &mut self,
        datagram: &[u8],
        ingress: PathKind,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let mut buffer = std::mem::take(&mut self.opened);
        let done = self.open_frame(datagram, &mut buffer, ingress, now, out);
        self.opened = buffer;
        done
    }

    fn open_frame(
        &mut self,
        datagram: &[u8],
        buffer: &mut [u8],
        ingress: PathKind,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let frame = SealedFrame::parse(datagram).ok_or(DropReason::Malformed)?;
        let snapshot = self.snapshot.clone();
        let hinted = snapshot.hinted(frame.hint);
        if hinted.is_empty() {
            return Err(DropReason::Unknown);
        }
        for slot in hinted.iter().copied() {
            // behind a label the hint is no more than what a member wrote: nobody gets a second state here
            if self.owner_elsewhere(slot).is_some() {
                continue;
            }
            let Some(link) = self.ensure_peer(slot, now).and_then(Peer::node_link_mut) else { continue };
            let Some(payload) = frame.open(&link.keys, buffer) else { continue };
            match link.replay.accept(frame.epoch, frame.counter) {
                Freshness::Fresh | Freshness::NewEpoch => {}
                Freshness::OldEpoch => {
                    self.stale_peer(slot, now);
                    return Err(DropReason::StaleEpoch);
                }
                Freshness::Replayed => return Err(DropReason::Replayed),
            }
            if !self.peer_epoch(slot, frame.epoch, now, out) {
                self.stale_peer(slot, now);
                return Err(DropReason::StaleEpoch);
            }
            return self.handle_payload(slot, payload, ingress, now, out);
        }
        Err(DropReason::BadTag)
    }

    fn handle_payload(
        &mut self,
        slot: PeerSlot,
        payload: &[u8],
        ingress: PathKind,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let (kind, body) = payload.split_first().ok_or(DropReason::Malformed)?;
        match *kind {
            KIND_PROBE => {
                let probe = Probe::decode(payload).ok_or(DropReason::Malformed)?;
                let Some(link) = self.peers.get_mut(slot).and_then(Peer::node_link_mut) else { return Ok(()) };
                let reply = link.paths.handle_probe(probe, ingress, now).encode();
                let reverse = link.route(ingress, &self.hubs);
                let primary = link.paths.active(link.paths.primary()).and_then(|path| link.route(path, &self.hubs));
                if reverse.is_none() && primary.is_none() {
                    self.need_path(slot, now);
                }
                for route in [reverse, primary.filter(|route| Some(*route) != reverse)].into_iter().flatten() {
                    self.send_frame(slot, &reply, reply.len(), route, out);
                }
            }
            KIND_REPLY => {
                let reply = ProbeReply::decode(payload).ok_or(DropReason::Malformed)?;
                if let Some(link) = self.peers.get_mut(slot).and_then(Peer::node_link_mut) {
                    link.paths.handle_reply(reply, ingress, now);
                }
            }
            KIND_MESSAGE => self.event(Event::PeerMessage { peer: slot, ingress, bytes: body.to_vec() }),
            KIND_HELLO => {}
            _ => return Err(DropReason::Malformed),
        }
        self.drain_peer(slot, now, out);
        Ok(())
    }

    /// Sends a control message on a given path, or on the best there is, or on every one that might work.
    pub(crate) fn send_message(
        &mut self,
        slot: PeerSlot,
        bytes: &[u8],
        path: Option<PathKind>,
        now: Instant,
        out: &mut impl Sink,
    ) {
        if bytes.len() > MAX_MESSAGE {
            self.stats.drops.add(DropReason::TooBig, 1);
            return;
        }
        self.ensure_peer(slot, now);
        let mut payload = Vec::with_capacity(1 + bytes.len());
        payload.push(KIND_MESSAGE);
        payload.extend_from_slice(bytes);
        let routes: Vec<Route> = {
            let hubs = &self.hubs;
            let Some(link) = self.peers.get(slot).and_then(Peer::node_link) else { return };
            let best = path.or_else(|| link.paths.active(link.paths.primary()));
            match best.and_then(|path| link.route(path, hubs)) {
                Some(route) => vec![route],
                None => link.paths.paths().filter_map(|path| link.route(path.kind, hubs)).collect(),
            }
        };
        if routes.is_empty() {
            self.need_path(slot, now);
        }
        for route in routes {
            self.send_frame(slot, &payload, payload.len(), route, out);
        }
    }

    /// An empty frame: it tells the peer our epoch and nothing else.
    pub(crate) fn send_hello(&mut self, slot: PeerSlot, ingress: PathKind, now: Instant, out: &mut impl Sink) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        // a recorded handshake that is sent again and again is not answered each time
        if peer.hello_told.is_some_and(|told| now.saturating_duration_since(told) < HELLO_AGAIN) {
            return;
        }
        peer.hello_told = Some(now);
        let link = self.peers.get(slot).and_then(Peer::node_link);
        let Some(route) = link.and_then(|link| link.route(ingress, &self.hubs)) else {
            self.need_path(slot, now);
            return;
        };
        self.send_frame(slot, &[KIND_HELLO], 1, route, out);
    }

    /// Sends the probes that are due to one peer, and acts on what its paths say.
    pub(crate) fn drain_peer(&mut self, slot: PeerSlot, now: Instant, out: &mut impl Sink) {
        loop {
            let Some(link) = self.peers.get_mut(slot).and_then(Peer::node_link_mut) else { return };
            let Some(due) = link.paths.poll_transmit() else { break };
            if let Some(hub) = due.path.hub() {
                self.hubs.touch(hub, now);
            }
            let route =
                self.peers.get(slot).and_then(Peer::node_link).and_then(|link| link.route(due.path, &self.hubs));
            if let Some(route) = route {
                self.send_frame(slot, &due.probe.encode(), due.size.saturating_sub(FRAME_OVERHEAD), route, out);
            }
        }
        loop {
            let Some(link) = self.peers.get_mut(slot).and_then(Peer::node_link_mut) else { return };
            let Some(event) = link.paths.poll_event() else { break };
            match event {
                PathEvent::Moved { lane, path, was, reason } => {
                    self.event(Event::PathChanged { peer: slot, lane, path, was, reason });
                    if let Some(PathKind::Direct(endpoint)) = path {
                        self.endpoints.insert(endpoint, slot);
                        self.event(Event::DirectUp { peer: slot, endpoint });
                    }
                    match path {
                        Some(_) => self.on_path(slot, lane, now, out),
                        None if lane == self.primary_lane(slot) => self.need_path(slot, now),
                        None => {}
                    }
                }
                PathEvent::Primary { lane, was, reason } => {
                    let (path, was) = (link.paths.active(lane), link.paths.active(was));
                    self.event(Event::LaneChanged { peer: slot, lane, path, was, reason });
                    self.on_path(slot, lane, now, out);
                }
                PathEvent::Silent { hub } => self.event(Event::HubSilent { peer: slot, hub }),
                PathEvent::Idle => {
                    self.event(Event::Idle { peer: slot });
                    // at rest, not closed: a recorded initiation must not be new again
                    self.sessions.rest_peer(slot);
                    if let Some(peer) = self.peers.get_mut(slot) {
                        // nobody asks it any more: whether it would answer is not known
                        (peer.waiting, peer.silent) = (None, None);
                        peer.lanes = peer.lanes.map(|lane| Lane { open: lane.open, ..Default::default() });
                    }
                }
            }
        }
        self.judge_silence(slot, now);
        self.arm(slot, now);
    }

    /// A lane has a path: make its session, or send what waits.
    fn on_path(&mut self, slot: PeerSlot, lane: LaneId, now: Instant, out: &mut impl Sink) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let busy = peer.is_busy(now);
        let state = peer.lane_mut(lane);
        if state.wanted || busy {
            state.next_try = None;
            self.want_session(slot, lane, now, out);
            self.flush_queue(slot, now, out);
        }
    }

    /// Seals a payload, padded with zeros to `size`, and sends it behind the data that was sealed before.
    fn send_frame(&mut self, slot: PeerSlot, payload: &[u8], size: usize, route: Route, out: &mut impl Sink) {
        self.flush_outbound(out);
        let Self { peers, plain, sealed, stats, config, .. } = self;
        let Some(link) = peers.get_mut(slot).and_then(Peer::node_link_mut) else { return };
        let Some(text) = plain.get_mut(..size.max(payload.len())) else { return };
        let (head, padding) = text.split_at_mut(payload.len());
        head.copy_from_slice(payload);
        padding.fill(0);
        let Some(frame) = sealed.get_mut(HEADROOM..) else { return };
        let Some(len) = seal_frame(&link.keys, config.epoch, &mut link.counter, text, frame) else { return };
        if let Some(framed) = sealed.get_mut(..HEADROOM + len) {
            send_framed(route, framed, &mut stats.drops, out);
        }
    }
}

/// Nothing but the header: the sender's epoch.
const KIND_HELLO: u8 = 4;
/// The longest control message between two nodes, in bytes.
pub const MAX_MESSAGE: usize = flatlan_path::frame::MAX_MESSAGE;
/// Hellos to one peer come no closer together than this.
const HELLO_AGAIN: Duration = Duration::from_millis(50);
