//! The sealed frames, byte for byte. Each file under `golden/` is one datagram of a version that was
//! released or is about to be: this version must write the same and must read it. A new one's file is made
//! with `FLATLAN_GOLDEN=write`; the files of released ones never change.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail the test")]

use std::{fs, path::Path};

use data_encoding::HEXLOWER;
use flatlan_types::{BootEpoch, LaneId, NetworkId, NodeSeed, PairKey};
use flatlan_wg::sealed::{
    FrameCounter, PairKeys, SealedFrame, SealedHandshake, SealedHandshakeHeader, seal_frame, seal_handshake,
};

#[test]
fn a_sealed_frame_is_written_and_read_as_in_the_golden_file() {
    let mut out = [0; 64];
    let len = seal_frame(&keys(1, 2), BootEpoch(1_700_000_000), &mut FrameCounter::new(7), b"payload", &mut out);
    let golden = check("frame", &out[..len.unwrap()]);
    let frame = SealedFrame::parse(&golden).unwrap();
    assert_eq!(frame.epoch, BootEpoch(1_700_000_000));
    assert_eq!(frame.open(&keys(2, 1), &mut [0; 64]), Some(&b"payload"[..]));
}

#[test]
fn a_sealed_handshake_is_written_and_read_as_in_the_golden_file() {
    let header = SealedHandshakeHeader {
        lane: LaneId::STANDBY,
        sender_epoch: BootEpoch(1_700_000_000),
        receiver_epoch: BootEpoch(1_700_000_001),
    };
    for (name, kind, len) in [("initiation", 1, 148), ("response", 2, 92), ("cookie", 3, 64)] {
        let mut message: Vec<u8> = (0..len).collect();
        message[..4].copy_from_slice(&[kind, 0, 0, 0]);
        let mut out = [0; 256];
        let len = seal_handshake(&keys(1, 2), header, &message, &mut out);
        let golden = check(name, &out[..len.unwrap()]);
        let handshake = SealedHandshake::parse(&golden).unwrap().verify(&keys(2, 1)).unwrap();
        assert_eq!((handshake.header, handshake.message), (header, &message[..]));
    }
}

fn keys(own: u8, peer: u8) -> PairKeys {
    let network = NetworkId::from_bytes([7; 32]);
    let secret = |n| NodeSeed::from_bytes([n; 32]).derive();
    let (own, peer) = (secret(own), secret(peer).public());
    let pair = PairKey::derive(&own, &peer.session, &network).unwrap();
    PairKeys::new(&pair, &network, &own.public().id, &peer.id)
}

/// Compares with the golden file and returns what it holds.
fn check(name: &str, bytes: &[u8]) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).with_extension("hex");
    let text = HEXLOWER.encode(bytes);
    if std::env::var_os("FLATLAN_GOLDEN").is_some_and(|v| v == "write") {
        fs::write(&path, format!("{text}\n")).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap();
    assert_eq!(golden.trim(), text, "{name}");
    HEXLOWER.decode(golden.trim().as_bytes()).unwrap()
}
