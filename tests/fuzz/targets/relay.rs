//! The wire between node and hub, and hub and hub.

use flatlan_fuzz::{Fuzz, outcome, refusal};
use flatlan_relay::{
    BindSecret, Control, Lsa, LsaLink, LsaVersion, NetworkTag, Presence, PresenceOrder, SignedLsa,
    bind::{Bind, Bound},
    frame::{self, Header},
};
use flatlan_types::BootEpoch;

use crate::{hub, network, node};

#[test]
fn control() {
    Fuzz::new("control").golden("relay/tests/golden", "").run(|input| match Control::decode(input) {
        Ok(Some(message)) => {
            let bytes = message.encode();
            assert_eq!(Control::decode(&bytes).unwrap(), Some(message), "it is read as it was written");
            outcome(&bytes.iter().take(3).collect::<Vec<_>>())
        }
        Ok(None) => 1,
        Err(error) => refusal(&error),
    });
}

#[test]
fn labelled_frames() {
    Fuzz::new("labelled-frames").golden("relay/tests/golden", "frame").run(|input| {
        if let Some(header) = Header::parse(input) {
            let mut copy = input.to_vec();
            header.write(&mut copy);
            assert_eq!(copy, input, "it is written as it was read");
            assert_eq!(frame::inner(input), input.get(8..));
        }
        let (mut again, mut count) = (Vec::new(), 0_u64);
        for one in frame::unpack(input) {
            if frame::pack(&mut again, one).is_err() {
                break;
            }
            count += 1;
        }
        assert!(input.starts_with(&again));
        count
    });
}

#[test]
fn bind() {
    let key = BindSecret::from_bytes([9; 32]);
    let own = Bind { id: 1, counter: 2, time: 3, nonce: 4 }.encode(&key).to_vec();
    Fuzz::new("bind").golden("relay/tests/golden", "bo").golden("relay/tests/golden", "bind").seeds([own]).run(
        |input| {
            let _ = (Bind::peek_id(input), Bound::peek_id(input));
            if let Some(bind) = Bind::open(input, &key) {
                assert_eq!(bind.encode(&key), input);
                return 1;
            }
            if let Some(bound) = Bound::open(input, &key) {
                assert_eq!(bound.encode(&key), input);
                return 2;
            }
            0
        },
    );
}

#[test]
fn presence() {
    let order = PresenceOrder { epoch: BootEpoch(1_700_000_000), counter: 3 };
    let own = Presence::sign(&node(7), network(), hub(1).public(), order).encode();
    Fuzz::new("presence").golden("relay/tests/golden", "presence").seeds([own]).run(|input| {
        let peeked = Presence::peek(input);
        match Presence::verify(input) {
            Ok(presence) => {
                assert_eq!(presence.encode(), input);
                let told = (presence.network(), presence.member(), presence.hub(), presence.order());
                assert_eq!(peeked, Some(told));
                1
            }
            Err(error) => refusal(&error),
        }
    });
}

#[test]
fn link_state() {
    let lsa = Lsa {
        origin: hub(1).public(),
        version: LsaVersion { incarnation: 1, sequence: 2 },
        links: vec![LsaLink { to: hub(2).public(), rtt_us: 900 }],
        serves: vec![NetworkTag::of(&network())],
    };
    let own = SignedLsa::sign(&hub(1), lsa).bytes().to_vec();
    Fuzz::new("link-state").golden("relay/tests/golden", "lsa").seeds([own]).run(|input| {
        let peeked = SignedLsa::peek(input);
        match SignedLsa::verify(input) {
            Ok(signed) => {
                assert_eq!(&peeked.unwrap(), signed.lsa());
                assert_eq!(signed.bytes(), input);
                1
            }
            Err(error) => refusal(&error),
        }
    });
}
