//! What happens to streams.

use std::time::Duration;

use flatlan_relay::Role;

use crate::{
    datagram::Trail,
    party::Party,
    sim::{Event, Sim},
    stream::{Conn, ConnId, DATA_WAITS, DEAD_AFTER, DIAL_TIMEOUT, End, EndState, Message, RETRY_MOST, Side},
    underlay::RESEND,
};

impl Sim {
    /// A party dials another.
    pub(crate) fn dial(&mut self, from: (Party, u32), stream: u64, to: Party, role: Role) -> ConnId {
        let id = ConnId(self.next_id());
        let (party, life) = from;
        let dialler = End::new(party, life, stream, self.now);
        let dialled = End::new(to, 0, 0, self.now);
        self.conns.insert(id, Conn { role, dialler, dialled, begun: self.now });
        let way = self.dial_takes(party, to);
        self.at(way, Event::Dial(id));
        id
    }

    /// TCP, TLS and WebSocket: three round trips, the last half of which is the answer's.
    fn dial_takes(&mut self, from: Party, to: Party) -> Duration {
        let there = self.underlay.transit(from, to, self.now);
        there + 2 * (self.underlay.delay(from, to) + self.underlay.delay(to, from))
    }

    /// A message leaves one side. What is for data is dropped where too much waits.
    pub(crate) fn send_message(&mut self, id: ConnId, side: Side, bytes: Vec<u8>, trail: Trail) {
        let Some(conn) = self.conns.get(&id) else { return };
        let data = matches!(conn.role, Role::Data | Role::HubData);
        let (from, to) = (conn.end(side).party, conn.end(side.other()).party);
        if conn.end(side).state != EndState::Open || (data && conn.end(side).sent.len() >= DATA_WAITS) {
            return;
        }
        if data {
            self.counters.packed += 1;
        } else {
            self.counters.messages += 1;
            self.counters.message_bytes += bytes.len() as u64;
        }
        let due = self.now + self.underlay.transit(from, to, self.now);
        let Some(end) = self.conns.get_mut(&id).map(|conn| conn.end_mut(side)) else { return };
        end.last = end.last.max(due);
        end.sent.push_back(Message { bytes, trail });
        let due = end.last;
        self.when(due, Event::Carry(id, side));
    }

