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
pub(crate) struct Trail(Vec<u16>);

impl Trail {
    pub(crate) fn has(&self, hub: usize) -> bool {
        self.0.contains(&(hub as u16))
    }

    /// The same, one hub further.
    pub(crate) fn over(&self, hub: usize) -> Self {
        Self(self.0.iter().copied().chain([hub as u16]).collect())
    }

    pub(crate) fn hubs(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|hub| usize::from(*hub))
    }
}
