//! The hub's packet thread: one loop around one [`Forwarder`], and no decision in it.
//!
//! Wait for the socket, a command, a stream's frames or the timeout; read the clock once; hand the batch
//! in; drain. It never sees what is inside a frame, and nothing that could open one is linked here.

use std::{collections::BTreeMap, io, os::fd::AsFd as _, thread::JoinHandle, time::Instant};

use bytes::{Bytes, BytesMut};
use flatlan_hub::{
    AttachmentId, Carried, ForwardCommand, ForwardConfig, ForwardEvent, ForwardSink, ForwardStats, Forwarder, StreamId,
    TrafficClass, UdpBatch,
};
use flatlan_os::{
    clock, panic,
    poll::{self, Waker},
    priority::Priority,
    stream::SendQueue,
    udp::{RecvBatch, SendBatch, Transmit, UdpSocket, Unsent},
};
use flatlan_relay::{MAX_MESSAGE, bind::LEN, frame::LENGTH_LEN};
use flatlan_types::{Endpoint, NetworkId, Share, WorkerId, Workers};
use tokio::sync::{mpsc, oneshot};

/// What the control side sends to the packet thread.
pub(crate) enum Order {
    /// For the forwarder.
    Command(ForwardCommand),
    /// Frames for this stream go here.
    OpenStream(StreamId, SendQueue),
    /// The stream is gone.
    CloseStream(StreamId),
    /// A binding frame that came to another worker.
    Astray(Endpoint, [u8; LEN]),
    /// The machine's addresses, with the hub's port.
    SetOwn(Vec<Endpoint>),
    /// Tell how things are.
    Report(oneshot::Sender<Report>),
    /// End.
    Stop,
}

/// How things are with the data plane.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) stats: ForwardStats,
    pub(crate) networks: Vec<(NetworkId, Carried)>,
    pub(crate) labels: usize,
    /// Runs of datagrams that the socket refused, sent in single datagrams.
    pub(crate) udp_refused: u64,
    /// Datagrams that were longer than the buffer.
    pub(crate) udp_cut: u64,
}

/// The control side's end of one packet thread.
struct PacketThread {
    orders: mpsc::Sender<Order>,
    frames: mpsc::Sender<(AttachmentId, BytesMut)>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

struct PacketLoop {
    forwarder: Forwarder,
    worker: WorkerId,
    io: Io,
    waker: Waker,
    orders: mpsc::Receiver<Order>,
    frames: mpsc::Receiver<(AttachmentId, BytesMut)>,
    events: mpsc::Sender<(WorkerId, ForwardEvent)>,
}

struct Io {
    udp: UdpSocket,
    /// Short runs that leave together.
    batch: SendBatch,
    streams: BTreeMap<StreamId, SendQueue>,
    udp_cut: u64,
}

/// The control side's end of all packet threads.
pub(crate) struct PacketThreads {
    threads: Vec<PacketThread>,
    workers: Workers,
}

/// What the workers tell, each in its order.
type Events = mpsc::Receiver<(WorkerId, ForwardEvent)>;

impl PacketThreads {
    /// Starts a thread for each socket. The last receiver is told how the first of them ended.
    pub(crate) fn spawn(
        workers: Workers,
        config: &ForwardConfig,
        sockets: Vec<UdpSocket>,
        now: Instant,
    ) -> io::Result<(Self, Events, mpsc::Receiver<io::Result<()>>)> {
        let (events, events_rx) = mpsc::channel(EVENTS);
        let (ended, ended_rx) = mpsc::channel(workers.count());
        let mut threads = Vec::with_capacity(workers.count());
        for (worker, udp) in workers.all().zip(sockets) {
            let config = ForwardConfig { share: Share { worker, of: workers }, ..config.clone() };
            threads.push(PacketThread::spawn(Forwarder::new(config, now), worker, udp, &events, &ended)?);
        }
        Ok((Self { threads, workers }, events_rx, ended_rx))
    }

    /// Hands an order to all of them; waits while too many are pending.
    pub(crate) async fn order(&self, order: impl Fn() -> Order) {
        for thread in &self.threads {
            thread.order(order()).await;
        }
    }

    /// What one worker learned for the others.
    pub(crate) async fn echo(&self, from: WorkerId, event: &ForwardEvent) {
        if let ForwardEvent::BindAstray { from, frame } = event
            && let Some(first) = self.threads.first()
        {
            first.order(Order::Astray(*from, *frame)).await;
        }
        let Some(command) = event.echo() else { return };
        for (thread, _) in self.threads.iter().zip(self.workers.all()).filter(|(_, worker)| *worker != from) {
            thread.order(Order::Command(command.clone())).await;
        }
    }

