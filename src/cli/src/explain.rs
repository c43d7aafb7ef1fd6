//! `flatlan explain`: which member, route and path a packet would meet, as the running node and its kernel know it.
//!
//! 1. whose source and destination are: the longest prefix of the roster, and all wider ones that hold them;
//! 2. which way: out from here, in from a member, or not by this node at all;
//! 3. out: whether the kernel leads it into the overlay; then the path to the destination's owner, or owners;
//! 4. what of this machine may drop it, where it is no packet of the node's own: what `netcheck` finds.
//!
//! What would be dropped by the node has the name under which `status` counts it. No packet is sent. What the two ends
//! do with it is not known here, nor what the node at the other end would say.

use std::net::IpAddr;

use flatlan::is_never_carried;
use flatlan_os::route::{Netlink, Way};
use flatlan_types::Prefix;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    args::ExplainArgs,
    client::{array, describe_path, fetch_status, text},
    failure::Failure,
    netcheck::{self, Trap},
    node::runtime,
    output,
};

/// `flatlan explain`.
pub(crate) fn run(args: ExplainArgs) -> Result<(), Failure> {
    if let Some(dst) = args.second {
        check(args.first, dst, args.proto.as_deref())?;
    }
    let status = fetch_status(&args.state.state)?;
    let packet = Packet::of(&args, &status)?;
    let way = runtime()?.block_on(way_to(packet.dst))?;
    let forwarded = packet.is_forwarded(&status);
    let mut explained = Explained::new(packet, &status, way);
    if forwarded && matches!(explained.verdict, Verdict::Sent | Verdict::Received) {
        explained.obstacles = netcheck::obstacles(&status)?;
    }
    if args.json {
        output::result(serde_json::to_string_pretty(&explained).unwrap_or_default());
    } else {
        explained.print();
    }
    Ok(())
}

/// What is asked about.
#[derive(Debug, Serialize)]
struct Packet {
    src: IpAddr,
    dst: IpAddr,
    proto: String,
    port: Option<u16>,
}

/// What becomes of the packet.
#[derive(Debug, Serialize)]
struct Explained {
    #[serde(flatten)]
    packet: Packet,
    verdict: Verdict,
    /// Under which name it is counted, where it is dropped.
    drop: Option<&'static str>,
    why: String,
    source: End,
    destination: End,
    /// Where the kernel sends it, on its way out.
    route: Option<Value>,
    /// The ways to the owners of the destination, or to those of the source.
    paths: Vec<PeerPath>,
    /// What of this machine may drop it.
    obstacles: Vec<Trap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    /// Into the overlay.
    Sent,
    /// Out of the overlay, to this node or its LAN.
    Received,
    /// By the overlay to nobody.
    Dropped,
    /// The overlay has nothing to do with it.
    Outside,
}

/// Whose an address is.
#[derive(Debug, Serialize)]
struct End {
    /// By the longest prefix: several where an HA group carries it.
    owners: Vec<String>,
    /// Every prefix that holds it, the longest first.
    prefixes: Vec<Holds>,
}

#[derive(Debug, Serialize)]
struct Holds {
    prefix: Prefix,
    member: String,
}

#[derive(Debug, Serialize)]
struct PeerPath {
    peer: String,
    path: Value,
    standby: Value,
}

impl Packet {
    /// The packet of the command line; one to a single address comes from the node itself.
    fn of(args: &ExplainArgs, status: &Value) -> Result<Self, Failure> {
        let proto = args.proto.clone().unwrap_or_else(|| "icmp".to_owned());
        if let Some(dst) = args.second {
            return Ok(Self { src: args.first, dst, proto, port: args.port });
        }
        let dst = args.first;
        let own = own_ips(status).find(|ip| ip.is_ipv4() == dst.is_ipv4());
        let src = own.ok_or_else(|| {
            Failure::failed(format!("this node has no address of {dst}'s family yet: see `flatlan status`"))
        })?;
        Ok(Self { src, dst, proto, port: args.port })
    }

    /// Whether this machine forwards it, if it comes by here at all.
    fn is_forwarded(&self, status: &Value) -> bool {
        !own_ips(status).any(|ip| ip == self.src || ip == self.dst)
    }
}

