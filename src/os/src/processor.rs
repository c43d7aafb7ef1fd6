//! The processor of a packet thread that moves bulk: it is kept while the thread does not wait for it.
//!
//! A scheduler that places by who wakes whom puts a thread that is awakened by a packet beside the one that sent it.
//! Two packet threads, or one and the program that it serves, then take turns on one processor for as long as they
//! have much to do, while another processor is at rest in between: what is sent waits for the length of a turn (4 ms
//! where the kernel's clock ticks at 250 Hz), in which nobody reads it. So a thread says itself where it runs: it
//! stays, unless it waits for a third of the time; then it goes elsewhere, by the toss of a coin, for whoever waits for
//! it has the same thought. How long it waits is told by the kernel (`run_delay` of `/proc/thread-self/schedstat`,
//! Documentation/scheduler/sched-stats.rst of the kernel).
//!
//! What the thread may use is what it was given (`taskset`, `CPUAffinity=`, cpusets), also where that changes later.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// Where the calling thread runs.
#[derive(Debug)]
pub(crate) struct Processor {
    /// Absent where the kernel does not tell, or refuses.
    told: Option<File>,
    /// What the thread may use, as it was given.
    given: CpuSet,
    /// What it limited itself to.
    kept: Option<CpuSet>,
    /// The time spent waiting, and when that was looked up.
    waited: Option<(Duration, Instant)>,
    /// Makes two threads that wait for each other do different things.
    coin: u32,
}

impl Processor {
    pub(crate) fn new() -> Self {
        let given = sched_getaffinity(None).ok();
        let several = given.filter(|given| given.count() > 1);
        let told = several.and_then(|_| File::open("/proc/thread-self/schedstat").ok());
        Self { told, given: given.unwrap_or_default(), kept: None, waited: None, coin: 0 }
    }

    /// Whether there is a choice.
    pub(crate) fn one_of_several(&self) -> bool {
        self.given.count() > 1
    }

    /// The thread moved bulk since this was called last.
    pub(crate) fn judge(&mut self, now: Instant) {
        if self.waited.is_some_and(|(_, since)| now.saturating_duration_since(since) < WINDOW) {
            return;
        }
        let Some(waited) = self.waited_in_all() else { return };
        let Some((then, since)) = self.waited.replace((waited, now)) else { return };
        let crowded = waited.saturating_sub(then) >= now.saturating_duration_since(since) / CROWDED;
        self.coin = self.coin.wrapping_mul(1_664_525).wrapping_add(waited.subsec_nanos());
        let mut here = CpuSet::new();
        here.set(sched_getcpu());
        if !crowded {
            self.limit(Some(here));
        } else if self.coin.count_ones().is_multiple_of(2) {
            self.limit(Some(without(self.given, here)));
        }
    }

    /// The bulk is over: the kernel places the thread.
    pub(crate) fn release(&mut self) {
        self.waited = None;
        self.limit(None);
    }

    /// All the time that the thread was ready to run and did not.
    fn waited_in_all(&mut self) -> Option<Duration> {
        let mut text = [0; 64];
        let len = self.told.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = str::from_utf8(text.get(..len)?).ok()?;
        Some(Duration::from_nanos(text.split_ascii_whitespace().nth(1)?.parse().ok()?))
    }

    fn limit(&mut self, to: Option<CpuSet>) {
        if to == self.kept {
            return;
        }
        let is = sched_getaffinity(None).ok();
        if let Some(is) = is.filter(|is| Some(*is) != self.kept && *is != self.given) {
            // somebody else decided
            (self.given, self.kept) = (is, None);
            return;
        }
        if sched_setaffinity(None, &to.unwrap_or(self.given)).is_err() {
            self.told = None;
        }
        self.kept = to;
    }
}

fn without(mut set: CpuSet, other: CpuSet) -> CpuSet {
    (0..CpuSet::MAX_CPU).filter(|cpu| other.is_set(*cpu)).for_each(|cpu| set.unset(cpu));
    set
}

/// Who waits more than this part of the time does not stay.
const CROWDED: u32 = 3;
/// How often the thread may change its mind.
const WINDOW: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;
    use crate::clock;

    /// Calls it in a thread of its own, whose place is nobody else's.
    fn alone<T: Send>(call: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(call).join().unwrap())
    }

    fn is() -> CpuSet {
        sched_getaffinity(None).unwrap()
    }

    /// What the kernel would tell.
    fn tells(text: &str) -> File {
        let file = File::from(memfd_create("schedstat", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(text.as_bytes(), 0).unwrap();
        file
    }

    /// A thread that never waits.
    fn calm() -> Processor {
        Processor { told: Some(tells("1 0 1")), ..Processor::new() }
    }

    /// Bulk for so many windows.
    fn move_bulk(processor: &mut Processor, windows: u32) {
        let now = clock::now();
        (0..windows).for_each(|n| processor.judge(now + WINDOW * n));
    }

    #[test]
    fn a_thread_stays_where_it_does_not_wait_until_the_bulk_is_over() {
        alone(|| {
            let (given, mut processor) = (is(), calm());
            move_bulk(&mut processor, 1);
            assert_eq!(is(), given, "nothing is known yet");
            move_bulk(&mut processor, 2);
            assert_eq!(is().count(), 1);
            assert!(is().is_set(sched_getcpu()));
            processor.release();
            assert_eq!(is(), given);
        });
    }

    #[test]
    fn a_thread_that_waits_goes_elsewhere_soon() {
        alone(|| {
            let (given, mut processor) = (is(), calm());
            if !processor.one_of_several() {
                return;
            }
            move_bulk(&mut processor, 2);
            let (first, now) = (is(), clock::now());
            processor.told = Some(tells("1 1000000000123 1"));
            for n in 1..100 {
                processor.waited = Some((Duration::ZERO, now));
                processor.judge(now + WINDOW * n);
                if is() != first {
                    break;
                }
            }
            assert_eq!(is(), without(given, first));
            processor.release();
            assert_eq!(is(), given);
        });
    }

    #[test]
    fn what_the_thread_may_use_is_what_it_was_given_last() {
        alone(|| {
            let (given, mut processor) = (is(), calm());
            if !processor.one_of_several() {
                return;
            }
            move_bulk(&mut processor, 2);
            let kept = is();
            let other = without(given, kept);
            sched_setaffinity(None, &other).unwrap();
            processor.release();
            assert_eq!(is(), other);
            move_bulk(&mut processor, 2);
            processor.release();
            assert_eq!(is(), other);
        });
    }
}
