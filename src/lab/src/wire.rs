//! Breaking and mending the wires of a lab, and counting what crosses them.
//!
//! Faults hang at the core (`fault` says how); uplinks go down on the gateway, NAT mappings are forgotten on the
//! site's router. Counters are those of the core's own interfaces, so a run can prove which hub carried a flow,
//! whatever the hub says.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use rtnetlink::sys::protocols::NETLINK_NETFILTER;
use rtnetlink::sys::{Socket, SocketAddr};

use crate::error::LabError;
use crate::fault::{Direction, Fault, Injected, Place, render};
use crate::lab::{Lab, Site, metric};
use crate::namespace::Namespace;
use crate::topology::default_route;

impl Lab {
    /// Injects a fault and returns when it was in force.
    ///
    /// # Errors
    /// [`LabError::UnknownName`], or whatever nft says.
    pub fn inject(&self, place: Place, fault: Fault, direction: Direction) -> Result<Instant, LabError> {
        let parties: &[&String] = match &place {
            Place::Between(one, other) => &[one, other],
            Place::BetweenSites => &[],
            Place::Of(party) => &[party],
        };
        if let Some(unknown) = parties.iter().find(|name| !self.wires.parties.contains_key(**name)) {
            return Err(LabError::UnknownName((*unknown).clone()));
        }
        self.change_faults(|faults| {
            faults.insert(Injected { place, fault, direction });
        })
    }

    /// Cuts a hub or a site off, both ways and in silence. Returns when it was cut.
    ///
    /// # Errors
    /// As [`Lab::inject`].
    pub fn cut(&self, name: &str) -> Result<Instant, LabError> {
        self.inject(Place::Of(name.to_owned()), Fault::Cut, Direction::Both)
    }

    /// Cuts one direction: what it sends, or what it would receive.
    ///
    /// # Errors
    /// As [`Lab::inject`].
    pub fn cut_one_way(&self, name: &str, direction: Direction) -> Result<Instant, LabError> {
        self.inject(Place::Of(name.to_owned()), Fault::Cut, direction)
    }

    /// Cuts two parties off from each other.
    ///
    /// # Errors
    /// As [`Lab::inject`].
    pub fn cut_between(&self, one: &str, other: &str) -> Result<Instant, LabError> {
        self.inject(Place::Between(one.to_owned(), other.to_owned()), Fault::Cut, Direction::Both)
    }

    /// Leaves sites only the way through hubs.
    ///
    /// # Errors
    /// As [`Lab::inject`].
    pub fn forbid_direct(&self) -> Result<Instant, LabError> {
        self.inject(Place::BetweenSites, Fault::Cut, Direction::Both)
    }

    /// Lets sites reach each other again.
    ///
    /// # Errors
    /// Whatever nft says.
    pub fn allow_direct(&self) -> Result<Instant, LabError> {
        self.change_faults(|faults| faults.retain(|fault| fault.place != Place::BetweenSites))
    }

    /// Loses so many of a thousand packets of a hub or a site, at random, both ways.
    ///
    /// # Errors
    /// As [`Lab::inject`].
    pub fn lose(&self, name: &str, per_mille: u16) -> Result<Instant, LabError> {
        self.inject(Place::Of(name.to_owned()), Fault::LosePerMille(per_mille), Direction::Both)
    }

    /// Drops a hub's or a site's IP packets of more than `bytes`, both ways, without an ICMP error.
    ///
    /// # Errors
    /// As [`Lab::inject`].
    pub fn mtu_hole(&self, name: &str, bytes: u16) -> Result<Instant, LabError> {
        self.inject(Place::Of(name.to_owned()), Fault::DropLargerThan(bytes), Direction::Both)
    }

    /// Lets a hub relay everything but data: what it says itself passes, and the probes that it relays.
    ///
    /// # Errors
    /// As [`Lab::inject`].
    pub fn drop_data(&self, hub: &str) -> Result<Instant, LabError> {
        self.inject(Place::Of(hub.to_owned()), Fault::DropData, Direction::Both)
    }

