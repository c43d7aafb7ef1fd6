//! Small runs to many places, many to a system call.
//!
//! A run is one message of sendmsg(2); sendmmsg(2) takes several, each with its own destination, segment size
//! and traffic class. Short runs are copied and collected, which costs less than a call each; a long one is sent from
//! where it is, behind what was collected before it. What the kernel does not take in a batch goes the way of
//! [`UdpSocket::send`], with its patience and its fallbacks.
//!
//! Datagrams that come one by one, and go to one place with one size and one class, become one run where the kernel
//! takes runs: they cross its stack once, and wake the receiver once. Others in between do not part them, but to each
//! place all leaves in the order in which it came.

#![expect(unsafe_code, reason = "sendmmsg has no safe wrapper")]

use std::{io, net::SocketAddr, os::fd::AsRawFd as _, sync::atomic::Ordering};

use flatlan_types::Endpoint;
use socket2::SockAddr;

use super::{
    MOST_BYTES, MOST_SEGMENTS, Transmit, UdpSocket,
    control::{Control, Says},
};

/// Runs that leave together.
pub struct SendBatch {
    /// Used again and again: those behind `waiting` are empty.
    runs: Vec<Run>,
    waiting: usize,
}

/// One message.
struct Run {
    bytes: Vec<u8>,
    /// The length of each datagram but the last.
    segment: usize,
    place: Endpoint,
    traffic_class: u8,
    to: SocketAddr,
    address: SockAddr,
    control: Control,
}

impl Run {
    fn transmit(&self) -> Transmit<'_> {
        let segment = Some(self.segment).filter(|segment| *segment < self.bytes.len());
        let (to, traffic_class) = (self.place, self.traffic_class);
        Transmit { to, from: None, contents: &self.bytes, segment, traffic_class }
    }

    /// Whether this can be its end: all its datagrams are of one length, and those of `transmit` too; the last of all
    /// may be shorter.
    fn fits(&self, transmit: &Transmit<'_>) -> bool {
        let more = transmit.contents.len();
        let segment = transmit.segment.unwrap_or(more).min(more);
        let all = self.bytes.len() + more;
        self.traffic_class == transmit.traffic_class
            && self.bytes.len().is_multiple_of(self.segment)
            && (segment == self.segment || segment == more && more < self.segment)
            && all.div_ceil(self.segment) <= MOST_SEGMENTS
            && all <= MOST_BYTES
    }

    fn control(&self) -> Control {
        let Transmit { traffic_class, segment, .. } = self.transmit();
        let segment = segment.and_then(|segment| u16::try_from(segment).ok());
        Control::new(&Says { to: self.to, from: None, traffic_class, segment })
    }
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
        Self { runs: Vec::new(), waiting: 0 }
    }

    fn waiting(&self) -> &[Run] {
        self.runs.get(..self.waiting).unwrap_or_default()
    }

    /// Makes it the end of what waits for the same place, if it fits there.
    fn append(&mut self, transmit: &Transmit<'_>) -> bool {
        let waiting = self.runs.get_mut(..self.waiting).unwrap_or_default();
        let last = waiting.iter_mut().rev().take(NEAR).find(|run| run.place == transmit.to);
        let Some(run) = last.filter(|run| run.fits(transmit)) else { return false };
        let single = run.bytes.len() == run.segment;
        run.bytes.extend_from_slice(transmit.contents);
        if single {
            run.control = run.control();
        }
        true
    }

    fn push(&mut self, transmit: &Transmit<'_>, to: SocketAddr) {
        let mut bytes = self.runs.get_mut(self.waiting).map(|run| std::mem::take(&mut run.bytes)).unwrap_or_default();
        bytes.extend_from_slice(transmit.contents);
        let segment = transmit.segment.unwrap_or(bytes.len()).clamp(1, bytes.len());
        let (place, traffic_class) = (transmit.to, transmit.traffic_class);
        let nothing = Control::new(&Says { to, from: None, traffic_class: 0, segment: None });
        let mut run = Run { bytes, segment, place, traffic_class, to, address: SockAddr::from(to), control: nothing };
        run.control = run.control();
        match self.runs.get_mut(self.waiting) {
            Some(unused) => *unused = run,
            None => self.runs.push(run),
        }
        self.waiting += 1;
    }

    fn clear(&mut self) {
        for run in self.runs.iter_mut().take(self.waiting) {
            run.bytes.clear();
        }
        self.waiting = 0;
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
        Self::cut(transmit.contents, transmit.segment.unwrap_or(usize::MAX))
    }

    /// All of these, so long each.
    pub(super) fn cut(contents: &[u8], segment: usize) -> Self {
        Self { datagrams: contents.len().div_ceil(segment.max(1)) as u64, bytes: contents.len() as u64 }
    }
}

impl std::ops::AddAssign for Unsent {
    fn add_assign(&mut self, other: Self) {
        self.datagrams += other.datagrams;
        self.bytes += other.bytes;
    }
}

