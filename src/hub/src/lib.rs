//! The hub's machine: attachments, labels, forwarding, presence, link state.

mod forward;

pub use forward::{
    AttachmentId, AttachmentKind, Carried, Ecn, ForwardCommand, ForwardConfig, ForwardDrop, ForwardDrops, ForwardEvent,
    ForwardSink, ForwardStats, Forwarder, IDLE, Loopback, Quota, StreamId, UdpBatch,
};
