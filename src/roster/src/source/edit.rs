//! Edits of network.toml that leave the rest as it is.
//!
//! A comment directly above an entry belongs to it and goes with it; what is separated from the entry by
//! a blank line stays. New entries follow the last of their kind.

use std::fmt::Display;

use flatlan_types::{InviteKey, Name, UnixTime};
use toml_edit::{Array, Decor, DocumentMut, InlineTable, Item, Key, Table, Value};

use super::{
    error::{Place, Problem, SourceError},
    read,
};

/// A file being edited.
pub(super) struct Edit(DocumentMut);

impl Edit {
    pub(super) fn open(text: &str) -> Result<Self, SourceError> {
        let document = text.parse().map_err(|e: toml_edit::TomlError| {
            SourceError::edit(Place::File, Problem::Syntax { message: e.message().to_owned() })
        })?;
        Ok(Self(document))
    }

    pub(super) fn finish(self) -> String {
        self.0.to_string()
    }

    /// Adds `[kind.name]`.
    pub(super) fn add(&mut self, kind: &'static str, name: &Name, mut table: Table) -> Result<(), SourceError> {
        // A position beyond the last keeps the new entry behind its siblings, wherever they stand.
        let end = last_position(self.0.as_table()).saturating_add(1);
        let siblings = self.0.entry(kind).or_insert_with(|| {
            let mut parent = Table::new();
            parent.set_implicit(true);
            Item::Table(parent)
        });
        let siblings = siblings.as_table_mut().ok_or_else(|| not_a_table(kind))?;
        let last = siblings.iter().filter_map(|(_, item)| item.as_table()).map(last_position).max();
        let position = last.unwrap_or(end);
        let tail = self.take_tail(position);
        table.set_position(Some(position));
        table.decor_mut().set_prefix(format!("{tail}\n"));
        let siblings = self.0.get_mut(kind).and_then(Item::as_table_mut).ok_or_else(|| not_a_table(kind))?;
        siblings.insert(name.as_str(), Item::Table(table));
        Ok(())
    }

    /// Removes `[kind.name]` with the comment directly above it.
    pub(super) fn remove(&mut self, kind: &'static str, name: &Name) -> Result<(), SourceError> {
        let siblings = self.0.get_mut(kind).and_then(Item::as_table_mut).ok_or_else(|| not_a_table(kind))?;
        let Some(Item::Table(gone)) = siblings.remove(name.as_str()) else { return Ok(()) };
        if siblings.is_empty() && siblings.is_implicit() {
            self.0.remove(kind);
        }
        let above = prefix(gone.decor()).to_owned();
        let kept = above.rfind("\n\n").map_or("", |blank| above.get(..=blank).unwrap_or_default());
        if !kept.contains('#') {
            return Ok(());
        }
        let behind = gone.position().unwrap_or(0);
        match next_table(self.0.as_table_mut(), behind) {
            Some(next) => {
                let joined = format!("{kept}{}", prefix(next.decor()));
                next.decor_mut().set_prefix(joined);
            }
            None => {
                let joined = format!("{kept}{}", self.0.trailing().as_str().unwrap_or_default());
                self.0.set_trailing(joined);
            }
        }
        Ok(())
    }

    /// Sets `key` of `[kind.name]`.
    pub(super) fn set(&mut self, kind: &'static str, name: &Name, key: &str, value: Value) -> Result<(), SourceError> {
        set(self.entry(kind, name)?, key, value);
        Ok(())
    }

    /// Makes a list of `[kind.name]` hold these: what is in it already stays as it is written.
    pub(super) fn set_items(
        &mut self,
        kind: &'static str,
        name: &Name,
        key: &str,
        items: &[impl Display],
    ) -> Result<(), SourceError> {
        let mut wanted: Vec<String> = items.iter().map(ToString::to_string).collect();
        let table = self.entry(kind, name)?;
        let Some(present) = table.get_mut(key).and_then(Item::as_array_mut) else {
            set(table, key, list(wanted));
            return Ok(());
        };
        for at in (0..present.len()).rev() {
            let item = present.get(at).and_then(Value::as_str);
            match wanted.iter().position(|wanted| item == Some(wanted)) {
                Some(found) => drop(wanted.remove(found)),
                None => remove_item(present, at),
            }
        }
        wanted.into_iter().for_each(|item| present.push(item));
        Ok(())
    }

    /// Removes `key` of `[kind.name]`.
    pub(super) fn unset(&mut self, kind: &'static str, name: &Name, key: &str) -> Result<(), SourceError> {
        self.entry(kind, name)?.remove(key);
        Ok(())
    }

    /// Puts the key that a claim brought in the place of the invite.
    pub(super) fn fold(&mut self, kind: &'static str, name: &Name, key: &str) -> Result<(), SourceError> {
        let table = self.entry(kind, name)?;
        if table.contains_key("key") || table.get("invite").is_some_and(Item::is_table) {
            table.remove("invite");
            set(table, "key", key);
            return Ok(());
        }
        let names: Vec<String> = table.iter().map(|(name, _)| name.to_owned()).collect();
        for name in names {
            let Some((old, item)) = table.remove_entry(&name) else { continue };
            if name == "invite" {
                let mut value = Value::from(key);
                if let Item::Value(invite) = &item {
                    *value.decor_mut() = invite.decor().clone();
                }
                let new = Key::new("key").with_leaf_decor(old.leaf_decor().clone());
                table.insert_formatted(&new, Item::Value(value));
            } else {
                table.insert_formatted(&old, item);
            }
        }
        Ok(())
    }

