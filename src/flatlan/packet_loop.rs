//! The packet thread: one loop around one [`Worker`], and no decision in it.
//!
//! Wait for the TUN, the socket, a command or the timeout; read the clock once; hand the batch in; drain.
//! What the TUN has is all read, and sealed flow by flow, a part at a time, so that no flow holds up another.
//! Everything that the control side wants of the worker comes through one bounded channel. Data streams are the
//! thread's own, as its socket is: each stream belongs to one worker, and what others send on it, or find on it, goes
//! from thread to thread. What the worker has to say goes up through a bounded channel; what finds no room there
//! waits in the worker.

#![expect(clippy::wildcard_enum_match_arm, reason = "the kernel's errors are its own list")]

use std::{
    io,
    os::fd::AsFd as _,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use flatlan_datapath::{
    Backlog, Command, DropReason, Event, FlowQueue, Handed, PeerReport, Sink, Snapshot, Transmit, Worker, WorkerStats,
};
use flatlan_os::{
    Why, clock,
    panic::{self, Panicked},
    poll::{self, Waker},
    priority::Priority,
    stream::{DataStream, StreamBounds, StreamInbox, StreamRefusal, StreamSet},
    tun::{self, Tun},
    udp::{self, RecvBatch, UdpSocket},
};
use flatlan_relay::frame::share_out;
use flatlan_types::{HubSlot, Share, WorkerId, Workers};
use flatlan_wg::Sessions;
use tokio::sync::{mpsc, oneshot};

use crate::{
    refused::Refused,
    workers::{Belongs, Doors, Frames, Room},
};

/// What the control side sends to a packet thread.
pub(crate) enum Order {
    /// A command for the worker.
    Command(Command),
    /// The roster changed.
    Snapshot(Arc<Snapshot>),
    /// A data stream to a hub will be handed over.
    ExpectStream(HubSlot),
    /// Here it is.
    OpenStream(HubSlot, Box<DataStream>),
    /// The data stream is gone.
    CloseStream(HubSlot),
    /// Tell how things are.
    Report(oneshot::Sender<Report>),
    /// End.
    Stop,
}

/// How things are with one worker.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) peers: Vec<PeerReport>,
    pub(crate) stats: WorkerStats,
    /// Super-packets that the TUN refused, written in single packets.
    pub(crate) tun_refused: u64,
    /// Runs of datagrams that the socket refused, sent in single datagrams.
    pub(crate) udp_refused: u64,
    /// Datagrams that were longer than the buffer.
    pub(crate) udp_cut: u64,
}

/// The control side's end of a packet thread.
pub(crate) struct PacketThread {
    orders: mpsc::Sender<Order>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

/// The thread's ends of the channels, before it runs.
pub(crate) struct Unstarted {
    orders: mpsc::Receiver<Order>,
    events: mpsc::Sender<Event>,
    room: Room,
    doors: Doors,
    streams: StreamSet<HubSlot>,
    ended: mpsc::Sender<Result<(), PacketLoopError>>,
}

/// How a packet thread ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PacketLoopError {
    /// The kernel refuses to wait.
    #[error("waiting for packets failed: {0}")]
    Poll(Why),
    /// The worker's code is wrong.
    #[error("the packet thread ended: {0}")]
    Panicked(Panicked),
    /// The thread could not be started.
    #[error("the packet thread could not be started: {0}")]
    Spawn(Why),
    /// The TUN device cannot be read, again and again.
    #[error("the TUN device {name} cannot be read: {why}")]
    Tun {
        /// Its name.
        name: String,
        /// The kernel's reason.
        why: Why,
    },
    /// Somebody deleted the TUN device.
    #[error("the TUN device {name} was deleted under us")]
    TunGone {
        /// Its name.
        name: String,
    },
}

struct PacketLoop<S> {
    worker: Worker<S>,
    io: Io,
    /// What other workers have for this one.
    room: Room,
    orders: mpsc::Receiver<Order>,
    events: mpsc::Sender<Event>,
    /// What was read from the TUN and is still to be sealed.
    waiting: FlowQueue,
    /// Reads of the TUN that failed in a row.
    failed_reads: u32,
    /// Datagrams that were longer than the buffer.
    udp_cut: u64,
    /// Of the UDP socket.
    backlog: Backlog,
}