impl UdpSocket {
    /// Sends a run at the latest with the next [`UdpSocket::flush`], behind what is in the batch for the same place.
    /// What was given up, of this or of what was there.
    pub fn send_soon(&self, batch: &mut SendBatch, transmit: &Transmit<'_>) -> Unsent {
        let segments = transmit.segment.map_or(1, |segment| transmit.contents.len().div_ceil(segment.max(1)));
        let gso = self.gso.load(Ordering::Relaxed);
        let whole = segments <= 1 || gso && segments <= MOST_SEGMENTS;
        let Some(to) = self.reachable(transmit.to).ok().filter(|_| !transmit.contents.is_empty()) else {
            return Unsent::of(transmit);
        };
        let mut unsent = Unsent::default();
        if transmit.contents.len() > SHORT || transmit.from.is_some() || !whole {
            unsent += self.flush(batch);
            unsent += self.send_now(transmit);
            return unsent;
        }
        if gso && batch.append(transmit) {
            return unsent;
        }
        if batch.waiting >= SendBatch::RUNS {
            unsent += self.flush(batch);
        }
        batch.push(transmit, to);
        unsent
    }

    /// Sends what is in the batch, to each place in order. What was given up.
    pub fn flush(&self, batch: &mut SendBatch) -> Unsent {
        let mut unsent = Unsent::default();
        let mut rest = batch.waiting();
        while let Some((first, behind)) = rest.split_first() {
            let sent = if behind.is_empty() { Ok(0) } else { self.send_runs(rest) };
            match sent {
                Ok(sent) if sent > 0 => rest = rest.get(sent..).unwrap_or_default(),
                // the error is the first one's
                Ok(_) | Err(_) => {
                    unsent += self.send_now(&first.transmit());
                    rest = behind;
                }
            }
        }
        batch.clear();
        unsent
    }

    fn send_now(&self, transmit: &Transmit<'_>) -> Unsent {
        let mut unsent = Unsent::default();
        // what is given up is counted
        let _ = self.send_counting(transmit, &mut unsent);
        unsent
    }

