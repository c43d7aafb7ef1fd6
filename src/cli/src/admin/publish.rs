//! `network plan`, `publish`, `upload` and `pull`, and what every command that publishes shares.

use std::path::Path;

use flatlan_os::{
    ExitClass,
    file::{FileMode, Privacy, StateDir},
};
use flatlan_roster::{
    Ratchet, RatchetError, RosterVersion, Source, Step, VerifiedRoster,
    source::{Change, ChangeKind, plan as changes},
};
use flatlan_types::{AdminSecret, Name};
use serde_json::{Value, json};

use super::{
    cannot,
    directory::{Access, NetworkDir, chain},
    listed,
    survey::{Fault, Listed, Standing, Survey, Uploaded, nobody},
};
use crate::{failure::Failure, output};

/// `flatlan network plan`.
pub(super) fn plan(dir: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let dir = NetworkDir::open(dir, Access::Read)?;
    let published = dir.published.as_ref();
    let survey = Survey::ask(&dir)?;
    let changes = changes(published.map(VerifiedRoster::records), dir.source.records());
    let standings = survey.standings(published, dir.source.authority());
    if as_json {
        let faults = survey.faults().filter(|(_, listed, _)| *listed == Listed::Yes);
        let faults = faults
            .map(|(name, _, fault)| json!({"name": name.as_str(), "state": "unreachable", "error": fault.to_string()}));
        let hubs = standings.iter().map(|(hub, standing)| standing_json(&hub.name, standing)).chain(faults);
        output::result(json!({
            "published": published.map(|published| version_json(published.version())),
            "changes": changes.iter().map(change_json).collect::<Vec<_>>(),
            "hubs": hubs.collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    for change in &changes {
        output::result(change);
    }
    match published {
        Some(published) if changes.is_empty() => {
            output::say(format!("network.toml says what roster {} says", published.version()));
        }
        Some(published) => output::say(format!("against roster {}, signed or pulled last", published.version())),
        None => output::say("nothing was published from this directory yet"),
    }
    if let Some(published) = published {
        say_state(published);
        if published.authority() != dir.source.authority() {
            let flag = dir.state_flag();
            output::say(format!("the admin key was replaced since: flatlan network publish{flag}"));
        }
    }
    for (hub, standing) in &standings {
        say_standing(&hub.name, standing, published, &dir.state_flag());
    }
    for (name, claims) in survey.new_claims(published) {
        output::say(format!(
            "hub {name} knows of redeemed invites ({claims}) that were not pulled: flatlan network pull{}",
            dir.state_flag()
        ));
    }
    say_faults(survey.faults());
    Ok(())
}

/// `flatlan network publish`.
pub(super) fn publish(dir: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let mut dir = NetworkDir::open(dir, Access::Change)?;
    let publishing =
        Publishing::prepare(&dir, "publish", "sign without a network: flatlan network publish --out FILE")?;
    let uploaded = publishing.finish(&mut dir)?;
    if as_json {
        output::result(uploaded_json(&dir, &uploaded));
    }
    Ok(())
}

/// `flatlan network publish --out`.
pub(super) fn sign(dir: Option<&Path>, file: &Path, as_json: bool) -> Result<(), Failure> {
    let mut dir = NetworkDir::open(dir, Access::Change)?;
    let secret = dir.admin_secret()?;
    let roster = signed(&dir.source, dir.published.as_ref(), &secret)?;
    let bytes = roster.encode();
    let version = roster.version();
    // Kept first: what is in a file may be uploaded at any time.
    dir.keep_published(roster)?;
    write_out(file, &bytes)?;
    output::say(format!(
        "signed roster {version} into {}; next, where the hubs can be reached: flatlan network upload {}{}",
        file.display(),
        file.display(),
        dir.state_flag()
    ));
    if as_json {
        output::result(version_json(version));
    }
    Ok(())
}

/// `flatlan network upload`.
pub(super) fn upload(dir: Option<&Path>, file: &Path, as_json: bool) -> Result<(), Failure> {
    let mut dir = NetworkDir::open(dir, Access::Change)?;
    let shown = file.display();
    let bytes = std::fs::read(file).map_err(|error| {
        let why = flatlan_os::Why(error);
        Failure::wrong(format!("cannot read {shown}: {why}: name the file that `flatlan network publish --out` wrote"))
    })?;
    let roster = VerifiedRoster::verify(&bytes, &Ratchet::new(dir.source.network_id()), None).map_err(|error| {
        Failure::wrong(format!(
            "cannot upload {shown}: {}: sign it again: flatlan network publish --out {shown}",
            chain(&error)
        ))
    })?;
    let mut hubs: Vec<_> = roster.hubs().iter().map(|hub| (hub.clone(), Listed::Yes)).collect();
    for hub in dir.published.iter().flat_map(|published| published.hubs()) {
        if roster.hub(&hub.key).is_none() {
            hubs.push((hub.clone(), Listed::No));
        }
    }
    let survey = Survey::of(hubs, *roster.network_id())?;
    refuse_without_hubs(&survey, "upload", "")?;
    if survey.reached().next().is_none() {
        return Err(nobody("cannot upload: no hub was reached", survey.faults(), "try again when one is"));
    }
    for (hub, standing) in survey.standings(Some(&roster), roster.authority()) {
        if let Standing::Newer(held) = standing {
            return Err(Failure::failed(format!(
                "cannot upload {shown}: hub {} holds roster {held}, and this is {}: sign anew: flatlan network pull, then flatlan network publish",
                hub.name,
                roster.version()
            )));
        }
        if let Standing::Fork(error) = standing {
            return Err(Failure::failed(format!("cannot upload {shown}: hub {}: {error}", hub.name)));
        }
    }
    let version = roster.version();
    let uploaded = survey.upload(&roster);
    // Where someone else signed it, it is what the next one follows here, too.
    if dir.ratchet().advance(&roster).is_ok_and(|step| step == Step::Newer) {
        dir.keep_published(roster)?;
    }
    say_uploaded(&uploaded, version)?;
    if as_json {
        output::result(uploaded_json(&dir, &uploaded));
    }
    Ok(())
}

/// `flatlan network pull`.
pub(super) fn pull(dir: Option<&Path>, as_json: bool) -> Result<(), Failure> {
    let mut dir = NetworkDir::open(dir, Access::Change)?;
    let mut survey = Survey::ask(&dir)?;
    refuse_without_hubs(&survey, "pull", &dir.state_flag())?;
    let rosters = survey.fetch(dir.published.as_ref());
    if survey.reached().next().is_none() {
        return Err(nobody("cannot pull: no hub was reached", survey.faults(), "try again when one is"));
    }
    let before = dir.published.as_ref().map(VerifiedRoster::version);
    let Held { newest: pulled, to_undo } = Held::judge(&dir, rosters)?;
    let mut source = dir.source.clone();
    if let Some(pulled) = &pulled
        && pulled.authority().key_epoch() > source.authority().key_epoch()
    {
        source.set_authority(pulled.authority()).map_err(|e| cannot("pull", &e))?;
    }
    let mut joined = Vec::new();
    for roster in pulled.iter().chain(to_undo.iter().map(|(_, roster)| roster)) {
        joined.extend(source.fold(roster).map_err(|e| cannot("fold the claims", &e))?);
    }
    if source.to_string() != dir.source.to_string() {
        dir.source = source;
        dir.write_source()?;
    }
    if let Some(pulled) = pulled.filter(|pulled| dir.published.as_ref() != Some(pulled)) {
        dir.keep_published(pulled)?;
    }
    say_faults(survey.faults());
    for (hub, roster) in &to_undo {
        output::say(format!(
            "hub {hub} holds roster {}, signed by an admin key that was replaced: flatlan network publish{} undoes it",
            roster.version(),
            dir.state_flag()
        ));
    }
    let Some(published) = &dir.published else {
        output::say("the hubs hold no roster of this network yet: flatlan network publish");
        return Ok(());
    };
    say_state(published);
    let version = published.version();
    if before != Some(version) {
        output::say(format!("pulled roster {version}"));
    }
    if as_json {
        let joined: Vec<&str> = joined.iter().map(Name::as_str).collect();
        output::result(json!({"published": version_json(version), "joined": joined}));
        return Ok(());
    }
    for name in &joined {
        output::result(format!("joined: {name}"));
    }
    if joined.is_empty() {
        output::say("no claim that is not in network.toml");
    }
    if !changes(Some(published.records()), dir.source.records()).is_empty() {
        let flag = dir.state_flag();
        output::say(format!(
            "network.toml differs from it: flatlan network plan{flag}, then flatlan network publish{flag}"
        ));
    }
    Ok(())
}

/// A command that is going to publish: it holds the key and has asked the hubs.
pub(super) struct Publishing {
    secret: AdminSecret,
    survey: Survey,
    rosters: Vec<VerifiedRoster>,
}

impl Publishing {
    /// Reads the key, asks the hubs, and refuses where signing on top of the roster kept here would fork the
    /// network or undo what someone else published. Nothing is changed yet.
    pub(super) fn prepare(dir: &NetworkDir, what: &str, remedy: &str) -> Result<Self, Failure> {
        let secret = dir.admin_secret()?;
        let mut survey = Survey::ask(dir)?;
        refuse_without_hubs(&survey, what, &dir.state_flag())?;
        let published = dir.published.as_ref();
        for (hub, standing) in survey.standings(published, dir.source.authority()) {
            refuse_standing(dir, what, &hub.name, &standing)?;
        }
        let rosters = survey.fetch(published).into_iter().map(|(_, roster)| roster).collect();
        if survey.reached().next().is_none() {
            return Err(nobody(&format!("cannot {what}: no hub was reached"), survey.faults(), remedy));
        }
        Ok(Self { secret, survey, rosters })
    }

    /// Writes the keys of claims that the hubs have into `source`, so that who has joined counts as joined.
    pub(super) fn fold(&self, dir: &NetworkDir, source: &mut Source) -> Result<(), Failure> {
        let mut joined = Vec::new();
        for roster in &self.rosters {
            joined.extend(source.fold(roster).map_err(|e| cannot("fold the claims", &e))?);
        }
        if let Some(published) = &dir.published {
            joined.extend(source.fold(published).map_err(|e| cannot("fold the claims", &e))?);
        }
        if !joined.is_empty() {
            output::say(format!("joined since: {}", listed(&joined)));
        }
        Ok(())
    }

    /// The survey's hubs that network.toml lists and that were reached.
    pub(super) fn survey(&self) -> &Survey {
        &self.survey
    }

    /// Signs what `dir.source` says, writes it and the roster, and uploads. Ends well where one hub that
    /// network.toml lists has stored it; says which.
    pub(super) fn finish(self, dir: &mut NetworkDir) -> Result<Uploaded, Failure> {
        let signed = signed(&dir.source, dir.published.as_ref(), &self.secret)?;
        let claims = self.rosters.iter().flat_map(|roster| roster.claims().iter().cloned());
        let signed = signed.with_claims(claims).unwrap_or(signed);
        say_state(&signed);
        let version = signed.version();
        dir.write_source()?;
        dir.keep_published(signed.clone())?;
        let uploaded = self.survey.upload(&signed);
        say_uploaded(&uploaded, version)?;
        Ok(uploaded)
    }
}

/// What the hubs hold, judged.
struct Held {
    /// The newest that may follow the roster kept here, with the claims of all of them.
    newest: Option<VerifiedRoster>,
    /// Those of an admin key that was replaced.
    to_undo: Vec<(Name, VerifiedRoster)>,
}

impl Held {
    fn judge(dir: &NetworkDir, rosters: Vec<(Name, VerifiedRoster)>) -> Result<Self, Failure> {
        let signing = dir.source.authority().key_epoch();
        let mut ratchet = dir.ratchet();
        let mut newest = dir.published.clone();
        let mut claims = Vec::new();
        let (to_undo, rosters): (Vec<_>, Vec<_>) =
            rosters.into_iter().partition(|(_, roster)| roster.version().key_epoch < signing);
        for (hub, roster) in rosters {
            claims.extend(roster.claims().iter().cloned());
            match ratchet.advance(&roster) {
                Ok(Step::Newer) => newest = Some(roster),
                Ok(Step::Same) | Err(RatchetError::Rollback { .. }) => {}
                Err(error @ (RatchetError::Fork(_) | RatchetError::SerialJump { .. })) => {
                    return Err(Failure::failed(format!("cannot pull: hub {hub}: {}", fork(dir, &error))));
                }
            }
        }
        let newest = newest.map(|newest| newest.with_claims(claims).unwrap_or(newest));
        Ok(Self { newest, to_undo })
    }
}

fn signed(source: &Source, base: Option<&VerifiedRoster>, secret: &AdminSecret) -> Result<VerifiedRoster, Failure> {
    source
        .sign(base, secret, flatlan_os::clock::unix())
        .map_err(|error| Failure::failed(format!("cannot sign the roster: {error}")))
}

fn refuse_without_hubs(survey: &Survey, what: &str, flag: &str) -> Result<(), Failure> {
    if !survey.is_empty() {
        return Ok(());
    }
    Err(Failure::wrong(format!(
        "cannot {what}: network.toml lists no hub: add one: flatlan network hub add NAME --key HUBKEY --tls HOST:PORT{flag}"
    )))
}

fn refuse_standing(dir: &NetworkDir, what: &str, hub: &Name, standing: &Standing) -> Result<(), Failure> {
    match standing {
        Standing::Empty | Standing::Older(_) | Standing::Same => Ok(()),
        Standing::Newer(held) => {
            let known = match &dir.published {
                Some(published) => format!("newer than {}, the last one known here", published.version()),
                None => "and none is known here".to_owned(),
            };
            let flag = dir.state_flag();
            Err(Failure::failed(format!(
                "cannot {what}: hub {hub} holds roster {held}, {known}: someone else published: flatlan network pull{flag}, look at flatlan network plan{flag}, then try again"
            )))
        }
        Standing::Fork(error) => Err(Failure::failed(format!("cannot {what}: hub {hub}: {}", fork(dir, error)))),
    }
}

/// A fork has an innocent cause, too.
fn fork(dir: &NetworkDir, error: &RatchetError) -> String {
    match error {
        RatchetError::Fork(_) => format!(
            "{error}; if you published from another copy of this directory: remove {} and run flatlan network pull{}",
            dir.roster_path().display(),
            dir.state_flag()
        ),
        RatchetError::Rollback { .. } | RatchetError::SerialJump { .. } => error.to_string(),
    }
}

/// Writes what is to be carried to the hubs, whole or not at all.
fn write_out(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let name = file.file_name().and_then(|name| name.to_str());
    // A device, a pipe, or a directory that others may write to: no file of ours replaces it.
    if let (Some(name), Ok(dir)) = (name, StateDir::open(parent, Privacy::Readable))
        && file.symlink_metadata().map_or(true, |there| there.is_file())
    {
        return Ok(dir.write(name, bytes, FileMode::Public)?);
    }
    std::fs::write(file, bytes).map_err(|error| {
        let why = flatlan_os::Why(error);
        Failure::failed(format!("cannot write {}: {why}: choose another file with --out FILE", file.display()))
    })
}

/// What is worth a warning about a roster.
fn say_state(roster: &VerifiedRoster) {
    for refused in roster.refused_claims() {
        output::say(format!("warning: {refused}"));
    }
    let freshness = roster.freshness(flatlan_os::clock::unix());
    if freshness != flatlan_roster::Freshness::Fresh {
        output::say(format!("warning: {freshness}"));
    }
}

fn say_standing(hub: &Name, standing: &Standing, ours: Option<&VerifiedRoster>, flag: &str) {
    match standing {
        Standing::Same => {}
        Standing::Empty if ours.is_none() => {}
        Standing::Empty => output::say(format!("hub {hub} has no roster yet: flatlan network publish{flag}")),
        Standing::Older(held) => {
            output::say(format!("hub {hub} holds roster {held}, which is older: flatlan network publish{flag}"));
        }
        Standing::Newer(held) => {
            output::say(format!("hub {hub} holds roster {held}, which is newer: flatlan network pull{flag}"));
        }
        Standing::Fork(error) => output::say(format!("warning: hub {hub}: {error}")),
    }
}

/// Names the hubs that were not reached.
fn say_faults<'a>(faults: impl Iterator<Item = (&'a Name, Listed, &'a Fault)>) {
    for (name, listed, fault) in faults {
        let which = match listed {
            Listed::Yes => format!("hub {name}"),
            Listed::No => format!("hub {name}, which is no longer in network.toml,"),
        };
        match fault.class() {
            ExitClass::Unreachable => output::say(format!("{which} was not reached: {fault}")),
            ExitClass::Failed | ExitClass::NotPermitted | ExitClass::Wrong => {
                output::say(format!("{which} does not take part: {fault}"));
            }
        }
    }
}

fn say_uploaded(uploaded: &Uploaded, version: RosterVersion) -> Result<(), Failure> {
    if uploaded.stored().next().is_none() {
        let what = format!("roster {version} is signed, but no hub stored it");
        return Err(nobody(&what, uploaded.faults(), "try again: flatlan network publish"));
    }
    output::say(format!("roster {version} is stored by {}", listed(uploaded.stored())));
    say_faults(uploaded.faults());
    Ok(())
}

pub(super) fn uploaded_json(dir: &NetworkDir, uploaded: &Uploaded) -> Value {
    let stored = uploaded.stored().map(|name| json!({"name": name.as_str(), "stored": true}));
    let faults = uploaded.faults().filter(|(_, listed, _)| *listed == Listed::Yes);
    let faults =
        faults.map(|(name, _, fault)| json!({"name": name.as_str(), "stored": false, "error": fault.to_string()}));
    json!({
        "published": dir.published.as_ref().map(|published| version_json(published.version())),
        "hubs": stored.chain(faults).collect::<Vec<_>>(),
    })
}

fn version_json(version: RosterVersion) -> Value {
    json!({"key_epoch": version.key_epoch, "serial": version.serial})
}

fn change_json(change: &Change) -> Value {
    let kind = match change.kind {
        ChangeKind::Added => "added",
        ChangeKind::Changed => "changed",
        ChangeKind::Removed => "removed",
    };
    json!({"kind": kind, "entry": change.entry, "name": change.name.as_str(), "details": change.details})
}

fn standing_json(name: &Name, standing: &Standing) -> Value {
    let (state, held) = match standing {
        Standing::Empty => ("empty", None),
        Standing::Fork(_) => ("fork", None),
        Standing::Newer(held) => ("newer", Some(version_json(*held))),
        Standing::Older(held) => ("older", Some(version_json(*held))),
        Standing::Same => ("same", None),
    };
    json!({"name": name.as_str(), "state": state, "roster": held})
}