    /// One side closes.
    pub(crate) fn close(&mut self, id: ConnId, side: Side) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.end_mut(side).state = EndState::Closed;
        let (from, to) = (conn.end(side).party, conn.end(side.other()).party);
        let last = conn.end(side).last;
        match (conn.end(side.other()).state, side) {
            (EndState::Open, _) | (EndState::Dialling, Side::Dialled) => {
                let due = last.max(self.now + self.underlay.delay(from, to));
                self.when(due, Event::Closed(id, side.other()));
            }
            // its dial is still under way
            (EndState::Dialling, Side::Dialler) => {}
            (EndState::Closed, _) => {
                self.conns.remove(&id);
            }
        }
    }

    /// Everything of a party ends with it. The other ends hear of it where its machine lives.
    pub(crate) fn close_all(&mut self, party: Party, silent: Silent) {
        let side_of = |conn: &Conn| match (conn.dialler.party == party, conn.dialled.party == party) {
            (true, _) => Some(Side::Dialler),
            (_, true) => Some(Side::Dialled),
            (false, false) => None,
        };
        let all: Vec<_> = self.conns.iter().filter_map(|(id, conn)| Some((*id, side_of(conn)?))).collect();
        for (id, side) in all {
            match silent {
                Silent::No => self.close(id, side),
                Silent::Yes => {
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.end_mut(side).state = EndState::Closed;
                    }
                }
            }
        }
    }

    pub(crate) fn dial_arrives(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (from, to, begun) = (conn.dialler.party, conn.dialled.party, conn.begun);
        if conn.dialler.state == EndState::Closed {
            self.conns.remove(&id);
            return;
        }
        let late = begun + DIAL_TIMEOUT;
        let Party::Hub(hub) = to else { return self.when(late, Event::DialFailed(id)) };
        let Some(site) = self.hubs.get(hub) else { return self.when(late, Event::DialFailed(id)) };
        let cut = self.underlay.is_cut(from, to) || self.underlay.is_cut(to, from);
        if cut || site.place.host_down || site.place.frozen.is_some() || self.now >= late {
            let way = self.dial_takes(from, to);
            let again =
                ASKED_AGAIN.map(|after| begun + after + way).into_iter().find(|at| *at > self.now && *at < late);
            return match again {
                Some(again) => self.when(again, Event::Dial(id)),
                None => self.when(late, Event::DialFailed(id)),
            };
        }
        let back = self.underlay.delay(to, from);
        if !site.is_up() {
            return self.at(back, Event::DialFailed(id));
        }
        let life = site.place.life;
        let opened = self.now + back;
        if let Some(conn) = self.conns.get_mut(&id) {
            (conn.dialled.life, conn.dialled.state, conn.dialled.last) = (life, EndState::Open, opened);
        }
        self.when(opened, Event::Opened(id));
        self.hub_accepts(hub, id);
    }

    pub(crate) fn dial_failed(&mut self, id: ConnId) {
        let Some(conn) = self.conns.remove(&id) else { return };
        if conn.dialler.state != EndState::Dialling || !self.lives(conn.dialler.party, conn.dialler.life) {
            return;
        }
        if let Some(thaw) = self.thaw_of(conn.dialler.party) {
            self.conns.insert(id, conn);
            return self.when(thaw, Event::DialFailed(id));
        }
        match conn.dialler.party {
            Party::Node(node) => self.node_closed(node, conn.dialler.stream),
            Party::Hub(hub) => self.hub_dial_failed(hub, conn.dialler.stream),
            Party::Outside => self.visit_ended(conn.dialler.stream),
        }
    }

    pub(crate) fn opened(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (from, life, stream) = (conn.dialler.party, conn.dialler.life, conn.dialler.stream);
        if conn.dialler.state != EndState::Dialling || !self.lives(from, life) {
            return self.close(id, Side::Dialler);
        }
        if let Some(thaw) = self.thaw_of(from) {
            return self.when(thaw, Event::Opened(id));
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.dialler.state = EndState::Open;
        }
        match from {
            Party::Node(node) => self.node_opened(node, stream, id),
            Party::Hub(hub) => self.hub_dialled(hub, stream, id),
            Party::Outside => {}
        }
    }

    /// What `side` sent first is at the other end.
    pub(crate) fn message_arrives(&mut self, id: ConnId, side: Side) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (from, to) = (conn.end(side), conn.end(side.other()));
        let (sender, receiver) = (from.party, to.party);
        if from.sent.is_empty() {
            return;
        }
        if let Some(thaw) = self.thaw_of(receiver) {
            return self.when(thaw, Event::Carry(id, side));
        }
        let down = match receiver {
            Party::Hub(hub) => self.hubs[hub].place.host_down,
            Party::Node(node) => self.nodes[node].place.host_down,
            Party::Outside => false,
        };
        if down || self.underlay.is_cut(sender, receiver) {
            return self.stall(id, side);
        }
        if to.state == EndState::Dialling {
            // behind the answer that opens it
            return self.at(Duration::from_millis(1), Event::Carry(id, side));
        }
        if to.state == EndState::Closed || !self.lives(receiver, to.life) {
            let back = self.underlay.delay(receiver, sender);
            return self.at(back, Event::Closed(id, side));
        }
        // what came is acknowledged, or the sender gives up after a while
        let unheard = self.underlay.is_cut(receiver, sender);
        let (stream, role) = (to.stream, conn.role);
        let Some(end) = self.conns.get_mut(&id).map(|conn| conn.end_mut(side)) else { return };
        let Some(message) = end.sent.pop_front() else { return };
        match (unheard, end.stalled) {
            (true, None) => end.stalled = Some((self.now, 0)),
            (true, Some((since, _))) if self.now - since >= DEAD_AFTER => return self.dead(id),
            (true, Some(_)) => {}
            (false, _) => end.stalled = None,
        }
        match receiver {
            Party::Node(node) => self.node_hears(node, stream, role, message),
            Party::Hub(hub) => self.hub_hears(hub, (id, side.other()), message),
            Party::Outside => self.visit_hears(stream, &message.bytes),
        }
    }

    /// What was sent cannot arrive: again later, or never.
    fn stall(&mut self, id: ConnId, side: Side) {
        let now = self.now;
        let Some(end) = self.conns.get_mut(&id).map(|conn| conn.end_mut(side)) else { return };
        let (since, tries) = end.stalled.unwrap_or((now, 0));
        end.stalled = Some((since, tries + 1));
        if now - since >= DEAD_AFTER {
            return self.dead(id);
        }
        let pause = (RESEND * 2u32.pow(tries.min(5))).min(RETRY_MOST);
        self.at(pause, Event::Carry(id, side));
    }

    /// Nothing got through for too long: both ends give up.
    fn dead(&mut self, id: ConnId) {
        self.end_arrives_at(id, Side::Dialler);
        self.end_arrives_at(id, Side::Dialled);
        self.conns.remove(&id);
    }

    /// One side learns that the other has closed.
    pub(crate) fn end_arrives(&mut self, id: ConnId, side: Side) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (here, there) = (conn.end(side).party, conn.end(side.other()).party);
        if self.underlay.is_cut(there, here) {
            return self.at(RETRY_MOST, Event::Closed(id, side));
        }
        if let Some(thaw) = self.thaw_of(here) {
            return self.when(thaw, Event::Closed(id, side));
        }
        self.end_arrives_at(id, side);
        self.conns.remove(&id);
    }

    fn end_arrives_at(&mut self, id: ConnId, side: Side) {
        let Some(end) = self.conns.get_mut(&id).map(|conn| conn.end_mut(side)) else { return };
        let (party, life, stream, state) = (end.party, end.life, end.stream, end.state);
        end.state = EndState::Closed;
        if state != EndState::Open || !self.lives(party, life) {
            return;
        }
        match party {
            Party::Node(node) => self.node_closed(node, stream),
            Party::Hub(hub) => self.hub_closed(hub, id, side),
            Party::Outside => self.visit_ended(stream),
        }
    }

    fn lives(&self, party: Party, life: u32) -> bool {
        match party {
            Party::Hub(hub) => self.hubs[hub].is_up() && self.hubs[hub].place.life == life,
            Party::Node(node) => self.nodes[node].is_up() && self.nodes[node].place.life == life,
            Party::Outside => true,
        }
    }
}

/// Whether the other ends of a party's streams hear that it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silent {
    /// They do: a process died, and its kernel says so.
    No,
    /// They do not: the machine is gone.
    Yes,
}

/// A kernel sends its SYN again so long after the first one, while nothing comes back (RFC 6298, 2.1 and 5.5: after a second, and
/// after twice as long each time); those that come before a dial is given up.
const ASKED_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
