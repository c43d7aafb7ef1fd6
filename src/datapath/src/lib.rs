//! The packet engine: sessions, lanes and paths of one worker, without IO.
//!
//! A [`Worker`] is what stands between a TUN and the underlay. It owns the sessions, labels, probes and
//! path state of its lanes and alone decides failover; nothing about a packet is ever looked up in
//! another thread. Its owner is a loop that waits for the TUN, the sockets, commands or the timeout,
//! reads the clock once, hands the batch in, and drains: *mutate, drain, mutate*.
//!
//! What the TUN gives waits in a [`FlowQueue`], from which the loop takes it flow by flow. Where the socket's reader is
//! late, a [`Backlog`] says which run is to be marked.
//!
//! ```text
//! OUTBOUND  app -> kernel -> TUN              INBOUND  UDP | TLS
//!   flow_queue: whose turn is it                inbound
//!   outbound
//!     1 parse (fail closed)                       1 classify: WireGuard | sealed | label
//!     2 owner of the destination                  2 open, each behind the last
//!     3 own source?                               3 source owned by this key?
//!     4 which lane, which path                    4 path evidence
//!     5 seal every segment into one batch         5 one coalesced super-packet
//! ```
//!
//! Downward come immutable [`Snapshot`]s by generation and [`Command`]s; upward go bounded [`Event`]s.
//! What it does not do: sockets, clocks, threads, roster verification, talking to hubs about anything
//! but the binding of its own UDP socket.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod backlog;
mod batch;
mod command;
mod drops;
mod flow_queue;
mod handshake;
mod hub_leg;
mod inbound;
mod outbound;
mod peer;
mod probe;
mod share;
mod sink;
mod snapshot;
mod transit;
mod worker;

pub use backlog::Backlog;
pub use command::{Command, Event, HubUdp};
pub use drops::{DropReason, Drops};
pub use flow_queue::{FlowQueue, Frame};
pub use outbound::is_never_carried;
pub use probe::MAX_MESSAGE;
pub use share::Audience;
pub use sink::{Handed, Sink, Transmit};
pub use snapshot::{Away, Chosen, NewSessions, Owner, PeerInfo, PeerKeys, Snapshot};
pub use worker::{KEPT_WARM, LaneReport, LegReport, PeerReport, Worker, WorkerConfig, WorkerStats};
