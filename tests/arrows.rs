//! The crates' arrows, held over what cargo says.
//!
//! Which crate may reach which is what keeps the pure crates testable in virtual time and a hub unable to
//! decrypt. A drawing of it is in `src/README.md`; this is what makes it true. Looked at is what a crate
//! *contains*: normal and build dependencies, with every feature. What only its tests use may be anything.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

#[test]
fn every_crate_of_the_workspace_is_placed() {
    let graph = Graph::read();
    let placed: BTreeSet<&str> = ARROWS.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        graph.ours,
        placed.into_iter().map(str::to_owned).collect(),
        "a crate has no row in ARROWS, or a row no crate"
    );
}

#[test]
fn crates_of_ours_depend_only_along_the_arrows() {
    let graph = Graph::read();
    let mut wrong = Vec::new();
    for (name, allowed) in ARROWS {
        for to in graph.direct(name).filter(|to| graph.ours.contains(*to)) {
            if !allowed.contains(&to) {
                wrong.push(format!("{name} -> {to}"));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that are not in the drawing: {wrong:?}");
}

#[test]
fn pure_crates_reach_nothing_that_touches_the_machine() {
    let graph = Graph::read();
    let mut wrong = Vec::new();
    for name in PURE {
        for reached in graph.without(ENGINE).reached(name) {
            if MACHINE.contains(&reached.as_str()) || IMPURE.contains(&reached.as_str()) {
                wrong.push(format!("{name} reaches {reached}: {}", graph.way(name, &reached)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_in_a_hub_can_decrypt() {
    let graph = Graph::read();
    for name in ["flatlan-hub", "flatlan-hubd", "flatlan-relay", "flatlan-roster"] {
        for forbidden in ["flatlan-wg", "flatlan-datapath", "flatlan-node", "flatlan", "boringtun", "chacha20poly1305"]
        {
            assert!(
                !graph.reached(name).contains(forbidden),
                "{name} reaches {forbidden}: {}",
                graph.way(name, forbidden)
            );
        }
    }
}

#[test]
fn pure_crates_ask_neither_for_chance_nor_the_kernel_themselves() {
    let graph = Graph::read();
    for name in PURE {
        for named in graph.direct(name) {
            assert!(!BEHIND_KEYS.contains(&named), "{name} names {named}");
        }
    }
}

#[test]
fn foreign_engines_have_one_user_each() {
    let graph = Graph::read();
    for (foreign, users) in ONE_USER {
        let seen: BTreeSet<&str> =
            graph.ours.iter().filter(|name| graph.direct(name).any(|to| to == *foreign)).map(String::as_str).collect();
        let allowed: BTreeSet<&str> = users.iter().copied().collect();
        assert!(seen.is_subset(&allowed), "{foreign} is used by {seen:?}, and only {allowed:?} may");
    }
}

#[test]
fn boringtun_keeps_its_own_clock_in_no_build() {
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().expect("cargo metadata resolves");
    let boringtun = metadata.packages.iter().find(|package| package.name.as_str() == "boringtun").expect("wg uses it");
    let node = resolve.nodes.iter().find(|node| node.id == boringtun.id).expect("a node for each package");
    assert!(
        node.features.iter().all(|feature| feature.as_str() != "mock-instant"),
        "mock-instant would stop the clock of every session in this build"
    );
}

/// Each crate of ours, and the crates of ours that it may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("flatlan-types", &[]),
    ("flatlan-link", &[]),
    ("flatlan-packet", &[]),
    ("flatlan-roster", &["flatlan-types"]),
    ("flatlan-wg", &["flatlan-types"]),
    ("flatlan-path", &["flatlan-types"]),
    ("flatlan-relay", &["flatlan-types"]),
    (
        "flatlan-datapath",
        &["flatlan-types", "flatlan-packet", "flatlan-roster", "flatlan-wg", "flatlan-path", "flatlan-relay"],
    ),
    (
        "flatlan-node",
        &["flatlan-types", "flatlan-roster", "flatlan-wg", "flatlan-path", "flatlan-relay", "flatlan-datapath"],
    ),
    ("flatlan-hub", &["flatlan-types", "flatlan-roster", "flatlan-relay"]),
    ("flatlan-os", &["flatlan-types"]),
    ("flatlan-hubd", &["flatlan-types", "flatlan-roster", "flatlan-relay", "flatlan-hub", "flatlan-os"]),
    (
        "flatlan",
        &[
            "flatlan-types",
            "flatlan-packet",
            "flatlan-roster",
            "flatlan-wg",
            "flatlan-path",
            "flatlan-relay",
            "flatlan-datapath",
            "flatlan-node",
            "flatlan-os",
        ],
    ),
    // the lab runs programs: it knows no crate whose programs it runs, only what a bad link does to packets
    ("flatlan-lab", &["flatlan-link"]),
    // the simulation is all machines, and nothing that touches the machine
    (
        "flatlan-sim",
        &[
            "flatlan-types",
            "flatlan-link",
            "flatlan-packet",
            "flatlan-roster",
            "flatlan-wg",
            "flatlan-path",
            "flatlan-relay",
            "flatlan-datapath",
            "flatlan-node",
            "flatlan-hub",
        ],
    ),
    (
        "flatlan-cli",
        &["flatlan", "flatlan-types", "flatlan-roster", "flatlan-relay", "flatlan-os", "flatlan-hubd", "flatlan-lab"],
    ),
    // the benchmark runs programs, and opens TUN devices of its own for the limit
    ("flatlan-bench", &["flatlan-os", "flatlan-lab"]),
    // the load program runs nodes in its own process, and hubs as programs
    (
        "flatlan-load",
        &[
            "flatlan-types",
            "flatlan-packet",
            "flatlan-roster",
            "flatlan-wg",
            "flatlan-relay",
            "flatlan-datapath",
            "flatlan-node",
            "flatlan-os",
            "flatlan-lab",
        ],
    ),
    // fuzz targets call every decoder
    (
        "flatlan-fuzz",
        &[
            "flatlan",
            "flatlan-types",
            "flatlan-packet",
            "flatlan-roster",
            "flatlan-wg",
            "flatlan-path",
            "flatlan-relay",
            "flatlan-datapath",
            "flatlan-node",
            "flatlan-hub",
            "flatlan-hubd",
        ],
    ),
];

/// No sockets, clocks, threads or executor; time and chance are arguments.
const PURE: &[&str] = &[
    "flatlan-types",
    "flatlan-link",
    "flatlan-packet",
    "flatlan-roster",
    "flatlan-wg",
    "flatlan-path",
    "flatlan-relay",
    "flatlan-datapath",
    "flatlan-node",
    "flatlan-hub",
    "flatlan-sim",
];

/// Crates of ours that touch the machine.
const IMPURE: &[&str] = &[
    "flatlan-os",
    "flatlan-hubd",
    "flatlan",
    "flatlan-cli",
    "flatlan-lab",
    "flatlan-bench",
    "flatlan-load",
    "flatlan-fuzz",
];

/// Foreign crates that touch the machine: executors, sockets, files, clocks, chance. See [`BEHIND_KEYS`], too.
const MACHINE: &[&str] = &[
    "async-std",
    "axum",
    "chrono",
    "futures-util",
    "hyper",
    "mio",
    "nix",
    "rand",
    "rtnetlink",
    "rustix",
    "rustls",
    "sd-notify",
    "smol",
    "socket2",
    "tempfile",
    "time",
    "tokio",
    "tokio-rustls",
    "tokio-tungstenite",
    "tracing-subscriber",
    "tun-rs",
    "tun-tap",
];

/// More of those, which the crates for keys bring along and do not use: no pure crate may name them itself.
const BEHIND_KEYS: &[&str] = &["getrandom", "libc"];

/// The one exception: this engine reads clock and randomness itself, and brings what it needs for that. Only `wg` sees it.
const ENGINE: &str = "boringtun";

/// Foreign crates behind one door, and whose door it is.
const ONE_USER: &[(&str, &[&str])] = &[
    ("boringtun", &["flatlan-wg"]),
    ("chacha20poly1305", &["flatlan-wg"]),
    ("ed25519-dalek", &["flatlan-types"]),
    ("x25519-dalek", &["flatlan-types"]),
    ("toml_edit", &["flatlan-roster", "flatlan-cli"]),
    ("rcgen", &["flatlan-os"]),
    ("rustls", &["flatlan-os"]),
    ("socket2", &["flatlan-os"]),
    ("tokio-rustls", &["flatlan-os"]),
    ("tokio-tungstenite", &["flatlan-os"]),
    ("tun-rs", &["flatlan-os"]),
    // the lab makes its internet itself, and its bad wires
    ("rtnetlink", &["flatlan-os", "flatlan-lab"]),
    ("tun-tap", &["flatlan-os", "flatlan-lab"]),
    ("rustix", &["flatlan-os", "flatlan-lab", "flatlan-bench"]),
];

/// Who contains whom, by name.
struct Graph {
    ours: BTreeSet<String>,
    edges: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn read() -> Self {
        let metadata = metadata();
        let names: BTreeMap<&PackageId, &str> =
            metadata.packages.iter().map(|package| (&package.id, package.name.as_str())).collect();
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in &metadata.resolve.as_ref().expect("cargo metadata resolves").nodes {
            let from = edges.entry(names[&node.id].to_owned()).or_default();
            for dependency in &node.deps {
                if dependency.dep_kinds.iter().any(|kind| kind.kind != DependencyKind::Development) {
                    from.insert(names[&dependency.pkg].to_owned());
                }
            }
        }
        let ours = metadata.workspace_members.iter().map(|id| names[id].to_owned()).collect();
        Self { ours, edges }
    }

    /// The same, as if one crate depended on nothing.
    fn without(&self, name: &str) -> Self {
        let mut edges = self.edges.clone();
        edges.remove(name);
        Self { ours: self.ours.clone(), edges }
    }

    fn direct(&self, name: &str) -> impl Iterator<Item = &str> {
        self.edges.get(name).into_iter().flatten().map(String::as_str)
    }

    fn reached(&self, name: &str) -> BTreeSet<String> {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![name.to_owned()]);
        while let Some(from) = todo.pop() {
            for to in self.direct(&from) {
                if seen.insert(to.to_owned()) {
                    todo.push(to.to_owned());
                }
            }
        }
        seen
    }

    /// The shortest way from one crate to another, for the message.
    fn way(&self, from: &str, to: &str) -> String {
        let mut ways = std::collections::VecDeque::from([vec![from.to_owned()]]);
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop_front() {
            let last = way.last().expect("a way starts somewhere").clone();
            if last == to {
                return way.join(" -> ");
            }
            for next in self.direct(&last) {
                if seen.insert(next.to_owned()) {
                    ways.push_back([way.clone(), vec![next.to_owned()]].concat());
                }
            }
        }
        "no way".to_owned()
    }
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .features(cargo_metadata::CargoOpt::AllFeatures)
        .other_options(["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"].map(str::to_owned))
        .exec()
        .expect("cargo metadata")
}
