//! The node's streams to hubs: one task each, dialled when the control machine says so.
//!
//! A task dials, tells that the stream is open, and then moves messages both ways. On a data stream the
//! control loop hears the hub's greeting and its answer; what follows waits until the stream is bound. Then the
//! task hands the stream over, for a packet thread: frames may be right behind the answer. It stays to hear how the
//! stream ends.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use flatlan_node::StreamId;
use flatlan_os::{
    panic::caught_async,
    stream::{
        DataStream, DialConfig, Proxy, SendQueue, SendQueueEnd, Stream, StreamError, StreamReceiver, dial, hand_over,
        send_queue,
    },
};
use flatlan_relay::Role;
use flatlan_types::{Endpoint, HostPort, HubSlot};
use tokio::{
    sync::{SetOnce, mpsc},
    task::JoinHandle,
};

/// What streams tell the control loop.
pub(crate) enum StreamEvent {
    /// Dialled.
    Opened { stream: StreamId, exporter: [u8; 32], remote: Endpoint },
    /// One message.
    Message { stream: StreamId, bytes: Bytes },
    /// Not to be dialled, or ended.
    Closed { stream: StreamId, reason: String },
    /// Bound: for the packet thread.
    HandedOver { stream: StreamId, data: Box<DataStream> },
}

/// All streams of a node.
pub(crate) struct Streams {
    events: mpsc::Sender<StreamEvent>,
    proxy: Option<Arc<Proxy>>,
    streams: BTreeMap<StreamId, Handle>,
}

struct Handle {
    queue: SendQueue,
    bound: Arc<SetOnce<HubSlot>>,
    task: JoinHandle<()>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Streams {
    pub(crate) fn new(proxy: Option<Proxy>) -> (Self, mpsc::Receiver<StreamEvent>) {
        let (events, receiver) = mpsc::channel(MESSAGES);
        (Self { events, proxy: proxy.map(Arc::new), streams: BTreeMap::new() }, receiver)
    }

    /// Begins to dial; the result comes as an event.
    pub(crate) fn dial(&mut self, stream: StreamId, target: HostPort, role: Role) {
        let (queue, outgoing) = send_queue(MESSAGES, CONTROL_BYTES);
        let bound = Arc::new(SetOnce::new());
        let greeting = (role == Role::Data).then_some(GREETING);
        let work = run(stream, target, self.proxy.clone(), outgoing, (bound.clone(), greeting), self.events.clone());
        let task = tokio::spawn(supervised(stream, work, self.events.clone()));
        self.streams.insert(stream, Handle { queue, bound, task });
    }

    /// Sends one message. A stream that takes no more is of no use: it is closed, and the control machine
    /// is told like of any other end.
    pub(crate) fn send(&mut self, stream: StreamId, bytes: Vec<u8>) -> Result<(), &'static str> {
        let Some(handle) = self.streams.get(&stream) else { return Ok(()) };
        match handle.queue.put(bytes.into()) {
            Ok(()) => Ok(()),
            Err(_) => {
                self.streams.remove(&stream);
                Err("the hub does not take what it is sent")
            }
        }
    }

    /// Closes a stream; nothing is heard of it again.
    pub(crate) fn close(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
    }

    /// From here on the stream's messages are labelled frames: it will be handed over, behind what was sent.
    pub(crate) fn bind(&mut self, stream: StreamId, hub: HubSlot) -> bool {
        let handle = self.streams.get(&stream);
        handle.is_some_and(|handle| handle.bound.set(hub).is_ok())
    }

    /// To which hub a stream leads that was handed over; `None` where it was closed since.
    pub(crate) fn bound(&self, stream: StreamId) -> Option<HubSlot> {
        self.streams.get(&stream)?.bound.get().copied()
    }
}

/// Whatever becomes of a stream, also a bug in its code, the control machine hears that it ended.
async fn supervised(stream: StreamId, work: impl Future<Output = Option<String>>, events: mpsc::Sender<StreamEvent>) {
    let reason = caught_async(work).await.unwrap_or_else(|panicked| {
        tracing::error!(reason = %panicked, "a stream to a hub ended");
        Some(panicked.to_string())
    });
    if let Some(reason) = reason {
        let _ = events.send(StreamEvent::Closed { stream, reason }).await;
    }
}

/// Why the stream ended; `None` where nobody listens any more.
async fn run(
    stream: StreamId,
    target: HostPort,
    proxy: Option<Arc<Proxy>>,
    outgoing: SendQueueEnd,
    until: (Arc<SetOnce<HubSlot>>, Option<usize>),
    events: mpsc::Sender<StreamEvent>,
) -> Option<String> {
    let config = DialConfig { proxy: proxy.as_deref(), ..DialConfig::new(&target) };
    let open = match Box::pin(dial(config)).await {
        Ok(open) => open,
        Err(error) => return Some(error.to_string()),
    };
    let opened = StreamEvent::Opened { stream, exporter: open.exporter, remote: open.remote };
    if events.send(opened).await.is_err() {
        return None;
    }
    match Box::pin(converse(stream, open, outgoing, until, &events)).await {
        Over::Broken(error) => Some(error.to_string()),
        Over::Goodbye => Some("the hub closed the connection".to_owned()),
    }
}

/// How a stream ended.
enum Over {
    Broken(StreamError),
    Goodbye,
}

