//! Rosters and claims: kept, judged, handed on.
//!
//! 1. A roster comes in parts (`transfer`: from an admin, or from whoever told a newer head) and is verified against the ratchet; nothing else makes it trusted.
//! 2. It is in force at once: whoever it does not list is cut off. Its head is told to every node and
//!    hub, which fetch it part by part.
//! 3. It is written to disk; then its uploader hears of it.
//!
//! A claim waits apart until it is on disk, and only then is answered, folded and handed on: a hub that
//! crashes in between has told nobody. Writes of one network never overlap; what comes meanwhile goes
//! with the next.
//!
//! Anyone can sign a roster of a network of their own: those that nobody allowed by name are bounded in
//! number and size.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_relay::{ByteVec, ClaimsSummary, Control, MAX_PART, NetworkTag, RefusedCode};
use flatlan_roster::{
    Claim, CountersignError, CountersignedClaim, ForkProof, Kept, Ratchet, RatchetError, RosterVersion, Step,
    VerifiedHead, VerifiedRoster, VerifyError,
};
use flatlan_types::{HubKey, InviteKey, MemberId, NetworkId};

use super::{Hub, NetworkStatus, RestoreError, State, attach::Refusal, presence::PresenceTable};
use crate::{
    config::{Limits, StoredNetwork},
    forward::{AttachmentId, StreamId},
    hub::StoreOutcome,
    linkstate::Route,
    output::{HubEvent, Output, StoreToken},
};

/// All that a hub knows of one network. Tables hold nothing of another one.
pub(super) struct Network {
    id: NetworkId,
    pub(super) tag: NetworkTag,
    pub(super) roster: Option<VerifiedRoster>,
    ratchet: Ratchet,
    /// The roster's bytes and a number that names them, while nothing has changed.
    bundle: Option<(u64, Arc<Vec<u8>>)>,
    /// Countersigned, not yet on disk.
    redeeming: BTreeMap<InviteKey, Redeeming>,
    /// The write under way.
    storing: Option<Storing>,
    /// Who waits for the next write; `None` where none is needed.
    unstored: Option<Vec<StreamId>>,
    disk: Disk,
    pub(super) attached: BTreeMap<MemberId, AttachmentId>,
    /// When members attached lately: the first of a span, and how often since.
    attaching: BTreeMap<MemberId, (Instant, u32)>,
    /// Labels of its paths.
    pub(super) labels: usize,
    /// Bytes of its roster, as it came.
    size: usize,
    /// Bytes that its roster may have however much others have.
    assured: usize,
    pub(super) presence: PresenceTable,
    pub(super) watchers: BTreeMap<MemberId, BTreeSet<AttachmentId>>,
    /// Computed from the link states of this generation.
    pub(super) routes: Option<(u64, BTreeMap<HubKey, Route>)>,
}

/// Whether what is in force is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    /// The last write failed.
    Behind,
    /// As far as it was asked to.
    Good,
}

#[derive(Debug)]
struct Redeeming {
    claim: CountersignedClaim,
    waiting: Vec<StreamId>,
}

#[derive(Debug)]
struct Storing {
    token: StoreToken,
    claims: Vec<InviteKey>,
    uploaders: Vec<StreamId>,
}

impl Network {
    pub(super) fn new(id: NetworkId) -> Self {
        Self {
            id,
            tag: NetworkTag::of(&id),
            roster: None,
            ratchet: Ratchet::new(id),
            bundle: None,
            redeeming: BTreeMap::new(),
            storing: None,
            unstored: None,
            disk: Disk::Good,
            attached: BTreeMap::new(),
            attaching: BTreeMap::new(),
            labels: 0,
            size: 0,
            assured: 0,
            presence: PresenceTable::default(),
            watchers: BTreeMap::new(),
            routes: None,
        }
    }

