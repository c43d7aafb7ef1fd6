//! From the TUN to the underlay: the way of a packet out.
//!
//! One super-packet comes in whole and is cut, sealed and batched in one pass. What finds no session
//! waits in a short queue while the session is made; everything else that cannot go is a counted drop.

use std::time::Instant;

use flatlan_packet::{IpView, Segments, SuperPacket, VNET_LEN, VnetHeader};
use flatlan_relay::frame::Header;
use flatlan_types::{LaneId, PeerSlot};
use flatlan_wg::{SealError, Sessions};

use crate::{DropReason, Owner, Sink, worker::Worker};

impl<S: Sessions> Worker<S> {
    /// One packet or super-packet, as it was read from the TUN.
    pub fn handle_tun(&mut self, packet: SuperPacket<'_>, now: Instant, out: &mut impl Sink) {
        if let Err(reason) = self.outbound(packet, now, out) {
            self.stats.drops.add(reason, 1);
        }
    }

    /// The burst is over: what is sealed leaves.
    pub fn flush_outbound(&mut self, out: &mut impl Sink) {
        self.batch.flush(&mut self.stats.drops, out);
    }

    fn outbound(&mut self, packet: SuperPacket<'_>, now: Instant, out: &mut impl Sink) -> Result<(), DropReason> {
        let view = IpView::parse(packet.packet).map_err(|_| DropReason::Malformed)?;
        let slot = match self.snapshot.owner(view.destination) {
            Some(Owner::Peer(slot)) => slot,
            Some(Owner::Me) => return Err(DropReason::BadDestination),
            None if view.destination.is_multicast() => return Err(DropReason::BadDestination),
            None => return Err(DropReason::NoMember),
        };
        if self.snapshot.owner(view.source) != Some(Owner::Me) {
            return Err(DropReason::SourceNotOwned);
        }
        let peer = self.ensure_peer(slot, now).ok_or(DropReason::NoMember)?;
        peer.last_data = Some(now);
        let waiting = !peer.queue.is_empty();
        match self.flow_lane(slot) {
            Some(lane) if !waiting => self.seal(slot, lane, packet, now, out),
            Some(_) | None => {
                self.enqueue(slot, &packet, now);
                let primary = self.primary_lane(slot);
                self.want_session(slot, primary, now, out);
                self.flush_queue(slot, now, out);
                Ok(())
            }
        }
    }

    /// The lane that is to carry flows: where the path machine wants them.
    pub(crate) fn primary_lane(&self, slot: PeerSlot) -> LaneId {
        self.peer(slot).and_then(|peer| peer.node_link()).map_or(LaneId::PRIMARY, |link| link.paths.primary())
    }

    /// The lane that carries flows at this moment: the primary, or while it has no session or no path
    /// another one that has both.
    fn flow_lane(&self, slot: PeerSlot) -> Option<LaneId> {
        let peer = self.peer(slot)?;
        let ready = |lane: &LaneId| {
            self.sessions.is_established(peer.lane_key(*lane)) && peer.lane_route(*lane, &self.hubs).is_some()
        };
        let primary = self.primary_lane(slot);
        if ready(&primary) {
            return Some(primary);
        }
        (0..LaneId::COUNT as u8).filter_map(LaneId::new).find(ready)
    }

    /// Cuts, seals and batches one super-packet for a lane that has a session and a path.
    fn seal(
        &mut self,
        slot: PeerSlot,
        lane: LaneId,
        packet: SuperPacket<'_>,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let Self { peers, sessions, hubs, batch, stats, plain, config, .. } = self;
        let peer = peers.get_mut(slot).ok_or(DropReason::NoMember)?;
        let route = peer.lane_route(lane, hubs).ok_or(DropReason::NoPath)?;
        let key = peer.lane_key(lane);
        let ecn = 0;
        let label_len = if route.label.is_some() { LABEL_LEN } else { 0 };
        let mut segments = Segments::new(packet, config.mtu).map_err(|_| DropReason::Malformed)?;
        let (mut packets, mut bytes) = (0u32, 0u64);
        while let Some(len) = segments.write_next(plain) {
            let segment = plain.get(..len).ok_or(DropReason::TooBig)?;
            let size = label_len + S::sealed_len(len);
            let room = batch.room(route.to, ecn, size, &mut stats.drops, out).ok_or(DropReason::TooBig)?;
            if let Some(label) = route.label {
                Header::new(label).write(room);
            }
            match sessions.seal(key, segment, now, room.get_mut(label_len..).unwrap_or_default()) {
                Ok(sealed) => {
                    batch.commit(label_len + sealed);
                    packets += 1;
                    bytes += len as u64;
                }
                Err(SealError::TooBig) => stats.drops.add(DropReason::TooBig, 1),
                Err(SealError::NoSession | SealError::UnknownLane) => stats.drops.add(DropReason::NoSession, 1),
            }
        }
        peer.tx_bytes += bytes;
        stats.tx_packets += u64::from(packets);
        stats.tx_bytes += bytes;
        if let Some(link) = peer.node_link_mut() {
            link.paths.on_sent(lane, packets, bytes, now);
        }
        self.touch(slot);
        Ok(())
    }

    fn enqueue(&mut self, slot: PeerSlot, packet: &SuperPacket<'_>, now: Instant) {
        let mut kept = vec![0; VNET_LEN + packet.packet.len()];
        let (header, body) = kept.split_at_mut(VNET_LEN);
        header.copy_from_slice(&packet.header.to_bytes());
        body.copy_from_slice(packet.packet);
        if let Some(peer) = self.peers.get_mut(slot) {
            let dropped = peer.queue.push(kept, now);
            self.stats.drops.add(DropReason::NoSession, dropped);
        }
        self.touch(slot);
    }

    /// Sends what waited for a session, where there is one now.
    pub(crate) fn flush_queue(&mut self, slot: PeerSlot, now: Instant, out: &mut impl Sink) {
        while let Some(lane) = self.flow_lane(slot) {
            let Some(peer) = self.peers.get_mut(slot) else { return };
            let dropped = peer.queue.expire(now);
            self.stats.drops.add(DropReason::NoSession, dropped);
            let Some(kept) = peer.queue.pop() else { break };
            let packet = kept
                .split_at_checked(VNET_LEN)
                .and_then(|(header, packet)| Some(SuperPacket { header: VnetHeader::parse(header).ok()?, packet }));
            let sealed = match packet {
                Some(packet) => self.seal(slot, lane, packet, now, out),
                None => Err(DropReason::Malformed),
            };
            if let Err(reason) = sealed {
                self.stats.drops.add(reason, 1);
            }
        }
        self.flush_outbound(out);
    }
}

/// Sends one datagram for a peer, behind the label of its route where it has one.
pub(crate) fn send_by(route: crate::peer::Route, datagram: &[u8], drops: &mut crate::Drops, out: &mut impl Sink) {
    match route.label {
        None => crate::batch::send_now(route.to, datagram, drops, out),
        Some(label) => {
            let mut frame = vec![0; LABEL_LEN + datagram.len()];
            Header::new(label).write(&mut frame);
            if let Some(body) = frame.get_mut(LABEL_LEN..) {
                body.copy_from_slice(datagram);
            }
            crate::batch::send_now(route.to, &frame, drops, out);
        }
    }
}

/// Bytes of the header of a labelled frame.
pub(crate) const LABEL_LEN: usize = flatlan_relay::frame::HEADER_LEN;
