//! Who is attached where: the table by (network, member), and how it spreads.
//!
//! An entry is a node's own signed word, handed on unchanged. A greater order replaces a smaller one; a
//! greater boot epoch ends every attachment of a smaller one, wherever it is. A hub that loses a node
//! says so once, quoting the order up to which it holds. What a lost message left different, digests
//! find: they have a line for each hub that holds or held anyone. Entries of a hub that cannot be reached
//! for a while are forgotten, but not what ended there: nobody may bring it back.
//!
//! Memory is bounded by the roster: members times hubs, for networks that both ends serve.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use flatlan_relay::{ByteVec, Control, Presence, PresenceOrder, PresenceSummary, RefusedCode};
use flatlan_types::{HubKey, MemberId, NetworkId, PairKey};

use super::{Hub, attach::Refusal};
use crate::forward::AttachmentId;

/// The presences of one network.
#[derive(Debug, Default)]
pub(super) struct PresenceTable {
    by_member: BTreeMap<MemberId, Holders>,
    /// Computed on demand, dropped by any change.
    digest: Option<Vec<PresenceSummary>>,
    /// Which of what ended is told next.
    turn: usize,
}

/// What is held of one member, by hub: mostly one entry, for which a map would take the room of eleven.
#[derive(Debug, Default)]
struct Holders(Vec<Held>);

#[derive(Debug)]
struct Held {
    presence: Presence,
    /// Since when it holds no more.
    gone: Option<Instant>,
}

/// What became of a presence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// It is in force.
    New,
    /// As good or better is there.
    Stale,
}

/// Who handed a presence to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// The hub that it names, or the one over which that is reached.
    Holder,
    /// The node, or another hub.
    Other,
}

/// Why a presence holds no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// From this hub.
    Detached,
    /// Up to this order, as its hub says.
    UpTo(PresenceOrder),
}

impl Holders {
    fn get(&self, hub: &HubKey) -> Option<&Held> {
        self.0.get(self.place(hub).ok()?)
    }

    fn get_mut(&mut self, hub: &HubKey) -> Option<&mut Held> {
        let place = self.place(hub).ok()?;
        self.0.get_mut(place)
    }

    fn iter(&self) -> impl Iterator<Item = &Held> {
        self.0.iter()
    }

    /// In place of what is held for the same hub.
    fn insert(&mut self, held: Held) {
        match self.place(&held.presence.hub()) {
            Ok(at) => {
                if let Some(before) = self.0.get_mut(at) {
                    *before = held;
                }
            }
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, held);
            }
        }
    }

    fn remove(&mut self, hub: &HubKey) {
        if let Ok(at) = self.place(hub) {
            self.0.remove(at);
        }
    }

    /// Where a hub's entry is, or would be.
    fn place(&self, hub: &HubKey) -> Result<usize, usize> {
        self.0.binary_search_by_key(hub, |held| held.presence.hub())
    }
}

impl PresenceTable {
    /// What forbids this presence: one of a greater boot epoch anywhere, or as great an order at the same
    /// hub.
    pub(super) fn blocks(&self, presence: &Presence) -> Option<&Presence> {
        Some(&self.blocking(&presence.member(), &presence.hub(), presence.order())?.presence)
    }

    fn blocking(&self, member: &MemberId, hub: &HubKey, order: PresenceOrder) -> Option<&Held> {
        let held = self.by_member.get(member)?;
        let blocking = held.iter().filter(|held| {
            let there = held.presence.order();
            there.epoch > order.epoch || (held.presence.hub() == *hub && there >= order)
        });
        blocking.max_by_key(|held| held.presence.order())
    }

    /// Whether as good or better is there. That one ended is said without proof: its own hub, and who carries to it, know
    /// better.
    fn is_stale(&self, member: &MemberId, hub: &HubKey, order: PresenceOrder, by: By) -> bool {
        self.blocking(member, hub, order).is_some_and(|greater| {
            let same = greater.presence.hub() == *hub && greater.presence.order() == order;
            !(same && greater.gone.is_some() && by == By::Holder)
        })
    }

    /// The hubs that hold a member.
    pub(super) fn hubs_of(&self, member: &MemberId) -> impl Iterator<Item = &Presence> {
        let held = self.by_member.get(member).into_iter().flat_map(Holders::iter);
        held.filter(|held| held.gone.is_none()).map(|held| &held.presence)
    }

    /// All that a hub holds.
    fn of_hub(&self, hub: &HubKey) -> impl Iterator<Item = &Presence> {
        let held = self.by_member.values().filter_map(|held| held.get(hub));
        held.filter(|held| held.gone.is_none()).map(|held| &held.presence)
    }

