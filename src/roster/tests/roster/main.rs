//! The roster, from outside: what is signed is what is read, and nothing else is.
//!
//! `world` makes a small network; `forge` encodes and signs by hand what the crate would never make;
//! `naive` is a second, slow verifier that shares no code with the crate; `follow` changes a large roster again and again.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "in a test, a panic is the failure")]

mod claims;
mod follow;
mod forge;
mod golden;
mod naive;
mod ratchet;
mod rules;
mod scale;
mod source;
mod token;
mod verify;
mod world;
