//! Gateways that lost their LAN: what this one says of its own, and what others say of theirs.
//!
//! 1. The driver tells which of this node's prefixes the machine cannot reach, and why ([`Node::handle_lan`]).
//! 2. They are withdrawn at once. What is reached again is restored when it has been so for [`BACK_AFTER`]: a link that
//!    comes and goes moves flows once.
//! 3. Peers are told by level, all that is withdrawn: at each change, a few times over, as a datagram may be lost; with
//!    candidates and summaries; whenever a session begins.
//! 4. A peer that is told sends to others what others can take (`share`). Where nobody can, nothing changes.
//!
//! A member can withdraw what is its own, and nothing else.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use flatlan_types::{PeerSlot, Prefix};

use crate::{
    Alarm, Listed,
    node::Node,
    peer_message::{MAX_WITHDRAWN, PeerMessage, Withdrawn},
};

/// What this node says of its own LAN.
#[derive(Default)]
pub(crate) struct OwnLan {
    /// What cannot be reached at this moment.
    lost: BTreeMap<Prefix, LanLoss>,
    /// What peers are told: that, and what has not been back for long enough.
    withdrawn: BTreeMap<Prefix, LanLoss>,
    /// Rises with each change of it.
    count: u32,
    /// How often something was withdrawn.
    withdrawals: u64,
    /// When what is back is to be restored.
    restore_at: Option<Instant>,
    /// When peers are told again, and how often they were.
    again: Option<(Instant, u32)>,
}

/// What a peer says of its LAN.
pub(crate) struct PeerLan {
    /// Epoch and count of the statement.
    order: (u64, u32),
    /// The prefixes that it does not reach, where there are any.
    prefixes: Option<Arc<[Prefix]>>,
    lack: LanLack,
}

impl PeerLan {
    /// It has said nothing.
    pub(crate) const fn new() -> Self {
        Self { order: (0, 0), prefixes: None, lack: LanLack::Unsaid }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.prefixes.is_some()
    }

    pub(crate) fn prefixes(&self) -> Arc<[Prefix]> {
        self.prefixes.clone().unwrap_or_default()
    }

    pub(crate) fn lack(&self) -> LanLack {
        self.lack
    }
}

impl Node {
    /// Which of this node's own prefixes the machine cannot reach at this moment, and why: all of them, each time that
    /// this may have changed.
    pub fn handle_lan(&mut self, lost: BTreeMap<Prefix, LanLoss>, now: Instant) {
        let lan = &mut self.lan;
        if lost == lan.lost {
            return;
        }
        let new: Vec<Prefix> = lost.keys().filter(|prefix| !lan.withdrawn.contains_key(*prefix)).copied().collect();
        for prefix in &new {
            if let Some(reason) = lost.get(prefix) {
                tracing::warn!(vip = %prefix, %reason, "this gateway lost its LAN");
            }
        }
        lan.withdrawn.extend(lost.iter().map(|(prefix, loss)| (*prefix, loss.clone())));
        lan.lost = lost;
        let back = lan.withdrawn.keys().any(|prefix| !lan.lost.contains_key(prefix));
        lan.restore_at = back.then(|| now + BACK_AFTER);
        if !new.is_empty() {
            lan.withdrawals += 1;
            self.lan_changed(now);
        }
    }

    /// Timers of this.
    pub(crate) fn lan_timeout(&mut self, now: Instant) {
        if self.lan.restore_at.is_some_and(|at| at <= now) {
            let lan = &mut self.lan;
            lan.restore_at = None;
            let back: Vec<Prefix> =
                lan.withdrawn.keys().filter(|prefix| !lan.lost.contains_key(*prefix)).copied().collect();
            lan.withdrawn.clone_from(&lan.lost);
            tracing::info!(vip = %Listed(back), "this gateway has its LAN back");
            self.lan_changed(now);
        }
        if let Some((at, told)) = self.lan.again
            && at <= now
        {
            self.tell_lan(told, now);
        }
    }

    /// When [`Node::lan_timeout`] has something to do.
    pub(crate) fn lan_next(&self) -> Option<Instant> {
        [self.lan.restore_at, self.lan.again.map(|(at, _)| at)].into_iter().flatten().min()
    }

    /// What this node tells peers of its LAN, where it has one.
    pub(crate) fn lan_statement(&self) -> Option<Withdrawn> {
        let lan = &self.lan;
        let gateway = self.interface.as_ref().is_some_and(|interface| !interface.served.is_empty());
        if !gateway && lan.count == 0 {
            return None;
        }
        let mut prefixes: Vec<Prefix> = lan.withdrawn.keys().copied().collect();
        if prefixes.len() > MAX_WITHDRAWN {
            prefixes = everything();
        }
        let reason = lan.withdrawn.values().next().map_or(0, LanLoss::code);
        Some(Withdrawn { epoch: self.me.epoch.0, count: lan.count, prefixes, reason })
    }

    /// Tells one peer, with which a session began.
    pub(crate) fn tell_lan_to(&mut self, slot: PeerSlot) {
        if let Some(withdrawn) = self.lan_statement() {
            self.say(slot, &PeerMessage { withdrawn: Some(withdrawn), ..PeerMessage::new() }, None);
        }
    }

