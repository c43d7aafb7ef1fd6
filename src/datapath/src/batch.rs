//! The batch of sealed datagrams that is being filled: one destination, one size, one send.
//!
//! Segments are sealed straight into it, back to back, and it leaves as one UDP_SEGMENT send or as one
//! hand-off to a data stream. It is flushed when the next datagram does not fit its key (destination,
//! segment size, traffic class), when it is full, and at the end of each burst: small packets are not held back.

use flatlan_relay::frame::{HEADER_LEN, Header, LENGTH_LEN};
use flatlan_types::{Endpoint, HubSlot};

use crate::{DropReason, Drops, Sink, Transmit, peer::Route};

/// Where a batch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// A UDP datagram to this endpoint: a peer's, or a hub's.
    Udp(Endpoint),
    /// The data stream to a hub.
    Stream(HubSlot),
}

pub(crate) struct Batch {
    buffer: Box<[u8]>,
    len: usize,
    count: usize,
    segment: usize,
    /// A datagram shorter than the others ends a batch.
    closed: bool,
    destination: Option<Destination>,
    traffic_class: u8,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; MAX_BYTES].into_boxed_slice(),
            len: 0,
            count: 0,
            segment: 0,
            closed: false,
            destination: None,
            traffic_class: 0,
        }
    }

    /// Room for one datagram of at most `size` bytes; what does not go together with it is sent first.
    /// `None` where no datagram of this size can be sent at all.
    pub(crate) fn room(
        &mut self,
        to: Destination,
        traffic_class: u8,
        size: usize,
        drops: &mut Drops,
        out: &mut impl Sink,
    ) -> Option<&mut [u8]> {
        let prefix = prefix_len(to);
        let fits = self.destination == Some(to)
            && self.traffic_class == traffic_class
            && !self.closed
            && self.len + prefix + size <= MAX_BYTES
            && match to {
                Destination::Udp(_) => size <= self.segment && self.count < MAX_SEGMENTS,
                Destination::Stream(_) => true,
            };
        if !fits {
            self.flush(drops, out);
            self.destination = Some(to);
            self.traffic_class = traffic_class;
            self.segment = size;
        }
        self.buffer.get_mut(self.len + prefix..self.len + prefix + size)
    }

    /// The room that was asked for last holds a datagram of `size` bytes.
    pub(crate) fn commit(&mut self, size: usize) {
        let Some(to) = self.destination else { return };
        let prefix = prefix_len(to);
        if prefix > 0
            && let Some(length) = self.buffer.get_mut(self.len..self.len + prefix)
        {
            length.copy_from_slice(&(size as u16).to_be_bytes());
        } else if self.count == 0 {
            self.segment = size;
        } else if size < self.segment {
            self.closed = true;
        }
        self.len += prefix + size;
        self.count += 1;
    }

    /// Sends what there is.
    pub(crate) fn flush(&mut self, drops: &mut Drops, out: &mut impl Sink) {
        let contents = self.buffer.get(..self.len).unwrap_or_default();
        let sent = match self.destination {
            Some(Destination::Udp(to)) if self.count > 0 => {
                out.send_udp(&Transmit { to, contents, segment: self.segment, traffic_class: self.traffic_class })
            }
            Some(Destination::Stream(hub)) if self.count > 0 => out.send_stream(hub, contents),
            Some(_) | None => Ok(()),
        };
        if let Err(reason) = sent {
            drops.add(reason, self.count as u64);
        }
        self.len = 0;
        self.count = 0;
        self.closed = false;
        self.destination = None;
    }
}

/// Sends one datagram on its own, past the batch: bindings and cookies.
pub(crate) fn send_now(to: Endpoint, datagram: &[u8], drops: &mut Drops, out: &mut impl Sink) {
    if let Err(reason) = out.send_udp(&Transmit { to, contents: datagram, segment: datagram.len(), traffic_class: 0 }) {
        drops.add(reason, 1);
    }
}

/// Sends the datagram that lies behind [`HEADROOM`] bytes of `framed`: on its own, past the batch.
pub(crate) fn send_framed(route: Route, framed: &mut [u8], drops: &mut Drops, out: &mut impl Sink) {
    if let (Some(label), Some(frame)) = (route.label, framed.get_mut(PREFIX_LEN..)) {
        Header::new(label).write(frame);
    }
    let sent = match route.to {
        Destination::Udp(to) => {
            let start = if route.label.is_some() { PREFIX_LEN } else { HEADROOM };
            let contents = framed.get(start..).unwrap_or_default();
            out.send_udp(&Transmit { to, contents, segment: contents.len(), traffic_class: 0 })
        }
        Destination::Stream(hub) => match u16::try_from(framed.len().saturating_sub(PREFIX_LEN)) {
            Ok(length) => {
                if let Some(prefix) = framed.first_chunk_mut() {
                    *prefix = length.to_be_bytes();
                }
                out.send_stream(hub, framed)
            }
            Err(_) => Err(DropReason::TooBig),
        },
    };
    if let Err(reason) = sent {
        drops.add(reason, 1);
    }
}