    /// Sets a key of `[network]`.
    pub(super) fn set_network(&mut self, key: &str, value: Value) -> Result<(), SourceError> {
        let table = self.0.get_mut("network").and_then(Item::as_table_mut).ok_or_else(|| not_a_table("network"))?;
        set(table, key, value);
        Ok(())
    }

    /// Takes the comment lines directly below the entry at `position`: they are its own, and a new entry
    /// goes behind them. The file holds them in front of the next entry, or at its end.
    fn take_tail(&mut self, position: isize) -> String {
        match next_table(self.0.as_table_mut(), position) {
            Some(next) => {
                let (tail, rest) = split_tail(prefix(next.decor()));
                next.decor_mut().set_prefix(rest);
                tail
            }
            None => {
                let trailing = self.0.trailing().as_str().unwrap_or_default();
                let (tail, rest) = if trailing.contains("\n\n") || trailing.starts_with('\n') {
                    split_tail(trailing)
                } else {
                    (trailing.to_owned(), String::new())
                };
                self.0.set_trailing(rest);
                tail
            }
        }
    }

    fn entry(&mut self, kind: &'static str, name: &Name) -> Result<&mut Table, SourceError> {
        let entry = self.0.get_mut(kind).and_then(|kind| kind.get_mut(name.as_str()));
        entry.and_then(Item::as_table_mut).ok_or_else(|| not_a_table(kind))
    }
}

/// Sets a key, and leaves a comment behind the old value where it is.
pub(super) fn set(table: &mut Table, key: &str, value: impl Into<Value>) {
    let mut value = value.into();
    match table.get_mut(key) {
        Some(Item::Value(old)) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        Some(_) | None => {
            table.insert(key, Item::Value(value));
        }
    }
}

/// Removes an item. What stands between it and the one before it is a comment on that one, and stays.
fn remove_item(array: &mut Array, at: usize) {
    let above = prefix(array.remove(at).decor()).to_owned();
    let Some(comment) = above.rfind('\n').and_then(|end| above.get(..end)).filter(|text| text.contains('#')) else {
        return;
    };
    match array.get_mut(at) {
        Some(next) => {
            let joined = format!("{comment}{}", prefix(next.decor()));
            next.decor_mut().set_prefix(joined);
        }
        None => {
            let joined = format!("{comment}{}", array.trailing().as_str().unwrap_or_default());
            array.set_trailing(joined);
        }
    }
}

/// Sets a key, if there is a value for it.
pub(super) fn set_some(table: &mut Table, key: &str, value: Option<&impl Display>) {
    if let Some(value) = value {
        set(table, key, value.to_string());
    }
}

/// Sets a key to a list, unless that is empty.
pub(super) fn set_list<T: Display>(table: &mut Table, key: &str, values: &[T]) {
    if !values.is_empty() {
        set(table, key, list(values.iter().map(T::to_string).collect()));
    }
}

/// A list of strings.
pub(super) fn list(texts: Vec<String>) -> Value {
    Value::Array(texts.into_iter().collect::<Array>())
}

/// An invite, on one line.
pub(super) fn invite(key: &InviteKey, expires: UnixTime, hub: &Name) -> Value {
    let mut table = InlineTable::new();
    table.insert("key", key.full().into());
    table.insert("expires", read::toml_time(expires));
    table.insert("hub", hub.as_str().into());
    Value::InlineTable(table)
}

fn not_a_table(kind: &'static str) -> SourceError {
    let problem =
        Problem::Type { key: kind.to_owned(), expected: "a table, [hub.NAME] or [member.NAME], to be edited" };
    SourceError::edit(Place::File, problem)
}

fn prefix(decor: &Decor) -> &str {
    decor.prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default()
}

/// What stands before the first blank line, and the rest. Without a blank line it all belongs to what follows.
fn split_tail(above: &str) -> (String, String) {
    let tail = above.find("\n\n").filter(|_| !above.starts_with('\n'));
    let (tail, rest) = above.split_at(tail.map_or(0, |blank| blank + 1));
    (tail.to_owned(), rest.to_owned())
}

/// The greatest position of a table and all within it.
fn last_position(table: &Table) -> isize {
    let within = table.iter().filter_map(|(_, item)| item.as_table()).map(last_position);
    within.chain(table.position()).max().unwrap_or(0)
}

/// The first table of the file behind a position.
fn next_table(table: &mut Table, behind: isize) -> Option<&mut Table> {
    let position = first_behind(table, behind)?;
    at_position(table, position)
}

fn first_behind(table: &Table, behind: isize) -> Option<isize> {
    let own = table.position().filter(|position| *position > behind && !table.is_implicit());
    let within = table.iter().filter_map(|(_, item)| first_behind(item.as_table()?, behind));
    within.chain(own).min()
}

fn at_position(table: &mut Table, position: isize) -> Option<&mut Table> {
    if table.position() == Some(position) && !table.is_implicit() {
        return Some(table);
    }
    table.iter_mut().find_map(|(_, item)| at_position(item.as_table_mut()?, position))
}
