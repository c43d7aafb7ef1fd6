//! What a worker thread waits on: its descriptors, a wake-up from other threads, and a deadline.
//!
//! One system call and one eventfd. It says who is ready and does nothing else. [`wait`] has nanosecond deadlines
//! (`ppoll`); a [`Poller`] knows its descriptors beforehand (`epoll`), and costs less where it waits for every packet.

use std::{
    io,
    mem::MaybeUninit,
    num::NonZeroU64,
    os::fd::{BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll},
    fd::AsFd,
    io::Errno,
    thread::set_current_timer_slack,
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

/// The same descriptors, waited for again and again: the kernel is told of them once.
#[derive(Debug)]
pub struct Poller<const N: usize> {
    epoll: OwnedFd,
    waker: Waker,
}

impl<const N: usize> Poller<N> {
    /// Of descriptors that stay open as long as this is used, for the calling thread.
    ///
    /// # Errors
    /// Where the process has no descriptor left, or one of these cannot be waited for.
    pub fn new(descriptors: [BorrowedFd<'_>; N], waker: Waker) -> io::Result<Self> {
        const { assert!(N < MOST) };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (descriptor, number) in descriptors.into_iter().chain([waker.0.as_fd()]).zip(0..) {
            epoll::add(&epoll, descriptor, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
        }
        // what the kernel adds otherwise is as long as a pause
        let _ = set_current_timer_slack(NonZeroU64::new(SLACK));
        Ok(Self { epoll, waker })
    }

    /// Sleeps for so long, whatever comes: not longer by much than it is to, in the thread that made this.
    pub fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }

    /// As [`wait`], with the deadline rounded up to whole milliseconds.
    ///
    /// # Errors
    /// As [`wait`].
    pub fn wait(&self, deadline: Option<Instant>) -> io::Result<Ready<N>> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); MOST];
        let (events, _) = loop {
            let timeout = deadline.map(|deadline| Timespec::try_from(whole(clock::until(deadline))).unwrap_or(LONG));
            match epoll::wait(&self.epoll, &mut events[..], timeout.as_ref()) {
                Ok(done) => break done,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let ready = |number: usize| events.iter().any(|event| event.data.u64() == number as u64);
        let ready = Ready { readable: std::array::from_fn(ready), woken: ready(N) };
        if ready.woken {
            self.waker.clear();
        }
        Ok(ready)
    }
}

/// The next whole number of milliseconds: kernels before 5.11 know no other timeouts here.
fn whole(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
}

const MOST: usize = 8;
/// By so many nanoseconds a wait may be longer than it should.
const SLACK: u64 = 1000;
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
    fn a_poller_tells_the_ready_descriptor_apart_and_its_wait_ends_at_a_deadline_or_by_a_waker() {
        let (idle, busy) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let waker = Waker::new().unwrap();
        let poller = Poller::new([idle.as_fd(), busy.as_fd()], waker.clone()).unwrap();
        let deadline = soon(3).unwrap();
        assert_eq!(poller.wait(Some(deadline)).unwrap(), Ready { readable: [false, false], woken: false });
        assert!(clock::now() >= deadline);
        let other = thread::spawn(move || waker.wake());
        assert_eq!(poller.wait(soon(4000)).unwrap(), Ready { readable: [false, false], woken: true });
        other.join().unwrap();
        idle.send_to(b"x", busy.local_addr().unwrap()).unwrap();
        for _ in 0..2 {
            assert_eq!(poller.wait(soon(4000)).unwrap(), Ready { readable: [false, true], woken: false });
        }
        busy.recv(&mut [0; 8]).unwrap();
        assert_eq!(poller.wait(soon(0)).unwrap(), Ready { readable: [false, false], woken: false });
    }

    #[test]
    fn a_pause_is_not_shorter_than_it_is_to_be_and_nothing_that_came_meanwhile_is_lost() {
        let busy = UdpSocket::bind("127.0.0.1:0").unwrap();
        let waker = Waker::new().unwrap();
        let poller = Poller::new([busy.as_fd()], waker.clone()).unwrap();
        busy.send_to(b"x", busy.local_addr().unwrap()).unwrap();
        waker.wake();
        let (begun, time) = (clock::now(), Duration::from_micros(300));
        poller.pause(time);
        assert!(clock::now() - begun >= time);
        assert_eq!(poller.wait(soon(4000)).unwrap(), Ready { readable: [true], woken: true });
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
