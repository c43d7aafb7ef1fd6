//! Many hubs and nodes: how long they take, and what it costs.

use std::time::{Duration, Instant};

use crate::{
    fault::{Change, Fault},
    nat::Nat,
    party::Party,
    sim::{Counters, Sim},
};

/// How many of what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Hubs, each of which serves every network and has a way to each other one.
    pub hubs: usize,
    /// Networks.
    pub networks: usize,
    /// Members of each.
    pub members: usize,
}

/// One part of a run.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// What happened.
    pub name: &'static str,
    /// The virtual time until it was over; nothing: it never was.
    pub took: Option<Duration>,
    /// What was sent meanwhile.
    pub sent: Counters,
}

/// Runs it; each part is told as it ends.
pub fn run(size: Size, seed: u64, start: Instant, mut told: impl FnMut(&Part)) {
    let mut sim = Sim::seeded(seed, start);
    sim.quiet = true;
    for hub in 0..size.hubs {
        sim.add_hub(&format!("h{hub}"));
    }
    for network in 0..size.networks {
        for member in 0..size.members {
            let nat = Nat::ALL.get(member % Nat::ALL.len()).copied().unwrap_or(Nat::Open);
            sim.add_node(&format!("n{network}-{member}"), network, nat);
        }
    }
    sim.sign_all();
    let mut part = |sim: &mut Sim, name, holds: &mut dyn FnMut(&Sim) -> bool| {
        let before = sim.counters();
        let took = until(sim, holds);
        told(&Part { name, took, sent: sim.counters().since(before) });
    };
    (0..size.hubs).for_each(|hub| sim.start_stocked_hub(hub));
    part(&mut sim, "all hubs know all hubs", &mut |sim: &Sim| hubs_know_all(sim, size.hubs));
    part(&mut sim, "and of all links between them", &mut |sim: &Sim| {
        let links = size.hubs * (size.hubs - 1) / 2;
        sim.hubs.iter().filter_map(|site| site.run.as_ref()).all(|run| run.hub.stats().links == links)
    });
    (0..sim.nodes.len()).for_each(|node| sim.start_node(node));
    part(&mut sim, "all nodes are up", &mut |sim: &Sim| {
        sim.nodes.iter().all(|site| site.run.as_ref().is_some_and(|run| run.up))
    });
    part(&mut sim, "all hubs know of all nodes", &mut |sim: &Sim| {
        let present = |site: &crate::hub_site::HubSite| {
            site.run.iter().flat_map(|run| run.hub.networks()).all(|network| network.present == size.members)
        };
        sim.hubs.iter().all(present)
    });
    part(&mut sim, "ten seconds of doing nothing", &mut after(IDLE));
    sim.fault(Fault::PowerOff(Party::Hub(0)));
    part(&mut sim, "a hub is gone: the others know", &mut |sim: &Sim| hubs_know_all(sim, size.hubs - 1));
    part(&mut sim, "and its nodes have others", &mut |sim: &Sim| {
        let wanted = size.hubs.saturating_sub(1).min(3);
        sim.nodes.iter().filter_map(|site| site.run.as_ref()).all(|run| run.attached() >= wanted)
    });
    sim.fault(Fault::Publish(0, Change::Nothing, vec![1]));
    part(&mut sim, "a roster, published to one hub, is everywhere", &mut |sim: &Sim| {
        let of = sim.nodes.iter().filter(|site| site.network == 0);
        of.filter_map(|site| site.run.as_ref()).all(|run| run.serial == 2)
    });
}

/// Looks now and then: a look at everybody costs more than what happens in between.
fn until(sim: &mut Sim, holds: &mut dyn FnMut(&Sim) -> bool) -> Option<Duration> {
    let begin = sim.now();
    while !holds(sim) {
        if sim.now() - begin >= MOST || sim.violation().is_some() {
            return None;
        }
        sim.run(LOOK);
    }
    Some(sim.now() - begin)
}

/// Holds once so much time has passed.
fn after(span: Duration) -> impl FnMut(&Sim) -> bool {
    let mut begin = None;
    move |sim| sim.now() - *begin.get_or_insert_with(|| sim.now()) >= span
}

fn hubs_know_all(sim: &Sim, count: usize) -> bool {
    let knows = |run: &crate::hub_site::Run| {
        let stats = run.hub.stats();
        stats.hubs >= count && stats.neighbours == count - 1
    };
    sim.hubs.iter().filter_map(|site| site.run.as_ref()).all(|run| knows(run))
}

impl Counters {
    /// What there was since then.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            datagrams: self.datagrams - before.datagrams,
            datagram_bytes: self.datagram_bytes - before.datagram_bytes,
            messages: self.messages - before.messages,
            message_bytes: self.message_bytes - before.message_bytes,
            packed: self.packed - before.packed,
            timeouts: self.timeouts - before.timeouts,
            lies: self.lies - before.lies,
        }
    }
}

const LOOK: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_secs(120);
const IDLE: Duration = Duration::from_secs(10);
