//! Joining: from a token to a state directory that a node can start with.
//!
//! The seed is made and stored first, so that a join that was cut off can be repeated: the same node asks
//! with the same claim and gets the same answer. Then the redeeming hub is dialled, its roster fetched and
//! verified against the network id in the token, the claim redeemed, and the roster that has the claim in
//! it stored beside the ratchet. Nothing here needs root.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a refusal has words of its own, other errors speak for themselves"
)]

use flatlan_node::persist;
use flatlan_os::{ExitClass, clock, file::FileMode, stream::Proxy};
use flatlan_relay::{Proof, RefusedCode, Role};
use flatlan_roster::{Claim, CountersignedClaim, Ratchet, Token, VerifiedRoster, VerifyError};
use flatlan_types::{HostPort, Name, NetworkId, NodeKeys};

use crate::{
    hub_client::{HubClient, HubClientError},
    state::{NetworkFile, NodeState, StateError},
};

/// What was joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The network's name.
    pub network: Name,
    /// The member that this node is.
    pub member: Name,
    /// Its virtual IPs.
    pub ips: Vec<flatlan_types::VirtualIp>,
}

/// The node's public keys, for `member add --key`; the seed is made where there is none.
///
/// # Errors
/// The state directory cannot be used.
pub fn request(state: &NodeState) -> Result<NodeKeys, JoinError> {
    Ok(state.seed_or_new().map_err(JoinError::State)?.derive().public())
}

/// Joins a network whose admin has added this node by its key: remembers where to begin.
///
/// # Errors
/// The state directory cannot be used, or belongs to another network.
pub fn by_key(state: &NodeState, network: NetworkId, hubs: Vec<HostPort>) -> Result<(), JoinError> {
    refuse_other_network(state, network)?;
    state.seed_or_new().map_err(JoinError::State)?;
    state.set_network(&NetworkFile { network, hubs }).map_err(JoinError::State)
}

