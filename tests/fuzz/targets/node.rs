//! What another node's control machine says, inside sealed frames.

use flatlan_fuzz::{Fuzz, outcome, refusal};
use flatlan_node::peer_message::{Part, PartRequest, PeerMessage, Summary};
use flatlan_types::Endpoint;

#[test]
fn peer_message() {
    let at = |text: &str| Endpoint::new(text.parse().unwrap());
    let summary = Summary { key_epoch: 1, serial: 2, head: [3; 32], claims: 4, claims_hash: [5; 32] };
    let part = Part { head: [3; 32], claims_hash: [5; 32], total: 9000, offset: 900, bytes: vec![6; 40].into() };
    let new = PeerMessage::new;
    let seeds = [
        PeerMessage {
            candidates: Some(vec![at("192.0.2.1:4500"), at("[2001:db8::1]:9")]),
            answer: Some(true),
            ..new()
        },
        PeerMessage { summary: Some(summary), presence: Some(vec![7; 176].into()), ..new() },
        PeerMessage { request: Some(PartRequest { head: [3; 32], claims_hash: [5; 32], offset: 900 }), ..new() },
        PeerMessage { part: Some(part), ..new() },
        PeerMessage { stale: Some(vec![7; 176].into()), ..new() },
    ];
    Fuzz::new("peer-message").seeds(seeds.map(|message| message.encode())).run(|input| {
        match PeerMessage::decode(input) {
            Ok(message) => {
                assert_eq!(PeerMessage::decode(&message.encode()).unwrap(), message, "it is read as it was written");
                outcome(&(message.candidates.map(|all| all.len().min(9)), message.request.is_some(), message.answer))
            }
            Err(error) => refusal(&error),
        }
    });
}
