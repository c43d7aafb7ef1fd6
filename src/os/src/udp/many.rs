//! Small runs to many places, many to a system call.
//!
//! A run is one message of sendmsg(2); sendmmsg(2) takes several, each with its own destination, segment size
//! and traffic class. Short runs are copied and collected, which costs less than a call each; a long one is sent from
//! where it is, behind what was collected before it. What the kernel does not take in a batch goes the way of
//! [`UdpSocket::send`], with its patience and its fallbacks.

#![expect(unsafe_code, reason = "sendmmsg has no safe wrapper")]

use std::{io, os::fd::AsRawFd as _, sync::atomic::Ordering};

use socket2::SockAddr;

use super::{
    MOST_SEGMENTS, Transmit, UdpSocket,
    control::{Control, Says},
};

/// Runs that leave together.
pub struct SendBatch {
    bytes: Vec<u8>,
    runs: Vec<Run>,
}

/// One message.
struct Run {
    from: usize,
    to: usize,
    segment: Option<usize>,
    place: flatlan_types::Endpoint,
    traffic_class: u8,
    address: SockAddr,
    control: Control,
}

/// What was not sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unsent {
    /// Datagrams.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl SendBatch {
    /// The most runs in one call.
    pub const RUNS: usize = 64;

    /// Nothing yet.
    pub fn new() -> Self {
        Self { bytes: Vec::with_capacity(Self::RUNS * SHORT), runs: Vec::with_capacity(Self::RUNS) }
    }

    fn transmit<'a>(&'a self, run: &Run) -> Transmit<'a> {
        Transmit {
            to: run.place,
            from: None,
            contents: self.bytes.get(run.from..run.to).unwrap_or_default(),
            segment: run.segment,
            traffic_class: run.traffic_class,
        }
    }
}

impl Default for SendBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl Unsent {
    /// All of these.
    fn of(transmit: &Transmit<'_>) -> Self {
        let segment = transmit.segment.unwrap_or(usize::MAX).max(1);
        Self { datagrams: transmit.contents.len().div_ceil(segment) as u64, bytes: transmit.contents.len() as u64 }
    }
}

impl std::ops::AddAssign for Unsent {
    fn add_assign(&mut self, other: Self) {
        self.datagrams += other.datagrams;
        self.bytes += other.bytes;
    }
}

impl UdpSocket {
    /// Sends a run at the latest with the next [`UdpSocket::flush`], behind what is in the batch. What was given up,
    /// of this or of what was there.
    pub fn send_soon(&self, batch: &mut SendBatch, transmit: &Transmit<'_>) -> Unsent {
        let segments = transmit.segment.map_or(1, |segment| transmit.contents.len().div_ceil(segment.max(1)));
        let several = segments > 1;
        let whole = !several || self.gso.load(Ordering::Relaxed) && segments <= MOST_SEGMENTS;
        let Some(to) = self.reachable(transmit.to).ok().filter(|_| !transmit.contents.is_empty()) else {
            return Unsent::of(transmit);
        };
        let mut unsent = Unsent::default();
        if transmit.contents.len() > SHORT || transmit.from.is_some() || !whole {
            unsent += self.flush(batch);
            unsent += self.send_now(transmit);
            return unsent;
        }
        if batch.runs.len() >= SendBatch::RUNS {
            unsent += self.flush(batch);
        }
        let segment = transmit.segment.filter(|_| several);
        let says = Says {
            to,
            from: None,
            traffic_class: transmit.traffic_class,
            segment: segment.and_then(|segment| u16::try_from(segment).ok()),
        };
        let from = batch.bytes.len();
        batch.bytes.extend_from_slice(transmit.contents);
        batch.runs.push(Run {
            from,
            to: batch.bytes.len(),
            segment,
            place: transmit.to,
            traffic_class: transmit.traffic_class,
            address: SockAddr::from(to),
            control: Control::new(&says),
        });
        unsent
    }

