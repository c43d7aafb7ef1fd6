//! What a gateway does on its machine beyond the TUN: it forwards for its site, and acts on its LANs for addresses that
//! moved. By level: what should be is set again whenever the machine's network changed, whoever changed it.
//!
//! Nothing here can stop a node: what the kernel refuses is said, and tried again.

mod lan;
mod on_lan;
#[cfg(test)]
mod testing;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use flatlan_node::Interface;
use flatlan_os::route::{Connected, Forwarding, Found, Link, Netlink, Redirects, RouteError};

use self::on_lan::OnLan;

pub(crate) use lan::{LanProbe, LanWatch};
pub(crate) use on_lan::{moved_away, strictly};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Gateway {
    forwarding: Forwarding,
    redirects: Redirects,
    /// Whether it was said that they are sent.
    redirects_said: bool,
    /// Whether this machine forwards, as far as was said.
    forwards: Forwards,
    plan: OnLan,
    /// Devices on which something of ours is, or may be of an earlier life.
    touched: BTreeSet<String>,
}

impl Gateway {
    /// Makes the machine as `interface` wants it, which is in `lans`. `lan`: the device of the site's LAN, where the
    /// operator named one.
    pub(crate) async fn set(
        &mut self,
        interface: &Interface,
        lans: &[Connected],
        lan: Option<&str>,
        netlink: &Netlink,
    ) -> Result<(), RouteError> {
        self.forward(interface);
        let own = |lan: &&Connected| interface.served.iter().any(|served| served.overlaps(lan.prefix));
        self.touched.extend(lans.iter().filter(own).map(|lan| lan.device.clone()));
        self.put(OnLan::plan(interface, lans, lan), netlink).await
    }

    /// Takes everything away again.
    pub(crate) async fn clear(&mut self, netlink: &Netlink) -> Result<(), RouteError> {
        self.forwarding = Forwarding::default();
        self.put(OnLan::default(), netlink).await
    }

    /// Makes those settings again as they must be that somebody else may have changed: nothing tells when that happens.
    pub(crate) fn keep_settings(&mut self, interface: &Interface) {
        self.forward(interface);
        self.stop_redirects(devices_of_routes(&self.plan));
    }

    /// Whoever carries routes forwards.
    fn forward(&mut self, interface: &Interface) {
        let wanted = !interface.served.is_empty();
        let was = self.forwards;
        self.forwards = match self.forwarding.set(wanted) {
            Ok(_) if !wanted => Forwards::NotAsked,
            Ok(Found::Off) => {
                if was == Forwards::Yes {
                    tracing::warn!(
                        "somebody switched forwarding off, without which the site is not reached: it is on again"
                    );
                }
                Forwards::Yes
            }
            Ok(Found::AsWanted) => Forwards::Yes,
            Err(why) => {
                if was != Forwards::Refused {
                    tracing::warn!(
                        reason = %why,
                        "this machine does not forward, and its site is not reached: sysctl -w net.ipv4.ip_forward=1"
                    );
                }
                Forwards::Refused
            }
        };
    }

    /// Hosts of the LAN must ask this gateway for what moved here as long as it may move on.
    fn stop_redirects(&mut self, devices: BTreeSet<String>) {
        let done = self.redirects.stop_on(devices);
        if let Err(why) = &done
            && !self.redirects_said
        {
            tracing::warn!(
                reason = %why,
                "hosts of this LAN are told by ICMP to pass this gateway by, and will look for what moved here for five \
                 minutes after it has moved on: sysctl -w net.ipv4.conf.all.send_redirects=0 and the same for the LAN's device"
            );
        }
        self.redirects_said = done.is_err();
    }

    async fn put(&mut self, plan: OnLan, netlink: &Netlink) -> Result<(), RouteError> {
        for prefix in plan.homeless.iter().filter(|prefix| !self.plan.homeless.contains(prefix)) {
            tracing::warn!(vip = %prefix, "it moved here, and on which LAN it is cannot be told: set `lan` in the config");
        }
        for prefix in plan.wide.difference(&self.plan.wide) {
            tracing::warn!(vip = %prefix, "too wide to be answered for on the LAN: its hosts need a route to this gateway");
        }
        self.touched.extend(plan.devices().map(str::to_owned));
        // as long as a route leads into the LAN, the old one or the new one
        self.stop_redirects(&devices_of_routes(&self.plan) | &devices_of_routes(&plan));
        let mut links = BTreeMap::new();
        for device in &self.touched {
            match netlink.link(device).await {
                Ok(link) => {
                    let routes = plan.routes.get(device).into_iter().flatten().map(|prefix| (*prefix, None)).collect();
                    netlink.set_routes(link, &routes).await?;
                    links.insert(device.as_str(), link);
                }
                // what was on it went with it
                Err(RouteError::NoLink { .. }) if plan.devices().all(|planned| planned != device) => {}
                Err(error @ RouteError::NoLink { .. }) => {
                    tracing::warn!(reason = %error, "what moved here is not reached: set `lan` in the config");
                }
                Err(error) => return Err(error),
            }
        }
        let answers: BTreeSet<(Link, IpAddr)> =
            plan.answers.iter().filter_map(|(device, ip)| Some((*links.get(device.as_str())?, *ip))).collect();
        let devices: BTreeSet<Link> = links.values().copied().collect();
        let new = netlink.set_answers(&devices, &answers).await?;
        self.stop_redirects(devices_of_routes(&plan));
        self.plan = plan;
        for link in devices {
            let ips: Vec<Ipv4Addr> = new.iter().filter(|(on, _)| *on == link).filter_map(|(_, ip)| v4(*ip)).collect();
            if let Err(error) = netlink.announce(link, &ips).await {
                tracing::warn!(reason = %error, "neighbours may look for what moved where it was");
            }
        }
        Ok(())
    }
}

/// The devices of LANs on which is what moved here.
fn devices_of_routes(plan: &OnLan) -> BTreeSet<String> {
    plan.routes.keys().cloned().collect()
}

/// Whether this machine forwards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Forwards {
    /// It carries no routes.
    #[default]
    NotAsked,
    /// It must not be made to.
    Refused,
    Yes,
}

fn v4(ip: IpAddr) -> Option<Ipv4Addr> {
    match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}
