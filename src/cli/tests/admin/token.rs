//! Tokens: from `invite` to `join` and `pull`, and every way in which that is refused.

use flatlan_os::clock::unix;
use flatlan_roster::Token;
use flatlan_types::{AdminSecret, UnixTime};

use super::machine::{Machine, NETWORK, Ran, eventually, not_running};

#[test]
fn a_token_lets_one_machine_join_and_pull_writes_its_key() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    // no publish before: an invite brings everything to the hubs
    let ran = machine.run(&["invite", "office", "--route", "192.168.7.0/24", "--group", "sites"]);
    assert!(ran.stdout.starts_with("fltoken1") && ran.stdout.lines().count() == 1, "{ran:?}");
    assert!(ran.stderr.starts_with("roster 1 is stored by a\ninvited office (10.77.0.1) until "), "{ran:?}");
    assert_eq!(join(&machine, ran.stdout.trim(), "node").code, 0);
    let plan = machine.run(&["network", "plan"]);
    let says = "hub a knows of redeemed invites (1) that were not pulled: flatlan network pull\n";
    assert!(plan.stderr.ends_with(says), "{plan:?}");
    let ran = machine.run(&["network", "pull"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "joined: office\n"), "{ran:?}");
    let key = machine.good(&["join", "--request", "--state", "node"]);
    let network = machine.read(NETWORK);
    assert!(network.contains(&format!("key = \"{key}\"\n")) && !network.contains("invite ="), "{network}");
    assert_eq!(machine.good(&["invite", "--list"]), "");
    machine.good(&["network", "publish"]);
    assert_eq!(machine.good(&["network", "pull"]), "");
}

#[test]
fn the_same_token_lets_only_the_first_machine_join() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    let token = machine.good(&["invite", "office"]);
    assert_eq!(join(&machine, &token, "first").code, 0);
    let late = "hub a refuses the token: the token was already redeemed by another machine: if that was not you, tell the admin; a new one: flatlan invite office --replace";
    refused(&join(&machine, &token, "second"), 1, late);
    // also when its key is in the record, and its invite gone
    machine.good(&["network", "pull"]);
    machine.good(&["network", "publish"]);
    let gone = "hub a refuses the token: the token is not known: it was cancelled, replaced, or never published: ask the admin for a new one";
    refused(&join(&machine, &token, "third"), 1, gone);
}

#[test]
fn the_same_token_on_two_machines_at_once_lets_exactly_one_join() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    let token = machine.good(&["invite", "office"]);
    let both = std::thread::scope(|scope| {
        ["first", "second"].map(|state| scope.spawn(|| join(&machine, &token, state))).map(|ran| ran.join().unwrap())
    });
    let late = "error: hub a refuses the token: the token was already redeemed by another machine: if that was not you, tell the admin; a new one: flatlan invite office --replace\n";
    let mut codes = both.each_ref().map(|ran| ran.code);
    codes.sort_unstable();
    assert_eq!(codes, [0, 1], "{both:?}");
    assert!(both.iter().any(|ran| ran.code == 1 && ran.stderr == late), "{both:?}");
    assert_eq!(machine.good(&["network", "pull"]), "joined: office");
}

#[test]
fn an_expired_token_is_refused_by_the_node_and_by_the_hub() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    let token = machine.good(&["invite", "office", "--expires", "1s"]);
    eventually(|| machine.good(&["invite", "--list"]).contains(" expired until "));
    let here = "the token for office has expired: ask the admin for a new one (`flatlan invite office --replace`)";
    refused(&join(&machine, &token, "node"), 1, here);
    // one that says that it is good for longer; the hub counts whole seconds from its last look at the clock
    let mut forged: Token = token.parse().unwrap();
    let since = flatlan_roster::Utc(forged.expires);
    eventually(|| unix() > forged.expires.after(2));
    forged.expires = UnixTime(u64::MAX / 2);
    let there = format!(
        "hub a refuses the token: the token expired at {since}: ask the admin for a new one: flatlan invite office --replace"
    );
    refused(&join(&machine, &forged.to_text().unwrap(), "node"), 1, &there);
    let again = machine.good(&["invite", "office", "--replace"]);
    assert_eq!(join(&machine, &again, "node").code, 0);
}

