//! The roster: everything the admin signed, verified, with the claims that stand beside it.
//!
//! What hubs store and nodes fetch is one bundle,
//! `[format, [head, [earlier heads]], [record], [countersigned claim]]`. The only way to use one is
//! [`VerifiedRoster::verify`], which in this order checks:
//!
//! 1. the encoding, which must be the only one;
//! 2. the keys against the network id, the certificates, the head's signature;
//! 3. the history and the ratchet: nothing older, no fork, no jump;
//! 4. number and digest of the records, before any of them is read;
//! 5. every record, their order, and every rule between them;
//! 6. every claim: signatures, an open invite, the right hub, in time, in order.
//!
//! Of a roster that differs in a few members from one that was verified before, the rest is shared with that,
//! and not read again (`records`). Then claims are folded into members. Nothing downstream checks again. Whoever takes a roster into
//! use first advances and stores its [`Ratchet`].

use std::{collections::BTreeSet, fmt, ops::Range, sync::Arc};

use flatlan_types::{
    AdminSecret, HubKey, HubSecret, InviteKey, MemberId, Name, NetworkId, Prefix, SessionKey, UnixTime,
};
use minicbor::{Decoder, Encoder, encode};

use crate::{
    authority::Authority,
    calendar::{Span, Utc},
    claim::{Added, Claim, ClaimError, ClaimSet, ClaimsSummary, CountersignedClaim},
    fold::{self, ClaimRefusal, Folded, Member, RefusedClaim},
    head::{Freshness, Head, HeadError, RosterVersion, SignedHead, VerifiedHead},
    history::{HistoryError, Lineage, UncheckedLineage},
    owner::{MemberIndex, OwnerTable},
    ratchet::{self, Ratchet, RatchetError, Step},
    record::{HubRecord, Invite, MemberRecord, NetworkRecord, Record},
    records::{Encoded, MAX_RECORDS, Records, RecordsError, at},
    wire::{self, DecodeError},
};

/// A roster that carried a valid admin signature, and the claims that count beside it.
#[derive(Clone)]
pub struct VerifiedRoster {
    lineage: Lineage,
    records: Arc<Records>,
    claims: ClaimSet,
    folded: Folded,
    /// The bundle that it was read from, where it is still the same.
    bundle: Option<Arc<Vec<u8>>>,
}

impl VerifiedRoster {
    /// Verifies a bundle for the ratchet's network. `known` is a roster verified before, if there is one:
    /// what it holds is not read and checked again.
    ///
    /// # Errors
    /// The first check that fails, in the order given above.
    pub fn verify(bytes: &[u8], ratchet: &Ratchet, known: Option<&Self>) -> Result<Self, VerifyError> {
        Self::verify_shared(Arc::new(bytes.to_vec()), ratchet, known)
    }

    /// The same for a bundle that need not be copied: the roster keeps it.
    ///
    /// # Errors
    /// As [`VerifiedRoster::verify`].
    pub fn verify_shared(bytes: Arc<Vec<u8>>, ratchet: &Ratchet, known: Option<&Self>) -> Result<Self, VerifyError> {
        let bundle = Bundle::open(&bytes)?;
        let network = ratchet.network();
        let lineage = Lineage::new(bundle.lineage.head.verify(network)?, bundle.lineage.history)?;
        ratchet.check(&lineage)?;
        let head = lineage.head().head();
        if head.records as usize != bundle.records.len() {
            return Err(VerifyError::RecordsMismatch);
        }
        let known = known.filter(|known| known.network_id() == network);
        let encoded = Encoded::new(Arc::clone(&bytes), bundle.records);
        let followed = known.and_then(|known| known.records.follow(&encoded, &head.digest, network));
        let records = match followed {
            Some(records) => records,
            None => match Records::decode(encoded, &head.digest, network) {
                Ok(records) => records,
                Err(RecordsError::Mismatch) => return Err(VerifyError::RecordsMismatch),
                Err(error) => return Err(error.into()),
            },
        };
        let claims = verify_claims(&bundle.claims, &records, network, known)?;
        Ok(Self { bundle: Some(bytes), ..Self::assemble(lineage, Arc::new(records), claims) })
    }

    /// What in a stored bundle only a later version understands, if anything. Nothing is verified.
    pub fn later(bytes: &[u8]) -> Option<DecodeError> {
        let read = || {
            let bundle = Bundle::open(bytes)?;
            bundle.records.into_iter().filter_map(|place| at(bytes, &place)).try_for_each(Record::check_critical)
        };
        read().err().and_then(|error| error.later(FORMAT))
    }

