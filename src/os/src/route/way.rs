//! What the kernel would do with a packet, and what it answers for: questions that change nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use futures_util::TryStreamExt as _;
use rtnetlink::{
    RouteMessageBuilder,
    packet_route::{
        neighbour::{NeighbourFlags, NeighbourMessage},
        route::{RouteMessage, RouteType},
    },
};

use super::{Device, Netlink, RouteError, errno, gateway, neighbour, output};

/// Where the kernel sends what is for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// By this device; the loopback device, where the address is the machine's own.
    pub device: String,
    /// To this router, where there is one.
    pub gateway: Option<IpAddr>,
}

impl Netlink {
    /// Where the kernel would send what is for each of these addresses, by all its rules and tables; `None`: nowhere.
    ///
    /// # Errors
    /// Where the tables cannot be read.
    pub async fn ways(
        &self,
        to: impl IntoIterator<Item = IpAddr>,
    ) -> Result<BTreeMap<IpAddr, Option<Way>>, RouteError> {
        let devices = self.devices().await?;
        let mut ways = BTreeMap::new();
        for ip in to {
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            let Ok(question) = RouteMessageBuilder::<IpAddr>::new().destination_prefix(ip, bits) else { continue };
            let way = match self.handle.route().get(question.build()).execute().try_next().await {
                Ok(answer) => answer.and_then(|message| way(&message, &devices)),
                Err(e) if leads_nowhere(errno(&e)) => None,
                Err(e) => return Err(RouteError::of("ask for a route", e)),
            };
            ways.insert(ip, way);
        }
        Ok(ways)
    }

    /// What this machine answers for by proxy ARP and proxy neighbour discovery, whoever had it do so: devices and
    /// addresses.
    ///
    /// # Errors
    /// Where the tables cannot be read.
    pub async fn answers(&self) -> Result<BTreeSet<(String, IpAddr)>, RouteError> {
        let devices = self.devices().await?;
        let all = self.handle.neighbours().get().proxies().execute();
        let all: Vec<NeighbourMessage> =
            all.try_collect().await.map_err(|e| RouteError::of("read what is answered for", e))?;
        let proxies = all.iter().filter(|message| message.header.flags.contains(NeighbourFlags::Proxy));
        let named = proxies.filter_map(|message| {
            Some((devices.get(&message.header.ifindex)?.name.clone(), neighbour::address(message)?))
        });
        Ok(named.collect())
    }
}

fn way(message: &RouteMessage, devices: &BTreeMap<u32, Device>) -> Option<Way> {
    if !matches!(message.header.kind, RouteType::Unicast | RouteType::Local) {
        return None;
    }
    let device = devices.get(&output(message)?)?.name.clone();
    Some(Way { device, gateway: gateway(message) })
}

/// No route, and the three kinds of route that refuse.
fn leads_nowhere(error: Option<rustix::io::Errno>) -> bool {
    use rustix::io::Errno;
    matches!(error, Some(Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS | Errno::INVAL))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::async_in_empty_netns;

    #[test]
    fn the_kernel_says_by_which_device_and_router_it_would_send() {
        async_in_empty_netns(|| async {
            let netlink = Netlink::open().unwrap();
            let link = netlink.veth_for_test(&["192.0.2.1/24", "2001:db8::1/64"]).await;
            let (near, far, own) =
                ("192.0.2.7".parse().unwrap(), "203.0.113.7".parse().unwrap(), "192.0.2.1".parse().unwrap());
            let near6 = "2001:db8::7".parse().unwrap();
            let by = |device: &str, gateway| Some(Way { device: device.to_owned(), gateway });
            let ways = netlink.ways([near, near6, far, own]).await.unwrap();
            let expected = [(near, by("a", None)), (near6, by("a", None)), (far, None), (own, by("lo", None))];
            assert_eq!(ways, BTreeMap::from(expected));
            let router: std::net::Ipv4Addr = "192.0.2.254".parse().unwrap();
            let default = RouteMessageBuilder::<std::net::Ipv4Addr>::new().gateway(router).build();
            netlink.handle.route().add(default).execute().await.unwrap();
            assert_eq!(netlink.ways([far]).await.unwrap(), BTreeMap::from([(far, by("a", Some(router.into())))]));

            assert_eq!(netlink.answers().await.unwrap(), BTreeSet::new());
            netlink.set_answers(&[link].into(), &[(link, near)].into()).await.unwrap();
            assert_eq!(netlink.answers().await.unwrap(), BTreeSet::from([("a".to_owned(), near)]));
        });
    }
}