    /// Some of what a hub held: the latest, for what was lost was mostly lost lately, and in turn the rest.
    fn ended_at(&mut self, hub: &HubKey) -> Vec<(MemberId, PresenceOrder)> {
        let ended = self.by_member.values().filter_map(|held| held.get(hub));
        let mut ended: Vec<_> = ended.filter_map(|held| Some((held.gone?, &held.presence))).collect();
        ended.sort_by_key(|(gone, _)| std::cmp::Reverse(*gone));
        let (latest, rest) = ended.split_at(ended.len().min(GONE));
        let begin = if rest.is_empty() { 0 } else { self.turn % rest.len() };
        let turn = rest.iter().cycle().skip(begin).take(rest.len().min(GONE));
        let told = latest.iter().chain(turn).map(|(_, presence)| (presence.member(), presence.order())).collect();
        self.turn = begin + GONE;
        told
    }

    pub(super) fn present(&self) -> usize {
        self.by_member.values().filter(|held| held.iter().any(|held| held.gone.is_none())).count()
    }

    /// The hubs at which anyone is.
    fn hubs(&self) -> BTreeSet<HubKey> {
        let held = self.by_member.values().flat_map(Holders::iter);
        held.filter(|held| held.gone.is_none()).map(|held| held.presence.hub()).collect()
    }

    fn add(&mut self, presence: Presence, by: By, now: Instant) -> (Added, Vec<HubKey>) {
        if self.is_stale(&presence.member(), &presence.hub(), presence.order(), by) {
            return (Added::Stale, Vec::new());
        }
        self.digest = None;
        let of_member = self.by_member.entry(presence.member()).or_default();
        let mut ended = Vec::new();
        for held in &mut of_member.0 {
            if held.presence.order().epoch < presence.order().epoch && held.gone.is_none() {
                held.gone = Some(now);
                ended.push(held.presence.hub());
            }
        }
        ended.retain(|hub| *hub != presence.hub());
        of_member.insert(Held { presence, gone: None });
        (Added::New, ended)
    }

    fn end(&mut self, member: &MemberId, hub: &HubKey, up_to: Gone, now: Instant) -> Option<PresenceOrder> {
        let held = self.by_member.get_mut(member)?.get_mut(hub)?;
        let order = held.presence.order();
        let ends = match up_to {
            Gone::Detached => true,
            Gone::UpTo(up_to) => order <= up_to,
        };
        if !ends || held.gone.is_some() {
            return None;
        }
        self.digest = None;
        held.gone = Some(now);
        Some(order)
    }

    /// Forgets whom a hub holds; tells whom. What ended there stays ended.
    fn forget_hub(&mut self, hub: &HubKey) -> Vec<MemberId> {
        self.digest = None;
        let mut whose = Vec::new();
        for (member, held) in &mut self.by_member {
            if held.get(hub).is_some_and(|held| held.gone.is_none()) {
                held.remove(hub);
                whose.push(*member);
            }
        }
        whose
    }

    pub(super) fn retain_members(&mut self, mut member: impl FnMut(&MemberId) -> bool) {
        self.digest = None;
        self.by_member.retain(|id, _| member(id));
    }

    pub(super) fn retain_hubs(&mut self, mut hub: impl FnMut(&HubKey) -> bool) {
        self.digest = None;
        for held in self.by_member.values_mut() {
            held.0.retain(|held| hub(&held.presence.hub()));
        }
    }

    fn digest(&mut self) -> Vec<PresenceSummary> {
        if let Some(digest) = &self.digest {
            return digest.clone();
        }
        let mut by_hub: BTreeMap<HubKey, (u32, [u8; 16])> = BTreeMap::new();
        for (member, held) in &self.by_member {
            for held in held.iter() {
                let hub = held.presence.hub();
                let (count, hash) = by_hub.entry(hub).or_default();
                if held.gone.is_some() {
                    continue;
                }
                let order = held.presence.order();
                let parts: [&[u8]; 3] = [hub.as_bytes(), &order.epoch.0.to_be_bytes(), &order.counter.to_be_bytes()];
                *count += 1;
                for (byte, of_entry) in hash.iter_mut().zip(PairKey::tag(member.as_bytes(), &parts)) {
                    *byte ^= of_entry;
                }
            }
        }
        let lines = by_hub.into_iter().map(|(hub, (count, hash))| PresenceSummary { hub, count, hash });
        let digest: Vec<_> = lines.collect();
        self.digest = Some(digest.clone());
        digest
    }
}

