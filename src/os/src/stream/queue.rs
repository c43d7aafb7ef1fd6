//! What a stream's task still has to send, bounded in messages and in bytes.
//!
//! The bound is at the entrance: what finds no room is refused there and then. A reader who does not read
//! so costs a fixed amount of memory. A queue in which nothing waits, as of nearly all of a hub's thousands of streams,
//! has no memory but its own few words.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use bytes::Bytes;

use super::{StreamError, StreamSender};

/// The entrance.
#[derive(Debug)]
pub struct SendQueue(Arc<Shared>);

/// The exit.
#[derive(Debug)]
pub struct SendQueueEnd(Arc<Shared>);

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

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    most: usize,
    limit: usize,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Bytes>,
    /// Of these messages, and of those that are on their way out.
    bytes: usize,
    /// One of the ends is gone.
    closed: bool,
    /// Who waits for a message.
    waker: Option<Waker>,
}

/// A queue of at most `messages` messages and `limit` bytes, and one message more.
pub fn send_queue(messages: usize, limit: usize) -> (SendQueue, SendQueueEnd) {
    let shared = Arc::new(Shared { waiting: Mutex::default(), most: messages, limit });
    (SendQueue(shared.clone()), SendQueueEnd(shared))
}

impl SendQueue {
    /// Puts a message in.
    ///
    /// # Errors
    /// Where there is no room.
    pub fn put(&self, message: Bytes) -> Result<(), QueueFull> {
        let mut waiting = self.0.waiting();
        if waiting.closed || waiting.bytes >= self.0.limit || waiting.messages.len() >= self.0.most {
            return Err(QueueFull);
        }
        waiting.bytes += message.len();
        waiting.messages.push_back(message);
        let waker = waiting.waker.take();
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl Drop for SendQueue {
    /// What was put in still leaves.
    fn drop(&mut self) {
        if let Some(waker) = self.0.close() {
            waker.wake();
        }
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
            tokio::select! {
                biased;
                message = self.next() => {
                    let Some(message) = message else { return Ok(Sent::All) };
                    self.feed(sender, message).await?;
                    self.feed_waiting(sender).await?;
                }
                () = &mut until => {
                    // what was put in before it was time may have come since the queue was looked at
                    self.feed_waiting(sender).await?;
                    return Ok(Sent::Until);
                }
            }
        }
    }

    /// All that waits, and out with it.
    async fn feed_waiting(&self, sender: &mut StreamSender) -> Result<(), StreamError> {
        while let Some(message) = self.take() {
            self.feed(sender, message).await?;
        }
        sender.flush().await
    }

    async fn feed(&self, sender: &mut StreamSender, message: Bytes) -> Result<(), StreamError> {
        let length = message.len();
        let fed = sender.feed(message).await;
        self.0.waiting().bytes -= length;
        fed
    }

    fn take(&self) -> Option<Bytes> {
        self.0.waiting().take()
    }

    /// The next message; `None` where nobody can put one in any more. Safe to cancel.
    async fn next(&self) -> Option<Bytes> {
        poll_fn(|context| {
            let mut waiting = self.0.waiting();
            if let Some(message) = waiting.take() {
                return Poll::Ready(Some(message));
            }
            if waiting.closed {
                return Poll::Ready(None);
            }
            match &mut waiting.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for SendQueueEnd {
    /// Nobody sends what is left.
    fn drop(&mut self) {
        self.0.close();
        self.0.waiting().messages = VecDeque::new();
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) -> Option<Waker> {
        let mut waiting = self.waiting();
        waiting.closed = true;
        waiting.waker.take()
    }
}

impl Waiting {
    fn take(&mut self) -> Option<Bytes> {
        let message = self.messages.pop_front()?;
        if self.messages.is_empty() {
            self.messages = VecDeque::new();
        }
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::{super::tests::pair, *};

    const WAIT: Duration = Duration::from_secs(4);

    fn message(length: usize) -> Bytes {
        vec![0; length].into()
    }

    #[test]
    fn a_reader_who_does_not_read_costs_a_bounded_number_of_bytes() {
        let (queue, end) = send_queue(100, 1000);
        while queue.put(message(90)).is_ok() {}
        assert_eq!(queue.0.waiting().bytes, 1080);
        let mut left = 0;
        while let Some(message) = end.take() {
            left += message.len();
        }
        assert_eq!(left, 1080);
        assert_eq!(queue.put(message(1)), Err(QueueFull), "what is on its way out still counts");
    }

    #[test]
    fn small_messages_are_counted_too_and_a_queue_without_an_end_takes_nothing() {
        let (queue, end) = send_queue(3, 1000);
        (0..3).for_each(|_| queue.put(message(1)).unwrap());
        assert_eq!(queue.put(message(1)), Err(QueueFull));
        assert_eq!(queue.0.waiting().bytes, 3);
        drop(end);
        assert_eq!(queue.put(message(1)), Err(QueueFull));
    }

    #[tokio::test]
    async fn messages_come_out_in_order_and_after_the_last_it_is_told_that_there_is_none() {
        let (queue, end) = send_queue(3, 1000);
        let reader = tokio::spawn(async move {
            let mut lengths = Vec::new();
            while let Some(message) = end.next().await {
                lengths.push(message.len());
            }
            lengths
        });
        // whoever waits is awakened by a message, and by the end
        tokio::task::yield_now().await;
        queue.put(message(7)).unwrap();
        tokio::task::yield_now().await;
        (8..10).for_each(|length| queue.put(message(length)).unwrap());
        drop(queue);
        assert_eq!(timeout(WAIT, reader).await.unwrap().unwrap(), [7, 8, 9]);
    }

    #[tokio::test]
    async fn what_was_put_in_before_it_was_time_to_stop_leaves_although_the_queue_was_empty_when_looked_at() {
        let (mut here, mut there) = pair().await;
        let (queue, mut end) = send_queue(3, 1000);
        // another thread's doing, between two looks
        let until = poll_fn(|_| {
            queue.put(message(7)).unwrap();
            Poll::Ready(())
        });
        assert_eq!(timeout(WAIT, end.send_to(&mut here.sender, until)).await.unwrap().unwrap(), Sent::Until);
        let received = timeout(WAIT, there.receiver.recv()).await.unwrap().unwrap();
        assert_eq!(received.map(|message| message.len()), Some(7));
    }

    #[test]
    fn a_queue_in_which_nothing_waits_has_no_room_for_messages() {
        let (queue, end) = send_queue(100, 1000);
        (0..100).for_each(|_| queue.put(message(1)).unwrap());
        while end.take().is_some() {}
        assert_eq!(queue.0.waiting().messages.capacity(), 0);
    }
}
