//! What the hubs hold, asked of all at once; and uploading to all at once.
//!
//! 1. [`Survey::ask`] attaches to every hub: each says its newest head and how many claims go with it.
//! 2. [`Survey::standings`] judges the heads against the roster kept here.
//! 3. [`Survey::fetch`] gets the whole rosters of those that have something new.
//! 4. [`Survey::upload`] hands the new roster to all.
//!
//! A hub is believed for nothing but its key: heads and rosters are verified here.

use std::{fmt, sync::Arc};

use flatlan::hub_client::{HubClient, HubClientError};
use flatlan_os::ExitClass;
use flatlan_relay::{Proof, Role};
use flatlan_roster::{Authority, HubRecord, Ratchet, RatchetError, RosterVersion, Step, VerifiedHead, VerifiedRoster};
use flatlan_types::{Name, NetworkId};
use tokio::runtime::Runtime;

use super::directory::{NetworkDir, chain};
use crate::{failure::Failure, node::runtime};

/// The hubs, and the streams to those that were reached.
pub(super) struct Survey {
    network: NetworkId,
    hubs: Vec<Asked>,
    runtime: Runtime,
}

/// A hub that was asked.
struct Asked {
    record: HubRecord,
    listed: Listed,
    answer: Result<Answer, Fault>,
}

/// Whether network.toml lists a hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listed {
    /// Not any more: it is told, so that it stops serving, but nothing depends on it.
    No,
    /// It does.
    Yes,
}

struct Answer {
    client: HubClient,
    head: Option<VerifiedHead>,
    claims: (u32, [u8; 32]),
}

/// Why a hub does not do its part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    text: String,
    class: ExitClass,
}

impl Fault {
    /// What it means to whoever started the program.
    pub(super) fn class(&self) -> ExitClass {
        self.class
    }

    fn invalid(error: &dyn std::error::Error) -> Self {
        let text = format!("what it hands out is not valid: {}: do not trust this hub", chain(error));
        Self { text, class: ExitClass::Failed }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<HubClientError> for Fault {
    fn from(error: HubClientError) -> Self {
        let class = match &error {
            HubClientError::Closed { .. } | HubClientError::Silent { .. } | HubClientError::Stream(_) => {
                ExitClass::Unreachable
            }
            HubClientError::NotTheHub { .. } | HubClientError::Refused { .. } | HubClientError::Unexpected { .. } => {
                ExitClass::Failed
            }
        };
        Self { text: error.to_string(), class }
    }
}

/// How what a hub holds stands to the roster kept here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// No roster of the network.
    Empty,
    /// Both follow the same roster, or the serial jumps: nothing that is signed here may follow it.
    Fork(RatchetError),
    /// Newer: someone else published.
    Newer(RosterVersion),
    /// Older, or the same but of an admin key that was replaced: to be replaced.
    Older(RosterVersion),
    /// The same.
    Same,
}

impl Survey {
    /// Asks the hubs of network.toml, and those of the roster published last that it lists no longer.
    pub(super) fn ask(dir: &NetworkDir) -> Result<Self, Failure> {
        let listed = dir.source.records().hubs().iter();
        let mut hubs: Vec<(HubRecord, Listed)> = listed.map(|hub| (hub.clone(), Listed::Yes)).collect();
        for hub in dir.published.iter().flat_map(|published| published.hubs()) {
            if hubs.iter().all(|(other, _)| other.key != hub.key) {
                hubs.push((hub.clone(), Listed::No));
            }
        }
        Self::of(hubs, dir.source.network_id())
    }

    /// Asks these hubs.
    pub(super) fn of(hubs: Vec<(HubRecord, Listed)>, network: NetworkId) -> Result<Self, Failure> {
        let runtime = runtime()?;
        let records = hubs.iter().map(|(record, _)| record.clone());
        let answers = runtime.block_on(at_once(records.map(|hub| attach(hub, network))));
        let asked = hubs.into_iter().zip(answers);
        let hubs = asked.map(|((record, listed), answer)| Asked { record, listed, answer }).collect();
        Ok(Self { network, hubs, runtime })
    }

