use proptest::prelude::*;

use super::*;

#[test]
fn a_probe_has_its_documented_layout() {
    let probe = Probe { path: PathId(0x0102), seq: 0x0304_0506, instance: 0x0708, about: PathId(0x090a) };
    let mut expected = [0; LEN];
    expected[..12].copy_from_slice(&[1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(probe.encode(), expected);
}

#[test]
fn a_reply_has_its_documented_layout() {
    let reply = ProbeReply {
        path: PathId(0x0102),
        seq: 0x0304_0506,
        instance: 0x0708,
        about: PathId(0x090a),
        received: Some(Received { packets: 0x0b0c_0d0e, units: 0x0f10_1112, heard: 0x1314_1516 }),
    };
    let expected = [2, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22];
    assert_eq!(reply.encode(), expected);
}

#[test]
fn padding_is_ignored_and_a_short_or_foreign_payload_is_refused() {
    let probe = Probe { path: PathId(1), seq: 2, instance: 3, about: PathId(4) };
    let mut padded = probe.encode().to_vec();
    padded.resize(1400, 0xff);
    assert_eq!(Probe::decode(&padded), Some(probe));
    assert_eq!(ProbeReply::decode(&padded), None);
    assert_eq!(Probe::decode(&padded[..LEN - 1]), None);
    assert_eq!(Probe::decode(&[]), None);
}

proptest! {
    #[test]
    fn any_frame_survives_the_wire(
        path: u16, seq: u32, instance: u16, about: u16, known: bool, packets: u32, units: u32, heard: u32,
    ) {
        let (path, about) = (PathId(path), PathId(about));
        let probe = Probe { path, seq, instance, about };
        prop_assert_eq!(Probe::decode(&probe.encode()), Some(probe));
        let received = known.then_some(Received { packets, units, heard });
        let reply = ProbeReply { path, seq, instance, about, received };
        prop_assert_eq!(ProbeReply::decode(&reply.encode()), Some(reply));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = Probe::decode(&bytes);
        let _ = ProbeReply::decode(&bytes);
    }
}
