//! The hub's data plane: labelled frames in, labelled frames out, never opened.
//!
//! It is apart from [`Hub`](crate::Hub), the control machine, so that forwarding never waits behind control: the shell runs
//! it in its own thread with the UDP socket, hands it the hub's [`ForwardCommand`]s in order, and its
//! [`ForwardEvent`]s back.
//!
//! What happens to a batch:
//!
//! 1. [`Forwarder::handle_udp`] cuts what GRO joined into runs of equal header; a run is looked up once.
//! 2. The label names an entry: network, upstream attachment, downstream attachment, out label. A frame
//!    counts only from the upstream attachment's own endpoint or stream.
//! 3. Quotas of the attachment and of the network are charged.
//! 4. Eight bytes of each segment are rewritten in place, and the run goes out in one send by the leg
//!    that the downstream attachment wants.
//!
//! `BIND` frames ([`flatlan_relay::bind`]) move an attachment's endpoint, after the new address has
//! answered a challenge: the hub sends data to no other, and answers a `BIND` with as many bytes as it
//! had. Nothing here allocates, reads a clock or logs per packet; every drop is counted by name.
//!
//! Where there are several workers, each has every label and every attachment, and the kernel steers a frame to the one
//! that its label names; what comes to another goes on all the same. The first worker alone binds, and says where an
//! endpoint is ([`ForwardEvent::EndpointSet`]); the worker that a label names alone frees it when it is idle, and hears
//! from the others where they forward its frames. Quotas are shared ([`Quotas`]): a rate divided by the workers would
//! hold one flow to a part of it.
//!
//! Call order: *mutate, drain, mutate*: after any input or command, drain [`Forwarder::poll_event`].

mod leg;
mod quota;
mod table;

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_relay::{
    BindSecret, Leg,
    bind::{self, Bind, Bound, Verdict},
    frame::{self, Header},
};
use flatlan_types::{Endpoint, Label, NetworkId, PairKey, Share, WorkerId, Workers};

pub use self::quota::{Quota, Quotas};
use self::{
    leg::{HubLeg, Load},
    quota::Shared,
};
pub(crate) use self::{
    leg::{QUICK_BURST, QUICK_LATE},
    table::Table,
};

/// The data plane of one hub, or of one of its workers.
#[derive(Debug)]
pub struct Forwarder {
    config: ForwardConfig,
    /// Zero of the coarse clock.
    start: Instant,
    labels: Table<Entry>,
    attachments: Table<Attachment>,
    networks: BTreeMap<NetworkId, u32>,
    tenants: Vec<Tenant>,
    /// Whose endpoint this is: only to tell a sender about a label that it should not use.
    by_endpoint: BTreeMap<Endpoint, AttachmentId>,
    legs: Vec<HubLeg>,
    /// The attachments of neighbouring hubs.
    hubs: Vec<AttachmentId>,
    events: VecDeque<ForwardEvent>,
    /// Endpoints that the other workers are to know of, as they are now.
    moved: BTreeMap<AttachmentId, Option<Endpoint>>,
    /// Where the next sweep for idle labels begins, and that for stale endpoints.
    sweep_from: usize,
    sweep_attachments_from: usize,
    next_sweep: Instant,
    stats: ForwardStats,
}

impl Forwarder {
    /// A forwarder with nothing in it. `seed` keys the challenges.
    pub fn new(config: ForwardConfig, now: Instant) -> Self {
        Self {
            config,
            start: now,
            labels: Table::default(),
            attachments: Table::default(),
            networks: BTreeMap::new(),
            tenants: Vec::new(),
            by_endpoint: BTreeMap::new(),
            legs: Vec::new(),
            hubs: Vec::new(),
            events: VecDeque::new(),
            moved: BTreeMap::new(),
            sweep_from: 0,
            sweep_attachments_from: 0,
            next_sweep: now + SWEEP,
            stats: ForwardStats::default(),
        }
    }

    /// Datagrams from the UDP socket, as GRO joined them. The buffer is rewritten in place.
    pub fn handle_udp(&mut self, batch: UdpBatch<'_>, now: Instant, out: &mut impl ForwardSink) {
        let UdpBatch { from, contents, stride, class } = batch;
        let stride = if stride == 0 { contents.len() } else { stride };
        let mut rest = contents;
        while let Some(kind) = rest.first().copied() {
            let one = stride.min(rest.len());
            let length = if kind == frame::KIND { run_length(rest, stride) } else { one };
            let (run, tail) = rest.split_at_mut(length);
            rest = tail;
            self.stats.received += segments(run.len(), stride);
            match kind {
                frame::KIND => self.forward(Source::Udp(from), Run { contents: run, stride, class }, now, out),
                bind::BIND | bind::BOUND if !self.binds() => self.tell_astray(from, run),
                bind::BIND => self.handle_bind(from, run, now, out),
                bind::BOUND => self.handle_bound(from, run, now, out),
                _ => self.stats.dropped.count(ForwardDrop::Malformed, 1),
            }
        }
    }

