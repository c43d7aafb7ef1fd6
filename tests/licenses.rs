//! What the binaries contain is named in `deploy/licenses/`, and the texts that must travel with it are there.

use std::{collections::BTreeSet, path::Path};

use cargo_metadata::{CargoOpt, DependencyKind, Metadata, MetadataCommand, Package};

#[test]
fn every_crate_in_the_binaries_is_named_with_its_licence() {
    let listed = include_str!("../deploy/licenses/THIRD-PARTY.md");
    let missing: Vec<String> = contained(&metadata())
        .iter()
        .map(|package| format!("| {} | {} |", package.name, package.license.as_deref().unwrap_or("none")))
        .filter(|row| !listed.lines().any(|line| line.starts_with(row.as_str())))
        .collect();
    assert!(missing.is_empty(), "rows missing in deploy/licenses/THIRD-PARTY.md:\n{}", missing.join("\n"));
}

#[test]
fn every_licence_that_must_travel_has_its_text() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/licenses");
    for package in contained(&metadata()) {
        let terms = package.license.as_deref().unwrap_or_default();
        // in a choice one text is enough; with AND each is needed
        for needed in terms.split(" AND ") {
            let there = needed
                .split([' ', '/', '(', ')'])
                .any(|name| ["txt", "md"].iter().any(|end| folder.join(format!("{name}.{end}")).is_file()));
            assert!(there, "{}: no text for {needed} in {}", package.name, folder.display());
        }
    }
}

/// Crates of others in `flatlan` and `flatlan-hub`.
fn contained(metadata: &Metadata) -> Vec<Package> {
    let resolve = metadata.resolve.as_ref().expect("cargo metadata resolves");
    let ours: BTreeSet<_> = metadata.workspace_members.iter().collect();
    let binaries = |package: &&Package| ["flatlan-cli", "flatlan-hubd"].contains(&package.name.as_str());
    let mut todo: Vec<_> = metadata.packages.iter().filter(binaries).map(|package| &package.id).collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = todo.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = resolve.nodes.iter().find(|node| node.id == *id).expect("a node for each package");
        todo.extend(
            node.deps
                .iter()
                .filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal))
                .map(|dep| &dep.pkg),
        );
    }
    let foreign = |package: &&Package| seen.contains(&package.id) && !ours.contains(&package.id);
    metadata.packages.iter().filter(foreign).cloned().collect()
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .features(CargoOpt::SomeFeatures(Vec::new()))
        .other_options(["--locked", "--filter-platform", "x86_64-unknown-linux-gnu"].map(str::to_owned))
        .exec()
        .expect("cargo metadata")
}
