//! Several sockets on one port, and a filter that says to which a datagram goes.
//!
//! The kernel would spread senders over the sockets of an SO_REUSEPORT group; a classic BPF program
//! (SO_ATTACH_REUSEPORT_CBPF, Linux 4.5) chooses by the datagram's own bytes instead:
//!
//! ```text
//!   A = first byte                            for each first byte that has one:
//!   if A == first { return byte at N & mask }     the byte that names the socket
//!   return 0                                  all others, and what is too short
//! ```
//!
//! A run that GRO joined goes whole to the socket of its first datagram; the others in it may be another's.

#![expect(unsafe_code, reason = "setsockopt of a filter has no safe wrapper")]

use std::{io, net::SocketAddr, os::fd::AsRawFd as _};

use flatlan_types::Workers;

use super::{Port, UdpError, UdpOptions, UdpSocket};

impl UdpSocket {
    /// As many sockets on one port as there are workers, in their order. A datagram that begins with `first`
    /// goes to the worker that the byte at `owner_byte(first)` names, all others to the first.
    ///
    /// # Errors
    /// As [`UdpSocket::bind`]; the port is taken where any other socket has it, whatever that shares.
    pub fn bind_group(
        address: SocketAddr,
        options: UdpOptions,
        workers: Workers,
        owner_byte: impl Fn(u8) -> Option<u8>,
    ) -> Result<Vec<Self>, UdpError> {
        // alone first: a group of another process would let us in
        let alone = Self::bind(address, UdpOptions { port: Port::Own, ..options })?;
        if workers == Workers::ONE {
            return Ok(vec![alone]);
        }
        let local = alone.local();
        drop(alone);
        let options = UdpOptions { port: Port::Shared, ..options };
        let group: io::Result<Vec<Self>> = workers.all().map(|_| Self::bind_exactly(local, options)).collect();
        let group = group.map_err(|error| UdpError::bind(local, error))?;
        if let Some(socket) = group.first() {
            socket.attach(&program(workers, owner_byte)).map_err(|error| UdpError::bind(local, error))?;
        }
        Ok(group)
    }

    fn attach(&self, program: &[libc::sock_filter]) -> io::Result<()> {
        let len = libc::c_ushort::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
        // SAFETY: `program` names `len` instructions that outlive the call; the kernel copies them, checks
        // them, and writes nothing.
        let done = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_CBPF,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// The filter, by its own words.
fn program(workers: Workers, owner_byte: impl Fn(u8) -> Option<u8>) -> Vec<libc::sock_filter> {
    let step = |code: u32, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let load = |at: u8| step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, u32::from(at));
    let mut program = vec![load(0)];
    for first in 0..=u8::MAX {
        let Some(at) = owner_byte(first) else { continue };
        let answer = [
            load(at),
            step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, u32::from(workers.mask())),
            step(libc::BPF_RET | BPF_A, 0, 0),
        ];
        program.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, answer.len() as u8, u32::from(first)));
        program.extend(answer);
    }
    program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0));
    program
}

/// Return what is in A (linux/filter.h).
const BPF_A: u32 = 0x10;

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, Ipv6Addr},
        os::fd::AsFd as _,
        time::Duration,
    };

    use super::*;
    use crate::{
        clock,
        poll::{self, Waker},
        udp::RecvBatch,
    };

    /// The table of the wire, as a caller gives it.
    fn owner_byte(first: u8) -> Option<u8> {
        match first {
            2 => Some(11),
            3 | 4 | 0x10 | 0x11 | 0x20 => Some(7),
            _ => None,
        }
    }

    fn datagram(first: u8, at: u8, byte: u8) -> Vec<u8> {
        let mut datagram = vec![0xee; 32];
        datagram[0] = first;
        datagram[usize::from(at)] = byte;
        datagram
    }

    /// Which socket of the group receives it.
    fn lands(group: &[UdpSocket], datagram: &[u8], from: &std::net::UdpSocket) -> usize {
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), group[0].local().port());
        from.send_to(datagram, to).unwrap();
        let waker = Waker::new().unwrap();
        let deadline = clock::now() + Duration::from_secs(5);
        loop {
            assert!(clock::now() < deadline, "it arrived nowhere: {datagram:02x?}");
            for (n, socket) in group.iter().enumerate() {
                let mut batch = RecvBatch::new();
                if socket.recv(&mut batch).is_ok() {
                    assert_eq!(batch.received().next().unwrap().contents, datagram);
                    return n;
                }
            }
            let all = std::array::from_fn::<_, 4, _>(|n| group[n % group.len()].as_fd());
            poll::wait(all, &waker, Some(deadline)).unwrap();
        }
    }

    #[test]
    fn each_kind_of_datagram_lands_on_the_socket_that_it_names() {
        let from = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for count in [1, 2, 4] {
            let workers = Workers::new(count).unwrap();
            for address in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::UNSPECIFIED.into()] {
                let options = UdpOptions::default();
                let group = UdpSocket::bind_group(SocketAddr::new(address, 0), options, workers, owner_byte).unwrap();
                assert_eq!(group.len(), count);
                for first in [1, 2, 3, 4, 0x10, 0x11, 0x20, 0x21, 0x22, 0x99] {
                    for byte in [0, 1, 2, 3, 0x5a, 0xff] {
                        let at = owner_byte(first);
                        let expected = at.map_or(0, |_| usize::from(byte) % count);
                        let datagram = datagram(first, at.unwrap_or(7), byte);
                        assert_eq!(lands(&group, &datagram, &from), expected, "{count} sockets, {datagram:02x?}");
                    }
                }
                assert_eq!(lands(&group, &[4, 0xff, 0xff], &from), 0, "cut off before the byte");
            }
        }
    }

    #[test]
    fn a_port_that_another_group_shares_is_taken() {
        let workers = Workers::new(2).unwrap();
        let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let group = UdpSocket::bind_group(any, UdpOptions::default(), workers, owner_byte).unwrap();
        let again = UdpSocket::bind_group(group[0].local(), UdpOptions::default(), workers, owner_byte);
        assert!(matches!(again, Err(UdpError::Taken { .. })), "{again:?}");
    }
}