    /// One message of a data stream: packed frames. The buffer is rewritten in place.
    pub fn handle_stream(
        &mut self,
        attachment: AttachmentId,
        message: &mut [u8],
        now: Instant,
        out: &mut impl ForwardSink,
    ) {
        let mut rest = message;
        while let Some(unpacked) = unpack_run(&mut rest) {
            let Some((run, stride)) = unpacked else {
                self.stats.dropped.count(ForwardDrop::Malformed, 1);
                continue;
            };
            self.stats.received += segments(run.len(), stride);
            self.forward(Source::Stream(attachment), Run { contents: run, stride, class: TrafficClass(0) }, now, out);
        }
        if !rest.is_empty() {
            self.stats.dropped.count(ForwardDrop::Malformed, 1);
        }
    }

    /// The burst is over: what the sink collected leaves.
    pub fn flush(&mut self, out: &mut impl ForwardSink) {
        let unsent = out.flush();
        self.take_back(ForwardDrop::SocketFull, unsent);
    }

    /// Frames of a data stream that the sink took, and had to give up later.
    pub fn handle_unsent(&mut self, unsent: Carried) {
        self.take_back(ForwardDrop::StreamFull, unsent);
    }

    /// Probes of hub legs, stale endpoints, idle labels.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl ForwardSink) {
        for at in 0..self.legs.len() {
            let Some(leg) = self.legs.get_mut(at) else { break };
            let carrying = self.attachments.get(leg.attachment().0).is_some_and(|state| state.carries(now));
            leg.set_load(if carrying { Load::Carrying } else { Load::Idle });
            let step = leg.handle_timeout(now);
            let attachment = leg.attachment();
            if step.down {
                self.set_endpoint(attachment, None, now);
                self.tell(ForwardEvent::LegDown { attachment });
            }
            if let Some((to, frame)) = step.send {
                self.send_control(to, &frame, out);
            }
        }
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP;
            self.sweep(now);
        }
    }

    /// Changes what is forwarded.
    pub fn apply(&mut self, command: ForwardCommand, now: Instant) {
        match command {
            ForwardCommand::AddAttachment { attachment, kind, bind, quota } => {
                let state = Attachment {
                    kind,
                    bind,
                    bind_counter: 0,
                    endpoint: None,
                    heard: now,
                    carried: None,
                    frames: 0,
                    counted: now,
                    stream: None,
                    downlink: None,
                    bucket: self.config.quotas.attachment(attachment.0, quota, now),
                    told: None,
                };
                if kind == AttachmentKind::Hub {
                    self.hubs.push(attachment);
                }
                self.attachments.insert(attachment.0, state);
            }
            ForwardCommand::RemoveAttachment { attachment } => {
                self.set_endpoint(attachment, None, now);
                self.attachments.remove(attachment.0);
                self.config.quotas.forget_attachment(attachment.0);
                self.hubs.retain(|hub| *hub != attachment);
                self.legs.retain(|leg| leg.attachment() != attachment);
            }
            ForwardCommand::SetStream { attachment, stream } => {
                if let Some(state) = self.attachments.get_mut(attachment.0) {
                    state.stream = stream;
                }
            }
            ForwardCommand::SetDownlink { attachment, leg } => {
                if let Some(state) = self.attachments.get_mut(attachment.0) {
                    state.downlink = leg;
                }
            }
            ForwardCommand::SetLeg { attachment, id, key, endpoints } => {
                if !self.binds() {
                    return;
                }
                self.legs.retain(|leg| leg.attachment() != attachment);
                let allowed: Vec<_> = endpoints.into_iter().filter(|to| self.may_send(*to)).collect();
                self.legs.push(HubLeg::new(attachment, id, key, allowed, now));
            }
            ForwardCommand::AddLabel { label, network, upstream, downstream, out } => {
                // A label never leads back to where the frame came from.
                if upstream == downstream {
                    self.stats.dropped.count(ForwardDrop::LeadsBack, 1);
                    return;
                }
                let tenant = self.tenant(network, now);
                let used = self.coarse(now);
                self.labels.insert(label.0, Entry { tenant, upstream, downstream, out, used });
            }
            ForwardCommand::RedirectLabel { label, downstream, out } => {
                if let Some(entry) = self.labels.get_mut(label.0)
                    && entry.upstream != downstream
                {
                    entry.downstream = downstream;
                    entry.out = out;
                }
            }
            ForwardCommand::RemoveLabel { label } => {
                self.labels.remove(label.0);
            }
            ForwardCommand::SetNetworkQuota { network, quota } => {
                let bucket = self.config.quotas.network(network, quota, now);
                let tenant = self.tenant(network, now);
                if let Some(tenant) = self.tenants.get_mut(tenant as usize) {
                    tenant.bucket = bucket;
                }
            }
            ForwardCommand::SetEndpoint { attachment, endpoint } => {
                if !self.binds() {
                    self.set_endpoint(attachment, endpoint, now);
                }
            }
            ForwardCommand::TouchLabel { label } => {
                let used = self.coarse(now);
                if let Some(entry) = self.labels.get_mut(label.0) {
                    entry.used = used;
                }
            }
            ForwardCommand::TouchHub { attachment } => {
                if let Some(state) = self.attachments.get_mut(attachment.0) {
                    state.carried = Some(now);
                }
            }
        }
    }

    /// The hub's own addresses, where they have changed: nothing is sent there any more.
    pub fn set_own(&mut self, own: Vec<Endpoint>, now: Instant) {
        self.config.own = own;
        let bound = self.by_endpoint.iter().filter(|(endpoint, _)| self.config.own.contains(endpoint));
        let bound: Vec<_> = bound.map(|(_, attachment)| *attachment).collect();
        for attachment in bound {
            self.set_endpoint(attachment, None, now);
            self.tell(ForwardEvent::Unbound { attachment });
        }
        for leg in &mut self.legs {
            leg.leave(&self.config.own);
        }
    }

    /// What happened; drain after every input or command.
    pub fn poll_event(&mut self) -> Option<ForwardEvent> {
        let moved = self.moved.pop_first();
        let moved = moved.map(|(attachment, endpoint)| ForwardEvent::EndpointSet { attachment, endpoint });
        moved.or_else(|| self.events.pop_front())
    }

    /// When [`Forwarder::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Instant {
        let legs = self.legs.iter().map(HubLeg::poll_timeout).min();
        legs.map_or(self.next_sweep, |leg| leg.min(self.next_sweep))
    }

    /// Counters.
    pub fn stats(&self) -> &ForwardStats {
        &self.stats
    }

    /// Packets and bytes forwarded for each network.
    pub fn network_stats(&self) -> impl Iterator<Item = (&NetworkId, Carried)> {
        let carried = |slot: &u32| self.tenants.get(*slot as usize).map(|tenant| tenant.carried);
        self.networks.iter().filter_map(move |(network, slot)| Some((network, carried(slot)?)))
    }

    /// The endpoint that an attachment's frames go to, once it has answered.
    pub fn endpoint(&self, attachment: AttachmentId) -> Option<Endpoint> {
        self.attachments.get(attachment.0)?.endpoint
    }

    /// How many labels lead somewhere.
    pub fn labels(&self) -> usize {
        self.labels.len()
    }

    fn forward(&mut self, source: Source, run: Run<'_>, now: Instant, out: &mut impl ForwardSink) {
        let count = segments(run.contents.len(), run.stride);
        if let Err(reason) = self.try_forward(source, run, now, out) {
            self.stats.dropped.count(reason, count);
        }
    }

    fn try_forward(
        &mut self,
        source: Source,
        run: Run<'_>,
        now: Instant,
        out: &mut impl ForwardSink,
    ) -> Result<(), ForwardDrop> {
        let Run { contents, stride, class } = run;
        let header = Header::parse(contents).ok_or(ForwardDrop::Malformed)?;
        let hops = header.hops.checked_sub(1).ok_or(ForwardDrop::HopLimit)?;
        let used = self.coarse(now);
        let Some(entry) = self.labels.get_mut(header.label.0) else {
            self.tell_unknown(source, header.label, now);
            return Err(ForwardDrop::LabelUnknown);
        };
        let upstream = self.attachments.get_mut(entry.upstream.0).ok_or(ForwardDrop::LabelUnknown)?;
        let from_upstream = match source {
            Source::Udp(from) => upstream.endpoint == Some(from),
            Source::Stream(attachment) => attachment == entry.upstream,
        };
        if !from_upstream {
            self.tell_unknown(source, header.label, now);
            return Err(ForwardDrop::NotUpstream);
        }
        let (packets, bytes) = (segments(contents.len(), stride), contents.len() as u64);
        if matches!(source, Source::Udp(_)) {
            upstream.heard = now;
        }
        let binds = self.config.share.worker == WorkerId::FIRST;
        let came = upstream.carry(packets, now, binds).then_some(entry.upstream);
        if !upstream.bucket.take(packets, bytes, now) {
            return Err(ForwardDrop::Quota);
        }
        let tenant = self.tenants.get_mut(entry.tenant as usize).ok_or(ForwardDrop::LabelUnknown)?;
        if !tenant.bucket.take(packets, bytes, now) {
            return Err(ForwardDrop::NetworkQuota);
        }
        let tell = self.config.share.of.of_label(header.label) != self.config.share.worker
            && used.saturating_sub(entry.used) >= TELL_USE.as_millis() as u64;
        if tell || self.config.share.of.of_label(header.label) == self.config.share.worker {
            entry.used = used;
        }
        let downstream = self.attachments.get_mut(entry.downstream.0).ok_or(ForwardDrop::NoLeg)?;
        let way = downstream.way().ok_or(ForwardDrop::NoLeg)?;
        let goes = downstream.carry(packets, now, binds).then_some(entry.downstream);
        tenant.carried.packets += packets;
        tenant.carried.bytes += bytes;
        self.stats.forwarded.packets += packets;
        self.stats.forwarded.bytes += bytes;
        let used_label = header.label;
        let header = Header { hops, label: entry.out };
        for segment in contents.chunks_mut(stride) {
            header.write(segment);
        }
        match way {
            Way::Udp(to) => {
                let unsent = out.udp(to, contents, stride, class);
                self.take_back(ForwardDrop::SocketFull, unsent);
            }
            Way::Stream(stream) => {
                let unsent = out.stream(stream, contents, stride);
                self.take_back(ForwardDrop::StreamFull, unsent);
            }
        }
        if tell {
            self.tell(ForwardEvent::LabelUsed { label: used_label });
        }
        for attachment in [came, goes].into_iter().flatten() {
            self.tell(ForwardEvent::HubUsed { attachment });
        }
        Ok(())
    }

    fn handle_bind(&mut self, from: Endpoint, frame: &[u8], now: Instant, out: &mut impl ForwardSink) {
        match self.try_bind(from, frame, now) {
            Ok(reply) => self.send_control(from, &reply, out),
            Err(reason) => self.stats.dropped.count(reason, 1),
        }
    }

    fn try_bind(&mut self, from: Endpoint, frame: &[u8], now: Instant) -> Result<[u8; bind::LEN], ForwardDrop> {
        let id = Bind::peek_id(frame).ok_or(ForwardDrop::Malformed)?;
        let attachment = AttachmentId(id);
        let state = self.attachments.get(id).ok_or(ForwardDrop::BindUnknown)?;
        let bind = Bind::open(frame, &state.bind).ok_or(ForwardDrop::BindForged)?;
        if bind.counter <= state.bind_counter {
            return Err(ForwardDrop::BindReplayed);
        }
        if !self.may_send(from) {
            return Err(ForwardDrop::BindAddress);
        }
        let here = state.endpoint == Some(from);
        let proven = here || self.nonces(attachment, from, now).contains(&bind.nonce);
        let [nonce, _] = self.nonces(attachment, from, now);
        let state = self.attachments.get_mut(id).ok_or(ForwardDrop::BindUnknown)?;
        state.bind_counter = bind.counter;
        let verdict = if proven {
            state.heard = now;
            Verdict::Bound
        } else {
            Verdict::Challenge(nonce)
        };
        let Bind { id, counter, time, .. } = bind;
        let reply = Bound { id, counter, time, reflexive: from, verdict }.encode(&state.bind);
        let heard = here && state.kind == AttachmentKind::Hub;
        if proven && !here {
            self.set_endpoint(attachment, Some(from), now);
            self.tell(ForwardEvent::Bound { attachment, endpoint: from });
        }
        if heard {
            self.tell(ForwardEvent::HubHeard { attachment });
        }
        Ok(reply)
    }

    fn handle_bound(&mut self, from: Endpoint, frame: &[u8], now: Instant, out: &mut impl ForwardSink) {
        let answered = self.legs.iter_mut().find_map(|leg| leg.handle_bound(from, frame, now));
        let Some(answer) = answered else {
            self.stats.dropped.count(ForwardDrop::BindForged, 1);
            return;
        };
        match answer {
            leg::Answer::Challenged { reply } => self.send_control(from, &reply, out),
            leg::Answer::Bound { attachment, rtt, change } => {
                if let Some(state) = self.attachments.get_mut(attachment.0) {
                    state.heard = now;
                }
                if change {
                    self.set_endpoint(attachment, Some(from), now);
                    self.tell(ForwardEvent::LegUp { attachment, rtt });
                } else {
                    self.tell(ForwardEvent::HubHeard { attachment });
                }
            }
        }
    }

    /// Sends a binding frame, behind everything that waits: it is no frame that was forwarded.
    fn send_control(&mut self, to: Endpoint, frame: &[u8], out: &mut impl ForwardSink) {
        self.flush(out);
        let unsent = out.udp(to, frame, frame.len(), TrafficClass(0)).packets + out.flush().packets;
        self.stats.dropped.count(ForwardDrop::SocketFull, unsent);
    }

    /// Frames that were counted as forwarded, and were not sent after all.
    fn take_back(&mut self, reason: ForwardDrop, unsent: Carried) {
        let forwarded = &mut self.stats.forwarded;
        forwarded.packets = forwarded.packets.saturating_sub(unsent.packets);
        forwarded.bytes = forwarded.bytes.saturating_sub(unsent.bytes);
        self.stats.dropped.count(reason, unsent.packets);
    }

    fn set_endpoint(&mut self, attachment: AttachmentId, endpoint: Option<Endpoint>, now: Instant) {
        let Some(state) = self.attachments.get_mut(attachment.0) else { return };
        let was = std::mem::replace(&mut state.endpoint, endpoint);
        if was != endpoint && self.config.share.of != Workers::ONE && self.config.share.worker == WorkerId::FIRST {
            self.moved.insert(attachment, endpoint);
        }
        state.heard = now;
        if let Some(was) = was
            && self.by_endpoint.get(&was) == Some(&attachment)
        {
            self.by_endpoint.remove(&was);
        }
        if let Some(endpoint) = endpoint {
            self.by_endpoint.insert(endpoint, attachment);
        }
    }

    /// Never to ourselves, nor to what is no place of another machine.
    fn may_send(&self, to: Endpoint) -> bool {
        let address = to.socket_addr();
        let refused = match address.ip() {
            IpAddr::V4(ip) => ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast(),
            IpAddr::V6(ip) => ip.is_unspecified() || ip.is_multicast(),
        };
        let loopback = address.ip().is_loopback() && self.config.loopback == Loopback::Refused;
        !refused && !loopback && address.port() != 0 && !self.config.own.contains(&to)
    }

    /// This period's challenge for an address, and the one before: no state until it is answered.
    fn nonces(&self, attachment: AttachmentId, to: Endpoint, now: Instant) -> [u64; 2] {
        let address = to.socket_addr();
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let period = now.saturating_duration_since(self.start).as_secs() / CHALLENGE_PERIOD.as_secs() + 1;
        [period, period - 1].map(|period| {
            let parts: [&[u8]; 4] =
                [&attachment.0.to_be_bytes(), &ip.octets(), &address.port().to_be_bytes(), &period.to_be_bytes()];
            let [a, b, c, d, e, f, g, h, ..] = PairKey::tag(&self.config.seed, &parts);
            // Zero means "no nonce" on the wire.
            u64::from_be_bytes([a, b, c, d, e, f, g, h]).max(1)
        })
    }

    fn tenant(&mut self, network: NetworkId, now: Instant) -> u32 {
        let next = u32::try_from(self.tenants.len()).unwrap_or(u32::MAX);
        let slot = *self.networks.entry(network).or_insert(next);
        if slot == next {
            let bucket = self.config.quotas.network(network, self.config.network_quota, now);
            self.tenants.push(Tenant { bucket, carried: Carried::default() });
        }
        slot
    }

    fn tell_unknown(&mut self, source: Source, label: Label, now: Instant) {
        let attachment = match source {
            Source::Udp(from) => self.by_endpoint.get(&from).copied(),
            Source::Stream(attachment) => Some(attachment),
        };
        let Some(attachment) = attachment else { return };
        let Some(state) = self.attachments.get_mut(attachment.0) else { return };
        if state.told.is_some_and(|told| now.saturating_duration_since(told) < TELL_EVERY) {
            return;
        }
        state.told = Some(now);
        self.tell(ForwardEvent::LabelUnknown { attachment, label });
    }

    fn tell(&mut self, event: ForwardEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push_back(event);
        } else {
            self.stats.events_lost += 1;
        }
    }

    fn sweep(&mut self, now: Instant) {
        let used = self.coarse(now);
        let span = self.labels.slots() / SWEEPS + 1;
        for slot in self.sweep_from..self.sweep_from + span {
            // An idle label is told or it is kept: the hub's own table must not outlive this one.
            if self.events.len() >= MAX_EVENTS {
                break;
            }
            let share = self.config.share;
            let idle = |key: u32, entry: &Entry| {
                share.of.of_label(Label(key)) == share.worker
                    && used.saturating_sub(entry.used) >= IDLE.as_millis() as u64
            };
            if let Some(label) = self.labels.remove_if(slot, idle) {
                self.events.push_back(ForwardEvent::LabelIdle { label: Label(label) });
            }
            self.sweep_from = slot + 1;
        }
        if self.sweep_from >= self.labels.slots() {
            self.sweep_from = 0;
        }
        if !self.binds() {
            return;
        }
        let stale = |attachments: &Table<Attachment>, attachment: AttachmentId| {
            let state = attachments.get(attachment.0).filter(|state| state.endpoint.is_some());
            state.is_some_and(|state| now.saturating_duration_since(state.heard) >= state.kind.stale())
        };
        // few, and to be found silent soon; nodes a part at a time, as labels: frames wait meanwhile
        let hubs = self.hubs.iter().copied();
        let begin = self.sweep_attachments_from;
        let end = begin + self.attachments.slots() / SWEEPS + 1;
        let nodes = self.attachments.keys(begin..end).map(AttachmentId);
        let stale: Vec<_> = hubs.chain(nodes).filter(|attachment| stale(&self.attachments, *attachment)).collect();
        self.sweep_attachments_from = if end < self.attachments.slots() { end } else { 0 };
        for attachment in stale {
            if self.endpoint(attachment).is_some() {
                self.set_endpoint(attachment, None, now);
                self.tell(ForwardEvent::Unbound { attachment });
            }
        }
    }

    /// Whether this is the worker that binds, for all of them.
    fn binds(&self) -> bool {
        self.config.share.worker == WorkerId::FIRST
    }

    /// A binding frame that the kernel joined to another worker's frames.
    fn tell_astray(&mut self, from: Endpoint, frame: &[u8]) {
        match frame.try_into() {
            Ok(frame) => self.tell(ForwardEvent::BindAstray { from, frame }),
            Err(_) => self.stats.dropped.count(ForwardDrop::Malformed, 1),
        }
    }

    fn coarse(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }
}