    /// As it was stored; with what does not hold of that left out.
    pub(super) fn restore(stored: &StoredNetwork, limits: &Limits) -> (Self, Result<(), RestoreError>) {
        let size = stored.bundle.len();
        let network = Self { assured: size + growth(limits), ..Self::new(stored.network) };
        let ratchet = match Ratchet::decode(&stored.ratchet, &stored.network) {
            Ok(ratchet) => ratchet,
            Err(error) => return (network, Err(RestoreError::Ratchet(error))),
        };
        let (roster, restored) = match VerifiedRoster::verify(&stored.bundle, &ratchet, None) {
            Ok(roster) => (Some(roster), Ok(())),
            Err(error) => (None, Err(RestoreError::Roster(error))),
        };
        (Self { roster, ratchet, size, ..network }, restored)
    }

    pub(super) fn status(&self) -> NetworkStatus {
        let roster = self.roster.as_ref().map(|roster| (roster.network().name.clone(), roster.version()));
        let (attached, present) = (self.attached.len(), self.presence.present());
        NetworkStatus { network: self.id, roster, attached, present }
    }

    pub(super) fn lists_hub(&self, hub: &HubKey) -> bool {
        self.roster.as_ref().is_some_and(|roster| roster.hub(hub).is_some())
    }

    pub(super) fn lists_member(&self, member: &MemberId) -> bool {
        self.roster.as_ref().is_some_and(|roster| roster.by_id(member).is_some())
    }

    pub(super) fn unwatch(&mut self, peer: &MemberId, attachment: AttachmentId) {
        if let Some(watchers) = self.watchers.get_mut(peer) {
            watchers.remove(&attachment);
            if watchers.is_empty() {
                self.watchers.remove(peer);
            }
        }
    }

    /// At most [`ATTACHES`] in [`ATTACH_SPAN`].
    pub(super) fn may_attach(&mut self, member: &MemberId, now: Instant) -> bool {
        let (since, count) = self.attaching.entry(*member).or_insert((now, 0));
        if now.saturating_duration_since(*since) >= ATTACH_SPAN {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count <= ATTACHES
    }

    fn head_message(&self) -> Option<Control> {
        let roster = self.roster.as_ref()?;
        let (network, head) = (self.id, roster.signed_head().encode());
        Some(Control::Head { network, head, claims: summary(roster) })
    }
}

impl Hub {
    /// Messages about rosters and claims. `only` is the stream's network; a hub's stream has none.
    pub(super) fn handle_roster(&mut self, stream: StreamId, only: Option<NetworkId>, message: Control, now: Instant) {
        let (Control::Head { network, .. }
        | Control::GetRoster { network, .. }
        | Control::RosterPart { network, .. }
        | Control::PutRoster { network, .. }
        | Control::GetClaims { network, .. }
        | Control::Claims { network, .. }) = &message
        else {
            return;
        };
        let network = *network;
        if only.is_some_and(|only| only != network) {
            return self.refuse(stream, RefusedCode::NetworkRefused, "not the network of this stream", now);
        }
        if !self.allows(&network) {
            return;
        }
        if let Control::Head { head, claims, .. } = message {
            self.handle_head(stream, network, &head, claims, now);
        } else if let Control::GetRoster { offset, .. } = message {
            self.send_part(stream, network, offset as usize, now);
        } else if let Control::RosterPart { version, total, offset, bytes, .. } = message {
            self.handle_part(stream, network, (version, total as usize, offset as usize), &bytes, now);
        } else if let Control::PutRoster { total, offset, bytes, .. } = message {
            self.handle_put(stream, network, (total as usize, offset as usize), &bytes, now);
        } else if let Control::GetClaims { from, .. } = message {
            self.send_claims(stream, network, from as usize);
        } else if let Control::Claims { from, total, claims, .. } = message {
            let next = from.saturating_add(u32::try_from(claims.len()).unwrap_or(u32::MAX));
            let more = !claims.is_empty() && next < total;
            self.handle_claims(stream, network, &claims, now);
            if more {
                self.send(stream, Control::GetClaims { network, from: next });
            }
        }
    }