/// Redeems a token.
///
/// # Errors
/// See [`JoinError`].
pub async fn redeem(state: &NodeState, token: &Token, proxy: Option<&Proxy>) -> Result<Joined, JoinError> {
    let network = token.network();
    refuse_other_network(state, network)?;
    if clock::unix() > token.expires {
        return Err(JoinError::Expired { member: token.member.clone() });
    }
    let secret = state.seed_or_new().map_err(JoinError::State)?.derive();
    let invite = token.secret.public();
    let mut last = None;
    for target in &token.endpoints {
        let attached = HubClient::attach(target, proxy, Some(&token.redeemer), network, Role::Join, |scope| {
            Proof::Invite { key: invite, signature: scope.sign_invite(&token.secret) }
        });
        match attached.await {
            Ok(hub) => return redeem_at(hub, state, token, &secret).await,
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(HubClientError::Refused { code, text, .. }) => Err(refused(code, text, token)),
        why => Err(JoinError::Unreachable {
            hub: token.redeemer_name.clone(),
            member: token.member.clone(),
            why: why.map_or_else(|| "the token names no address of it".to_owned(), |why| why.to_string()),
        }),
    }
}

async fn redeem_at(
    mut hub: HubClient,
    state: &NodeState,
    token: &Token,
    secret: &flatlan_types::NodeSecret,
) -> Result<Joined, JoinError> {
    let network = token.network();
    let mut ratchet = Ratchet::new(network);
    // before the claim, so that it goes to no hub that the admin did not list
    let before = fetch(&mut hub, &ratchet).await?;
    if before.hub(hub.hub()).is_none() {
        return Err(JoinError::NotListed { hub: token.redeemer_name.clone() });
    }
    let claim = Claim::make(&network, &token.secret, secret);
    let redeemed = hub.redeem(claim.encode()).await.map_err(|error| match error {
        HubClientError::Refused { code, text, .. } => refused(code, text, token),
        error => JoinError::Hub(error),
    })?;
    let countersigned = CountersignedClaim::decode(&redeemed, &network).map_err(|_| JoinError::BadAnswer)?;
    if *countersigned.keys() != secret.public() {
        return Err(JoinError::BadAnswer);
    }
    let roster = fetch(&mut hub, &ratchet).await?;
    let roster = roster.with_claims([countersigned]).unwrap_or(roster);
    let Some(member) = roster.by_id(&secret.public().id).and_then(|index| roster.member(index)) else {
        return Err(JoinError::NotTaken { member: token.member.clone() });
    };
    let joined =
        Joined { network: roster.network().name.clone(), member: member.name().clone(), ips: member.ips.clone() };
    ratchet.advance(&roster).map_err(|error| JoinError::Roster(VerifyError::Ratchet(error)))?;
    let write = |file: &str, bytes: &[u8]| {
        state.dir().write(file, bytes, FileMode::Secret).map_err(|e| JoinError::State(StateError::File(e)))
    };
    write(persist::ROSTER, &roster.encode())?;
    write(persist::RATCHET, &ratchet.encode())?;
    let hubs = token.endpoints.clone();
    state.set_network(&NetworkFile { network, hubs }).map_err(JoinError::State)?;
    Ok(joined)
}

async fn fetch(hub: &mut HubClient, ratchet: &Ratchet) -> Result<VerifiedRoster, JoinError> {
    let bytes = hub.fetch_roster().await.map_err(JoinError::Hub)?.ok_or(JoinError::NoRoster)?;
    VerifiedRoster::verify(&bytes, ratchet, None).map_err(JoinError::Roster)
}

fn refuse_other_network(state: &NodeState, network: NetworkId) -> Result<(), JoinError> {
    match state.network().map_err(JoinError::State)? {
        Some(joined) if joined.network == network => {
            Err(JoinError::AlreadyJoined { state: state.dir().path().display().to_string() })
        }
        Some(_) => Err(JoinError::OtherNetwork { state: state.dir().path().display().to_string() }),
        None => Ok(()),
    }
}

fn refused(code: RefusedCode, text: String, token: &Token) -> JoinError {
    tracing::debug!(reason = ?code, "the hub refuses the claim");
    JoinError::Refused { hub: token.redeemer_name.clone(), text }
}

/// Why a node does not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It has joined this network before.
    #[error("{state} has joined this network already: run `flatlan up --state {state}`, or choose another --state")]
    AlreadyJoined {
        /// The state directory.
        state: String,
    },
    /// What the hub gives back is no countersigned claim of ours.
    #[error("the hub's answer is not a valid claim of this node: its key may be stolen: tell the admin")]
    BadAnswer,
    /// Too late.
    #[error("the token for {member} has expired: ask the admin for a new one (`flatlan invite {member} --replace`)")]
    Expired {
        /// Whom it would have made.
        member: Name,
    },
    /// The hub does not do its part.
    #[error("{0}")]
    Hub(HubClientError),
    /// The hub does not know the network.
    #[error("the hub has no roster of this network: ask the admin to run `flatlan network publish`")]
    NoRoster,
    /// The hub that redeems is not in the roster.
    #[error("hub {hub} is not listed in the roster that it hands out: ask the admin for a new token")]
    NotListed {
        /// Its name.
        hub: Name,
    },
    /// The claim was countersigned, but does not count.
    #[error(
        "the claim for {member} does not count: two machines claimed it, or its keys are in use: ask the admin for a new token (`flatlan invite {member} --replace`)"
    )]
    NotTaken {
        /// Whom it would have made.
        member: Name,
    },
    /// The directory is another network's.
    #[error("{state} belongs to another network: choose another directory with --state")]
    OtherNetwork {
        /// The state directory.
        state: String,
    },
    /// The hub refuses the claim.
    #[error("hub {hub} refuses the token: {text}")]
    Refused {
        /// Its name.
        hub: Name,
        /// Why.
        text: String,
    },
    /// The roster does not hold.
    #[error("the roster that the hub hands out is not valid: {0}")]
    Roster(VerifyError),
    /// The state directory cannot be used.
    #[error("{0}")]
    State(StateError),
    /// The one hub that may redeem cannot be reached.
    #[error(
        "cannot reach hub {hub}, the only one that may redeem this token: {why}: try again when it is up, or ask the admin for a token that another hub redeems (`flatlan invite {member} --replace --hub HUB`)"
    )]
    Unreachable {
        /// Its name.
        hub: Name,
        /// Whom the token would make.
        member: Name,
        /// Why.
        why: String,
    },
}

impl JoinError {
    /// What it means to whoever started the program.
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::Hub(error) => error.exit_class(),
            Self::State(error) => error.exit_class(),
            Self::Unreachable { .. } => ExitClass::Unreachable,
            Self::AlreadyJoined { .. } | Self::OtherNetwork { .. } => ExitClass::Wrong,
            Self::BadAnswer
            | Self::Expired { .. }
            | Self::NoRoster
            | Self::NotListed { .. }
            | Self::NotTaken { .. }
            | Self::Refused { .. }
            | Self::Roster(_) => ExitClass::Failed,
        }
    }
}
