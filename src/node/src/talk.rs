//! What is said to hubs and peers about rosters, candidates and epochs.

use std::{
    cmp::Ordering,
    time::{Duration, Instant},
};

use flatlan_datapath::Command;
use flatlan_path::PathKind;
use flatlan_relay::{ClaimsSummary, Control, MAX_PART, Presence};
use flatlan_roster::CountersignedClaim;
use flatlan_types::{HubSlot, PeerSlot, UnixTime};
use minicbor::bytes::ByteVec;

use crate::{
    Alarm,
    candidates::admissible,
    fetch::{HubFetch, MAX_PEER_FETCHES, PeerFetch, Progress, Told, pieces},
    node::{Node, Rules},
    peer_message::{Part, PartRequest, PeerMessage, Summary, WINDOW},
    peers::Offer,
    roster::{News, Offered},
};

impl Node {
    // ---- peers

    /// Tells a peer our candidates, and asks for its own, until it answers.
    pub(crate) fn offer(&mut self, slot: PeerSlot, now: Instant) {
        let reachable = self.relays.has_label(slot);
        let Some(peer) = self.peers.get_mut(slot).filter(|peer| peer.is_node()) else { return };
        if !reachable && peer.told.is_empty() {
            peer.offer = None;
            return;
        }
        let tries = peer.offer.map_or(0, |offer| offer.tries);
        if let Some(sent) = peer.sent.filter(|sent| now.duration_since(*sent) < OFFER_SPACING) {
            peer.offer = Some(Offer { next: sent + OFFER_SPACING, tries });
            return;
        }
        let pause = OFFER_AGAIN.saturating_mul(1 << tries.min(6));
        peer.offer = (tries < OFFER_TRIES).then(|| Offer { next: now + pause, tries: tries + 1 });
        peer.sent = Some(now);
        let mut message = self.introduction();
        message.answer = Some(true);
        self.say(slot, &message, None);
    }