    /// Redeems an invite: countersigns, stores, and only then answers.
    pub(super) fn redeem(&mut self, stream: StreamId, network: NetworkId, claim: &[u8], now: Instant) {
        let unix = self.clock.unix(now);
        let limit = self.config.limits.redeeming;
        let refusal = {
            let Some(state) = self.networks.get_mut(&network) else { return };
            let Some(roster) = &state.roster else { return };
            match Claim::decode(claim, &network) {
                Err(error) => Err(Refusal::new(RefusedCode::BadClaim, error.to_string())),
                Ok(claim) => {
                    let held = roster.claims().of(claim.invite()).first().filter(|held| held.keys() == claim.keys());
                    match roster.countersign(&claim, &self.config.secret, unix) {
                        Err(error) => Err(Refusal::new(code_of(&error), error.to_string())),
                        // Redeemed before by this very node, whose answer was lost.
                        Ok(countersigned) if held.is_some() => Ok(Some(countersigned)),
                        Ok(countersigned) => state.wait(stream, &countersigned, limit).map(|()| None),
                    }
                }
            }
        };
        match refusal {
            Err(refusal) => self.refuse_request(stream, refusal),
            Ok(Some(countersigned)) => {
                self.send(stream, Control::Redeemed { network, claim: countersigned.encode() });
            }
            Ok(None) => self.store(network),
        }
    }

    pub(super) fn stored(&mut self, token: StoreToken, outcome: StoreOutcome, now: Instant) {
        let storing = |network: &Network| network.storing.as_ref().is_some_and(|storing| storing.token == token);
        let Some((network, state)) = self.networks.iter_mut().find(|(_, network)| storing(network)) else { return };
        let network = *network;
        let Some(Storing { claims, uploaders, .. }) = state.storing.take() else { return };
        let redeemed: Vec<_> = claims.iter().filter_map(|invite| state.redeeming.remove(invite)).collect();
        match outcome {
            StoreOutcome::Failed => {
                state.disk = Disk::Behind;
                self.event(HubEvent::StoreFailed { network });
                let waiting = redeemed.into_iter().flat_map(|redeeming| redeeming.waiting);
                for stream in waiting.chain(uploaders) {
                    let text = "the hub cannot write to its disk: try again later, or another hub";
                    self.refuse_request(stream, Refusal::new(RefusedCode::StoreFailed, text));
                }
            }
            StoreOutcome::Stored => {
                state.disk = Disk::Good;
                if let Some(version) = state.roster.as_ref().map(VerifiedRoster::version) {
                    for stream in uploaders {
                        self.send_stored(stream, network, version);
                    }
                }
                let new: Vec<_> = redeemed.iter().map(|redeeming| redeeming.claim.clone()).collect();
                self.fold_claims(network, new, None, now);
                for Redeeming { claim, waiting } in redeemed {
                    self.answer_redeemed(network, &claim, waiting);
                }
            }
        }
        self.store_next(network);
    }

    /// The claim is on disk; a roster may have retired its invite, or given its keys away, meanwhile.
    fn answer_redeemed(&mut self, network: NetworkId, claim: &CountersignedClaim, waiting: Vec<StreamId>) {
        let roster = self.networks.get(&network).and_then(|network| network.roster.as_ref());
        let counts = roster.is_some_and(|roster| {
            matches!(roster.claims().of(claim.invite()), [held] if held == claim)
                && roster.by_id(&claim.keys().id).is_some()
        });
        if !counts {
            let text = "the invite was cancelled or used while it was redeemed: ask for another token";
            for stream in waiting {
                self.refuse_request(stream, Refusal::new(RefusedCode::BadClaim, text));
            }
            return;
        }
        let member = roster.and_then(|roster| Some(roster.invite(claim.invite())?.0.name.clone()));
        self.event(HubEvent::ClaimRedeemed { network, member });
        for stream in waiting {
            self.send(stream, Control::Redeemed { network, claim: claim.encode() });
        }
    }

