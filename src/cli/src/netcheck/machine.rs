//! What this machine's kernel says of how it forwards, filters and answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    process::Command,
};

use flatlan_os::route::{Connected, Netlink, Way};
use serde_json::Value;

use super::trap::Overlay;
use crate::{client::array, failure::Failure};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Machine {
    /// Whether it forwards at all.
    pub(super) forwards: Forwards,
    /// The TUN and those that the machine is in a network by.
    pub(super) devices: BTreeMap<String, Device>,
    /// The networks that the machine is in, but for the overlay.
    pub(super) connected: Vec<Connected>,
    /// Where the kernel sends what is for the addresses that were asked for.
    pub(super) ways: BTreeMap<IpAddr, Option<Way>>,
    /// What is answered for by proxy ARP, one by one.
    pub(super) answers: BTreeSet<(String, IpAddr)>,
    /// Filters that drop what is forwarded.
    pub(super) filters: Vec<Filter>,
    /// What could not be read, and why.
    pub(super) unknown: Vec<String>,
}

/// Whether a machine forwards packets between its devices.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forwards {
    pub(super) v4: bool,
    pub(super) v6: bool,
}

/// What the kernel was told about a device; what holds for all devices is in it already.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Device {
    /// Packets that come in by it are forwarded (IPv4).
    pub(super) forwards: bool,
    /// 1: what comes in must be answered the same way (RFC 3704 strict); 2: by any; 0: not asked.
    pub(super) rp_filter: u32,
    /// 8: it answers nobody who asks for its addresses.
    pub(super) arp_ignore: u32,
    /// It answers only whom the kernel would send to by the same device.
    pub(super) arp_filter: bool,
    /// It answers for all that the kernel sends elsewhere.
    pub(super) proxy_arp: bool,
}

/// A place where forwarded packets are dropped unless a rule before lets them pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Filter {
    /// `inet filter forward`.
    pub(super) chain: String,
    /// How to read it.
    pub(super) read: String,
    /// How to let the overlay pass.
    pub(super) pass: String,
}

impl Machine {
    /// Asks the kernel about all that matters to a member of `overlay`.
    pub(super) async fn read(overlay: &Overlay) -> Result<Self, Failure> {
        let netlink = Netlink::open()?;
        let tun: Vec<_> = netlink.link(&overlay.tun).await.ok().into_iter().collect();
        let connected = netlink.connected(&tun).await?;
        let asked = overlay.asked(&connected);
        let mut machine = Self {
            forwards: Forwards {
                v4: setting("ipv4/ip_forward").is_none_or(|on| on != 0),
                v6: setting("ipv6/conf/all/forwarding").is_none_or(|on| on != 0),
            },
            devices: BTreeMap::new(),
            ways: netlink.ways(asked).await?,
            answers: netlink.answers().await?,
            connected,
            filters: Vec::new(),
            unknown: Vec::new(),
        };
        for name in machine.connected.iter().map(|lan| &lan.device).chain([&overlay.tun]) {
            machine.devices.entry(name.clone()).or_insert_with(|| Device::read(name));
        }
        if !overlay.served.is_empty() {
            machine.read_filters(&overlay.tun);
        }
        Ok(machine)
    }

    fn read_filters(&mut self, tun: &str) {
        match said("nft", &["-j", "list", "ruleset"]) {
            Ok(ruleset) => match serde_json::from_str(&ruleset) {
                Ok(ruleset) => self.filters.extend(nft_filters(&ruleset, tun)),
                Err(error) => self.unknown.push(format!("what nft drops: its answer cannot be read: {error}")),
            },
            Err(why) => self.unknown.push(format!("what nft drops: {why}")),
        }
        // the older filter of the kernel, where it is in use
        let tables = fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
        if tables.lines().any(|table| table == "filter") {
            match said("iptables-legacy", &["-S", "FORWARD"]) {
                Ok(rules) => self.filters.extend(iptables_filter(&rules, tun)),
                Err(why) => self.unknown.push(format!("what iptables drops: {why}")),
            }
        }
    }
}

impl Device {
    fn read(name: &str) -> Self {
        let both = |key: &str| {
            let of = |device: &str| setting(&format!("ipv4/conf/{device}/{key}")).unwrap_or_default();
            of("all").max(of(name))
        };
        Self {
            forwards: setting(&format!("ipv4/conf/{name}/forwarding")).is_none_or(|on| on != 0),
            rp_filter: both("rp_filter"),
            arp_ignore: both("arp_ignore"),
            arp_filter: both("arp_filter") != 0,
            proxy_arp: both("proxy_arp") != 0,
        }
    }
}

fn setting(path: &str) -> Option<u32> {
    fs::read_to_string(format!("/proc/sys/net/{path}")).ok()?.trim().parse().ok()
}

