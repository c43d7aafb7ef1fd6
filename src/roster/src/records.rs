//! The sorted list of records that a head signs, and what is looked up in it.
//!
//! Order is by (kind, name), strictly rising, so that the same roster has one list and one digest:
//! nothing can be left out, repeated or moved without changing it. The digest is over the records' own
//! hashes, so that a change of one record costs 32 bytes of hashing for every other.
//!
//! A list is made in one of two ways, with the same result. [`Records::decode`] reads every record and
//! checks every rule. [`Records::follow`] is for a list of which most records are, byte for byte, those
//! of a list that was checked before: it
//!
//! 1. lines both up by their bytes alone: what stays, what goes, what comes;
//! 2. compares the digest, before anything is read;
//! 3. reads what comes, and checks what a rule could see of it;
//!
//! and shares the rest with the older list. Whatever it is not made for, and whatever breaks a rule, it
//! leaves to [`Records::decode`], which says what is wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use flatlan_types::{InviteKey, MemberId, Name, NetworkId, Prefix, SessionKey, VirtualIp};
use sha2::{Digest, Sha256};

use crate::{
    fold::{self, Member},
    owner::MemberIndex,
    record::{HubRecord, MemberRecord, NetworkRecord, Record, Stock},
    rules::{self, Carriable, Kind, Violation},
    shared::{SharedMap, SharedRuns, SharedVec},
    wire::DecodeError,
};

/// Records in order that obey every rule, with the bytes that were or will be signed.
#[derive(Clone, Debug)]
pub struct Records {
    encoded: Encoded,
    hashes: SharedRuns<[u8; 32]>,
    digest: [u8; 32],
    network: NetworkRecord,
    hubs: Vec<HubRecord>,
    /// The members by name.
    order: Vec<MemberIndex>,
    members: SharedVec<Option<Entry>>,
    index: Index,
    /// Places that are nobody's: they are given anew before the list grows.
    vacant: Vec<MemberIndex>,
    /// The same for lists of which one follows the other: in these, a place with the same record is the same member's.
    places: Arc<()>,
}

/// A member's record, and the member where that has keys.
#[derive(Clone, Debug)]
struct Entry {
    record: Arc<MemberRecord>,
    member: Option<Member>,
}

/// Where records stand in memory, one after the other, perhaps with something between them.
#[derive(Clone, Debug)]
pub(crate) struct Encoded {
    bytes: Arc<Vec<u8>>,
    spans: Arc<Vec<Range<u32>>>,
}

/// Records that were read, each kind as they stood.
#[derive(Default)]
struct ByKind {
    networks: Vec<NetworkRecord>,
    hubs: Vec<HubRecord>,
    members: Vec<Arc<MemberRecord>>,
}

/// A record that an older list does not have.
struct Come {
    /// Where its member stands among the members by name.
    position: usize,
    at: MemberIndex,
    entry: Entry,
}

/// What is looked up by other things than a name.
#[derive(Clone, Debug, Default)]
struct Index {
    ids: SharedMap<MemberId, MemberIndex>,
    sessions: SharedMap<SessionKey, MemberIndex>,
    invites: SharedMap<InviteKey, MemberIndex>,
    ips: SharedMap<std::net::IpAddr, MemberIndex>,
    /// What members carry, and their addresses outside the overlay's own; by address and length.
    carried: Arc<Vec<(Prefix, Kind, MemberIndex)>>,
    /// Members of each HA group.
    groups: Arc<BTreeMap<Name, BTreeSet<MemberIndex>>>,
    /// Plain WireGuard peers.
    stock: Arc<BTreeSet<MemberIndex>>,
}

/// A key or an address of two members.
struct Taken;

