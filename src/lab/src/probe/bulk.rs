//! A TCP transfer at full speed, or at a rate, whose every byte is checked: both ends hash what passes (SHA-256), and the
//! hashes must agree.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::echo::connection;
use super::{Gap, POLL, is_pause};
use crate::error::LabError;
use crate::namespace::Namespace;

/// What a transfer carries.
#[derive(Debug, Clone)]
pub enum Payload {
    /// Bytes without a pattern, every block another.
    Random,
    /// The same text over and over: a canary, to be looked for where it must not be.
    Repeat(String),
}

/// A running transfer. It stops when it is dropped.
#[derive(Debug)]
pub struct Transfer {
    stop: Arc<AtomicBool>,
    received: Arc<Received>,
    sender: Option<JoinHandle<Sent>>,
    receiver: Option<JoinHandle<Sent>>,
    started: Instant,
    peer: SocketAddr,
}

/// How a transfer went.
#[derive(Debug, Clone)]
pub struct TransferReport {
    /// Bytes that arrived.
    pub bytes: u64,
    /// Whether what arrived is what was sent, to the last byte.
    pub equal: bool,
    /// From the first byte sent to the last received.
    pub took: Duration,
    /// The longest time without a byte arriving, since the start or the last [`Transfer::forget_gaps`].
    pub longest_gap: Gap,
    /// The sender's address as the receiver saw it.
    pub peer: SocketAddr,
    /// What ended it early.
    pub broken: Option<io::ErrorKind>,
}

impl TransferReport {
    /// Megabits of payload per second.
    #[must_use]
    pub fn megabits_per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate to be read by people")]
        let bits = self.bytes as f64 * 8.0;
        bits / 1e6 / self.took.as_secs_f64().max(1e-9)
    }
}

impl Transfer {
    /// Starts sending from one machine to an address of another: `bytes`, or without end until it is stopped.
    ///
    /// # Errors
    /// [`LabError::Io`] where the connection cannot be made within a few seconds.
    pub fn start(
        from: &Namespace,
        to: &Namespace,
        address: IpAddr,
        payload: Payload,
        bytes: Option<u64>,
    ) -> Result<Self, LabError> {
        Self::begin(from, to, address, Load { payload, bytes: bytes.unwrap_or(u64::MAX), pace: None })
    }

    /// Starts sending random bytes at a rate, in bits a second, until it is stopped. What could not be sent in its time
    /// is not made up for: what arrives in the end says how much of the time the rate was there.
    ///
    /// # Errors
    /// As [`Transfer::start`].
    pub fn start_paced(from: &Namespace, to: &Namespace, address: IpAddr, rate: u64) -> Result<Self, LabError> {
        let pace = Duration::from_nanos(SLICE as u64 * 8_000_000_000 / rate.max(1));
        Self::begin(from, to, address, Load { payload: Payload::Random, bytes: u64::MAX, pace: Some(pace) })
    }

