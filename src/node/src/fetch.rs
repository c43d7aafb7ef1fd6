//! Getting a roster in pieces: from a hub over its stream, or from a peer in sealed datagrams.
//!
//! A peer is asked only when a hub has not brought the same within a moment: usually both learn of a new
//! head at the same time. One fetch of each kind runs at a time; a silent source is given up.
//!
//! What arrives is bytes that nobody vouches for yet; verifying them is `roster`'s.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use flatlan_relay::MAX_ROSTER;
use flatlan_types::{HubSlot, PeerSlot};

use crate::peer_message::{PART_LEN, Part, PartRequest, Summary, WINDOW};

/// A roster on its way from a hub.
pub(crate) struct HubFetch {
    pub(crate) hub: HubSlot,
    version: Option<u64>,
    bytes: Vec<u8>,
    pub(crate) deadline: Instant,
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

impl HubFetch {
    pub(crate) fn new(hub: HubSlot, now: Instant) -> Self {
        Self { hub, version: None, bytes: Vec::new(), deadline: now + HUB_PATIENCE }
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
            self.deadline = now + HUB_PATIENCE;
            return Progress::More(0);
        }
        let fits =
            total <= MAX_ROSTER && offset as usize == self.bytes.len() && self.bytes.len() + bytes.len() <= total;
        if !fits || (bytes.is_empty() && self.bytes.len() < total) {
            return Progress::Nothing;
        }
        self.version = Some(version);
        self.bytes.extend_from_slice(bytes);
        self.deadline = now + HUB_PATIENCE;
        if self.bytes.len() == total {
            Progress::Done(std::mem::take(&mut self.bytes))
        } else {
            Progress::More(self.bytes.len() as u32)
        }
    }
}

/// A roster on its way from a peer.
pub(crate) struct PeerFetch {
    pub(crate) peer: PeerSlot,
    pub(crate) summary: Summary,
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
    /// Begins a moment later: a hub may be faster.
    pub(crate) fn new(peer: PeerSlot, summary: Summary, now: Instant) -> Self {
        Self {
            peer,
            summary,
            bytes: Vec::new(),
            total: None,
            ahead: BTreeMap::new(),
            window: 0,
            tries: 0,
            next: now + COURTESY,
        }
    }

    /// The request that is due, or `None` where the peer was silent too often.
    pub(crate) fn ask(&mut self, now: Instant) -> Option<PartRequest> {
        self.tries += 1;
        if self.tries > MAX_TRIES {
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

/// A hub that is silent for this long is given up.
const HUB_PATIENCE: Duration = Duration::from_secs(3);
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

    fn run(len: usize, mut drop: impl FnMut(usize) -> bool, reverse: bool) -> Option<(Vec<u8>, usize)> {
        let roster: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
        let mut now = Instant::now();
        let mut fetch = PeerFetch::new(PeerSlot(0), summary(), now);
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
        let mut fetch = PeerFetch::new(PeerSlot(0), summary(), now);
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
        let mut fetch = HubFetch::new(HubSlot(0), now);
        assert!(matches!(fetch.handle_part(1, 10, 0, &[1; 6], now), Progress::More(6)));
        assert!(matches!(fetch.handle_part(2, 12, 6, &[2; 6], now), Progress::More(0)));
        assert!(matches!(fetch.handle_part(2, 12, 0, &[2; 6], now), Progress::More(6)));
        assert!(matches!(fetch.handle_part(2, 12, 0, &[2; 6], now), Progress::Nothing));
        let Progress::Done(bytes) = fetch.handle_part(2, 12, 6, &[2; 6], now) else { panic!("it is whole") };
        assert_eq!(bytes, [2; 12]);
        let mut fetch = HubFetch::new(HubSlot(0), now);
        assert!(matches!(fetch.handle_part(1, u32::MAX, 0, &[1], now), Progress::Nothing));
    }
}
