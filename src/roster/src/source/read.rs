//! network.toml, read: every value typed, every error with its line.

use std::{net::IpAddr, ops::Range, str::FromStr};

use data_encoding::BASE64;
use flatlan_types::{AdminKey, HubKey, Name, NetworkId, NodeKeys, RecoveryKey, SessionKey, UnixTime, VirtualIp};
use toml_edit::{Document, Item, Offset, TableLike, Value};

use super::error::{Place, Problem, SourceError, ValueProblem};
use crate::{
    authority::{Authority, AuthorityError, KeyCertificate},
    calendar::{Span, Utc},
    record::{Expiry, HubRecord, Invite, MemberRecord, NetworkRecord, Record, Stock, stock_keys},
    records::Records,
    rules::{DEFAULT_LIFE, Entry},
};

/// What the file declares; it obeys every rule.
#[derive(Clone)]
pub(super) struct Declared {
    pub(super) authority: Authority,
    pub(super) life: Span,
    pub(super) records: Records,
}

impl Declared {
    pub(super) fn read(text: &str) -> Result<Self, SourceError> {
        let document = Document::parse(text).map_err(|e| {
            let message = e.message().trim_end().replace('\n', ", ");
            SourceError::new(Some(line(text, e.span())), Place::File, Problem::Syntax { message })
        })?;
        let root = Section { text, table: document.as_table(), place: Place::File, at: 0 };
        root.allow(&["hub", "member", "network"])?;
        let network = root.section("network", Place::Network)?.ok_or_else(|| {
            root.wrong("network", Problem::Missing { key: "[network]", hint: "flatlan network create writes it" })
        })?;
        let (authority, life, network_record) = read_network(&network)?;
        let hubs = root.entries("hub", Place::Hub)?;
        let hub_records = hubs.iter().map(|(name, hub)| read_hub(name, hub)).collect::<Result<Vec<_>, _>>()?;
        let members = root.entries("member", Place::Member)?;
        let mut records = vec![Record::Network(network_record)];
        for (name, member) in &members {
            records.push(Record::Member(read_member(name, member, &hub_records)?));
        }
        records.extend(hub_records.into_iter().map(Record::Hub));
        let records = Records::compile(records, &authority.network()).map_err(|violation| {
            let at = match violation.entry() {
                Entry::Hub(name) => hubs.iter().find(|(hub, _)| hub == name).map(|(_, section)| section.at),
                Entry::Member(name) => members.iter().find(|(member, _)| member == name).map(|(_, section)| section.at),
                Entry::Network => Some(network.at),
            };
            let line = at.map(|at| line(text, Some(at..at)));
            SourceError::new(line, Place::of(violation.entry()), Problem::Rule(violation))
        })?;
        Ok(Self { authority, life, records })
    }
}

fn read_network(s: &Section<'_>) -> Result<(Authority, Span, NetworkRecord), SourceError> {
    s.allow(&["name", "id", "admin", "recovery", "recovered", "range", "mtu", "valid", "expiry"])?;
    let created = "restore the line that `flatlan network create` wrote";
    let mut authority =
        Authority::new(s.required::<AdminKey>("admin", created)?, s.required::<RecoveryKey>("recovery", created)?);
    if s.required::<NetworkId>("id", created)? != authority.network() {
        return Err(s.wrong("id", Problem::Id));
    }
    for text in s.texts("recovered")? {
        let with = |text: &str| -> Result<Authority, AuthorityError> {
            authority.clone().with(KeyCertificate::from_text(text)?)
        };
        authority = with(text).map_err(|e| s.wrong("recovered", Problem::Authority(e)))?;
    }
    let expiry = match s.text("expiry")? {
        None | Some("warn") => Expiry::Warn,
        Some("refuse-new") => Expiry::RefuseNew,
        Some(_) => return Err(s.value("expiry", ValueProblem::Expiry)),
    };
    let record = NetworkRecord {
        name: s.required("name", "the network's name")?,
        range: s.required("range", "where members' IPv4 addresses come from, such as \"10.77.0.0/16\"")?,
        mtu: s.number("mtu")?.unwrap_or(DEFAULT_MTU),
        expiry,
    };
    let life = s.parsed("valid")?.unwrap_or(DEFAULT_LIFE);
    Ok((authority, life, record))
}

fn read_hub(name: &Name, s: &Section<'_>) -> Result<HubRecord, SourceError> {
    s.allow(&["key", "tls", "udp", "region", "weight"])?;
    Ok(HubRecord {
        name: name.clone(),
        key: s.required::<HubKey>("key", "what `flatlan hub init` printed on the hub")?,
        tls: s.required("tls", "HOST:PORT where the hub takes streams")?,
        udp: s.parsed("udp")?,
        region: s.parsed("region")?,
        weight: s.number("weight")?.unwrap_or(DEFAULT_WEIGHT),
    })
}

