//! Getting a roster in pieces: from a hub over its stream, or from a peer in sealed datagrams.
//!
//! Each source has a fetch of its own, and none takes another's place: whoever promises much and brings
//! nothing, or a byte now and then, delays nobody else. A source that is slower than [`SLOWEST`] is given up;
//! so is one that is silent: a hub for as long as the largest part takes at that speed, a peer after
//! [`MAX_TRIES`] requests.
//!
//! Of hubs that tell of the same, one is asked, and the next when that one is silent for a [`TURN`] or slow
//! ([`Told::turn`]): over a slow link, each at once would keep the others from coming through. A hub that
//! tells of anything else waits for nobody. What a hub told of is asked for again, after ever longer pauses,
//! until it is there.
//!
//! A peer is asked only when a hub has not brought the same within a moment, and the more peers bring the
//! same, the later one more is asked: usually all learn of a new head at the same time. Where
//! [`MAX_PEER_FETCHES`] run, no other begins; a peer whose last fetch brought nothing gets one only of the
//! first half.
//!
//! What arrives is bytes that nobody vouches for yet; verifying them is `roster`'s.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::peer_message::{PART_LEN, Part, PartRequest, Summary, WINDOW};
use flatlan_relay::{ClaimsSummary, MAX_PART, MAX_ROSTER};

/// What a hub told of, while it is not ours.
pub(crate) struct Told {
    pub(crate) head: Vec<u8>,
    pub(crate) claims: ClaimsSummary,
    /// Before this, the hub is not asked.
    from: Instant,
    failures: u32,
}

/// A roster on its way from a hub.
pub(crate) struct HubFetch {
    /// The head that was told, and the hash of its claims; `None`: of whatever the hub has.
    of: Option<(Vec<u8>, [u8; 32])>,
    version: Option<u64>,
    bytes: Vec<u8>,
    begun: Instant,
    heard: Instant,
}

/// What a part led to.
pub(crate) enum Progress {
    /// All is there.
    Done(Vec<u8>),
    /// Ask for what begins here.
    More(u32),
    /// Of no use.
    Nothing,
}

impl Told {
    pub(crate) fn new(head: Vec<u8>, claims: ClaimsSummary, now: Instant) -> Self {
        Self { head, claims, from: now, failures: 0 }
    }

    /// Whether this is what a hub says.
    pub(crate) fn is(&self, head: &[u8], claims: &ClaimsSummary) -> bool {
        self.head == head && self.claims.hash == claims.hash
    }

    /// When to ask, while these bring what others told of.
    pub(crate) fn turn<'a>(&self, fetches: impl Iterator<Item = &'a HubFetch>) -> Instant {
        let same: Vec<Instant> = fetches.filter(|fetch| fetch.is_of(self)).map(|fetch| fetch.heard).collect();
        let Some(heard) = same.iter().max() else { return self.from };
        let others = same.len() as u32;
        // whoever drips would otherwise be waited for as long as it likes
        (*heard + TURN * others).min(self.from + GRACE * others).max(self.from)
    }

    /// The hub did not bring it.
    pub(crate) fn wait(&mut self, now: Instant) {
        self.from = now + AGAIN.saturating_mul(1 << self.failures.min(8)).min(AGAIN_MOST);
        self.failures = self.failures.saturating_add(1);
    }
}

impl HubFetch {
    pub(crate) fn new(now: Instant) -> Self {
        Self { of: None, version: None, bytes: Vec::new(), begun: now, heard: now }
    }

    /// Of what the hub told.
    pub(crate) fn told(told: &Told, now: Instant) -> Self {
        Self { of: Some((told.head.clone(), told.claims.hash)), ..Self::new(now) }
    }

    /// Whether this brings what was told.
    pub(crate) fn is_of(&self, told: &Told) -> bool {
        self.of.as_ref().is_some_and(|(head, claims)| *head == told.head && *claims == told.claims.hash)
    }

    /// When the hub is given up. What has come of a part shows only when all of it is there.
    pub(crate) fn deadline(&self) -> Instant {
        (self.heard + HUB_PATIENCE).min(too_slow(self.begun, self.bytes.len() + MAX_PART))
    }

