use flatlan_types::{BootEpoch, LaneId, MemberId, NetworkId, NodeSecret, NodeSeed, PairKey, SenderHint};
use proptest::prelude::*;

use super::*;

struct End {
    keys: PairKeys,
    id: MemberId,
}

fn secret(n: u8) -> NodeSecret {
    NodeSeed::from_bytes([n; 32]).derive()
}

const NETWORK: NetworkId = NetworkId::from_bytes([7; 32]);

fn end(own: u8, peer: u8) -> End {
    let (own, peer) = (secret(own), secret(peer).public());
    let pair = PairKey::derive(&own, &peer.session, &NETWORK).unwrap();
    let id = own.public().id;
    End { keys: PairKeys::new(&pair, &NETWORK, &id, &peer.id), id }
}

fn message(kind: u8) -> Vec<u8> {
    let len = [148, 92, 64][usize::from(kind) - 1];
    let mut message: Vec<u8> = (0..len).map(|n: usize| n as u8).collect();
    message[..4].copy_from_slice(&[kind, 0, 0, 0]);
    message
}

fn header(lane: u8, sender: u64, receiver: u64) -> SealedHandshakeHeader {
    SealedHandshakeHeader {
        lane: LaneId::new(lane).unwrap(),
        sender_epoch: BootEpoch(sender),
        receiver_epoch: BootEpoch(receiver),
    }
}

fn sealed(keys: &PairKeys, header: SealedHandshakeHeader, message: &[u8]) -> Vec<u8> {
    let mut out = vec![0xee; 300];
    let len = seal_handshake(keys, header, message, &mut out).unwrap();
    out.truncate(len);
    out
}

fn frame(keys: &PairKeys, epoch: u64, counter: &mut FrameCounter, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0xee; payload.len() + FRAME_OVERHEAD];
    assert_eq!(seal_frame(keys, BootEpoch(epoch), counter, payload, &mut out), Some(out.len()));
    out
}

#[test]
fn a_handshake_says_its_lane_and_epochs_and_carries_types_1_to_3() {
    let (a, b) = (end(1, 2), end(2, 1));
    for kind in 1..=3 {
        let datagram = sealed(&a.keys, header(3, 5, 9), &message(kind));
        assert_eq!(datagram.len(), message(kind).len() + HANDSHAKE_OVERHEAD);
        assert!(datagram.len() <= SEALED_HANDSHAKE_MAX);
        let parsed = SealedHandshake::parse(&datagram).unwrap();
        assert_eq!(parsed.hint, SenderHint::of(&NETWORK, &a.id));
        let verified = parsed.verify(&b.keys).unwrap();
        assert_eq!(verified.header, header(3, 5, 9));
        assert_eq!(verified.message, message(kind));
    }
}

#[test]
fn the_layout_of_a_handshake_is_as_drawn() {
    let a = end(1, 2);
    let datagram = sealed(&a.keys, header(2, 0x0102_0304_0506_0708, 0x1112_1314_1516_1718), &message(3));
    let hint = SenderHint::of(&NETWORK, &a.id).0.to_be_bytes();
    let head = [&[0x11, 2, 0, 0][..], &hint, &[1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]];
    assert_eq!(datagram[..24], head.concat());
    assert_eq!(datagram[24..88], message(3));
}

#[test]
fn data_is_no_handshake_and_nor_is_any_other_length() {
    let a = end(1, 2);
    let mut out = [0; 300];
    let mut data = message(1);
    data[0] = 4;
    assert_eq!(seal_handshake(&a.keys, header(0, 1, 1), &data, &mut out), None);
    assert_eq!(seal_handshake(&a.keys, header(0, 1, 1), &message(1)[..147], &mut out), None);
    assert_eq!(seal_handshake(&a.keys, header(0, 1, 1), &message(1), &mut out[..187]), None);
    let good = sealed(&a.keys, header(0, 1, 1), &message(1));
    for len in 0..good.len() {
        assert!(SealedHandshake::parse(&good[..len]).is_none());
    }
    assert!(SealedHandshake::parse(&[&good[..], &[0]].concat()).is_none());
    for (at, value) in [(0, 0x10), (1, 4), (2, 1), (3, 1), (24, 4), (25, 1)] {
        let mut bad = good.clone();
        bad[at] = value;
        assert!(SealedHandshake::parse(&bad).is_none(), "byte {at}");
    }
}

#[test]
fn any_flipped_bit_of_a_handshake_is_refused() {
    let (a, b) = (end(1, 2), end(2, 1));
    let good = sealed(&a.keys, header(1, 5, 9), &message(2));
    assert!(SealedHandshake::parse(&good).unwrap().verify(&b.keys).is_some());
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let taken = SealedHandshake::parse(&bad).and_then(|h| h.verify(&b.keys));
        assert!(taken.is_none(), "bit {bit}");
    }
}

