//! From the underlay to the TUN: the way of a packet in.
//!
//! Each datagram is opened directly behind the payload of the one before, so that a run of segments is
//! one super-packet when it is written. Nothing reaches the TUN whose inner source does not belong to
//! the key that sealed it, or whose destination is not ours (what is to or from a stock peer may go on: see
//! `transit`). On the way a packet takes over the congestion mark of its datagram (RFC 6040), and a SYN
//! the limit of the way back.

use std::{net::IpAddr, time::Instant};

use flatlan_packet::{IpView, Marked, merge_ecn, mss_clamp, mss_for};
use flatlan_path::{Leg, PathKind};
use flatlan_relay::frame::{HEADER_LEN, Header, unpack};
use flatlan_types::{Endpoint, HubSlot, LaneId, LaneKey, PeerSlot};
use flatlan_wg::{
    OpenError, Sessions,
    sealed::{FRAME_TYPE, HANDSHAKE_TYPE},
};

use crate::{
    DropReason, Owner, Sink, Snapshot,
    handshake::drop_reason,
    outbound::{is_never_carried, is_syn, packets_in},
    peer::Link,
    transit::{Toward, Transit, toward},
    worker::{WIREGUARD_DATA, Worker},
};

/// Data that came in a row by one path: told to the path machine once.
#[derive(Clone, Copy)]
pub(crate) struct Evidence {
    lane: LaneKey,
    ingress: PathKind,
    packets: u32,
    bytes: u64,
    /// Bytes of what was inside.
    inner: u64,
}

/// How a datagram came.
#[derive(Clone, Copy)]
pub(crate) struct Ingress {
    pub(crate) path: PathKind,
    /// The ECN bits of the outer header.
    ecn: u8,
    /// Who sent it, as the hub says.
    claimed: Option<PeerSlot>,
}

impl<S: Sessions> Worker<S> {
    /// Datagrams that are all this worker's: see [`Worker::handle_network`].
    pub(crate) fn handle_datagrams(
        &mut self,
        from: Endpoint,
        contents: &[u8],
        stride: usize,
        ecn: u8,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let hub = self.hubs.at(from);
        // what a run of one label has in common is looked up once
        let mut labelled: Option<([u8; HEADER_LEN], Ingress)> = None;
        let direct = Ingress { path: PathKind::Direct(from), ecn, claimed: None };
        for datagram in contents.chunks(stride.max(1)) {
            let done = match datagram.first() {
                Some(&flatlan_relay::frame::KIND) => match (datagram.split_first_chunk(), labelled) {
                    (Some((header, inner)), Some((known, ingress))) if *header == known => {
                        self.handle_datagram(inner, ingress, now, out)
                    }
                    (Some((header, inner)), _) => {
                        self.labelled_ingress(header, hub, Leg::Udp, ecn).and_then(|ingress| {
                            labelled = Some((*header, ingress));
                            self.handle_datagram(inner, ingress, now, out)
                        })
                    }
                    (None, _) => Err(DropReason::Malformed),
                },
                Some(&flatlan_relay::bind::BOUND) => self.handle_bound(datagram, from, now, out),
                Some(1..=3) => self.handle_plain_handshake(datagram, from, now, out),
                Some(_) => self.handle_datagram(datagram, direct, now, out),
                None => Err(DropReason::Malformed),
            };
            self.count(done);
        }
    }

    /// One message of a hub's data stream: labelled frames, packed. After the last one of a burst call
    /// [`Worker::flush_inbound`].
    pub fn handle_stream(&mut self, hub: HubSlot, packed: &[u8], now: Instant, out: &mut impl Sink) {
        for frame in unpack(packed) {
            let ingress = self.labelled_ingress(frame, Some(hub), Leg::Tls, 0);
            let inner = frame.get(HEADER_LEN..).unwrap_or_default();
            let done = ingress.and_then(|ingress| self.handle_datagram(inner, ingress, now, out));
            self.count(done);
        }
    }

