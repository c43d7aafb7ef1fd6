//! Who should reach whom: said by a few lines that know nothing of how.

use std::{collections::BTreeSet, time::Duration};

use flatlan_path::Spread;

use crate::{party::Party, sim::Sim};

/// Whether one node must reach another once all is mended.
///
/// Both must be members of one network. Each hub that the one has a way to must lead, over hubs that have ways to each
/// other, to each hub that the other has a way to: which of them a node chooses is its own affair.
pub fn must_reach(sim: &Sim, a: usize, b: usize) -> bool {
    let (hubs_a, hubs_b) = (hubs_of(sim, a), hubs_of(sim, b));
    let together = |x: &usize| component(sim, *x).is_superset(&hubs_b);
    a != b
        && sim.nodes[a].network == sim.nodes[b].network
        && [a, b].iter().all(|node| is_member(sim, *node))
        && !hubs_a.is_empty()
        && !hubs_b.is_empty()
        && hubs_a.iter().all(together)
}

/// Whether a node is a member as the newest roster says.
pub fn is_member(sim: &Sim, node: usize) -> bool {
    let site = &sim.nodes[node];
    sim.admins[site.network].members().iter().any(|member| member.number == site.number)
}

/// Whether a node has a way to any hub.
pub fn has_hub(sim: &Sim, node: usize) -> bool {
    !hubs_of(sim, node).is_empty()
}

/// The hubs over which a node must share out its flows to another, once all is mended: those about as near as the nearest,
/// to which both have a way. None where it has a choice of its own: a direct way, or more hubs than it attaches to.
pub fn shared_hubs(sim: &Sim, a: usize, b: usize) -> BTreeSet<usize> {
    let (hubs_a, hubs_b) = (hubs_of(sim, a), hubs_of(sim, b));
    let direct = sim.nodes[a].gate.nat.meets(sim.nodes[b].gate.nat);
    let choice = hubs_a.len().max(hubs_b.len()) > ATTACHED;
    if sim.nodes[a].spread == Spread::Off || direct || choice || !must_reach(sim, a, b) {
        return BTreeSet::new();
    }
    let length = |x: usize, y: usize| {
        let between = if x == y { Duration::ZERO } else { sim.underlay.delay(Party::Hub(x), Party::Hub(y)) };
        let ends =
            sim.underlay.delay(Party::Node(a), Party::Hub(x)) + sim.underlay.delay(Party::Hub(y), Party::Node(b));
        ends + between
    };
    let ways = hubs_a.iter().flat_map(|x| hubs_b.iter().map(|y| length(*x, *y)));
    let Some(shortest) = ways.min() else { return BTreeSet::new() };
    hubs_a.intersection(&hubs_b).copied().filter(|hub| length(*hub, *hub) <= shortest + shortest / 2).collect()
}

/// The hubs that have ways to each other, over others too.
pub fn component(sim: &Sim, hub: usize) -> BTreeSet<usize> {
    let (mut seen, mut todo) = (BTreeSet::from([hub]), vec![hub]);
    while let Some(at) = todo.pop() {
        for next in 0..sim.hubs.len() {
            if !sim.underlay.is_apart(Party::Hub(at), Party::Hub(next)) && seen.insert(next) {
                todo.push(next);
            }
        }
    }
    seen
}

fn hubs_of(sim: &Sim, node: usize) -> BTreeSet<usize> {
    (0..sim.hubs.len()).filter(|hub| !sim.underlay.is_apart(Party::Node(node), Party::Hub(*hub))).collect()
}

/// Hubs to which a node attaches at the most.
const ATTACHED: usize = 3;