/// Where frames go. Production writes to sockets, tests to a `Vec`.
pub trait ForwardSink {
    /// Sends `batch`, cut every `stride` bytes, as datagrams to `to`: at once, or with the next `flush`, in order.
    /// What was given up with this call, of this or of earlier ones.
    fn udp(&mut self, to: Endpoint, batch: &[u8], stride: usize, class: TrafficClass) -> Carried;
    /// Queues `batch`, cut every `stride` bytes, as frames of a data stream. The queue is bounded: what
    /// has no room is dropped, and told.
    fn stream(&mut self, to: StreamId, batch: &[u8], stride: usize) -> Carried;
    /// Sends what was put off. What was given up.
    fn flush(&mut self) -> Carried {
        Carried::default()
    }
}

/// What the UDP socket received at once from one source.
#[derive(Debug)]
pub struct UdpBatch<'a> {
    /// The source.
    pub from: Endpoint,
    /// One datagram or several, each `stride` bytes long but the last, which may be shorter.
    pub contents: &'a mut [u8],
    /// Zero stands for a single datagram.
    pub stride: usize,
    /// Of the outer IP header: copied through, so that every network on the way sees the same.
    pub class: TrafficClass,
}

/// DSCP and ECN of an IP header (RFC 2474, RFC 3168).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficClass(pub u8);

