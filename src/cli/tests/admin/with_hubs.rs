//! Publishing and pulling, with real hubs.

use super::machine::{Machine, NETWORK, not_running};

#[test]
fn publish_returns_when_every_reachable_hub_has_stored_it_and_names_the_others() {
    let machine = Machine::with_network();
    let (_a, mut b) = (machine.running_hub("a"), machine.add_hub("b"));
    let ran = machine.run(&["network", "publish"]);
    assert_eq!(ran.stderr, format!("roster 1 is stored by a\nhub b was not reached: {}\n", not_running(&b)));
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""));
    b.start();
    let ran = machine.run(&["network", "publish"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "roster 2 is stored by a, b\n"));
    let ran = machine.run(&["network", "plan"]);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", "network.toml says what roster 2 says\n"));
}

#[test]
fn publish_with_no_hub_reached_changes_nothing_and_exits_4() {
    let machine = Machine::with_network();
    let a = machine.add_hub("a");
    let unreachable = format!(
        "cannot publish: no hub was reached: hub a: {}: sign without a network: flatlan network publish --out FILE",
        not_running(&a)
    );
    machine.refused(&["network", "publish"], 4, &unreachable);
    assert!(!machine.path("lab.flatlan/published/roster").exists());
    let before = machine.read(NETWORK);
    let unreachable = format!(
        "cannot invite laptop: no hub was reached: hub a: {}: nothing was changed; try again when one answers, or change network.toml alone with --no-publish",
        not_running(&a)
    );
    machine.refused(&["invite", "laptop"], 4, &unreachable);
    assert_eq!(machine.read(NETWORK), before);
}

#[test]
fn a_hub_with_another_key_is_not_trusted() {
    let machine = Machine::with_network();
    let a = machine.running_hub("a");
    let other = machine.good(&["hub", "init", "--state", "elsewhere"]);
    let ours =
        machine.read(NETWORK).lines().find_map(|line| Some(line.strip_prefix("key = \"")?.replace('"', ""))).unwrap();
    machine.edit(&ours, &other);
    let tls = a.tls;
    let wrong = format!(
        "cannot publish: no hub was reached: hub a: {tls} is not the hub that it should be: its key is another: is something in the way, or was the hub made anew?: sign without a network: flatlan network publish --out FILE"
    );
    machine.refused(&["network", "publish"], 1, &wrong);
}

#[test]
fn what_was_signed_elsewhere_is_uploaded_without_a_key() {
    let machine = Machine::with_network();
    let (_a, _b) = (machine.running_hub("a"), machine.running_hub("b"));
    machine.copy("lab.flatlan", "carrier");
    std::fs::remove_file(machine.path("carrier/admin.key")).unwrap();
    machine.good(&["network", "publish", "--out", "roster.bin", "--state", "lab.flatlan"]);
    let ran = machine.run(&["network", "upload", "roster.bin", "--state", "carrier"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "roster 1 is stored by a, b\n"));
    // again is no harm
    machine.good(&["network", "upload", "roster.bin", "--state", "carrier"]);
}

#[test]
fn a_roster_that_is_damaged_or_older_is_not_uploaded() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    machine.good(&["network", "publish", "--out", "one.bin"]);
    machine.good(&["network", "publish"]);
    let older = "cannot upload one.bin: hub a holds roster 2, and this is 1: sign anew: flatlan network pull, then flatlan network publish";
    machine.refused(&["network", "upload", "one.bin"], 1, older);
    let bytes = std::fs::read(machine.path("lab.flatlan/published/roster")).unwrap();
    for place in (0..bytes.len()).step_by(37) {
        let mut flipped = bytes.clone();
        flipped[place] ^= 1;
        std::fs::write(machine.path("flipped.bin"), flipped).unwrap();
        let ran = machine.run(&["network", "upload", "flipped.bin"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "byte {place}: {ran:?}");
        assert!(ran.stderr.starts_with("error: cannot upload flipped.bin: "), "byte {place}: {ran:?}");
    }
}

#[test]
fn what_someone_else_published_is_pulled_before_it_is_built_on() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    machine.good(&["network", "publish"]);
    machine.copy("lab.flatlan", "second");
    machine.good(&["member", "add", "office", "--key", &super::alone::node_key(1), "--state", "second"]);
    machine.good(&["network", "publish", "--state", "second"]);
    let newer = "cannot publish: hub a holds roster 2, newer than 1, the last one known here: someone else published: flatlan network pull --state lab.flatlan, look at flatlan network plan --state lab.flatlan, then try again";
    machine.refused(&["network", "publish", "--state", "lab.flatlan"], 1, newer);
    let plan = machine.run(&["network", "plan", "--state", "lab.flatlan"]);
    let says = "hub a holds roster 2, which is newer: flatlan network pull --state lab.flatlan\n";
    assert!(plan.stderr.ends_with(says), "{plan:?}");
    machine.good(&["network", "pull", "--state", "lab.flatlan"]);
    let plan = machine.good(&["network", "plan", "--state", "lab.flatlan"]);
    assert!(plan.starts_with("- member office: "), "{plan}");
    machine.copy("second/network.toml", NETWORK);
    assert_eq!(machine.good(&["network", "plan", "--state", "lab.flatlan"]), "");
    machine.good(&["network", "publish", "--state", "lab.flatlan"]);
}

