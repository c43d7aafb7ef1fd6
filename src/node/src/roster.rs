//! The roster in use, the one about to be, and the ratchet.
//!
//! 1. A bundle arrives from a hub or a peer; [`Keeper::offer`] verifies it against the ratchet and merges
//!    the claims of what is held.
//! 2. What is accepted goes to disk, roster first, then ratchet: the ratchet is what forbids going back,
//!    so it never names a roster that is not there.
//! 3. When the disk has both, [`Keeper::handle_persisted`] takes it into use. A disk that fails delays
//!    nothing: a revocation counts for more than remembering it, and the operator is told.
//!
//! What it does not do: fetch, or decide what a member may do.

use std::{collections::BTreeSet, sync::Arc};

use flatlan_relay::ClaimsSummary;
use flatlan_roster::{
    CountersignedClaim, ForkProof, HeadError, Kept, Ratchet, RatchetError, Step, VerifiedHead, VerifiedRoster,
    VerifyError,
};
use flatlan_types::NetworkId;

use crate::{
    output::{Outbox, PersistToken},
    peer_message::Summary,
    persist,
};

/// The rosters that this node holds.
pub(crate) struct Keeper {
    network: NetworkId,
    ratchet: Ratchet,
    current: Option<Held>,
    pending: Option<Pending>,
}

/// A verified roster and its bytes.
#[derive(Clone)]
pub(crate) struct Held {
    pub(crate) roster: Arc<VerifiedRoster>,
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) summary: Summary,
}

struct Pending {
    held: Held,
    waits: BTreeSet<PersistToken>,
}

/// A file that cannot be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {error}")]
pub(crate) struct Useless {
    pub(crate) file: &'static str,
    pub(crate) error: Box<dyn std::error::Error + Send + Sync>,
}

/// What became of a bundle or of claims.
#[derive(Debug)]
pub(crate) enum Offered {
    /// Newer than what was held: on its way to disk.
    Accepted,
    /// Proof of a fork, the first that was seen.
    Fork(Box<ForkProof>),
    /// Nothing in it that was not known.
    Nothing,
    /// It does not hold.
    Refused(VerifyError),
}

/// What a head means to this node.
#[derive(Debug)]
pub(crate) enum News {
    /// The same head with other claims.
    Claims,
    /// Proof of a fork, the first that was seen.
    Fork(Box<ForkProof>),
    /// To be fetched.
    Newer,
    /// Theirs is behind ours.
    Older,
    /// Not a head of this network, or one that may not follow.
    Refused,
    /// What we hold.
    Same,
}

/// What a write led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Persisted {
    /// The roster on its way is the one in use.
    Applied,
    /// More is to be written first, or it was not about the roster.
    Nothing,
}

impl Keeper {
    /// What the disk held, and which files are of no use. A ratchet alone still forbids going back; where it
    /// is lost, the roster takes its place: nothing older than that is accepted.
    pub(crate) fn load(
        network: NetworkId,
        roster: Option<Arc<Vec<u8>>>,
        ratchet: Option<&[u8]>,
    ) -> (Self, Vec<Useless>) {
        let mut wrong = Vec::new();
        let ratchet = match ratchet.map(|bytes| Ratchet::decode(bytes, &network)) {
            Some(Ok(ratchet)) => ratchet,
            Some(Err(error)) => {
                wrong.push(Useless { file: persist::RATCHET, error: error.into() });
                Ratchet::new(network)
            }
            None => Ratchet::new(network),
        };
        let mut keeper = Self { network, ratchet, current: None, pending: None };
        if let Some(bytes) = roster {
            match VerifiedRoster::verify_shared(bytes, &keeper.ratchet, None) {
                Ok(roster) => match keeper.ratchet.advance(&roster) {
                    Ok(Step::Newer | Step::Same) => keeper.current = Some(Held::new(roster)),
                    Err(error) => wrong.push(Useless { file: persist::ROSTER, error: VerifyError::from(error).into() }),
                },
                Err(error) => wrong.push(Useless { file: persist::ROSTER, error: error.into() }),
            }
        }
        (keeper, wrong)
    }

    /// Writes the ratchet that took the place of a lost one.
    pub(crate) fn renew_ratchet(&self, out: &mut Outbox) {
        if self.current.is_some() {
            out.note(persist::RATCHET, self.ratchet.encode());
        }
    }

    /// The roster in use.
    pub(crate) fn current(&self) -> Option<&Held> {
        self.current.as_ref()
    }

    /// The newest roster, in use or about to be.
    pub(crate) fn newest(&self) -> Option<&Held> {
        self.pending.as_ref().map(|pending| &pending.held).or(self.current.as_ref())
    }

    /// The proof of a fork, where one was seen.
    pub(crate) fn fork(&self) -> Option<&ForkProof> {
        self.ratchet.fork()
    }