/// A stream, numbered by the shell. Never reused while the process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// A node or a neighbouring hub at this hub: 20 bits of slot, 12 of generation. Also the id of its bind
/// key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId(pub u32);

/// Whose attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachmentKind {
    /// A neighbouring hub's: it binds several times a second.
    Hub,
    /// A node's.
    Node,
}

impl AttachmentKind {
    /// How long an endpoint lives after the last sign of life.
    fn stale(self) -> Duration {
        match self {
            Self::Hub => HUB_STALE,
            Self::Node => NODE_STALE,
        }
    }
}

/// What the control machine tells the data plane. Ordered and never dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardCommand {
    /// A node or a hub attached.
    AddAttachment {
        /// Its number.
        attachment: AttachmentId,
        /// What it is.
        kind: AttachmentKind,
        /// The key of its `BIND`s.
        bind: BindSecret,
        /// What it may send.
        quota: Quota,
    },
    /// It detached. Its labels are removed by commands of their own.
    RemoveAttachment {
        /// Its number.
        attachment: AttachmentId,
    },
    /// Its data stream came or went.
    SetStream {
        /// Whose.
        attachment: AttachmentId,
        /// Which.
        stream: Option<StreamId>,
    },
    /// By which leg it wants frames. `None`: UDP while bound, else the data stream.
    SetDownlink {
        /// Whose.
        attachment: AttachmentId,
        /// Which.
        leg: Option<Leg>,
    },
    /// Bind our own address at a neighbouring hub that we dialled, and keep probing it.
    SetLeg {
        /// The neighbour's attachment here.
        attachment: AttachmentId,
        /// Our attachment there: names the key.
        id: u32,
        /// The key.
        key: BindSecret,
        /// Where it may receive UDP.
        endpoints: Vec<Endpoint>,
    },
    /// Frames from `upstream` with `label` go to `downstream` with `out`.
    AddLabel {
        /// What this hub wants to see.
        label: Label,
        /// Whose traffic.
        network: NetworkId,
        /// Who may send it.
        upstream: AttachmentId,
        /// Who gets it.
        downstream: AttachmentId,
        /// What the downstream wants to see.
        out: Label,
    },
    /// The same label, another way.
    RedirectLabel {
        /// The label.
        label: Label,
        /// Who gets it.
        downstream: AttachmentId,
        /// What the downstream wants to see.
        out: Label,
    },
    /// The label leads nowhere from now on.
    RemoveLabel {
        /// The label.
        label: Label,
    },
    /// Where an attachment is, as the worker found that binds: for the others.
    SetEndpoint {
        /// Whose.
        attachment: AttachmentId,
        /// Where; `None`: nowhere.
        endpoint: Option<Endpoint>,
    },
    /// Another worker forwards frames with this label: it is not idle.
    TouchLabel {
        /// The label.
        label: Label,
    },
    /// Another worker forwards a neighbouring hub's frames: for the one that binds.
    TouchHub {
        /// The neighbour.
        attachment: AttachmentId,
    },
    /// What a network may send in all.
    SetNetworkQuota {
        /// Which.
        network: NetworkId,
        /// How much.
        quota: Quota,
    },
}

