//! All paths to one peer, and which of them its lanes use.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use flatlan_types::{Endpoint, HubSlot, LaneId};

use crate::{
    config::PathConfig,
    event::PathEvent,
    frame::{Probe, ProbeReply},
    kind::{Leg, PathKind},
};

/// The paths to one peer. *Mutate, drain, mutate*: after every input or command drain
/// [`poll_transmit`](Self::poll_transmit) and [`poll_event`](Self::poll_event), then ask
/// [`poll_timeout`](Self::poll_timeout).
#[derive(Debug)]
pub struct PeerPaths {
    config: PathConfig,
}

impl PeerPaths {
    /// No paths. `seed` makes the instance number and the jitter.
    pub fn new(config: PathConfig, seed: u64, now: Instant) -> Self {
        let _ = (seed, now);
        Self { config }
    }

    /// Replaces the peer's candidates (at most [`MAX_CANDIDATES`] are taken). An endpoint that answers
    /// stays even if it is not listed; one that did not answer gets a new chance. The caller keeps
    /// overlay addresses and hubs out; loopback, unspecified, multicast and port 0 are skipped here.
    pub fn set_direct(&mut self, candidates: &[Endpoint], now: Instant) {
        let _ = (candidates, now);
    }

    /// An authentic packet came from this source: it is probed, and is a candidate once it answers.
    /// `handle_probe`, `handle_reply` and `on_received` do this by themselves.
    pub fn add_direct(&mut self, endpoint: Endpoint, now: Instant) {
        let _ = (endpoint, now);
    }

    /// Replaces the relayed paths: those whose label exists. One that is not listed is gone at once.
    pub fn set_relays(&mut self, relays: &[Relay], now: Instant) {
        let _ = (relays, now);
    }

    /// Known dead: the hub's stream closed, its label was revoked, the socket refused. Lanes leave it at
    /// once where another path is usable; it must answer probes before it is used again.
    pub fn fail(&mut self, path: PathKind, now: Instant) {
        let _ = (path, now);
    }

    /// The hub asked to be left: lanes leave it gracefully and do not come back to it
    /// until it is listed by [`set_relays`](Self::set_relays) after having been absent.
    pub fn drain(&mut self, hub: HubSlot, now: Instant) {
        let _ = (hub, now);
    }

    /// This node's own network changed: every path is asked again at once.
    pub fn reprobe(&mut self, now: Instant) {
        let _ = now;
    }

    /// Probes of this many times the interval: for a node with very many active peers.
    pub fn set_stretch(&mut self, stretch: NonZeroU32) {
        let _ = stretch;
    }

    /// Data datagrams that were sent on the lane's path. `bytes` without labels.
    pub fn on_sent(&mut self, lane: LaneId, packets: u32, bytes: u64, now: Instant) {
        let _ = (lane, packets, bytes, now);
    }

    /// Data datagrams (not keepalives) that came in by `ingress` and opened. `bytes` without labels.
    pub fn on_received(&mut self, ingress: PathKind, lane: LaneId, packets: u32, bytes: u64, now: Instant) {
        let _ = (ingress, lane, packets, bytes, now);
    }

    /// The peer's probe. Send the reply by the reverse of `ingress` and, where different, by the primary's path.
    pub fn handle_probe(&mut self, probe: Probe, ingress: PathKind, now: Instant) -> ProbeReply {
        let _ = (ingress, now);
        ProbeReply { path: probe.path, seq: probe.seq, instance: 0, about: probe.about, received: None }
    }

    /// The peer's reply to a probe of ours, by whatever path it came.
    pub fn handle_reply(&mut self, reply: ProbeReply, ingress: PathKind, now: Instant) {
        let _ = (reply, ingress, now);
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// A probe to send now.
    pub fn poll_transmit(&mut self) -> Option<ProbeOut> {
        None
    }

    /// What changed.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        None
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// The lane that carries flows; the other of the two is the warm standby.
    pub fn primary(&self) -> LaneId {
        LaneId::PRIMARY
    }

    /// Where the lane's datagrams go. `None`: nothing is usable (yet).
    pub fn active(&self, lane: LaneId) -> Option<PathKind> {
        let _ = lane;
        None
    }

    /// Where the lane would go if its path died now.
    pub fn standby(&self, lane: LaneId) -> Option<PathKind> {
        let _ = lane;
        None
    }

    /// Every path, best first.
    pub fn paths(&self) -> impl Iterator<Item = PathStatus> {
        std::iter::empty()
    }

    /// The largest datagram (without label) that both the primary's path and its standby carry.
    pub fn mtu(&self) -> usize {
        self.config.max_datagram
    }
}

/// A relayed path that can be used: its label exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relay {
    /// The first hub.
    pub hub: HubSlot,
    /// How to get there.
    pub leg: Leg,
    /// Round trip to the hub: ranks the path until its own is known.
    pub rtt: Duration,
}

/// A probe to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeOut {
    /// By which path.
    pub path: PathKind,
    /// What to seal.
    pub probe: Probe,
    /// Pad the sealed datagram (without label) to this many bytes.
    pub size: usize,
}

/// A path as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PathStatus {
    /// Which.
    pub kind: PathKind,
    /// How it does.
    pub state: PathState,
    /// The lanes' use of it.
    pub lane: Option<LaneId>,
    /// Smoothed round trip.
    pub rtt: Option<Duration>,
    /// Share of probes that were not answered, smoothed, 0 to 1.
    pub loss: f32,
    /// Largest datagram (without label) that it carries, as far as known.
    pub mtu: usize,
}

/// How a path does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathState {
    /// Not answered yet.
    Untested,
    /// Answers.
    Valid,
    /// A probe was missed.
    Suspect,
    /// Does not answer.
    Dead,
}

/// How many candidates a peer may name.
pub const MAX_CANDIDATES: usize = 8;
