//! What a stream has sealed and the kernel has not taken, bounded in bytes and in time.
//!
//! What is sealed must be sent: the bound is at the entrance. Whatever the rate of the link, frames are refused while
//! those that leave have waited longer than they may, or none leaves; but for two messages' worth, which a slow link
//! takes longer to send.
//!
//! All streams of a thread share one amount of memory. Each may take a part of what is still free (the dynamic
//! threshold of Choudhury and Hahne): few may take much, and many who do not read leave the others their part.
//! Where nothing is free, one message may wait on each stream.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How much may wait on the streams of a thread.
#[derive(Debug, Clone, Copy)]
pub struct StreamBounds {
    /// Bytes on all of them; beyond that, one message on a stream on which none waits.
    pub together: usize,
    /// For how long.
    pub patience: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: usize,
    /// What came in at one time, in order: bytes that have not left, and since when they wait.
    waiting: VecDeque<(usize, Instant)>,
    /// How long what left last had waited.
    waited: Duration,
    /// When something left last, or entered while nothing waited.
    moved: Option<Instant>,
}

impl Backlog {
    /// Whether it has no room for frames, where `total` bytes wait on all streams.
    pub(super) fn is_full(&self, bounds: StreamBounds, total: usize, now: Instant) -> bool {
        if total >= bounds.together {
            return self.bytes > 0;
        }
        self.bytes > ALWAYS
            && (self.bytes > bounds.together.saturating_sub(total) / PART || self.wait(now) > bounds.patience)
    }

    /// How long the next to leave will have waited, as far as can be told.
    fn wait(&self, now: Instant) -> Duration {
        self.waited.max(self.moved.map_or(Duration::ZERO, |moved| now.saturating_duration_since(moved)))
    }

    pub(super) fn put(&mut self, bytes: usize, now: Instant) {
        if self.waiting.is_empty() {
            (self.waited, self.moved) = (Duration::ZERO, Some(now));
        }
        self.bytes += bytes;
        match self.waiting.back_mut() {
            Some((last, since)) if *since == now => *last += bytes,
            _ => self.waiting.push_back((bytes, now)),
        }
    }

    /// The kernel took so many bytes.
    pub(super) fn left(&mut self, mut bytes: usize, now: Instant) {
        self.moved = Some(now);
        while let Some((first, since)) = self.waiting.front_mut() {
            self.waited = now.saturating_duration_since(*since);
            let gone = bytes.min(*first);
            *first -= gone;
            bytes -= gone;
            self.bytes -= gone;
            if *first > 0 {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// The kernel has taken everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Bytes that may wait whatever the link's rate, while there is room: two of the longest messages.
const ALWAYS: usize = 2 * super::MOST_MESSAGE;
/// One part in so many of what is free is for one stream.
const PART: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const BOUNDS: StreamBounds = StreamBounds { together: 10 << 20, patience: Duration::from_millis(20) };
    const MS: Duration = Duration::from_millis(1);

    fn fill(backlog: &mut Backlog, others: usize, now: Instant) {
        while !backlog.is_full(BOUNDS, others + backlog.bytes(), now) {
            backlog.put(70_000, now);
        }
    }

    #[test]
    fn a_reader_who_does_not_read_costs_a_bounded_number_of_bytes() {
        let (mut backlog, now) = (Backlog::default(), clock::now());
        fill(&mut backlog, 0, now);
        let most = BOUNDS.together / (PART + 1);
        assert!((most..most + 70_000).contains(&backlog.bytes()), "{}", backlog.bytes());
        assert_eq!(backlog.waiting.len(), 1);
    }

    #[test]
    fn many_who_do_not_read_leave_the_others_their_part() {
        let now = clock::now();
        let mut total = 0;
        let takes: Vec<_> = (0..1000)
            .map(|_| {
                let mut backlog = Backlog::default();
                fill(&mut backlog, total, now);
                total += backlog.bytes();
                backlog.bytes()
            })
            .collect();
        assert!(takes[1] * 2 > takes[0] && takes[9] > ALWAYS, "{takes:?}");
        assert_eq!(takes[999], 70_000, "what any stream may have");
        assert!(total < BOUNDS.together + 1001 * 70_000, "{total}");
    }

    #[test]
    fn frames_are_refused_while_those_that_leave_have_waited_too_long() {
        let (mut backlog, start) = (Backlog::default(), clock::now());
        backlog.put(4 * 70_000, start);
        backlog.left(70_000, start + 21 * MS);
        assert!(backlog.is_full(BOUNDS, 0, start + 21 * MS));
        backlog.left(70_000, start + 22 * MS);
        assert!(!backlog.is_full(BOUNDS, 0, start + 22 * MS), "little waits, however long");
        backlog.put(70_000, start + 22 * MS);
        assert!(backlog.is_full(BOUNDS, 0, start + 22 * MS));
        backlog.left(2 * 70_000 + 1, start + 23 * MS);
        backlog.put(200_000, start + 23 * MS);
        assert!(!backlog.is_full(BOUNDS, 0, start + 23 * MS), "the link has become faster");
    }

    #[test]
    fn frames_wait_no_longer_than_they_may_where_nothing_leaves_at_all() {
        let (mut backlog, start) = (Backlog::default(), clock::now());
        backlog.put(4 * 70_000, start);
        assert!(!backlog.is_full(BOUNDS, 0, start + 20 * MS));
        assert!(backlog.is_full(BOUNDS, 0, start + 21 * MS));
        backlog.clear();
        assert!(!backlog.is_full(BOUNDS, 0, start + 21 * MS));
    }
}
