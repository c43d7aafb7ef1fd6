//! Datagrams, 32 a system call, at a rate.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg};

/// Sends copies of one datagram on a connected socket until told to stop; none at rate zero.
pub(crate) fn paced(socket: &UdpSocket, datagram: &[u8], rate: u64, stop: &AtomicBool, sent: &AtomicU64) {
    let begun = Instant::now();
    let slices = [[IoSlice::new(datagram)]; BATCH];
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let mut count: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = u64::try_from(begun.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX);
        let batch = due.saturating_sub(count).min(BATCH as u64) as usize;
        if batch == 0 {
            std::thread::sleep(PACE);
            continue;
        }
        let slices = slices.iter().take(batch);
        let done = sendmmsg(socket.as_raw_fd(), &mut headers, slices, [None; BATCH], [], MsgFlags::empty());
        // what a full queue refuses is not sent again
        count += done.map_or(batch, |results| results.count()) as u64;
        sent.store(count, Ordering::Relaxed);
    }
}

/// Datagrams handed to the kernel at once.
pub(crate) const BATCH: usize = 32;
/// How long a source that is ahead of its rate sleeps.
const PACE: Duration = Duration::from_micros(200);

/// Counts what comes until told to stop.
pub(crate) fn count(socket: &UdpSocket, stop: &AtomicBool, received: &AtomicU64) {
    let mut headers = MultiHeaders::<()>::preallocate(BATCH, None);
    let mut buffers = vec![0; BATCH * LONGEST];
    while !stop.load(Ordering::Relaxed) {
        let mut slices: Vec<_> = buffers.chunks_exact_mut(LONGEST).map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let done = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None);
        if let Ok(results) = done {
            received.fetch_add(results.count() as u64, Ordering::Relaxed);
        }
    }
}

/// No datagram here is longer.
const LONGEST: usize = 2048;