    /// A bundle from anybody.
    pub(crate) fn offer(&mut self, bytes: Arc<Vec<u8>>, out: &mut Outbox) -> Offered {
        let newest = self.newest().map(|held| Arc::clone(&held.roster));
        let roster = match VerifiedRoster::verify_shared(bytes, &self.ratchet, newest.as_deref()) {
            Ok(roster) => roster,
            Err(VerifyError::Ratchet(RatchetError::Fork(proof))) => return self.keep(proof, out),
            Err(VerifyError::Ratchet(RatchetError::Rollback { .. })) => return Offered::Nothing,
            Err(error) => return Offered::Refused(error),
        };
        let claims = |of: &VerifiedRoster| of.claims().iter().cloned().collect::<Vec<_>>();
        match (self.ratchet.advance(&roster), newest) {
            (Ok(Step::Newer), Some(before)) => {
                let merged = roster.with_claims(claims(&before)).unwrap_or(roster);
                self.accept(merged, out)
            }
            (Ok(Step::Newer | Step::Same), None) => self.accept(roster, out),
            (Ok(Step::Same), Some(before)) => match before.with_claims(claims(&roster)) {
                Some(merged) => self.accept(merged, out),
                None => Offered::Nothing,
            },
            (Err(error), _) => Offered::Refused(error.into()),
        }
    }

    /// Claims from a hub.
    pub(crate) fn offer_claims<'a>(&mut self, claims: impl Iterator<Item = &'a [u8]>, out: &mut Outbox) -> Offered {
        let Some(newest) = self.newest() else { return Offered::Nothing };
        let decoded = claims.filter_map(|bytes| CountersignedClaim::decode(bytes, &self.network).ok());
        match newest.roster.with_claims(decoded.collect::<Vec<_>>()) {
            Some(roster) => self.accept(roster, out),
            None => Offered::Nothing,
        }
    }

    /// A head from anybody, with what is said of its claims.
    pub(crate) fn judge(&mut self, head: &[u8], claims: &ClaimsSummary, out: &mut Outbox) -> News {
        // most hubs tell of what is here: no signature is checked for that
        if let Some(held) = self.newest().filter(|held| held.roster.signed_head().encode() == head) {
            return if held.summary.claims_hash == claims.hash { News::Same } else { News::Claims };
        }
        let head = match VerifiedHead::decode(head, &self.network) {
            Ok(head) => head,
            Err(error) => return refused(&error),
        };
        match self.ratchet.compare(&head) {
            Ok(Step::Newer) => News::Newer,
            Ok(Step::Same) => match self.newest() {
                Some(held) if held.summary.claims_hash == claims.hash => News::Same,
                Some(_) => News::Claims,
                None => News::Newer,
            },
            Err(RatchetError::Fork(proof)) => match self.keep(proof, out) {
                Offered::Fork(proof) => News::Fork(proof),
                Offered::Accepted | Offered::Nothing | Offered::Refused(_) => News::Refused,
            },
            Err(RatchetError::Rollback { .. }) => News::Older,
            Err(error @ RatchetError::SerialJump { .. }) => {
                tracing::warn!(reason = %error, "a hub's roster is refused");
                News::Refused
            }
        }
    }

    /// What a peer says it holds. Nothing of it is proven.
    pub(crate) fn compare(&self, theirs: &Summary) -> std::cmp::Ordering {
        self.newest().map_or(std::cmp::Ordering::Greater, |held| theirs.order().cmp(&held.summary.order()))
    }

    /// A write ended.
    pub(crate) fn handle_persisted(&mut self, token: PersistToken) -> Persisted {
        let Some(pending) = &mut self.pending else { return Persisted::Nothing };
        if !pending.waits.remove(&token) || !pending.waits.is_empty() {
            return Persisted::Nothing;
        }
        self.current = self.pending.take().map(|pending| pending.held);
        Persisted::Applied
    }

    fn accept(&mut self, roster: VerifiedRoster, out: &mut Outbox) -> Offered {
        let held = Held::new(roster);
        let roster = out.persist(persist::ROSTER, Arc::clone(&held.bytes));
        let ratchet = out.persist(persist::RATCHET, self.ratchet.encode());
        self.pending = Some(Pending { held, waits: [roster, ratchet].into() });
        Offered::Accepted
    }

    fn keep(&mut self, proof: Box<ForkProof>, out: &mut Outbox) -> Offered {
        match self.ratchet.keep_proof(&proof) {
            Kept::First => {
                out.note(persist::RATCHET, self.ratchet.encode());
                out.note(&format!("fork-{}", proof.second().version().serial), proof.encode());
                Offered::Fork(proof)
            }
            Kept::Already => Offered::Nothing,
        }
    }
}

impl Held {
    fn new(roster: VerifiedRoster) -> Self {
        let (version, claims) = (roster.version(), roster.claims_summary());
        let summary = Summary {
            key_epoch: version.key_epoch.into(),
            serial: version.serial,
            head: *roster.signed_head().id().as_bytes(),
            claims: claims.count,
            claims_hash: claims.hash,
        };
        Self { bytes: roster.bundle(), summary, roster: Arc::new(roster) }
    }

    /// What hubs are told of its claims.
    pub(crate) fn claims(&self) -> ClaimsSummary {
        ClaimsSummary { count: self.summary.claims, hash: self.summary.claims_hash }
    }
}

fn refused(error: &HeadError) -> News {
    tracing::warn!(reason = %error, "a hub's head is refused");
    News::Refused
}
