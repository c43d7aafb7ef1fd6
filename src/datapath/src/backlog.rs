//! What waits in the UDP socket when its reader falls behind, and who is told.
//!
//! A TCP flow keeps a window under way that may be ten times what the path needs, and while the reader of the socket
//! is late, all of it lies there, in front of everybody's packets: flows are told apart only when they are opened.
//! So where much has waited long, a bulk flow is told as a router tells it (RFC 2309, RFC 3168), by a mark of
//! congestion on one packet, which is the loss of that packet where its sender does not understand marks. That makes
//! the window smaller, and the next wait shorter. It is the length of one wait that counts, not that waits last
//! (RFC 8289): a window comes in bursts, with the socket empty in between.

use std::time::{Duration, Instant};

/// Judges what is read from a socket.
#[derive(Debug, Default)]
pub struct Backlog {
    /// Bytes read since the socket was last found empty.
    read: usize,
    /// Nobody is told before.
    next: Option<Instant>,
}

impl Backlog {
    /// Nothing was left in the socket.
    pub fn emptied(&mut self) {
        self.read = 0;
    }

    /// A datagram or run of `len` bytes was read, which had waited so long. Whether a packet of it is to be marked: where it
    /// turns out to be of a session, [`Backlog::handle_mark`] follows.
    pub fn handle_run(&mut self, len: usize, waited: Duration, now: Instant) -> bool {
        self.read = self.read.saturating_add(len);
        let long = self.read >= MUCH && waited >= LONG && len >= BULK;
        long && self.next.is_none_or(|next| next <= now)
    }

    /// A flow was told: no other one is for a while.
    pub fn handle_mark(&mut self, now: Instant) {
        self.next = Some(now + PAUSE);
    }
}

/// Bytes without which a wait is the reader's pause, and nobody's window: 4 ms at 1 Gbit/s.
const MUCH: usize = 512 << 10;
/// A wait that others feel. The shorter it is, the smaller the window: at 1 ms the bulk flow loses a tenth of its rate,
/// at 2 ms a twentieth.
const LONG: Duration = Duration::from_micros(1300);
/// What is told is a run of this many bytes at least: a bulk flow's, and no ping's or query's.
const BULK: usize = 16 << 10;
/// From one mark to the next: the flow's answer must have time to show, over the longest round trip (the interval of RFC 8289).
const PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: usize = 60_000;

    /// How many of so many runs are marked, each of which had waited for `waited`; one is read each millisecond.
    fn marks(backlog: &mut Backlog, runs: u32, waited: Duration, start: Instant) -> u32 {
        let each = Duration::from_millis(1);
        let mut marks = 0;
        for now in (0..runs).map(|n| start + each * n) {
            if backlog.handle_run(RUN, waited, now) {
                backlog.handle_mark(now);
                marks += 1;
            }
        }
        marks
    }

    #[test]
    fn a_flow_is_told_where_much_has_waited_long_and_again_only_after_a_pause() {
        let (mut backlog, start) = (Backlog::default(), Instant::now());
        assert_eq!(marks(&mut backlog, 8, LONG, start), 0, "little is in front of it yet");
        assert_eq!(marks(&mut backlog, 40, LONG, start), 1);
        assert_eq!(marks(&mut backlog, 201, LONG, start + PAUSE), 3);
    }

    #[test]
    fn a_pause_of_the_reader_is_held_against_nobody() {
        let (mut backlog, start) = (Backlog::default(), Instant::now());
        for n in 0..100 {
            assert_eq!(marks(&mut backlog, 8, LONG * 4, start + PAUSE * n), 0);
            backlog.emptied();
        }
    }

    #[test]
    fn a_full_socket_that_is_read_in_time_and_small_packets_are_left_alone() {
        let (mut backlog, start) = (Backlog::default(), Instant::now());
        assert_eq!(marks(&mut backlog, 1000, LONG - Duration::from_nanos(1), start), 0);
        assert!(!backlog.handle_run(BULK - 1, LONG, start));
        assert!(backlog.handle_run(BULK, LONG, start));
    }

    #[test]
    fn what_nobody_sealed_uses_up_no_mark() {
        let (mut backlog, start) = (Backlog::default(), Instant::now());
        marks(&mut backlog, 8, LONG, start);
        assert!(backlog.handle_run(RUN, LONG, start), "garbage");
        assert_eq!(marks(&mut backlog, 40, LONG, start), 1);
    }
}
