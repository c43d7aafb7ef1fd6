//! The hubs as a worker sees them: a UDP port to bind at, and perhaps a data stream.
//!
//! Whether the UDP leg works is judged by BIND frames (the node-hub probe, shared by all pairs); the
//! binding is the worker's own because the NAT mapping that it keeps open is that of the worker's socket.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use flatlan_path::{HubLeg, HubLegConfig, HubLegEvent, HubLegState};
use flatlan_relay::bind::{Bind, Bound, Verdict};
use flatlan_types::{Endpoint, HubSlot};

use crate::{Event, HubUdp, batch::Destination, worker::LegReport};

/// Every hub that this node is attached to.
pub(crate) struct Hubs {
    hubs: BTreeMap<HubSlot, Hub>,
    events: VecDeque<Event>,
    seed: u64,
    /// The clock that goes into BIND frames and comes back: microseconds since this.
    origin: Option<Instant>,
}

struct Hub {
    udp: Option<HubUdp>,
    leg: HubLeg,
    stream: bool,
    /// Counter of the BIND frames under this key.
    counter: u64,
}

/// A BIND frame that is due.
pub(crate) struct BindOut {
    pub(crate) to: Destination,
    pub(crate) datagram: [u8; flatlan_relay::bind::LEN],
}

impl Hubs {
    pub(crate) fn new(seed: u64) -> Self {
        Self { hubs: BTreeMap::new(), events: VecDeque::new(), seed, origin: None }
    }

    pub(crate) fn set(&mut self, slot: HubSlot, udp: Option<HubUdp>, stream: bool, now: Instant) {
        self.origin.get_or_insert(now);
        let seed = self.seed ^ (u64::from(slot.0) << 48);
        let hub = self.hubs.entry(slot).or_insert_with(|| Hub {
            udp: None,
            leg: HubLeg::new(HubLegConfig::default(), seed),
            stream: false,
            counter: 0,
        });
        hub.stream = stream;
        if hub.udp != udp {
            match &udp {
                Some(_) => hub.leg.set_key(now),
                None => hub.leg.clear_key(now),
            }
            hub.counter = 0;
            hub.udp = udp;
        }
        self.drain_events(slot);
    }

    pub(crate) fn remove(&mut self, slot: HubSlot) {
        self.hubs.remove(&slot);
    }

    pub(crate) fn network_changed(&mut self, now: Instant) {
        for hub in self.hubs.values_mut() {
            hub.leg.reprobe(now);
        }
    }

    /// A pair uses this hub.
    pub(crate) fn touch(&mut self, slot: HubSlot, now: Instant) {
        if let Some(hub) = self.hubs.get_mut(&slot) {
            hub.leg.touch(now);
        }
    }

    /// Where labelled datagrams for a hub go, while its UDP leg works.
    pub(crate) fn udp_endpoint(&self, slot: HubSlot) -> Option<Endpoint> {
        Some(self.hubs.get(&slot)?.udp.as_ref()?.endpoint)
    }

    /// The hub whose UDP port this is.
    pub(crate) fn at(&self, endpoint: Endpoint) -> Option<HubSlot> {
        let is_at = |hub: &Hub| hub.udp.as_ref().is_some_and(|udp| udp.endpoint == endpoint);
        self.hubs.iter().find(|(_, hub)| is_at(hub)).map(|(slot, _)| *slot)
    }

    /// The round trip to a hub whose UDP leg works.
    pub(crate) fn udp_up(&self, slot: HubSlot) -> Option<Duration> {
        let hub = self.hubs.get(&slot)?;
        (hub.leg.state() == HubLegState::Up).then(|| hub.leg.rtt().unwrap_or_default())
    }

    pub(crate) fn has_stream(&self, slot: HubSlot) -> bool {
        self.hubs.get(&slot).is_some_and(|hub| hub.stream)
    }

    /// A BOUND frame; the BIND to send in answer, where it is a challenge. `None`: not authentic.
    pub(crate) fn handle_bound(&mut self, frame: &[u8], from: Endpoint, now: Instant) -> Option<Option<BindOut>> {
        let id = Bound::peek_id(frame)?;
        let origin = self.origin?;
        let (slot, hub) = self
            .hubs
            .iter_mut()
            .find(|(_, hub)| hub.udp.as_ref().is_some_and(|udp| udp.bind.id == id && udp.endpoint == from))?;
        let slot = *slot;
        let udp = hub.udp.as_ref()?;
        let bound = Bound::open(frame, &udp.bind.key)?;
        let answer = match bound.verdict {
            Verdict::Challenge(nonce) => {
                hub.counter += 1;
                let bind = Bind { id, counter: hub.counter, time: bound.time, nonce };
                Some(BindOut { to: Destination::Udp(udp.endpoint), datagram: bind.encode(&udp.bind.key) })
            }
            Verdict::Bound => {
                let sent = origin + Duration::from_micros(bound.time);
                let rtt = now.checked_duration_since(sent)?;
                hub.leg.handle_bound(rtt, bound.reflexive, now);
                None
            }
        };
        self.drain_events(slot);
        Some(answer)
    }

    /// Timers; the BIND frames that are due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Vec<BindOut> {
        let mut due = Vec::new();
        let Some(origin) = self.origin else { return due };
        let slots: Vec<HubSlot> = self.hubs.keys().copied().collect();
        for slot in slots {
            let Some(hub) = self.hubs.get_mut(&slot) else { continue };
            if hub.leg.poll_timeout().is_some_and(|at| at <= now) {
                hub.leg.handle_timeout(now);
            }
            while hub.leg.poll_transmit().is_some() {
                let Some(udp) = &hub.udp else { continue };
                hub.counter += 1;
                let time = now.duration_since(origin).as_micros() as u64;
                let bind = Bind { id: udp.bind.id, counter: hub.counter, time, nonce: 0 };
                due.push(BindOut { to: Destination::Udp(udp.endpoint), datagram: bind.encode(&udp.bind.key) });
            }
            self.drain_events(slot);
        }
        due
    }

    pub(crate) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.hubs.values().filter_map(|hub| hub.leg.poll_timeout()).min()
    }

    pub(crate) fn report(&self) -> Vec<LegReport> {
        let report =
            |(slot, hub): (&HubSlot, &Hub)| LegReport { hub: *slot, udp_rtt: self.udp_up(*slot), stream: hub.stream };
        self.hubs.iter().map(report).collect()
    }

    fn drain_events(&mut self, slot: HubSlot) {
        let Some(hub) = self.hubs.get_mut(&slot) else { return };
        while let Some(event) = hub.leg.poll_event() {
            self.events.push_back(match event {
                HubLegEvent::Down => Event::LegDown { hub: slot },
                HubLegEvent::Up { reflexive, rtt } => Event::LegUp { hub: slot, reflexive, rtt },
                HubLegEvent::Roamed { reflexive } => {
                    Event::LegUp { hub: slot, reflexive, rtt: hub.leg.rtt().unwrap_or_default() }
                }
            });
        }
    }
}