    pub(crate) fn handle_part(
        &mut self,
        version: u64,
        total: u32,
        offset: u32,
        bytes: &[u8],
        now: Instant,
    ) -> Progress {
        let total = total as usize;
        if self.version.is_some_and(|of| of != version) {
            // replaced meanwhile
            self.version = None;
            self.bytes.clear();
            self.heard = now;
            return Progress::More(0);
        }
        let fits =
            total <= MAX_ROSTER && offset as usize == self.bytes.len() && self.bytes.len() + bytes.len() <= total;
        if !fits || (bytes.is_empty() && self.bytes.len() < total) {
            return Progress::Nothing;
        }
        self.version = Some(version);
        // once, and no more than will be kept; memory that nothing is written to costs nothing
        self.bytes.reserve_exact(total - self.bytes.len());
        self.bytes.extend_from_slice(bytes);
        self.heard = now;
        if self.bytes.len() == total {
            Progress::Done(std::mem::take(&mut self.bytes))
        } else {
            Progress::More(self.bytes.len() as u32)
        }
    }
}

/// A roster on its way from a peer.
pub(crate) struct PeerFetch {
    pub(crate) summary: Summary,
    begun: Instant,
    bytes: Vec<u8>,
    total: Option<usize>,
    /// Pieces that came before those in front of them.
    ahead: BTreeMap<u32, Vec<u8>>,
    window: u32,
    tries: u32,
    /// When to ask (again).
    pub(crate) next: Instant,
}

impl PeerFetch {
    /// Begins a moment later: a hub may be faster, or one of the `others` that bring the same.
    pub(crate) fn new(summary: Summary, others: usize, now: Instant) -> Self {
        let begun = now + COURTESY + TURN.saturating_mul(others.min(MAX_TURNS) as u32);
        Self {
            summary,
            begun,
            bytes: Vec::new(),
            total: None,
            ahead: BTreeMap::new(),
            window: 0,
            tries: 0,
            next: begun,
        }
    }

    /// The request that is due, or `None` where the peer was silent too often or is too slow.
    pub(crate) fn ask(&mut self, now: Instant) -> Option<PartRequest> {
        self.tries += 1;
        if self.tries > MAX_TRIES || too_slow(self.begun, self.bytes.len()) <= now {
            return None;
        }
        self.next = now + PEER_PATIENCE;
        self.window = self.bytes.len() as u32;
        Some(PartRequest {
            head: self.summary.head,
            claims_hash: self.summary.claims_hash,
            offset: self.bytes.len() as u32,
        })
    }

    pub(crate) fn handle_part(&mut self, part: Part, now: Instant) -> Progress {
        let wanted = part.head == self.summary.head && part.claims_hash == self.summary.claims_hash;
        let total = part.total as usize;
        let bytes: Vec<u8> = part.bytes.into();
        let end = (part.offset as usize).saturating_add(bytes.len());
        let consistent = total <= MAX_ROSTER && self.total.is_none_or(|of| of == total) && end <= total;
        let in_window = part.offset >= self.window && part.offset < self.window + (WINDOW * PART_LEN) as u32;
        if !wanted || !consistent || !in_window || bytes.is_empty() || bytes.len() > PART_LEN {
            return Progress::Nothing;
        }
        self.total = Some(total);
        self.bytes.reserve_exact(total - self.bytes.len());
        if part.offset as usize >= self.bytes.len() {
            self.ahead.insert(part.offset, bytes);
        }
        while let Some(next) = self.ahead.remove(&(self.bytes.len() as u32)) {
            self.bytes.extend_from_slice(&next);
            self.tries = 0;
        }
        if self.bytes.len() == total {
            return Progress::Done(std::mem::take(&mut self.bytes));
        }
        if self.bytes.len() >= self.window as usize + WINDOW * PART_LEN {
            self.ahead.clear();
            self.next = now;
            return Progress::More(self.bytes.len() as u32);
        }
        Progress::Nothing
    }
}

/// The pieces of `bytes` that a request brings.
pub(crate) fn pieces<'a>(bytes: &'a [u8], request: &'a PartRequest) -> impl Iterator<Item = Part> + 'a {
    let rest = bytes.get(request.offset as usize..).unwrap_or_default();
    rest.chunks(PART_LEN).take(WINDOW).enumerate().map(|(n, piece)| Part {
        head: request.head,
        claims_hash: request.claims_hash,
        total: bytes.len() as u32,
        offset: request.offset + (n * PART_LEN) as u32,
        bytes: piece.to_vec().into(),
    })
}

