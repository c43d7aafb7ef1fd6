//! One flat, encrypted virtual LAN over every site: the library that runs a node.
//!
//! [`RunningNode`] is what the `flatlan` binary runs: it joins the control machine ([`flatlan_node`]), the
//! packet engine ([`flatlan_datapath`]) and the kernel ([`flatlan_os`]). A packet's way is in
//! [`flatlan_datapath`]; what two members know of each other and who signed it is in [`flatlan_roster`].
//!
//! 1. [`join`] makes the state directory: a seed, and whom to trust.
//! 2. [`RunningNode::start`] brings the node up; [`Notice`]s say when it is usable, or why not.
//! 3. [`status`] is what a running node says of itself, over the socket in its state directory.
//!
//! It does not parse command lines, and it does not decide anything: decisions are in the crates below.

pub mod config;
mod control;
mod driver;
mod gateway;
pub mod hub_client;
pub mod join;
mod packet_loop;
mod refused;
pub mod state;
pub mod status;
mod streams;
mod underlay;
mod workers;

pub use config::{NodeConfig, NodeFile, TransportChoice};
pub use driver::{NodeError, NodeHandle, Notice, RunningNode};
pub use flatlan_datapath::is_never_carried;
