//! The lobby: connections whose other end has not proven to be a member or a hub yet, a bounded number of them.
//!
//! Whoever comes gets a place at once. Where there is none left, the oldest one of the source that holds most of them
//! goes: a source that opens thousands of connections takes places from itself, and one that finishes what it began
//! needs its place for a few round trips only. A place is given back when the other end has proven who it is, or by
//! dropping it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use flatlan_types::Endpoint;
use tokio::sync::oneshot;

/// See the module. Clones are the same lobby.
#[derive(Debug, Clone)]
pub(crate) struct Lobby {
    room: Arc<Mutex<Room>>,
}

/// One connection's place.
#[derive(Debug)]
pub(crate) struct Place {
    room: Arc<Mutex<Room>>,
    ticket: u64,
    source: Source,
    taken: oneshot::Receiver<()>,
}

#[derive(Debug)]
struct Room {
    places: usize,
    next: u64,
    used: usize,
    /// Those of each source, the oldest first.
    by_source: BTreeMap<Source, BTreeMap<u64, oneshot::Sender<()>>>,
    /// Who holds how many, the most first; of those that hold as many, whose oldest is the oldest.
    most: BTreeSet<(Reverse<usize>, u64, Source)>,
}

/// What one party can be supposed to have: an IPv4 address, or a /64 of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Source(u128);

impl Lobby {
    /// A lobby with so many places.
    pub(crate) fn new(places: usize) -> Self {
        let (by_source, most) = (BTreeMap::new(), BTreeSet::new());
        Self { room: Arc::new(Mutex::new(Room { places, next: 0, used: 0, by_source, most })) }
    }

    /// A place for a connection from there. Another may lose its place for that.
    pub(crate) fn enter(&self, from: Endpoint) -> Place {
        let source = Source::of(from.socket_addr().ip());
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if room.used >= room.places {
            room.take_back();
        }
        let (told, taken) = oneshot::channel();
        let ticket = room.next;
        room.next += 1;
        room.change(source, |held| held.insert(ticket, told));
        Place { room: self.room.clone(), ticket, source, taken }
    }

    /// How many places are taken.
    #[cfg(test)]
    fn used(&self) -> usize {
        self.room.lock().unwrap_or_else(PoisonError::into_inner).used
    }
}

impl Place {
    /// Returns once somebody else has got this place: the connection is to be closed. Safe to cancel.
    pub(crate) async fn lost(&mut self) {
        if (&mut self.taken).await.is_err() {
            // as long as the place is held, so is the other end
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        room.change(self.source, |held| held.remove(&self.ticket));
    }
}

impl Room {
    fn take_back(&mut self) {
        let Some((_, ticket, source)) = self.most.first().copied() else { return };
        if let Some(told) = self.change(source, |held| held.remove(&ticket)) {
            // whose place it was is about to leave by itself where it does not listen
            let _ = told.send(());
        }
    }

    /// Changes what a source holds, and its rank.
    fn change<T>(&mut self, source: Source, change: impl FnOnce(&mut BTreeMap<u64, oneshot::Sender<()>>) -> T) -> T {
        let held = self.by_source.entry(source).or_default();
        let rank = |held: &BTreeMap<u64, oneshot::Sender<()>>| {
            held.first_key_value().map(|(oldest, _)| (Reverse(held.len()), *oldest, source))
        };
        let (before, count) = (rank(held), held.len());
        let done = change(held);
        let (after, now) = (rank(held), held.len());
        if now == 0 {
            self.by_source.remove(&source);
        }
        if let Some(before) = before {
            self.most.remove(&before);
        }
        self.most.extend(after);
        self.used = self.used + now - count;
        done
    }
}

impl Source {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self(ip.to_bits().into()),
            IpAddr::V6(ip) => Self(ip.to_bits() & !u128::from(u64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> Endpoint {
        Endpoint::new(text.parse().unwrap())
    }

    fn is_lost(place: &mut Place) -> bool {
        place.taken.try_recv().is_ok()
    }

    #[test]
    fn a_source_with_thousands_of_connections_takes_places_from_itself() {
        let lobby = Lobby::new(100);
        let mut honest = lobby.enter(from("192.0.2.1:1000"));
        let mut flood: Vec<_> = (0..1000).map(|n| lobby.enter(from(&format!("198.51.100.7:{}", 1000 + n)))).collect();
        assert!(!is_lost(&mut honest));
        let lost = flood.iter_mut().map(is_lost).collect::<Vec<_>>();
        assert!(lost[..901].iter().all(|lost| *lost) && lost[901..].iter().all(|lost| !*lost), "the oldest go");
        assert_eq!(lobby.used(), 100);
        let mut late = lobby.enter(from("192.0.2.2:1000"));
        assert!(!is_lost(&mut late) && !is_lost(&mut honest));
    }

    #[test]
    fn where_every_source_holds_one_place_the_oldest_goes() {
        let lobby = Lobby::new(3);
        let mut places: Vec<_> = (0..5).map(|n| lobby.enter(from(&format!("192.0.2.{n}:1")))).collect();
        assert_eq!(places.iter_mut().map(is_lost).collect::<Vec<_>>(), [true, true, false, false, false]);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source_and_a_mapped_address_is_its_ipv4_address() {
        let lobby = Lobby::new(3);
        let mut honest = lobby.enter(from("[::ffff:192.0.2.1]:1"));
        let mut same = lobby.enter(from("[2001:db8::1]:1"));
        let _more: Vec<_> = (2..9).map(|n| lobby.enter(from(&format!("[2001:db8::{n}]:1")))).collect();
        assert!(is_lost(&mut same) && !is_lost(&mut honest));
        assert_eq!(Source::of("192.0.2.1".parse().unwrap()), honest.source);
    }

    #[test]
    fn a_place_that_is_given_back_or_was_lost_is_free_once() {
        let lobby = Lobby::new(2);
        let (a, b) = (lobby.enter(from("192.0.2.1:1")), lobby.enter(from("192.0.2.1:2")));
        let mut c = lobby.enter(from("192.0.2.2:1"));
        drop(a);
        assert_eq!(lobby.used(), 2, "`a` had lost its place to `c`");
        drop(b);
        assert_eq!(lobby.used(), 1);
        assert!(!is_lost(&mut c));
        drop(c);
        assert_eq!(lobby.used(), 0);
        assert!(lobby.room.lock().unwrap().by_source.is_empty() && lobby.room.lock().unwrap().most.is_empty());
    }

    #[tokio::test]
    async fn who_loses_a_place_hears_of_it_and_who_keeps_it_does_not() {
        let lobby = Lobby::new(1);
        let mut first = lobby.enter(from("192.0.2.1:1"));
        let mut second = lobby.enter(from("192.0.2.2:1"));
        first.lost().await;
        let kept = tokio::select! {
            biased;
            () = second.lost() => false,
            () = std::future::ready(()) => true,
        };
        assert!(kept);
    }
}