    /// Whether network.toml lists no hub.
    pub(super) fn is_empty(&self) -> bool {
        self.hubs.iter().all(|hub| hub.listed == Listed::No)
    }

    /// The hubs that network.toml lists and that were reached.
    pub(super) fn reached(&self) -> impl Iterator<Item = &HubRecord> {
        self.hubs.iter().filter(|hub| hub.listed == Listed::Yes && hub.answer.is_ok()).map(|hub| &hub.record)
    }

    /// Those that were not, and why.
    pub(super) fn faults(&self) -> impl Iterator<Item = (&Name, Listed, &Fault)> {
        self.hubs.iter().filter_map(|hub| Some((&hub.record.name, hub.listed, hub.answer.as_ref().err()?)))
    }

    /// What each hub that was reached holds, against `ours`; `authority` is that of network.toml.
    pub(super) fn standings(
        &self,
        ours: Option<&VerifiedRoster>,
        authority: &Authority,
    ) -> Vec<(&HubRecord, Standing)> {
        let mut ratchet = Ratchet::new(self.network);
        if let Some(ours) = ours {
            let _ = ratchet.advance(ours);
        }
        let answered = self.hubs.iter().filter_map(|hub| Some((&hub.record, hub.answer.as_ref().ok()?)));
        answered
            .map(|(record, answer)| {
                let standing = match &answer.head {
                    Some(head) => standing(head, &ratchet, authority),
                    None => Standing::Empty,
                };
                (record, standing)
            })
            .collect()
    }

    /// How many claims each hub has that are not beside `ours`.
    pub(super) fn new_claims(&self, ours: Option<&VerifiedRoster>) -> Vec<(&Name, u32)> {
        let answered = self.hubs.iter().filter_map(|hub| Some((&hub.record.name, hub.answer.as_ref().ok()?)));
        answered
            .filter(|(_, answer)| answer.claims.0 > 0 && !has_claims(ours, answer))
            .map(|(name, answer)| (name, answer.claims.0))
            .collect()
    }

    /// The whole rosters of the hubs that have a head or claims which `ours` has not: verified, but not
    /// judged against it. A hub that fails here is one that was not reached.
    pub(super) fn fetch(&mut self, ours: Option<&VerifiedRoster>) -> Vec<(Name, VerifiedRoster)> {
        let (network, known) = (self.network, ours.map(|ours| ours.signed_head().id()));
        let hubs = std::mem::take(&mut self.hubs).into_iter().map(|hub| {
            let news = hub.answer.as_ref().is_ok_and(|answer| match &answer.head {
                Some(head) => Some(head.id()) != known || !has_claims(ours, answer),
                None => false,
            });
            async move { if news { fetch(hub, network).await } else { (hub, None) } }
        });
        let fetched = self.runtime.block_on(at_once(hubs));
        let mut rosters = Vec::new();
        for (hub, roster) in fetched {
            rosters.extend(roster.map(|roster| (hub.record.name.clone(), roster)));
            self.hubs.push(hub);
        }
        rosters
    }

    /// Uploads a roster to every hub that was reached. What became of it, hub by hub.
    pub(super) fn upload(self, roster: &VerifiedRoster) -> Uploaded {
        let bytes: Arc<[u8]> = roster.encode().into();
        let uploads = self.hubs.into_iter().map(|hub| {
            let bytes = Arc::clone(&bytes);
            async move {
                let outcome = match hub.answer {
                    Ok(mut answer) => answer.client.put_roster(&bytes).await.map(|_| ()).map_err(Fault::from),
                    Err(fault) => Err(fault),
                };
                (hub.record.name, hub.listed, outcome)
            }
        });
        Uploaded { hubs: self.runtime.block_on(at_once(uploads)) }
    }
}

/// What became of an upload.
pub(super) struct Uploaded {
    hubs: Vec<(Name, Listed, Result<(), Fault>)>,
}

impl Uploaded {
    /// The hubs that have stored it.
    pub(super) fn stored(&self) -> impl Iterator<Item = &Name> {
        self.hubs.iter().filter(|(_, listed, outcome)| *listed == Listed::Yes && outcome.is_ok()).map(|(name, ..)| name)
    }

