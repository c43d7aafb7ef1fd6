//! Links, addresses and routes of a namespace, by netlink.
//!
//! Every call opens its own netlink socket on the namespace's thread, asks, and closes it: a lab is built once, and a
//! socket kept open would have to be served.

use std::future::Future;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute};
use rtnetlink::{Error, Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketType, socket};

use crate::error::LabError;
use crate::namespace::Namespace;

/// One end of a link: where, and what it is called there.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// The namespace.
    pub namespace: &'a Namespace,
    /// The interface; at most 15 bytes.
    pub name: &'a str,
}

/// Lays a cable: a veth pair, both ends up.
///
/// # Errors
/// [`LabError::Netlink`] where the kernel refuses, for example because a name is taken.
pub fn connect(one: End<'_>, other: End<'_>) -> Result<(), LabError> {
    // Neither end can come up before the pair is complete.
    let far = LinkMessageBuilder::<LinkUnspec>::new().name(other.name).setns_by_fd(other.namespace.net_fd()).build();
    let near = LinkMessageBuilder::<LinkVeth>::new(one.name, other.name)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
        .build();
    let action = format!("connect {} with {} of {}", one.name, other.name, other.namespace.name());
    one.namespace.netlink(action, move |handle| async move { handle.link().add(near).execute().await })?;
    one.namespace.set_up(one.name)?;
    other.namespace.set_up(other.name)
}

impl Namespace {
    /// Makes a bridge, up, without ports.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn add_bridge(&self, name: &str) -> Result<(), LabError> {
        let message = LinkBridge::new(name).up().build();
        self.netlink(
            format!("add the bridge {name}"),
            |handle| async move { handle.link().add(message).execute().await },
        )
    }

    /// Plugs an interface into a bridge.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn add_port(&self, bridge: &str, port: &str) -> Result<(), LabError> {
        let (bridge, port) = (bridge.to_owned(), port.to_owned());
        self.netlink(format!("plug {port} into {bridge}"), |handle| async move {
            let bridge = index(&bridge)?;
            let port = index(&port)?;
            let message = LinkUnspec::new_with_index(port).controller(bridge).build();
            handle.link().change(message).execute().await
        })
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn set_up(&self, link: &str) -> Result<(), LabError> {
        self.change(format!("bring up {link}"), LinkUnspec::new_with_name(link).up())
    }

    /// Takes an interface down. IPv4 routes through it are gone then, as on any host.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn set_down(&self, link: &str) -> Result<(), LabError> {
        self.change(format!("take down {link}"), LinkUnspec::new_with_name(link).down())
    }

    /// Sets the MTU of an interface.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn set_mtu(&self, link: &str, mtu: u32) -> Result<(), LabError> {
        self.change(format!("set the MTU of {link}"), LinkUnspec::new_with_name(link).mtu(mtu))
    }

    /// Sets how many segments one hand-off to the interface may hold. 1 makes the kernel cut them all, so that
    /// whoever counts or drops packets behind this interface meets real packets.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn set_max_segments(&self, link: &str, segments: u32) -> Result<(), LabError> {
        let attribute = LinkAttribute::GsoMaxSegs(segments);
        let message = LinkUnspec::new_with_name(link).append_extra_attribute(attribute);
        self.change(format!("set the segments of {link}"), message)
    }

    /// Gives an interface an address with its network.
    ///
    /// # Errors
    /// [`LabError::Netlink`].
    pub fn add_address(&self, link: &str, address: IpNetwork) -> Result<(), LabError> {
        let link = link.to_owned();
        self.netlink(format!("give {link} {address}"), move |handle| async move {
            let index = index(&link)?;
            handle.address().add(index, address.ip(), address.prefix()).execute().await
        })
    }

    /// Adds or replaces a route through a gateway.
    ///
    /// # Errors
    /// [`LabError::Netlink`] where the gateway is not reachable.
    pub fn add_route(&self, destination: IpNetwork, gateway: IpAddr, metric: u32) -> Result<(), LabError> {
        self.netlink(format!("route {destination} by {gateway}"), move |handle| async move {
            // Families cannot differ: a route whose parts do is refused by the kernel.
            let builder = RouteMessageBuilder::<IpAddr>::new().priority(metric);
            let builder = builder.destination_prefix(destination.network(), destination.prefix());
            let Ok(builder) = builder.and_then(|builder| builder.gateway(gateway)) else {
                return Err(Error::RequestFailed);
            };
            handle.route().add(builder.build()).replace().execute().await
        })
    }

    fn change(&self, action: String, message: LinkMessageBuilder<LinkUnspec>) -> Result<(), LabError> {
        let message = message.build();
        self.netlink(action, |handle| async move { handle.link().change(message).execute().await })
    }

    /// Asks the kernel something, on the namespace's thread.
    fn netlink<F, T>(&self, action: String, ask: impl FnOnce(Handle) -> F + Send + 'static) -> Result<T, LabError>
    where
        F: Future<Output = Result<T, Error>>,
        T: Send + 'static,
    {
        let answer = self.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection()?;
                tokio::spawn(connection);
                Ok(ask(handle).await)
            })
        });
        let answer: Result<T, Error> = answer.map_err(LabError::io("open netlink in", self.name()))?;
        answer.map_err(|source| LabError::Netlink { action, namespace: self.name().to_owned(), source })
    }
}

/// The index of an interface, asked on the namespace's thread.
fn index(name: &str) -> Result<u32, Error> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(|_| Error::RequestFailed)?;
    name_to_index(&socket, name).map_err(|_| Error::RequestFailed)
}
