//! The lab itself: builds the internet of `topology`, and takes it all down again.
//!
//! Building goes from the core outward: the core router, the admin's machine, hubs, then each site's routers, gateway
//! and hosts. What is built needs no flatlan binary; `overlay` starts the processes, `wire` breaks the wires, `probe`
//! measures.
//!
//! Dropping a lab kills its processes, removes its namespaces and its folder; see `reaper` for every other way to end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ipnetwork::{IpNetwork, Ipv4Network};

use crate::error::LabError;
use crate::fault::{Injected, TABLE, Wires};
use crate::link::{End, connect};
use crate::namespace::{Namespace, require};
use crate::nat::Nat;
use crate::process::Process;
use crate::proxy::Proxy;
use crate::run_dir::RunDir;
use crate::topology::{
    Cable, FIRST_HOST, GATEWAY, GATEWAY_BESIDE, HubSpec, Lan, ROUTER, SiteSpec, UPLINK_LANS, Underlay, default_route,
    unique_local,
};
use crate::{permission, reaper};

/// An internet on this machine, with hubs and sites. Everything goes away when it is dropped.
#[derive(Debug)]
pub struct Lab {
    pub(crate) core: Namespace,
    pub(crate) admin: Namespace,
    pub(crate) hubs: BTreeMap<String, Hub>,
    pub(crate) sites: BTreeMap<String, Site>,
    pub(crate) bare: BTreeMap<String, Bare>,
    pub(crate) wires: Wires,
    pub(crate) faults: Mutex<BTreeSet<Injected>>,
    pub(crate) flatlan: PathBuf,
    pub(crate) range: Ipv4Network,
    pub(crate) network: Mutex<Option<String>>,
    hosts_file: PathBuf,
    // Last: the folder goes when nothing is in it any more.
    run: RunDir,
}

impl Lab {
    /// Describes a lab.
    #[must_use]
    pub fn builder() -> LabBuilder {
        LabBuilder {
            bare: Vec::new(),
            flatlan: PathBuf::from("flatlan"),
            hubs: Vec::new(),
            keep: false,
            prefix: None,
            range: Ipv4Network::new(Ipv4Addr::new(10, 77, 0, 0), 16).expect("16 bits are a prefix"),
            sites: Vec::new(),
            underlay: Underlay::V4,
        }
    }