    /// Tells a neighbour the heads of networks that we share.
    pub(super) fn send_heads(&mut self, hub: HubKey, networks: &[NetworkId]) {
        for network in networks {
            if let Some(head) = self.networks.get(network).and_then(Network::head_message) {
                self.tell_hub(hub, head);
            }
        }
    }

    fn handle_head(&mut self, stream: StreamId, network: NetworkId, head: &[u8], claims: ClaimsSummary, now: Instant) {
        // every neighbour tells each head: the one that is here needs no look at its signatures
        let here = self.networks.get(&network).and_then(|network| network.roster.as_ref());
        if here.is_some_and(|roster| roster.signed_head().encode() == head) {
            return self.compare_claims(stream, network, claims);
        }
        let Ok(head) = VerifiedHead::decode(head, &network) else { return };
        let version = Some(head.version());
        let Some(state) = self.networks.get(&network) else {
            return self.ask_for_roster(stream, network, version, now);
        };
        match state.ratchet.compare(&head) {
            Ok(Step::Newer) => self.ask_for_roster(stream, network, version, now),
            Ok(Step::Same) => self.compare_claims(stream, network, claims),
            Err(RatchetError::Rollback { .. }) => {
                if let Some(ours) = state.head_message() {
                    self.send(stream, ours);
                }
            }
            Err(RatchetError::Fork(proof)) => self.keep_fork(network, &proof),
            Err(RatchetError::SerialJump { .. }) => {}
        }
    }

    fn compare_claims(&mut self, stream: StreamId, network: NetworkId, theirs: ClaimsSummary) {
        let roster = self.networks.get(&network).and_then(|network| network.roster.as_ref());
        if roster.is_some_and(|roster| summary(roster) != theirs) {
            self.send(stream, Control::GetClaims { network, from: 0 });
        }
    }

    fn send_part(&mut self, stream: StreamId, network: NetworkId, offset: usize, now: Instant) {
        let fresh = self.random.next();
        let Some(state) = self.networks.get_mut(&network) else {
            return self.refuse_request(stream, Refusal::new(RefusedCode::NoRoster, "no roster of that network"));
        };
        let Some(roster) = &state.roster else {
            return self.refuse_request(stream, Refusal::new(RefusedCode::NoRoster, "no roster of that network"));
        };
        let (version, bundle) = state.bundle.get_or_insert_with(|| (fresh, Arc::new(roster.encode())));
        let end = bundle.len().min(offset.saturating_add(MAX_PART));
        let Some(part) = bundle.get(offset..end) else {
            return self.refuse(stream, RefusedCode::BadMessage, "beyond the end of the roster", now);
        };
        let part = Control::RosterPart {
            network,
            version: *version,
            total: u32::try_from(bundle.len()).unwrap_or(u32::MAX),
            offset: u32::try_from(offset).unwrap_or(u32::MAX),
            bytes: part.to_vec(),
        };
        self.send(stream, part);
    }