impl Explained {
    fn new(packet: Packet, status: &Value, way: Option<Way>) -> Self {
        let null = Value::Null;
        let me = text(status.get("self").unwrap_or(&null), "name").to_owned();
        let (src, dst) = (packet.src, packet.dst);
        let mut explained = Self {
            source: End::of(src, status),
            destination: End::of(dst, status),
            packet,
            verdict: Verdict::Dropped,
            drop: None,
            why: String::new(),
            route: None,
            paths: Vec::new(),
            obstacles: Vec::new(),
        };
        let mine = |end: &End| end.owners.contains(&me);
        let from_here = mine(&explained.source);
        if is_never_carried(dst) {
            explained.dropped("bad_destination", format!("{dst} means something on one machine or link only"));
        } else if is_never_carried(src) {
            explained.dropped("source_not_owned", format!("{src} means something on one machine or link only"));
        } else if from_here && mine(&explained.destination) {
            explained.verdict = Verdict::Outside;
            explained.why = format!("source and destination are both of {me}: its own, or of the LAN behind it");
        } else if from_here {
            explained.outbound(status, &me, way);
        } else if mine(&explained.destination) {
            explained.inbound(status, &me);
        } else if explained.source.owners.is_empty() && explained.destination.owners.is_empty() {
            explained.verdict = Verdict::Outside;
            explained.why = "neither address is of any member".to_owned();
        } else {
            let owner = explained.source.names();
            let why = format!("{src} is of {owner}, not of {me}: a node sends only what is of itself and its LAN");
            explained.dropped("source_not_owned", why);
        }
        explained
    }

    fn outbound(&mut self, status: &Value, me: &str, way: Option<Way>) {
        let null = Value::Null;
        let tun = text(status.get("self").unwrap_or(&null), "tun");
        let dst = self.packet.dst;
        self.route = way.as_ref().map(|way| json!({ "device": way.device, "gateway": way.gateway }));
        if self.destination.owners.is_empty() {
            let why =
                format!("no member has {dst} or a prefix that holds it: `flatlan status` lists what members carry");
            return self.dropped("no_member", why);
        }
        if way.is_none_or(|way| way.device != tun) {
            let by = self.route.as_ref().map_or_else(
                || format!("the kernel has no route to {dst}"),
                |route| format!("the kernel sends it by {} and not into the overlay ({tun})", text(route, "device")),
            );
            self.verdict = Verdict::Outside;
            self.why = format!("{by}: ip route get {dst}");
            return;
        }
        self.paths = self.destination.paths(status);
        self.verdict = Verdict::Sent;
        let several = match self.destination.owners.len() {
            0 | 1 => "",
            _ => ", each flow to one of them that answers",
        };
        let ready = if self.paths.iter().any(|of| !of.path.is_null()) {
            ""
        } else {
            ": no path is in use yet; the first packet waits until there is one, and is dropped as no_session if none comes"
        };
        self.why = format!("{me} seals it for {}{several}{ready}", self.destination.names());
    }

    fn inbound(&mut self, status: &Value, me: &str) {
        let src = self.packet.src;
        if self.source.owners.is_empty() {
            return self.dropped(
                "source_not_owned",
                format!("no member may send from {src}: nobody has a prefix that holds it"),
            );
        }
        self.paths = self.source.paths(status);
        self.verdict = Verdict::Received;
        let others: Vec<&str> =
            self.destination.owners.iter().map(String::as_str).filter(|owner| *owner != me).collect();
        let group = if others.is_empty() { String::new() } else { format!(", or {} does", others.join(", ")) };
        self.why = format!("{me} opens what {} sealed, and gives it to its kernel{group}", self.source.names());
    }

    fn dropped(&mut self, reason: &'static str, why: String) {
        self.verdict = Verdict::Dropped;
        self.drop = Some(reason);
        self.why = why;
    }

