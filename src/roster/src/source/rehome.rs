//! A prefix gets another home: what `network move` changes in network.toml.
//!
//! A part of a route is listed under `moved` of its new carrier, and the route itself stays: that is where the traffic
//! goes back to. A whole route goes from one member's `routes` to the other's.

use flatlan_types::{Name, Prefix};

use super::{
    Source,
    error::{Place, Problem, SourceError},
};
use crate::record::MemberRecord;

/// What a move of a prefix changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rehoming {
    /// What moves.
    pub prefix: Prefix,
    /// Who carries it from here on.
    pub to: Name,
    /// Who carried it: several where they are one HA group.
    pub from: Vec<Name>,
    /// The route that it is a part of, and who carries that.
    pub within: Option<(Prefix, Vec<Name>)>,
    /// What the members that it is about carried before, and carry after it.
    pub carried: Vec<(Carried, Carried)>,
}

/// What one member carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The member.
    pub member: Name,
    /// Prefixes of its own site.
    pub routes: Vec<Prefix>,
    /// What was moved to it.
    pub moved: Vec<Prefix>,
}

impl Carried {
    fn of(member: &MemberRecord) -> Self {
        Self { member: member.name.clone(), routes: member.routes.clone(), moved: member.moved.clone() }
    }
}

impl Source {
    /// Gives a prefix to another member: one address, a part of a route, or a whole one.
    ///
    /// # Errors
    /// There is no such member, nobody carries the prefix, it is at home there already, or a rule forbids it.
    pub fn rehome(&mut self, prefix: Prefix, to: &Name) -> Result<Rehoming, SourceError> {
        let wrong = |problem| SourceError::edit(Place::Member(to.to_string()), problem);
        self.member(to).ok_or_else(|| wrong(Problem::NotThere))?;
        let members: Vec<&MemberRecord> = self.records().members().collect();
        let names = |carries: &dyn Fn(&MemberRecord) -> bool| -> Vec<Name> {
            members.iter().copied().filter(|member| carries(member)).map(|member| member.name.clone()).collect()
        };
        let whole = names(&|member| member.routes.contains(&prefix));
        let moved_to = names(&|member| member.moved.contains(&prefix));
        let wider = |route: &&Prefix| prefix.lies_in(**route) && **route != prefix;
        // the nearest of the prefixes that it is a part of; routes of HA groups stand with each carrier
        let nearest =
            |prefixes: &mut dyn Iterator<Item = &Prefix>| prefixes.filter(wider).max_by_key(|p| p.length()).copied();
        let route = nearest(&mut members.iter().copied().flat_map(|member| &member.routes));
        let around = nearest(&mut members.iter().copied().flat_map(|member| member.routes.iter().chain(&member.moved)));
        let within = route.map(|route| (route, names(&|member| member.routes.contains(&route))));
        let from = [&moved_to, &whole].into_iter().find(|carriers| !carriers.is_empty()).cloned();
        let from = from.or_else(|| {
            around.map(|around| names(&|member| member.routes.contains(&around) || member.moved.contains(&around)))
        });
        let from = from.ok_or_else(|| wrong(Problem::NobodyCarries { prefix }))?;
        if from.contains(to) {
            return Err(wrong(Problem::CarriesAlready { prefix }));
        }
        let at_home =
            whole.is_empty() && around == route && within.as_ref().is_some_and(|(_, names)| names.contains(to));
        let mut carried = Vec::new();
        for member in members.iter().copied().filter(|member| member.name == *to || from.contains(&member.name)) {
            let before = Carried::of(member);
            let mut after = before.clone();
            after.moved.retain(|moved| *moved != prefix);
            after.routes.retain(|route| *route != prefix);
            if member.name == *to {
                match (whole.is_empty(), at_home) {
                    (false, _) => after.routes.push(prefix),
                    (true, false) => after.moved.push(prefix),
                    (true, true) => {}
                }
            }
            if before != after {
                carried.push((before, after));
            }
        }
        let rehoming = Rehoming { prefix, to: to.clone(), from, within, carried };
        self.set_carried(rehoming.carried.iter().map(|(_, after)| after))?;
        Ok(rehoming)
    }

    /// Takes a move back.
    ///
    /// # Errors
    /// What its members carry was changed since, or a rule forbids it.
    pub fn undo_rehoming(&mut self, rehoming: &Rehoming) -> Result<(), SourceError> {
        for (_, after) in &rehoming.carried {
            if self.member(&after.member).map(Carried::of).as_ref() != Some(after) {
                let place = Place::Member(after.member.to_string());
                return Err(SourceError::edit(place, Problem::ChangedSince { prefix: rehoming.prefix }));
            }
        }
        self.set_carried(rehoming.carried.iter().map(|(before, _)| before))
    }

    fn set_carried<'a>(&mut self, carried: impl Iterator<Item = &'a Carried>) -> Result<(), SourceError> {
        self.edit(|file| {
            for Carried { member, routes, moved } in carried {
                for (key, prefixes) in [("routes", routes), ("moved", moved)] {
                    if prefixes.is_empty() {
                        file.unset("member", member, key)?;
                    } else {
                        file.set_items("member", member, key, prefixes)?;
                    }
                }
            }
            Ok(())
        })
    }
}
