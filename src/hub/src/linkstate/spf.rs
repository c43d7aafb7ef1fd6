//! Shortest path first (Dijkstra, as OSPF does it: RFC 2328 section 16.1).

use std::collections::{BTreeMap, BTreeSet};

use flatlan_relay::Lsa;
use flatlan_types::HubKey;

/// The way to a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The neighbour to hand a request to.
    pub(crate) next_hop: HubKey,
    /// Round trips and hop costs, microseconds.
    pub(crate) cost: u64,
    /// Hubs crossed after this one.
    pub(crate) hops: u8,
}

/// How a hub may be part of a way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carry {
    /// Only as its end: it is stopping, or does not serve the network.
    End,
    /// Not at all.
    No,
    /// Anywhere.
    Transit,
}

/// The shortest way from `me` to every hub that can be reached over hubs which `carries` allows. Among
/// equals the smaller key wins, so that a run can be repeated.
pub(crate) fn routes<'a>(
    me: HubKey,
    states: impl Iterator<Item = &'a Lsa>,
    carries: impl Fn(&Lsa) -> Carry,
) -> BTreeMap<HubKey, Route> {
    let carried = states.map(|lsa| (lsa.origin, (lsa, carries(lsa))));
    let states: BTreeMap<HubKey, (&Lsa, Carry)> = carried.filter(|(_, (_, carry))| *carry != Carry::No).collect();
    let mut routes: BTreeMap<HubKey, Route> = BTreeMap::new();
    // Sorted by cost, then hops, then key: the first is the next to settle.
    let mut open: BTreeSet<(u64, u8, HubKey, Option<HubKey>)> = BTreeSet::from([(0, 0, me, None)]);
    let mut settled = BTreeSet::new();
    while let Some((cost, hops, hub, first)) = open.pop_first() {
        if !settled.insert(hub) {
            continue;
        }
        if let Some(next_hop) = first {
            routes.insert(hub, Route { next_hop, cost, hops });
        }
        let Some((state, carry)) = states.get(&hub) else { continue };
        if *carry == Carry::End && hub != me {
            continue;
        }
        for link in &state.links {
            let Some(back) = states.get(&link.to).and_then(|(far, _)| far.link(&hub)) else { continue };
            if settled.contains(&link.to) {
                continue;
            }
            let cost = cost + u64::from(link.rtt_us.max(back.rtt_us)) + HOP_COST;
            open.insert((cost, hops.saturating_add(1), link.to, Some(first.unwrap_or(link.to))));
        }
    }
    routes
}

/// What crossing one more hub must save, microseconds: keeps ways short where round trips hardly differ.
const HOP_COST: u64 = 500;

#[cfg(test)]
mod tests {
    use flatlan_relay::{LsaLink, LsaVersion};
    use proptest::prelude::*;

    use super::*;

    fn hub(n: u8) -> HubKey {
        HubKey::from_bytes([n; 32])
    }

    fn state(origin: u8, links: &[(u8, u32)]) -> Lsa {
        let links = links.iter().map(|(to, rtt_us)| LsaLink { to: hub(*to), rtt_us: *rtt_us }).collect();
        Lsa { origin: hub(origin), version: LsaVersion::default(), links, serves: vec![] }
    }

    #[test]
    fn the_way_with_the_least_round_trips_wins_over_the_direct_link() {
        let states = [
            state(1, &[(2, 50_000), (3, 10_000)]),
            state(2, &[(1, 50_000), (3, 10_000)]),
            state(3, &[(1, 10_000), (2, 10_000)]),
        ];
        let routes = routes(hub(1), states.iter(), |_| Carry::Transit);
        assert_eq!(routes[&hub(2)], Route { next_hop: hub(3), cost: 21_000, hops: 2 });
        assert_eq!(routes[&hub(3)].next_hop, hub(3));
    }

    #[test]
    fn a_link_stated_by_one_end_only_is_no_link() {
        let states = [state(1, &[(2, 10)]), state(2, &[])];
        assert!(routes(hub(1), states.iter(), |_| Carry::Transit).is_empty());
    }

    #[test]
    fn a_hub_that_does_not_carry_the_network_is_gone_around() {
        let states = [
            state(1, &[(2, 10), (4, 900)]),
            state(2, &[(1, 10), (3, 10)]),
            state(3, &[(2, 10), (4, 900)]),
            state(4, &[(1, 900), (3, 900)]),
        ];
        let except = |carry| move |lsa: &Lsa| if lsa.origin == hub(2) { carry } else { Carry::Transit };
        let around = routes(hub(1), states.iter(), except(Carry::No));
        assert_eq!(around[&hub(3)].next_hop, hub(4));
        assert!(!around.contains_key(&hub(2)));
        let around = routes(hub(1), states.iter(), except(Carry::End));
        assert_eq!(around[&hub(3)].next_hop, hub(4));
        assert_eq!(around[&hub(2)].next_hop, hub(2));
    }

    proptest! {
        #[test]
        fn following_next_hops_always_arrives_and_never_costs_more(links in prop::collection::btree_map((0u8..7, 0u8..7), 1u32..5000, 0..25)) {
            let both = |a: u8, b: u8| links.get(&(a.min(b), a.max(b))).copied().filter(|_| a != b);
            let states: Vec<_> = (0..7).map(|a| {
                let links: Vec<_> = (0..7).filter_map(|b| Some((b, both(a, b)?))).collect();
                state(a, &links)
            }).collect();
            let tables: BTreeMap<_, _> =
                (0..7).map(|a| (hub(a), routes(hub(a), states.iter(), |_| Carry::Transit))).collect();
            for (from, table) in &tables {
                for (to, route) in table {
                    let (mut at, mut left) = (*from, u64::MAX);
                    while at != *to {
                        let next = tables[&at][to];
                        prop_assert!(next.cost < left);
                        (at, left) = (next.next_hop, next.cost);
                    }
                    prop_assert_eq!(tables[to][from].cost, route.cost);
                }
            }
        }
    }
}
