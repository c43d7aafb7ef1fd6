//! From the underlay to the TUN: the way of a packet in.
//!
//! Each datagram is opened directly behind the payload of the one before, so that a run of segments is
//! one super-packet when it is written. Nothing reaches the TUN whose inner source does not belong to
//! the key that sealed it.

use std::time::Instant;

use flatlan_packet::IpView;
use flatlan_path::{Leg, PathKind};
use flatlan_relay::frame::{HEADER_LEN, Header, unpack};
use flatlan_types::{Endpoint, HubSlot, LaneKey, PeerSlot};
use flatlan_wg::{
    OpenError, Sessions,
    sealed::{FRAME_TYPE, HANDSHAKE_TYPE},
};

use crate::{
    DropReason, Owner, Sink,
    handshake::drop_reason,
    peer::Link,
    worker::{WIREGUARD_DATA, Worker},
};

/// Data that came in a row by one path: told to the path machine once.
#[derive(Clone, Copy)]
pub(crate) struct Evidence {
    lane: LaneKey,
    ingress: PathKind,
    packets: u32,
    bytes: u64,
}

impl<S: Sessions> Worker<S> {
    /// Datagrams of one source, back to back, each `stride` bytes but the last. After the last batch of a
    /// burst call [`Worker::flush_inbound`].
    pub fn handle_network(
        &mut self,
        from: Endpoint,
        contents: &[u8],
        stride: usize,
        now: Instant,
        out: &mut impl Sink,
    ) {
        for datagram in contents.chunks(stride.max(1)) {
            let done = match datagram.first() {
                Some(&flatlan_relay::frame::KIND) => self.handle_labelled(datagram, from, now, out),
                Some(&flatlan_relay::bind::BOUND) => self.handle_bound(datagram, from, now, out),
                Some(1..=3) => self.handle_plain_handshake(datagram, from, now, out),
                Some(_) => self.handle_datagram(datagram, PathKind::Direct(from), now, out),
                None => Err(DropReason::Malformed),
            };
            self.count(done);
        }
    }

    /// One message of a hub's data stream: labelled frames, packed.
    pub fn handle_stream(&mut self, hub: HubSlot, packed: &[u8], now: Instant, out: &mut impl Sink) {
        for frame in unpack(packed) {
            let done = self
                .unlabel(frame, hub)
                .and_then(|inner| self.handle_datagram(inner, PathKind::Relay { hub, leg: Leg::Tls }, now, out));
            self.count(done);
        }
    }

    /// The burst is over: what is opened goes to the TUN, and the paths hear of it.
    pub fn flush_inbound(&mut self, now: Instant, out: &mut impl Sink) {
        let drops = &mut self.stats.drops;
        self.coalescer.flush(&mut |_, packet| {
            if let Err(reason) = out.write_tun(packet) {
                drops.add(reason, 1);
            }
        });
        self.tell_evidence(now, out);
        self.flush_outbound(out);
    }

    fn handle_labelled(
        &mut self,
        frame: &[u8],
        from: Endpoint,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let hub = self.hubs.at(from).ok_or(DropReason::Unknown)?;
        let inner = self.unlabel(frame, hub)?;
        self.handle_datagram(inner, PathKind::Relay { hub, leg: Leg::Udp }, now, out)
    }