impl Records {
    /// Sorts records made here, and checks them against every rule.
    ///
    /// # Errors
    /// The first rule that they break.
    pub fn compile(mut records: Vec<Record>, network: &NetworkId) -> Result<Self, Violation> {
        records.sort_by(|a, b| a.order().cmp(&b.order()));
        let mut bytes = Vec::new();
        let spans = records.iter().map(|record| {
            let start = bytes.len();
            bytes.extend(record.encode());
            span(start..bytes.len())
        });
        let spans = spans.collect();
        bytes.shrink_to_fit();
        let encoded = Encoded::new(Arc::new(bytes), spans);
        let hashes = encoded.hashes();
        let digest = digest_of(&hashes);
        let mut read = ByKind::default();
        for record in records {
            read.push(record);
        }
        Self::checked(encoded, hashes, digest, read, network)
    }

    /// Reads records that a head vouched for, and checks them against every rule again.
    pub(crate) fn decode(encoded: Encoded, digest: &[u8; 32], id: &NetworkId) -> Result<Self, RecordsError> {
        let hashes = encoded.hashes();
        if digest_of(&hashes) != *digest {
            return Err(RecordsError::Mismatch);
        }
        let mut read = ByKind::default();
        let mut last: Option<(u16, Name)> = None;
        for bytes in encoded.iter() {
            let record = Record::decode(bytes)?;
            let (kind, name) = record.order();
            if last.as_ref().is_some_and(|(before, last)| (*before, last) >= (kind, name)) {
                return Err(RecordsError::Order);
            }
            last = Some((kind, name.clone()));
            read.push(record);
        }
        Ok(Self::checked(encoded, hashes, *digest, read, id)?)
    }

    /// The same as [`Records::decode`] for a list that differs from this one in a few members, or `None`: it is
    /// another kind of list, or there is something wrong with it.
    pub(crate) fn follow(&self, encoded: &Encoded, digest: &[u8; 32], id: &NetworkId) -> Option<Self> {
        let lined_up = LinedUp::new(&self.encoded, encoded)?;
        let first = self.first_member();
        let members = first..first + self.order.len();
        // network, hubs and what is skipped are as they were, and whatever comes stands among the members
        let skipped = self.encoded.len() - members.end;
        let before = matches!(lined_up.runs.first(), Some(Run::Kept(kept)) if kept.start == 0 && kept.end >= first);
        let whole = |kept: &Range<usize>| kept.end == self.encoded.len() && kept.start <= members.end;
        let behind = skipped == 0 || matches!(lined_up.runs.last(), Some(Run::Kept(kept)) if whole(kept));
        if !before || !behind || !lined_up.gone.iter().all(|at| members.contains(at)) {
            return None;
        }
        let mut hashes = SharedRuns::default();
        for run in &lined_up.runs {
            match run {
                Run::Kept(kept) => hashes.extend_from(&self.hashes, kept.clone()),
                Run::Come(at) => hashes.push(hash(encoded.get(*at)?)),
            }
        }
        if digest_of(&hashes) != *digest {
            return None;
        }
        let mut gone: BTreeMap<&Name, MemberIndex> = BTreeMap::new();
        for at in &lined_up.gone {
            let index = *self.order.get(at.checked_sub(first)?)?;
            gone.insert(&self.record(index)?.name, index);
        }
        let mut come = Vec::new();
        let mut order = Vec::with_capacity(encoded.len());
        let mut vacant = self.vacant.clone();
        let mut next = self.members.len();
        for run in &lined_up.runs {
            match run {
                Run::Kept(kept) => {
                    let (start, end) = (kept.start.max(first), kept.end.min(members.end));
                    order.extend_from_slice(self.order.get(start - first..end.max(start) - first)?);
                }
                Run::Come(at) => {
                    let Record::Member(record) = Record::decode(encoded.get(*at)?).ok()? else { return None };
                    let index = gone.get(&record.name).copied().or_else(|| vacant.pop()).unwrap_or_else(|| {
                        next += 1;
                        MemberIndex::at(next - 1)
                    });
                    come.push(Come { position: order.len(), at: index, entry: Entry::new(id, shared(record)) });
                    order.push(index);
                }
            }
        }
        let taken: BTreeSet<MemberIndex> = come.iter().map(|come| come.at).collect();
        vacant.extend(gone.values().filter(|at| !taken.contains(at)));
        let mut followed = Self {
            encoded: encoded.clone(),
            hashes,
            digest: *digest,
            network: self.network.clone(),
            hubs: self.hubs.clone(),
            order,
            members: self.members.clone(),
            index: self.index.clone(),
            vacant,
            places: Arc::clone(&self.places),
        };
        followed.replace(gone.values().copied(), &come, id)?;
        Some(followed)
    }

