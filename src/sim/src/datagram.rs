//! Datagrams under way.

use flatlan_types::Endpoint;

use crate::party::Party;

/// A datagram on its way, as it looks behind its sender's NAT.
#[derive(Clone)]
pub(crate) struct Datagram {
    pub(crate) from: Endpoint,
    pub(crate) to: Endpoint,
    /// Whose address that is.
    pub(crate) party: Party,
    pub(crate) bytes: Vec<u8>,
    pub(crate) class: u8,
    pub(crate) trail: Trail,
}

/// The hubs that a frame has crossed, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trail {
    hubs: Vec<u16>,
    bent: bool,
}

impl Trail {
    pub(crate) fn has(&self, hub: usize) -> bool {
        self.hubs.contains(&(hub as u16))
    }

    /// By a lie it goes where it should not: a label that was not this way's, or another one put on it.
    pub(crate) fn bend(&mut self) {
        self.bent = true;
    }

    pub(crate) fn is_bent(&self) -> bool {
        self.bent
    }

    /// The same, one hub further.
    pub(crate) fn over(&self, hub: usize) -> Self {
        Self { hubs: self.hubs.iter().copied().chain([hub as u16]).collect(), bent: self.bent }
    }

    pub(crate) fn hubs(&self) -> impl Iterator<Item = usize> {
        self.hubs.iter().map(|hub| usize::from(*hub))
    }
}
