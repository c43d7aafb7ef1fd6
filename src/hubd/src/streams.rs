//! The hub's streams: accepted and dialled, one task each.
//!
//! A task moves messages both ways. Once a stream is known to carry frames it is bound: its task sends what is still to
//! be sent, hands the stream over for a packet thread, and stays to hear how it ends.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use bytes::Bytes;
use flatlan_hub::{AttachmentId, DialId, StreamId};
use flatlan_os::{
    panic::caught_async,
    stream::{
        Acceptor, DataStream, DialConfig, Listener, SendQueue, SendQueueEnd, Sent, Stream, StreamEnd, StreamReceiver,
        dial, hand_over, send_queue,
    },
};
use flatlan_relay::Role;
use flatlan_types::{Endpoint, HostPort};
use tokio::{
    sync::{SetOnce, mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::lobby::{Lobby, Place};

/// What streams tell the control loop. Every task has room for one: it is small.
pub(crate) enum StreamEvent {
    /// TLS and WebSocket are done.
    Accepted(Box<Accepted>),
    /// Dialled.
    Dialled { stream: Box<Stream>, dial: DialId, role: Role },
    /// Not to be dialled.
    DialFailed { dial: DialId },
    /// One message.
    Message { stream: StreamId, bytes: Bytes },
    /// Ended.
    Closed { stream: StreamId },
    /// Bound: for a packet thread.
    HandedOver { stream: StreamId, data: Box<DataStream> },
}

/// A stream that came in.
pub(crate) struct Accepted {
    pub(crate) stream: Stream,
    /// The peer's address as TCP knows it.
    pub(crate) remote: Endpoint,
    pub(crate) place: Place,
}

/// All streams of a hub.
pub(crate) struct Streams {
    events: mpsc::Sender<StreamEvent>,
    streams: BTreeMap<StreamId, Handle>,
    next: u64,
}

struct Handle {
    /// Until the stream is handed over.
    queue: Option<SendQueue>,
    bound: Arc<SetOnce<AttachmentId>>,
    /// Dropped with this: no more is heard.
    _open: oneshot::Sender<()>,
    /// While the other end has not proven who it is: says that it has.
    lobby: Option<oneshot::Sender<()>>,
}

impl Streams {
    pub(crate) fn new() -> (Self, mpsc::Receiver<StreamEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        (Self { events, streams: BTreeMap::new(), next: 0 }, receiver)
    }

    /// Accepts connections until dropped, each with the newest certificate. TLS is done in a task of its own for
    /// each; a bounded number of them has not proven who they are.
    pub(crate) fn listen(&self, listener: Listener, acceptor: watch::Receiver<Arc<Acceptor>>) -> JoinHandle<()> {
        let events = self.events.clone();
        let lobby = Lobby::new(STRANGERS);
        tokio::spawn(async move {
            loop {
                let (tcp, remote) = listener.accept().await;
                let mut place = lobby.enter(remote);
                let (events, acceptor) = (events.clone(), acceptor.borrow().clone());
                tokio::spawn(told(async move {
                    let accepted = tokio::select! {
                        accepted = acceptor.accept(tcp) => accepted,
                        () = place.lost() => return tracing::debug!(endpoint = %remote, "too many connections"),
                    };
                    match accepted {
                        Ok(stream) => {
                            let accepted = Box::new(Accepted { stream, remote, place });
                            let _ = events.send(StreamEvent::Accepted(accepted)).await;
                        }
                        Err(error) => tracing::debug!(endpoint = %remote, reason = %error, "connection is no stream"),
                    }
                }));
            }
        })
    }

    /// Begins to dial.
    pub(crate) fn dial(&self, dial_id: DialId, at: HostPort, role: Role) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let event = match Box::pin(caught_async(dial(DialConfig::new(&at)))).await {
                Ok(Ok(stream)) => StreamEvent::Dialled { stream: Box::new(stream), dial: dial_id, role },
                Ok(Err(error)) => {
                    tracing::debug!(hub = %at, reason = %error, "a hub is not reachable");
                    StreamEvent::DialFailed { dial: dial_id }
                }
                Err(panicked) => {
                    tracing::error!(hub = %at, reason = %panicked, "dialling a hub ended");
                    StreamEvent::DialFailed { dial: dial_id }
                }
            };
            let _ = events.send(event).await;
        });
    }

    /// Takes in a stream that was dialled.
    pub(crate) fn add(&mut self, stream: Stream, role: Role) -> StreamId {
        self.take_in(stream, Some(role), None)
    }

    /// Takes in a stream whose other end is a stranger, until [`admit`](Self::admit).
    pub(crate) fn add_stranger(&mut self, stream: Stream, place: Place) -> StreamId {
        self.take_in(stream, None, Some(place))
    }

    /// Whether the other end has not proven who it is.
    pub(crate) fn is_stranger(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|handle| handle.lobby.is_some())
    }

    /// The other end has proven who it is.
    pub(crate) fn admit(&mut self, stream: StreamId) {
        if let Some(lobby) = self.streams.get_mut(&stream).and_then(|handle| handle.lobby.take()) {
            let _ = lobby.send(());
        }
    }

    /// Numbers a stream and starts to move its messages. `role`: what it was dialled for.
    fn take_in(&mut self, stream: Stream, role: Option<Role>, place: Option<Place>) -> StreamId {
        self.next += 1;
        let id = StreamId(self.next);
        let (queue, outgoing) = send_queue(MESSAGES, CONTROL_BYTES);
        let bound = Arc::new(SetOnce::new());
        let greeting = (role == Some(Role::HubData)).then_some(GREETING);
        let (open, closed) = oneshot::channel();
        let until = (bound.clone(), greeting, closed);
        // a task's memory is the size of its innermost part several times over
        let work = converse(Box::pin(until_handed_over(id, stream, outgoing, until, self.events.clone())));
        let (lobby, admitted) = oneshot::channel();
        let lobby = place.is_some().then_some(lobby);
        tokio::spawn(supervised(id, Box::pin(while_welcome(work, place, admitted)), self.events.clone()));
        self.streams.insert(id, Handle { queue: Some(queue), bound, _open: open, lobby });
        id
    }

    /// Sends one message; `false` where the stream takes no more and was closed for that.
    pub(crate) fn send(&mut self, stream: StreamId, bytes: Vec<u8>) -> bool {
        let Some(handle) = self.streams.get(&stream) else { return true };
        if handle.queue.as_ref().is_some_and(|queue| queue.put(bytes.into()).is_ok()) {
            return true;
        }
        self.close(stream);
        false
    }

    /// Closes a stream, after what was sent on it.
    pub(crate) fn close(&mut self, stream: StreamId) {
        // its task ends, and says goodbye, once its queue is empty
        self.streams.remove(&stream);
    }

    /// From here on the stream's messages are frames: it will be handed over, behind what was sent.
    pub(crate) fn bind(&mut self, stream: StreamId, attachment: AttachmentId) {
        if let Some(handle) = self.streams.get(&stream) {
            let _ = handle.bound.set(attachment);
        }
    }

    /// A stream was handed over: whose it is; `None` where it was closed since.
    pub(crate) fn handed_over(&mut self, stream: StreamId) -> Option<AttachmentId> {
        let handle = self.streams.get_mut(&stream)?;
        handle.queue = None;
        handle.bound.get().copied()
    }
}

