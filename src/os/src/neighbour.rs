//! Finding neighbours on an Ethernet: ARP (RFC 826) and neighbour discovery (RFC 4861), heard and spoken beside the kernel.
//!
//! A [`Listener`] hears whoever looks for an address on one device, also for one that the kernel knows nothing of, and can
//! answer. [`Netlink::announce`](crate::route::Netlink::announce) tells everybody there where an address is. Whom to answer is not decided here.
//!
//! Packet sockets, which need CAP_NET_RAW: one takes all of ARP, one takes solicitations (a filter in the kernel spares
//! this process the rest of IPv6) and has the device take every multicast group while it is open, for each address is asked for
//! in a group of its own. Both leave nothing behind.

#![expect(unsafe_code, reason = "a packet socket's address and membership have no safe wrapper")]

mod wire;

use std::{
    future, io, mem,
    net::{IpAddr, Ipv6Addr},
    os::fd::AsRawFd as _,
    time::Duration,
};

use socket2::{Domain, SockAddr, SockFilter, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::timeout,
};

use crate::{checksum, route::Link};

/// A device as its neighbours know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    pub(crate) link: Link,
    pub(crate) ethernet: [u8; 6],
    /// Its link-local IPv6 address, where it has one.
    pub(crate) local: Option<Ipv6Addr>,
}

/// Somebody looks for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solicitation {
    /// The address.
    pub target: IpAddr,
    /// The asker's own; unspecified where it makes sure that nobody has the target (RFC 4862, RFC 5227).
    pub asker: IpAddr,
    /// Who is asked.
    pub asked: Asked,
    /// The asker's Ethernet address.
    pub ethernet: [u8; 6],
}

/// Who is asked for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Everybody on the device.
    Everybody,
    /// This machine: the asker believes that the address is here, and makes sure of it.
    Us,
}

/// Hears who looks for an address on a device.
#[derive(Debug)]
pub struct Listener {
    port: Port,
    arp: AsyncFd<Socket>,
    /// Where the device has IPv6.
    discovery: Option<AsyncFd<Socket>>,
}

impl Listener {
    /// Listens from here on. Needs a tokio runtime.
    ///
    /// # Errors
    /// Where it is not permitted, or the device is gone.
    pub fn open(port: Port) -> io::Result<Self> {
        let discovery = port.local.map(|_| listen(port, IPV6)).transpose()?;
        Ok(Self { port, arp: listen(port, ARP)?, discovery })
    }

    /// The next question. Safe to cancel.
    ///
    /// # Errors
    /// Where nothing more can be heard.
    pub async fn next(&self) -> io::Result<Solicitation> {
        let (mut arp, mut discovery) = ([0; LONGEST], [0; LONGEST]);
        loop {
            let heard = tokio::select! {
                heard = hear(&self.arp, &mut arp) => {
                    let Heard { len, asked, ethernet } = heard?;
                    let question = wire::parse_request(arp.get(..len).unwrap_or_default());
                    question.map(|(target, asker)| (IpAddr::from(target), IpAddr::from(asker), asked, ethernet))
                }
                heard = hear_where_there(self.discovery.as_ref(), &mut discovery) => {
                    let Heard { len, asked, ethernet } = heard?;
                    let question = wire::parse_solicitation(discovery.get(..len).unwrap_or_default());
                    question.map(|(target, asker)| (IpAddr::from(target), IpAddr::from(asker), asked, ethernet))
                }
            };
            if let Some((target, asker, Some(asked), ethernet)) = heard {
                return Ok(Solicitation { target, asker, asked, ethernet });
            }
        }
    }

