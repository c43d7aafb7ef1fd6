//! Keys, ids, names, prefixes and endpoints: one type per meaning.
//!
//! Every other crate speaks in these words, so that an overlay address can never be used as a place to
//! send a datagram, and a key of one kind can never stand for another. Parsing happens here once;
//! nothing downstream checks again. This crate holds no protocol logic and does no IO.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod endpoint;
mod key;
mod name;
mod pair;
mod prefix;
mod slot;
mod text;
mod time;
mod worker;

pub use endpoint::{Endpoint, HostPort, ParseHostPortError};
pub use key::{
    AdminKey, AdminSecret, HubKey, HubSecret, InviteKey, InviteSecret, MemberId, NetworkId, NodeKeys, NodeSecret,
    NodeSeed, RecoveryKey, SessionKey, Signature, SignatureError,
};
pub use name::{Name, ParseNameError};
pub use pair::{PairKey, SenderHint};
pub use prefix::{ParsePrefixError, Prefix, VirtualIp};
pub use slot::{HubSlot, Label, LaneId, LaneKey, PeerSlot};
pub use text::KeyTextError;
pub use time::{BootEpoch, UnixTime};
pub use worker::{Share, WorkerId, Workers};
