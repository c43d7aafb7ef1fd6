//! network.toml: the admin's one source of truth.
//!
//! The file is meant to be read, edited by hand and kept in git; it holds no secret. A [`Source`] is a
//! file that was read whole and obeys every rule; it compiles to [`Records`]. Edits by the tool change
//! only what they are about: comments, order and layout of the rest survive, and an edit after which
//! the file would break a rule changes nothing.
//!
//! ```toml
//! [network]
//! name = "lab"
//! id = "flnet1..."              # hash of the two keys below
//! admin = "fladmin1..."
//! recovery = "flrecovery1..."
//! range = "10.77.0.0/16"
//!
//! [hub.paris]
//! key = "flhub1..."
//! tls = "hub.example.net:443"
//! udp = "hub.example.net:51820"
//!
//! [member.office]
//! ip = "10.77.0.1"
//! key = "flnode1..."
//! routes = ["192.168.7.0/24"]
//! groups = ["sites"]
//!
//! [member.laptop]
//! ip = "10.77.0.2"
//! invite = { key = "flinvite1...", expires = 2026-03-01T12:00:00Z, hub = "paris" }
//! ```
//!
//! Nothing here touches a disk: the text goes in and comes out.

mod edit;
mod error;
mod plan;
mod read;
mod rehome;

use std::{fmt, net::IpAddr};

use flatlan_types::{
    AdminKey, AdminSecret, HostPort, HubKey, InviteKey, InviteSecret, Name, NetworkId, NodeKeys, Prefix, RecoveryKey,
    SessionKey, UnixTime, VirtualIp,
};
use toml_edit::Table;

use self::{edit::Edit, read::Declared};
use crate::{
    authority::Authority,
    calendar::Span,
    fold::KeyOrigin,
    record::{HubRecord, MemberRecord, NetworkRecord},
    records::Records,
    roster::{Draft, SignError, VerifiedRoster},
    rules,
    token::Token,
};

pub use error::{Place, Problem, SourceError, ValueProblem};
pub use plan::{Change, ChangeKind, plan};
pub use read::{wireguard_key, wireguard_text};
pub use rehome::{Carried, Rehoming};

/// A network.toml that obeys every rule. `Display` is the file's text.
#[derive(Clone)]
pub struct Source {
    text: String,
    declared: Declared,
}

impl Source {
    /// A new network's file.
    ///
    /// # Errors
    /// The range cannot be used.
    pub fn create(name: &Name, range: Prefix, admin: &AdminKey, recovery: &RecoveryKey) -> Result<Self, SourceError> {
        let id = NetworkId::of(admin, recovery).full();
        let (admin, recovery) = (admin.full(), recovery.full());
        Self::parse(&format!(
            r#"# The network "{name}": who is in it, with which addresses. Edit it by hand, keep it in git: it holds no
# secrets. `flatlan network plan` shows what would change, `flatlan network publish` makes it so.

[network]
name = "{name}"
id = "{id}"
admin = "{admin}"
recovery = "{recovery}"
range = "{range}" # where members' IPv4 addresses come from
# mtu = 1400
# valid = "180d" # publish again within this time
# expiry = "warn" # or "refuse-new": without a fresh roster, no new sessions
"#
        ))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        Ok(Self { text: text.to_owned(), declared: Declared::read(text)? })
    }

    /// Adds a hub.
    ///
    /// # Errors
    /// It is there, or its key is, or a rule forbids it.
    pub fn add_hub(&mut self, hub: &HubRecord) -> Result<(), SourceError> {
        let place = Place::Hub(hub.name.to_string());
        if self.hub(&hub.name).is_some() {
            return Err(SourceError::edit(place, Problem::Exists));
        }
        let mut table = Table::new();
        edit::set(&mut table, "key", hub.key.full());
        edit::set(&mut table, "tls", hub.tls.to_string());
        edit::set_some(&mut table, "udp", hub.udp.as_ref());
        edit::set_some(&mut table, "region", hub.region.as_ref());
        if hub.weight != read::DEFAULT_WEIGHT {
            edit::set(&mut table, "weight", i64::from(hub.weight));
        }
        self.edit(|file| file.add("hub", &hub.name, table))
    }

    /// Removes a hub.
    ///
    /// # Errors
    /// It is not there, or an open invite names it.
    pub fn remove_hub(&mut self, name: &Name) -> Result<(), SourceError> {
        let place = || Place::Hub(name.to_string());
        let hub = self.hub(name).ok_or_else(|| SourceError::edit(place(), Problem::NotThere))?;
        let redeems = |member: &&MemberRecord| member.invite.is_some_and(|invite| invite.redeemer == hub.key);
        if let Some(member) = self.records().members().find(redeems) {
            return Err(SourceError::edit(place(), Problem::Redeems { member: member.name.clone() }));
        }
        self.edit(|file| file.remove("hub", name))
    }

