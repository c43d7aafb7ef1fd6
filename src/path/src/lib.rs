//! Candidates, probes, evidence and failover for the paths to one peer.
//!
//! A pair of nodes may have many ways to each other: straight, and through each hub over UDP or TLS. Which
//! of them works, and how well, can only be learned by trying, and can change at any moment and in one
//! direction alone. [`PeerPaths`] tries them, and says for each lane which one to use; [`HubLeg`] does the
//! same for the way between this node and one hub. Both are pure state machines. They seal, frame and send
//! nothing, open no sessions, and never learn what data says: `datapath` does that.
//!
//! # A path
//!
//! ```text
//!                    answered                          probe missed
//!      Untested ──────────────────► Valid ◄────────────────────────► Suspect
//!         │        relay: once        ▲        something arrived        │
//!         │        direct: 3 times    │                                 │ 8 missed, while
//!         │                           │ 3 answers in a row              │ another path delivered
//!         │ 8 asked in vain           │                                 ▼
//!         └ (a relay: 3) ──────────► Dead ◄─────────────────────────────┘
//!
//!      a candidate: at most 10 probes, with back-off; then it waits for a new list, or a packet from there
//! ```
//!
//! The sender judges what it sends: **a path is alive as long as something sent on it is known to arrive**.
//! Three things say so: the reply to a probe, by whatever way it comes back; a reply to a probe of *another*
//! path, for every probe asks about the primary's path and the reply tells which probes and how much data
//! came in there; and so the data itself. A cut of the way back alone therefore moves nobody, and at 10 %
//! loss no path ever misses eight in a row.
//!
//! # Order of a failover
//!
//! 1. A probe on the primary's path misses its deadline (round trip + 4 variations, three seconds at the most). Ten more
//!    follow in quick succession, there and on the standby.
//! 2. Eight are missed, nothing arrived since, and another path delivered in the same span: the path is dead.
//!    If nothing else delivers, nothing is better: the lane stays, and every path is asked with back-off.
//! 3. The lane itself moves to the best path that delivered in that span. Its session is untouched.
//! 4. The spare lane goes to yet another way, one that shares no hub with the first where there is such a one
//!    ([`PeerPaths::set_over`]), and the dead path must answer three times in a row.
//!
//! A path that passes probes and drops data is found by the ledger of data sent against data received: eight
//! packets and 200 ms without an advance. One that drops what is large is found by probes of the data's size,
//! one in five, and in quick succession once data is in doubt. Both are a last resort for a while; where every path of a
//! rank is, flows on a lower one try them again, one after the other, ever less often until data arrives.
//!
//! A hub by which nothing arrives for five seconds, by any of its legs, is told of ([`PathEvent::Silent`]): its label may
//! lead elsewhere. With another label its paths are asked anew, and keep their record.
//!
//! # A better path
//!
//! Rank: direct, then relayed by round trip, then TLS. A direct path is taken as soon as it is valid and carries full
//! datagrams; a relay must be clearly nearer for some time. Nothing that carries flows is ever
//! moved for this: the spare lane goes to the better path, then [`PathEvent::Primary`] hands it the flows,
//! and the old lane stays where it is for two round trips. Paths that died are held back, longer each time,
//! from being *preferred*; they are used at once where nothing else works.
//!
//! # Several hubs at once
//!
//! With [`Spread::On`] flows fall into three groups by their hash, and each group may have a lane of its own, on a hub
//! that no other group uses and that is about as near. A group gets its lane when a packet of it is sent, and loses
//! it after three minutes without one; until then, and then, its flows go with another group's. A flow changes its
//! lane only so: when its group's lane comes, once, and when it goes. Each lane is judged, moved and promoted for itself, as
//! above: the other groups feel nothing of it. Flows are never shared out between a direct path and a relay, or UDP and TLS.
//!
//! # Cost
//!
//! With traffic in the last 2 s a path that carries flows is probed every 50 ms, a standby every 100 ms,
//! others every second; for 10 s after that every second; then every 15 to 25 s, which keeps NAT mappings
//! and labels; after 3 minutes, and half a minute after the peer asked last, not at all
//! ([`PathEvent::Idle`]). Traffic that resumes asks everything at once.
//!
//! # A peer that restarts
//!
//! Every machine has a random instance number. Counters of another instance, or counters that go down, begin a new
//! comparison and judge nothing.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod budget;
mod config;
mod event;
mod evidence;
pub mod frame;
mod hub_leg;
mod kind;
mod path;
mod peer;
mod random;
mod rtt;
mod size;

pub use config::{HubLegConfig, PathConfig, Spread};
pub use event::{MoveReason, PathEvent};
pub use frame::{Probe, ProbeReply};
pub use hub_leg::{BindProbe, HubLeg, HubLegEvent, HubLegState};
pub use kind::{Leg, PathId, PathKind};
pub use peer::{MAX_CANDIDATES, PathState, PathStatus, PeerPaths, ProbeOut, Relay};
