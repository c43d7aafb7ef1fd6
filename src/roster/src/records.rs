//! The sorted list of records that a head signs.
//!
//! Order is by (kind, name), strictly rising, so that the same roster has one list and one digest:
//! nothing can be left out, repeated or moved without changing it. The digest is over the records' own
//! hashes, so that a change of one record costs 32 bytes of hashing for every other.

use flatlan_types::Name;
use sha2::{Digest, Sha256};

use crate::{
    record::{HubRecord, MemberRecord, NetworkRecord, Record},
    rules::{self, Violation},
    wire::DecodeError,
};

/// Records in order that obey every rule, with the bytes that were or will be signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Records {
    bytes: Vec<Vec<u8>>,
    network: NetworkRecord,
    hubs: Vec<HubRecord>,
    members: Vec<MemberRecord>,
    digest: [u8; 32],
}

impl Records {
    /// Sorts records made here, and checks them against every rule.
    ///
    /// # Errors
    /// The first rule that they break.
    pub fn compile(mut records: Vec<Record>, network: &flatlan_types::NetworkId) -> Result<Self, Violation> {
        records.sort_by(|a, b| a.order().cmp(&b.order()));
        let bytes = records.iter().map(Record::encode).collect();
        Self::checked(bytes, records, network)
    }

    /// Reads records that a head vouched for, and checks them against every rule again.
    pub(crate) fn decode(bytes: Vec<Vec<u8>>, network: &flatlan_types::NetworkId) -> Result<Self, RecordsError> {
        let records = bytes.iter().map(|record| Record::decode(record)).collect::<Result<Vec<_>, _>>()?;
        if !records.is_sorted_by(|a, b| a.order() < b.order()) {
            return Err(RecordsError::Order);
        }
        Ok(Self::checked(bytes, records, network)?)
    }

    fn checked(bytes: Vec<Vec<u8>>, records: Vec<Record>, id: &flatlan_types::NetworkId) -> Result<Self, Violation> {
        let digest = digest(&bytes);
        let (mut networks, mut hubs, mut members) = (Vec::new(), Vec::new(), Vec::new());
        for record in records {
            match record {
                Record::Network(network) => networks.push(network),
                Record::Hub(hub) => hubs.push(hub),
                Record::Member(member) => members.push(member),
                Record::Skipped { .. } => {}
            }
        }
        let network = networks.pop().ok_or(Violation::NetworkCount)?;
        if !networks.is_empty() {
            return Err(Violation::NetworkCount);
        }
        rules::check(id, &network, &hubs, &members)?;
        Ok(Self { bytes, network, hubs, members, digest })
    }

    /// The network's own record.
    pub fn network(&self) -> &NetworkRecord {
        &self.network
    }

    /// The hubs, by name.
    pub fn hubs(&self) -> &[HubRecord] {
        &self.hubs
    }

    /// The members, by name.
    pub fn members(&self) -> &[MemberRecord] {
        &self.members
    }

    /// The member of this name.
    pub fn member(&self, name: &Name) -> Option<&MemberRecord> {
        let at = self.members.binary_search_by(|member| member.name.cmp(name)).ok()?;
        self.members.get(at)
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are none. There never are: one is the network's.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// SHA-256 over the records' own SHA-256s in order.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    pub(crate) fn bytes(&self) -> &[Vec<u8>] {
        &self.bytes
    }
}

/// SHA-256 over the records' own SHA-256s in order.
pub(crate) fn digest(records: &[Vec<u8>]) -> [u8; 32] {
    let mut all = Sha256::new();
    for record in records {
        all.update(Sha256::digest(record));
    }
    all.finalize().into()
}

/// Why a list of records is refused.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// One cannot be read.
    #[error("a record cannot be read")]
    Decode(#[from] DecodeError),
    /// Not in strictly rising order.
    #[error("the records are out of order, or one is there twice")]
    Order,
    /// They break a rule.
    #[error(transparent)]
    Rule(#[from] Violation),
}

/// The most records that a roster may hold.
pub const MAX_RECORDS: usize = 100_000;
