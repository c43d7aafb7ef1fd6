//! Data streams in the hands of a packet thread: it reads, opens, seals and writes itself, and waits for nothing.
//!
//! Greeting and answer are a task's work; [`hand_over`] then takes the stream from it, with everything that was read
//! behind them, and leaves a [`StreamEnd`] behind. The thread puts the stream into its [`StreamSet`] and goes round:
//!
//! 1. [`recv`](StreamSet::recv) reads once from a stream that has something, and opens it into a [`StreamInbox`];
//! 2. the thread takes the messages there, and [sends](StreamSet::send) what they lead to;
//! 3. [`flush`](StreamSet::flush) writes what was sealed, in one system call a stream. What the kernel does not take
//!    waits, [bounded](StreamBounds), until it does: nobody waits for it.
//!
//! A stream whose other end is slow loses frames, one that breaks or sends what is no WebSocket ends, and its task
//! hears why. The others do not notice. An idle stream has no buffers but what rustls holds.

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, BufRead, IoSlice, Read, Write},
    mem::MaybeUninit,
    net::TcpStream,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use rustix::event::{Timespec, epoll};
use rustls::Connection;
use tokio::{sync::oneshot, time};
use tokio_rustls::TlsStream;

use super::{
    Heard, MOST_MESSAGE, Socket, StreamBounds, StreamError, StreamReceiver, StreamSender,
    backlog::Backlog,
    framing::{FramingError, Kind, Piece, Side, Unframer, Written},
    heard,
};

/// A stream between two hands.
#[derive(Debug)]
pub struct DataStream {
    tcp: TcpStream,
    tls: Connection,
    /// Opened, and still to be looked at.
    plain: Vec<u8>,
    /// Messages that came after the answer.
    early: VecDeque<Bytes>,
    ended: oneshot::Sender<Result<(), StreamError>>,
}

/// How a stream ends that was handed over.
#[derive(Debug)]
pub struct StreamEnd(oneshot::Receiver<Result<(), StreamError>>);

impl StreamEnd {
    /// Waits for it. Without an error the other end said goodbye, or the stream was closed here.
    ///
    /// # Errors
    /// The stream broke.
    pub async fn ended(self) -> Result<(), StreamError> {
        self.0.await.unwrap_or(Ok(()))
    }
}

/// Takes a stream from its task, within [`HAND_OVER_TIMEOUT`]. `early`: messages that came already.
///
/// # Errors
/// Where the stream has ended, or the other end neither takes what was sent nor sends the rest of what it began.
pub async fn hand_over(
    sender: StreamSender,
    receiver: StreamReceiver,
    early: Vec<Bytes>,
) -> Result<(DataStream, StreamEnd), StreamError> {
    let mut socket = sender.0.reunite(receiver.0).map_err(|e| closed(io::Error::other(e)))?;
    let mut early = VecDeque::from(early);
    let quiet = time::timeout(HAND_OVER_TIMEOUT, become_quiet(&mut socket, &mut early)).await;
    quiet.map_err(|_| closed(io::ErrorKind::TimedOut.into()))??;
    let (tls, plain) = socket.into_inner().into_parts();
    let (tcp, mut tls) = match *tls {
        TlsStream::Client(stream) => {
            let (tcp, tls) = stream.into_inner();
            (tcp, Connection::Client(tls))
        }
        TlsStream::Server(stream) => {
            let (tcp, tls) = stream.into_inner();
            (tcp, Connection::Server(tls))
        }
    };
    // there is a bound before it
    tls.set_buffer_limit(None);
    let (ended, end) = oneshot::channel();
    let tcp = tcp.into_std().map_err(closed)?;
    Ok((DataStream { tcp, tls, plain, early, ended }, StreamEnd(end)))
}

/// Writes what was sent, and reads what was half read.
async fn become_quiet(socket: &mut Socket, early: &mut VecDeque<Bytes>) -> Result<(), StreamError> {
    socket.flush().await.map_err(super::closed)?;
    if socket.get_ref().is_between() {
        return Ok(());
    }
    // half a frame is in the hands of whoever read it
    match heard(socket.next().await)? {
        Heard::Message(message) => early.push_back(message),
        Heard::Nothing => {}
        Heard::Goodbye => return Err(closed(io::ErrorKind::UnexpectedEof.into())),
    }
    // a second one there is not, where frames are what the tap takes for frames
    socket.get_ref().is_between().then_some(()).ok_or_else(|| closed(io::ErrorKind::InvalidData.into()))
}

