//! Large collections whose copies share what is equal: a copy in which one entry differs costs the piece
//! that holds it, in time and in memory.
//!
//! Readers of the old and of the new roster go on side by side, and what a roster changed is found by
//! comparing pieces, not entries. A piece is copied when it is changed while somebody else holds it.

use std::{collections::HashMap, hash::Hash, net::IpAddr, ops::Range, sync::Arc};

use flatlan_types::{InviteKey, MemberId, SenderHint, SessionKey};

/// A list, in pieces of equal length. Its entries keep their places.
#[derive(Clone, Debug)]
pub struct SharedVec<T> {
    pieces: Vec<Arc<Vec<T>>>,
}

impl<T> Default for SharedVec<T> {
    fn default() -> Self {
        Self { pieces: Vec::new() }
    }
}

impl<T> SharedVec<T> {
    /// The entry at a place.
    #[inline]
    pub fn get(&self, at: usize) -> Option<&T> {
        self.pieces.get(at / PIECE)?.get(at % PIECE)
    }

    /// How many places there are.
    pub fn len(&self) -> usize {
        self.pieces.last().map_or(0, |last| (self.pieces.len() - 1) * PIECE + last.len())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// All entries in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flat_map(|piece| piece.iter())
    }

    /// The places whose entries may differ from those of `other`: the rest is the same memory.
    pub fn unshared<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = usize> + 'a {
        let differs = move |n: &usize| match (self.pieces.get(*n), other.pieces.get(*n)) {
            (Some(ours), Some(theirs)) => !Arc::ptr_eq(ours, theirs),
            (Some(_), None) | (None, Some(_)) => true,
            (None, None) => false,
        };
        let pieces = self.pieces.len().max(other.pieces.len());
        (0..pieces).filter(differs).flat_map(|n| n * PIECE..(n + 1) * PIECE)
    }
}

impl<T: Clone> SharedVec<T> {
    /// Appends an entry.
    pub fn push(&mut self, value: T) {
        match self.pieces.last_mut().filter(|last| last.len() < PIECE) {
            Some(last) => Arc::make_mut(last).push(value),
            None => {
                let mut piece = Vec::with_capacity(PIECE);
                piece.push(value);
                self.pieces.push(Arc::new(piece));
            }
        }
    }
}

impl<T: Clone + Default> SharedVec<T> {
    /// Replaces the entry at a place; the list grows to it where it is shorter.
    pub fn set(&mut self, at: usize, value: T) {
        while self.len() <= at {
            self.push(T::default());
        }
        if let Some(place) = self.pieces.get_mut(at / PIECE).and_then(|piece| Arc::make_mut(piece).get_mut(at % PIECE))
        {
            *place = value;
        }
    }
}

impl<T: Clone> FromIterator<T> for SharedVec<T> {
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Self {
        let mut list = Self::default();
        for entry in entries {
            list.push(entry);
        }
        list
    }
}

/// A list, in pieces of any length: entries may come and go anywhere in it.
#[derive(Clone, Debug)]
pub(crate) struct SharedRuns<T> {
    pieces: Vec<Arc<Vec<T>>>,
}

impl<T> Default for SharedRuns<T> {
    fn default() -> Self {
        Self { pieces: Vec::new() }
    }
}

impl<T: Copy> SharedRuns<T> {
    /// All entries in order, many at a time.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &[T]> {
        self.pieces.iter().map(|piece| piece.as_slice())
    }

    /// Appends an entry.
    pub(crate) fn push(&mut self, value: T) {
        self.extend(&[value]);
    }

    /// Appends what stands at these places of another list, as far as it has them: whole pieces are shared.
    pub(crate) fn extend_from(&mut self, other: &Self, places: Range<usize>) {
        let mut begin = 0;
        for piece in &other.pieces {
            let end = begin + piece.len();
            let (from, to) = (places.start.max(begin), places.end.min(end));
            if from < to {
                if to - from == piece.len() && !self.is_last_short_of(piece.len()) {
                    self.pieces.push(Arc::clone(piece));
                } else {
                    self.extend(piece.get(from - begin..to - begin).unwrap_or_default());
                }
            }
            if end >= places.end {
                return;
            }
            begin = end;
        }
    }

    /// Whether the last piece is so short that it is to be one with a piece of this length behind it: else there would be
    /// ever more of these.
    fn is_last_short_of(&self, length: usize) -> bool {
        self.pieces.last().is_some_and(|last| last.len() < PIECE / 4 && last.len() + length <= 2 * PIECE)
    }

    /// Appends no more than a piece.
    fn extend(&mut self, entries: &[T]) {
        let short = self.is_last_short_of(entries.len());
        match self.pieces.last_mut().filter(|last| short || last.len() + entries.len() <= PIECE) {
            Some(last) => Arc::make_mut(last).extend_from_slice(entries),
            None => self.pieces.push(Arc::new(entries.to_vec())),
        }
    }
}

