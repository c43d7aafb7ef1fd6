//! What a gateway does on its machine beyond the TUN: it forwards for its site, acts on its LANs for addresses that moved,
//! and keeps what comes for a LAN from leaving by another way while the LAN is gone. By level: what should be is set again
//! whenever the machine's network changed, whoever changed it.
//!
//! A LAN's own route goes when its device goes down, and the machine's default route would take over: what the overlay brought for
//! the LAN would leave, in clear, for the internet. Behind each LAN's route stands one that says "unreachable", which the
//! sender is told then. A LAN is known from when it is first seen, until this node carries nothing of it.
//!
//! Nothing here can stop a node: what the kernel refuses is said, and tried again.

mod elsewhere;
mod lan;
mod on_lan;
#[cfg(test)]
mod testing;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use flatlan_node::Interface;
use flatlan_os::route::{Connected, Forwarding, Found, Link, Netlink, Redirects, RouteError};
use flatlan_types::Prefix;
use tokio::sync::watch;

use self::{
    elsewhere::{Answerer, Elsewhere},
    on_lan::OnLan,
};

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
    /// The networks of the site's LANs, also while they are gone.
    lans: BTreeSet<Prefix>,
    /// Those that are said to be unreachable by default.
    unreachable: BTreeSet<Prefix>,
    elsewhere: watch::Sender<Arc<Elsewhere>>,
    answerers: BTreeMap<String, Answerer>,
    /// Whether it was said that hosts are not answered.
    deaf_said: bool,
}

/// Where a gateway is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    /// The networks that this machine is in.
    pub(crate) lans: &'a [Connected],
    /// The device of the site's LAN, where the operator named one.
    pub(crate) lan: Option<&'a str>,
    /// What this machine leads into the overlay.
    pub(crate) led: &'a BTreeSet<Prefix>,
}

impl Gateway {
    /// Makes the machine as `interface` wants it.
    pub(crate) async fn set(
        &mut self,
        interface: &Interface,
        around: Surroundings<'_>,
        netlink: &Netlink,
    ) -> Result<(), RouteError> {
        self.forward(interface);
        let is_own = |prefix: Prefix| interface.served.iter().any(|served| served.overlaps(prefix));
        let own = around.lans.iter().filter(|lan| is_own(lan.prefix));
        self.touched.extend(own.clone().map(|lan| lan.device.clone()));
        self.lans.retain(|lan| is_own(*lan));
        self.lans.extend(own.map(|lan| lan.prefix));
        let guarded = self.guard(self.lans.clone(), netlink).await;
        let plan = OnLan::plan(interface, around.lans, around.lan);
        let elsewhere = Elsewhere::new(interface, around, &plan);
        let left = plan.left(&self.plan).into_iter().filter(|(_, ip)| elsewhere.holds(*ip)).collect();
        self.answer(elsewhere, netlink).await;
        self.put(plan, left, netlink).await.and(guarded)
    }

