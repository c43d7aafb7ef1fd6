//! The hubs as a worker sees them: a UDP port to bind at, and perhaps a data stream.
//!
//! Whether the UDP leg works is judged by BIND frames (the node-hub probe, shared by all pairs); the
//! binding is a worker's own because the NAT mapping that it keeps open is that of the worker's port. Of several
//! workers, which share the port, the first binds for all; the others are told how it went, and tell that they use
//! a hub.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use flatlan_path::{HubLeg, HubLegConfig, HubLegEvent, HubLegState};
use flatlan_relay::bind::{Bind, Bound, Verdict};
use flatlan_types::{Endpoint, HubSlot, WorkerId};

use crate::{Event, HubUdp, worker::LegReport};

/// Every hub that this node is attached to.
pub(crate) struct Hubs {
    hubs: BTreeMap<HubSlot, Hub>,
    events: VecDeque<Event>,
    seed: u64,
    binds: Binds,
    /// The clock that goes into BIND frames and comes back: microseconds since this.
    origin: Option<Instant>,
}

/// Who binds at the hubs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Binds {
    Here,
    Elsewhere,
}

struct Hub {
    udp: Option<HubUdp>,
    leg: HubLeg,
    stream: bool,
    /// Counter of the BIND frames under this key.
    counter: u64,
    /// The greatest counter that was answered: an older answer, or the same again, says nothing.
    answered: u64,
    /// It is about to stop.
    draining: bool,
    /// What the worker found that binds: the round trip while the leg is up.
    told: Option<Duration>,
    /// That worker last heard that this one uses the hub.
    used: Option<Instant>,
}

/// A BIND frame that is due.
pub(crate) struct BindOut {
    pub(crate) to: Endpoint,
    pub(crate) datagram: [u8; flatlan_relay::bind::LEN],
}

impl Hubs {
    pub(crate) fn new(seed: u64, worker: WorkerId) -> Self {
        let binds = if worker == WorkerId::FIRST { Binds::Here } else { Binds::Elsewhere };
        Self { hubs: BTreeMap::new(), events: VecDeque::new(), seed, binds, origin: None }
    }

    pub(crate) fn set(&mut self, slot: HubSlot, udp: Option<HubUdp>, stream: bool, now: Instant) {
        self.origin.get_or_insert(now);
        let seed = self.seed ^ (u64::from(slot.0) << 48);
        let hub = self.hubs.entry(slot).or_insert_with(|| Hub {
            udp: None,
            leg: HubLeg::new(HubLegConfig::default(), seed),
            stream: false,
            counter: 0,
            answered: 0,
            draining: false,
            told: None,
            used: None,
        });
        hub.stream = stream;
        if hub.udp != udp {
            match (&udp, self.binds) {
                (Some(_), Binds::Here) => hub.leg.set_key(now),
                (Some(_), Binds::Elsewhere) => {}
                (None, _) => {
                    hub.leg.clear_key(now);
                    hub.told = None;
                }
            }
            (hub.counter, hub.answered) = (0, 0);
            hub.udp = udp;
        }
        self.drain_events();
    }

    /// What the worker found that binds. Whether a hub is concerned.
    pub(crate) fn set_leg(&mut self, slot: HubSlot, rtt: Option<Duration>) -> bool {
        let told = self.hubs.get_mut(&slot).filter(|hub| self.binds == Binds::Elsewhere && hub.udp.is_some());
        told.map(|hub| hub.told = rtt).is_some()
    }

    pub(crate) fn remove(&mut self, slot: HubSlot) {
        self.hubs.remove(&slot);
    }

    /// The hub is about to stop.
    pub(crate) fn drain(&mut self, slot: HubSlot) {
        if let Some(hub) = self.hubs.get_mut(&slot) {
            hub.draining = true;
        }
    }

    /// Hubs that are about to stop.
    pub(crate) fn draining(&self) -> impl Iterator<Item = HubSlot> {
        self.hubs.iter().filter(|(_, hub)| hub.draining).map(|(slot, _)| *slot)
    }

    pub(crate) fn network_changed(&mut self, now: Instant) {
        for hub in self.hubs.values_mut() {
            hub.leg.reprobe(now);
        }
    }

    /// A pair uses this hub.
    pub(crate) fn touch(&mut self, slot: HubSlot, now: Instant) {
        let Some(hub) = self.hubs.get_mut(&slot) else { return };
        match self.binds {
            Binds::Here => hub.leg.touch(now),
            Binds::Elsewhere if hub.used.is_none_or(|used| now.saturating_duration_since(used) >= TELL_USE) => {
                hub.used = Some(now);
                self.events.push_back(Event::HubUsed { hub: slot });
            }
            Binds::Elsewhere => {}
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
        match self.binds {
            Binds::Here => (hub.leg.state() == HubLegState::Up).then(|| hub.leg.rtt().unwrap_or_default()),
            Binds::Elsewhere => hub.told,
        }
    }

    pub(crate) fn has_stream(&self, slot: HubSlot) -> bool {
        self.hubs.get(&slot).is_some_and(|hub| hub.stream)
    }

    /// A BOUND frame; the BIND to send in answer, where it is a challenge. `None`: not authentic, or seen
    /// before.
    pub(crate) fn handle_bound(&mut self, frame: &[u8], from: Endpoint, now: Instant) -> Option<Option<BindOut>> {
        let id = Bound::peek_id(frame)?;
        let origin = self.origin?;
        let is_of = |hub: &&mut Hub| hub.udp.as_ref().is_some_and(|udp| udp.bind.id == id && udp.endpoint == from);
        let hub = self.hubs.values_mut().find(is_of)?;
        let udp = hub.udp.as_ref()?;
        let bound = Bound::open(frame, &udp.bind.key)?;
        if bound.counter <= hub.answered || bound.counter > hub.counter {
            return None;
        }
        hub.answered = bound.counter;
        let answer = match bound.verdict {
            Verdict::Challenge(nonce) => {
                hub.counter += 1;
                let bind = Bind { id, counter: hub.counter, time: bound.time, nonce };
                Some(BindOut { to: udp.endpoint, datagram: bind.encode(&udp.bind.key) })
            }
            Verdict::Bound => {
                let sent = origin + Duration::from_micros(bound.time);
                let rtt = now.checked_duration_since(sent)?;
                hub.leg.handle_bound(rtt, bound.reflexive, now);
                None
            }
        };
        self.drain_events();
        Some(answer)
    }

    /// Timers.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        for hub in self.hubs.values_mut() {
            if hub.leg.poll_timeout().is_some_and(|at| at <= now) {
                hub.leg.handle_timeout(now);
            }
        }
        self.drain_events();
    }

    /// A BIND frame to send now.
    pub(crate) fn poll_transmit(&mut self, now: Instant) -> Option<BindOut> {
        let origin = self.origin?;
        self.hubs.values_mut().find_map(|hub| {
            hub.leg.poll_transmit()?;
            let udp = hub.udp.as_ref()?;
            hub.counter += 1;
            let time = now.saturating_duration_since(origin).as_micros() as u64;
            let bind = Bind { id: udp.bind.id, counter: hub.counter, time, nonce: 0 };
            Some(BindOut { to: udp.endpoint, datagram: bind.encode(&udp.bind.key) })
        })
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

    fn drain_events(&mut self) {
        for (slot, hub) in &mut self.hubs {
            let slot = *slot;
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
}

/// How often the worker that binds hears that a hub is in use: well within the time for which that counts.
const TELL_USE: Duration = Duration::from_millis(500);