    /// The prefix that all its namespaces share: `PREFIX-NAME`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.run.prefix()
    }

    /// Its folder: logs, states, tokens.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.run.path()
    }

    /// The router in the middle.
    #[must_use]
    pub fn core(&self) -> &Namespace {
        &self.core
    }

    /// The machine where the network's admin works: a public address, no node.
    #[must_use]
    pub fn admin(&self) -> &Namespace {
        &self.admin
    }

    /// One hub.
    ///
    /// # Errors
    /// [`LabError::UnknownName`].
    pub fn hub(&self, name: &str) -> Result<&Hub, LabError> {
        self.hubs.get(name).ok_or_else(|| LabError::UnknownName(name.to_owned()))
    }

    /// One site.
    ///
    /// # Errors
    /// [`LabError::UnknownName`].
    pub fn site(&self, name: &str) -> Result<&Site, LabError> {
        self.sites.get(name).ok_or_else(|| LabError::UnknownName(name.to_owned()))
    }

    /// One of the machines that [`LabBuilder::bare`] added.
    ///
    /// # Errors
    /// [`LabError::UnknownName`].
    pub fn bare(&self, name: &str) -> Result<&Bare, LabError> {
        self.bare.get(name).ok_or_else(|| LabError::UnknownName(name.to_owned()))
    }

    /// All hubs, by name.
    pub fn hubs(&self) -> impl Iterator<Item = &Hub> {
        self.hubs.values()
    }

    /// All sites, by name.
    pub fn sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.values()
    }

    /// Any machine of the lab by the name that `flatlan lab exec` takes: `inet`, `admin`, a hub, a site (its gateway),
    /// `SITE-nat` (its router), `SITE-1` (its first host).
    ///
    /// # Errors
    /// [`LabError::UnknownName`].
    pub fn machine(&self, name: &str) -> Result<&Namespace, LabError> {
        self.machines()
            .into_iter()
            .find(|namespace| self.short_name(namespace) == name)
            .ok_or_else(|| LabError::UnknownName(name.to_owned()))
    }

    /// Every machine of the lab.
    #[must_use]
    pub fn machines(&self) -> Vec<&Namespace> {
        let mut all = vec![&self.core, &self.admin];
        all.extend(self.hubs.values().map(|hub| &hub.namespace));
        all.extend(self.bare.values().map(|machine| &machine.namespace));
        for site in self.sites.values() {
            all.extend(&site.routers);
            all.push(&site.gateway);
            all.extend(site.hosts.iter().map(|host| &host.namespace));
        }
        all
    }

    /// A machine's name without the lab's prefix.
    #[must_use]
    pub fn short_name<'a>(&self, namespace: &'a Namespace) -> &'a str {
        let name = namespace.name();
        name.strip_prefix(self.prefix()).and_then(|name| name.strip_prefix('-')).unwrap_or(name)
    }

    /// Changes what a DNS name means to everybody in the lab, at once.
    ///
    /// # Errors
    /// [`LabError::Io`].
    pub fn set_dns(&self, name: &str, addresses: &[IpAddr]) -> Result<(), LabError> {
        let text = std::fs::read_to_string(&self.hosts_file).map_err(LabError::io("read", &self.hosts_file))?;
        let others = text.lines().filter(|line| !line.split_whitespace().skip(1).any(|word| word == name));
        let mut lines: Vec<String> = others.map(str::to_owned).collect();
        lines.extend(addresses.iter().map(|address| format!("{address} {name}")));
        write_hosts(&self.hosts_file, &lines)
    }

    /// The end of every process's log, for a report of what went wrong.
    #[must_use]
    pub fn tails(&self, lines: usize) -> String {
        let hubs = self.hubs.values().filter_map(|hub| hub.process.current());
        let sites = self.sites.values().filter_map(|site| site.process.current());
        hubs.chain(sites).map(|process| format!("{}:\n{}", process.name(), process.tail(lines))).collect()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        reaper::stand_aside();
        if std::thread::panicking() {
            let _ = writeln!(std::io::stderr(), "the lab {} at that moment:\n{}", self.prefix(), self.tails(30));
        }
        for process in self.hubs.values().map(|hub| &hub.process).chain(self.sites.values().map(|site| &site.process)) {
            process.clear();
        }
        for site in self.sites.values_mut() {
            site.proxy = None;
        }
        for machine in self.machines() {
            machine.close();
        }
    }
}

/// A hub of a lab.
#[derive(Debug)]
pub struct Hub {
    pub(crate) name: String,
    pub(crate) namespace: Namespace,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) host: String,
    pub(crate) region: Option<String>,
    pub(crate) state: PathBuf,
    pub(crate) process: Slot,
}

impl Hub {
    /// Its name, in the roster too.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its machine.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its public addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// The host part of its endpoint in the roster: an address or a DNS name.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its process, while there is one.
    #[must_use]
    pub fn process(&self) -> Option<Arc<Process>> {
        self.process.current()
    }
}

/// A machine with a public address, on which the lab runs nothing.
#[derive(Debug)]
pub struct Bare {
    pub(crate) namespace: Namespace,
    pub(crate) addresses: Vec<IpAddr>,
}

impl Bare {
    /// The machine.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its public addresses.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }
}

/// A site of a lab: a router, a gateway that runs a node, hosts that run nothing.
#[derive(Debug)]
pub struct Site {
    pub(crate) name: String,
    pub(crate) gateway: Namespace,
    pub(crate) routers: Vec<Namespace>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) lan: Lan,
    /// The LAN on which its gateway is one of several, and its number there.
    pub(crate) beside: Option<(Lan, u8)>,
    pub(crate) nat: Nat,
    pub(crate) ways_out: Vec<Vec<IpAddr>>,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) virtual_ip: Ipv4Addr,
    pub(crate) state: PathBuf,
    pub(crate) process: Slot,
}

impl Site {
    /// Its name, which is its member's name too.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The machine that runs the node.
    #[must_use]
    pub fn gateway(&self) -> &Namespace {
        &self.gateway
    }

