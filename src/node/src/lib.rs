//! The node's control machine: attachments, roster, presence, candidates.
//!
//! A [`Node`] decides everything about a node that is not about single packets: which hubs to be attached
//! to and when to dial again, which roster holds, who is a peer and by which hubs it can be reached, where
//! it might be reached directly, and which boot epoch this life has. The workers
//! ([`flatlan_datapath::Worker`]) do what is about packets; they are told by snapshots and commands, and
//! tell by events.
//!
//! ```text
//!          streams                                       workers
//!   hub <----------> +--------+  Snapshot, Command      +--------+
//!   hub <----------> |  Node  | ----------------------> | Worker |
//!   disk <---------- |        | <---------------------- |        |
//!                    +--------+          Event          +--------+
//! ```
//!
//! It is a pure machine: *mutate, drain, mutate*. After every input its owner takes
//! [`Node::poll_output`] until `None`, does what each says, in order, and waits no longer than
//! [`Node::poll_timeout`].
//!
//! The way of a node: what the disk held is verified and put to use at once, so that peers with a direct
//! path are reached with no hub at all; hubs are dialled; their heads are compared with ours, and a newer
//! roster is fetched, persisted, used. Peers are watched, labelled and told candidates only while somebody
//! wants them. Peers compare heads with each other, so that no hub can hide a roster alone.
//!
//! What it does not do: sockets, files, clocks, names of the DNS, and anything for each packet.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod backoff;
mod candidates;
mod config;
mod fetch;
mod hubs;
mod identity;
mod lan;
mod membership;
mod node;
mod output;
pub mod peer_message;
mod peers;
pub mod persist;
mod reach;
mod relays;
mod returns;
mod rng;
mod roster;
mod share;
mod status;
mod talk;

pub use candidates::MAX_CANDIDATES;
pub use config::{NodeConfig, Transport};
pub use lan::{LanLack, LanLoss};
pub use node::{Node, PersistResult};
pub use output::{Fatal, Interface, Output, PersistToken, StreamId};
pub use persist::Persisted;
pub use status::{
    Absence, Alarm, HubState, HubStatus, Listed, NetworkStatus, NodeStatus, PeerStatus, SelfStatus, Waiting,
};

/// The bytes of a golden file: hexadecimal digits.
#[cfg(test)]
fn golden(text: &str) -> Vec<u8> {
    let digits = text.trim().as_bytes();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
