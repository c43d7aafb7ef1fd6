//! A hub's place: its two machines, its disk, and what it may have sent where.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use flatlan_hub::{
    Allow, AttachmentId, Carried, ForwardConfig, ForwardSink, Forwarder, Hub, HubConfig, HubEvent, Limits, Loopback,
    Opened, Output, Quota, StoreOutcome, StoredNetwork, StreamId, StreamOrigin, TrafficClass, UdpBatch,
};
use flatlan_relay::{Control, auth::Exporter, frame};
use flatlan_roster::{Ratchet, RosterVersion};
use flatlan_types::{Endpoint, NetworkId, Share};

use crate::{
    admin::hub_secret,
    conn::Silent,
    datagram::{Datagram, Trail},
    lie::{Liar, Lie},
    node_site::{Disk, exporter, said, tls_of},
    party::Party,
    reflection::Reflection,
    sim::{Place, Sim},
    stream::{ConnId, Message, Side},
};

/// One hub.
pub(crate) struct HubSite {
    pub(crate) place: Place,
    pub(crate) run: Option<Box<Run>>,
    pub(crate) disk: BTreeMap<NetworkId, StoredNetwork>,
    pub(crate) kept: Option<BTreeMap<NetworkId, StoredNetwork>>,
    pub(crate) liar: Liar,
    pub(crate) lies: BTreeSet<Lie>,
    /// What it does not pass, beside probes and control.
    pub(crate) swallows: Swallows,
    /// The greatest rosters that this disk has seen.
    greatest: BTreeMap<NetworkId, RosterVersion>,
    reflection: Reflection,
}

/// A hub that runs.
pub(crate) struct Run {
    pub(crate) hub: Hub,
    pub(crate) forwarder: Forwarder,
    data: BTreeMap<StreamId, AttachmentId>,
    sink: Out,
}

#[derive(Default)]
struct Out {
    udp: Vec<(Endpoint, Vec<u8>, usize, TrafficClass)>,
    streams: Vec<(StreamId, Vec<u8>, usize)>,
}

impl ForwardSink for Out {
    fn udp(&mut self, to: Endpoint, batch: &[u8], stride: usize, class: TrafficClass) -> Carried {
        self.udp.push((to, batch.to_vec(), stride, class));
        Carried::default()
    }

    fn stream(&mut self, to: StreamId, batch: &[u8], stride: usize) -> Carried {
        self.streams.push((to, batch.to_vec(), stride));
        Carried::default()
    }
}

impl HubSite {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            place: Place::new(now),
            run: None,
            disk: BTreeMap::new(),
            kept: None,
            liar: Liar::default(),
            lies: BTreeSet::new(),
            swallows: Swallows::Nothing,
            greatest: BTreeMap::new(),
            reflection: Reflection::default(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.run.is_some()
    }
}

impl Run {
    /// A frame that this hub had before comes in once more.
    pub(crate) fn replay(&mut self, from: Endpoint, frame: &mut [u8], now: Instant) {
        let batch = UdpBatch { from, contents: frame, stride: 0, class: TrafficClass(0) };
        self.forwarder.handle_udp(batch, now, &mut self.sink);
    }
}

impl Sim {
    /// Writes the newest roster of every network to a hub's disk, as its admin had published it before.
    pub(crate) fn stock_hub(&mut self, n: usize) {
        for admin in &self.admins {
            let Some(roster) = admin.newest() else { continue };
            let mut ratchet = Ratchet::new(admin.network());
            ratchet.advance(roster).expect("the admin's own roster");
            let (bundle, ratchet) = (roster.encode(), ratchet.encode());
            let stored = StoredNetwork { network: admin.network(), bundle, ratchet };
            self.hubs[n].disk.insert(admin.network(), stored);
        }
    }