    /// The burst is over: what is opened goes to the TUN, and the paths hear of it.
    pub fn flush_inbound(&mut self, now: Instant, out: &mut impl Sink) {
        let drops = &mut self.stats.drops;
        self.coalescer.flush(&mut |_, packet| {
            if let Err(reason) = out.write_tun(packet) {
                drops.add(reason, packets_in(packet));
            }
        });
        self.tell_evidence(now, out);
        self.flush_outbound(out);
    }

    /// How a frame came that a hub sent: it names one of our labels.
    fn labelled_ingress(&self, frame: &[u8], hub: Option<HubSlot>, leg: Leg, ecn: u8) -> Result<Ingress, DropReason> {
        let header = Header::parse(frame).ok_or(DropReason::Malformed)?;
        let hub = hub.ok_or(DropReason::Unknown)?;
        let Some((_, peer)) = self.in_labels.get(&header.label).filter(|(of, _)| *of == hub) else {
            return Err(DropReason::Unknown);
        };
        Ok(Ingress { path: PathKind::Relay { hub, leg }, ecn, claimed: Some(*peer) })
    }

    fn handle_datagram(
        &mut self,
        datagram: &[u8],
        ingress: Ingress,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        match datagram.first() {
            Some(&WIREGUARD_DATA) => self.handle_data(datagram, ingress, now, out),
            Some(&FRAME_TYPE) => {
                // a probe reports what came before it
                self.tell_evidence(now, out);
                self.handle_sealed_frame(datagram, ingress.path, now, out)
            }
            Some(&HANDSHAKE_TYPE) => self.handle_sealed_handshake(datagram, ingress.path, now, out),
            Some(1..=3) => Err(DropReason::PlainHandshake),
            Some(_) | None => Err(DropReason::Malformed),
        }
    }

    fn handle_data(
        &mut self,
        datagram: &[u8],
        ingress: Ingress,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let Self { coalescer, sessions, snapshot, peers, stats, config, accepted, .. } = self;
        let slot = coalescer.slot(datagram.len());
        let opened = match sessions.open(datagram, now, slot) {
            Ok(opened) => opened,
            Err(error) => {
                coalescer.discard();
                self.handle_unopened(error, ingress, now, out);
                return Err(drop_reason(error));
            }
        };
        let packet = slot.get_mut(..opened.len).filter(|packet| !packet.is_empty());
        let mut doubted = None;
        let judged = packet.map(|packet| -> Result<Judged, DropReason> {
            let (view, toward) = judge(snapshot, accepted, packet, opened.lane.peer).inspect_err(|reason| {
                if *reason == DropReason::SourceNotOwned {
                    doubted = snapshot.in_place_of(opened.lane.peer, packet);
                }
            })?;
            if ingress.ecn != 0 && merge_ecn(packet, ingress.ecn) == Marked::Drop {
                return Err(DropReason::Congestion);
            }
            if is_syn(&view, packet)
                && let Some(peer) = peers.get(opened.lane.peer)
            {
                mss_clamp(packet, mss_for(view.version, peer.room(config.mtu)));
            }
            Ok(match toward {
                Toward::Me => Judged::Ours(view.len),
                Toward::Peer(peer) => Judged::Transit(Transit::new(peer, packet, &view)?),
            })
        });
        match &judged {
            Some(Ok(Judged::Ours(len))) => {
                coalescer.commit(*len, &mut |_, packet| {
                    if let Err(reason) = out.write_tun(packet) {
                        stats.drops.add(reason, packets_in(packet));
                    }
                });
                stats.rx_packets += 1;
                stats.rx_bytes += *len as u64;
            }
            Some(Ok(Judged::Transit(_)) | Err(_)) | None => coalescer.discard(),
        }
        if let Some(owner) = doubted {
            // it may be gone, and nothing was sent there that would tell
            self.tell_shared(owner, now);
        }
        self.note_evidence(opened.lane, ingress.path, datagram.len(), opened.len, now, out);
        if opened.established {
            self.on_established(opened.lane, now, out);
        }
        match judged {
            Some(Ok(Judged::Transit(transit))) => self.forward(transit, now, out),
            Some(Ok(Judged::Ours(_))) | None => Ok(()),
            Some(Err(reason)) => Err(reason),
        }
    }

