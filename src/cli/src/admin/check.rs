//! `flatlan check`: reads a file as the command that uses it would, and touches nothing else.

use std::{ops::Range, path::Path};

use flatlan::NodeFile;
use flatlan_hubd::HubFile;
use flatlan_os::{Why, located, stream::Proxy, tun::Tun};
use flatlan_roster::Source;
use serde::de::DeserializeOwned;

use crate::{args::CheckArgs, failure::Failure, output};

/// `flatlan check`.
pub(crate) fn check(args: CheckArgs) -> Result<(), Failure> {
    let path = &args.state.map_or_else(|| args.file.clone(), |dir| dir.join(&args.file));
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::wrong(format!("cannot read {}: {}: name a config file or a network.toml", path.display(), Why(error)))
    })?;
    let (kind, said) = match kind(path, &text)? {
        Kind::Network => ("network", network(path, &text)?),
        Kind::Hub => ("hub", hub(path, &text)?),
        Kind::Node => ("node", node(path, &text)?),
        Kind::Nothing => ("nothing", "it sets nothing: every setting has its default".to_owned()),
    };
    if args.json {
        output::result(serde_json::json!({ "file": path, "good": true, "kind": kind, "says": said }));
    } else {
        output::result(format!("{}: good: {said}", path.display()));
    }
    Ok(())
}

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Hub,
    Network,
    Node,
    Nothing,
}

/// By its keys: network.toml has tables, a hub's file has keys that no node's has.
fn kind(path: &Path, text: &str) -> Result<Kind, Failure> {
    let document =
        toml_edit::Document::parse(text).map_err(|error| wrong(path, text, error.span(), error.message()))?;
    let has = |keys: &[&str]| keys.iter().any(|key| document.contains_key(key));
    Ok(if document.is_empty() {
        Kind::Nothing
    } else if has(&["network", "member", "hub"]) {
        Kind::Network
    } else if has(HUB_SETTINGS) {
        Kind::Hub
    } else {
        Kind::Node
    })
}

/// Any of these makes it a hub's file.
const HUB_SETTINGS: &[&str] = &[
    "tls",
    "udp",
    "allow",
    "allow_any",
    "peers",
    "admin",
    "node_packets",
    "node_bytes",
    "network_packets",
    "network_bytes",
    "max_networks",
    "max_roster_bytes",
    "certificate",
    "certificate_key",
];

fn network(path: &Path, text: &str) -> Result<String, Failure> {
    let source = Source::parse(text).map_err(|error| Failure::wrong(format!("{}: {error}", path.display())))?;
    let (hubs, members) = (source.records().hubs().len(), source.records().members().count());
    Ok(format!("network {} with {hubs} hubs and {members} members", source.network().name))
}

fn hub(path: &Path, text: &str) -> Result<String, Failure> {
    let file: HubFile = read(path, text)?;
    if file.allow.is_empty() && !file.allow_any {
        return Err(Failure::wrong(format!(
            "{}: it serves no network: list some: allow = [\"flnet1...\"], or set allow_any = true",
            path.display()
        )));
    }
    if file.allow_any && !file.allow.is_empty() {
        return Err(Failure::wrong(format!(
            "{}: `allow` and `allow_any` exclude each other: remove one of them",
            path.display()
        )));
    }
    if file.certificate.as_os_str().is_empty() != file.certificate_key.as_os_str().is_empty() {
        return Err(Failure::wrong(format!(
            "{}: `certificate` and `certificate_key` go together: give both, or none",
            path.display()
        )));
    }
    file.dialled().map_err(|error| Failure::wrong(format!("{}: `peers`: {error}", path.display())))?;
    Ok(format!("a hub's configuration, TLS on {}", file.tls))
}

fn node(path: &Path, text: &str) -> Result<String, Failure> {
    let file: NodeFile = read(path, text)?;
    Tun::check_name(&file.tun).map_err(|error| Failure::wrong(format!("{}: `tun`: {error}", path.display())))?;
    if !file.proxy.is_empty() {
        let _: Proxy =
            file.proxy.parse().map_err(|error| Failure::wrong(format!("{}: `proxy`: {error}", path.display())))?;
    }
    file.lan_probe().map_err(|error| Failure::wrong(format!("{}: `lan_probe`: {error}", path.display())))?;
    Ok(format!("a node's configuration, state in {}", file.state.display()))
}

fn read<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Failure> {
    toml::from_str(text).map_err(|error| wrong(path, text, error.span(), error.message()))
}

fn wrong(path: &Path, text: &str, span: Option<Range<usize>>, message: &str) -> Failure {
    Failure::wrong(format!("{}: {}", path.display(), located(text, span, message)))
}
