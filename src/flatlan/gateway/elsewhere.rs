//! Answering the hosts of a LAN that look there for what is at another site.
//!
//! ```text
//!   host  --who has 192.168.10.5?-->  gateway: I        it was on this LAN and moved on, or it is of this LAN and moved away,
//!   host  ------------------------->  gateway --> overlay        or the host itself moved here, and believes its old LAN here
//! ```
//!
//! A host that looks on its LAN for an address which the roster says is elsewhere can only be misled: nobody is there to
//! answer, and by this gateway it is reached. Most of all it looks there since a gateway told it to: the kernel sends an ICMP redirect
//! (RFC 4861, section 8) to whoever sends it what it forwards back into the LAN, for IPv6 nothing keeps it from that, and a
//! Linux host believes one for as long as it uses it, also when the address has moved on.
//!
//! Nothing is remembered: whom to answer follows from the roster and from the machine's networks, so a host is helped that
//! was misled before this node began. Not answered are
//!
//! * who makes sure that nobody has an address (duplicate address detection), and who names its own;
//! * who is no host of this LAN, unless it asks this machine alone: another network may be on the same wire, and have by
//!   itself what elsewhere is another member's; and a router, who knows what is on its LAN, asks by IPv6 under its link-local
//!   address;
//! * what may be on this LAN behind another gateway of the HA group: that gateway asks, too, and would be led back to itself;
//! * what the kernel was told to answer for (`on_lan`), by IPv4: of IPv6 it may not.
//!
//! An answer goes to its asker alone; by IPv6 it yields to one of the address's owner.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_node::Interface;
use flatlan_os::{
    clock,
    neighbour::{Asked, Listener, Port, Solicitation},
};
use flatlan_types::Prefix;
use tokio::{sync::watch, task::JoinHandle};

use super::{Surroundings, on_lan::OnLan};

/// What is elsewhere, and who is told so.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    /// What leads into the overlay.
    led: BTreeSet<Prefix>,
    /// What is here: networks of this machine, what it carries, and what may be beside it.
    here: BTreeSet<Prefix>,
    /// Of the devices of LANs, whose hosts they have.
    lans: BTreeMap<String, BTreeSet<Prefix>>,
    /// What the kernel answers for.
    by_kernel: BTreeSet<(String, IpAddr)>,
}

impl Elsewhere {
    /// What follows from `interface` on a machine with these surroundings, where `plan` is on its LANs.
    pub(super) fn new(interface: &Interface, around: Surroundings<'_>, plan: &OnLan) -> Self {
        let is_lan = |device: &str| {
            let mut here = around.lans.iter().filter(|lan| lan.device == device);
            here.any(|lan| interface.served.iter().any(|served| served.overlaps(lan.prefix)))
        };
        let mut lans: BTreeMap<String, BTreeSet<Prefix>> = BTreeMap::new();
        for lan in around.lans.iter().filter(|lan| is_lan(&lan.device) || plan.routes.contains_key(&lan.device)) {
            lans.entry(lan.device.clone()).or_default().insert(lan.prefix);
        }
        for (device, prefixes) in &plan.routes {
            lans.entry(device.clone()).or_default().extend(prefixes);
        }
        let networks = around.lans.iter().map(|lan| lan.prefix);
        Self {
            // nobody's LAN is everywhere
            led: around.led.iter().filter(|prefix| prefix.length() > 0).copied().collect(),
            here: networks.chain(interface.served.iter().chain(&interface.beside).copied()).collect(),
            lans,
            by_kernel: plan.answers.iter().filter(|(_, ip)| ip.is_ipv4()).cloned().collect(),
        }
    }

    /// The devices of LANs.
    pub(super) fn devices(&self) -> impl Iterator<Item = &str> {
        self.lans.keys().map(String::as_str)
    }

    /// Whether an address is at another site.
    pub(super) fn holds(&self, ip: IpAddr) -> bool {
        let anywhere = match ip {
            IpAddr::V4(ip) => !ip.is_link_local() && !ip.is_multicast() && !ip.is_loopback(),
            IpAddr::V6(ip) => !ip.is_unicast_link_local() && !ip.is_multicast() && !ip.is_loopback(),
        };
        let led = longest(&self.led, ip).filter(|_| anywhere);
        led.is_some_and(|led| longest(&self.here, ip).is_none_or(|here| here < led))
    }

