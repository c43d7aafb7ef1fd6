//! A stream's way from the hub's hello to its end: attaching, data streams, reading as a stranger.

use std::time::Duration;

use flatlan_datapath::Command;
use flatlan_relay::{
    Attach, Attached, Control, MAX_PART, Proof, RefusedCode, Role,
    auth::{AttachScope, Exporter, verify_hello},
};
use flatlan_types::{Endpoint, HostPort, HubKey, HubSlot};

use super::{
    Context, DataStream, HubEvent, Hubs, Phase, Purpose, Stream,
    attachment::{Attachment, MAX_PLACES},
};
use crate::{
    fetch::{HubFetch, Progress},
    identity::NO_HUB,
    output::{Outbox, Output, StreamId},
};

impl Hubs {
    pub(super) fn on_hello(
        &mut self,
        id: StreamId,
        exporter: Exporter,
        remote: Option<Endpoint>,
        message: &Control,
        ctx: &mut Context<'_>,
    ) {
        let Some(stream) = self.streams.get(&id) else { return };
        let Control::HubHello { key, signature, .. } = message else { return self.fail(id, ctx) };
        let place = stream.place.clone();
        if verify_hello(key, &exporter, signature).is_err() || *key == NO_HUB {
            tracing::warn!(endpoint = %place, "whoever answers there has not the hub's key");
            return self.fail(id, ctx);
        }
        let known = self.hubs.iter().find(|hub| hub.key == *key);
        let wanted = match stream.purpose {
            Purpose::Control => {
                let member = self.listed.is_none() || known.is_some_and(|hub| hub.listed);
                if !member {
                    tracing::warn!(endpoint = %place, hub = %key, "the hub there is not in the roster");
                }
                member && known.is_none_or(|hub| hub.control.is_none())
            }
            Purpose::Data(slot) | Purpose::Measure(slot) => self.key(slot) == Some(*key),
            Purpose::Read => self.listed.is_none() || known.is_some_and(|hub| hub.listed),
        };
        if !wanted {
            return self.fail(id, ctx);
        }
        let network = ctx.me.network;
        let role = stream.purpose.role();
        let presence = match stream.purpose {
            Purpose::Control => Some(ctx.me.attach_to(*key).encode()),
            Purpose::Data(_) => Some(Vec::new()),
            Purpose::Measure(_) | Purpose::Read => None,
        };
        let scope = AttachScope { exporter: &exporter, hub: key, network: &network, role };
        let proof = presence.map_or(Proof::Nothing, |presence| Proof::Node {
            id: ctx.me.keys.id,
            presence,
            signature: scope.sign_node(&ctx.me.secret),
        });
        let attach = Attach { version: flatlan_relay::VERSION, network, role, proof };
        ctx.out.send(id, &Control::Attach(attach));
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.phase = Phase::Answer { key: *key, remote };
            stream.deadline = Some(ctx.now + ANSWER);
        }
    }

    pub(super) fn on_answer(
        &mut self,
        id: StreamId,
        key: HubKey,
        remote: Option<Endpoint>,
        message: Control,
        ctx: &mut Context<'_>,
    ) {
        let Some(stream) = self.streams.get(&id) else { return };
        let purpose = stream.purpose;
        #[expect(clippy::wildcard_enum_match_arm, reason = "everything but an answer is out of order here")]
        match message {
            Control::Attached(attached) => match purpose {
                Purpose::Control => self.on_attached(id, key, remote, attached, ctx),
                Purpose::Data(slot) => self.on_data(id, slot, ctx),
                Purpose::Measure(_) => self.begin_measuring(id, ctx),
                Purpose::Read => self.begin_reading(id, ctx),
            },
            Control::Refused { code, text, presence } => {
                tracing::debug!(hub = %key, reason = %text, "a hub refuses");
                let place = stream.place.clone();
                self.fail(id, ctx);
                if purpose == Purpose::Control {
                    if code == RefusedCode::NotMember {
                        self.read_at(place, key, ctx);
                    }
                    self.events.push_back(HubEvent::Refused { code, presence });
                }
            }
            _ => self.fail(id, ctx),
        }
    }

    pub(super) fn on_attached(
        &mut self,
        id: StreamId,
        key: HubKey,
        remote: Option<Endpoint>,
        attached: Attached,
        ctx: &mut Context<'_>,
    ) {
        let Some(hub) = self.ensure(key) else { return self.fail(id, ctx) };
        if hub.control.is_some() {
            return self.fail(id, ctx);
        }
        let slot = hub.slot;
        let mut attachment = Attachment::new(id, attached.bind, remote, ctx.now);
        for place in hub.udp.iter().chain(attached.udp.iter().take(MAX_PLACES)) {
            attachment.add_name(place);
        }
        let names = attachment.names.clone();
        let lost = std::mem::take(&mut hub.lost);
        hub.control = Some(attachment);
        hub.data = DataStream { next: Some(ctx.now), ..DataStream::default() };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.phase = Phase::Open(slot);
            stream.deadline = None;
        }
        let mut told = false;
        for target in &mut self.targets {
            if target.dialling == Some(id) || target.key == Some(key) {
                target.backoff.reset();
                told |= std::mem::take(&mut target.told);
                target.next = ctx.now;
            }
            if target.dialling == Some(id) {
                target.dialling = None;
            }
        }
        if lost || told {
            tracing::info!(hub = %self.label(slot), "hub is back");
        } else {
            tracing::debug!(hub = %self.label(slot), "attached");
        }
        for place in names {
            ctx.out.push(Output::Resolve { place });
        }
        self.tell_workers(slot, ctx);
        self.events.push_back(HubEvent::Attached { hub: slot, head: attached.head, claims: attached.claims });
        self.dial(ctx);
    }

    pub(super) fn on_data(&mut self, id: StreamId, slot: HubSlot, ctx: &mut Context<'_>) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.phase = Phase::Open(slot);
            stream.deadline = None;
        }
        let Some(hub) = self.hub_mut(slot) else { return };
        hub.data = DataStream { open: Some(id), ..DataStream::default() };
        ctx.out.push(Output::BindData { stream: id, hub: slot });
        self.tell_workers(slot, ctx);
    }

    pub(super) fn on_message(&mut self, slot: HubSlot, id: StreamId, message: Control, ctx: &mut Context<'_>) {
        let Some(attachment) = self.attachment_mut(slot).filter(|attachment| attachment.stream == id) else { return };
        (attachment.heard, attachment.answer_by) = (ctx.now, None);
        #[expect(clippy::wildcard_enum_match_arm, reason = "the rest is not about the attachment")]
        match message {
            Control::Ping { time } => ctx.out.send(id, &Control::Pong { time }),
            Control::Pong { time } => {
                if let Some(sample) = attachment.answered(time, ctx.now) {
                    self.note_distance(slot, sample);
                }
            }
            Control::Draining => {
                attachment.draining = true;
                ctx.out.worker(Command::DrainHub { hub: slot });
                tracing::info!(hub = %self.label(slot), "hub is about to stop");
            }
            Control::Refused { code, text, presence } => {
                tracing::debug!(hub = %self.label(slot), reason = %text, "a hub refuses");
                if closes(code) {
                    let dialled = self.streams.get(&id).map(|stream| stream.place.clone());
                    let key = self.key(slot);
                    self.detach(slot, ctx);
                    if let (RefusedCode::NotMember, Some(place), Some(key)) = (code, dialled, key) {
                        self.read_at(place, key, ctx);
                    }
                    self.events.push_back(HubEvent::Refused { code, presence });
                }
            }
            message => self.events.push_back(HubEvent::Message { hub: slot, message }),
        }
    }

    /// Asks a hub for its roster on a stream of its own.
    pub(super) fn read_at(&mut self, place: HostPort, key: HubKey, ctx: &mut Context<'_>) {
        let busy = |stream: &Stream| stream.purpose == Purpose::Read && stream.place == place;
        self.reader.last.retain(|_, last| ctx.now.duration_since(*last) < READ_EVERY);
        if self.reader.last.contains_key(&place) || self.streams.values().any(busy) {
            return;
        }
        self.reader.last.insert(place.clone(), ctx.now);
        self.next_stream += 1;
        self.open(StreamId(self.next_stream), Purpose::Read, place, Some(key), ctx);
    }

    pub(super) fn begin_reading(&mut self, id: StreamId, ctx: &mut Context<'_>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.phase = Phase::Reading;
        let fetch = HubFetch::new(ctx.now);
        stream.deadline = Some(fetch.deadline());
        self.reader.fetches.insert(id, fetch);
        ctx.out.send(id, &Control::GetRoster { network: ctx.me.network, offset: 0 });
    }

    pub(super) fn on_read(&mut self, id: StreamId, message: &Control, ctx: &mut Context<'_>) {
        if matches!(message, Control::Stored { .. } | Control::Refused { .. }) {
            return self.end_reading(id, ctx);
        }
        let Control::RosterPart { network, version, total, offset, bytes } = message else { return };
        let Some(fetch) = self.reader.fetches.get_mut(&id) else { return };
        if *network != ctx.me.network {
            return;
        }
        match fetch.handle_part(*version, *total, *offset, bytes, ctx.now) {
            Progress::Done(bundle) => {
                self.reader.fetches.remove(&id);
                self.events.push_back(HubEvent::Read { bundle, stream: id });
            }
            Progress::More(offset) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.deadline = Some(fetch.deadline());
                }
                ctx.out.send(id, &Control::GetRoster { network: *network, offset });
            }
            Progress::Nothing => self.fail(id, ctx),
        }
    }

    /// Gives a hub that does not know us the roster that lists us, on the stream by which its own was
    /// read: the admin's signature and the redeeming hub's speak for it, not we.
    pub(crate) fn give_roster(&mut self, id: StreamId, bundle: &[u8], ctx: &mut Context<'_>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.deadline = Some(ctx.now + ANSWER);
        let total = bundle.len() as u32;
        for (n, part) in bundle.chunks(MAX_PART).enumerate() {
            let (network, offset) = (ctx.me.network, (n * MAX_PART) as u32);
            ctx.out.send(id, &Control::PutRoster { network, total, offset, bytes: part.to_vec() });
        }
    }

    /// What was to be read or given is done.
    pub(crate) fn end_reading(&mut self, id: StreamId, ctx: &mut Context<'_>) {
        self.fail(id, ctx);
    }

    /// Closes a stream that is of no use, as if it had ended by itself.
    pub(super) fn fail(&mut self, id: StreamId, ctx: &mut Context<'_>) {
        let Some(stream) = self.streams.remove(&id) else { return };
        ctx.out.push(Output::Close { stream: id });
        self.on_gone(id, &stream, ctx);
    }

    pub(super) fn on_gone(&mut self, id: StreamId, stream: &Stream, ctx: &mut Context<'_>) {
        match (stream.purpose, &stream.phase) {
            (Purpose::Measure(_), _) => {}
            (Purpose::Read, _) => {
                self.reader.fetches.remove(&id);
            }
            (Purpose::Control, Phase::Open(slot)) => self.detach(*slot, ctx),
            (
                Purpose::Control,
                Phase::Dialling | Phase::Hello { .. } | Phase::Answer { .. } | Phase::Measuring { .. } | Phase::Reading,
            ) => {
                let Some(target) = self.targets.iter_mut().find(|target| target.dialling == Some(id)) else { return };
                target.dialling = None;
                target.next = target.backoff.failed(ctx.now, ctx.rng);
                if target.backoff.failures() == TELL_AFTER && !target.told {
                    target.told = true;
                    let lost = self.hubs.iter().any(|hub| Some(hub.key) == target.key && hub.lost);
                    if !lost {
                        tracing::warn!(endpoint = %target.place, "hub cannot be reached");
                    }
                }
            }
            (Purpose::Data(slot), _) => {
                let Some(hub) = self.hub_mut(slot) else { return };
                let was_open = hub.data.open == Some(id);
                if was_open || hub.data.dialling == Some(id) {
                    let mut backoff = hub.data.backoff;
                    let next = Some(backoff.failed(ctx.now, ctx.rng));
                    hub.data = DataStream { backoff, next, ..DataStream::default() };
                }
                if was_open {
                    self.tell_workers(slot, ctx);
                }
            }
        }
    }

    /// Ends an attachment that was not meant to end.
    pub(super) fn detach(&mut self, slot: HubSlot, ctx: &mut Context<'_>) {
        let Some(hub) = self.hub(slot).filter(|hub| hub.control.is_some()) else { return };
        let (key, listed) = (hub.key, hub.listed);
        if listed {
            tracing::warn!(hub = %self.label(slot), "hub is lost");
        }
        for target in self.targets.iter_mut().filter(|target| target.key.is_none_or(|of| of == key)) {
            if target.dialling.is_none() {
                target.next = target.backoff.failed(ctx.now, ctx.rng);
            }
        }
        self.end(slot, ctx);
        if let Some(hub) = self.hub_mut(slot) {
            hub.lost = listed;
        }
    }

    /// Ends an attachment, both its streams included.
    pub(super) fn end(&mut self, slot: HubSlot, ctx: &mut Context<'_>) {
        let Some(hub) = self.hub_mut(slot) else { return };
        let Some(attachment) = hub.control.take() else { return };
        let data = std::mem::take(&mut hub.data);
        for id in [Some(attachment.stream), data.dialling, data.open].into_iter().flatten() {
            self.drop_stream(id, ctx.out);
        }
        ctx.out.worker(Command::RemoveHub { hub: slot });
        self.events.push_back(HubEvent::Detached { hub: slot });
    }

    pub(super) fn drop_stream(&mut self, id: StreamId, out: &mut Outbox) {
        if self.streams.remove(&id).is_some() {
            out.push(Output::Close { stream: id });
        }
    }
}

impl Purpose {
    pub(super) fn role(self) -> Role {
        match self {
            Self::Control => Role::Control,
            Self::Data(_) => Role::Data,
            Self::Measure(_) | Self::Read => Role::Admin,
        }
    }
}

/// Whether a hub closes the stream with such a refusal.
fn closes(code: RefusedCode) -> bool {
    matches!(
        code,
        RefusedCode::NotMember
            | RefusedCode::StaleEpoch
            | RefusedCode::Replaced
            | RefusedCode::Draining
            | RefusedCode::Silent
            | RefusedCode::BadProof
            | RefusedCode::NetworkRefused
    )
}

/// The hub's hello, and its answer, come within this.
pub(super) const ANSWER: Duration = Duration::from_secs(3);
/// A roster is read as a stranger no more often than this.
const READ_EVERY: Duration = Duration::from_secs(10);
/// The operator hears of a hub that never answered after so many failures.
const TELL_AFTER: u32 = 3;
