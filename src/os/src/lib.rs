//! TUN, UDP, TLS streams, routes and files: the only crate that touches the kernel unsafely.
//!
//! The cores are pure; here is what they are driven with. Each module wraps one thing of the machine
//! behind a small safe interface and knows the traps of that thing, so that no shell has to:
//!
//! * [`tun`]: the overlay's network device, with offloads where the kernel has them.
//! * [`udp`]: datagrams, many to a system call.
//! * [`poll`]: what a worker thread waits on.
//! * [`stream`]: WebSocket over TLS over TCP, to and at a hub.
//! * [`route`]: addresses, routes and their changes, by netlink.
//! * [`neighbour`]: who looks for an address on a LAN, and the answer.
//! * [`netns`]: doing a thing inside another network namespace.
//! * [`mod@file`]: the state directory.
//! * [`mod@panic`]: a bug in one task or thread ends that one, and is told.
//! * [`priority`]: a packet thread that moves bulk runs ahead of other programs.
//! * [`resolve`], [`clock`], [`entropy`], [`harden`]: names, time, chance, and what a process gives up.
//! * [`secret`]: the text of a secret's file.
//! * [`watchdog`]: telling the service manager that the loops turn.
//!
//! Every error is a sentence for an operator, `what failed: why: what to do`, and knows its [`ExitClass`].
//! No protocol of ours is here, and no decision.
#![expect(clippy::wildcard_enum_match_arm, reason = "other crates' enums: what is not named is not meant")]

mod checksum;
mod exit;
mod offload;
mod processor;
mod workers;

pub mod clock;
pub mod echo;
pub mod entropy;
pub mod file;
pub mod harden;
pub mod neighbour;
pub mod netns;
pub mod panic;
pub mod poll;
pub mod priority;
pub mod resolve;
pub mod route;
pub mod secret;
pub mod stream;
pub mod tun;
pub mod udp;
pub mod watchdog;

#[cfg(test)]
mod testing;

pub use exit::{ExitClass, Why, located};
pub use offload::Offload;
pub use workers::{WorkersChoice, WorkersError};