/// What the data plane tells the control machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardEvent {
    /// An attachment's endpoint is proven, or moved.
    Bound {
        /// Whose.
        attachment: AttachmentId,
        /// Where.
        endpoint: Endpoint,
    },
    /// A binding frame came to a worker that does not bind: for the one that does, as a datagram. Not for the
    /// control machine, as the two that are told by [`ForwardEvent::echo`].
    BindAstray {
        /// Who sent it.
        from: Endpoint,
        /// The frame.
        frame: [u8; bind::LEN],
    },
    /// An attachment's endpoint is another one, or none.
    EndpointSet {
        /// Whose.
        attachment: AttachmentId,
        /// Where.
        endpoint: Option<Endpoint>,
    },
    /// A worker forwards frames with a label that names another.
    LabelUsed {
        /// The label.
        label: Label,
    },
    /// A worker that does not bind forwards a neighbouring hub's frames.
    HubUsed {
        /// The neighbour.
        attachment: AttachmentId,
    },
    /// A neighbouring hub gave a sign of life on UDP: several times a second, and many times as often where data goes.
    HubHeard {
        /// The neighbour.
        attachment: AttachmentId,
    },
    /// A label was not used for [`IDLE`] and is freed.
    LabelIdle {
        /// The label.
        label: Label,
    },
    /// Frames came with a label that is not this attachment's to use.
    LabelUnknown {
        /// Who sent them.
        attachment: AttachmentId,
        /// The label.
        label: Label,
    },
    /// A neighbouring hub does not answer our `BIND`s any more.
    LegDown {
        /// The neighbour.
        attachment: AttachmentId,
    },
    /// A neighbouring hub answers our `BIND`s.
    LegUp {
        /// The neighbour.
        attachment: AttachmentId,
        /// The round trip.
        rtt: Duration,
    },
    /// Nothing came from an attachment's endpoint for long: it is forgotten.
    Unbound {
        /// Whose.
        attachment: AttachmentId,
    },
}

