//! `flatlan netcheck`: what stands between this machine's node and its site, and between it and its hubs.
//!
//! 1. the running node says what it carries, what others carry, and how it reaches hubs and peers;
//! 2. the kernel says how it forwards, filters and answers on the LANs (`machine`);
//! 3. what does not go together is a trap, with the command that removes it (`trap`).
//!
//! Nothing is changed and no packet is sent. What other machines of the LAN do is not known here.

mod machine;
mod trap;

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;

pub(crate) use self::trap::{Trap, prefixes};
use self::{
    machine::Machine,
    trap::{Kind, Overlay},
};
use crate::{
    args::NetcheckArgs,
    client::{array, describe_path, fetch_status, text},
    failure::Failure,
    node::runtime,
    output,
};

/// `flatlan netcheck`.
pub(crate) fn run(args: NetcheckArgs) -> Result<(), Failure> {
    if args.proxy.is_some() {
        return Err(Failure::not_in_this_version("netcheck --proxy"));
    }
    let status = fetch_status(&args.state.state)?;
    let overlay = Overlay::of(&status);
    let machine = runtime()?.block_on(Machine::read(&overlay))?;
    let checked = Checked {
        hubs: status.get("hubs").cloned().unwrap_or_default(),
        nat: Nat::of(&status),
        paths: paths(&status),
        traps: trap::find(&overlay, &machine),
        unknown: machine.unknown,
    };
    if args.json {
        output::result(serde_json::to_string_pretty(&checked).unwrap_or_default());
    } else {
        checked.print();
    }
    Ok(())
}

/// What of this machine may drop what it forwards.
pub(crate) fn obstacles(status: &Value) -> Result<Vec<Trap>, Failure> {
    let overlay = Overlay::of(status);
    let machine = runtime()?.block_on(Machine::read(&overlay))?;
    let traps = trap::find(&overlay, &machine).into_iter();
    Ok(traps.filter(|trap| matches!(trap.trap, Kind::Firewall | Kind::Forwarding | Kind::ReversePath)).collect())
}

#[derive(Debug, Serialize)]
struct Checked {
    /// As in `status`.
    hubs: Value,
    nat: Nat,
    /// The paths in use.
    paths: Vec<PeerPath>,
    /// What keeps packets from where they should go.
    traps: Vec<Trap>,
    /// What could not be read, and why.
    unknown: Vec<String>,
}

#[derive(Debug, Serialize)]
struct PeerPath {
    peer: String,
    path: Value,
}

/// What is between this machine and the hubs, as far as the endpoints tell under which they see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Nat {
    /// Every hub sees the same endpoint: others may reach it directly.
    SameForEach,
    /// Each hub sees another endpoint: a direct path needs a peer that is easier to reach.
    AnotherForEach,
    /// Fewer than two hubs see this machine by UDP.
    Unknown,
}

impl Nat {
    fn of(status: &Value) -> Self {
        let seen = array(status.get("hubs")).filter_map(|hub| hub.get("reflexive")?.as_str());
        let seen: Vec<&str> = seen.collect();
        // both families may be in use, each with an endpoint of its own
        let family = |v6: bool| seen.iter().filter(move |endpoint| endpoint.starts_with('[') == v6);
        let kinds = [false, true].map(|v6| match (family(v6).count(), family(v6).collect::<BTreeSet<_>>().len()) {
            (0 | 1, _) => Self::Unknown,
            (_, 1) => Self::SameForEach,
            _ => Self::AnotherForEach,
        });
        let known = |wanted: Self| kinds.contains(&wanted).then_some(wanted);
        known(Self::AnotherForEach).or_else(|| known(Self::SameForEach)).unwrap_or(Self::Unknown)
    }

    fn words(self) -> &'static str {
        match self {
            Self::SameForEach => "every hub sees this machine under the same endpoint",
            Self::AnotherForEach => "each hub sees this machine under another endpoint (a symmetric NAT)",
            Self::Unknown => "not known: fewer than two hubs are reached by UDP",
        }
    }
}

fn paths(status: &Value) -> Vec<PeerPath> {
    let used =
        array(status.get("peers")).filter_map(|peer| Some((peer, peer.get("path").filter(|path| !path.is_null())?)));
    used.map(|(peer, path)| PeerPath { peer: text(peer, "name").to_owned(), path: path.clone() }).collect()
}

impl Checked {
    fn print(&self) {
        for hub in array(Some(&self.hubs)) {
            let seen = hub.get("reflexive").and_then(Value::as_str);
            let seen = seen.map_or_else(String::new, |endpoint| format!(", sees this machine as {endpoint}"));
            let by = hub.get("transport").and_then(Value::as_str).map_or_else(String::new, |by| format!(" over {by}"));
            output::result(format!("hub      {} {}{by}{seen}", text(hub, "name"), text(hub, "state")));
        }
        output::result(format!("nat      {}", self.nat.words()));
        for PeerPath { peer, path } in &self.paths {
            let mtu = path.get("mtu").and_then(Value::as_u64).map_or_else(String::new, |mtu| format!(", MTU {mtu}"));
            output::result(format!("path     {peer}: {}{mtu}", describe_path(path)));
        }
        for trap in &self.traps {
            output::result(format!("TRAP     {trap}"));
        }
        for unknown in &self.unknown {
            output::result(format!("unknown  {unknown}"));
        }
        if self.traps.is_empty() {
            output::result("traps    none found");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_nat_is_told_by_the_endpoints_that_hubs_see() {
        let of = |seen: &[Option<&str>]| {
            let hubs: Vec<Value> = seen.iter().map(|seen| serde_json::json!({ "reflexive": seen })).collect();
            Nat::of(&serde_json::json!({ "hubs": hubs }))
        };
        let (a, b, v6) = (Some("192.0.2.1:1000"), Some("192.0.2.1:1001"), Some("[2001:db8::1]:1000"));
        assert_eq!(of(&[a, None, v6]), Nat::Unknown);
        assert_eq!(of(&[a, a, v6]), Nat::SameForEach);
        assert_eq!(of(&[a, b, v6]), Nat::AnotherForEach);
    }
}
