//! A hub's UDP port, with bytes from several sources: strangers and members, honest or not.
//!
//! Whatever comes, an address that has not answered a challenge gets no more bytes than it sent; in all,
//! no more goes out than came in; and nothing goes to the hub itself, to loopback or to port 0.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use flatlan_fuzz::{Fuzz, outcome, steps};
use flatlan_hub::{
    AttachmentId, AttachmentKind, Carried, ForwardCommand, ForwardConfig, ForwardSink, Forwarder, Loopback, Quota,
    StreamId, TrafficClass, UdpBatch,
};
use flatlan_relay::{
    BindSecret,
    bind::{Bind, Bound, Verdict},
    frame::Header,
};
use flatlan_types::{Endpoint, Label, Share};

use crate::network;

#[test]
fn forwarder() {
    let frame = [&Header::new(Label::new(1, 1)).to_bytes()[..], b"some datagram"].concat();
    let seeds = [
        // two nodes bind, the challenge is answered, frames go both ways
        [[BIND, 0], [ANSWER, 0], [BIND | 1, 0], [ANSWER | 1, 0]].concat(),
        [vec![BIND, 0, ANSWER, 0, BIND | 1, 0, ANSWER | 1, 0, BYTES, frame.len() as u8], frame.clone()].concat(),
        [vec![BYTES | 2, frame.len() as u8], frame.clone()].concat(),
        [vec![BIND, 0, ANSWER, 0, BATCH, 2 * frame.len() as u8], frame.repeat(2)].concat(),
        [vec![STREAM, frame.len() as u8 + 2, 0, frame.len() as u8], frame].concat(),
    ];
    Fuzz::new("forwarder").seeds(seeds).run(|input| {
        let mut net = Net::new();
        for (operation, bytes) in steps(input, 1) {
            net.step(operation, bytes);
        }
        outcome(&(net.sink.out.len(), net.sink.total.min(4), net.answered.len()))
    });
}

const BYTES: u8 = 0x00;
const BATCH: u8 = 0x20;
const BIND: u8 = 0x40;
const ANSWER: u8 = 0x60;
const STREAM: u8 = 0x80;
const WAIT: u8 = 0xa0;

/// Two members' places, two strangers', and places where nothing may be sent.
const PLACES: [&str; 8] = [
    "192.0.2.1:1000",
    "192.0.2.2:2000",
    "198.51.100.3:3000",
    "[2001:db8::4]:4000",
    "192.0.2.100:51820",
    "127.0.0.1:5",
    "192.0.2.6:0",
    "[::1]:7",
];

struct Net {
    forwarder: Forwarder,
    now: Instant,
    sink: Sink,
    received: BTreeMap<Endpoint, usize>,
    total: usize,
    answered: BTreeMap<Endpoint, ()>,
    counter: u64,
}

#[derive(Default)]
struct Sink {
    out: BTreeMap<Endpoint, usize>,
    total: usize,
    challenges: BTreeMap<(Endpoint, u32), u64>,
}

impl ForwardSink for Sink {
    fn udp(&mut self, to: Endpoint, batch: &[u8], stride: usize, _class: TrafficClass) -> Carried {
        assert!(!places()[4..].contains(&to), "sent to {to}");
        assert!(stride > 0 && !batch.is_empty());
        *self.out.entry(to).or_default() += batch.len();
        self.total += batch.len();
        for frame in batch.chunks(stride) {
            let Some(id) = Bound::peek_id(frame) else { continue };
            let Some(bound) = Bound::open(frame, &key(AttachmentId(id))) else { continue };
            if let Verdict::Challenge(nonce) = bound.verdict {
                self.challenges.insert((to, id), nonce);
            }
        }
        Carried::default()
    }

    fn stream(&mut self, _to: StreamId, batch: &[u8], stride: usize) -> Carried {
        assert!(stride > 0 && !batch.is_empty());
        self.total += batch.len();
        Carried::default()
    }
}