/// Whatever becomes of a stream, also a bug in its code, the control machine hears that it ended.
async fn supervised(stream: StreamId, work: impl Future<Output = ()>, events: mpsc::Sender<StreamEvent>) {
    told(work).await;
    let _ = events.send(StreamEvent::Closed { stream }).await;
}

/// A bug in a task's code ends that task, and an operator is told.
async fn told(work: impl Future<Output = ()>) {
    if let Err(panicked) = caught_async(work).await {
        tracing::error!(reason = %panicked, "a stream ended");
    }
}

/// Does the work until a stranger has lost its place.
async fn while_welcome(work: impl Future<Output = ()>, place: Option<Place>, admitted: oneshot::Receiver<()>) {
    tokio::pin!(work);
    if let Some(mut place) = place {
        tokio::select! {
            () = &mut work => return,
            () = place.lost() => return,
            _ = admitted => {}
        }
    }
    work.await;
}

/// Stays with a stream that is handed over, to hear how it ends.
async fn converse(until_handed_over: Pin<Box<impl Future<Output = Option<StreamEnd>>>>) {
    // what all that needs is given back before the long wait
    if let Some(end) = until_handed_over.await {
        let _ = end.ended().await;
    }
}

/// Moves messages until the stream is bound, and hands it over; `None` where the stream ended before. `greeting`: after so many messages come frames, which wait until the stream
/// is bound. Whoever dials us sends no frame before our answer, and by then it is bound.
async fn until_handed_over(
    id: StreamId,
    stream: Stream,
    mut outgoing: SendQueueEnd,
    (bound, greeting, mut closed): (Arc<SetOnce<AttachmentId>>, Option<usize>, oneshot::Receiver<()>),
    events: mpsc::Sender<StreamEvent>,
) -> Option<StreamEnd> {
    let (mut sender, mut receiver) = (stream.sender, stream.receiver);
    let handed_over = async {
        bound.wait().await;
    };
    let heard = async {
        tokio::select! {
            biased;
            heard = hear(id, &mut receiver, (&bound, greeting), &events) => heard,
            // what was sent still goes, if the other end takes it
            _ = &mut closed => {
                tokio::time::sleep(LAST_WORDS).await;
                Err(Over::Ended)
            }
        }
    };
    let sent = async {
        match outgoing.send_to(&mut sender, handed_over).await {
            Ok(Sent::Until) => Ok(()),
            Ok(Sent::All) => Err(Over::Closed),
            Err(_) => Err(Over::Ended),
        }
    };
    match tokio::try_join!(heard, sent) {
        Ok((early, ())) => {
            let (data, end) = tokio::select! {
                biased;
                // most streams are never handed over, and have no room for this
                handed = Box::pin(hand_over(sender, receiver, early)) => handed.ok()?,
                // perhaps in the middle of a frame, of which the rest need never come
                _ = closed => return None,
            };
            let _ = events.send(StreamEvent::HandedOver { stream: id, data: Box::new(data) }).await;
            Some(end)
        }
        Err(Over::Closed) => {
            let _ = tokio::time::timeout(CLOSE, sender.close()).await;
            None
        }
        Err(Over::Ended) => None,
    }
}

