//! Workers talk to each other over wires and hubs in memory.
//!
//! `net` is the internet, `packet` makes what applications send. Most tests run the stand-in engine in
//! virtual time; those of `session` that take no time run boringtun too.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "in a test, a panic is the failure")]

mod bytes;
mod failover;
mod gateways;
mod judge;
mod net;
mod packet;
mod session;
mod share;
mod size;
mod spread;
mod stock;