    /// Sends what is in the batch, in order. What was given up.
    pub fn flush(&self, batch: &mut SendBatch) -> Unsent {
        let mut unsent = Unsent::default();
        let mut rest = batch.runs.as_slice();
        while let Some((first, behind)) = rest.split_first() {
            let sent = if behind.is_empty() { Ok(0) } else { self.send_runs(&batch.bytes, rest) };
            match sent {
                Ok(sent) if sent > 0 => rest = rest.get(sent..).unwrap_or_default(),
                // the error is the first one's
                Ok(_) | Err(_) => {
                    unsent += self.send_now(&batch.transmit(first));
                    rest = behind;
                }
            }
        }
        batch.runs.clear();
        batch.bytes.clear();
        unsent
    }

    fn send_now(&self, transmit: &Transmit<'_>) -> Unsent {
        if self.send(transmit).is_ok() { Unsent::default() } else { Unsent::of(transmit) }
    }

    /// One call; how many of the runs it took.
    fn send_runs(&self, bytes: &[u8], runs: &[Run]) -> io::Result<usize> {
        let contents = |run: &Run| bytes.get(run.from..run.to).unwrap_or_default();
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; SendBatch::RUNS];
        // SAFETY: all zeros is a message without address, vectors and control messages.
        let mut messages: [libc::mmsghdr; SendBatch::RUNS] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        for ((run, vector), message) in runs.iter().zip(&mut vectors).zip(&mut messages) {
            let (contents, control) = (contents(run), run.control.bytes());
            *vector = libc::iovec { iov_base: contents.as_ptr().cast_mut().cast(), iov_len: contents.len() };
            let header = &mut message.msg_hdr;
            header.msg_name = run.address.as_ptr().cast_mut().cast();
            header.msg_namelen = run.address.len();
            header.msg_iov = vector;
            header.msg_iovlen = 1;
            header.msg_control = control.as_ptr().cast_mut().cast();
            header.msg_controllen = control.len() as _;
            count += 1;
        }
        // SAFETY: the first `count` messages point to addresses, vectors, bytes and control messages that outlive
        // the call; of all that the kernel writes only `msg_len` of `messages`.
        let sent = unsafe { libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// A run that is not longer than this is copied: less than a call costs.
const SHORT: usize = 8192;

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use flatlan_types::Endpoint;

    use super::*;
    use crate::{
        clock,
        poll::{self, Waker},
        udp::{RecvBatch, UdpOptions},
    };

    fn bound() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0".parse().unwrap(), UdpOptions::default()).unwrap()
    }

    /// So many datagrams, in the order of their arrival, with their traffic class.
    fn received(socket: &UdpSocket, count: usize) -> Vec<(Vec<u8>, u8)> {
        let (waker, deadline) = (Waker::new().unwrap(), clock::now() + Duration::from_secs(5));
        let (mut batch, mut all) = (RecvBatch::new(), Vec::new());
        while all.len() < count {
            assert!(clock::now() < deadline, "{} of {count} arrived", all.len());
            poll::wait([std::os::fd::AsFd::as_fd(socket)], &waker, Some(deadline)).unwrap();
            if socket.recv(&mut batch).is_err() {
                continue;
            }
            for run in batch.received() {
                all.extend(run.contents.chunks(run.stride).map(|datagram| (datagram.to_vec(), run.traffic_class)));
            }
        }
        all
    }