    /// A message from a peer's node, authentic under the pair's key.
    pub(crate) fn handle_peer_message(
        &mut self,
        slot: PeerSlot,
        ingress: PathKind,
        bytes: &[u8],
        now: Instant,
        _unix: UnixTime,
    ) {
        if self.peers.get(slot).is_none_or(|peer| !peer.is_node()) {
            return;
        }
        let message = match PeerMessage::decode(bytes) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(peer = slot.0, reason = %error, "a peer's message is refused");
                self.refused_messages += 1;
                return;
            }
        };
        if let Some(presence) = &message.presence {
            self.on_statement(slot, presence, now);
        }
        if let Some(greater) = message.stale.as_ref().and_then(|presence| self.me.greater_epoch(presence)) {
            self.raise_epoch(greater, now);
        }
        if let Some(candidates) = message.candidates {
            self.take_interest(slot, now);
            let rules = Rules { overlay: &self.overlay, hubs: &self.hubs };
            let offered = admissible(candidates, &rules);
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.offer = None;
                peer.offered = offered;
            }
            self.tell_direct(slot);
            if message.answer == Some(true) {
                self.answer(slot, ingress, now);
            }
        }
        if let Some(withdrawn) = message.withdrawn {
            self.on_withdrawn(slot, withdrawn);
        }
        if let Some(summary) = message.summary {
            self.on_summary(slot, summary, now);
        }
        if let Some(request) = message.request {
            self.serve_peer(slot, &request, ingress, now);
        }
        if let Some(part) = message.part {
            self.on_piece(slot, part, now);
        }
    }

    /// A peer speaks under an epoch below its greatest: hand it the proof.
    pub(crate) fn tell_stale(&mut self, slot: PeerSlot, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot).filter(|peer| peer.is_node()) else { return };
        if peer.stale_told.is_some_and(|told| now.duration_since(told) < STALE_SPACING) {
            return;
        }
        let Some((_, statement)) = peer.statement.clone() else { return };
        peer.stale_told = Some(now);
        let message = PeerMessage { stale: Some(statement.into()), ..PeerMessage::new() };
        self.say(slot, &message, None);
    }

    /// Our head changed: everybody who may be behind hears of it now.
    pub(crate) fn tell_everybody(&mut self, now: Instant) {
        for hub in self.hubs.attached().collect::<Vec<_>>() {
            self.tell_head(hub);
        }
        for slot in self.peers.active() {
            self.summarize(slot, now);
        }
    }

    /// Timers of the peers of interest.
    pub(crate) fn peers_timeout(&mut self, now: Instant) {
        for slot in self.peers.active() {
            let Some(peer) = self.peers.get(slot) else { continue };
            if peer.offer.is_some_and(|offer| offer.next <= now) {
                self.offer(slot, now);
            }
            let Some(peer) = self.peers.get(slot) else { continue };
            if peer.session && peer.summarized.is_none_or(|last| now.duration_since(last) >= SUMMARY_EVERY) {
                self.summarize(slot, now);
            }
            let Some(peer) = self.peers.get(slot) else { continue };
            if !peer.session && peer.interest.is_some_and(|last| now.duration_since(last) >= INTEREST) {
                self.idle(slot, now);
            }
        }
    }

    /// When [`Node::peers_timeout`] has something to do.
    pub(crate) fn peers_next(&self) -> Option<Instant> {
        let peers = self.peers.active().into_iter().filter_map(|slot| self.peers.get(slot));
        let next = peers.flat_map(|peer| {
            let offer = peer.offer.map(|offer| offer.next);
            let summary = peer.summarized.filter(|_| peer.session).map(|last| last + SUMMARY_EVERY);
            let interest = peer.interest.filter(|_| !peer.session).map(|last| last + INTEREST);
            [offer, summary, interest].into_iter().flatten()
        });
        next.min()
    }

    fn answer(&mut self, slot: PeerSlot, ingress: PathKind, now: Instant) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if peer.sent.is_some_and(|sent| now.duration_since(sent) < ANSWER_SPACING) {
            return;
        }
        peer.sent = Some(now);
        // what came directly is answered there: it may be the only way back
        let path = ingress.is_direct().then_some(ingress);
        let message = self.introduction();
        self.say(slot, &message, path);
    }

    fn introduction(&self) -> PeerMessage {
        PeerMessage {
            presence: Some(self.me.statement().to_vec().into()),
            candidates: Some(self.candidates.clone()),
            summary: self.keeper.newest().map(|held| held.summary),
            withdrawn: self.lan_statement(),
            ..PeerMessage::new()
        }
    }

    fn summarize(&mut self, slot: PeerSlot, now: Instant) {
        let Some(summary) = self.keeper.newest().map(|held| held.summary) else { return };
        let Some(peer) = self.peers.get_mut(slot).filter(|peer| peer.is_node()) else { return };
        peer.summarized = Some(now);
        let withdrawn = self.lan_statement();
        let message = PeerMessage { summary: Some(summary), withdrawn, ..PeerMessage::new() };
        self.say(slot, &message, None);
    }

    fn on_statement(&mut self, slot: PeerSlot, bytes: &[u8], now: Instant) {
        let Some((network, id, _, order)) = Presence::peek(bytes) else { return };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let known = peer.statement.as_ref().is_some_and(|(epoch, _)| *epoch >= order.epoch);
        if known || network != self.me.network || id != peer.id || Presence::verify(bytes).is_err() {
            return;
        }
        peer.statement = Some((order.epoch, bytes.to_vec()));
        peer.epoch = peer.epoch.max(order.epoch);
        self.remember_soon(now);
    }

    fn on_summary(&mut self, slot: PeerSlot, theirs: Summary, now: Instant) {
        let Some(ours) = self.keeper.newest().map(|held| held.summary) else { return };
        match self.keeper.compare(&theirs) {
            Ordering::Greater => self.fetch_from_peer(slot, theirs, now),
            Ordering::Less => self.summarize_soon(slot, now),
            Ordering::Equal if ours.same_contents(&theirs) => {}
            Ordering::Equal => {
                self.fetch_from_peer(slot, theirs, now);
                self.summarize_soon(slot, now);
            }
        }
    }

    /// A peer is behind: it asks when it knows.
    fn summarize_soon(&mut self, slot: PeerSlot, now: Instant) {
        let last = self.peers.get(slot).and_then(|peer| peer.summarized);
        if last.is_none_or(|last| now.duration_since(last) >= SUMMARY_SPACING) {
            self.summarize(slot, now);
        }
    }

    fn serve_peer(&mut self, slot: PeerSlot, request: &PartRequest, ingress: PathKind, now: Instant) {
        let Some(held) = self.keeper.current() else { return };
        if held.summary.head != request.head || held.summary.claims_hash != request.claims_hash {
            return;
        }
        if !self.peers.get_mut(slot).is_some_and(|peer| peer.may_have(WINDOW, now)) {
            return;
        }
        let bytes = held.bytes.clone();
        let path = ingress.is_direct().then_some(ingress);
        for part in pieces(&bytes, request) {
            self.say(slot, &PeerMessage { part: Some(part), ..PeerMessage::new() }, path);
        }
    }

    pub(crate) fn say(&mut self, slot: PeerSlot, message: &PeerMessage, path: Option<PathKind>) {
        self.out.worker(Command::SendMessage { peer: slot, bytes: message.encode(), path });
    }

    // ---- hubs

    /// A hub's newest head.
    pub(crate) fn on_head(&mut self, hub: HubSlot, head: &[u8], claims: ClaimsSummary, now: Instant) {
        let known = self.announced.remove(&hub).filter(|told| told.is(head, &claims));
        match self.keeper.judge(head, &claims, &mut self.out) {
            News::Newer | News::Claims => {
                let told = known.unwrap_or_else(|| Told::new(head.to_vec(), claims, now));
                self.announced.insert(hub, told);
                self.fetch_from_hub(hub, now);
            }
            News::Older => self.tell_head(hub),
            News::Fork(proof) => self.on_offered(Offered::Fork(proof)),
            News::Refused | News::Same => {}
        }
    }

    /// Tells a hub our head: it may be the one that is behind.
    pub(crate) fn tell_head(&mut self, hub: HubSlot) {
        let Some(held) = self.keeper.current() else { return };
        let head = held.roster.signed_head().encode();
        let message = Control::Head { network: self.me.network, head, claims: held.claims() };
        self.hubs.send(hub, &message, &mut self.out);
    }

    /// A hub wants our roster.
    pub(crate) fn serve_hub(&mut self, hub: HubSlot, offset: u32) {
        let Some(held) = self.keeper.current() else { return };
        let rest = held.bytes.get(offset as usize..).unwrap_or_default();
        let bytes = rest.get(..MAX_PART).unwrap_or(rest).to_vec();
        let version = held.summary.head.iter().zip(held.summary.claims_hash).take(8);
        let version = version.fold(0, |word, (a, b)| word << 8 | u64::from(a ^ b));
        let total = held.bytes.len() as u32;
        let message = Control::RosterPart { network: self.me.network, version, total, offset, bytes };
        self.hubs.send(hub, &message, &mut self.out);
    }

    /// A hub wants our claims, from this place in their order: as many as fit one message.
    pub(crate) fn serve_claims(&mut self, hub: HubSlot, from: u32) {
        let Some(held) = self.keeper.current() else { return };
        let claims = held.roster.claims();
        let total = claims.len() as u32;
        let mut size = 0;
        let page = claims.iter().skip(from as usize).map(CountersignedClaim::encode).take_while(|claim| {
            size += claim.len() + ENTRY;
            size <= MAX_PART
        });
        let claims = page.map(ByteVec::from).collect();
        self.hubs.send(hub, &Control::Claims { network: self.me.network, from, total, claims }, &mut self.out);
    }

    /// A part of a hub's roster.
    pub(crate) fn on_part(&mut self, hub: HubSlot, version: u64, total: u32, offset: u32, bytes: &[u8], now: Instant) {
        let Some(fetch) = self.hub_fetches.get_mut(&hub) else { return };
        match fetch.handle_part(version, total, offset, bytes, now) {
            Progress::Done(bytes) => {
                let offered = self.keeper.offer(bytes.into(), &mut self.out);
                self.end_hub_fetch(hub, &offered, now);
                if matches!(offered, Offered::Nothing | Offered::Accepted) {
                    // what we hold beyond theirs is theirs for the asking
                    self.tell_newest(hub);
                }
                self.on_offered(offered);
                self.fetch_from_hub(hub, now);
            }
            Progress::More(offset) => {
                self.hubs.send(hub, &Control::GetRoster { network: self.me.network, offset }, &mut self.out);
            }
            Progress::Nothing => {}
        }
    }

    /// What became of a roster or of claims, told to whom it concerns.
    pub(crate) fn on_offered(&mut self, offered: Offered) {
        match offered {
            Offered::Accepted => {
                let newest = self.keeper.newest().map(|held| held.summary.order());
                self.peer_fetches.retain(|_, fetch| Some(fetch.summary.order()) > newest);
                for hub in self.announced.keys().copied().collect::<Vec<_>>() {
                    self.judge_again(hub);
                }
            }
            Offered::Fork(proof) => {
                tracing::error!(reason = %proof, "two rosters that exclude each other: the first is kept");
                self.alarm(Alarm::Fork { serial: proof.second().version().serial });
            }
            Offered::Nothing => {}
            Offered::Refused(error) => tracing::warn!(reason = %error, "a roster is refused"),
        }
    }

    /// Asks a hub that told of something newer, where it is not being asked and its turn has come.
    fn fetch_from_hub(&mut self, hub: HubSlot, now: Instant) {
        if self.hub_turn(hub).is_none_or(|turn| turn > now) {
            return;
        }
        self.judge_again(hub);
        let Some(told) = self.announced.get(&hub) else { return };
        if !self.hubs.is_attached(hub) {
            self.announced.remove(&hub);
            return;
        }
        self.hub_fetches.insert(hub, HubFetch::told(told, now));
        let message = Control::GetRoster { network: self.me.network, offset: 0 };
        self.hubs.send(hub, &message, &mut self.out);
    }

    /// When to ask a hub that told of something newer and is not being asked.
    fn hub_turn(&self, hub: HubSlot) -> Option<Instant> {
        let told = self.announced.get(&hub).filter(|_| !self.hub_fetches.contains_key(&hub))?;
        Some(told.turn(self.hub_fetches.values()))
    }

    /// Forgets what a hub told of, and stops asking for it, where we hold as much by now.
    fn judge_again(&mut self, hub: HubSlot) -> Option<News> {
        let told = self.announced.get(&hub)?;
        let news = self.keeper.judge(&told.head, &told.claims, &mut self.out);
        if matches!(news, News::Newer | News::Claims) {
            return Some(news);
        }
        if self.hub_fetches.get(&hub).is_some_and(|fetch| fetch.is_of(told)) {
            self.hub_fetches.remove(&hub);
        }
        self.announced.remove(&hub);
        if let News::Fork(proof) = news {
            self.on_offered(Offered::Fork(proof));
        }
        None
    }

    /// A hub gave a roster. What it told of meanwhile is asked for at once.
    fn end_hub_fetch(&mut self, hub: HubSlot, offered: &Offered, now: Instant) {
        let Some(fetch) = self.hub_fetches.remove(&hub) else { return };
        if self.announced.get(&hub).is_none_or(|told| !fetch.is_of(told)) {
            return;
        }
        match (self.judge_again(hub), offered) {
            // an older one, say: the newer is signed, so somebody has it
            (Some(News::Newer), Offered::Accepted | Offered::Nothing) => {
                if let Some(told) = self.announced.get_mut(&hub) {
                    told.wait(now);
                }
            }
            _ => {
                self.announced.remove(&hub);
            }
        }
    }

    /// Timers of the fetches.
    pub(crate) fn fetch_timeout(&mut self, now: Instant) {
        let silent = self.hub_fetches.iter().filter(|(_, fetch)| fetch.deadline() <= now);
        for hub in silent.map(|(hub, _)| *hub).collect::<Vec<_>>() {
            tracing::warn!(hub = %self.hubs.label(hub), "a hub does not give the roster that it told of");
            let fetch = self.hub_fetches.remove(&hub);
            if let (Some(fetch), Some(told)) = (fetch, self.announced.get_mut(&hub))
                && fetch.is_of(told)
            {
                told.wait(now);
            }
        }
        for hub in self.announced.keys().copied().collect::<Vec<_>>() {
            self.fetch_from_hub(hub, now);
        }
        let due = self.peer_fetches.iter().filter(|(_, fetch)| fetch.next <= now);
        for peer in due.map(|(peer, _)| *peer).collect::<Vec<_>>() {
            let alive = self.peers.get(peer).is_some_and(|peer| peer.is_node());
            let request = self.peer_fetches.get_mut(&peer).and_then(|fetch| fetch.ask(now));
            match request.filter(|_| alive) {
                Some(request) => self.say(peer, &PeerMessage { request: Some(request), ..PeerMessage::new() }, None),
                None => self.end_peer_fetch(peer),
            }
        }
    }

    /// When [`Node::fetch_timeout`] has something to do.
    pub(crate) fn fetch_next(&self) -> Option<Instant> {
        let hubs = self.hub_fetches.values().map(HubFetch::deadline);
        let turns = self.announced.keys().filter_map(|hub| self.hub_turn(*hub));
        hubs.chain(turns).chain(self.peer_fetches.values().map(|fetch| fetch.next)).min()
    }

    fn fetch_from_peer(&mut self, slot: PeerSlot, theirs: Summary, now: Instant) {
        let Some(peer) = self.peers.get(slot) else { return };
        let most = if peer.misled { MAX_PEER_FETCHES / 2 } else { MAX_PEER_FETCHES };
        let busy = self.peer_fetches.contains_key(&slot) || self.peer_fetches.len() >= most;
        if busy || self.fruitless.contains(&(slot, theirs.head, theirs.claims_hash)) {
            return;
        }
        let same = self.peer_fetches.values().filter(|fetch| fetch.summary.same_contents(&theirs)).count();
        self.peer_fetches.insert(slot, PeerFetch::new(theirs, same, now));
    }

    /// A piece of a peer's roster.
    fn on_piece(&mut self, slot: PeerSlot, part: Part, now: Instant) {
        let Some(fetch) = self.peer_fetches.get_mut(&slot) else { return };
        let of = (slot, fetch.summary.head, fetch.summary.claims_hash);
        match fetch.handle_part(part, now) {
            Progress::Done(bytes) => {
                self.end_peer_fetch(slot);
                let offered = self.keeper.offer(bytes.into(), &mut self.out);
                if matches!(offered, Offered::Accepted) {
                    tracing::warn!(peer = slot.0, "a peer has a newer roster than the hubs tell of");
                    if let Some(peer) = self.peers.get_mut(slot) {
                        peer.misled = false;
                    }
                } else {
                    self.fruitless.truncate(MAX_FRUITLESS - 1);
                    self.fruitless.insert(0, of);
                }
                self.on_offered(offered);
            }
            Progress::More(_) => self.fetch_timeout(now),
            Progress::Nothing => {}
        }
    }

    /// Whoever is asked in vain waits longer for the next turn.
    fn end_peer_fetch(&mut self, slot: PeerSlot) {
        self.peer_fetches.remove(&slot);
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.misled = true;
        }
    }

    /// Tells a hub of what we hold, where that differs from what it just gave.
    fn tell_newest(&mut self, hub: HubSlot) {
        let differs = self.keeper.newest().map(|held| held.summary) != self.keeper.current().map(|held| held.summary);
        if !differs {
            self.tell_head(hub);
        }
    }
}

/// What a claim costs in a message beside its own bytes, at the most.
const ENTRY: usize = 4;
/// Offers of candidates are so far apart at the least.
const OFFER_SPACING: Duration = Duration::from_millis(100);
/// An offer without an answer is made again after this, then after twice as long, and so on.
const OFFER_AGAIN: Duration = Duration::from_millis(200);
const OFFER_TRIES: u32 = 6;
/// Answers with candidates are so far apart at the least.
const ANSWER_SPACING: Duration = Duration::from_millis(50);
/// Peers with a session hear which roster we hold this often.
pub(crate) const SUMMARY_EVERY: Duration = Duration::from_secs(5);
/// And a peer that is behind hears it no more often than this.
const SUMMARY_SPACING: Duration = Duration::from_secs(1);
/// A peer with a stale epoch is told so no more often than this.
const STALE_SPACING: Duration = Duration::from_millis(500);
/// A peer without a session that nobody asked for in this time is of no interest any more.
const INTEREST: Duration = Duration::from_secs(60);
/// Rosters that brought nothing new, remembered.
const MAX_FRUITLESS: usize = 64;