fn read_member(name: &Name, s: &Section<'_>, hubs: &[HubRecord]) -> Result<MemberRecord, SourceError> {
    s.allow(&["ip", "key", "invite", "routes", "moved", "groups", "endpoint", "ha", "priority", "wireguard", "via"])?;
    let ips = s.parsed_list::<IpAddr>("ip")?.into_iter().map(VirtualIp::new).collect();
    let wireguard = s
        .text("wireguard")?
        .map(|text| wireguard_key(text).ok_or_else(|| s.value("wireguard", ValueProblem::WireGuard)))
        .transpose()?;
    let via: Option<Name> = s.parsed("via")?;
    let (keys, stock) = match (s.parsed::<NodeKeys>("key")?, wireguard, via) {
        (Some(_), Some(_), _) => return Err(s.wrong("wireguard", Problem::BothKeys)),
        (keys, None, None) => (keys, None),
        (_, None, Some(_)) => return Err(s.wrong("via", Problem::ViaWithoutStock)),
        (None, Some(session), Some(via)) => (Some(stock_keys(session)), Some(Stock { via })),
        (None, Some(_), None) => {
            let hint = "name the member that terminates this WireGuard peer";
            return Err(s.wrong("wireguard", Problem::Missing { key: "via", hint }));
        }
    };
    let invite = s.section("invite", s.place.clone())?.map(|invite| read_invite(&invite, hubs)).transpose()?;
    Ok(MemberRecord {
        name: name.clone(),
        ips,
        keys,
        invite,
        routes: s.parsed_list("routes")?,
        moved: s.parsed_list("moved")?,
        groups: s.parsed_list("groups")?,
        endpoint: s.parsed("endpoint")?,
        ha: s.parsed("ha")?,
        priority: s.number("priority")?,
        stock,
    })
}

fn read_invite(s: &Section<'_>, hubs: &[HubRecord]) -> Result<Invite, SourceError> {
    s.allow(&["key", "expires", "hub"])?;
    let hint = "cancel the invite and make another with `flatlan invite`";
    let hub: Name = s.required("hub", hint)?;
    let redeemer = hubs.iter().find(|h| h.name == hub).ok_or_else(|| s.value("hub", ValueProblem::NoSuchHub))?.key;
    let expires = s.time("expires")?.ok_or_else(|| s.wrong("", Problem::Missing { key: "expires", hint }))?;
    Ok(Invite { key: s.required("key", hint)?, expires, redeemer })
}

/// One table of the file.
struct Section<'a> {
    text: &'a str,
    table: &'a dyn TableLike,
    place: Place,
    /// Where it begins.
    at: usize,
}

