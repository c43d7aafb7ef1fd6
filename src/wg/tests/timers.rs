//! Timers, in virtual time: two plain engines over a link with a delay.
//!
//! The plain tunnel has boringtun's timers with their oddities (its own tests hold that); here is what the
//! engine makes of them.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use flatlan_types::{LaneId, LaneKey, NodeSecret, NodeSeed, PeerSlot};
use flatlan_wg::{Engine, HANDSHAKE_MAX, MessageKind, PeerSession, Plain, SealError, Sessions, Stock, sealed_len};

const LANE: LaneKey = LaneKey { peer: PeerSlot(0), lane: LaneId::PRIMARY };
const A: usize = 0;
const B: usize = 1;

struct Net {
    ends: [Engine<Plain>; 2],
    now: Instant,
    start: Instant,
    delay: Duration,
    /// Whether what this end sends arrives.
    up: [bool; 2],
    flying: BTreeMap<(Instant, u64), (usize, Vec<u8>)>,
    sent: Vec<(Duration, usize, MessageKind, usize)>,
    /// Packets that came in, by end.
    got: [usize; 2],
    flushed: [usize; 2],
}

impl Net {
    fn new() -> Self {
        Self::with(None, None)
    }

    fn with(keepalive_a: Option<u16>, keepalive_b: Option<u16>) -> Self {
        let now = Instant::now();
        let mut ends = [Engine::new(&secret(1), 101), Engine::new(&secret(2), 202)];
        let session = |peer, keepalive| PeerSession {
            key: secret(peer).public().session,
            psk: None,
            stock: Stock::No,
            keepalive,
        };
        ends[A].open_lane(LANE, session(2, keepalive_a), now);
        ends[B].open_lane(LANE, session(1, keepalive_b), now);
        Self {
            ends,
            now,
            start: now,
            delay: ms(20),
            up: [true; 2],
            flying: BTreeMap::new(),
            sent: Vec::new(),
            got: [0; 2],
            flushed: [0; 2],
        }
    }

    fn established() -> Self {
        let mut net = Self::new();
        assert!(net.initiate(A));
        net.run(s(1));
        assert!(net.is_up());
        net
    }

    fn is_up(&self) -> bool {
        self.ends.iter().all(|end| end.is_established(LANE))
    }

    fn initiate(&mut self, end: usize) -> bool {
        let mut out = [0; HANDSHAKE_MAX];
        let Some(len) = self.ends[end].initiate(LANE, self.now, &mut out) else { return false };
        self.send(end, out[..len].to_vec());
        true
    }

    fn send_packet(&mut self, end: usize) -> Result<(), SealError> {
        let packet = [&[0x45, 0, 0, 20][..], &[0; 16]].concat();
        let mut out = vec![0; sealed_len(20)];
        self.ends[end].seal(LANE, &packet, self.now, &mut out)?;
        self.send(end, out);
        Ok(())
    }

    fn send(&mut self, end: usize, message: Vec<u8>) {
        let kind = MessageKind::of(&message).unwrap();
        self.sent.push((self.now - self.start, end, kind, message.len()));
        if self.up[end] {
            let seq = self.sent.len() as u64;
            self.flying.insert((self.now + self.delay, seq), (1 - end, message));
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrival = self.flying.keys().next().map(|(at, _)| *at);
            let timer = self.ends.iter().filter_map(Sessions::poll_timeout).min();
            let Some(at) = arrival.into_iter().chain(timer).min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            if arrival.is_some_and(|at| at <= self.now) {
                let (_, (to, message)) = self.flying.pop_first().unwrap();
                self.receive(to, &message);
                continue;
            }
            for from in [A, B] {
                let mut out = Vec::new();
                self.ends[from].handle_timeout(self.now, &mut |lane, m| {
                    assert_eq!(lane, LANE);
                    out.push(m.to_vec());
                });
                out.into_iter().for_each(|m| self.send(from, m));
            }
        }
        self.now = end;
    }

    fn receive(&mut self, to: usize, message: &[u8]) {
        let mut out = vec![0; message.len().max(HANDSHAKE_MAX)];
        if MessageKind::of(message) == Some(MessageKind::Data) {
            if let Ok(opened) = self.ends[to].open(message, self.now, &mut out) {
                self.got[to] += usize::from(opened.len > 0);
                self.flushed[to] += usize::from(opened.established);
            }
        } else if let Ok(handshake) = self.ends[to].handle_handshake(LANE, message, self.now, &mut out) {
            self.flushed[to] += usize::from(handshake.established);
            if let Some(len) = handshake.reply {
                self.send(to, out[..len].to_vec());
            }
        }
    }