    /// Takes a roster into force, if it may follow what is there.
    pub(super) fn adopt(
        &mut self,
        network: NetworkId,
        bundle: &[u8],
        uploader: Option<StreamId>,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.may_keep(network, bundle.len())?;
        let assured = bundle.len() + growth(&self.config.limits);
        let mut fresh = None;
        let state = match self.networks.get_mut(&network) {
            Some(state) => state,
            None => fresh.insert(Network { assured, ..Network::new(network) }),
        };
        let verified = VerifiedRoster::verify(bundle, &state.ratchet, state.roster.as_ref());
        let verified = match verified {
            Ok(verified) => verified,
            Err(error) => {
                if let VerifyError::Ratchet(RatchetError::Fork(proof)) = &error {
                    self.keep_fork(network, proof);
                }
                let code = match error {
                    VerifyError::Ratchet(_) => RefusedCode::OldRoster,
                    VerifyError::Claim(_)
                    | VerifyError::Decode(_)
                    | VerifyError::Head(_)
                    | VerifyError::History(_)
                    | VerifyError::Records(_)
                    | VerifyError::RecordsMismatch
                    | VerifyError::StrayClaim => RefusedCode::BadRoster,
                };
                return Err(Refusal::new(code, error.to_string()));
            }
        };
        let version = verified.version();
        let step = state.ratchet.advance(&verified);
        let step = step.map_err(|error| Refusal::new(RefusedCode::OldRoster, error.to_string()))?;
        if step == Step::Same && state.roster.is_some() {
            let news: Vec<_> = verified.claims().iter().cloned().collect();
            self.add_claims(network, news, None, now);
            let state = self.networks.get_mut(&network);
            let waits = state.is_some_and(|state| state.wait_for_store(uploader));
            if let Some(stream) = uploader
                && !waits
            {
                self.send_stored(stream, network, version);
            }
            self.store_next(network);
            return Ok(());
        }
        let held: Vec<_> = state.roster.iter().flat_map(|roster| roster.claims().iter().cloned()).collect();
        state.roster = Some(verified.with_claims(held).unwrap_or(verified));
        state.size = bundle.len();
        state.bundle = None;
        state.routes = None;
        state.unstored.get_or_insert_default().extend(uploader);
        if let Some(fresh) = fresh {
            self.networks.insert(network, fresh);
        }
        self.event(HubEvent::RosterAdopted { network, version });
        self.roster_changed(network, now);
        self.store_next(network);
        Ok(())
    }

    /// Whether there is room for a roster of this size. Anyone can sign rosters of their own networks: those
    /// that nobody allowed by name have a share. Whoever is here can publish, and revoke, once it is spent.
    fn may_keep(&self, network: NetworkId, size: usize) -> Result<(), Refusal> {
        let here = self.networks.get(&network);
        if self.config.allow.names(&network) || here.is_some_and(|here| size <= here.size.max(here.assured)) {
            return Ok(());
        }
        let others = self.networks.values().filter(|other| other.id != network && !self.config.allow.names(&other.id));
        let (count, bytes) = others.fold((0, 0), |(count, bytes), other| (count + 1, bytes + other.size));
        let limits = &self.config.limits;
        if (here.is_none() && count >= limits.networks) || bytes + size > limits.rosters {
            return Err(Refusal::new(RefusedCode::Quota, "this hub keeps as many networks as it may: use another one"));
        }
        Ok(())
    }

    /// Keeps the first proof that the roster was forked, and says so once.
    fn keep_fork(&mut self, network: NetworkId, proof: &ForkProof) {
        let Some(state) = self.networks.get_mut(&network) else { return };
        if state.ratchet.keep_proof(proof) == Kept::First {
            self.event(HubEvent::Forked { network });
            self.store(network);
        }
    }

    /// Cuts off whoever is no longer listed, and tells everyone else.
    fn roster_changed(&mut self, network: NetworkId, now: Instant) {
        let Some(state) = self.networks.get_mut(&network) else { return };
        let Some(roster) = &state.roster else { return };
        state.presence.retain_members(|member| roster.by_id(member).is_some());
        state.presence.retain_hubs(|hub| roster.hub(hub).is_some());
        state.attaching.retain(|member, _| roster.by_id(member).is_some());
        let removed: Vec<_> = state
            .attached
            .iter()
            .filter(|(member, _)| roster.by_id(member).is_none())
            .map(|(_, attachment)| *attachment)
            .collect();
        for attachment in removed {
            self.expel(attachment, Refusal::new(RefusedCode::NotMember, "removed from the network"), now);
        }
        self.drop_strangers(network, now);
        self.tell_head(network, None);
        self.set_diallers(now);
        self.neighbours_changed(now);
    }

    /// Tells the head to every node and hub of the network.
    fn tell_head(&mut self, network: NetworkId, except: Option<HubKey>) {
        let Some(state) = self.networks.get(&network) else { return };
        let Some(message) = state.head_message() else { return };
        let nodes: Vec<_> =
            state.attached.values().filter_map(|node| Some(self.attachments.get(node.0)?.control)).collect();
        for node in nodes {
            self.send(node, message.clone());
        }
        self.tell_hubs(network, except, &message);
    }