impl Hub {
    /// Takes a presence that is verified and wanted; tells who watches and the other hubs.
    pub(super) fn add_presence(&mut self, presence: Presence, from: Option<HubKey>, now: Instant) -> Added {
        let (network, member, hub) = (presence.network(), presence.member(), presence.hub());
        let by = self.by(network, hub, from);
        let Some(state) = self.networks.get_mut(&network) else { return Added::Stale };
        let (added, ended) = state.presence.add(presence.clone(), by, now);
        if added == Added::Stale {
            return added;
        }
        let attached = state.attached.get(&member).copied();
        let encoded = presence.encode();
        for hub in &ended {
            self.tell_watchers(network, member, &Control::Absent { peer: member, hub: Some(*hub) });
        }
        self.tell_watchers(network, member, &Control::Presence { presence: encoded.clone() });
        let presences = vec![ByteVec::from(encoded.clone())];
        self.tell_hubs(network, from, &Control::PresenceFlood { network, presences });
        // A newer start of this node is elsewhere: the one here is a clone or a leftover.
        if ended.contains(&self.key)
            && let Some(attached) = attached
        {
            let refusal = Refusal::stale("a newer start of this node attached elsewhere", encoded);
            self.expel(attached, refusal, now);
        }
        self.spread_ways(network, member, now);
        self.part_ways(network, member, hub, now);
        added
    }

    /// In which place `from` is to speak of `holder`.
    fn by(&mut self, network: NetworkId, holder: HubKey, from: Option<HubKey>) -> By {
        let Some(from) = from else { return By::Other };
        let next_hop = self.route(network, holder).map(|route| route.next_hop);
        if from == holder || next_hop == Some(from) { By::Holder } else { By::Other }
    }

    pub(super) fn presence_gone(
        &mut self,
        network: NetworkId,
        member: MemberId,
        hub: HubKey,
        gone: Gone,
        from: Option<HubKey>,
        now: Instant,
    ) {
        let Some(state) = self.networks.get_mut(&network) else { return };
        let Some(order) = state.presence.end(&member, &hub, gone, now) else { return };
        self.tell_watchers(network, member, &Control::Absent { peer: member, hub: Some(hub) });
        self.tell_hubs(network, from, &Control::PresenceGone { network, member, hub, order });
    }

    pub(super) fn watch(&mut self, attachment: AttachmentId, network: NetworkId, peers: &[MemberId]) {
        let limit = self.config.limits.watches;
        let Some(state) = self.networks.get_mut(&network) else { return };
        let Some(roster) = &state.roster else { return };
        let Some(watcher) = self.attachments.get_mut(attachment.0) else { return };
        let control = watcher.control;
        let mut answers = Vec::new();
        for peer in peers.iter().filter(|peer| roster.by_id(peer).is_some()) {
            if watcher.watches.len() >= limit {
                break;
            }
            if watcher.watches.insert(*peer) {
                state.watchers.entry(*peer).or_default().insert(attachment);
            }
            let known = answers.len();
            answers
                .extend(state.presence.hubs_of(peer).map(|presence| Control::Presence { presence: presence.encode() }));
            if answers.len() == known {
                answers.push(Control::Absent { peer: *peer, hub: None });
            }
        }
        for answer in answers {
            self.send(control, answer);
        }
    }

    pub(super) fn unwatch(&mut self, attachment: AttachmentId, network: NetworkId, peers: &[MemberId]) {
        let Some(watcher) = self.attachments.get_mut(attachment.0) else { return };
        let Some(state) = self.networks.get_mut(&network) else { return };
        for peer in peers {
            if watcher.watches.remove(peer) {
                state.unwatch(peer, attachment);
            }
        }
    }

    /// From a neighbour.
    pub(super) fn handle_presences(&mut self, hub: HubKey, network: NetworkId, presences: &[ByteVec], now: Instant) {
        for bytes in presences {
            let Some((of, member, at, order)) = Presence::peek(bytes) else { continue };
            let by = self.by(network, at, Some(hub));
            let Some(state) = self.networks.get(&network) else { return };
            let Some(roster) = &state.roster else { return };
            let wanted =
                of == network && at != self.key && roster.by_id(&member).is_some() && roster.hub(&at).is_some();
            // most of what comes twice is told by its order, without a look at the signature
            if !wanted || state.presence.is_stale(&member, &at, order, by) {
                continue;
            }
            let Ok(presence) = Presence::verify(bytes) else { continue };
            self.add_presence(presence, Some(hub), now);
        }
    }

