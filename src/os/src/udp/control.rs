//! What the kernel is told beside the bytes of a datagram: control messages, encoded on the stack.
//!
//! The layout is the kernel's (`struct cmsghdr`: length, level, type, then the value, each message aligned to
//! a word), which is the same under every libc. A socket for both families reaches IPv4 by mapped addresses
//! and takes IPv4's own messages for them.

use std::net::{IpAddr, SocketAddr};

/// The control messages of one send.
#[derive(Debug)]
pub(crate) struct Control {
    bytes: [u8; MOST],
    len: usize,
}

/// What they say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Says {
    /// Where to; decides the family.
    pub(crate) to: SocketAddr,
    /// The source address, where it is not left to the kernel.
    pub(crate) from: Option<IpAddr>,
    /// DSCP and ECN. Zero is what the socket sends anyhow, and costs no message.
    pub(crate) traffic_class: u8,
    /// The length of each datagram, where there are several.
    pub(crate) segment: Option<u16>,
}

impl Control {
    /// Encodes; empty where there is nothing to say.
    pub(crate) fn new(says: &Says) -> Self {
        let mut control = Self { bytes: [0; MOST], len: 0 };
        let is_v4 = says.to.ip().to_canonical().is_ipv4();
        if says.traffic_class != 0 {
            let class = libc::c_int::from(says.traffic_class).to_ne_bytes();
            match is_v4 {
                true => control.push(libc::IPPROTO_IP, libc::IP_TOS, &[&class]),
                false => control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &[&class]),
            }
        }
        if let Some(segment) = says.segment {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &[&segment.to_ne_bytes()]);
        }
        // `struct in_pktinfo` is interface, source, destination; `struct in6_pktinfo` is address, interface
        match says.from {
            Some(IpAddr::V4(v4)) => {
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &[&[0; 4], &v4.octets(), &[0; 4]]);
            }
            Some(IpAddr::V6(v6)) => {
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &[&v6.octets(), &[0; 4]]);
            }
            None => {}
        }
        control
    }

    /// What sendmsg(2) takes.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn push(&mut self, level: libc::c_int, kind: libc::c_int, value: &[&[u8]]) {
        let whole = HEADER + value.iter().map(|part| part.len()).sum::<usize>();
        let header: [&[u8]; 3] = [&whole.to_ne_bytes(), &level.to_ne_bytes(), &kind.to_ne_bytes()];
        let mut at = self.len;
        for part in header.iter().chain(value) {
            let place = self.bytes.get_mut(at..at + part.len()).expect("MOST holds one message of each kind");
            place.copy_from_slice(part);
            at += part.len();
        }
        self.len += whole.next_multiple_of(WORD);
    }
}

const WORD: usize = size_of::<usize>();
const HEADER: usize = WORD + 2 * size_of::<libc::c_int>();
/// A traffic class, a segment size and an IPv6 source, each with its header and its padding.
const MOST: usize = 3 * HEADER + 8 + 8 + 24;
