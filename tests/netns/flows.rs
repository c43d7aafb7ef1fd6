//! The three flows that a person notices, from one site to another: a ping and a TCP echo each 10 ms and a bulk
//! transfer; and which hub carries them, by the router's counters.

#![allow(dead_code, reason = "every test takes what it needs")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, LabError, Payload, Probe, Report, Traffic, TrafficLog, Transfer, TransferReport};
use serde_json::Value;

use crate::support::{PATIENCE, wait_status};

/// Running flows.
#[derive(Debug)]
pub(crate) struct Flows<'a> {
    lab: &'a Lab,
    wires: TrafficLog,
    ping: Probe,
    echo: Probe,
    bulk: Transfer,
}

/// How they went.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) ping: Report,
    pub(crate) echo: Report,
    pub(crate) bulk: TransferReport,
}

impl<'a> Flows<'a> {
    /// Starts all three once the far site is reached, and waits until they run.
    pub(crate) fn start(lab: &'a Lab, from: &str, to: &str) -> Result<Self, LabError> {
        let (near, far) = (lab.site(from)?, lab.site(to)?);
        let (near, address, far) = (near.gateway(), IpAddr::from(far.virtual_ip()), far.gateway());
        lab.wait_reachable(near, address, PATIENCE)?;
        let flows = Self {
            lab,
            wires: lab.watch_traffic(SAMPLE)?,
            ping: Probe::ping(near, address, EACH)?,
            echo: Probe::tcp_echo(near, far, address, EACH)?,
            bulk: Transfer::start(near, far, address, Payload::Random, None)?,
        };
        flows.wait_moving()?;
        Ok(flows)
    }

    /// Waits until all three have moved on from here.
    pub(crate) fn wait_moving(&self) -> Result<(), LabError> {
        let before = self.bulk.received();
        self.ping.wait_answers(20, PATIENCE)?;
        self.echo.wait_answers(20, PATIENCE)?;
        self.bulk.wait_received(before + CHUNK, PATIENCE)
    }

    /// The one hub that carried all of it for the last second: waits until there is one.
    ///
    /// # Panics
    /// Where none does for long.
    pub(crate) fn wait_carrier(&self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = Instant::now();
            if let Some(hub) = self.carrier_between(now - SPAN, now) {
                return hub;
            }
            assert!(now < deadline, "no single hub carries the flows: {:?}", self.wires.between(now - SPAN, now));
            self.wait_moving().expect("the flows go on");
        }
    }

    /// The one hub that carried all of it between two moments, where there is one.
    pub(crate) fn carrier_between(&self, from: Instant, to: Instant) -> Option<String> {
        carrier(self.lab, &self.wires.between(from, to))
    }

    /// Waits until another hub than this one carries all of it.
    ///
    /// # Panics
    /// Where none does for long.
    pub(crate) fn wait_carrier_other_than(&self, hub: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.wait_moving().expect("the flows go on");
            let heir = self.wait_carrier();
            if heir != hub {
                return heir;
            }
            assert!(Instant::now() < deadline, "hub {hub} still carries the flows");
        }
    }

    /// Ends them, after all that was sent has arrived.
    pub(crate) fn stop(self) -> Outcome {
        Outcome { ping: self.ping.stop(), echo: self.echo.stop(), bulk: self.bulk.stop(PATIENCE) }
    }
}

impl Outcome {
    /// The connections are those of the start, and nothing that they carried was lost or changed.
    pub(crate) fn assert_whole(&self) {
        assert_eq!(self.echo.broken(), None, "the TCP echo's connection");
        assert_eq!(self.bulk.broken, None, "the transfer's connection");
        assert!(self.bulk.equal, "what arrived differs from what was sent");
    }
}

/// Waits until a and b can each move the other's traffic to this hub, or have it there.
pub(crate) fn wait_usable(lab: &Lab, hub: &str) {
    for (site, peer) in [("a", "b"), ("b", "a")] {
        let by = |path: &Value| path["via"].as_array().is_some_and(|via| via.iter().any(|name| name == hub));
        wait_status(lab, site, &format!("a way by {hub}"), |status| {
            let entry = status["peers"].as_array()?.iter().find(|entry| entry["name"] == peer)?;
            let ready = by(&entry["path"]) || entry["standby"].as_array()?.iter().any(by);
            ready.then_some(())
        });
    }
}

/// The hub that received nearly all that hubs received, where it was enough to be the flows.
fn carrier(lab: &Lab, crossed: &Traffic) -> Option<String> {
    let received = |hub: &str| crossed.of(hub).received_bytes;
    let all: u64 = lab.hubs().map(|hub| received(hub.name())).sum();
    let busiest = lab.hubs().max_by_key(|hub| received(hub.name()))?;
    let most = received(busiest.name());
    (most > CHUNK && most * 10 > all * 9).then(|| busiest.name().to_owned())
}

/// Between two questions of the ping and of the echo.
const EACH: Duration = Duration::from_millis(10);
/// Between two looks at the router's counters.
const SAMPLE: Duration = Duration::from_millis(50);
/// The time that is looked at to say who carries the flows.
const SPAN: Duration = Duration::from_secs(1);
/// Fewer bytes of the transfer than this in that time are no flow.
const CHUNK: u64 = 200_000;
