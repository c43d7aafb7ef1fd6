//! Addresses, routes and their changes, by netlink.
//!
//! Everything works on the network namespace of the thread that opened the [`Netlink`]. Setting is by
//! level: give what should be, and what differs is changed; only our own link and our own routes are ever
//! touched. Reading answers what the control machine asks: which prefixes are connected here already, under
//! which addresses this machine can be reached, and that something has changed.
//! Whether the machine forwards is in `forward`, what a gateway answers for on its LAN in `neighbour`, that it sends nobody
//! around itself in `redirects`, what the kernel would do with a packet in `way`. Policy routing, other tables and DNS are not here.

mod forward;
mod neighbour;
mod redirects;
mod way;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    thread,
};

use flatlan_types::Prefix;
use futures_util::{StreamExt, TryStreamExt, future};
use ipnetwork::IpNetwork;
use rtnetlink::{
    Error, Handle, IpVersion, LinkMessageBuilder, LinkUnspec, MulticastGroup, RouteMessageBuilder,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
    },
};
use tokio::{sync::watch, task::JoinHandle};

pub use forward::{Forwarding, Found};
pub use redirects::Redirects;
pub use way::Way;

use crate::{ExitClass, Why};

/// A connection to the kernel's routing tables.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    _connection: Task,
}

/// A network device of this namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    index: u32,
}

impl Link {
    /// The kernel's number of it.
    pub(crate) fn index(self) -> u32 {
        self.index
    }
}

/// A prefix that a device of this machine is in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connected {
    /// The device's name.
    pub device: String,
    /// The prefix.
    pub prefix: Prefix,
}

/// An address under which this machine may be reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    /// The address.
    pub ip: IpAddr,
    /// The device's name.
    pub device: String,
    /// Whether a default route leaves by this device.
    pub default_route: bool,
}

/// Whether frames can leave by a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// It is set down, or has no carrier.
    Down,
    /// It is up.
    Up,
}

/// Whether a device can have IPv6 addresses: an administrator or the kernel's command line may have switched
/// that off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ipv6 {
    /// It can.
    Enabled,
    /// It cannot.
    Disabled,
}

/// A route that leaves by a gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayRoute {
    /// Where to; `None`: the default route.
    pub prefix: Option<Prefix>,
    /// The gateway.
    pub gateway: IpAddr,
    /// By which device.
    pub link: Option<Link>,
}