    /// The router of an uplink, the first being 0.
    #[must_use]
    pub fn router(&self, uplink: usize) -> Option<&Namespace> {
        self.routers.get(uplink)
    }

    /// The hosts on its LAN.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The kind of its first router.
    #[must_use]
    pub fn nat(&self) -> Nat {
        self.nat
    }

    /// The private prefixes of the LAN behind its gateway, IPv4 and IPv6.
    #[must_use]
    pub fn prefixes(&self) -> [IpNetwork; 2] {
        self.beside.map_or(self.lan, |(lan, _)| lan).prefixes()
    }

    /// The gateway's private addresses on that LAN, IPv4 and IPv6.
    #[must_use]
    pub fn lan_addresses(&self) -> [IpAddr; 2] {
        let (lan, number) = self.beside.unwrap_or((self.lan, GATEWAY));
        lan.private(number)
    }

    /// Whether there is a LAN behind its gateway.
    #[must_use]
    pub fn has_lan(&self) -> bool {
        self.beside.is_some() || !self.hosts.is_empty()
    }

    /// The IPv4 address that its invite asks for.
    #[must_use]
    pub fn virtual_ip(&self) -> Ipv4Addr {
        self.virtual_ip
    }

    /// The proxy on its router.
    #[must_use]
    pub fn proxy(&self) -> Option<&Proxy> {
        self.proxy.as_ref()
    }

    /// Its node's state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its node's process, while there is one.
    #[must_use]
    pub fn process(&self) -> Option<Arc<Process>> {
        self.process.current()
    }
}

/// A machine on a site's LAN that runs no flatlan.
#[derive(Debug)]
pub struct Host {
    pub(crate) namespace: Namespace,
    pub(crate) addresses: [IpAddr; 2],
}

impl Host {
    /// The machine.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its private addresses, IPv4 and IPv6.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.addresses
    }
}

/// A place for a process that comes and goes.
#[derive(Debug, Default)]
pub(crate) struct Slot(Mutex<Option<Arc<Process>>>);

impl Slot {
    pub(crate) fn current(&self) -> Option<Arc<Process>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, process: Process) -> Arc<Process> {
        let process = Arc::new(process);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&process));
        process
    }

    pub(crate) fn clear(&self) {
        if let Some(process) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            process.kill();
        }
    }
}

/// Describes a lab to be.
#[derive(Debug, Clone)]
pub struct LabBuilder {
    bare: Vec<String>,
    flatlan: PathBuf,
    hubs: Vec<HubSpec>,
    keep: bool,
    prefix: Option<String>,
    range: Ipv4Network,
    sites: Vec<SiteSpec>,
    underlay: Underlay,
}

impl LabBuilder {
    /// The `flatlan` binary that the lab runs. Without it, the one on PATH.
    #[must_use]
    pub fn flatlan(mut self, binary: impl Into<PathBuf>) -> Self {
        self.flatlan = binary.into();
        self
    }

    /// Adds a hub.
    #[must_use]
    pub fn hub(self, name: &str) -> Self {
        self.hub_with(HubSpec::new(name))
    }

    /// Adds a hub as described.
    #[must_use]
    pub fn hub_with(mut self, hub: HubSpec) -> Self {
        self.hubs.push(hub);
        self
    }

    /// Adds a site behind a router of this kind, with one host on its LAN.
    #[must_use]
    pub fn site(self, name: &str, nat: Nat) -> Self {
        self.site_with(SiteSpec::new(name).nat(nat).hosts(1))
    }

    /// Adds a site as described.
    #[must_use]
    pub fn site_with(mut self, site: SiteSpec) -> Self {
        self.sites.push(site);
        self
    }

    /// Adds a machine with a public address, one cable from the core, on which the lab runs nothing. Faults know it by
    /// this name.
    #[must_use]
    pub fn bare(mut self, name: &str) -> Self {
        self.bare.push(name.to_owned());
        self
    }

    /// What the internet speaks; IPv4 only unless said.
    #[must_use]
    pub fn underlay(mut self, underlay: Underlay) -> Self {
        self.underlay = underlay;
        self
    }

