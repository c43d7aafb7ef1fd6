//! The wire between node and hub, and between hub and hub.
//!
//! It is one crate because both ends must agree on every byte, and because a hub may depend on nothing
//! that decrypts: what is in here is all that node and hub have in common.
//!
//! How a node comes to relay through a hub:
//!
//! 1. The node dials a stream (WebSocket over TLS 1.3). The hub speaks first: [`Control::HubHello`], its
//!    roster key's signature over the TLS exporter ([`auth`]). The certificate itself is not trusted.
//! 2. The node answers [`Control::Attach`]: which network, which role, and a proof bound to this channel,
//!    with its signed [`presence`]. The hub answers [`Control::Attached`] or [`Control::Refused`].
//! 3. On a control stream every message is one [`Control`]. [`Control::Attached`] carries a bind key, with
//!    which the node proves its UDP address ([`bind`]).
//! 4. [`Control::PathOpen`] travels to the far node; each hop answers with the [`Label`] that it wants
//!    to see. Where frames with a label cross other hubs later, [`Control::PathMoved`] says so.
//! 5. Data goes as labelled frames ([`frame`]), one per datagram, or packed into the messages of a data
//!    stream. A hub rewrites eight bytes and never opens what follows them.
//!
//! Where a process has several workers on one port, the first bytes of a datagram say whose it is ([`steer`]).
//!
//! Nothing here opens a socket, keeps state or decides anything. Every decoder is fail-closed, works in
//! memory bounded by its input, and takes `&[u8]`.
//!
//! [`Label`]: flatlan_types::Label

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod auth;
pub mod bind;
mod control;
pub mod frame;
mod lsa;
pub mod presence;
pub mod steer;

pub use control::{
    Attach, Attached, BindKey, BindSecret, CRITICAL_BELOW, ClaimsSummary, Control, DecodeError, Echo, Leg, LsaEntry,
    LsaVersion, PathOpen, PathReason, PresenceSummary, Proof, RefusedCode, Role,
};
pub use lsa::{Lsa, LsaError, LsaLink, NetworkTag, SignedLsa};
pub use minicbor::bytes::ByteVec;
pub use presence::{Presence, PresenceError, PresenceOrder};

/// The version of this protocol. A hub speaks this one and the one before.
pub const VERSION: u16 = 1;

/// The largest message of a stream, control or data.
pub const MAX_MESSAGE: usize = 65_535;

/// The largest piece of a roster in one message.
pub const MAX_PART: usize = 60_000;

/// The largest published roster, encoded.
pub const MAX_ROSTER: usize = 16 << 20;

/// Hops that a frame or a path request starts with: how many hubs it may cross.
pub const MAX_HOPS: u8 = 8;