impl Netlink {
    /// Opens a connection in the calling thread's network namespace. Needs a tokio runtime.
    ///
    /// # Errors
    /// Where there is no netlink.
    pub fn open() -> Result<Self, RouteError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| RouteError::Open(e.into()))?;
        Ok(Self { handle, _connection: Task(tokio::spawn(connection)) })
    }

    /// The device of this name.
    ///
    /// # Errors
    /// Where there is none.
    pub async fn link(&self, name: &str) -> Result<Link, RouteError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await {
            Ok(Some(message)) => Ok(Link { index: message.header.index }),
            Ok(None) => Err(RouteError::NoLink { name: name.to_owned() }),
            Err(e) if errno(&e) == Some(rustix::io::Errno::NODEV) => Err(RouteError::NoLink { name: name.to_owned() }),
            Err(e) => Err(RouteError::of("read network devices", e)),
        }
    }

    /// Sets the device's MTU.
    ///
    /// # Errors
    /// Where it is not permitted, or the device cannot.
    pub async fn set_mtu(&self, link: Link, mtu: u32) -> Result<(), RouteError> {
        let change = LinkUnspec::new_with_index(link.index).mtu(mtu).build();
        self.change_link("set the MTU", change).await
    }

    /// Sets the device up.
    ///
    /// # Errors
    /// Where it is not permitted.
    pub async fn set_up(&self, link: Link) -> Result<(), RouteError> {
        self.change_link("set the device up", LinkUnspec::new_with_index(link.index).up().build()).await
    }

    /// Keeps the kernel from giving the device a link-local IPv6 address and from soliciting routers on it.
    /// Before [`set_up`](Self::set_up). Where there is no IPv6, there is nothing to keep.
    ///
    /// # Errors
    /// Where it is not permitted.
    pub async fn quiet_ipv6(&self, link: Link) -> Result<(), RouteError> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let spec = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
        let change = LinkMessageBuilder::<LinkUnspec>::default().index(link.index).append_extra_attribute(spec).build();
        match self.change_link("configure IPv6", change).await {
            Err(error @ RouteError::NotPermitted { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    async fn change_link(&self, what: &'static str, change: LinkMessage) -> Result<(), RouteError> {
        self.handle.link().set(change).execute().await.map_err(|e| RouteError::of(what, e))
    }

    /// Makes the device's addresses exactly these, usable at once; link-local ones stay. Without IPv6 on this
    /// machine it has the others.
    ///
    /// # Errors
    /// Where it is not permitted, or an address is no unicast address.
    pub async fn set_addresses(&self, link: Link, addresses: &[IpNetwork]) -> Result<Ipv6, RouteError> {
        let mut wanted: BTreeSet<IpNetwork> = addresses.iter().copied().collect();
        let present = self.handle.address().get().set_link_index_filter(link.index).execute();
        let present: Vec<AddressMessage> =
            present.try_collect().await.map_err(|e| RouteError::of("read addresses", e))?;
        for message in present {
            let Some(network) = own_network(&message) else { continue };
            if wanted.remove(&network) || message.header.scope == AddressScope::Link {
                continue;
            }
            let removed = self.handle.address().del(message).execute().await;
            removed.map_err(|e| RouteError::of("remove an address", e))?;
        }
        let mut ipv6 = Ipv6::Enabled;
        for network in wanted {
            let mut request = self.handle.address().add(link.index, network.ip(), network.prefix());
            if network.is_ipv6() {
                // Nobody else can have it, and until the kernel were sure of that it could not be used.
                request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            match request.execute().await {
                Err(e) if network.is_ipv6() && without_ipv6(&e) => ipv6 = Ipv6::Disabled,
                added => added.map_err(|e| RouteError::of("add an address", e))?,
            }
        }
        Ok(ipv6)
    }

    /// Makes our routes over the device exactly these: each prefix, with the source address that packets
    /// of this machine itself get, where one is given. Routes that others made are not touched.
    ///
    /// # Errors
    /// Where it is not permitted, or the device is down.
    pub async fn set_routes(&self, link: Link, routes: &BTreeMap<Prefix, Option<IpAddr>>) -> Result<(), RouteError> {
        let mut wanted = routes.clone();
        for message in self.routes().await? {
            let ours = message.header.protocol == PROTOCOL && output(&message) == Some(link.index);
            let (true, Some(prefix)) = (ours, destination(&message)) else { continue };
            if wanted.get(&prefix) == Some(&preferred_source(&message)) {
                wanted.remove(&prefix);
            } else if !wanted.contains_key(&prefix) {
                self.delete_route(message).await?;
            }
        }
        for (prefix, source) in wanted {
            let message = route_message(link, prefix, source).map_err(|()| RouteError::Families { prefix })?;
            match self.handle.route().add(message).replace().execute().await {
                Err(e) if prefix.ip().is_ipv6() && without_ipv6(&e) => {}
                added => added.map_err(|e| RouteError::of("add a route", e))?,
            }
        }
        Ok(())
    }

    /// Makes these the prefixes that this machine says are unreachable as long as no other route leads there; `was`: those of
    /// the last call. Nothing is as bad as such a route: whatever else leads to the same prefix is used, and what is
    /// wider, as the default route is, is not.
    ///
    /// # Errors
    /// Where it is not permitted.
    pub async fn set_unreachable(&self, prefixes: &BTreeSet<Prefix>, was: &BTreeSet<Prefix>) -> Result<(), RouteError> {
        let route = |prefix: &Prefix| {
            let route = RouteMessageBuilder::<IpAddr>::new().kind(RouteType::Unreachable).protocol(PROTOCOL);
            route.priority(WORST).destination_prefix(prefix.ip(), prefix.length()).ok().map(|route| route.build())
        };
        for message in was.difference(prefixes).filter_map(route) {
            self.delete_route(message).await?;
        }
        for prefix in prefixes {
            let Some(message) = route(prefix) else { continue };
            match self.handle.route().add(message).execute().await {
                Err(e) if errno(&e) == Some(rustix::io::Errno::EXIST) => {}
                Err(e) if prefix.ip().is_ipv6() && without_ipv6(&e) => {}
                added => added.map_err(|e| RouteError::of("add a route", e))?,
            }
        }
        Ok(())
    }

    async fn delete_route(&self, message: RouteMessage) -> Result<(), RouteError> {
        match self.handle.route().del(message).execute().await {
            Err(e) if errno(&e) == Some(rustix::io::Errno::SRCH) => Ok(()),
            done => done.map_err(|e| RouteError::of("remove a route", e)),
        }
    }

    /// The prefixes that this machine is in by devices other than `except` and loopback.
    ///
    /// # Errors
    /// Where the tables cannot be read.
    pub async fn connected(&self, except: &[Link]) -> Result<Vec<Connected>, RouteError> {
        let devices = self.devices().await?;
        let mut connected = BTreeSet::new();
        for message in self.addresses().await? {
            let Some(device) = devices.get(&message.header.index) else { continue };
            if device.loopback || except.iter().any(|link| link.index == message.header.index) {
                continue;
            }
            let (Some(network), true) = (peer_network(&message), message.header.scope != AddressScope::Link) else {
                continue;
            };
            if let Some(prefix) = Prefix::of(network.ip(), network.prefix()) {
                connected.insert(Connected { device: device.name.clone(), prefix });
            }
        }
        Ok(connected.into_iter().collect())
    }

    /// The addresses under which others may reach this machine: unicast, of devices that are up and neither
    /// loopback nor TUN; those that a default route leaves by come first.
    ///
    /// # Errors
    /// Where the tables cannot be read.
    pub async fn host_addresses(&self) -> Result<Vec<HostAddress>, RouteError> {
        let devices = self.devices().await?;
        let defaults: BTreeSet<u32> =
            self.routes().await?.iter().filter(|r| is_default(r)).filter_map(output).collect();
        let mut hosts = Vec::new();
        for message in self.addresses().await? {
            let Some(device) = devices.get(&message.header.index).filter(|d| d.up && !d.loopback && !d.tun) else {
                continue;
            };
            let Some(ip) = own_network(&message).map(|n| n.ip()).filter(|ip| reachable(*ip)) else { continue };
            if is_usable(&message) {
                let default_route = defaults.contains(&message.header.index);
                hosts.push(HostAddress { ip, device: device.name.clone(), default_route });
            }
        }
        hosts.sort_by_key(|host| !host.default_route);
        Ok(hosts)
    }

    /// The routes that leave by a gateway.
    ///
    /// # Errors
    /// Where the table cannot be read.
    pub async fn gateway_routes(&self) -> Result<BTreeSet<GatewayRoute>, RouteError> {
        let route = |message: &RouteMessage| {
            let (prefix, gateway) = (destination(message), gateway(message)?);
            Some(GatewayRoute { prefix, gateway, link: output(message).map(|index| Link { index }) })
        };
        Ok(self.routes().await?.iter().filter_map(route).collect())
    }

    /// Every device but loopback, and whether it has a link.
    ///
    /// # Errors
    /// Where the table cannot be read.
    pub async fn links(&self) -> Result<BTreeMap<String, LinkState>, RouteError> {
        let devices = self.devices().await?;
        let state = |up: bool| if up { LinkState::Up } else { LinkState::Down };
        let devices = devices.into_values().filter(|device| !device.loopback);
        Ok(devices.map(|device| (device.name, state(device.up))).collect())
    }

    async fn addresses(&self) -> Result<Vec<AddressMessage>, RouteError> {
        let all = self.handle.address().get().execute().try_collect().await;
        all.map_err(|e| RouteError::of("read addresses", e))
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>, RouteError> {
        let mut all = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let message = match version {
                IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
                IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
            };
            let dump = self.handle.route().get(message).execute();
            let main = dump.try_filter(|r| future::ready(r.header.table == RouteHeader::RT_TABLE_MAIN));
            let main: Vec<RouteMessage> = main.try_collect().await.map_err(|e| RouteError::of("read routes", e))?;
            all.extend(main);
        }
        Ok(all)
    }

    async fn devices(&self) -> Result<BTreeMap<u32, Device>, RouteError> {
        let all: Vec<LinkMessage> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| RouteError::of("read network devices", e))?;
        Ok(all.iter().map(|message| (message.header.index, Device::of(message))).collect())
    }
}

struct Device {
    name: String,
    up: bool,
    loopback: bool,
    tun: bool,
}

impl Device {
    fn of(message: &LinkMessage) -> Self {
        let name = message.attributes.iter().find_map(|a| match a {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
        let tun = message.attributes.iter().any(|a| match a {
            LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Tun)),
            _ => false,
        });
        let flags = message.header.flags;
        Self {
            name: name.unwrap_or_default(),
            up: flags.contains(LinkFlags::Up | LinkFlags::Running),
            loopback: flags.contains(LinkFlags::Loopback),
            tun,
        }
    }
}

/// Tells that devices, addresses or routes of the namespace have changed. Many changes count as one.
#[derive(Debug)]
pub struct Changes {
    seen: watch::Receiver<u64>,
    _tasks: [Task; 2],
}

impl Changes {
    /// Watches the calling thread's network namespace, except what concerns only `except`. Needs a tokio
    /// runtime.
    ///
    /// # Errors
    /// Where there is no netlink.
    pub fn watch(except: &[Link]) -> Result<Self, RouteError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, mut messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(|e| RouteError::Open(e.into()))?;
        let except: BTreeSet<u32> = except.iter().map(|link| link.index).collect();
        let (count, seen) = watch::channel(0);
        // Drained at once, so that the library's own queue never grows.
        let drain = async move {
            while let Some((message, _)) = messages.next().await {
                if !concerned(&message.payload).is_some_and(|index| except.contains(&index)) {
                    count.send_modify(|n| *n += 1);
                }
            }
        };
        Ok(Self { seen, _tasks: [Task(tokio::spawn(connection)), Task(tokio::spawn(drain))] })
    }

    /// Returns at the first change after the last return. Safe to cancel.
    pub async fn changed(&mut self) {
        if self.seen.changed().await.is_err() {
            // The kernel ended the subscription; nothing will ever be told again.
            future::pending().await
        }
    }
}

/// The device that a message is about.
fn concerned(payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<u32> {
    let NetlinkPayload::InnerMessage(message) = payload else { return None };
    match message {
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => Some(link.header.index),
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            Some(address.header.index)
        }
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => output(route),
        _ => None,
    }
}

/// Runs `future` to its end on a thread of its own, in the calling thread's network namespace: for callers
/// that are not asynchronous, and for those that are and may wait a moment.
///
/// # Errors
/// Where the process can have no further thread or runtime.
pub fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> Result<T, RouteError> {
    let failed = |e: io::Error| RouteError::Open(e.into());
    thread::scope(|scope| {
        let run = move || -> io::Result<T> {
            Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
        };
        let thread = thread::Builder::new().name("netlink".into()).spawn_scoped(scope, run).map_err(failed)?;
        thread.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked)).map_err(failed)
    })
}