#[test]
fn a_handshake_is_for_one_pair_and_one_direction() {
    let (a, b) = (end(1, 2), end(2, 1));
    let datagram = sealed(&a.keys, header(0, 1, 1), &message(1));
    let parsed = SealedHandshake::parse(&datagram).unwrap();
    assert!(parsed.verify(&b.keys).is_some());
    assert!(parsed.verify(&a.keys).is_none(), "reflected");
    assert!(parsed.verify(&end(3, 1).keys).is_none(), "at another member");
    assert!(parsed.verify(&end(2, 3).keys).is_none(), "as if from another member");
}

#[test]
fn epochs_of_a_handshake_decide_what_becomes_of_it() {
    let (a, b) = (end(1, 2), end(2, 1));
    let judge = |sender, receiver, own, seen| {
        let datagram = sealed(&a.keys, header(0, sender, receiver), &message(1));
        let verified = SealedHandshake::parse(&datagram).unwrap().verify(&b.keys).unwrap();
        verified.judge(BootEpoch(own), BootEpoch(seen))
    };
    assert_eq!(judge(5, 9, 9, 5), HandshakeVerdict::Current);
    assert_eq!(judge(6, 9, 9, 5), HandshakeVerdict::NewSender);
    assert_eq!(judge(6, 9, 9, 0), HandshakeVerdict::NewSender, "never met");
    assert_eq!(judge(4, 9, 9, 5), HandshakeVerdict::OldSender, "a recording of an earlier life");
    assert_eq!(judge(5, 8, 9, 5), HandshakeVerdict::NotForThisLife, "a recording from before our restart");
    assert_eq!(judge(6, 0, 9, 5), HandshakeVerdict::NotForThisLife, "it does not know our epoch");
    assert_eq!(judge(5, 10, 9, 5), HandshakeVerdict::WeAreOld, "our state directory was restored");
    assert_eq!(judge(4, 10, 9, 5), HandshakeVerdict::OldSender);
}

#[test]
fn a_frame_carries_its_payload_encrypted() {
    let (a, b) = (end(1, 2), end(2, 1));
    let mut counter = FrameCounter::at(99);
    let payload = b"a probe, or whatever a peer has to say";
    let datagram = frame(&a.keys, 0x0102_0304_0506_0708, &mut counter, payload);
    let hint = a.keys.hint().0.to_be_bytes();
    let head = [&[0x10, 0, 0, 0][..], &hint, &[1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 99]];
    assert_eq!(datagram[..24], head.concat());
    assert!(!datagram.windows(8).any(|w| payload.windows(8).any(|p| p == w)));
    let parsed = SealedFrame::parse(&datagram).unwrap();
    assert_eq!((parsed.hint, parsed.epoch, parsed.counter), (a.keys.hint(), BootEpoch(0x0102_0304_0506_0708), 99));
    assert_eq!(parsed.payload_len(), payload.len());
    let mut out = [0; 100];
    assert_eq!(parsed.open(&b.keys, &mut out), Some(&payload[..]));
    assert_eq!(parsed.open(&b.keys, &mut out[..payload.len() - 1]), None, "does not fit");
    assert_eq!(parsed.open(&a.keys, &mut out), None, "reflected");
    assert_eq!(parsed.open(&end(3, 1).keys, &mut out), None);
}

#[test]
fn the_nonce_is_epoch_counter_and_eight_zero_bytes() {
    use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce, aead::Aead as _};
    let (own, peer) = (secret(1), secret(2).public());
    let pair = PairKey::derive(&own, &peer.session, &NETWORK).unwrap();
    let key = pair.subkey("probe", own.public().id.as_bytes());
    let datagram = frame(&end(1, 2).keys, 3, &mut FrameCounter::at(4), b"x");
    let nonce = XNonce::from([0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
    let payload = chacha20poly1305::aead::Payload { msg: &datagram[24..], aad: &datagram[..24] };
    let text = XChaCha20Poly1305::new(&key.into()).decrypt(&nonce, payload).unwrap();
    assert_eq!(text, b"x");
}

#[test]
fn any_flipped_bit_of_a_frame_is_refused_and_leaves_nothing_behind() {
    let (a, b) = (end(1, 2), end(2, 1));
    let good = frame(&a.keys, 5, &mut FrameCounter::new(1), b"payload");
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let mut out = [0; 64];
        let opened = SealedFrame::parse(&bad).and_then(|f| f.open(&b.keys, &mut out).map(<[u8]>::to_vec));
        assert_eq!(opened, None, "bit {bit}");
        assert_eq!(out[..7], [0; 7]);
    }
    for len in 0..FRAME_OVERHEAD {
        assert!(SealedFrame::parse(&good[..len]).is_none());
    }
    let empty = frame(&a.keys, 5, &mut FrameCounter::new(1), b"");
    assert_eq!(SealedFrame::parse(&empty).unwrap().open(&b.keys, &mut []), Some(&[][..]));
}

