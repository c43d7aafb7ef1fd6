//! What the admin signed: records, head, chain, claims, tokens.
//!
//! The admin's one source of truth is `network.toml` ([`Source`]). It compiles to sorted [`Records`];
//! one signed [`Head`] commits to all of them ([`VerifiedRoster::sign`]). Hubs store and nodes fetch the
//! bundle, and use it only after [`VerifiedRoster::verify`], which needs to trust nothing but the
//! [`NetworkId`](flatlan_types::NetworkId) and the [`Ratchet`], the greatest head seen so far.
//!
//! A machine joins by [`Token`]: it makes a [`Claim`], one hub countersigns it, and every member folds it
//! into its record by the same rules. [`OwnerTable`] says whose an address is.
//!
//! The order of things: create ([`Source::create`]) → edit → compile → sign → upload → verify → advance
//! the ratchet and store it → use. Recovery: [`Authority::recover`] and publish again.
//!
//! This crate does no IO and reads no clock. It does not decide when a roster is fetched, nor what
//! happens to the sessions of whoever is no longer in it.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod authority;
mod calendar;
mod claim;
mod fold;
mod head;
mod history;
mod owner;
mod ratchet;
mod record;
mod records;
mod roster;
mod rules;
pub mod shared;
pub mod source;
mod token;
mod wire;

pub use authority::{Authority, AuthorityError, KeyCertificate, MAX_CERTIFICATES};
pub use calendar::{ParseSpanError, Span, Utc};
pub use claim::{Claim, ClaimError, ClaimSet, ClaimsSummary, CountersignedClaim, MAX_CLAIM};
pub use fold::{ClaimRefusal, KeyOrigin, Member, RefusedClaim};
pub use head::{Freshness, Head, HeadError, HeadId, MAX_HEAD, RosterVersion, VerifiedHead};
pub use history::{HISTORY, HistoryError};
pub use owner::{MemberIndex, OwnerTable};
pub use ratchet::{
    FORMAT as RATCHET_FORMAT, ForkProof, Kept, MAX_SERIAL_JUMP, Ratchet, RatchetDecodeError, RatchetError, Step,
};
pub use record::{
    Expiry, HubRecord, Invite, MAX_RECORD, MemberRecord, NetworkRecord, Record, SKIPPABLE, Stock, stock_keys,
};
pub use records::{MAX_RECORDS, Records, RecordsError};
pub use roster::{
    CountersignError, Draft, FORMAT as BUNDLE_FORMAT, MAX_BUNDLE, SignError, VerifiedRoster, VerifyError,
};
pub use rules::{DEFAULT_LIFE, Entry, MAX_MTU, MIN_MTU, Violation, site_prefix};
pub use source::Source;
pub use token::{Token, TokenError};
pub use wire::DecodeError;