    /// Tells the asker that the address is here. By IPv6 an answer of the address's real owner counts for more (RFC 4861,
    /// section 7.2.8); ARP knows no such difference.
    ///
    /// # Errors
    /// Where it cannot be sent.
    pub fn answer(&self, solicitation: &Solicitation) -> io::Result<()> {
        let (port, to) = (self.port, solicitation.ethernet);
        match (solicitation.target, solicitation.asker) {
            (IpAddr::V4(target), IpAddr::V4(asker)) => {
                let reply = wire::arp(wire::REPLY, (port.ethernet, target), (to, asker));
                send(self.arp.get_ref(), port, ARP, to, &reply)
            }
            (IpAddr::V6(target), IpAddr::V6(asker)) => {
                let (Some(socket), Some(local)) = (&self.discovery, port.local) else { return Ok(()) };
                let reply = wire::advertisement((local, asker), target, port.ethernet, wire::SOLICITED);
                send(socket.get_ref(), port, IPV6, to, &reply)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Ok(()),
        }
    }
}

/// Tells everybody on a device that these addresses are to be found here from now on, so that nobody goes on sending to where
/// they were: gratuitous ARP replies (RFC 5227, section 3), and advertisements that override what was known, as a home agent
/// sends them for a mobile node (RFC 6275, section 10.4.1). Those of IPv6 only where the device has it. Needs a tokio runtime.
///
/// # Errors
/// Where it is not permitted, the device is gone or down, or it does not take them all within [`ANNOUNCED_WITHIN`].
pub(crate) async fn announce(port: Port, ips: &[IpAddr]) -> io::Result<()> {
    let socket = registered(open()?, Interest::WRITABLE)?;
    let told = async {
        for ip in ips {
            let (protocol, to, packet) = match (*ip, port.local) {
                (IpAddr::V4(ip), _) => {
                    let own = (port.ethernet, ip);
                    (ARP, BROADCAST, wire::arp(wire::REPLY, own, own))
                }
                (IpAddr::V6(ip), Some(local)) => {
                    let told = wire::advertisement((local, ALL_NODES), ip, port.ethernet, wire::OVERRIDE);
                    (IPV6, ALL_NODES_ETHERNET, told)
                }
                (IpAddr::V6(_), None) => continue,
            };
            socket.async_io(Interest::WRITABLE, |socket| send(socket, port, protocol, to, &packet)).await?;
        }
        Ok(())
    };
    timeout(ANNOUNCED_WITHIN, told).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A frame: how long it is, who is spoken to where that concerns us, and who speaks.
#[derive(Debug, Clone, Copy)]
struct Heard {
    len: usize,
    asked: Option<Asked>,
    ethernet: [u8; 6],
}

async fn hear(socket: &AsyncFd<Socket>, frame: &mut [u8]) -> io::Result<Heard> {
    loop {
        match socket.async_io(Interest::READABLE, |socket| receive(socket, frame)).await {
            // told once when the device goes down; it may come up again
            Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
            heard => return heard,
        }
    }
}

async fn hear_where_there(socket: Option<&AsyncFd<Socket>>, frame: &mut [u8]) -> io::Result<Heard> {
    match socket {
        Some(socket) => hear(socket, frame).await,
        None => future::pending().await,
    }
}

/// A socket that speaks and hears nothing yet.
fn open() -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn registered(socket: Socket, interest: Interest) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns its descriptor, always the same one, and is owned in turn.
    let registered = unsafe { AsyncFd::register_with_interest(socket, interest) };
    Ok(registered?)
}

fn listen(port: Port, protocol: u16) -> io::Result<AsyncFd<Socket>> {
    let socket = open()?;
    if protocol == IPV6 {
        socket.attach_filter(&ONLY_SOLICITATIONS)?;
        take_every_group(&socket, port)?;
    }
    socket.bind(&address(port, protocol, [0; 6])?)?;
    registered(socket, Interest::READABLE)
}

fn take_every_group(socket: &Socket, port: Port) -> io::Result<()> {
    let membership = libc::packet_mreq {
        mr_ifindex: index(port)?,
        mr_type: libc::PACKET_MR_ALLMULTI as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // SAFETY: the pointer names `membership`, which lives longer than the call, with its own length; the kernel only reads.
    let done = unsafe {
        let (option, len) = ((&raw const membership).cast(), size_of_val(&membership) as libc::socklen_t);
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, option, len)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn send(socket: &Socket, port: Port, protocol: u16, to: [u8; 6], packet: &[u8]) -> io::Result<()> {
    socket.send_to(packet, &address(port, protocol, to)?).map(|_| ())
}

fn receive(socket: &Socket, frame: &mut [u8]) -> io::Result<Heard> {
    // SAFETY: all zeros is an address of no family.
    let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
    let mut from_len = size_of_val(&from) as libc::socklen_t;
    // SAFETY: both pointers name what lives longer than the call, with their own lengths.
    let len = unsafe {
        let (buffer, from) = (frame.as_mut_ptr().cast(), (&raw mut from).cast());
        libc::recvfrom(socket.as_raw_fd(), buffer, frame.len(), 0, from, &raw mut from_len)
    };
    let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
    let asked = match from.sll_pkttype {
        libc::PACKET_HOST => Some(Asked::Us),
        libc::PACKET_BROADCAST | libc::PACKET_MULTICAST => Some(Asked::Everybody),
        // of a device that takes what is for others, too
        _ => None,
    };
    let [a, b, c, d, e, f, ..] = from.sll_addr;
    Ok(Heard { len, asked, ethernet: [a, b, c, d, e, f] })
}

fn address(port: Port, protocol: u16, ethernet: [u8; 6]) -> io::Result<SockAddr> {
    let [a, b, c, d, e, f] = ethernet;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: index(port)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [a, b, c, d, e, f, 0, 0],
    };
    // SAFETY: the storage holds any kernel address, this one among them, and is told its true length.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            storage.cast::<libc::sockaddr_ll>().write(address);
            *len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}

fn index(port: Port) -> io::Result<i32> {
    i32::try_from(port.link.index()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The EtherTypes, as the wire has them.
const ARP: u16 = (libc::ETH_P_ARP as u16).to_be();
const IPV6: u16 = (libc::ETH_P_IPV6 as u16).to_be();
const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Where the group of all nodes is on an Ethernet (RFC 2464, section 7).
const ALL_NODES_ETHERNET: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// A LAN whose device takes nothing keeps whoever announces waiting for no longer.
const ANNOUNCED_WITHIN: Duration = Duration::from_millis(100);
/// Longer than any question with the options that there are.
const LONGEST: usize = 512;

/// Takes ICMPv6 of this link (hop limit 255) whose type says that it solicits a neighbour; the IPv6 header is where it begins.
const ONLY_SOLICITATIONS: [SockFilter; 8] = {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const JUMP_UNLESS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 6),
        SockFilter::new(JUMP_UNLESS, 0, 5, wire::ICMPV6 as u32),
        SockFilter::new(LOAD_BYTE, 0, 0, 7),
        SockFilter::new(JUMP_UNLESS, 0, 3, wire::OF_THIS_LINK as u32),
        SockFilter::new(LOAD_BYTE, 0, 0, 40),
        SockFilter::new(JUMP_UNLESS, 0, 1, wire::SOLICITATION as u32),
        SockFilter::new(RETURN, 0, 0, LONGEST as u32),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
};

#[cfg(test)]
mod tests;
