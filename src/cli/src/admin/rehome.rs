//! `network move`: a prefix gets another home, or goes back to the one before.
//!
//! The last move is kept beside network.toml, with what its members carried before and after it, so that `--undo` takes
//! back exactly that, and nothing that somebody edited since.

use std::path::Path;

use flatlan_roster::{
    Source,
    source::{Carried, Rehoming},
};
use flatlan_types::{Name, Prefix};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    cannot,
    directory::{Access, NetworkDir},
    listed,
    publish::{Publishing, uploaded_json},
};
use crate::{failure::Failure, output};

/// What is to be moved.
pub(super) enum Move {
    /// This prefix, to this member.
    To(Prefix, Name),
    /// What was moved last, back.
    Undo,
}

/// Whether a move takes place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Really {
    /// It is published.
    Publish,
    /// Only what it would change is said.
    DryRun,
}

/// `flatlan network move`.
pub(super) fn rehome(dir: Option<&Path>, what: &Move, really: Really, as_json: bool) -> Result<(), Failure> {
    match really {
        Really::DryRun => {
            let dir = NetworkDir::open(dir, Access::Read)?;
            let mut source = dir.source.clone();
            say(&change(&dir, &mut source, what)?, as_json.then(|| json!({})));
            output::say("nothing was changed: the same without --dry-run makes it so");
        }
        Really::Publish => {
            let mut dir = NetworkDir::open(dir, Access::Change)?;
            let publishing = Publishing::prepare(&dir, "move", "nothing was changed; try again when one answers")?;
            let mut source = dir.source.clone();
            publishing.fold(&dir, &mut source)?;
            let rehoming = change(&dir, &mut source, what)?;
            if !as_json {
                say(&rehoming, None);
            }
            dir.source = source;
            // first what undoes it: it must not be missing once the roster is out
            let earlier = dir.kept_move()?;
            if matches!(what, Move::To(..)) {
                dir.keep_move(format!("{:#}\n", json!(Kept::from(rehoming.clone()))).as_bytes())?;
            }
            let uploaded = match publishing.finish(&mut dir) {
                Err(failure) if !dir.is_written()? => {
                    // nothing moved: what can be undone is what it was
                    match earlier {
                        Some(earlier) => dir.keep_move(&earlier)?,
                        None => dir.forget_move()?,
                    }
                    return Err(failure);
                }
                finished => finished?,
            };
            if matches!(what, Move::Undo) {
                dir.forget_move()?;
            }
            if as_json {
                say(&rehoming, Some(uploaded_json(&dir, &uploaded)));
            }
        }
    }
    Ok(())
}

/// Changes network.toml's text in memory.
fn change(dir: &NetworkDir, source: &mut Source, what: &Move) -> Result<Rehoming, Failure> {
    match what {
        Move::To(prefix, to) => source.rehome(*prefix, to).map_err(|e| cannot(&format!("move {prefix} to {to}"), &e)),
        Move::Undo => {
            let last = last(dir)?;
            source.undo_rehoming(&last).map_err(|e| cannot(&format!("take back the move of {}", last.prefix), &e))?;
            Ok(undone(last))
        }
    }
}

/// Who gets the traffic for the prefix, before and after; as JSON together with `rest`.
fn say(rehoming: &Rehoming, rest: Option<Value>) {
    let Rehoming { prefix, to, from, within, carried: _ } = rehoming;
    if let Some(rest) = rest {
        let names = |names: &[Name]| names.iter().map(|name| json!(name.as_str())).collect::<Vec<_>>();
        let within = within.as_ref().map(|(route, of)| json!({"route": route.to_string(), "members": names(of)}));
        let mut result =
            json!({"prefix": prefix.to_string(), "from": names(from), "to": to.as_str(), "within": within});
        if let (Some(result), Value::Object(rest)) = (result.as_object_mut(), rest) {
            result.extend(rest);
        }
        output::result(result);
        return;
    }
    output::result(format!("- {prefix} {}", listed(from)));
    output::result(format!("+ {prefix} {to}"));
    if let Some((route, carriers)) = within.as_ref().filter(|(_, carriers)| !carriers.contains(to)) {
        output::say(format!("the rest of {route} stays with {}", listed(carriers)));
    }
}

fn last(dir: &NetworkDir) -> Result<Rehoming, Failure> {
    let Some(bytes) = dir.kept_move()? else {
        return Err(Failure::wrong(
            "cannot take back a move: none was made from this directory, or it was taken back already: name what is to go where: flatlan network move PREFIX --to MEMBER",
        ));
    };
    let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| {
        Failure::wrong(format!(
            "{} cannot be read: {error}: name what is to go where: flatlan network move PREFIX --to MEMBER",
            dir.kept_move_path().display()
        ))
    })?;
    Ok(kept.into())
}

/// The way back.
fn undone(last: Rehoming) -> Rehoming {
    let Rehoming { prefix, to, from, within, carried } = last;
    let home = from.first().cloned().unwrap_or_else(|| to.clone());
    Rehoming { prefix, to: home, from: vec![to], within, carried: carried.into_iter().map(|(b, a)| (a, b)).collect() }
}

/// The file's form of a move.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    prefix: Prefix,
    to: Name,
    from: Vec<Name>,
    within: Option<(Prefix, Vec<Name>)>,
    /// What each member carried before, and after.
    carried: Vec<(KeptMember, KeptMember)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptMember {
    member: Name,
    routes: Vec<Prefix>,
    moved: Vec<Prefix>,
}

impl From<Rehoming> for Kept {
    fn from(Rehoming { prefix, to, from, within, carried }: Rehoming) -> Self {
        let carried = carried.into_iter().map(|(before, after)| (before.into(), after.into())).collect();
        Self { prefix, to, from, within, carried }
    }
}

impl From<Kept> for Rehoming {
    fn from(Kept { prefix, to, from, within, carried }: Kept) -> Self {
        let carried = carried.into_iter().map(|(before, after)| (before.into(), after.into())).collect();
        Self { prefix, to, from, within, carried }
    }
}

impl From<Carried> for KeptMember {
    fn from(Carried { member, routes, moved }: Carried) -> Self {
        Self { member, routes, moved }
    }
}

impl From<KeptMember> for Carried {
    fn from(KeptMember { member, routes, moved }: KeptMember) -> Self {
        Self { member, routes, moved }
    }
}
