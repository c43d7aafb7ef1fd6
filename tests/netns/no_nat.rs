//! No address is rewritten: whatever protocol hosts of two sites speak, each sees the other's own addresses and ports, and the
//! connection tracking of gateways and hubs sees the answer of every flow mirror its question.
//!
//! ```text
//!                    h1
//!                    |
//!   a-1             inet             b-1
//!     \            /    \            /
//!      \----- a-nat      b-nat -----/        the kinds of router are what the tests differ in
//!               |          |
//!              [a]        [b]                a, b and h1 track connections from before anything of ours runs
//! ```

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, Namespace, Nat};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};
use serde_json::Value;
use support::{PATIENCE, gateway, is_direct, is_relay, lab, ping, wait_path};

#[test]
fn hosts_see_each_others_own_addresses_over_a_direct_path() {
    nothing_is_rewritten([Nat::Cone, Nat::Cone], is_direct);
}

#[test]
fn hosts_see_each_others_own_addresses_over_a_hub() {
    nothing_is_rewritten([Nat::Symmetric, Nat::Symmetric], |path| is_relay(path, "udp"));
}

#[test]
fn hosts_see_each_others_own_addresses_over_tls() {
    nothing_is_rewritten([Nat::UdpBlocked, Nat::Tcp443Only], |path| is_relay(path, "tcp"));
}

#[test]
fn fragments_cross_gateways_that_track_nothing() {
    let lab = lab().hub("h1").site("a", Nat::Symmetric).site("b", Nat::Symmetric).build().unwrap();
    lab.bring_up().unwrap();
    for [from, to] in Host::pairs(&lab) {
        from.sends_fragments(&to);
        assert!(tracked(gateway(&lab, "a")).is_empty());
    }
}

fn nothing_is_rewritten(nats: [Nat; 2], expected: impl Fn(&Value) -> bool) {
    let [a, b] = nats;
    let lab = lab().hub("h1").site("a", a).site("b", b).build().unwrap();
    let trackers = [gateway(&lab, "a"), gateway(&lab, "b"), lab.hub("h1").unwrap().namespace()];
    for machine in trackers {
        machine.nft(TRACK).unwrap();
    }
    let before = rulesets(&lab);
    lab.bring_up().unwrap();
    let _talk = ping(&lab, "a", "b");
    wait_path(&lab, "a", "b", "the path that this is about", &expected);
    wait_path(&lab, "b", "a", "the path that this is about", &expected);

    let [gateways @ .., hub] = trackers;
    // at once: some entries live for three seconds
    let sees = |protocol, ends| {
        for gateway in gateways {
            let all = tracked(gateway);
            let seen = all.iter().any(|entry| entry.protocol == protocol && (entry.is(ends) || entry.is(mirror(ends))));
            assert!(seen, "protocol {protocol}, {ends:?} on {}: {all:#?}", gateway.name());
        }
    };
    for [from, to] in Host::pairs(&lab) {
        sees(TCP, from.speaks_tcp(&to));
        sees(UDP, from.speaks_udp(&to, 100));
        sees(UDP, from.sends_fragments(&to));
        sees(icmp(from.ip), from.pings(&to));
        sees(SCTP, from.speaks(&to, SCTP, sctp_init()));
        sees(ESP, from.speaks(&to, ESP, vec![7; 300]));
        // in fragments
        sees(ESP, from.speaks(&to, ESP, vec![9; LARGE]));
    }
    for machine in trackers {
        let all = tracked(machine);
        assert!(!all.is_empty(), "{} tracks nothing", machine.name());
        let rewritten: Vec<&Entry> = all.iter().filter(|entry| entry.reply != mirror(entry.original)).collect();
        assert!(rewritten.is_empty(), "on {}: {rewritten:#?}", machine.name());
    }
    let inside: Vec<IpAddr> = Host::pairs(&lab).iter().flat_map(|[from, to]| [from.ip, to.ip]).collect();
    let ends = |entry: Entry| [entry.original, entry.reply].map(|ends| [ends.from.ip(), ends.to.ip()]).concat();
    let crossed: Vec<IpAddr> = tracked(hub).into_iter().flat_map(ends).filter(|ip| inside.contains(ip)).collect();
    assert!(crossed.is_empty(), "a hub sees {crossed:?}");
    for site in ["a", "b"] {
        let other = if site == "a" { "b" } else { "a" };
        wait_path(&lab, site, other, "still that path", &expected);
    }
    assert_eq!(rulesets(&lab), before);
}

/// A host of a LAN, by one of its addresses.
struct Host<'a> {
    machine: &'a Namespace,
    ip: IpAddr,
}

/// The two ends of a flow, as one of them sent its first packet. An ICMP echo's identifier is a port of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ends {
    from: SocketAddr,
    to: SocketAddr,
}