/// When a source that began then and brought so much is too slow.
fn too_slow(begun: Instant, bytes: usize) -> Instant {
    begun + GRACE + Duration::from_secs((bytes / SLOWEST) as u64)
}

/// Peers that are asked at the same time.
pub(crate) const MAX_PEER_FETCHES: usize = 8;
/// Bytes in a second that a source brings at the least, after [`GRACE`].
const SLOWEST: usize = 4096;
const GRACE: Duration = Duration::from_secs(5);
/// Who could bring what others bring is asked so much later, for each of them; peers, for up to so many.
const TURN: Duration = Duration::from_secs(1);
const MAX_TURNS: usize = 3;
/// A hub that is silent for this long is given up: the slowest brings a part in that time.
const HUB_PATIENCE: Duration = Duration::from_secs(MAX_PART.div_ceil(SLOWEST) as u64);
/// A hub that was given up is asked again after this, then after twice as long, up to [`AGAIN_MOST`].
const AGAIN: Duration = Duration::from_secs(2);
const AGAIN_MOST: Duration = Duration::from_secs(300);
/// How long a hub has to bring what a peer announced.
pub(crate) const COURTESY: Duration = Duration::from_millis(400);
/// A peer is asked again after this.
const PEER_PATIENCE: Duration = Duration::from_millis(400);
/// And given up after so many requests without one piece.
const MAX_TRIES: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        Summary { key_epoch: 0, serial: 2, head: [1; 32], claims: 0, claims_hash: [2; 32] }
    }

    fn told() -> Told {
        Told::new(vec![1], ClaimsSummary { count: 0, hash: [2; 32] }, Instant::now())
    }

    fn run(len: usize, mut drop: impl FnMut(usize) -> bool, reverse: bool) -> Option<(Vec<u8>, usize)> {
        let roster: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        let mut now = Instant::now();
        let mut fetch = PeerFetch::new(summary(), 0, now);
        let (mut requests, mut sent) = (0, 0);
        loop {
            now = now.max(fetch.next);
            let request = fetch.ask(now)?;
            requests += 1;
            let mut parts: Vec<Part> = pieces(&roster, &request).collect();
            if reverse {
                parts.reverse();
            }
            for part in parts {
                sent += 1;
                if drop(sent) {
                    continue;
                }
                if let Progress::Done(bytes) = fetch.handle_part(part, now) {
                    assert_eq!(bytes, roster);
                    return Some((bytes, requests));
                }
            }
        }
    }

    #[test]
    fn a_roster_arrives_whole_from_a_peer_in_any_order_and_with_losses() {
        assert_eq!(run(100, |_| false, false).unwrap().1, 1);
        assert_eq!(run(PART_LEN * WINDOW * 3, |_| false, true).unwrap().1, 3);
        let mut rng = crate::rng::Rng::new(1);
        assert!(run(PART_LEN * WINDOW * 3 + 1, |_| rng.below(5) == 0, false).is_some());
        assert!(run(1000, |_| true, false).is_none());
    }

    #[test]
    fn pieces_that_were_not_asked_for_are_left() {
        let now = Instant::now();
        let mut fetch = PeerFetch::new(summary(), 0, now);
        let request = fetch.ask(now).unwrap();
        let piece = || pieces(&[7; 5000], &request).next().unwrap();
        for wrong in [
            Part { head: [9; 32], ..piece() },
            Part { claims_hash: [9; 32], ..piece() },
            Part { total: u32::MAX, ..piece() },
            Part { total: 3, ..piece() },
            Part { offset: u32::MAX, ..piece() },
            Part { bytes: Vec::new().into(), ..piece() },
            Part { bytes: vec![0; PART_LEN + 1].into(), ..piece() },
        ] {
            assert!(matches!(fetch.handle_part(wrong, now), Progress::Nothing));
        }
        assert!(fetch.ahead.is_empty() && fetch.bytes.is_empty());
    }

    #[test]
    fn a_hubs_roster_that_changes_on_the_way_is_asked_for_from_the_start() {
        let now = Instant::now();
        let mut fetch = HubFetch::new(now);
        assert!(matches!(fetch.handle_part(1, 10, 0, &[1; 6], now), Progress::More(6)));
        assert!(matches!(fetch.handle_part(2, 12, 6, &[2; 6], now), Progress::More(0)));
        assert!(matches!(fetch.handle_part(2, 12, 0, &[2; 6], now), Progress::More(6)));
        assert!(matches!(fetch.handle_part(2, 12, 0, &[2; 6], now), Progress::Nothing));
        let Progress::Done(bytes) = fetch.handle_part(2, 12, 6, &[2; 6], now) else { panic!("it is whole") };
        assert_eq!(bytes, [2; 12]);
        let mut fetch = HubFetch::new(now);
        assert!(matches!(fetch.handle_part(1, u32::MAX, 0, &[1], now), Progress::Nothing));
    }

    #[test]
    fn a_roster_on_its_way_takes_the_memory_that_it_will_need_and_no_more() {
        let now = Instant::now();
        let mut fetch = HubFetch::new(now);
        let (part, parts) = (vec![7; MAX_PART], 5);
        let total = parts * MAX_PART + 1;
        for n in 0..parts {
            let progress = fetch.handle_part(1, total as u32, (n * MAX_PART) as u32, &part, now);
            assert!(matches!(progress, Progress::More(_)));
        }
        let last = fetch.handle_part(1, total as u32, (parts * MAX_PART) as u32, &[7], now);
        let Progress::Done(bytes) = last else { panic!("it is whole") };
        assert_eq!((bytes.len(), bytes.capacity()), (total, total));
    }

    #[test]
    fn a_hub_that_drips_is_given_up_and_one_that_is_merely_slow_is_not() {
        let start = Instant::now();
        let mut fetch = HubFetch::new(start);
        let (mut now, mut offset) = (start, 0);
        while now < fetch.deadline() {
            fetch.handle_part(1, 1 << 20, offset, &[0], now);
            offset += 1;
            now += HUB_PATIENCE - Duration::from_millis(1);
        }
        assert!(now - start <= GRACE + HUB_PATIENCE * 2, "{:?}", now - start);
        let (mut fetch, mut now, mut offset) = (HubFetch::new(start), start, 0);
        while offset < 1 << 20 {
            now += Duration::from_secs(1);
            assert!(now < fetch.deadline());
            fetch.handle_part(1, 1 << 20, offset, &[0; 2 * SLOWEST], now);
            offset += 2 * SLOWEST as u32;
        }
    }

    #[test]
    fn a_link_that_brings_a_full_part_only_slowly_gets_every_part() {
        let start = Instant::now();
        let part = Duration::from_secs_f64(MAX_PART as f64 / SLOWEST as f64);
        let (mut fetch, mut now) = (HubFetch::new(start), start);
        for n in 0..20 {
            now += part;
            assert!(now < fetch.deadline(), "part {n}");
            fetch.handle_part(1, 1 << 21, n * MAX_PART as u32, &[0; MAX_PART], now);
        }
    }

    #[test]
    fn a_hub_waits_for_others_that_bring_the_same_but_not_for_long() {
        let told = told();
        let start = told.from;
        let other = HubFetch::told(&Told::new(vec![9], told.claims, start), start);
        assert_eq!(told.turn([&other].into_iter()), start, "another head");
        let mut same = HubFetch::told(&told, start);
        assert_eq!(told.turn([&same, &other].into_iter()), start + TURN);
        same.handle_part(1, 1 << 20, 0, &[0], start + TURN / 2);
        assert_eq!(told.turn([&same].into_iter()), start + TURN / 2 + TURN);
        same.handle_part(1, 1 << 20, 1, &[0], start + GRACE);
        assert_eq!(told.turn([&same].into_iter()), start + GRACE);
    }

    #[test]
    fn a_peer_that_drips_is_given_up() {
        let start = Instant::now();
        let mut fetch = PeerFetch::new(summary(), 0, start);
        let mut now = start;
        for n in 0.. {
            now = now.max(fetch.next);
            let Some(request) = fetch.ask(now) else { break };
            assert_eq!(request.offset, n);
            let (head, claims_hash) = (request.head, request.claims_hash);
            let part = Part { head, claims_hash, total: 1 << 20, offset: n, bytes: vec![0].into() };
            fetch.handle_part(part, now);
        }
        assert!(now - start < GRACE + Duration::from_secs(2), "{:?}", now - start);
    }
}
