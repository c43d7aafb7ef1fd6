//! Two sites, of which one has two gateways: e1 and e2 are an HA group for flatlan, and one router for the hosts of their LAN.
//! TCP flows between hosts of both LANs are held while e1 fails in one way after the other.
//!
//! ```text
//!                     h1          h2                  two hubs
//!                       \        /
//!                        -- inet --
//!                  /         |       \
//!          west-nat       e1-nat    e2-nat            symmetric NATs: no direct path
//!          /     \           |         |
//!      [west]  west-1      [e1]      [e2]             [in brackets]: gateways, which run flatlan, and keepalived
//!                            |         |
//!                            +-- east -+-- east-1     192.168.2.0/24
//! ```

#![allow(dead_code, reason = "every program takes what it needs")]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flatlan_lab::{Host, Lab, LabBuilder, LabError, Namespace, Nat, Probe, Report, RunOptions, SiteSpec};
use serde_json::Value;

use crate::PATIENCE;
use crate::vrrp::{Keepalived, Router};

/// The gateways of site east: the first is the router while it can.
pub(crate) const GATEWAYS: [&str; 2] = ["e1", "e2"];

/// Both sites, with all gateways up. East's ask its host whether they have their LAN; it answers by both.
pub(crate) fn built(lab: LabBuilder) -> Lab {
    let site = |name| SiteSpec::new(name).nat(Nat::Symmetric);
    let lab = lab.hub("h1").hub("h2").site_with(site("west").hosts(1)).site_with(site("east").hosts(1));
    let lab = GATEWAYS.into_iter().fold(lab, |lab, name| lab.site_with(site(name).beside("east"))).build().unwrap();
    lab.network_create().unwrap();
    lab.start_hubs().unwrap();
    lab.publish().unwrap();
    lab.join("west").unwrap();
    for gateway in GATEWAYS {
        let token = lab.invite_with(gateway, ["--ha", "east"]).unwrap();
        lab.join_with(gateway, &token).unwrap().success().unwrap();
    }
    let probe = format!("lan_probe = \"{}\"\n", address(&lab, "east"));
    std::fs::write(lab.folder().join("node.toml"), probe).unwrap();
    lab.up("west").unwrap();
    for gateway in GATEWAYS {
        up(&lab, gateway);
    }
    answer_by_both(&lab);
    let ping = Probe::ping(host(&lab, "west").namespace(), address(&lab, "east"), EACH).unwrap();
    ping.wait_answers(3, PATIENCE).unwrap();
    lab
}

/// The machines of the gateways of east.
pub(crate) fn machines(lab: &Lab) -> [&Namespace; 2] {
    GATEWAYS.map(|gateway| lab.site(gateway).unwrap().gateway())
}

/// The host of a site.
pub(crate) fn host<'a>(lab: &'a Lab, site: &str) -> &'a Host {
    lab.site(site).unwrap().hosts().first().unwrap()
}

/// Its address.
pub(crate) fn address(lab: &Lab, site: &str) -> IpAddr {
    let [address, _] = host(lab, site).addresses();
    address
}

/// The host of east sends its flows by both gateways, each by one of them (ECMP).
fn answer_by_both(lab: &Lab) {
    let server = host(lab, "east").namespace();
    // by addresses and ports
    server.sysctl("net/ipv4/fib_multipath_hash_policy", "1").unwrap();
    let [one, other] = GATEWAYS.map(|gateway| lan_address(lab, gateway));
    let far = far(lab);
    let route = ["route", "replace", &far, "nexthop", "via", &one, "nexthop", "via", &other];
    server.exec("ip", route).unwrap();
}

/// The host of east sends everything to the router's address (VRRP).
pub(crate) fn answer_by_router(lab: &Lab) {
    let server = host(lab, "east").namespace();
    server.exec("ip", ["route", "replace", &far(lab), "via", &ROUTER.to_string()]).unwrap();
}

/// What the operator of west should look at.
pub(crate) fn alarms(lab: &Lab) -> String {
    let status = lab.status("west").unwrap();
    let alarms = status.get("alarms").and_then(Value::as_array).unwrap();
    alarms.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
}

/// keepalived on all gateways.
#[derive(Debug)]
pub(crate) struct Routers<'a> {
    lab: &'a Lab,
    east: [Keepalived<'a>; 2],
    _west: Keepalived<'a>,
}

