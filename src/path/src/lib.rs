//! Candidates, probes, evidence and failover for the paths to one peer.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod budget;
mod config;
mod event;
mod evidence;
pub mod frame;
mod hub_leg;
mod kind;
mod path;
mod peer;
mod random;
mod rtt;
mod size;

pub use config::{HubLegConfig, PathConfig};
pub use event::{MoveReason, PathEvent};
pub use frame::{Probe, ProbeReply};
pub use hub_leg::{BindProbe, HubLeg, HubLegEvent, HubLegState};
pub use kind::{Leg, PathId, PathKind};
pub use peer::{MAX_CANDIDATES, PathState, PathStatus, PeerPaths, ProbeOut, Relay};
