//! What a worker is told, and what it tells.

use std::time::Duration;

use flatlan_path::{MoveReason, PathKind};
use flatlan_types::{BootEpoch, Endpoint, HubSlot, Label, LaneId, PeerSlot};

/// What the node's control machine tells a worker. Each replaces what was said before of the same thing.
#[derive(Debug, Clone)]
pub enum Command {
    /// How a hub can be reached at this moment.
    SetHub {
        /// Which hub.
        hub: HubSlot,
        /// Its UDP port and the key under which to bind there; `None` where it has none.
        udp: Option<HubUdp>,
        /// Whether a data stream to it is open.
        stream: bool,
    },
    /// How our UDP port is bound at a hub, as the worker found that binds there: for the others.
    SetHubLeg {
        /// Which hub.
        hub: HubSlot,
        /// Round trip; `None`: nothing comes back.
        rtt: Option<Duration>,
    },
    /// Another worker's pairs use a hub, or its control stream is silent: the one that binds there looks closely.
    TouchHub {
        /// Which hub.
        hub: HubSlot,
    },
    /// The hub is about to stop: flows leave it while it still carries them. Until `RemoveHub`.
    DrainHub {
        /// Which hub.
        hub: HubSlot,
    },
    /// The hub's control stream is gone, and with it everything that the hub knew of us.
    RemoveHub {
        /// Which hub.
        hub: HubSlot,
    },
    /// The label which a hub wants to see on frames to a peer; `None`: it takes none (any more).
    SetLabel {
        /// To whom.
        peer: PeerSlot,
        /// By which hub.
        hub: HubSlot,
        /// The hub's label.
        label: Option<Label>,
    },
    /// The hubs that frames to a peer cross after one to which it has given a label: what fails together.
    SetWay {
        /// To whom.
        peer: PeerSlot,
        /// By which hub.
        hub: HubSlot,
        /// The hubs after it.
        over: Vec<HubSlot>,
    },
    /// A label of our own, given to a hub for frames which it says come from this peer.
    AddInLabel {
        /// The label.
        label: Label,
        /// Which hub may use it.
        hub: HubSlot,
        /// Who sends.
        peer: PeerSlot,
    },
    /// Takes a label of our own back.
    RemoveInLabel {
        /// The label.
        label: Label,
    },
    /// Where a peer may be reached directly.
    SetDirect {
        /// Whom.
        peer: PeerSlot,
        /// At most eight candidates.
        endpoints: Vec<Endpoint>,
    },
    /// A control message for the peer's node, sealed under k_pair and sent on the best way there is.
    SendMessage {
        /// To whom.
        peer: PeerSlot,
        /// At most [`crate::MAX_MESSAGE`] bytes.
        bytes: Vec<u8>,
        /// On which path; `None`: the one in use, or else every one that might work.
        path: Option<PathKind>,
    },
    /// Brings a session up although no packet waits for it.
    Connect {
        /// With whom.
        peer: PeerSlot,
    },
    /// Packets may turn to this peer at any moment, for it shares a prefix with another one: for
    /// [`crate::KEPT_WARM`] its paths and its session are kept ready, and it is found out if it dies.
    KeepWarm {
        /// Whom.
        peer: PeerSlot,
    },
    /// A peer was known under this epoch before this node started, and can be shown its own statement of it:
    /// what an earlier life of it said is not listened to.
    SetPeerEpoch {
        /// Whose.
        peer: PeerSlot,
        /// The greatest epoch that it spoke under.
        epoch: BootEpoch,
    },
    /// This node's own epoch rose: every session is keyed by it and starts anew.
    SetEpoch {
        /// The new epoch.
        epoch: BootEpoch,
    },
    /// The underlay changed (address, route, link): every path and binding is probed at once.
    NetworkChanged,
}

/// A hub's UDP port and the key of our binding there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubUdp {
    /// The hub's UDP port.
    pub endpoint: Endpoint,
    /// The key that came over the control stream.
    pub bind: flatlan_relay::BindKey,
}

/// What a worker tells the node's control machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Packets wait and there is no way to the peer, or only a bad one.
    NeedPath {
        /// To whom.
        peer: PeerSlot,
    },
    /// Nothing that was sent to the peer by this hub has been answered for seconds: its label may lead elsewhere. Told again
    /// while that lasts.
    HubSilent {
        /// To whom.
        peer: PeerSlot,
        /// The first hub of the way.
        hub: HubSlot,
    },
    /// Nothing was said to or by the peer for minutes; its sessions are dropped and its labels may go.
    Idle {
        /// Whom.
        peer: PeerSlot,
    },
    /// A lane has a session.
    SessionUp {
        /// With whom.
        peer: PeerSlot,
        /// Which lane.
        lane: LaneId,
    },
    /// A lane uses another path.
    PathChanged {
        /// To whom.
        peer: PeerSlot,
        /// Which lane.
        lane: LaneId,
        /// The path in use; `None`: there is none.
        path: Option<PathKind>,
        /// The one before.
        was: Option<PathKind>,
        /// Why.
        reason: MoveReason,
    },
    /// Flows go by another lane.
    LaneChanged {
        /// To whom.
        peer: PeerSlot,
        /// The lane that carries them from here on.
        lane: LaneId,
        /// Its path.
        path: Option<PathKind>,
        /// The path before.
        was: Option<PathKind>,
        /// Why.
        reason: MoveReason,
    },
    /// Our UDP socket is bound at a hub.
    LegUp {
        /// Which hub.
        hub: HubSlot,
        /// Where the hub sees us.
        reflexive: Endpoint,
        /// Round trip to the hub.
        rtt: Duration,
    },
    /// Pairs of a worker that does not bind itself use a hub. Nothing for the control machine: see
    /// [`Event::echo`].
    HubUsed {
        /// Which hub.
        hub: HubSlot,
    },
    /// Nothing comes back from a hub's UDP port.
    LegDown {
        /// Which hub.
        hub: HubSlot,
    },
    /// Nothing arrives at the peer, by no path, or no session with it comes up.
    PeerSilent {
        /// Who.
        peer: PeerSlot,
    },
    /// It answers again, and has a session.
    PeerAnswers {
        /// Who.
        peer: PeerSlot,
    },
    /// Packets go to an address that this peer owns together with others, or come from one of its own by another peer that
    /// owns the prefix around it: told again as long as they do.
    SharedUsed {
        /// Who.
        peer: PeerSlot,
    },
    /// A control message from a peer's node, authentic under k_pair.
    PeerMessage {
        /// From whom.
        peer: PeerSlot,
        /// How it came.
        ingress: PathKind,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A peer speaks under a boot epoch that is greater than any before.
    PeerEpoch {
        /// Who.
        peer: PeerSlot,
        /// Its epoch.
        epoch: BootEpoch,
    },
    /// A peer speaks under an epoch below the greatest: its state was set back, and it wants to be told.
    StaleEpoch {
        /// Who.
        peer: PeerSlot,
    },
    /// A direct candidate answered: worth remembering across restarts.
    DirectUp {
        /// Who.
        peer: PeerSlot,
        /// Where.
        endpoint: Endpoint,
    },
}