    /// Adds a member by its key: flatlan's own, or a plain WireGuard peer's. Without an IPv4 address it gets
    /// the next free one.
    ///
    /// # Errors
    /// It is there, its key is in use, no address is free, or a rule forbids it.
    pub fn add_member(&mut self, member: &NewMember<'_>) -> Result<MemberRecord, SourceError> {
        self.refuse_existing(member.name)?;
        let mut table = self.member_table(member)?;
        match member.keys {
            NewKeys::Node(keys) => edit::set(&mut table, "key", keys.full()),
            NewKeys::Stock { session, via } => {
                edit::set(&mut table, "wireguard", wireguard_text(&session));
                edit::set(&mut table, "via", via.as_str());
            }
            NewKeys::Later => {}
        }
        self.edit(|file| file.add("member", member.name, table))?;
        self.member_after_edit(member.name)
    }

    /// Removes a member: with the next publish it is revoked.
    ///
    /// # Errors
    /// It is not there, or a plain WireGuard peer is terminated by it.
    pub fn remove_member(&mut self, name: &Name) -> Result<MemberRecord, SourceError> {
        let place = || Place::Member(name.to_string());
        let gone = self.member(name).cloned().ok_or_else(|| SourceError::edit(place(), Problem::NotThere))?;
        self.edit(|file| file.remove("member", name))?;
        Ok(gone)
    }

    /// Opens an invite: for a new member, for one listed without a key, or (with
    /// [`Replace::Yes`]) for one whose machine is lost, or whose token is.
    ///
    /// # Errors
    /// The member has joined or has an open invite and is not to be replaced; there is no hub; a rule forbids it.
    pub fn invite(&mut self, invite: &NewInvite<'_>) -> Result<MemberRecord, SourceError> {
        let name = invite.member.name;
        let place = || Place::Member(name.to_string());
        let wrong = |problem| SourceError::edit(place(), problem);
        let hub = match invite.hub {
            Some(hub) => {
                self.hub(hub).ok_or_else(|| SourceError::edit(Place::Hub(hub.to_string()), Problem::NotThere))?
            }
            None => self.preferred_hub().ok_or_else(|| wrong(Problem::NoHub))?,
        };
        let value = edit::invite(&invite.key, invite.expires, &hub.name);
        let Some(member) = self.member(name) else {
            if invite.replace == Replace::Yes {
                return Err(wrong(Problem::NothingToReplace));
            }
            let mut table = self.member_table(&invite.member)?;
            edit::set(&mut table, "invite", value);
            self.edit(|file| file.add("member", name, table))?;
            return self.member_after_edit(name);
        };
        if member.stock.is_some() {
            return Err(wrong(Problem::StockInvite));
        }
        let own = &invite.member;
        if !(own.ips.is_empty()
            && own.routes.is_empty()
            && own.groups.is_empty()
            && own.ha.is_none()
            && own.priority.is_none())
        {
            return Err(wrong(Problem::KeepsItsOwn));
        }
        if invite.replace == Replace::No {
            if member.keys.is_some() {
                return Err(wrong(Problem::Joined { name: name.clone() }));
            }
            if member.invite.is_some() {
                return Err(wrong(Problem::Open { name: name.clone() }));
            }
        }
        self.edit(|file| file.set("member", name, "invite", value))?;
        self.member_after_edit(name)
    }

    /// Cancels an open invite. A member that has no key yet goes with it.
    ///
    /// # Errors
    /// There is no such member, or it has no open invite.
    pub fn cancel_invite(&mut self, name: &Name) -> Result<(), SourceError> {
        let place = || Place::Member(name.to_string());
        let member = self.member(name).ok_or_else(|| SourceError::edit(place(), Problem::NotThere))?;
        if member.invite.is_none() {
            return Err(SourceError::edit(place(), Problem::NoInvite));
        }
        let joined = member.keys.is_some();
        self.edit(|file| if joined { file.unset("member", name, "invite") } else { file.remove("member", name) })
    }

