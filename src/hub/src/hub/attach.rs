//! Who may attach, and as what.
//!
//! Every proof is checked against the roster in force and against this very channel. A node's signed
//! presence must name this hub and must be its newest: a lesser boot epoch is refused with the greater
//! presence, so that a node restored from an old copy learns its place.

use std::time::Instant;

use flatlan_relay::{
    Attach, Attached, BindKey, ClaimsSummary, Control, Presence, Proof, RefusedCode, Role, auth::AttachScope,
};
use flatlan_types::{MemberId, NetworkId};

use super::{
    Attachment, Draining, Hub, Owner, State,
    presence::{Added, Gone},
};
use crate::{
    forward::{AttachmentId, ForwardCommand, StreamId},
    output::{DetachReason, HubEvent},
};

/// Why a stream may not attach.
#[derive(Debug)]
pub(super) struct Refusal {
    code: RefusedCode,
    text: String,
    presence: Option<Vec<u8>>,
}

impl Refusal {
    pub(super) fn new(code: RefusedCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), presence: None }
    }

    pub(super) fn message(self) -> Control {
        Control::Refused { code: self.code, text: self.text, presence: self.presence }
    }

    pub(super) fn with_presence(self, presence: Vec<u8>) -> Self {
        Self { presence: Some(presence), ..self }
    }
}

impl Hub {
    pub(super) fn handle_greeting(&mut self, stream: StreamId, message: Control, now: Instant) {
        let Control::Attach(attach) = message else {
            return self.refuse(stream, RefusedCode::BadMessage, "the first message must be Attach", now);
        };
        if let Err(Refusal { code, text, presence }) = self.try_attach(stream, &attach, now) {
            self.refuse_with(stream, code, &text, presence, now);
        }
    }

    pub(super) fn handle_node(&mut self, stream: StreamId, attachment: AttachmentId, message: Control, now: Instant) {
        let Some(Attachment { owner: Owner::Node { network, member }, .. }) = self.attachments.get(attachment.0) else {
            return;
        };
        let (network, member) = (*network, *member);
        match message {
            Control::Ping { time } => self.send(stream, Control::Pong { time }),
            Control::Pong { .. } | Control::Draining => {}
            Control::Downlink { leg } => {
                self.forward(ForwardCommand::SetDownlink { attachment, leg: Some(leg) });
            }
            Control::Watch { peers } => self.watch(attachment, network, &peers),
            Control::Unwatch { peers } => self.unwatch(attachment, network, &peers),
            Control::PathOpen(open) => {
                if open.network != network || open.from != member {
                    return self.refuse(stream, RefusedCode::BadMessage, "a path of another network or sender", now);
                }
                self.handle_path_open(stream, attachment, open, now);
            }
            Control::PathOpened { request, label, via, rtt_us } => {
                self.handle_path_opened(attachment, request, (label, via, rtt_us), now);
            }
            Control::PathFailed { request, reason } => self.handle_path_failed(attachment, request, reason, now),
            Control::PathClose { label } => self.handle_path_close(attachment, label, now),
            Control::PathLost { label, reason } => self.handle_path_lost(attachment, label, reason, now),
            Control::LabelUnknown { label } => self.handle_label_unknown(attachment, label, now),
            Control::Head { .. }
            | Control::GetRoster { .. }
            | Control::RosterPart { .. }
            | Control::GetClaims { .. }
            | Control::Claims { .. } => self.handle_roster(stream, Some(network), message, now),
            Control::Refused { code: RefusedCode::NoRoster, .. } => self.handle_no_roster(stream, now),
            Control::Refused { .. } => {}
            Control::HubHello { .. }
            | Control::Attach(_)
            | Control::Attached(_)
            | Control::PutRoster { .. }
            | Control::Stored { .. }
            | Control::Redeem { .. }
            | Control::Redeemed { .. }
            | Control::Presence { .. }
            | Control::Absent { .. }
            | Control::PathMoved { .. }
            | Control::Hello { .. }
            | Control::Serves { .. }
            | Control::Lsa { .. }
            | Control::LsaDigest { .. }
            | Control::PresenceFlood { .. }
            | Control::PresenceGone { .. }
            | Control::PresenceDigest { .. }
            | Control::PresencePull { .. } => {
                self.refuse(stream, RefusedCode::BadMessage, "not for a node's stream", now);
            }
        }
    }