    /// Signs a roster: no IO, no clock. It follows `base`, which is the roster published last, if any;
    /// claims of the base that still fit go with it.
    ///
    /// # Errors
    /// The key is not the current admin key, or the base is not one that this roster can follow.
    pub fn sign(draft: Draft<'_>, secret: &AdminSecret) -> Result<Self, SignError> {
        let Draft { authority, records, base, now, life } = draft;
        if secret.public() != *authority.admin() {
            return Err(SignError::NotAdminKey);
        }
        let key_epoch = authority.key_epoch();
        let last = base.map(|base| base.version());
        if base.is_some_and(|base| base.network_id() != &authority.network()) {
            return Err(SignError::OtherNetwork);
        }
        if let Some(base) = base.filter(|base| base.version().key_epoch > key_epoch) {
            return Err(SignError::KeyReplaced { epoch: base.version().key_epoch });
        }
        let serial = match last {
            Some(last) if last.key_epoch == key_epoch => {
                last.serial.checked_add(1).ok_or(SignError::SerialExhausted)?
            }
            Some(_) | None => 1,
        };
        if records.len() > MAX_RECORDS {
            return Err(SignError::TooManyRecords { got: records.len() });
        }
        let issued = base.map_or(now, |base| now.max(base.head().issued));
        let head = Head {
            network: authority.network(),
            key_epoch,
            serial,
            records: u32::try_from(records.len()).map_err(|_| SignError::TooManyRecords { got: records.len() })?,
            digest: *records.digest(),
            previous: base.map(|base| base.lineage.head().id()),
            issued,
            expires: issued.after(life.seconds),
        };
        let head = SignedHead::sign(authority.clone(), head, secret);
        let lineage = Lineage::on(base.map(|base| &base.lineage), head);
        let signed = Self::assemble(lineage, Arc::new(records.clone()), ClaimSet::default());
        let claims = base.into_iter().flat_map(|base| base.claims.iter().cloned());
        Ok(signed.with_claims(claims).unwrap_or(signed))
    }

    /// The same roster with more claims, or `None` where none of them changes anything. Claims that
    /// do not fit an open invite are ignored: they may belong to an older roster.
    pub fn with_claims(&self, claims: impl IntoIterator<Item = CountersignedClaim>) -> Option<Self> {
        let mut merged = self.claims.clone();
        let mut changed = Added::Nothing;
        for claim in claims {
            let fits = self.invite(claim.invite()).is_some_and(|(_, invite)| fits(&claim, &invite));
            if fits && merged.add(claim) == Added::Changed {
                changed = Added::Changed;
            }
        }
        match changed {
            Added::Changed => Some(Self::assemble(self.lineage.clone(), Arc::clone(&self.records), merged)),
            Added::Nothing => None,
        }
    }

    /// Countersigns a claim, as the hub that its invite names. The hub stores the result durably (it
    /// is part of [`VerifiedRoster::with_claims`]) before it answers with it. The same node asking again
    /// gets the same answer.
    ///
    /// # Errors
    /// The invite is unknown, for another hub, expired, or redeemed by another node; or the keys are in use.
    pub fn countersign(
        &self,
        claim: &Claim,
        hub: &HubSecret,
        now: UnixTime,
    ) -> Result<CountersignedClaim, CountersignError> {
        // A clock set back does not make an expired token good: it is at least as late as the roster.
        let now = now.max(self.head().issued);
        let (member, invite) = self.invite(claim.invite()).ok_or(CountersignError::UnknownInvite)?;
        if invite.redeemer != hub.public() {
            let name = self.hub(&invite.redeemer).map(|hub| hub.name.clone());
            return Err(CountersignError::OtherHub { hub: name });
        }
        match self.claims.of(&invite.key) {
            [] => {}
            held => {
                let same = held.iter().find(|held| held.keys() == claim.keys()).filter(|_| held.len() == 1);
                return same.cloned().ok_or_else(|| CountersignError::Redeemed { member: member.name.clone() });
            }
        }
        if now > invite.expires {
            return Err(CountersignError::Expired { member: member.name.clone(), since: Utc(invite.expires) });
        }
        match self.folded.refusal(self.network_id(), &self.records, member, claim.keys()) {
            None => Ok(claim.countersign(hub, now)),
            Some(ClaimRefusal::KeyTaken { by } | ClaimRefusal::AddressTaken { by }) => {
                Err(CountersignError::KeyTaken { by })
            }
            Some(ClaimRefusal::DoubleClaim) => Err(CountersignError::Redeemed { member: member.name.clone() }),
        }
    }

