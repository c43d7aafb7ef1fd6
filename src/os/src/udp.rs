//! Datagrams, many to a system call.
//!
//! A send is one run of equal segments to one endpoint (GSO); a receive is up to [`RecvBatch::BUFFERS`]
//! buffers, each of which may hold a whole run (GRO). `control` and `recv` talk to the kernel; and:
//!
//! * one socket for both families, or IPv4 alone where the machine has no IPv6;
//! * runs cut to what the kernel takes;
//! * a refused run is sent again in single datagrams, so that nothing is lost, and only where those go
//!   through are runs given up, for every destination, until [`UdpSocket::reset_offload`];
//! * a full send buffer is waited for, briefly and never twice in a row;
//! * errors of one destination never look like errors of the socket.
//!
//! Path MTU is not the kernel's business here: fragments are forbidden and its guesses ignored
//! (IP_PMTUDISC_PROBE), so that a datagram over the link's MTU fails with EMSGSIZE.
#![expect(unsafe_code, reason = "socket options that no safe wrapper has")]

mod steer;

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use flatlan_types::Endpoint;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use socket2::{Domain, MsgHdr, Protocol, SockAddr, Socket, Type};

use crate::{ExitClass, Offload, Why, clock};

mod control;
mod many;
mod recv;

use control::{Control, Says};
pub use many::{SendBatch, Unsent};
use recv::Meta;

/// A bound socket. One thread should receive; any may send.
#[derive(Debug)]
pub struct UdpSocket {
    socket: Socket,
    local: SocketAddr,
    /// What the caller wanted.
    wanted: Offload,
    /// Whether runs are sent as such.
    gso: AtomicBool,
    /// How many runs were refused.
    refused: AtomicU64,
    /// The last send found no room in time.
    clogged: AtomicBool,
}

/// How to bind.
#[derive(Debug, Clone, Copy)]
pub struct UdpOptions {
    /// Whether to hand runs to the kernel; where it is off, none are taken from it either.
    pub gso: Offload,
    /// Whether several sockets may share the port: the kernel spreads senders over them.
    pub port: Port,
    /// What to ask for as send and receive buffer, in bytes.
    pub buffer: usize,
    /// Whether the kernel is to say of each datagram or run when it came (SO_TIMESTAMPNS).
    pub arrivals: bool,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self { gso: Offload::Auto, port: Port::Own, buffer: BUFFER, arrivals: false }
    }
}

/// Who owns the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// This socket alone.
    Own,
    /// Every socket of this user that also says so.
    Shared,
}

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    /// Where to.
    pub to: Endpoint,
    /// The source address, where the machine has several and the answer must come from the one asked.
    pub from: Option<IpAddr>,
    /// One datagram, or a run of them.
    pub contents: &'a [u8],
    /// The length of each datagram of a run; the last may be shorter.
    pub segment: Option<usize>,
    /// DSCP and ECN (RFC 2474, RFC 3168): the type of service of IPv4, the traffic class of IPv6.
    pub traffic_class: u8,
}

/// What was received into one buffer.
#[derive(Debug)]
pub struct Received<'a> {
    /// The sender.
    pub from: Endpoint,
    /// The address of ours that it was sent to.
    pub to: Option<IpAddr>,
    /// DSCP and ECN.
    pub traffic_class: u8,
    /// The length of each datagram in `contents`; the last may be shorter. Never zero.
    pub stride: usize,
    /// How long it lay in the socket; zero where that was not asked for, or the kernel does not tell.
    pub waited: Duration,
    /// One datagram, or a run of them. Never empty.
    pub contents: &'a mut [u8],
}

/// Buffers to receive into, used again and again.
pub struct RecvBatch {
    buffers: Box<[u8]>,
    /// How long each buffer is.
    len: usize,
    metas: [Meta; Self::BUFFERS],
    filled: usize,
    cut: u64,
}

impl RecvBatch {
    /// How many buffers there are.
    pub const BUFFERS: usize = 8;
    /// How long each is: less would cut runs short.
    pub const BUFFER_LEN: usize = 65536;

    /// A batch with nothing in it.
    pub fn new() -> Self {
        Self::with_buffers_of(Self::BUFFER_LEN)
    }