    /// The end into which the data stream of an attachment puts what it receives: of one worker, and any will do.
    pub(crate) fn inbox(&self, attachment: AttachmentId) -> FrameInbox {
        let worker = self.workers.of_byte(attachment.0 as u8);
        let thread = self.threads.get(usize::from(worker.0)).or_else(|| self.threads.first());
        thread.expect("there is at least one worker").inbox()
    }

    /// How things are with all of them together; `None` where one has ended.
    pub(crate) async fn report(&self) -> Option<Report> {
        let mut all = Report::default();
        for thread in &self.threads {
            all.add(thread.report().await?);
        }
        Some(all)
    }

    /// Ends the threads and waits for them.
    pub(crate) async fn stop(self) {
        for thread in self.threads {
            thread.stop().await;
        }
    }
}

impl Report {
    /// Takes in how things are with another worker; every one has all labels.
    fn add(&mut self, other: Self) {
        let Self { stats, networks, labels, udp_refused, udp_cut } = other;
        self.stats += &stats;
        for (network, carried) in networks {
            match self.networks.iter_mut().find(|(known, _)| *known == network) {
                Some((_, sum)) => *sum += carried,
                None => self.networks.push((network, carried)),
            }
        }
        self.labels = self.labels.max(labels);
        self.udp_refused += udp_refused;
        self.udp_cut += udp_cut;
    }
}

impl PacketThread {
    /// Starts the thread. `ended` is told how its loop ended.
    fn spawn(
        forwarder: Forwarder,
        worker: WorkerId,
        udp: UdpSocket,
        events: &mpsc::Sender<(WorkerId, ForwardEvent)>,
        ended: &mpsc::Sender<io::Result<()>>,
    ) -> io::Result<Self> {
        let waker = Waker::new()?;
        let (orders, orders_rx) = mpsc::channel(ORDERS);
        let (frames, frames_rx) = mpsc::channel(MESSAGES);
        let (events, ended) = (events.clone(), ended.clone());
        let io = Io { udp, batch: SendBatch::new(), streams: BTreeMap::new(), udp_cut: 0 };
        let mut packet_loop =
            PacketLoop { forwarder, worker, io, waker: waker.clone(), orders: orders_rx, frames: frames_rx, events };
        let thread = std::thread::Builder::new().name("hub-packets".to_owned()).spawn(move || {
            let done = panic::caught(|| packet_loop.run());
            // there is room for every thread's end
            let _ = ended.try_send(done.unwrap_or_else(|panicked| Err(io::Error::other(panicked))));
        })?;
        Ok(Self { orders, frames, waker, thread: Some(thread) })
    }

    /// Hands an order over; waits while too many are pending.
    async fn order(&self, order: Order) {
        if self.orders.send(order).await.is_ok() {
            self.waker.wake();
        }
    }

    /// The end into which data streams put what they receive.
    fn inbox(&self) -> FrameInbox {
        FrameInbox { frames: self.frames.clone(), waker: self.waker.clone() }
    }

    /// How things are; `None` where the thread has ended.
    async fn report(&self) -> Option<Report> {
        let (reply, report) = oneshot::channel();
        self.order(Order::Report(reply)).await;
        report.await.ok()
    }

    /// Ends the thread and waits for it.
    async fn stop(mut self) {
        self.order(Order::Stop).await;
        if let Some(thread) = self.thread.take() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

/// Puts messages of data streams before the forwarder.
#[derive(Clone)]
pub(crate) struct FrameInbox {
    frames: mpsc::Sender<(AttachmentId, BytesMut)>,
    waker: Waker,
}

impl FrameInbox {
    /// One message of an attachment's data stream; waits while the forwarder is behind, which TCP tells
    /// the sender.
    pub(crate) async fn put(&self, attachment: AttachmentId, message: Bytes) {
        let message = message.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&*shared));
        if self.frames.send((attachment, message)).await.is_ok() {
            self.waker.wake();
        }
    }
}

impl PacketLoop {
    fn run(&mut self) -> io::Result<()> {
        let mut received = RecvBatch::new();
        let mut priority = Priority::new(clock::now());
        loop {
            let now = clock::now();
            priority.update(now);
            let mut busy = false;
            while let Ok(order) = self.orders.try_recv() {
                busy = true;
                match order {
                    Order::Command(command) => self.forwarder.apply(command, now),
                    Order::OpenStream(stream, sender) => {
                        self.io.streams.insert(stream, sender);
                    }
                    Order::CloseStream(stream) => {
                        self.io.streams.remove(&stream);
                    }
                    Order::Astray(from, mut frame) => {
                        let batch = UdpBatch { from, contents: &mut frame, stride: 0, class: TrafficClass(0) };
                        self.forwarder.handle_udp(batch, now, &mut self.io);
                    }
                    Order::SetOwn(own) => {
                        // other links may segment
                        self.io.udp.reset_offload();
                        self.forwarder.set_own(own, now);
                    }
                    Order::Report(reply) => {
                        let _ = reply.send(self.report());
                    }
                    Order::Stop => return Ok(()),
                }
            }
            for _ in 0..STREAM_BURST {
                let Ok((attachment, mut message)) = self.frames.try_recv() else { break };
                busy = true;
                self.forwarder.handle_stream(attachment, &mut message, now, &mut self.io);
            }
            busy |= self.receive(&mut received, &mut priority, now);
            if self.forwarder.poll_timeout() <= now {
                self.forwarder.handle_timeout(now, &mut self.io);
            }
            self.forwarder.flush(&mut self.io);
            let told_all = self.tell_events();
            if !busy {
                let deadline = self.forwarder.poll_timeout();
                let deadline = if told_all { deadline } else { deadline.min(now + EVENT_RETRY) };
                poll::wait([self.io.udp.as_fd()], &self.waker, Some(deadline))?;
            }
        }
    }

