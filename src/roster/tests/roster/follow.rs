//! Rosters of more members than fit into one piece of memory, each a few changes from the one before: what is shared with
//! that, and what is not, must be the roster that is read from nothing.

use std::{collections::BTreeSet, net::IpAddr};

use flatlan_roster::{
    Draft, HubRecord, Invite, MemberRecord, NetworkRecord, OwnerTable, Record, Records, Stock, VerifiedRoster,
    stock_keys,
};
use flatlan_types::{MemberId, Name, NodeKeys, Prefix, SessionKey, VirtualIp};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::world::{NOW, World, hub, invite, name};

/// A network that changes, and its bundles.
struct Many {
    world: World,
    network: NetworkRecord,
    hubs: Vec<HubRecord>,
    members: Vec<MemberRecord>,
    /// The next member that never was.
    next: u32,
}

impl Many {
    fn new(count: u32) -> Self {
        let world = World::new();
        let network = NetworkRecord { range: "10.64.0.0/10".parse().unwrap(), ..world.source.network().clone() };
        let hubs = world.source.records().hubs().to_vec();
        Self { world, network, hubs, members: (0..count).map(member).collect(), next: count }
    }

    /// The records, unless they break a rule.
    fn compile(&self) -> Option<Records> {
        let records = [Record::Network(self.network.clone())].into_iter();
        let records = records.chain(self.hubs.iter().cloned().map(Record::Hub));
        let records = records.chain(self.members.iter().cloned().map(Record::Member));
        Records::compile(records.collect(), &self.world.id()).ok()
    }

    fn sign(&self, records: &Records) -> Vec<u8> {
        let (authority, life) = (self.world.authority(), self.world.source.life());
        let draft = Draft { authority, records, base: None, now: NOW, life };
        VerifiedRoster::sign(draft, &self.world.admin).unwrap().encode()
    }

    fn follow(&self, bytes: &[u8], known: &VerifiedRoster) -> VerifiedRoster {
        VerifiedRoster::verify(bytes, &self.world.ratchet(), Some(known)).unwrap()
    }

    /// All of these changes, or, where together they break a rule, those of them that break none.
    fn change_as_allowed(&mut self, edits: &[Edit]) {
        let before = self.members.clone();
        edits.iter().for_each(|edit| self.change(edit));
        if self.compile().is_none() && !edits.is_empty() {
            self.members = before;
            let (some, others) = edits.split_at(edits.len() / 2);
            if !some.is_empty() {
                self.change_as_allowed(some);
                self.change_as_allowed(others);
            }
        }
    }

    fn change(&mut self, Edit { what, at, other }: &Edit) {
        let (at, other) = (*at as usize % self.members.len(), *other as usize % self.members.len());
        let fresh = member(self.next);
        self.next += 1;
        let (mine, theirs) = (self.members[at].clone(), self.members[other].clone());
        match what {
            What::Keys => self.members[at].keys = fresh.keys,
            What::Address => self.members[at].ips = fresh.ips,
            // behind all others, before all others, and anywhere
            What::Add => self.members.push(fresh),
            What::AddFirst => self.members.push(MemberRecord { name: named("a", self.next), ..fresh }),
            What::AddBeside => self.members.push(MemberRecord { name: named(mine.name.as_str(), self.next), ..fresh }),
            What::Remove => drop(self.members.swap_remove(at)),
            What::Replace => self.members[at] = fresh,
            What::Route => self.members[at].routes = vec![wide(self.next, 24)],
            What::NoRoute => self.members[at].routes.clear(),
            What::Moved => self.members[at].moved = theirs.routes.iter().map(|route| within(*route)).collect(),
            What::Pair => {
                self.members[at].ha = Some(theirs.name.clone());
                self.members[other].ha = Some(theirs.name);
                self.members[at].routes = theirs.routes;
            }
            What::Stock => {
                let keys = fresh.keys.map(|keys| stock_keys(keys.session));
                self.members[at] =
                    MemberRecord { keys, stock: Some(Stock { via: theirs.name }), routes: Vec::new(), ..mine };
            }
            What::Invite => {
                let key = invite((other % 50) as u8).public();
                self.members[at].invite = Some(Invite { key, expires: NOW, redeemer: hub(1).public() });
            }
            // what two had goes from one to the other, and back
            What::Swap => {
                self.members[at].ips = theirs.ips;
                self.members[other].ips = mine.ips;
                self.members[at].keys = theirs.keys;
                self.members[other].keys = mine.keys;
            }
        }
    }

    /// Addresses that mean something, of this roster.
    fn asked(roster: &VerifiedRoster) -> impl Iterator<Item = IpAddr> {
        let members = roster.members().flat_map(|member| member.ips.iter().map(|ip| ip.ip()));
        members.chain(roster.carried().flat_map(|(prefix, _)| [prefix.ip(), within(prefix).ip()]))
    }
}

#[derive(Clone, Debug)]
struct Edit {
    what: What,
    at: u16,
    other: u16,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Keys,
    Address,
    Add,
    AddFirst,
    AddBeside,
    Remove,
    Replace,
    Route,
    NoRoute,
    Moved,
    Pair,
    Stock,
    Invite,
    Swap,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let what = prop_oneof![
        2 => Just(What::Keys),
        2 => Just(What::Address),
        2 => Just(What::Add),
        1 => Just(What::AddFirst),
        1 => Just(What::AddBeside),
        4 => Just(What::Remove),
        1 => Just(What::Replace),
        1 => Just(What::Route),
        1 => Just(What::NoRoute),
        1 => Just(What::Moved),
        1 => Just(What::Pair),
        1 => Just(What::Stock),
        1 => Just(What::Invite),
        1 => Just(What::Swap),
    ];
    let edit = (what, any::<u16>(), any::<u16>()).prop_map(|(what, at, other)| Edit { what, at, other });
    proptest::collection::vec(edit, 1..12)
}