impl<'a> Routers<'a> {
    /// Runs it, until the first gateway is the router.
    pub(crate) fn start(lab: &'a Lab) -> Self {
        let [first, second] = GATEWAYS;
        let east = [(first, 150), (second, 100)].map(|(gateway, priority)| {
            Keepalived::start(lab, gateway, &["west"], Some(Router { address: ROUTER, priority }))
        });
        let routers = Self { lab, east, _west: Keepalived::start(lab, "west", &GATEWAYS, None) };
        routers.wait_whole();
        routers
    }

    /// Waits until the first gateway is the router, and nothing is wrong: a gateway that failed again and again has its flows
    /// back half a minute after it answers.
    pub(crate) fn wait_whole(&self) {
        let [first, second] = &self.east;
        let whole = || {
            self.has(0)
                && !self.has(1)
                && first.reaches("west")
                && second.reaches("west")
                && alarms(self.lab).is_empty()
        };
        let deadline = Instant::now() + PATIENCE * 2;
        while !whole() {
            let tails = || format!("{}\n{}\n{}", alarms(self.lab), first.tail(), second.tail());
            assert!(Instant::now() < deadline, "the first gateway never was the router again: {}", tails());
            std::thread::sleep(AGAIN);
        }
    }

    /// Whether this gateway, counted from 0, has the router's address.
    pub(crate) fn has(&self, number: usize) -> bool {
        self.east.get(number).is_some_and(|gateway| gateway.has(ROUTER))
    }
}

/// How the first gateway of east fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Its node is killed.
    Killed,
    /// It is cut off from the internet.
    Cut,
    /// It is cut off from its LAN.
    OffLan,
}

impl Fault {
    pub(crate) const ALL: [Self; 3] = [Self::Killed, Self::Cut, Self::OffLan];

    /// What happens to it, in words.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Killed => "killed (SIGKILL)",
            Self::Cut => "cut off from the internet, in silence",
            Self::OffLan => "cut off from its LAN: the link stays up, and nothing passes",
        }
    }

    /// For how long a flow may stand still.
    pub(crate) fn limit(self) -> Duration {
        match self {
            Self::Killed | Self::Cut => Duration::from_secs(1),
            Self::OffLan => Duration::from_secs(3),
        }
    }

    /// Since when it is in force.
    pub(crate) fn inject(self, lab: &Lab) -> Instant {
        let [first, _] = GATEWAYS;
        match self {
            Self::Killed => lab.kill(first).unwrap(),
            Self::Cut => lab.cut(first).unwrap(),
            Self::OffLan => {
                let at = Instant::now();
                switch(lab, &["nomaster"]);
                at
            }
        }
    }

    /// Ends it.
    pub(crate) fn mend(self, lab: &Lab) {
        let [first, _] = GATEWAYS;
        match self {
            Self::Killed => up(lab, first),
            Self::Cut => drop(lab.heal(first).unwrap()),
            Self::OffLan => switch(lab, &["master", "lan"]),
        }
    }
}

/// TCP flows from the host of west to the host of east, each with a question every [`EACH`].
#[derive(Debug)]
pub(crate) struct Held<'a> {
    lab: &'a Lab,
    flows: Vec<Probe>,
}

impl<'a> Held<'a> {
    /// Makes so many.
    pub(crate) fn start(lab: &'a Lab, count: usize) -> Self {
        let held = Self { lab, flows: (0..count).map(|_| flow(lab).unwrap()).collect() };
        held.wait_answered();
        held
    }

    /// Whether the host of east saw the own address of the host of west in each.
    pub(crate) fn are_whose_they_are(&self) -> bool {
        let own = address(self.lab, "west");
        self.flows.iter().all(|flow| flow.peer().is_some_and(|peer| peer.ip() == own))
    }