    /// Roles `Join` and `Admin`.
    pub(super) fn handle_visitor(&mut self, stream: StreamId, network: NetworkId, message: Control, now: Instant) {
        let join = matches!(self.streams.get(&stream).map(|s| s.state), Some(State::Join { .. }));
        if let Control::Ping { time } = message {
            self.send(stream, Control::Pong { time });
        } else if let Control::Redeem { network: of, claim } = &message
            && join
            && *of == network
        {
            self.redeem(stream, network, claim, now);
        } else if matches!(message, Control::GetRoster { .. } | Control::GetClaims { .. })
            || (matches!(message, Control::PutRoster { .. }) && !join)
        {
            self.handle_roster(stream, Some(network), message, now);
        } else if !matches!(message, Control::Pong { .. }) {
            self.refuse(stream, RefusedCode::BadMessage, "not for this stream", now);
        }
    }

    /// A node's control stream ended, or was ended.
    pub(super) fn detach(&mut self, attachment: AttachmentId, reason: DetachReason, now: Instant) {
        let Some(Attachment { owner: Owner::Node { network, member }, control, .. }) =
            self.attachments.get(attachment.0)
        else {
            return;
        };
        let (network, member, control) = (*network, *member, *control);
        self.streams.remove(&control);
        self.remove_attachment(attachment, now);
        if let Some(state) = self.networks.get_mut(&network)
            && state.attached.get(&member) == Some(&attachment)
        {
            state.attached.remove(&member);
            self.presence_gone(network, member, self.key, Gone::Detached, None, now);
        }
        self.event(HubEvent::NodeDetached { network, member, reason });
    }

    /// Ends a node's attachment with a word.
    pub(super) fn expel(&mut self, attachment: AttachmentId, refusal: Refusal, now: Instant) {
        let Some(control) = self.attachments.get(attachment.0).map(|attachment| attachment.control) else { return };
        let Refusal { code, text, presence } = refusal;
        self.refuse_with(control, code, &text, presence, now);
    }

    fn try_attach(&mut self, stream: StreamId, attach: &Attach, now: Instant) -> Result<(), Refusal> {
        let Attach { version, network, role, proof } = attach;
        if *version == 0 {
            return Err(Refusal::new(RefusedCode::Version, "no common version"));
        }
        if self.draining == Draining::Yes {
            return Err(Refusal::new(RefusedCode::Draining, "this hub is stopping"));
        }
        if let (Role::HubControl | Role::HubData, Proof::Hub { key, signature }) = (role, proof) {
            return self.attach_hub(stream, attach, (key, signature), now);
        }
        if !self.allows(network) {
            return Err(Refusal::new(RefusedCode::NetworkRefused, "this hub does not serve that network"));
        }
        match (role, proof) {
            (Role::Control, Proof::Node { id, presence, signature }) => {
                self.check_node(stream, attach, (id, signature))?;
                self.attach_node(stream, *network, *id, presence, now)
            }
            (Role::Data, Proof::Node { id, signature, .. }) => {
                self.check_node(stream, attach, (id, signature))?;
                let attachment = self.networks.get(network).and_then(|network| network.attached.get(id)).copied();
                let attachment = attachment
                    .ok_or_else(|| Refusal::new(RefusedCode::NoControl, "no control stream of yours is here"))?;
                self.set_state(stream, State::Data(attachment));
                self.set_data(attachment, stream);
                self.send_attached(stream, attachment.0, *network, None);
                self.shorten(attachment, now);
                Ok(())
            }
            (Role::Join, Proof::Invite { key, signature }) => {
                let good = self.scope(stream, attach, |scope| scope.verify_invite(key, signature));
                good.ok_or_else(|| Refusal::new(RefusedCode::BadProof, "the proof does not hold"))?;
                let roster = self.networks.get(network).and_then(|network| network.roster.as_ref());
                let roster = roster.ok_or_else(no_roster)?;
                if roster.invite(key).is_none() {
                    let text = flatlan_roster::CountersignError::UnknownInvite.to_string();
                    return Err(Refusal::new(RefusedCode::BadClaim, text));
                }
                self.set_state(stream, State::Join { network: *network });
                self.send_attached(stream, 0, *network, None);
                Ok(())
            }
            (Role::Admin, Proof::Nothing) => {
                self.set_state(stream, State::Admin { network: *network });
                self.send_attached(stream, 0, *network, None);
                Ok(())
            }
            _ => Err(Refusal::new(RefusedCode::BadProof, "that proof does not fit the role")),
        }
    }