impl Net {
    fn new() -> Self {
        let config = ForwardConfig {
            own: vec![places()[4]],
            loopback: Loopback::Refused,
            network_quota: Quota::default(),
            seed: [3; 32],
            share: Share::default(),
            quotas: Arc::default(),
        };
        let now = start();
        let mut forwarder = Forwarder::new(config, now);
        let (kind, quota) = (AttachmentKind::Node, Quota::default());
        for n in 0..3 {
            let attachment = member(n);
            forwarder.apply(ForwardCommand::AddAttachment { attachment, kind, bind: key(attachment), quota }, now);
        }
        forwarder.apply(ForwardCommand::SetStream { attachment: member(2), stream: Some(StreamId(1)) }, now);
        for (n, up, down) in [(1, 0, 1), (2, 1, 0), (3, 2, 0), (4, 0, 2), (5, 0, 0)] {
            let (label, out) = (Label::new(n, 1), Label::new(70 + n, 7));
            let (upstream, downstream) = (member(up), member(down));
            forwarder.apply(ForwardCommand::AddLabel { label, network: network(), upstream, downstream, out }, now);
        }
        let (received, answered) = (BTreeMap::new(), BTreeMap::new());
        Self { forwarder, now, sink: Sink::default(), received, total: 0, answered, counter: 0 }
    }

    fn step(&mut self, operation: u8, bytes: &[u8]) {
        let from = places()[usize::from(operation & 7)];
        let attachment = member(operation >> 3 & 1 ^ operation & 1);
        match operation & 0xe0 {
            BYTES => self.udp(from, bytes.to_vec(), 0),
            BATCH => self.udp(from, bytes.to_vec(), bytes.len().div_ceil(2)),
            BIND => {
                self.counter += 1;
                let bind = Bind { id: attachment.0, counter: self.counter, time: 7, nonce: 0 };
                self.udp(from, bind.encode(&key(attachment)).to_vec(), 0);
            }
            ANSWER => {
                let Some(nonce) = self.sink.challenges.get(&(from, attachment.0)).copied() else { return };
                self.answered.insert(from, ());
                self.counter += 1;
                let bind = Bind { id: attachment.0, counter: self.counter, time: 7, nonce };
                self.udp(from, bind.encode(&key(attachment)).to_vec(), 0);
            }
            STREAM => {
                self.total += bytes.len();
                self.forwarder.handle_stream(member(2), &mut bytes.to_vec(), self.now, &mut self.sink);
            }
            WAIT => {
                self.now += Duration::from_millis(u64::from(operation & 31) * 500);
                self.forwarder.handle_timeout(self.now, &mut self.sink);
            }
            // a damaged bind of a key that is known to its sender
            _ => {
                self.counter += 1;
                let bind = Bind { id: attachment.0, counter: self.counter, time: 7, nonce: u64::from(operation) };
                let mut frame = bind.encode(&key(attachment)).to_vec();
                frame.extend_from_slice(bytes);
                frame.truncate(64 + bytes.len() / 2);
                self.udp(from, frame, 0);
            }
        }
        while self.forwarder.poll_event().is_some() {}
        for (to, out) in &self.sink.out {
            let received = self.received.get(to).copied().unwrap_or(0);
            assert!(self.answered.contains_key(to) || *out <= received, "{out} bytes to {to} for {received}");
        }
        assert!(self.sink.total <= self.total, "{} bytes out for {} in", self.sink.total, self.total);
    }

    fn udp(&mut self, from: Endpoint, mut contents: Vec<u8>, stride: usize) {
        *self.received.entry(from).or_default() += contents.len();
        self.total += contents.len();
        let batch = UdpBatch { from, contents: &mut contents, stride, class: TrafficClass(0) };
        self.forwarder.handle_udp(batch, self.now, &mut self.sink);
    }
}

fn member(n: u8) -> AttachmentId {
    AttachmentId(Label::new(u32::from(n) + 1, 5).0)
}

fn key(attachment: AttachmentId) -> BindSecret {
    BindSecret::from_bytes([(attachment.0 >> 12) as u8; 32])
}

fn places() -> &'static [Endpoint; 8] {
    static ENDPOINTS: OnceLock<[Endpoint; 8]> = OnceLock::new();
    ENDPOINTS.get_or_init(|| PLACES.map(|text| Endpoint::new(text.parse().unwrap())))
}

/// One instant for the whole run, so that an input means the same each time.
fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}