    /// Packets both ways, one each `every`.
    fn talk(&mut self, time: Duration, every: Duration) -> usize {
        let before = self.got;
        let mut tried = 0;
        for _ in 0..time.as_millis() / every.as_millis() {
            for end in [A, B] {
                let _ = self.send_packet(end);
            }
            tried += 1;
            self.run(every);
        }
        self.run(self.delay);
        2 * tried - (self.got[A] - before[A]) - (self.got[B] - before[B])
    }

    fn count(&self, end: usize, kind: MessageKind) -> usize {
        self.times(end, kind).len()
    }

    fn times(&self, end: usize, kind: MessageKind) -> Vec<Duration> {
        self.sent.iter().filter(|(_, e, k, _)| (*e, *k) == (end, kind)).map(|(at, ..)| *at).collect()
    }

    fn forget(&mut self) {
        self.sent.clear();
    }
}

fn secret(n: u8) -> NodeSecret {
    NodeSeed::from_bytes([n; 32]).derive()
}

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn an_unanswered_initiation_is_repeated_until_it_is_given_up_and_then_silent() {
    let mut net = Net::new();
    net.up = [false; 2];
    assert!(net.initiate(A));
    net.run(s(300));
    let times = net.times(A, MessageKind::Initiation);
    assert!((17..=18).contains(&times.len()), "{times:?}");
    assert!(times.windows(2).all(|w| w[1] - w[0] >= s(5) && w[1] - w[0] <= ms(5300)), "{times:?}");
    assert!(times.last().unwrap() < &s(91));
}

#[test]
fn a_lane_that_gave_up_is_revived_by_the_caller() {
    let mut net = Net::new();
    net.up = [false; 2];
    net.initiate(A);
    net.run(s(200));
    net.up = [true; 2];
    net.forget();
    net.run(s(60));
    assert_eq!(net.sent, [], "it does not revive itself");
    assert!(net.initiate(A));
    net.run(s(1));
    assert!(net.is_up());
    assert_eq!(net.talk(s(30), ms(100)), 0);
}

#[test]
fn a_lane_that_gave_up_is_revived_by_the_peer() {
    let mut net = Net::new();
    net.up = [false; 2];
    net.initiate(A);
    net.run(s(200));
    net.up = [true; 2];
    assert!(net.initiate(B));
    net.run(s(1));
    assert!(net.is_up());
    assert_eq!(net.talk(s(30), ms(100)), 0);
}

#[test]
fn a_lane_never_used_is_silent_and_still_usable() {
    let mut net = Net::new();
    net.run(s(1000));
    assert_eq!(net.sent, []);
    assert!(net.initiate(B));
    net.run(s(1));
    assert!(net.is_up());
    net.run(s(2));
    assert!(net.is_up(), "and its new session is not taken for an old one");
}

#[test]
fn ten_minutes_of_traffic_rekey_without_losing_a_packet() {
    let mut net = Net::established();
    assert_eq!(net.talk(s(600), ms(50)), 0);
    let rekeys = net.count(A, MessageKind::Initiation) + net.count(B, MessageKind::Initiation);
    assert!((5..=7).contains(&rekeys), "{rekeys}");
    assert_eq!(net.count(B, MessageKind::Initiation), 0, "only who began rekeys");
    assert_eq!(net.flushed[A], rekeys);
}

#[test]
fn one_way_traffic_rekeys_without_losing_a_packet() {
    for from in [A, B] {
        let mut net = Net::established();
        for _ in 0..6000 {
            net.send_packet(from).unwrap();
            net.run(ms(100));
        }
        net.run(s(1));
        assert_eq!(net.got[1 - from], 6000);
    }
}

#[test]
fn the_first_packet_after_a_quiet_time_starts_no_handshake() {
    // At every phase of the tick, with the answer after 20 ms or, the peer having nothing to say, with the
    // keepalive of its next tick.
    for after in (30_000..30_250).step_by(10) {
        for answered in [true, false] {
            let mut net = Net::established();
            net.run(ms(after));
            net.forget();
            net.send_packet(A).unwrap();
            net.run(ms(20));
            if answered {
                net.send_packet(B).unwrap();
            }
            net.run(s(20));
            assert_eq!(net.count(A, MessageKind::Initiation), 0, "after {after} ms");
            assert_eq!(net.count(B, MessageKind::Initiation), 0, "after {after} ms");
        }
    }
}

#[test]
fn a_peer_gone_silent_is_asked_for_a_new_handshake_in_spite_of_pauses() {
    for every in [ms(100), s(3), s(6), s(12)] {
        let mut net = Net::established();
        net.talk(s(5), ms(100));
        net.up[B] = false;
        net.forget();
        for _ in 0..40_000 / every.as_millis() {
            let _ = net.send_packet(A);
            net.run(every);
        }
        let first = net.times(A, MessageKind::Initiation).into_iter().next().expect("a handshake was started");
        assert!(first - s(6) <= s(26), "{first:?} with a packet each {every:?}");
    }
}

