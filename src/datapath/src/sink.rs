//! Where a worker's output goes.

use flatlan_types::{Endpoint, HubSlot, PeerSlot, WorkerId};

use crate::DropReason;

/// One send: a batch of datagrams of equal size (the last may be shorter), one destination.
#[derive(Debug)]
pub struct Transmit<'a> {
    /// Where to.
    pub to: Endpoint,
    /// The datagrams, back to back.
    pub contents: &'a [u8],
    /// Bytes of every datagram but the last; `contents.len()` or more where there is one only.
    pub segment: usize,
    /// DSCP and ECN of the outer header (RFC 2474, RFC 3168): what the packets inside have.
    pub traffic_class: u8,
}

impl Transmit<'_> {
    /// How many datagrams.
    pub fn count(&self) -> usize {
        self.contents.len().div_ceil(self.segment.max(1))
    }
}

/// What came to one worker and belongs to another of the same process.
#[derive(Debug)]
pub enum Handed<'a> {
    /// Datagrams that the kernel joined with ours, as [`Worker::handle_network`](crate::Worker::handle_network)
    /// takes them.
    Datagrams {
        /// Who sent them.
        from: Endpoint,
        /// Back to back.
        contents: &'a [u8],
        /// Bytes of each but the last.
        stride: usize,
        /// The two ECN bits of their outer headers.
        ecn: u8,
    },
    /// A packet for a peer, behind its virtio-net header: for
    /// [`Worker::handle_packet`](crate::Worker::handle_packet).
    Packet {
        /// Whose sessions it needs.
        peer: PeerSlot,
        /// As it was read from the TUN.
        header_and_packet: &'a [u8],
    },
}

/// Where ciphertext and opened packets are written: the kernel in production, a `Vec` in tests.
///
/// Every call is one hand-off that either happens at once or fails; a worker keeps nothing for later.
pub trait Sink {
    /// Sends datagrams on the worker's UDP socket.
    ///
    /// # Errors
    /// The reason under which the caller counts the datagrams as dropped.
    fn send_udp(&mut self, transmit: &Transmit<'_>) -> Result<(), DropReason>;

    /// Sends labelled frames on the data stream to a hub, packed as `[length u16][frame]` each.
    ///
    /// # Errors
    /// The reason under which the caller counts the frames as dropped.
    fn send_stream(&mut self, hub: HubSlot, packed: &[u8]) -> Result<(), DropReason>;

    /// Writes one packet, behind its virtio-net header, to the TUN.
    ///
    /// # Errors
    /// The reason under which the caller counts the packets as dropped.
    fn write_tun(&mut self, header_and_packet: &mut [u8]) -> Result<(), DropReason>;

    /// Puts something before another worker. The sink of a worker that is alone is never asked.
    ///
    /// # Errors
    /// The reason under which the caller counts it as dropped.
    fn hand_over(&mut self, _to: WorkerId, _what: &Handed<'_>) -> Result<(), DropReason> {
        Err(DropReason::Backpressure)
    }
}