    fn checked(
        encoded: Encoded,
        hashes: SharedRuns<[u8; 32]>,
        digest: [u8; 32],
        read: ByKind,
        id: &NetworkId,
    ) -> Result<Self, Violation> {
        let ByKind { mut networks, hubs, members: records } = read;
        let network = networks.pop().ok_or(Violation::NetworkCount)?;
        if !networks.is_empty() {
            return Err(Violation::NetworkCount);
        }
        let carriable = Carriable::new(id, &network, &hubs);
        let mut index = Index::with_capacity(records.len());
        let mut members = SharedVec::default();
        let mut carried: Vec<(Prefix, Kind, MemberIndex)> = Vec::new();
        let mut free = true;
        for (at, record) in records.iter().enumerate() {
            let at = MemberIndex::at(at);
            let entry = Entry::new(id, Arc::clone(record));
            free &= index.add(at, &entry).is_ok();
            carried.extend(carriable.of(record).map(|(prefix, kind)| (prefix, kind, at)));
            members.push(Some(entry));
        }
        carried.sort_by_key(|(prefix, ..)| (prefix.ip(), prefix.length()));
        let of_whom =
            carried.iter().filter_map(|(prefix, kind, at)| Some((*prefix, *kind, &**records.get(at.index())?)));
        if !free || !rules::hold(&carriable, &hubs, &records, of_whom) {
            // says what is wrong
            rules::check(id, &network, &hubs, &records)?;
        }
        index.carried = Arc::new(carried);
        let order = (0..records.len()).map(MemberIndex::at).collect();
        let (vacant, places) = (Vec::new(), Arc::default());
        Ok(Self { encoded, hashes, digest, network, hubs, order, members, index, vacant, places })
    }

