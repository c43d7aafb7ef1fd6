//! Who owns an address: longest prefix over the whole roster.
//!
//! Single addresses stand in one map. All shorter prefixes are flattened into disjoint intervals, where a
//! look-up is one binary search over plain integers; nothing a peer sends can slow either down. Where members
//! of an HA group carry the same addresses, these have several owners. Each prefix knows the one around it, whose owners
//! stand in where its own cannot be reached.
//!
//! Of a table that differs from another in a few addresses, the rest is shared with it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use flatlan_types::Prefix;

use crate::shared::{Few, SharedMap};

/// A member's place in the roster: it keeps it while it stays in rosters that follow one another, as
/// [`VerifiedRoster::changed_since`] says. When it is gone, another may get its place; and in a roster that was read from
/// nothing, it may have another.
///
/// [`VerifiedRoster::changed_since`]: crate::VerifiedRoster::changed_since
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberIndex(pub u32);

impl MemberIndex {
    pub(crate) fn at(position: usize) -> Self {
        Self(u32::try_from(position).expect("a roster holds far fewer than 2^32 members"))
    }

    /// As an index into the members.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Address to owners. `T` names a member: its place in the roster, or as whoever looks it up calls it.
#[derive(Clone, Debug)]
pub struct OwnerTable<T = MemberIndex> {
    hosts: SharedMap<IpAddr, Few<T>>,
    /// Those of them that have several owners.
    shared_hosts: BTreeMap<IpAddr, Few<T>>,
    wide: Arc<Wide<T>>,
}

/// Prefixes that hold more than one address.
#[derive(Debug)]
struct Wide<T> {
    v4: Intervals<u32>,
    v6: Intervals<u128>,
    sets: Vec<Set<T>>,
}

/// Who owns a prefix.
#[derive(Debug)]
struct Set<T> {
    owners: Few<T>,
    length: u8,
    /// The set of the narrowest prefix around it, or [`NOBODY`].
    around: u32,
}

impl<T> Default for OwnerTable<T> {
    fn default() -> Self {
        let wide = Wide { v4: Intervals::default(), v6: Intervals::default(), sets: Vec::new() };
        Self { hosts: SharedMap::default(), shared_hosts: BTreeMap::new(), wide: Arc::new(wide) }
    }
}

impl<T: Copy + Ord> OwnerTable<T> {
    /// From prefixes and their owners. Where a prefix is listed with several owners, the first is
    /// preferred.
    pub fn new(prefixes: impl IntoIterator<Item = (Prefix, T)>) -> Self {
        let prefixes = prefixes.into_iter();
        let most = prefixes.size_hint().1.unwrap_or_default();
        let mut table = Self { hosts: SharedMap::with_capacity(most), ..Self::default() };
        let mut wide = Vec::new();
        for (prefix, owner) in prefixes {
            if prefix.is_host() {
                table.add_host(prefix.ip(), owner);
            } else {
                wide.push((prefix, owner));
            }
        }
        table.wide = Arc::new(Wide::new(wide));
        table
    }

    /// Sets the owners of single addresses, in order of preference; what is no single address is left out. All
    /// owners of an address are to be given.
    pub fn set_hosts(&mut self, hosts: impl IntoIterator<Item = (Prefix, T)>) {
        let mut sorted: Vec<(Prefix, T)> = hosts.into_iter().filter(|(prefix, _)| prefix.is_host()).collect();
        sorted.sort_by_key(|(prefix, _)| prefix.ip());
        for group in sorted.chunk_by(|(a, _), (b, _)| a == b) {
            let Some((prefix, _)) = group.first() else { continue };
            let owners = owners_of(group);
            let several = matches!(owners, Few::Several(_)).then(|| owners.clone());
            let before = self.hosts.insert(prefix.ip(), owners);
            if let Some(owners) = several {
                self.shared_hosts.insert(prefix.ip(), owners);
            } else if matches!(before, Some(Few::Several(_))) {
                self.shared_hosts.remove(&prefix.ip());
            }
        }
    }