    /// Whether whoever holds `held` may go to this roster: how the admin's side judges, before it uploads,
    /// whether a hub holds something that this roster does not follow.
    ///
    /// # Errors
    /// What the hub would refuse it with.
    pub fn may_follow(&self, held: &VerifiedHead) -> Result<Step, RatchetError> {
        ratchet::follow(&self.lineage, &Lineage::alone(held.clone()))
    }

    /// The bundle: what hubs store and hand out, and nodes keep on disk.
    pub fn encode(&self) -> Vec<u8> {
        if let Some(bundle) = &self.bundle {
            return (**bundle).clone();
        }
        let claims: Vec<Vec<u8>> = self.claims.iter().map(CountersignedClaim::encode).collect();
        let mut e = Encoder::new(Vec::new());
        let written: Result<(), encode::Error<std::convert::Infallible>> = (|| {
            e.array(4)?.u64(FORMAT)?.encode(&self.lineage)?;
            wire::encode_blobs(self.records.encoded().iter(), &mut e)?;
            wire::encode_blobs(claims.iter().map(Vec::as_slice), &mut e)
        })();
        written.expect("writing to memory does not fail");
        e.into_writer()
    }

    /// The same, in the memory of this roster where it is there already.
    pub fn bundle(&self) -> Arc<Vec<u8>> {
        self.bundle.clone().unwrap_or_else(|| Arc::new(self.encode()))
    }

    /// The network.
    pub fn network_id(&self) -> &NetworkId {
        &self.head().network
    }

    /// What the head says.
    pub fn head(&self) -> &Head {
        self.lineage.head().head()
    }

    /// The head as it travels alone.
    pub fn signed_head(&self) -> &VerifiedHead {
        self.lineage.head()
    }

    /// Its place in the order of rosters.
    pub fn version(&self) -> RosterVersion {
        self.head().version()
    }

    /// The keys that may sign.
    pub fn authority(&self) -> &Authority {
        self.lineage.head().authority()
    }

    /// Whether it is time to publish again.
    pub fn freshness(&self, now: UnixTime) -> Freshness {
        Freshness::of(self.head(), now)
    }

    /// The records as signed.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// The network's own record.
    pub fn network(&self) -> &NetworkRecord {
        self.records.network()
    }

    /// The hubs, by name.
    pub fn hubs(&self) -> &[HubRecord] {
        self.records.hubs()
    }

    /// The hub of this key.
    pub fn hub(&self, key: &HubKey) -> Option<&HubRecord> {
        self.hubs().iter().find(|hub| hub.key == *key)
    }

    /// The members that have keys, by name: records with accepted claims folded in.
    pub fn members(&self) -> impl Iterator<Item = &Member> + Clone {
        self.members_with_places().map(|(_, member)| member)
    }

    /// The same, each with its place.
    pub fn members_with_places(&self) -> impl Iterator<Item = (MemberIndex, &Member)> + Clone {
        self.records.order().iter().filter_map(|at| Some((*at, self.member(*at)?)))
    }

    /// The member at this place.
    pub fn member(&self, index: MemberIndex) -> Option<&Member> {
        self.folded.member(&self.records, index)
    }

    /// The member whose id this is.
    pub fn by_id(&self, id: &MemberId) -> Option<MemberIndex> {
        self.folded.by_id(&self.records, id)
    }

    /// The member whose WireGuard key this is.
    pub fn by_session(&self, session: &SessionKey) -> Option<MemberIndex> {
        self.folded.by_session(&self.records, session)
    }

    /// The member of this name, if it has keys.
    pub fn by_name(&self, name: &Name) -> Option<MemberIndex> {
        self.records.place(name).filter(|at| self.member(*at).is_some())
    }

    /// The invite of this key, while it is open in the head (claimed or not), and its record.
    pub fn invite(&self, key: &InviteKey) -> Option<(&MemberRecord, Invite)> {
        let record = self.records.record(self.records.by_invite(key)?)?;
        Some((record, record.invite?))
    }

    /// The claims for open invites, also those that are refused.
    pub fn claims(&self) -> &ClaimSet {
        &self.claims
    }

    /// What hubs publish about the claims, and peers compare.
    pub fn claims_summary(&self) -> ClaimsSummary {
        self.claims.summary()
    }

    /// The claims that do not count: each is worth an alarm.
    pub fn refused_claims(&self) -> &[RefusedClaim] {
        &self.folded.refused
    }

    /// Who owns which address, as `me` sees it (a hub or the admin: `None`). A stock peer's addresses
    /// lead to the member that terminates its tunnel, except at that member itself.
    pub fn owner_table(&self, me: Option<MemberIndex>) -> OwnerTable {
        self.owners(me, Some)
    }

