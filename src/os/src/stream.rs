//! A stream between a node and a hub, or two hubs: WebSocket over TLS 1.3 over TCP.
//!
//! It looks like any HTTPS site to what lies between: port 443, optionally through an HTTP CONNECT proxy.
//! Dialling goes: addresses (the proxy's, where there is one), TCP to all of them in turn until one answers
//! (RFC 8305), CONNECT, TLS, WebSocket. Both ends then hold the same [`Stream::exporter`], and a stream of
//! binary messages each way.
//!
//! TLS hides and protects the bytes; it does **not** say who the other end is. Any certificate is accepted,
//! as long as the other end has its key. Who the hub is, its roster key says by signing the exporter, which
//! is different on both sides of anything in the middle. That happens above this module.

mod backlog;
mod framing;
mod listen;
mod polled;
mod proxy;
mod queue;
mod tap;
mod tls;

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use flatlan_types::{Endpoint, HostPort};
use futures_util::{
    SinkExt, StreamExt,
    stream::{FuturesUnordered, SplitSink, SplitStream},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::{TcpSocket, TcpStream},
    time,
};
use tokio_rustls::TlsStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, protocol::WebSocketConfig},
};

pub use backlog::StreamBounds;
pub use listen::{ListenError, Listener};
pub use polled::{DataStream, HAND_OVER_TIMEOUT, StreamEnd, StreamInbox, StreamRefusal, StreamSet, hand_over};
pub use proxy::{ParseProxyError, Proxy};
pub use queue::{QueueFull, SendQueue, SendQueueEnd, Sent, send_queue};
use tap::Tap;
pub use tls::{Acceptor, IdentityError, TlsIdentity};

use crate::{
    ExitClass, Why,
    netns::NetNs,
    resolve::{ResolveError, interleave, resolve},
};

/// An open stream.
#[derive(Debug)]
pub struct Stream {
    /// Bytes that both ends, and nobody else, have from the TLS handshake (RFC 8446, section 7.5).
    pub exporter: [u8; 32],
    /// The other end of the TCP connection: the proxy, where there is one.
    pub remote: Endpoint,
    /// Our end of it.
    pub local: Endpoint,
    /// Sends messages.
    pub sender: StreamSender,
    /// Receives messages.
    pub receiver: StreamReceiver,
}

/// The sending half.
#[derive(Debug)]
pub struct StreamSender(SplitSink<Socket, Message>);

/// The receiving half. It must be polled for the other end's pings and its close to be answered.
#[derive(Debug)]
pub struct StreamReceiver(SplitStream<Socket>);

/// The TLS part is more than a kilobyte, and whatever holds it on the way would have room for several.
type Socket = WebSocketStream<Tap<Box<TlsStream<TcpStream>>>>;

/// Where and how to dial.
#[derive(Debug)]
pub struct DialConfig<'a> {
    /// The hub.
    pub target: &'a HostPort,
    /// Where TCP goes (the proxy's addresses, where there is one); empty: resolve it here.
    pub addresses: Vec<Endpoint>,
    /// A proxy to go through. It is the proxy then that resolves the hub's name.
    pub proxy: Option<&'a Proxy>,
    /// The name to show in the TLS handshake; the target's own where not given.
    pub sni: Option<&'a str>,
    /// How long all of it may take.
    pub timeout: Duration,
    /// The network namespace to dial from; the process's own where not given.
    pub netns: Option<&'a NetNs>,
}

impl<'a> DialConfig<'a> {
    /// Dials `target` directly, within [`DIAL_TIMEOUT`].
    pub fn new(target: &'a HostPort) -> Self {
        Self { target, addresses: Vec::new(), proxy: None, sni: None, timeout: DIAL_TIMEOUT, netns: None }
    }
}

