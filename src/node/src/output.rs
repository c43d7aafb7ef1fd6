//! What the machine wants done.

use std::{collections::VecDeque, sync::Arc};

use flatlan_datapath::{Command, Snapshot};
use flatlan_relay::Role;
use flatlan_types::{HostPort, HubKey, HubSlot, Name, Prefix, VirtualIp};

/// A stream as machine and driver name it. The machine gives the numbers; none is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// Names one [`Output::Persist`], for [`Node::handle_persisted`](crate::Node::handle_persisted).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PersistToken(pub u64);

/// What the driver is to do, in the order given.
#[derive(Debug)]
pub enum Output {
    /// Dial a stream. Answered by `handle_opened` or `handle_closed`.
    Dial {
        /// Its number.
        stream: StreamId,
        /// Where to; all addresses of a name are tried.
        target: HostPort,
        /// What for: `Control`, `Data`, or `Admin` (to read a roster).
        role: Role,
        /// The hub that should be there, where that is known.
        hub: Option<HubKey>,
    },
    /// Send one message on a stream.
    Send {
        /// Which.
        stream: StreamId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// Close a stream (or give up dialling it). Nothing is heard of it again.
    Close {
        /// Which.
        stream: StreamId,
    },
    /// A data stream is granted: its messages go between the workers and the stream from here on, not
    /// to this machine. Its end is still told by `handle_closed`.
    BindData {
        /// Which.
        stream: StreamId,
        /// To which hub it leads.
        hub: HubSlot,
    },
    /// For the workers. Snapshots and commands reach them in the order of the outputs.
    Worker(Command),
    /// For the workers: who is a member.
    Snapshot(Arc<Snapshot>),
    /// How the overlay's interface should be. Comes before the snapshot that goes with it.
    Interface(Interface),
    /// Resolve a name. Answered by `handle_resolved`; an empty answer is one too.
    Resolve {
        /// The name and port.
        place: HostPort,
    },
    /// Write a file of the state directory, durably. Answered by `handle_persisted` where there is a token.
    Persist {
        /// Its name, one of [`crate::persist`]'s.
        file: String,
        /// Its contents.
        bytes: Arc<Vec<u8>>,
        /// What waits for it.
        token: Option<PersistToken>,
    },
    /// Usable for the first time.
    Up {
        /// Hubs attached to.
        hubs: usize,
    },
    /// This node cannot go on.
    Fatal(Fatal),
}

/// How the overlay's interface should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The network's name.
    pub network: Name,
    /// The member's own name.
    pub name: Name,
    /// Its addresses.
    pub ips: Vec<VirtualIp>,
    /// The network's IPv4 range.
    pub range: Prefix,
    /// What leads into the interface: the range, the members' addresses outside it, their routes.
    pub routes: Vec<Prefix>,
    /// Prefixes of the LAN behind this node: never to be led into the interface.
    pub served: Vec<Prefix>,
    /// What others of this node's HA group carry, and it does not: it may be on the same LAN. Leads into the interface, too.
    pub beside: Vec<Prefix>,
    /// Those of `served` that moved here from another member's LAN.
    pub moved: Vec<Prefix>,
    /// Its MTU.
    pub mtu: u16,
}

/// Why a node cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// A newer roster does not list it.
    #[error("this node was removed from the network by its admin (roster serial {serial})")]
    Removed {
        /// Serial of that roster.
        serial: u64,
    },
}

/// Outputs that wait to be taken.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: VecDeque<Output>,
    tokens: u64,
}

impl Outbox {
    pub(crate) fn push(&mut self, output: Output) {
        self.queue.push_back(output);
    }

    pub(crate) fn worker(&mut self, command: Command) {
        self.push(Output::Worker(command));
    }

    pub(crate) fn send(&mut self, stream: StreamId, message: &flatlan_relay::Control) {
        self.push(Output::Send { stream, bytes: message.encode() });
    }

    /// Asks for a file to be written; the token comes back with the result.
    pub(crate) fn persist(&mut self, file: &str, bytes: impl Into<Arc<Vec<u8>>>) -> PersistToken {
        self.tokens += 1;
        let token = PersistToken(self.tokens);
        self.push(Output::Persist { file: file.to_owned(), bytes: bytes.into(), token: Some(token) });
        token
    }

    /// Asks for a file to be written that nothing waits for.
    pub(crate) fn note(&mut self, file: &str, bytes: impl Into<Arc<Vec<u8>>>) {
        self.push(Output::Persist { file: file.to_owned(), bytes: bytes.into(), token: None });
    }

    pub(crate) fn pop(&mut self) -> Option<Output> {
        self.queue.pop_front()
    }
}