/// A task that ends with its owner.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the kernel says to IPv6 where that is off, for the device or at all. Missing privilege is `EPERM`.
fn without_ipv6(error: &Error) -> bool {
    use rustix::io::Errno;
    matches!(errno(error), Some(Errno::ACCESS | Errno::OPNOTSUPP | Errno::AFNOSUPPORT))
}

/// The address itself, with its prefix length.
fn own_network(message: &AddressMessage) -> Option<IpNetwork> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let ip = local.or_else(|| peer_network(message).map(|network| network.ip()))?;
    IpNetwork::new(ip, message.header.prefix_len).ok()
}

/// What the device is connected to: the other end's address of a point-to-point link, else the same.
fn peer_network(message: &AddressMessage) -> Option<IpNetwork> {
    let ip = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    })?;
    IpNetwork::new(ip, message.header.prefix_len).ok()
}

fn is_usable(message: &AddressMessage) -> bool {
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    let unusable_old = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed | AddressHeaderFlags::Deprecated;
    let flagged = message.attributes.iter().any(|a| match a {
        AddressAttribute::Flags(flags) => flags.intersects(unusable),
        _ => false,
    });
    !flagged && !message.header.flags.intersects(unusable_old)
}

fn reachable(ip: IpAddr) -> bool {
    let special = ip.is_loopback() || ip.is_unspecified() || ip.is_multicast();
    let local = match ip {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !special && !local
}

fn output(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn route_ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn destination(message: &RouteMessage) -> Option<Prefix> {
    let ip = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(address) => route_ip(address),
        _ => None,
    })?;
    Prefix::of(ip, message.header.destination_prefix_length)
}