/// Dials. Dropping the future gives up and leaves nothing behind.
///
/// # Errors
/// The last address's reason, or that time ran out.
pub async fn dial(config: DialConfig<'_>) -> Result<Stream, StreamError> {
    let stream = time::timeout(config.timeout, dial_patiently(&config)).await;
    stream.map_err(|_| StreamError::TimedOut { target: config.target.clone(), timeout: config.timeout })?
}

async fn dial_patiently(config: &DialConfig<'_>) -> Result<Stream, StreamError> {
    let hop = config.proxy.map_or(config.target, Proxy::address);
    let addresses = if config.addresses.is_empty() {
        resolve(hop, config.timeout).await.map_err(StreamError::Resolve)?
    } else {
        interleave(config.addresses.iter().copied())
    };
    let mut tcp =
        connect(&addresses, config.netns).await.map_err(|why| StreamError::Connect { target: hop.clone(), why })?;
    if let Some(proxy) = config.proxy {
        proxy.tunnel(&mut tcp, config.target).await?;
    }
    let tls = tls::connect(tcp, config.sni.unwrap_or_else(|| config.target.host()))
        .await
        .map_err(|why| StreamError::Tls { with: config.target.to_string(), why: why.into() })?;
    let uri = format!("wss://{}{PATH}", config.target);
    let upgraded = tokio_tungstenite::client_async_with_config(uri, Tap::new(tls), Some(websocket_config())).await;
    let (socket, _) =
        upgraded.map_err(|error| StreamError::NotFlatlan { target: config.target.clone(), why: Box::new(error) })?;
    Stream::new(socket)
}

/// Connects to whichever address answers first; the next is tried [`HEAD_START`] after the one before it,
/// or as soon as that failed.
async fn connect(addresses: &[Endpoint], netns: Option<&NetNs>) -> Result<TcpStream, Why> {
    let mut waiting = addresses.iter();
    let mut trying = FuturesUnordered::new();
    let mut last = Why(io::ErrorKind::AddrNotAvailable.into());
    loop {
        if let Some(address) = waiting.next() {
            trying.push(connect_one(address.socket_addr(), netns));
        } else if trying.is_empty() {
            return Err(last);
        }
        let head_start =
            async { if waiting.len() > 0 { time::sleep(HEAD_START).await } else { std::future::pending().await } };
        tokio::select! {
            done = trying.next() => match done {
                Some(Ok(tcp)) => return Ok(tcp),
                Some(Err(error)) => last = error.into(),
                None => {}
            },
            () = head_start => {}
        }
    }
}

async fn connect_one(address: SocketAddr, netns: Option<&NetNs>) -> io::Result<TcpStream> {
    let open = || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = match netns {
        Some(netns) => netns.run(open).map_err(io::Error::other)??,
        None => open()?,
    };
    prepare(&SockRef::from(&socket))?;
    socket.connect(address).await
}

/// What every TCP connection gets: no delay, death noticed in seconds, CUBIC, and little waiting unsent in the
/// kernel, where it could no longer be dropped or overtaken.
fn prepare(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(DEAD_AFTER))?;
    socket.set_tcp_notsent_lowat(MOST_UNSENT)?;
    // where the kernel has it not, its default will do
    let _ = socket.set_tcp_congestion(CONGESTION);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE).with_retries(3))
}

impl Stream {
    fn new(mut socket: Socket) -> Result<Self, StreamError> {
        match &mut **socket.get_mut().get_mut() {
            TlsStream::Client(stream) => stream.get_mut().1.set_buffer_limit(Some(SEAL_AHEAD)),
            TlsStream::Server(stream) => stream.get_mut().1.set_buffer_limit(Some(SEAL_AHEAD)),
        }
        let closed = |e: io::Error| StreamError::Closed { why: e.into() };
        if !socket.get_ref().is_between() {
            // whoever ends its head as nobody does would say what is a frame
            return Err(closed(io::Error::new(io::ErrorKind::InvalidData, "the HTTP head is malformed")));
        }
        let tls = |e: rustls::Error| StreamError::Tls { with: "the other end".into(), why: io::Error::other(e).into() };
        let (tcp, session) = match &**socket.get_ref().get_ref() {
            TlsStream::Client(stream) => {
                let (tcp, session) = stream.get_ref();
                (tcp, session.export_keying_material([0; 32], EXPORTER, None))
            }
            TlsStream::Server(stream) => {
                let (tcp, session) = stream.get_ref();
                (tcp, session.export_keying_material([0; 32], EXPORTER, None))
            }
        };
        let exporter = session.map_err(tls)?;
        let remote = Endpoint::new(tcp.peer_addr().map_err(closed)?);
        let local = Endpoint::new(tcp.local_addr().map_err(closed)?);
        let (sender, receiver) = socket.split();
        Ok(Self { exporter, remote, local, sender: StreamSender(sender), receiver: StreamReceiver(receiver) })
    }
}

