//! What is read from disk: a file may be damaged, or edited by hand.

use std::time::Instant;

use flatlan_fuzz::{Fuzz, outcome, refusal};
use flatlan_hub::{Allow, Hub, HubConfig, Limits, Output, StoredNetwork};
use flatlan_node::persist::{decode_peers, next_epoch};
use flatlan_roster::{Ratchet, Source};
use flatlan_types::UnixTime;

use crate::{
    hub,
    roster::{source_network, world},
};

#[test]
fn network_toml() {
    let own = world().0.to_string().into_bytes();
    Fuzz::new("network-toml").golden("roster/tests/golden", "network").seeds([own]).run(|input| {
        let text = String::from_utf8_lossy(input);
        match Source::parse(&text) {
            Ok(source) => {
                let again = Source::parse(&source.to_string()).unwrap();
                assert_eq!(again.records().digest(), source.records().digest(), "it is read as it was written");
                outcome(&source.records().len())
            }
            Err(error) => refusal(&error),
        }
    });
}

#[test]
fn ratchet() {
    let network = source_network();
    Fuzz::new("ratchet").golden("roster/tests/golden", "ratchet").run(|input| match Ratchet::decode(input, &network) {
        Ok(ratchet) => {
            assert!(Ratchet::decode(&ratchet.encode(), &network).is_ok());
            1
        }
        Err(error) => refusal(&error),
    });
}

#[test]
fn stored_network() {
    let (source, admin) = world();
    let network = source.network_id();
    let roster = source.sign(None, &admin, NOW).unwrap();
    let mut ratchet = Ratchet::new(network);
    ratchet.advance(&roster).unwrap();
    let seed = StoredNetwork::encode(&ratchet.encode(), &roster.encode());
    Fuzz::new("stored-network").seeds([seed]).run(|input| {
        let Some(stored) = StoredNetwork::decode(network, input) else { return 0 };
        assert_eq!(StoredNetwork::encode(&stored.ratchet, &stored.bundle), input, "it is read as it was written");
        let config = HubConfig {
            secret: hub(1),
            allow: Allow::Networks([network].into()),
            peers: Vec::new(),
            udp: Vec::new(),
            limits: Limits::default(),
            incarnation: 1,
            seed: [3; 32],
        };
        let mut hub = Hub::new(config, vec![stored], Instant::now(), NOW);
        let aside = |output: Output| matches!(output, Output::SetAside { .. });
        1 + u64::from(std::iter::from_fn(|| hub.poll_output()).any(aside))
    });
}

#[test]
fn peers() {
    Fuzz::new("peers").run(|input| match decode_peers(input) {
        Ok(peers) => outcome(&peers.len().min(9)),
        Err(error) => refusal(&error),
    });
}

#[test]
fn epoch() {
    let now = UnixTime(1_770_000_000);
    let own = next_epoch(None, now).1;
    Fuzz::new("epoch").seeds([own]).run(|input| {
        let (epoch, bytes) = next_epoch(Some(input), now);
        assert!(epoch.0 >= now.0, "never less than the clock says");
        // what was written is read, and the next start is later
        let (later, _) = next_epoch(Some(&bytes), now);
        assert!(later > epoch || epoch.0 == u64::MAX);
        u64::from(epoch.0 > now.0)
    });
}

const NOW: UnixTime = UnixTime(1_770_000_000);
