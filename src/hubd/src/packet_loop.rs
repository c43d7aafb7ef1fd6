//! The hub's packet thread: one loop around one [`Forwarder`], and no decision in it.
//!
//! Wait for the socket, a data stream, a command or the timeout; read the clock once; hand the batch
//! in; drain. Where datagrams come one by one and often, some of them wait for each other: [`Moderation`] says when.
//! It never sees what is inside a frame, and nothing that could open one is linked here. Each data stream
//! belongs to one worker; what others send on it goes from thread to thread.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use flatlan_hub::{
    AttachmentId, Carried, ForwardCommand, ForwardConfig, ForwardEvent, ForwardSink, ForwardStats, Forwarder, StreamId,
    TrafficClass, UdpBatch,
};
use flatlan_os::{
    clock, panic,
    poll::{Poller, Waker},
    priority::Priority,
    stream::{DataStream, StreamBounds, StreamInbox, StreamSet},
    udp::{RecvBatch, SendBatch, Transmit, UdpSocket, Unsent},
};
use flatlan_relay::{
    bind::LEN,
    frame::{pack, unpack},
};
use flatlan_types::{Endpoint, NetworkId, Share, WorkerId, Workers};
use tokio::sync::{mpsc, oneshot};

use crate::moderation::Moderation;

/// What the control side sends to the packet thread.
pub(crate) enum Order {
    /// For the forwarder.
    Command(ForwardCommand),
    /// The data stream of an attachment will be handed over.
    ExpectStream(StreamId),
    /// Here it is.
    OpenStream(StreamId, AttachmentId, Box<DataStream>),
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
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

struct PacketLoop {
    forwarder: Forwarder,
    io: Io,
    waker: Waker,
    orders: mpsc::Receiver<Order>,
    /// What other workers send on streams of this one.
    room: Room,
    events: mpsc::Sender<(WorkerId, ForwardEvent)>,
}

struct Io {
    udp: UdpSocket,
    /// Short runs that leave together.
    batch: SendBatch,
    /// Those that are this worker's to hold.
    streams: StreamSet<StreamId>,
    owners: BTreeMap<StreamId, AttachmentId>,
    /// A message that is being packed.
    message: Vec<u8>,
    share: Share,
    doors: Vec<Door>,
    /// As the loop read it last.
    now: Instant,
    udp_cut: u64,
}

/// The way to a worker.
#[derive(Clone)]
struct Door {
    frames: mpsc::Sender<(StreamId, Vec<u8>)>,
    /// Bytes that wait behind it, whoever put them there.
    waiting: Arc<AtomicUsize>,
    waker: Waker,
    /// Something was put there since it was last knocked at.
    knocked: bool,
}

impl Door {
    fn put(&mut self, to: StreamId, message: &[u8]) -> bool {
        if self.waiting.load(Ordering::Relaxed) >= MESSAGE_BYTES {
            return false;
        }
        let Ok(permit) = self.frames.try_reserve() else { return false };
        self.waiting.fetch_add(message.len(), Ordering::Relaxed);
        permit.send((to, message.to_vec()));
        self.knocked = true;
        true
    }

