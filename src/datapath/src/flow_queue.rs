//! What was read from the TUN and waits for the worker, by flow.
//!
//! One bulk flow can have megabytes under way, and all of it waits here when sealing is what limits it. So
//! everything that the kernel has is taken in first, and flows are served in turn, those that have just begun to
//! wait first (the scheduling of RFC 8290, FQ-CoDel, without its control of delay): a ping or a query does
//! not wait behind a copy. Where too much waits, the flow with the most loses its oldest packet.

use std::collections::VecDeque;

use flatlan_packet::{IpView, MAX_PACKET, VNET_LEN, flow_hash};

/// Frames (a virtio-net header and a packet or super-packet) by flow, each in a buffer of its own.
#[derive(Debug)]
pub struct FlowQueue {
    flows: Vec<Flow>,
    /// Flows that began to wait since they were last served.
    new: VecDeque<usize>,
    old: VecDeque<usize>,
    free: Vec<Box<[u8]>>,
    /// Frames that wait.
    frames: usize,
    /// Bytes that wait.
    bytes: usize,
}

/// A frame.
#[derive(Debug)]
pub struct Frame {
    buffer: Box<[u8]>,
    len: usize,
}

#[derive(Debug, Default)]
struct Flow {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// Bytes that it may still send in this round.
    deficit: isize,
    listed: bool,
}

impl Frame {
    /// Its bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        self.buffer.get_mut(..self.len).unwrap_or_default()
    }
}

impl FlowQueue {
    /// An empty one.
    pub fn new() -> Self {
        let flows = std::iter::repeat_with(Flow::default).take(FLOWS).collect();
        Self { flows, new: VecDeque::new(), old: VecDeque::new(), free: Vec::new(), frames: 0, bytes: 0 }
    }

    /// A buffer of [`FlowQueue::BUFFER_LEN`] bytes to read a frame into. There is always one more than may wait.
    pub fn buffer(&mut self) -> Box<[u8]> {
        self.free.pop().unwrap_or_else(|| vec![0; Self::BUFFER_LEN].into_boxed_slice())
    }

    /// Gives a buffer back.
    pub fn give_back(&mut self, buffer: Box<[u8]>) {
        self.free.push(buffer);
    }

    /// Gives back the buffer of a frame that is done with.
    pub fn done(&mut self, frame: Frame) {
        self.free.push(frame.buffer);
    }

    /// Takes in the frame in `buffer[..len]`. Where too much waits now, returns what is to be dropped.
    pub fn push(&mut self, buffer: Box<[u8]>, len: usize) -> Option<Frame> {
        let mut frame = Frame { len: len.min(buffer.len()), buffer };
        let at = Self::place(frame.bytes());
        let flow = self.flows.get_mut(at)?;
        self.bytes += frame.len;
        flow.bytes += frame.len;
        flow.frames.push_back(frame);
        if !flow.listed {
            flow.listed = true;
            flow.deficit = QUANTUM;
            self.new.push_back(at);
        }
        self.frames += 1;
        if self.bytes > MAX_BYTES || self.frames > MAX_FRAMES { self.drop_one() } else { None }
    }

    /// The frame whose turn it is. Give it back with [`FlowQueue::done`].
    pub fn pop(&mut self) -> Option<Frame> {
        loop {
            let is_new = !self.new.is_empty();
            let list = if is_new { &mut self.new } else { &mut self.old };
            let at = *list.front()?;
            let flow = self.flows.get_mut(at)?;
            if flow.deficit <= 0 {
                flow.deficit += QUANTUM;
                list.pop_front();
                self.old.push_back(at);
            } else if let Some(frame) = flow.frames.pop_front() {
                flow.deficit -= frame.len as isize;
                flow.bytes -= frame.len;
                self.bytes -= frame.len;
                self.frames -= 1;
                return Some(frame);
            } else {
                list.pop_front();
                // one that comes and goes must not pass the others each time
                if is_new && !self.old.is_empty() {
                    self.old.push_back(at);
                } else {
                    flow.listed = false;
                }
            }
        }
    }

    fn drop_one(&mut self) -> Option<Frame> {
        let flow = self.flows.iter_mut().max_by_key(|flow| flow.bytes)?;
        let frame = flow.frames.pop_front()?;
        flow.bytes -= frame.len;
        self.bytes -= frame.len;
        self.frames -= 1;
        Some(frame)
    }

    /// Packets of one flow have one place, and so keep their order.
    fn place(frame: &[u8]) -> usize {
        let view = IpView::parse(frame.get(VNET_LEN..).unwrap_or_default());
        view.map_or(0, |view| flow_hash(&view) as usize % FLOWS)
    }

    /// A virtio-net header and the longest packet.
    pub const BUFFER_LEN: usize = VNET_LEN + MAX_PACKET;
}

impl Default for FlowQueue {
    fn default() -> Self {
        Self::new()
    }
}

