//! By which way flatlan's packets go, as both nodes tell it. A measurement of another way than the mode's is void.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::arena::{Arena, Machine, Mode};
use crate::peer;

/// Both nodes' paths to each other, in words: `a: direct udp; b: direct udp`. An error where one is not the mode's.
pub(crate) fn check(arena: &Arena, mode: Mode, binary: &str) -> Result<String> {
    let mut words = Vec::new();
    for (node, other) in [(Machine::A, Machine::B), (Machine::B, Machine::A)] {
        let status = peer::flatlan::status(arena, node, binary)?;
        let path = path(&status, other.word()).with_context(|| format!("{} has no path", node.word()))?;
        let told = format!("{}: {}", node.word(), describe(path));
        if !is_of(mode, path) {
            bail!("{told}, which is not {}", mode.word());
        }
        words.push(told);
    }
    Ok(words.join("; "))
}

/// Waits until both paths are the mode's. Something must be sent meanwhile: idle peers have no path.
pub(crate) fn wait(arena: &Arena, mode: Mode, binary: &str) -> Result<String> {
    let deadline = Instant::now() + LIMIT;
    loop {
        match check(arena, mode, binary) {
            Err(error) if Instant::now() > deadline => return Err(error.context("the path of this mode never came")),
            Err(_) => std::thread::sleep(AGAIN),
            Ok(words) => return Ok(words),
        }
    }
}

fn path<'a>(status: &'a Value, to: &str) -> Option<&'a Value> {
    let peers = status.get("peers")?.as_array()?;
    let peer = peers.iter().find(|peer| peer.get("name").and_then(Value::as_str) == Some(to))?;
    peer.get("path").filter(|path| !path.is_null())
}

fn is_of(mode: Mode, path: &Value) -> bool {
    let (kind, transport, hubs) = parts(path);
    match mode {
        Mode::Direct => kind == "direct",
        Mode::Hub => kind == "relay" && transport == "udp" && hubs.len() == 1,
        Mode::Hub2 => kind == "relay" && transport == "udp" && hubs.len() == 2,
        Mode::Tls => kind == "relay" && transport == "tcp" && hubs.len() == 1,
    }
}

fn describe(path: &Value) -> String {
    let (kind, transport, hubs) = parts(path);
    let via = if hubs.is_empty() { String::new() } else { format!(" via {}", hubs.join(", ")) };
    format!("{kind} {transport}{via}")
}

fn parts(path: &Value) -> (&str, &str, Vec<&str>) {
    let word = |name: &str| path.get(name).and_then(Value::as_str).unwrap_or("unknown");
    let hubs = path.get("via").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    (word("kind"), word("transport"), hubs.iter().filter_map(Value::as_str).collect())
}

/// How long the path of the mode may take to come.
const LIMIT: Duration = Duration::from_secs(15);
/// How often it is looked for.
const AGAIN: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn modes_of(path: &Value) -> Vec<&'static str> {
        Mode::ALL.into_iter().filter(|mode| is_of(*mode, path)).map(Mode::word).collect()
    }

    #[test]
    fn each_path_belongs_to_one_mode() {
        let relay = |transport, via: &[&str]| serde_json::json!({"kind": "relay", "transport": transport, "via": via});
        assert_eq!(modes_of(&serde_json::json!({"kind": "direct", "transport": "udp", "via": []})), ["direct"]);
        assert_eq!(modes_of(&relay("udp", &["h"])), ["hub"]);
        assert_eq!(modes_of(&relay("udp", &["h", "g"])), ["hub2"]);
        assert_eq!(modes_of(&relay("tcp", &["h"])), ["tls"]);
        assert!(modes_of(&relay("tcp", &["h", "g"])).is_empty());
        assert!(modes_of(&serde_json::json!({})).is_empty());
    }

    #[test]
    fn the_path_to_the_other_end_is_found_by_its_name() {
        let status = serde_json::json!({"peers": [
            {"name": "x", "path": {"kind": "direct", "transport": "udp"}},
            {"name": "b", "path": {"kind": "relay", "transport": "udp", "via": ["h"]}},
            {"name": "idle", "path": null},
        ]});
        assert_eq!(path(&status, "b").map(describe).as_deref(), Some("relay udp via h"));
        assert!(path(&status, "idle").is_none() && path(&status, "nobody").is_none());
    }
}