    fn with_buffers_of(len: usize) -> Self {
        Self {
            buffers: vec![0; Self::BUFFERS * len].into_boxed_slice(),
            len,
            metas: [Meta::default(); Self::BUFFERS],
            filled: 0,
            cut: 0,
        }
    }

    /// What the last receive brought, in order of arrival.
    pub fn received(&mut self) -> impl Iterator<Item = Received<'_>> {
        let filled = self.metas.iter().take(self.filled);
        let now = self.metas[0].came.map_or(Duration::ZERO, |_| clock::since_1970());
        filled.zip(self.buffers.chunks_exact_mut(self.len)).filter_map(move |(meta, buffer)| {
            let contents = buffer.get_mut(..meta.len).filter(|contents| !contents.is_empty())?;
            Some(Received {
                from: Endpoint::new(meta.from?),
                to: meta.to.map(|ip| ip.to_canonical()),
                traffic_class: meta.traffic_class,
                stride: meta.stride,
                waited: meta.came.map_or(Duration::ZERO, |came| now.saturating_sub(came)),
                contents,
            })
        })
    }

    /// How many datagrams were longer than what is left of a buffer, and dropped.
    pub fn cut(&self) -> u64 {
        self.cut
    }
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for RecvBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecvBatch").field("filled", &self.filled).finish_non_exhaustive()
    }
}

impl UdpSocket {
    /// Binds to `address`. The unspecified IPv6 address means both families, and IPv4 alone where the
    /// machine has no IPv6.
    ///
    /// # Errors
    /// Where the port is taken or not allowed, or the address is not this machine's.
    pub fn bind(address: SocketAddr, options: UdpOptions) -> Result<Self, UdpError> {
        let bound = match Self::bind_exactly(address, options) {
            Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && no_such_family(&error) => {
                let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
                Self::bind_exactly(v4, options).map_err(|e| UdpError::bind(v4, e))
            }
            Err(error) => Err(UdpError::bind(address, error)),
            Ok(socket) => Ok(socket),
        }?;
        if options.gso == Offload::On && !bound.gso() {
            return Err(UdpError::NoSegmentation { address });
        }
        Ok(bound)
    }

