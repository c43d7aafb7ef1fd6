//! What an idle node and an idle hub cost: memory, wake-ups, log lines. Figures of the optimised binary: `tests/long idle`.
//!
//! ```text
//!   hub h1 -- inet -- hub h2
//!            /    \
//!        a-nat    b-nat
//!          |        |
//!          a        b       both up, and nobody has anything to say
//! ```

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod support;
mod usage;

use std::time::{Duration, Instant};

use flatlan_lab::Nat;
use support::{PATIENCE, lab, ping};
use usage::Usage;

#[test]
fn an_idle_node_and_an_idle_hub_hold_little_sleep_and_say_nothing() {
    let lab = lab().hub("h1").hub("h2").site("a", Nat::Cone).site("b", Nat::Cone).build().unwrap();
    lab.bring_up().unwrap();
    // a pair that has talked and stopped is idle too
    drop(ping(&lab, "a", "b"));
    let names = ["h1", "h2", "a", "b"];
    for name in names {
        let process = lab.process(name).unwrap();
        // until it says nothing for as long as it is measured: what it says of the bring-up is no idle talk
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (before, lines) = (Usage::of(process.pid()), process.lines().len());
            let quiet = process.wait_line_after(lines, "", SPAN).is_err();
            let usage = Usage::of(process.pid());
            let wakes = usage.wakes - before.wakes;
            if quiet && wakes < MOST_WAKES * SPAN.as_secs() {
                assert!(usage.anonymous_kib < MOST_KIB, "{name}: {usage:?}");
                break;
            }
            assert!(Instant::now() < deadline, "{name} is not idle: {wakes} wake-ups, {usage:?}, {}", process.tail(5));
        }
    }
}

/// How long is looked at a time.
const SPAN: Duration = Duration::from_secs(3);
/// Wake-ups a second of all threads together: a loop that turns without need has thousands.
const MOST_WAKES: u64 = 100;
/// 20 MiB.
const MOST_KIB: u64 = 20 << 10;
