//! Which of several gateways carries which flow, each way: counted by their own kernels where packets go on to the LAN and
//! where they come from it. The rules that count let everything pass.

#![allow(dead_code, reason = "every program takes what it needs")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use flatlan_lab::Namespace;
use serde_json::Value;

/// The kernels that count.
#[derive(Debug)]
pub(crate) struct Counters<'a> {
    gateways: [&'a Namespace; 2],
}

impl<'a> Counters<'a> {
    /// They count from here on.
    pub(crate) fn start(gateways: [&'a Namespace; 2]) -> Self {
        for gateway in gateways {
            gateway.nft(COUNT).unwrap();
        }
        Self { gateways }
    }

    /// They begin again from nothing.
    pub(crate) fn clear(&self) {
        for gateway in self.gateways {
            gateway.nft("flush set inet carried flows\n").unwrap();
        }
    }

    /// What they have counted.
    pub(crate) fn read(&self) -> Carried {
        Carried(self.gateways.map(|gateway| {
            let said = gateway.exec("nft", ["-j", "list", "set", "inet", "carried", "flows"]).unwrap();
            flows(&serde_json::from_str(&said).unwrap())
        }))
    }
}

/// Bytes of each flow, by each of the gateways.
#[derive(Debug)]
pub(crate) struct Carried([BTreeMap<Flow, u64>; 2]);

impl Carried {
    /// Bytes of TCP toward an address.
    pub(crate) fn bytes_to(&self, to: IpAddr) -> [u64; 2] {
        let toward = |(flow, _): &(&Flow, &u64)| flow.is(TCP, to);
        self.0.each_ref().map(|flows| flows.iter().filter(toward).map(|(_, bytes)| bytes).sum())
    }

    /// Flows of TCP toward an address.
    pub(crate) fn flows_to(&self, to: IpAddr) -> [BTreeSet<Flow>; 2] {
        self.toward(TCP, to)
    }

    /// How many streams of datagrams toward an address each carried.
    pub(crate) fn streams_to(&self, to: IpAddr) -> [usize; 2] {
        self.toward(UDP, to).map(|streams| streams.len())
    }

    /// How many flows of TCP toward an address go by one of them, and are answered by the other.
    pub(crate) fn around(&self, to: IpAddr) -> usize {
        let [one, other] = &self.0;
        let around = |there: &BTreeMap<Flow, u64>, back: &BTreeMap<Flow, u64>| {
            let alone = |flow: &Flow, here: &BTreeMap<Flow, u64>, not_here: &BTreeMap<Flow, u64>| {
                here.contains_key(flow) && !not_here.contains_key(flow)
            };
            let flows = there.keys().filter(|flow| flow.is(TCP, to));
            flows.filter(|flow| alone(flow, there, back) && alone(&flow.answers(), back, there)).count()
        };
        around(one, other) + around(other, one)
    }

    /// How many flows both carried, each way for itself: they were not by one gateway at a time.
    pub(crate) fn by_both(&self) -> usize {
        let [one, other] = &self.0;
        one.keys().filter(|flow| other.contains_key(flow)).count()
    }

    fn toward(&self, protocol: &str, to: IpAddr) -> [BTreeSet<Flow>; 2] {
        self.0.each_ref().map(|flows| flows.keys().filter(|flow| flow.is(protocol, to)).cloned().collect())
    }
}

/// One way of a flow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Flow {
    protocol: String,
    from: SocketAddr,
    to: SocketAddr,
}

impl Flow {
    fn is(&self, protocol: &str, to: IpAddr) -> bool {
        self.protocol == protocol && self.to.ip() == to
    }

    /// Its other way.
    fn answers(&self) -> Self {
        Self { protocol: self.protocol.clone(), from: self.to, to: self.from }
    }
}

/// The share of each in hundredths, rounded down.
pub(crate) fn shares(bytes: [u64; 2]) -> [u64; 2] {
    let all = bytes.iter().sum::<u64>().max(1);
    bytes.map(|bytes| bytes * 100 / all)
}

fn flows(said: &Value) -> BTreeMap<Flow, u64> {
    let sets = said.get("nftables").and_then(Value::as_array).unwrap().iter().filter_map(|entry| entry.get("set"));
    let flow = |element: &Value| {
        let place = |n: usize| element.pointer(&format!("/elem/val/concat/{n}"));
        let end = |n| {
            let port = u16::try_from(place(n + 1)?.as_u64()?).ok()?;
            Some(SocketAddr::new(place(n)?.as_str()?.parse().ok()?, port))
        };
        let flow = Flow { protocol: place(0)?.as_str()?.to_owned(), from: end(1)?, to: end(3)? };
        Some((flow, element.pointer("/elem/counter/bytes")?.as_u64()?))
    };
    let elements = sets.filter_map(|set| set.get("elem")?.as_array()).flatten();
    elements.map(|element| flow(element).unwrap_or_else(|| panic!("no flow: {element}"))).collect()
}

const TCP: &str = "tcp";
const UDP: &str = "udp";
const COUNT: &str = "
table inet carried {
    set flows {
        type inet_proto . ipv4_addr . inet_service . ipv4_addr . inet_service
        size 65535
        flags dynamic
        counter
    }
    chain passing {
        type filter hook forward priority 10; policy accept;
        meta nfproto ipv4 meta l4proto { tcp, udp } add @flows { meta l4proto . ip saddr . th sport . ip daddr . th dport }
    }
}
";