/// The data streams of a thread, each known to it as a `K`.
pub struct StreamSet<K> {
    epoll: OwnedFd,
    bounds: StreamBounds,
    /// Bytes that wait on all of them.
    waiting: usize,
    tokens: BTreeMap<K, u64>,
    streams: BTreeMap<u64, Place<K>>,
    next: u64,
    /// Those that have something to read, or something else to be looked after.
    ready: VecDeque<u64>,
    /// Those that have something to write.
    dirty: Vec<u64>,
}

#[derive(Debug)]
enum Place<K> {
    /// It is still to come; what is sent waits for it.
    Expected(K, Vec<u8>, Vec<Range<usize>>),
    Open(K, Box<Polled>),
}

#[derive(Debug)]
struct Polled {
    tcp: TcpStream,
    tls: Connection,
    side: Side,
    unframer: Unframer,
    /// The beginning of a frame.
    plain: Vec<u8>,
    early: VecDeque<Bytes>,
    backlog: Backlog,
    /// The kernel has no room, and tells when it has.
    stuck: bool,
    /// It will be looked at by the next flush.
    dirty: bool,
    /// How it ended, where messages came before that.
    over: Option<Result<(), StreamError>>,
    ended: oneshot::Sender<Result<(), StreamError>>,
}

/// Where a thread receives: one for all its streams.
#[derive(Debug)]
pub struct StreamInbox {
    /// As it came from the kernel.
    sealed: Box<[u8]>,
    plain: Vec<u8>,
    messages: Vec<Message>,
    /// The stream whose messages these are, and where the rest begins that is none yet.
    lent: Option<(u64, usize)>,
}

#[derive(Debug)]
enum Message {
    Here(Range<usize>),
    Whole(Vec<u8>),
}

impl Default for StreamInbox {
    fn default() -> Self {
        Self::new()
    }
}

impl StreamInbox {
    /// An empty one.
    pub fn new() -> Self {
        Self { sealed: vec![0; READ].into(), plain: Vec::new(), messages: Vec::new(), lent: None }
    }

    /// Every message that was received, in order; to be changed as anyone likes.
    pub fn each(&mut self, mut handle: impl FnMut(&mut [u8])) {
        for message in &mut self.messages {
            match message {
                Message::Here(range) => handle(self.plain.get_mut(range.clone()).unwrap_or_default()),
                Message::Whole(message) => handle(message),
            }
        }
    }
}