    fn unlabel<'a>(&self, frame: &'a [u8], hub: HubSlot) -> Result<&'a [u8], DropReason> {
        let header = Header::parse(frame).ok_or(DropReason::Malformed)?;
        match self.in_labels.get(&header.label) {
            Some((of, _)) if *of == hub => frame.get(HEADER_LEN..).ok_or(DropReason::Malformed),
            Some(_) | None => Err(DropReason::Unknown),
        }
    }

    fn handle_datagram(
        &mut self,
        datagram: &[u8],
        ingress: PathKind,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        match datagram.first() {
            Some(&WIREGUARD_DATA) => self.handle_data(datagram, ingress, now, out),
            Some(&FRAME_TYPE) => self.handle_sealed_frame(datagram, ingress, now, out),
            Some(&HANDSHAKE_TYPE) => self.handle_sealed_handshake(datagram, ingress, now, out),
            Some(_) | None => Err(DropReason::Malformed),
        }
    }

    fn handle_data(
        &mut self,
        datagram: &[u8],
        ingress: PathKind,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let slot = self.coalescer.slot(datagram.len());
        let opened = match self.sessions.open(datagram, now, slot) {
            Ok(opened) => opened,
            Err(error) => {
                self.coalescer.discard();
                if let OpenError::NoSession { lane } | OpenError::WrongIndex { lane } = error {
                    self.want_session(lane.peer, lane.lane, now, out);
                }
                return Err(drop_reason(error));
            }
        };
        let judged = match slot.get(..opened.len) {
            Some(packet) if opened.len > 0 => judge(&self.snapshot, packet, opened.lane.peer).map(|()| true),
            Some(_) | None => Ok(false),
        };
        if let Ok(true) = judged {
            let drops = &mut self.stats.drops;
            self.coalescer.commit(opened.len, &mut |_, packet| {
                if let Err(reason) = out.write_tun(packet) {
                    drops.add(reason, 1);
                }
            });
            self.stats.rx_packets += 1;
            self.stats.rx_bytes += opened.len as u64;
        } else {
            self.coalescer.discard();
        }
        self.note_evidence(opened.lane, ingress, datagram.len(), opened.len, now, out);
        if opened.established {
            self.on_established(opened.lane, now, out);
        }
        judged.map(|_| ())
    }

    /// Data counts as evidence whether its content was accepted or not: it is the path that is judged.
    fn note_evidence(
        &mut self,
        lane: LaneKey,
        ingress: PathKind,
        datagram: usize,
        packet: usize,
        now: Instant,
        out: &mut impl Sink,
    ) {
        if packet == 0 {
            self.roam_stock(lane.peer, ingress);
            return;
        }
        if let Some(run) = &mut self.evidence
            && run.lane == lane
            && run.ingress == ingress
        {
            run.packets += 1;
            run.bytes += datagram as u64;
        } else {
            self.tell_evidence(now, out);
            self.evidence = Some(Evidence { lane, ingress, packets: 1, bytes: datagram as u64 });
        }
        if let Some(peer) = self.peers.get_mut(lane.peer) {
            peer.rx_bytes += packet as u64;
        }
    }

    fn tell_evidence(&mut self, now: Instant, out: &mut impl Sink) {
        let Some(run) = self.evidence.take() else { return };
        self.roam_stock(run.lane.peer, run.ingress);
        let Some(peer) = self.peers.get_mut(run.lane.peer) else { return };
        peer.last_data = Some(now);
        if let Some(link) = peer.node_link_mut() {
            link.paths.on_received(run.ingress, run.lane.lane, run.packets, run.bytes, now);
            self.drain_peer(run.lane.peer, now, out);
        }
    }

    /// A stock peer is where its last authentic packet came from.
    fn roam_stock(&mut self, slot: PeerSlot, ingress: PathKind) {
        if let Some(peer) = self.peers.get_mut(slot)
            && let Link::Stock { endpoint } = &mut peer.link
            && let PathKind::Direct(from) = ingress
        {
            *endpoint = Some(from);
        }
    }

    fn handle_bound(
        &mut self,
        frame: &[u8],
        from: Endpoint,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let answer = self.hubs.handle_bound(frame, from, now).ok_or(DropReason::BadTag)?;
        if let Some(bind) = answer {
            crate::batch::send_now(bind.to, &bind.datagram, &mut self.stats.drops, out);
        }
        self.after_hubs(now);
        self.drain_paths(now, out);
        self.reschedule();
        Ok(())
    }

    fn count(&mut self, done: Result<(), DropReason>) {
        if let Err(reason) = done {
            self.stats.drops.add(reason, 1);
        }
    }
}

/// Source owned by the key that sealed it, destination ours, neither of them an address that no packet
/// from outside may carry.
fn judge(snapshot: &crate::Snapshot, packet: &[u8], from: PeerSlot) -> Result<(), DropReason> {
    let view = IpView::parse(packet).map_err(|_| DropReason::Malformed)?;
    if view.source_routed {
        return Err(DropReason::Malformed);
    }
    if snapshot.owner(view.source) != Some(Owner::Peer(from)) {
        return Err(DropReason::SourceNotOwned);
    }
    if snapshot.owner(view.destination) != Some(Owner::Me) {
        return Err(DropReason::NotForUs);
    }
    Ok(())
}