fn preferred_source(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|a| match a {
        RouteAttribute::PrefSource(address) => route_ip(address),
        _ => None,
    })
}

fn gateway(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Gateway(address) => route_ip(address),
        _ => None,
    })
}

fn is_default(message: &RouteMessage) -> bool {
    message.header.destination_prefix_length == 0 && message.header.kind == RouteType::Unicast
}

fn route_message(link: Link, prefix: Prefix, source: Option<IpAddr>) -> Result<RouteMessage, ()> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.ip(), prefix.length())
        .map_err(|_| ())?
        .output_interface(link.index)
        .protocol(PROTOCOL);
    if let Some(source) = source {
        builder = builder.pref_source(source).map_err(|_| ())?;
    }
    Ok(builder.build())
}

/// Marks our routes (`ip route show proto 77`); a number that rtnetlink leaves to its users.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(77);
/// The metric of a route that is used where there is no other.
const WORST: u32 = u32::MAX;

/// Why the kernel's tables could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Nobody could be told where an address is.
    #[error("cannot tell the LAN where an address is: {why}")]
    Announce {
        /// The reason.
        why: Why,
    },
    /// Any other reason.
    #[error("cannot {what}: {why}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// The kernel's reason.
        why: Why,
    },
    /// The source of a route is of the other family.
    #[error("cannot add the route {prefix}: its source address is of the other family")]
    Families {
        /// Of the route.
        prefix: Prefix,
    },
    /// Nobody who looks for an address can be heard.
    #[error("cannot listen on the LAN: {why}")]
    Listen {
        /// The reason.
        why: Why,
    },
    /// There is no such device.
    #[error("there is no network device {name}")]
    NoLink {
        /// As given.
        name: String,
    },
    /// CAP_NET_ADMIN.
    #[error("cannot {what}: not permitted: this needs root, or the capability CAP_NET_ADMIN")]
    NotPermitted {
        /// What was tried.
        what: &'static str,
    },
    /// No netlink.
    #[error("cannot reach the kernel's routing tables: {0}")]
    Open(Why),
}

impl RouteError {
    fn of(what: &'static str, error: Error) -> Self {
        match errno(&error) {
            Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => Self::NotPermitted { what },
            Some(errno) => Self::Failed { what, why: errno.into() },
            None => Self::Failed { what, why: io::Error::other(error).into() },
        }
    }

    /// Which exit code it asks for.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::Announce { why, .. } | Self::Failed { why, .. } | Self::Listen { why, .. } | Self::Open(why) => {
                ExitClass::of(why)
            }
            Self::Families { .. } | Self::NoLink { .. } => ExitClass::Failed,
            Self::NotPermitted { .. } => ExitClass::NotPermitted,
        }
    }
}

fn errno(error: &Error) -> Option<rustix::io::Errno> {
    match error {
        Error::NetlinkError(message) => rustix::io::Errno::from_io_error(&message.to_io()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