    fn bind_exactly(address: SocketAddr, options: UdpOptions) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(address.ip() != Ipv6Addr::UNSPECIFIED)?;
        }
        if options.port == Port::Shared {
            socket.set_reuse_port(true)?;
        }
        // Privilege lifts the system's limit; without it take what is allowed.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, options.buffer)
            .or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&socket, options.buffer));
        let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, options.buffer)
            .or_else(|_| rustix::net::sockopt::set_socket_send_buffer_size(&socket, options.buffer));
        socket.bind(&address.into())?;
        let local = socket.local_addr()?.as_socket().ok_or(Errno::AFNOSUPPORT)?;
        set_up(&socket, local, options)?;
        let gso = options.gso != Offload::Off && can_segment(&socket);
        Ok(Self {
            socket,
            local,
            wanted: options.gso,
            gso: AtomicBool::new(gso),
            refused: AtomicU64::new(0),
            clogged: AtomicBool::new(false),
        })
    }

    /// Receives what is there, without waiting; the number of buffers filled.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where nothing is there. Errors that ICMP brought are passed over.
    pub fn recv(&self, batch: &mut RecvBatch) -> io::Result<usize> {
        batch.filled = 0;
        for _ in 0..ERRORS_IN_A_ROW {
            let mut buffers = batch.buffers.chunks_exact_mut(batch.len);
            let buffers: [&mut [u8]; RecvBatch::BUFFERS] = std::array::from_fn(|_| buffers.next().unwrap_or_default());
            match recv::recv(self.socket.as_fd(), buffers, &mut batch.metas) {
                Ok(filled) => {
                    batch.filled = filled;
                    batch.cut += batch.metas.iter().take(filled).filter(|meta| meta.cut).count() as u64;
                    return Ok(filled);
                }
                Err(error) if of_one_destination(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Sends one datagram or one run.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] where the send buffer stayed full: the rest of the run is lost.
    /// Other errors mean this destination (EMSGSIZE: over the link's MTU); the socket goes on.
    pub fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.send_counting(transmit, &mut Unsent::default())
    }

    /// As [`UdpSocket::send`]; adds to `unsent` what was given up.
    fn send_counting(&self, transmit: &Transmit<'_>, unsent: &mut Unsent) -> io::Result<()> {
        let segment = transmit.segment.unwrap_or(usize::MAX).clamp(1, transmit.contents.len().max(1));
        let to = self.reachable(transmit.to).inspect_err(|_| *unsent += Unsent::cut(transmit.contents, segment))?;
        if transmit.contents.is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let run = (MOST_BYTES / segment).clamp(1, MOST_SEGMENTS) * segment;
        let says = Says { to, from: transmit.from, traffic_class: transmit.traffic_class, segment: None };
        let to = SockAddr::from(to);
        let mut rest = transmit.contents.chunks(run);
        while let Some(contents) = rest.next() {
            if let Err(error) = self.send_run(&to, &says, contents, segment, unsent) {
                rest.for_each(|contents| *unsent += Unsent::cut(contents, segment));
                return Err(error);
            }
        }
        Ok(())
    }

    /// A place in this socket's family.
    fn reachable(&self, to: Endpoint) -> io::Result<SocketAddr> {
        match (to.socket_addr(), self.local) {
            // The kernel would answer EINVAL, as it does where it cannot segment.
            (to, _) if to.port() == 0 => Err(io::ErrorKind::InvalidInput.into()),
            (SocketAddr::V4(v4), SocketAddr::V6(_)) => Ok(SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port())),
            (SocketAddr::V6(_), SocketAddr::V4(_)) => Err(Errno::AFNOSUPPORT.into()),
            (same, _) => Ok(same),
        }
    }

    fn send_run(&self, to: &SockAddr, says: &Says, run: &[u8], segment: usize, unsent: &mut Unsent) -> io::Result<()> {
        if run.len() > segment && self.gso.load(Ordering::Relaxed) {
            let says_run = Says { segment: u16::try_from(segment).ok(), ..*says };
            match self.send_patiently(to, &Control::new(&says_run), run) {
                Err(error) if refuses_runs(&error) => {
                    self.send_singles(to, says, run, segment, unsent)?;
                    // The same bytes went through one by one: it is the segmentation that is refused.
                    self.on_refused(error);
                    return Ok(());
                }
                Err(error) => {
                    *unsent += Unsent::cut(run, segment);
                    return Err(error);
                }
                Ok(()) => return Ok(()),
            }
        }
        self.send_singles(to, says, run, segment, unsent)
    }

    /// Told once: after a change of the network, the same link may refuse again.
    fn on_refused(&self, error: io::Error) {
        let first = self.refused.fetch_add(1, Ordering::Relaxed) == 0;
        let why = Why(error);
        if self.wanted == Offload::On {
            if first {
                tracing::error!(reason = %why, "the kernel refuses UDP segmentation, which is to be on: sending single datagrams");
            }
            return;
        }
        self.gso.store(false, Ordering::Relaxed);
        if first {
            tracing::warn!(reason = %why, "the kernel refuses UDP segmentation: sending single datagrams");
        }
    }

    /// Each is tried: they may be of several flows. The first error.
    fn send_singles(
        &self,
        to: &SockAddr,
        says: &Says,
        run: &[u8],
        segment: usize,
        unsent: &mut Unsent,
    ) -> io::Result<()> {
        let control = Control::new(says);
        let mut all = Ok(());
        for contents in run.chunks(segment) {
            if let Err(error) = self.send_patiently(to, &control, contents) {
                *unsent += Unsent::cut(contents, segment);
                all = all.and(Err(error));
            }
        }
        all
    }

    fn send_patiently(&self, to: &SockAddr, control: &Control, contents: &[u8]) -> io::Result<()> {
        let buffers = [IoSlice::new(contents)];
        let message = MsgHdr::new().with_addr(to).with_buffers(&buffers).with_control(control.bytes());
        loop {
            match self.socket.sendmsg(&message, 0) {
                Ok(_) => {
                    self.clogged.store(false, Ordering::Relaxed);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.clogged.swap(true, Ordering::Relaxed) || !self.wait_for_room()? {
                        return Err(error);
                    }
                    self.clogged.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn wait_for_room(&self) -> io::Result<bool> {
        let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::OUT)];
        let patience = Timespec::try_from(PATIENCE).ok();
        match poll(&mut fds, patience.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets what the kernel refused: after the network has changed, other links may segment.
    pub fn reset_offload(&self) {
        let gso = self.wanted != Offload::Off && can_segment(&self.socket);
        self.gso.store(gso, Ordering::Relaxed);
    }

    /// Whether runs are handed to the kernel whole.
    pub fn gso(&self) -> bool {
        self.gso.load(Ordering::Relaxed)
    }

    /// How many runs the kernel refused and were sent in single datagrams.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Where it is bound.
    pub fn local(&self) -> SocketAddr {
        self.local
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What every socket is to do. Only what no packet can do without is insisted on.
fn set_up(socket: &Socket, local: SocketAddr, options: UdpOptions) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // Also for IPv4 by mapped addresses. Fragments are forbidden, the kernel's guesses ignored.
    set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
    if local.is_ipv4() {
        set(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
    } else {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        // PROBE alone lets the kernel fragment what is over the link's MTU
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)?;
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    }
    let _ = set(socket, libc::IPPROTO_IP, libc::IP_RECVTOS, 1);
    // Linux 5.0; before, runs come as their datagrams
    let _ = set(socket, libc::SOL_UDP, libc::UDP_GRO, libc::c_int::from(options.gso != Offload::Off));
    if options.arrivals {
        let _ = set(socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1);
    }
    Ok(())
}

/// Whether the kernel knows runs (Linux 4.18). Whether a link takes them shows when one is sent.
fn can_segment(socket: &Socket) -> bool {
    set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
}

fn set(socket: &Socket, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let len = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is `len` bytes, and outlives the call.
    let done = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), len) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn refuses_runs(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::INVAL | Errno::MSGSIZE))
}

fn no_such_family(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn of_one_destination(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(
            Errno::CONNREFUSED
                | Errno::CONNRESET
                | Errno::HOSTUNREACH
                | Errno::MSGSIZE
                | Errno::NETUNREACH
                | Errno::PROTO
        )
    )
}

/// Kernels take 64 segments; some more, none promises it.
const MOST_SEGMENTS: usize = 64;
/// The largest UDP payload in IPv4 (RFC 768, RFC 791).
const MOST_BYTES: usize = 65507;
const BUFFER: usize = 7 << 20;
const ERRORS_IN_A_ROW: usize = 64;
/// How long a send waits for room: longer than a burst takes to leave, shorter than a path's death.
const PATIENCE: Duration = Duration::from_millis(10);

/// Why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum UdpError {
    /// Any other reason.
    #[error("cannot bind UDP {address}: {why}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The kernel's reason.
        why: Why,
    },
    /// Segmentation is to be on, and the kernel has none.
    #[error(
        "cannot bind UDP {address}: udp_gso = on, but this kernel does not segment UDP (Linux 4.18 does): set udp_gso = \"auto\""
    )]
    NoSegmentation {
        /// Where.
        address: SocketAddr,
    },
    /// The address is of another machine.
    #[error("cannot bind UDP {address}: this machine has no address {}: use 0.0.0.0 or [::] for all", address.ip())]
    NotLocal {
        /// Where.
        address: SocketAddr,
    },
    /// A port below 1024, or a security policy.
    #[error(
        "cannot bind UDP {address}: not permitted: ports below 1024 need root or the capability CAP_NET_BIND_SERVICE"
    )]
    NotPermitted {
        /// Where.
        address: SocketAddr,
    },
    /// Somebody has it.
    #[error("cannot bind UDP {address}: the port is in use: stop what uses it (`ss -ulpn sport = {}` shows it), or choose another port", address.port())]
    Taken {
        /// Where.
        address: SocketAddr,
    },
}

impl UdpError {
    fn bind(address: SocketAddr, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::AddrInUse => Self::Taken { address },
            io::ErrorKind::AddrNotAvailable => Self::NotLocal { address },
            io::ErrorKind::PermissionDenied => Self::NotPermitted { address },
            _ => Self::Bind { address, why: error.into() },
        }
    }

    /// Which exit code it asks for.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::Bind { why, .. } => ExitClass::of(why),
            Self::NoSegmentation { .. } | Self::NotLocal { .. } => ExitClass::Wrong,
            Self::NotPermitted { .. } => ExitClass::NotPermitted,
            Self::Taken { .. } => ExitClass::Failed,
        }
    }
}

#[cfg(test)]
mod tests;