    /// A peer says what it withdrew.
    pub(crate) fn on_withdrawn(&mut self, slot: PeerSlot, said: Withdrawn) {
        if said.prefixes.len() > MAX_WITHDRAWN {
            self.refused_messages += 1;
            return;
        }
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let order = (said.epoch, said.count);
        if peer.lan.order >= order {
            return;
        }
        let was = peer.lan.is_lost();
        let prefixes = (!said.prefixes.is_empty()).then(|| said.prefixes.into());
        peer.lan = PeerLan { order, prefixes, lack: LanLack::of(said.reason) };
        let (is, lack) = (peer.lan.is_lost(), peer.lan.lack);
        match (was, is) {
            (false, true) => self.log_away(slot, lack.text()),
            (true, false) if self.is_replaceable(slot) => {
                if let Some(peer) = self.peers.get(slot) {
                    tracing::info!(peer = %peer.name, "a gateway has its LAN back: it has its flows back");
                }
            }
            (true, _) | (false, false) => {}
        }
        self.refresh_away(slot);
    }

    /// A peer started again: what an earlier life of it said of its LAN does not count.
    pub(crate) fn forget_lan(&mut self, slot: PeerSlot) {
        let Some(peer) = self.peers.get_mut(slot).filter(|peer| peer.lan.is_lost()) else { return };
        if peer.lan.order.0 < peer.epoch.0 {
            peer.lan.prefixes = None;
            self.refresh_away(slot);
        }
    }

    /// What `status` says of this node's own LAN.
    pub(crate) fn lan_alarms(&self) -> Vec<Alarm> {
        let mut alarms: BTreeMap<(String, bool), (LanLoss, Vec<Prefix>)> = BTreeMap::new();
        for (prefix, loss) in &self.lan.withdrawn {
            let carried = self.is_carried_by_others(*prefix);
            let entry = alarms.entry((loss.to_string(), carried)).or_insert_with(|| (loss.clone(), Vec::new()));
            entry.1.push(*prefix);
        }
        let alarm = |((_, carried), (loss, prefixes))| match carried {
            true => Alarm::LanLost { loss, prefixes: Listed(prefixes) },
            false => Alarm::LanLostAlone { loss, prefixes: Listed(prefixes) },
        };
        alarms.into_iter().map(alarm).collect()
    }

    /// What is withdrawn and why, and how often something was.
    pub(crate) fn lan_status(&self) -> (Vec<(Prefix, LanLoss)>, u64) {
        let withdrawn = self.lan.withdrawn.iter().map(|(prefix, loss)| (*prefix, loss.clone()));
        (withdrawn.collect(), self.lan.withdrawals)
    }

    fn lan_changed(&mut self, now: Instant) {
        self.lan.count = self.lan.count.saturating_add(1);
        self.tell_lan(0, now);
    }

    fn tell_lan(&mut self, told: u32, now: Instant) {
        self.lan.again = (told < TELL_AGAIN).then(|| (now + TELL_SPACING * (1 << told), told + 1));
        for slot in self.peers.active() {
            self.tell_lan_to(slot);
        }
    }
}

/// Why a prefix of this node's own cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LanLoss {
    /// The probe target says nothing.
    #[error("{target} does not answer")]
    NoAnswer {
        /// Which.
        target: IpAddr,
    },
    /// The device of the LAN is gone.
    #[error("there is no network device {device}")]
    NoDevice {
        /// Its name.
        device: String,
    },
    /// The device of the LAN is down, or has no carrier.
    #[error("{device} has no link")]
    NoLink {
        /// Its name.
        device: String,
    },
}

impl LanLoss {
    /// As peers are told.
    fn code(&self) -> u8 {
        match self {
            Self::NoDevice { .. } => 1,
            Self::NoLink { .. } => 2,
            Self::NoAnswer { .. } => 3,
        }
    }
}

/// What a peer says that its LAN lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LanLack {
    /// Its probe target does not answer.
    Answer,
    /// Its device is gone.
    Device,
    /// Its device has no link.
    Link,
    /// It says nothing that this version knows.
    #[default]
    Unsaid,
}

impl LanLack {
    fn of(code: u8) -> Self {
        match code {
            1 => Self::Device,
            2 => Self::Link,
            3 => Self::Answer,
            _ => Self::Unsaid,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Answer => "it lost its LAN: nothing there answers it",
            Self::Device => "it lost its LAN: the device is gone",
            Self::Link => "it lost its LAN: the device has no link",
            Self::Unsaid => "it lost its LAN",
        }
    }
}

impl fmt::Display for LanLack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// What holds every prefix, of both families.
fn everything() -> Vec<Prefix> {
    let all = ["0.0.0.0/0", "::/0"].iter();
    all.filter_map(|text| text.parse().ok()).collect()
}

/// A prefix is restored when it has been reached for so long.
pub(crate) const BACK_AFTER: Duration = Duration::from_secs(1);
/// Peers are told of a change again after this, after twice as long, and so on.
const TELL_SPACING: Duration = Duration::from_millis(200);
const TELL_AGAIN: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_known_to_peers_by_its_code() {
        let (device, target) = ("eth1".to_owned(), [192, 0, 2, 1].into());
        let losses = [
            (LanLoss::NoDevice { device: device.clone() }, LanLack::Device),
            (LanLoss::NoLink { device }, LanLack::Link),
            (LanLoss::NoAnswer { target }, LanLack::Answer),
        ];
        for (loss, lack) in losses {
            assert_eq!(LanLack::of(loss.code()), lack);
        }
        assert_eq!(LanLack::of(77), LanLack::Unsaid);
        assert_eq!(everything().len(), 2);
    }
}