    /// Starts a hub with what its disk holds.
    pub(crate) fn start_hub(&mut self, n: usize) {
        let (now, unix) = (self.now, self.unix(self.hubs[n].place.clock));
        let seed = flatlan_link::Chance::new(self.seed ^ (n as u64) << 40 ^ u64::from(self.hubs[n].place.life)).next();
        let mut seeds = [0; 32];
        if let Some(place) = seeds.first_chunk_mut() {
            *place = seed.to_be_bytes();
        }
        let site = &mut self.hubs[n];
        site.place.life += 1;
        site.place.host_down = false;
        site.reflection = Reflection::default();
        site.liar.begin();
        let config = HubConfig {
            secret: hub_secret(n),
            allow: Allow::Networks(self.admins.iter().map(crate::admin::Admin::network).collect()),
            peers: Vec::new(),
            udp: vec!["0.0.0.0:51820".parse().expect("an address")],
            limits: Limits::default(),
            incarnation: unix.0.saturating_mul(1_000_000),
            seed: seeds,
        };
        let forward = ForwardConfig {
            own: vec![Party::Hub(n).udp()],
            loopback: Loopback::Refused,
            network_quota: Quota::default(),
            seed: seeds,
            share: Share::default(),
            quotas: Arc::default(),
        };
        let hub = Hub::new(config, site.disk.values().cloned().collect(), now, unix);
        let forwarder = Forwarder::new(forward, now);
        site.run = Some(Box::new(Run { hub, forwarder, data: BTreeMap::new(), sink: Out::default() }));
        self.note(Party::Hub(n), &[1], format_args!("starts"));
        self.drain_hub(n, &Trail::default());
    }

    /// A hub's process ends.
    pub(crate) fn stop_hub(&mut self, n: usize, silent: Silent) {
        let site = &mut self.hubs[n];
        if site.run.take().is_none() {
            return;
        }
        site.place.host_down = silent == Silent::Yes;
        site.place.wake();
        self.disarm(Party::Hub(n));
        self.note(Party::Hub(n), &[2], format_args!("stops, silent: {silent:?}"));
        self.close_all(Party::Hub(n), silent);
    }

    pub(crate) fn set_hub_disk(&mut self, n: usize, disk: Disk) {
        let site = &mut self.hubs[n];
        match disk {
            Disk::Kept => return,
            Disk::Lost => site.disk.clear(),
            Disk::Reverted => match &site.kept {
                Some(kept) => site.disk.clone_from(kept),
                None => return,
            },
        }
        site.greatest.clear();
    }

    pub(crate) fn hub_timeout(&mut self, n: usize) {
        let (now, unix) = (self.now, self.unix(self.hubs[n].place.clock));
        let site = &mut self.hubs[n];
        site.place.armed = None;
        if site.place.count_timeout(now) {
            return self.violate(format!("h{n} asks for too many timeouts"));
        }
        self.with_hub(n, &Trail::default(), |run| {
            if run.hub.poll_timeout() <= now {
                run.hub.set_time(unix, now);
                run.hub.handle_timeout(now);
            }
            if run.forwarder.poll_timeout() <= now {
                run.forwarder.handle_timeout(now, &mut run.sink);
            }
        });
    }

    pub(crate) fn hub_receives(&mut self, n: usize, mut datagram: Datagram) {
        let now = self.now;
        let site = &mut self.hubs[n];
        if site.run.is_none() {
            return;
        }
        if site.place.frozen.is_some() {
            return site.place.keep(datagram);
        }
        site.reflection.handle_inbound(datagram.from, &datagram.bytes);
        let (from, len) = (datagram.from, datagram.bytes.len());
        let kind = datagram.bytes.first().copied().unwrap_or_default();
        let at = self.elapsed();
        self.trace.note_datagram(at, Party::Hub(n), &datagram.bytes, format_args!("<- {from} {kind:#x} {len} B"));
        if kind == frame::KIND {
            if self.is_loop(n, &datagram.trail) {
                let trail: Vec<_> = datagram.trail.hubs().collect();
                return self.violate(format!("a frame came to h{n} again: it had crossed {trail:?}"));
            }
            if self.swallowed(n, &datagram.bytes) {
                return;
            }
            self.remember_frame(n, from, &datagram.bytes, &datagram.trail);
            if self.hubs[n].liar.is_bent(&datagram.bytes) {
                datagram.trail.bend();
            }
        }
        let class = TrafficClass(datagram.class);
        self.with_hub(n, &datagram.trail, |run| {
            let batch = UdpBatch { from, contents: &mut datagram.bytes, stride: 0, class };
            run.forwarder.handle_udp(batch, now, &mut run.sink);
        });
        if kind == frame::KIND {
            self.replay_frames(n);
        }
    }

