//! Candidates, probes, evidence and failover for the paths to one peer.

mod config;
mod event;
pub mod frame;
mod hub_leg;
mod kind;
mod peer;

pub use config::{HubLegConfig, PathConfig};
pub use event::{MoveReason, PathEvent};
pub use frame::{Probe, ProbeReply};
pub use hub_leg::{BindProbe, HubLeg, HubLegEvent, HubLegState};
pub use kind::{Leg, PathId, PathKind};
pub use peer::{MAX_CANDIDATES, PathState, PathStatus, PeerPaths, ProbeOut, Relay};