    /// Whether somebody on a device who looks for an address is told that it is here.
    fn is_answered(&self, device: &str, question: &Solicitation) -> bool {
        let Solicitation { target, asker, asked, .. } = *question;
        let Some(hosts) = self.lans.get(device) else { return false };
        let names_itself = asker.is_unspecified() || asker == target;
        let of_lan = asked == Asked::Us || hosts.iter().any(|prefix| prefix.contains(asker));
        !names_itself && of_lan && self.holds(target) && !self.by_kernel.contains(&(device.to_owned(), target))
    }
}

/// The length of the longest of these prefixes that holds an address.
fn longest(of: &BTreeSet<Prefix>, ip: IpAddr) -> Option<u8> {
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    (0..=bits).rev().find(|length| Prefix::of(ip, *length).is_some_and(|prefix| of.contains(&prefix)))
}

/// Answers on one device. Ends with its owner.
#[derive(Debug)]
pub(super) struct Answerer {
    port: Port,
    task: JoinHandle<()>,
}

impl Answerer {
    /// Answers from here on as `elsewhere` says at each moment. Needs a tokio runtime.
    ///
    /// # Errors
    /// Where nobody can be heard on that device.
    pub(super) fn start(device: &str, port: Port, elsewhere: watch::Receiver<Arc<Elsewhere>>) -> io::Result<Self> {
        let listener = Listener::open(port)?;
        Ok(Self { port, task: tokio::spawn(answer(device.to_owned(), listener, elsewhere)) })
    }

    /// Whether it still answers, as this port.
    pub(super) fn is_of(&self, port: Port) -> bool {
        self.port == port && !self.task.is_finished()
    }
}

impl Drop for Answerer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(device: String, listener: Listener, elsewhere: watch::Receiver<Arc<Elsewhere>>) {
    let mut budget = Budget::default();
    loop {
        match listener.next().await {
            Ok(question) => {
                let answered = elsewhere.borrow().is_answered(&device, &question);
                // who is not answered asks again
                if answered
                    && budget.take(clock::now())
                    && let Err(error) = listener.answer(&question)
                {
                    tracing::debug!(reason = %error, "a host that looks for what is elsewhere was not answered");
                }
            }
            Err(error) => {
                tracing::warn!(reason = %error, "hosts of this LAN that look there for what is elsewhere are not answered");
                return;
            }
        }
    }
}

/// How many are answered in a second.
#[derive(Debug, Default)]
struct Budget {
    taken: u32,
    since: Option<Instant>,
}

impl Budget {
    fn take(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| since + SECOND <= now) {
            *self = Self { taken: 0, since: Some(now) };
        }
        self.taken += 1;
        self.taken <= MOST_A_SECOND
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// More than the hosts of a LAN ask together, and little work.
const MOST_A_SECOND: u32 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::testing::{interface, lan, prefix};

    /// The DR site: on its LAN is one address of site A, which has more.
    fn dr_site(moved: &[&str]) -> Elsewhere {
        let away = ["192.168.10.0/24", "fd77:1::/64", "0.0.0.0/0", "::/0"];
        let interface = interface(&away, &["192.168.20.0/24", "fd77:2::/64"], moved);
        let lans = [lan("eth0", "203.0.113.0/24"), lan("eth1", "192.168.20.0/24"), lan("eth1", "fd77:2::/64")];
        let led = interface.routes.iter().copied().collect();
        let around = Surroundings { lans: &lans, lan: None, led: &led };
        Elsewhere::new(&interface, around, &OnLan::plan(&interface, &lans, None))
    }

    fn asks(of: &Elsewhere, asker: &str, target: &str) -> bool {
        of.is_answered("eth1", &question(asker, target, Asked::Everybody))
    }

    fn question(asker: &str, target: &str, asked: Asked) -> Solicitation {
        Solicitation { target: target.parse().unwrap(), asker: asker.parse().unwrap(), asked, ethernet: [2; 6] }
    }

    #[test]
    fn a_host_that_looks_on_its_lan_for_what_moved_on_is_told_that_the_gateway_is_the_way() {
        let here = dr_site(&["192.168.10.5/32", "fd77:1::5/128"]);
        let gone = dr_site(&[]);
        for (asker, target) in [("192.168.20.7", "192.168.10.5"), ("fd77:2::7", "fd77:1::5")] {
            assert!(!asks(&here, asker, target), "it is on this LAN");
            assert!(asks(&gone, asker, target));
            assert!(!gone.is_answered("eth0", &question(asker, target, Asked::Everybody)), "no LAN of this site");
        }
    }