/// What a program printed; why it did not.
fn said(program: &str, words: &[&str]) -> Result<String, String> {
    let ran = Command::new(program).args(words).output().map_err(|error| format!("cannot run {program}: {error}"))?;
    if ran.status.success() {
        return Ok(String::from_utf8_lossy(&ran.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&ran.stderr);
    Err(format!("{program}: {}: run it as root", why.lines().next().unwrap_or("it failed").trim()))
}

/// The chains of the forward hook that drop what no rule of their table lets pass by the TUN.
fn nft_filters(ruleset: &Value, tun: &str) -> Vec<Filter> {
    let entries = || array(ruleset.get("nftables"));
    let named = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let table = |entry: &Value| (named(entry, "family"), named(entry, "table"));
    let rules = |chain: &Value| {
        let (of, name) = (table(chain), named(chain, "name"));
        let rules = entries().filter_map(|entry| entry.get("rule"));
        rules.filter(move |rule| table(rule) == of && named(rule, "chain") == name)
    };
    let drops = |chain: &Value| {
        let rejects = |expr: &Value| expr.get("drop").or_else(|| expr.get("reject")).is_some();
        let says_all = |expr: &Value| rejects(expr) || expr.get("counter").is_some() || expr.get("log").is_some();
        let for_all = |rule: &Value| array(rule.get("expr")).all(says_all) && array(rule.get("expr")).any(rejects);
        named(chain, "policy") == "drop" || rules(chain).any(for_all)
    };
    let lets_pass = |chain: &Value| {
        let of = table(chain);
        let quoted = format!("\"{tun}\"");
        // whatever chain of the table it stands in
        entries().filter_map(|entry| entry.get("rule")).filter(|rule| table(rule) == of).any(|rule| {
            let text = rule.to_string();
            text.contains(&quoted) && text.contains("\"accept\"")
        })
    };
    let chains = entries().filter_map(|entry| entry.get("chain"));
    let forward = chains.filter(|chain| named(chain, "hook") == "forward" && named(chain, "family") != "bridge");
    let closed = forward.filter(|chain| drops(chain) && !lets_pass(chain));
    closed
        .map(|chain| {
            let (family, table) = table(chain);
            let chain = format!("{family} {table} {}", named(chain, "name"));
            let pass = ["iifname", "oifname"].map(|end| format!("insert rule {chain} {end} \"{tun}\" accept"));
            Filter { read: format!("nft list chain {chain}"), pass: format!("nft '{}'", pass.join("; ")), chain }
        })
        .collect()
}

/// The same for `iptables -S FORWARD`.
fn iptables_filter(rules: &str, tun: &str) -> Option<Filter> {
    let drops = |line: &str| {
        ["-P FORWARD DROP", "-A FORWARD -j DROP", "-A FORWARD -j REJECT"].iter().any(|all| line.starts_with(all))
    };
    let passes = |line: &str| line.split(' ').any(|word| word == tun) && line.ends_with("-j ACCEPT");
    let closed = rules.lines().any(drops) && !rules.lines().any(passes);
    closed.then(|| Filter {
        chain: "FORWARD of iptables".to_owned(),
        read: "iptables-legacy -S FORWARD".to_owned(),
        pass: format!("iptables-legacy -I FORWARD -i {tun} -j ACCEPT && iptables-legacy -I FORWARD -o {tun} -j ACCEPT"),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chain(hook: &str, policy: &str) -> Value {
        json!({ "chain": { "family": "inet", "table": "site", "name": "fwd", "type": "filter", "hook": hook, "policy": policy } })
    }

    fn rule(expr: Value) -> Value {
        json!({ "rule": { "family": "inet", "table": "site", "chain": "fwd", "expr": expr } })
    }

    #[test]
    fn a_chain_drops_what_is_forwarded_by_its_policy_or_its_last_rule_unless_one_lets_the_tun_pass() {
        let found = |entries: &[Value]| nft_filters(&json!({ "nftables": entries }), "fl0").len();
        let accept = |device: &str| {
            let of = json!({ "match": { "op": "==", "left": { "meta": { "key": "iifname" } }, "right": device } });
            rule(json!([of, { "accept": null }]))
        };
        let some = rule(json!([{ "match": { "op": "==", "left": {}, "right": "tcp" } }, { "drop": null }]));
        assert_eq!(found(&[chain("forward", "accept"), some]), 0);
        assert_eq!(found(&[chain("input", "drop")]), 0);
        assert_eq!(found(&[chain("forward", "drop")]), 1);
        assert_eq!(found(&[chain("forward", "drop"), accept("fl01")]), 1);
        assert_eq!(found(&[chain("forward", "drop"), accept("fl0")]), 0);
        assert_eq!(found(&[chain("forward", "accept"), rule(json!([{ "counter": null }, { "reject": null }]))]), 1);
        let filters = nft_filters(&json!({ "nftables": [chain("forward", "drop")] }), "fl0");
        assert_eq!(filters[0].read, "nft list chain inet site fwd");
    }

    #[test]
    fn iptables_drops_by_its_policy_or_its_last_rule_unless_one_lets_the_tun_pass() {
        let closed = |rules: &str| iptables_filter(rules, "fl0").is_some();
        assert!(!closed("-P FORWARD ACCEPT\n-A FORWARD -i eth9 -j DROP\n"));
        assert!(closed("-P FORWARD DROP\n-A FORWARD -i eth0 -j ACCEPT\n"));
        assert!(closed("-P FORWARD ACCEPT\n-A FORWARD -j REJECT --reject-with icmp-port-unreachable\n"));
        assert!(!closed("-P FORWARD DROP\n-A FORWARD -i fl0 -j ACCEPT\n"));
    }
}
