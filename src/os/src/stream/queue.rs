//! What waits to be sent on a stream, bounded in messages and in bytes.
//!
//! The bound is at the entrance: what finds no room is refused there and then. A reader who does not read
//! so costs a fixed amount of memory, and what does go through has not waited long.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{StreamError, StreamSender};

/// The entrance.
#[derive(Debug, Clone)]
pub struct SendQueue {
    messages: mpsc::Sender<Bytes>,
    waiting: Arc<AtomicUsize>,
    limit: usize,
}

/// The exit.
#[derive(Debug)]
pub struct SendQueueEnd {
    messages: mpsc::Receiver<Bytes>,
    waiting: Arc<AtomicUsize>,
}

/// There is no room, or nobody sends any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream takes no more")]
pub struct QueueFull;

/// A queue of at most `messages` messages and `limit` bytes, and one message more.
pub fn send_queue(messages: usize, limit: usize) -> (SendQueue, SendQueueEnd) {
    let (sender, receiver) = mpsc::channel(messages);
    let waiting = Arc::new(AtomicUsize::new(0));
    (SendQueue { messages: sender, waiting: waiting.clone(), limit }, SendQueueEnd { messages: receiver, waiting })
}

impl SendQueue {
    /// The same queue, with another limit in bytes for what enters here.
    pub fn with_limit(&self, limit: usize) -> Self {
        Self { limit, ..self.clone() }
    }

    /// Puts a message in.
    ///
    /// # Errors
    /// Where there is no room.
    pub fn put(&self, message: Bytes) -> Result<(), QueueFull> {
        if self.waiting.load(Ordering::Relaxed) >= self.limit {
            return Err(QueueFull);
        }
        let length = message.len();
        self.waiting.fetch_add(length, Ordering::Relaxed);
        self.messages.try_send(message).map_err(|_| {
            self.waiting.fetch_sub(length, Ordering::Relaxed);
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
        while let Some(message) = self.messages.recv().await {
            self.feed(sender, message).await?;
            while let Ok(message) = self.messages.try_recv() {
                self.feed(sender, message).await?;
            }
            sender.flush().await?;
        }
        Ok(())
    }

    async fn feed(&self, sender: &mut StreamSender, message: Bytes) -> Result<(), StreamError> {
        let length = message.len();
        let fed = sender.feed(message).await;
        self.waiting.fetch_sub(length, Ordering::Relaxed);
        fed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: usize) -> Bytes {
        vec![0; length].into()
    }

    #[test]
    fn a_reader_who_does_not_read_costs_a_bounded_number_of_bytes() {
        let (queue, mut end) = send_queue(100, 1000);
        let frames = queue.with_limit(500);
        while frames.put(message(90)).is_ok() {}
        assert_eq!(queue.waiting.load(Ordering::Relaxed), 540);
        queue.put(message(400)).unwrap();
        queue.put(message(400)).unwrap();
        assert_eq!(queue.put(message(1)), Err(QueueFull));
        let mut left = 0;
        while let Ok(message) = end.messages.try_recv() {
            left += message.len();
        }
        assert_eq!(left, 1340);
    }

    #[test]
    fn small_messages_are_counted_too_and_a_queue_without_an_end_takes_nothing() {
        let (queue, end) = send_queue(3, 1000);
        (0..3).for_each(|_| queue.put(message(1)).unwrap());
        assert_eq!(queue.put(message(1)), Err(QueueFull));
        assert_eq!(queue.waiting.load(Ordering::Relaxed), 3);
        drop(end);
        assert_eq!(queue.put(message(1)), Err(QueueFull));
    }
}
