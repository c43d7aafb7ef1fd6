//! What a publish would change, for a human to read.

use std::{collections::BTreeMap, fmt};

use flatlan_types::{HubKey, Name};

use crate::{
    calendar::Utc,
    record::{Expiry, HubRecord, Invite, MemberRecord, NetworkRecord, Stock},
    records::Records,
};

/// The changes from what is published to `next`, in the order of the records.
pub fn plan(published: Option<&Records>, next: &Records) -> Vec<Change> {
    let hub_names: BTreeMap<HubKey, &Name> = published
        .into_iter()
        .chain([next])
        .flat_map(|records| records.hubs().iter().map(|hub| (hub.key, &hub.name)))
        .collect();
    let invite = |invite: &Invite| {
        let hub = hub_names.get(&invite.redeemer).map_or_else(|| invite.redeemer.to_string(), |name| name.to_string());
        format!("invited until {} by hub {hub} ({})", Utc(invite.expires), invite.key)
    };
    let mut changes = Vec::new();
    let networks = |records: &Records| vec![records.network().clone()];
    let (old_network, new_network) = (published.map(networks).unwrap_or_default(), networks(next));
    compare(&mut changes, "network", &old_network, &new_network, |n| &n.name, network_facts);
    let old_hubs = published.into_iter().flat_map(Records::hubs);
    compare(&mut changes, "hub", old_hubs, next.hubs(), |hub| &hub.name, hub_facts);
    let old_members = published.into_iter().flat_map(Records::members);
    compare(&mut changes, "member", old_members, next.members(), |member| &member.name, |m| member_facts(m, &invite));
    changes
}

/// One entry that a publish would add, change or remove. `Display` is its line in a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happens to it.
    pub kind: ChangeKind,
    /// `network`, `hub` or `member`.
    pub entry: &'static str,
    /// Its name.
    pub name: Name,
    /// What it has, or what differs.
    pub details: Vec<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.kind {
            ChangeKind::Added => '+',
            ChangeKind::Changed => '~',
            ChangeKind::Removed => '-',
        };
        write!(f, "{sign} {} {}", self.entry, self.name)?;
        if !self.details.is_empty() {
            write!(f, ": {}", self.details.join(", "))?;
        }
        Ok(())
    }
}

/// What happens to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It differs.
    Changed,
    /// It goes. A member is revoked.
    Removed,
}

/// A word for what a fact is about, and the fact.
type Fact = (&'static str, String);

fn compare<'a, T: PartialEq + 'a>(
    changes: &mut Vec<Change>,
    entry: &'static str,
    old: impl IntoIterator<Item = &'a T>,
    new: impl IntoIterator<Item = &'a T>,
    name: impl Fn(&T) -> &Name,
    facts: impl Fn(&T) -> Vec<Fact>,
) {
    let old: BTreeMap<&Name, &T> = old.into_iter().map(|item| (name(item), item)).collect();
    let new: BTreeMap<&Name, &T> = new.into_iter().map(|item| (name(item), item)).collect();
    let mut names: Vec<&Name> = old.keys().chain(new.keys()).copied().collect();
    names.sort();
    names.dedup();
    for name in names {
        let (kind, details) = match (old.get(name), new.get(name)) {
            (None, Some(new)) => (ChangeKind::Added, facts(new).into_iter().map(|fact| say(&fact)).collect()),
            (Some(old), Some(new)) if old != new => (ChangeKind::Changed, differences(&facts(old), &facts(new))),
            (Some(old), None) => (ChangeKind::Removed, facts(old).into_iter().map(|fact| say(&fact)).collect()),
            (Some(_), Some(_)) | (None, None) => continue,
        };
        changes.push(Change { kind, entry, name: name.clone(), details });
    }
}

fn say((what, fact): &Fact) -> String {
    if what.is_empty() { fact.clone() } else { format!("{what} {fact}") }
}

fn differences(old: &[Fact], new: &[Fact]) -> Vec<String> {
    let gone: Vec<&Fact> = old.iter().filter(|fact| !new.contains(fact)).collect();
    let come: Vec<&Fact> = new.iter().filter(|fact| !old.contains(fact)).collect();
    let of = |facts: &[&Fact], what: &str| facts.iter().filter(|fact| fact.0 == what).count();
    let mut lines = Vec::new();
    for fact in &gone {
        let replaced = of(&gone, fact.0) == 1 && of(&come, fact.0) == 1;
        let by = come.iter().find(|new| new.0 == fact.0).filter(|_| replaced);
        lines.push(match by {
            Some(new) => format!("{} -> {}", say(fact), new.1),
            None => format!("no longer {}", say(fact)),
        });
    }
    for fact in &come {
        if !(of(&gone, fact.0) == 1 && of(&come, fact.0) == 1) {
            lines.push(format!("new {}", say(fact)));
        }
    }
    lines
}

fn network_facts(network: &NetworkRecord) -> Vec<Fact> {
    let expiry = match network.expiry {
        Expiry::Warn => "warn",
        Expiry::RefuseNew => "refuse-new",
    };
    vec![("range", network.range.to_string()), ("mtu", network.mtu.to_string()), ("expiry", expiry.to_owned())]
}

fn hub_facts(hub: &HubRecord) -> Vec<Fact> {
    let mut facts = vec![("key", hub.key.to_string()), ("tls", hub.tls.to_string())];
    facts.extend(hub.udp.iter().map(|udp| ("udp", udp.to_string())));
    facts.extend(hub.region.iter().map(|region| ("region", region.to_string())));
    facts.push(("weight", hub.weight.to_string()));
    facts
}

fn member_facts(member: &MemberRecord, invite: &impl Fn(&Invite) -> String) -> Vec<Fact> {
    let mut facts: Vec<Fact> = member.ips.iter().map(|ip| ("ip", ip.to_string())).collect();
    facts.extend(member.routes.iter().map(|route| ("route", route.to_string())));
    facts.extend(member.moved.iter().map(|moved| ("moved", moved.to_string())));
    facts.extend(member.groups.iter().map(|group| ("group", group.to_string())));
    facts.extend(member.endpoint.iter().map(|endpoint| ("endpoint", endpoint.to_string())));
    facts.extend(member.ha.iter().map(|ha| ("ha", ha.to_string())));
    facts.extend(member.priority.iter().map(|priority| ("priority", priority.to_string())));
    facts.extend(member.stock.iter().map(|Stock { via }| ("plain WireGuard via", via.to_string())));
    facts.extend(member.keys.iter().map(|keys| match member.stock {
        Some(_) => ("key", keys.session.to_string()),
        None => ("key", keys.id.to_string()),
    }));
    facts.extend(member.invite.iter().map(|open| ("", invite(open))));
    if member.keys.is_none() && member.invite.is_none() {
        facts.push(("", "reserved, without a key".to_owned()));
    }
    facts
}