fn member(n: u32) -> MemberRecord {
    let key = |kind: u8| -> [u8; 32] { Sha256::digest([&[kind][..], &n.to_be_bytes()].concat()).into() };
    MemberRecord {
        ips: vec![VirtualIp::new((0x0a40_0001 + n).to_be_bytes().into())],
        keys: Some(NodeKeys { id: MemberId::from_bytes(key(1)), session: SessionKey::from_bytes(key(2)) }),
        routes: n.is_multiple_of(10).then(|| wide(n, 28)).into_iter().collect(),
        ..MemberRecord::new(named("m", n))
    }
}

fn named(before: &str, n: u32) -> Name {
    name(&format!("{before}-{n:06}"))
}

fn wide(n: u32, length: u8) -> Prefix {
    Prefix::of((0xac10_0000 + (n << 6)).to_be_bytes().into(), length).unwrap()
}

/// An address of a prefix.
fn within(prefix: Prefix) -> Prefix {
    Prefix::of(prefix.ip(), if prefix.ip().is_ipv4() { 32 } else { 128 }).unwrap()
}

fn owners(roster: &VerifiedRoster, table: &OwnerTable, ip: IpAddr) -> Vec<Name> {
    table.owners(ip).iter().map(|at| roster.member(*at).unwrap().name().clone()).collect()
}

/// That two rosters are the same in all that can be asked.
fn assert_same(roster: &VerifiedRoster, fresh: &VerifiedRoster) {
    assert!(roster.members().eq(fresh.members()));
    assert!(roster.records().members().eq(fresh.records().members()));
    let carried = |of: &VerifiedRoster| -> BTreeSet<(Prefix, Option<Name>)> {
        of.carried().map(|(prefix, at)| (prefix, of.member(at).map(|member| member.name().clone()))).collect()
    };
    assert_eq!(carried(roster), carried(fresh));
    let mut places = BTreeSet::new();
    for (at, member) in roster.members_with_places() {
        assert!(places.insert(at), "{at:?} is of two members");
        assert_eq!(roster.by_id(&member.keys.id), Some(at));
        assert_eq!(roster.by_session(&member.keys.session), Some(at));
        assert_eq!(roster.by_name(member.name()), Some(at));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_large_roster_that_changed_many_times_is_the_one_read_from_nothing_and_those_before_are_as_they_were(
        steps in proptest::collection::vec(edits(), 6),
    ) {
        let mut many = Many::new(600);
        let first = many.world.verify(&many.sign(&many.compile().unwrap())).unwrap();
        let mut table = first.owner_table(None);
        let mut all = vec![(first.clone(), first)];
        for step in steps {
            many.change_as_allowed(&step);
            let bytes = many.sign(&many.compile().unwrap());
            let (last, _) = all.last().unwrap();
            let (roster, fresh) = (many.follow(&bytes, last), many.world.verify(&bytes).unwrap());
            let changed = roster.changed_since(last).expect("it was made by changing that one");
            roster.update_owners(&mut table, last, &changed, None, Some);
            let plain = fresh.owner_table(None);
            for ip in Many::asked(&fresh).chain(Many::asked(last)) {
                prop_assert_eq!(owners(&roster, &table, ip), owners(&fresh, &plain, ip), "{}", ip);
            }
            for member in last.members().filter(|member| fresh.by_id(&member.keys.id).is_none()) {
                prop_assert_eq!(roster.by_id(&member.keys.id), None);
            }
            all.push((roster, fresh));
        }
        for (roster, fresh) in &all {
            assert_same(roster, fresh);
        }
        // one that is told of late follows an older one as well
        let ((first, _), (last, _)) = (all.first().unwrap(), all.last().unwrap());
        if let Some(changed) = last.changed_since(first) {
            let mut table = first.owner_table(None);
            last.update_owners(&mut table, first, &changed, None, Some);
            let plain = last.owner_table(None);
            for ip in Many::asked(last).chain(Many::asked(first)) {
                prop_assert_eq!(owners(last, &table, ip), owners(last, &plain, ip), "{}", ip);
            }
        }
    }
}

#[test]
fn the_place_of_who_is_gone_is_given_to_who_comes() {
    let mut many = Many::new(300);
    let first = many.world.verify(&many.sign(&many.compile().unwrap())).unwrap();
    let mut known = first.clone();
    for _ in 0..40 {
        let edit = |what| Edit { what, at: 7, other: 0 };
        many.change(&edit(What::Remove));
        many.change(&edit(What::Add));
        let roster = many.follow(&many.sign(&many.compile().unwrap()), &known);
        assert!(roster.changed_since(&known).is_some(), "it was made by changing that one");
        known = roster;
    }
    let greatest = known.members_with_places().map(|(at, _)| at.index()).max().unwrap();
    assert!(greatest <= 300, "place {greatest} of 300 members");
    assert_same(&known, &many.world.verify(&known.encode()).unwrap());
    assert_same(&first, &many.world.verify(&first.encode()).unwrap());
}