/// How a stream ended.
enum Over {
    /// Here.
    Closed,
    /// There, or on the way.
    Ended,
}

/// Tells messages until the stream is bound. Returns what came behind the greeting before that, or with it.
async fn hear(
    stream: StreamId,
    receiver: &mut StreamReceiver,
    (bound, greeting): (&SetOnce<AttachmentId>, Option<usize>),
    events: &mpsc::Sender<StreamEvent>,
) -> Result<Vec<Bytes>, Over> {
    let mut heard = 0;
    loop {
        let bytes = tokio::select! {
            biased;
            _ = bound.wait() => return Ok(Vec::new()),
            received = receiver.recv() => received.ok().flatten().ok_or(Over::Ended)?,
        };
        if Some(heard) == greeting {
            bound.wait().await;
            return Ok(vec![bytes]);
        }
        heard += 1;
        events.send(StreamEvent::Message { stream, bytes }).await.map_err(|_| Over::Ended)?;
    }
}

/// What a hub that we dialled says on a data stream before frames: `HubHello`, then `Attached` or `Refused`.
const GREETING: usize = 2;
/// Events that may wait.
const EVENTS: usize = 4096;
/// Messages that may wait on one stream: a node that asks for all its peers gets three for each.
const MESSAGES: usize = 65_536;
/// Bytes of control messages that may wait on one stream.
const CONTROL_BYTES: usize = 16 << 20;
/// Connections at a time that have not proven who they are: what a flood of them may cost.
const STRANGERS: usize = 4096;
/// How long what was sent on a stream may take to leave once that is closed.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(10);
/// How long a goodbye may take.
const CLOSE: std::time::Duration = std::time::Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flatlan_os::stream::TlsIdentity;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
        net::{TcpListener, TcpStream},
        time::timeout,
    };

    use super::*;

    const WAIT: Duration = Duration::from_secs(4);

    #[test]
    fn an_event_for_which_every_task_has_room_is_small() {
        assert!(size_of::<StreamEvent>() <= 64, "{}", size_of::<StreamEvent>());
        let (events, _heard) = mpsc::channel(1);
        let task = supervised(StreamId(1), std::future::ready(()), events);
        assert!(size_of_val(&task) <= 512, "{}", size_of_val(&task));
    }

    #[tokio::test]
    async fn many_short_messages_may_wait_on_a_stream_and_a_bounded_number_of_bytes() {
        let (mut streams, _events) = Streams::new();
        let (queue, _outgoing) = send_queue(MESSAGES, CONTROL_BYTES);
        let handle = Handle { queue: Some(queue), bound: Arc::default(), _open: oneshot::channel().0, lobby: None };
        streams.streams.insert(StreamId(1), handle);
        let (short, long) = (49_152 * 200, 65_536);
        for _ in 0..49_152 {
            assert!(streams.send(StreamId(1), vec![0; 200]));
        }
        for _ in 0..(CONTROL_BYTES - short).div_ceil(long) {
            assert!(streams.send(StreamId(1), vec![0; long]));
        }
        assert!(!streams.send(StreamId(1), vec![0; 1]));
    }

    #[tokio::test]
    async fn a_stream_whose_code_panics_ends_and_the_others_go_on() {
        let (events, mut heard) = mpsc::channel(8);
        let (more, mut wanted) = mpsc::channel::<()>(1);
        let good = events.clone();
        tokio::spawn(supervised(
            StreamId(1),
            async move {
                while wanted.recv().await.is_some() {
                    let message = StreamEvent::Message { stream: StreamId(1), bytes: Bytes::from_static(b"here") };
                    let _ = good.send(message).await;
                }
            },
            events.clone(),
        ));
        let bad = async {
            tokio::task::yield_now().await;
            panic!("a machine that panics");
        };
        tokio::spawn(supervised(StreamId(2), bad, events));
        assert!(matches!(heard.recv().await, Some(StreamEvent::Closed { stream: StreamId(2) })));
        more.send(()).await.unwrap();
        assert!(matches!(heard.recv().await, Some(StreamEvent::Message { stream: StreamId(1), .. })));
        drop(more);
        assert!(matches!(heard.recv().await, Some(StreamEvent::Closed { stream: StreamId(1) })));
        assert!(heard.recv().await.is_none());
    }

    /// What lies between a node and its hub forwards what it is told to.
    #[tokio::test]
    async fn a_stream_that_is_closed_while_half_a_frame_is_read_ends_here_too() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let hub = listener.local().unwrap();
        let acceptor = Acceptor::new(TlsIdentity::self_signed(vec!["hub".to_owned()]).unwrap()).unwrap();
        let accepting = tokio::spawn(async move { Box::pin(acceptor.accept(listener.accept().await.0)).await });
        let between = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = HostPort::from(Endpoint::new(between.local_addr().unwrap()));
        let dialling = tokio::spawn(async move { Box::pin(dial(DialConfig::new(&at))).await });
        let (mut near, _) = between.accept().await.unwrap();
        let mut far = TcpStream::connect(hub).await.unwrap();
        let accepted = tokio::select! {
            accepted = accepting => accepted.unwrap().unwrap(),
            _ = copy_bidirectional(&mut near, &mut far) => panic!("it goes on for ever"),
        };
        let mut node = tokio::select! {
            dialled = dialling => dialled.unwrap().unwrap(),
            _ = copy_bidirectional(&mut near, &mut far) => panic!("it goes on for ever"),
        };
        let (mut streams, mut events) = Streams::new();
        let stream = streams.add(accepted, Role::HubControl);
        for message in [Bytes::from_static(b"hello"), Bytes::from(vec![7; 40_000])] {
            node.sender.feed(message).await.unwrap();
        }
        node.sender.flush().await.unwrap();
        let mut sealed = vec![0; 30_000];
        near.read_exact(&mut sealed).await.unwrap();
        far.write_all(&sealed).await.unwrap();
        let event = timeout(WAIT, events.recv()).await.expect("an event");
        assert!(matches!(event, Some(StreamEvent::Message { bytes, .. }) if bytes == "hello"));
        // its task reads on before anybody else has his turn, and now wants to hand the stream over
        streams.bind(stream, AttachmentId(1));
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        streams.close(stream);
        let event = timeout(WAIT, events.recv()).await.expect("an event");
        assert!(matches!(event, Some(StreamEvent::Closed { stream: ended }) if ended == stream));
        let mut rest = Vec::new();
        // what was not read makes it a reset
        let _ = timeout(WAIT, far.read_to_end(&mut rest)).await.expect("the socket is closed");
    }
}
