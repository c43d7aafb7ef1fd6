//! A hub, and hubs together, seen from outside: what nodes and admins say to them over a virtual underlay.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test's helpers may fail the test")]
#![expect(unreachable_pub, clippy::wildcard_enum_match_arm, reason = "helpers of one test program")]

mod across;
mod hostile;
mod reflection;
mod single;
mod world;
