use super::*;
use crate::{
    clock, poll as wait,
    route::{self, Netlink},
    testing::{as_nobody, in_empty_netns},
};

const V4: &str = "127.0.0.1:0";

fn bind(address: &str) -> UdpSocket {
    UdpSocket::bind(address.parse().unwrap(), UdpOptions::default()).unwrap()
}

fn here(socket: &UdpSocket) -> Endpoint {
    Endpoint::new(socket.local())
}

fn transmit<'a>(to: Endpoint, contents: &'a [u8], segment: usize) -> Transmit<'a> {
    Transmit { to, from: None, contents, segment: Some(segment), traffic_class: 0 }
}

struct Got {
    from: Endpoint,
    to: Option<IpAddr>,
    traffic_class: u8,
    stride: usize,
    contents: Vec<u8>,
}

/// Receives until `bytes` have come.
fn recv(socket: &UdpSocket, bytes: usize) -> Vec<Got> {
    let waker = wait::Waker::new().unwrap();
    let deadline = clock::now() + Duration::from_secs(5);
    let mut batch = RecvBatch::new();
    let mut all: Vec<Got> = Vec::new();
    while all.iter().map(|got| got.contents.len()).sum::<usize>() < bytes {
        assert!(clock::now() < deadline, "lost some");
        wait::wait([socket.as_fd()], &waker, Some(deadline)).unwrap();
        if let Err(error) = socket.recv(&mut batch) {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
        all.extend(batch.received().map(|r| Got {
            from: r.from,
            to: r.to,
            traffic_class: r.traffic_class,
            stride: r.stride,
            contents: r.contents.to_vec(),
        }));
    }
    all
}

fn run(datagrams: usize, segment: usize, last: usize) -> Vec<u8> {
    let length = (datagrams - 1) * segment + last;
    (0..length).map(|i| u8::try_from(i / segment % 251).unwrap()).collect()
}

#[test]
fn a_run_arrives_as_one_run() {
    in_empty_netns(|| {
        for address in [V4, "[::1]:0"] {
            let (a, b) = (bind(address), bind(address));
            assert!(a.gso());
            let contents = run(30, 1400, 900);
            a.send(&transmit(here(&b), &contents, 1400)).unwrap();
            let got = recv(&b, contents.len());
            assert_eq!(got.len(), 1, "one buffer");
            assert_eq!((got[0].stride, got[0].from), (1400, here(&a)));
            assert_eq!(got[0].contents, contents);
        }
    });
}

#[test]
fn a_long_run_is_cut_to_what_the_kernel_takes() {
    in_empty_netns(|| {
        let (a, b) = (bind(V4), bind(V4));
        for (segment, datagrams) in [(1452, 150), (100, 500), (32_000, 5)] {
            let contents = run(datagrams, segment, 7);
            a.send(&transmit(here(&b), &contents, segment)).unwrap();
            let got = recv(&b, contents.len());
            assert!(got.iter().all(|g| g.stride == segment || g.contents.len() == 7));
            assert_eq!(got.into_iter().flat_map(|g| g.contents).collect::<Vec<_>>(), contents);
        }
        assert!(a.gso(), "nothing was refused");
    });
}

#[test]
fn a_refused_run_is_sent_in_single_datagrams_and_nothing_is_lost() {
    in_empty_netns(|| {
        let (a, b) = (bind(V4), bind(V4));
        set_no_check(&a, 1);
        let contents = run(100, 1000, 10);
        a.send(&Transmit { traffic_class: 1, ..transmit(here(&b), &contents, 1000) }).unwrap();
        assert_eq!((a.gso(), a.refused()), (false, 1), "the kernel refused");
        let got = recv(&b, contents.len());
        assert!(got.iter().all(|g| g.traffic_class == 1), "ECN outlives the refusal");
        assert_eq!(got.into_iter().flat_map(|g| g.contents).collect::<Vec<_>>(), contents);

        a.send(&transmit(here(&b), &contents, 1000)).unwrap();
        let got = recv(&b, contents.len());
        assert_eq!(got.into_iter().flat_map(|g| g.contents).collect::<Vec<_>>(), contents);

        set_no_check(&a, 0);
        a.reset_offload();
        a.send(&transmit(here(&b), &contents[..9000], 1000)).unwrap();
        assert_eq!(recv(&b, 9000).len(), 1);
        assert!(a.gso());
    });
}

#[test]
fn what_is_to_be_on_is_tried_again_each_time_and_refusals_are_counted() {
    in_empty_netns(|| {
        let on = UdpOptions { gso: Offload::On, ..UdpOptions::default() };
        let (a, b) = (UdpSocket::bind(V4.parse().unwrap(), on).unwrap(), bind(V4));
        let contents = run(10, 1000, 10);
        set_no_check(&a, 1);
        for times in 1..4 {
            a.send(&transmit(here(&b), &contents, 1000)).unwrap();
            assert_eq!((a.gso(), a.refused()), (true, times));
            assert_eq!(recv(&b, contents.len()).into_iter().flat_map(|g| g.contents).collect::<Vec<_>>(), contents);
        }
        set_no_check(&a, 0);
        a.send(&transmit(here(&b), &contents, 1000)).unwrap();
        assert_eq!((recv(&b, contents.len()).len(), a.refused()), (1, 3));
    });
    let without = UdpError::NoSegmentation { address: V4.parse().unwrap() };
    assert_eq!(without.exit_class(), ExitClass::Wrong);
    assert_eq!(
        without.to_string(),
        "cannot bind UDP 127.0.0.1:0: udp_gso = on, but this kernel does not segment UDP (Linux 4.18 does): set udp_gso = \"auto\""
    );
}

#[test]
fn a_socket_that_takes_no_runs_gets_every_datagram_of_one() {
    in_empty_netns(|| {
        let off = UdpOptions { gso: Offload::Off, ..UdpOptions::default() };
        let (a, b) = (bind(V4), UdpSocket::bind(V4.parse().unwrap(), off).unwrap());
        let contents = run(30, 1400, 900);
        a.send(&transmit(here(&b), &contents, 1400)).unwrap();
        let got = recv(&b, contents.len());
        assert_eq!((got.len(), a.gso()), (30, true));
        assert!(got.iter().all(|g| g.stride == g.contents.len()));
        assert_eq!(got.into_iter().flat_map(|g| g.contents).collect::<Vec<_>>(), contents);
    });
}

#[test]
fn runs_that_were_switched_off_stay_off() {
    in_empty_netns(|| {
        let off = UdpOptions { gso: Offload::Off, ..UdpOptions::default() };
        let (a, b) = (UdpSocket::bind(V4.parse().unwrap(), off).unwrap(), bind(V4));
        let contents = run(10, 1000, 10);
        for _ in 0..2 {
            assert!(!a.gso());
            a.send(&transmit(here(&b), &contents, 1000)).unwrap();
            let got = recv(&b, contents.len());
            assert_eq!(got.into_iter().flat_map(|g| g.contents).collect::<Vec<_>>(), contents);
            a.reset_offload();
        }
    });
}

/// The kernel refuses to segment where checksums are off.
fn set_no_check(socket: &UdpSocket, value: libc::c_int) {
    set(&socket.socket, libc::SOL_SOCKET, libc::SO_NO_CHECK, value).unwrap();
}

#[test]
fn a_bad_destination_says_so_and_the_socket_goes_on_segmenting() {
    in_empty_netns(|| {
        route::block_on(async {
            let netlink = Netlink::open().unwrap();
            let lo = netlink.link("lo").await.unwrap();
            netlink.set_mtu(lo, 1500).await.unwrap();
        })
        .unwrap();
        let (a, b) = (bind(V4), bind(V4));
        let errno = |result: io::Result<()>| Errno::from_io_error(&result.unwrap_err());
        let contents = run(4, 2000, 2000);
        assert_eq!(errno(a.send(&transmit(here(&b), &contents, 2000))), Some(Errno::MSGSIZE));
        assert_eq!(errno(a.send(&transmit(here(&b), &contents[..2000], 2000))), Some(Errno::MSGSIZE));
        let nowhere = Endpoint::new("192.0.2.1:9".parse().unwrap());
        assert_eq!(errno(a.send(&transmit(nowhere, &contents, 1000))), Some(Errno::NETUNREACH));
        let port_0 = Endpoint::new("127.0.0.1:0".parse().unwrap());
        assert_eq!(a.send(&transmit(port_0, &contents, 1000)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let v6 = Endpoint::new("[::1]:9".parse().unwrap());
        assert_eq!(errno(a.send(&transmit(v6, &contents, 1000))), Some(Errno::AFNOSUPPORT));
        assert!(a.gso());
        a.send(&transmit(here(&b), &contents[..4000], 1000)).unwrap();
        assert_eq!(recv(&b, 4000).len(), 1);
    });
}

#[test]
fn a_closed_port_breaks_nothing() {
    in_empty_netns(|| {
        let (a, b) = (bind(V4), bind(V4));
        let closed = here(&bind(V4));
        for _ in 0..3 {
            a.send(&transmit(closed, b"x", 1)).unwrap();
        }
        assert_eq!(a.recv(&mut RecvBatch::new()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        b.send(&transmit(here(&a), b"y", 1)).unwrap();
        assert_eq!(recv(&a, 1)[0].contents, b"y");
    });
}

#[test]
fn one_socket_speaks_both_families_and_sees_ecn_and_its_own_address() {
    in_empty_netns(|| {
        let both = bind("[::]:0");
        let port = both.local().port();
        for (peer, address) in [(bind(V4), "127.0.0.9"), (bind("[::1]:0"), "::1")] {
            let ip: IpAddr = address.parse().unwrap();
            let to = Endpoint::new(SocketAddr::new(ip, port));
            peer.send(&Transmit { traffic_class: 3, ..transmit(to, b"ask", 3) }).unwrap();
            let got = recv(&both, 3);
            assert_eq!((got[0].from, got[0].to, got[0].traffic_class), (here(&peer), Some(ip), 3));
            both.send(&Transmit { traffic_class: 2, from: got[0].to, ..transmit(got[0].from, b"answer", 6) }).unwrap();
            let got = recv(&peer, 6);
            assert_eq!(
                (got[0].from, got[0].traffic_class),
                (to, 2),
                "the answer comes from the address that was asked"
            );
        }
    });
}

#[test]
fn the_traffic_class_goes_there_whole_in_both_families_single_or_in_a_run() {
    in_empty_netns(|| {
        let both = bind("[::]:0");
        for address in [V4, "[::1]:0"] {
            let peer = bind(address);
            let to = Endpoint::new(SocketAddr::new(peer.local().ip(), both.local().port()));
            for (traffic_class, segments) in [(0xb8, 1), (0xbb, 30), (0, 30), (0x2e, 2)] {
                let contents = run(segments, 1000, 7);
                peer.send(&Transmit { traffic_class, ..transmit(to, &contents, 1000) }).unwrap();
                let got = recv(&both, contents.len());
                assert_eq!((got.len(), got[0].traffic_class), (1, traffic_class));
                both.send(&Transmit { traffic_class, ..transmit(got[0].from, &contents, 1000) }).unwrap();
                let got = recv(&peer, contents.len());
                assert_eq!((got.len(), got[0].traffic_class), (1, traffic_class));
            }
            assert!(peer.gso() && both.gso());
        }
    });
}

#[test]
fn a_run_longer_than_its_buffer_loses_what_was_cut_off_and_it_is_counted() {
    in_empty_netns(|| {
        let (a, b) = (bind(V4), bind(V4));
        let mut batch = RecvBatch::with_buffers_of(2500);
        a.send(&transmit(here(&b), &run(4, 1000, 1000), 1000)).unwrap();
        a.send(&transmit(here(&b), &[9; 3000], 3000)).unwrap();
        a.send(&transmit(here(&b), b"z", 1)).unwrap();
        assert_eq!(b.recv(&mut batch).unwrap(), 3);
        let got: Vec<_> = batch.received().map(|r| (r.stride, r.contents.len())).collect();
        assert_eq!((got, batch.cut()), (vec![(1000, 2000), (1, 1)], 2));
    });
}

#[test]
fn two_sockets_share_a_port_only_where_both_say_so() {
    in_empty_netns(|| {
        let shared = UdpOptions { port: Port::Shared, ..UdpOptions::default() };
        let first = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), shared).unwrap();
        UdpSocket::bind(first.local(), shared).unwrap();
        let taken = UdpSocket::bind(first.local(), UdpOptions::default()).unwrap_err();
        let port = first.local().port();
        assert_eq!(
            taken.to_string(),
            format!(
                "cannot bind UDP 127.0.0.1:{port}: the port is in use: stop what uses it (`ss -ulpn sport = {port}` \
                 shows it), or choose another port"
            )
        );
        assert_eq!(taken.exit_class(), ExitClass::Failed);
    });
}

#[test]
fn refusals_to_bind_say_what_to_do() {
    in_empty_netns(|| {
        let error = |address: &str| UdpSocket::bind(address.parse().unwrap(), UdpOptions::default()).unwrap_err();
        assert_eq!(
            error("192.0.2.1:7").to_string(),
            "cannot bind UDP 192.0.2.1:7: this machine has no address 192.0.2.1: use 0.0.0.0 or [::] for all"
        );
        let denied = as_nobody(|| error("127.0.0.1:7"));
        assert_eq!(
            denied.to_string(),
            "cannot bind UDP 127.0.0.1:7: not permitted: ports below 1024 need root or the capability \
             CAP_NET_BIND_SERVICE"
        );
        assert_eq!(denied.exit_class(), ExitClass::NotPermitted);
    });
}

#[test]
fn who_asks_for_it_is_told_how_long_a_datagram_lay_in_the_socket() {
    in_empty_netns(|| {
        let arrivals = UdpOptions { arrivals: true, ..UdpOptions::default() };
        let (a, told) = (bind(V4), UdpSocket::bind(V4.parse().unwrap(), arrivals).unwrap());
        let (mut batch, waker, long) = (RecvBatch::new(), wait::Waker::new().unwrap(), Duration::from_millis(20));
        let mut waited = |to: &UdpSocket| {
            a.send(&transmit(here(to), &run(3, 1000, 7), 1000)).unwrap();
            let nothing: [BorrowedFd<'_>; 0] = [];
            wait::wait(nothing, &waker, Some(clock::now() + long)).unwrap();
            assert_eq!(to.recv(&mut batch).unwrap(), 1);
            batch.received().map(|received| received.waited).collect::<Vec<_>>()
        };
        assert_eq!(waited(&bind(V4)), [Duration::ZERO]);
        let waited = waited(&told);
        assert!(waited.len() == 1 && (long..Duration::from_secs(60)).contains(&waited[0]), "{waited:?}");
    });
}
