//! The newest link state of every hub.

use std::collections::BTreeMap;

use flatlan_relay::{Lsa, LsaEntry, LsaVersion, NetworkTag, SignedLsa};
use flatlan_types::HubKey;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Lsdb {
    by_origin: BTreeMap<HubKey, SignedLsa>,
    /// Rises with every change: names what was computed from this state.
    generation: u64,
}

/// What a link state that came in is worth.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Signature wrong, or not readable.
    Bad,
    /// Newer than what was held: hand it on. The origin started anew since the last one.
    Restarted,
    /// Newer than what was held: hand it on.
    Newer,
    /// Held already.
    Same,
    /// Older than what is held.
    Older,
}

impl Lsdb {
    /// Takes a link state whose origin the caller wants to hear of.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> News {
        let Ok(lsa) = SignedLsa::peek(bytes) else { return News::Bad };
        let held = self.version(&lsa.origin);
        match held {
            Some(held) if held == lsa.version => return News::Same,
            Some(held) if held > lsa.version => return News::Older,
            Some(_) | None => {}
        }
        let Ok(signed) = SignedLsa::verify(bytes) else { return News::Bad };
        let restarted = held.is_some_and(|held| held.incarnation < lsa.version.incarnation);
        self.insert(signed);
        if restarted { News::Restarted } else { News::Newer }
    }

    /// Replaces a hub's link state.
    pub(crate) fn insert(&mut self, signed: SignedLsa) {
        self.generation += 1;
        self.by_origin.insert(signed.lsa().origin, signed);
    }

    /// Forgets hubs that nobody needs to know of.
    pub(crate) fn retain(&mut self, mut wanted: impl FnMut(&HubKey) -> bool) {
        let before = self.by_origin.len();
        self.by_origin.retain(|origin, _| wanted(origin));
        if self.by_origin.len() != before {
            self.generation += 1;
        }
    }

    pub(crate) fn get(&self, origin: &HubKey) -> Option<&SignedLsa> {
        self.by_origin.get(origin)
    }

    pub(crate) fn version(&self, origin: &HubKey) -> Option<LsaVersion> {
        Some(self.get(origin)?.lsa().version)
    }

    /// Whether two hubs reach each other, as both state.
    pub(crate) fn linked(&self, a: &HubKey, b: &HubKey) -> bool {
        let states = |from, to| self.get(from).is_some_and(|lsa| lsa.lsa().link(to).is_some());
        states(a, b) && states(b, a)
    }

    /// How many links there are that both ends state.
    pub(crate) fn links(&self) -> usize {
        let of = |lsa: &Lsa| {
            lsa.links.iter().filter(|link| link.to > lsa.origin && self.linked(&lsa.origin, &link.to)).count()
        };
        self.states().map(of).sum()
    }

    /// Whether a hub states that it serves a network.
    pub(crate) fn serves(&self, hub: &HubKey, network: NetworkTag) -> bool {
        self.get(hub).is_some_and(|lsa| lsa.lsa().serves.binary_search(&network).is_ok())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &SignedLsa> {
        self.by_origin.values()
    }

    pub(crate) fn states(&self) -> impl Iterator<Item = &Lsa> {
        self.iter().map(SignedLsa::lsa)
    }

    pub(crate) fn digest(&self) -> impl Iterator<Item = LsaEntry> {
        self.states().map(|lsa| LsaEntry { origin: lsa.origin, version: lsa.version })
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }
}

#[cfg(test)]
mod tests {
    use flatlan_types::HubSecret;

    use super::*;

    fn lsa(hub: u8, incarnation: u64, sequence: u64) -> SignedLsa {
        let secret = HubSecret::from_bytes(&[hub; 32]);
        let version = LsaVersion { incarnation, sequence };
        SignedLsa::sign(&secret, Lsa { origin: secret.public(), version, links: vec![], serves: vec![] })
    }

    #[test]
    fn the_newest_statement_of_each_hub_is_kept() {
        let mut lsdb = Lsdb::default();
        assert_eq!(lsdb.add(lsa(1, 5, 2).bytes()), News::Newer);
        assert_eq!(lsdb.add(lsa(1, 5, 2).bytes()), News::Same);
        assert_eq!(lsdb.add(lsa(1, 5, 1).bytes()), News::Older);
        assert_eq!(lsdb.add(lsa(1, 4, 9).bytes()), News::Older);
        assert_eq!(lsdb.add(lsa(1, 5, 3).bytes()), News::Newer);
        assert_eq!(lsdb.add(lsa(1, 6, 1).bytes()), News::Restarted);
        assert_eq!(lsdb.add(lsa(2, 1, 1).bytes()), News::Newer);
        assert_eq!(lsdb.iter().count(), 2);
    }

    #[test]
    fn a_forged_statement_changes_nothing() {
        let mut lsdb = Lsdb::default();
        lsdb.add(lsa(1, 5, 2).bytes());
        let mut forged = lsa(1, 5, 3).bytes().to_vec();
        let last = forged.len() - 1;
        forged[last] ^= 1;
        assert_eq!(lsdb.add(&forged), News::Bad);
        assert_eq!(lsdb.add(b"junk"), News::Bad);
        assert_eq!(lsdb.generation(), 1);
    }
}