impl From<Result<(), StreamError>> for Over {
    fn from(ended: Result<(), StreamError>) -> Self {
        ended.map_or_else(Self::Broken, |()| Self::Goodbye)
    }
}

/// Moves messages until the stream is bound, and hands it over. What comes behind `greeting` messages is not told.
async fn converse(
    stream: StreamId,
    open: Stream,
    mut outgoing: SendQueueEnd,
    (bound, greeting): (Arc<SetOnce<HubSlot>>, Option<usize>),
    events: &mpsc::Sender<StreamEvent>,
) -> Over {
    let (mut sender, mut receiver) = (open.sender, open.receiver);
    let handed_over = async {
        bound.wait().await;
    };
    let heard = hear(stream, &mut receiver, (&bound, greeting), events);
    let sent = async {
        let sent = outgoing.send_to(&mut sender, handed_over).await;
        sent.map(drop).map_err(Over::Broken)
    };
    let early = match tokio::try_join!(heard, sent) {
        Ok((early, ())) => early,
        Err(over) => return over,
    };
    match hand_over(sender, receiver, early).await {
        Ok((data, end)) => {
            let _ = events.send(StreamEvent::HandedOver { stream, data: Box::new(data) }).await;
            end.ended().await.into()
        }
        Err(error) => Over::Broken(error),
    }
}

/// Tells messages until the stream is bound. Returns what came behind the greeting before that.
async fn hear(
    stream: StreamId,
    receiver: &mut StreamReceiver,
    (bound, greeting): (&SetOnce<HubSlot>, Option<usize>),
    events: &mpsc::Sender<StreamEvent>,
) -> Result<Vec<Bytes>, Over> {
    let mut heard = 0;
    loop {
        let bytes = tokio::select! {
            biased;
            _ = bound.wait() => return Ok(Vec::new()),
            received = receiver.recv() => received.map_err(Over::Broken)?.ok_or(Over::Goodbye)?,
        };
        if Some(heard) == greeting {
            bound.wait().await;
            return Ok(vec![bytes]);
        }
        heard += 1;
        events.send(StreamEvent::Message { stream, bytes }).await.map_err(|_| Over::Goodbye)?;
    }
}

/// What a hub says on a data stream before frames: `HubHello`, then `Attached` or `Refused`.
const GREETING: usize = 2;
/// Messages that may wait in each direction of a stream, before it is handed over.
const MESSAGES: usize = 256;
/// Bytes of control messages that may wait to be sent.
const CONTROL_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flatlan_os::{
        clock,
        stream::{Acceptor, Listener, StreamBounds, StreamInbox, StreamSet, TlsIdentity},
    };
    use tokio::time::timeout;

    use super::*;

    /// The hub says its two words and sends a frame at once; the control loop is slow.
    #[tokio::test]
    async fn a_frame_right_behind_the_hubs_answer_waits_for_the_packet_thread() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let at = HostPort::from(Endpoint::new(listener.local().unwrap()));
        let identity = TlsIdentity::self_signed(vec!["hub".to_owned()]).unwrap();
        let acceptor = Acceptor::new(identity).unwrap();
        let hub = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await;
            let mut stream = Box::pin(acceptor.accept(tcp)).await.unwrap();
            for message in ["hello", "attached", "frame"] {
                stream.sender.feed(Bytes::from_static(message.as_bytes())).await.unwrap();
            }
            stream.sender.flush().await.unwrap();
            stream
        });
        let (mut streams, mut events) = Streams::new(None);
        streams.dial(StreamId(1), at, Role::Data);
        let next = async |events: &mut mpsc::Receiver<StreamEvent>| {
            timeout(Duration::from_secs(10), events.recv()).await.expect("an event").expect("an open queue")
        };
        assert!(matches!(next(&mut events).await, StreamEvent::Opened { .. }));
        for word in ["hello", "attached"] {
            let event = next(&mut events).await;
            assert!(matches!(&event, StreamEvent::Message { bytes, .. } if bytes == word), "{word}");
        }
        let stream = hub.await.unwrap();
        assert!(streams.bind(StreamId(1), HubSlot(3)));
        let event = next(&mut events).await;
        let StreamEvent::HandedOver { stream: StreamId(1), data } = event else { panic!("the stream") };
        assert_eq!(streams.bound(StreamId(1)), Some(HubSlot(3)));
        let bounds = StreamBounds { together: 1 << 20, patience: Duration::from_secs(1) };
        let (mut set, mut inbox) = (StreamSet::new(bounds).unwrap(), StreamInbox::new());
        set.add(HubSlot(3), *data, clock::now());
        let frame = async {
            let mut frames = Vec::new();
            while frames.is_empty() {
                set.recv(&mut inbox, clock::now());
                inbox.each(|message| frames.push(message.to_vec()));
                tokio::task::yield_now().await;
            }
            frames
        };
        assert_eq!(timeout(Duration::from_secs(10), frame).await.expect("a frame"), [b"frame"]);
        // and the end of it is heard
        drop(stream);
        let ended = async {
            loop {
                set.recv(&mut inbox, clock::now());
                inbox.each(|message| panic!("{message:?}"));
                if let Ok(StreamEvent::Closed { stream: StreamId(1), reason }) = events.try_recv() {
                    return reason;
                }
                tokio::task::yield_now().await;
            }
        };
        let reason = timeout(Duration::from_secs(10), ended).await.expect("an end");
        assert!(reason.starts_with("the connection broke: "), "{reason}");
    }
}