/// Flows that are told apart.
const FLOWS: usize = 256;
/// Frames that may wait.
const MAX_FRAMES: usize = 128;
/// Bytes that may wait: a window of one TCP flow, or 10 ms at 3 Gbit/s.
const MAX_BYTES: usize = 4 << 20;
/// What a flow may send before it is the next one's turn: one super-packet.
const QUANTUM: isize = 65_536;

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 UDP packet from `port`, `len` bytes with its virtio-net header, marked with `mark`.
    fn push(queue: &mut FlowQueue, port: u16, len: usize, mark: u8) -> Option<u8> {
        let mut buffer = queue.buffer();
        let packet = &mut buffer[VNET_LEN..len];
        packet.fill(mark);
        packet[..20].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let total = packet.len() as u16;
        packet[2..4].copy_from_slice(&total.to_be_bytes());
        packet[20..24].copy_from_slice(&[port.to_be_bytes(), [0, 9]].concat());
        let dropped = queue.push(buffer, len)?;
        let mark = dropped.buffer[len - 1];
        queue.done(dropped);
        Some(mark)
    }

    fn pop(queue: &mut FlowQueue) -> Option<u8> {
        let mut frame = queue.pop()?;
        let mark = frame.bytes().last().copied();
        queue.done(frame);
        mark
    }

    #[test]
    fn a_flow_that_just_began_is_served_before_one_that_fills_the_line() {
        let mut queue = FlowQueue::new();
        (0..20).for_each(|n| assert_eq!(push(&mut queue, 1, 60_000, n), None));
        assert_eq!([pop(&mut queue), pop(&mut queue), pop(&mut queue)], [Some(0), Some(1), Some(2)]);
        push(&mut queue, 2, 100, 77);
        assert_eq!([pop(&mut queue), pop(&mut queue)], [Some(77), Some(3)]);
    }

    #[test]
    fn packets_of_one_flow_keep_their_order_and_none_is_lost_below_the_limit() {
        let mut queue = FlowQueue::new();
        for n in 0..60 {
            assert_eq!(push(&mut queue, 1 + u16::from(n % 3), 20_000 + 100 * usize::from(n), n), None);
        }
        let out: Vec<u8> = std::iter::from_fn(|| pop(&mut queue)).collect();
        assert_eq!(out.len(), 60);
        for flow in 0..3 {
            let of_flow: Vec<u8> = out.iter().copied().filter(|n| n % 3 == flow).collect();
            assert!(of_flow.is_sorted(), "{of_flow:?}");
        }
        assert_eq!((queue.frames, queue.bytes), (0, 0));
    }

    #[test]
    fn flows_that_all_have_much_to_send_get_equal_shares() {
        let mut queue = FlowQueue::new();
        for n in 0..60 {
            push(&mut queue, 1, 60_000, 1);
            if n % 2 == 0 {
                push(&mut queue, 2, 30_000, 2);
            }
        }
        let first: Vec<u8> = std::iter::from_fn(|| pop(&mut queue)).take(30).collect();
        let bytes = |flow: u8, len: usize| first.iter().filter(|n| **n == flow).count() * len;
        assert!(bytes(1, 60_000).abs_diff(bytes(2, 30_000)) <= 2 * 65_536, "{first:?}");
    }

    #[test]
    fn where_too_much_waits_the_flow_with_the_most_loses_its_oldest_packet() {
        let mut queue = FlowQueue::new();
        push(&mut queue, 2, 1_000, 99);
        let lost: Vec<u8> = (0..75).filter_map(|n| push(&mut queue, 1, 60_000, n)).collect();
        assert_eq!(lost, (0..lost.len() as u8).collect::<Vec<_>>());
        assert!(queue.bytes <= MAX_BYTES && lost.len() > 3);
        assert_eq!(pop(&mut queue), Some(99));
    }

    #[test]
    fn a_flood_of_small_packets_loses_its_own_and_no_ping() {
        let mut queue = FlowQueue::new();
        push(&mut queue, 2, 100, 99);
        let lost = (0..1000).filter_map(|_| push(&mut queue, 1, 100, 1)).collect::<Vec<_>>();
        assert_eq!(lost, vec![1; 1001 - MAX_FRAMES]);
        push(&mut queue, 3, 100, 98);
        assert_eq!([pop(&mut queue), pop(&mut queue)], [Some(99), Some(1)]);
        assert!(std::iter::from_fn(|| pop(&mut queue)).any(|mark| mark == 98));
        assert!(queue.free.len() <= MAX_FRAMES + 1, "{} buffers", queue.free.len());
    }

    #[test]
    fn what_is_no_packet_waits_like_any_other() {
        let mut queue = FlowQueue::new();
        let buffer = queue.buffer();
        assert!(queue.push(buffer, 5).is_none());
        assert_eq!(queue.pop().unwrap().bytes().len(), 5);
        assert!(queue.pop().is_none());
    }
}