    /// Takes records out and puts others in, or `None` where a rule may be broken.
    fn replace(&mut self, gone: impl Iterator<Item = MemberIndex>, come: &[Come], id: &NetworkId) -> Option<()> {
        let gone: BTreeSet<MemberIndex> = gone.collect();
        for at in &gone {
            let entry = self.entry(*at)?.clone();
            self.index.remove(*at, &entry);
            self.members.set(at.index(), None);
        }
        for Come { at, entry, .. } in come {
            self.members.set(at.index(), Some(entry.clone()));
        }
        let name_at = |position: usize| self.order.get(position).and_then(|at| Some(&self.record(*at)?.name));
        let in_order = |Come { position, entry, .. }: &Come| {
            let name = &entry.record.name;
            let above = position.checked_sub(1).and_then(name_at).is_none_or(|above| above < name);
            above && name_at(position + 1).is_none_or(|below| name < below)
        };
        if !come.iter().all(in_order) {
            return None;
        }
        for Come { at, entry, .. } in come {
            self.index.add(*at, entry).ok()?;
        }
        let carriable = Carriable::new(id, &self.network, &self.hubs);
        let named = |name: &Name| self.member(name);
        for Come { entry, .. } in come {
            rules::check_member(&self.network, &self.hubs, &named, &entry.record).ok()?;
            carriable.check(&entry.record).ok()?;
        }
        for at in self.index.stock.iter() {
            rules::check_member(&self.network, &self.hubs, &named, self.record(*at)?).ok()?;
        }
        let mut carried: Vec<(Prefix, Kind, MemberIndex)> = Vec::new();
        for Come { at, entry, .. } in come {
            carried.extend(carriable.of(&entry.record).map(|(prefix, kind)| (prefix, kind, *at)));
        }
        let was = Arc::clone(&self.index.carried);
        let kept = was.iter().filter(|(.., at)| !gone.contains(at));
        if !carried.is_empty() || kept.clone().count() != was.len() {
            carried.extend(kept);
            carried.sort_by_key(|(prefix, ..)| (prefix.ip(), prefix.length()));
            let records = carried.iter().map(|(prefix, kind, at)| Some((*prefix, *kind, self.record(*at)?)));
            rules::check_nesting(records.collect::<Option<Vec<_>>>()?.into_iter()).ok()?;
            self.index.carried = Arc::new(carried);
        }
        Some(())
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
    pub fn members(&self) -> impl Iterator<Item = &MemberRecord> + Clone {
        self.order.iter().filter_map(|at| self.record(*at))
    }

    /// The member of this name.
    pub fn member(&self, name: &Name) -> Option<&MemberRecord> {
        self.record(self.place(name)?)
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.encoded.spans.len()
    }

    /// Whether there are none. There never are: one is the network's.
    pub fn is_empty(&self) -> bool {
        self.encoded.spans.is_empty()
    }

    /// SHA-256 over the records' own SHA-256s in order.
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    pub(crate) fn encoded(&self) -> &Encoded {
        &self.encoded
    }

    /// The places of the members, by name.
    pub(crate) fn order(&self) -> &[MemberIndex] {
        &self.order
    }

    /// The place of a name.
    pub(crate) fn place(&self, name: &Name) -> Option<MemberIndex> {
        let name_of = |at: &MemberIndex| self.record(*at).map(|record| &record.name);
        let at = self.order.binary_search_by(|at| name_of(at).cmp(&Some(name))).ok()?;
        self.order.get(at).copied()
    }

    pub(crate) fn record(&self, at: MemberIndex) -> Option<&MemberRecord> {
        self.entry(at).map(|entry| &*entry.record)
    }

    /// The record at a place, to keep.
    pub(crate) fn shared(&self, at: MemberIndex) -> Option<&Arc<MemberRecord>> {
        self.entry(at).map(|entry| &entry.record)
    }

    /// The member at a place, where its record has keys.
    pub(crate) fn with_keys(&self, at: MemberIndex) -> Option<&Member> {
        self.entry(at)?.member.as_ref()
    }

    pub(crate) fn by_id(&self, id: &MemberId) -> Option<MemberIndex> {
        self.index.ids.get(id).copied()
    }

    pub(crate) fn by_session(&self, session: &SessionKey) -> Option<MemberIndex> {
        self.index.sessions.get(session).copied()
    }

    pub(crate) fn by_invite(&self, invite: &InviteKey) -> Option<MemberIndex> {
        self.index.invites.get(invite).copied()
    }

    /// Whose an address is, by what the records say themselves.
    pub(crate) fn by_ip(&self, ip: VirtualIp) -> Option<MemberIndex> {
        self.index.ips.get(&ip.ip()).copied()
    }

    /// How many invites are open.
    pub(crate) fn invites(&self) -> usize {
        self.index.invites.len()
    }

    /// What members carry, and their addresses outside the overlay's own, by address and length.
    pub(crate) fn carried(&self) -> impl Iterator<Item = (Prefix, MemberIndex)> {
        self.index.carried.iter().map(|(prefix, _, at)| (*prefix, *at))
    }

    /// The members of an HA group.
    pub(crate) fn group(&self, ha: &Name) -> impl Iterator<Item = MemberIndex> {
        self.index.groups.get(ha).into_iter().flatten().copied()
    }

    /// The plain WireGuard peers.
    pub(crate) fn stock(&self) -> impl Iterator<Item = (MemberIndex, &Stock)> {
        self.index.stock.iter().filter_map(|at| Some((*at, self.record(*at)?.stock.as_ref()?)))
    }

    /// The places at which this list and another have different records, perhaps of different members, where one list was
    /// made by changing the other.
    pub(crate) fn changed_since(&self, old: &Self) -> Option<BTreeSet<MemberIndex>> {
        let record = |of: &Self, at| of.entry(at).map(|entry| Arc::as_ptr(&entry.record));
        let differs = |at: &MemberIndex| record(self, *at) != record(old, *at);
        let places = || self.members.unshared(&old.members).map(MemberIndex::at);
        Arc::ptr_eq(&self.places, &old.places).then(|| places().filter(differs).collect())
    }

    fn entry(&self, at: MemberIndex) -> Option<&Entry> {
        self.members.get(at.index())?.as_ref()
    }

    fn first_member(&self) -> usize {
        1 + self.hubs.len()
    }
}

impl PartialEq for Records {
    fn eq(&self, other: &Self) -> bool {
        self.encoded.iter().eq(other.encoded.iter())
    }
}

impl Eq for Records {}

impl Entry {
    fn new(id: &NetworkId, record: Arc<MemberRecord>) -> Self {
        let member = record.keys.map(|keys| Member::new(id, &record, keys, fold::KeyOrigin::Record));
        Self { record, member }
    }