impl<'a> Host<'a> {
    /// The hosts of a and b, both ways, by both families.
    fn pairs(lab: &'a Lab) -> [[Self; 2]; 4] {
        let host = |site, family: usize| {
            let host = &lab.site(site).unwrap().hosts().first().unwrap();
            Self { machine: host.namespace(), ip: *host.addresses().get(family).unwrap() }
        };
        let pair = |from, to, family| [host(from, family), host(to, family)];
        [pair("a", "b", 0), pair("b", "a", 0), pair("a", "b", 1), pair("b", "a", 1)]
    }

    /// Makes a connection and sends a word each way.
    fn speaks_tcp(&self, to: &Self) -> Ends {
        let (near, far) = (self.ip, to.ip);
        let listener = to.machine.run(move || TcpListener::bind(SocketAddr::new(far, 0)).unwrap());
        let at = listener.local_addr().unwrap();
        let mut client = self.machine.run(move || TcpStream::connect_timeout(&at, PATIENCE).unwrap());
        let (mut server, seen) = listener.accept().unwrap();
        assert_eq!((seen, seen.ip()), (client.local_addr().unwrap(), near));
        assert_eq!((client.peer_addr().unwrap(), server.local_addr().unwrap()), (at, at));
        for stream in [&client, &server] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let mut word = [0; 4];
        client.write_all(b"ping").unwrap();
        server.read_exact(&mut word).unwrap();
        server.write_all(&word).unwrap();
        client.read_exact(&mut word).unwrap();
        assert_eq!(&word, b"ping");
        Ends { from: seen, to: at }
    }

    /// Sends a datagram of so many bytes there, which is answered.
    fn speaks_udp(&self, to: &Self, bytes: usize) -> Ends {
        let [outbox, inbox] = [self, to].map(|host| {
            let ip = host.ip;
            let socket = host.machine.run(move || UdpSocket::bind(SocketAddr::new(ip, 0)).unwrap());
            socket.set_read_timeout(Some(AGAIN)).unwrap();
            socket
        });
        let ends = Ends { from: outbox.local_addr().unwrap(), to: inbox.local_addr().unwrap() };
        let datagram = vec![5; bytes];
        let mut buffer = vec![0; 65_536];
        let mut arrives = |out: &UdpSocket, ends: Ends, inbox: &UdpSocket| {
            until_it_arrives(|| {
                // a host that has just learned of a smaller MTU says so once
                let _ = out.send_to(&datagram, ends.to);
                let (len, seen) = inbox.recv_from(&mut buffer).ok()?;
                assert_eq!((seen, buffer.get(..len)), (ends.from, Some(datagram.as_slice())));
                Some(())
            });
        };
        arrives(&outbox, ends, &inbox);
        arrives(&inbox, mirror(ends), &outbox);
        ends
    }

    /// Sends a datagram there, and back, that comes in fragments.
    fn sends_fragments(&self, to: &Self) -> Ends {
        let before = [self, to].map(Self::reassembled);
        let ends = self.speaks_udp(to, LARGE);
        let after = [self, to].map(Self::reassembled);
        assert!(before.iter().zip(&after).all(|(before, after)| before < after), "no fragments: {before:?}, {after:?}");
        ends
    }

    /// How many packets this machine's kernel has put together from fragments.
    fn reassembled(&self) -> u64 {
        let read = |file: &'static str| self.machine.run(move || std::fs::read_to_string(file).unwrap());
        if self.ip.is_ipv6() {
            let text = read("/proc/thread-self/net/snmp6");
            return text.lines().find_map(|line| line.strip_prefix("Ip6ReasmOKs")).unwrap().trim().parse().unwrap();
        }
        let text = read("/proc/thread-self/net/snmp");
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Ip: ")).map(str::split_whitespace);
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        names.zip(values).find(|(name, _)| *name == "ReasmOKs").unwrap().1.parse().unwrap()
    }

    /// Sends an ICMP echo there, which the kernel there answers.
    fn pings(&self, to: &Self) -> Ends {
        let identifier = 0x5eed_u16;
        let [high, low] = identifier.to_be_bytes();
        let kind = if self.ip.is_ipv4() { 8 } else { 128 };
        let mut packet = vec![kind, 0, 0, 0, high, low, 0, 1, 1, 2, 3, 4];
        if self.ip.is_ipv4() {
            let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            let folded = (sum & 0xffff) + (sum >> 16);
            packet.splice(2..4, (!u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()).to_be_bytes());
        }
        self.speaks(to, icmp(self.ip), packet);
        Ends { from: SocketAddr::new(self.ip, identifier), to: SocketAddr::new(to.ip, identifier) }
    }