    pub(super) fn handle_presence_digest(&mut self, hub: HubKey, network: NetworkId, theirs: &[PresenceSummary]) {
        let key = self.key;
        let Some(state) = self.networks.get_mut(&network) else { return };
        let Some(roster) = &state.roster else { return };
        let ours: BTreeMap<_, _> = state.presence.digest().into_iter().map(|line| (line.hub, line)).collect();
        let differs = |line: &&PresenceSummary| {
            let nobody = PresenceSummary { hub: line.hub, count: 0, hash: [0; 16] };
            line.hub != key && roster.hub(&line.hub).is_some() && ours.get(&line.hub).unwrap_or(&nobody) != *line
        };
        let pulls: Vec<_> = theirs.iter().filter(differs).map(|line| line.hub).take(MAX_PULLS).collect();
        for of in pulls {
            self.tell_hub(hub, Control::PresencePull { network, hub: of });
        }
    }

    pub(super) fn handle_presence_pull(&mut self, hub: HubKey, network: NetworkId, of: HubKey) {
        let Some(state) = self.networks.get_mut(&network) else { return };
        let ended = state.presence.ended_at(&of).into_iter();
        let mut answers: Vec<_> =
            ended.map(|(member, order)| Control::PresenceGone { network, member, hub: of, order }).collect();
        let mut batch = Vec::new();
        for presence in state.presence.of_hub(&of) {
            batch.push(ByteVec::from(presence.encode()));
            if batch.len() == BATCH {
                answers.push(Control::PresenceFlood { network, presences: std::mem::take(&mut batch) });
            }
        }
        if !batch.is_empty() {
            answers.push(Control::PresenceFlood { network, presences: batch });
        }
        for answer in answers {
            self.tell_hub(hub, answer);
        }
    }

    /// The digests of networks shared with a neighbour.
    pub(super) fn send_presence_digests(&mut self, hub: HubKey, networks: &[NetworkId]) {
        for network in networks {
            let Some(state) = self.networks.get_mut(network) else { continue };
            let entries = state.presence.digest();
            self.tell_hub(hub, Control::PresenceDigest { network: *network, entries });
        }
    }

    /// A hub started anew: what it held before is gone, whatever it says next.
    pub(super) fn hub_restarted(&mut self, hub: HubKey) {
        let networks: Vec<_> = self.networks.keys().copied().collect();
        for network in networks {
            self.forget_hub(network, hub);
        }
    }

    /// Forgets the presences at hubs that cannot be reached for a while.
    pub(super) fn forget_unreachable(&mut self, now: Instant) {
        let networks: Vec<_> = self.networks.keys().copied().collect();
        let mut still = BTreeMap::new();
        for network in networks {
            let Some(state) = self.networks.get(&network) else { continue };
            let hubs = state.presence.hubs();
            for hub in hubs {
                if hub == self.key || self.route(network, hub).is_some() {
                    continue;
                }
                let since = self.unreachable.get(&(network, hub)).copied().unwrap_or(now);
                if now.saturating_duration_since(since) >= UNREACHABLE {
                    self.forget_hub(network, hub);
                } else {
                    still.insert((network, hub), since);
                }
            }
        }
        self.unreachable = still;
    }

    fn forget_hub(&mut self, network: NetworkId, hub: HubKey) {
        let Some(state) = self.networks.get_mut(&network) else { return };
        for member in state.presence.forget_hub(&hub) {
            self.tell_watchers(network, member, &Control::Absent { peer: member, hub: Some(hub) });
        }
    }

    fn tell_watchers(&mut self, network: NetworkId, member: MemberId, message: &Control) {
        let Some(watchers) = self.networks.get(&network).and_then(|network| network.watchers.get(&member)) else {
            return;
        };
        let streams: Vec<_> =
            watchers.iter().filter_map(|watcher| Some(self.attachments.get(watcher.0)?.control)).collect();
        for stream in streams {
            self.send(stream, message.clone());
        }
    }
}

impl Refusal {
    fn stale(text: &str, presence: Vec<u8>) -> Self {
        Self::new(RefusedCode::StaleEpoch, text).with_presence(presence)
    }
}

const UNREACHABLE: Duration = Duration::from_secs(10);
/// How much of what ended is told at once, lately ended or in turn.
const GONE: usize = 128;
/// Presences in one message.
const BATCH: usize = 256;
/// Hubs asked about after one digest.
const MAX_PULLS: usize = 64;