    /// Its addresses.
    fn ips(&self) -> &[VirtualIp] {
        self.member.as_ref().map_or(&self.record.ips, |member| &member.ips)
    }
}

impl ByKind {
    fn push(&mut self, record: Record) {
        match record {
            Record::Network(network) => self.networks.push(network),
            Record::Hub(hub) => self.hubs.push(hub),
            Record::Member(member) => self.members.push(shared(member)),
            Record::Skipped { .. } => {}
        }
    }
}

impl Encoded {
    /// Of records that stand at these places.
    pub(crate) fn new(bytes: Arc<Vec<u8>>, spans: Vec<Range<u32>>) -> Self {
        Self { bytes, spans: Arc::new(spans) }
    }

    /// The records' own SHA-256s.
    fn hashes(&self) -> SharedRuns<[u8; 32]> {
        SharedRuns::from(&*self.iter().map(hash).collect::<Vec<_>>())
    }

    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    pub(crate) fn get(&self, at: usize) -> Option<&[u8]> {
        crate::records::at(&self.bytes, self.spans.get(at)?)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.spans.iter().map(|span| at(&self.bytes, span).unwrap_or_default())
    }
}

/// One list of records beside an older one.
struct LinedUp {
    /// The new list, from its beginning to its end.
    runs: Vec<Run>,
    /// The places in the older list of those that are not in the new one.
    gone: Vec<usize>,
}

/// A part of a list.
enum Run {
    /// What stood at these places of the older list. Two that follow each other there are one.
    Kept(Range<usize>),
    /// The record at this place, which the older list does not have.
    Come(usize),
}

impl LinedUp {
    /// `None`: too much differs for this to be of any use.
    fn new(old: &Encoded, new: &Encoded) -> Option<Self> {
        let mut lined_up = Self { runs: Vec::new(), gone: Vec::new() };
        let (mut at, mut changes) = (0, 0);
        for (n, bytes) in new.iter().enumerate() {
            if old.get(at) == Some(bytes) {
                lined_up.keep(at);
                at += 1;
                continue;
            }
            changes += 1;
            if changes > MAX_CHANGES {
                return None;
            }
            if let Some(skip) = (1..=AHEAD).find(|skip| old.get(at + skip) == Some(bytes)) {
                lined_up.gone.extend(at..at + skip);
                at += skip;
                lined_up.keep(at);
                at += 1;
                continue;
            }
            lined_up.runs.push(Run::Come(n));
            let stays = |old: &[u8]| (1..=AHEAD).any(|ahead| new.get(n + ahead) == Some(old));
            if old.get(at).is_some_and(|old| !stays(old)) {
                lined_up.gone.push(at);
                at += 1;
            }
        }
        lined_up.gone.extend(at..old.len());
        (lined_up.gone.len() <= MAX_CHANGES * AHEAD).then_some(lined_up)
    }