    /// One call; how many of the runs it took.
    fn send_runs(&self, runs: &[Run]) -> io::Result<usize> {
        let mut vectors = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; SendBatch::RUNS];
        // SAFETY: all zeros is a message without address, vectors and control messages.
        let mut messages: [libc::mmsghdr; SendBatch::RUNS] = unsafe { std::mem::zeroed() };
        let mut count = 0;
        for ((run, vector), message) in runs.iter().zip(&mut vectors).zip(&mut messages) {
            let (contents, control) = (run.bytes.as_slice(), run.control.bytes());
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
/// So far back it is looked for what waits for the same place.
const NEAR: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        clock,
        poll::{self, Waker},
        route::{self, Netlink},
        testing::in_empty_netns,
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
        assert_eq!(batch.waiting().len(), runs.len());
        assert_eq!(from.flush(&mut batch), Unsent::default());
        assert!(batch.waiting().is_empty());
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
        assert!(batch.waiting().is_empty(), "both have left");
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

    /// What waits: where to, the length of each datagram, and of all.
    fn waiting(batch: &SendBatch) -> Vec<(SocketAddr, usize, usize)> {
        batch.waiting().iter().map(|run| (run.place.socket_addr(), run.segment, run.bytes.len())).collect()
    }

    static BYTES: [u8; 8000] = {
        let (mut bytes, mut n) = ([0; 8000], 0);
        while n < bytes.len() {
            bytes[n] = (n / 100) as u8;
            n += 1;
        }
        bytes
    };

    #[test]
    fn datagrams_of_one_size_for_one_place_become_a_run_whatever_others_are_between_them() {
        let (from, a, b) = (bound(), bound(), bound());
        let mut batch = SendBatch::new();
        for (n, datagram) in BYTES.chunks(100).take(40).enumerate() {
            let to = if n % 2 == 0 { &a } else { &b };
            assert_eq!(from.send_soon(&mut batch, &transmit(to, datagram, None, 0)), Unsent::default());
        }
        assert_eq!(waiting(&batch), [(a.local(), 100, 2000), (b.local(), 100, 2000)]);
        assert_eq!(from.flush(&mut batch), Unsent::default());
        for (to, first) in [(&a, 0), (&b, 1)] {
            let all: Vec<_> = received(to, 20).into_iter().map(|(bytes, _)| (bytes.len(), bytes[0])).collect();
            assert_eq!(all, (0..20).map(|n| (100, first + 2 * n)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_shorter_datagram_ends_a_run_and_a_longer_one_begins_another() {
        let (from, a) = (bound(), bound());
        let mut batch = SendBatch::new();
        let lengths = [100, 100, 60, 100, 100, 101, 101];
        for length in lengths {
            let _ = from.send_soon(&mut batch, &transmit(&a, &BYTES[..length], None, 0));
        }
        let _ = from.send_soon(&mut batch, &transmit(&a, &BYTES[..250], Some(101), 0));
        assert_eq!(
            waiting(&batch).iter().map(|(_, each, all)| (*each, *all)).collect::<Vec<_>>(),
            [(100, 260), (100, 200), (101, 452),]
        );
        assert_eq!(from.flush(&mut batch), Unsent::default());
        let arrived: Vec<_> = received(&a, 10).into_iter().map(|(bytes, _)| bytes.len()).collect();
        assert_eq!(arrived, [&lengths[..], &[101, 101, 48]].concat());
    }

    #[test]
    fn another_class_begins_another_run_and_what_follows_does_not_overtake_it() {
        let (from, a) = (bound(), bound());
        let mut batch = SendBatch::new();
        let classes = [0, 0, 3, 0, 0];
        for (class, datagram) in classes.into_iter().zip(BYTES.chunks(100)) {
            let _ = from.send_soon(&mut batch, &transmit(&a, datagram, None, class));
        }
        assert_eq!(waiting(&batch).iter().map(|(_, _, all)| *all).collect::<Vec<_>>(), [200, 100, 200]);
        assert_eq!(from.flush(&mut batch), Unsent::default());
        let arrived: Vec<_> = received(&a, 5).into_iter().map(|(bytes, class)| (bytes[0], class)).collect();
        assert_eq!(arrived, [(0, 0), (1, 0), (2, 3), (3, 0), (4, 0)]);
    }

    #[test]
    fn a_run_grows_to_what_the_kernel_takes_and_no_further() {
        let (from, a) = (bound(), bound());
        let mut batch = SendBatch::new();
        for datagram in BYTES.chunks(100).take(MOST_SEGMENTS + 1) {
            let _ = from.send_soon(&mut batch, &transmit(&a, datagram, None, 0));
        }
        let whole = MOST_SEGMENTS * 100;
        assert_eq!(waiting(&batch), [(a.local(), 100, whole), (a.local(), 100, 100)]);
        assert_eq!(from.flush(&mut batch), Unsent::default());
        assert_eq!(received(&a, MOST_SEGMENTS + 1).len(), MOST_SEGMENTS + 1);
        let many = MOST_BYTES / 1400;
        for _ in 0..=many {
            let _ = from.send_soon(&mut batch, &transmit(&a, &BYTES[..1400], None, 0));
        }
        assert_eq!(waiting(&batch), [(a.local(), 1400, many * 1400), (a.local(), 1400, 1400)]);
        assert_eq!(from.flush(&mut batch), Unsent::default());
        assert_eq!(received(&a, many + 1).len(), many + 1);
    }

    #[test]
    fn where_runs_are_off_or_refused_every_datagram_is_a_message() {
        in_empty_netns(|| {
            let a = bound();
            let off = UdpOptions { gso: crate::Offload::Off, ..UdpOptions::default() };
            let off = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), off).unwrap();
            let refused = bound();
            // the kernel refuses to segment where checksums are off
            super::super::set(&refused.socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
            let mut batch = SendBatch::new();
            for (from, messages) in [(&off, 5), (&refused, 1), (&refused, 5)] {
                for datagram in BYTES.chunks(100).take(5) {
                    let _ = from.send_soon(&mut batch, &transmit(&a, datagram, None, 0));
                }
                assert_eq!(batch.waiting().len(), messages);
                assert_eq!(from.flush(&mut batch), Unsent::default());
                assert_eq!(received(&a, 5).len(), 5);
            }
            assert_eq!((refused.gso(), refused.refused()), (false, 1));
        });
    }

    #[test]
    fn of_a_run_that_is_refused_what_goes_through_one_by_one_is_not_given_up() {
        in_empty_netns(|| {
            set_mtu_of_loopback(1280);
            let (from, a) = (bound(), bound());
            let mut batch = SendBatch::new();
            for length in [1400, 1400, 1400, 50, 60] {
                let _ = from.send_soon(&mut batch, &transmit(&a, &BYTES[..length], None, 0));
            }
            assert_eq!(waiting(&batch), [(a.local(), 1400, 4250), (a.local(), 60, 60)]);
            assert_eq!(from.flush(&mut batch), Unsent { datagrams: 3, bytes: 4200 });
            let arrived: Vec<_> = received(&a, 2).into_iter().map(|(bytes, _)| bytes.len()).collect();
            assert_eq!(arrived, [50, 60]);
            assert!(from.gso(), "it was not the segmentation");
        });
    }

    fn set_mtu_of_loopback(mtu: u32) {
        route::block_on(async {
            let netlink = Netlink::open().unwrap();
            let lo = netlink.link("lo").await.unwrap();
            netlink.set_mtu(lo, mtu).await.unwrap();
        })
        .unwrap();
    }
}