    fn transmit(
        to: &UdpSocket,
        contents: &'static [u8],
        segment: Option<usize>,
        traffic_class: u8,
    ) -> Transmit<'static> {
        Transmit { to: Endpoint::new(to.local()), from: None, contents, segment, traffic_class }
    }

    #[test]
    fn runs_to_several_places_leave_together_each_in_its_order_with_its_size_and_class() {
        let (from, a, b) = (bound(), bound(), bound());
        let mut batch = SendBatch::new();
        let runs = [
            transmit(&a, b"one", None, 0),
            transmit(&b, b"1111222233", Some(4), 0xb8),
            transmit(&a, b"two", None, 2),
            transmit(&b, b"last", None, 0),
            transmit(&a, b"aabb", Some(2), 1),
        ];
        for run in &runs {
            assert_eq!(from.send_soon(&mut batch, run), Unsent::default());
        }
        assert_eq!(batch.runs.len(), runs.len());
        assert_eq!(from.flush(&mut batch), Unsent::default());
        assert!(batch.runs.is_empty() && batch.bytes.is_empty());
        let text = |all: Vec<(Vec<u8>, u8)>| -> Vec<(String, u8)> {
            all.into_iter().map(|(bytes, class)| (String::from_utf8(bytes).unwrap(), class)).collect()
        };
        let said = |text: &str, class: u8| (text.to_owned(), class);
        assert_eq!(text(received(&a, 4)), [said("one", 0), said("two", 2), said("aa", 1), said("bb", 1)]);
        let to_b = [said("1111", 0xb8), said("2222", 0xb8), said("33", 0xb8), said("last", 0)];
        assert_eq!(text(received(&b, 4)), to_b);
    }

    #[test]
    fn what_cannot_be_sent_is_told_and_holds_nothing_back() {
        let (from, a) = (bound(), bound());
        let mut batch = SendBatch::new();
        let nowhere = Transmit {
            to: Endpoint::new("255.255.255.255:9".parse::<SocketAddr>().unwrap()),
            ..transmit(&a, b"lost them", Some(5), 0)
        };
        assert_eq!(from.send_soon(&mut batch, &transmit(&a, b"one", None, 0)), Unsent::default());
        assert_eq!(from.send_soon(&mut batch, &nowhere), Unsent::default());
        assert_eq!(from.send_soon(&mut batch, &transmit(&a, b"two", None, 0)), Unsent::default());
        let no_port = Transmit { to: Endpoint::new("127.0.0.1:0".parse::<SocketAddr>().unwrap()), ..nowhere };
        assert_eq!(from.send_soon(&mut batch, &no_port), Unsent { datagrams: 2, bytes: 9 });
        assert_eq!(from.flush(&mut batch), Unsent { datagrams: 2, bytes: 9 });
        let all: Vec<Vec<u8>> = received(&a, 2).into_iter().map(|(bytes, _)| bytes).collect();
        assert_eq!(all, [b"one", b"two"]);
    }

    #[test]
    fn a_long_run_goes_behind_what_was_collected_before_it() {
        let (from, a) = (bound(), bound());
        let mut batch = SendBatch::new();
        static LONG: [u8; 20_000] = [7; 20_000];
        let _ = from.send_soon(&mut batch, &transmit(&a, b"first", None, 0));
        assert_eq!(from.send_soon(&mut batch, &transmit(&a, &LONG, Some(1000), 0)), Unsent::default());
        assert!(batch.runs.is_empty(), "both have left");
        let all = received(&a, 21);
        assert_eq!(all[0].0, b"first");
        assert!(all[1..].iter().all(|(datagram, _)| datagram.len() == 1000));
    }

    #[test]
    fn more_runs_than_one_call_takes_all_arrive_in_order() {
        let (from, a) = (bound(), bound());
        let mut batch = SendBatch::new();
        static NUMBERS: [u8; 200] = {
            let (mut numbers, mut n) = ([0; 200], 0);
            while n < 200 {
                numbers[n] = n as u8;
                n += 1;
            }
            numbers
        };
        for one in NUMBERS.chunks(1) {
            assert_eq!(from.send_soon(&mut batch, &transmit(&a, one, None, 0)), Unsent::default());
        }
        assert_eq!(from.flush(&mut batch), Unsent::default());
        let all: Vec<u8> = received(&a, 200).into_iter().flat_map(|(bytes, _)| bytes).collect();
        assert_eq!(all, NUMBERS);
    }
}