    fn print(&self) {
        let Packet { src, dst, proto, port } = &self.packet;
        let port = port.map_or_else(String::new, |port| format!(" port {port}"));
        output::result(format!("packet   {src} -> {dst} {proto}{port}"));
        for (what, end) in [("source", &self.source), ("dest", &self.destination)] {
            let holds: Vec<String> = end.prefixes.iter().map(|of| format!("{} of {}", of.prefix, of.member)).collect();
            output::result(format!(
                "{what:<8} {}",
                if holds.is_empty() { "nobody's".to_owned() } else { holds.join(", ") }
            ));
        }
        output::result("rule     every member may reach every other");
        if let Some(route) = &self.route {
            let router =
                route.get("gateway").and_then(Value::as_str).map_or_else(String::new, |via| format!(" via {via}"));
            output::result(format!("route    by {}{router}", text(route, "device")));
        }
        for of in &self.paths {
            let rtt =
                of.path.get("rtt_ms").and_then(Value::as_f64).map_or_else(String::new, |ms| format!(", {ms:.1} ms"));
            let mtu = of.path.get("mtu").and_then(Value::as_u64).map_or_else(String::new, |mtu| format!(", MTU {mtu}"));
            output::result(format!("path     {}: {}{rtt}{mtu}", of.peer, describe_path(&of.path)));
        }
        for trap in &self.obstacles {
            output::result(format!("TRAP     {trap}"));
        }
        let verdict = match (self.verdict, self.drop) {
            (Verdict::Sent, _) => "sent".to_owned(),
            (Verdict::Received, _) => "received".to_owned(),
            (Verdict::Outside, _) => "not by the overlay".to_owned(),
            (Verdict::Dropped, reason) => format!("dropped as {}", reason.unwrap_or("unknown")),
        };
        output::result(format!("verdict  {verdict}: {}", self.why));
    }
}

impl End {
    fn of(ip: IpAddr, status: &Value) -> Self {
        let members = status.get("self").into_iter().chain(array(status.get("peers")));
        let mut prefixes: Vec<Holds> = members
            .flat_map(|member| {
                let name = text(member, "name");
                netcheck::prefixes(member).map(move |prefix| Holds { prefix, member: name.to_owned() })
            })
            .filter(|holds| holds.prefix.contains(ip))
            .collect();
        prefixes.sort_by(|a, b| b.prefix.length().cmp(&a.prefix.length()).then_with(|| a.member.cmp(&b.member)));
        let longest = prefixes.first().map(|holds| holds.prefix);
        let owners = prefixes.iter().filter(|holds| Some(holds.prefix) == longest).map(|holds| holds.member.clone());
        Self { owners: owners.collect(), prefixes }
    }

    fn names(&self) -> String {
        if self.owners.is_empty() { "nobody".to_owned() } else { self.owners.join(", ") }
    }

    fn paths(&self, status: &Value) -> Vec<PeerPath> {
        let owns = |peer: &&Value| self.owners.iter().any(|owner| owner.as_str() == text(peer, "name"));
        let of = |peer: &Value, key: &str| peer.get(key).cloned().unwrap_or_default();
        array(status.get("peers"))
            .filter(owns)
            .map(|peer| PeerPath {
                peer: text(peer, "name").to_owned(),
                path: of(peer, "path"),
                standby: of(peer, "standby"),
            })
            .collect()
    }
}

/// Refuses what no packet can be.
fn check(src: IpAddr, dst: IpAddr, proto: Option<&str>) -> Result<(), Failure> {
    let known = |proto: &str| ["tcp", "udp", "icmp"].contains(&proto) || proto.parse::<u8>().is_ok();
    if let Some(proto) = proto.filter(|proto| !known(proto)) {
        return Err(Failure::wrong(format!("{proto}: a protocol is tcp, udp, icmp or a number from 0 to 255")));
    }
    if src.is_ipv4() != dst.is_ipv4() {
        return Err(Failure::wrong(format!("{src} and {dst} are of two families: no packet has both")));
    }
    Ok(())
}

async fn way_to(ip: IpAddr) -> Result<Option<Way>, Failure> {
    Ok(Netlink::open()?.ways([ip]).await?.remove(&ip).flatten())
}