    /// Loses what the first of two sends to the second, and nothing else.
    ///
    /// # Errors
    /// As [`Lab::inject`].
    pub fn cut_one_way_between(&self, from: &str, to: &str) -> Result<Instant, LabError> {
        self.inject(Place::Between(from.to_owned(), to.to_owned()), Fault::Cut, Direction::From)
    }

    /// Blocks a hub's or a site's UDP.
    ///
    /// # Errors
    /// As [`Lab::inject`].
    pub fn block_udp(&self, name: &str) -> Result<Instant, LabError> {
        self.inject(Place::Of(name.to_owned()), Fault::BlockUdp, Direction::Both)
    }

    /// Mends everything that was broken at a hub or a site.
    ///
    /// # Errors
    /// Whatever nft says.
    pub fn heal(&self, name: &str) -> Result<Instant, LabError> {
        self.change_faults(|faults| faults.retain(|fault| !fault.names(name)))
    }

    /// Mends what [`Lab::cut`] did to a hub or a site, and nothing else.
    ///
    /// # Errors
    /// Whatever nft says.
    pub fn mend_cut(&self, name: &str) -> Result<Instant, LabError> {
        self.change_faults(|faults| {
            faults.retain(|fault| fault.place != Place::Of(name.to_owned()) || fault.fault != Fault::Cut);
        })
    }

    /// Mends what was broken between two, and nothing else.
    ///
    /// # Errors
    /// Whatever nft says.
    pub fn heal_between(&self, one: &str, other: &str) -> Result<Instant, LabError> {
        self.change_faults(|faults| {
            faults.retain(|fault| match &fault.place {
                Place::Between(near, far) => !(near == one && far == other || near == other && far == one),
                Place::BetweenSites | Place::Of(_) => true,
            });
        })
    }

    /// Mends everything.
    ///
    /// # Errors
    /// Whatever nft says.
    pub fn heal_all(&self) -> Result<Instant, LabError> {
        self.change_faults(BTreeSet::clear)
    }

    /// The faults in force.
    #[must_use]
    pub fn faults(&self) -> Vec<Injected> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Takes an uplink of a site's gateway down, the first being 0.
    ///
    /// # Errors
    /// [`LabError::UnknownName`], or what the kernel says.
    pub fn uplink_down(&self, site: &str, uplink: u8) -> Result<Instant, LabError> {
        let at = Instant::now();
        self.site(site)?.gateway.set_down(&format!("eth{uplink}"))?;
        Ok(at)
    }

    /// Brings it up again, with its default routes.
    ///
    /// # Errors
    /// [`LabError::UnknownName`], or what the kernel says.
    pub fn uplink_up(&self, site: &str, uplink: u8) -> Result<Instant, LabError> {
        let site = self.site(site)?;
        site.gateway.set_up(&format!("eth{uplink}"))?;
        for way in site.ways_out.get(usize::from(uplink)).into_iter().flatten() {
            site.gateway.add_route(default_route(*way), *way, metric(uplink))?;
        }
        Ok(Instant::now())
    }

    /// How long a site's router remembers an idle UDP mapping, answered or not.
    ///
    /// # Errors
    /// [`LabError::UnknownName`], or what the kernel says.
    pub fn set_nat_timeout(&self, site: &str, seconds: u32) -> Result<(), LabError> {
        for router in &self.site(site)?.routers {
            for key in ["nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"] {
                router.sysctl(&format!("net/netfilter/{key}"), &seconds.to_string())?;
            }
        }
        Ok(())
    }

    /// Makes a site's routers forget all mappings and map to other ports from here on: the NAT rebinding of a router
    /// that restarted.
    ///
    /// # Errors
    /// [`LabError::UnknownName`], or what the kernel says.
    pub fn rebind(&self, site: &str) -> Result<Instant, LabError> {
        for router in &self.site(site)?.routers {
            router.nft(REMAP)?;
            router.run(forget_mappings).map_err(LabError::io("flush the mappings of", router.name()))?;
        }
        Ok(Instant::now())
    }