    /// Adds an owner of a single address, behind those that it has.
    fn add_host(&mut self, ip: IpAddr, owner: T) {
        if let Some(before) = self.hosts.insert(ip, Few::One([owner])) {
            let all: Vec<T> = before.as_slice().iter().copied().chain([owner]).collect();
            let owners = Few::from(&*all);
            self.shared_hosts.insert(ip, owners.clone());
            self.hosts.insert(ip, owners);
        }
    }

    /// Takes a single address from its owners: it belongs to whoever has a prefix around it.
    pub fn remove_host(&mut self, ip: IpAddr) {
        self.hosts.remove(&ip);
        self.shared_hosts.remove(&ip);
    }

    /// Replaces all prefixes that hold more than one address.
    pub fn set_wide(&mut self, prefixes: impl IntoIterator<Item = (Prefix, T)>) {
        let wide = prefixes.into_iter().filter(|(prefix, _)| !prefix.is_host());
        self.wide = Arc::new(Wide::new(wide.collect()));
    }

    /// The owner that traffic to `ip` goes to.
    pub fn owner(&self, ip: IpAddr) -> Option<T> {
        self.owners(ip).first().copied()
    }

    /// All owners of `ip`, the preferred one first: one, or the members of an HA group.
    pub fn owners(&self, ip: IpAddr) -> &[T] {
        match self.hosts.get(&ip) {
            Some(owners) => owners.as_slice(),
            None => self.wide.owners(ip),
        }
    }

    /// The owners of each prefix that holds `ip`, those of the longest first.
    pub fn levels(&self, ip: IpAddr) -> impl Iterator<Item = &[T]> {
        let host = self.hosts.get(&ip).map(Few::as_slice);
        host.into_iter().chain(self.wide.around(ip).map(|set| set.owners.as_slice()))
    }

    /// The owners of `prefix`, and then of each prefix around it, those of the longest first.
    pub fn levels_of(&self, prefix: Prefix) -> impl Iterator<Item = &[T]> {
        let host = self.hosts.get(&prefix.ip()).filter(|_| prefix.is_host()).map(Few::as_slice);
        let wide = self.wide.around(prefix.ip()).filter(move |set| set.length <= prefix.length());
        host.into_iter().chain(wide.map(|set| set.owners.as_slice()))
    }

    /// The owners of each prefix that has several.
    pub fn shared(&self) -> impl Iterator<Item = &[T]> {
        let wide = self.wide.sets.iter().map(|set| set.owners.as_slice()).filter(|owners| owners.len() > 1);
        wide.chain(self.shared_hosts.values().map(Few::as_slice))
    }

    /// Whether `member` may send from `ip`.
    pub fn owns(&self, member: T, ip: IpAddr) -> bool {
        self.owners(ip).contains(&member)
    }
}

impl<T: Copy + Ord> Wide<T> {
    fn new(mut sorted: Vec<(Prefix, T)>) -> Self {
        sorted.sort_by_key(|(prefix, _)| (prefix.ip(), prefix.length()));
        let mut sets: Vec<Set<T>> = Vec::new();
        let (mut v4, mut v6) = (Flatten::new(), Flatten::new());
        for group in sorted.chunk_by(|(a, _), (b, _)| a == b) {
            let Some((prefix, _)) = group.first() else { continue };
            let set = u32::try_from(sets.len()).expect("a roster holds far fewer than 2^32 prefixes");
            let length = u32::from(prefix.length());
            let around = match prefix.ip() {
                IpAddr::V4(ip) => v4.add(u32::from(ip), u32::MAX.checked_shr(length).unwrap_or(0), set),
                IpAddr::V6(ip) => v6.add(u128::from(ip), u128::MAX.checked_shr(length).unwrap_or(0), set),
            };
            sets.push(Set { owners: owners_of(group), length: prefix.length(), around });
        }
        Self { v4: v4.finish(), v6: v6.finish(), sets }
    }

    fn owners(&self, ip: IpAddr) -> &[T] {
        self.find(ip).map_or(&[], |set| set.owners.as_slice())
    }

    /// The sets of the prefixes that hold `ip`, that of the longest first.
    fn around(&self, ip: IpAddr) -> impl Iterator<Item = &Set<T>> {
        std::iter::successors(self.find(ip), |set| self.sets.get(set.around as usize))
    }