impl<K: Copy + Ord> StreamSet<K> {
    /// An empty one.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn new(bounds: StreamBounds) -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            bounds,
            waiting: 0,
            tokens: BTreeMap::new(),
            streams: BTreeMap::new(),
            next: 0,
            ready: VecDeque::new(),
            dirty: Vec::new(),
        })
    }

    /// A stream will be added: a little of what is sent on it meanwhile waits.
    pub fn expect(&mut self, key: K) {
        self.remove(key);
        self.place(key, Place::Expected(key, Vec::new(), Vec::new()));
    }

    /// Takes a stream in.
    pub fn add(&mut self, key: K, stream: DataStream, now: Instant) {
        let expected = match self.tokens.remove(&key).and_then(|token| self.streams.remove(&token)) {
            Some(Place::Open(_, before)) => {
                self.part(before, Ok(()));
                None
            }
            expected => expected,
        };
        let polled = Box::new(Polled::new(stream));
        let flags = epoll::EventFlags::IN;
        if let Err(error) = epoll::add(&self.epoll, &polled.tcp, epoll::EventData::new_u64(self.next), flags) {
            return polled.end(Err(closed(error.into())));
        }
        let token = self.place(key, Place::Open(key, polled));
        // something may have come already
        self.ready.push_back(token);
        if let Some(Place::Expected(_, bytes, messages)) = expected {
            for message in messages {
                let _ = self.send(key, bytes.get(message).unwrap_or_default(), now);
            }
        }
    }

    fn place(&mut self, key: K, place: Place<K>) -> u64 {
        let token = self.next;
        self.next += 1;
        self.tokens.insert(key, token);
        self.streams.insert(token, place);
        token
    }

    /// Closes a stream: whoever is at its other end hears goodbye, where there is room for it.
    pub fn remove(&mut self, key: K) {
        let place = self.tokens.remove(&key).and_then(|token| self.streams.remove(&token));
        if let Some(Place::Open(_, polled)) = place {
            self.part(polled, Ok(()));
        }
    }

    /// Reads once from a stream that has something, and opens it into `inbox`, where perhaps no message is then:
    /// whoever receives bounds how often. `None` where no stream has anything.
    pub fn recv(&mut self, inbox: &mut StreamInbox, now: Instant) -> Option<K> {
        self.take_back(inbox);
        if self.ready.is_empty() {
            self.poll(now);
        }
        while let Some(token) = self.ready.pop_front() {
            let Some(Place::Open(key, polled)) = self.streams.get_mut(&token) else { continue };
            let (key, before) = (*key, polled.backlog.bytes());
            let received = match polled.over.take() {
                Some(over) => Received::End(over),
                None => polled.receive(inbox, now),
            };
            self.waiting += polled.backlog.bytes() - before;
            if polled.tls.wants_write() && !polled.dirty {
                polled.dirty = true;
                self.dirty.push(token);
            }
            inbox.lent = inbox.lent.map(|(_, rest)| (token, rest));
            match received {
                Received::Open => {}
                Received::End(how) if inbox.messages.is_empty() => self.end(token, how),
                Received::End(how) => {
                    polled.over = Some(how);
                    self.ready.push_back(token);
                }
            }
            return Some(key);
        }
        None
    }

    /// The messages were handled; what is the beginning of one waits with its stream.
    fn take_back(&mut self, inbox: &mut StreamInbox) {
        inbox.messages.clear();
        let Some((token, rest)) = inbox.lent.take() else { return };
        if rest < inbox.plain.len()
            && let Some(Place::Open(_, polled)) = self.streams.get_mut(&token)
        {
            let left = inbox.plain.len() - rest;
            if left * KEEP >= inbox.plain.capacity() {
                inbox.plain.drain(..rest);
                polled.plain = std::mem::take(&mut inbox.plain);
            } else {
                polled.plain = inbox.plain.get(rest..).unwrap_or_default().to_vec();
            }
        }
        inbox.plain.clear();
    }

    /// Asks the kernel which streams have something to read, or room again.
    fn poll(&mut self, now: Instant) {
        if self.streams.is_empty() {
            return;
        }
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); EVENTS];
        // fails only where it was interrupted: whoever is ready is so the next time
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events[..], Some(&AT_ONCE)) else { return };
        for event in events.iter() {
            let (token, flags) = (event.data.u64(), event.flags);
            if flags.contains(epoll::EventFlags::OUT) {
                self.write(token, now);
            }
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                self.ready.push_back(token);
            }
        }
    }

    /// Seals one message. It leaves with the next [`flush`](Self::flush), or sooner.
    ///
    /// # Errors
    /// Where there is no such stream, or it takes no more.
    pub fn send(&mut self, key: K, message: &[u8], now: Instant) -> Result<(), StreamRefusal> {
        let token = *self.tokens.get(&key).ok_or(StreamRefusal::NoStream)?;
        match self.streams.get_mut(&token).ok_or(StreamRefusal::NoStream)? {
            Place::Expected(_, bytes, messages) => {
                if bytes.len() + message.len() > MOST_MESSAGE {
                    return Err(StreamRefusal::Full);
                }
                messages.push(bytes.len()..bytes.len() + message.len());
                bytes.extend_from_slice(message);
                Ok(())
            }
            Place::Open(_, polled) => {
                if message.len() > MOST_MESSAGE {
                    return Err(StreamRefusal::Full);
                }
                if polled.backlog.is_full(self.bounds, self.waiting, now) {
                    // what waits for the flush alone does not count
                    if !polled.stuck {
                        self.write(token, now);
                    }
                    let Some(Place::Open(_, polled)) = self.streams.get(&token) else {
                        return Err(StreamRefusal::NoStream);
                    };
                    if polled.backlog.is_full(self.bounds, self.waiting, now) {
                        return Err(StreamRefusal::Full);
                    }
                }
                let Some(Place::Open(_, polled)) = self.streams.get_mut(&token) else {
                    return Err(StreamRefusal::NoStream);
                };
                let before = polled.backlog.bytes();
                polled.seal(Kind::Binary, message, now);
                self.waiting += polled.backlog.bytes() - before;
                if !polled.dirty {
                    polled.dirty = true;
                    self.dirty.push(token);
                }
                // the other end opens while the next is sealed
                if polled.backlog.bytes() >= WRITE_AT && !polled.stuck {
                    self.write(token, now);
                }
                Ok(())
            }
        }
    }

    /// Writes what was sealed, as far as the kernel takes it.
    pub fn flush(&mut self, now: Instant) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for token in dirty.drain(..) {
            if let Some(Place::Open(_, polled)) = self.streams.get_mut(&token) {
                polled.dirty = false;
                if !polled.stuck {
                    self.write(token, now);
                }
            }
        }
        self.dirty = dirty;
    }

    fn write(&mut self, token: u64, now: Instant) {
        let Some(Place::Open(_, polled)) = self.streams.get_mut(&token) else { return };
        let before = polled.backlog.bytes();
        let written = polled.write(now);
        self.waiting -= before - polled.backlog.bytes();
        let stuck = match written {
            Ok(stuck) => stuck,
            Err(error) => return self.end(token, Err(error)),
        };
        if stuck != polled.stuck {
            polled.stuck = stuck;
            let flags = if stuck { epoll::EventFlags::IN | epoll::EventFlags::OUT } else { epoll::EventFlags::IN };
            let _ = epoll::modify(&self.epoll, &polled.tcp, epoll::EventData::new_u64(token), flags);
        }
    }

    fn end(&mut self, token: u64, how: Result<(), StreamError>) {
        let Some(Place::Open(key, polled)) = self.streams.remove(&token) else { return };
        self.tokens.remove(&key);
        self.part(polled, how);
    }

    fn part(&mut self, mut polled: Box<Polled>, how: Result<(), StreamError>) {
        self.waiting -= polled.backlog.bytes();
        polled.say_goodbye();
        polled.end(how);
    }
}

