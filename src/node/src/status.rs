//! What the machine knows, for `status`: the driver adds what the workers report.

use std::{
    fmt,
    time::{Duration, Instant},
};

use flatlan_path::Leg;
use flatlan_types::{
    BootEpoch, Endpoint, HubKey, HubSlot, MemberId, Name, NetworkId, PeerSlot, Prefix, UnixTime, VirtualIp,
};

use crate::{LanLack, LanLoss};

/// Everything at one moment.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// The network.
    pub network: NetworkStatus,
    /// This node.
    pub me: SelfStatus,
    /// The hubs of the roster (or those reached, before there is one).
    pub hubs: Vec<HubStatus>,
    /// Every other member, by name.
    pub peers: Vec<PeerStatus>,
    /// What a human should look at.
    pub alarms: Vec<Alarm>,
    /// Control messages of peers that were refused.
    pub refused_messages: u64,
    /// Why this node is of no use yet; `None`: it is.
    pub waiting: Option<Waiting>,
}

/// The network.
#[derive(Clone, Debug)]
pub struct NetworkStatus {
    /// Its id.
    pub id: NetworkId,
    /// Its name, once there is a roster.
    pub name: Option<Name>,
    /// Key epoch and serial of the roster in use.
    pub roster: Option<flatlan_roster::RosterVersion>,
    /// When that roster should have been renewed.
    pub expires: Option<UnixTime>,
    /// Claims beside it.
    pub claims: u32,
}

/// This node.
#[derive(Clone, Debug)]
pub struct SelfStatus {
    /// Its member id.
    pub id: MemberId,
    /// Its name in the roster.
    pub name: Option<Name>,
    /// Its addresses.
    pub ips: Vec<VirtualIp>,
    /// Prefixes of the LAN behind it.
    pub routes: Vec<Prefix>,
    /// Those of them that it cannot reach, and why.
    pub withdrawn: Vec<(Prefix, LanLoss)>,
    /// How often there was something new among them.
    pub withdrawals: u64,
    /// Its boot epoch.
    pub epoch: BootEpoch,
    /// Where it may be reached directly, as it tells peers.
    pub candidates: Vec<Endpoint>,
}

/// A hub.
#[derive(Clone, Debug)]
pub struct HubStatus {
    /// Its slot.
    pub slot: HubSlot,
    /// Its name in the roster.
    pub name: Option<Name>,
    /// Its key.
    pub key: HubKey,
    /// How things stand.
    pub state: HubState,
    /// By which leg data would go; `None`: by none.
    pub transport: Option<Leg>,
    /// Round trip, by UDP where that works.
    pub rtt: Option<Duration>,
    /// Where the hub sees this node.
    pub reflexive: Option<Endpoint>,
    /// Attached since.
    pub since: Option<Instant>,
}

/// How things stand with a hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubState {
    /// In use.
    Attached,
    /// Being dialled, again and again.
    Dialling,
    /// In use, and about to stop.
    Draining,
    /// Not needed: enough others are.
    Unused,
}

impl HubState {
    /// Its name in `status --json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Dialling => "dialling",
            Self::Draining => "draining",
            Self::Unused => "unused",
        }
    }
}

/// Another member.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Its slot; `None` where it has no keys yet, or is a stock peer behind another member.
    pub slot: Option<PeerSlot>,
    /// Its member id, where it has keys.
    pub id: Option<MemberId>,
    /// Its name.
    pub name: Name,
    /// Its addresses.
    pub ips: Vec<VirtualIp>,
    /// Prefixes of the LAN behind it.
    pub routes: Vec<Prefix>,
    /// What it says that it cannot reach: all of its own that lies in these.
    pub withdrawn: Vec<Prefix>,
    /// The member that terminates it, where it is a plain WireGuard peer.
    pub via: Option<Name>,
    /// By which of our hubs frames to it go, with all the hubs that they cross.
    pub relays: Vec<(HubSlot, Vec<HubKey>)>,
}

/// What a human should look at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    /// A claim does not count: an invite that leaked, or a hub that cheats.
    #[error("{0}")]
    Claim(Box<flatlan_roster::RefusedClaim>),
    /// Another machine uses this node's key.
    #[error("another machine uses this node's key: a clone? Give it a key of its own with `flatlan invite --replace`")]
    Clone,
    /// A file that was found is of no use.
    #[error(
        "file `{file}` of the state directory was of no use: it is kept as `{aside}`, and the rest counts from here on"
    )]
    Damaged {
        /// Which.
        file: String,
        /// Its name now.
        aside: String,
    },
    /// A file could not be written.
    #[error("the state directory cannot be written ({file}): what was learned is lost at the next start")]
    Disk {
        /// Which.
        file: String,
    },
    /// Prefixes whose owner is away are carried by the owner of the one around them.
    #[error("{prefixes} of {gateway} fell back to {to}: {why}")]
    Fallback {
        /// Which.
        prefixes: Listed<Prefix>,
        /// Whose they are.
        gateway: Name,
        /// Why not there.
        why: Absence,
        /// Who carries them.
        to: Listed<Name>,
    },
    /// Two heads that should not both exist.
    #[error("two different rosters with serial {serial} exist: the admin key may be stolen; both are kept as proof")]
    Fork {
        /// Of both.
        serial: u64,
    },
    /// This node lost a LAN that others carry too.
    #[error("this gateway lost its LAN: {loss}: {prefixes} withdrawn, the other owners carry it")]
    LanLost {
        /// How.
        loss: LanLoss,
        /// What is behind it.
        prefixes: Listed<Prefix>,
    },
    /// This node lost a LAN that nobody else carries.
    #[error("this gateway lost its LAN: {loss}: {prefixes} not reached, nobody else carries it")]
    LanLostAlone {
        /// How.
        loss: LanLoss,
        /// What is behind it.
        prefixes: Listed<Prefix>,
    },
    /// A gateway that shares prefixes with others does not answer.
    #[error("gateway {gateway} does not answer: its flows go to the others of its prefixes")]
    Silent {
        /// Which.
        gateway: Name,
    },
    /// The roster's age.
    #[error("{0}")]
    Roster(flatlan_roster::Freshness),
    /// A gateway that shares prefixes with others falls silent again and again.
    #[error(
        "gateway {gateway} comes and goes: its flows stay with the others of its prefixes until it answers for a while"
    )]
    Unsteady {
        /// Which.
        gateway: Name,
    },
    /// A gateway that shares prefixes with others withdrew them.
    #[error("gateway {gateway} withdrew its prefixes: {lack}: its flows go to the others of them")]
    Withdrawn {
        /// Which.
        gateway: Name,
        /// Why.
        lack: LanLack,
    },
}

/// Why a peer does not have its flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// It says that it lost its LAN.
    #[error("{0}")]
    Lan(LanLack),
    /// It does not answer.
    #[error("it does not answer")]
    Silent,
    /// It answers, but not for long enough yet.
    #[error("it comes and goes")]
    Unsteady,
}

/// Several of a kind, as a person lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed<T>(pub Vec<T>);

impl<T: fmt::Display> fmt::Display for Listed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, one) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{one}")?;
        }
        Ok(())
    }
}

/// Why a node is of no use yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    /// No hub answers.
    #[error("no hub answers")]
    NoHub,
    /// The newest roster known does not list this node.
    #[error("the roster (serial {serial}) does not list this node: was it removed, or is its claim not folded in yet?")]
    NotMember {
        /// Of that roster.
        serial: u64,
    },
    /// No roster yet.
    #[error("no roster yet")]
    NoRoster,
    /// A hub refuses.
    #[error("the hubs refuse this node: {0}")]
    Refused(&'static str),
}
