//! A whole internet in network namespaces on one machine: a core router, hubs with public addresses, sites behind NAT
//! routers, hosts that run nothing. The end-to-end tests drive it, the demo tells its story on it, and `flatlan lab`
//! hands it to people.
//!
//! ```text
//!                     admin
//!                       |
//!   hub h1 ----------- inet ----------- hub h2        every arrow a veth pair, every box a namespace
//!                     /    \
//!             a-nat (router)  b-nat                   nftables: cone, symmetric, no UDP, only TCP 443, ...
//!             /   |    \
//!     gateway a  a-1   a-2                            the gateway runs flatlan, hosts run nothing
//! ```
//!
//! The order of things:
//! * [`enter`] makes sure that this process may do all that, by running it again in a user namespace if it is not root.
//! * [`Lab::builder`] describes, [`LabBuilder::build`] makes. That much needs no flatlan binary.
//! * [`Lab::bring_up`] and its parts run the binary by the commands of its command line.
//! * [`Lab::emulate`] makes a wire a bad one: delay, jitter, loss, bursts, duplicates, reordering, damage, a rate.
//! * [`Lab::cut`], [`Lab::lose`], [`Lab::kill`], [`Lab::freeze`] and the like break things; [`Lab::heal`] mends wires.
//! * [`Probe`], [`Transfer`], [`sockets`], [`Capture`], [`Lab::watch_traffic`] measure what is felt, seen and carried;
//!   [`StallWatch`] tells whether the machine itself stood still meanwhile.
//! * Dropping the lab removes it. So does a panic, Ctrl-C, SIGTERM; what SIGKILL leaves is removed when the next lab starts.
//!
//! ```no_run
//! use std::time::Duration;
//! use flatlan_lab::{Lab, Nat, Probe};
//!
//! let lab = Lab::builder().flatlan("target/release/flatlan").hub("h1").hub("h2");
//! let lab = lab.site("a", Nat::Symmetric).site("b", Nat::Symmetric).build()?;
//! lab.bring_up()?;
//! let (a, b) = (lab.site("a")?, lab.site("b")?);
//! let ping = Probe::ping(a.gateway(), b.virtual_ip().into(), Duration::from_millis(10))?;
//! ping.wait_answers(100, Duration::from_secs(10))?;
//! let killed = lab.kill("h1")?;
//! ping.wait_answers(100, Duration::from_secs(10))?;
//! let report = ping.stop();
//! assert!(report.longest_gap_between(killed, killed + Duration::from_secs(1)).length < Duration::from_millis(500));
//! # Ok::<(), flatlan_lab::LabError>(())
//! ```
//!
//! Everything blocks: a lab is driven by plain threads. It never touches the machine's own network, and kills only
//! what runs inside its own namespaces.

mod capture;
pub mod demo;
mod emulator;
mod error;
mod fault;
mod lab;
mod link;
mod look;
mod namespace;
mod nat;
mod overlay;
mod permission;
pub mod persist;
mod probe;
mod process;
mod proxy;
mod reaper;
mod run_dir;
mod stall;
mod topology;
mod wire;

pub use capture::{Capture, occurrences};
pub use emulator::{Emulator, Fates};
pub use error::LabError;
pub use fault::{Direction, Fault, Injected, Place};
pub use flatlan_link::{Bursts, Quality};
pub use lab::{Bare, Host, Hub, Lab, LabBuilder, Site};
pub use link::{End, connect};
pub use look::{Socket, iperf3, sockets};
pub use namespace::{Namespace, require};
pub use nat::{Nat, ParseNatError};
pub use overlay::{RunOptions, TLS_PORT, TUN, UDP_PORT};
pub use permission::{Missing, check, enter};
pub use probe::{Gap, Payload, Probe, Report, Transfer, TransferReport};
pub use process::{LogLine, Outcome, Process};
pub use proxy::Proxy;
pub use run_dir::sweep;
pub use stall::StallWatch;
pub use topology::{HubSpec, ProxySpec, SiteSpec, Underlay};
pub use wire::{Counters, Traffic, TrafficLog};
