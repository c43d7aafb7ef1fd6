//! Whether a hub can be reached over UDP.

use std::time::{Duration, Instant};

use flatlan_types::Endpoint;

use crate::config::HubLegConfig;

/// The UDP leg between this node and one hub. *Mutate, drain, mutate.*
#[derive(Debug)]
pub struct HubLeg {
    config: HubLegConfig,
    state: HubLegState,
}

impl HubLeg {
    /// A leg without a key: down, and nothing is sent.
    pub fn new(config: HubLegConfig, seed: u64) -> Self {
        let _ = seed;
        Self { config, state: HubLegState::Down }
    }

    /// The hub gave a (new) bind key over its control stream: start at once.
    pub fn set_key(&mut self, now: Instant) {
        let _ = (now, self.config);
    }

    /// The control stream is gone and the key with it: down, and nothing is sent.
    pub fn clear_key(&mut self, now: Instant) {
        let _ = now;
    }

    /// A pair uses this hub. Cheap; call it for each batch.
    pub fn touch(&mut self, now: Instant) {
        let _ = now;
    }

    /// Something changed on this node's side of the network: ask at once.
    pub fn reprobe(&mut self, now: Instant) {
        let _ = now;
    }

    /// The hub answered a BIND: its round trip, and the endpoint it saw.
    pub fn handle_bound(&mut self, rtt: Duration, reflexive: Endpoint, now: Instant) {
        let _ = (rtt, reflexive, now);
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// A BIND to send now.
    pub fn poll_transmit(&mut self) -> Option<BindProbe> {
        None
    }

    /// What changed.
    pub fn poll_event(&mut self) -> Option<HubLegEvent> {
        None
    }

    /// When to call [`HubLeg::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Whether it can be used.
    pub fn state(&self) -> HubLegState {
        self.state
    }

    /// Smoothed round trip, once there was an answer.
    pub fn rtt(&self) -> Option<Duration> {
        None
    }

    /// This node as the hub saw it last.
    pub fn reflexive(&self) -> Option<Endpoint> {
        None
    }
}

/// One BIND is to be sent. The caller writes the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindProbe {
    /// Counts up over the BINDs of a key; the frame's counter.
    pub counter: u64,
}

/// What a [`HubLeg`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubLegEvent {
    /// No answer: use the TLS leg.
    Down,
    /// The hub sees this node at another endpoint than before.
    Roamed {
        /// Where.
        reflexive: Endpoint,
    },
    /// The hub answers over UDP.
    Up {
        /// This node as the hub sees it.
        reflexive: Endpoint,
        /// The round trip.
        rtt: Duration,
    },
}

/// Whether the UDP leg to a hub can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HubLegState {
    /// No key, or no answer.
    Down,
    /// Asked, not yet answered.
    Probing,
    /// Answers.
    Up,
}
