//! Faults on the wire, injected at the core router as nftables rules.
//!
//! The set of faults is data; every change renders all of it and loads it in one transaction, so there is never a
//! moment with half a set. A cut is silent: packets vanish in both directions, ICMP too, and no error comes back.
//!
//! Loss, cuts and holes are here; delay, duplicates and reordering are in `emulator`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What happens to packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// UDP vanishes, TCP and ICMP pass.
    BlockUdp,
    /// Everything vanishes.
    Cut,
    /// What hubs relay over UDP vanishes where it is data; their control streams, bindings, and the probes that they
    /// relay pass.
    DropData,
    /// IP packets of more bytes than this vanish, and no ICMP error says so.
    DropLargerThan(u16),
    /// So many of a thousand packets vanish, at random.
    LosePerMille(u16),
}

/// Where it happens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Between these two, and for nobody else.
    Between(String, String),
    /// Between sites: what goes through hubs passes.
    BetweenSites,
    /// On everything from or to this hub or site, or the admin's machine (`admin`).
    Of(String),
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// Both ways.
    Both,
    /// What it sends (of two: what the first sends to the second).
    From,
    /// What it would receive.
    To,
}

/// One fault in force.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Injected {
    /// Where.
    pub place: Place,
    /// What.
    pub fault: Fault,
    /// Which way.
    pub direction: Direction,
}

impl Injected {
    pub(crate) fn names(&self, name: &str) -> bool {
        match &self.place {
            Place::Between(one, other) => one == name || other == name,
            Place::BetweenSites => false,
            Place::Of(party) => party == name,
        }
    }

    /// Whether it can only be told packet by packet, so that batches have to be cut before they meet it.
    pub(crate) fn needs_single_packets(&self) -> bool {
        match self.fault {
            Fault::BlockUdp | Fault::Cut => false,
            Fault::DropData | Fault::DropLargerThan(_) | Fault::LosePerMille(_) => true,
        }
    }

    fn render(&self, wires: &Wires, rules: &mut String) {
        let what = match self.fault {
            Fault::BlockUdp => "meta l4proto udp ".to_owned(),
            Fault::Cut => String::new(),
            Fault::DropData => RELAYED_DATA.to_owned(),
            Fault::DropLargerThan(bytes) => format!("meta length > {bytes} "),
            Fault::LosePerMille(share) => format!("numgen random mod 1000 < {share} "),
        };
        let mut rule = |path: String| {
            let _ = writeln!(rules, "add rule inet lab faults {path}{what}counter drop");
        };
        let (from, to) = match &self.place {
            Place::Of(party) => {
                let set = wires.of(party);
                (format!("iifname {set} "), format!("oifname {set} "))
            }
            Place::Between(one, other) => {
                let (near, far) = (wires.of(one), wires.of(other));
                let (from_near, from_far) = (wires.from(one), wires.from(other));
                (format!("iifname {from_near} oifname {far} "), format!("iifname {from_far} oifname {near} "))
            }
            Place::BetweenSites => {
                let set = wires.sites();
                // The same set on both sides: either direction is the whole rule.
                return rule(format!("iifname {set} oifname {set} "));
            }
        };
        if self.direction != Direction::To {
            rule(from);
        }
        if self.direction != Direction::From {
            rule(to);
        }
    }
}

/// Which interfaces of the core lead to whom.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wires {
    pub(crate) parties: BTreeMap<String, Vec<String>>,
    pub(crate) sites: Vec<String>,
}

impl Wires {
    fn of(&self, party: &str) -> String {
        set(self.parties.get(party).into_iter().flatten())
    }

    /// The same, and the device from which what it sends comes while its wire is a bad one.
    fn from(&self, party: &str) -> String {
        let emulated = emulated(party);
        set(self.parties.get(party).into_iter().flatten().chain([&emulated]))
    }

    fn sites(&self) -> String {
        set(self.sites.iter())
    }
}

/// The device of a party's emulator.
pub(crate) fn emulated(party: &str) -> String {
    format!("emu-{party}")
}

/// The chains that faults hang in, empty.
pub(crate) const TABLE: &str = "table inet lab {
 chain faults { }
 chain forward { type filter hook forward priority -10; jump faults; }
 chain input { type filter hook input priority -10; jump faults; }
 chain output { type filter hook output priority -10; jump faults; }
}
";

/// All faults as one transaction.
pub(crate) fn render(faults: &[Injected], wires: &Wires) -> String {
    let mut rules = String::from("flush chain inet lab faults\n");
    for fault in faults {
        fault.render(wires, &mut rules);
    }
    rules
}

/// A label's frame (0x20) whose datagram, behind its eight bytes, is WireGuard's type 4. Offsets are from the UDP header's
/// beginning, in bits.
const RELAYED_DATA: &str = "meta l4proto udp @th,64,8 0x20 @th,128,8 4 ";

fn set<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let quoted: Vec<String> = names.map(|name| format!("\"{name}\"")).collect();
    format!("{{ {} }}", quoted.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wires() -> Wires {
        let parties = [("a", vec!["a", "a-2"]), ("b", vec!["b"]), ("h1", vec!["h1"])];
        let parties = parties.map(|(name, wires)| (name.to_owned(), wires.into_iter().map(str::to_owned).collect()));
        Wires { parties: parties.into(), sites: vec!["a".to_owned(), "a-2".to_owned(), "b".to_owned()] }
    }

    fn rules(place: Place, fault: Fault, direction: Direction) -> Vec<String> {
        let text = render(&[Injected { place, fault, direction }], &wires());
        text.lines().skip(1).map(|line| line.trim_start_matches("add rule inet lab faults ").to_owned()).collect()
    }

    #[test]
    fn a_cut_drops_both_ways_on_every_wire_of_the_party() {
        assert_eq!(
            rules(Place::Of("a".to_owned()), Fault::Cut, Direction::Both),
            ["iifname { \"a\", \"a-2\" } counter drop", "oifname { \"a\", \"a-2\" } counter drop"]
        );
    }

    #[test]
    fn one_way_faults_touch_one_direction() {
        let between = || Place::Between("a".to_owned(), "h1".to_owned());
        assert_eq!(
            rules(between(), Fault::LosePerMille(100), Direction::From),
            ["iifname { \"a\", \"a-2\", \"emu-a\" } oifname { \"h1\" } numgen random mod 1000 < 100 counter drop"]
        );
        assert_eq!(
            rules(between(), Fault::DropLargerThan(600), Direction::To),
            ["iifname { \"h1\", \"emu-h1\" } oifname { \"a\", \"a-2\" } meta length > 600 counter drop"]
        );
    }

    #[test]
    fn data_is_told_from_probes_by_the_first_byte_behind_the_label() {
        assert_eq!(
            rules(Place::Of("h1".to_owned()), Fault::DropData, Direction::From),
            ["iifname { \"h1\" } meta l4proto udp @th,64,8 0x20 @th,128,8 4 counter drop"]
        );
    }

    #[test]
    fn no_fault_is_an_empty_chain() {
        assert_eq!(render(&[], &wires()), "flush chain inet lab faults\n");
    }
}