#[test]
fn a_clone_from_git_pulls_what_is_published_before_it_signs() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    machine.good(&["network", "publish"]);
    std::fs::remove_file(machine.path("lab.flatlan/published/roster")).unwrap();
    let unknown = "cannot publish: hub a holds roster 1, and none is known here: someone else published: flatlan network pull, look at flatlan network plan, then try again";
    machine.refused(&["network", "publish"], 1, unknown);
    let ran = machine.run(&["network", "pull"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, "pulled roster 1\nno claim that is not in network.toml\n"));
    assert_eq!(machine.run(&["network", "publish"]).stderr, "roster 2 is stored by a\n");
}

#[test]
fn two_rosters_on_one_base_are_a_fork_and_nothing_is_published_on_top() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    machine.good(&["network", "publish"]);
    machine.copy("lab.flatlan", "second");
    machine.good(&["member", "add", "office", "--key", &super::alone::node_key(1), "--state", "second"]);
    machine.good(&["network", "publish", "--state", "second"]);
    machine.good(&["network", "publish", "--out", "fork.bin", "--state", "lab.flatlan"]);
    for command in [["network", "publish"], ["network", "pull"], ["revoke", "office"]] {
        let ran = machine.run(&[&command[..], &["--state", "lab.flatlan"]].concat());
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains("hub a: the roster was forked: roster 2 ("), "{ran:?}");
        assert!(ran.stderr.ends_with("if you published from another copy of this directory: remove lab.flatlan/published/roster and run flatlan network pull --state lab.flatlan\n"), "{ran:?}");
    }
    let ran = machine.run(&["network", "upload", "fork.bin", "--state", "lab.flatlan"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.starts_with("error: cannot upload fork.bin: hub a: the roster was forked: "), "{ran:?}");
}

#[test]
fn a_hub_that_was_removed_is_told() {
    let machine = Machine::with_network();
    let (_a, mut b) = (machine.running_hub("a"), machine.running_hub("b"));
    machine.good(&["network", "publish"]);
    machine.good(&["network", "hub", "remove", "b"]);
    b.stop();
    let ran = machine.run(&["network", "publish"]);
    let not_told = format!("hub b, which is no longer in network.toml, was not reached: {}\n", not_running(&b));
    assert_eq!((ran.code, ran.stderr), (0, format!("roster 2 is stored by a\n{not_told}")));
}

#[test]
fn a_move_is_published_at_once_and_taken_back_by_undo() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    machine.good(&["member", "add", "office", "--key", &super::alone::node_key(1), "--route", "192.168.7.0/24"]);
    machine.good(&["member", "add", "dr", "--key", &super::alone::node_key(2)]);
    let before = machine.read(NETWORK);
    let ran = machine.run(&["network", "move", "192.168.7.5/32", "--to", "dr"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "- 192.168.7.5/32 office\n+ 192.168.7.5/32 dr\n"));
    assert!(ran.stderr.ends_with("roster 1 is stored by a\n"), "{ran:?}");
    assert!(machine.read(NETWORK).contains("moved = [\"192.168.7.5/32\"]"));
    assert_eq!(machine.run(&["network", "plan"]).stderr, "network.toml says what roster 1 says\n");
    let ran = machine.run(&["network", "move", "--undo", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (&said["from"][0], &said["to"], &said["prefix"]),
        (&"dr".into(), &"office".into(), &"192.168.7.5/32".into())
    );
    assert_eq!((&said["published"]["serial"], &said["hubs"][0]["stored"]), (&2.into(), &true.into()));
    assert_eq!(machine.read(NETWORK), before);
    assert_eq!(machine.run(&["network", "move", "--undo"]).code, 2, "there is one move to take back, not two");
}

#[test]
fn a_move_that_reaches_no_hub_changes_nothing() {
    let machine = Machine::with_network();
    let a = machine.add_hub("a");
    machine.good(&["member", "add", "office", "--key", &super::alone::node_key(1), "--route", "192.168.7.0/24"]);
    machine.good(&["member", "add", "dr", "--key", &super::alone::node_key(2)]);
    let before = machine.read(NETWORK);
    let unreachable = format!(
        "cannot move: no hub was reached: hub a: {}: nothing was changed; try again when one answers",
        not_running(&a)
    );
    machine.refused(&["network", "move", "192.168.7.5/32", "--to", "dr"], 4, &unreachable);
    assert_eq!(machine.read(NETWORK), before);
    assert!(!machine.path("lab.flatlan/last-move.json").exists());
}

#[test]
fn commands_at_once_take_turns() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    std::thread::scope(|scope| {
        for name in ["one", "two", "three"] {
            let machine = &machine;
            scope.spawn(move || assert!(machine.good(&["invite", name]).starts_with("fltoken1")));
        }
    });
    assert_eq!(machine.good(&["invite", "--list"]).lines().count(), 3);
    assert_eq!(machine.run(&["network", "plan"]).stderr, "network.toml says what roster 3 says\n");
}