    /// The same, where `name` is what the table calls a member; who has no name owns nothing.
    pub fn owners<T: Copy + Ord>(
        &self,
        me: Option<MemberIndex>,
        name: impl Fn(MemberIndex) -> Option<T>,
    ) -> OwnerTable<T> {
        let all = fold::owned_by_all(&self.records, &self.folded, me).into_iter();
        OwnerTable::new(all.filter_map(|(prefix, owner)| Some((prefix, name(owner)?))))
    }

    /// What members carry, and their addresses outside the range and [`site_prefix`](crate::site_prefix): sorted.
    /// Members without keys are among them.
    pub fn carried(&self) -> impl Iterator<Item = (Prefix, MemberIndex)> {
        self.records.carried()
    }

    /// The places of whose record or keys are others than in `old`, of who is new and of who is gone: at such a place may
    /// stand two different members. `None` where neither roster was made by changing the other, and they are to be compared
    /// by name.
    pub fn changed_since(&self, old: &Self) -> Option<BTreeSet<MemberIndex>> {
        let mut changed = self.records.changed_since(&old.records)?;
        changed.extend(self.folded.changed_since(&old.folded));
        Some(changed)
    }

    /// Brings a table to this roster that holds what `old` says: `changed` is what [`Self::changed_since`] found,
    /// `me` is at the same place in both, and `name` is what the table calls a member; who has no name owns nothing.
    pub fn update_owners<T: Copy + Ord>(
        &self,
        table: &mut OwnerTable<T>,
        old: &Self,
        changed: &BTreeSet<MemberIndex>,
        me: Option<MemberIndex>,
        name: impl Fn(MemberIndex) -> Option<T>,
    ) {
        let named = |(prefix, owner)| Some((prefix, name(owner)?));
        let affected = &fold::kin(&old.records, changed) | &fold::kin(&self.records, changed);
        let owned = |of: &Self| fold::owned(&of.records, &of.folded, affected.iter().copied(), me);
        let (before, after) = (owned(old), owned(self));
        for (prefix, _) in before.iter().filter(|(prefix, _)| prefix.is_host()) {
            table.remove_host(prefix.ip());
        }
        let wide = before.iter().chain(&after).any(|(prefix, _)| !prefix.is_host());
        table.set_hosts(after.into_iter().filter_map(named));
        if wide {
            let wide = fold::owned_wide(&self.records, &self.folded, me);
            table.set_wide(wide.into_iter().filter_map(named));
        }
    }

    pub(crate) fn lineage(&self) -> &Lineage {
        &self.lineage
    }

    fn assemble(lineage: Lineage, records: Arc<Records>, claims: ClaimSet) -> Self {
        let folded = Folded::new(&lineage.head().head().network, &records, &claims);
        Self { lineage, records, claims, folded, bundle: None }
    }
}

impl PartialEq for VerifiedRoster {
    fn eq(&self, other: &Self) -> bool {
        // what is folded follows from these
        self.lineage == other.lineage && self.records == other.records && self.claims == other.claims
    }
}

impl Eq for VerifiedRoster {}

impl fmt::Debug for VerifiedRoster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifiedRoster")
            .field("head", self.lineage.head())
            .field("members", &self.members().count())
            .field("claims", &self.claims.len())
            .finish()
    }
}

/// What is to be signed.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    /// The network's keys and certificates.
    pub authority: &'a Authority,
    /// What network.toml says.
    pub records: &'a Records,
    /// The roster published last: the one that this one follows.
    pub base: Option<&'a VerifiedRoster>,
    /// When it is signed.
    pub now: UnixTime,
    /// After how long it should have been renewed.
    pub life: Span,
}

fn fits(claim: &CountersignedClaim, invite: &Invite) -> bool {
    *claim.hub() == invite.redeemer && claim.time() <= invite.expires
}

fn verify_claims(
    bytes: &[&[u8]],
    records: &Records,
    network: &NetworkId,
    known: Option<&VerifiedRoster>,
) -> Result<ClaimSet, VerifyError> {
    let known = known.map(|known| &known.claims);
    if bytes.len() > records.invites().saturating_mul(2) {
        return Err(VerifyError::StrayClaim);
    }
    let mut set = ClaimSet::default();
    for bytes in bytes {
        let claim = match known.and_then(|known| known.known(bytes)) {
            Some(claim) => claim.clone(),
            None => CountersignedClaim::decode(bytes, network)?,
        };
        let record = records.by_invite(claim.invite()).and_then(|at| records.record(at));
        let invite = record.and_then(|record| record.invite);
        if !invite.is_some_and(|invite| fits(&claim, &invite)) || set.add(claim) == Added::Nothing {
            return Err(VerifyError::StrayClaim);
        }
    }
    let in_order = set.iter().map(CountersignedClaim::encode).eq(bytes.iter().copied());
    if in_order { Ok(set) } else { Err(VerifyError::StrayClaim) }
}