    fn keep(&mut self, at: usize) {
        match self.runs.last_mut() {
            Some(Run::Kept(kept)) if kept.end == at => kept.end += 1,
            Some(Run::Kept(_) | Run::Come(_)) | None => self.runs.push(Run::Kept(at..at + 1)),
        }
    }
}

impl Index {
    fn with_capacity(members: usize) -> Self {
        Self {
            ids: SharedMap::with_capacity(members),
            sessions: SharedMap::with_capacity(members),
            ips: SharedMap::with_capacity(members * 2),
            ..Self::default()
        }
    }

    /// Adds all of a member but what it carries.
    fn add(&mut self, at: MemberIndex, entry: &Entry) -> Result<(), Taken> {
        let record = &entry.record;
        let mut free = true;
        if let Some(keys) = &record.keys {
            free &= self.ids.insert(keys.id, at).is_none();
            free &= self.sessions.insert(keys.session, at).is_none();
        }
        if let Some(invite) = &record.invite {
            free &= self.invites.insert(invite.key, at).is_none();
        }
        for ip in entry.ips() {
            free &= self.ips.insert(ip.ip(), at).is_none();
        }
        if let Some(ha) = &record.ha {
            Arc::make_mut(&mut self.groups).entry(ha.clone()).or_default().insert(at);
        }
        if record.stock.is_some() {
            Arc::make_mut(&mut self.stock).insert(at);
        }
        if free { Ok(()) } else { Err(Taken) }
    }

    /// Removes all of a member but what it carries.
    fn remove(&mut self, at: MemberIndex, entry: &Entry) {
        let record = &entry.record;
        if let Some(keys) = &record.keys {
            self.ids.remove(&keys.id);
            self.sessions.remove(&keys.session);
        }
        if let Some(invite) = &record.invite {
            self.invites.remove(&invite.key);
        }
        for ip in entry.ips() {
            self.ips.remove(&ip.ip());
        }
        if let Some(ha) = &record.ha {
            let groups = Arc::make_mut(&mut self.groups);
            let left = groups.get_mut(ha).map(|group| {
                group.remove(&at);
                group.len()
            });
            if left == Some(0) {
                groups.remove(ha);
            }
        }
        if record.stock.is_some() {
            Arc::make_mut(&mut self.stock).remove(&at);
        }
    }
}

/// A record to be kept, in no more memory than it needs: most have one address.
fn shared(mut record: MemberRecord) -> Arc<MemberRecord> {
    record.ips.shrink_to_fit();
    Arc::new(record)
}

/// What stands at a place.
pub(crate) fn at<'b>(bytes: &'b [u8], place: &Range<u32>) -> Option<&'b [u8]> {
    bytes.get(place.start as usize..place.end as usize)
}

fn span(place: Range<usize>) -> Range<u32> {
    let short = |at: usize| u32::try_from(at).expect("no roster is as long as 4 GiB");
    short(place.start)..short(place.end)
}

fn hash(record: &[u8]) -> [u8; 32] {
    Sha256::digest(record).into()
}

/// SHA-256 over the records' own SHA-256s in order.
fn digest_of(hashes: &SharedRuns<[u8; 32]>) -> [u8; 32] {
    let mut digest = Sha256::new();
    hashes.runs().for_each(|run| digest.update(run.as_flattened()));
    digest.finalize().into()
}

/// Why a list of records is refused.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// One cannot be read.
    #[error("a record cannot be read")]
    Decode(#[from] DecodeError),
    /// Not the records that were signed.
    #[error("the records are not those that the admin signed")]
    Mismatch,
    /// Not in strictly rising order.
    #[error("the records are out of order, or one is there twice")]
    Order,
    /// They break a rule.
    #[error(transparent)]
    Rule(#[from] Violation),
}

/// The most records that a roster may hold.
pub const MAX_RECORDS: usize = 1 << 17;
/// Differences in which a list may follow another; a list with more is read anew.
const MAX_CHANGES: usize = 1024;
/// How far ahead a record is looked for.
const AHEAD: usize = 8;
