//! Hubs that lie: what stands between an honest hub's machine and its streams, with the hub's own key.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use flatlan_relay::{ClaimsSummary, Control, Presence, frame};
use flatlan_types::{Endpoint, Label, NetworkId};

use crate::{
    admin::{hub_secret, node_secret},
    datagram::Trail,
    party::Party,
    sim::Sim,
    stream::ConnId,
};

/// One way to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lie {
    /// It says that members are attached to it which are not, and that it has ways to them.
    ForgedPresence,
    /// It tells of no head but the first that it ever had, and gives no roster.
    OldHead,
    /// It knows of no claim.
    OmittedClaim,
    /// It gives labels that lead elsewhere, and puts other labels on frames.
    WrongLabel,
    /// It sends frames again that it has sent before.
    ReplayedFrames,
    /// It answers pings before they are asked, to seem nearer than it is.
    EarlyPong,
}

impl Lie {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::ForgedPresence,
        Self::OldHead,
        Self::OmittedClaim,
        Self::WrongLabel,
        Self::ReplayedFrames,
        Self::EarlyPong,
    ];
}

/// What a hub remembers in order to lie.
#[derive(Default)]
pub(crate) struct Liar {
    heads: BTreeMap<NetworkId, (Vec<u8>, ClaimsSummary)>,
    labels: BTreeSet<Label>,
    /// Labels that it told to somebody whose they are not, in this life.
    told: BTreeSet<Label>,
    /// Frames with where they came from, and over which hubs.
    frames: VecDeque<(Endpoint, Vec<u8>, Trail)>,
}

impl Liar {
    /// The hub begins another life, in which no label of the one before leads anywhere.
    pub(crate) fn begin(&mut self) {
        self.told.clear();
    }

    /// Whether a frame that comes in has a label that was told by a lie: however honest the hub is by then, the frame
    /// goes where it should not.
    pub(crate) fn is_bent(&self, frame: &[u8]) -> bool {
        !self.told.is_empty() && frame::Header::parse(frame).is_some_and(|header| self.told.contains(&header.label))
    }
}

impl Sim {
    /// What a hub says in place of what its machine says.
    pub(crate) fn bend(&mut self, n: usize, to: ConnId, message: Control) -> Vec<Control> {
        let liar = &mut self.hubs[n].liar;
        if let Control::Head { network, head, claims } = &message {
            liar.heads.entry(*network).or_insert_with(|| (head.clone(), *claims));
        }
        if let Control::PathOpened { label, .. } = &message {
            liar.labels.insert(*label);
        }
        let lies: Vec<Lie> = self.hubs[n].lies.iter().copied().collect();
        let mut said = vec![message];
        for lie in lies {
            let bent = said.iter().flat_map(|message| self.bend_one(n, to, lie, message.clone())).collect();
            self.counters.lies += u64::from(bent != said);
            said = bent;
        }
        said
    }

    fn bend_one(&mut self, n: usize, to: ConnId, lie: Lie, message: Control) -> Vec<Control> {
        match (lie, message) {
            (Lie::OldHead, Control::Head { network, head, claims }) => {
                let (head, claims) = self.hubs[n].liar.heads.get(&network).cloned().unwrap_or((head, claims));
                vec![Control::Head { network, head, claims }]
            }
            (Lie::OldHead, Control::Attached(mut attached)) => {
                let network = self.network_of(to);
                if let Some((head, claims)) = network.and_then(|network| self.hubs[n].liar.heads.get(&network)) {
                    (attached.head, attached.claims) = (Some(head.clone()), *claims);
                }
                vec![Control::Attached(attached)]
            }
            (Lie::OldHead, Control::RosterPart { .. }) => Vec::new(),
            (Lie::OmittedClaim, Control::Head { network, head, .. }) => {
                vec![Control::Head { network, head, claims: ClaimsSummary::default() }]
            }
            (Lie::OmittedClaim, Control::Attached(mut attached)) => {
                attached.claims = ClaimsSummary::default();
                vec![Control::Attached(attached)]
            }
            (Lie::OmittedClaim, Control::Claims { network, from, .. }) => {
                vec![Control::Claims { network, from, total: 0, claims: Vec::new() }]
            }
            (Lie::OmittedClaim, Control::RosterPart { network, version, offset, .. }) => {
                let number = self.network_number(&network);
                let bundle = number.and_then(|number| self.admins[number].newest()).map(|roster| roster.encode());
                let bundle = bundle.unwrap_or_default();
                let rest = bundle.get(offset as usize..).unwrap_or_default();
                let bytes = rest.get(..flatlan_relay::MAX_PART).unwrap_or(rest).to_vec();
                vec![Control::RosterPart { network, version, total: bundle.len() as u32, offset, bytes }]
            }
            (Lie::WrongLabel, Control::PathOpened { request, label, via, rtt_us }) => {
                let others: Vec<Label> =
                    self.hubs[n].liar.labels.iter().copied().filter(|other| *other != label).collect();
                let label = self.chance.one_of(&others).copied();
                let label = label.unwrap_or_else(|| Label(self.chance.next() as u32));
                self.hubs[n].liar.told.insert(label);
                vec![Control::PathOpened { request, label, via, rtt_us }]
            }
            (Lie::ForgedPresence, Control::Presence { .. }) => {
                vec![Control::Presence { presence: self.forge(n, self.network_of(to)) }]
            }
            (Lie::ForgedPresence, Control::PathFailed { request, .. }) => {
                let label = Label(self.chance.next() as u32);
                self.hubs[n].liar.told.insert(label);
                vec![Control::PathOpened { request, label, via: vec![hub_secret(n).public()], rtt_us: 1 }]
            }
            (Lie::ForgedPresence, Control::Hello { time, echo }) => {
                let mut said = vec![Control::Hello { time, echo }];
                if self.chance.is_of(200) {
                    let network = self.admins.first().map(crate::admin::Admin::network);
                    let presence = self.forge(n, network);
                    said.extend(
                        network.map(|network| Control::PresenceFlood { network, presences: vec![presence.into()] }),
                    );
                }
                said
            }
            // the next ping's time, where that were a clock's
            (Lie::EarlyPong, Control::Pong { time }) => {
                let guesses = EARLIER_US.map(|early| Control::Pong { time: time.wrapping_add(early) });
                std::iter::once(Control::Pong { time }).chain(guesses).collect()
            }
            (_, message) => vec![message],
        }
    }

