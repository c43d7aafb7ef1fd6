//! Answering on a LAN for addresses that are elsewhere: proxy ARP (RFC 1027) and proxy neighbour discovery (RFC 4389).
//!
//! The kernel answers for an address only while it forwards, and while its own route to it leaves by another device:
//! what has come home is not answered for, whatever stands here. For IPv6 it answers where `proxy_ndp` is set, and joins the groups
//! in which the addresses are asked for in any case.

use std::{collections::BTreeSet, io, net::IpAddr};

use futures_util::TryStreamExt as _;
use rtnetlink::packet_route::{
    address::AddressScope,
    link::LinkAttribute,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
};

use super::{Link, Netlink, PROTOCOL, RouteError, errno, is_usable, own_network};
use crate::neighbour::{self, Port};

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

    /// The device as its neighbours know it; `None` where it has no Ethernet address.
    ///
    /// # Errors
    /// Where the device is gone, or the tables cannot be read.
    pub async fn port(&self, link: Link) -> Result<Option<Port>, RouteError> {
        let found = self.handle.link().get().match_index(link.index).execute().try_next().await;
        let message = found.map_err(|e| RouteError::of("read network devices", e))?;
        let ethernet =
            message.into_iter().flat_map(|message| message.attributes).find_map(|attribute| match attribute {
                LinkAttribute::Address(address) => <[u8; 6]>::try_from(address).ok(),
                _ => None,
            });
        let addresses = self.addresses().await?;
        let of_link = addresses.iter().filter(|message| message.header.index == link.index && is_usable(message));
        let local = of_link.filter(|message| message.header.scope == AddressScope::Link).filter_map(own_network);
        let local = local.map(|network| network.ip()).find_map(|ip| match ip {
            IpAddr::V6(ip) => Some(ip),
            IpAddr::V4(_) => None,
        });
        Ok(ethernet.map(|ethernet| Port { link, ethernet, local }))
    }

    /// Tells everybody on a LAN that these addresses are to be found here from now on, so that nobody goes on sending to
    /// where they were; those of IPv6 where the device has a link-local address. Needs CAP_NET_RAW.
    ///
    /// # Errors
    /// Where the device is gone, has no Ethernet address or takes nothing, or it is not permitted.
    pub async fn announce(&self, link: Link, ips: &[IpAddr]) -> Result<(), RouteError> {
        if ips.is_empty() {
            return Ok(());
        }
        let announced = match self.port(link).await? {
            None => Err(io::ErrorKind::AddrNotAvailable.into()),
            Some(port) => neighbour::announce(port, ips).await,
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