    #[test]
    fn a_host_that_moved_here_finds_the_neighbours_that_it_had() {
        let here = dr_site(&["fd77:1::5/128"]);
        assert!(asks(&here, "fd77:1::5", "fd77:1::1"));
        assert!(!asks(&here, "fd77:1::6", "fd77:1::1"), "no host of this LAN");
    }

    #[test]
    fn a_neighbour_of_what_moved_away_is_answered_for_it_and_for_nothing_else_of_its_lan() {
        let interface = interface(&["fd77:1::5/128", "192.168.10.5/32"], &["fd77:1::/64", "192.168.10.0/24"], &[]);
        let lans = [lan("eth1", "fd77:1::/64"), lan("eth1", "192.168.10.0/24")];
        let led = interface.routes.iter().copied().collect();
        let around = Surroundings { lans: &lans, lan: None, led: &led };
        let elsewhere = Elsewhere::new(&interface, around, &OnLan::plan(&interface, &lans, None));
        assert!(asks(&elsewhere, "fd77:1::7", "fd77:1::5"));
        assert!(!asks(&elsewhere, "fd77:1::7", "fd77:1::6"));
        assert!(elsewhere.holds([192, 168, 10, 5].into()) && !asks(&elsewhere, "192.168.10.7", "192.168.10.5"));
    }

    #[test]
    fn whoever_makes_sure_that_an_address_is_free_hears_nothing() {
        let gone = dr_site(&[]);
        for (asker, target) in [("::", "fd77:1::5"), ("0.0.0.0", "192.168.10.5"), ("192.168.10.5", "192.168.10.5")] {
            assert!(!asks(&gone, asker, target), "{asker}");
            assert!(!gone.is_answered("eth1", &question(asker, target, Asked::Us)), "{asker}");
        }
    }

    #[test]
    fn another_network_on_the_same_wire_is_left_alone_unless_it_asks_the_gateway_itself() {
        let gone = dr_site(&[]);
        for (asker, target) in [("192.168.10.7", "192.168.10.5"), ("fe80::7", "fd77:1::5")] {
            assert!(!asks(&gone, asker, target));
            assert!(gone.is_answered("eth1", &question(asker, target, Asked::Us)));
        }
    }

    #[test]
    fn what_is_of_no_other_site_is_not_answered_for() {
        let gone = dr_site(&[]);
        let own = [("192.168.20.7", "192.168.20.8"), ("fd77:2::7", "fd77:2::8"), ("192.168.20.7", "203.0.113.9")];
        let nobodys = [("192.168.20.7", "198.51.100.1"), ("fd77:2::7", "fe80::1"), ("192.168.20.7", "169.254.1.1")];
        for (asker, target) in own.into_iter().chain(nobodys) {
            assert!(!asks(&gone, asker, target), "{target}");
        }
    }

    #[test]
    fn what_is_behind_another_gateway_of_the_group_may_be_on_this_very_lan() {
        let mut interface = interface(&["192.168.10.0/24", "192.168.10.5/32"], &["192.168.20.0/24"], &[]);
        interface.beside = vec![prefix("192.168.10.5/32")];
        let lans = [lan("eth1", "192.168.20.0/24")];
        let led = interface.routes.iter().copied().collect();
        let around = Surroundings { lans: &lans, lan: None, led: &led };
        let elsewhere = Elsewhere::new(&interface, around, &OnLan::plan(&interface, &lans, None));
        assert!(!asks(&elsewhere, "192.168.20.3", "192.168.10.5"));
        assert!(asks(&elsewhere, "192.168.20.3", "192.168.10.6"));
    }

    #[test]
    fn so_many_are_answered_in_a_second_and_no_more() {
        let (mut budget, now) = (Budget::default(), clock::now());
        let taken = |budget: &mut Budget, now| (0..5_000).filter(|_| budget.take(now)).count();
        assert_eq!(taken(&mut budget, now), MOST_A_SECOND as usize);
        assert_eq!(taken(&mut budget, now + SECOND / 2), 0);
        assert_eq!(taken(&mut budget, now + SECOND), MOST_A_SECOND as usize);
    }
}