#[test]
fn a_frame_that_does_not_fit_uses_no_number() {
    let a = end(1, 2);
    let mut counter = FrameCounter::at(0);
    assert_eq!(seal_frame(&a.keys, BootEpoch(1), &mut counter, b"four", &mut [0; 43]), None);
    let datagram = frame(&a.keys, 1, &mut counter, b"four");
    assert_eq!(SealedFrame::parse(&datagram).unwrap().counter, 0);
    let datagram = frame(&a.keys, 1, &mut counter, b"four");
    assert_eq!(SealedFrame::parse(&datagram).unwrap().counter, 1);
}

#[test]
fn two_clones_of_a_machine_do_not_share_numbers() {
    let a = end(1, 2);
    let [x, y] = [u64::MAX, u64::MAX / 3].map(|seed| frame(&a.keys, 1, &mut FrameCounter::new(seed), b"x"));
    let [x, y] = [&x, &y].map(|f| SealedFrame::parse(f).unwrap().counter);
    assert_ne!(x, y);
    assert!(x < 1 << 62, "far from wrapping");
}

#[test]
fn a_peer_forgotten_and_met_again_hears_greater_numbers() {
    use std::time::Duration;
    let (a, b) = (end(1, 2), end(2, 1));
    let seed = 0xfedc_ba98_7654_3210;
    let mut window = ReplayWindow::new(BootEpoch(1));
    for uptime in [0, 1, 3600] {
        let mut counter = FrameCounter::resumed(seed, Duration::from_secs(uptime));
        for _ in 0..2000 {
            let datagram = frame(&a.keys, 1, &mut counter, b"x");
            let parsed = SealedFrame::parse(&datagram).unwrap();
            assert!(parsed.open(&b.keys, &mut [0; 1]).is_some());
            assert_eq!(window.accept(parsed.epoch, parsed.counter), Freshness::Fresh);
        }
    }
    let mut last = FrameCounter::resumed(u64::MAX, Duration::MAX);
    frame(&a.keys, 1, &mut last, b"x");
}

#[test]
fn a_window_takes_each_frame_once_and_1023_behind_but_not_1024() {
    let mut window = ReplayWindow::new(BootEpoch(5));
    let e = BootEpoch(5);
    assert_eq!(window.accept(e, 1 << 40), Freshness::Fresh, "wherever the sender starts");
    assert_eq!(window.accept(e, 1 << 40), Freshness::Replayed);
    assert_eq!(window.accept(e, (1 << 40) - 1023), Freshness::Fresh);
    assert_eq!(window.accept(e, (1 << 40) - 1024), Freshness::Replayed);
    assert_eq!(window.accept(e, u64::MAX), Freshness::Fresh);
    assert_eq!(window.accept(e, u64::MAX), Freshness::Replayed);
    assert_eq!(window.accept(e, 0), Freshness::Replayed);
}

#[test]
fn a_greater_epoch_starts_the_window_again_and_ends_the_old_one() {
    let mut window = ReplayWindow::new(BootEpoch(0));
    assert_eq!(window.accept(BootEpoch(7), 50), Freshness::NewEpoch);
    assert_eq!(window.accept(BootEpoch(7), 50), Freshness::Replayed);
    assert_eq!(window.accept(BootEpoch(7), 0), Freshness::Fresh);
    assert_eq!(window.accept(BootEpoch(8), 0), Freshness::NewEpoch);
    assert_eq!(window.accept(BootEpoch(8), 0), Freshness::Replayed);
    assert_eq!(window.accept(BootEpoch(7), 51), Freshness::OldEpoch);
    assert_eq!(window.epoch(), BootEpoch(8));
    window.set_epoch(BootEpoch(8));
    assert_eq!(window.accept(BootEpoch(8), 0), Freshness::Replayed, "the same epoch changes nothing");
    window.set_epoch(BootEpoch(9));
    assert_eq!(window.accept(BootEpoch(8), 1), Freshness::OldEpoch);
    assert_eq!(window.accept(BootEpoch(9), 1), Freshness::Fresh);
}

proptest! {
    #[test]
    fn the_window_agrees_with_a_set(counters in prop::collection::vec(0_u64..5000, 1..2000)) {
        let mut window = ReplayWindow::new(BootEpoch(1));
        let mut seen = std::collections::BTreeSet::new();
        let mut top = 0;
        for counter in counters {
            let fresh = counter + 1024 > top && seen.insert(counter);
            let want = if fresh { Freshness::Fresh } else { Freshness::Replayed };
            prop_assert_eq!(window.accept(BootEpoch(1), counter), want);
            top = top.max(counter);
        }
    }

    #[test]
    fn no_bytes_make_the_decoders_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0x10_u8..=0x11) {
        let b = end(2, 1);
        let mut bytes = bytes;
        for (place, byte) in bytes.iter_mut().zip([kind, 0, 0, 0]) {
            *place = byte;
        }
        let mut out = [0; 300];
        if let Some(frame) = SealedFrame::parse(&bytes) {
            prop_assert!(frame.open(&b.keys, &mut out).is_none());
        }
        if let Some(handshake) = SealedHandshake::parse(&bytes) {
            prop_assert!(handshake.verify(&b.keys).is_none());
        }
    }
}