    fn check_node(
        &self,
        stream: StreamId,
        attach: &Attach,
        (id, signature): (&MemberId, &flatlan_types::Signature),
    ) -> Result<(), Refusal> {
        let roster = self.networks.get(&attach.network).and_then(|network| network.roster.as_ref());
        let roster = roster.ok_or_else(no_roster)?;
        if roster.by_id(id).is_none() {
            return Err(Refusal::new(RefusedCode::NotMember, "not a member of that network"));
        }
        let good = self.scope(stream, attach, |scope| scope.verify_node(id, signature));
        good.ok_or_else(|| Refusal::new(RefusedCode::BadProof, "the proof does not hold"))
    }

    fn attach_node(
        &mut self,
        stream: StreamId,
        network: NetworkId,
        member: MemberId,
        presence: &[u8],
        now: Instant,
    ) -> Result<(), Refusal> {
        let bad = || Refusal::new(RefusedCode::BadProof, "the presence does not hold");
        let presence = Presence::verify(presence).map_err(|_| bad())?;
        if presence.network() != network || presence.member() != member || presence.hub() != self.key {
            return Err(bad());
        }
        let state = self.networks.get_mut(&network).ok_or_else(no_roster)?;
        if let Some(greater) = state.presence.blocks(&presence) {
            let text = "a newer start of this node is known: it runs elsewhere, or was restored from an old copy";
            let presence = Some(greater.encode());
            return Err(Refusal { code: RefusedCode::StaleEpoch, text: text.to_owned(), presence });
        }
        if !state.may_attach(&member, now) {
            return Err(Refusal::new(RefusedCode::Quota, "attached too often: try later"));
        }
        let before = state.attached.get(&member).copied();
        if before.is_none() && state.attached.len() >= self.config.limits.attachments_per_network {
            return Err(Refusal::new(RefusedCode::Quota, "as many members of this network are attached as may be"));
        }
        let owner = Owner::Node { network, member };
        let full = || Refusal::new(RefusedCode::Quota, "this hub is full");
        let (attachment, bind) = self.add_attachment(owner, stream).ok_or_else(full)?;
        // The new one takes the place first: the old one's end must not withdraw its presence.
        if let Some(state) = self.networks.get_mut(&network) {
            state.attached.insert(member, attachment);
        }
        if let Some(before) = before {
            // a node knows its own; another one is of a machine that has its key
            let refusal = Refusal::new(RefusedCode::Replaced, "a newer attachment took its place");
            self.expel(before, refusal.with_presence(presence.encode()), now);
        }
        self.set_state(stream, State::Node(attachment));
        self.send_attached(stream, attachment.0, network, Some(BindKey { id: attachment.0, key: bind }));
        if let Some(endpoint) = self.streams.get(&stream).map(|stream| stream.remote) {
            self.event(HubEvent::NodeAttached { network, member, endpoint });
        }
        if self.add_presence(presence, None, now) == Added::Stale {
            // `blocks` has said otherwise; nothing is lost but the announcement.
            tracing::debug!("presence of an attached node was not news");
        }
        Ok(())
    }

    pub(super) fn send_attached(
        &mut self,
        stream: StreamId,
        attachment: u32,
        network: NetworkId,
        bind: Option<BindKey>,
    ) {
        let Some(observed) = self.streams.get(&stream).map(|stream| stream.remote) else { return };
        let roster = self.networks.get(&network).and_then(|network| network.roster.as_ref());
        let head = roster.map(|roster| roster.signed_head().encode());
        let claims = roster.map_or_else(ClaimsSummary::default, super::network::summary);
        let attached = Attached {
            version: flatlan_relay::VERSION,
            attachment,
            observed,
            udp: self.config.udp.clone(),
            bind,
            head,
            claims,
        };
        self.send(stream, Control::Attached(attached));
    }

    pub(super) fn set_state(&mut self, stream: StreamId, state: State) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.state = state;
        }
    }

    /// Checks a proof against the channel that it came on.
    pub(super) fn scope<E>(
        &self,
        stream: StreamId,
        attach: &Attach,
        check: impl FnOnce(AttachScope<'_>) -> Result<(), E>,
    ) -> Option<()> {
        let exporter = &self.streams.get(&stream)?.exporter;
        check(AttachScope { exporter, hub: &self.key, network: &attach.network, role: attach.role }).ok()
    }
}

fn no_roster() -> Refusal {
    Refusal::new(RefusedCode::NoRoster, "this hub has no roster of that network yet: publish to it")
}
