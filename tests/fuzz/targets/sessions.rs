//! A session with a member that holds valid keys and means ill: it seals what it likes, changes what it
//! sealed, repeats, swaps and sends in any order. Nothing may panic, and its own lane is all that suffers.

use std::time::{Duration, Instant};

use flatlan_fuzz::{Fuzz, outcome, steps};
use flatlan_packet::IpView;
use flatlan_types::{LaneId, LaneKey, NodeSecret, PeerSlot};
use flatlan_wg::{Boringtun, Engine, HANDSHAKE_MAX, PeerSession, Plain, Sessions, Stock, Tunnel, sealed_len};

use crate::node;

#[test]
fn sessions_of_the_real_engine() {
    // a handshake costs more than a thousand packets
    run::<Boringtun>("sessions-boringtun", 256);
}

#[test]
fn sessions_of_the_plain_engine() {
    run::<Plain>("sessions-plain", 256);
}

/// Sessions are made anew after so many inputs.
fn run<T: Tunnel>(name: &'static str, inputs: u32) {
    let packet = [0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2, 0x9c, 0x40, 0, 53, 0, 8, 0, 0];
    let seeds = [
        [&[SEAL, 28][..], &packet].concat(),
        [&[SEAL, 28][..], &packet, &[AGAIN, 0, AGAIN, 0]].concat(),
        vec![INITIATE, 0, INITIATE, 0, WAIT, 0, INITIATE, 0],
        [&[SEAL, 28][..], &packet, &[CHANGE, 2, 8, 0xff], &[CHANGE, 2, 4, 1]].concat(),
        [&[RAW, 32][..], &[4, 0, 0, 0], &[0xff; 28]].concat(),
        [&[RAW, 148][..], &[1, 0, 0, 0], &[7; 144]].concat(),
    ];
    let (mut net, mut served) = (Net::<T>::established(), 0);
    Fuzz::new(name).seeds(seeds).run(|input| {
        if served == inputs {
            (net, served) = (Net::established(), 0);
        }
        served += 1;
        let mut what = Vec::new();
        for (operation, bytes) in steps(input, 1) {
            what.push(net.step(operation, bytes));
        }
        // the honest member is served as before
        net.honest_packet_arrives();
        what.truncate(6);
        outcome(&what)
    });
}

const SEAL: u8 = 0;
const CHANGE: u8 = 1;
const AGAIN: u8 = 2;
const RAW: u8 = 3;
const INITIATE: u8 = 4;
const WAIT: u8 = 5;

struct Net<T: Tunnel> {
    victim: Engine<T>,
    honest: Engine<T>,
    evil: Engine<T>,
    now: Instant,
    /// What the evil member sent last.
    last: Vec<u8>,
    out: Vec<u8>,
}

const TO_HONEST: LaneKey = LaneKey { peer: PeerSlot(1), lane: LaneId::PRIMARY };
const TO_EVIL: LaneKey = LaneKey { peer: PeerSlot(2), lane: LaneId::PRIMARY };
const TO_VICTIM: LaneKey = LaneKey { peer: PeerSlot(0), lane: LaneId::PRIMARY };

impl<T: Tunnel> Net<T> {
    fn established() -> Self {
        let now = Instant::now();
        let (victim, honest, evil) = (node(1), node(2), node(3));
        let mut net = Self {
            victim: Engine::new(&victim, 11),
            honest: Engine::new(&honest, 22),
            evil: Engine::new(&evil, 33),
            now,
            last: Vec::new(),
            out: vec![0; 70_000],
        };
        net.victim.open_lane(TO_HONEST, session(&honest), now);
        net.victim.open_lane(TO_EVIL, session(&evil), now);
        net.honest.open_lane(TO_VICTIM, session(&victim), now);
        net.evil.open_lane(TO_VICTIM, session(&victim), now);
        handshake(&mut net.honest, &mut net.victim, TO_HONEST, now);
        handshake(&mut net.evil, &mut net.victim, TO_EVIL, now);
        net
    }