    /// Writes the keys of accepted claims into the file and retires their invites: what `pull` does.
    /// Returns the members that joined since.
    ///
    /// # Errors
    /// The file would break a rule.
    pub fn fold(&mut self, roster: &VerifiedRoster) -> Result<Vec<Name>, SourceError> {
        let claimed = |member: &&crate::fold::Member| {
            let here = self.member(member.name()).and_then(|here| here.invite);
            let open = here.is_some_and(|invite| Some(invite) == member.record.invite);
            open && matches!(member.origin, KeyOrigin::Claim(_)) && roster.network_id() == &self.network_id()
        };
        let joined: Vec<(Name, NodeKeys)> =
            roster.members().filter(claimed).map(|member| (member.name().clone(), member.keys)).collect();
        if !joined.is_empty() {
            self.edit(|file| joined.iter().try_for_each(|(name, keys)| file.fold("member", name, &keys.full())))?;
        }
        Ok(joined.into_iter().map(|(name, _)| name).collect())
    }

    /// Writes the certificates of `authority`: what `recover` does.
    ///
    /// # Errors
    /// They belong to another network.
    pub fn set_authority(&mut self, authority: &Authority) -> Result<(), SourceError> {
        if authority.network() != self.network_id() {
            return Err(SourceError::edit(Place::Network, Problem::Id));
        }
        let texts = authority.certificates().iter().map(crate::KeyCertificate::to_text);
        let value = edit::list(texts.collect());
        self.edit(|file| file.set_network("recovered", value))
    }

    /// The network's id.
    pub fn network_id(&self) -> NetworkId {
        self.declared.authority.network()
    }

    /// The keys that may sign.
    pub fn authority(&self) -> &Authority {
        &self.declared.authority
    }

    /// After how long a published roster should have been renewed.
    pub fn life(&self) -> Span {
        self.declared.life
    }

    /// What the file compiles to.
    pub fn records(&self) -> &Records {
        &self.declared.records
    }

    /// The network's own entry.
    pub fn network(&self) -> &NetworkRecord {
        self.records().network()
    }

    /// The hub of this name.
    pub fn hub(&self, name: &Name) -> Option<&HubRecord> {
        self.records().hubs().iter().find(|hub| hub.name == *name)
    }

    /// The member of this name.
    pub fn member(&self, name: &Name) -> Option<&MemberRecord> {
        self.records().member(name)
    }

    /// The lowest IPv4 address of the range that no member has.
    pub fn next_free_ip(&self) -> Option<VirtualIp> {
        let (first, last) = rules::host_range(self.network().range)?;
        let ips = self.records().members().flat_map(|member| &member.ips);
        let mut taken: Vec<u32> = ips
            .filter_map(|ip| match ip.ip() {
                IpAddr::V4(v4) => Some(u32::from(v4)),
                IpAddr::V6(_) => None,
            })
            .collect();
        taken.sort_unstable();
        let mut free = first;
        for ip in taken {
            if ip == free {
                free = free.checked_add(1)?;
            }
        }
        (free <= last).then(|| VirtualIp::new(IpAddr::V4(free.into())))
    }

    /// The token for a member's open invite, whose secret is `secret`.
    ///
    /// # Errors
    /// The member has no open invite with this secret.
    pub fn token(&self, member: &Name, secret: InviteSecret) -> Result<Token, SourceError> {
        let wrong = |problem| SourceError::edit(Place::Member(member.to_string()), problem);
        let invite = self.member(member).and_then(|member| member.invite).filter(|i| i.key == secret.public());
        let invite = invite.ok_or_else(|| wrong(Problem::NoInvite))?;
        let hub = self.records().hubs().iter().find(|hub| hub.key == invite.redeemer);
        let hub = hub.ok_or_else(|| wrong(Problem::NoHub))?;
        Ok(Token {
            first_admin: *self.authority().first_admin(),
            recovery: *self.authority().recovery(),
            network_name: self.network().name.clone(),
            member: member.clone(),
            secret,
            expires: invite.expires,
            redeemer: hub.key,
            redeemer_name: hub.name.clone(),
            endpoints: vec![hub.tls.clone()],
        })
    }

    /// Signs what the file says, on top of what was published last.
    ///
    /// # Errors
    /// As [`VerifiedRoster::sign`].
    pub fn sign(
        &self,
        base: Option<&VerifiedRoster>,
        secret: &AdminSecret,
        now: UnixTime,
    ) -> Result<VerifiedRoster, SignError> {
        let draft = Draft { authority: self.authority(), records: self.records(), base, now, life: self.life() };
        VerifiedRoster::sign(draft, secret)
    }

    fn preferred_hub(&self) -> Option<&HubRecord> {
        self.records().hubs().iter().min_by_key(|hub| (std::cmp::Reverse(hub.weight), &hub.name))
    }