#[test]
fn a_token_cut_off_or_of_another_kind_is_refused() {
    let machine = Machine::with_network();
    let _a = machine.add_hub("a");
    let token = machine.good(&["invite", "office", "--no-publish"]);
    let cut = &token[..token.len() - 9];
    let message = format!(
        "the token cannot be used: the token is mistyped or cut off ({} characters): copy all of it, one word that begins with fltoken1",
        cut.len()
    );
    refused(&join(&machine, cut, "node"), 2, &message);
    let kind = "the token cannot be used: this is no token: paste what `flatlan invite NAME` printed, one word that begins with fltoken1";
    refused(&join(&machine, &super::alone::node_key(1), "node"), 2, kind);
    let empty = "the token cannot be used: the token is empty: paste what `flatlan invite NAME` printed";
    refused(&join(&machine, "", "node"), 2, empty);
}

#[test]
fn a_token_of_another_network_is_refused() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    let token = machine.good(&["invite", "office"]);
    let mut wrong: Token = token.parse().unwrap();
    wrong.first_admin = AdminSecret::from_bytes(&[7; 32]).public();
    let ran = join(&machine, &wrong.to_text().unwrap(), "node");
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.starts_with("error: hub a refuses the token: "), "{ran:?}");
    assert_eq!(join(&machine, &token, "node").code, 0);
    let joined = "node belongs to another network: choose another directory with --state";
    refused(&join(&machine, &wrong.to_text().unwrap(), "node"), 2, joined);
    let twice = "node has joined this network already: run `flatlan up --state node`, or choose another --state";
    refused(&join(&machine, &token, "node"), 2, twice);
}

#[test]
fn only_the_redeeming_hub_redeems_and_another_can_be_chosen() {
    let machine = Machine::with_network();
    let (_a, mut b) = (machine.running_hub("a"), machine.running_hub("b"));
    let token = machine.good(&["invite", "office", "--hub", "b"]);
    b.stop();
    let down = format!(
        "cannot reach hub b, the only one that may redeem this token: {}: try again when it is up, or ask the admin for a token that another hub redeems (`flatlan invite office --replace --hub HUB`)",
        not_running(&b)
    );
    refused(&join(&machine, &token, "node"), 4, &down);
    let again = machine.run(&["invite", "office", "--replace"]);
    assert!(again.stderr.contains(" by hub a; on that machine: "), "a hub that is down is not chosen: {again:?}");
    assert_eq!(join(&machine, again.stdout.trim(), "node").code, 0);
}

#[test]
fn an_invite_by_a_hub_that_is_down_says_so() {
    let machine = Machine::with_network();
    let (_a, _b) = (machine.running_hub("a"), machine.add_hub("b"));
    let ran = machine.run(&["invite", "office", "--hub", "b"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let warning = "warning: hub b, the only one that may redeem this token, has not stored the roster: the token works once it has; by another hub: flatlan invite office --replace --hub HUB\n";
    assert!(ran.stderr.contains(warning), "{ran:?}");
    let unknown = "cannot invite laptop: hub c: it is not in network.toml";
    machine.refused(&["invite", "laptop", "--hub", "c"], 2, unknown);
}

#[test]
fn a_name_that_is_taken_is_not_invited_but_replaced() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    let token = machine.good(&["invite", "office"]);
    let open = "cannot invite office: it has an open invite: flatlan invite office --replace makes that token void and prints another";
    machine.refused(&["invite", "office"], 2, open);
    assert_eq!(join(&machine, &token, "first").code, 0);
    // the hub knows, so the admin need not pull first
    let joined = "cannot invite office: it has joined: a new token for a new machine, with the same addresses: flatlan invite office --replace";
    machine.refused(&["invite", "office"], 2, joined);
    let own = "cannot invite office: its addresses, routes and groups are in network.toml: change them there, and invite it without --ip, --route and --group";
    machine.refused(&["invite", "office", "--replace", "--ip", "10.77.0.9"], 2, own);
    let nobody =
        "cannot invite nobody: --replace is for a member that is in network.toml: without it, this invites a new one";
    machine.refused(&["invite", "nobody", "--replace"], 2, nobody);
    let first = machine.good(&["join", "--request", "--state", "first"]);
    let again = machine.good(&["invite", "office", "--replace"]);
    let network = machine.read(NETWORK);
    assert!(network.contains(&first), "until the new claim lands, the old key counts: {network}");
    let ran = join(&machine, &again, "second");
    assert!(ran.stderr.contains("joined: lab is office 10.77.0.1 "), "{ran:?}");
    machine.good(&["network", "pull"]);
    let network = machine.read(NETWORK);
    assert!(!network.contains(&first), "{network}");
}

#[test]
fn a_token_without_publish_works_once_published() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    machine.good(&["network", "publish"]);
    let ran = machine.run(&["invite", "office", "--no-publish"]);
    assert!(
        ran.stderr.starts_with("the token works once the roster is published: flatlan network publish\n"),
        "{ran:?}"
    );
    let token = ran.stdout.trim();
    let early = "hub a refuses the token: the token is not known: it was cancelled, replaced, or never published: ask the admin for a new one";
    refused(&join(&machine, token, "node"), 1, early);
    machine.good(&["network", "publish"]);
    assert_eq!(join(&machine, token, "node").code, 0);
}