    /// The hubs that have not, and why.
    pub(super) fn faults(&self) -> impl Iterator<Item = (&Name, Listed, &Fault)> {
        self.hubs.iter().filter_map(|(name, listed, outcome)| Some((name, *listed, outcome.as_ref().err()?)))
    }
}

/// The failure of a command that none of the hubs helps with.
pub(super) fn nobody<'a>(
    what: &str,
    faults: impl Iterator<Item = (&'a Name, Listed, &'a Fault)>,
    remedy: &str,
) -> Failure {
    let faults: Vec<_> = faults.filter(|(_, listed, _)| *listed == Listed::Yes).collect();
    let refused = faults.iter().any(|(.., fault)| fault.class != ExitClass::Unreachable);
    let class = if refused { ExitClass::Failed } else { ExitClass::Unreachable };
    let reasons: Vec<String> = faults.iter().map(|(name, _, fault)| format!("hub {name}: {fault}")).collect();
    Failure::new(class, format!("{what}: {}: {remedy}", reasons.join("; ")))
}

async fn attach(hub: HubRecord, network: NetworkId) -> Result<Answer, Fault> {
    let attached = HubClient::attach(&hub.tls, None, Some(&hub.key), network, Role::Admin, |_| Proof::Nothing);
    let client = attached.await?;
    let attached = client.attached();
    let head = attached.head.as_deref().map(|head| VerifiedHead::decode(head, &network));
    let head = head.transpose().map_err(|error| Fault::invalid(&error))?;
    let claims = (attached.claims.count, attached.claims.hash);
    Ok(Answer { client, head, claims })
}

async fn fetch(mut hub: Asked, network: NetworkId) -> (Asked, Option<VerifiedRoster>) {
    let Ok(answer) = &mut hub.answer else { return (hub, None) };
    let fetched = match answer.client.fetch_roster().await {
        Ok(Some(bytes)) => match VerifiedRoster::verify(&bytes, &Ratchet::new(network), None) {
            Ok(roster) => Ok(Some(roster)),
            Err(error) => Err(Fault::invalid(&error)),
        },
        Ok(None) => Ok(None),
        Err(error) => Err(error.into()),
    };
    match fetched {
        Ok(roster) => (hub, roster),
        Err(fault) => {
            hub.answer = Err(fault);
            (hub, None)
        }
    }
}

/// Runs them all at once; the results are in their order.
async fn at_once<F>(tasks: impl Iterator<Item = F>) -> Vec<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    let running: Vec<_> = tasks.map(tokio::spawn).collect();
    let mut results = Vec::with_capacity(running.len());
    for task in running {
        results.push(task.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
    }
    results
}

fn standing(head: &VerifiedHead, ratchet: &Ratchet, authority: &Authority) -> Standing {
    let (held, signing) = (head.version(), authority.key_epoch());
    if held.key_epoch < signing {
        return Standing::Older(held);
    }
    match ratchet.compare(head) {
        Ok(Step::Newer) => Standing::Newer(held),
        Ok(Step::Same) => Standing::Same,
        Err(RatchetError::Rollback { .. }) => Standing::Older(held),
        Err(error @ (RatchetError::Fork(_) | RatchetError::SerialJump { .. })) => Standing::Fork(error),
    }
}

fn has_claims(ours: Option<&VerifiedRoster>, answer: &Answer) -> bool {
    ours.is_some_and(|ours| {
        let summary = ours.claims_summary();
        (summary.count, summary.hash) == answer.claims
    })
}
