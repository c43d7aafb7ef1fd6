//! Whether the machine itself stood still. A shared machine has all of its cores taken away at times, for tens of
//! milliseconds (a quota that is used up, CFS bandwidth control, stops them until its period ends), and whatever is
//! measured then tells of that machine and of nothing else.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

/// Watches every core: on each a thread wakes every millisecond, and notes when it woke late. These threads come before
/// every ordinary one (SCHED_FIFO): where they are late together, no ordinary thread could have run. Interrupts come before
/// them too, as rarely for as long as a millisecond. Stops when it is dropped.
#[derive(Debug)]
pub struct StallWatch {
    stop: Arc<AtomicBool>,
    cores: Vec<Core>,
}

#[derive(Debug)]
struct Core {
    seen: Arc<Mutex<Vec<Span>>>,
    thread: Option<JoinHandle<()>>,
}

/// From when it should have woken to when it did.
type Span = (Instant, Instant);

impl StallWatch {
    /// Starts watching; `None` where this user may not put threads before others.
    #[must_use]
    pub fn start() -> Option<Self> {
        let cores = sched_getaffinity(None).ok()?;
        let mut watch = Self { stop: Arc::default(), cores: Vec::new() };
        for core in (0..CpuSet::MAX_CPU).filter(|core| cores.is_set(*core)) {
            let (stop, seen) = (Arc::clone(&watch.stop), Arc::new(Mutex::new(Vec::new())));
            let noted = Arc::clone(&seen);
            let (ready, is_ready) = std::sync::mpsc::channel();
            let thread = std::thread::Builder::new().name("lab stall".to_owned()).spawn(move || {
                let first = come_first(core, "50");
                if ready.send(first).is_ok() && first {
                    wake_often(&stop, &noted);
                }
            });
            watch.cores.push(Core { seen, thread: Some(thread.ok()?) });
            if is_ready.recv() != Ok(true) {
                return None;
            }
        }
        Some(watch)
    }

    /// The part of this span in which no core ran; of each time that it happened up to two milliseconds are not seen.
    #[must_use]
    pub fn away(&self, from: Instant, to: Instant) -> Duration {
        in_all(self.cores.iter().map(Core::seen), (from, to))
    }

    /// The part of this span in which one core did not run, of that which was away for longest.
    #[must_use]
    pub fn away_of_one(&self, from: Instant, to: Instant) -> Duration {
        let of = |core: &Core| in_all(std::iter::once(core.seen()), (from, to));
        self.cores.iter().map(of).max().unwrap_or_default()
    }
}

impl Core {
    fn seen(&self) -> Vec<Span> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for StallWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.cores.iter_mut().filter_map(|core| core.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// How much of `whole` is in a span of every list.
fn in_all(lists: impl Iterator<Item = Vec<Span>>, whole: Span) -> Duration {
    let both = |a: &Span, b: &Span| Some((a.0.max(b.0), a.1.min(b.1))).filter(|(from, to)| from < to);
    let left = lists.fold(vec![whole], |left, list| {
        left.iter().flat_map(|span| list.iter().filter_map(|other| both(span, other))).collect()
    });
    left.iter().map(|(from, to)| *to - *from).sum()
}

/// Puts this thread on one core, before all others there.
fn come_first(core: usize, priority: &str) -> bool {
    let mut only = CpuSet::new();
    only.set(core);
    let mut command = Command::new("chrt");
    command.args(["--fifo", "--pid", priority, &gettid().as_raw_nonzero().to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    sched_setaffinity(None, &only).is_ok() && command.status().is_ok_and(|status| status.success())
}

fn wake_often(stop: &AtomicBool, seen: &Mutex<Vec<Span>>) {
    while !stop.load(Ordering::Relaxed) {
        let due = Instant::now() + EACH;
        std::thread::sleep(EACH);
        let woke = Instant::now();
        if woke.saturating_duration_since(due) >= LEAST {
            seen.lock().unwrap_or_else(PoisonError::into_inner).push((due, woke));
        }
    }
}

/// How often a core is looked at.
const EACH: Duration = Duration::from_millis(1);
/// What is shorter is not noted.
const LEAST: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn only_the_time_in_which_every_core_was_away_counts() {
        let start = Instant::now();
        let at = |ms: u32| start + MS * ms;
        let whole = (at(10), at(100));
        let one = vec![(at(0), at(12)), (at(20), at(30)), (at(50), at(60)), (at(98), at(130))];
        let other = vec![(at(0), at(15)), (at(22), at(25)), (at(27), at(40)), (at(61), at(70)), (at(99), at(101))];
        let away = |lists: &[&Vec<Span>]| in_all(lists.iter().map(|list| (*list).clone()), whole);
        assert_eq!(away(&[&one]), 24 * MS);
        assert_eq!(away(&[&one, &other]), (2 + 3 + 3 + 1) * MS);
        assert_eq!(away(&[&one, &other, &Vec::new()]), Duration::ZERO);
    }

    #[test]
    fn cores_that_nothing_else_gets_are_seen_to_be_away() {
        let given = sched_getaffinity(None).unwrap();
        let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| given.is_set(*core)).collect();
        let taken = 12 * MS;
        let watch = StallWatch::start();
        let begun = Instant::now();
        let all = Arc::new(std::sync::Barrier::new(cores.len()));
        let take = |core: usize| {
            let all = Arc::clone(&all);
            std::thread::spawn(move || {
                let first = come_first(core, "60");
                all.wait();
                let end = Instant::now() + taken;
                while first && Instant::now() < end {}
                first
            })
        };
        for thread in cores.into_iter().map(take).collect::<Vec<_>>() {
            assert_eq!(thread.join().unwrap(), watch.is_some(), "all may, or none");
        }
        let Some(watch) = watch else { return };
        let deadline = Instant::now() + Duration::from_secs(5);
        while watch.away(begun, deadline) < taken / 3 {
            assert!(Instant::now() < deadline, "{:?}", watch.away(begun, deadline));
            std::thread::yield_now();
        }
        assert!(watch.away_of_one(begun, deadline) >= watch.away(begun, deadline));
    }
}
