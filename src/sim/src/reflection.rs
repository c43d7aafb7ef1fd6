//! What a hub may send to whom, decided by what crosses its wire and by nothing that its own machines say.
//!
//! ```text
//!   a BIND comes from an address ──▶ BOUND with a challenge goes there ──▶ a BIND comes from there with that nonce
//!      may get as much as came          (whoever receives there sees it)         answered: may get frames
//! ```
//!
//! The keys are those that the hub gave on the members' streams. Neighbouring hubs are no matter of this: their addresses
//! are named by rosters and hubs, and a hub that dialled one asks it first, by one small datagram at a time.

use std::collections::{BTreeMap, BTreeSet};

use flatlan_relay::{
    BindKey, BindSecret,
    bind::{Bind, Bound, Verdict},
    frame,
};
use flatlan_types::Endpoint;

/// All that a hub's socket received and sent since the hub began.
#[derive(Default)]
pub(crate) struct Reflection {
    keys: BTreeMap<u32, BindSecret>,
    accounts: BTreeMap<Endpoint, Account>,
}

/// What came from an address and what went there.
#[derive(Default)]
struct Account {
    came: usize,
    went: usize,
    /// Challenges that went there, by the id of the binding.
    asked: BTreeSet<(u32, u64)>,
    /// Ids of bindings that answered one of theirs.
    answered: BTreeSet<u32>,
}

impl Reflection {
    /// The hub gave somebody a key to bind with.
    pub(crate) fn note_key(&mut self, BindKey { id, key }: BindKey) {
        self.keys.insert(id, key);
    }

    /// A datagram came.
    pub(crate) fn handle_inbound(&mut self, from: Endpoint, datagram: &[u8]) {
        let account = self.accounts.entry(from).or_default();
        account.came += datagram.len();
        let key = Bind::peek_id(datagram).and_then(|id| self.keys.get(&id));
        if let Some(bind) = key.and_then(|key| Bind::open(datagram, key))
            && account.asked.remove(&(bind.id, bind.nonce))
        {
            account.answered.insert(bind.id);
            account.asked.retain(|(id, _)| *id != bind.id);
        }
    }

    /// A datagram leaves for an address that is no hub's; what is wrong with that, if anything is.
    pub(crate) fn handle_outbound(&mut self, to: Endpoint, datagram: &[u8]) -> Option<String> {
        let account = self.accounts.entry(to).or_default();
        account.went += datagram.len();
        let none = account.answered.is_empty();
        if none && datagram.first() == Some(&frame::KIND) {
            return Some(format!("a frame to {to}, which never answered"));
        }
        if none && account.went > account.came {
            return Some(format!("{} B to {to}, which never answered, for {} B", account.went, account.came));
        }
        let bound = Bound::peek_id(datagram).and_then(|id| Bound::open(datagram, self.keys.get(&id)?))?;
        match bound.verdict {
            Verdict::Challenge(nonce) => {
                account.asked.insert((bound.id, nonce));
                None
            }
            Verdict::Bound if account.answered.contains(&bound.id) => None,
            Verdict::Bound => Some(format!("binding {} bound to {to}, from where it never answered", bound.id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_answers_its_challenge_gets_frames_and_is_bound() {
        let frame_first = hub().handle_outbound(at(1), &FRAME);
        assert_eq!(frame_first, Some("a frame to 20.1.0.1:1000, which never answered".to_owned()));
        let mut hub = hub();
        hub.handle_inbound(at(1), &bind(0));
        assert_eq!(hub.handle_outbound(at(1), &bound(Verdict::Challenge(9))), None);
        hub.handle_inbound(at(1), &bind(9));
        assert_eq!(hub.handle_outbound(at(1), &bound(Verdict::Bound)), None);
        assert_eq!(hub.handle_outbound(at(1), &FRAME.repeat(20)), None);
    }

    #[test]
    fn an_answer_is_the_nonce_that_went_to_that_address_under_the_right_key() {
        let forged = Bind { id: 7, counter: 1, time: 2, nonce: 9 }.encode(&BindSecret::from_bytes([2; 32]));
        for (from, answer) in [(2, bind(9)), (1, bind(8)), (1, forged.to_vec())] {
            let mut hub = hub();
            hub.handle_inbound(at(1), &bind(0));
            hub.handle_inbound(at(2), &bind(0));
            assert_eq!(hub.handle_outbound(at(1), &bound(Verdict::Challenge(9))), None);
            hub.handle_inbound(at(from), &answer);
            assert!(hub.handle_outbound(at(from), &FRAME).is_some());
            assert!(hub.handle_outbound(at(from), &bound(Verdict::Bound)).is_some());
        }
    }

    #[test]
    fn an_address_that_never_answered_gets_no_more_than_came_from_there() {
        let mut hub = hub();
        hub.handle_inbound(at(1), &bind(0));
        assert_eq!(hub.handle_outbound(at(1), &bound(Verdict::Challenge(9))), None);
        assert!(hub.handle_outbound(at(1), &bound(Verdict::Challenge(9))).is_some());
    }

    fn hub() -> Reflection {
        let mut hub = Reflection::default();
        hub.note_key(BindKey { id: 7, key: key() });
        hub
    }

    fn key() -> BindSecret {
        BindSecret::from_bytes([1; 32])
    }

    fn at(n: u8) -> Endpoint {
        Endpoint::new(([20, 1, 0, n], 1000).into())
    }

    fn bind(nonce: u64) -> Vec<u8> {
        Bind { id: 7, counter: 1, time: 2, nonce }.encode(&key()).to_vec()
    }

    fn bound(verdict: Verdict) -> Vec<u8> {
        Bound { id: 7, counter: 1, time: 2, reflexive: at(1), verdict }.encode(&key()).to_vec()
    }

    const FRAME: [u8; 8] = [frame::KIND, 0, 0, 0, 0, 0, 0, 0];
}