    fn send_claims(&mut self, stream: StreamId, network: NetworkId, from: usize) {
        let Some(roster) = self.networks.get(&network).and_then(|network| network.roster.as_ref()) else {
            return self.refuse_request(stream, Refusal::new(RefusedCode::NoRoster, "no roster of that network"));
        };
        let total = u32::try_from(roster.claims().len()).unwrap_or(u32::MAX);
        let mut size = 0;
        let claims = roster.claims().iter().skip(from).map(CountersignedClaim::encode).take_while(|claim| {
            size += claim.len() + 4;
            size <= MAX_PART
        });
        let claims = claims.map(ByteVec::from).collect();
        let from = u32::try_from(from).unwrap_or(u32::MAX);
        self.send(stream, Control::Claims { network, from, total, claims });
    }

    fn handle_claims(&mut self, stream: StreamId, network: NetworkId, claims: &[ByteVec], now: Instant) {
        let Some(roster) = self.networks.get(&network).and_then(|network| network.roster.as_ref()) else { return };
        // Three signatures each: checked only for invites that are open here, and only once.
        let open = |claim: &&ByteVec| {
            let invite = CountersignedClaim::peek_invite(claim);
            invite.is_some_and(|invite| roster.invite(&invite).is_some()) && roster.claims().known(claim).is_none()
        };
        let news = claims.iter().filter(open);
        let checked = news.map(|claim| CountersignedClaim::decode(claim, &network)).collect::<Result<Vec<_>, _>>();
        self.claims_checked += checked.as_ref().map_or(1, Vec::len) as u64;
        let Ok(wanted) = checked else {
            // Whoever hands a claim on has checked it.
            return self.refuse(stream, RefusedCode::BadMessage, "a claim whose signatures do not hold", now);
        };
        let from = match self.streams.get(&stream).map(|stream| stream.state) {
            Some(State::Hub(hub)) => Some(hub),
            Some(_) | None => None,
        };
        self.add_claims(network, wanted, from, now);
    }

    fn add_claims(&mut self, network: NetworkId, claims: Vec<CountersignedClaim>, from: Option<HubKey>, now: Instant) {
        if self.fold_claims(network, claims, from, now) == Folded::News {
            self.store(network);
        }
    }

    /// Folds claims in and hands them on; the caller sees to it that they are stored.
    fn fold_claims(
        &mut self,
        network: NetworkId,
        claims: Vec<CountersignedClaim>,
        from: Option<HubKey>,
        now: Instant,
    ) -> Folded {
        let Some(state) = self.networks.get_mut(&network) else { return Folded::Nothing };
        let Some(changed) = state.roster.as_ref().and_then(|roster| roster.with_claims(claims.iter().cloned())) else {
            return Folded::Nothing;
        };
        let total = u32::try_from(changed.claims().len()).unwrap_or(u32::MAX);
        state.roster = Some(changed);
        state.bundle = None;
        let nodes: Vec<_> =
            state.attached.values().filter_map(|node| Some(self.attachments.get(node.0)?.control)).collect();
        for chunk in claims.chunks(MAX_CLAIMS) {
            let claims: Vec<_> = chunk.iter().map(|claim| ByteVec::from(claim.encode())).collect();
            let message = Control::Claims { network, from: total, total, claims };
            for node in &nodes {
                self.send(*node, message.clone());
            }
            self.tell_hubs(network, from, &message);
        }
        self.roster_changed(network, now);
        Folded::News
    }

    fn store(&mut self, network: NetworkId) {
        if let Some(state) = self.networks.get_mut(&network) {
            state.unstored.get_or_insert_default();
        }
        self.store_next(network);
    }