    /// The overlay's IPv4 range; 10.77.0.0/16 unless said.
    #[must_use]
    pub fn range(mut self, range: Ipv4Network) -> Self {
        self.range = range;
        self
    }

    /// A prefix of your own for the namespaces. It must be free.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = Some(prefix.to_owned());
        self
    }

    /// Leaves logs and states where they are when the lab goes.
    #[must_use]
    pub fn keep_folder(mut self) -> Self {
        self.keep = true;
        self
    }

    /// Makes it.
    ///
    /// # Errors
    /// [`LabError::NotPermitted`] or [`LabError::ProgramMissing`] with what the machine lacks; else whatever failed.
    /// Nothing is left behind then.
    pub fn build(self) -> Result<Lab, LabError> {
        permission::check()?;
        require(["nft", "setpriv"])?;
        let mut run = RunDir::claim(self.prefix.as_deref())?;
        if self.keep {
            run.keep();
        }
        reaper::register(run.prefix(), run.path(), self.keep);
        let hosts_file = run.path().join("hosts");
        write_hosts(&hosts_file, &[])?;
        let core = machine(&run, "inet", &hosts_file)?;
        forward(&core)?;
        core.nft(TABLE)?;
        let mut cables = 0..=u8::MAX;
        let mut cable = |underlay| Cable::new(cables.next().unwrap_or(u8::MAX), underlay);
        let admin = machine(&run, "admin", &hosts_file)?;
        plug(&core, &admin, "admin", "eth0", cable(self.underlay), 0)?;
        let mut wires = Wires::default();
        wires.parties.insert("admin".to_owned(), vec!["admin".to_owned()]);
        let mut hubs = BTreeMap::new();
        let mut names = Vec::new();
        for spec in self.hubs {
            let hub = build_hub(&run, &hosts_file, &core, &spec, cable(spec.underlay.unwrap_or(self.underlay)))?;
            names.extend(hub.addresses.iter().map(|address| format!("{address} {}", dns_name(&spec.name))));
            wires.parties.insert(spec.name.clone(), vec![spec.name.clone()]);
            hubs.insert(spec.name, hub);
        }
        let mut bare = BTreeMap::new();
        for name in self.bare {
            let (namespace, cable) = (machine(&run, &name, &hosts_file)?, cable(self.underlay));
            plug(&core, &namespace, &name, "eth0", cable, 0)?;
            wires.parties.insert(name.clone(), vec![name.clone()]);
            bare.insert(name, Bare { namespace, addresses: public(cable) });
        }
        let mut sites = BTreeMap::new();
        for (number, spec) in (1_u8..).zip(self.sites) {
            let underlay = spec.underlay.unwrap_or(self.underlay);
            let plan = SitePlan { number, underlay, spec: &spec, virtual_ip: nth(self.range, number) };
            let (mut site, ends) = build_site(&run, &hosts_file, &core, &plan, || cable(underlay))?;
            if let Some(other) = &spec.beside {
                let other: &Site = sites.get(other).ok_or_else(|| LabError::UnknownName(other.clone()))?;
                let there = |site: &&Site| site.prefixes() == other.prefixes();
                let before = sites.values().filter(there).count().saturating_sub(1);
                let number = GATEWAY_BESIDE.saturating_add(u8::try_from(before).unwrap_or(u8::MAX));
                if let Some(router) = other.routers.first() {
                    plug_in(router, &format!("gw{number}"), &site.gateway, "lan0", other.lan, number)?;
                }
                site.beside = Some((other.lan, number));
            }
            wires.sites.extend(ends.iter().cloned());
            wires.parties.insert(spec.name.clone(), ends);
            sites.insert(spec.name, site);
        }
        write_hosts(&hosts_file, &names)?;
        let lab = Lab {
            core,
            admin,
            hubs,
            sites,
            bare,
            wires,
            faults: Mutex::default(),
            flatlan: self.flatlan,
            range: self.range,
            network: Mutex::default(),
            hosts_file,
            run,
        };
        lab.route_hosts_through_gateways()?;
        Ok(lab)
    }
}

