//! From the TUN to the underlay: the way of a packet out.
//!
//! One super-packet comes in whole and is cut, sealed and batched in one pass, in place. What finds no
//! session waits in a short queue while the session is made. What is longer than the path carries is
//! fragmented where its sender allows that (RFC 791) or cannot be told (IPv6 below 1280 bytes, RFC 8200), and
//! answered with an error where not (RFC 1191, RFC 4443); everything else that cannot go is a counted drop.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use flatlan_packet::{
    Fragments, IpVersion, IpView, SegmentsMut, VNET_LEN, VnetHeader, flow_hash, icmp_too_big, mss_clamp, mss_for,
    protocol,
};
use flatlan_path::Spread;
use flatlan_relay::frame::{HEADER_LEN, Header, unpack};
use flatlan_types::{LaneId, LaneKey, PeerSlot};
use flatlan_wg::{SealError, Sessions};

use crate::{
    Chosen, DropReason, Drops, Event, Owner, Sink, Snapshot,
    batch::{Batch, Destination, HEADROOM, send_framed},
    peer::{Peer, Route},
    worker::Worker,
};

impl<S: Sessions> Worker<S> {
    /// One packet or super-packet behind its virtio-net header, as it was read from the TUN. Its bytes are
    /// used up.
    pub fn handle_tun(&mut self, header_and_packet: &mut [u8], now: Instant, out: &mut impl Sink) {
        if let Err(reason) = self.outbound(header_and_packet, now, out) {
            self.stats.drops.add(reason, packets_in(header_and_packet));
        }
    }

    /// A packet or super-packet from the TUN was given up: too much waited before it.
    pub fn drop_tun(&mut self, header_and_packet: &[u8]) {
        self.stats.drops.add(DropReason::QueueFull, packets_in(header_and_packet));
    }

    /// Frames of a data stream, packed, that this worker was to pass on and could not.
    pub fn drop_packed(&mut self, packed: &[u8], reason: DropReason) {
        self.stats.drops.add(reason, unpack(packed).count() as u64);
    }

    /// The burst is over: what is sealed leaves.
    pub fn flush_outbound(&mut self, out: &mut impl Sink) {
        self.batch.flush(&mut self.stats.drops, out);
    }

    fn outbound(&mut self, header_and_packet: &mut [u8], now: Instant, out: &mut impl Sink) -> Result<(), DropReason> {
        let (_, packet) = split(header_and_packet)?;
        let view = IpView::parse(packet).map_err(|_| DropReason::Malformed)?;
        if view.source_routed {
            return Err(DropReason::Malformed);
        }
        let ends = (view.source, view.destination);
        let slot = match self.sent.filter(|sent| sent.ends == ends) {
            Some(sent) => sent.to,
            None => match receiver(&self.snapshot, &view)? {
                Receiver::Sole(to) => {
                    self.sent = Some(Sent { ends, to });
                    to
                }
                Receiver::OneOf(to) => {
                    self.tell_shared(to, now);
                    to
                }
            },
        };
        self.send_to(slot, header_and_packet, &view, now, out)
    }

    /// Tells the control machine that packets go to one of several owners, or that this one may have to be replaced.
    pub(crate) fn tell_shared(&mut self, slot: PeerSlot, now: Instant) {
        let told = self.shared_told.get(&slot);
        if told.is_none_or(|told| now.saturating_duration_since(*told) >= SHARED_AGAIN) {
            self.shared_told.insert(slot, now);
            self.event(Event::SharedUsed { peer: slot });
        }
    }

    /// Seals a packet for a peer, or lets it wait for a session.
    pub(crate) fn send_to(
        &mut self,
        slot: PeerSlot,
        header_and_packet: &mut [u8],
        view: &IpView,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        if let Some(other) = self.owner_elsewhere(slot) {
            return self.hand_packet(other, slot, header_and_packet, out);
        }
        let flow = self.flow(view);
        let peer = self.ensure_peer(slot, now).ok_or(DropReason::NoMember)?;
        peer.last_data = Some(now);
        let waiting = !peer.queue.is_empty();
        if let (Some(flow), Some(link)) = (flow, peer.node_link_mut()) {
            link.paths.on_flow(flow, now);
        }
        let done = match self.flow_lane(slot, flow).filter(|_| !waiting) {
            Some(lane) => {
                let (header, packet) = split(header_and_packet)?;
                self.seal(peer_lane(slot, lane), &header, packet, view, now, out)
            }
            None => {
                self.enqueue(slot, header_and_packet, now);
                let primary = self.primary_lane(slot);
                self.want_session(slot, primary, now, out);
                self.flush_queue(slot, now, out);
                Ok(())
            }
        };
        self.drain_peer(slot, now, out);
        done
    }