    fn refuse_existing(&self, name: &Name) -> Result<(), SourceError> {
        match self.member(name) {
            None => Ok(()),
            Some(_) => Err(SourceError::edit(Place::Member(name.to_string()), Problem::Exists)),
        }
    }

    fn member_table(&self, member: &NewMember<'_>) -> Result<Table, SourceError> {
        let mut ips = member.ips.to_vec();
        if ips.iter().all(|ip| ip.ip().is_ipv6()) {
            let free = self.next_free_ip().ok_or_else(|| {
                let problem = Problem::NoFreeAddress { range: self.network().range };
                SourceError::edit(Place::Member(member.name.to_string()), problem)
            })?;
            ips.insert(0, free);
        }
        let mut table = Table::new();
        match ips.as_slice() {
            [ip] => edit::set(&mut table, "ip", ip.to_string()),
            _ => edit::set_list(&mut table, "ip", &ips),
        }
        edit::set_list(&mut table, "routes", member.routes);
        edit::set_list(&mut table, "groups", member.groups);
        edit::set_some(&mut table, "ha", member.ha);
        if let Some(priority) = member.priority {
            edit::set(&mut table, "priority", i64::from(priority));
        }
        edit::set_some(&mut table, "endpoint", member.endpoint);
        Ok(table)
    }

    fn member_after_edit(&self, name: &Name) -> Result<MemberRecord, SourceError> {
        let not_there = || SourceError::edit(Place::Member(name.to_string()), Problem::NotThere);
        self.member(name).cloned().ok_or_else(not_there)
    }

    /// Applies a change to the text, and takes it only if the result obeys every rule.
    fn edit(&mut self, change: impl FnOnce(&mut Edit) -> Result<(), SourceError>) -> Result<(), SourceError> {
        let mut edit = Edit::open(&self.text)?;
        change(&mut edit)?;
        *self = Self::parse(&edit.finish()).map_err(|e| SourceError { line: None, ..e })?;
        Ok(())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({}, {} records)", self.network().name, self.records().len())
    }
}

/// A member to be added.
#[derive(Clone, Copy, Debug)]
pub struct NewMember<'a> {
    /// Its name.
    pub name: &'a Name,
    /// Its addresses. Without an IPv4 address it gets the next free one.
    pub ips: &'a [VirtualIp],
    /// Prefixes of its site that it carries.
    pub routes: &'a [Prefix],
    /// Groups that it is in.
    pub groups: &'a [Name],
    /// The group of members that may carry the same prefixes for each other.
    pub ha: Option<&'a Name>,
    /// How much it is preferred in that group.
    pub priority: Option<u16>,
    /// Where it can be reached directly.
    pub endpoint: Option<&'a HostPort>,
    /// Its keys.
    pub keys: NewKeys<'a>,
}

impl<'a> NewMember<'a> {
    /// A member with nothing but a name.
    pub fn named(name: &'a Name) -> Self {
        Self {
            name,
            ips: &[],
            routes: &[],
            groups: &[],
            ha: None,
            priority: None,
            endpoint: None,
            keys: NewKeys::Later,
        }
    }
}

/// The keys of a member to be added.
#[derive(Clone, Copy, Debug)]
pub enum NewKeys<'a> {
    /// None yet: its place is reserved, or an invite comes with it.
    Later,
    /// Those that `flatlan join --request` printed.
    Node(NodeKeys),
    /// A plain WireGuard peer.
    Stock {
        /// Its public key.
        session: SessionKey,
        /// The member that terminates its tunnel.
        via: &'a Name,
    },
}

/// An invite to be opened.
#[derive(Clone, Copy, Debug)]
pub struct NewInvite<'a> {
    /// The member. Its `keys` are not looked at.
    pub member: NewMember<'a>,
    /// The invite's public key, made for this invite alone.
    pub key: InviteKey,
    /// Until when it may be redeemed.
    pub expires: UnixTime,
    /// The hub that may redeem it; else the one of greatest weight.
    pub hub: Option<&'a Name>,
    /// Whether a member that has joined or was invited is to be replaced.
    pub replace: Replace,
}

/// Whether an invite may replace a member's keys, or its open invite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replace {
    /// It must be new, or without keys.
    No,
    /// The new claim replaces the old keys when it lands.
    Yes,
}

/// A hub with the values that network.toml leaves out.
pub fn new_hub(name: Name, key: HubKey, tls: HostPort) -> HubRecord {
    HubRecord { name, key, tls, udp: None, region: None, weight: read::DEFAULT_WEIGHT }
}