impl ForwardEvent {
    /// What other workers are to be told of it.
    pub fn echo(&self) -> Option<ForwardCommand> {
        match *self {
            Self::EndpointSet { attachment, endpoint } => Some(ForwardCommand::SetEndpoint { attachment, endpoint }),
            Self::HubUsed { attachment } => Some(ForwardCommand::TouchHub { attachment }),
            Self::LabelUsed { label } => Some(ForwardCommand::TouchLabel { label }),
            Self::BindAstray { .. }
            | Self::Bound { .. }
            | Self::HubHeard { .. }
            | Self::LabelIdle { .. }
            | Self::LabelUnknown { .. }
            | Self::LegDown { .. }
            | Self::LegUp { .. }
            | Self::Unbound { .. } => None,
        }
    }
}

/// Settings of a forwarder.
#[derive(Clone, Debug)]
pub struct ForwardConfig {
    /// The hub's own addresses: nothing is sent there.
    pub own: Vec<Endpoint>,
    /// Whether an attachment may be on this machine's loopback.
    pub loopback: Loopback,
    /// What each network may send in all, unless set otherwise.
    pub network_quota: Quota,
    /// Keys the challenges: 32 random bytes.
    pub seed: [u8; 32],
    /// Which of the hub's workers this is.
    pub share: Share,
    /// What the workers share of quotas.
    pub quotas: Arc<Quotas>,
}