impl<T: Copy> From<&[T]> for SharedRuns<T> {
    fn from(all: &[T]) -> Self {
        Self { pieces: all.chunks(PIECE).map(|piece| Arc::new(piece.to_vec())).collect() }
    }
}

/// A map, in shards.
#[derive(Clone, Debug)]
pub struct SharedMap<K, V> {
    shards: Vec<Arc<HashMap<K, V>>>,
    len: usize,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        Self { shards: vec![Arc::default()], len: 0 }
    }
}

impl<K: Spread + Eq + Hash, V> SharedMap<K, V> {
    /// The value of a key.
    #[inline]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.shards.get(self.shard(key))?.get(key)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn shard(&self, key: &K) -> usize {
        // there is a power of two of them
        key.spread() as usize & (self.shards.len() - 1)
    }
}

impl<K: Spread + Eq + Hash + Clone, V: Clone> SharedMap<K, V> {
    /// An empty map with room for so many keys: it is not spread anew while they come.
    pub fn with_capacity(keys: usize) -> Self {
        let shards = (keys / SHARD).next_power_of_two();
        Self::of_shards(shards, keys.div_ceil(shards))
    }

    /// Sets a key's value; the one that it had before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        if self.len >= self.shards.len() * SHARD * 4 {
            self.spread_wider();
        }
        let shard = self.shard(&key);
        let old = Arc::make_mut(self.shards.get_mut(shard)?).insert(key, value);
        self.len += usize::from(old.is_none());
        old
    }

    /// Removes a key; its value.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let shard = self.shard(key);
        let shard = self.shards.get_mut(shard).filter(|shard| shard.contains_key(key))?;
        self.len -= 1;
        Arc::make_mut(shard).remove(key)
    }

    /// Empty shards, a power of two of them, each with room for so many keys.
    fn of_shards(shards: usize, room: usize) -> Self {
        Self { shards: (0..shards).map(|_| Arc::new(HashMap::with_capacity(room))).collect(), len: 0 }
    }

    fn spread_wider(&mut self) {
        let shards = (self.len * 2 / SHARD).next_power_of_two();
        let mut wider = Self::of_shards(shards, self.len.div_ceil(shards));
        for shard in std::mem::take(&mut self.shards) {
            for (key, value) in Arc::unwrap_or_clone(shard) {
                let at = wider.shard(&key);
                if let Some(shard) = wider.shards.get_mut(at) {
                    Arc::make_mut(shard).insert(key, value);
                    wider.len += 1;
                }
            }
        }
        *self = wider;
    }
}

/// What says in which shard a key is. Few bits of it count, and keys that are near each other should differ in
/// them; a shard that holds more than its share only costs time.
pub trait Spread {
    /// Bits that differ from key to key.
    fn spread(&self) -> u32;
}

impl Spread for IpAddr {
    #[inline]
    fn spread(&self) -> u32 {
        match self {
            Self::V4(ip) => u32::from(*ip),
            Self::V6(ip) => {
                let bits = u128::from(*ip);
                (bits ^ (bits >> 64)) as u32
            }
        }
    }
}

impl Spread for SenderHint {
    fn spread(&self) -> u32 {
        self.0
    }
}

macro_rules! spread_of_a_key {
    ($($key:ty),*) => {$(
        impl Spread for $key {
            fn spread(&self) -> u32 {
                self.as_bytes().first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
            }
        }
    )*};
}
spread_of_a_key!(MemberId, SessionKey, InviteKey);

/// One of something, as almost always, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Few<T> {
    /// One.
    One([T; 1]),
    /// None, or more than one.
    Several(Arc<[T]>),
}

impl<T: Copy> Few<T> {
    /// All of them, in order.
    #[inline]
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => one,
            Self::Several(several) => several,
        }
    }
}

