//! Between a stock peer and the rest of the overlay: the only packets that go from one peer to another.
//!
//! A plain WireGuard device has one tunnel, to the member that terminates it, and that member owns its
//! addresses in the eyes of all others. So what the device sends to another member, and what others send
//! to the device, is opened here and sealed anew, without a way through the kernel: whether the machine
//! forwards packets does not matter. The hop limit counts this node as the router that it is (RFC 1812
//! section 5.3.1). Nothing else is ever forwarded: a member cannot reach another one through this node.

use std::time::Instant;

use flatlan_packet::{IpVersion, IpView, VNET_LEN, flow_hash};
use flatlan_types::PeerSlot;
use flatlan_wg::Sessions;

use crate::{Chosen, DropReason, Owner, Sink, Snapshot, worker::Worker};

/// Whose an arrived packet is.
pub(crate) enum Toward {
    /// This node's.
    Me,
    /// Another peer's.
    Peer(PeerSlot),
}

/// A packet on its way to another peer, behind an empty virtio-net header.
pub(crate) struct Transit {
    to: PeerSlot,
    framed: Vec<u8>,
}

/// Where a packet from a peer may go; `None`: nowhere.
pub(crate) fn toward(snapshot: &Snapshot, view: &IpView, from: PeerSlot) -> Option<Toward> {
    let is_stock = |slot| snapshot.peer(slot).is_some_and(|peer| peer.keys.member().is_none());
    match snapshot.owner(view.destination, || flow_hash(view))?.owner() {
        Owner::Me => Some(Toward::Me),
        Owner::Peer(to) if to != from && (is_stock(from) || is_stock(to)) => Some(Toward::Peer(to)),
        Owner::Peer(_) => None,
    }
}

impl Transit {
    /// Takes a packet in, with one hop less to go.
    pub(crate) fn new(to: PeerSlot, packet: &[u8], view: &IpView) -> Result<Self, DropReason> {
        let mut framed = vec![0; VNET_LEN + view.len];
        let copy = framed.get_mut(VNET_LEN..).ok_or(DropReason::Malformed)?;
        copy.copy_from_slice(packet.get(..view.len).ok_or(DropReason::Malformed)?);
        take_hop(copy, view.version)?;
        Ok(Self { to, framed })
    }
}

impl<S: Sessions> Worker<S> {
    /// Sends a packet on.
    pub(crate) fn forward(
        &mut self,
        mut transit: Transit,
        now: Instant,
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        let packet = transit.framed.get(VNET_LEN..).unwrap_or_default();
        let view = IpView::parse(packet).map_err(|_| DropReason::Malformed)?;
        if let Some(Chosen::OneOf(_)) = self.snapshot.owner(view.destination, || flow_hash(&view)) {
            self.tell_shared(transit.to, now);
        }
        self.send_to(transit.to, &mut transit.framed, &view, now, out)
    }
}

/// Counts the hop limit down; IPv4's checksum follows (RFC 1624).
fn take_hop(packet: &mut [u8], version: IpVersion) -> Result<(), DropReason> {
    let at = match version {
        IpVersion::V4 => V4_HOPS,
        IpVersion::V6 => V6_HOPS,
    };
    let hops = packet.get_mut(at).ok_or(DropReason::Malformed)?;
    *hops = hops.checked_sub(1).filter(|left| *left > 0).ok_or(DropReason::HopLimit)?;
    if version == IpVersion::V4 {
        let sum = packet.get_mut(V4_CHECKSUM..).and_then(|rest| rest.first_chunk_mut::<2>());
        let sum = sum.ok_or(DropReason::Malformed)?;
        let (added, carry) = u16::from_be_bytes(*sum).overflowing_add(0x0100);
        *sum = (added + u16::from(carry)).to_be_bytes();
    }
    Ok(())
}

const V4_HOPS: usize = 8;
const V4_CHECKSUM: usize = 10;
const V6_HOPS: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_less_keeps_the_header_checksum_right() {
        for (hops, sum) in [(64, 0xabcd_u16), (64, 0xfeff), (2, 0xff12)] {
            let mut packet = [0; 20];
            packet[V4_HOPS] = hops;
            packet[V4_CHECKSUM..12].copy_from_slice(&sum.to_be_bytes());
            let total = |packet: &[u8; 20]| {
                let words = packet.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
                let sum: u32 = words.sum();
                (sum & 0xffff) + (sum >> 16)
            };
            let before = total(&packet);
            take_hop(&mut packet, IpVersion::V4).unwrap();
            assert_eq!((packet[V4_HOPS], total(&packet)), (hops - 1, before));
        }
    }

    #[test]
    fn the_last_hop_is_not_taken() {
        for (version, at) in [(IpVersion::V4, V4_HOPS), (IpVersion::V6, V6_HOPS)] {
            let mut packet = [0; 40];
            packet[at] = 1;
            assert_eq!(take_hop(&mut packet, version), Err(DropReason::HopLimit));
        }
    }
}