    /// What has crossed the wires of every hub and site so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let parties = self.wires.parties.clone();
        self.core.run(move || Traffic::read(&parties))
    }

    /// Watches the wires from here on, a sample every `interval`.
    ///
    /// # Errors
    /// Where no thread can be started.
    pub fn watch_traffic(&self, interval: Duration) -> Result<TrafficLog, LabError> {
        let parties = self.wires.parties.clone();
        let samples = Arc::new(Samples { taken: Mutex::new(vec![self.traffic()]), one_more: Condvar::new() });
        let stop = Arc::new(AtomicBool::new(false));
        let (sink, stopped) = (Arc::clone(&samples), Arc::clone(&stop));
        let thread = self.core.thread("lab traffic", move || {
            while !stopped.load(Ordering::Relaxed) {
                let sample = Traffic::read(&parties);
                sink.taken.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                sink.one_more.notify_all();
                std::thread::sleep(interval);
            }
        })?;
        Ok(TrafficLog { samples, stop, thread: Some(thread) })
    }

    fn change_faults(&self, change: impl FnOnce(&mut BTreeSet<Injected>)) -> Result<Instant, LabError> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let single = |faults: &BTreeSet<Injected>| faults.iter().any(Injected::needs_single_packets);
        let before = single(&faults);
        change(&mut faults);
        let after = single(&faults);
        if before != after {
            self.set_batches(if after { 1 } else { MANY_SEGMENTS })?;
        }
        let all: Vec<Injected> = faults.iter().cloned().collect();
        self.core.nft(&render(&all, &self.wires))?;
        Ok(Instant::now())
    }

    /// Cut before the core, or handed through as batches.
    fn set_batches(&self, segments: u32) -> Result<(), LabError> {
        for hub in self.hubs.values() {
            hub.namespace.set_max_segments("eth0", segments)?;
        }
        for router in self.sites.values().flat_map(Site::routers) {
            router.set_max_segments("wan", segments)?;
        }
        Ok(())
    }
}

impl Site {
    fn routers(&self) -> impl Iterator<Item = &Namespace> {
        self.routers.iter()
    }
}

/// What crossed the wire of one hub or site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Packets that it sent; a batch of the kernel's counts as one.
    pub sent_packets: u64,
    /// Bytes that it sent.
    pub sent_bytes: u64,
    /// Packets that it received.
    pub received_packets: u64,
    /// Bytes that it received.
    pub received_bytes: u64,
}

impl Counters {
    fn since(self, before: Self) -> Self {
        Self {
            sent_packets: self.sent_packets.saturating_sub(before.sent_packets),
            sent_bytes: self.sent_bytes.saturating_sub(before.sent_bytes),
            received_packets: self.received_packets.saturating_sub(before.received_packets),
            received_bytes: self.received_bytes.saturating_sub(before.received_bytes),
        }
    }
}

/// The counters of all wires at one moment.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// The moment.
    pub at: Instant,
    /// By hub or site.
    pub by_party: BTreeMap<String, Counters>,
}

impl Traffic {
    /// The counters of one hub or site.
    #[must_use]
    pub fn of(&self, party: &str) -> Counters {
        self.by_party.get(party).copied().unwrap_or_default()
    }

    /// What crossed between an earlier moment and this one.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let difference = |(name, now): (&String, &Counters)| (name.clone(), now.since(before.of(name)));
        Self { at: self.at, by_party: self.by_party.iter().map(difference).collect() }
    }

    fn read(parties: &BTreeMap<String, Vec<String>>) -> Self {
        let at = Instant::now();
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
        let links: BTreeMap<&str, Counters> = text.lines().filter_map(parse_link).collect();
        let mut by_party = BTreeMap::new();
        for (party, wires) in parties {
            let mut sum = Counters::default();
            for link in wires.iter().filter_map(|wire| links.get(wire.as_str())) {
                sum.sent_packets += link.sent_packets;
                sum.sent_bytes += link.sent_bytes;
                sum.received_packets += link.received_packets;
                sum.received_bytes += link.received_bytes;
            }
            by_party.insert(party.clone(), sum);
        }
        Self { at, by_party }
    }
}