    /// The lane that is to carry flows: where the path machine wants them.
    pub(crate) fn primary_lane(&self, slot: PeerSlot) -> LaneId {
        self.peer(slot).and_then(Peer::node_link).map_or(LaneId::PRIMARY, |link| link.paths.primary())
    }

    /// The hash of a packet's flow, where flows are told apart: it says by which lane they go.
    #[inline]
    fn flow(&self, view: &IpView) -> Option<u32> {
        match self.config.spread {
            Spread::Off => None,
            Spread::On => Some(flow_hash(view)),
        }
    }

    /// The lane that carries a flow at this moment: its own, or while that has no session or no path another one
    /// that has both.
    fn flow_lane(&self, slot: PeerSlot, flow: Option<u32>) -> Option<LaneId> {
        let peer = self.peer(slot)?;
        let ready = |lane: &LaneId| {
            self.sessions.is_established(peer.lane_key(*lane)) && peer.lane_route(*lane, &self.hubs).is_some()
        };
        let own = match (peer.node_link(), flow) {
            (Some(link), Some(flow)) => link.paths.lanes_of(flow).find(ready),
            (Some(link), None) => Some(link.paths.primary()).filter(ready),
            (None, _) => None,
        };
        own.or_else(|| LaneId::all().find(ready))
    }

    /// Cuts, seals and batches one super-packet for a lane that has a session and a path.
    fn seal(
        &mut self,
        lane: LaneKey,
        header: &VnetHeader,
        packet: &mut [u8],
        view: &IpView,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let peer = self.peers.get_mut(lane.peer).ok_or(DropReason::NoMember)?;
        let route = peer.lane_route(lane.lane, &self.hubs).ok_or(DropReason::NoPath)?;
        let room = peer.room(self.config.mtu);
        let clamp = is_syn(view, packet).then(|| mss_for(view.version, room));
        let mut segments = SegmentsMut::of_view(header, packet, view, room).map_err(|_| DropReason::Malformed)?;
        if segments.longest() > room {
            return self.too_long(lane, route, segments, room, now, out);
        }
        let mut sealer = self.sealer(lane, route, view.traffic_class);
        while let Some((padded, len)) = segments.next_padded() {
            if let Some(mss) = clamp
                && let Some(packet) = padded.get_mut(..len)
            {
                mss_clamp(packet, mss);
            }
            sealer.push(padded, len, now, out);
        }
        let sealed = sealer.sealed;
        self.on_sealed(lane, sealed, now);
        Ok(())
    }

    /// Packets that the path does not carry: in fragments, or not at all.
    fn too_long(
        &mut self,
        lane: LaneKey,
        route: Route,
        mut segments: SegmentsMut<'_>,
        room: usize,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let mut fragment = std::mem::take(&mut self.plain);
        let mut sealed = Sealed::default();
        let mut refused = 0;
        while let Some(segment) = segments.next_packet() {
            self.fragments = self.fragments.wrapping_add(1);
            let Some(mut fragments) = Fragments::new(segment, room, self.fragments) else {
                if refused == 0 {
                    self.tell_too_big(segment, room, now, out);
                }
                refused += 1;
                continue;
            };
            let traffic_class = IpView::parse(segment).map_or(0, |view| view.traffic_class);
            let mut sealer = self.sealer(lane, route, traffic_class);
            while let Some(len) = fragments.write_next(&mut fragment) {
                sealer.push(fragment.get(..len).unwrap_or_default(), len, now, out);
            }
            sealed += sealer.sealed;
        }
        self.plain = fragment;
        self.stats.drops.add(DropReason::TooBig, refused);
        self.on_sealed(lane, sealed, now);
        Ok(())
    }

    /// Tells the sender of a packet how long the next may be.
    ///
    /// The error comes from the packet's destination: the kernel takes no packet from outside that has an
    /// address of its own as the source.
    fn tell_too_big(&mut self, packet: &[u8], room: usize, now: Instant, out: &mut impl Sink) {
        let Ok(view) = IpView::parse(packet) else { return };
        if !self.errors.take(now) {
            return;
        }
        // IPv6 is never told of less than every path must carry (RFC 8201 section 4)
        let mtu = match view.version {
            IpVersion::V4 => room,
            IpVersion::V6 => room.max(V6_LEAST),
        };
        let Some(error) = icmp_too_big(packet, mtu, view.destination) else { return };
        let mut framed = vec![0; VNET_LEN + error.len()];
        if let Some(body) = framed.get_mut(VNET_LEN..) {
            body.copy_from_slice(&error);
        }
        if let Err(reason) = out.write_tun(&mut framed) {
            self.stats.drops.add(reason, 1);
        }
    }

