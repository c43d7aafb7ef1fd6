//! One recvmmsg(2): several buffers, each with who sent it and what its IP header said.
//!
//! What the kernel wrote is read as bytes, fail-closed: an address of no known family is passed over, a stride
//! that makes no sense is the whole buffer, and of what was longer than a buffer only whole datagrams are kept.
#![expect(unsafe_code, reason = "recvmmsg has no safe wrapper that keeps its headers on the stack")]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use super::control;

/// What came with the bytes of one buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// The sender; absent where the kernel named none.
    pub(super) from: Option<SocketAddr>,
    /// The address that it was sent to.
    pub(super) to: Option<IpAddr>,
    /// DSCP and ECN.
    pub(super) traffic_class: u8,
    /// Bytes of the buffer that hold whole datagrams.
    pub(super) len: usize,
    /// The length of each datagram but the last. Zero only where `len` is.
    pub(super) stride: usize,
    /// A datagram was cut off: it is none of the `len` bytes.
    pub(super) cut: bool,
    /// When it came, since 1970 by the wall clock (CLOCK_REALTIME). Absent where the kernel does not tell.
    pub(super) came: Option<Duration>,
}

/// Receives into as many buffers as there are datagrams or runs, without waiting; how many were filled.
pub(super) fn recv<const N: usize>(
    socket: BorrowedFd<'_>,
    mut buffers: [&mut [u8]; N],
    metas: &mut [Meta; N],
) -> io::Result<usize> {
    let mut names = [[0u8; NAME]; N];
    let mut controls = [[0u8; CONTROL]; N];
    let mut pieces =
        buffers.each_mut().map(|buffer| libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() });
    // SAFETY: integers and pointers, all of which may be zero.
    let mut headers: [libc::mmsghdr; N] = unsafe { std::mem::zeroed() };
    for (((header, piece), name), control) in headers.iter_mut().zip(&mut pieces).zip(&mut names).zip(&mut controls) {
        let header = &mut header.msg_hdr;
        (header.msg_name, header.msg_namelen) = (name.as_mut_ptr().cast(), NAME as _);
        (header.msg_iov, header.msg_iovlen) = (piece, 1);
        (header.msg_control, header.msg_controllen) = (control.as_mut_ptr().cast(), CONTROL as _);
    }
    let filled = loop {
        let (fd, count) = (socket.as_raw_fd(), N as libc::c_uint);
        // SAFETY: each header points to a name, one buffer and control bytes of the lengths that it says, all
        // borrowed mutably until this returns.
        let done = unsafe { libc::recvmmsg(fd, headers.as_mut_ptr(), count, libc::MSG_DONTWAIT, std::ptr::null_mut()) };
        match usize::try_from(done) {
            Ok(filled) => break filled,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    };
    for ((((meta, header), name), control), buffer) in
        metas.iter_mut().zip(&headers).zip(&names).zip(&controls).zip(&buffers).take(filled)
    {
        let told = control.get(..header.msg_hdr.msg_controllen).unwrap_or_default();
        let cut = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
        *meta = Meta::read(name, told, (header.msg_len as usize).min(buffer.len()), cut);
    }
    Ok(filled)
}

impl Meta {
    fn read(name: &[u8], control: &[u8], len: usize, cut: bool) -> Self {
        let mut meta = Self { from: address(name), len, stride: len, cut, ..Self::default() };
        for message in control::messages(control) {
            match (message.level, message.kind) {
                (libc::IPPROTO_IP, libc::IP_TOS) => {
                    meta.traffic_class = message.value.first().copied().unwrap_or_default();
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    meta.traffic_class = message.int().map_or(0, |class| class as u8);
                }
                // the third of `struct in_pktinfo`, the first of `struct in6_pktinfo`
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    meta.to = message.bytes_at(8).map(|v4: [u8; 4]| IpAddr::from(v4));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    meta.to = message.bytes_at(0).map(|v6: [u8; 16]| IpAddr::from(v6));
                }
                (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => meta.came = timespec(&message),
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let stride = message.int().and_then(|stride| usize::try_from(stride).ok());
                    meta.stride = stride.filter(|stride| (1..=len).contains(stride)).unwrap_or(len);
                }
                _ => {}
            }
        }
        if cut {
            meta.len -= meta.len.checked_rem(meta.stride).filter(|rest| *rest > 0).unwrap_or(meta.stride);
        }
        meta
    }
}