impl StreamSender {
    /// Sends one message and waits until the kernel has it.
    ///
    /// # Errors
    /// Where the stream has ended, or the message is longer than [`MOST_MESSAGE`].
    pub async fn send(&mut self, message: Bytes) -> Result<(), StreamError> {
        self.feed(message).await?;
        self.flush().await
    }

    /// Puts one message into the write buffer; [`flush`](Self::flush) after the last of several.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn feed(&mut self, message: Bytes) -> Result<(), StreamError> {
        if message.len() > MOST_MESSAGE {
            return Err(StreamError::TooLong { length: message.len() });
        }
        self.0.feed(Message::Binary(message)).await.map_err(closed)
    }

    /// Waits until the kernel has everything.
    ///
    /// # Errors
    /// Where the stream has ended.
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        self.0.flush().await.map_err(closed)
    }

    /// Says goodbye. Dropping both halves closes as well, without a word.
    ///
    /// # Errors
    /// Where the stream had ended already.
    pub async fn close(&mut self) -> Result<(), StreamError> {
        self.0.close().await.map_err(closed)
    }
}

impl StreamReceiver {
    /// The next message; `None` where the other end has said goodbye. Safe to cancel.
    ///
    /// # Errors
    /// Where the stream broke, or carried something else than binary messages of at most [`MOST_MESSAGE`].
    pub async fn recv(&mut self) -> Result<Option<Bytes>, StreamError> {
        next_message(&mut self.0).await
    }
}

async fn next_message(
    socket: &mut (impl futures_util::Stream<Item = tungstenite::Result<Message>> + Unpin),
) -> Result<Option<Bytes>, StreamError> {
    loop {
        match heard(socket.next().await)? {
            Heard::Message(message) => return Ok(Some(message)),
            Heard::Nothing => {}
            Heard::Goodbye => return Ok(None),
        }
    }
}

/// What a read of a socket brought.
enum Heard {
    Message(Bytes),
    Nothing,
    Goodbye,
}

fn heard(read: Option<tungstenite::Result<Message>>) -> Result<Heard, StreamError> {
    match read {
        Some(Ok(Message::Binary(message))) => Ok(Heard::Message(message)),
        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Ok(Heard::Nothing),
        Some(Ok(Message::Text(_))) => Err(StreamError::NotBinary),
        Some(Ok(Message::Close(_))) | None => Ok(Heard::Goodbye),
        Some(Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed)) => Ok(Heard::Goodbye),
        Some(Err(error)) => Err(closed(error)),
    }
}

fn closed(error: tungstenite::Error) -> StreamError {
    let why = match error {
        tungstenite::Error::Io(error) => error,
        error => io::Error::other(error),
    };
    StreamError::Closed { why: why.into() }
}

fn websocket_config() -> WebSocketConfig {
    // The defaults are for a few large streams; a hub has thousands.
    let mut config = WebSocketConfig::default();
    // all of it is cleared before each read, and so resident in every stream
    config.read_buffer_size = 1 << 8;
    config.write_buffer_size = 16 << 10;
    config.max_write_buffer_size = 4 * MOST_MESSAGE;
    config.max_message_size = Some(MOST_MESSAGE);
    config.max_frame_size = Some(MOST_MESSAGE);
    config
}

