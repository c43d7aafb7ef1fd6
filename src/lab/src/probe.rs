//! Probes: a question each few milliseconds, and the times of the answers.
//!
//! [`Probe::ping`] sends ICMP echoes; [`Probe::tcp_echo`] sends eight bytes over one TCP connection that lives as long
//! as the probe does, to a server that it starts on the far machine; [`Probe::datagrams`] sends numbered datagrams one
//! way. All run as threads inside the right namespaces and note when each question left and when its answer came.
//! They come ahead of ordinary threads where they may (nice -20, which takes root): a probe is not to wait for what it
//! measures. [`Transfer`] stays where it is. [`Report`] answers what is asked about that, above all: what was the
//! longest time without an answer.

mod bulk;
mod datagrams;
mod echo;
mod ping;
mod report;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use bulk::{Payload, Transfer, TransferReport};
pub use report::{Gap, Report};

use crate::error::LabError;
use crate::namespace::Namespace;

/// A running probe. It stops when it is dropped.
#[derive(Debug)]
pub struct Probe {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    peer: Option<SocketAddr>,
    what: String,
}

impl Probe {
    /// Pings an address from a machine, once each `interval`.
    ///
    /// # Errors
    /// [`LabError::Io`] where the machine has no way to such an address.
    pub fn ping(from: &Namespace, to: IpAddr, interval: Duration) -> Result<Self, LabError> {
        let shared = Arc::new(Shared::new());
        let threads = ping::start(from, to, interval, &shared)?;
        Ok(Self { shared, threads, peer: None, what: format!("an answer to a ping of {to} from {}", from.name()) })
    }

    /// Echoes over one TCP connection from a machine to an address of another, once each `interval`.
    ///
    /// # Errors
    /// [`LabError::Io`] where the connection cannot be made within a few seconds.
    pub fn tcp_echo(from: &Namespace, to: &Namespace, address: IpAddr, interval: Duration) -> Result<Self, LabError> {
        let shared = Arc::new(Shared::new());
        let (threads, peer) = echo::start(from, to, address, interval, &shared)?;
        Ok(Self { shared, threads, peer: Some(peer), what: format!("a TCP echo of {address} to {}", from.name()) })
    }

    /// Sends numbered datagrams from a machine to an address of another, one each `interval`. What arrives there counts
    /// as an answer, once.
    ///
    /// # Errors
    /// [`LabError::Io`] where the address is not the far machine's, or the near one has no way to it.
    pub fn datagrams(from: &Namespace, to: &Namespace, address: IpAddr, interval: Duration) -> Result<Self, LabError> {
        let shared = Arc::new(Shared::new());
        let threads = datagrams::start(from, to, address, interval, &shared)?;
        Ok(Self { shared, threads, peer: None, what: format!("a datagram from {} at {address}", from.name()) })
    }

    /// When it began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.shared.lock().started
    }

    /// The address that the far side of a TCP echo saw.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Waits for that many answers more, and returns when the last of them came.
    ///
    /// # Errors
    /// [`LabError::Timeout`].
    pub fn wait_answers(&self, count: usize, within: Duration) -> Result<Instant, LabError> {
        let deadline = Instant::now() + within;
        let mut state = self.shared.lock();
        let wanted = state.answers.len() + count;
        loop {
            if let Some(answer) = wanted.checked_sub(1).and_then(|index| state.answers.get(index)) {
                return Ok(answer.at);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LabError::Timeout { what: self.what.clone(), within, tail: String::new() });
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What came so far.
    #[must_use]
    pub fn report(&self) -> Report {
        self.shared.lock().report(Instant::now())
    }

    /// Stops it and says what came.
    #[must_use]
    pub fn stop(mut self) -> Report {
        let report = self.report();
        self.end();
        report
    }

    /// Asks nothing more, waits for the answers that are under way, at most `within`, and says what came.
    #[must_use]
    pub fn finish(self, within: Duration) -> Report {
        let deadline = Instant::now() + within;
        let mut state = self.shared.lock();
        state.quiet = true;
        while state.answers.len() < state.sent.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        self.stop()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the threads of a probe write and its owner reads.
#[derive(Debug)]
struct Shared {
    stop: AtomicBool,
    changed: Condvar,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    started: Instant,
    /// Nothing more is asked. Beside the questions: whoever reads how many there are knows that no other comes.
    quiet: bool,
    /// When each question left, by its number.
    sent: Vec<Instant>,
    answers: Vec<Answer>,
    broken: Option<io::ErrorKind>,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    at: Instant,
    took: Duration,
}

impl Shared {
    fn new() -> Self {
        let (sent, answers) = (Vec::new(), Vec::new());
        let state = State { started: Instant::now(), quiet: false, sent, answers, broken: None };
        Self { stop: AtomicBool::new(false), changed: Condvar::new(), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Notes that a question leaves, and returns its number; `None` where nothing more is asked.
    fn ask(&self) -> Option<u32> {
        let mut state = self.lock();
        if self.stopped() || state.quiet {
            return None;
        }
        state.sent.push(Instant::now());
        Some(u32::try_from(state.sent.len() - 1).unwrap_or(u32::MAX))
    }

    /// Notes an answer.
    fn answer(&self, number: u32, at: Instant) {
        let mut state = self.lock();
        let Some(sent) = state.sent.get(number as usize).copied() else { return };
        state.answers.push(Answer { at, took: at.saturating_duration_since(sent) });
        drop(state);
        self.changed.notify_all();
    }

    fn broken(&self, kind: io::ErrorKind) {
        self.lock().broken.get_or_insert(kind);
    }

    /// Sleeps until the next question is due. Questions that are overdue are left out, not sent in a burst.
    fn pace(&self, next: &mut Instant, interval: Duration) {
        let now = Instant::now();
        *next = (*next + interval).max(now);
        std::thread::sleep(*next - now);
    }
}

impl State {
    fn report(&self, stopped: Instant) -> Report {
        Report::new(
            self.started,
            stopped,
            self.sent.len(),
            self.answers.iter().map(|answer| (answer.at, answer.took)).collect(),
            self.broken,
        )
    }
}

/// Puts this thread ahead of others, where it may be: a probe is not to wait for what it measures.
fn come_ahead() {
    // on Linux this is the thread's own, not the process's
    let _ = rustix::process::setpriority_process(None, AHEAD);
}

/// Whether this is no end of a connection: nothing came within [`POLL`], or a signal did.
fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// As far ahead as an ordinary thread can be.
const AHEAD: i32 = -20;
/// How long a thread waits for a packet before it looks whether it should stop.
const POLL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_asked_once_the_answers_that_are_under_way_are_waited_for() {
        let shared = Shared::new();
        assert_eq!([shared.ask(), shared.ask()], [Some(0), Some(1)]);
        shared.lock().quiet = true;
        assert_eq!(shared.ask(), None);
        assert_eq!(shared.lock().report(Instant::now()).sent(), 2);
    }

    #[test]
    fn a_signal_is_no_end_of_a_connection() {
        use io::ErrorKind::{ConnectionReset, Interrupted, TimedOut, WouldBlock};
        let paused = [Interrupted, TimedOut, WouldBlock, ConnectionReset].map(|kind| is_pause(&kind.into()));
        assert_eq!(paused, [true, true, true, false]);
    }
}
