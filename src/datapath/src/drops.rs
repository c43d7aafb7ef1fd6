//! Why one packet was dropped, and how often.

/// Why one packet was dropped. A counter's name, not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DropReason {
    /// The tag of a sealed frame or WireGuard message does not match.
    BadTag,
    /// The member to which the packet belongs is this node itself, or an address that is never carried:
    /// loopback, link-local, multicast, broadcast, unspecified.
    BadDestination,
    /// A router on the way, or who read it late, marked it as congested, and its sender does not understand marks (RFC 6040).
    Congestion,
    /// Its hop limit is used up.
    HopLimit,
    /// No hub leg, label or direct path to the peer at this moment.
    NoPath,
    /// The destination belongs to no member.
    NoMember,
    /// No session yet, and the queue that waits for one is full or too old.
    NoSession,
    /// A handshake with a peer that has no session, while the expired roster allows no new one.
    NewSessionRefused,
    /// Not a well-formed packet, frame or message.
    Malformed,
    /// Not for one of this node's own addresses or routes.
    NotForUs,
    /// A counter that was seen before, or is too old to tell.
    Replayed,
    /// A plain handshake message from somebody who is no stock peer.
    PlainHandshake,
    /// The inner source does not belong to the key that sealed the packet (inbound) or to this node (outbound).
    SourceNotOwned,
    /// A sender epoch below the greatest that was seen: a replay, or a node whose state was set back.
    StaleEpoch,
    /// Larger than the path carries; the sender was told by ICMP where that is allowed.
    TooBig,
    /// The kernel or the stream took no more; nothing of ours waits for it.
    Backpressure,
    /// Too much waited to be sealed, of this flow more than of any other.
    QueueFull,
    /// A receiver index, label or sender hint that names nobody.
    Unknown,
    /// No more handshakes or control messages are taken from this source for now, or from strangers while the socket is read
    /// late.
    RateLimited,
}

impl DropReason {
    /// Every reason, in the order of the counters.
    pub const ALL: [Self; 19] = [
        Self::BadTag,
        Self::BadDestination,
        Self::Congestion,
        Self::HopLimit,
        Self::NoPath,
        Self::NoMember,
        Self::NoSession,
        Self::NewSessionRefused,
        Self::Malformed,
        Self::NotForUs,
        Self::Replayed,
        Self::PlainHandshake,
        Self::SourceNotOwned,
        Self::StaleEpoch,
        Self::TooBig,
        Self::Backpressure,
        Self::QueueFull,
        Self::Unknown,
        Self::RateLimited,
    ];

    /// The name under which `status --json` and metrics show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadTag => "bad_tag",
            Self::BadDestination => "bad_destination",
            Self::Congestion => "congestion",
            Self::HopLimit => "hop_limit",
            Self::NoPath => "no_path",
            Self::NoMember => "no_member",
            Self::NoSession => "no_session",
            Self::NewSessionRefused => "new_session_refused",
            Self::Malformed => "malformed",
            Self::NotForUs => "not_for_us",
            Self::Replayed => "replayed",
            Self::PlainHandshake => "plain_handshake",
            Self::SourceNotOwned => "source_not_owned",
            Self::StaleEpoch => "stale_epoch",
            Self::TooBig => "too_big",
            Self::Backpressure => "backpressure",
            Self::QueueFull => "queue_full",
            Self::Unknown => "unknown",
            Self::RateLimited => "rate_limited",
        }
    }
}

/// Packets dropped, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops([u64; DropReason::ALL.len()]);

impl Drops {
    /// Counts `packets` more.
    pub fn add(&mut self, reason: DropReason, packets: u64) {
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count += packets;
        }
    }

    /// Packets dropped for this reason.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or_default()
    }

    /// Every reason with its count.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().map(|reason| (reason, self.of(reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_of_its_own() {
        let mut drops = Drops::default();
        for (n, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, n);
            drops.add(reason, n as u64 + 1);
        }
        assert!(drops.iter().enumerate().all(|(n, (_, count))| count == n as u64 + 1));
    }
}