    /// Waits until each was answered a few times more.
    pub(crate) fn wait_answered(&self) {
        let marks: Vec<usize> = self.flows.iter().map(|flow| flow.report().answered() + ANSWERS).collect();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reports = self.flows.iter().map(Probe::report);
            let still: Vec<Report> = reports
                .zip(&marks)
                .filter(|(report, mark)| report.answered() < **mark)
                .map(|(report, _)| report)
                .collect();
            if still.is_empty() {
                return;
            }
            let broken: BTreeSet<String> =
                still.iter().filter_map(|report| Some(report.broken()?.to_string())).collect();
            assert!(
                Instant::now() < deadline,
                "{} flows stand still; broken: {broken:?}; {}",
                still.len(),
                self.lab.tails(5)
            );
            std::thread::sleep(AGAIN);
        }
    }

    /// The longest time in which each was not answered, of what touches this span, in order.
    pub(crate) fn gaps(&self, from: Instant, to: Instant) -> Vec<Duration> {
        let mut gaps: Vec<Duration> =
            self.flows.iter().map(|flow| flow.report().longest_gap_between(from, to).length).collect();
        gaps.sort_unstable();
        gaps
    }

    /// How many nothing has ended.
    pub(crate) fn unbroken(&self) -> usize {
        self.flows.iter().filter(|flow| flow.report().broken().is_none()).count()
    }

    /// Ends them, all at once.
    pub(crate) fn stop(self) {
        ended(self.flows, Probe::stop);
    }
}

/// Whether a connection that is made at this moment is answered, and has the address of who made it.
pub(crate) fn a_new_one_is_whose_it_is(lab: &Lab) -> bool {
    let own = address(lab, "west");
    let is_whose_it_is =
        |flow: Probe| flow.wait_answers(1, PATIENCE).is_ok() && flow.peer().is_some_and(|peer| peer.ip() == own);
    flow(lab).is_ok_and(is_whose_it_is)
}

/// Numbered datagrams between the two hosts for a while, so many streams each way: how many were sent, and how many of them
/// arrived.
pub(crate) fn datagrams(lab: &Lab, streams: usize, length: Duration) -> [usize; 2] {
    let (west, east) = (host(lab, "west").namespace(), host(lab, "east").namespace());
    let [to_west, to_east] = ["west", "east"].map(|site| address(lab, site));
    let there = || Probe::datagrams(west, east, to_east, EACH_DATAGRAM).unwrap();
    let back = || Probe::datagrams(east, west, to_west, EACH_DATAGRAM).unwrap();
    let probes: Vec<Probe> = (0..streams).flat_map(|_| [there(), back()]).collect();
    std::thread::sleep(length);
    let reports = ended(probes, |probe| probe.finish(UNDER_WAY));
    let sum = |of: fn(&Report) -> usize| reports.iter().map(of).sum();
    [sum(Report::sent), sum(Report::answered)]
}

fn flow(lab: &Lab) -> Result<Probe, LabError> {
    let (client, server) = (host(lab, "west").namespace(), host(lab, "east").namespace());
    Probe::tcp_echo(client, server, address(lab, "east"), EACH)
}

/// Runs the node of a gateway of east.
fn up(lab: &Lab, gateway: &str) {
    let file = lab.folder().join("node.toml").display().to_string();
    lab.up_with(gateway, &RunOptions::args(["--config".to_owned(), file])).unwrap();
}

/// What the switch of east does with the port of its first gateway.
fn switch(lab: &Lab, words: &[&str]) {
    let switch = lab.site("east").unwrap().router(0).unwrap();
    switch.exec("ip", [&["link", "set", "gw3"], words].concat()).unwrap();
}

/// The prefix of west's LAN.
fn far(lab: &Lab) -> String {
    let [prefix, _] = lab.site("west").unwrap().prefixes();
    prefix.to_string()
}

fn lan_address(lab: &Lab, gateway: &str) -> String {
    let [address, _] = lab.site(gateway).unwrap().lan_addresses();
    address.to_string()
}

/// Ends probes in some way, all at once.
fn ended(probes: Vec<Probe>, end: fn(Probe) -> Report) -> Vec<Report> {
    let ends: Vec<JoinHandle<Report>> =
        probes.into_iter().map(|probe| std::thread::spawn(move || end(probe))).collect();
    ends.into_iter().map(|thread| thread.join().unwrap()).collect()
}

/// The address that the hosts of east have for a router.
pub(crate) const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 2, 254));
/// Between two questions of a flow, and two datagrams of a stream.
pub(crate) const EACH: Duration = Duration::from_millis(100);
const EACH_DATAGRAM: Duration = Duration::from_millis(20);
/// How long the last datagram may be under way.
const UNDER_WAY: Duration = Duration::from_secs(2);
/// As many answers say that a flow goes on.
const ANSWERS: usize = 3;
/// How often it is looked while something is waited for.
const AGAIN: Duration = Duration::from_millis(20);