impl Lab {
    /// LAN hosts send the overlay and the other sites' prefixes to their gateway, as a site's DHCP would tell them.
    fn route_hosts_through_gateways(&self) -> Result<(), LabError> {
        let overlay_v6 = unique_local();
        for site in self.sites.values() {
            let mut destinations = vec![IpNetwork::V4(self.range), overlay_v6];
            let others = self.sites.values().filter(|other| other.name != site.name);
            destinations.extend(others.flat_map(|other| other.lan.prefixes()));
            let [v4, v6] = site.lan.private(GATEWAY);
            for host in &site.hosts {
                for destination in &destinations {
                    let gateway = if destination.is_ipv4() { v4 } else { v6 };
                    host.namespace.add_route(*destination, gateway, 0)?;
                }
            }
        }
        Ok(())
    }
}

struct SitePlan<'a> {
    number: u8,
    underlay: Underlay,
    spec: &'a SiteSpec,
    virtual_ip: Ipv4Addr,
}

fn build_hub(run: &RunDir, hosts: &Path, core: &Namespace, spec: &HubSpec, cable: Cable) -> Result<Hub, LabError> {
    let namespace = machine(run, &spec.name, hosts)?;
    plug(core, &namespace, &spec.name, "eth0", cable, 0)?;
    let addresses = public(cable);
    let host = match addresses.as_slice() {
        [IpAddr::V4(only)] if !spec.by_name => only.to_string(),
        [IpAddr::V6(only)] if !spec.by_name => format!("[{only}]"),
        _ => dns_name(&spec.name),
    };
    let state = run.path().join("state").join(&spec.name);
    let (name, region) = (spec.name.clone(), spec.region.clone());
    Ok(Hub { name, namespace, addresses, host, region, state, process: Slot::default() })
}

fn build_site(
    run: &RunDir,
    hosts_file: &Path,
    core: &Namespace,
    plan: &SitePlan<'_>,
    mut cable: impl FnMut() -> Cable,
) -> Result<(Site, Vec<String>), LabError> {
    let spec = plan.spec;
    let name = spec.name.as_str();
    let gateway = machine(run, name, hosts_file)?;
    forward(&gateway)?;
    let (mut routers, mut ways_out, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for (uplink, nat) in (0_u8..).zip(&spec.uplinks) {
        let suffix = if uplink == 0 { String::new() } else { format!("{}", uplink + 1) };
        let router = machine(run, &format!("{name}-nat{suffix}"), hosts_file)?;
        forward(&router)?;
        let end = if uplink == 0 { name.to_owned() } else { format!("{name}-{suffix}") };
        let cable = cable();
        plug(core, &router, &end, "wan", cable, 0)?;
        let lan = plan.lan(uplink);
        switch(&router)?;
        for address in lan.addresses(ROUTER) {
            router.add_address("lan", address)?;
        }
        let port = format!("eth{uplink}");
        plug_in(&router, "gw", &gateway, &port, lan, GATEWAY)?;
        for way in lan.way_out() {
            gateway.add_route(default_route(way), way, metric(uplink))?;
        }
        let inside = cable.party();
        let mut reached: Vec<IpNetwork> = lan.public_v6().into_iter().collect();
        if nat.is_routed() {
            reached.extend(lan.prefixes().into_iter().filter(IpNetwork::is_ipv4));
        }
        for destination in reached {
            if let Some(way) = inside.iter().find(|way| way.is_ipv4() == destination.is_ipv4()) {
                core.add_route(destination, way.ip(), 0)?;
            }
        }
        router.nft(&nat.rules(lan.ipv4(GATEWAY)))?;
        ends.push(end);
        ways_out.push(lan.way_out());
        routers.push(router);
    }
    let lan = plan.lan(0);
    let mut hosts = Vec::new();
    for number in 0..spec.hosts {
        let (address, host) = (FIRST_HOST + number, machine(run, &format!("{name}-{}", number + 1), hosts_file)?);
        if let Some(router) = routers.first() {
            plug_in(router, &format!("h{address}"), &host, "eth0", lan, address)?;
        }
        for way in lan.way_out() {
            host.add_route(default_route(way), way, 0)?;
        }
        hosts.push(Host { namespace: host, addresses: lan.private(address) });
    }
    let proxy = match (&spec.proxy, routers.first()) {
        (Some(proxy), Some(router)) => {
            Some(Proxy::start(router, SocketAddr::new(lan.ipv4(ROUTER).into(), PROXY_PORT), proxy)?)
        }
        _ => None,
    };
    let site = Site {
        name: name.to_owned(),
        gateway,
        routers,
        hosts,
        lan,
        beside: None,
        nat: spec.uplinks.first().copied().unwrap_or(Nat::None),
        ways_out,
        proxy,
        virtual_ip: plan.virtual_ip,
        state: run.path().join("state").join(name),
        process: Slot::default(),
    };
    Ok((site, ends))
}

impl SitePlan<'_> {
    fn lan(&self, uplink: u8) -> Lan {
        let base = if uplink == 0 { 0 } else { UPLINK_LANS * uplink };
        Lan::new(self.number.saturating_add(base), self.underlay)
    }
}