/// How long dialling may take.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest message.
pub const MOST_MESSAGE: usize = 70 << 10;
/// How long accepting may take: whoever is slower holds a place for nothing.
pub const ACCEPT_TIMEOUT: Duration = Duration::from_secs(5);
/// How much may be sealed before the kernel takes it, in bytes: a message and what it is wrapped in, whole.
const SEAL_AHEAD: usize = 2 * MOST_MESSAGE;
const PATH: &str = "/flatlan";
const EXPORTER: &[u8] = b"EXPORTER-flatlan-attach-v1";
const HEAD_START: Duration = Duration::from_millis(250);
const DEAD_AFTER: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(5);
const MOST_UNSENT: u32 = 128 << 10;
/// How a stream meets congestion, whatever the machine's default is (RFC 9438). BBR would model the way by what the
/// flows inside let through, and pace by timers to that.
const CONGESTION: &[u8] = b"cubic";

/// Why there is no stream, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// It broke.
    #[error("the connection broke: {why}")]
    Closed {
        /// How.
        why: Why,
    },
    /// No TCP.
    #[error("cannot connect to {target}: {why}: check that it runs, and that no firewall is in the way")]
    Connect {
        /// The hub, or the proxy.
        target: HostPort,
        /// The kernel's reason.
        why: Why,
    },
    /// A text message.
    #[error("the other end sent a text message: it does not speak this protocol")]
    NotBinary,
    /// No WebSocket at the far end.
    #[error("cannot attach to {target}: {why}: is it a flatlan hub?")]
    NotFlatlan {
        /// The hub.
        target: HostPort,
        /// What it said instead.
        why: Box<tungstenite::Error>,
    },
    /// The proxy closed, or answered something that is no HTTP.
    #[error("proxy {proxy} broke off: {why}: is it an HTTP proxy?")]
    Proxy {
        /// Its address.
        proxy: HostPort,
        /// How.
        why: Why,
    },
    /// 407.
    #[error(
        "proxy {proxy} wants a user and a password: give them with --proxy http://USER@HOST:PORT --proxy-password-file FILE"
    )]
    ProxyAuth {
        /// Its address.
        proxy: HostPort,
    },
    /// Any other status.
    #[error("proxy {proxy} refused to connect to {target}: HTTP status {status}: ask for port {} to be allowed", target.port())]
    ProxyRefused {
        /// Its address.
        proxy: HostPort,
        /// Where to.
        target: HostPort,
        /// What it answered.
        status: u16,
    },
    /// No address.
    #[error("{0}")]
    Resolve(ResolveError),
    /// All in all too slow.
    #[error(
        "cannot connect to {target}: no answer within {timeout:?}: check that it runs, and that no firewall is in the way"
    )]
    TimedOut {
        /// The hub.
        target: HostPort,
        /// How long it was waited.
        timeout: Duration,
    },
    /// No TLS 1.3.
    #[error("cannot open TLS with {with}: {why}: it must speak TLS 1.3 itself, without a decrypting middlebox")]
    Tls {
        /// The other end.
        with: String,
        /// What failed.
        why: Why,
    },
    /// Ours is too long.
    #[error("a message of {length} bytes is too long")]
    TooLong {
        /// Its length.
        length: usize,
    },
}

impl StreamError {
    /// Which exit code it asks for.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::Closed { .. }
            | Self::Connect { .. }
            | Self::NotFlatlan { .. }
            | Self::Proxy { .. }
            | Self::ProxyRefused { .. }
            | Self::Resolve(_)
            | Self::TimedOut { .. }
            | Self::Tls { .. } => ExitClass::Unreachable,
            Self::NotBinary | Self::TooLong { .. } => ExitClass::Failed,
            Self::ProxyAuth { .. } => ExitClass::Wrong,
        }
    }
}

#[cfg(test)]
mod tests;
