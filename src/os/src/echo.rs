//! Asks a machine whether it is there: one ICMP echo (RFC 792, RFC 4443).
//!
//! The kernel finds the way, and the neighbour's hardware address: who does not answer ARP or neighbour discovery does not
//! answer this either. Needs CAP_NET_RAW.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::{net::UdpSocket, time::timeout};

use crate::checksum;

/// Whether `target` answers within that time. `sequence` tells the questions of one asker apart. Needs a tokio runtime.
///
/// # Errors
/// Where this process may not ask, or has no more sockets. That there is no way to the target is no error: it does not
/// answer.
pub async fn answers(target: IpAddr, sequence: u16, within: Duration) -> io::Result<bool> {
    let socket = open(target)?;
    let ident = std::process::id() as u16;
    match socket.send(&request(target, ident, sequence)).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
        Err(_) => return Ok(false),
    }
    let answered = async {
        let mut packet = [0; 128];
        loop {
            match socket.recv(&mut packet).await {
                Ok(len) if is_reply(target, packet.get(..len).unwrap_or_default(), ident, sequence) => return true,
                Ok(_) => {}
                // unreachable, as the kernel or a router says
                Err(_) => return false,
            }
        }
    };
    Ok(timeout(within, answered).await.unwrap_or(false))
}

/// A socket that hears what `target` says by ICMP. Tokio has no name for a raw one: a datagram's is as good.
fn open(target: IpAddr) -> io::Result<UdpSocket> {
    let (domain, protocol) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::from(SocketAddr::new(target, 0))) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Err(error),
        // no way there: the question fails for the same reason
        Ok(()) | Err(_) => {}
    }
    UdpSocket::from_std(socket.into())
}

/// An echo request; IPv6's checksum is the kernel's to make.
fn request(target: IpAddr, ident: u16, sequence: u16) -> [u8; 16] {
    let kind = if target.is_ipv4() { 8 } else { 128 };
    let [i, j] = ident.to_be_bytes();
    let [s, t] = sequence.to_be_bytes();
    let mut message = [kind, 0, 0, 0, i, j, s, t, b'f', b'l', b'a', b't', b'l', b'a', b'n', b'?'];
    if target.is_ipv4() {
        let [high, low] = (!checksum::sum([&message])).to_be_bytes();
        (message[2], message[3]) = (high, low);
    }
    message
}

/// Whether this is the answer. A raw socket of IPv4 gives the IP header too.
fn is_reply(target: IpAddr, packet: &[u8], ident: u16, sequence: u16) -> bool {
    let (kind, header) = match target {
        IpAddr::V4(_) => (0, packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4)),
        IpAddr::V6(_) => (129, 0),
    };
    let [i, j] = ident.to_be_bytes();
    let [s, t] = sequence.to_be_bytes();
    let message = packet.get(header..).unwrap_or_default();
    matches!(message, [of, 0, _, _, rest @ ..] if *of == kind && rest.starts_with(&[i, j, s, t]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{async_in_empty_netns, plain_tun};

    #[test]
    fn a_machine_that_is_there_answers_by_both_families_and_others_do_not() {
        async_in_empty_netns(|| async {
            let _silence = plain_tun(vec!["192.0.2.1/24".parse().unwrap()]);
            let long = Duration::from_secs(10);
            for here in ["127.0.0.1", "192.0.2.1", "::1"] {
                assert!(answers(here.parse().unwrap(), 7, long).await.unwrap(), "{here}");
            }
            // nobody behind that device, and no way at all
            for nobody in ["192.0.2.9", "198.51.100.1", "2001:db8::1"] {
                assert!(!answers(nobody.parse().unwrap(), 7, Duration::from_millis(50)).await.unwrap(), "{nobody}");
            }
        });
    }

    #[test]
    fn only_the_answer_to_this_question_counts() {
        let target: IpAddr = [192, 0, 2, 1].into();
        let reply = |kind: u8, sequence: u16| {
            let mut packet = vec![0x45; 20];
            packet.extend(request(target, 3, sequence));
            packet[20] = kind;
            packet
        };
        assert!(is_reply(target, &reply(0, 7), 3, 7));
        for (packet, ident) in [(reply(0, 8), 3), (reply(8, 7), 3), (reply(0, 7), 4)] {
            assert!(!is_reply(target, &packet, ident, 7));
        }
        for len in 0..28 {
            let _ = is_reply(target, &reply(0, 7)[..len], 3, 7);
        }
    }
}