    fn sealer(&mut self, lane: LaneKey, route: Route, traffic_class: u8) -> Sealer<'_, S> {
        let traffic_class = match route.to {
            Destination::Udp(_) => traffic_class & self.config.class_mask,
            Destination::Stream(_) => 0,
        };
        Sealer {
            sessions: &mut self.sessions,
            batch: &mut self.batch,
            drops: &mut self.stats.drops,
            lane,
            route,
            traffic_class,
            sealed: Sealed::default(),
        }
    }

    fn on_sealed(&mut self, lane: LaneKey, sealed: Sealed, now: Instant) {
        self.stats.tx_packets += u64::from(sealed.packets);
        self.stats.tx_bytes += sealed.bytes;
        let Some(peer) = self.peers.get_mut(lane.peer) else { return };
        peer.tx_bytes += sealed.bytes;
        if let Some(link) = peer.node_link_mut()
            && sealed.packets > 0
        {
            link.paths.on_sent(lane.lane, sealed.packets, sealed.datagrams, now);
        }
    }

    fn enqueue(&mut self, slot: PeerSlot, header_and_packet: &[u8], now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let before = peer.queue.bytes();
        let dropped = if self.queued + header_and_packet.len() > MAX_QUEUED {
            peer.queue.expire(now) + packets_in(header_and_packet)
        } else {
            peer.queue.push(header_and_packet.to_vec(), now)
        };
        self.queued = self.queued + peer.queue.bytes() - before;
        self.stats.drops.add(DropReason::NoSession, dropped);
        self.arm(slot, now);
    }

    /// Drops what has waited too long.
    pub(crate) fn expire_queue(&mut self, slot: PeerSlot, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let before = peer.queue.bytes();
        let dropped = peer.queue.expire(now);
        self.queued = self.queued + peer.queue.bytes() - before;
        self.stats.drops.add(DropReason::NoSession, dropped);
    }

    /// Sends what waited for a session, where there is one now.
    pub(crate) fn flush_queue(&mut self, slot: PeerSlot, now: Instant, out: &mut impl Sink) {
        self.expire_queue(slot, now);
        while self.flow_lane(slot, None).is_some() {
            let Some(mut kept) = self.peers.get_mut(slot).and_then(|peer| peer.queue.pop()) else { break };
            self.queued = self.queued.saturating_sub(kept.len());
            let sealed = split(&mut kept).and_then(|(header, packet)| {
                let view = IpView::parse(packet).map_err(|_| DropReason::Malformed)?;
                let lane = self.flow_lane(slot, self.flow(&view)).ok_or(DropReason::NoSession)?;
                self.seal(peer_lane(slot, lane), &header, packet, &view, now, out)
            });
            if let Err(reason) = sealed {
                self.stats.drops.add(reason, packets_in(&kept));
            }
        }
        self.flush_outbound(out);
    }
}

/// Between which addresses a packet was last sent, and to whom: what follows it is not looked up again.
/// Forgotten with the snapshot that said so.
#[derive(Clone, Copy)]
pub(crate) struct Sent {
    /// Source and destination.
    ends: (IpAddr, IpAddr),
    to: PeerSlot,
}

/// To whom a packet from the TUN goes.
enum Receiver {
    /// To the only owner of its destination.
    Sole(PeerSlot),
    /// To one of several.
    OneOf(PeerSlot),
}

/// To whom a packet from the TUN goes, where it may.
fn receiver(snapshot: &Snapshot, view: &IpView) -> Result<Receiver, DropReason> {
    if is_never_carried(view.destination) {
        return Err(DropReason::BadDestination);
    }
    let to = match snapshot.owner(view.destination, || flow_hash(view)) {
        Some(Chosen::Sole(Owner::Peer(slot))) => Receiver::Sole(slot),
        Some(Chosen::OneOf(Owner::Peer(slot))) => Receiver::OneOf(slot),
        Some(Chosen::Sole(Owner::Me) | Chosen::OneOf(Owner::Me)) => return Err(DropReason::BadDestination),
        None => return Err(DropReason::NoMember),
    };
    if !snapshot.owns(Owner::Me, view.source) || is_never_carried(view.source) {
        return Err(DropReason::SourceNotOwned);
    }
    Ok(to)
}

/// Seals packets of one lane into the batch.
struct Sealer<'a, S> {
    sessions: &'a mut S,
    batch: &'a mut Batch,
    drops: &'a mut Drops,
    lane: LaneKey,
    route: Route,
    traffic_class: u8,
    sealed: Sealed,
}

