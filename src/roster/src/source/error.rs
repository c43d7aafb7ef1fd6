//! What can be wrong with network.toml, or with an edit of it.

use std::{fmt, net::AddrParseError};

use flatlan_types::{KeyTextError, Name, ParseHostPortError, ParseNameError, ParsePrefixError, Prefix};

use crate::{
    authority::AuthorityError,
    calendar::ParseSpanError,
    rules::{Entry, Violation},
};

/// What is wrong, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{}{place}{problem}", Line(*.line))]
pub struct SourceError {
    /// The line of the file, where the problem has one.
    pub line: Option<usize>,
    /// The entry.
    pub place: Place,
    /// The problem.
    pub problem: Box<Problem>,
}

impl SourceError {
    pub(super) fn new(line: Option<usize>, place: Place, problem: Problem) -> Self {
        Self { line, place, problem: Box::new(problem) }
    }

    /// Of an edit that was asked for, not of a line in the file.
    pub(super) fn edit(place: Place, problem: Problem) -> Self {
        Self { line: None, place, problem: Box::new(problem) }
    }
}

/// An entry of network.toml, as it is written there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A hub.
    Hub(String),
    /// A member.
    Member(String),
    /// The network's own table.
    Network,
}

impl Place {
    pub(super) fn of(entry: Entry<'_>) -> Self {
        match entry {
            Entry::Hub(name) => Self::Hub(name.to_string()),
            Entry::Member(name) => Self::Member(name.to_string()),
            Entry::Network => Self::Network,
        }
    }
}

/// With the colon that follows it.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => Ok(()),
            Self::Hub(name) => write!(f, "hub {}: ", name.escape_debug()),
            Self::Member(name) => write!(f, "member {}: ", name.escape_debug()),
            Self::Network => f.write_str("network: "),
        }
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A certificate of `recovered` does not hold.
    #[error("`recovered`: {0}")]
    Authority(AuthorityError),
    /// Both kinds of key.
    #[error("it has both `key` and `wireguard`: a member runs flatlan or plain WireGuard, not both")]
    BothKeys,
    /// It is at home there.
    #[error("it carries {prefix} already")]
    CarriesAlready {
        /// What was to move.
        prefix: Prefix,
    },
    /// Somebody edited what a move is to be taken back from.
    #[error("its `routes` or `moved` were changed since {prefix} moved: edit network.toml")]
    ChangedSince {
        /// What moved.
        prefix: Prefix,
    },
    /// An entry to be added is there.
    #[error("it is already in network.toml: edit it there, or remove it first")]
    Exists,
    /// The id does not belong to the keys.
    #[error(
        "`id` does not belong to the keys in `admin` and `recovery`: restore the line that `flatlan network create` wrote"
    )]
    Id,
    /// The member has a key, and --replace was not given.
    #[error("it has joined: a new token for a new machine, with the same addresses: flatlan invite {name} --replace")]
    Joined {
        /// The member.
        name: Name,
    },
    /// Addresses or routes given for a member that has its own.
    #[error(
        "its addresses, routes and groups are in network.toml: change them there, and invite it without --ip, --route and --group"
    )]
    KeepsItsOwn,
    /// A key is missing.
    #[error("`{key}` is missing: {hint}")]
    Missing {
        /// The key.
        key: &'static str,
        /// What to write.
        hint: &'static str,
    },
    /// The range is used up.
    #[error("no address of {range} is free: remove members, or make a network with a wider range")]
    NoFreeAddress {
        /// The range.
        range: Prefix,
    },
    /// Nothing to move.
    #[error("nobody carries {prefix}: list it under its `routes` in network.toml")]
    NobodyCarries {
        /// What was to move.
        prefix: Prefix,
    },
    /// An invite needs a hub.
    #[error("there is no hub that could redeem an invite: flatlan network hub add NAME --key HUBKEY --tls HOST:PORT")]
    NoHub,
    /// No open invite to cancel, or to make a token of.
    #[error("it has no open invite")]
    NoInvite,
    /// No member to replace.
    #[error("--replace is for a member that is in network.toml: without it, this invites a new one")]
    NothingToReplace,
    /// No such entry.
    #[error("it is not in network.toml")]
    NotThere,
    /// Invited before, and --replace was not given.
    #[error("it has an open invite: flatlan invite {name} --replace makes that token void and prints another")]
    Open {
        /// The member.
        name: Name,
    },
    /// A hub that open invites name.
    #[error(
        "it is the hub that redeems the open invite of {member}: if {member} has joined, flatlan network pull; else flatlan invite {member} --replace --hub OTHER, or flatlan invite --cancel {member}"
    )]
    Redeems {
        /// One of them.
        member: Name,
    },
    /// A rule that the entries break together.
    #[error(transparent)]
    Rule(#[from] Violation),
    /// A stock peer cannot be invited.
    #[error("it is a plain WireGuard peer, which cannot use a token")]
    StockInvite,
    /// Not TOML.
    #[error("{message}")]
    Syntax {
        /// The parser's words.
        message: String,
    },
    /// Another type of value.
    #[error("`{key}` must be {expected}")]
    Type {
        /// The key.
        key: String,
        /// What it must be.
        expected: &'static str,
    },
    /// A key that means nothing.
    #[error("unknown key `{}`: known here are {}", key.escape_debug(), known.join(", "))]
    Unknown {
        /// The key.
        key: String,
        /// Those that do.
        known: &'static [&'static str],
    },
    /// A value that cannot be read.
    #[error("`{key}`: {problem}")]
    Value {
        /// The key.
        key: String,
        /// Why.
        problem: ValueProblem,
    },
    /// `via` without `wireguard`.
    #[error("`via` is for plain WireGuard peers: give the peer's public key as `wireguard`, not as `key`")]
    ViaWithoutStock,
}

/// Why a value cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueProblem {
    /// Not an address.
    #[error("an address is such as 10.77.0.5 or fd00::5")]
    Address(#[from] AddrParseError),
    /// Neither policy.
    #[error("it is \"warn\" or \"refuse-new\"")]
    Expiry,
    /// Not HOST:PORT.
    #[error(transparent)]
    HostPort(#[from] ParseHostPortError),
    /// Not the key that belongs there.
    #[error(transparent)]
    Key(#[from] KeyTextError),
    /// Not a name.
    #[error(transparent)]
    Name(#[from] ParseNameError),
    /// No hub of that name.
    #[error("there is no such hub in network.toml")]
    NoSuchHub,
    /// A number out of range.
    #[error("the number is out of range")]
    Number,
    /// Not a prefix.
    #[error(transparent)]
    Prefix(#[from] ParsePrefixError),
    /// Not a span.
    #[error(transparent)]
    Span(#[from] ParseSpanError),
    /// Not a time.
    #[error("a time is such as 2026-03-01T12:00:00Z")]
    Time,
    /// Not a WireGuard public key.
    #[error("a WireGuard public key is 44 characters of base64, as `wg pubkey` prints it")]
    WireGuard,
}

struct Line(Option<usize>);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(line) => write!(f, "line {line}: "),
            None => Ok(()),
        }
    }
}
