//! WireGuard sessions: the trait, its two engines, lanes and the sealed handshake.
//!
//! This is the only crate that sees boringtun, and it exists to keep boringtun's rules out of everybody
//! else's code: buffers that must be large enough or it panics, a queue that reorders, timers that give
//! up for ever, an idle wake-up that starts a needless handshake. What is left is [`Sessions`]: seal,
//! open, handshake, timers, with time as an argument.
//!
//! In order, for one lane of one peer:
//!
//! 1. [`Sessions::open_lane`] makes the state. Nothing is sent.
//! 2. [`Sessions::initiate`] writes a handshake initiation; the caller seals it ([`sealed`]) and sends it.
//! 3. What comes back goes to [`Sessions::handle_handshake`]; `established` says that the lane carries data.
//! 4. [`Sessions::seal`] and [`Sessions::open`] move packets. The responder learns from the first packet
//!    that it opens that its session is confirmed, again by `established`.
//! 5. [`Sessions::handle_timeout`] rekeys, retries and keeps alive.
//! 6. [`Sessions::rest_peer`] drops the keys of a peer with which nothing was said for long. The lanes stay,
//!    about 12 KB each, for they alone know which initiations are old.
//! 7. A boot epoch rose at either end: `open_lane` again, and from 2.
//!
//! Two engines stand behind the trait: `Engine<Boringtun>` for the real thing, and `Engine<Plain>`, the
//! same message order, timers and window without cryptography and without a clock, for the simulator. A
//! contract test runs both.
//!
//! It does not know addresses or paths, it holds no packets (a lane without a session answers
//! [`SealError::NoSession`], and the caller keeps a short queue), and it decides nothing about who may
//! talk to whom. It does not catch panics: lengths and counters are checked before boringtun sees them,
//! and whoever runs the worker decides what a broken invariant costs. boringtun logs normal events at
//! WARN and ERROR; the process's log filter silences its targets.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod boring;
mod engine;
mod index;
mod limiter;
mod message;
mod plain;
pub mod sealed;
mod sessions;
mod tunnel;
mod wheel;

pub use boring::Boringtun;
pub use engine::Engine;
pub use message::{HANDSHAKE_MAX, MessageKind, lacks_cookie};
pub use plain::Plain;
pub use sessions::{Admission, Handshake, OpenError, Opened, PeerSession, SealError, Sessions, Stock, sealed_len};
pub use tunnel::{Admit, Step, Tunnel, TunnelConfig, TunnelError};
