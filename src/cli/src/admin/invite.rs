//! `flatlan invite`: a token for one machine, and what becomes of it.

use std::cmp::Reverse;

use flatlan_os::clock;
use flatlan_roster::{
    MemberRecord, Source, Utc,
    source::{NewInvite, NewKeys, NewMember, Problem, Replace, SourceError},
};
use flatlan_types::{HubKey, InviteSecret, Name, VirtualIp};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    cannot,
    directory::{Access, NetworkDir},
    publish::Publishing,
};
use crate::{args::InviteArgs, failure::Failure, output};

/// `flatlan invite`.
pub(crate) fn invite(args: InviteArgs) -> Result<(), Failure> {
    match (&args.name, &args.cancel) {
        (Some(name), None) => open(name, &args),
        (None, Some(name)) => cancel(name, &args),
        (None, None) => list(&args),
        (Some(_), Some(_)) => Err(Failure::wrong("cannot invite and cancel at once: run two commands")),
    }
}

fn open(name: &Name, args: &InviteArgs) -> Result<(), Failure> {
    let what = format!("invite {name}");
    let mut dir = NetworkDir::open(args.dir.dir.as_deref(), Access::Change)?;
    let publishing = prepare(&mut dir, &what, args)?;
    let redeemer = args.hub.clone().or_else(|| publishing.as_ref().and_then(nearest));
    let secret = InviteSecret::from_bytes(&Zeroizing::new(flatlan_os::entropy::bytes()));
    let member = enter(&mut dir.source, name, args, &secret, redeemer.as_ref()).map_err(|e| cannot(&what, &e))?;
    let token = dir.source.token(name, secret).map_err(|e| cannot(&what, &e))?;
    let text = token.to_text().map_err(|error| Failure::wrong(format!("cannot {what}: {error}")))?;
    let flag = dir.state_flag();
    match publishing {
        None => {
            dir.write_source()?;
            output::say(format!("the token works once the roster is published: flatlan network publish{flag}"));
        }
        Some(publishing) => {
            let uploaded = publishing.finish(&mut dir).map_err(|failure| {
                failure.with_remedy(&format!("then a new token: flatlan invite {name} --replace{flag}"))
            })?;
            if !uploaded.stored().any(|hub| *hub == token.redeemer_name) {
                output::say(format!(
                    "warning: hub {}, the only one that may redeem this token, has not stored the roster: the token works once it has; by another hub: flatlan invite {name} --replace --hub HUB{flag}",
                    token.redeemer_name
                ));
            }
        }
    }
    output::say(format!(
        "invited {name} ({}) until {} by hub {}; on that machine: flatlan join -   (paste the token, then Ctrl-D)",
        addresses(&member),
        Utc(token.expires),
        token.redeemer_name
    ));
    if args.json {
        output::result(json!({
            "name": name.as_str(),
            "ips": member.ips,
            "expires": Utc(token.expires).to_string(),
            "hub": token.redeemer_name.as_str(),
            "token": text.as_str(),
        }));
    } else {
        output::result(text.as_str());
    }
    Ok(())
}

fn cancel(name: &Name, args: &InviteArgs) -> Result<(), Failure> {
    let what = format!("cancel the invite of {name}");
    let mut dir = NetworkDir::open(args.dir.dir.as_deref(), Access::Change)?;
    let publishing = prepare(&mut dir, &what, args)?;
    dir.source.cancel_invite(name).map_err(|error| {
        let joined = dir.source.member(name).is_some_and(|member| member.keys.is_some());
        if joined && *error.problem == Problem::NoInvite {
            let flag = dir.state_flag();
            return Failure::wrong(format!("cannot {what}: it has joined: to remove it: flatlan revoke {name}{flag}"));
        }
        cannot(&what, &error)
    })?;
    match publishing {
        None => {
            dir.write_source()?;
            let flag = dir.state_flag();
            output::say(format!("the token is void once the roster is published: flatlan network publish{flag}"));
        }
        Some(publishing) => {
            publishing.finish(&mut dir)?;
            output::say(format!("cancelled the invite of {name}"));
        }
    }
    Ok(())
}

/// The invites of network.toml. No hub is asked: what was not pulled shows as open.
fn list(args: &InviteArgs) -> Result<(), Failure> {
    let dir = NetworkDir::open(args.dir.dir.as_deref(), Access::Read)?;
    let now = clock::unix();
    let hubs = dir.source.records().hubs();
    let hub_name = |key: &HubKey| hubs.iter().find(|hub| hub.key == *key).map_or("?", |hub| hub.name.as_str());
    let invited = dir.source.records().members().filter_map(|member| Some((member, member.invite?)));
    let mut rows = Vec::new();
    for (member, invite) in invited {
        let claimed = dir.published.as_ref().is_some_and(|published| !published.claims().of(&invite.key).is_empty());
        let state = match (claimed, now > invite.expires) {
            (true, _) => "redeemed",
            (false, true) => "expired",
            (false, false) => "open",
        };
        rows.push((member, invite, hub_name(&invite.redeemer), state));
    }
    if args.json {
        let rows = rows.iter().map(|(member, invite, hub, state)| {
            json!({
                "name": member.name.as_str(),
                "ips": member.ips,
                "expires": Utc(invite.expires).to_string(),
                "hub": hub,
                "state": state,
            })
        });
        output::result(Value::Array(rows.collect()));
        return Ok(());
    }
    for (member, invite, hub, state) in &rows {
        output::result(format!(
            "{} {} {state} until {} by hub {hub}",
            member.name,
            addresses(member),
            Utc(invite.expires)
        ));
    }
    if rows.is_empty() {
        output::say("no invites");
    }
    Ok(())
}

/// Asks the hubs, unless nothing is to be published, and takes in who has joined since.
fn prepare(dir: &mut NetworkDir, what: &str, args: &InviteArgs) -> Result<Option<Publishing>, Failure> {
    if args.no_publish {
        if let Some(published) = &dir.published {
            dir.source.fold(published).map_err(|e| cannot("fold the claims", &e))?;
        }
        return Ok(None);
    }
    let publishing = Publishing::prepare(dir, what, UNCHANGED)?;
    let mut source = dir.source.clone();
    publishing.fold(dir, &mut source)?;
    dir.source = source;
    Ok(Some(publishing))
}

/// Who redeems when nobody is named: of the hubs that were reached, the one of greatest weight.
fn nearest(publishing: &Publishing) -> Option<Name> {
    let reached = publishing.survey().reached();
    reached.min_by_key(|hub| (Reverse(hub.weight), hub.name.clone())).map(|hub| hub.name.clone())
}

fn enter(
    source: &mut Source,
    name: &Name,
    args: &InviteArgs,
    secret: &InviteSecret,
    redeemer: Option<&Name>,
) -> Result<MemberRecord, SourceError> {
    let ips: Vec<VirtualIp> = args.ips.iter().copied().map(VirtualIp::new).collect();
    source.invite(&NewInvite {
        member: NewMember {
            ips: &ips,
            routes: &args.routes,
            groups: &args.groups,
            ha: args.ha.as_ref(),
            priority: args.priority,
            keys: NewKeys::Later,
            ..NewMember::named(name)
        },
        key: secret.public(),
        expires: clock::unix().after(args.expires.seconds),
        hub: redeemer,
        replace: if args.replace { Replace::Yes } else { Replace::No },
    })
}

/// A member's addresses in a sentence.
pub(super) fn addresses(member: &MemberRecord) -> String {
    member.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// What to do where no hub was reached.
pub(super) const UNCHANGED: &str =
    "nothing was changed; try again when one answers, or change network.toml alone with --no-publish";
