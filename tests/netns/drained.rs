//! What a hub that is stopped does to traffic: labs for it, the traffic, and how it felt.

#![allow(dead_code, reason = "test and benchmark take what they need")]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use flatlan_lab::{Lab, Probe, Report, RunOptions};

use crate::datagrams::{Datagrams, LATE, stop_all};
use crate::flows::wait_usable;
use crate::support::{PATIENCE, gateway, joined, starved};

/// Where the hub is that is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    /// Both nodes are attached to it.
    Common,
    /// The same, and nothing but TLS passes.
    Streams,
    /// It lies between the nodes' hubs.
    Between,
}

impl Case {
    /// A lab in which a and b reach each other by hubs only.
    pub(crate) fn lab(self) -> Lab {
        let hubs: &[&str] = if self == Self::Between { &["h1", "h2", "h3", "h4"] } else { &["h1", "h2"] };
        let lab = joined(hubs);
        let hidden: &[(&str, &str)] = match self {
            Self::Common | Self::Streams => &[],
            Self::Between => {
                &[("h1", "h4"), ("a", "h2"), ("a", "h3"), ("a", "h4"), ("b", "h1"), ("b", "h2"), ("b", "h3")]
            }
        };
        for (one, other) in hidden {
            lab.cut_between(one, other).unwrap();
        }
        let options = match self {
            Self::Common | Self::Between => RunOptions::default(),
            Self::Streams => RunOptions::args(["--transport", "tcp"]),
        };
        for site in ["a", "b"] {
            lab.up_with(site, &options).unwrap();
        }
        lab.wait_reachable(gateway(&lab, "a"), lab.site("b").unwrap().virtual_ip().into(), PATIENCE).unwrap();
        lab
    }

    /// The hub that carries most of it, of those that may be stopped, once another is ready to take over.
    pub(crate) fn wait_carrier(self, lab: &Lab, talk: &Talk) -> String {
        let hubs = if self == Self::Between { ["h2", "h3"] } else { ["h1", "h2"] };
        match self {
            Self::Common | Self::Streams => hubs.iter().for_each(|hub| wait_usable(lab, hub)),
            Self::Between => {}
        }
        let before = lab.traffic();
        talk.go_on();
        let crossed = lab.traffic().since(&before);
        hubs.into_iter().max_by_key(|hub| crossed.of(hub).received_bytes).unwrap().to_owned()
    }
}

/// A ping and a TCP echo each 10 ms, and 1,000 numbered datagrams a second each way.
#[derive(Debug)]
pub(crate) struct Talk {
    ping: Probe,
    echo: Probe,
    datagrams: [Datagrams; 2],
    starved: usize,
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Felt {
    pub(crate) sent: usize,
    pub(crate) lost: usize,
    pub(crate) doubled: usize,
    pub(crate) pings_lost: usize,
    /// Of ping, echo and datagrams.
    pub(crate) gaps: [Duration; 3],
    pub(crate) broken: Option<std::io::ErrorKind>,
}

impl Talk {
    pub(crate) fn start(lab: &Lab) -> Self {
        let (near, far) = (gateway(lab, "a"), gateway(lab, "b"));
        let [a, b] = ["a", "b"].map(|site| IpAddr::from(lab.site(site).unwrap().virtual_ip()));
        let numbered = |from, to, address| Datagrams::start(from, to, address, 1, SIZE, EACH);
        Self {
            ping: Probe::ping(near, b, PROBE).unwrap(),
            echo: Probe::tcp_echo(near, far, b, PROBE).unwrap(),
            datagrams: [numbered(near, far, b), numbered(far, near, a)],
            starved: starved(lab, &["a", "b"]),
        }
    }

    /// Waits until all of it has gone on for a while.
    pub(crate) fn go_on(&self) {
        for datagrams in &self.datagrams {
            datagrams.wait_arrivals(1000, PATIENCE);
        }
        self.ping.wait_answers(20, PATIENCE).unwrap();
        self.echo.wait_answers(20, PATIENCE).unwrap();
    }

    /// Ends it, after all that was sent has arrived or is lost. What the nodes had no processor time for is not counted as
    /// lost: they count it themselves.
    pub(crate) fn stop(self, lab: &Lab) -> Felt {
        let (start, end) = (self.ping.started(), Instant::now());
        let longest = |report: &Report| report.longest_gap_between(start, end).length;
        let (ping, echo) = (self.ping.finish(LATE), self.echo.finish(LATE));
        let datagrams = stop_all(self.datagrams);
        let starved = starved(lab, &["a", "b"]) - self.starved;
        let gap = datagrams.iter().map(crate::datagrams::Arrivals::longest_gap).max().unwrap_or_default();
        Felt {
            sent: datagrams.iter().map(crate::datagrams::Arrivals::sent).sum(),
            lost: datagrams.iter().map(crate::datagrams::Arrivals::lost).sum::<usize>().saturating_sub(starved),
            doubled: datagrams.iter().map(crate::datagrams::Arrivals::doubled).sum(),
            pings_lost: ping.sent().saturating_sub(ping.answered() + starved),
            gaps: [longest(&ping), longest(&echo), gap],
            broken: echo.broken(),
        }
    }
}

const SIZE: usize = 200;
const EACH: Duration = Duration::from_millis(1);
const PROBE: Duration = Duration::from_millis(10);