    /// Begins the next write, where one is needed and none is under way.
    fn store_next(&mut self, network: NetworkId) {
        let token = StoreToken(self.next_id());
        let Some(state) = self.networks.get_mut(&network) else { return };
        if state.storing.is_some() {
            return;
        }
        let Some(uploaders) = state.unstored.take() else { return };
        let Some(roster) = &state.roster else { return };
        let claims: Vec<_> = state.redeeming.keys().copied().collect();
        let with = roster.with_claims(state.redeeming.values().map(|redeeming| redeeming.claim.clone()));
        let bundle = Arc::new(with.as_ref().unwrap_or(roster).encode());
        let ratchet = state.ratchet.encode();
        state.storing = Some(Storing { token, claims, uploaders });
        self.outputs.push_back(Output::Store { token, network, bundle, ratchet });
    }

    fn send_stored(&mut self, stream: StreamId, network: NetworkId, version: RosterVersion) {
        let (key_epoch, serial) = (u64::from(version.key_epoch), version.serial);
        if self.streams.contains_key(&stream) {
            self.send(stream, Control::Stored { network, key_epoch, serial });
        }
    }

    /// Answers a request with a refusal; the stream stays.
    pub(super) fn refuse_request(&mut self, stream: StreamId, refusal: Refusal) {
        if self.streams.contains_key(&stream) {
            self.send(stream, refusal.message());
        }
    }
}

impl Network {
    /// Lets `stream` wait until this claim is on disk.
    fn wait(&mut self, stream: StreamId, claim: &CountersignedClaim, limit: usize) -> Result<(), Refusal> {
        let taken = "the token was already redeemed by another machine, or its keys are in use";
        if let Some(redeeming) = self.redeeming.get_mut(claim.invite()) {
            if redeeming.claim.keys() != claim.keys() {
                return Err(Refusal::new(RefusedCode::BadClaim, taken));
            }
            redeeming.waiting.push(stream);
            return Ok(());
        }
        let same = |other: &Redeeming| {
            other.claim.keys().id == claim.keys().id || other.claim.keys().session == claim.keys().session
        };
        if self.redeeming.values().any(same) {
            return Err(Refusal::new(RefusedCode::BadClaim, taken));
        }
        if self.redeeming.len() >= limit {
            return Err(Refusal::new(RefusedCode::Quota, "too many machines join at once: try again"));
        }
        let redeeming = Redeeming { claim: claim.clone(), waiting: vec![stream] };
        self.redeeming.insert(*claim.invite(), redeeming);
        Ok(())
    }

    /// Whether a write is under way or due; the uploader then hears when it is done.
    fn wait_for_store(&mut self, uploader: Option<StreamId>) -> bool {
        if let Some(waiting) = &mut self.unstored {
            waiting.extend(uploader);
            true
        } else if let Some(storing) = &mut self.storing {
            storing.uploaders.extend(uploader);
            true
        } else if self.disk == Disk::Behind {
            self.unstored = Some(Vec::from_iter(uploader));
            true
        } else {
            false
        }
    }
}

/// How much larger a roster may get than it came here first, once the share of all is spent. Together it is
/// at most that share again.
fn growth(limits: &Limits) -> usize {
    limits.rosters / limits.networks.max(1)
}

/// The claims' summary as the wire has it.
pub(super) fn summary(roster: &VerifiedRoster) -> ClaimsSummary {
    let flatlan_roster::ClaimsSummary { count, hash } = roster.claims_summary();
    ClaimsSummary { count, hash }
}

fn code_of(error: &CountersignError) -> RefusedCode {
    match error {
        CountersignError::OtherHub { .. } => RefusedCode::WrongRedeemer,
        CountersignError::Expired { .. }
        | CountersignError::KeyTaken { .. }
        | CountersignError::Redeemed { .. }
        | CountersignError::UnknownInvite => RefusedCode::BadClaim,
    }
}

/// Whether claims changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Folded {
    News,
    Nothing,
}

/// Claims in one message.
const MAX_CLAIMS: usize = 64;
/// How often a member may attach to this hub in [`ATTACH_SPAN`].
const ATTACHES: u32 = 20;
const ATTACH_SPAN: Duration = Duration::from_secs(10);
