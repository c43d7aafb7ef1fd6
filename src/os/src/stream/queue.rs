//! What a stream's task still has to send, bounded in messages and in bytes.
//!
//! The bound is at the entrance: what finds no room is refused there and then. A reader who does not read
//! so costs a fixed amount of memory.

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
    /// Bytes that wait.
    load: Arc<AtomicUsize>,
    limit: usize,
}

/// The exit.
#[derive(Debug)]
pub struct SendQueueEnd {
    messages: mpsc::Receiver<Bytes>,
    load: Arc<AtomicUsize>,
}

/// There is no room, or nobody sends any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream takes no more")]
pub struct QueueFull;

/// Why no more is sent, where the stream did not break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// All, and nobody can put anything in any more.
    All,
    /// What there was when it was time to stop.
    Until,
}

/// A queue of at most `messages` messages and `limit` bytes, and one message more.
pub fn send_queue(messages: usize, limit: usize) -> (SendQueue, SendQueueEnd) {
    let (sender, receiver) = mpsc::channel(messages);
    let load = Arc::new(AtomicUsize::new(0));
    (SendQueue { messages: sender, load: load.clone(), limit }, SendQueueEnd { messages: receiver, load })
}

impl SendQueue {
    /// Puts a message in.
    ///
    /// # Errors
    /// Where there is no room.
    pub fn put(&self, message: Bytes) -> Result<(), QueueFull> {
        if self.load.load(Ordering::Relaxed) >= self.limit {
            return Err(QueueFull);
        }
        let length = message.len();
        self.load.fetch_add(length, Ordering::Relaxed);
        self.messages.try_send(message).map_err(|_| {
            self.load.fetch_sub(length, Ordering::Relaxed);
            QueueFull
        })
    }
}

impl SendQueueEnd {
    /// Sends until nobody can put anything in any more, or until it is time to stop and nothing waits. Several
    /// messages that wait leave with one flush.
    ///
    /// # Errors
    /// The stream broke.
    pub async fn send_to(
        &mut self,
        sender: &mut StreamSender,
        until: impl Future<Output = ()>,
    ) -> Result<Sent, StreamError> {
        tokio::pin!(until);
        loop {
            let message = tokio::select! {
                biased;
                message = self.messages.recv() => message,
                () = &mut until => return Ok(Sent::Until),
            };
            let Some(message) = message else { return Ok(Sent::All) };
            self.feed(sender, message).await?;
            while let Ok(message) = self.messages.try_recv() {
                self.feed(sender, message).await?;
            }
            sender.flush().await?;
        }
    }

    async fn feed(&self, sender: &mut StreamSender, message: Bytes) -> Result<(), StreamError> {
        let length = message.len();
        let fed = sender.feed(message).await;
        self.load.fetch_sub(length, Ordering::Relaxed);
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
        while queue.put(message(90)).is_ok() {}
        assert_eq!(queue.load.load(Ordering::Relaxed), 1080);
        let mut left = 0;
        while let Ok(message) = end.messages.try_recv() {
            left += message.len();
        }
        assert_eq!(left, 1080);
    }

    #[test]
    fn small_messages_are_counted_too_and_a_queue_without_an_end_takes_nothing() {
        let (queue, end) = send_queue(3, 1000);
        (0..3).for_each(|_| queue.put(message(1)).unwrap());
        assert_eq!(queue.put(message(1)), Err(QueueFull));
        assert_eq!(queue.load.load(Ordering::Relaxed), 3);
        drop(end);
        assert_eq!(queue.put(message(1)), Err(QueueFull));
    }
}
