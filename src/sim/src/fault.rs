//! What can go wrong, and what ends it.

use std::time::Duration;

use flatlan_link::Quality;
use flatlan_path::Spread;

use crate::{
    conn::Silent,
    hub_site::Swallows,
    lie::Lie,
    nat::Nat,
    node_site::Disk,
    party::Party,
    sim::{Event, Sim},
    visit::Errand,
};

/// One change of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every link is such a one.
    Quality(Quality),
    /// One link is such a one.
    Link(Party, Party, Quality),
    /// Nothing passes from the one to the other.
    Cut(Party, Party),
    /// It passes again.
    Mend(Party, Party),
    /// No datagram passes.
    CutUdp(Party, Party),
    /// They pass again.
    MendUdp(Party, Party),
    /// A process ends.
    Kill(Party),
    /// A machine is gone, without a word.
    PowerOff(Party),
    /// It starts again, with such a disk.
    Start(Party, Disk),
    /// A process does nothing for so long.
    Freeze(Party, Duration),
    /// It goes on, where it was not frozen for longer meanwhile.
    Thaw(Party),
    /// A hub drops data, and passes all else.
    Swallow(usize),
    /// Data that comes to a hub or leaves it in datagrams is lost; what streams carry passes, and so does all else.
    SwallowUdp(usize),
    /// It passes data again.
    Pass(usize),
    /// A wall clock is set to another time, so many seconds away.
    Clock(Party, i64),
    /// A hub lies.
    Lie(usize, Lie),
    /// It is honest again.
    Honest(usize),
    /// The admin of a network changes it and publishes to these hubs.
    Publish(usize, Change, Vec<usize>),
    /// A NAT starts again.
    Rebind(usize),
    /// A node is told that its underlay changed.
    NetworkChanged(usize),
    /// An attacker sends so many recorded datagrams again, from elsewhere.
    Replay(usize),
    /// A hub asks everybody to leave.
    Drain(usize),
    /// A disk is copied.
    Snapshot(Party),
    /// A node's process ends at this write, counted from now.
    DieAtWrite(usize, u32),
}

/// What an admin does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing but a new signature.
    Nothing,
    /// The member of this node is out.
    Revoke(usize),
    /// A new member, behind such a NAT, which may share out its flows.
    Add(Nat, Spread),
    /// Two members of these nodes exchange their addresses.
    Exchange(usize, usize),
}

impl Sim {
    pub(crate) fn later(&mut self, after: Duration, fault: Fault) {
        self.at(after, Event::Fault(fault));
    }

    pub(crate) fn fault(&mut self, fault: Fault) {
        self.note(Party::Outside, &[9], format_args!("FAULT {fault:?}"));
        match fault {
            Fault::Quality(quality) => self.underlay.set_quality(quality),
            Fault::Link(from, to, quality) => self.underlay.set_link(from, to, quality),
            Fault::Cut(from, to) => self.underlay.cut(from, to),
            Fault::Mend(from, to) => self.underlay.mend(from, to),
            Fault::CutUdp(from, to) => self.underlay.cut_udp(from, to),
            Fault::MendUdp(from, to) => self.underlay.mend_udp(from, to),
            Fault::Kill(party) => self.stop(party, Silent::No),
            Fault::PowerOff(party) => self.stop(party, Silent::Yes),
            Fault::Start(party, disk) => self.start_again(party, disk),
            Fault::Freeze(party, time) => self.freeze(party, time),
            Fault::Thaw(party) => {
                if self.thaw_of(party).is_some_and(|thaw| thaw <= self.now) {
                    self.thaw(party);
                }
            }
            Fault::Swallow(hub) => self.hubs[hub].swallows = Swallows::Data,
            Fault::SwallowUdp(hub) => self.hubs[hub].swallows = Swallows::Datagrams,
            Fault::Pass(hub) => self.hubs[hub].swallows = Swallows::Nothing,
            Fault::Clock(party, seconds) => match party {
                Party::Hub(hub) => self.hubs[hub].place.clock += seconds,
                Party::Node(node) => self.nodes[node].place.clock += seconds,
                Party::Outside => {}
            },
            Fault::Lie(hub, lie) => {
                self.hubs[hub].lies.insert(lie);
            }
            Fault::Honest(hub) => self.hubs[hub].lies.clear(),
            Fault::Publish(network, change, to) => self.publish(network, change, &to),
            Fault::Rebind(node) => self.nodes[node].gate.forget(),
            Fault::NetworkChanged(node) => self.network_changed(node),
            Fault::Replay(count) => self.replay(count),
            Fault::Drain(hub) => self.hub_drains(hub),
            Fault::Snapshot(party) => match party {
                Party::Hub(hub) => self.hubs[hub].kept = Some(self.hubs[hub].disk.clone()),
                Party::Node(node) => self.nodes[node].kept = Some(self.nodes[node].files.clone()),
                Party::Outside => {}
            },
            Fault::DieAtWrite(node, write) => self.nodes[node].dies_in = Some(write.max(1)),
        }
    }