    #[inline]
    fn find(&self, ip: IpAddr) -> Option<&Set<T>> {
        let set = match ip {
            IpAddr::V4(ip) => self.v4.find(u32::from(ip)),
            IpAddr::V6(ip) => self.v6.find(u128::from(ip)),
        };
        self.sets.get(set? as usize)
    }
}

/// The owners of one prefix.
fn owners_of<T: Copy>(group: &[(Prefix, T)]) -> Few<T> {
    match group {
        [(_, only)] => Few::One([*only]),
        several => Few::Several(several.iter().map(|(_, owner)| *owner).collect()),
    }
}

/// Disjoint intervals: each begins at `starts[i]`, ends where the next begins, and belongs to
/// `sets[i]`, or to nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Intervals<A> {
    starts: Vec<A>,
    sets: Vec<u32>,
}

impl<A: Ord + Copy> Intervals<A> {
    fn find(&self, ip: A) -> Option<u32> {
        let at = self.starts.partition_point(|start| *start <= ip).checked_sub(1)?;
        self.sets.get(at).copied().filter(|set| *set != NOBODY)
    }

    fn begin(&mut self, start: A, set: u32) {
        if self.starts.last() == Some(&start) {
            self.starts.pop();
            self.sets.pop();
        }
        if self.sets.last().copied().unwrap_or(NOBODY) != set {
            self.starts.push(start);
            self.sets.push(set);
        }
    }
}

/// Sweeps prefixes in order of (start, length); `open` holds those not yet ended, widest first.
struct Flatten<A> {
    out: Intervals<A>,
    open: Vec<(A, u32)>,
}

impl<A: Address> Flatten<A> {
    fn new() -> Self {
        Self { out: Intervals { starts: Vec::new(), sets: Vec::new() }, open: Vec::new() }
    }

    /// Adds a set; which one is around it.
    fn add(&mut self, start: A, host_bits: A, set: u32) -> u32 {
        self.close(|last| last < start);
        let around = self.around();
        self.out.begin(start, set);
        self.open.push((start.or(host_bits), set));
        around
    }

    fn finish(mut self) -> Intervals<A> {
        self.close(|_| true);
        self.out
    }

    fn close(&mut self, ended: impl Fn(A) -> bool) {
        while let Some((last, _)) = self.open.pop_if(|(last, _)| ended(*last)) {
            let around = self.around();
            if let Some(next) = last.next() {
                self.out.begin(next, around);
            }
        }
    }

    fn around(&self) -> u32 {
        self.open.last().map_or(NOBODY, |(_, set)| *set)
    }
}

trait Address: Ord + Copy {
    fn next(self) -> Option<Self>;
    fn or(self, bits: Self) -> Self;
}

impl Address for u32 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn or(self, bits: Self) -> Self {
        self | bits
    }
}

impl Address for u128 {
    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn or(self, bits: Self) -> Self {
        self | bits
    }
}