    /// A presence of some member at this hub, which the member never signed.
    fn forge(&mut self, n: usize, network: Option<NetworkId>) -> Vec<u8> {
        let network = network.unwrap_or_else(|| NetworkId::from_bytes([0; 32]));
        let victim = self.chance.below(self.nodes.len());
        let order = flatlan_relay::PresenceOrder { epoch: flatlan_types::BootEpoch(u64::MAX / 2), counter: 1 };
        let signed = Presence::sign(&node_secret(1_000_000), network, hub_secret(n).public(), order);
        let mut bytes = signed.encode();
        if let Some(member) = bytes.first_chunk_mut::<32>() {
            member.copy_from_slice(node_secret(victim).public().id.as_bytes());
        }
        bytes
    }

    fn network_of(&self, conn: ConnId) -> Option<NetworkId> {
        let conn = self.conns.get(&conn)?;
        match conn.dialler.party {
            Party::Node(node) => self.admins.get(self.nodes[node].network).map(crate::admin::Admin::network),
            Party::Hub(_) | Party::Outside => None,
        }
    }

    /// Another label on a frame that leaves, now and then; whether there is.
    pub(crate) fn bend_frame(&mut self, n: usize, datagram: &mut [u8]) -> bool {
        if !self.hubs[n].lies.contains(&Lie::WrongLabel) || datagram.first() != Some(&frame::KIND) {
            return false;
        }
        let Some(header) = frame::Header::parse(datagram) else { return false };
        let liar = &mut self.hubs[n].liar;
        liar.labels.insert(header.label);
        let labels: Vec<Label> = liar.labels.iter().copied().collect();
        let (true, Some(label)) = (self.chance.is_of(500), self.chance.one_of(&labels)) else { return false };
        frame::Header { label: *label, ..header }.write(datagram);
        self.counters.lies += 1;
        true
    }

    pub(crate) fn remember_frame(&mut self, n: usize, from: Endpoint, frame: &[u8], trail: &Trail) {
        let frames = &mut self.hubs[n].liar.frames;
        if frames.len() >= KEPT {
            frames.pop_front();
        }
        frames.push_back((from, frame.to_vec(), trail.clone()));
    }

    /// Frames that this hub had before come in once more.
    pub(crate) fn replay_frames(&mut self, n: usize) {
        if !self.hubs[n].lies.contains(&Lie::ReplayedFrames) {
            return;
        }
        let now = self.now;
        for _ in 0..2 {
            let pick = self.chance.below(self.hubs[n].liar.frames.len());
            let Some((from, mut frame, trail)) = self.hubs[n].liar.frames.get(pick).cloned() else { return };
            self.counters.lies += 1;
            self.with_hub(n, &trail, |run| run.replay(from, &mut frame, now));
        }
    }
}

/// By how much a liar seems nearer, in microseconds.
const EARLIER_US: [u64; 4] = [500, 1_000, 5_000, 20_000];
/// Frames that a liar keeps.
const KEPT: usize = 64;