    fn begin(from: &Namespace, to: &Namespace, address: IpAddr, load: Load) -> Result<Self, LabError> {
        let (client, server, peer) = connection(from, to, address)?;
        for stream in [&client, &server] {
            let set = stream.set_read_timeout(Some(POLL)).and_then(|()| stream.set_write_timeout(Some(POLL)));
            set.map_err(LabError::io("set up a socket of", from.name()))?;
        }
        let started = Instant::now();
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(Received::new(started));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&received));
        let receiver = to.thread("lab receiver", move || receive(server, &counted))?;
        let sender = from.thread("lab sender", move || send(client, &load, &stopped))?;
        Ok(Self { stop, received, sender: Some(sender), receiver: Some(receiver), started, peer })
    }

    /// How many bytes have arrived.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.bytes.load(Ordering::Relaxed)
    }

    /// Longest gaps count from here on, the one in progress included.
    pub fn forget_gaps(&self) {
        let mut state = self.received.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.longest = Gap { from: state.last, length: Duration::ZERO };
    }

    /// The sender's address as the receiver sees it.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.receiver.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits until that many bytes have arrived in all.
    ///
    /// # Errors
    /// [`LabError::Timeout`].
    pub fn wait_received(&self, bytes: u64, within: Duration) -> Result<(), LabError> {
        let deadline = Instant::now() + within;
        while self.received() < bytes {
            if Instant::now() > deadline {
                let what = format!("the arrival of {bytes} bytes ({} came)", self.received());
                return Err(LabError::Timeout { what, within, tail: String::new() });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits for the end of a transfer of so many bytes.
    ///
    /// # Errors
    /// [`LabError::Timeout`] where it takes longer; it is given up then.
    pub fn finish(self, within: Duration) -> Result<TransferReport, LabError> {
        let deadline = Instant::now() + within;
        while self.is_running() {
            if Instant::now() > deadline {
                let what = format!("the end of a transfer ({} bytes came)", self.received());
                return Err(LabError::Timeout { what, within, tail: String::new() });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(self.report())
    }

    /// Sends no more, waits until all that was sent has arrived, and says how it went. A transfer that is stuck is
    /// given up after `within`.
    #[must_use]
    pub fn stop(self, within: Duration) -> TransferReport {
        self.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + within;
        while self.is_running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.report()
    }

    fn report(mut self) -> TransferReport {
        self.stop.store(true, Ordering::Relaxed);
        self.received.abandon.store(true, Ordering::Relaxed);
        let failed = || Sent { bytes: 0, hash: [0; 32], end: Err(io::ErrorKind::Other) };
        let receiver = self.receiver.take().and_then(|thread| thread.join().ok()).unwrap_or_else(failed);
        let sender = self.sender.take().and_then(|thread| thread.join().ok()).unwrap_or_else(failed);
        let state = self.received.state.lock().unwrap_or_else(PoisonError::into_inner);
        TransferReport {
            bytes: receiver.bytes,
            equal: sender.bytes == receiver.bytes && sender.hash == receiver.hash,
            took: state.last.saturating_duration_since(self.started),
            longest_gap: state.longest,
            peer: self.peer,
            broken: receiver.end.and(sender.end).err(),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.received.abandon.store(true, Ordering::Relaxed);
        for thread in [self.receiver.take(), self.sender.take()].into_iter().flatten() {
            let _ = thread.join();
        }
    }
}

/// What is sent.
#[derive(Debug)]
struct Load {
    payload: Payload,
    bytes: u64,
    /// From one slice to the next.
    pace: Option<Duration>,
}

/// What one end saw pass.
#[derive(Debug)]
struct Sent {
    bytes: u64,
    hash: [u8; 32],
    end: Result<(), io::ErrorKind>,
}

#[derive(Debug)]
struct Received {
    bytes: AtomicU64,
    abandon: AtomicBool,
    state: Mutex<Arrivals>,
}

#[derive(Debug)]
struct Arrivals {
    last: Instant,
    longest: Gap,
}

impl Received {
    fn new(now: Instant) -> Self {
        let longest = Gap { from: now, length: Duration::ZERO };
        let state = Mutex::new(Arrivals { last: now, longest });
        Self { bytes: AtomicU64::new(0), abandon: AtomicBool::new(false), state }
    }

    fn note(&self, count: usize) {
        let now = Instant::now();
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let length = now.saturating_duration_since(state.last);
        if length > state.longest.length {
            state.longest = Gap { from: state.last, length };
        }
        state.last = now;
    }
}

fn send(mut stream: TcpStream, load: &Load, stop: &AtomicBool) -> Sent {
    let Load { payload, bytes, pace } = load;
    let mut block = payload.block();
    if pace.is_some() {
        block.truncate(SLICE);
    }
    let mut next = Instant::now();
    let mut hash = Sha256::new();
    let mut sent = 0;
    let mut end = Ok(());
    let mut number = 0_u64;
    'sending: while sent < *bytes && !stop.load(Ordering::Relaxed) {
        if let (Payload::Random, Some(head)) = (payload, block.first_chunk_mut()) {
            *head = number.to_be_bytes();
            number += 1;
        }
        let length = usize::try_from(*bytes - sent).unwrap_or(usize::MAX).min(block.len());
        let mut rest = block.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            match stream.write(rest) {
                Ok(count) => {
                    let (done, left) = rest.split_at(count);
                    hash.update(done);
                    sent += count as u64;
                    rest = left;
                }
                Err(error) if is_pause(&error) => {}
                Err(error) => {
                    end = Err(error.kind());
                    break 'sending;
                }
            }
            if stop.load(Ordering::Relaxed) {
                break 'sending;
            }
        }
        if let Some(pace) = pace {
            let now = Instant::now();
            next = (next + *pace).max(now);
            std::thread::sleep(next - now);
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
    Sent { bytes: sent, hash: hash.finalize().into(), end }
}

fn receive(mut stream: TcpStream, received: &Received) -> Sent {
    let mut buffer = vec![0; 256 * 1024];
    let mut hash = Sha256::new();
    let mut bytes = 0;
    let end = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break Ok(()),
            Ok(count) => {
                received.note(count);
                hash.update(buffer.get(..count).unwrap_or_default());
                bytes += count as u64;
            }
            Err(error) if is_pause(&error) => {}
            Err(error) => break Err(error.kind()),
        }
        if received.abandon.load(Ordering::Relaxed) {
            break Err(io::ErrorKind::TimedOut);
        }
    };
    Sent { bytes, hash: hash.finalize().into(), end }
}

impl Payload {
    fn block(&self) -> Vec<u8> {
        match self {
            Self::Random => {
                let mut state = 0x9e37_79b9_7f4a_7c15_u64;
                let mut next = || {
                    // xorshift64: no pattern that anything on the way could compress.
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    state.to_le_bytes()
                };
                (0..BLOCK / 8).flat_map(|_| next()).collect()
            }
            Self::Repeat(text) => text.as_bytes().repeat(BLOCK / text.len().max(1) + 1),
        }
    }
}

/// How much is handed to the socket at once, and of a paced transfer.
const BLOCK: usize = 64 * 1024;
const SLICE: usize = 16 * 1024;
