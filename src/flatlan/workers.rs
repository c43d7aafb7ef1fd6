//! The packet threads of a node: as many as it has workers, each with its socket, its TUN queue and its worker.
//!
//! An order goes to the workers that it concerns ([`Audience`](flatlan_datapath::Audience)), and waits where one is
//! behind; their events come up through one channel. What a worker has for another goes from thread to thread
//! through [`Doors`], which never wait: what finds no room is dropped and counted.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use flatlan_datapath::{Command, DropReason, Event, Handed, Snapshot, Worker};
use flatlan_os::{
    poll::Waker,
    stream::DataStream,
    tun::{Tun, TunError},
    udp::UdpSocket,
};
use flatlan_types::{Endpoint, HubSlot, PeerSlot, Share, WorkerId, Workers};
use flatlan_wg::Sessions;
use tokio::sync::mpsc;

use crate::{
    packet_loop::{EVENTS, Order, PacketLoopError, PacketThread, Report, Unstarted},
    refused::Refused,
};

/// The control side's end of all packet threads.
pub(crate) struct PacketThreads {
    threads: Vec<PacketThread>,
    workers: Workers,
    /// Says to which worker a peer belongs.
    snapshot: Arc<Snapshot>,
}

/// What the threads tell.
pub(crate) struct Tellings {
    /// Of all workers, each worker's in order.
    pub(crate) events: mpsc::Receiver<Event>,
    /// How the first of them ended.
    pub(crate) ended: mpsc::Receiver<Result<(), PacketLoopError>>,
}

impl PacketThreads {
    /// Threads that are still to be started: orders wait until then.
    pub(crate) fn prepare(workers: Workers) -> Result<(Self, Vec<Unstarted>, Tellings), PacketLoopError> {
        let (events, events_rx) = mpsc::channel(EVENTS);
        let (ended, ended_rx) = mpsc::channel(workers.count());
        let (doors, rooms) = Doors::new(workers).map_err(|error| PacketLoopError::Poll(error.into()))?;
        let prepared = rooms.into_iter().map(|room| PacketThread::prepare(room, doors.clone(), &events, &ended));
        let prepared: std::io::Result<Vec<_>> = prepared.collect();
        let (threads, unstarted) = prepared.map_err(|error| PacketLoopError::Poll(error.into()))?.into_iter().unzip();
        let tellings = Tellings { events: events_rx, ended: ended_rx };
        Ok((Self { threads, workers, snapshot: Arc::default() }, unstarted, tellings))
    }

