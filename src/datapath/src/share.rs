//! What several workers of one node have to do with each other: nothing, but for what comes to the wrong one.
//!
//! A peer belongs to one worker ([`Snapshot::worker`]), with its sessions, paths, labels and queue. The kernel
//! steers datagrams by the same bits, and gives a flow's packets to the TUN queue that last wrote some of it; so the
//! first packet of a flow may come to another worker, and so may datagrams of a hub that the kernel joined, or what
//! is on its way between a stock peer and another member. That is handed over. Commands find their worker here, and
//! what one worker learns for all becomes a command for the others.

use std::time::Instant;

use flatlan_packet::{IpView, VNET_LEN};
use flatlan_relay::steer::worker_of;
use flatlan_types::{Endpoint, PeerSlot, WorkerId, Workers};
use flatlan_wg::Sessions;

use crate::{Command, DropReason, Event, Handed, Sink, Snapshot, outbound::packets_in, worker::Worker};

/// For which workers something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Every one.
    All,
    /// Every one but the first.
    Others,
    /// This one.
    One(WorkerId),
}

impl Audience {
    /// Whether a worker belongs to it.
    pub fn includes(self, worker: WorkerId) -> bool {
        match self {
            Self::All => true,
            Self::Others => worker != WorkerId::FIRST,
            Self::One(one) => worker == one,
        }
    }
}

impl Command {
    /// For which workers it is, as the snapshot has their peers.
    pub fn audience(&self, snapshot: &Snapshot, workers: Workers) -> Audience {
        match self {
            Self::SetHub { .. }
            | Self::DrainHub { .. }
            | Self::RemoveHub { .. }
            | Self::SetEpoch { .. }
            | Self::NetworkChanged => Audience::All,
            Self::SetHubLeg { .. } => Audience::Others,
            Self::TouchHub { .. } => Audience::One(WorkerId::FIRST),
            Self::AddInLabel { label, .. } | Self::RemoveInLabel { label } => Audience::One(workers.of_label(*label)),
            Self::SetLabel { peer, .. }
            | Self::SetWay { peer, .. }
            | Self::SetDirect { peer, .. }
            | Self::SendMessage { peer, .. }
            | Self::Connect { peer }
            | Self::KeepWarm { peer }
            | Self::SetPeerEpoch { peer, .. } => Audience::One(snapshot.worker(*peer, workers)),
        }
    }
}

impl Event {
    /// What other workers are to be told of it.
    pub fn echo(&self) -> Option<Command> {
        match self {
            Self::LegUp { hub, rtt, .. } => Some(Command::SetHubLeg { hub: *hub, rtt: Some(*rtt) }),
            Self::LegDown { hub } => Some(Command::SetHubLeg { hub: *hub, rtt: None }),
            Self::HubUsed { hub } => Some(Command::TouchHub { hub: *hub }),
            Self::NeedPath { .. }
            | Self::HubSilent { .. }
            | Self::Idle { .. }
            | Self::SessionUp { .. }
            | Self::PathChanged { .. }
            | Self::LaneChanged { .. }
            | Self::PeerSilent { .. }
            | Self::PeerAnswers { .. }
            | Self::SharedUsed { .. }
            | Self::PeerMessage { .. }
            | Self::PeerEpoch { .. }
            | Self::StaleEpoch { .. }
            | Self::DirectUp { .. } => None,
        }
    }
}

impl<S: Sessions> Worker<S> {
    /// Datagrams of one source, back to back, each `stride` bytes but the last, with the ECN bits of their
    /// outer headers. After the last batch of a burst call [`Worker::flush_inbound`].
    pub fn handle_network(
        &mut self,
        from: Endpoint,
        contents: &[u8],
        stride: usize,
        ecn: u8,
        now: Instant,
        out: &mut impl Sink,
    ) {
        let share = self.config.share;
        if share.of == Workers::ONE {
            return self.handle_datagrams(from, contents, stride, ecn, now, out);
        }
        let stride = stride.max(1);
        let mut rest = contents;
        while !rest.is_empty() {
            let first = rest.get(..stride).unwrap_or(rest);
            let owner = worker_of(first, share.of);
            let same = rest.chunks(stride).take_while(|datagram| worker_of(datagram, share.of) == owner);
            let (run, tail) = rest.split_at(same.map(<[u8]>::len).sum());
            rest = tail;
            if owner == share.worker {
                self.handle_datagrams(from, run, stride, ecn, now, out);
                continue;
            }
            let count = run.len().div_ceil(stride) as u64;
            self.stats.handed += count;
            if let Err(reason) = out.hand_over(owner, &Handed::Datagrams { from, contents: run, stride, ecn }) {
                self.stats.drops.add(reason, count);
            }
        }
    }

    /// A packet for one of this worker's peers that came to another worker, behind its virtio-net header. Its bytes
    /// are used up. After the last one of a burst call [`Worker::flush_outbound`].
    pub fn handle_packet(&mut self, peer: PeerSlot, header_and_packet: &mut [u8], now: Instant, out: &mut impl Sink) {
        // the one that handed it over judged it by the same roster, or one that is as good
        let done = match IpView::parse(header_and_packet.get(VNET_LEN..).unwrap_or_default()) {
            Ok(view) if self.owner_elsewhere(peer).is_none() => self.send_to(peer, header_and_packet, &view, now, out),
            Ok(_) => Err(DropReason::NoMember),
            Err(_) => Err(DropReason::Malformed),
        };
        if let Err(reason) = done {
            self.stats.drops.add(reason, packets_in(header_and_packet));
        }
    }

    /// The worker to which a peer belongs, where that is another one.
    #[inline]
    pub(crate) fn owner_elsewhere(&self, peer: PeerSlot) -> Option<WorkerId> {
        let share = self.config.share;
        if share.of == Workers::ONE {
            return None;
        }
        Some(self.snapshot.worker(peer, share.of)).filter(|owner| *owner != share.worker)
    }

    /// Gives a packet to the worker of its peer.
    pub(crate) fn hand_packet(
        &mut self,
        to: WorkerId,
        peer: PeerSlot,
        header_and_packet: &[u8],
        out: &mut impl Sink,
    ) -> Result<(), DropReason> {
        self.stats.handed += packets_in(header_and_packet);
        out.hand_over(to, &Handed::Packet { peer, header_and_packet })
    }
}