#[test]
fn a_cancelled_token_is_void_and_one_that_was_redeemed_cannot_be_cancelled() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    let (void, used) = (machine.good(&["invite", "office"]), machine.good(&["invite", "laptop"]));
    assert_eq!(join(&machine, &used, "laptop").code, 0);
    machine.good(&["invite", "--cancel", "office"]);
    let gone = "hub a refuses the token: the token is not known: it was cancelled, replaced, or never published: ask the admin for a new one";
    refused(&join(&machine, &void, "office"), 1, gone);
    let joined = "cannot cancel the invite of laptop: it has joined: to remove it: flatlan revoke laptop";
    machine.refused(&["invite", "--cancel", "laptop"], 2, joined);
    let nobody = "cannot cancel the invite of office: it is not in network.toml";
    machine.refused(&["invite", "--cancel", "office"], 2, nobody);
    machine.good(&["revoke", "laptop"]);
    assert!(!machine.read(NETWORK).contains("[member"));
}

#[test]
fn a_revoked_member_is_gone_from_what_the_hubs_hold() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    let token = machine.good(&["invite", "office"]);
    assert_eq!(join(&machine, &token, "node").code, 0);
    let ran = machine.run(&["revoke", "office"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, ""), "{ran:?}");
    assert_eq!(ran.stderr, "joined since: office\nroster 2 is stored by a\nrevoked office\n");
    assert_eq!(machine.good(&["network", "plan"]), "");
    let unknown = "cannot revoke office: it is not in network.toml";
    machine.refused(&["revoke", "office"], 2, unknown);
}

#[test]
fn invites_are_reported_as_json_too() {
    let machine = Machine::with_network();
    let _a = machine.running_hub("a");
    let made: serde_json::Value = serde_json::from_str(&machine.good(&["invite", "office", "--json"])).unwrap();
    assert_eq!((made["name"].as_str(), made["hub"].as_str()), (Some("office"), Some("a")));
    assert!(made["token"].as_str().unwrap().parse::<Token>().is_ok());
    let list: serde_json::Value = serde_json::from_str(&machine.good(&["invite", "--list", "--json"])).unwrap();
    assert_eq!((list[0]["state"].as_str(), list[0]["ips"][0].as_str()), (Some("open"), Some("10.77.0.1")));
}

fn join(machine: &Machine, token: &str, state: &str) -> Ran {
    let file = format!("{state}.token");
    machine.write(&file, token);
    machine.run(&["join", "--token-file", &file, "--state", state])
}

#[track_caller]
fn refused(ran: &Ran, code: i32, message: &str) {
    assert_eq!((ran.code, ran.stderr.as_str()), (code, format!("error: {message}\n").as_str()));
    assert_eq!(ran.stdout, "");
}