/// The metric of an uplink's default route: earlier ones win.
pub(crate) fn metric(uplink: u8) -> u32 {
    100 * (u32::from(uplink) + 1)
}

/// The DNS name that a hub has in every lab.
pub(crate) fn dns_name(hub: &str) -> String {
    format!("{hub}.hub.test")
}

fn machine(run: &RunDir, name: &str, hosts: &Path) -> Result<Namespace, LabError> {
    let hosts = Path::new("/etc/hosts").exists().then_some(hosts);
    Namespace::create(&format!("{}-{name}", run.prefix()), hosts)
}

fn forward(namespace: &Namespace) -> Result<(), LabError> {
    namespace.sysctl("net/ipv4/ip_forward", "1")?;
    set_where_there(namespace, "net/ipv6/conf/all/forwarding", "1")
}

/// What stays on a LAN is none of the router's: where the kernel's bridges ask the packet filter, they are told not to.
fn switch(router: &Namespace) -> Result<(), LabError> {
    for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        set_where_there(router, key, "0")?;
    }
    router.add_bridge("lan")
}

/// Sets a sysctl that not every kernel has.
fn set_where_there(namespace: &Namespace, key: &str, value: &str) -> Result<(), LabError> {
    match namespace.sysctl(key, value) {
        Err(LabError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Lays a cable from the core to a machine and gives both ends their addresses, and the machine its way out.
fn plug(
    core: &Namespace,
    party: &Namespace,
    core_end: &str,
    end: &str,
    cable: Cable,
    metric: u32,
) -> Result<(), LabError> {
    connect(End { namespace: party, name: end }, End { namespace: core, name: core_end })?;
    for address in cable.core() {
        core.add_address(core_end, address)?;
    }
    for address in cable.party() {
        party.add_address(end, address)?;
    }
    for way in cable.core() {
        party.add_route(default_route(way.ip()), way.ip(), metric)?;
    }
    Ok(())
}

/// The addresses of the machine at the far end of a cable.
fn public(cable: Cable) -> Vec<IpAddr> {
    cable.party().into_iter().map(|network| network.ip()).collect()
}

/// Plugs a machine into the router's LAN and gives it its addresses.
fn plug_in(router: &Namespace, port: &str, machine: &Namespace, end: &str, lan: Lan, host: u8) -> Result<(), LabError> {
    connect(End { namespace: machine, name: end }, End { namespace: router, name: port })?;
    router.add_port("lan", port)?;
    for address in lan.addresses(host) {
        machine.add_address(end, address)?;
    }
    Ok(())
}

fn nth(range: Ipv4Network, number: u8) -> Ipv4Addr {
    range.nth(number.into()).unwrap_or_else(|| range.network())
}

/// Rewrites the file in place: it is mounted, a new one would not be seen.
fn write_hosts(path: &Path, lines: &[String]) -> Result<(), LabError> {
    let fixed = ["127.0.0.1 localhost", "::1 localhost"].map(str::to_owned);
    let mut text = String::new();
    for line in fixed.iter().chain(lines.iter().filter(|line| !fixed.contains(line))) {
        text.push_str(line);
        text.push('\n');
    }
    std::fs::write(path, text).map_err(LabError::io("write", path))
}

/// Where a site's proxy listens.
const PROXY_PORT: u16 = 3128;
