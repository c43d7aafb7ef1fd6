//! What is measured, as names: a row of the tables each.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

/// One number of one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    /// From the start of every process to the first answer to a ping.
    Start,
    /// A TCP flow, or several.
    Tcp(Flow, Part),
    /// Datagrams of so many bytes of payload, received a second.
    Udp(u16, Rate),
    /// Round trips while nothing else goes on.
    PingIdle(Share),
    /// Round trips beside one TCP stream that takes all it gets.
    PingLoaded(Share),
    /// Resident memory of the larger of both ends, after all that.
    MemoryEnds,
    /// Resident memory of the larger hub, after all that.
    MemoryHub,
}

/// How TCP goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Flow {
    /// One stream from A to B.
    One,
    /// Four.
    Four,
    /// One from B to A.
    Reverse,
    /// One each way at once.
    Both,
}

/// What of a TCP flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// Payload received, all streams together.
    Rate,
    /// Processor time of the overlay's processes at both ends.
    Ends,
    /// Processor time of the hubs.
    Hubs,
    /// Processor time of the whole machine: kernel, overlay, measuring programs.
    Host,
}

/// How many datagrams are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rate {
    /// So many a second.
    PerSecond(u32),
    /// As many as the sender can.
    Unlimited,
}

/// Which of many round trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Share {
    /// The median.
    P50,
    /// The one that 99 % do not exceed.
    P99,
}

/// The numbers of one overlay in one round.
pub(crate) type Figures = BTreeMap<Figure, f64>;

impl Figure {
    /// How many decimals it is shown with.
    pub(crate) fn decimals(self) -> usize {
        match self {
            Self::Start | Self::Tcp(..) | Self::PingIdle(_) => 2,
            Self::PingLoaded(_) | Self::Udp(..) | Self::MemoryEnds | Self::MemoryHub => 1,
        }
    }
}

impl Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start to first ping, s"),
            Self::Tcp(flow, part) => write!(f, "TCP {flow}, {part}"),
            Self::Udp(bytes, Rate::PerSecond(rate)) => {
                write!(f, "UDP {bytes} B, {} k/s offered, k/s received", rate / 1000)
            }
            Self::Udp(bytes, Rate::Unlimited) => write!(f, "UDP {bytes} B, unlimited, k/s received"),
            Self::PingIdle(share) => write!(f, "ping idle {share}, ms"),
            Self::PingLoaded(share) => write!(f, "ping under TCP {share}, ms"),
            Self::MemoryEnds => f.write_str("RSS after load, larger end, MiB"),
            Self::MemoryHub => f.write_str("RSS after load, hub, MiB"),
        }
    }
}

impl Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "one stream",
            Self::Four => "four streams",
            Self::Reverse => "reverse",
            Self::Both => "both ways at once",
        })
    }
}

impl Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rate => "Gbit/s",
            Self::Ends => "CPU s/GB of both ends",
            Self::Hubs => "CPU s/GB of the hubs",
            Self::Host => "CPU s/GB of the machine",
        })
    }
}

impl Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::P50 => "p50",
            Self::P99 => "p99",
        })
    }
}
