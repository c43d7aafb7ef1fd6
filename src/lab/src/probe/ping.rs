//! ICMP echoes over the kernel's unprivileged ping sockets (each namespace of the lab opens them).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, recv, sendto, socket_with};

use super::{POLL, Shared, come_ahead};
use crate::error::LabError;
use crate::namespace::Namespace;

pub(super) fn start(
    from: &Namespace,
    to: IpAddr,
    interval: Duration,
    shared: &Arc<Shared>,
) -> Result<Vec<JoinHandle<()>>, LabError> {
    let socket = from.run(move || open(to)).map_err(LabError::io("ping from", from.name()))?;
    let socket = Arc::new(socket);
    let (asking, asked) = (Arc::clone(&socket), Arc::clone(shared));
    let sender = from.thread("lab ping", move || ask(&asking, to, interval, &asked))?;
    let answered = Arc::clone(shared);
    let receiver = from.thread("lab pong", move || listen(&socket, &answered))?;
    Ok(vec![sender, receiver])
}

fn open(to: IpAddr) -> io::Result<OwnedFd> {
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(protocol))?;
    set_socket_timeout(&socket, Timeout::Recv, Some(POLL))?;
    Ok(socket)
}

fn ask(socket: &OwnedFd, to: IpAddr, interval: Duration, shared: &Shared) {
    come_ahead();
    let kind = if to.is_ipv4() { ECHO_V4 } else { ECHO_V6 };
    let mut next = Instant::now();
    while let Some(number) = shared.ask() {
        let mut packet = [0; HEADER + NUMBER];
        let (header, body) = packet.split_at_mut(HEADER);
        // Type, code, checksum, identifier, sequence: the kernel fills in the checksum and the identifier.
        let [_, _, high, low] = number.to_be_bytes();
        header.copy_from_slice(&[kind, 0, 0, 0, 0, 0, high, low]);
        body.copy_from_slice(&number.to_be_bytes());
        // Where there is no way at the moment, the question is a lost one.
        let _ = sendto(socket, &packet, SendFlags::empty(), &SocketAddr::new(to, 0));
        shared.pace(&mut next, interval);
    }
}

fn listen(socket: &OwnedFd, shared: &Shared) {
    come_ahead();
    let mut packet = [0; 256];
    let mut last = None;
    while !shared.stopped() {
        let Ok((length, _)) = recv(socket, &mut packet[..], RecvFlags::empty()) else { continue };
        let at = Instant::now();
        let number = packet.get(HEADER..HEADER + NUMBER).filter(|_| length >= HEADER + NUMBER);
        let Some(number) = number.and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes) else { continue };
        // A duplicate follows its original closely.
        if last.replace(number) != Some(number) {
            shared.answer(number, at);
        }
    }
}

const ECHO_V4: u8 = 8;
const ECHO_V6: u8 = 128;
/// The header of an ICMP echo.
const HEADER: usize = 8;
/// Our number behind it: ICMP's own has 16 bits only.
const NUMBER: usize = 4;
