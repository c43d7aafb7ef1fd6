//! Answering on a LAN for addresses that are elsewhere: proxy ARP (RFC 1027) and proxy neighbour discovery (RFC 4389).
//!
//! The kernel answers for an address only while it forwards, and while its own route to it leaves by another device:
//! what has come home is not answered for, whatever stands here.

#![expect(unsafe_code, reason = "a packet socket's address has no safe wrapper")]

use std::{
    collections::BTreeSet,
    io, mem,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::{
    link::LinkAttribute,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
};

use super::{Link, Netlink, PROTOCOL, RouteError, errno};

impl Netlink {
    /// Makes what this machine answers for on these devices exactly these addresses; what others had it answer for is not
    /// touched. Returns those that are new.
    ///
    /// # Errors
    /// Where it is not permitted.
    pub async fn set_answers(
        &self,
        devices: &BTreeSet<Link>,
        answers: &BTreeSet<(Link, IpAddr)>,
    ) -> Result<Vec<(Link, IpAddr)>, RouteError> {
        if devices.is_empty() {
            return Ok(Vec::new());
        }
        let mut wanted = answers.clone();
        let present = self.handle.neighbours().get().proxies().execute();
        let present: Vec<NeighbourMessage> =
            present.try_collect().await.map_err(|e| RouteError::of("read what is answered for", e))?;
        for message in present.into_iter().filter(is_ours) {
            let link = Link { index: message.header.ifindex };
            let Some(ip) = address(&message).filter(|_| devices.contains(&link)) else { continue };
            if wanted.remove(&(link, ip)) {
                continue;
            }
            match self.handle.neighbours().del(message).execute().await {
                Err(e) if errno(&e) == Some(rustix::io::Errno::NOENT) => {}
                done => done.map_err(|e| RouteError::of("stop to answer for an address", e))?,
            }
        }
        for (link, ip) in &wanted {
            let mut request = self.handle.neighbours().add(link.index, *ip).flags(NeighbourFlags::Proxy);
            request.message_mut().attributes.push(NeighbourAttribute::Protocol(PROTOCOL));
            request.execute().await.map_err(|e| RouteError::of("answer for an address", e))?;
        }
        Ok(wanted.into_iter().collect())
    }

    /// Tells everybody on a LAN that these addresses are to be found here from now on: gratuitous ARP replies (RFC 5227,
    /// section 3), so that nobody goes on sending to where they were. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// Where the device is gone or has no Ethernet address, or it is not permitted.
    pub async fn announce(&self, link: Link, ips: &[Ipv4Addr]) -> Result<(), RouteError> {
        if ips.is_empty() {
            return Ok(());
        }
        let found = self.handle.link().get().match_index(link.index).execute().try_next().await;
        let message = found.map_err(|e| RouteError::of("read network devices", e))?;
        let ethernet =
            message.into_iter().flat_map(|message| message.attributes).find_map(|attribute| match attribute {
                LinkAttribute::Address(address) => <[u8; 6]>::try_from(address).ok(),
                _ => None,
            });
        let announced = match ethernet {
            None => Err(io::ErrorKind::AddrNotAvailable.into()),
            Some(ethernet) => open()
                .and_then(|socket| ips.iter().try_for_each(|ip| broadcast(&socket, link, &gratuitous(ethernet, *ip)))),
        };
        announced.map_err(|why| RouteError::Announce { why: why.into() })
    }
}

fn is_ours(message: &NeighbourMessage) -> bool {
    message.header.flags.contains(NeighbourFlags::Proxy)
        && message.attributes.contains(&NeighbourAttribute::Protocol(PROTOCOL))
}

pub(super) fn address(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some((*ip).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    })
}

/// An ARP reply for Ethernet and IPv4 (RFC 826) by which `ip` names itself.
fn gratuitous(ethernet: [u8; 6], ip: Ipv4Addr) -> [u8; 28] {
    let mut frame = [0; 28];
    let (kinds, rest) = frame.split_at_mut(8);
    // Ethernet, IPv4, 6 and 4 bytes long, a reply
    kinds.copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    for half in rest.chunks_mut(10) {
        let (hardware, protocol) = half.split_at_mut(6);
        hardware.copy_from_slice(&ethernet);
        protocol.copy_from_slice(&ip.octets());
    }
    frame
}

/// A socket that sends ARP.
fn open() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: no pointer is given; what is returned is checked before it is used.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(ARP)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was opened above, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn broadcast(socket: &OwnedFd, link: Link, arp: &[u8; 28]) -> io::Result<()> {
    // SAFETY: all zeros is an address of no family.
    let mut to: libc::sockaddr_ll = unsafe { mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_protocol = ARP;
    to.sll_ifindex = i32::try_from(link.index).map_err(|_| io::ErrorKind::InvalidInput)?;
    (to.sll_halen, to.sll_addr) = (6, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
    // SAFETY: both pointers name what lives longer than the call, with their own lengths; the kernel only reads.
    let sent = unsafe {
        let (len, to_len) = (arp.len(), size_of_val(&to) as libc::socklen_t);
        libc::sendto(socket.as_raw_fd(), arp.as_ptr().cast(), len, 0, (&raw const to).cast(), to_len)
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The EtherType, as the wire has it.
const ARP: u16 = (libc::ETH_P_ARP as u16).to_be();