/// Whether loopback endpoints are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loopback {
    /// Only for programs that keep a whole overlay on one machine.
    Allowed,
    /// Never send there.
    #[default]
    Refused,
}

/// Counters of a forwarder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardStats {
    /// Datagrams and frames that came in.
    pub received: u64,
    /// What went on.
    pub forwarded: Carried,
    /// What did not.
    pub dropped: ForwardDrops,
    /// Events that found no room.
    pub events_lost: u64,
}

impl std::ops::AddAssign<&Self> for ForwardStats {
    fn add_assign(&mut self, other: &Self) {
        let Self { received, forwarded, dropped, events_lost } = other;
        self.received += received;
        self.forwarded += *forwarded;
        self.events_lost += events_lost;
        for (reason, count) in dropped.iter() {
            self.dropped.count(reason, count);
        }
    }
}

impl std::ops::AddAssign for Carried {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// Packets and their bytes, headers of frames included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Frames.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Carried {
    /// What was added to what there was earlier.
    pub fn since(self, earlier: Self) -> Self {
        Self { packets: self.packets.saturating_sub(earlier.packets), bytes: self.bytes.saturating_sub(earlier.bytes) }
    }
}

macro_rules! drops {
    ($($(#[$doc:meta])* $reason:ident = $label:literal,)*) => {
        /// Why a datagram was dropped. A counter label, not an error.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum ForwardDrop {
            $($(#[$doc])* $reason,)*
        }

        impl ForwardDrop {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$reason,)*];

            /// The name in metrics.
            pub fn label(self) -> &'static str {
                match self {
                    $(Self::$reason => $label,)*
                }
            }
        }
    };
}

drops! {
    /// A `BIND` from an address that the hub never sends to.
    BindAddress = "bind_address",
    /// A `BIND` or `BOUND` whose MAC is wrong.
    BindForged = "bind_forged",
    /// A `BIND` whose counter did not rise.
    BindReplayed = "bind_replayed",
    /// A `BIND` for no attachment.
    BindUnknown = "bind_unknown",
    /// It crossed as many hubs as it may.
    HopLimit = "hop_limit",
    /// A label whose way out is its way in.
    LeadsBack = "leads_back",
    /// A label that was never given, or is freed.
    LabelUnknown = "label_unknown",
    /// No frame, or cut off.
    Malformed = "malformed",
    /// Its network sends more than it may.
    NetworkQuota = "network_quota",
    /// The receiver has no leg that is up.
    NoLeg = "no_leg",
    /// Not from the attachment that the label was given to.
    NotUpstream = "not_upstream",
    /// Its attachment sends more than it may.
    Quota = "quota",
    /// The socket did not take it.
    SocketFull = "socket_full",
    /// The receiver's data stream had no room.
    StreamFull = "stream_full",
}

/// One counter for each [`ForwardDrop`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardDrops([u64; 14]);

impl ForwardDrops {
    /// How many were dropped for this reason.
    pub fn of(&self, reason: ForwardDrop) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// How many a quota refused, the attachment's or the network's.
    pub fn by_quotas(&self) -> u64 {
        self.of(ForwardDrop::Quota) + self.of(ForwardDrop::NetworkQuota)
    }

    /// All counters.
    pub fn iter(&self) -> impl Iterator<Item = (ForwardDrop, u64)> {
        ForwardDrop::ALL.iter().map(|reason| (*reason, self.of(*reason)))
    }

    fn count(&mut self, reason: ForwardDrop, packets: u64) {
        if let Some(counter) = self.0.get_mut(reason as usize) {
            *counter += packets;
        }
    }
}

/// A label not used for so long is freed.
pub const IDLE: Duration = Duration::from_secs(60);

#[derive(Debug)]
struct Entry {
    tenant: u32,
    upstream: AttachmentId,
    downstream: AttachmentId,
    out: Label,
    /// Coarse time of the last frame.
    used: u64,
}

