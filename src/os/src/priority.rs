//! The place of a packet thread in the queue for the processor: ahead of others while it moves bulk.
//!
//! With nearly all that it hands to the kernel a packet thread wakes somebody, such as the program that reads a TCP
//! flow. The kernel lets a thread that is awakened and used little run at once, in the middle of the batch: the
//! program reads one super-packet, sleeps, and is awakened by the next. Where both share a processor, these
//! switches cost a tenth of the whole. Ahead of the others a packet thread finishes what it has, and the program
//! reads much in one go.
//!
//! For small packets it is the other way round. There the packet thread is the one that is awakened: ahead of the
//! program that sends, it would take every packet alone, where it now finds a batch. So it moves ahead while most of
//! what it reads is super-packets and runs, and back when that is over. It is judged anew every few milliseconds.
//! From the network counts only what was carried on: whoever sends what is dropped moves nobody.
//!
//! It stays an ordinary thread: the others get their share, however much there is to move. And it keeps its processor
//! while it moves bulk, where there are several.

use std::time::{Duration, Instant};

use rustix::process::{getpriority_process, setpriority_process};

use crate::processor::Processor;

/// The place of the thread that made it.
#[derive(Debug)]
pub struct Priority {
    /// Where the process was put (`nice`, `Nice=` of systemd). Absent where the thread may not move.
    from: Option<i32>,
    ahead: bool,
    /// Pieces read since the window began.
    large: u32,
    small: u32,
    window_ends: Instant,
    processor: Processor,
}

impl Priority {
    /// Of the calling thread.
    pub fn new(now: Instant) -> Self {
        // on Linux this is the thread's own, not the process's
        let from = getpriority_process(None).ok();
        Self { from, ahead: false, large: 0, small: 0, window_ends: now + WINDOW, processor: Processor::new() }
    }

    /// One piece was read from the network: it counts as what was carried on of it, if anything was.
    pub fn count_carried(&mut self, bytes: u64) {
        if bytes > 0 {
            self.count(usize::try_from(bytes).unwrap_or(usize::MAX));
        }
    }

    /// One piece was read from the kernel: a packet, a super-packet, or a run of datagrams.
    pub fn count(&mut self, bytes: usize) {
        let of_its_kind = if bytes >= LARGE { &mut self.large } else { &mut self.small };
        *of_its_kind = of_its_kind.saturating_add(1);
    }

    /// Moves the thread where what it read wants it. To move ahead needs CAP_SYS_NICE or a limit that allows it
    /// (`LimitNICE=`); without, the thread stays where it is.
    pub fn update(&mut self, now: Instant) {
        if now < self.window_ends {
            return;
        }
        let bulk = self.large >= BULK && self.large >= self.small / 3;
        (self.large, self.small) = (0, 0);
        self.window_ends = now + WINDOW;
        if bulk {
            self.processor.judge(now);
        } else {
            self.processor.release();
        }
        if bulk != self.ahead
            && let Some(from) = self.from
        {
            let ahead = if self.processor.one_of_several() { AHEAD } else { AHEAD_ALONE };
            match setpriority_process(None, if bulk { from - ahead } else { from }) {
                Ok(()) => self.ahead = bulk,
                Err(_) => self.from = None,
            }
        }
    }
}

/// How often the thread may move.
const WINDOW: Duration = Duration::from_millis(10);
/// How far: 28 times the share of one that stayed behind, which may run on another processor.
const AHEAD: i32 = 15;
/// The same on a machine of one processor: nine times.
const AHEAD_ALONE: i32 = 10;
/// From here on a piece is large: a dozen packets.
const LARGE: usize = 16 << 10;
/// So many large pieces in a window are bulk: from 0.4 Gbit/s on.
const BULK: u32 = 20;

#[cfg(test)]
mod tests {
    use rustix::thread::{CapabilitySet, capabilities, sched_getaffinity};

    use super::*;
    use crate::clock;

    /// The nice value of a thread that has read such pieces.
    fn after(pieces: &[(u32, usize)]) -> i32 {
        let now = clock::now();
        let mut priority = Priority::new(now);
        let mut windows = 0;
        for (count, bytes) in pieces {
            (0..*count).for_each(|_| priority.count(*bytes));
            if *count == 0 {
                windows += 1;
                priority.update(now + WINDOW * windows);
            }
        }
        getpriority_process(None).unwrap()
    }

    #[test]
    fn bulk_moves_a_thread_ahead_alone_and_small_packets_move_it_back() {
        let before = getpriority_process(None).unwrap();
        let permitted = capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_NICE);
        let several = sched_getaffinity(None).unwrap().count() > 1;
        let ahead = before - if several { AHEAD } else { AHEAD_ALONE };
        let ahead = if permitted { ahead.max(-20) } else { before };
        let window = (0, 0);
        let cases: [(&[(u32, usize)], i32); 6] = [
            (&[(100, 60_000), (90, 100)], before),
            (&[(100, 60_000), (90, 100), window], ahead),
            (&[(100, 60_000), window, (100, 100), window], before),
            (&[(100, 60_000), window, window], before),
            (&[(100, 60_000), (2_000, 1_280), window], before),
            (&[(BULK - 1, 60_000), window], before),
        ];
        for (pieces, expected) in cases {
            let place = std::thread::scope(|scope| scope.spawn(|| after(pieces)).join().unwrap());
            assert_eq!(place, expected, "{pieces:?}");
        }
        assert_eq!(getpriority_process(None).unwrap(), before);
    }

    #[test]
    fn what_is_read_from_the_network_counts_as_what_was_carried_of_it() {
        let mut priority = Priority::new(clock::now());
        for bytes in [60_000, 60_000, 0, 0, 1_280, 0, 16_384] {
            priority.count_carried(bytes);
        }
        assert_eq!((priority.large, priority.small), (3, 1));
    }
}
