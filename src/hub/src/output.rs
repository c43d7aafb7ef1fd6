//! What a hub wants done.

use std::sync::Arc;

use flatlan_relay::{Control, RefusedCode, Role};
use flatlan_roster::RosterVersion;
use flatlan_types::{Endpoint, HostPort, HubKey, MemberId, Name, NetworkId};

use crate::forward::{AttachmentId, ForwardCommand, StreamId};

/// What the shell is to do, in this order: a [`Output::Forward`] has taken effect before a later
/// [`Output::Send`] goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Close a stream, after what was sent on it.
    Close {
        /// Which.
        stream: StreamId,
    },
    /// From now on the messages of this stream are packed frames, for
    /// [`Forwarder::handle_stream`](crate::Forwarder::handle_stream).
    Data {
        /// Which stream.
        stream: StreamId,
        /// Whose frames.
        attachment: AttachmentId,
    },
    /// Open a stream to a hub; answer with [`Hub::handle_stream_opened`](crate::Hub::handle_stream_opened)
    /// or [`Hub::handle_dial_failed`](crate::Hub::handle_dial_failed).
    Dial {
        /// Names the attempt.
        dial: DialId,
        /// Where.
        at: HostPort,
        /// What for: `HubControl` or `HubData`.
        role: Role,
    },
    /// Something an operator may want to know.
    Event(HubEvent),
    /// Change what is forwarded.
    Forward(ForwardCommand),
    /// Send a message.
    Send {
        /// On which stream.
        stream: StreamId,
        /// What.
        message: Control,
    },
    /// What was stored of a network does not hold: keep it under another name. The network begins anew,
    /// and the next [`Output::Store`] of it must not take the old state's place.
    SetAside {
        /// Which.
        network: NetworkId,
        /// What is wrong with it.
        reason: String,
    },
    /// Write a network's state to disk, atomically and durably, then call
    /// [`Hub::handle_stored`](crate::Hub::handle_stored). At most one per network is under way.
    Store {
        /// Names the write.
        token: StoreToken,
        /// Which network's: its file's name.
        network: NetworkId,
        /// The published roster with its claims.
        bundle: Arc<Vec<u8>>,
        /// The greatest head seen.
        ratchet: Vec<u8>,
    },
}

/// One attempt to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DialId(pub u64);

/// One write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoreToken(pub u64);

/// Something an operator may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubEvent {
    /// A machine redeemed an invite, durably.
    ClaimRedeemed {
        /// In which network.
        network: NetworkId,
        /// Whose invite.
        member: Option<Name>,
    },
    /// Two heads that are not in one chain: the first is kept. A human must look.
    Forked {
        /// Of which network.
        network: NetworkId,
    },
    /// A neighbouring hub is not reachable any more.
    NeighbourDown {
        /// Which.
        hub: HubKey,
    },
    /// A neighbouring hub that carries data says nothing: what leads over it is moved, where there is another way.
    NeighbourLate {
        /// Which.
        hub: HubKey,
    },
    /// A neighbouring hub is reachable.
    NeighbourUp {
        /// Which.
        hub: HubKey,
    },
    /// A node attached.
    NodeAttached {
        /// In which network.
        network: NetworkId,
        /// Who.
        member: MemberId,
        /// From where.
        endpoint: Endpoint,
    },
    /// A node is attached no more.
    NodeDetached {
        /// In which network.
        network: NetworkId,
        /// Who.
        member: MemberId,
        /// Why.
        reason: DetachReason,
    },
    /// A stream was refused.
    Refused {
        /// From where.
        endpoint: Endpoint,
        /// Why.
        code: RefusedCode,
    },
    /// A newer roster is in force.
    RosterAdopted {
        /// Of which network.
        network: NetworkId,
        /// Its place in the order.
        version: RosterVersion,
    },
    /// A network's state could not be written: it is in force, but would not survive a restart.
    StoreFailed {
        /// Which network's.
        network: NetworkId,
    },
    /// What was stored of a network is of a later version: it stays as it is, and the network is not served.
    Withheld {
        /// Which network.
        network: NetworkId,
        /// What is not understood.
        reason: String,
    },
}

/// Why a node is attached no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DetachReason {
    /// Its stream ended.
    Closed,
    /// Refused with this code.
    Refused(RefusedCode),
}
