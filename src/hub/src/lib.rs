//! The hub's machine: attachments, labels, forwarding, presence, link state.
//!
//! A hub relays ciphertext between nodes that cannot reach each other. It knows who may attach (the
//! roster), who is attached where (presence), and which way leads there (link state); it holds no key
//! that opens anything. Two machines, both without IO, clock or chance of their own:
//!
//! * [`Hub`], the control machine: streams open, prove themselves and speak; rosters and claims are
//!   kept and handed on; path requests become labels. It answers with [`Output`]s.
//! * [`Forwarder`], the data plane: labelled frames in, labelled frames out. It obeys the
//!   [`ForwardCommand`]s among those outputs and reports [`ForwardEvent`]s.
//!
//! What happens, in order: the shell accepts a stream and tells [`Hub::handle_stream_opened`]; the hub
//! greets, the node attaches, binds its UDP address at the forwarder, and asks for paths; each path
//! becomes one label in the forwarder; frames flow, and control never touches them again. What must be
//! durable goes out as [`Output::Store`] before the answer that depends on it.
//!
//! A hub has no state that cannot be rebuilt from what admins and nodes signed. It does not decide where
//! a node sends its packets: nodes do.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod config;
mod forward;
mod hub;
mod linkstate;
mod output;
mod slots;

pub use config::{Allow, HubConfig, Limits, PeerHub, StoredNetwork};
pub use forward::{
    AttachmentId, AttachmentKind, Carried, ForwardCommand, ForwardConfig, ForwardDrop, ForwardDrops, ForwardEvent,
    ForwardSink, ForwardStats, Forwarder, IDLE, Loopback, Quota, Quotas, StreamId, TrafficClass, UdpBatch,
};
pub use hub::{Hub, HubStats, NeighbourStatus, NetworkStatus, Opened, StoreOutcome, StreamOrigin};
pub use output::{DetachReason, DialId, HubEvent, Output, StoreToken};