impl<'a> Section<'a> {
    fn allow(&self, known: &'static [&'static str]) -> Result<(), SourceError> {
        let unknown = self.table.iter().map(|(key, _)| key).find(|key| !known.contains(key));
        match unknown {
            None => Ok(()),
            Some(key) => Err(self.wrong(key, Problem::Unknown { key: key.to_owned(), known })),
        }
    }

    fn section(&self, key: &str, place: Place) -> Result<Option<Self>, SourceError> {
        let Some(item) = self.table.get(key) else { return Ok(None) };
        let Some(table) = item.as_table_like() else {
            return Err(self.wrong(key, Problem::Type { key: key.to_owned(), expected: "a table" }));
        };
        Ok(Some(Section { text: self.text, table, place, at: self.begin(key) }))
    }

    fn entries(&self, kind: &str, place: fn(String) -> Place) -> Result<Vec<(Name, Self)>, SourceError> {
        let Some(all) = self.section(kind, Place::File)? else { return Ok(Vec::new()) };
        let mut entries = Vec::new();
        for (key, item) in all.table.iter() {
            let name = key.parse().map_err(|e| {
                let problem = Problem::Value { key: "name".to_owned(), problem: ValueProblem::Name(e) };
                SourceError { place: place(key.to_owned()), ..all.wrong(key, problem) }
            })?;
            if !item.is_table_like() {
                return Err(all.not_a(key, "a table: [hub.NAME] or [member.NAME]"));
            }
            entries.extend(all.section(key, place(key.to_owned()))?.map(|section| (name, section)));
        }
        Ok(entries)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, SourceError> {
        let Some(item) = self.table.get(key) else { return Ok(None) };
        item.as_str().map(Some).ok_or_else(|| self.not_a(key, "a string in quotes"))
    }

    /// A list of strings; one string stands for a list of one.
    fn texts(&self, key: &str) -> Result<Vec<&'a str>, SourceError> {
        const EXPECTED: &str = "a string or a list of strings, such as [\"a\", \"b\"]";
        let Some(item) = self.table.get(key) else { return Ok(Vec::new()) };
        if let Some(one) = item.as_str() {
            return Ok(vec![one]);
        }
        let array = item.as_array().ok_or_else(|| self.not_a(key, EXPECTED))?;
        array.iter().map(|value| value.as_str().ok_or_else(|| self.not_a(key, EXPECTED))).collect()
    }

    fn parsed<T: FromStr<Err: Into<ValueProblem>>>(&self, key: &str) -> Result<Option<T>, SourceError> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        text.parse().map(Some).map_err(|e: T::Err| self.value(key, e.into()))
    }

    fn parsed_list<T: FromStr<Err: Into<ValueProblem>>>(&self, key: &str) -> Result<Vec<T>, SourceError> {
        self.texts(key)?.into_iter().map(|text| text.parse().map_err(|e: T::Err| self.value(key, e.into()))).collect()
    }

    fn required<T: FromStr<Err: Into<ValueProblem>>>(
        &self,
        key: &'static str,
        hint: &'static str,
    ) -> Result<T, SourceError> {
        self.parsed(key)?.ok_or_else(|| self.wrong("", Problem::Missing { key, hint }))
    }

    fn number(&self, key: &str) -> Result<Option<u16>, SourceError> {
        let Some(item) = self.table.get(key) else { return Ok(None) };
        let number = item.as_integer().ok_or_else(|| self.not_a(key, "a whole number"))?;
        u16::try_from(number).map(Some).map_err(|_| self.value(key, ValueProblem::Number))
    }

    fn time(&self, key: &str) -> Result<Option<UnixTime>, SourceError> {
        let Some(item) = self.table.get(key) else { return Ok(None) };
        let time = item.as_datetime().and_then(unix_time);
        time.map(Some).ok_or_else(|| self.value(key, ValueProblem::Time))
    }

    fn not_a(&self, key: &str, expected: &'static str) -> SourceError {
        self.wrong(key, Problem::Type { key: key.to_owned(), expected })
    }

    fn value(&self, key: &str, problem: ValueProblem) -> SourceError {
        self.wrong(key, Problem::Value { key: key.to_owned(), problem })
    }

    /// An error at `key`, or at the table where there is no such key.
    fn wrong(&self, key: &str, problem: Problem) -> SourceError {
        let at = self.begin(key);
        SourceError::new(Some(line(self.text, Some(at..at))), self.place.clone(), problem)
    }

    fn begin(&self, key: &str) -> usize {
        let of_item = || self.table.get(key).and_then(Item::span);
        let span = self.table.key(key).and_then(toml_edit::Key::span).or_else(of_item);
        span.map_or(self.at, |span| span.start)
    }
}

/// The line, from 1, of what begins a span.
fn line(text: &str, span: Option<Range<usize>>) -> usize {
    let start = span.map_or(0, |span| span.start);
    text.bytes().take(start).filter(|byte| *byte == b'\n').count() + 1
}

fn unix_time(datetime: &toml_edit::Datetime) -> Option<UnixTime> {
    let (date, time, offset) = (datetime.date?, datetime.time?, datetime.offset?);
    let second = time.second.unwrap_or(0).min(59);
    let Utc(local) = Utc::of(date.year, date.month, date.day, time.hour, time.minute, second)?;
    let minutes = match offset {
        Offset::Z => 0,
        Offset::Custom { minutes } => minutes,
    };
    local.0.checked_add_signed(-i64::from(minutes) * 60).map(UnixTime)
}

/// A WireGuard public key, as `wg pubkey` prints it.
pub fn wireguard_key(text: &str) -> Option<SessionKey> {
    let bytes = BASE64.decode(text.trim().as_bytes()).ok()?;
    Some(SessionKey::from_bytes(bytes.try_into().ok()?))
}

/// A key as WireGuard's own tools print it.
pub fn wireguard_text(key: &SessionKey) -> String {
    BASE64.encode(key.as_bytes())
}

/// A time as network.toml holds it.
pub(super) fn toml_time(time: UnixTime) -> Value {
    let (year, month, day, hour, minute, second) = Utc(time).parts();
    let date = toml_edit::Date { year, month, day };
    let time = toml_edit::Time { hour, minute, second: Some(second), nanosecond: None };
    toml_edit::Datetime { date: Some(date), time: Some(time), offset: Some(Offset::Z) }.into()
}

const DEFAULT_MTU: u16 = 1400;
pub(super) const DEFAULT_WEIGHT: u16 = 1;