/// A line of /proc/net/dev: name, eight numbers received, eight sent. What the core receives, the party sent.
fn parse_link(line: &str) -> Option<(&str, Counters)> {
    let (name, numbers) = line.split_once(':')?;
    let mut numbers = numbers.split_whitespace().map(str::parse::<u64>);
    let mut next = |skip| numbers.nth(skip)?.ok();
    let (sent_bytes, sent_packets) = (next(0)?, next(0)?);
    let (received_bytes, received_packets) = (next(6)?, next(0)?);
    Some((name.trim(), Counters { sent_packets, sent_bytes, received_packets, received_bytes }))
}

/// Counters over time. It stops watching when it is dropped.
#[derive(Debug)]
pub struct TrafficLog {
    samples: Arc<Samples>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Samples {
    /// The first when the watch began, and never none.
    taken: Mutex<Vec<Traffic>>,
    one_more: Condvar,
}

impl TrafficLog {
    /// All that crossed between two moments, and what crossed up to the samples before and behind them.
    ///
    /// Waits for the sample behind `to` where `to` has only just gone by.
    #[must_use]
    pub fn between(&self, from: Instant, to: Instant) -> Traffic {
        let to = to.min(Instant::now());
        let taken = self.samples.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let too_early = |taken: &mut Vec<Traffic>| taken.last().is_none_or(|sample| sample.at < to);
        let waited = self.samples.one_more.wait_timeout_while(taken, LATEST_SAMPLE, too_early);
        let (taken, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let before = taken.iter().rfind(|sample| sample.at <= from).or_else(|| taken.first());
        let behind = taken.iter().find(|sample| sample.at >= to).or_else(|| taken.last());
        match (before, behind) {
            (Some(before), Some(behind)) => behind.since(before),
            _ => Traffic { at: to, by_party: BTreeMap::new() },
        }
    }
}

impl Drop for TrafficLog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Deletes the connection tracking table of the calling thread's namespace: what `conntrack -F` does.
fn forget_mappings() -> io::Result<()> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // struct nlmsghdr (length, type, flags, sequence, port) and struct nfgenmsg (family, version, resource).
    let mut message = Vec::with_capacity(20);
    message.extend_from_slice(&20_u32.to_ne_bytes());
    message.extend_from_slice(&CTNETLINK_DELETE.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    message.extend_from_slice(&[0; 12]);
    socket.send(&message, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    // An acknowledgement is an error of 0 behind the header.
    match answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// From here on ports are random.
const REMAP: &str = "flush chain inet site leave
add rule inet site leave oifname \"wan\" meta nfproto ipv4 masquerade fully-random
";
/// NFNL_SUBSYS_CTNETLINK and IPCTNL_MSG_CT_DELETE.
const CTNETLINK_DELETE: u16 = 1 << 8 | 2;
/// A sample that is not there by then is not coming.
const LATEST_SAMPLE: Duration = Duration::from_secs(10);
/// The kernel's own limit of segments in one hand-off.
const MANY_SEGMENTS: u32 = 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_net_dev_is_read_from_the_party_s_side() {
        let line = "    h1: 3000      30    0    0    0     0          0         0     5000      50    0    0";
        let counters = Counters { sent_packets: 30, sent_bytes: 3000, received_packets: 50, received_bytes: 5000 };
        assert_eq!(parse_link(line), Some(("h1", counters)));
        assert_eq!(parse_link(" face |bytes    packets errs"), None);
    }
}