/// A `struct timespec` of 64-bit fields.
fn timespec(message: &control::Message<'_>) -> Option<Duration> {
    let (secs, nanos) = (message.bytes_at(0).map(i64::from_ne_bytes)?, message.bytes_at(8).map(i64::from_ne_bytes)?);
    let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(u64::try_from(secs).ok()?, nanos))
}

/// A `struct sockaddr_in` or `sockaddr_in6`.
fn address(name: &[u8]) -> Option<SocketAddr> {
    let at = |from: usize| name.get(from..)?.first_chunk::<4>().copied();
    let family = libc::c_int::from(u16::from_ne_bytes(*name.first_chunk()?));
    let port = u16::from_be_bytes(*name.get(2..)?.first_chunk()?);
    match family {
        libc::AF_INET => Some(SocketAddr::new(Ipv4Addr::from(at(4)?).into(), port)),
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(*name.get(8..)?.first_chunk::<16>()?);
            let (flow, scope) = (u32::from_be_bytes(at(4)?), u32::from_ne_bytes(at(24)?));
            Some(SocketAddr::V6(SocketAddrV6::new(ip, port, flow, scope)))
        }
        _ => None,
    }
}

/// The length of a `struct sockaddr_in6`.
const NAME: usize = 28;
/// Room for every message that the socket's options bring, of both families at once.
const CONTROL: usize = 192;

#[cfg(test)]
mod tests {
    use super::*;

    fn gro(stride: libc::c_int) -> Vec<u8> {
        control::message(libc::SOL_UDP, libc::UDP_GRO, &stride.to_ne_bytes())
    }

    fn v4(port: u16) -> Vec<u8> {
        let family = libc::AF_INET as u16;
        [&family.to_ne_bytes()[..], &port.to_be_bytes(), &[192, 0, 2, 7], &[0; 20]].concat()
    }

    #[test]
    fn a_stride_that_makes_no_sense_is_the_whole_buffer() {
        for (told, stride) in [(1000, 1000), (3000, 3000), (3001, 3000), (0, 3000), (-1, 3000), (i32::MIN, 3000)] {
            let meta = Meta::read(&v4(9), &gro(told), 3000, false);
            assert_eq!((meta.len, meta.stride), (3000, stride), "{told}");
        }
        assert_eq!(Meta::read(&v4(9), &gro(5), 0, false).stride, 0, "an empty datagram");
    }

    #[test]
    fn of_a_run_that_was_cut_off_the_whole_datagrams_remain() {
        let kept = |told, len| Meta::read(&v4(9), &gro(told), len, true).len;
        assert_eq!([kept(1000, 3500), kept(1000, 3000), kept(0, 3000), kept(1000, 400)], [3000, 2000, 0, 0]);
        assert_eq!(Meta::read(&v4(9), &[], 0, true).len, 0);
    }

    #[test]
    fn bytes_that_are_no_control_messages_or_no_address_say_nothing() {
        let whole = gro(1000);
        for len in 0..whole.len() - 4 {
            assert_eq!(Meta::read(&v4(9), &whole[..len], 3000, false).stride, 3000);
        }
        let mut endless = whole;
        endless[..size_of::<usize>()].copy_from_slice(&usize::MAX.to_ne_bytes());
        assert_eq!(Meta::read(&v4(9), &endless, 3000, false).stride, 3000);
        let short = control::message(libc::IPPROTO_IP, libc::IP_PKTINFO, &[1; 11]);
        assert_eq!(Meta::read(&v4(9), &short, 1, false).to, None);
        let came = |value: &[u8]| {
            let told = control::message(libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS, value);
            Meta::read(&v4(9), &told, 1, false).came
        };
        let time = |secs: i64, nanos: i64| [secs.to_ne_bytes(), nanos.to_ne_bytes()].concat();
        assert_eq!(came(&time(7, 9)), Some(Duration::new(7, 9)));
        for nonsense in [time(-1, 9), time(7, -1), time(7, 1_000_000_000), vec![7; 12]] {
            assert_eq!(came(&nonsense), None);
        }
        assert_eq!(address(&v4(9)), Some("192.0.2.7:9".parse().unwrap()));
        for len in 0..8 {
            assert_eq!(address(&v4(9)[..len]), None);
        }
        assert_eq!(address(&[0; 28]), None);
    }
}