const NOBODY: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive(prefixes: &[(Prefix, u32)], ip: IpAddr) -> Vec<u32> {
        let longest = prefixes.iter().filter(|(p, _)| p.contains(ip)).map(|(p, _)| p.length()).max();
        let of = |(p, owner): &(Prefix, u32)| (p.contains(ip) && Some(p.length()) == longest).then_some(*owner);
        prefixes.iter().filter_map(of).collect()
    }

    #[test]
    fn the_longest_prefix_owns_an_address() {
        let table = OwnerTable::new([
            ("10.0.0.0/8".parse().unwrap(), 1),
            ("10.1.2.0/24".parse().unwrap(), 2),
            ("10.1.2.3/32".parse().unwrap(), 3),
            ("255.255.255.255/32".parse().unwrap(), 4),
        ]);
        let owner = |ip: &str| table.owner(ip.parse().unwrap());
        assert_eq!(owner("9.255.255.255"), None);
        assert_eq!(owner("10.0.0.0"), Some(1));
        assert_eq!(owner("10.1.2.2"), Some(2));
        assert_eq!(owner("10.1.2.3"), Some(3));
        assert_eq!(owner("10.1.2.4"), Some(2));
        assert_eq!(owner("10.1.3.0"), Some(1));
        assert_eq!(owner("11.0.0.0"), None);
        assert_eq!(owner("255.255.255.255"), Some(4));
        assert_eq!(owner("fd00::1"), None);
    }

    #[test]
    fn an_address_taken_from_its_owner_belongs_to_the_prefix_around_it() {
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        let before = OwnerTable::new([(prefix("10.1.0.0/16"), 1), (prefix("10.1.0.7/32"), 2)]);
        let mut after = before.clone();
        after.remove_host([10, 1, 0, 7].into());
        after.set_hosts([(prefix("10.1.0.8/32"), 4), (prefix("10.1.0.8/32"), 3)]);
        let owners = |table: &OwnerTable<i32>, last| table.owners([10, 1, 0, last].into()).to_vec();
        assert_eq!((owners(&before, 7), owners(&before, 8)), (vec![2], vec![1]));
        assert_eq!((owners(&after, 7), owners(&after, 8)), (vec![1], vec![4, 3]));
        after.set_wide([(prefix("10.1.0.0/24"), 5)]);
        assert_eq!((owners(&after, 7), owners(&after, 8), owners(&before, 7)), (vec![5], vec![4, 3], vec![2]));
    }

    #[test]
    fn the_prefixes_around_an_address_are_told_from_the_longest_to_the_widest() {
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        let of = [("10.1.0.0/16", 1), ("10.1.0.0/16", 2), ("10.1.2.0/24", 3), ("10.1.2.5/32", 4), ("10.1.2.0/32", 5)];
        let table = OwnerTable::new(of.map(|(text, owner)| (prefix(text), owner)));
        let levels = |ip: &str| table.levels(ip.parse().unwrap()).map(<[i32]>::to_vec).collect::<Vec<_>>();
        assert_eq!(levels("10.1.2.5"), [vec![4], vec![3], vec![1, 2]]);
        assert_eq!(levels("10.1.2.6"), [vec![3], vec![1, 2]]);
        assert_eq!(levels("10.1.3.0"), [vec![1, 2]]);
        assert!(levels("10.2.0.0").is_empty());
        let levels_of = |text: &str| table.levels_of(prefix(text)).map(<[i32]>::to_vec).collect::<Vec<_>>();
        assert_eq!(levels_of("10.1.2.0/24"), [vec![3], vec![1, 2]], "a single address in it is no owner of it");
        assert_eq!(levels_of("10.1.2.0/32"), [vec![5], vec![3], vec![1, 2]]);
        assert_eq!(levels_of("10.1.0.0/16"), [vec![1, 2]]);
    }

    proptest! {
        #[test]
        fn the_table_agrees_with_a_linear_search(
            entries in proptest::collection::vec((any::<u32>(), 0_u8..=32, any::<bool>()), 0..40),
            probes in proptest::collection::vec(any::<u32>(), 20),
        ) {
            let spread = |ip: u32, v6: bool| -> IpAddr {
                if v6 { (u128::from(ip) << 96 | u128::from(ip)).to_be_bytes().into() } else { ip.to_be_bytes().into() }
            };
            let prefixes: Vec<(Prefix, u32)> = entries.iter().zip(0..).filter_map(|((ip, length, v6), owner)| {
                Some((Prefix::of(spread(*ip & 0xf00f_00ff, *v6), if *v6 { length * 4 } else { *length })?, owner))
            }).collect();
            let table = OwnerTable::new(prefixes.iter().copied());
            let near = prefixes.iter().map(|(p, _)| p.ip());
            let random = probes.iter().flat_map(|ip| [spread(*ip & 0xf00f_00ff, false), spread(*ip & 0xf00f_00ff, true)]);
            for ip in near.chain(random) {
                prop_assert_eq!(table.owners(ip), naive(&prefixes, ip));
                let mut lengths: Vec<u8> = prefixes.iter().filter(|(p, _)| p.contains(ip)).map(|(p, _)| p.length()).collect();
                lengths.sort();
                lengths.dedup();
                let levels = lengths.iter().rev().map(|length| {
                    prefixes.iter().filter(|(p, _)| p.contains(ip) && p.length() == *length).map(|(_, owner)| *owner).collect()
                });
                prop_assert_eq!(table.levels(ip).map(<[u32]>::to_vec).collect::<Vec<_>>(), levels.collect::<Vec<Vec<u32>>>());
            }
        }
    }
}