    pub(crate) fn hub_accepts(&mut self, n: usize, id: ConnId) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (from, role, now) = (conn.dialler.party, conn.role, self.now);
        let remote = Endpoint::new((from.ip(), 40_000).into());
        let opened = Opened { remote, exporter: Exporter(exporter(id)), origin: StreamOrigin::Accepted };
        self.note(Party::Hub(n), &[3], format_args!("{from} opened stream {} for {role:?}", id.0));
        self.with_hub(n, &Trail::default(), |run| {
            run.hub.handle_stream_opened(stream_of(id, Side::Dialled), opened, now);
        });
    }

    pub(crate) fn hub_dialled(&mut self, n: usize, dial: u64, id: ConnId) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (to, now) = (conn.dialled.party, self.now);
        let origin = StreamOrigin::Dialled(flatlan_hub::DialId(dial));
        let opened = Opened { remote: tls_of(to), exporter: Exporter(exporter(id)), origin };
        self.with_hub(n, &Trail::default(), |run| {
            run.hub.handle_stream_opened(stream_of(id, Side::Dialler), opened, now);
        });
    }

    pub(crate) fn hub_dial_failed(&mut self, n: usize, dial: u64) {
        let now = self.now;
        self.note(Party::Hub(n), &[4], format_args!("dial {dial} failed"));
        self.with_hub(n, &Trail::default(), |run| run.hub.handle_dial_failed(flatlan_hub::DialId(dial), now));
    }

    pub(crate) fn hub_closed(&mut self, n: usize, id: ConnId, side: Side) {
        let (stream, now) = (stream_of(id, side), self.now);
        self.note(Party::Hub(n), &[5], format_args!("stream {} ended", id.0));
        self.with_hub(n, &Trail::default(), |run| {
            run.data.remove(&stream);
            run.hub.handle_stream_closed(stream, now);
        });
    }

    pub(crate) fn hub_hears(&mut self, n: usize, (id, side): (ConnId, Side), message: Message) {
        let (stream, now) = (stream_of(id, side), self.now);
        let Message { mut bytes, mut trail } = message;
        let Some((role, from)) = self.conns.get(&id).map(|conn| (conn.role, conn.end(side.other()).party)) else {
            return;
        };
        let heard = format_args!("<- {from} stream {} {role:?} {}", id.0, said(role, &bytes));
        self.note_message(Party::Hub(n), role, &bytes, heard);
        let Some(run) = self.hubs[n].run.as_ref() else { return };
        let Some(attachment) = run.data.get(&stream).copied() else {
            return self.with_hub(n, &trail, |run| run.hub.handle_message(stream, &bytes, now));
        };
        if self.is_loop(n, &trail) {
            let trail: Vec<_> = trail.hubs().collect();
            return self.violate(format!("frames came to h{n} again by a stream: they had crossed {trail:?}"));
        }
        if self.hubs[n].swallows == Swallows::Data {
            let mut kept = Vec::new();
            for frame in frame::unpack(&bytes).filter(|frame| !is_data(frame)) {
                frame::pack(&mut kept, frame).expect("it was packed before");
            }
            bytes = kept;
        }
        if frame::unpack(&bytes).any(|frame| self.hubs[n].liar.is_bent(frame)) {
            trail.bend();
        }
        self.with_hub(n, &trail, |run| run.forwarder.handle_stream(attachment, &mut bytes, now, &mut run.sink));
    }

    /// The hub tells everybody to leave.
    pub(crate) fn hub_drains(&mut self, n: usize) {
        self.note(Party::Hub(n), &[6], format_args!("drains"));
        self.with_hub(n, &Trail::default(), |run| run.hub.drain());
    }

    pub(crate) fn with_hub(&mut self, n: usize, trail: &Trail, call: impl FnOnce(&mut Run)) {
        let site = &mut self.hubs[n];
        let Some(run) = site.run.as_mut().filter(|_| site.place.frozen.is_none()) else { return };
        call(run);
        self.drain_hub(n, trail);
    }

    fn drain_hub(&mut self, n: usize, trail: &Trail) {
        let now = self.now;
        loop {
            let Some(run) = self.hubs[n].run.as_mut() else { return };
            run.forwarder.flush(&mut run.sink);
            while let Some(event) = run.forwarder.poll_event() {
                run.hub.handle_forward(event, now);
            }
            let Some(output) = run.hub.poll_output() else { break };
            self.obey_hub(n, output);
        }
        let Some(run) = self.hubs[n].run.as_mut() else { return };
        let Out { udp, streams } = std::mem::take(&mut run.sink);
        let trail = trail.over(n);
        for (to, batch, stride, class) in udp {
            for datagram in batch.chunks(stride.max(1)) {
                if self.swallowed(n, datagram) {
                    continue;
                }
                self.judge(n, to, datagram);
                // what is no frame may become one by a turned bit
                let is_frame = datagram.first() == Some(&frame::KIND);
                let mut crossed = if is_frame { trail.clone() } else { Trail::default() };
                let mut datagram = datagram.to_vec();
                if self.bend_frame(n, &mut datagram) {
                    crossed.bend();
                }
                self.send_datagram(Party::Hub(n), to, (datagram, class.0), crossed);
            }
        }
        for (stream, batch, stride) in streams {
            let mut message = Vec::new();
            for datagram in batch.chunks(stride.max(1)) {
                frame::pack(&mut message, datagram).expect("a frame fits");
            }
            let (id, side) = conn_of(stream);
            self.send_message(id, side, message, trail.clone());
        }
        let due = self.hubs[n].run.as_ref().filter(|_| self.hubs[n].place.frozen.is_none());
        let due = due.map(|run| run.hub.poll_timeout().min(run.forwarder.poll_timeout()));
        self.arm(Party::Hub(n), due);
    }

    fn obey_hub(&mut self, n: usize, output: Output) {
        let (now, life, party) = (self.now, self.hubs[n].place.life, Party::Hub(n));
        let Some(run) = self.hubs[n].run.as_mut() else { return };
        match output {
            Output::Send { stream, message } => {
                if let Control::Attached(attached) = &message
                    && let Some(bind) = attached.bind.clone()
                {
                    self.hubs[n].reflection.note_key(bind);
                }
                let (id, side) = conn_of(stream);
                for message in self.bend(n, id, message) {
                    self.send_message(id, side, message.encode(), Trail::default());
                }
            }
            Output::Close { stream } => {
                run.data.remove(&stream);
                let (id, side) = conn_of(stream);
                self.close(id, side);
            }
            Output::Data { stream, attachment } => {
                run.data.insert(stream, attachment);
            }
            Output::Forward(command) => run.forwarder.apply(command, now),
            Output::Dial { dial, at, role } => {
                let to = at.literal().and_then(|at| Party::at(at.socket_addr().ip())).unwrap_or(Party::Outside);
                self.dial((party, life), dial.0, to, role);
            }
            Output::SetAside { network, reason } => {
                self.violate(format!("h{n} cannot read what it stored of {network}: {reason}"));
            }
            Output::Store { token, network, bundle, ratchet } => {
                let stored = StoredNetwork { network, bundle: bundle.to_vec(), ratchet };
                self.hubs[n].disk.insert(network, stored);
                if let Some(run) = self.hubs[n].run.as_mut() {
                    run.hub.handle_stored(token, StoreOutcome::Stored, now);
                }
            }
            Output::Event(event) => {
                self.note(party, &[7], format_args!("{event:?}"));
                if let HubEvent::RosterAdopted { network, version } = event {
                    let before = self.hubs[n].greatest.insert(network, version);
                    if before.is_some_and(|before| before > version) {
                        self.violate(format!("h{n} went back from roster {before:?} to {version:?}"));
                    }
                }
            }
        }
    }

    /// Whether a hub may send this there.
    fn judge(&mut self, n: usize, to: Endpoint, datagram: &[u8]) {
        let hub = (0..self.hubs.len()).any(|other| Party::Hub(other).udp() == to);
        if hub {
            return;
        }
        if let Some(wrong) = self.hubs[n].reflection.handle_outbound(to, datagram) {
            self.violate(format!("h{n} sent {wrong}"));
        }
    }

    /// A frame that came before, by no lie: one that lies about labels may send it anywhere, as often as hops are left.
    fn is_loop(&self, n: usize, trail: &Trail) -> bool {
        trail.has(n) && !trail.is_bent()
    }

    /// Whether a datagram that comes to a hub, or leaves it, is lost.
    fn swallowed(&self, n: usize, datagram: &[u8]) -> bool {
        self.hubs[n].swallows != Swallows::Nothing && datagram.first() == Some(&frame::KIND) && is_data(datagram)
    }
}

/// What a hub does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swallows {
    Nothing,
    /// Data in datagrams, both ways.
    Datagrams,
    /// Data, however it comes.
    Data,
}

/// Whether a labelled frame holds data of a WireGuard session.
fn is_data(frame: &[u8]) -> bool {
    frame::inner(frame).and_then(|inner| inner.first()) == Some(&4)
}

/// A hub's number for its end of a connection.
pub(crate) fn stream_of(id: ConnId, side: Side) -> StreamId {
    StreamId(id.0 * 2 + u64::from(side == Side::Dialled))
}

fn conn_of(stream: StreamId) -> (ConnId, Side) {
    (ConnId(stream.0 / 2), if stream.0 % 2 == 1 { Side::Dialled } else { Side::Dialler })
}