fn own_ips(status: &Value) -> impl Iterator<Item = IpAddr> {
    array(status.get("self").and_then(|me| me.get("ips"))).filter_map(|ip| ip.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Value {
        json!({
            "self": { "name": "a", "ips": ["10.77.0.1"], "routes": ["192.168.1.0/24"], "tun": "fl0" },
            "peers": [
                { "name": "b", "ips": ["10.77.0.2"], "routes": ["192.168.2.0/24"], "path": { "kind": "direct" } },
                { "name": "b2", "ips": ["10.77.0.3"], "routes": ["192.168.2.0/24"], "path": null },
                { "name": "dr", "ips": ["10.77.0.4"], "routes": ["192.168.2.9/32"], "path": null },
            ],
        })
    }

    fn explained(src: &str, dst: &str, device: Option<&str>) -> Explained {
        let packet =
            Packet { src: src.parse().unwrap(), dst: dst.parse().unwrap(), proto: "tcp".to_owned(), port: Some(22) };
        Explained::new(packet, &status(), device.map(|device| Way { device: device.to_owned(), gateway: None }))
    }

    #[test]
    fn a_packet_goes_to_the_owners_of_the_longest_prefix() {
        let sent = |src: &str, dst: &str| {
            let explained = explained(src, dst, Some("fl0"));
            let paths = explained.paths.iter().map(|of| of.peer.clone()).collect::<Vec<_>>().join(" ");
            (explained.verdict, explained.destination.names(), paths)
        };
        let to = |names: &str, paths: &str| (Verdict::Sent, names.to_owned(), paths.to_owned());
        assert_eq!(sent("192.168.1.7", "10.77.0.2"), to("b", "b"));
        assert_eq!(sent("10.77.0.1", "192.168.2.8"), to("b, b2", "b b2"));
        assert_eq!(sent("10.77.0.1", "192.168.2.9"), to("dr", "dr"));
        assert!(explained("10.77.0.1", "192.168.2.9", Some("fl0")).why.contains("no path is in use yet"));
        let holds = explained("10.77.0.1", "192.168.2.9", Some("fl0")).destination.prefixes;
        assert_eq!(holds.iter().map(|of| of.prefix.length()).collect::<Vec<_>>(), [32, 24, 24]);
    }

    #[test]
    fn what_a_node_drops_has_the_name_of_its_counter() {
        for (src, dst, drop) in [
            ("10.77.0.1", "10.77.0.9", "no_member"),
            ("10.77.0.2", "10.77.0.4", "source_not_owned"),
            ("8.8.8.8", "192.168.1.8", "source_not_owned"),
            ("127.0.0.1", "10.77.0.2", "source_not_owned"),
            ("10.77.0.1", "224.0.0.1", "bad_destination"),
        ] {
            let explained = explained(src, dst, Some("fl0"));
            assert_eq!((explained.verdict, explained.drop), (Verdict::Dropped, Some(drop)), "{src} {dst}");
        }
    }

    #[test]
    fn what_does_not_come_by_the_overlay_is_told_from_what_comes_in() {
        for (src, dst, device, verdict) in [
            ("10.77.0.1", "192.168.2.8", Some("eth0"), Verdict::Outside),
            ("10.77.0.1", "192.168.2.8", None, Verdict::Outside),
            ("10.77.0.1", "192.168.1.8", Some("eth1"), Verdict::Outside),
            ("8.8.8.8", "9.9.9.9", Some("eth0"), Verdict::Outside),
            ("10.77.0.2", "192.168.1.8", Some("eth1"), Verdict::Received),
        ] {
            assert_eq!(explained(src, dst, device).verdict, verdict, "{src} {dst}");
        }
        assert!(explained("10.77.0.1", "192.168.2.8", Some("eth0")).why.contains("by eth0 and not into the overlay"));
    }

    #[test]
    fn no_packet_has_two_families_or_an_unknown_protocol() {
        let [v4, v6]: [IpAddr; 2] = ["10.77.0.1", "fd00::1"].map(|ip| ip.parse().unwrap());
        assert!(check(v4, v4, Some("132")).is_ok() && check(v6, v6, Some("tcp")).is_ok());
        assert!(check(v4, v6, Some("tcp")).is_err() && check(v4, v4, Some("http")).is_err());
    }
}