#[test]
fn a_receiver_with_nothing_to_say_sends_a_keepalive() {
    let mut net = Net::established();
    net.run(s(12));
    net.forget();
    for _ in 0..100 {
        net.send_packet(A).unwrap();
        net.run(ms(100));
    }
    assert!((1..=2).contains(&net.count(B, MessageKind::Data)), "{}", net.count(B, MessageKind::Data));
    assert!(net.sent.iter().all(|(_, end, _, len)| *end == A || *len == 32));
}

#[test]
fn an_idle_lane_sends_nothing() {
    let mut net = Net::established();
    net.run(s(15));
    net.forget();
    net.run(s(160));
    assert_eq!(net.sent, []);
}

#[test]
fn a_session_ends_after_three_minutes_and_the_sender_is_told() {
    let mut net = Net::established();
    net.run(s(178));
    assert_eq!(net.send_packet(A), Ok(()));
    net.run(s(4));
    net.up = [false; 2];
    net.run(s(190));
    assert!(!net.is_up());
    assert_eq!(net.send_packet(B), Err(SealError::NoSession));
    assert_eq!(net.send_packet(A), Err(SealError::NoSession));
    assert!(net.ends[A].last_handshake(LANE, net.now).is_some_and(|age| age >= s(180)));
}

#[test]
fn a_lane_with_a_keepalive_starts_by_itself_and_comes_back_by_itself() {
    let mut net = Net::with(Some(25), None);
    net.run(s(1));
    assert!(net.is_up(), "without waiting for the first interval");
    net.forget();
    net.run(s(100));
    assert!((3..=5).contains(&net.count(A, MessageKind::Data)), "{}", net.count(A, MessageKind::Data));

    net.up = [false; 2];
    net.run(s(900));
    assert!(!net.is_up());
    net.up = [true; 2];
    net.run(s(21));
    assert!(net.is_up(), "given up, and taken up again");
}

#[test]
fn a_pause_of_the_whole_process_does_not_make_a_new_session_old() {
    for pause in [s(10), s(200), s(2000)] {
        let mut net = Net::established();
        // Suspended: no timers ran, then a peer's message comes first.
        net.now += pause;
        net.flying.clear();
        let mut out = [0; HANDSHAKE_MAX];
        let len = net.ends[A].initiate(LANE, net.now, &mut out).unwrap();
        net.send(A, out[..len].to_vec());
        let (_, (_, initiation)) = net.flying.pop_first().unwrap();
        net.receive(B, &initiation);
        let (_, (_, response)) = net.flying.pop_first().unwrap();
        net.receive(A, &response);
        let (_, (_, keepalive)) = net.flying.pop_first().unwrap();
        net.receive(B, &keepalive);
        net.run(s(2));
        assert!(net.is_up(), "after {pause:?}");
        assert_eq!(net.talk(s(5), ms(100)), 0);
    }
}

#[test]
fn two_ends_that_lose_each_other_meet_again() {
    let mut net = Net::established();
    net.talk(s(10), ms(100));
    net.up = [false; 2];
    net.talk(s(60), ms(100));
    net.up = [true; 2];
    net.run(s(6));
    assert_eq!(net.talk(s(20), ms(100)), 0);
}

#[test]
fn retries_of_many_lanes_spread_over_the_tick() {
    let mut engine = Engine::<Plain>::new(&secret(1), 5);
    let now = Instant::now();
    let lanes = 400;
    let mut out = [0; HANDSHAKE_MAX];
    for n in 0..lanes {
        let lane = LaneKey { peer: PeerSlot(n), ..LANE };
        let key = NodeSeed::from_bytes([n as u8; 32]).derive().public().session;
        engine.open_lane(lane, PeerSession { key, psk: None, stock: Stock::No, keepalive: None }, now);
        engine.initiate(lane, now, &mut out).unwrap();
    }
    let mut bursts: BTreeMap<Instant, u32> = BTreeMap::new();
    while let Some(at) = engine.poll_timeout().filter(|at| *at < now + ms(5600)) {
        engine.handle_timeout(at, &mut |_, _| *bursts.entry(at).or_default() += 1);
    }
    assert_eq!(bursts.values().sum::<u32>(), lanes);
    assert!(bursts.len() >= 8, "{bursts:?}");
    assert!(bursts.values().all(|n| *n < lanes / 4), "{bursts:?}");
}

#[test]
fn the_same_seeds_give_the_same_trace() {
    let trace = || {
        let mut net = Net::new();
        net.initiate(A);
        net.run(s(1));
        net.talk(s(400), ms(170));
        // The phase of the wheel counts from the first instant it is given, so times compare too.
        net.sent
    };
    assert_eq!(trace(), trace());
}