    /// Takes everything away again.
    pub(crate) async fn clear(&mut self, netlink: &Netlink) -> Result<(), RouteError> {
        self.forwarding = Forwarding::default();
        self.answerers.clear();
        self.lans.clear();
        let guarded = self.guard(BTreeSet::new(), netlink).await;
        self.put(OnLan::default(), BTreeSet::new(), netlink).await.and(guarded)
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

    /// Hosts of the LAN are best sent by this gateway to what moved here, as long as it may move on.
    fn stop_redirects(&mut self, devices: BTreeSet<String>) {
        let done = self.redirects.stop_on(devices);
        if let Err(why) = &done
            && !self.redirects_said
        {
            tracing::warn!(
                reason = %why,
                "hosts of this LAN are told by ICMP to pass this gateway by, and depend on what it says when an address moves \
                 on: sysctl -w net.ipv4.conf.all.send_redirects=0 and the same for the LAN's device"
            );
        }
        self.redirects_said = done.is_err();
    }

    /// Sees to it that what comes for these LANs goes there, or nowhere.
    async fn guard(&mut self, lans: BTreeSet<Prefix>, netlink: &Netlink) -> Result<(), RouteError> {
        netlink.set_unreachable(&lans, &self.unreachable).await?;
        self.unreachable = lans;
        Ok(())
    }

    /// Answers the hosts of the LANs for what is elsewhere.
    async fn answer(&mut self, elsewhere: Elsewhere, netlink: &Netlink) {
        let devices: BTreeSet<String> = elsewhere.devices().map(str::to_owned).collect();
        self.answerers.retain(|device, _| devices.contains(device));
        self.elsewhere.send_replace(Arc::new(elsewhere));
        let mut deaf = None;
        for device in devices {
            if let Err(why) = self.answer_on(&device, netlink).await {
                self.answerers.remove(&device);
                deaf = Some(why);
            }
        }
        if let Some(reason) = deaf.as_ref().filter(|_| !self.deaf_said) {
            tracing::warn!(%reason, "hosts of this LAN that look there for what is elsewhere are not answered");
        }
        self.deaf_said = deaf.is_some();
    }

    async fn answer_on(&mut self, device: &str, netlink: &Netlink) -> Result<(), RouteError> {
        let link = match netlink.link(device).await {
            Err(RouteError::NoLink { .. }) => None,
            found => Some(found?),
        };
        let port = match link {
            Some(link) => netlink.port(link).await?,
            None => None,
        };
        let Some(port) = port else {
            // nobody looks for anybody where there is no Ethernet
            self.answerers.remove(device);
            return Ok(());
        };
        if self.answerers.get(device).is_none_or(|answerer| !answerer.is_of(port)) {
            let started = Answerer::start(device, port, self.elsewhere.subscribe());
            let answerer = started.map_err(|why| RouteError::Listen { why: why.into() })?;
            self.answerers.insert(device.to_owned(), answerer);
        }
        Ok(())
    }

    /// `left`: what is told on each LAN to be elsewhere by now.
    async fn put(
        &mut self,
        plan: OnLan,
        left: BTreeSet<(String, IpAddr)>,
        netlink: &Netlink,
    ) -> Result<(), RouteError> {
        for prefix in plan.homeless.iter().filter(|prefix| !self.plan.homeless.contains(prefix)) {
            tracing::warn!(vip = %prefix, "it moved here, and on which LAN it is cannot be told: set `lan` in the config");
        }
        for prefix in plan.wide.difference(&self.plan.wide) {
            tracing::warn!(
                vip = %prefix,
                "it moved away and is too wide to be announced on its LAN: neighbours notice when they look for it again, within a minute"
            );
        }
        self.touched.extend(plan.devices().map(str::to_owned));
        // as long as a route leads into the LAN, the old one or the new one
        self.stop_redirects(&devices_of_routes(&self.plan) | &devices_of_routes(&plan));
        let mut links: BTreeMap<String, Link> = BTreeMap::new();
        for device in &self.touched {
            match netlink.link(device).await {
                Ok(link) => {
                    let routes = plan.routes.get(device).into_iter().flatten().map(|prefix| (*prefix, None)).collect();
                    netlink.set_routes(link, &routes).await?;
                    links.insert(device.clone(), link);
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
            plan.answers.iter().filter_map(|(device, ip)| Some((*links.get(device)?, *ip))).collect();
        let devices: BTreeSet<Link> = links.values().copied().collect();
        let new = netlink.set_answers(&devices, &answers).await?;
        self.stop_redirects(devices_of_routes(&plan));
        self.plan = plan;
        for (device, link) in links {
            let answered_for = new.iter().filter(|(on, _)| *on == link).map(|(_, ip)| *ip);
            let moved_on = left.iter().filter(|(on, _)| *on == device).map(|(_, ip)| *ip);
            let ips: Vec<IpAddr> = answered_for.chain(moved_on).collect();
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
