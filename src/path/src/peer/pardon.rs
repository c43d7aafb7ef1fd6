//! Another chance for paths that swallowed data, where all that is left is of a lower rank.
//!
//! A path that swallowed data is a last resort for some time, longer each time. Where that befell every path of a rank,
//! flows go by what is below it: by streams, where no datagram carries data. That the fault is mended nothing tells but
//! data, for probes passed all along. So one path at a time is pardoned, and flows go to it as to any that is better:
//!
//! ```text
//!   flows below their rank ──── wait ───► pardon ──► data arrives for PROVEN: the next wait is the first one again
//!            ▲                               │
//!            └──── wait twice as long ◄──────┴─────► data is swallowed again
//! ```
//!
//! The one that was blamed longest ago is next, so that none is passed over. A fault that lasts costs the gap of a black
//! hole after 10, 20, 40 seconds and so on; one that is over costs about as long on the lower rank as it lasted.

use std::time::{Duration, Instant};

use flatlan_types::LaneId;

use super::{
    PeerPaths,
    place::{self, Class},
};
use crate::{
    kind::PathKind,
    path::{Path, Phase},
};

/// When the next path is pardoned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pardon {
    /// Since when flows are below their rank.
    since: Option<Instant>,
    wait: Duration,
    /// The rank of the last that was pardoned, and when; `None`: data has arrived by one of that rank since.
    granted: Option<(Class, Instant)>,
}

impl Default for Pardon {
    fn default() -> Self {
        Self { since: None, wait: FIRST, granted: None }
    }
}

impl Pardon {
    /// Data that was sent at this time arrived by such a path.
    pub(super) fn delivered(&mut self, kind: PathKind, sent: Instant) {
        if self.granted.is_some_and(|(rank, at)| place::class(kind) <= rank && sent >= at + PROVEN) {
            (self.wait, self.granted) = (FIRST, None);
        }
    }
}

impl PeerPaths {
    /// Flows that have been below their rank for long enough get a path of a better one back.
    pub(super) fn pardon(&mut self, now: Instant) {
        let Some((path, rank)) = self.blamed(now).map(|path| (path.id, place::class(path.kind))) else {
            self.pardon.since = None;
            return;
        };
        let since = *self.pardon.since.get_or_insert(now);
        if now.saturating_duration_since(since) < self.pardon.wait {
            return;
        }
        if let Some(path) = self.paths.get_mut(&path) {
            path.grey_until = None;
        }
        self.pardon = Pardon { since: None, wait: (self.pardon.wait * 2).min(MOST), granted: Some((rank, now)) };
    }

    /// Of the paths of a better rank than flows have, the one that was blamed longest ago, where none can be used that was
    /// not blamed.
    fn blamed(&self, now: Instant) -> Option<&Path> {
        let carried = LaneId::all().filter(|lane| self.carries(*lane)).filter_map(|lane| self.carried(lane));
        let rank = carried.filter(|path| path.phase == Phase::Valid).map(|path| place::class(path.kind)).max()?;
        let better = || self.paths.values().filter(move |path| place::class(path.kind) < rank);
        if better().any(|path| place::is_fit(path, now)) {
            return None;
        }
        let stays = |path: &&Path| path.phase == Phase::Valid && !path.draining && !path.is_held(now);
        better().filter(stays).filter(|path| path.is_grey(now)).min_by_key(|path| (path.blamed(), path.cost(), path.id))
    }
}

/// The first wait.
const FIRST: Duration = Duration::from_secs(10);
/// The longest: a path is a last resort for no longer.
const MOST: Duration = Duration::from_secs(300);
/// Data that is sent so long after a pardon and arrives says that the fault is mended: what is swallowed is known to be in a
/// fraction of the time that flows have gone that way then.
const PROVEN: Duration = Duration::from_secs(3);