impl<K> Drop for StreamSet<K> {
    /// Whoever is at the other ends hears goodbye.
    fn drop(&mut self) {
        for place in std::mem::take(&mut self.streams).into_values() {
            if let Place::Open(_, mut polled) = place {
                polled.say_goodbye();
                polled.end(Ok(()));
            }
        }
    }
}

impl<K: std::fmt::Debug> std::fmt::Debug for StreamSet<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSet").field("streams", &self.streams).finish_non_exhaustive()
    }
}

impl<K> AsFd for StreamSet<K> {
    /// Readable where [`recv`](Self::recv) has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Why a stream does not take a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamRefusal {
    /// Too much waits already, or for too long.
    #[error("the stream takes no more")]
    Full,
    /// There is none.
    #[error("there is no such stream")]
    NoStream,
}

/// What there was to read.
enum Received {
    /// Something, or nothing; where there is more the kernel says so again.
    Open,
    /// The last.
    End(Result<(), StreamError>),
}

impl Polled {
    fn new(stream: DataStream) -> Self {
        let DataStream { tcp, tls, plain, early, ended } = stream;
        let side = match &tls {
            Connection::Client(_) => Side::Client,
            Connection::Server(_) => Side::Server,
        };
        let unframer = Unframer::new(side, MOST_MESSAGE);
        let backlog = Backlog::default();
        Self { tcp, tls, side, unframer, plain, early, backlog, stuck: false, dirty: false, over: None, ended }
    }

    fn receive(&mut self, inbox: &mut StreamInbox, now: Instant) -> Received {
        inbox.messages.extend(self.early.drain(..).map(|message| Message::Whole(message.into())));
        let began = std::mem::take(&mut self.plain);
        if began.capacity() > inbox.plain.capacity() {
            inbox.plain = began;
        } else {
            inbox.plain.extend_from_slice(&began);
        }
        inbox.lent = Some((0, 0));
        let received = self.open(inbox);
        let framed = self.unframe(inbox, now);
        match framed {
            Ok(None) => received,
            Ok(Some(Goodbye)) => Received::End(Ok(())),
            Err(FramingError::Text) => Received::End(Err(StreamError::NotBinary)),
            Err(error) => Received::End(Err(closed(io::Error::other(error)))),
        }
    }

    /// Reads once, and opens what came.
    fn open(&mut self, inbox: &mut StreamInbox) -> Received {
        let StreamInbox { sealed, plain, .. } = inbox;
        // what was opened before the stream came here
        if let Err(error) = self.open_into(plain) {
            return Received::End(Err(error));
        }
        let count = loop {
            match self.tcp.read(sealed) {
                Ok(0) => return Received::End(Err(closed(io::ErrorKind::UnexpectedEof.into()))),
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Received::Open,
                Err(error) => return Received::End(Err(closed(error))),
            }
        };
        let mut rest = sealed.get(..count).unwrap_or_default();
        while !rest.is_empty() {
            let read = match self.tls.read_tls(&mut rest) {
                Ok(read) => read,
                Err(error) => return Received::End(Err(closed(error))),
            };
            if let Err(error) = self.open_into(plain) {
                return Received::End(Err(error));
            }
            if read == 0 {
                break;
            }
        }
        Received::Open
    }

