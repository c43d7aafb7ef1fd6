//! Intervals and bounds, with the reasons for their defaults.

use std::time::Duration;

/// How one [`PeerPaths`](crate::PeerPaths) behaves. `Default` is the product's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathConfig {
    /// Between two probes of the primary's path while there is traffic.
    pub probe_interval: Duration,
    /// Between two probes once one was missed: suspicion is settled fast, both on the suspect and on the standby.
    pub burst_interval: Duration,
    /// No reply is late before this, however short the round trip: two busy cores need some time.
    pub min_deadline: Duration,
    /// The peer counts as active this long after traffic.
    pub hot: Duration,
    /// From here on probes only keep NAT mappings and labels open.
    pub idle: Duration,
    /// From here on nothing is sent, and [`PathEvent::Idle`](crate::PathEvent::Idle) is told.
    pub gone: Duration,
    /// Data that is sent for this long without an advance at the receiver condemns a path.
    pub evidence_span: Duration,
    /// The largest datagram that the data path makes: a sealed full packet, without a label.
    pub max_datagram: usize,
    /// Whether the flows of the pair are shared out over several hubs.
    pub spread: Spread,
}

/// Whether flows of one pair go by several hubs at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    /// One lane carries all flows, another one stands by.
    #[default]
    Off,
    /// Flows are shared out over lanes on different hubs.
    On,
}

impl Default for PathConfig {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_millis(50),
            burst_interval: Duration::from_millis(10),
            min_deadline: Duration::from_millis(20),
            hot: Duration::from_secs(2),
            idle: Duration::from_secs(10),
            gone: Duration::from_secs(180),
            evidence_span: Duration::from_millis(200),
            max_datagram: 1440,
            spread: Spread::Off,
        }
    }
}

/// How a [`HubLeg`](crate::HubLeg) behaves. `Default` is the product's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HubLegConfig {
    /// Between two BINDs while pairs use the hub.
    pub probe_interval: Duration,
    /// Between two BINDs once one was missed.
    pub burst_interval: Duration,
    /// No answer is late before this.
    pub min_deadline: Duration,
    /// Pairs count as using the hub this long after [`HubLeg::touch`](crate::HubLeg::touch).
    pub hot: Duration,
    /// Between two BINDs otherwise: keeps the NAT mapping open.
    pub keepalive: Duration,
    /// Longest pause between two BINDs while the leg is down.
    pub retry: Duration,
}

impl Default for HubLegConfig {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_millis(200),
            burst_interval: Duration::from_millis(20),
            min_deadline: Duration::from_millis(100),
            hot: Duration::from_secs(2),
            keepalive: Duration::from_secs(5),
            retry: Duration::from_secs(5),
        }
    }
}