    /// Starts every thread with the worker that `make` makes for it; the TUN has a queue for each.
    pub(crate) fn start<S: Sessions + Send + 'static>(
        &mut self,
        unstarted: Vec<Unstarted>,
        sockets: Vec<UdpSocket>,
        (tun, refused): (Tun, Refused),
        mut make: impl FnMut(Share) -> Worker<S>,
    ) -> Result<(), StartError> {
        let mut queues = Vec::with_capacity(sockets.len());
        for _ in 1..self.workers.count() {
            queues.push(tun.queue().map_err(StartError::Tun)?);
        }
        queues.insert(0, tun);
        let ends = unstarted.into_iter().zip(sockets.into_iter().zip(queues));
        for ((thread, worker), (unstarted, (udp, tun))) in self.threads.iter_mut().zip(self.workers.all()).zip(ends) {
            let share = Share { worker, of: self.workers };
            thread.start(unstarted, make(share), share, (tun, udp, refused.clone())).map_err(StartError::Thread)?;
        }
        Ok(())
    }

    /// Something for the workers that it concerns.
    pub(crate) async fn command(&self, command: Command) {
        let audience = command.audience(&self.snapshot, self.workers);
        for (thread, _) in self.threads.iter().zip(self.workers.all()).filter(|(_, worker)| audience.includes(*worker))
        {
            thread.order(Order::Command(command.clone())).await;
        }
    }

    /// The roster changed.
    pub(crate) async fn snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
        for thread in &self.threads {
            thread.order(Order::Snapshot(self.snapshot.clone())).await;
        }
    }

    /// A data stream to a hub will be handed over: what is sent on it meanwhile waits, a little.
    pub(crate) async fn expect_stream(&self, hub: HubSlot) {
        self.order_holder(hub, Order::ExpectStream(hub)).await;
    }

    /// The data stream to a hub: frames of all workers go there.
    pub(crate) async fn open_stream(&self, hub: HubSlot, stream: Box<DataStream>) {
        self.order_holder(hub, Order::OpenStream(hub, stream)).await;
    }

    /// The data stream is gone.
    pub(crate) async fn close_stream(&self, hub: HubSlot) {
        self.order_holder(hub, Order::CloseStream(hub)).await;
    }

    async fn order_holder(&self, hub: HubSlot, order: Order) {
        let holder = self.workers.of_byte(hub.0);
        if let Some(thread) = self.threads.get(usize::from(holder.0)) {
            thread.order(order).await;
        }
    }

    /// What one worker learned for all.
    pub(crate) async fn echo(&self, event: &Event) {
        if self.workers != Workers::ONE
            && let Some(command) = event.echo()
        {
            self.command(command).await;
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

/// Why the threads do not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// One could not be started.
    #[error("{0}")]
    Thread(PacketLoopError),
    /// The TUN has no queue for each.
    #[error("{0}")]
    Tun(TunError),
}

/// What came to one worker and belongs to another.
pub(crate) enum Belongs {
    /// Datagrams, as the socket received them.
    Datagrams { from: Endpoint, contents: Vec<u8>, stride: usize, ecn: u8 },
    /// A packet for a peer, as it was read from the TUN.
    Packet { peer: PeerSlot, header_and_packet: Vec<u8> },
    /// Frames from the data stream to a hub, with labels of that worker.
    Received { hub: HubSlot, packed: Vec<u8> },
    /// Frames for the data stream to a hub, which that worker holds.
    ToSend { hub: HubSlot, packed: Vec<u8> },
}

/// Where frames of a data stream go.
#[derive(Clone, Copy)]
pub(crate) enum Frames {
    Received,
    ToSend,
}

impl Belongs {
    fn bytes(&self) -> usize {
        match self {
            Self::Datagrams { contents, .. } => contents.len(),
            Self::Packet { header_and_packet, .. } => header_and_packet.len(),
            Self::Received { packed, .. } | Self::ToSend { packed, .. } => packed.len(),
        }
    }
}

/// The ways from one worker to the others.
#[derive(Clone)]
pub(crate) struct Doors {
    doors: Vec<Door>,
}

#[derive(Clone)]
struct Door {
    queue: mpsc::Sender<Belongs>,
    /// Bytes that wait behind it, whoever put them there.
    waiting: Arc<AtomicUsize>,
    waker: Waker,
    /// Something was put there since the last [`Doors::wake`].
    knocked: bool,
}

/// Where a worker finds what others have for it.
pub(crate) struct Room {
    queue: mpsc::Receiver<Belongs>,
    waiting: Arc<AtomicUsize>,
    /// Wakes the worker, for this and everything else.
    pub(crate) waker: Waker,
}

impl Doors {
    fn new(workers: Workers) -> std::io::Result<(Self, Vec<Room>)> {
        let (mut doors, mut rooms) = (Vec::new(), Vec::new());
        for _ in workers.all() {
            let (sender, queue) = mpsc::channel(MAX_HANDED);
            let (waiting, waker) = (Arc::new(AtomicUsize::new(0)), Waker::new()?);
            doors.push(Door { queue: sender, waiting: waiting.clone(), waker: waker.clone(), knocked: false });
            rooms.push(Room { queue, waiting, waker });
        }
        Ok((Self { doors }, rooms))
    }

    /// Puts something before a worker, which hears of it with the next [`Doors::wake`].
    pub(crate) fn put(&mut self, to: WorkerId, what: &Handed<'_>) -> Result<(), DropReason> {
        let place = self.place(to)?;
        let belongs = match *what {
            Handed::Datagrams { from, contents, stride, ecn } => {
                Belongs::Datagrams { from, contents: contents.to_vec(), stride, ecn }
            }
            Handed::Packet { peer, header_and_packet } => {
                Belongs::Packet { peer, header_and_packet: header_and_packet.to_vec() }
            }
        };
        place.put(belongs);
        Ok(())
    }

    /// Puts frames of a data stream before a worker, or gives them back.
    pub(crate) fn put_frames(
        &mut self,
        to: WorkerId,
        what: Frames,
        hub: HubSlot,
        packed: Vec<u8>,
    ) -> Result<(), (DropReason, Vec<u8>)> {
        match self.place(to) {
            Ok(place) => {
                place.put(match what {
                    Frames::Received => Belongs::Received { hub, packed },
                    Frames::ToSend => Belongs::ToSend { hub, packed },
                });
                Ok(())
            }
            Err(reason) => Err((reason, packed)),
        }
    }

    fn place(&mut self, to: WorkerId) -> Result<Place<'_>, DropReason> {
        let door = self.doors.get_mut(usize::from(to.0)).ok_or(DropReason::Backpressure)?;
        let full = door.waiting.load(Ordering::Relaxed) >= MAX_HANDED_BYTES;
        let permit = door.queue.try_reserve().ok().filter(|_| !full).ok_or(DropReason::Backpressure)?;
        Ok(Place { permit, waiting: &door.waiting, knocked: &mut door.knocked })
    }

    /// Wakes those before whom something was put: once a burst.
    pub(crate) fn wake(&mut self) {
        for door in self.doors.iter_mut().filter(|door| door.knocked) {
            door.knocked = false;
            door.waker.wake();
        }
    }
}