    fn open_into(&mut self, plain: &mut Vec<u8>) -> Result<(), StreamError> {
        let state = self.tls.process_new_packets().map_err(|error| closed(io::Error::other(error)))?;
        let (mut waiting, is_over) = (state.plaintext_bytes_to_read(), state.peer_has_closed());
        let mut reader = self.tls.reader();
        while waiting > 0 {
            let chunk = reader.fill_buf().map_err(closed)?;
            let length = chunk.len();
            plain.extend_from_slice(chunk);
            reader.consume(length);
            waiting = waiting.saturating_sub(length.max(1));
        }
        // a goodbye, where there was one, is in what was opened
        if is_over { Err(closed(io::ErrorKind::UnexpectedEof.into())) } else { Ok(()) }
    }

    /// Finds the messages in what was opened.
    fn unframe(&mut self, inbox: &mut StreamInbox, now: Instant) -> Result<Option<Goodbye>, FramingError> {
        let mut at = 0;
        let goodbye = loop {
            let Some(piece) = self.unframer.next(&mut inbox.plain, &mut at)? else { break None };
            match piece {
                Piece::Close => break Some(Goodbye),
                Piece::Message(range) => inbox.messages.push(Message::Here(range)),
                Piece::Nothing => {}
                // whoever asks and does not read gets no answer
                Piece::Ping(range) if self.backlog.bytes() < MOST_MESSAGE => {
                    let payload = inbox.plain.get(range).unwrap_or_default();
                    self.seal(Kind::Pong, payload, now);
                }
                Piece::Ping(_) => {}
                Piece::Whole(message) => inbox.messages.push(Message::Whole(message)),
            }
        };
        inbox.lent = Some((0, at));
        Ok(goodbye)
    }

    fn seal(&mut self, kind: Kind, payload: &[u8], now: Instant) {
        let header = Written::new(kind, payload.len(), self.side);
        let total = header.bytes().len() + payload.len();
        let mut done = 0;
        while done < total {
            let head = header.bytes().get(done..).unwrap_or_default();
            let body = payload.get(done.saturating_sub(header.bytes().len())..).unwrap_or_default();
            // less than everything where the keys are renewed in between; never nothing without a limit
            match self.tls.writer().write_vectored(&[IoSlice::new(head), IoSlice::new(body)]) {
                Ok(written) if written > 0 => done += written,
                Ok(_) | Err(_) => break,
            }
        }
        self.backlog.put(total + total.div_ceil(RECORD) * RECORD_OVERHEAD, now);
    }

    /// Writes; says whether the kernel has no room for the rest.
    fn write(&mut self, now: Instant) -> Result<bool, StreamError> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.tcp) {
                Ok(0) => return Err(closed(io::ErrorKind::WriteZero.into())),
                Ok(written) => self.backlog.left(written, now),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(closed(error)),
            }
        }
        self.backlog.clear();
        Ok(false)
    }

    fn say_goodbye(&mut self) {
        let header = Written::new(Kind::Close, 0, self.side);
        let _ = self.tls.writer().write(header.bytes());
        self.tls.send_close_notify();
        while self.tls.wants_write() && self.tls.write_tls(&mut self.tcp).is_ok_and(|written| written > 0) {}
    }

    fn end(self, how: Result<(), StreamError>) {
        let _ = self.ended.send(how);
    }
}

struct Goodbye;

fn closed(error: io::Error) -> StreamError {
    StreamError::Closed { why: error.into() }
}

/// How long a stream may take to change hands.
pub const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read at once, in bytes.
const READ: usize = 128 << 10;
/// What is sealed leaves as soon as it is so much, in bytes.
const WRITE_AT: usize = 48 << 10;
/// A buffer stays with a stream where the beginning of a message fills one part in so many; else it is copied.
const KEEP: usize = 4;
/// Streams that are found ready at once.
const EVENTS: usize = 64;
/// The longest plaintext of a TLS record (RFC 8446, section 5.1), in bytes.
const RECORD: usize = 16 << 10;
/// What a TLS record has beside it: header, kind and tag.
const RECORD_OVERHEAD: usize = 22;
const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

#[cfg(test)]
mod tests;