fn prefix_len(to: Destination) -> usize {
    match to {
        Destination::Udp(_) => 0,
        Destination::Stream(_) => PREFIX_LEN,
    }
}

/// Bytes before each frame on a stream.
const PREFIX_LEN: usize = LENGTH_LEN;
/// Room before a datagram for a label and a stream's length.
pub(crate) const HEADROOM: usize = PREFIX_LEN + HEADER_LEN;
/// The greatest payload of one UDP send (IPv4: 65,535 less 28), UDP_SEGMENT or not.
const MAX_BYTES: usize = 65_507;
/// Segments that every kernel with UDP_SEGMENT takes in one send.
const MAX_SEGMENTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sends(Vec<(Option<Endpoint>, usize, usize)>, Vec<u8>);

    impl Sink for Sends {
        fn send_udp(&mut self, t: &Transmit<'_>) -> Result<(), DropReason> {
            self.0.push((Some(t.to), t.contents.len(), t.segment));
            self.1.push(t.traffic_class);
            Ok(())
        }

        fn send_stream(&mut self, _: HubSlot, packed: &[u8]) -> Result<(), DropReason> {
            self.0.push((None, packed.len(), 0));
            Ok(())
        }

        fn write_tun(&mut self, _: &mut [u8]) -> Result<(), DropReason> {
            Ok(())
        }
    }

    fn place(n: u16) -> Endpoint {
        Endpoint::new(([192, 0, 2, 1], n).into())
    }

    fn push(batch: &mut Batch, to: Destination, size: usize, out: &mut Sends) {
        push_class(batch, to, 0, size, out);
    }

    fn push_class(batch: &mut Batch, to: Destination, traffic_class: u8, size: usize, out: &mut Sends) {
        batch.room(to, traffic_class, size, &mut Drops::default(), out).unwrap().fill(1);
        batch.commit(size);
    }

    #[test]
    fn equal_sizes_to_one_place_leave_as_one_send_and_a_shorter_one_ends_it() {
        let (mut batch, mut out) = (Batch::new(), Sends::default());
        let to = Destination::Udp(place(1));
        for size in [100, 100, 100, 60, 100] {
            push(&mut batch, to, size, &mut out);
        }
        batch.flush(&mut Drops::default(), &mut out);
        batch.flush(&mut Drops::default(), &mut out);
        assert_eq!(out.0, [(Some(place(1)), 360, 100), (Some(place(1)), 100, 100)]);
    }

    #[test]
    fn another_place_or_a_larger_datagram_begins_a_new_send() {
        let (mut batch, mut out) = (Batch::new(), Sends::default());
        push(&mut batch, Destination::Udp(place(1)), 100, &mut out);
        push(&mut batch, Destination::Udp(place(2)), 100, &mut out);
        push(&mut batch, Destination::Udp(place(2)), 101, &mut out);
        push(&mut batch, Destination::Stream(HubSlot(0)), 10, &mut out);
        push(&mut batch, Destination::Stream(HubSlot(0)), 20, &mut out);
        batch.flush(&mut Drops::default(), &mut out);
        let sizes: Vec<_> = out.0.iter().map(|(to, len, _)| (to.is_some(), *len)).collect();
        assert_eq!(sizes, [(true, 100), (true, 100), (true, 101), (false, 34)]);
    }

    #[test]
    fn what_has_another_traffic_class_begins_a_new_send() {
        let (mut batch, mut out) = (Batch::new(), Sends::default());
        // EF, then the same with ECT(0), then best effort
        for class in [0xb8, 0xb8, 0xba, 0, 0xb8] {
            push_class(&mut batch, Destination::Udp(place(1)), class, 100, &mut out);
        }
        batch.flush(&mut Drops::default(), &mut out);
        assert_eq!(out.1, [0xb8, 0xba, 0, 0xb8]);
        assert_eq!(out.0.first(), Some(&(Some(place(1)), 200, 100)));
    }

    #[test]
    fn no_send_exceeds_what_the_kernel_takes() {
        let (mut batch, mut out) = (Batch::new(), Sends::default());
        for _ in 0..200 {
            push(&mut batch, Destination::Udp(place(1)), 1452, &mut out);
        }
        batch.flush(&mut Drops::default(), &mut out);
        assert!(out.0.iter().all(|(_, len, _)| *len <= MAX_BYTES));
        assert_eq!(out.0.iter().map(|(_, len, _)| len / 1452).sum::<usize>(), 200);
    }
}
