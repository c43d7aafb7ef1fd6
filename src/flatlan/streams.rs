//! The node's streams to hubs: one task each, dialled when the control machine says so.
//!
//! A task dials, tells that the stream is open, and then moves messages both ways. On a data stream the
//! control loop hears the hub's greeting and its answer; what follows waits until the stream is bound, and
//! goes to the packet thread: frames may be right behind the answer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use flatlan_node::StreamId;
use flatlan_os::{
    panic::caught_async,
    stream::{DialConfig, Proxy, SendQueue, SendQueueEnd, StreamError, StreamReceiver, dial, send_queue},
};
use flatlan_relay::Role;
use flatlan_types::{Endpoint, HostPort, HubSlot};
use tokio::{
    sync::{SetOnce, mpsc},
    task::JoinHandle,
};

use crate::workers::StreamInbox;

/// What streams tell the control loop.
pub(crate) enum StreamEvent {
    /// Dialled.
    Opened { stream: StreamId, exporter: [u8; 32], remote: Endpoint },
    /// One message.
    Message { stream: StreamId, bytes: Bytes },
    /// Not to be dialled, or ended.
    Closed { stream: StreamId, reason: String },
}

/// All streams of a node.
pub(crate) struct Streams {
    events: mpsc::Sender<StreamEvent>,
    proxy: Option<Arc<Proxy>>,
    streams: BTreeMap<StreamId, Handle>,
}

struct Handle {
    queue: SendQueue,
    data: Arc<SetOnce<(HubSlot, StreamInbox)>>,
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
        let data = Arc::new(SetOnce::new());
        let greeting = (role == Role::Data).then_some(GREETING);
        let work = run(stream, target, self.proxy.clone(), outgoing, (data.clone(), greeting), self.events.clone());
        let task = tokio::spawn(supervised(stream, work, self.events.clone()));
        self.streams.insert(stream, Handle { queue, data, task });
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

    /// From here on the stream's messages are labelled frames for the packet thread. Returns the end into
    /// which that thread puts what it sends.
    pub(crate) fn bind(&mut self, stream: StreamId, hub: HubSlot, inbox: StreamInbox) -> Option<SendQueue> {
        let handle = self.streams.get(&stream)?;
        let _ = handle.data.set((hub, inbox));
        Some(handle.queue.for_frames(DATA_BYTES, DATA_PATIENCE))
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
    mut outgoing: SendQueueEnd,
    (data, greeting): (Arc<SetOnce<(HubSlot, StreamInbox)>>, Option<usize>),
    events: mpsc::Sender<StreamEvent>,
) -> Option<String> {
    let config = DialConfig { proxy: proxy.as_deref(), ..DialConfig::new(&target) };
    let reason = match dial(config).await {
        Err(error) => error.to_string(),
        Ok(mut open) => {
            let opened = StreamEvent::Opened { stream, exporter: open.exporter, remote: open.remote };
            if events.send(opened).await.is_err() {
                return None;
            }
            let ended = tokio::select! {
                ended = receive(stream, open.receiver, (&data, greeting), &events) => ended,
                ended = outgoing.send_to(&mut open.sender) => ended,
            };
            match ended {
                Ok(()) => "the hub closed the connection".to_owned(),
                Err(error) => error.to_string(),
            }
        }
    };
    Some(reason)
}

/// `greeting`: how many messages of a data stream are for the control loop.
async fn receive(
    stream: StreamId,
    mut receiver: StreamReceiver,
    (data, greeting): (&SetOnce<(HubSlot, StreamInbox)>, Option<usize>),
    events: &mpsc::Sender<StreamEvent>,
) -> Result<(), StreamError> {
    let mut heard = 0;
    while let Some(bytes) = receiver.recv().await? {
        if greeting.is_some_and(|greeting| heard >= greeting) {
            let (hub, inbox) = data.wait().await;
            inbox.put(*hub, bytes).await;
            continue;
        }
        heard += 1;
        if events.send(StreamEvent::Message { stream, bytes }).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// What a hub says on a data stream before frames: `HubHello`, then `Attached` or `Refused`.
const GREETING: usize = 2;
/// Messages that may wait in each direction of a stream.
const MESSAGES: usize = 256;
/// Bytes of control messages that may wait to be sent.
const CONTROL_BYTES: usize = 4 << 20;
/// Bytes of frames that may wait to be sent.
const DATA_BYTES: usize = 4 << 20;
/// How long frames may wait to be sent.
const DATA_PATIENCE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use flatlan_os::stream::{Acceptor, Listener, TlsIdentity};
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
        let (inbox, mut frames) = StreamInbox::alone();
        streams.bind(StreamId(1), HubSlot(3), inbox).unwrap();
        let frame = timeout(Duration::from_secs(10), frames.recv()).await.expect("a frame");
        assert_eq!(frame, Some((HubSlot(3), Bytes::from_static(b"frame"))));
        drop(stream);
    }
}
