//! Streams: ordered, reliable, and late where the link loses.
//!
//! What TCP does is told here by its effects: a message that is lost comes a timeout later, and all behind it wait; one
//! that cannot come waits and is tried again, until the connection counts as dead. A process that dies closes its
//! streams; a machine that dies does not, and the other end finds out.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use flatlan_relay::Role;

use crate::{datagram::Trail, party::Party};

/// Names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnId(pub(crate) u64);

/// Which end of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// Who dialled.
    Dialler,
    /// Who was dialled.
    Dialled,
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Dialler => Self::Dialled,
            Self::Dialled => Self::Dialler,
        }
    }
}

/// One connection.
pub(crate) struct Conn {
    pub(crate) role: Role,
    pub(crate) dialler: End,
    pub(crate) dialled: End,
    pub(crate) begun: Instant,
}

/// One end, with what it sends.
pub(crate) struct End {
    pub(crate) party: Party,
    /// Which life of that party.
    pub(crate) life: u32,
    /// The party's own number for it.
    pub(crate) stream: u64,
    pub(crate) state: EndState,
    pub(crate) sent: VecDeque<Message>,
    /// When the last of them arrives.
    pub(crate) last: Instant,
    /// Since when nothing gets through, and how often it was tried.
    pub(crate) stalled: Option<(Instant, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndState {
    Closed,
    /// The dial is under way.
    Dialling,
    Open,
}

pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    pub(crate) trail: Trail,
}

impl Conn {
    pub(crate) fn end(&self, side: Side) -> &End {
        match side {
            Side::Dialler => &self.dialler,
            Side::Dialled => &self.dialled,
        }
    }

    pub(crate) fn end_mut(&mut self, side: Side) -> &mut End {
        match side {
            Side::Dialler => &mut self.dialler,
            Side::Dialled => &mut self.dialled,
        }
    }
}

impl End {
    pub(crate) fn new(party: Party, life: u32, stream: u64, now: Instant) -> Self {
        let state = EndState::Dialling;
        Self { party, life, stream, state, sent: VecDeque::new(), last: now, stalled: None }
    }
}

/// A dial to which nothing answers is given up: the shells' own limit.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection on which nothing sent gets through is dead.
pub(crate) const DEAD_AFTER: Duration = Duration::from_secs(10);
/// Messages of data that wait for a stream; what comes then is dropped.
pub(crate) const DATA_WAITS: usize = 64;
/// The longest time between two tries.
pub(crate) const RETRY_MOST: Duration = Duration::from_secs(2);
