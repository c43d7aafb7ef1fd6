//! A hub is stopped (SIGTERM): it tells who is attached, flows go to a lane on another hub while the old one still
//! carries, and no packet is lost: datagrams are counted one by one, in both directions.
//!
//! ```text
//!   in common          over TLS only            between hubs
//!
//!    h1    h2           h1    h2            h1 --- h2 --- h4
//!    | \  / |           the same,            |  \        /  |      h1 and h4 do not reach each other;
//!    |  \/  |           no UDP               |    \ h3 /    |      a reaches h1 only, b reaches h4 only
//!    a      b                                a              b
//! ```

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::print_stdout, reason = "helpers of tests")]

mod datagrams;
mod drained;
mod flows;
mod support;

use drained::{Case, Talk};
use support::PATIENCE;

/// Stops a hub under traffic, and insists that nothing was lost.
fn lose_nothing(case: Case) {
    let lab = case.lab();
    let talk = Talk::start(&lab);
    let hub = case.wait_carrier(&lab, &talk);
    let ended = lab.process(&hub).unwrap().stop(PATIENCE).unwrap();
    assert!(ended.success(), "hub {hub} ended with {ended}");
    talk.go_on();
    let felt = talk.stop(&lab);
    println!("{case:?}: {hub} stopped: {felt:?}");
    assert_eq!((felt.lost, felt.doubled, felt.pings_lost, felt.broken), (0, 0, 0, None), "{case:?}");
}

#[test]
fn a_hub_in_common_is_stopped_and_nothing_is_lost() {
    lose_nothing(Case::Common);
}

#[test]
fn a_hub_that_is_reached_by_streams_only_is_stopped_and_nothing_is_lost() {
    lose_nothing(Case::Streams);
}

#[test]
fn a_hub_between_hubs_is_stopped_and_nothing_is_lost() {
    lose_nothing(Case::Between);
}