/// Where the worker's output goes.
struct Io {
    tun: Tun,
    udp: UdpSocket,
    /// Those of its hubs that are this worker's to hold.
    streams: StreamSet<HubSlot>,
    share: Share,
    /// As the loop read it last.
    now: Instant,
    refused: Refused,
    /// To the other workers.
    doors: Doors,
    gone: bool,
}

impl PacketThread {
    /// A thread that is still to be started: orders wait until then. `ended` is told how its loop ended.
    pub(crate) fn prepare(
        room: Room,
        doors: Doors,
        events: &mpsc::Sender<Event>,
        ended: &mpsc::Sender<Result<(), PacketLoopError>>,
    ) -> io::Result<(Self, Unstarted)> {
        let waker = room.waker.clone();
        let (orders, orders_rx) = mpsc::channel(ORDERS);
        let (events, ended) = (events.clone(), ended.clone());
        let streams = StreamSet::new(STREAM_BOUNDS)?;
        let unstarted = Unstarted { orders: orders_rx, events, room, doors, streams, ended };
        Ok((Self { orders, waker, thread: None }, unstarted))
    }

    /// Starts the thread.
    pub(crate) fn start<S: Sessions + Send + 'static>(
        &mut self,
        unstarted: Unstarted,
        worker: Worker<S>,
        share: Share,
        (tun, udp, refused): (Tun, UdpSocket, Refused),
    ) -> Result<(), PacketLoopError> {
        let Unstarted { orders, events, room, doors, streams, ended } = unstarted;
        let io = Io { tun, udp, streams, share, now: clock::now(), refused, doors, gone: false };
        let waiting = FlowQueue::new();
        let backlog = Backlog::default();
        let mut packet_loop =
            PacketLoop { worker, io, room, orders, events, waiting, failed_reads: 0, udp_cut: 0, backlog };
        let thread = std::thread::Builder::new()
            .name("flatlan-packets".to_owned())
            .spawn(move || {
                let done = panic::caught(|| packet_loop.run());
                // there is room for every thread's end
                let _ = ended.try_send(done.unwrap_or_else(|panicked| Err(PacketLoopError::Panicked(panicked))));
            })
            .map_err(|error| PacketLoopError::Spawn(error.into()))?;
        self.thread = Some(thread);
        Ok(())
    }

    /// Hands an order over; waits while too many are pending.
    pub(crate) async fn order(&self, order: Order) {
        if self.orders.send(order).await.is_ok() {
            self.waker.wake();
        }
    }

    /// How things are; `None` where the thread has ended.
    pub(crate) async fn report(&self) -> Option<Report> {
        let (reply, report) = oneshot::channel();
        self.order(Order::Report(reply)).await;
        report.await.ok()
    }

    /// Ends the thread and waits for it.
    pub(crate) async fn stop(mut self) {
        self.order(Order::Stop).await;
        if let Some(thread) = self.thread.take() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

impl Report {
    /// Takes in how things are with another worker.
    pub(crate) fn add(&mut self, other: Self) {
        let Self { peers, stats, tun_refused, udp_refused, udp_cut } = other;
        self.peers.extend(peers);
        self.stats += &stats;
        self.tun_refused += tun_refused;
        self.udp_refused += udp_refused;
        self.udp_cut += udp_cut;
    }
}

impl<S: Sessions> PacketLoop<S> {
    fn run(&mut self) -> Result<(), PacketLoopError> {
        let mut received = RecvBatch::new();
        let mut inbox = StreamInbox::new();
        let mut priority = Priority::new(clock::now());
        loop {
            let now = clock::now();
            priority.update(now);
            self.io.now = now;
            let mut busy = false;
            while let Ok(order) = self.orders.try_recv() {
                busy = true;
                if self.handle_order(order, now) == Flow::Stop {
                    return Ok(());
                }
            }
            busy |= self.receive_handed(now);
            busy |= self.receive_streams(&mut inbox, &mut priority, now);
            busy |= self.receive_udp(&mut received, &mut priority, now);
            // in part, where much waits: what is left keeps the loop busy
            busy |= self.receive_tun(&mut priority, now)?;
            if let Some(gro) = self.io.refused.poll_gro() {
                self.worker.set_gro(gro);
            }
            if self.io.gone {
                return Err(PacketLoopError::TunGone { name: self.io.tun.name().to_owned() });
            }
            if self.worker.poll_timeout().is_some_and(|at| at <= now) {
                busy = true;
                self.worker.handle_timeout(now, &mut self.io);
            }
            self.io.streams.flush(now);
            self.io.doors.wake();
            let told_all = self.tell_events();
            if !busy {
                let deadline = if told_all { self.worker.poll_timeout() } else { Some(now + EVENT_RETRY) };
                let descriptors = [self.io.tun.as_fd(), self.io.udp.as_fd(), self.io.streams.as_fd()];
                poll::wait(descriptors, &self.room.waker, deadline)
                    .map_err(|error| PacketLoopError::Poll(error.into()))?;
            }
        }
    }

    fn handle_order(&mut self, order: Order, now: Instant) -> Flow {
        match order {
            Order::Command(command) => {
                if matches!(command, Command::NetworkChanged) {
                    self.io.udp.reset_offload();
                }
                self.worker.handle_command(command, now, &mut self.io);
            }
            Order::Snapshot(snapshot) => self.worker.set_snapshot(snapshot, now),
            Order::ExpectStream(hub) => self.io.streams.expect(hub),
            Order::OpenStream(hub, stream) => self.io.streams.add(hub, *stream, now),
            Order::CloseStream(hub) => self.io.streams.remove(hub),
            Order::Report(reply) => {
                let _ = reply.send(self.report(now));
            }
            Order::Stop => return Flow::Stop,
        }
        Flow::Go
    }

    fn report(&self, now: Instant) -> Report {
        Report {
            peers: self.worker.report(now),
            stats: self.worker.stats().clone(),
            tun_refused: self.io.refused.count(),
            udp_refused: self.io.udp.refused(),
            udp_cut: self.udp_cut,
        }
    }

    /// What came to other workers and belongs to this one.
    fn receive_handed(&mut self, now: Instant) -> bool {
        let mut any = false;
        for _ in 0..HANDED_BURST {
            let Some(belongs) = self.room.take() else { break };
            any = true;
            match belongs {
                Belongs::Datagrams { from, contents, stride, ecn } => {
                    self.worker.handle_network(from, &contents, stride, ecn, now, &mut self.io);
                }
                Belongs::Packet { peer, mut header_and_packet } => {
                    self.worker.handle_packet(peer, &mut header_and_packet, now, &mut self.io);
                }
                Belongs::Received { hub, packed } => self.worker.handle_stream(hub, &packed, now, &mut self.io),
                Belongs::ToSend { hub, packed } => {
                    if let Err(reason) = self.io.send_stream(hub, &packed) {
                        self.worker.drop_packed(&packed, reason);
                    }
                }
            }
        }
        if any {
            self.worker.flush_inbound(now, &mut self.io);
        }
        any
    }

    fn receive_streams(&mut self, inbox: &mut StreamInbox, priority: &mut Priority, now: Instant) -> bool {
        let mut any = false;
        for _ in 0..STREAM_BURST {
            let Some(hub) = self.io.streams.recv(inbox, now) else { break };
            any = true;
            inbox.each(|message| {
                let before = self.carried();
                self.handle_message(hub, message, now);
                priority.count_carried(self.carried() - before);
            });
            self.worker.flush_inbound(now, &mut self.io);
        }
        any
    }

    fn handle_message(&mut self, hub: HubSlot, message: &[u8], now: Instant) {
        let Share { worker: me, of } = self.io.share;
        if of == Workers::ONE {
            return self.worker.handle_stream(hub, message, now, &mut self.io);
        }
        for (worker, packed) in share_out(message, of) {
            if worker == me {
                self.worker.handle_stream(hub, &packed, now, &mut self.io);
            } else if let Err((reason, packed)) = self.io.doors.put_frames(worker, Frames::Received, hub, packed) {
                self.worker.drop_packed(&packed, reason);
            }
        }
    }

    fn receive_udp(&mut self, batch: &mut RecvBatch, priority: &mut Priority, now: Instant) -> bool {
        // an ICMP error of an earlier send is told by the receive after it; the next wait tells whether
        // there is more
        let Ok(count) = self.io.udp.recv(batch) else {
            self.backlog.emptied();
            return false;
        };
        for received in batch.received() {
            let udp::Received { from, contents, stride, traffic_class, waited, to: _ } = received;
            let before = self.carried();
            self.worker.set_waited(waited);
            let told = self.backlog.handle_run(contents.len(), waited, now);
            for (part, ecn) in parts(contents, stride, traffic_class & ECN, told) {
                self.worker.handle_network(from, part, stride, ecn, now, &mut self.io);
            }
            let carried = self.carried() - before;
            if told && carried > 0 {
                self.backlog.handle_mark(now);
            }
            priority.count_carried(carried);
        }
        if count < RecvBatch::BUFFERS {
            self.backlog.emptied();
        }
        self.udp_cut = batch.cut();
        self.worker.flush_inbound(now, &mut self.io);
        count > 0
    }

    /// Bytes that were opened for this machine, or sealed.
    fn carried(&self) -> u64 {
        let stats = self.worker.stats();
        stats.rx_bytes + stats.tx_bytes
    }

    fn receive_tun(&mut self, priority: &mut Priority, now: Instant) -> Result<bool, PacketLoopError> {
        self.read_tun(priority)?;
        let (mut any, mut bytes) = (false, 0);
        for _ in 0..TUN_BURST {
            let Some(mut frame) = self.waiting.pop() else { break };
            let packet = frame.bytes();
            (any, bytes) = (true, bytes + packet.len());
            self.worker.handle_tun(packet, now, &mut self.io);
            self.waiting.done(frame);
            if bytes >= TUN_BYTES {
                break;
            }
        }
        if any {
            self.worker.flush_outbound(&mut self.io);
        }
        Ok(any)
    }

    /// Takes in what the kernel has; where that is very much, a part of it.
    fn read_tun(&mut self, priority: &mut Priority) -> Result<(), PacketLoopError> {
        for _ in 0..TUN_READS {
            let mut buffer = self.waiting.buffer();
            match self.io.tun.recv(&mut buffer) {
                Ok(len) => {
                    self.failed_reads = 0;
                    priority.count(len);
                    if let Some(mut dropped) = self.waiting.push(buffer, len) {
                        self.worker.drop_tun(dropped.bytes());
                        self.waiting.done(dropped);
                    }
                }
                Err(error) => {
                    self.waiting.give_back(buffer);
                    return self.tun_failed(error);
                }
            }
        }
        Ok(())
    }

    fn tun_failed(&mut self, error: io::Error) -> Result<(), PacketLoopError> {
        if tun::is_gone(&error) {
            return Err(PacketLoopError::TunGone { name: self.io.tun.name().to_owned() });
        }
        if error.kind() == io::ErrorKind::WouldBlock {
            self.failed_reads = 0;
            return Ok(());
        }
        self.failed_reads += 1;
        let why = Why(error);
        tracing::debug!(reason = %why, "a read of the TUN device failed");
        if self.failed_reads >= FAILED_READS {
            return Err(PacketLoopError::Tun { name: self.io.tun.name().to_owned(), why });
        }
        Ok(())
    }

    /// Hands events up while there is room; `false` where some had to wait.
    fn tell_events(&mut self) -> bool {
        loop {
            let permit = match self.events.try_reserve() {
                Ok(permit) => permit,
                Err(mpsc::error::TrySendError::Full(())) => return false,
                Err(mpsc::error::TrySendError::Closed(())) => {
                    while self.worker.poll_event().is_some() {}
                    return true;
                }
            };
            match self.worker.poll_event() {
                Some(event) => permit.send(event),
                None => return true,
            }
        }
    }
}

impl Sink for Io {
    fn send_udp(&mut self, transmit: &Transmit<'_>) -> Result<(), DropReason> {
        let several = transmit.contents.len() > transmit.segment;
        let transmit = udp::Transmit {
            to: transmit.to,
            from: None,
            contents: transmit.contents,
            segment: several.then_some(transmit.segment),
            traffic_class: transmit.traffic_class,
        };
        self.udp.send(&transmit).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => DropReason::Backpressure,
            _ => DropReason::NoPath,
        })
    }

    fn send_stream(&mut self, hub: HubSlot, packed: &[u8]) -> Result<(), DropReason> {
        let holder = self.share.of.of_byte(hub.0);
        if holder != self.share.worker {
            let put = self.doors.put_frames(holder, Frames::ToSend, hub, packed.to_vec());
            return put.map_err(|(reason, _)| reason);
        }
        self.streams.send(hub, packed, self.now).map_err(|refused| match refused {
            StreamRefusal::Full => DropReason::Backpressure,
            StreamRefusal::NoStream => DropReason::NoPath,
        })
    }

    fn hand_over(&mut self, to: WorkerId, what: &Handed<'_>) -> Result<(), DropReason> {
        self.doors.put(to, what)
    }

    fn write_tun(&mut self, header_and_packet: &mut [u8]) -> Result<(), DropReason> {
        match self.tun.send(header_and_packet) {
            Ok(()) => Ok(()),
            Err(error) if tun::is_refused(&error) => {
                self.refused.handle(header_and_packet, error, |segment| self.tun.send(segment))
            }
            Err(error) => {
                self.gone |= tun::is_gone(&error);
                Err(DropReason::Backpressure)
            }
        }
    }
}

