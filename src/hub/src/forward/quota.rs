//! Token buckets: how much an attachment, or a whole network, may send.
//!
//! Several workers charge the same bucket. A limit is a clock that runs ahead of time: each frame moves it by what the
//! frame costs at the rate, and one that would move it more than a burst ahead is refused (the virtual scheduling of
//! ITU-T I.371). One number, changed by compare-and-swap; where there is no limit nothing is touched.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use flatlan_types::NetworkId;

/// A rate, with one tenth of a second of it as burst. Zero means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Bytes per second.
    pub bytes: u64,
    /// Packets per second.
    pub packets: u64,
}

/// The quotas in use, so that all workers charge the same ones. Locked where an attachment comes or goes and where
/// a network comes, never for a packet.
#[derive(Debug, Default)]
pub struct Quotas {
    attachments: Mutex<BTreeMap<u32, Weak<Shared>>>,
    networks: Mutex<BTreeMap<NetworkId, Weak<Shared>>>,
}

impl Quotas {
    /// The bucket of an attachment.
    pub(crate) fn attachment(&self, id: u32, quota: Quota, now: Instant) -> Arc<Shared> {
        shared(&self.attachments, id, quota, now)
    }

    /// An attachment is gone: its bucket too, once no worker has it.
    pub(crate) fn forget_attachment(&self, id: u32) {
        let mut attachments = self.attachments.lock().unwrap_or_else(PoisonError::into_inner);
        if attachments.get(&id).is_some_and(|bucket| bucket.strong_count() == 0) {
            attachments.remove(&id);
        }
    }

    /// The bucket of a network.
    pub(crate) fn network(&self, network: NetworkId, quota: Quota, now: Instant) -> Arc<Shared> {
        shared(&self.networks, network, quota, now)
    }
}

/// The bucket that another worker has for the same quota, else a new one.
fn shared<K: Ord>(of: &Mutex<BTreeMap<K, Weak<Shared>>>, key: K, quota: Quota, now: Instant) -> Arc<Shared> {
    let mut of = of.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = of.get(&key).and_then(Weak::upgrade).filter(|known| known.quota == quota) {
        return known;
    }
    let bucket = Arc::new(Shared::new(quota, now));
    of.insert(key, Arc::downgrade(&bucket));
    bucket
}

/// The state of one quota.
#[derive(Debug)]
pub(crate) struct Shared {
    quota: Quota,
    start: Instant,
    /// Up to when bytes are paid for, in nanoseconds from `start`.
    bytes: AtomicU64,
    packets: AtomicU64,
}

impl Shared {
    pub(crate) fn new(quota: Quota, now: Instant) -> Self {
        Self { quota, start: now, bytes: AtomicU64::new(0), packets: AtomicU64::new(0) }
    }

    /// Takes all of it or nothing.
    #[inline]
    pub(crate) fn take(&self, packets: u64, bytes: u64, now: Instant) -> bool {
        if self.quota == Quota::default() {
            return true;
        }
        let at = u64::try_from(now.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX);
        let Some(paid) = pay(&self.bytes, self.quota.bytes, bytes, LARGEST, at) else { return false };
        if pay(&self.packets, self.quota.packets, packets, 64, at).is_none() {
            self.bytes.fetch_sub(paid, Ordering::Relaxed);
            return false;
        }
        true
    }
}

/// Moves a clock by what `amount` costs at a rate; by how much. `None`: it would be more than a burst ahead.
fn pay(clock: &AtomicU64, rate: u64, amount: u64, least: u64, now: u64) -> Option<u64> {
    if rate == 0 {
        return Some(0);
    }
    let time = |amount: u64| u64::try_from(u128::from(amount) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX);
    let (cost, ahead) = (time(amount), now.saturating_add(time(burst(rate, least))));
    let mut paid = 0;
    let moved = clock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |until| {
        let next = until.max(now).saturating_add(cost);
        paid = next - until;
        (next <= ahead).then_some(next)
    });
    moved.ok().map(|_| paid)
}

/// A tenth of a second, but at least one batch.
fn burst(rate: u64, least: u64) -> u64 {
    (rate / 10).max(least)
}

/// The largest batch.
const LARGEST: u64 = 65_536;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_is_kept_over_time_and_a_burst_is_bounded() {
        let start = Instant::now();
        let bucket = Shared::new(Quota { bytes: 1_000_000, packets: 0 }, start);
        let mut passed = 0;
        for ms in 0..2_000 {
            while bucket.take(1, 1000, start + Duration::from_millis(ms)) {
                passed += 1000;
            }
        }
        assert!((2_000_000..2_120_000).contains(&passed), "{passed}");
    }

    #[test]
    fn without_a_quota_everything_passes() {
        let bucket = Shared::new(Quota::default(), Instant::now());
        assert!(bucket.take(u64::MAX, u64::MAX, Instant::now()));
    }

    #[test]
    fn what_is_refused_for_its_packets_costs_no_bytes() {
        let start = Instant::now();
        let bucket = Shared::new(Quota { bytes: 1_000_000, packets: 1000 }, start);
        let passed = (0..200).filter(|_| bucket.take(1, 500, start)).count();
        assert_eq!(passed, 100);
        assert!(bucket.bytes.load(Ordering::Relaxed) <= 50_000_000);
    }

    #[test]
    fn a_bucket_is_forgotten_with_its_attachment_once_no_worker_has_it() {
        let (quotas, now) = (Quotas::default(), Instant::now());
        let quota = Quota { bytes: 0, packets: 10_000 };
        let [first, second] = [(); 2].map(|()| quotas.attachment(7, quota, now));
        let _other = quotas.attachment(8, quota, now);
        drop(first);
        quotas.forget_attachment(7);
        assert!(Arc::ptr_eq(&second, &quotas.attachment(7, quota, now)), "the second worker still charges it");
        drop(second);
        quotas.forget_attachment(7);
        assert_eq!(quotas.attachments.lock().unwrap().keys().collect::<Vec<_>>(), [&8]);
    }

    #[test]
    fn several_workers_together_pass_what_one_would() {
        let start = Instant::now();
        let quotas = Quotas::default();
        let quota = Quota { bytes: 0, packets: 10_000 };
        let worker = |now| (0..4000).filter(|_| quotas.attachment(7, quota, now).take(1, 100, now)).count();
        // both hold it, or the last would take it along
        let _held = quotas.attachment(7, quota, start);
        let passed: usize = std::thread::scope(|scope| {
            let threads = [scope.spawn(|| worker(start)), scope.spawn(|| worker(start))];
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(passed, 1000);
        let other = quotas.attachment(8, quota, start);
        assert!(other.take(1, 100, start), "another attachment has its own");
    }
}
