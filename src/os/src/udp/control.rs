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

/// One control message that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) level: libc::c_int,
    pub(crate) kind: libc::c_int,
    pub(crate) value: &'a [u8],
}

impl Message<'_> {
    /// The value of one that holds a number.
    pub(crate) fn int(&self) -> Option<libc::c_int> {
        self.bytes_at(0).map(libc::c_int::from_ne_bytes)
    }

    /// Bytes of the value.
    pub(crate) fn bytes_at<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.value.get(at..)?.first_chunk().copied()
    }
}

/// The messages in what recvmsg(2) wrote, up to the first that is none.
pub(crate) fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let (length, behind) = rest.split_first_chunk::<WORD>()?;
        let (level, behind) = behind.split_first_chunk()?;
        let (kind, _) = behind.split_first_chunk()?;
        let length = usize::from_ne_bytes(*length);
        let value = rest.get(HEADER..length)?;
        rest = rest.get(length.checked_next_multiple_of(WORD)?..).unwrap_or_default();
        Some(Message { level: libc::c_int::from_ne_bytes(*level), kind: libc::c_int::from_ne_bytes(*kind), value })
    })
}

/// One message, as the kernel writes it.
#[cfg(test)]
pub(super) fn message(level: libc::c_int, kind: libc::c_int, value: &[u8]) -> Vec<u8> {
    let mut control = Control { bytes: [0; MOST], len: 0 };
    control.push(level, kind, &[value]);
    control.bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(says: &Says) -> Vec<(libc::c_int, libc::c_int, Vec<u8>)> {
        let control = Control::new(says);
        messages(control.bytes()).map(|m| (m.level, m.kind, m.value.to_vec())).collect()
    }

    #[test]
    fn nothing_is_said_where_there_is_nothing_to_say() {
        let says = Says { to: "192.0.2.1:9".parse().unwrap(), from: None, traffic_class: 0, segment: None };
        assert_eq!(Control::new(&says).bytes(), b"");
    }

    #[test]
    fn each_family_has_its_own_messages_and_a_mapped_address_is_ipv4() {
        let class = libc::c_int::from(0xb8u8).to_ne_bytes().to_vec();
        let segment = (libc::SOL_UDP, libc::UDP_SEGMENT, 1452u16.to_ne_bytes().to_vec());
        let says = |to: &str, from: &str| Says {
            to: to.parse().unwrap(),
            from: Some(from.parse().unwrap()),
            traffic_class: 0xb8,
            segment: Some(1452),
        };
        let v4 = [
            (libc::IPPROTO_IP, libc::IP_TOS, class.clone()),
            segment.clone(),
            (libc::IPPROTO_IP, libc::IP_PKTINFO, vec![0, 0, 0, 0, 192, 0, 2, 2, 0, 0, 0, 0]),
        ];
        for to in ["192.0.2.1:9", "[::ffff:192.0.2.1]:9"] {
            assert_eq!(said(&says(to, "192.0.2.2")), v4);
        }
        let source = [&[0x20, 1, 0xd, 0xb8], &[0; 15][..11], &[2], &[0; 4]].concat();
        let v6 =
            [(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, class), segment, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, source)];
        assert_eq!(said(&says("[2001:db8::1]:9", "2001:db8::2")), v6);
    }
}
