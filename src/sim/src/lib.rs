//! The same machines under a virtual clock and a seeded virtual internet.
//!
//! Nodes ([`flatlan_node::Node`] and [`flatlan_datapath::Worker`] over the engine without cryptography) and hubs
//! ([`flatlan_hub::Hub`] and [`flatlan_hub::Forwarder`]) are what runs in life. What is between them is made up: links
//! ([`flatlan_link`]), NATs, streams, disks, clocks, and a TUN into which packets are put and out of which they come.
//! It finds what no test thinks of, and a seed finds it again.
//!
//! ```text
//!    flows -> [ TUN | Worker | Node | disk ] -- NAT -- links -- [ Hub | Forwarder | disk ]
//!                                                 \
//!                                                  links -- NAT -- [ another node ]
//! ```
//!
//! A run of one seed ([`chaos::run`]) has two phases. In the first everything breaks, and what must never happen is
//! looked for at every step: a packet from an address that its sender does not own, or of another network, or twice; a
//! roster that goes back; a frame that crosses a hub again; a hub that sends to an address that never answered, as the
//! datagrams themselves have it; a machine that asks for timeouts without end. In the second all is mended, and who should reach whom, as
//! [`model`] has it, does within a bound.
//!
//! The crate is pure: it never reads a clock, and chance comes of the seed. What it does not do: real cryptography, real
//! TLS, or the kernel: that is for the lab.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]
#![allow(
    clippy::indexing_slicing,
    reason = "who is on the internet is numbered by this crate, and nobody ever leaves it"
)]

mod admin;
pub mod chaos;
mod conn;
mod datagram;
mod fault;
mod hub_site;
mod ledger;
mod lie;
mod look;
pub mod model;
mod nat;
mod node_site;
mod party;
mod reflection;
pub mod scale;
mod sim;
mod stream;
mod trace;
mod underlay;
mod visit;

pub use fault::{Change, Fault};
pub use flatlan_link::{Bursts, Quality};
pub use ledger::{Flow, FlowId};
pub use lie::Lie;
pub use nat::Nat;
pub use node_site::{Disk, Move};
pub use party::Party;
pub use sim::{Counters, Sim, Violation};
pub use trace::Trace;