    /// The sender uses a session that we do not have (any more): a new one, where it is known who that is.
    fn handle_unopened(&mut self, error: OpenError, ingress: Ingress, now: Instant, out: &mut impl Sink) {
        match error {
            OpenError::NoSession { lane } | OpenError::WrongIndex { lane } => {
                self.want_session(lane.peer, lane.lane, now, out);
            }
            OpenError::UnknownIndex => {
                let peer = ingress.claimed.or_else(|| match ingress.path {
                    PathKind::Direct(from) => self.endpoints.get(&from).copied(),
                    PathKind::Relay { .. } => None,
                });
                if let Some(peer) = peer.filter(|peer| self.ensure_peer(*peer, now).is_some()) {
                    self.want_session(peer, LaneId::PRIMARY, now, out);
                }
            }
            OpenError::BufferTooSmall
            | OpenError::CounterTooHigh
            | OpenError::Forged
            | OpenError::Limited
            | OpenError::Malformed
            | OpenError::NotIp { .. }
            | OpenError::Replayed
            | OpenError::StaleInitiation
            | OpenError::Unexpected
            | OpenError::UnknownLane => {}
        }
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
            run.inner += packet as u64;
        } else {
            self.tell_evidence(now, out);
            let (bytes, inner) = (datagram as u64, packet as u64);
            self.evidence = Some(Evidence { lane, ingress, packets: 1, bytes, inner });
        }
    }

    fn tell_evidence(&mut self, now: Instant, out: &mut impl Sink) {
        let Some(run) = self.evidence.take() else { return };
        self.roam_stock(run.lane.peer, run.ingress);
        let Some(peer) = self.peers.get_mut(run.lane.peer) else { return };
        peer.last_data = Some(now);
        peer.rx_bytes += run.inner;
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
        self.drain_hubs(now, out);
        Ok(())
    }

    fn count(&mut self, done: Result<(), DropReason>) {
        if let Err(reason) = done {
            self.stats.drops.add(reason, 1);
        }
    }
}

/// What becomes of an opened packet.
enum Judged {
    /// It is for this node: so many bytes.
    Ours(usize),
    /// It is on its way between a stock peer and another member.
    Transit(Transit),
}

/// From whom and to where a packet for this node was last accepted: what follows it is not looked up again.
/// Forgotten with the snapshot that said so.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accepted {
    from: PeerSlot,
    source: IpAddr,
    destination: IpAddr,
}

/// Source owned by the key that sealed it, destination ours or, to or from a stock peer, another member's;
/// neither of them an address that no packet from outside may carry.
fn judge(
    snapshot: &Snapshot,
    accepted: &mut Option<Accepted>,
    packet: &[u8],
    from: PeerSlot,
) -> Result<(IpView, Toward), DropReason> {
    let view = IpView::parse(packet).map_err(|_| DropReason::Malformed)?;
    if view.source_routed {
        return Err(DropReason::Malformed);
    }
    let this = Accepted { from, source: view.source, destination: view.destination };
    if *accepted == Some(this) {
        return Ok((view, Toward::Me));
    }
    if !snapshot.owns(Owner::Peer(from), view.source) || is_never_carried(view.source) {
        return Err(DropReason::SourceNotOwned);
    }
    if is_never_carried(view.destination) {
        return Err(DropReason::BadDestination);
    }
    let toward = toward(snapshot, &view, from).ok_or(DropReason::NotForUs)?;
    if matches!(toward, Toward::Me) {
        *accepted = Some(this);
    }
    Ok((view, toward))
}
