//! What the path machines tell their owner.

use std::fmt;

use flatlan_types::{HubSlot, LaneId};

use crate::kind::PathKind;

/// A change that the data path must act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathEvent {
    /// A lane's datagrams go another way from here on. Its session is untouched.
    Moved {
        /// Which lane.
        lane: LaneId,
        /// Where to; `None` when no path is left.
        path: Option<PathKind>,
        /// Where it was.
        was: Option<PathKind>,
        /// Why.
        reason: MoveReason,
    },
    /// Flows belong on another lane from here on: one that is already on the better path. Where its
    /// session is not yet established, stay on the other lane until it is.
    Primary {
        /// The lane that carries flows from here on.
        lane: LaneId,
        /// The lane that carried them; it stays open and on its path for two round trips at the least.
        was: LaneId,
        /// Why.
        reason: MoveReason,
    },
    /// Nothing that was sent by this hub has been known to arrive for seconds, by any of its legs: its label may lead
    /// elsewhere. Told again while that lasts and the hub's paths are probed.
    Silent {
        /// The first hub of the way.
        hub: HubSlot,
    },
    /// No traffic for so long that lanes and labels of this peer can be closed and this machine dropped.
    /// Told once; traffic after it starts everything again.
    Idle,
}

/// Why a lane moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MoveReason {
    /// A better path: direct where there was none, or clearly nearer for some time.
    Better,
    /// Probes on the path get no answer while another path answers.
    Dead,
    /// Its owner asked to leave the hub.
    Drain,
    /// Probes come through, data does not.
    Evidence,
    /// The owner of the path said that it is gone.
    Failed,
    /// The lane had no path before.
    First,
    /// It should not share a hub with another lane.
    Spread,
    /// Nothing goes by it any more.
    Unused,
}

impl fmt::Display for MoveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Better => "a better path",
            Self::Dead => "no answer",
            Self::Drain => "hub is draining",
            Self::Evidence => "data does not arrive",
            Self::Failed => "path is gone",
            Self::First => "first path",
            Self::Spread => "lanes on different hubs",
            Self::Unused => "lane is not needed",
        })
    }
}
