//! What a worker thread waits on: its descriptors, a wake-up from other threads, and a deadline.
//!
//! One system call (`ppoll`, nanosecond deadlines) and one eventfd. It says who is ready and does
//! nothing else.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    time::Instant,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    fd::AsFd,
    io::Errno,
};

use crate::clock;

/// Wakes the thread that waits with it. Clones wake the same thread.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A new one.
    ///
    /// # Errors
    /// Where the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Ends the current wait, or the next. Many calls before a wait count as one.
    pub fn wake(&self) {
        // Fails only where the counter is full, and then a wake-up is pending already.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = rustix::io::read(&*self.0, &mut [0u8; 8]);
    }
}

/// Who is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready<const N: usize> {
    /// Per descriptor, in the order given: there is something to read, or an error to be seen by reading.
    pub readable: [bool; N],
    /// The waker was used.
    pub woken: bool,
}

/// Waits until a descriptor is readable, the waker is used, or the deadline (of [`clock::now`]) has passed.
///
/// # Errors
/// Where the kernel refuses to poll; interruptions by signals are not told.
pub fn wait<const N: usize>(
    descriptors: [BorrowedFd<'_>; N],
    waker: &Waker,
    deadline: Option<Instant>,
) -> io::Result<Ready<N>> {
    const { assert!(N < MOST) };
    let waker_fd = waker.0.as_fd();
    let mut fds: [PollFd<'_>; MOST] =
        std::array::from_fn(|i| PollFd::from_borrowed_fd(*descriptors.get(i).unwrap_or(&waker_fd), PollFlags::IN));
    let fds = fds.get_mut(..=N).expect("N is below MOST");
    loop {
        let timeout = deadline.map(|deadline| Timespec::try_from(clock::until(deadline)).unwrap_or(LONG));
        match poll(fds, timeout.as_ref()) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let ready = |i: usize| fds.get(i).is_some_and(|fd| !fd.revents().is_empty());
    let ready = Ready { readable: std::array::from_fn(ready), woken: ready(N) };
    if ready.woken {
        waker.clear();
    }
    Ok(ready)
}

const MOST: usize = 8;
const LONG: Timespec = Timespec { tv_sec: 3600, tv_nsec: 0 };

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, thread, time::Duration};

    use super::*;

    fn soon(ms: u64) -> Option<Instant> {
        Some(clock::now() + Duration::from_millis(ms))
    }

    #[test]
    fn a_wait_ends_at_its_deadline_and_not_before() {
        let waker = Waker::new().unwrap();
        let deadline = soon(15);
        let ready = wait([], &waker, deadline).unwrap();
        assert!(!ready.woken);
        assert!(clock::now() >= deadline.unwrap());
    }

    #[test]
    fn another_thread_ends_the_wait_once() {
        let waker = Waker::new().unwrap();
        let other = waker.clone();
        thread::spawn(move || {
            other.wake();
            other.wake();
        })
        .join()
        .unwrap();
        assert!(wait([], &waker, None).unwrap().woken);
        assert!(!wait([], &waker, soon(0)).unwrap().woken);
    }

    #[test]
    fn the_ready_descriptor_is_told_apart_from_the_idle_one() {
        let (idle, busy) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        idle.send_to(b"x", busy.local_addr().unwrap()).unwrap();
        let waker = Waker::new().unwrap();
        let ready = wait([idle.as_fd(), busy.as_fd()], &waker, soon(2000)).unwrap();
        assert_eq!(ready, Ready { readable: [false, true], woken: false });
    }
}