impl<S: Sessions> Sealer<'_, S> {
    /// A packet of `len` bytes, with its padding or without.
    #[inline]
    fn push(&mut self, packet: &[u8], len: usize, now: Instant, out: &mut impl Sink) {
        let label_len = if self.route.label.is_some() { HEADER_LEN } else { 0 };
        let size = label_len + S::sealed_len(packet.len());
        let Some(room) = self.batch.room(self.route.to, self.traffic_class, size, self.drops, out) else {
            self.drops.add(DropReason::TooBig, 1);
            return;
        };
        if let Some(label) = self.route.label {
            Header::new(label).write(room);
        }
        match self.sessions.seal(self.lane, packet, now, room.get_mut(label_len..).unwrap_or_default()) {
            Ok(sealed) => {
                self.batch.commit(label_len + sealed);
                self.sealed.packets += 1;
                self.sealed.bytes += len as u64;
                self.sealed.datagrams += sealed as u64;
            }
            Err(SealError::TooBig) => self.drops.add(DropReason::TooBig, 1),
            Err(SealError::NoSession | SealError::UnknownLane) => self.drops.add(DropReason::NoSession, 1),
        }
    }
}

/// What was sealed.
#[derive(Debug, Clone, Copy, Default)]
struct Sealed {
    packets: u32,
    /// Inner bytes.
    bytes: u64,
    /// Bytes of the datagrams, without labels.
    datagrams: u64,
}

impl std::ops::AddAssign for Sealed {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.datagrams += other.datagrams;
    }
}

/// How much is done for nobody in particular, such as errors written to the TUN: a burst, then so many in a second (RFC 4443
/// section 2.4 f).
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// The time up to which what was done is paid for.
    paid: Option<Instant>,
}

impl Budget {
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let paid = self.paid.map_or(now, |paid| paid.max(now));
        if paid >= now + Self::BURST {
            return false;
        }
        self.paid = Some(paid + Self::COST);
        true
    }

    const COST: Duration = Duration::from_millis(5);
    const BURST: Duration = Duration::from_millis(250);
}

/// Sends one control datagram for a peer, behind the label of its route where it has one.
pub(crate) fn send_by(route: Route, datagram: &[u8], drops: &mut Drops, out: &mut impl Sink) {
    let mut framed = [0; HEADROOM + flatlan_wg::sealed::SEALED_HANDSHAKE_MAX];
    let Some(framed) = framed.get_mut(..HEADROOM + datagram.len()) else {
        drops.add(DropReason::TooBig, 1);
        return;
    };
    if let Some(body) = framed.get_mut(HEADROOM..) {
        body.copy_from_slice(datagram);
    }
    send_framed(route, framed, drops, out);
}

/// Whether a packet from or to this address is never carried, whoever owns it: it means something on one
/// machine or one link only.
pub fn is_never_carried(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.octets().first() == Some(&0),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.to_ipv4_mapped().is_some(),
    };
    link_local || ip.is_loopback() || ip.is_multicast() || ip.is_unspecified()
}

/// Whether this is a TCP SYN, whose MSS option may have to be lowered.
pub(crate) fn is_syn(view: &IpView, packet: &[u8]) -> bool {
    view.protocol == protocol::TCP
        && view.ports.is_some()
        && packet.get(view.l4_offset + 13).is_some_and(|flags| flags & SYN != 0)
}

fn split(header_and_packet: &mut [u8]) -> Result<(VnetHeader, &mut [u8]), DropReason> {
    let header = VnetHeader::parse(header_and_packet).map_err(|_| DropReason::Malformed)?;
    let packet = header_and_packet.get_mut(VNET_LEN..).ok_or(DropReason::Malformed)?;
    Ok((header, packet))
}

/// How many packets a super-packet is, for the counters.
pub(crate) fn packets_in(header_and_packet: &[u8]) -> u64 {
    let packet = header_and_packet.get(VNET_LEN..).unwrap_or_default();
    VnetHeader::parse(header_and_packet).map_or(1, |header| header.packets(packet))
}

fn peer_lane(peer: PeerSlot, lane: LaneId) -> LaneKey {
    LaneKey { peer, lane }
}

/// It is told again that a peer is used which shares a prefix.
const SHARED_AGAIN: Duration = Duration::from_secs(5);
/// The least MTU of IPv6.
const V6_LEAST: usize = 1280;
const SYN: u8 = 2;
/// Bytes that wait for sessions, over all peers: a sweep over members that are away costs no more.
const MAX_QUEUED: usize = 16 << 20;
