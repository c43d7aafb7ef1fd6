use std::{
    io::Write,
    net::{Ipv4Addr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use super::*;
use crate::{
    clock, poll,
    testing::{as_nobody, in_empty_netns},
};

const HERE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

fn config(backend: TunBackend) -> TunConfig {
    TunConfig {
        name: "os0".into(),
        mtu: 1400,
        backend,
        offload: Offload::Auto,
        queues: Queues::One,
        addresses: vec!["10.9.0.1/24".parse().unwrap(), "fd09::1/64".parse().unwrap()],
    }
}

/// The next packet of the device that `wanted` says yes to, with its header.
fn recv(tun: &Tun, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let waker = poll::Waker::new().unwrap();
    let deadline: Instant = clock::now() + Duration::from_secs(5);
    let mut buffer = vec![0xaa; RECV_LEN];
    loop {
        match tun.recv(&mut buffer) {
            Ok(n) if wanted(&buffer[VNET_LEN..n]) => return buffer[..n].to_vec(),
            Ok(_) => {}
            Err(e) => {
                assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                assert!(clock::now() < deadline, "nothing came");
                poll::wait([tun.as_fd()], &waker, Some(deadline)).unwrap();
            }
        }
    }
}

fn is_protocol(packet: &[u8], protocol: u8) -> bool {
    packet[0] >> 4 == 4 && packet[9] == protocol
}

/// An answer to an IPv4 packet: addresses and ports swapped.
fn turned(frame: &[u8]) -> Vec<u8> {
    let mut answer = frame.to_vec();
    let packet = &mut answer[VNET_LEN..];
    packet[12..20].rotate_left(4);
    packet[20..24].rotate_left(2);
    answer
}

fn fold(halves: &[u8]) -> u16 {
    let sum: u32 = halves.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

/// Leaves the transport checksum to the kernel and writes the IPv4 one. `checksum` is where the transport
/// header keeps its own.
fn let_kernel_finish(frame: &mut [u8], checksum: u16) {
    let (header, packet) = frame.split_at_mut(VNET_LEN);
    header[0] = NEEDS_CSUM;
    header[6..8].copy_from_slice(&20u16.to_ne_bytes());
    header[8..10].copy_from_slice(&checksum.to_ne_bytes());
    let length = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[10..12].fill(0);
    let ip = !fold(&packet[..20]);
    packet[10..12].copy_from_slice(&ip.to_be_bytes());
    // The field holds the sum of the pseudo-header, folded, not complemented.
    let rest = [0, packet[9], (length - 20).to_be_bytes()[0], (length - 20).to_be_bytes()[1]];
    let pseudo = fold(&[&packet[12..20], &rest].concat());
    let at = 20 + usize::from(checksum);
    packet[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
}

/// The answer to a SYN: SYN and ACK, a window of 65535, an MSS of 1360.
fn syn_ack(syn: &[u8]) -> Vec<u8> {
    let mut frame = turned(syn);
    frame.truncate(VNET_LEN + 20 + 24);
    frame[..VNET_LEN].fill(0);
    let tcp = &mut frame[VNET_LEN + 20..];
    let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
    tcp[4..8].copy_from_slice(&1u32.to_be_bytes());
    tcp[8..12].copy_from_slice(&(sequence + 1).to_be_bytes());
    tcp[12..16].copy_from_slice(&[6 << 4, 0x12, 0xff, 0xff]);
    tcp[20..24].copy_from_slice(&[2, 4, 0x05, 0x50]);
    let_kernel_finish(&mut frame, 16);
    frame
}

#[test]
fn a_tcp_super_packet_is_read_whole() {
    in_empty_netns(|| {
        let tun = Tun::create(&config(TunBackend::Offload)).unwrap();
        assert!(tun.offloads().tcp && tun.offloads().udp);
        let app = std::thread::spawn(|| {
            let mut tcp = TcpStream::connect((THERE, 80)).unwrap();
            tcp.write_all(&[7; 12_000]).unwrap();
            tcp
        });
        let syn = recv(&tun, |p| is_protocol(p, 6));
        tun.send(&syn_ack(&syn)).unwrap();
        let frame = recv(&tun, |p| is_protocol(p, 6) && p.len() > 1400);
        assert_eq!((frame[0] & 1, frame[1] & 0x7f), (1, 1), "NEEDS_CSUM, GSO_TCPV4");
        assert_eq!(u16::from_ne_bytes([frame[4], frame[5]]), 1360, "segment size");
        assert!(frame.len() >= VNET_LEN + 40 + 2 * 1360, "{}", frame.len());
        assert!(frame[VNET_LEN + 40..].iter().all(|b| *b == 7));
        drop(app.join().unwrap());
    });
}

#[test]
fn a_udp_super_packet_is_written_and_arrives_as_its_datagrams() {
    in_empty_netns(|| {
        let tun = Tun::create(&config(TunBackend::Offload)).unwrap();
        let app = UdpSocket::bind((HERE, 5000)).unwrap();
        app.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut frame = vec![0; VNET_LEN];
        frame[1] = 5; // VIRTIO_NET_HDR_GSO_UDP_L4
        frame[2..4].copy_from_slice(&28u16.to_ne_bytes());
        frame[4..6].copy_from_slice(&1000u16.to_ne_bytes());
        frame.extend([0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0]);
        frame.extend(THERE.octets().iter().chain(&HERE.octets()));
        frame.extend([5001u16, 5000, 2508, 0].iter().flat_map(|field| field.to_be_bytes()));
        frame.extend([3; 2500]);
        let_kernel_finish(&mut frame, 6);
        tun.send(&frame).unwrap();
        let mut buffer = [0; 3000];
        let lengths = [(); 3].map(|()| app.recv(&mut buffer).unwrap());
        assert_eq!(lengths, [1000, 1000, 500]);
    });
}

#[test]
fn a_refused_super_packet_is_told_from_a_deleted_device() {
    in_empty_netns(|| {
        let tun = Tun::create(&config(TunBackend::Offload)).unwrap();
        let mut frame = vec![0; VNET_LEN + 60];
        frame[1] = 1; // A TCP super-packet without a segment size.
        frame[VNET_LEN] = 0x45;
        let refused = tun.send(&frame).unwrap_err();
        assert!(is_refused(&refused) && !is_gone(&refused), "{refused}");
        route::block_on(async { Netlink::open().unwrap().delete_for_test("os0").await }).unwrap();
        let gone = tun.recv(&mut [0; RECV_LEN]).unwrap_err();
        assert!(is_gone(&gone) && !is_refused(&gone), "{gone}");
        let waker = poll::Waker::new().unwrap();
        assert!(poll::wait([tun.as_fd()], &waker, None).unwrap().readable[0]);
    });
}

#[test]
fn a_device_without_offloads_carries_packets_both_ways_in_the_same_format() {
    let off = TunConfig { offload: Offload::Off, ..config(TunBackend::Auto) };
    carries_single_packets(&config(TunBackend::Plain));
    carries_single_packets(&off);
}

fn carries_single_packets(config: &TunConfig) {
    in_empty_netns(|| {
        let tun = Tun::create(config).unwrap();
        assert_eq!(tun.offloads(), Offloads { tcp: false, udp: false });
        let app = UdpSocket::bind((HERE, 0)).unwrap();
        app.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        app.send_to(b"ask", (THERE, 7)).unwrap();
        let frame = recv(&tun, |p| is_protocol(p, 17));
        assert_eq!(frame[..VNET_LEN], [0; VNET_LEN]);
        assert_eq!(frame[VNET_LEN + 28..], *b"ask");
        tun.send(&turned(&frame)).unwrap();
        let mut buffer = [0; 10];
        let (length, from) = app.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from), (&b"ask"[..], (THERE, 7).into()));

        let mut needs_checksum = frame;
        needs_checksum[0] = NEEDS_CSUM;
        assert!(is_refused(&tun.send(&needs_checksum).unwrap_err()));
        assert!(tun.send(&[0; 3]).is_err());
    });
}

#[test]
fn offloads_that_are_to_be_on_are_refused_to_the_plain_backend() {
    in_empty_netns(|| {
        let on = |backend| TunConfig { offload: Offload::On, ..config(backend) };
        let error = Tun::create(&on(TunBackend::Plain)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot create TUN device os0: tun_offload = on, but the plain backend moves single packets: set \
             tun_backend = \"auto\" or tun_offload = \"auto\""
        );
        assert_eq!(error.exit_class(), ExitClass::Wrong);
        assert!(Tun::create(&on(TunBackend::Auto)).unwrap().offloads().tcp);
    });
}

#[test]
fn ipv6_works_and_the_kernel_sends_nothing_on_its_own() {
    in_empty_netns(|| {
        for backend in [TunBackend::Auto, TunBackend::Plain] {
            let tun = Tun::create(&config(backend)).unwrap();
            let app = UdpSocket::bind("[fd09::1]:0").unwrap();
            app.send_to(b"six", "[fd09::2]:7").unwrap();
            // The first packet is this one: no router solicitation, no neighbour discovery before it.
            let frame = recv(&tun, |_| true);
            assert_eq!((frame[VNET_LEN] >> 4, frame[VNET_LEN + 6]), (6, 17));
        }
    });
}

#[test]
fn a_second_queue_belongs_to_the_same_device() {
    in_empty_netns(|| {
        for offload in [Offload::Off, Offload::Auto] {
            has_a_second_queue(&TunConfig { queues: Queues::Many, offload, ..config(TunBackend::Offload) });
        }
    });
}

fn has_a_second_queue(many: &TunConfig) {
    let first = Tun::create(many).unwrap();
    let second = first.queue().unwrap();
    assert_eq!((second.name(), second.offloads()), ("os0", first.offloads()));
    assert_eq!(second.recv(&mut [0; RECV_LEN]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(Tun::create(&config(TunBackend::Plain)).unwrap_err().to_string().contains("os0"));
    drop(first);
    let app = UdpSocket::bind((HERE, 0)).unwrap();
    app.send_to(b"x", (THERE, 7)).unwrap();
    recv(&second, |p| is_protocol(p, 17));
}

#[test]
fn refusals_say_what_to_do() {
    in_empty_netns(|| {
        let taken = Tun::create(&TunConfig { name: "lo".into(), ..config(TunBackend::Auto) }).unwrap_err();
        assert_eq!(
            taken.to_string(),
            "cannot create TUN device lo: the name belongs to a network device of another kind: choose another with \
             --tun NAME"
        );
        assert_eq!(taken.exit_class(), ExitClass::Failed);

        let _held = Tun::create(&config(TunBackend::Auto)).unwrap();
        for backend in [TunBackend::Auto, TunBackend::Plain] {
            let busy = Tun::create(&config(backend)).unwrap_err();
            assert_eq!(
                busy.to_string(),
                "cannot create TUN device os0: another process uses it: stop that process, or choose another name \
                 with --tun NAME"
            );
        }

        for name in ["", "a/b", "a b", "sixteen-letters-", ".."] {
            let bad = Tun::create(&TunConfig { name: name.into(), ..config(TunBackend::Plain) }).unwrap_err();
            assert_eq!(
                bad.to_string(),
                format!(
                    "cannot create TUN device `{name}`: a name has 1 to 15 characters, no blanks, `/`, `:` or `%`: \
                     choose another with --tun NAME"
                )
            );
            assert_eq!(bad.exit_class(), ExitClass::Wrong);
        }
    });
}

#[test]
fn without_privilege_the_capability_and_the_device_are_named() {
    let error = as_nobody(|| Tun::create(&config(TunBackend::Auto))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot create TUN device os0: not permitted: this needs root, or the capability CAP_NET_ADMIN and access to \
         /dev/net/tun"
    );
    assert_eq!(error.exit_class(), ExitClass::NotPermitted);
}