/// A bundle as it came, in the one encoding that is allowed; nothing else of it is checked.
struct Bundle<'b> {
    lineage: UncheckedLineage,
    records: Vec<Range<u32>>,
    claims: Vec<&'b [u8]>,
}

impl<'b> Bundle<'b> {
    fn open(bytes: &'b [u8]) -> Result<Self, DecodeError> {
        let mut d = Decoder::new(bytes);
        let length = d.array()?;
        match d.u64()? {
            FORMAT => {}
            got => return Err(DecodeError::Version { got }),
        }
        if bytes.len() > MAX_BUNDLE {
            return Err(DecodeError::TooLong { got: bytes.len(), limit: MAX_BUNDLE });
        }
        if length != Some(4) || d.position() != 2 {
            return Err(DecodeError::NotCanonical);
        }
        let start = d.position();
        let lineage: UncheckedLineage = d.decode()?;
        if bytes.get(start..d.position()) != Some(&*wire::to_bytes(&lineage)) {
            return Err(DecodeError::NotCanonical);
        }
        let records = wire::blobs(&mut d, MAX_RECORDS)?;
        let claims = wire::blobs(&mut d, MAX_RECORDS)?;
        if d.position() != bytes.len() {
            return Err(DecodeError::Trailing);
        }
        let claims = claims.iter().filter_map(|place| at(bytes, place)).collect();
        Ok(Self { lineage, records, claims })
    }
}

/// Why a bundle is refused.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A claim does not hold.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// Cannot be read.
    #[error("the roster cannot be read")]
    Decode(#[from] DecodeError),
    /// The head does not hold.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The history does not hold.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// It may not follow what was seen.
    #[error(transparent)]
    Ratchet(#[from] RatchetError),
    /// The records do not hold.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// Not the records that were signed.
    #[error("the records are not those that the admin signed")]
    RecordsMismatch,
    /// A claim that fits no open invite, is out of order, or is there twice.
    #[error("a claim fits no open invite of the roster, or is out of place")]
    StrayClaim,
}

/// Why a roster cannot be signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The admin key was replaced since.
    #[error(
        "the published roster is signed by a newer admin key (key epoch {epoch}): use the admin.key made by `flatlan network recover`"
    )]
    KeyReplaced {
        /// The published key epoch.
        epoch: u32,
    },
    /// Not the admin key.
    #[error(
        "admin.key is not the admin key of this network: use the one made with it, or by the last `flatlan network recover`"
    )]
    NotAdminKey,
    /// The base belongs elsewhere.
    #[error("the published roster belongs to another network than network.toml")]
    OtherNetwork,
    /// No greater serial exists.
    #[error("the roster's serial is at its end: start anew with `flatlan network recover --recovery-key FILE`")]
    SerialExhausted,
    /// Too many.
    #[error("{got} records are more than the {MAX_RECORDS} that a roster may hold")]
    TooManyRecords {
        /// How many.
        got: usize,
    },
}

/// Why a hub does not countersign a claim. The text goes to the node that asked, which has proved that it
/// holds the token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CountersignError {
    /// Too late.
    #[error("the token expired at {since}: ask the admin for a new one: flatlan invite {member} --replace")]
    Expired {
        /// Whose.
        member: Name,
        /// When.
        since: Utc,
    },
    /// A key or its address is in use.
    #[error("this node's key is already that of member {by}: join with a fresh --state directory")]
    KeyTaken {
        /// By whom.
        by: Name,
    },
    /// Another hub redeems it.
    #[error("the token is redeemed by {}, not by this one", hub.as_ref().map_or_else(|| "another hub".to_owned(), |hub| format!("hub {hub}")))]
    OtherHub {
        /// That hub.
        hub: Option<Name>,
    },
    /// Someone else was first.
    #[error(
        "the token was already redeemed by another machine: if that was not you, tell the admin; a new one: flatlan invite {member} --replace"
    )]
    Redeemed {
        /// Whose.
        member: Name,
    },
    /// Not open in the current head.
    #[error("the token is not known: it was cancelled, replaced, or never published: ask the admin for a new one")]
    UnknownInvite,
}

/// The version of a bundle's encoding: the first number in it.
pub const FORMAT: u64 = 1;
/// The longest bundle, in bytes.
pub const MAX_BUNDLE: usize = 16 * 1024 * 1024;
