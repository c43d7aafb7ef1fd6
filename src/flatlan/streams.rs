//! The node's streams to hubs: one task each, dialled when the control machine says so.
//!
//! A task dials, tells that the stream is open, and then moves messages both ways. A data stream is
//! switched over once it is granted: from then on its messages go between the hub and the packet thread
//! and no longer through the control loop.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use flatlan_node::StreamId;
use flatlan_os::{
    panic::caught_async,
    stream::{DialConfig, Proxy, StreamError, StreamReceiver, StreamSender, dial},
};
use flatlan_types::{Endpoint, HostPort, HubSlot};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::packet_loop::StreamInbox;

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
    sender: mpsc::Sender<Bytes>,
    data: Arc<OnceLock<(HubSlot, StreamInbox)>>,
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
    pub(crate) fn dial(&mut self, stream: StreamId, target: HostPort) {
        let (sender, outgoing) = mpsc::channel(MESSAGES);
        let data = Arc::new(OnceLock::new());
        let work = run(stream, target, self.proxy.clone(), outgoing, data.clone(), self.events.clone());
        let task = tokio::spawn(supervised(stream, work, self.events.clone()));
        self.streams.insert(stream, Handle { sender, data, task });
    }

    /// Sends one message. A stream that takes no more is of no use: it is closed, and the control machine
    /// is told like of any other end.
    pub(crate) fn send(&mut self, stream: StreamId, bytes: Vec<u8>) -> Result<(), &'static str> {
        let Some(handle) = self.streams.get(&stream) else { return Ok(()) };
        match handle.sender.try_send(bytes.into()) {
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
    pub(crate) fn bind(&mut self, stream: StreamId, hub: HubSlot, inbox: StreamInbox) -> Option<mpsc::Sender<Bytes>> {
        let handle = self.streams.get(&stream)?;
        let _ = handle.data.set((hub, inbox));
        Some(handle.sender.clone())
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
    outgoing: mpsc::Receiver<Bytes>,
    data: Arc<OnceLock<(HubSlot, StreamInbox)>>,
    events: mpsc::Sender<StreamEvent>,
) -> Option<String> {
    let config = DialConfig { proxy: proxy.as_deref(), ..DialConfig::new(&target) };
    let reason = match dial(config).await {
        Err(error) => error.to_string(),
        Ok(open) => {
            let opened = StreamEvent::Opened { stream, exporter: open.exporter, remote: open.remote };
            if events.send(opened).await.is_err() {
                return None;
            }
            let ended = tokio::select! {
                ended = receive(stream, open.receiver, &data, &events) => ended,
                ended = send(open.sender, outgoing) => ended,
            };
            match ended {
                Ok(()) => "the hub closed the connection".to_owned(),
                Err(error) => error.to_string(),
            }
        }
    };
    Some(reason)
}

async fn receive(
    stream: StreamId,
    mut receiver: StreamReceiver,
    data: &OnceLock<(HubSlot, StreamInbox)>,
    events: &mpsc::Sender<StreamEvent>,
) -> Result<(), StreamError> {
    while let Some(bytes) = receiver.recv().await? {
        match data.get() {
            Some((hub, inbox)) => inbox.put(*hub, bytes).await,
            None => {
                if events.send(StreamEvent::Message { stream, bytes }).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// Several messages that wait leave with one flush.
async fn send(mut sender: StreamSender, mut outgoing: mpsc::Receiver<Bytes>) -> Result<(), StreamError> {
    while let Some(message) = outgoing.recv().await {
        sender.feed(message).await?;
        while let Ok(message) = outgoing.try_recv() {
            sender.feed(message).await?;
        }
        sender.flush().await?;
    }
    Ok(())
}

/// Messages that may wait in each direction of a stream.
const MESSAGES: usize = 256;