    /// Wakes whoever is behind it, where something was put there: once a burst.
    fn knock(&mut self) {
        if std::mem::take(&mut self.knocked) {
            self.waker.wake();
        }
    }
}

/// What others put before a worker.
struct Room {
    frames: mpsc::Receiver<(StreamId, Vec<u8>)>,
    waiting: Arc<AtomicUsize>,
}

impl Room {
    fn take(&mut self) -> Option<(StreamId, Vec<u8>)> {
        let (to, message) = self.frames.try_recv().ok()?;
        self.waiting.fetch_sub(message.len(), Ordering::Relaxed);
        Some((to, message))
    }
}

fn door() -> io::Result<(Door, Room)> {
    let (frames, room) = mpsc::channel(MESSAGES);
    let waiting = Arc::new(AtomicUsize::new(0));
    let door = Door { frames, waiting: waiting.clone(), waker: Waker::new()?, knocked: false };
    Ok((door, Room { frames: room, waiting }))
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
        let (mut doors, mut rooms) = (Vec::new(), Vec::new());
        for _ in workers.all() {
            let (door, room) = door()?;
            doors.push(door);
            rooms.push(room);
        }
        let mut threads = Vec::with_capacity(workers.count());
        for ((worker, udp), room) in workers.all().zip(sockets).zip(rooms) {
            let share = Share { worker, of: workers };
            let io = Io {
                udp,
                batch: SendBatch::new(),
                streams: StreamSet::new(STREAM_BOUNDS)?,
                owners: BTreeMap::new(),
                message: Vec::new(),
                share,
                doors: doors.clone(),
                now,
                udp_cut: 0,
            };
            let forwarder = Forwarder::new(ForwardConfig { share, ..config.clone() }, now);
            threads.push(PacketThread::spawn(forwarder, io, room, &events, &ended)?);
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

    /// Hands an order about a data stream to the worker that holds it.
    pub(crate) async fn order_holder(&self, stream: StreamId, order: Order) {
        let holder = self.workers.of_byte(stream.0 as u8);
        if let Some(thread) = self.threads.get(usize::from(holder.0)) {
            thread.order(order).await;
        }
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
        io: Io,
        room: Room,
        events: &mpsc::Sender<(WorkerId, ForwardEvent)>,
        ended: &mpsc::Sender<io::Result<()>>,
    ) -> io::Result<Self> {
        let waker = io.doors.get(usize::from(io.share.worker.0)).expect("every worker has a door").waker.clone();
        let (orders, orders_rx) = mpsc::channel(ORDERS);
        let (events, ended) = (events.clone(), ended.clone());
        let mut packet_loop = PacketLoop { forwarder, io, waker: waker.clone(), orders: orders_rx, room, events };
        let thread = std::thread::Builder::new().name("hub-packets".to_owned()).spawn(move || {
            let done = panic::caught(|| packet_loop.run());
            // there is room for every thread's end
            let _ = ended.try_send(done.unwrap_or_else(|panicked| Err(io::Error::other(panicked))));
        })?;
        Ok(Self { orders, waker, thread: Some(thread) })
    }

    /// Hands an order over; waits while too many are pending.
    async fn order(&self, order: Order) {
        if self.orders.send(order).await.is_ok() {
            self.waker.wake();
        }
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

impl PacketLoop {
    fn run(&mut self) -> io::Result<()> {
        let mut received = RecvBatch::new();
        let mut inbox = StreamInbox::new();
        let mut priority = Priority::new(clock::now());
        let mut moderation = Moderation::new(clock::now());
        let poller = Poller::new([self.io.udp.as_fd(), self.io.streams.as_fd()], self.waker.clone())?;
        // the socket and the data streams: not asked in vain where the kernel has just told which of them has something
        let mut readable: Option<[bool; 2]> = None;
        loop {
            let now = clock::now();
            priority.update(now);
            self.io.now = now;
            let [udp, streams] = readable.take().unwrap_or([true; 2]);
            let mut busy = false;
            for _ in 0..ORDER_BURST {
                let Ok(order) = self.orders.try_recv() else { break };
                busy = true;
                match order {
                    Order::Command(command) => self.forwarder.apply(command, now),
                    Order::ExpectStream(stream) => self.io.streams.expect(stream),
                    Order::OpenStream(stream, owner, data) => {
                        self.io.owners.insert(stream, owner);
                        self.io.streams.add(stream, *data, now);
                    }
                    Order::CloseStream(stream) => {
                        self.io.owners.remove(&stream);
                        self.io.streams.remove(stream);
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
            busy |= self.send_for_others();
            if streams {
                busy |= self.receive_streams(&mut inbox, &mut priority, now);
            }
            if udp {
                let stats = self.forwarder.stats();
                let (forwarded, refused) = (stats.forwarded, stats.dropped.by_quotas());
                busy |= self.receive(&mut received, &mut priority, now);
                let stats = self.forwarder.stats();
                moderation.handle_read(stats.forwarded.since(forwarded), stats.dropped.by_quotas() - refused, now);
            }
            if self.forwarder.poll_timeout() <= now {
                self.forwarder.handle_timeout(now, &mut self.io);
            }
            self.forwarder.flush(&mut self.io);
            self.io.streams.flush(now);
            self.io.doors.iter_mut().for_each(Door::knock);
            let told_all = self.tell_events();
            if busy {
                continue;
            }
            if let Some(moment) = moderation.pause(clock::now) {
                poller.pause(moment);
            } else {
                let deadline = self.forwarder.poll_timeout();
                let deadline = if told_all { deadline } else { deadline.min(now + EVENT_RETRY) };
                readable = Some(poller.wait(Some(deadline))?.readable);
            }
        }
    }

    fn send_for_others(&mut self) -> bool {
        let mut any = false;
        for _ in 0..HANDED_BURST {
            let Some((stream, message)) = self.room.take() else { break };
            any = true;
            if self.io.streams.send(stream, &message, self.io.now).is_err() {
                self.forwarder.handle_unsent(frames_in(&message));
            }
        }
        any
    }

    fn receive_streams(&mut self, inbox: &mut StreamInbox, priority: &mut Priority, now: Instant) -> bool {
        let mut any = false;
        for _ in 0..STREAM_BURST {
            let Some(stream) = self.io.streams.recv(inbox, now) else { break };
            any = true;
            if let Some(attachment) = self.io.owners.get(&stream).copied() {
                inbox.each(|message| {
                    let before = self.forwarder.stats().forwarded;
                    self.forwarder.handle_stream(attachment, message, now, &mut self.io);
                    priority.count_carried(self.forwarder.stats().forwarded.since(before).bytes);
                });
            }
        }
        any
    }

    /// What waits at the socket, several times what one call brings: the more leaves together. Whether more may wait:
    /// a call that brought less than it could has emptied the socket, and another would be in vain.
    fn receive(&mut self, batch: &mut RecvBatch, priority: &mut Priority, now: Instant) -> bool {
        let mut more = true;
        for _ in 0..UDP_BURST {
            let count = self.io.udp.recv(batch).unwrap_or(0);
            more = count == RecvBatch::BUFFERS;
            for received in batch.received() {
                let batch = UdpBatch {
                    from: received.from,
                    contents: received.contents,
                    stride: received.stride,
                    class: TrafficClass(received.traffic_class),
                };
                let before = self.forwarder.stats().forwarded;
                self.forwarder.handle_udp(batch, now, &mut self.io);
                priority.count_carried(self.forwarder.stats().forwarded.since(before).bytes);
            }
            if !more {
                break;
            }
        }
        self.io.udp_cut = batch.cut();
        more
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
                Some(event) => permit.send((self.io.share.worker, event)),
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
        let mut lost = Carried::default();
        let mut message = std::mem::take(&mut self.message);
        for frame in batch.chunks(stride) {
            if pack(&mut message, frame).is_ok() {
                continue;
            }
            self.send_packed(to, &mut message, &mut lost);
            if pack(&mut message, frame).is_err() {
                lost.packets += 1;
                lost.bytes += frame.len() as u64;
            }
        }
        self.send_packed(to, &mut message, &mut lost);
        self.message = message;
        lost
    }

    fn flush(&mut self) -> Carried {
        carried(self.udp.flush(&mut self.batch))
    }
}

fn carried(unsent: Unsent) -> Carried {
    Carried { packets: unsent.datagrams, bytes: unsent.bytes }
}

fn frames_in(message: &[u8]) -> Carried {
    let mut frames = Carried::default();
    for frame in unpack(message) {
        frames.packets += 1;
        frames.bytes += frame.len() as u64;
    }
    frames
}

impl Io {
    /// Sends a message on a stream, where that takes it, and empties it.
    fn send_packed(&mut self, to: StreamId, message: &mut Vec<u8>, lost: &mut Carried) {
        if message.is_empty() {
            return;
        }
        let holder = self.share.of.of_byte(to.0 as u8);
        let sent = if holder == self.share.worker {
            self.streams.send(to, message, self.now).is_ok()
        } else {
            self.doors.get_mut(usize::from(holder.0)).is_some_and(|door| door.put(to, message))
        };
        if !sent {
            *lost += frames_in(message);
        }
        message.clear();
    }
}

/// Reads of the UDP socket before anything else is looked at.
const UDP_BURST: usize = 4;
/// Reads of data streams before anything else is looked at.
const STREAM_BURST: usize = 4;
/// What other workers handed over, before anything else is looked at.
const HANDED_BURST: usize = 64;
/// Orders followed before anything else is looked at: many nodes that come at once keep no frame waiting.
const ORDER_BURST: usize = 64;
/// What may wait to be sent on the data streams of a worker.
const STREAM_BOUNDS: StreamBounds = StreamBounds { together: 32 << 20, patience: Duration::from_millis(20) };
/// Orders that may wait.
const ORDERS: usize = 4096;
/// Messages that may wait before a worker for streams that it holds.
const MESSAGES: usize = 256;
/// Their bytes.
const MESSAGE_BYTES: usize = 2 << 20;
/// Events that may wait.
const EVENTS: usize = 4096;
/// When to try again to hand events up.
const EVENT_RETRY: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_before_a_worker_is_bounded_in_bytes_and_in_number_and_knocks_once_a_burst() {
        let (mut door, mut room) = door().unwrap();
        let long = vec![7; 60_000];
        let fits = (0..).take_while(|_| door.put(StreamId(1), &long)).count();
        assert_eq!(fits, MESSAGE_BYTES.div_ceil(long.len()));
        door.knock();
        assert!(!door.knocked);
        assert!(!door.put(StreamId(1), b"more") && !door.knocked, "nobody is awakened for nothing");
        for _ in 0..fits {
            assert_eq!(room.take().unwrap().1.len(), long.len());
        }
        assert_eq!(room.take(), None);
        let fits = (0..).take_while(|_| door.put(StreamId(1), b"short")).count();
        assert_eq!(fits, MESSAGES);
    }
}