    /// Sends the payload of an IP packet of this protocol there, as it is.
    fn speaks(&self, to: &Self, protocol: u8, payload: Vec<u8>) -> Ends {
        let ports = if protocol == SCTP { SCTP_PORTS } else { [0, 0] };
        let ends = Ends { from: SocketAddr::new(self.ip, ports[0]), to: SocketAddr::new(to.ip, ports[1]) };
        let [outbox, inbox] = [self.raw(protocol), to.raw(protocol)];
        let mut buffer = vec![0; 65_536];
        until_it_arrives(|| {
            let _ = rustix::net::sendto(&outbox, &payload, SendFlags::empty(), &SocketAddr::new(to.ip, 0));
            let (len, _, seen) = rustix::net::recvfrom(&inbox, &mut buffer[..], RecvFlags::empty()).ok()?;
            // IPv4 shows its header, of which IPv6 shows nothing
            let header = if self.ip.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
            let came = buffer.get(header..len)? == payload
                // the kernel fills in the sum of ICMPv6
                || protocol == ICMPV6 && buffer.get(4..len)? == &payload[4..];
            let seen = SocketAddr::try_from(seen?).unwrap();
            assert!(!came || seen.ip() == self.ip, "{seen}, not {}", self.ip);
            came.then_some(())
        });
        ends
    }

    fn raw(&self, protocol: u8) -> OwnedFd {
        let ip = self.ip;
        let family = if ip.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let protocol = NonZeroU32::new(protocol.into()).map(Protocol::from_raw);
        let open = move || rustix::net::socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol);
        let socket = self.machine.run(open).unwrap();
        rustix::net::bind(&socket, &SocketAddr::new(ip, 0)).unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(AGAIN)).unwrap();
        socket
    }
}

/// What a machine's kernel knows of a flow.
#[derive(Debug)]
struct Entry {
    protocol: u8,
    original: Ends,
    reply: Ends,
}

impl Entry {
    fn is(&self, ends: Ends) -> bool {
        self.original == ends && self.reply == mirror(ends)
    }
}

/// All flows that a machine's kernel tracks.
fn tracked(machine: &Namespace) -> Vec<Entry> {
    let file = "/proc/thread-self/net/nf_conntrack";
    let text = machine.run(move || std::fs::read_to_string(file)).expect("a kernel with NF_CONNTRACK_PROCFS");
    let entry = |line: &str| {
        let protocol = line.split_whitespace().nth(3)?.parse().ok()?;
        let values = |name: &str| -> Vec<String> {
            let named = line.split_whitespace().filter_map(|word| word.split_once('='));
            named.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).collect()
        };
        let port = |name, place: usize| {
            let of = |name| values(name).get(place).and_then(|port| port.parse().ok());
            of(name).or_else(|| of("id")).unwrap_or(0)
        };
        let end = |ip, port_name, place: usize| {
            Some(SocketAddr::new(values(ip).get(place)?.parse().ok()?, port(port_name, place)))
        };
        let ends = |place| Some(Ends { from: end("src", "sport", place)?, to: end("dst", "dport", place)? });
        Some(Entry { protocol, original: ends(0)?, reply: ends(1)? })
    };
    text.lines().map(|line| entry(line).unwrap_or_else(|| panic!("not understood: {line}"))).collect()
}

fn mirror(ends: Ends) -> Ends {
    Ends { from: ends.to, to: ends.from }
}

/// Every machine's packet filter, as it is.
fn rulesets(lab: &Lab) -> Vec<(String, String)> {
    let rules = |machine: &Namespace| machine.exec("nft", ["list", "ruleset"]).unwrap();
    lab.machines().into_iter().map(|machine| (machine.name().to_owned(), rules(machine))).collect()
}

/// Tries again what may be lost on the way.
fn until_it_arrives(mut attempt: impl FnMut() -> Option<()>) {
    let deadline = Instant::now() + PATIENCE;
    while attempt().is_none() {
        assert!(Instant::now() < deadline, "nothing arrives");
    }
}

/// An SCTP packet that opens an association (RFC 9260, 3.3.2): trackers want to see one before anything else.
fn sctp_init() -> Vec<u8> {
    let [from, to] = SCTP_PORTS.map(u16::to_be_bytes);
    let mut packet = [from, to].concat();
    // verification tag, sum
    packet.extend([0; 8]);
    // INIT, no flags, its length; initiate tag, window, one stream each way, first number
    packet.extend([1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&packet).to_le_bytes();
    packet.splice(8..12, sum);
    packet
}

/// The sum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & 0_u32.wrapping_sub(crc & 1));
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

fn icmp(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { ICMP } else { ICMPV6 }
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ESP: u8 = 50;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;
const SCTP_PORTS: [u16; 2] = [4007, 4008];
/// More than fits into one packet.
const LARGE: usize = 4000;
/// After so long without it, a packet is sent again.
const AGAIN: Duration = Duration::from_millis(200);
/// A rule that needs to know of connections: from here on the kernel tracks them.
const TRACK: &str = "table inet watch { chain c { type filter hook prerouting priority 0; ct state new accept; }; }";