    fn step(&mut self, operation: u8, bytes: &[u8]) -> u8 {
        match operation % 6 {
            SEAL => {
                let mut sealed = vec![0; sealed_len(bytes.len())];
                let Ok(len) = self.evil.seal(TO_VICTIM, bytes, self.now, &mut sealed) else { return 100 };
                sealed.truncate(len);
                self.last = sealed;
                self.arrives(Some(bytes))
            }
            CHANGE => {
                if let [at, to] = bytes
                    && let Some(byte) = self.last.get_mut(usize::from(*at))
                {
                    *byte ^= *to;
                }
                self.arrives(None)
            }
            AGAIN => self.arrives(None),
            RAW => {
                self.last = bytes.to_vec();
                self.arrives(None)
            }
            INITIATE => {
                let mut message = vec![0; HANDSHAKE_MAX];
                let Some(len) = self.evil.initiate(TO_VICTIM, self.now, &mut message) else { return 101 };
                message.truncate(len);
                self.last = message;
                self.arrives(None)
            }
            // the engine that reads the clock itself makes nothing of this, and must stand it
            _ => {
                self.now += Duration::from_millis(bytes.len() as u64);
                self.victim.handle_timeout(self.now, &mut |_, _| {});
                102
            }
        }
    }

    /// The victim gets what was sent last, as the worker would hand it over.
    fn arrives(&mut self, sealed: Option<&[u8]>) -> u8 {
        if self.last.first() != Some(&4) {
            let reply = self.victim.handle_handshake(TO_EVIL, &self.last, self.now, &mut self.out);
            if let Ok(Some(len)) = reply.map(|handshake| handshake.reply) {
                // the answer closes the handshake, or a long run would end with no session to attack
                let reply = self.out[..len].to_vec();
                let mut more = vec![0; HANDSHAKE_MAX];
                if let Ok(done) = self.evil.handle_handshake(TO_VICTIM, &reply, self.now, &mut more)
                    && let Some(len) = done.reply
                {
                    let _ = self.victim.open(&more[..len], self.now, &mut self.out);
                }
                return 1;
            }
            return 2;
        }
        match self.victim.open(&self.last, self.now, &mut self.out) {
            Ok(opened) => {
                assert_eq!(opened.lane, TO_EVIL, "nobody speaks on another's lane");
                let packet = &self.out[..opened.len];
                if let Some(sealed) = sealed {
                    // a packet may claim some of its padding
                    let padded = [sealed, &[0; 16]].concat();
                    assert!(padded.starts_with(packet), "what was opened is what was sealed");
                }
                // version and length were checked, and nothing else
                let _ = IpView::parse(packet);
                3
            }
            Err(error) => 4 + (outcome(&error.to_string()) % 90) as u8,
        }
    }

    fn honest_packet_arrives(&mut self) {
        let packet = [0x45, 0, 0, 20, 0, 1, 0, 0, 64, 59, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
        let mut sealed = [0; 64];
        let len = self.honest.seal(TO_VICTIM, &packet, self.now, &mut sealed).expect("the honest session lives");
        let opened = self.victim.open(&sealed[..len], self.now, &mut self.out).expect("the honest session is heard");
        assert_eq!((opened.lane, &self.out[..opened.len]), (TO_HONEST, &packet[..]));
    }
}

fn session(peer: &NodeSecret) -> PeerSession {
    PeerSession { key: peer.public().session, psk: None, stock: Stock::No, keepalive: None }
}

/// `from` initiates; every message arrives.
fn handshake<T: Tunnel>(from: &mut Engine<T>, victim: &mut Engine<T>, lane: LaneKey, now: Instant) {
    let (mut a, mut b) = (vec![0; HANDSHAKE_MAX], vec![0; HANDSHAKE_MAX]);
    let len = from.initiate(TO_VICTIM, now, &mut a).expect("the first initiation is free");
    let reply = victim.handle_handshake(lane, &a[..len], now, &mut b).unwrap().reply.expect("a response");
    let keepalive = from.handle_handshake(TO_VICTIM, &b[..reply], now, &mut a).unwrap().reply.expect("a keepalive");
    victim.open(&a[..keepalive], now, &mut b).unwrap();
}