#[derive(PartialEq, Eq)]
enum Flow {
    Go,
    Stop,
}

/// What a run of datagrams of `stride` bytes is taken in as, each part with its bits of ECN: all of it at once, or, of a run
/// that is `told` of congestion, the first datagram by itself, with the mark.
fn parts(run: &[u8], stride: usize, ecn: u8, told: bool) -> impl Iterator<Item = (&[u8], u8)> {
    let (first, others) = run.split_at(if told { stride.min(run.len()) } else { 0 });
    [(first, CE), (others, ecn)].into_iter().filter(|(part, _)| !part.is_empty())
}

/// The congestion bits of a traffic class (RFC 3168).
pub(crate) const ECN: u8 = 3;
/// Congestion was experienced.
const CE: u8 = 3;
/// Reads of the TUN that may fail in a row: what passes by itself passes before.
const FAILED_READS: u32 = 1000;
/// Packets read before anything else is looked at.
const TUN_READS: usize = 128;
/// Packets sealed before anything else is looked at.
const TUN_BURST: usize = 32;
/// Their bytes: a packet that comes now waits no longer than this takes to seal, a quarter of a millisecond.
const TUN_BYTES: usize = 192 << 10;
/// What other workers handed over, before anything else is looked at.
const HANDED_BURST: usize = 64;
/// Reads of data streams before anything else is looked at.
const STREAM_BURST: usize = 4;
/// What may wait to be sent on the data streams of a worker.
const STREAM_BOUNDS: StreamBounds = StreamBounds { together: 16 << 20, patience: Duration::from_millis(20) };
/// Orders that may wait.
const ORDERS: usize = 1024;
/// Events that may wait.
pub(crate) const EVENTS: usize = 1024;
/// When to try again to hand events up.
const EVENT_RETRY: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_run_that_is_told_of_congestion_the_first_datagram_alone_is_marked() {
        let all = |run, told| parts(run, 4, 1, told).collect::<Vec<_>>();
        assert_eq!(all(b"aaaabbbbcc", false), [(&b"aaaabbbbcc"[..], 1)]);
        assert_eq!(all(b"aaaabbbbcc", true), [(&b"aaaa"[..], CE), (&b"bbbbcc"[..], 1)]);
        assert_eq!(all(b"aaaa", true), [(&b"aaaa"[..], CE)]);
        assert_eq!(all(b"aa", true), [(&b"aa"[..], CE)]);
    }
}