#[derive(Debug)]
struct Attachment {
    kind: AttachmentKind,
    bind: BindSecret,
    /// Greatest counter of a `BIND` that held.
    bind_counter: u64,
    /// Proven, not merely seen.
    endpoint: Option<Endpoint>,
    /// Last sign of life from the endpoint.
    heard: Instant,
    /// A hub's: when many of its frames last crossed this one. Where another worker binds: when that was last told.
    carried: Option<Instant>,
    /// Frames that did since `counted`.
    frames: u64,
    counted: Instant,
    stream: Option<StreamId>,
    downlink: Option<Leg>,
    bucket: Arc<Shared>,
    /// When it was last told of an unknown label.
    told: Option<Instant>,
}

impl Attachment {
    /// Notes that frames come from it or go to it; whether the worker that binds is to be told.
    fn carry(&mut self, frames: u64, now: Instant, binds: bool) -> bool {
        if self.kind != AttachmentKind::Hub {
            return false;
        }
        if now.saturating_duration_since(self.counted) >= COUNTING {
            (self.counted, self.frames) = (now, 0);
        }
        self.frames += frames;
        if self.frames < MANY {
            return false;
        }
        let tell = !binds && self.carried.is_none_or(|told| now.saturating_duration_since(told) >= CARRYING / 4);
        if binds || tell {
            self.carried = Some(now);
        }
        tell
    }

    /// Whether data goes to it or comes from it.
    fn carries(&self, now: Instant) -> bool {
        self.carried.is_some_and(|carried| now.saturating_duration_since(carried) < CARRYING)
    }

    /// The leg that frames take. A leg that was asked for is taken or none is: the node knows why.
    fn way(&self) -> Option<Way> {
        let (udp, stream) = (self.endpoint.map(Way::Udp), self.stream.map(Way::Stream));
        match self.downlink {
            None => udp.or(stream),
            Some(Leg::Tls) => stream,
            Some(Leg::Udp) => udp,
        }
    }
}

#[derive(Debug)]
struct Tenant {
    bucket: Arc<Shared>,
    carried: Carried,
}

#[derive(Clone, Copy)]
enum Way {
    Stream(StreamId),
    Udp(Endpoint),
}

#[derive(Clone, Copy)]
enum Source {
    Stream(AttachmentId),
    Udp(Endpoint),
}

/// Segments with one header.
struct Run<'a> {
    contents: &'a mut [u8],
    stride: usize,
    class: TrafficClass,
}

/// Bytes of the segments at the front that share the first one's header.
fn run_length(batch: &[u8], stride: usize) -> usize {
    let header = batch.get(..frame::HEADER_LEN);
    let same = |segment: &&[u8]| header.is_some() && segment.get(..frame::HEADER_LEN) == header;
    let more: usize = batch.chunks(stride).skip(1).take_while(same).map(<[u8]>::len).sum();
    stride.min(batch.len()) + more
}

/// Takes the next frames with one header and one length (the last may be shorter) off a message, and
/// moves them together over the lengths between them. `Some(None)`: one empty frame, skipped. `None`:
/// nothing whole is left.
fn unpack_run<'a>(rest: &mut &'a mut [u8]) -> Option<Option<(&'a mut [u8], usize)>> {
    let (mut at, mut taken, mut stride) = (0, 0, 0);
    let mut header = [0; frame::HEADER_LEN];
    while let Some(length) = rest.get(at..at + frame::LENGTH_LEN) {
        let length = usize::from(u16::from_be_bytes(length.try_into().ok()?));
        let begin = at + frame::LENGTH_LEN;
        let Some(next) = rest.get(begin..begin + length) else { break };
        if at == 0 {
            stride = length;
            header = next.first_chunk().copied().unwrap_or_default();
        } else if length > stride || length == 0 || next.first_chunk() != Some(&header) {
            break;
        }
        rest.copy_within(begin..begin + length, taken);
        (at, taken) = (begin + length, taken + length);
        if length < stride {
            break;
        }
    }
    if at == 0 {
        return None;
    }
    let (run, tail) = std::mem::take(rest).split_at_mut(at);
    *rest = tail;
    Some(run.get_mut(..taken).filter(|run| !run.is_empty()).map(|run| (run, stride)))
}

fn segments(bytes: usize, stride: usize) -> u64 {
    bytes.div_ceil(stride.max(1)) as u64
}

/// How often idle labels and stale endpoints are looked for.
const SWEEP: Duration = Duration::from_millis(250);
/// Sweeps in which all labels and all attachments are visited.
const SWEEPS: usize = 8;
const NODE_STALE: Duration = Duration::from_secs(60);
const HUB_STALE: Duration = Duration::from_secs(1);
/// What idle nodes say to each other is less than so many frames in such a time.
const MANY: u64 = 10;
const COUNTING: Duration = Duration::from_millis(500);
/// So long after the last of many frames a neighbouring hub is still asked as often as where data goes.
const CARRYING: Duration = Duration::from_secs(2);
const CHALLENGE_PERIOD: Duration = Duration::from_secs(10);
/// One report of an unknown label to an attachment in this time.
/// How often the worker that a label names hears that another forwards its frames: well within [`IDLE`].
const TELL_USE: Duration = Duration::from_secs(10);
const TELL_EVERY: Duration = Duration::from_millis(100);
const MAX_EVENTS: usize = 4096;

#[cfg(test)]
mod tests;
