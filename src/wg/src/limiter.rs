//! How many plain handshakes one source may start.
//!
//! boringtun's limiter is one counter for the whole process: any flood would put every stock peer into
//! cookie mode. This one is per source (an IPv4 address, an IPv6 /64), a token bucket as in Linux'
//! `ratelimiter.c`, in a table of fixed size. A new source takes the place of the one longest unseen in its
//! set; so many sources at once as to push each other out are held by the cookies.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use blake2::{Blake2s256, Digest as _};

/// Token buckets by source.
pub(crate) struct SourceLimiter {
    seed: u64,
    sets: Vec<[Option<Bucket>; WAYS]>,
}

impl SourceLimiter {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, sets: Vec::new() }
    }

    /// Takes one token of the source's bucket; `false` where there is none.
    pub(crate) fn allow(&mut self, source: IpAddr, now: Instant) -> bool {
        if self.sets.is_empty() {
            // Made at the first handshake: a node without stock peers never has it.
            self.sets.resize(SETS, [None; WAYS]);
        }
        let source = network(source);
        let at = self.set_of(source);
        let Some(set) = self.sets.get_mut(at) else { return false };
        if let Some(bucket) = set.iter_mut().flatten().find(|b| b.source == source) {
            return bucket.take(now);
        }
        let oldest = set.iter_mut().min_by_key(|b| b.map(|b| b.at));
        let mut bucket = Bucket { source, at: now, credit: BURST };
        let allowed = bucket.take(now);
        if let Some(place) = oldest {
            *place = Some(bucket);
        }
        allowed
    }

    fn set_of(&self, source: u128) -> usize {
        let hash = Blake2s256::new()
            .chain_update(b"flatlan source v1")
            .chain_update(self.seed.to_le_bytes())
            .chain_update(source.to_le_bytes())
            .finalize();
        let [a, b, ..]: [u8; 32] = hash.into();
        usize::from(u16::from_le_bytes([a, b])) % SETS
    }
}

#[derive(Clone, Copy)]
struct Bucket {
    source: u128,
    at: Instant,
    credit: Duration,
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let gained = now.saturating_duration_since(self.at);
        self.credit = self.credit.saturating_add(gained).min(BURST);
        self.at = self.at.max(now);
        let Some(rest) = self.credit.checked_sub(COST) else { return false };
        self.credit = rest;
        true
    }
}

/// An address as the network that one party is given: a single IPv4 address, an IPv6 /64.
fn network(source: IpAddr) -> u128 {
    match source.to_canonical() {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits() >> 64 << 64,
    }
}

const SETS: usize = 256;
const WAYS: usize = 4;
/// One handshake message costs this much of a second.
const COST: Duration = Duration::from_millis(50);
/// Five at once.
const BURST: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    fn count(limiter: &mut SourceLimiter, source: &str, from: Instant, tries: u32, each: Duration) -> usize {
        let source = source.parse().unwrap();
        (0..tries).filter(|n| limiter.allow(source, from + each * *n)).count()
    }

    #[test]
    fn a_source_has_a_burst_of_five_and_then_twenty_a_second() {
        let mut limiter = SourceLimiter::new(1);
        let start = Instant::now();
        assert_eq!(count(&mut limiter, "192.0.2.1", start, 100, Duration::ZERO), 5);
        assert_eq!(count(&mut limiter, "192.0.2.1", start, 1000, Duration::from_millis(1)), 19);
        assert_eq!(count(&mut limiter, "192.0.2.2", start, 100, Duration::ZERO), 5, "another source is free");
    }

    #[test]
    fn an_ipv6_source_is_its_64_and_a_mapped_address_is_the_ipv4_one() {
        let mut limiter = SourceLimiter::new(1);
        let start = Instant::now();
        assert_eq!(count(&mut limiter, "2001:db8:1:2::1", start, 9, Duration::ZERO), 5);
        assert_eq!(count(&mut limiter, "2001:db8:1:2:ffff::9", start, 9, Duration::ZERO), 0);
        assert_eq!(count(&mut limiter, "2001:db8:1:3::1", start, 9, Duration::ZERO), 5);
        assert_eq!(count(&mut limiter, "192.0.2.7", start, 9, Duration::ZERO), 5);
        assert_eq!(count(&mut limiter, "::ffff:192.0.2.7", start, 9, Duration::ZERO), 0);
    }

    #[test]
    fn a_flood_from_all_addresses_takes_no_more_memory() {
        let mut limiter = SourceLimiter::new(1);
        let start = Instant::now();
        for n in 0..100_000_u32 {
            limiter.allow(IpAddr::from(n.to_be_bytes()), start + Duration::from_micros(n.into()));
        }
        assert_eq!(limiter.sets.len(), SETS);
        assert_eq!(limiter.sets.capacity(), SETS);
    }
}