    fn receive(&mut self, batch: &mut RecvBatch, priority: &mut Priority, now: Instant) -> bool {
        let Ok(count) = self.io.udp.recv(batch) else { return false };
        for received in batch.received() {
            priority.count(received.contents.len());
            let batch = UdpBatch {
                from: received.from,
                contents: received.contents,
                stride: received.stride,
                class: TrafficClass(received.traffic_class),
            };
            self.forwarder.handle_udp(batch, now, &mut self.io);
        }
        self.io.udp_cut = batch.cut();
        count > 0
    }

    /// Hands events up while there is room; `false` where some had to wait.
    fn tell_events(&mut self) -> bool {
        loop {
            let permit = match self.events.try_reserve() {
                Ok(permit) => permit,
                Err(mpsc::error::TrySendError::Full(())) => return false,
                Err(mpsc::error::TrySendError::Closed(())) => {
                    while self.forwarder.poll_event().is_some() {}
                    return true;
                }
            };
            match self.forwarder.poll_event() {
                Some(event) => permit.send((self.worker, event)),
                None => return true,
            }
        }
    }

    fn report(&self) -> Report {
        Report {
            stats: self.forwarder.stats().clone(),
            networks: self.forwarder.network_stats().map(|(network, carried)| (*network, carried)).collect(),
            labels: self.forwarder.labels(),
            udp_refused: self.io.udp.refused(),
            udp_cut: self.io.udp_cut,
        }
    }
}

impl ForwardSink for Io {
    fn udp(&mut self, to: Endpoint, batch: &[u8], stride: usize, class: TrafficClass) -> Carried {
        let segment = (stride > 0 && stride < batch.len()).then_some(stride);
        let transmit = Transmit { to, from: None, contents: batch, segment, traffic_class: class.0 };
        carried(self.udp.send_soon(&mut self.batch, &transmit))
    }

    fn stream(&mut self, to: StreamId, batch: &[u8], stride: usize) -> Carried {
        let stride = if stride == 0 { batch.len().max(1) } else { stride };
        let frames = batch.chunks(stride);
        let mut lost = Carried::default();
        let Some(queue) = self.streams.get(&to) else {
            return Carried { packets: frames.len() as u64, bytes: batch.len() as u64 };
        };
        let mut message = BytesMut::with_capacity((batch.len() + frames.len() * LENGTH_LEN).min(MAX_MESSAGE));
        let mut packed = Carried::default();
        for frame in frames {
            let Ok(length) = u16::try_from(frame.len()) else {
                lost.packets += 1;
                lost.bytes += frame.len() as u64;
                continue;
            };
            if message.len() + LENGTH_LEN + frame.len() > MAX_MESSAGE {
                hand_over(queue, &mut message, &mut packed, &mut lost);
            }
            message.extend_from_slice(&length.to_be_bytes());
            message.extend_from_slice(frame);
            packed.packets += 1;
            packed.bytes += frame.len() as u64;
        }
        hand_over(queue, &mut message, &mut packed, &mut lost);
        lost
    }

    fn flush(&mut self) -> Carried {
        carried(self.udp.flush(&mut self.batch))
    }
}

fn carried(unsent: Unsent) -> Carried {
    Carried { packets: unsent.datagrams, bytes: unsent.bytes }
}

/// Gives a message to a stream's task, where its queue is not full.
fn hand_over(queue: &SendQueue, message: &mut BytesMut, packed: &mut Carried, lost: &mut Carried) {
    let frames = std::mem::take(packed);
    if frames.packets > 0 && queue.put(message.split().freeze()).is_err() {
        lost.packets += frames.packets;
        lost.bytes += frames.bytes;
    }
}

/// Messages of data streams handed in before anything else is looked at.
const STREAM_BURST: usize = 16;
/// Orders that may wait.
const ORDERS: usize = 4096;
/// Messages of data streams that may wait.
const MESSAGES: usize = 256;
/// Events that may wait.
const EVENTS: usize = 4096;
/// When to try again to hand events up.
const EVENT_RETRY: std::time::Duration = std::time::Duration::from_millis(10);