/// Room for one thing behind a door.
struct Place<'a> {
    permit: mpsc::Permit<'a, Belongs>,
    waiting: &'a AtomicUsize,
    knocked: &'a mut bool,
}

impl Place<'_> {
    fn put(self, belongs: Belongs) {
        self.waiting.fetch_add(belongs.bytes(), Ordering::Relaxed);
        self.permit.send(belongs);
        *self.knocked = true;
    }
}

impl Room {
    /// The next thing that belongs here.
    pub(crate) fn take(&mut self) -> Option<Belongs> {
        let belongs = self.queue.try_recv().ok()?;
        self.waiting.fetch_sub(belongs.bytes(), Ordering::Relaxed);
        Some(belongs)
    }
}

/// What may wait before one worker: for a burst of the others.
const MAX_HANDED: usize = 1024;
const MAX_HANDED_BYTES: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_finds_no_room_before_a_worker_is_refused_and_there_is_room_again_when_it_was_taken() {
        let workers = Workers::new(2).unwrap();
        let (mut doors, mut rooms) = Doors::new(workers).unwrap();
        let packet = vec![0; 60_000];
        let what = Handed::Packet { peer: PeerSlot(7), header_and_packet: &packet };
        let fits = (0..MAX_HANDED).take_while(|_| doors.put(WorkerId(1), &what).is_ok()).count();
        assert!(fits * packet.len() >= MAX_HANDED_BYTES && (fits - 1) * packet.len() < MAX_HANDED_BYTES, "{fits}");
        assert_eq!(doors.put(WorkerId(1), &what), Err(DropReason::Backpressure));
        assert_eq!(doors.put(WorkerId(0), &what), Ok(()));
        let taken = rooms[1].take().unwrap();
        assert!(
            matches!(taken, Belongs::Packet { peer: PeerSlot(7), header_and_packet } if header_and_packet == packet)
        );
        assert_eq!(doors.put(WorkerId(1), &what), Ok(()));
        while rooms[1].take().is_some() {}
        let small = Handed::Packet { peer: PeerSlot(7), header_and_packet: &[] };
        let fits = (0..2 * MAX_HANDED).take_while(|_| doors.put(WorkerId(1), &small).is_ok()).count();
        assert_eq!(fits, MAX_HANDED);
    }
}
