//! Sealed frames and handshakes, and the probes and windows inside them.

use flatlan_fuzz::{Fuzz, outcome};
use flatlan_path::{Probe, ProbeReply};
use flatlan_types::{BootEpoch, LaneId, PairKey};
use flatlan_wg::sealed::{
    FrameCounter, Freshness, PairKeys, ReplayWindow, SealedFrame, SealedHandshake, SealedHandshakeHeader, seal_frame,
    seal_handshake,
};

use crate::{network, node};

#[test]
fn sealed_frames() {
    let (a, b) = pair();
    let mut own = vec![0; 200];
    let len = seal_frame(&a, BootEpoch(7), &mut FrameCounter::new(1), b"a probe of some length", &mut own).unwrap();
    own.truncate(len);
    let mut out = vec![0; 70_000];
    Fuzz::new("sealed-frames").golden("wg/tests/golden", "frame").seeds([own]).run(|input| {
        let Some(frame) = SealedFrame::parse(input) else { return 0 };
        let payload = frame.open(&b, &mut out).map(<[u8]>::len);
        assert!(payload.is_none_or(|len| len == frame.payload_len()));
        assert!(frame.open(&a, &mut out).is_none(), "nobody opens what he sent himself");
        1 + u64::from(payload.is_some())
    });
}

#[test]
fn sealed_handshakes() {
    let (a, b) = pair();
    let header =
        SealedHandshakeHeader { lane: LaneId::PRIMARY, sender_epoch: BootEpoch(7), receiver_epoch: BootEpoch(9) };
    let seeds = [(1_u32, 148), (2, 92), (3, 64)].map(|(kind, len): (u32, usize)| {
        let mut message = kind.to_le_bytes().to_vec();
        message.resize(len, 0xab);
        let mut out = vec![0; 300];
        let len = seal_handshake(&a, header, &message, &mut out).unwrap();
        out.truncate(len);
        out
    });
    Fuzz::new("sealed-handshakes").golden("wg/tests/golden", "").seeds(seeds).run(|input| {
        let Some(handshake) = SealedHandshake::parse(input) else { return 0 };
        assert!(handshake.verify(&a).is_none(), "nobody takes what he sent himself");
        match handshake.verify(&b) {
            Some(verified) => {
                outcome(&(verified.judge(BootEpoch(9), BootEpoch(7)) as u8, verified.header.lane.number()))
            }
            None => 1,
        }
    });
}

#[test]
fn probes() {
    let mut seeds = Vec::new();
    for kind in [1, 2] {
        let mut payload = vec![0; 64];
        payload[0] = kind;
        seeds.push(payload);
    }
    Fuzz::new("probes").seeds(seeds).run(|input| {
        if let Some(probe) = Probe::decode(input) {
            assert_eq!(Probe::decode(&probe.encode()), Some(probe));
            return 1;
        }
        if let Some(reply) = ProbeReply::decode(input) {
            assert_eq!(ProbeReply::decode(&reply.encode()), Some(reply));
            return 2;
        }
        0
    });
}

/// A window never takes a counter twice, whatever the order, and agrees with the plainest one there is.
#[test]
fn replay_window() {
    Fuzz::new("replay-window").seeds([(0..64).collect()]).run(|input| {
        let mut window = ReplayWindow::new(BootEpoch(1));
        let mut seen = std::collections::BTreeSet::new();
        let mut count = 0;
        for chunk in input.chunks_exact(3) {
            let [epoch, high, low] = chunk else { continue };
            let epoch = BootEpoch(1 + u64::from(*epoch % 3));
            // near the top now and then: nothing may overflow
            let counter = u64::from(u16::from_be_bytes([*high, *low]));
            let counter = if high % 7 == 0 { u64::MAX - counter } else { counter };
            match window.accept(epoch, counter) {
                Freshness::Fresh | Freshness::NewEpoch => {
                    assert!(seen.insert((epoch, counter)), "{counter} was taken twice");
                    count += 1;
                }
                Freshness::OldEpoch => assert!(epoch < window.epoch()),
                Freshness::Replayed => {}
            }
        }
        outcome(&(count, window.epoch().0))
    });
}

fn pair() -> (PairKeys, PairKeys) {
    let (a, b) = (node(1), node(2));
    let key = PairKey::derive(&a, &b.public().session, &network()).unwrap();
    let (id_a, id_b) = (a.public().id, b.public().id);
    (PairKeys::new(&key, &network(), &id_a, &id_b), PairKeys::new(&key, &network(), &id_b, &id_a))
}