impl<T: Copy> From<&[T]> for Few<T> {
    fn from(all: &[T]) -> Self {
        match all {
            [one] => Self::One([*one]),
            several => Self::Several(several.into()),
        }
    }
}

const PIECE: usize = 256;
/// Keys of one shard, about.
const SHARD: usize = 128;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_copy_in_which_one_entry_differs_shares_all_other_pieces() {
        let list: SharedVec<Option<u32>> = (0..10 * PIECE as u32).map(Some).collect();
        let mut copy = list.clone();
        copy.set(3 * PIECE + 7, None);
        assert_eq!(copy.unshared(&list).collect::<Vec<_>>(), (3 * PIECE..4 * PIECE).collect::<Vec<_>>());
        assert_eq!((list.get(3 * PIECE + 7), copy.get(3 * PIECE + 7)), (Some(&Some(775)), Some(&None)));
        copy.set(10 * PIECE + 5, Some(1));
        assert_eq!((copy.len(), list.len()), (10 * PIECE + 6, 10 * PIECE));
        assert_eq!(copy.get(10 * PIECE), Some(&None));
        assert_eq!(copy.iter().count(), copy.len());
    }

    #[test]
    fn entries_that_come_one_by_one_do_not_leave_as_many_pieces() {
        let entries: Vec<usize> = (0..4 * PIECE).collect();
        let mut list = SharedRuns::from(&*entries);
        for n in 0..1000 {
            let mut next = SharedRuns::default();
            next.extend_from(&list, 0..PIECE);
            next.push(n);
            next.extend_from(&list, PIECE..usize::MAX);
            list = next;
        }
        assert_eq!(list.runs().map(<[usize]>::len).sum::<usize>(), 4 * PIECE + 1000);
        let pieces = list.runs().count();
        assert!(pieces <= 2 + (4 * PIECE + 1000) / (PIECE / 4), "{pieces} pieces");
    }

    proptest! {
        #[test]
        fn a_list_of_runs_is_a_list_and_what_it_was_made_of_stays_as_it_was(
            edits in proptest::collection::vec((any::<u32>(), 0..700_usize, 0..9_usize), 1..60),
        ) {
            let mut plain: Vec<u32> = (0..9 * PIECE as u32).collect();
            let mut shared = SharedRuns::from(&*plain);
            for (at, gone, come) in edits {
                let at = at as usize % (plain.len() + 1);
                // most take out few
                let gone = if gone < 600 { gone % 3 } else { gone };
                let after = (at + gone).min(plain.len());
                let (mut next, before) = (SharedRuns::default(), plain.clone());
                next.extend_from(&shared, 0..at);
                (0..come as u32).for_each(|n| next.push(n));
                next.extend_from(&shared, after..plain.len());
                plain.splice(at..after, 0..come as u32);
                prop_assert_eq!(shared.runs().flatten().copied().collect::<Vec<_>>(), before);
                shared = next;
                prop_assert_eq!(shared.runs().flatten().copied().collect::<Vec<_>>(), &*plain);
                let pieces = shared.runs().count();
                prop_assert!(pieces <= 2 + plain.len() / (PIECE / 4), "{} in {} pieces", plain.len(), pieces);
            }
        }

        #[test]
        fn a_shared_map_is_a_map_and_its_copies_do_not_see_later_changes(
            steps in proptest::collection::vec((any::<u16>(), any::<bool>()), 0..3000),
        ) {
            let key = |n: u16| SenderHint(u32::from(n % 900) << 3);
            let (mut shared, mut plain) = (SharedMap::default(), BTreeMap::new());
            let mut copy = None;
            for (at, (n, add)) in steps.iter().enumerate() {
                if *add {
                    prop_assert_eq!(shared.insert(key(*n), at), plain.insert(key(*n), at));
                } else {
                    prop_assert_eq!(shared.remove(&key(*n)), plain.remove(&key(*n)));
                }
                if at == steps.len() / 2 {
                    copy = Some((shared.clone(), plain.clone()));
                }
            }
            for (shared, plain) in copy.iter().chain([&(shared, plain)]) {
                prop_assert_eq!(shared.len(), plain.len());
                for n in 0..900 {
                    prop_assert_eq!(shared.get(&key(n)), plain.get(&key(n)));
                }
            }
        }
    }
}
