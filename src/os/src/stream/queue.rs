//! What waits to be sent on a stream, bounded in messages and in bytes, and for frames in time.
//!
//! The bound is at the entrance: what finds no room is refused there and then. A reader who does not read
//! so costs a fixed amount of memory, and what does go through has not waited long: whatever the rate of
//! the link, frames are refused while those that leave have waited longer than they may, or none leaves; but for
//! two messages' worth, which a slow link takes longer to send.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{StreamError, StreamSender};
use crate::clock;

/// The entrance.
#[derive(Debug, Clone)]
pub struct SendQueue {
    messages: mpsc::Sender<Waiting>,
    load: Arc<Load>,
    limit: usize,
    patience: Option<Duration>,
}

/// The exit.
#[derive(Debug)]
pub struct SendQueueEnd {
    messages: mpsc::Receiver<Waiting>,
    load: Arc<Load>,
}

/// A message, and since when it waits.
#[derive(Debug)]
struct Waiting {
    message: Bytes,
    since: Instant,
}

/// All times in microseconds.
#[derive(Debug)]
struct Load {
    start: Instant,
    /// Bytes that wait.
    bytes: AtomicUsize,
    /// How long the message that left last had waited.
    waited: AtomicU64,
    /// When a message left last, or entered the empty queue.
    moved: AtomicU64,
}

impl Load {
    /// How long the next message to leave will have waited, as far as can be told.
    fn wait(&self, now: Instant) -> Duration {
        let still = self.at(now).saturating_sub(self.moved.load(Ordering::Relaxed));
        Duration::from_micros(self.waited.load(Ordering::Relaxed).max(still))
    }

    fn left(&self, length: usize, since: Instant, now: Instant) {
        let waited = now.saturating_duration_since(since).as_micros();
        self.waited.store(u64::try_from(waited).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.moved.store(self.at(now), Ordering::Relaxed);
        self.bytes.fetch_sub(length, Ordering::Relaxed);
    }

    fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }
}

/// There is no room, or nobody sends any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream takes no more")]
pub struct QueueFull;

/// A queue of at most `messages` messages and `limit` bytes, and one message more.
pub fn send_queue(messages: usize, limit: usize) -> (SendQueue, SendQueueEnd) {
    let (sender, receiver) = mpsc::channel(messages);
    let (bytes, waited, moved) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let load = Arc::new(Load { start: clock::now(), bytes, waited, moved });
    let queue = SendQueue { messages: sender, load: load.clone(), limit, patience: None };
    (queue, SendQueueEnd { messages: receiver, load })
}

impl SendQueue {
    /// The same queue for frames: of at most `limit` bytes, and none while those that leave have waited for
    /// longer than `patience`; but for two messages' bytes, which may always wait.
    pub fn for_frames(&self, limit: usize, patience: Duration) -> Self {
        Self { limit, patience: Some(patience), ..self.clone() }
    }

    /// Puts a message in.
    ///
    /// # Errors
    /// Where there is no room.
    pub fn put(&self, message: Bytes) -> Result<(), QueueFull> {
        let (bytes, now) = (self.load.bytes.load(Ordering::Relaxed), clock::now());
        let too_slow = bytes > ALWAYS && self.patience.is_some_and(|patience| self.load.wait(now) > patience);
        if bytes >= self.limit || too_slow {
            return Err(QueueFull);
        }
        if bytes == 0 {
            self.load.waited.store(0, Ordering::Relaxed);
            self.load.moved.store(self.load.at(now), Ordering::Relaxed);
        }
        let length = message.len();
        self.load.bytes.fetch_add(length, Ordering::Relaxed);
        self.messages.try_send(Waiting { message, since: now }).map_err(|_| {
            self.load.bytes.fetch_sub(length, Ordering::Relaxed);
            QueueFull
        })
    }
}

impl SendQueueEnd {
    /// Sends until nobody can put anything in any more. Several messages that wait leave with one flush.
    ///
    /// # Errors
    /// The stream broke.
    pub async fn send_to(&mut self, sender: &mut StreamSender) -> Result<(), StreamError> {
        while let Some(waiting) = self.messages.recv().await {
            self.feed(sender, waiting).await?;
            while let Ok(waiting) = self.messages.try_recv() {
                self.feed(sender, waiting).await?;
            }
            sender.flush().await?;
        }
        Ok(())
    }

    async fn feed(&self, sender: &mut StreamSender, waiting: Waiting) -> Result<(), StreamError> {
        let length = waiting.message.len();
        let fed = sender.feed(waiting.message).await;
        self.load.left(length, waiting.since, clock::now());
        fed
    }
}

/// Bytes that may wait whatever the link's rate: two of the longest messages.
const ALWAYS: usize = 2 * super::MOST_MESSAGE;

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const SECOND: Duration = Duration::from_secs(1);

    fn message(length: usize) -> Bytes {
        vec![0; length].into()
    }

    #[test]
    fn a_reader_who_does_not_read_costs_a_bounded_number_of_bytes() {
        let (queue, mut end) = send_queue(100, 1000);
        let frames = queue.for_frames(500, Duration::from_secs(1));
        while frames.put(message(90)).is_ok() {}
        assert_eq!(queue.load.bytes.load(Ordering::Relaxed), 540);
        queue.put(message(400)).unwrap();
        queue.put(message(400)).unwrap();
        assert_eq!(queue.put(message(1)), Err(QueueFull));
        let mut left = 0;
        while let Ok(waiting) = end.messages.try_recv() {
            left += waiting.message.len();
        }
        assert_eq!(left, 1340);
    }

    #[test]
    fn frames_are_refused_while_those_that_leave_have_waited_too_long() {
        let (queue, mut end) = send_queue(100, 1 << 20);
        let frames = queue.for_frames(1 << 20, HOUR);
        (0..4).for_each(|_| frames.put(message(70_000)).unwrap());
        let leave = |end: &mut SendQueueEnd, waited| {
            let length = end.messages.try_recv().unwrap().message.len();
            end.load.left(length, end.load.start, end.load.start + waited);
        };
        leave(&mut end, HOUR + SECOND);
        assert_eq!(frames.put(message(1)), Err(QueueFull));
        queue.put(message(1)).expect("control does not mind");
        leave(&mut end, HOUR + SECOND);
        frames.put(message(70_000)).expect("little waits, however long");
        assert_eq!(frames.put(message(1)), Err(QueueFull));
        leave(&mut end, SECOND);
        frames.put(message(70_000)).expect("the link has become faster");
    }

    #[test]
    fn frames_wait_no_longer_than_they_may_where_nothing_leaves_at_all() {
        let (queue, end) = send_queue(100, 1 << 20);
        let frames = queue.for_frames(1 << 20, HOUR);
        (0..4).for_each(|_| frames.put(message(70_000)).unwrap());
        let entered = end.load.start + Duration::from_micros(end.load.moved.load(Ordering::Relaxed));
        assert!(end.load.wait(entered + HOUR - SECOND) < HOUR);
        assert!(end.load.wait(entered + HOUR + SECOND) > HOUR);
    }

    #[test]
    fn small_messages_are_counted_too_and_a_queue_without_an_end_takes_nothing() {
        let (queue, end) = send_queue(3, 1000);
        (0..3).for_each(|_| queue.put(message(1)).unwrap());
        assert_eq!(queue.put(message(1)), Err(QueueFull));
        assert_eq!(queue.load.bytes.load(Ordering::Relaxed), 3);
        drop(end);
        assert_eq!(queue.put(message(1)), Err(QueueFull));
    }
}
