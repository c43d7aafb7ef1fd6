//! Who owns an address: longest prefix over the whole roster.
//!
//! Single addresses stand in one hash map. All shorter prefixes are flattened, once per roster, into
//! disjoint intervals, where a look-up is one binary search over plain integers; nothing a peer sends can
//! slow either down. Where members of an HA group carry the same addresses, these have several owners.

use std::{collections::HashMap, net::IpAddr};

use flatlan_types::Prefix;

/// A member's place in [`VerifiedRoster::members`]. It changes from roster to roster.
///
/// [`VerifiedRoster::members`]: crate::VerifiedRoster::members
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

/// Address to owners. `T` names a member: its place in the roster, or whatever [`filter_map`] made of it.
///
/// [`filter_map`]: OwnerTable::filter_map
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerTable<T = MemberIndex> {
    hosts: HashMap<IpAddr, u32>,
    v4: Intervals<u32>,
    v6: Intervals<u128>,
    owners: Vec<Box<[T]>>,
}

impl<T> Default for OwnerTable<T> {
    fn default() -> Self {
        Self { hosts: HashMap::new(), v4: Intervals::default(), v6: Intervals::default(), owners: Vec::new() }
    }
}

impl<T: Copy + Ord> OwnerTable<T> {
    /// From prefixes and their owners. Where a prefix is listed with several owners, the first is
    /// preferred.
    pub fn new(prefixes: impl IntoIterator<Item = (Prefix, T)>) -> Self {
        let mut sorted: Vec<(Prefix, T)> = prefixes.into_iter().collect();
        sorted.sort_by_key(|(prefix, _)| (prefix.ip(), prefix.length()));
        let mut owners: Vec<Box<[T]>> = Vec::new();
        let mut hosts = HashMap::new();
        let (mut v4, mut v6) = (Flatten::new(), Flatten::new());
        for group in sorted.chunk_by(|(a, _), (b, _)| a == b) {
            let Some((prefix, _)) = group.first() else { continue };
            let set = u32::try_from(owners.len()).expect("a roster holds far fewer than 2^32 prefixes");
            owners.push(group.iter().map(|(_, owner)| *owner).collect());
            let length = u32::from(prefix.length());
            match prefix.ip() {
                IpAddr::V4(_) | IpAddr::V6(_) if length == bits(prefix.ip()) => {
                    hosts.insert(prefix.ip(), set);
                }
                IpAddr::V4(ip) => v4.add(u32::from(ip), u32::MAX.checked_shr(length).unwrap_or(0), set),
                IpAddr::V6(ip) => v6.add(u128::from(ip), u128::MAX.checked_shr(length).unwrap_or(0), set),
            }
        }
        Self { hosts, v4: v4.finish(), v6: v6.finish(), owners }
    }

    /// The owner that traffic to `ip` goes to.
    pub fn owner(&self, ip: IpAddr) -> Option<T> {
        self.owners(ip).first().copied()
    }

    /// All owners of `ip`, the preferred one first: one, or the members of an HA group.
    pub fn owners(&self, ip: IpAddr) -> &[T] {
        let set = self.hosts.get(&ip).copied().or_else(|| match ip {
            IpAddr::V4(ip) => self.v4.find(u32::from(ip)),
            IpAddr::V6(ip) => self.v6.find(u128::from(ip)),
        });
        set.and_then(|set| self.owners.get(set as usize)).map_or(&[], |owners| owners)
    }

    /// Whether `member` may send from `ip`.
    pub fn owns(&self, member: T, ip: IpAddr) -> bool {
        self.owners(ip).contains(&member)
    }

    /// The same table under other names for the members. What belongs to members without one belongs to
    /// nobody.
    pub fn filter_map<U>(self, mut name: impl FnMut(T) -> Option<U>) -> OwnerTable<U> {
        let rename = |owners: Box<[T]>| owners.into_iter().filter_map(&mut name).collect();
        let owners = self.owners.into_iter().map(rename).collect();
        OwnerTable { hosts: self.hosts, v4: self.v4, v6: self.v6, owners }
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

    fn add(&mut self, start: A, host_bits: A, set: u32) {
        self.close(|last| last < start);
        self.out.begin(start, set);
        self.open.push((start.or(host_bits), set));
    }

    fn finish(mut self) -> Intervals<A> {
        self.close(|_| true);
        self.out
    }

    fn close(&mut self, ended: impl Fn(A) -> bool) {
        while let Some((last, _)) = self.open.pop_if(|(last, _)| ended(*last)) {
            let around = self.open.last().map_or(NOBODY, |(_, set)| *set);
            if let Some(next) = last.next() {
                self.out.begin(next, around);
            }
        }
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

fn bits(ip: IpAddr) -> u32 {
    if ip.is_ipv4() { u32::BITS } else { u128::BITS }
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
    fn what_belongs_to_a_member_without_another_name_belongs_to_nobody() {
        let table = OwnerTable::new([
            ("10.0.0.0/8".parse().unwrap(), 1),
            ("10.1.0.0/16".parse().unwrap(), 2),
            ("10.1.0.0/16".parse().unwrap(), 3),
            ("10.2.0.0/16".parse().unwrap(), 2),
        ]);
        let named = table.filter_map(|owner| (owner != 2).then_some(owner * 10));
        assert_eq!(named.owners([10, 0, 0, 1].into()), [10]);
        assert_eq!(named.owners([10, 1, 0, 1].into()), [30]);
        assert_eq!(named.owner([10, 2, 0, 1].into()), None);
        assert!(named.owns(30, [10, 1, 0, 1].into()) && !named.owns(20, [10, 1, 0, 1].into()));
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
            }
        }
    }
}