    /// Everything that is broken is mended, but for what is apart for ever; who does not run starts again.
    pub(crate) fn heal(&mut self) {
        self.note(Party::Outside, &[8], format_args!("all is mended"));
        self.underlay.heal();
        for n in 0..self.hubs.len() {
            let site = &mut self.hubs[n];
            site.lies.clear();
            site.swallows = Swallows::Nothing;
            self.thaw(Party::Hub(n));
            self.start_again(Party::Hub(n), Disk::Kept);
        }
        for n in 0..self.nodes.len() {
            self.nodes[n].dies_in = None;
            self.thaw(Party::Node(n));
            self.start_again(Party::Node(n), Disk::Kept);
        }
        self.end_forgery();
    }

    fn stop(&mut self, party: Party, silent: Silent) {
        match party {
            Party::Hub(hub) => self.stop_hub(hub, silent),
            Party::Node(node) => self.stop_node(node, silent),
            Party::Outside => {}
        }
    }

    fn start_again(&mut self, party: Party, disk: Disk) {
        match party {
            Party::Hub(hub) if !self.hubs[hub].is_up() => {
                self.set_hub_disk(hub, disk);
                self.start_hub(hub);
            }
            Party::Node(node) if !self.nodes[node].is_up() => {
                self.set_node_disk(node, disk);
                self.start_node(node);
            }
            Party::Hub(_) | Party::Node(_) | Party::Outside => {}
        }
    }

    fn freeze(&mut self, party: Party, time: Duration) {
        let until = self.thaw_of(party).max(Some(self.now + time));
        match party {
            Party::Hub(hub) if self.hubs[hub].is_up() => self.hubs[hub].place.frozen = until,
            Party::Node(node) if self.nodes[node].is_up() => self.nodes[node].place.frozen = until,
            Party::Hub(_) | Party::Node(_) | Party::Outside => return,
        }
        self.disarm(party);
        self.later(time, Fault::Thaw(party));
    }

    fn thaw(&mut self, party: Party) {
        let (now, place) = (
            self.now,
            match party {
                Party::Hub(hub) => &mut self.hubs[hub].place,
                Party::Node(node) => &mut self.nodes[node].place,
                Party::Outside => return,
            },
        );
        if place.frozen.is_some() {
            for datagram in place.wake() {
                self.when(now, Event::Datagram(Box::new(datagram)));
            }
            self.arm(party, Some(now));
        }
    }

    /// The admin changes something, signs, and uploads to these hubs.
    pub(crate) fn publish(&mut self, network: usize, change: Change, to: &[usize]) {
        match change {
            Change::Nothing => {}
            Change::Revoke(node) => {
                let number = self.nodes[node].number;
                self.admins[network].members_mut().retain(|member| member.number != number);
            }
            Change::Add(nat, spread) => {
                let name = format!("added{}", self.nodes.len());
                let node = self.add_node(&name, network, nat);
                self.nodes[node].spread = spread;
                self.start_node(node);
            }
            Change::Exchange(a, b) => {
                let numbers = [self.nodes[a].number, self.nodes[b].number];
                let members = self.admins[network].members_mut();
                let found = numbers.map(|number| members.iter().position(|member| member.number == number));
                if let [Some(a), Some(b)] = found {
                    let (of_a, of_b) = (members[a].address, members[b].address);
                    (members[a].address, members[b].address) = (of_b, of_a);
                }
            }
        }
        let unix = self.unix(0);
        self.admins[network].sign(unix);
        self.upload(network, to);
    }

    /// Uploads the newest roster.
    pub(crate) fn upload(&mut self, network: usize, to: &[usize]) {
        let Some(bundle) = self.admins[network].newest().map(|roster| roster.encode()) else { return };
        for hub in to {
            self.visit(*hub, network, Errand::Upload(bundle.clone()));
        }
    }

    /// Recorded datagrams once more: from where they came, or from elsewhere.
    fn replay(&mut self, count: usize) {
        for _ in 0..count {
            let pick = self.chance.below(self.tape.len());
            let Some(mut datagram) = self.tape.get(pick).cloned() else { return };
            if self.chance.is_of(500) {
                datagram.from = Party::Outside.udp();
            }
            let late = self.chance.up_to(Duration::from_secs(1));
            self.at(late, Event::Datagram(Box::new(datagram)));
        }
    }
}
